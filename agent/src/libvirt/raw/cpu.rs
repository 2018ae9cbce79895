//! Asking libvirt whether this host can give a guest a certain CPU.

use std::ffi::CString;

use super::error::{Call, last_code};
use super::{Connection, c_string};
use crate::hypervisor::Result;

/// libvirt's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::libvirt) enum Compared {
    Fits,
    /// In libvirt's words.
    Incompatible(String),
    /// libvirt has no comparison for this architecture or kind of CPU; in its words.
    CannotSay(String),
}

impl Connection {
    /// Compares a `<cpu>` element with what this host's hypervisor can give.
    pub(in crate::libvirt) fn compare_cpu(
        &self,
        arch: &str,
        machine: &str,
        domain_type: &str,
        cpu_xml: &str,
    ) -> Result<Compared> {
        let optional = |text: &str| {
            if text.is_empty() {
                Ok(None)
            } else {
                c_string(text).map(Some)
            }
        };
        let (arch, machine, kind) = (optional(arch)?, optional(machine)?, optional(domain_type)?);
        let xml = c_string(cpu_xml)?;
        let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
        // SAFETY: the connection is open; all strings are terminated and outlive the call; null is "default".
        let answer = unsafe {
            virt_sys::virConnectCompareHypervisorCPU(
                self.raw(),
                std::ptr::null(),
                pointer(&arch),
                pointer(&machine),
                pointer(&kind),
                xml.as_ptr(),
                virt_sys::VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
            )
        };
        match answer {
            virt_sys::VIR_CPU_COMPARE_IDENTICAL | virt_sys::VIR_CPU_COMPARE_SUPERSET => Ok(Compared::Fits),
            virt_sys::VIR_CPU_COMPARE_INCOMPATIBLE => Ok(Compared::Incompatible(
                "libvirt does not say what is missing".to_owned(),
            )),
            _ => self.cpu_error(),
        }
    }

    fn cpu_error(&self) -> Result<Compared> {
        let code = last_code();
        let error = self.failed(Call::Look);
        match code {
            virt_sys::VIR_ERR_CPU_INCOMPATIBLE => Ok(Compared::Incompatible(error.message)),
            // There is no code of its own for a model that only another libvirt knows.
            virt_sys::VIR_ERR_INTERNAL_ERROR if error.message.contains("Unknown CPU model") => {
                Ok(Compared::Incompatible(error.message))
            }
            virt_sys::VIR_ERR_OPERATION_UNSUPPORTED
            | virt_sys::VIR_ERR_NO_SUPPORT
            | virt_sys::VIR_ERR_CONFIG_UNSUPPORTED
            | virt_sys::VIR_ERR_ARGUMENT_UNSUPPORTED => Ok(Compared::CannotSay(error.message)),
            _ => Err(error),
        }
    }
}
