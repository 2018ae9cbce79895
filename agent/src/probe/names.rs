//! Which paths and names a probe may have: whoever asks for another one is refused. Pure.

use std::path::{Component, Path};

use uuid::Uuid;

use super::ProbeError;

pub(super) const PREFIX: &str = ".drover-probe-";

/// Absolute, without `..`.
pub(super) fn check_path(path: &Path) -> Result<(), ProbeError> {
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let exact = path
        .to_str()
        .is_some_and(|text| !text.contains('\0') && !text.contains("/./"));
    if path.is_absolute() && plain && exact && path.file_name().is_some() {
        Ok(())
    } else {
        Err(ProbeError::Path(path.to_owned()))
    }
}

pub(super) fn check_name(name: &str) -> Result<(), ProbeError> {
    let uuid = name.strip_prefix(PREFIX).and_then(|text| Uuid::try_parse(text).ok());
    if uuid.is_some_and(|uuid| name == format!("{PREFIX}{uuid}")) {
        Ok(())
    } else {
        Err(ProbeError::Name(name.to_owned()))
    }
}
