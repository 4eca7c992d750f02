//! The engine that forgets: a memtable and nothing else.

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pegasus_types::{Decree, LogLocation};

use crate::engine::{
    Contract, EngineError, EngineFactory, EngineKind, EngineOptions, FactoryStats, Health, PartitionEngine,
    Pressure, RowIter, Sizes, Stop, View,
};
use crate::memtable::{self, Memtable, OpenView, Views};
use crate::merge;
use crate::schema::Value;

#[derive(Debug)]
pub struct MemoryFactory {
    partitions: Arc<AtomicUsize>,
}

impl MemoryFactory {
    pub fn new(_: EngineOptions) -> Self {
        Self { partitions: Arc::default() }
    }
}

impl EngineFactory for MemoryFactory {
    fn kind(&self) -> EngineKind {
        EngineKind::Memory
    }

    /// Always an empty one.
    fn open(&self, _: &Path) -> Result<Arc<dyn PartitionEngine>, EngineError> {
        self.partitions.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(MemoryEngine::counted_by(Some(Arc::clone(&self.partitions)))))
    }

    fn stats(&self) -> FactoryStats {
        FactoryStats { partitions: self.partitions.load(Ordering::Relaxed), ..FactoryStats::default() }
    }

    fn pressure(&self) -> Pressure {
        Pressure::None
    }
}

#[derive(Debug)]
pub struct MemoryEngine {
    /// Held while a mutation is applied and while a view is opened.
    writer: Mutex<()>,
    rows: Arc<Memtable>,
    views: Arc<Views>,
    applied: AtomicI64,
    newest_timestamp_us: AtomicU64,
    counted: Option<Arc<AtomicUsize>>,
}

impl Default for MemoryEngine {
    fn default() -> Self {
        Self::counted_by(None)
    }
}

impl MemoryEngine {
    fn counted_by(counted: Option<Arc<AtomicUsize>>) -> Self {
        Self {
            writer: Mutex::default(),
            rows: Arc::default(),
            views: Arc::default(),
            applied: AtomicI64::default(),
            newest_timestamp_us: AtomicU64::default(),
            counted,
        }
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        if let Some(counted) = &self.counted {
            counted.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl PartitionEngine for MemoryEngine {
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
        let _writer = self.writer();
        let applied = self.applied_decree();
        if decree <= applied {
            return Err(EngineError::DecreeNotGrowing { applied, asked: decree });
        }
        memtable::validate(body)?;
        self.rows.apply(decree, body, &self.views, true);
        self.newest_timestamp_us.fetch_max(timestamp_us, Ordering::AcqRel);
        self.applied.store(decree.0, Ordering::Release);
        Ok(())
    }

    fn applied_decree(&self) -> Decree {
        Decree(self.applied.load(Ordering::Acquire))
    }

    /// As durable as it gets.
    fn durable_decree(&self) -> Decree {
        self.applied_decree()
    }

    fn newest_timestamp_us(&self) -> u64 {
        self.newest_timestamp_us.load(Ordering::Acquire)
    }

    fn flush(&self, _: bool) -> Result<Decree, EngineError> {
        Ok(self.applied_decree())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError> {
        self.rows.get(key, Decree(i64::MAX)).flatten().map(merge::decode).transpose()
    }

    fn view(&self) -> Result<Box<dyn View>, EngineError> {
        let _writer = self.writer();
        Ok(Box::new(MemoryView {
            rows: Arc::clone(&self.rows),
            open: self.views.open(self.applied_decree()),
        }))
    }

    fn load(&self, rows: &Bytes) -> Result<(), EngineError> {
        let _writer = self.writer();
        memtable::validate(rows)?;
        self.rows.apply(self.applied_decree(), rows, &self.views, true);
        Ok(())
    }

    fn finish_load(&self, decree: Decree, timestamp_us: u64) -> Result<(), EngineError> {
        self.newest_timestamp_us.fetch_max(timestamp_us, Ordering::AcqRel);
        self.applied.fetch_max(decree.0, Ordering::AcqRel);
        Ok(())
    }

    fn compact_until(&self, _: &Stop) -> Result<(), EngineError> {
        Ok(())
    }

    fn health(&self) -> Health {
        Health::Ok
    }

    fn sizes(&self) -> Sizes {
        Sizes { disk_bytes: 0, memory_bytes: self.rows.bytes(), estimated_rows: self.rows.len() as u64 }
    }
}

#[derive(Debug)]
struct MemoryView {
    rows: Arc<Memtable>,
    open: OpenView,
}

impl View for MemoryView {
    fn decree(&self) -> Decree {
        self.open.decree
    }

    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError> {
        self.rows.get(key, self.open.decree).flatten().map(merge::decode).transpose()
    }

    fn range(&self, lo: Bound<&[u8]>, hi: Bound<&[u8]>, reverse: bool) -> RowIter<'_> {
        let (lo, hi) = (lo.map(Bytes::copy_from_slice), hi.map(Bytes::copy_from_slice));
        let rows = self.rows.range(lo, hi, reverse, self.open.decree);
        Box::new(rows.filter_map(|(key, change)| {
            let stored = change?;
            Some(merge::decode(stored).map(|value| (key, value)))
        }))
    }
}
