//! Reading: page by page, each page with no mutation half done.

use std::ops::Bound;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use pegasus_types::Decree;

use super::{Partition, guarded};
use crate::engine::{EngineError, RESERVED_KEYS, Row, RowIter, View, below_reserved};
use crate::memtable::is_empty_range;
use crate::merge::decode;
use crate::schema::Value;

const PAGE_ROWS: usize = 128;

pub fn get(db: &sled::Db, key: &[u8]) -> Result<Option<Value>, EngineError> {
    if key.starts_with(&RESERVED_KEYS) {
        return Ok(None);
    }
    let stored = guarded("read a row", || db.get(key))?;
    stored.map(|stored| decode(Bytes::copy_from_slice(&stored))).transpose()
}

/// The first rows between two keys, in order or against it.
pub fn page(
    db: &sled::Db,
    lo: &Bound<Bytes>,
    hi: &Bound<Bytes>,
    reverse: bool,
) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
    if is_empty_range(lo, hi) {
        return Ok(Vec::new());
    }
    guarded("scan rows", || {
        let mut range = db.range::<Bytes, _>((lo.clone(), hi.clone()));
        let rows = std::iter::from_fn(|| if reverse { range.next_back() } else { range.next() });
        let own = |row: sled::Result<(sled::IVec, sled::IVec)>| {
            row.map(|(key, value)| (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        };
        rows.take(PAGE_ROWS).map(own).collect()
    })
}

/// Fuzzy: shows at least everything up to its decree.
#[derive(Debug)]
pub struct SledView {
    partition: Arc<Partition>,
    decree: Decree,
}

impl SledView {
    pub fn new(partition: Arc<Partition>) -> Self {
        Self { decree: partition.applied(), partition }
    }
}

impl View for SledView {
    fn decree(&self) -> Decree {
        self.decree
    }

    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError> {
        get(&self.partition.db, key)
    }

    fn range(&self, lo: Bound<&[u8]>, hi: Bound<&[u8]>, reverse: bool) -> RowIter<'_> {
        let rest = Some((lo.map(Bytes::copy_from_slice), below_reserved(hi)));
        Box::new(Pages { partition: &self.partition, rest, reverse, page: Vec::new().into_iter() })
    }
}

struct Pages<'a> {
    partition: &'a Partition,
    /// What no page has covered yet.
    rest: Option<(Bound<Bytes>, Bound<Bytes>)>,
    reverse: bool,
    page: std::vec::IntoIter<(Bytes, Bytes)>,
}

impl Pages<'_> {
    fn fill(&mut self) -> Result<(), EngineError> {
        let Some((lo, hi)) = self.rest.take() else { return Ok(()) };
        let writer = self.partition.writer.read().unwrap_or_else(PoisonError::into_inner);
        let page = page(&self.partition.db, &lo, &hi, self.reverse)?;
        drop(writer);
        if page.len() == PAGE_ROWS
            && let Some((last, _)) = page.last()
        {
            let last = Bound::Excluded(last.clone());
            self.rest = Some(if self.reverse { (lo, last) } else { (last, hi) });
        }
        self.page = page.into_iter();
        Ok(())
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<Row, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, stored)) = self.page.next() {
                let row = decode(stored).map(|value| (key, value));
                if row.is_err() {
                    (self.rest, self.page) = (None, Vec::new().into_iter());
                }
                return Some(row);
            }
            self.rest.as_ref()?;
            if let Err(e) = self.fill() {
                return Some(Err(e));
            }
        }
    }
}
