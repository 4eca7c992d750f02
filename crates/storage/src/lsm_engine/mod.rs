//! The default engine: rows gather in our memtable, `lsm-tree` keeps them on disk.
//!
//! `lsm-tree` has neither a write-ahead log nor threads; of its memtables we make no use. Its part begins where a
//! sealed memtable becomes tables, and it does so off the thread that serves: versions change under a lock that
//! is held over several fsyncs, so neither reads nor writes ever take it. They work on a [`state::State`], an
//! immutable picture of memtables and tables that is replaced when one of them changes.
//!
//! ```text
//!   apply ──▶ active memtable ──sealed (size, age, quiet, budget)──▶ sealed memtables ──flush──▶ tables ──compaction──▶ tables
//!                   │                                               │           (one table set: rows + decree key,
//!                   └──────────── State: what readers see ──────────┴──────────  published by one manifest change)
//! ```
//!
//! What is ours because the library leaves it out (engine-choice.md 5.1, safety-rules.md 4.1): the manifest is verified
//! before the library opens it, files that it does not list are moved aside, panics become errors.

mod background;
mod guard;
mod manifest;
mod partition;
mod quiet;
mod state;
mod tables;
#[cfg(test)]
mod tests;
mod ttl;
mod upkeep;
mod writeback;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pegasus_types::{Decree, LogLocation};

use crate::engine::{
    Contract, EngineError, EngineFactory, EngineKind, EngineOptions, FactoryStats, Health, PartitionEngine,
    Pressure, Sizes, Stop, View, own_dir,
};
use crate::schema::Value;
use background::Background;
use partition::Partition;

/// What the partitions of a process share.
#[derive(Debug)]
pub struct LsmFactory {
    background: Arc<Background>,
}

impl LsmFactory {
    pub fn new(options: EngineOptions) -> Self {
        Self { background: Arc::new(Background::start(options)) }
    }
}

impl EngineFactory for LsmFactory {
    fn kind(&self) -> EngineKind {
        EngineKind::Lsm
    }

    fn open(&self, dir: &Path) -> Result<Arc<dyn PartitionEngine>, EngineError> {
        let dir = own_dir(dir, EngineKind::Lsm)?;
        let partition = Partition::open(&dir, self.background.shared())?;
        self.background.shared().register(&partition);
        Ok(Arc::new(LsmEngine { partition, _background: Arc::clone(&self.background) }))
    }

    fn stats(&self) -> FactoryStats {
        self.background.shared().stats()
    }

    fn pressure(&self) -> Pressure {
        self.background.shared().pressure()
    }
}

/// The owner of a partition. Dropping it ends background work on the partition, and waits for that: at worst
/// for an fsync. Nothing is flushed; the log has it.
#[derive(Debug)]
struct LsmEngine {
    partition: Arc<Partition>,
    _background: Arc<Background>,
}

impl Drop for LsmEngine {
    fn drop(&mut self) {
        self.partition.close();
    }
}

impl PartitionEngine for LsmEngine {
    fn contract(&self) -> Contract {
        Contract::Exact
    }

    fn apply(
        &self,
        decree: Decree,
        timestamp_us: u64,
        body: &Bytes,
        _: LogLocation,
    ) -> Result<(), EngineError> {
        self.partition.apply(decree, timestamp_us, body)
    }

    fn applied_decree(&self) -> Decree {
        self.partition.applied()
    }

    fn durable_decree(&self) -> Decree {
        self.partition.durable()
    }

    fn newest_timestamp_us(&self) -> u64 {
        self.partition.newest_timestamp_us()
    }

    fn flush(&self, wait: bool) -> Result<Decree, EngineError> {
        let sealed = self.partition.seal();
        if wait {
            self.partition.flush_sealed()?;
        }
        Ok(sealed)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError> {
        self.partition.get(key)
    }

    fn view(&self) -> Result<Box<dyn View>, EngineError> {
        self.partition.view()
    }

    fn load(&self, rows: &Bytes) -> Result<(), EngineError> {
        self.partition.load(rows)
    }

    fn finish_load(&self, decree: Decree, timestamp_us: u64) -> Result<(), EngineError> {
        self.partition.finish_load(decree, timestamp_us)
    }

    fn compact_until(&self, stop: &Stop) -> Result<(), EngineError> {
        self.partition.compact_all(stop)
    }

    fn health(&self) -> Health {
        self.partition.health()
    }

    fn sizes(&self) -> Sizes {
        self.partition.sizes()
    }
}
