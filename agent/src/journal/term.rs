//! Which controller is in office: the highest term that this agent has obeyed, kept on disk.
//!
//! Promise: once a term was obeyed, no lower one ever is, nor an equal one of another store, also after a restart.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::slots::{Slots, SlotsError};
use super::store::JournalError;

const SLOT_SIZE: usize = 4096;

/// A controller's time in office.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    pub number: u64,
    /// Random id of the store.
    pub store_instance: String,
}

/// What to do about a term that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The one that is known.
    InOffice,
    /// A newer one: write it down, then obey.
    Newer,
    /// Not in office any more, or another store that claims the same number.
    Stale,
}

/// Compares a term with the one that is known.
pub fn judge(known: Option<&Term>, shown: &Term) -> Judgement {
    match known {
        None => Judgement::Newer,
        Some(known) if shown.number > known.number => Judgement::Newer,
        Some(known) if shown == known => Judgement::InOffice,
        Some(_) => Judgement::Stale,
    }
}

/// The term file.
#[derive(Debug)]
pub struct Terms {
    path: PathBuf,
    file: Mutex<Option<Slots>>,
    known: watch::Sender<Option<Term>>,
}

impl Terms {
    /// Reads the file, if there is one. A damaged one is an error: guessing would let an old controller in.
    pub async fn open(state_dir: &Path) -> Result<Self, JournalError> {
        let path = state_dir.join("term");
        let read = path.clone();
        let (file, term) = super::store::blocking(move || match Slots::open(&read, &[SLOT_SIZE]) {
            Ok((slots, payload)) => {
                let term = serde_json::from_slice(&payload).map_err(|error| JournalError::Damaged {
                    path: read,
                    message: error.to_string(),
                })?;
                Ok((Some(slots), Some(term)))
            }
            Err(SlotsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok((None, None)),
            Err(error) => Err(JournalError::from(error)),
        })
        .await?;
        Ok(Self {
            path,
            file: Mutex::new(file),
            known: watch::Sender::new(term),
        })
    }

    /// The highest term that was obeyed.
    pub fn known(&self) -> Option<Term> {
        self.known.borrow().clone()
    }

    /// Whether to obey; a newer term is on disk when this says so.
    pub async fn obey(&self, shown: &Term) -> Result<bool, JournalError> {
        match judge(self.known.borrow().as_ref(), shown) {
            Judgement::InOffice => return Ok(true),
            Judgement::Stale => return Ok(false),
            Judgement::Newer => {}
        }
        let mut file = self.file.lock().await;
        // Somebody else may have shown a newer one meanwhile.
        match judge(self.known.borrow().as_ref(), shown) {
            Judgement::InOffice => return Ok(true),
            Judgement::Stale => return Ok(false),
            Judgement::Newer => {}
        }
        let payload = serde_json::to_vec(shown).map_err(|error| JournalError::Encoding(error.to_string()))?;
        let (path, slots) = (self.path.clone(), file.take());
        let (slots, result) = super::store::blocking(move || match slots {
            Some(mut slots) => {
                let result = slots.write(&payload);
                (Some(slots), result)
            }
            None => match Slots::create(&path, SLOT_SIZE, &payload) {
                Ok(slots) => (Some(slots), Ok(())),
                Err(error) => (None, Err(error)),
            },
        })
        .await;
        *file = slots;
        result?;
        self.known.send_replace(Some(shown.clone()));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(number: u64, store: &str) -> Term {
        Term {
            number,
            store_instance: store.to_owned(),
        }
    }

    #[test]
    fn lower_terms_and_equal_ones_of_another_store_are_stale() {
        let known = term(5, "a");
        for (shown, expected) in [
            (term(4, "a"), Judgement::Stale),
            (term(4, "b"), Judgement::Stale),
            (term(5, "a"), Judgement::InOffice),
            (term(5, "b"), Judgement::Stale),
            (term(6, "a"), Judgement::Newer),
            (term(6, "b"), Judgement::Newer),
        ] {
            assert_eq!(judge(Some(&known), &shown), expected, "{shown:?}");
        }
        assert_eq!(judge(None, &term(0, "a")), Judgement::Newer);
    }

    #[tokio::test]
    async fn what_was_obeyed_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let terms = Terms::open(directory.path()).await.unwrap();
        assert!(terms.known().is_none());
        assert!(terms.obey(&term(3, "a")).await.unwrap());
        assert!(terms.obey(&term(7, "b")).await.unwrap());
        assert!(!terms.obey(&term(3, "a")).await.unwrap());

        let terms = Terms::open(directory.path()).await.unwrap();
        assert_eq!(terms.known(), Some(term(7, "b")));
        assert!(!terms.obey(&term(7, "c")).await.unwrap());
        assert!(terms.obey(&term(7, "b")).await.unwrap());
    }

    #[tokio::test]
    async fn a_damaged_file_is_not_taken_for_a_fresh_start() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("term"), b"nonsense").unwrap();
        assert!(Terms::open(directory.path()).await.is_err());
    }
}
