//! Which files a guest that is shut off takes along: what its definition names and what that lies on, against what was
//! ordered. Pure.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drover_proto::failure::{Failure, Reason};

use super::copies::fit_to_copy;
use crate::guest_xml::{self, Blocker, Disk, GuestShape, Needs, TPM};
use crate::offline::chain::Layer;
use crate::offline::image_lock::Others;

/// How a guest that is shut off leaves.
#[derive(Clone, Debug)]
pub struct OfflineOrder {
    /// What is copied.
    pub images: Vec<PathBuf>,
    /// What its other disks have, as their definition names it: the destination has it, too.
    pub shared: Vec<String>,
    pub delete_source: bool,
    /// A guest that runs is shut down first, and has so long for it.
    pub shut_down: Option<Duration>,
}

/// One file of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) path: PathBuf,
    pub(super) format: String,
    /// Nobody writes to it: others may have it too.
    pub(super) stays: bool,
    pub(super) copied: bool,
    /// It may be missing: a guest that was never started has no variables.
    pub(super) optional: bool,
    pub(super) shareable: bool,
    /// No disk of the guest, but what one lies on.
    pub(super) is_beneath: bool,
    pub(super) is_device: bool,
}

/// What lies beneath each image that is copied, nearest first.
pub(super) type Chains = HashMap<PathBuf, Vec<Layer>>;

/// What gets another name or goes must be nobody else's: also those who only read would lose it.
pub fn users(stays: bool) -> Others {
    if stays { Others::Read } else { Others::None }
}

/// Several guests may write to it: it is taken from none of them.
pub fn refuse_shareable(disk: &Disk) -> Result<(), Failure> {
    if !disk.shareable {
        return Ok(());
    }
    let message = format!(
        "{} may be used by several guests at once: it is not taken from them",
        disk.source
    );
    Err(Failure::new(Reason::ChecksFailed, message).with_remedy("put it on shared storage"))
}

/// Variables that are no file have no path at which the destination could have them.
pub fn refuse_foreign_variables(needs: &Needs) -> Result<(), Failure> {
    if needs.foreign_nvram.is_empty() {
        return Ok(());
    }
    let message = format!(
        "its UEFI variables are no file ({}): they would not go along",
        needs.foreign_nvram
    );
    Err(Failure::new(Reason::ChecksFailed, message)
        .with_remedy("give it variables that are a file: `<nvram>PATH</nvram>`"))
}

/// A TPM whose state cannot go along would be another one there, without its keys.
fn refuse_bound_tpm(ties: &[Blocker]) -> Result<(), Failure> {
    let Some(tie) = ties.iter().find(|tie| tie.check == TPM && tie.holds_data) else {
        return Ok(());
    };
    Err(Failure::new(Reason::ChecksFailed, tie.what.clone()).with_remedy("detach it"))
}

/// Paths and formats of the images that are copied.
pub(super) fn copied(definition: &str, order: &OfflineOrder) -> Result<Vec<(PathBuf, String)>, Failure> {
    let disks = read(definition)?
        .disks
        .into_iter()
        .filter(|disk| disk.source_type == "file");
    let images = disks.map(|disk| (PathBuf::from(&disk.source), disk.image_format().to_owned()));
    Ok(images.filter(|(path, _)| order.images.contains(path)).collect())
}

/// The guest's images, what they lie on, its UEFI variables and the state of its TPM, as its definition says.
pub(super) fn wanted(definition: &str, order: &OfflineOrder, chains: &Chains) -> Result<Vec<Wanted>, Failure> {
    let GuestShape {
        disks, needs, blockers, ..
    } = read(definition)?;
    refuse_foreign_variables(&needs)?;
    refuse_bound_tpm(&blockers)?;
    let mut all: Vec<Wanted> = Vec::new();
    for disk in disks {
        let path = PathBuf::from(&disk.source);
        let copied = order.images.contains(&path);
        if copied {
            refuse_shareable(&disk)?;
        } else {
            refuse_new(&disk, order)?;
        }
        let is_device = disk.source_type == "block";
        if is_device && copied {
            fit_to_copy(&disk).map_err(|why| Failure::new(Reason::ChecksFailed, format!("{}: {why}", disk.target)))?;
        }
        // A device that both hosts have has no lock that they would share.
        let is_held = disk.source_type == "file" || (is_device && copied);
        if disk.source.is_empty() || !is_held || all.iter().any(|known| known.path == path) {
            continue;
        }
        let layers = chains.get(&path).filter(|_| copied);
        all.push(Wanted {
            format: disk.image_format().to_owned(),
            path,
            stays: disk.read_only || is_device,
            copied,
            optional: false,
            shareable: disk.shareable || disk.read_only,
            is_beneath: false,
            is_device,
        });
        for layer in layers.into_iter().flatten() {
            refuse_new_layer(layer, order)?;
            if !all.iter().any(|known| known.path == layer.path) {
                all.push(beneath(layer));
            }
        }
    }
    let is_known = |path: &&PathBuf| all.iter().any(|one| one.path == **path);
    if let Some(unknown) = order.images.iter().find(|path| !is_known(path)) {
        let message = format!("{} is not an image file of this guest", unknown.display());
        return Err(Failure::invalid("offline.images", message));
    }
    // One that was never started has no variables yet. What state a TPM had is not seen where there is none.
    for (path, optional) in [(needs.nvram, true), (needs.tpm_state, false)] {
        if Path::new(&path).is_absolute() {
            all.push(besides(path.into(), optional));
        }
    }
    Ok(all)
}

/// A file of the guest's own that is no disk.
fn besides(path: PathBuf, optional: bool) -> Wanted {
    Wanted {
        path,
        format: "raw".to_owned(),
        stays: false,
        copied: true,
        optional,
        shareable: false,
        is_beneath: false,
        is_device: false,
    }
}

/// Nobody writes to it, and others may lie on it, too: it stays where it is.
fn beneath(layer: &Layer) -> Wanted {
    Wanted {
        path: layer.path.clone(),
        format: layer.format.clone(),
        stays: true,
        copied: true,
        optional: false,
        shareable: false,
        is_beneath: true,
        is_device: false,
    }
}

fn refuse_new_layer(layer: &Layer, order: &OfflineOrder) -> Result<(), Failure> {
    if order.images.contains(&layer.path) {
        return Ok(());
    }
    let message = format!(
        "{}, on which one of the guest's images lies, was not among the files to copy when it was checked",
        layer.path.display()
    );
    Err(Failure::new(Reason::ChecksFailed, message).with_remedy("move it again: every disk is looked at anew"))
}

/// Nobody has looked whether the destination has it.
fn refuse_new(disk: &Disk, order: &OfflineOrder) -> Result<(), Failure> {
    if disk.source.is_empty() || order.shared.contains(&disk.source) {
        return Ok(());
    }
    let message = format!(
        "{} ({}) came to the guest after it was checked",
        disk.target, disk.source
    );
    Err(Failure::new(Reason::ChecksFailed, message).with_remedy("move it again: every disk is looked at anew"))
}

/// A file is copied to its own path: a definition that names another one would start without it.
pub(super) fn keep_their_paths(wanted: &[Wanted], there: &str) -> Result<(), Failure> {
    let GuestShape { disks, needs, .. } = read(there)?;
    let besides = [&needs.nvram, &needs.tpm_state];
    let is_there = |path: &Path| {
        besides.into_iter().any(|own| Path::new(own) == path)
            || disks.iter().any(|disk| Path::new(&disk.source) == path)
    };
    match wanted
        .iter()
        .find(|one| one.copied && !one.is_beneath && !is_there(&one.path))
    {
        None => Ok(()),
        Some(moved) => {
            let message = format!("{} is copied, and only to the same path", moved.path.display());
            Err(Failure::new(Reason::StorageUnusable, message).with_remedy("leave out --disk for it"))
        }
    }
}

fn read(definition: &str) -> Result<GuestShape, Failure> {
    let unreadable = |error: guest_xml::Unreadable| Failure::new(Reason::ChecksFailed, error.to_string());
    guest_xml::read(definition).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = "<domain><name>web</name><os><nvram>/images/web.fd</nvram></os><devices>\
        <disk type='file'><driver type='qcow2'/><source file='/images/a.qcow2'/><target dev='vda'/></disk>\
        <disk type='block'><source dev='/dev/vg/b'/><target dev='vdb'/></disk>\
        <disk type='file'><source file='/iso/c.iso'/><target dev='sda'/><readonly/></disk>\
        <disk type='file'><target dev='sdb'/><readonly/></disk></devices></domain>";

    fn order(shared: &[&str]) -> OfflineOrder {
        OfflineOrder {
            images: vec!["/images/a.qcow2".into()],
            shared: shared.iter().map(|&name| name.to_owned()).collect(),
            delete_source: false,
            shut_down: None,
        }
    }

    #[test]
    fn every_file_is_copied_or_shared() {
        let all = wanted(GUEST, &order(&["/dev/vg/b", "/iso/c.iso"]), &Chains::new()).unwrap();
        let told: Vec<_> = all
            .iter()
            .map(|one| (one.path.to_str().unwrap(), one.copied, one.stays, one.optional))
            .collect();
        assert_eq!(
            told,
            [
                ("/images/a.qcow2", true, false, false),
                ("/iso/c.iso", false, true, false),
                ("/images/web.fd", true, false, true)
            ]
        );
    }

    #[test]
    fn the_state_of_a_tpm_goes_along_or_the_guest_stays() {
        let with = |backend: &str| {
            let uuid = "<uuid>0190a1b2-0000-7000-8000-0000000000aa</uuid>";
            let tpm = format!("<devices><tpm model='tpm-crb'><backend {backend}/></tpm>");
            let xml = GUEST.replacen("<devices>", &tpm, 1);
            xml.replacen("</name>", &format!("</name>{uuid}"), 1)
        };
        let order = order(&["/dev/vg/b", "/iso/c.iso"]);
        let own = with("type='emulator' version='2.0'");
        let all = wanted(&own, &order, &Chains::new()).unwrap();
        let state = all.last().unwrap();
        assert!(state.copied && !state.optional && !state.stays, "{state:?}");
        assert!(state.path.ends_with("tpm2/tpm2-00.permall"), "{state:?}");
        keep_their_paths(&all, &own).unwrap();
        let refused = wanted(&with("type='passthrough'"), &order, &Chains::new()).unwrap_err();
        assert_eq!(refused.reason, Reason::ChecksFailed);
        assert!(refused.message.contains("host's own"), "{}", refused.message);
    }

    #[test]
    fn what_a_copied_image_lies_on_goes_along_and_stays_as_well() {
        let layer = |name: &str| Layer {
            path: PathBuf::from(name),
            format: "qcow2".to_owned(),
        };
        let chain = vec![layer("/images/middle.qcow2"), layer("/images/base.qcow2")];
        let chains = Chains::from([(PathBuf::from("/images/a.qcow2"), chain)]);
        let mut order = order(&["/dev/vg/b", "/iso/c.iso"]);
        let refused = wanted(GUEST, &order, &chains).unwrap_err();
        assert!(refused.message.contains("/images/middle.qcow2"), "{}", refused.message);
        order
            .images
            .extend(["/images/middle.qcow2".into(), "/images/base.qcow2".into()]);
        let all = wanted(GUEST, &order, &chains).unwrap();
        let told: Vec<_> = all
            .iter()
            .filter(|one| one.copied)
            .map(|one| (one.path.to_str().unwrap(), one.stays))
            .collect();
        assert_eq!(
            told,
            [
                ("/images/a.qcow2", false),
                ("/images/middle.qcow2", true),
                ("/images/base.qcow2", true),
                ("/images/web.fd", false)
            ],
            "an image comes before what it lies on"
        );
        keep_their_paths(&all, GUEST).unwrap();
    }

    #[test]
    fn a_device_that_is_copied_stays_as_it_is() {
        let mut order = order(&["/iso/c.iso"]);
        order.images.push("/dev/vg/b".into());
        let all = wanted(GUEST, &order, &Chains::new()).unwrap();
        let device = all.iter().find(|one| one.path == Path::new("/dev/vg/b")).unwrap();
        assert!(device.is_device && device.copied && device.stays);
        let images = copied(GUEST, &order).unwrap();
        assert_eq!(images.len(), 1, "nothing lies beneath a device: {images:?}");
    }

    #[test]
    fn a_disk_that_nobody_has_looked_at_is_refused() {
        for shared in [&["/dev/vg/b"][..], &["/iso/c.iso"], &[]] {
            let refused = wanted(GUEST, &order(shared), &Chains::new()).unwrap_err();
            assert_eq!(refused.reason, Reason::ChecksFailed);
            assert!(refused.message.contains("after it was checked"), "{}", refused.message);
        }
    }

    #[test]
    fn what_is_several_guests_or_no_file_is_refused() {
        let shareable = GUEST.replacen("<target dev='vda'/>", "<target dev='vda'/><shareable/>", 1);
        let refused = wanted(&shareable, &order(&["/dev/vg/b", "/iso/c.iso"]), &Chains::new()).unwrap_err();
        assert!(refused.message.contains("several guests"), "{}", refused.message);
        let block = GUEST.replacen(
            "<nvram>/images/web.fd</nvram>",
            "<nvram type='block'><source dev='/dev/vg/vars'/></nvram>",
            1,
        );
        let refused = wanted(&block, &order(&["/dev/vg/b", "/iso/c.iso"]), &Chains::new()).unwrap_err();
        assert!(refused.message.contains("/dev/vg/vars"), "{}", refused.message);
    }
}
