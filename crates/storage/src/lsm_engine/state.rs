//! What readers of a partition see: memtables and tables as they are at one moment.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use pegasus_types::Decree;

use super::tables::Tables;
use crate::engine::{EngineError, RESERVED_KEYS, RowIter, View, below_reserved};
use crate::memtable::{self, Memtable, OpenView};
use crate::merge::{Merge, Source, decode};
use crate::schema::Value;

/// Replaced as a whole when one of its parts changes.
pub struct State {
    pub active: Arc<Memtable>,
    /// Oldest first.
    pub sealed: Vec<Sealed>,
    pub tables: Arc<Tables>,
}

#[derive(Clone)]
pub struct Sealed {
    pub rows: Arc<Memtable>,
    /// The last mutation in it.
    pub decree: Decree,
    pub newest_timestamp_us: u64,
}

impl State {
    pub fn get(&self, key: &[u8], at: Decree) -> Result<Option<Value>, EngineError> {
        if key.starts_with(&RESERVED_KEYS) {
            return Ok(None);
        }
        let in_memory = self
            .active
            .get(key, at)
            .or_else(|| self.sealed.iter().rev().find_map(|sealed| sealed.rows.get(key, at)));
        let change = match in_memory {
            Some(change) => Some(change),
            None => self.tables.get(key)?,
        };
        change.flatten().map(decode).transpose()
    }

    fn range(&self, lo: Bound<&[u8]>, hi: Bound<&[u8]>, reverse: bool, at: Decree) -> RowIter<'static> {
        let lo = lo.map(Bytes::copy_from_slice);
        let hi = below_reserved(hi);
        if memtable::is_empty_range(&lo, &hi) {
            return Box::new(std::iter::empty());
        }
        let memtables = [&self.active].into_iter().chain(self.sealed.iter().rev().map(|sealed| &sealed.rows));
        let memtables = memtables.map(|rows| -> Source<'static> {
            Box::new(rows.range(lo.clone(), hi.clone(), reverse, at).map(Ok))
        });
        let sources = memtables.chain(self.tables.sources(&lo, &hi, reverse)).collect();
        match Merge::new(sources, reverse) {
            Ok(rows) => Box::new(rows),
            Err(e) => Box::new(std::iter::once(Err(e))),
        }
    }
}

pub struct LsmView {
    pub state: Arc<State>,
    pub open: OpenView,
}

impl std::fmt::Debug for LsmView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LsmView").field("decree", &self.open.decree).finish_non_exhaustive()
    }
}

impl View for LsmView {
    fn decree(&self) -> Decree {
        self.open.decree
    }

    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError> {
        self.state.get(key, self.open.decree)
    }

    fn range(&self, lo: Bound<&[u8]>, hi: Bound<&[u8]>, reverse: bool) -> RowIter<'_> {
        self.state.range(lo, hi, reverse, self.open.decree)
    }
}
