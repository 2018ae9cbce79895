//! A guest's TPM: in which file its state lies, or why that cannot go along with a guest that is shut off. Pure.

use std::path::Path;

use drover_proto::ids::GuestId;
use roxmltree::Node;

use super::{attribute, child, children};

/// Where libvirt's system daemon keeps the state of emulated TPMs, in a folder for each guest: `swtpmStorageDir` and
/// `qemuTPMEmulatorStorageBuildPath` (src/qemu/qemu_conf.c and qemu_tpm.c).
const STATES: &str = "/var/lib/libvirt/swtpm";

/// A version, its folder (libvirt, as above), and the one file in it that outlives the guest's run: swtpm's
/// `SWTPM_NVRAM_GetFilenameForName` (src/swtpm/swtpm_nvstore_dir.c).
const VERSIONS: [(&str, &str, &str); 2] = [("2.0", "tpm2", "tpm2-00.permall"), ("1.2", "tpm1.2", "tpm-00.permall")];

/// Path of the file with the state of its TPM; empty where it has none that can go along.
pub(super) fn state(domain: Node<'_, '_>) -> String {
    let devices = child(domain, "devices");
    let mut all = devices.into_iter().flat_map(|devices| children(devices, "tpm"));
    all.find_map(|tpm| file(tpm).ok()).unwrap_or_default()
}

/// What is said of a TPM, and why its state cannot go along, where it cannot.
pub(super) fn words(tpm: Node<'_, '_>) -> (String, Option<String>) {
    let backend = child(tpm, "backend").map(|backend| attribute(backend, "type"));
    let (model, backend) = (attribute(tpm, "model"), backend.unwrap_or_default());
    let what = format!("it has a TPM ({model}, {backend})");
    (what, file(tpm).err())
}

fn file(tpm: Node<'_, '_>) -> Result<String, String> {
    let Some(backend) = child(tpm, "backend") else {
        return Err("its definition does not say where its state is".to_owned());
    };
    match attribute(backend, "type").as_str() {
        "emulator" => {}
        "passthrough" => return Err("it is the host's own".to_owned()),
        other => return Err(format!("its state is not in libvirt's keeping ({other})")),
    }
    if child(backend, "encryption").is_some() {
        return Err("its state is encrypted, and the secret is known to the libvirt of this host alone".to_owned());
    }
    // Known to libvirt from 10.10 on: whose file that is nobody has tried out.
    if let Some(source) = child(backend, "source") {
        return Err(format!(
            "its state lies where its definition says ({}), and only what libvirt places itself goes along",
            attribute(source, "path")
        ));
    }
    let version = attribute(backend, "version");
    let guest = child(tpm.document().root_element(), "uuid").and_then(|uuid| uuid.text());
    let guest = guest.and_then(|uuid| uuid.trim().parse::<GuestId>().ok());
    let known = VERSIONS.iter().find(|(known, _, _)| *known == version);
    match (known, guest) {
        (Some((_, folder, name)), Some(guest)) => Ok(format!("{STATES}/{guest}/{folder}/{name}")),
        (None, _) => Err(format!("its version {version:?} is not known")),
        (_, None) => Err("its guest has no UUID that says where its state is".to_owned()),
    }
}

/// The folders around the state of a TPM that are its guest's own, the outer one first. libvirt makes them when it
/// starts the guest for the first time; before that they are nowhere.
pub fn tpm_folders(file: &Path) -> Option<[&Path; 2]> {
    let inner = file.parent()?;
    let outer = inner.parent()?;
    let name = |path: &'_ Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let (folder, file) = (name(inner)?, name(file)?);
    let is_state = VERSIONS
        .iter()
        .any(|(_, known, state)| folder == *known && file == *state);
    let is_guests = name(outer)?.parse::<GuestId>().is_ok();
    (is_state && is_guests).then_some([outer, inner])
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;

    const UUID: &str = "0190a1b2-0000-7000-8000-0000000000aa";

    fn guest(backend: &str) -> String {
        format!(
            "<domain><uuid>{UUID}</uuid><devices><tpm model='tpm-crb'>{backend}<alias name='tpm0'/></tpm></devices></domain>"
        )
    }

    #[test]
    fn the_state_lies_where_libvirt_places_it() {
        for (version, expected) in [("2.0", "tpm2/tpm2-00.permall"), ("1.2", "tpm1.2/tpm-00.permall")] {
            let backend = format!("<backend type='emulator' version='{version}' persistent_state='yes'/>");
            let shape = read(&guest(&backend)).unwrap();
            let path = format!("/var/lib/libvirt/swtpm/{UUID}/{expected}");
            assert_eq!(shape.needs.tpm_state, path);
            assert!(!shape.blockers[0].holds_data, "{:?}", shape.blockers);
            let folders = tpm_folders(Path::new(&path)).unwrap();
            assert_eq!(folders[0], Path::new("/var/lib/libvirt/swtpm").join(UUID));
            assert_eq!(folders[1], Path::new(&path).parent().unwrap());
        }
    }

    #[test]
    fn what_lies_elsewhere_or_is_of_no_use_elsewhere_stays_and_is_told() {
        for (backend, word) in [
            ("", "where its state is"),
            (
                "<backend type='passthrough'><device path='/dev/tpm0'/></backend>",
                "host's own",
            ),
            ("<backend type='external'><source type='unix'/></backend>", "external"),
            (
                "<backend type='emulator' version='2.0'><encryption secret='6dd3e4a5-1d76-44ce-961f-f119f5aad935'/></backend>",
                "secret",
            ),
            (
                "<backend type='emulator' version='2.0'><source type='dir' path='/srv/tpm'/></backend>",
                "/srv/tpm",
            ),
            ("<backend type='emulator' version='3.0'/>", "3.0"),
        ] {
            let shape = read(&guest(backend)).unwrap();
            assert_eq!(shape.needs.tpm_state, "", "{backend}");
            let [blocker] = &shape.blockers[..] else {
                panic!("{:?}", shape.blockers)
            };
            assert!(blocker.holds_data && blocker.what.contains(word), "{blocker:?}");
        }
        let nobodys = guest("<backend type='emulator' version='2.0'/>").replace(UUID, "x");
        assert_eq!(read(&nobodys).unwrap().needs.tpm_state, "");
    }

    #[test]
    fn no_other_folder_is_a_guests_own() {
        for other in [
            "/images/a.raw",
            "tpm2-00.permall",
            "/swtpm/web/tpm2/tpm2-00.permall",
            "/images/0190a1b2-0000-7000-8000-0000000000aa/disk/tpm2-00.permall",
            "/images/0190a1b2-0000-7000-8000-0000000000aa/tpm2/disk.raw",
            "/images/0190a1b2-0000-7000-8000-0000000000aa/tpm2/tpm-00.permall",
        ] {
            assert_eq!(tpm_folders(Path::new(other)), None, "{other}");
        }
    }
}
