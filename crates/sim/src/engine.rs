//! A small engine: rows with the decree that wrote them, and what of it is on the disk.

use std::collections::BTreeMap;

use bytes::Bytes;
use pegasus_types::mutation::ops;
use pegasus_types::{Decree, Mutation};

/// A value, or a deletion, and the decree of it: what a read shows, so that checkers can order reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub value: Option<Bytes>,
    pub decree: Decree,
    pub timestamp_us: u64,
}

pub type Rows = BTreeMap<Bytes, Row>;

#[derive(Clone, Debug, Default)]
pub struct Engine {
    rows: Rows,
    applied: Decree,
    /// Of all rows: equal contents have equal ones, in whatever order they came.
    digest: u64,
    flushed: Rows,
    flushed_digest: u64,
    durable: Decree,
}

/// FNV-1a.
fn digest_of(key: &[u8], row: &Row) -> u64 {
    let decree = row.decree.0.to_le_bytes();
    let kind = [0, u8::from(row.value.is_some())];
    let value = row.value.iter().flat_map(|value| value.iter());
    let bytes = key.iter().chain(&kind).chain(value).chain(&decree);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Engine {
    /// Everything of it is durable.
    pub fn from_rows(rows: Rows, applied: Decree) -> Self {
        let digest = rows.iter().fold(0, |sum, (key, row)| sum ^ digest_of(key, row));
        Self { flushed: rows.clone(), flushed_digest: digest, rows, applied, digest, durable: applied }
    }

    /// # Errors
    /// When the decree is not the next one, or the body is damaged.
    pub fn apply(&mut self, mutation: &Mutation) -> Result<(), String> {
        if mutation.decree != self.applied.next() {
            return Err(format!("decree {} is applied after {}", mutation.decree, self.applied));
        }
        for op in ops(&mutation.body) {
            let op = op.map_err(|e| e.to_string())?;
            let value = op.value.map(|v| Bytes::copy_from_slice(v.bytes));
            let row = Row { value, decree: mutation.decree, timestamp_us: mutation.timestamp_us };
            self.digest ^= digest_of(op.key, &row);
            if let Some(old) = self.rows.insert(Bytes::copy_from_slice(op.key), row) {
                self.digest ^= digest_of(op.key, &old);
            }
        }
        self.applied = mutation.decree;
        Ok(())
    }

    pub fn get(&self, key: &[u8]) -> Option<&Row> {
        self.rows.get(key)
    }

    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    pub fn applied(&self) -> Decree {
        self.applied
    }

    /// Time tag of the newest row: no later one may be older.
    pub fn newest_us(&self) -> u64 {
        self.rows.values().map(|row| row.timestamp_us).max().unwrap_or(0)
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// For a test: one row is not what it was, and nobody notices.
    pub fn lose_a_row(&mut self) {
        if let Some((key, row)) = self.rows.pop_first() {
            self.digest ^= digest_of(&key, &row);
        }
    }

    pub fn durable(&self) -> Decree {
        self.durable
    }

    pub fn flush(&mut self) {
        self.flushed.clone_from(&self.rows);
        self.flushed_digest = self.digest;
        self.durable = self.applied;
    }

    /// The process ends: what was not flushed is gone.
    pub fn restart(&mut self) {
        self.rows.clone_from(&self.flushed);
        self.digest = self.flushed_digest;
        self.applied = self.durable;
    }
}
