//! Space that is kept back for the day when the disk is full (safety-rules.md 2.9).
//!
//! Whoever is out of space needs some to get any: a memtable has to be flushed before the log that it pins can go, and
//! meta files are replaced, not overwritten. A file holds that space, and is removed when nothing else is left. From
//! then on the log leaves as much to the others, until there is enough to hold it again.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use super::Space;

const FILE_NAME: &str = ".pegasus-ballast";
/// Two memtables of the default size.
const MOST_BYTES: u64 = 64 << 20;
/// Of the disk.
const MOST_PERCENT: u64 = 1;
/// With less than this part of it left it is given up.
const LAST: u64 = 8;

pub fn size(total_bytes: u64) -> u64 {
    (total_bytes / 100 * MOST_PERCENT).min(MOST_BYTES)
}

fn is_needed(space: Space) -> bool {
    space.available_bytes < size(space.total_bytes) / LAST
}

/// What it takes must not have it given up again.
fn can_be_held(space: Space) -> bool {
    let size = size(space.total_bytes);
    size > 0 && space.available_bytes >= 2 * size
}

/// Gives it up when `space` wants it; says whether it is held now.
pub fn give_up_if_needed(dir: &Path, space: Space) -> io::Result<bool> {
    let path = dir.join(FILE_NAME);
    let is_held = path.try_exists()?;
    if !is_held || !is_needed(space) {
        return Ok(is_held);
    }
    fs::remove_file(&path)?;
    tracing::warn!(dir = %dir.display(), bytes = size(space.total_bytes), "disk is full: its ballast is given up");
    Ok(false)
}

/// Gives it up, or holds it again, as `space` wants it; says whether it is held now.
pub fn keep(dir: &Path, space: Space) -> io::Result<bool> {
    if give_up_if_needed(dir, space)? {
        return Ok(true);
    }
    if !can_be_held(space) {
        return Ok(false);
    }
    let path = dir.join(FILE_NAME);
    hold(&path, size(space.total_bytes)).inspect_err(|_| drop(fs::remove_file(&path)))?;
    Ok(true)
}

fn hold(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    Ok(fallocate(&file, FallocateFlags::empty(), 0, bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_is_given_up_late_and_held_again_with_room_to_spare() {
        let space = |available_bytes| Space { total_bytes: 1000 * MIB, available_bytes };
        let size = size(1000 * MIB);
        assert_eq!(size, 10 * MIB);
        for (available, needed, room) in [
            (0, true, false),
            (size / 8 - 1, true, false),
            (size / 8, false, false),
            // What was given up is not taken back at once.
            (size + size / 8, false, false),
            (2 * size, false, true),
        ] {
            let space = space(available);
            assert_eq!((is_needed(space), can_be_held(space)), (needed, room), "{available}");
        }
        let unknown = Space::default();
        assert!(!is_needed(unknown) && !can_be_held(unknown));
        assert_eq!(super::size(1 << 50), 64 * MIB);
    }

    #[test]
    fn the_file_holds_the_space() {
        let dir = tempfile::tempdir().unwrap();
        let space = |available_bytes| Space { total_bytes: 100 * MIB, available_bytes };
        assert!(keep(dir.path(), space(50 * MIB)).unwrap());
        let file = fs::metadata(dir.path().join(FILE_NAME)).unwrap();
        let held = std::os::unix::fs::MetadataExt::blocks(&file) * 512;
        assert!((MIB..2 * MIB).contains(&held), "{held}");
        assert!(keep(dir.path(), space(MIB)).unwrap());
        assert!(!keep(dir.path(), space(0)).unwrap());
        assert!(!dir.path().join(FILE_NAME).exists());
        assert!(!keep(dir.path(), space(MIB)).unwrap());
    }
}
