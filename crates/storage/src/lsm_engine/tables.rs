//! The tables of a tree at one version, and how to read them without its locks.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use lsm_tree::table::filter::standard_bloom::Builder as Bloom;
use lsm_tree::{AbstractTree, AnyTree, InternalValue, SeqNo, Slice, Table};

use super::guard::guarded;
use crate::engine::EngineError;
use crate::memtable::Change;
use crate::merge::Source;

/// Immutable. Holding it keeps the files of its tables.
#[derive(Debug, Default)]
pub struct Tables {
    /// Newest first; the tables of a run do not overlap and are in key order.
    runs: Vec<Arc<[Table]>>,
    pub l0_runs: usize,
    /// Bytes of the newest level and of the one that it is merged into.
    pub due_bytes: u64,
}

impl Tables {
    /// Of the newest version. Takes the tree's lock.
    pub fn of(tree: &AnyTree) -> Result<Self, EngineError> {
        guarded("list tables", || {
            let version = tree.current_version();
            let runs =
                version.iter_levels().flat_map(|level| level.iter()).map(|run| Arc::from(&run[..])).collect();
            let l1 = version.iter_levels().skip(1).find(|level| !level.is_empty());
            let due_bytes = version.l0().size() + l1.map_or(0, |level| level.size());
            Ok(Self { runs, l0_runs: version.l0().run_count(), due_bytes })
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Table> {
        self.runs.iter().flat_map(|run| run.iter())
    }

    pub fn bytes(&self) -> u64 {
        self.iter().map(|table| table.metadata.file_size).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Outer None = nothing is known of the key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Change>, EngineError> {
        if self.runs.is_empty() {
            return Ok(None);
        }
        let found = guarded("read a row", || {
            let hash = Bloom::get_hash(key);
            for run in &self.runs {
                let at = run.partition_point(|table| **table.metadata.key_range.max() < *key);
                let Some(table) = run.get(at).filter(|table| **table.metadata.key_range.min() <= *key) else {
                    continue;
                };
                if let Some(item) = table.get(key, SeqNo::MAX, hash)? {
                    return Ok(Some(item));
                }
            }
            Ok(None)
        })?;
        Ok(found.map(change_of))
    }

    /// One source per run, newest first.
    pub fn sources(&self, lo: &Bound<Bytes>, hi: &Bound<Bytes>, reverse: bool) -> Vec<Source<'static>> {
        let runs = self.runs.iter().filter_map(|run| {
            let begin = run.partition_point(|table| lies_below(table, lo));
            let end = run.partition_point(|table| !lies_above(table, hi));
            (begin < end).then(|| -> Source<'static> {
                let bounds = (lo.clone().map(Slice::from), hi.clone().map(Slice::from));
                Box::new(RunIter { run: Arc::clone(run), begin, end, bounds, reverse, table: None })
            })
        });
        runs.collect()
    }
}

fn lies_below(table: &Table, lo: &Bound<Bytes>) -> bool {
    let max = &**table.metadata.key_range.max();
    match lo {
        Bound::Included(lo) => *max < **lo,
        Bound::Excluded(lo) => *max <= **lo,
        Bound::Unbounded => false,
    }
}

fn lies_above(table: &Table, hi: &Bound<Bytes>) -> bool {
    let min = &**table.metadata.key_range.min();
    match hi {
        Bound::Included(hi) => *min > **hi,
        Bound::Excluded(hi) => *min >= **hi,
        Bound::Unbounded => false,
    }
}

fn change_of(item: InternalValue) -> Change {
    if item.is_tombstone() { None } else { Some(item.value.into()) }
}

type TableIter = Box<dyn Iterator<Item = lsm_tree::Result<InternalValue>> + Send>;

/// The rows of a run; a table is opened when it is reached.
struct RunIter {
    run: Arc<[Table]>,
    /// Tables that are still to be read.
    begin: usize,
    end: usize,
    bounds: (Bound<Slice>, Bound<Slice>),
    reverse: bool,
    table: Option<TableIter>,
}

impl RunIter {
    fn next_table(&mut self) -> Option<TableIter> {
        if self.begin == self.end {
            return None;
        }
        let at = if self.reverse {
            self.end -= 1;
            self.end
        } else {
            self.begin += 1;
            self.begin - 1
        };
        let rows = self.run.get(at)?.range(self.bounds.clone());
        Some(if self.reverse { Box::new(rows.rev()) } else { Box::new(rows) })
    }

    fn next_item(&mut self) -> lsm_tree::Result<Option<InternalValue>> {
        loop {
            if let Some(table) = &mut self.table
                && let Some(item) = table.next()
            {
                return item.map(Some);
            }
            match self.next_table() {
                Some(table) => self.table = Some(table),
                None => return Ok(None),
            }
        }
    }
}

impl Iterator for RunIter {
    type Item = Result<(Bytes, Change), EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = guarded("scan rows", || self.next_item()).transpose()?;
        Some(item.map(|item| (item.key.user_key.clone().into(), change_of(item))))
    }
}
