//! Rows that are not in memory: their reads wait on threads, not on the loop that serves everybody.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use support::*;

const ROWS: usize = 4_000;
/// The smallest caches that there are, and memtables that are on disk soon.
const SETTINGS: &str = "mutation_2pc_min_replica_count = 1\ndurability = page_cache\n[pegasus.server]\n\
                        rocksdb_write_buffer_size = 65536\nrocksdb_block_cache_capacity = 1048576\n";

fn files_below(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files_below(&path, found),
            false => found.push(path),
        }
    }
}

/// Nothing of the directory's tables stays in memory.
fn forget(dir: &Path) {
    let mut files = Vec::new();
    files_below(dir, &mut files);
    for path in files.iter().filter(|path| path.parent().is_some_and(|dir| dir.ends_with("tables"))) {
        // Compaction may remove it meanwhile.
        let Ok(file) = File::open(path) else { continue };
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

/// Needs a file system on a disk: one in memory has no cold rows.
#[test]
fn rows_on_the_disk_are_read_on_threads_and_rows_in_memory_on_the_loop() {
    run(async || {
        let meta = FakeMeta::start().await;
        // Not where temporary files go: that may be memory.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let node = TestNode::start(&meta.node, dir.path().join("a"), SETTINGS);
        meta.create_table(1, std::slice::from_ref(&node.node), &[]).await;
        let client = Client::new(&meta, 1);
        let value = |row: usize| format!("{row:04}").repeat(250);
        for row in 0..ROWS {
            client.put("h", &row.to_string(), &value(row)).await;
        }
        let cold_reads = async || metric(&node, "pegasus_replica_cold_reads_total").await;

        let begun = Instant::now();
        let mut row = 0;
        while cold_reads().await == 0.0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "no read has met the disk");
            forget(dir.path());
            for _ in 0..20 {
                row = (row + 997) % ROWS;
                assert_eq!(client.get("h", &row.to_string()).await, Some(value(row)));
            }
        }

        // One row, until it has long been in memory.
        let begun = Instant::now();
        loop {
            let before = cold_reads().await;
            for _ in 0..300 {
                assert_eq!(client.get("h", "7").await, Some(value(7)));
            }
            if cold_reads().await == before {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "reads stay on threads");
        }
    });
}
