//! What a guest needs of its host besides devices: huge pages, NUMA nodes, certain CPUs, files to start from. Pure.

use std::collections::BTreeSet;

use roxmltree::Node;

use super::{attribute, child, children, source_name, tpm};

/// More numbers than any host has: a range that is longer is cut here.
const MOST_NUMBERS: u32 = 65536;

/// More ranges than anybody writes; what follows is not read.
const MOST_RANGES: usize = 1024;

/// What a guest needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Empty where its memory is of ordinary pages.
    pub huge_pages: Vec<HugePages>,
    /// Numbers of the host's NUMA nodes that it names.
    pub numa_nodes: Vec<u32>,
    /// Numbers of the host's CPUs that it is pinned to.
    pub host_cpus: Vec<u32>,
    /// Firmware, kernel, initrd: files that QEMU opens on every host.
    pub boot_files: Vec<String>,
    /// Its own UEFI variables; empty where it has none, or none yet.
    pub nvram: String,
    /// What its variables are, where they are no file; else empty.
    pub foreign_nvram: String,
    /// The file with the state of its TPM; empty where it has none that can go along with a guest that is shut off.
    pub tpm_state: String,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// Bytes of one; 0: the host's default size.
    pub page: u64,
    /// Bytes in all.
    pub total: u64,
}

pub(super) fn read(domain: Node<'_, '_>) -> Needs {
    Needs {
        huge_pages: huge_pages(domain),
        numa_nodes: numbers(numa_sets(domain)),
        host_cpus: numbers(cpu_sets(domain)),
        boot_files: boot_files(domain),
        nvram: nvram(domain),
        foreign_nvram: foreign_nvram(domain),
        tpm_state: tpm::state(domain),
    }
}

fn huge_pages(domain: Node<'_, '_>) -> Vec<HugePages> {
    let Some(element) = child(domain, "memoryBacking").and_then(|backing| child(backing, "hugepages")) else {
        return Vec::new();
    };
    let memory = child(domain, "memory")
        .map(|memory| text_bytes(memory))
        .unwrap_or_default();
    let mut pages: Vec<HugePages> = Vec::new();
    let (mut assigned, mut rest) = (0, None);
    for page in children(element, "page") {
        let size = attribute_bytes(page, "size", "unit");
        match page.attribute("nodeset") {
            Some(nodes) => {
                let total = cells(domain, nodes);
                assigned += total;
                pages.push(HugePages { page: size, total });
            }
            None => rest = Some(size),
        }
    }
    let left = memory.saturating_sub(assigned);
    // Without any <page> all memory is of the default size; nodes that no <page> names have ordinary memory.
    let rest = if pages.is_empty() && rest.is_none() {
        Some(0)
    } else {
        rest
    };
    if let Some(page) = rest.filter(|_| left > 0) {
        pages.push(HugePages { page, total: left });
    }
    pages
}

/// Bytes of the guest's own NUMA cells.
fn cells(domain: Node<'_, '_>, nodes: &str) -> u64 {
    let wanted = set(nodes);
    let numa = child(domain, "cpu").and_then(|cpu| child(cpu, "numa"));
    let cells = numa.into_iter().flat_map(|numa| children(numa, "cell"));
    let wanted = cells.filter(|cell| {
        let id = cell.attribute("id").and_then(|id| id.parse().ok());
        id.is_some_and(|id| wanted.contains(&id))
    });
    wanted.map(|cell| attribute_bytes(cell, "memory", "unit")).sum()
}

fn numa_sets<'a>(domain: Node<'a, 'a>) -> impl Iterator<Item = &'a str> {
    let tune = child(domain, "numatune");
    let parts = tune.into_iter().flat_map(|tune| {
        tune.children()
            .filter(|part| part.has_tag_name("memory") || part.has_tag_name("memnode"))
    });
    parts.filter_map(|part| part.attribute("nodeset"))
}

fn cpu_sets<'a>(domain: Node<'a, 'a>) -> impl Iterator<Item = &'a str> {
    let all = child(domain, "vcpu").and_then(|vcpu| vcpu.attribute("cpuset"));
    let tune = child(domain, "cputune");
    let pins = tune.into_iter().flat_map(|tune| tune.children());
    all.into_iter().chain(pins.filter_map(|pin| pin.attribute("cpuset")))
}

fn numbers<'a>(sets: impl Iterator<Item = &'a str>) -> Vec<u32> {
    let all: BTreeSet<u32> = sets.flat_map(set).collect();
    all.into_iter().collect()
}

/// `0-3,^2,8` as libvirt writes it; what cannot be read is left out.
pub fn set(text: &str) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    for part in text.split(',').take(MOST_RANGES).map(str::trim) {
        let (part, is_out) = part.strip_prefix('^').map_or((part, false), |part| (part, true));
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse::<u32>(), last.trim().parse::<u32>()) else {
            continue;
        };
        for number in first..=last.min(MOST_NUMBERS) {
            if is_out {
                numbers.remove(&number);
            } else {
                numbers.insert(number);
            }
        }
    }
    numbers
}

fn boot_files(domain: Node<'_, '_>) -> Vec<String> {
    let os = child(domain, "os");
    let files = os.into_iter().flat_map(|os| os.children()).filter(|node| {
        ["loader", "kernel", "initrd", "dtb"]
            .iter()
            .any(|name| node.has_tag_name(*name))
    });
    let paths = files.filter_map(|node| node.text()).map(str::trim);
    paths.filter(|path| path.starts_with('/')).map(str::to_owned).collect()
}

fn nvram(domain: Node<'_, '_>) -> String {
    let element = child(domain, "os").and_then(|os| child(os, "nvram"));
    let written = element.and_then(|nvram| {
        let file = child(nvram, "source").map(|source| attribute(source, "file"));
        file.or_else(|| nvram.text().map(|text| text.trim().to_owned()))
    });
    written.unwrap_or_default()
}

/// `block /dev/vg/web-vars`.
fn foreign_nvram(domain: Node<'_, '_>) -> String {
    let element = child(domain, "os").and_then(|os| child(os, "nvram"));
    let kind = element.map(|nvram| attribute(nvram, "type")).unwrap_or_default();
    let source = element.and_then(|nvram| child(nvram, "source"));
    match source.filter(|_| !kind.is_empty() && kind != "file") {
        Some(source) => format!("{kind} {}", source_name(source, &kind)),
        None => String::new(),
    }
}

fn text_bytes(node: Node<'_, '_>) -> u64 {
    bytes(node.text().unwrap_or_default(), node.attribute("unit"))
}

fn attribute_bytes(node: Node<'_, '_>, value: &str, unit: &str) -> u64 {
    bytes(&attribute(node, value), node.attribute(unit))
}

/// libvirt's units; without one it means KiB.
fn bytes(text: &str, unit: Option<&str>) -> u64 {
    let number: u64 = text.trim().parse().unwrap_or_default();
    let factor = match unit.unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => 1 << 10,
    };
    number.saturating_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::super::read as read_guest;
    use super::*;

    fn needs(inside: &str) -> Needs {
        read_guest(&format!("<domain><memory unit='KiB'>4194304</memory>{inside}</domain>"))
            .unwrap()
            .needs
    }

    #[test]
    fn an_ordinary_guest_needs_nothing_special() {
        assert_eq!(
            needs("<vcpu>2</vcpu><memoryBacking><locked/></memoryBacking>"),
            Needs::default()
        );
    }

    #[test]
    fn huge_pages_are_of_the_default_size_or_of_one_that_is_named() {
        let all = |page| vec![HugePages { page, total: 4 << 30 }];
        assert_eq!(needs("<memoryBacking><hugepages/></memoryBacking>").huge_pages, all(0));
        let named = "<memoryBacking><hugepages><page size='2048' unit='KiB'/></hugepages></memoryBacking>";
        assert_eq!(needs(named).huge_pages, all(2 << 20));
    }

    #[test]
    fn huge_pages_of_some_cells_are_counted_by_their_memory() {
        let numa = "<cpu><numa><cell id='0' memory='1048576' unit='KiB'/><cell id='1' memory='3145728' unit='KiB'/>\
                    </numa></cpu>";
        let one = "<page size='1' unit='G' nodeset='1'/>";
        let rest = "<page size='2' unit='M'/>";
        let pages = |inside: &str| {
            needs(&format!(
                "{numa}<memoryBacking><hugepages>{inside}</hugepages></memoryBacking>"
            ))
            .huge_pages
        };
        let big = HugePages {
            page: 1 << 30,
            total: 3 << 30,
        };
        let small = HugePages {
            page: 2 << 20,
            total: 1 << 30,
        };
        assert_eq!(pages(one), [big]);
        assert_eq!(pages(&format!("{rest}{one}")), [big, small]);
    }

    #[test]
    fn nodes_and_cpus_are_collected_from_all_places() {
        let found = needs(
            "<vcpu placement='static' cpuset='0-1'>2</vcpu>\
             <cputune><vcpupin vcpu='0' cpuset='4-6,^5'/><emulatorpin cpuset='8'/></cputune>\
             <numatune><memory mode='strict' nodeset='0'/><memnode cellid='0' mode='strict' nodeset='2'/></numatune>",
        );
        assert_eq!(found.host_cpus, [0, 1, 4, 6, 8]);
        assert_eq!(found.numa_nodes, [0, 2]);
    }

    #[test]
    fn sets_of_numbers_are_bounded() {
        assert!(set("").is_empty() && set("x-y,^").is_empty() && set("5-2").is_empty());
        assert!(set("0-4294967295").len() <= MOST_NUMBERS as usize + 1);
    }

    #[test]
    fn files_to_start_from_are_named() {
        let found = needs(
            "<os><type>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>\
             <nvram>/var/lib/libvirt/qemu/nvram/a.fd</nvram><kernel>/boot/vmlinuz</kernel></os>",
        );
        assert_eq!(found.boot_files, ["/usr/share/OVMF/OVMF_CODE.fd", "/boot/vmlinuz"]);
        assert_eq!(found.nvram, "/var/lib/libvirt/qemu/nvram/a.fd");
    }

    #[test]
    fn variables_that_are_no_file_are_told_as_such() {
        let found = needs("<os><nvram type='block'><source dev='/dev/vg/vars'/></nvram></os>");
        assert_eq!(
            (found.nvram.as_str(), found.foreign_nvram.as_str()),
            ("", "block /dev/vg/vars")
        );
        let file = needs("<os><nvram type='file'><source file='/a.fd'/></nvram></os>");
        assert_eq!((file.nvram.as_str(), file.foreign_nvram.as_str()), ("/a.fd", ""));
    }
}
