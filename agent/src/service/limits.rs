//! How much of a request is taken. What is larger is refused by its field, before anything is written down.
//!
//! The size of a whole message is limited before it gets here; these are the parts that are kept or given to libvirt.

use std::path::PathBuf;
use std::time::Duration;

use drover_proto::agent::v1::{OfflineArrival, OfflineFile, OfflineOrder, StorageProbe};
use drover_proto::failure::Failure;
use drover_proto::time::std_duration;

use crate::guest_xml;
use crate::hypervisor::Cookie;
use crate::jobs::offline_files as jobs;
use crate::offline::{FileSpec, LARGEST};

/// Largest cookie in bytes: libvirt's carry a definition and some statistics.
const MAX_COOKIE_BYTES: usize = guest_xml::MAX_BYTES + 64 * 1024;

/// Most addresses of a destination, each of so many bytes.
const MAX_ADDRESSES: usize = 16;
const MAX_ADDRESS_BYTES: usize = 300;

/// Most files of a guest, and the longest path of one in bytes: all of them have to fit into the journal.
const MAX_FILES: usize = 64;
const MAX_PATH_BYTES: usize = 256;

/// Longest time that a guest may take to shut down.
const LONGEST_SHUTDOWN: Duration = Duration::from_secs(3600);

/// Most probe files in one request.
const MAX_PROBES: usize = 1024;

/// Longest reason of an undo in bytes; only people read it.
const MAX_REASON_BYTES: usize = 2000;

pub(super) fn xml(field: &str, xml: String) -> Result<String, Failure> {
    if xml.len() > guest_xml::MAX_BYTES {
        return Err(Failure::invalid(
            field,
            format!("at most {} bytes", guest_xml::MAX_BYTES),
        ));
    }
    Ok(xml)
}

pub(super) fn cookie(field: &str, bytes: &[u8]) -> Result<Cookie, Failure> {
    if bytes.len() > MAX_COOKIE_BYTES {
        return Err(Failure::invalid(field, format!("at most {MAX_COOKIE_BYTES} bytes")));
    }
    Ok(Cookie(bytes.to_vec()))
}

/// What to copy of a guest that is shut off.
pub(super) fn offline(order: OfflineOrder) -> Result<jobs::OfflineOrder, Failure> {
    for (field, paths) in [("offline.images", &order.images), ("offline.shared", &order.shared)] {
        if paths.len() > MAX_FILES || paths.iter().any(|path| path.len() > MAX_PATH_BYTES) {
            return Err(too_many_files(field));
        }
    }
    Ok(jobs::OfflineOrder {
        images: order.images.into_iter().map(PathBuf::from).collect(),
        shared: order.shared,
        shut_down: match order.shutdown_timeout.as_ref().map(std_duration) {
            None => None,
            Some(Some(limit)) if limit <= LONGEST_SHUTDOWN => Some(limit),
            Some(_) => return Err(Failure::invalid("offline.shutdown_timeout", "at most an hour")),
        },
        delete_source: order.delete_source,
    })
}

/// What comes with a guest that is shut off.
pub(super) fn files(arrival: OfflineArrival) -> Result<Vec<FileSpec>, Failure> {
    let files = arrival.files;
    if files.len() > MAX_FILES || files.iter().any(|file| file.path.len() > MAX_PATH_BYTES) {
        return Err(too_many_files("offline.files"));
    }
    if files.iter().any(|file| file.size_bytes > LARGEST) {
        return Err(Failure::invalid(
            "offline.files",
            format!("a file has at most {LARGEST} bytes"),
        ));
    }
    let file = |file: OfflineFile| FileSpec {
        path: file.path.into(),
        size: file.size_bytes,
        allocated: file.allocated_bytes,
        mode: file.mode & 0o660,
        // The definition says it.
        block_device: false,
    };
    Ok(files.into_iter().map(file).collect())
}

fn too_many_files(field: &str) -> Failure {
    Failure::invalid(field, format!("at most {MAX_FILES}, of {MAX_PATH_BYTES} bytes each"))
}

pub(super) fn addresses(field: &str, addresses: Vec<String>) -> Result<Vec<String>, Failure> {
    if addresses.len() > MAX_ADDRESSES || addresses.iter().any(|address| address.len() > MAX_ADDRESS_BYTES) {
        let why = format!("at most {MAX_ADDRESSES} of {MAX_ADDRESS_BYTES} bytes each");
        return Err(Failure::invalid(field, why));
    }
    Ok(addresses)
}

pub(super) fn address(field: &str, address: String) -> Result<String, Failure> {
    if address.len() > MAX_ADDRESS_BYTES {
        return Err(Failure::invalid(field, format!("at most {MAX_ADDRESS_BYTES} bytes")));
    }
    Ok(address)
}

pub(super) fn probes(field: &str, probes: Vec<StorageProbe>) -> Result<Vec<StorageProbe>, Failure> {
    if probes.len() > MAX_PROBES {
        return Err(Failure::invalid(field, format!("at most {MAX_PROBES}")));
    }
    Ok(probes)
}

/// Cut, not refused: an undo must not fail because of its words.
pub(super) fn reason(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_refused_by_its_field() {
        assert!(xml("xml", " ".repeat(guest_xml::MAX_BYTES)).is_ok());
        assert_eq!(
            xml("xml", " ".repeat(guest_xml::MAX_BYTES + 1)).unwrap_err().fields[0].0,
            "xml"
        );
        assert!(cookie("cookie", &[0; 4096]).is_ok());
        assert!(cookie("cookie", &vec![0; MAX_COOKIE_BYTES + 1]).is_err());
        assert!(addresses("to", vec!["[2001:db8::1]:7450".to_owned(); 16]).is_ok());
        assert!(addresses("to", vec![String::new(); 17]).is_err());
        assert!(addresses("to", vec!["a".repeat(301)]).is_err());
        assert!(address("to", "a".repeat(301)).is_err());
        assert!(probes("probes", vec![StorageProbe::default(); 1025]).is_err());
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(reason("ä".repeat(3000)).len(), 2000);
        assert_eq!(reason(format!("a{}", "ä".repeat(3000))).len(), 1999);
    }
}
