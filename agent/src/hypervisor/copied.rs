//! Which disks a migration copies. There is no value of it for "none": libvirt takes an empty list for "all", and would
//! copy shared images onto themselves.

use serde::{Deserialize, Serialize};

/// Targets (`vda`) of the disks that are copied: at least one, each once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct CopiedDisks(Vec<String>);

impl CopiedDisks {
    /// `None` where nothing is named.
    pub fn new(mut targets: Vec<String>) -> Option<Self> {
        targets.retain(|target| !target.is_empty());
        targets.sort();
        targets.dedup();
        (!targets.is_empty()).then_some(Self(targets))
    }

    /// Never empty.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl TryFrom<Vec<String>> for CopiedDisks {
    type Error = &'static str;

    fn try_from(targets: Vec<String>) -> Result<Self, Self::Error> {
        Self::new(targets).ok_or("no disk is named")
    }
}

impl From<CopiedDisks> for Vec<String> {
    fn from(disks: CopiedDisks) -> Self {
        disks.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_empty_one() {
        assert_eq!(CopiedDisks::new(Vec::new()), None);
        assert_eq!(CopiedDisks::new(vec![String::new()]), None);
        assert!(serde_json::from_str::<CopiedDisks>("[]").is_err());
        let disks = CopiedDisks::new(vec!["vdb".to_owned(), "vda".to_owned(), "vdb".to_owned()]).unwrap();
        assert_eq!(disks.targets().collect::<Vec<_>>(), ["vda", "vdb"]);
        let written = serde_json::to_string(&disks).unwrap();
        assert_eq!(serde_json::from_str::<CopiedDisks>(&written).unwrap(), disks);
    }
}
