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
        Compared::Incompatible(what) => CpuAnswer::Lacks(what),
        Compared::CannotSay(why) => CpuAnswer::Unknown(why),
    })
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
