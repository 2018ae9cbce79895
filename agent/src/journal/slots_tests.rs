//! Torn, truncated and foreign files; a disk that is full.

use super::*;

const SIZE: usize = 4096;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn reopened(path: &Path) -> Vec<u8> {
    Slots::open(path, &[SIZE]).unwrap().1
}

#[test]
fn the_newest_record_is_read_back() {
    let directory = directory();
    let path = directory.path().join("a");
    let mut slots = Slots::create(&path, SIZE, b"one").unwrap();
    assert_eq!(reopened(&path), b"one");
    for text in ["two", "three", "four, longer than before", "5"] {
        slots.write(text.as_bytes()).unwrap();
        assert_eq!(reopened(&path), text.as_bytes());
    }
    let (mut slots, _) = Slots::open(&path, &[SIZE]).unwrap();
    slots.write(b"after opening").unwrap();
    assert_eq!(reopened(&path), b"after opening");
    assert_eq!(
        std::fs::metadata(&path).unwrap().len(),
        2 * SIZE as u64,
        "rewritten in place"
    );
}

#[test]
fn a_write_that_was_torn_anywhere_leaves_the_record_before() {
    let directory = directory();
    let path = directory.path().join("a");
    let mut slots = Slots::create(&path, SIZE, b"older").unwrap();
    slots.write(b"old").unwrap();
    let before = std::fs::read(&path).unwrap();
    slots.write(b"the new one, which is longer").unwrap();
    let after = std::fs::read(&path).unwrap();
    for torn_at in 0..HEADER + 28 {
        // Slot 0 is the one being rewritten: its first bytes are new, the others are still old.
        let mut torn = before.clone();
        torn[..torn_at].copy_from_slice(&after[..torn_at]);
        std::fs::write(&path, &torn).unwrap();
        assert_eq!(reopened(&path), b"old", "torn after {torn_at} bytes");
    }
    std::fs::write(&path, &after).unwrap();
    assert_eq!(reopened(&path), b"the new one, which is longer");
}

#[test]
fn after_a_torn_write_the_next_one_spares_the_good_slot() {
    let directory = directory();
    let path = directory.path().join("a");
    let mut slots = Slots::create(&path, SIZE, b"good").unwrap();
    slots.write(b"better").unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"garbage", 0).unwrap();
    let (mut slots, payload) = Slots::open(&path, &[SIZE]).unwrap();
    assert_eq!(payload, b"better");
    slots.write(b"best").unwrap();
    file.write_all_at(b"garbage", 0).unwrap();
    assert_eq!(reopened(&path), b"better", "the write went to the damaged slot");
}

#[test]
fn damage_is_noticed_not_believed() {
    let directory = directory();
    let path = directory.path().join("a");
    let mut slots = Slots::create(&path, SIZE, b"one").unwrap();
    slots.write(b"two").unwrap();
    let whole = std::fs::read(&path).unwrap();
    for position in (0..HEADER + 3).map(|offset| SIZE + offset) {
        let mut damaged = whole.clone();
        damaged[position] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        assert_eq!(reopened(&path), b"one", "byte {position}");
    }
    for length in [0, 5, HEADER] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(
            matches!(Slots::open(&path, &[SIZE]), Err(SlotsError::Unreadable { .. })),
            "{length} bytes"
        );
    }
    std::fs::write(&path, &whole[..SIZE]).unwrap();
    assert_eq!(reopened(&path), b"one");
}

#[test]
fn a_record_that_does_not_fit_changes_nothing() {
    let directory = directory();
    let path = directory.path().join("a");
    let mut slots = Slots::create(&path, SIZE, b"one").unwrap();
    assert!(matches!(slots.write(&vec![1; SIZE]), Err(SlotsError::TooLarge { .. })));
    assert_eq!(reopened(&path), b"one");
    slots.write(&vec![7; room(SIZE)]).unwrap();
    assert_eq!(reopened(&path), vec![7; room(SIZE)]);
}

#[test]
fn all_space_is_taken_at_the_beginning() {
    use std::os::unix::fs::MetadataExt;
    let directory = directory();
    let path = directory.path().join("a");
    let mut slots = Slots::create(&path, SIZE, b"one").unwrap();
    let blocks = std::fs::metadata(&path).unwrap().blocks();
    assert!(blocks * 512 >= 2 * SIZE as u64);
    for _ in 0..3 {
        slots.write(&vec![7; room(SIZE)]).unwrap();
    }
    assert_eq!(std::fs::metadata(&path).unwrap().blocks(), blocks);
    assert!(!path.with_extension("partial").exists());
}
