//! Tables are synced while they are written.
//!
//! `lsm-tree` writes a table and syncs it at its end: until then the page cache takes everything, then tens of megabytes are
//! flushed at once, and whoever reads from that disk or syncs a log waits behind them. A read of 4 KiB beside tables of 29 MB,
//! 58 MB/s of them, took 34 ms (the 99th of a hundred; 0.4 ms on the idle disk), and 7 ms when they were synced every 2 MiB.
//! To tell the system to begin to write (`sync_file_range`, `posix_fadvise`) did not help: it is the flush that holds up.
//!
//! What is durable is what the sync at the end says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::manifest::table_ids;

/// Of rows, before they are compressed.
const EVERY_BYTES: usize = 2 << 20;

/// Of one flush or compaction.
#[derive(Debug)]
pub struct Writeback {
    tables: PathBuf,
    /// Tables beyond this one are new.
    last_id: u64,
    /// So many bytes of the new ones are synced.
    synced: BTreeMap<u64, u64>,
    /// Since then.
    written: usize,
}

impl Writeback {
    /// Before the first table is begun in the tree's directory.
    pub fn new(dir: &Path) -> Self {
        let tables = dir.join("tables");
        let last_id = table_ids(&tables).ok().and_then(|ids| ids.last().copied()).unwrap_or(0);
        Self { tables, last_id, synced: BTreeMap::new(), written: 0 }
    }

    /// So many bytes of rows more were given to the writer.
    pub fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written < EVERY_BYTES {
            return;
        }
        self.written = 0;
        if let Err(error) = self.sync() {
            // A table that was finished and merged away meanwhile; or the disk, and then the writer is told at its end, too:
            // each open file hears of a failed write once.
            tracing::debug!(tables = %self.tables.display(), %error, "cannot sync unfinished tables");
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        for id in table_ids(&self.tables)?.range(self.last_id + 1..) {
            let file = File::open(self.tables.join(id.to_string()))?;
            let len = file.metadata()?.len();
            if self.synced.insert(*id, len) != Some(len) {
                rustix::fs::fdatasync(&file)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn new_tables_are_synced_as_they_grow() {
        let dir = tempfile::tempdir().unwrap();
        let table = |id: u64| dir.path().join("tables").join(id.to_string());
        std::fs::create_dir(dir.path().join("tables")).unwrap();
        std::fs::write(table(3), "old").unwrap();
        let mut writeback = Writeback::new(dir.path());

        let mut file = File::create(table(4)).unwrap();
        file.write_all(&[1; 5000]).unwrap();
        writeback.wrote(EVERY_BYTES - 1);
        assert_eq!(writeback.synced, BTreeMap::new(), "not yet enough");
        writeback.wrote(1);
        assert_eq!(writeback.synced, BTreeMap::from([(4, 5000)]));
        file.write_all(&[1; 5000]).unwrap();
        std::fs::write(table(5), [1; 10]).unwrap();
        writeback.wrote(EVERY_BYTES);
        assert_eq!(writeback.synced, BTreeMap::from([(4, 10_000), (5, 10)]));
        assert_eq!(std::fs::read(table(4)).unwrap(), [1; 10_000]);
    }
}
