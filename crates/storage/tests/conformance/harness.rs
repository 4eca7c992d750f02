//! Partitions to try, and maps to compare them with.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pegasus_storage::schema::{TimeTag, header};
use pegasus_storage::{
    EngineError, EngineFactory, EngineKind, EngineOptions, PartitionEngine, View, new_factory,
};
use pegasus_types::mutation::{self, BodyBuilder};
use pegasus_types::{Decree, LogLocation};

pub type Map = BTreeMap<Bytes, Bytes>;

/// Small, so that a test of seconds sees flushes and compactions.
pub fn small_options() -> EngineOptions {
    EngineOptions { cache_bytes: 8 << 20, memtable_bytes: 32 << 10, ..EngineOptions::default() }
}

/// A factory and a directory of its own.
pub struct Bench {
    pub factory: Arc<dyn EngineFactory>,
    pub dir: PathBuf,
    _root: Option<tempfile::TempDir>,
}

impl Bench {
    pub fn new(kind: EngineKind) -> Self {
        Self::with(kind, small_options())
    }

    pub fn with(kind: EngineKind, options: EngineOptions) -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { factory: new_factory(kind, options), dir: root.path().join("data"), _root: Some(root) }
    }

    pub fn at(kind: EngineKind, dir: &Path) -> Self {
        let options = EngineOptions { memtable_bytes: 256 << 10, ..small_options() };
        Self { factory: new_factory(kind, options), dir: dir.to_owned(), _root: None }
    }

    pub fn open(&self) -> Arc<dyn PartitionEngine> {
        self.try_open().unwrap()
    }

    pub fn try_open(&self) -> Result<Arc<dyn PartitionEngine>, EngineError> {
        self.factory.open(&self.dir)
    }
}

pub fn stored(expire_ts: u32, data: &[u8]) -> Bytes {
    [&header(expire_ts, TimeTag(1)), data].concat().into()
}

/// None = delete.
pub fn body<'a>(changes: impl IntoIterator<Item = (&'a [u8], Option<Bytes>)>) -> Bytes {
    let mut body = BodyBuilder::default();
    for (key, value) in changes {
        match value {
            Some(value) => body.put(key, [&value, b""]),
            None => body.delete(key),
        }
    }
    body.finish()
}

pub fn put(key: &str, data: &str) -> Bytes {
    body([(key.as_bytes(), Some(stored(0, data.as_bytes())))])
}

/// Applies as the mutation after the last one.
pub fn apply_next(engine: &dyn PartitionEngine, body: &Bytes) -> Decree {
    let decree = engine.applied_decree().next();
    apply(engine, decree, body);
    decree
}

pub fn apply(engine: &dyn PartitionEngine, decree: Decree, body: &Bytes) {
    engine.apply(decree, 1_000_000 + decree.0.unsigned_abs(), body, LogLocation::default()).unwrap();
}

pub fn apply_to_map(map: &mut Map, body: &Bytes) {
    for op in mutation::ops(body) {
        let op = op.unwrap();
        let key = Bytes::copy_from_slice(op.key);
        match op.value {
            Some(value) => map.insert(key, Bytes::copy_from_slice(value.bytes)),
            None => map.remove(&key),
        };
    }
}

pub fn rows(view: &dyn View, lo: Bound<&[u8]>, hi: Bound<&[u8]>, reverse: bool) -> Vec<(Bytes, Bytes)> {
    view.range(lo, hi, reverse)
        .map(|row| row.map(|(key, value)| (key, value.stored().clone())).unwrap())
        .collect()
}

pub fn all(view: &dyn View) -> Map {
    rows(view, Bound::Unbounded, Bound::Unbounded, false).into_iter().collect()
}

pub fn contents(engine: &dyn PartitionEngine) -> Map {
    all(&*engine.view().unwrap())
}

pub fn data(engine: &dyn PartitionEngine, key: &str) -> Option<String> {
    engine.get(key.as_bytes()).unwrap().map(|value| String::from_utf8(value.data().to_vec()).unwrap())
}

/// Waits until something that goes on in the background is so.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
