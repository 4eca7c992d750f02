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
}

pub type Rows = BTreeMap<Bytes, Row>;

#[derive(Clone, Debug, Default)]
pub struct Engine {
    rows: Rows,
    applied: Decree,
    flushed: Rows,
    durable: Decree,
}

impl Engine {
    /// Everything of it is durable.
    pub fn from_rows(rows: Rows, applied: Decree) -> Self {
        Self { flushed: rows.clone(), rows, applied, durable: applied }
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
            self.rows.insert(Bytes::copy_from_slice(op.key), Row { value, decree: mutation.decree });
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

    pub fn durable(&self) -> Decree {
        self.durable
    }

    pub fn flush(&mut self) {
        self.flushed.clone_from(&self.rows);
        self.durable = self.applied;
    }

    /// The process ends: what was not flushed is gone.
    pub fn restart(&mut self) {
        self.rows.clone_from(&self.flushed);
        self.applied = self.durable;
    }
}
