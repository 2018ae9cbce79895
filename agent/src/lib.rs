//! The agent: does migrations on its host, through the local libvirt.

pub mod hypervisor;
pub mod libvirt;
