//! Resuming a guest whose images were taken away from it.
//!
//! A libvirtd that stops the other copy of a guest gives the images back to whom it believes to be their owner. On a
//! file system that it does not take for shared, or without a memory of the owner, that is root: and a QEMU that has
//! let go of its disks cannot open them again. The agent may not change owners, but libvirt does so for every guest
//! that it starts: so it starts one with the same images, read-only and never running, and removes it at once.

use std::sync::Arc;

use super::guest;
use super::raw::{Domain, own_error};
use crate::guest_xml::helper;
use crate::hypervisor::{ErrorClass, HypervisorError, Result};

/// As [`guest::resume`]; where QEMU may not open an image, once more after libvirt has given access again.
pub(super) fn resume(domain: &Domain) -> Result<()> {
    match guest::resume(domain) {
        Err(refused) if is_denied(&refused) => {
            tracing::warn!(guest = %domain.id()?, %refused, "QEMU may not open an image: libvirt is made to allow it");
            give_access(domain)?;
            guest::resume(domain)
        }
        answer => answer,
    }
}

/// libvirt runs QEMU in the C locale: its words are always these.
fn is_denied(error: &HypervisorError) -> bool {
    error.message.contains("Could not open") && error.message.contains("Permission denied")
}

/// The helper has a name of its own, and goes with the connection should this process die.
fn give_access(domain: &Domain) -> Result<()> {
    let name = format!("drover-access-{}", domain.id()?);
    let unreadable =
        |error: crate::guest_xml::Unreadable| own_error(ErrorClass::Unavailable, "DOMAIN_XML", error.to_string());
    let Some(xml) = helper(&domain.xml(0)?, &name).map_err(unreadable)? else {
        return Ok(());
    };
    let flags = virt_sys::VIR_DOMAIN_START_PAUSED | virt_sys::VIR_DOMAIN_START_AUTODESTROY;
    match Domain::create(&Arc::clone(domain.connection()), &xml, flags) {
        Ok(helper) => helper.destroy(),
        // Owners are changed before QEMU is started: whether it was enough is seen when the guest is resumed.
        Err(error) => {
            tracing::warn!(%error, "the helper did not start");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_image_that_may_not_be_opened_calls_for_it() {
        let said = |message: &str| own_error(ErrorClass::Ambiguous, "TEST", message);
        let denied =
            "internal error: unable to execute QEMU command 'cont': Could not open '/srv/a': Permission denied";
        assert!(is_denied(&said(denied)));
        for other in [
            "Could not open '/srv/a': No such file or directory",
            "Failed to get \"write\" lock",
            "",
        ] {
            assert!(!is_denied(&said(other)), "{other}");
        }
    }
}
