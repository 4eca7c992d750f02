//! sled as an engine: selectable, with its limits (engine-choice.md 3.12, 4, 7).
//!
//! sled writes in place, when it likes, without snapshots. What makes it usable:
//! - Single inserts and removes only. A batch or a transaction would take a lock that all sled databases of the
//!   process share, from then on for ever.
//! - The decree key is written now and then, after the rows that it speaks of: a lower bound
//!   ([`Contract::LowerBound`]). Sound because mutations are blind and absolute and the log is replayed to its end.
//! - Its flush is no fsync: we sync its files and directories before anything counts as durable.
//!
//! Its effects may be ahead of a log that is only in the page cache, so use it with `durability = sync`. It does not
//! open on a full disk, gives space back only with its directory, and views of it are fuzzy.

mod view;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use pegasus_types::{Decree, LogLocation, mutation};

use crate::engine::{
    Contract, EngineError, EngineFactory, EngineKind, EngineOptions, FactoryStats, Health, PartitionEngine,
    Pressure, RESERVED_KEYS, Sizes, Stop, View, own_dir,
};
use crate::memtable;
use crate::merge::decode;
use crate::panics;
use crate::schema::{DECREE_KEY, Value, decode_decree, encode_decree, may_purge};
use view::SledView;

/// Mutations, and time, between two writes of the decree key: it shares a leaf with rows, which are rewritten
/// with it.
const DECREE_EVERY: i64 = 1000;
const DECREE_AFTER: Duration = Duration::from_secs(1);
/// How often what was applied is made durable.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
/// How often rows are swept away that have long expired.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
const TICK: Duration = Duration::from_secs(1);
/// A database that was dropped is closed a moment later, by threads of ours or of sled.
const CLOSES_WITHIN: Duration = Duration::from_secs(5);
/// sled has a cache per database; ours is divided among so many.
const PARTITIONS_PER_CACHE: u64 = 16;

#[derive(Debug)]
pub struct SledFactory {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    options: EngineOptions,
    partitions: Mutex<BTreeMap<PathBuf, Weak<Partition>>>,
    stop: Mutex<bool>,
    wake: Condvar,
    flushes: AtomicU64,
    failures: AtomicU64,
}

impl SledFactory {
    pub fn new(options: EngineOptions) -> Self {
        let shared = Arc::new(Shared {
            options,
            partitions: Mutex::default(),
            stop: Mutex::default(),
            wake: Condvar::new(),
            flushes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        });
        let thread = thread::Builder::new()
            .name("sled-flush".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })
            .inspect_err(|e| tracing::error!(error = %e, "cannot start the flush thread"))
            .ok();
        Self { shared, thread }
    }
}

impl Drop for SledFactory {
    fn drop(&mut self) {
        *lock(&self.shared.stop) = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the flush thread of the engine has panicked");
        }
    }
}

impl EngineFactory for SledFactory {
    fn kind(&self) -> EngineKind {
        EngineKind::Sled
    }

    fn open(&self, dir: &Path) -> Result<Arc<dyn PartitionEngine>, EngineError> {
        let dir = own_dir(dir, EngineKind::Sled)?;
        let partition = Arc::new(Partition::open(&dir, &self.shared)?);
        lock(&self.shared.partitions).insert(dir, Arc::downgrade(&partition));
        Ok(Arc::new(SledEngine { partition }))
    }

    fn stats(&self) -> FactoryStats {
        let partitions = lock(&self.shared.partitions).values().filter(|p| p.strong_count() > 0).count();
        FactoryStats {
            partitions,
            cache_capacity_bytes: self.shared.options.cache_bytes,
            flushes: self.shared.flushes.load(Ordering::Relaxed),
            failures: self.shared.failures.load(Ordering::Relaxed),
            ..FactoryStats::default()
        }
    }

    /// sled makes writers wait by itself.
    fn pressure(&self) -> Pressure {
        Pressure::None
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn run(&self) {
        let mut stop = lock(&self.stop);
        while !*stop {
            stop = self.wake.wait_timeout(stop, TICK).unwrap_or_else(PoisonError::into_inner).0;
            if *stop {
                break;
            }
            drop(stop);
            let live: Vec<_> = {
                let mut partitions = lock(&self.partitions);
                partitions.retain(|_, partition| partition.strong_count() > 0);
                partitions.values().filter_map(Weak::upgrade).collect()
            };
            live.iter().for_each(|partition| partition.tick());
            drop(live);
            stop = lock(&self.stop);
        }
    }
}

/// The owner of a partition. Dropping it waits for a flush that runs.
#[derive(Debug)]
struct SledEngine {
    partition: Arc<Partition>,
}

impl Drop for SledEngine {
    fn drop(&mut self) {
        self.partition.closed.store(true, Ordering::Release);
        drop(lock(&self.partition.maintenance));
    }
}

struct Partition {
    dir: PathBuf,
    db: sled::Db,
    shared: Arc<Shared>,
    /// Written while a mutation goes in; read for a page of a scan, so that no half of one is seen.
    writer: RwLock<Writer>,
    applied: AtomicI64,
    durable: AtomicI64,
    newest_timestamp_us: AtomicU64,
    health: Mutex<Health>,
    /// Held over flush and sweep.
    maintenance: Mutex<Timers>,
    /// The next tick flushes.
    flush_soon: AtomicBool,
    closed: AtomicBool,
}

struct Writer {
    noted: Decree,
    noted_at: Instant,
}

struct Timers {
    flushed: Instant,
    swept: Instant,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition")
            .field("dir", &self.dir)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

/// Runs a call into sled; its panics and errors become ours.
fn guarded<T>(what: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, EngineError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(sled::Error::Io(source))) => Err(EngineError::Io { what, source }),
        Ok(Err(other)) => Err(EngineError::Corrupt(format!("{what}: {other}"))),
        Err(panic) => Err(EngineError::Panicked(format!("{what}: {}", panics::message(&*panic)))),
    }
}

impl Partition {
    fn open(dir: &Path, shared: &Arc<Shared>) -> Result<Self, EngineError> {
        let db = open_db(dir, shared.options.cache_bytes / PARTITIONS_PER_CACHE)?;
        let (decree, timestamp_us) = match guarded("read the decree", || db.get(DECREE_KEY))? {
            None => (Decree::ZERO, 0),
            Some(stored) => decode_decree(&stored)
                .ok_or_else(|| EngineError::Corrupt("the decree record is malformed".to_owned()))?,
        };
        let now = Instant::now();
        Ok(Self {
            dir: dir.to_owned(),
            db,
            shared: Arc::clone(shared),
            writer: RwLock::new(Writer { noted: decree, noted_at: now }),
            applied: AtomicI64::new(decree.0),
            durable: AtomicI64::new(decree.0),
            newest_timestamp_us: AtomicU64::new(timestamp_us),
            health: Mutex::new(Health::Ok),
            maintenance: Mutex::new(Timers { flushed: now, swept: now }),
            flush_soon: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    fn writer(&self) -> RwLockWriteGuard<'_, Writer> {
        self.writer.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn applied(&self) -> Decree {
        Decree(self.applied.load(Ordering::Acquire))
    }

    /// Remembers an error of sled.
    fn noted<T>(&self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(e) = &result
            && !self.closed.load(Ordering::Acquire)
        {
            self.shared.failures.fetch_add(1, Ordering::Relaxed);
            let mut health = lock(&self.health);
            if !matches!(*health, Health::Failed(_)) {
                *health = if e.is_full() { Health::Full } else { Health::Failed(e.to_string()) };
                tracing::error!(partition = %self.dir.display(), error = %e, "the engine of a partition has failed");
            }
        }
        result
    }

    fn usable(&self) -> Result<(), EngineError> {
        match &*lock(&self.health) {
            Health::Failed(why) => Err(EngineError::Failed(why.clone())),
            Health::Ok | Health::Full => Ok(()),
        }
    }

    fn insert(&self, body: &[u8]) -> Result<(), EngineError> {
        guarded("write rows", || {
            for op in mutation::ops(body).flatten() {
                match op.value {
                    Some(value) => self.db.insert(op.key, value.bytes)?,
                    None => self.db.remove(op.key)?,
                };
            }
            Ok(())
        })
    }

    /// Writes the decree key: everything up to it is in the tree before.
    fn note_decree(&self, writer: &mut Writer) -> Result<Decree, EngineError> {
        let decree = self.applied();
        let record = encode_decree(decree, self.newest_timestamp_us.load(Ordering::Acquire));
        guarded("write the decree", || self.db.insert(DECREE_KEY, &record))?;
        (writer.noted, writer.noted_at) = (decree, Instant::now());
        Ok(decree)
    }

    fn apply(&self, decree: Decree, timestamp_us: u64, body: &[u8]) -> Result<(), EngineError> {
        self.usable()?;
        let mut writer = self.writer();
        let applied = self.applied();
        if decree <= applied {
            return Err(EngineError::DecreeNotGrowing { applied, asked: decree });
        }
        memtable::validate(body)?;
        self.noted(self.insert(body))?;
        self.newest_timestamp_us.fetch_max(timestamp_us, Ordering::AcqRel);
        self.applied.store(decree.0, Ordering::Release);
        if decree.0 - writer.noted.0 >= DECREE_EVERY || writer.noted_at.elapsed() >= DECREE_AFTER {
            self.noted(self.note_decree(&mut writer))?;
        }
        Ok(())
    }

    fn load(&self, rows: &[u8]) -> Result<(), EngineError> {
        self.usable()?;
        let _writer = self.writer();
        memtable::validate(rows)?;
        self.noted(self.insert(rows))
    }

    fn flush(&self, timers: &mut Timers) -> Result<Decree, EngineError> {
        self.usable()?;
        let decree = self.noted(self.note_decree(&mut self.writer()))?;
        let flushed = guarded("flush", || self.db.flush())
            .and_then(|_| sync_all(&self.dir).map_err(|e| EngineError::io("sync sled's files", e)));
        self.noted(flushed)?;
        self.durable.fetch_max(decree.0, Ordering::AcqRel);
        self.shared.flushes.fetch_add(1, Ordering::Relaxed);
        timers.flushed = Instant::now();
        let mut health = lock(&self.health);
        if *health == Health::Full {
            *health = Health::Ok;
        }
        Ok(decree)
    }

    /// Removes rows that have long expired. Each is judged and removed with the writer kept out, so that a row
    /// that is written anew meanwhile stays (replication.md 10.3).
    fn sweep(&self, stop: &Stop) -> Result<(), EngineError> {
        let purge_after_s = self.shared.options.purge_after.as_secs();
        let local_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut lo = Bound::Unbounded;
        loop {
            let writer = self.writer();
            let committed_us = self.newest_timestamp_us.load(Ordering::Acquire);
            let page =
                view::page(&self.db, &lo, &Bound::Excluded(Bytes::from_static(&RESERVED_KEYS)), false)?;
            for (key, stored) in &page {
                let expired = decode(stored.clone()).is_ok_and(|value| {
                    may_purge(value.expire_ts(), purge_after_s, local_unix_s, committed_us)
                });
                if expired {
                    guarded("remove an expired row", || self.db.remove(key))?;
                }
            }
            drop(writer);
            if stop.is_set() {
                return Err(EngineError::Stopped);
            }
            match page.last() {
                Some((last, _)) if !self.closed.load(Ordering::Acquire) => lo = Bound::Excluded(last.clone()),
                _ => return Ok(()),
            }
        }
    }

    fn tick(&self) {
        let mut timers = lock(&self.maintenance);
        if self.closed.load(Ordering::Acquire) || self.usable().is_err() {
            return;
        }
        let behind = self.applied().0 > self.durable.load(Ordering::Acquire);
        let due = self.flush_soon.swap(false, Ordering::AcqRel) || timers.flushed.elapsed() >= FLUSH_EVERY;
        if behind
            && due
            && let Err(e) = self.flush(&mut timers)
        {
            timers.flushed = Instant::now();
            tracing::warn!(partition = %self.dir.display(), error = %e, "flush failed");
        }
        if timers.swept.elapsed() >= SWEEP_EVERY {
            timers.swept = Instant::now();
            if let Err(e) = self.noted(self.sweep(&Stop::default())) {
                tracing::warn!(partition = %self.dir.display(), error = %e, "sweep failed");
            }
        }
    }
}

fn open_db(dir: &Path, cache_bytes: u64) -> Result<sled::Db, EngineError> {
    let config = sled::Config::new()
        .path(dir)
        .flush_every_ms(None)
        .use_compression(false)
        .cache_capacity(cache_bytes.max(1 << 20));
    let give_up = Instant::now() + CLOSES_WITHIN;
    loop {
        match guarded("open sled", || config.open()) {
            Err(EngineError::Io { source, .. })
                if source.to_string().contains("could not acquire lock") && Instant::now() < give_up =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Syncs every file below `dir`, and the directories.
fn sync_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            match File::open(entry.path()) {
                Ok(file) => file.sync_all()?,
                // sled replaces its snapshot file now and then.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    File::open(dir)?.sync_all()
}

impl PartitionEngine for SledEngine {
    fn contract(&self) -> Contract {
        Contract::LowerBound
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
        Decree(self.partition.durable.load(Ordering::Acquire))
    }

    fn newest_timestamp_us(&self) -> u64 {
        self.partition.newest_timestamp_us.load(Ordering::Acquire)
    }

    fn flush(&self, wait: bool) -> Result<Decree, EngineError> {
        if wait {
            return self.partition.flush(&mut lock(&self.partition.maintenance));
        }
        // Without the lock: a flush or a sweep may hold it for long.
        self.partition.flush_soon.store(true, Ordering::Release);
        Ok(self.partition.applied())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError> {
        view::get(&self.partition.db, key)
    }

    fn view(&self) -> Result<Box<dyn View>, EngineError> {
        Ok(Box::new(SledView::new(Arc::clone(&self.partition))))
    }

    fn load(&self, rows: &Bytes) -> Result<(), EngineError> {
        self.partition.load(rows)
    }

    fn finish_load(&self, decree: Decree, timestamp_us: u64) -> Result<(), EngineError> {
        self.partition.newest_timestamp_us.fetch_max(timestamp_us, Ordering::AcqRel);
        self.partition.applied.fetch_max(decree.0, Ordering::AcqRel);
        self.flush(true).map(drop)
    }

    /// sled has no compaction; this drops expired rows.
    fn compact_until(&self, stop: &Stop) -> Result<(), EngineError> {
        let mut timers = lock(&self.partition.maintenance);
        self.partition.usable()?;
        timers.swept = Instant::now();
        match self.partition.sweep(stop) {
            Err(EngineError::Stopped) => Err(EngineError::Stopped),
            swept => self.partition.noted(swept),
        }
    }

    fn health(&self) -> Health {
        lock(&self.partition.health).clone()
    }

    fn sizes(&self) -> Sizes {
        // Counting rows would read them all.
        let disk_bytes = self.partition.db.size_on_disk().unwrap_or(0);
        Sizes { disk_bytes, memory_bytes: 0, estimated_rows: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// It is asked for on the thread that serves.
    #[test]
    fn who_wants_a_flush_soon_does_not_wait_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let factory = SledFactory::new(EngineOptions::default());
        let partition = Arc::new(Partition::open(dir.path(), &factory.shared).unwrap());
        let engine = SledEngine { partition: partition.clone() };
        let under_way = lock(&partition.maintenance);
        let (asked, is_asked) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| asked.send(engine.flush(false)).unwrap());
            let answer = is_asked.recv_timeout(Duration::from_secs(10));
            drop(under_way);
            assert!(answer.is_ok_and(|flushed| flushed.is_ok()));
        });
        assert!(partition.flush_soon.load(Ordering::Acquire));
    }
}
