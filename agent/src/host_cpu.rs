//! Guests that have their host's own CPU (`host-passthrough`): they need the same CPU at the destination, because what
//! they see there is that host's. Pure.

use std::collections::BTreeSet;

use roxmltree::Document;

use crate::hypervisor::CpuAnswer;

/// What is compared of a host's CPU. Microcode, counters and topology may differ.
#[derive(Debug, Default, PartialEq, Eq)]
struct HostCpu {
    arch: String,
    vendor: String,
    model: String,
    features: BTreeSet<String>,
}

/// Whether a guest's `<cpu>` is its host's own.
pub fn is_passed_through(cpu_xml: &str) -> bool {
    Document::parse(cpu_xml).is_ok_and(|document| document.root_element().attribute("mode") == Some("host-passthrough"))
}

/// Whether two hosts have the same CPU. Both texts are the `<cpu>` element of libvirt's capabilities.
pub fn same(source: &str, here: &str) -> CpuAnswer {
    let (Some(source), Some(here)) = (read(source), read(here)) else {
        let why = "the guest has its host's own CPU, and libvirt does not tell what the two hosts have";
        return CpuAnswer::Unknown(why.to_owned());
    };
    let names = |features: Vec<&String>| features.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let missing = names(source.features.difference(&here.features).collect());
    let more = names(here.features.difference(&source.features).collect());
    let mut differences = Vec::new();
    for (what, there, here) in [
        ("architecture", &source.arch, &here.arch),
        ("vendor", &source.vendor, &here.vendor),
        ("model", &source.model, &here.model),
    ] {
        if there != here {
            differences.push(format!("the {what} {there} (it is {here})"));
        }
    }
    if !missing.is_empty() {
        differences.push(missing);
    }
    if !more.is_empty() {
        differences.push(format!("a CPU without {more}"));
    }
    if differences.is_empty() {
        CpuAnswer::Fits
    } else {
        CpuAnswer::Lacks(format!(
            "what the guest has by host-passthrough: {}",
            differences.join("; ")
        ))
    }
}

fn read(xml: &str) -> Option<HostCpu> {
    let document = Document::parse(xml).ok()?;
    let cpu = document.root_element();
    let text = |name: &str| {
        let node = cpu.children().find(|node| node.has_tag_name(name));
        node.and_then(|node| node.text()).unwrap_or_default().trim().to_owned()
    };
    let features = cpu.children().filter(|node| node.has_tag_name("feature"));
    let cpu = HostCpu {
        arch: text("arch"),
        vendor: text("vendor"),
        model: text("model"),
        features: features
            .filter_map(|feature| feature.attribute("name"))
            .map(str::to_owned)
            .collect(),
    };
    // An architecture without models cannot be compared.
    (!cpu.model.is_empty()).then_some(cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(model: &str, microcode: u32, features: &[&str]) -> String {
        let features: String = features
            .iter()
            .map(|name| format!("<feature name='{name}'/>"))
            .collect();
        format!(
            "<cpu><arch>x86_64</arch><model>{model}</model><vendor>Intel</vendor><microcode version='{microcode}'/>\
             <topology sockets='1'/>{features}</cpu>"
        )
    }

    fn lacks(source: &str, here: &str) -> String {
        let answer = same(source, here);
        let CpuAnswer::Lacks(what) = answer else {
            panic!("{answer:?}")
        };
        what
    }

    #[test]
    fn the_same_cpu_fits_whatever_its_microcode() {
        let source = cpu("Skylake-Server", 1, &["pdpe1gb", "avx512f"]);
        assert_eq!(
            same(&source, &cpu("Skylake-Server", 2, &["avx512f", "pdpe1gb"])),
            CpuAnswer::Fits
        );
    }

    #[test]
    fn what_is_different_is_named() {
        let source = cpu("Skylake-Server", 1, &["pdpe1gb", "avx512f"]);
        let what = lacks(&source, &cpu("Skylake-Server", 1, &["pdpe1gb"]));
        assert!(what.ends_with(": avx512f"), "{what}");
        let what = lacks(&source, &cpu("Skylake-Server", 1, &["pdpe1gb", "avx512f", "la57"]));
        assert!(what.contains("without la57"), "{what}");
        let what = lacks(&source, &cpu("EPYC", 1, &["pdpe1gb", "avx512f"]));
        assert!(what.contains("model Skylake-Server (it is EPYC)"), "{what}");
    }

    #[test]
    fn what_libvirt_does_not_tell_is_unknown() {
        for here in ["", "<cpu", "<cpu><arch>aarch64</arch></cpu>"] {
            assert!(matches!(same(&cpu("EPYC", 1, &[]), here), CpuAnswer::Unknown(_)));
        }
    }

    #[test]
    fn only_passthrough_is_passthrough() {
        assert!(is_passed_through(
            "<cpu mode='host-passthrough' check='none' migratable='on'/>"
        ));
        assert!(!is_passed_through("<cpu mode='custom'><model>EPYC</model></cpu>"));
        assert!(!is_passed_through("") && !is_passed_through("<cpu"));
    }
}
