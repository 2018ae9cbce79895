//! The agent: does migrations on its host, through the local libvirt.
//!
//! Where to begin: [`service`] is what others may ask for, [`jobs`] is how it is done, [`journal`] is what makes it
//! safe, [`hypervisor`] is the seam below.

pub mod block_devices;
pub mod checks;
pub mod config;
pub mod gate;
pub mod guest_xml;
pub mod host_cpu;
pub mod hypervisor;
pub mod images;
pub mod jobs;
pub mod journal;
pub mod libvirt;
pub mod offline;
pub mod peer;
pub mod port;
pub mod probe;
pub mod promised;
pub mod registration;
pub mod server;
pub mod service;
pub mod sim;
pub mod space;
pub mod storage_directories;
pub mod tunnel;
