//! Verification of a tree's files before `lsm-tree` opens them (safety-rules.md 4.1).
//!
//! `lsm-tree` 3.1.10 does not compare its manifest with the checksum that it keeps of it, and deletes tables that
//! the manifest does not list: a flipped bit there could delete levels. So: compare; see that every listed table is
//! there; move what is not listed aside, where it stays for a day.
//!
//! ```text
//! current              u64 version | u128 xxh3 of v<version> | u8 0            little-endian
//! v<version>           archive; section "tables": u8 levels, { u8 runs, { u32 tables, { u64 id, u8 0, u128 sum, u64 } } }
//! tables/<id>
//! unlisted/<unix s>/   ours: what was moved aside
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use lsm_tree::checksum::ChecksummedWriter;

use crate::engine::EngineError;
use crate::small_file::sync_dir;

const ASIDE: &str = "unlisted";
const KEEP_ASIDE_S: u64 = 24 * 3600;

/// What is in a tree's directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// A sound manifest; the ids of its tables, all of which are there.
    Tree(BTreeSet<u64>),
}

/// # Errors
/// [`EngineError::Corrupt`] when the manifest is damaged or a table is missing: nothing was moved then.
pub fn verify(dir: &Path) -> Result<Found, EngineError> {
    let tables = dir.join("tables");
    let current = match fs::read(dir.join("current")) {
        Ok(current) => current,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // The first manifest is written before the first table, so tables without one have lost it.
            return if table_files(&tables)?.is_empty() {
                Ok(Found::Nothing)
            } else {
                Err(EngineError::Corrupt("there are tables but no manifest".to_owned()))
            };
        }
        Err(e) => return Err(EngineError::io("read the manifest", e)),
    };
    let (version, checksum) = parse_current(&current)
        .ok_or_else(|| EngineError::Corrupt("the file that names the manifest is damaged".to_owned()))?;
    let path = dir.join(format!("v{version}"));
    let manifest = fs::read(&path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => EngineError::Corrupt(format!("manifest v{version} is missing")),
        _ => EngineError::io("read the manifest", e),
    })?;
    if xxh3(&manifest) != checksum {
        return Err(EngineError::Corrupt(format!("manifest v{version} differs from its checksum")));
    }
    let listed = listed_tables(&path)
        .ok_or_else(|| EngineError::Corrupt(format!("manifest v{version} cannot be read")))?;
    let present = table_files(&tables)?;
    if let Some(missing) = listed.difference(&present).next() {
        return Err(EngineError::Corrupt(format!("table {missing} is missing")));
    }
    Ok(Found::Tree(listed))
}

/// Moves tables aside that are not `listed`, and removes what was moved long ago.
pub fn set_unlisted_aside(dir: &Path, listed: &BTreeSet<u64>) -> Result<(), EngineError> {
    let move_aside = || -> io::Result<()> {
        let tables = dir.join("tables");
        let aside = dir.join(ASIDE);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if aside.exists() {
            for entry in fs::read_dir(&aside)? {
                let entry = entry?;
                let moved_at = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
                if moved_at.is_some_and(|at| at.saturating_add(KEEP_ASIDE_S) < now) {
                    fs::remove_dir_all(entry.path())?;
                }
            }
        }
        let unlisted: Vec<u64> = table_ids(&tables)?.difference(listed).copied().collect();
        if unlisted.is_empty() {
            return Ok(());
        }
        let to = aside.join(now.to_string());
        fs::create_dir_all(&to)?;
        for id in unlisted {
            tracing::warn!(tree = %dir.display(), table = id, "moved aside a table that the manifest does not list");
            fs::rename(tables.join(id.to_string()), to.join(id.to_string()))?;
        }
        sync_dir(&to)?;
        sync_dir(&tables)
    };
    move_aside().map_err(|e| EngineError::io("set unlisted tables aside", e))
}

/// Removes table files that are in no set: what a failed flush or compaction has left.
pub fn remove_all_but(dir: &Path, keep: impl Fn(u64) -> bool) -> Result<(), EngineError> {
    let remove = || -> io::Result<()> {
        let tables = dir.join("tables");
        for id in table_ids(&tables)?.into_iter().filter(|&id| !keep(id)) {
            fs::remove_file(tables.join(id.to_string()))?;
        }
        Ok(())
    };
    remove().map_err(|e| EngineError::io("remove unfinished tables", e))
}

fn table_files(tables: &Path) -> Result<BTreeSet<u64>, EngineError> {
    table_ids(tables).map_err(|e| EngineError::io("list tables", e))
}

pub(super) fn table_ids(tables: &Path) -> io::Result<BTreeSet<u64>> {
    let entries = match fs::read_dir(tables) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other?,
    };
    let mut ids = BTreeSet::new();
    for entry in entries {
        ids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    Ok(ids)
}

fn parse_current(bytes: &[u8]) -> Option<(u64, u128)> {
    let (version, rest) = bytes.split_first_chunk::<8>()?;
    let (checksum, rest) = rest.split_first_chunk::<16>()?;
    (rest == [0]).then(|| (u64::from_le_bytes(*version), u128::from_le_bytes(*checksum)))
}

fn xxh3(bytes: &[u8]) -> u128 {
    let mut writer = ChecksummedWriter::new(io::sink());
    writer.write_all(bytes).expect("a sink takes everything");
    writer.checksum().into_u128()
}

/// None when the bytes make no sense; they have passed their checksum, so this is a matter of versions.
fn listed_tables(manifest: &Path) -> Option<BTreeSet<u64>> {
    let archive = sfa::Reader::new(manifest).ok()?;
    let section = archive.toc().section(b"tables")?;
    let mut bytes = Vec::new();
    section.buf_reader(manifest).ok()?.read_to_end(&mut bytes).ok()?;
    let mut rest = &bytes[..];
    let mut ids = BTreeSet::new();
    let [levels] = take(&mut rest)?;
    for _ in 0..levels {
        let [runs] = take(&mut rest)?;
        for _ in 0..runs {
            for _ in 0..u32::from_le_bytes(take(&mut rest)?) {
                ids.insert(u64::from_le_bytes(take(&mut rest)?));
                // Kind of checksum, checksum, sequence number.
                let _: [u8; 1 + 16 + 8] = take(&mut rest)?;
            }
        }
    }
    rest.is_empty().then_some(ids)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk::<N>()?;
    *rest = left;
    Some(*taken)
}
