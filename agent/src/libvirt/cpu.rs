//! Whether this host can give a guest its CPU.

use roxmltree::Document;

use super::raw::{Compared, Connection, own_error};
use crate::hypervisor::{CpuAnswer, CpuQuestion, ErrorClass, Result};

/// Blocks.
pub(super) fn fits(connection: &Connection, question: &CpuQuestion) -> Result<CpuAnswer> {
    let Some(cpu_xml) = &question.cpu_xml else {
        return Ok(CpuAnswer::Fits);
    };
    if let Some(why) = incomparable(cpu_xml)? {
        return Ok(CpuAnswer::Unknown(why));
    }
    let answer = connection.compare_cpu(&question.arch, &question.machine, &question.domain_type, cpu_xml)?;
    Ok(match answer {
        Compared::Fits => CpuAnswer::Fits,
        Compared::Incompatible(what) => CpuAnswer::Lacks(missing(&what)),
        Compared::CannotSay(why) => CpuAnswer::Unknown(why),
    })
}

/// The features that libvirt names in its refusal; all of its words where it names none. Goes after "lacks".
fn missing(message: &str) -> String {
    const NAMES: &str = "does not provide required features: ";
    let named = message.rsplit_once(NAMES).map(|(_, names)| names.trim());
    match named {
        Some(names) if !names.is_empty() => names.to_owned(),
        Some(_) | None => format!("what the guest needs: {message}"),
    }
}

/// Why a `<cpu>` says nothing about what the guest needs; `None` where it names a model.
fn incomparable(cpu_xml: &str) -> Result<Option<String>> {
    let document = Document::parse(cpu_xml).map_err(|error| {
        own_error(
            ErrorClass::UserMustAct,
            "CPU_XML",
            format!("the guest's <cpu>: {error}"),
        )
    })?;
    let cpu = document.root_element();
    if cpu.children().any(|node| node.has_tag_name("model")) {
        return Ok(None);
    }
    let mode = cpu.attribute("mode").unwrap_or("custom");
    Ok(Some(format!(
        "the guest's CPU is of mode {mode}: its definition does not say what it has"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_features_are_taken_out_of_a_refusal() {
        let refusal =
            "the CPU is incompatible with host CPU: Host CPU does not provide required features: pcid, avx512f";
        assert_eq!(missing(refusal), "pcid, avx512f");
        for other in [
            "Unknown CPU model Skylake-9",
            "Host CPU does not provide required features: ",
        ] {
            assert_eq!(missing(other), format!("what the guest needs: {other}"));
        }
    }

    #[test]
    fn a_cpu_without_a_model_cannot_be_compared() {
        let why = incomparable("<cpu mode='host-passthrough' check='none' migratable='on'/>")
            .unwrap()
            .unwrap();
        assert!(why.contains("host-passthrough"), "{why}");
        assert_eq!(
            incomparable("<cpu mode='custom'><model fallback='forbid'>qemu64</model></cpu>").unwrap(),
            None
        );
        assert!(incomparable("<cpu").is_err());
    }
}
