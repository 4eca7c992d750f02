//! What an engine is: the traits that every one of them implements, and what they promise.
//!
//! One [`EngineFactory`] per process owns what partitions share (block cache, memory budget, background
//! threads); one [`PartitionEngine`] per replica. `tests/conformance` holds every engine to this text.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pegasus_types::{Decree, LogLocation};

use crate::lsm_engine::LsmFactory;
use crate::memory_engine::MemoryFactory;
use crate::schema::Value;
use crate::sled_engine::SledFactory;
use crate::small_file::sync_dir;

/// Longest key that an engine stores; `lsm-tree` counts them with 16 bits. RocksDB has no such limit, so
/// `ops` refuses longer keys with InvalidArgument.
pub const MAX_KEY_LEN: usize = u16::MAX as usize;

/// Keys from here on are the engine's own: 0xffff is no legal hash key length.
pub const RESERVED_KEYS: [u8; 2] = [0xff, 0xff];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    Lsm,
    Sled,
    /// Forgets everything with the process. For tests and simulations.
    Memory,
}

impl EngineKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lsm => "lsm",
            Self::Sled => "sled",
            Self::Memory => "memory",
        }
    }
}

/// Settings of a process's engines.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes of the block cache that all partitions share.
    pub cache_bytes: u64,
    /// A partition's memtable is sealed and flushed at this size, or when the mutations in it have twice this size. A
    /// restart replays what is not flushed: about 2 s per GiB and core.
    pub memtable_bytes: u64,
    /// All memtables of the process together, sealed ones included; above it the largest is flushed,
    /// at 1.5 times it [`EngineFactory::pressure`] says stop.
    pub memtable_budget_bytes: u64,
    /// A memtable older than this is flushed, however small, so that an idle partition does not pin the
    /// mutation log. Spread by up to a quarter, so that partitions do not flush all at once.
    pub max_memtable_age: Duration,
    /// Threads that flush, and as many that compact.
    pub background_threads: usize,
    /// Open files of tables that are kept.
    pub open_files: usize,
    /// Expired rows are dropped from disk when their expiry is this far behind both the local clock and
    /// the newest committed time tag (safety-rules.md 5).
    pub purge_after: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            memtable_bytes: 32 << 20,
            memtable_budget_bytes: 512 << 20,
            max_memtable_age: Duration::from_secs(12 * 60),
            background_threads: 1,
            open_files: 1024,
            purge_after: Duration::from_secs(3600),
        }
    }
}

/// A new factory of one kind of engine. Its threads end when the factory and all its partitions are dropped.
pub fn new_factory(kind: EngineKind, options: EngineOptions) -> Arc<dyn EngineFactory> {
    match kind {
        EngineKind::Lsm => Arc::new(LsmFactory::new(options)),
        EngineKind::Sled => Arc::new(SledFactory::new(options)),
        EngineKind::Memory => Arc::new(MemoryFactory::new(options)),
    }
}

pub trait EngineFactory: Send + Sync + fmt::Debug {
    fn kind(&self) -> EngineKind;

    /// Opens the partition in `dir`, a directory of its own; creates it when there is none. Takes as long as
    /// the disk needs.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`] when what is there cannot be trusted; nothing was changed or removed then.
    fn open(&self, dir: &Path) -> Result<Arc<dyn PartitionEngine>, EngineError>;

    fn stats(&self) -> FactoryStats;

    /// Whether writes arrive faster than the disk takes them. Ask before admitting a write: `apply` never
    /// waits.
    fn pressure(&self) -> Pressure;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    None,
    /// Flushes are behind: above the memory budget, or many small tables wait for compaction.
    Slow,
    /// Admit no more client writes until this falls.
    Stop,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FactoryStats {
    pub partitions: usize,
    pub cache_used_bytes: u64,
    pub cache_capacity_bytes: u64,
    pub memtable_bytes: u64,
    /// Flushes and compactions that wait for a thread.
    pub queued_tasks: usize,
    pub flushes: u64,
    pub flushed_bytes: u64,
    pub compactions: u64,
    /// Background work that failed and is tried again.
    pub failures: u64,
}

/// The state of a partition after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// It equals the first d mutations for one d ≥ the last durable decree; a view shows exactly its decree.
    Exact,
    /// It holds all of the first d mutations and perhaps parts of later ones. Sound because mutations are
    /// blind and absolute, when the log is replayed to its end before anything is served or taught
    /// (replication.md 10). A view is fuzzy: it may show parts of mutations after its decree.
    LowerBound,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ok,
    /// The disk is full: reads work, flushes are tried again.
    Full,
    /// Something is wrong with this partition's files; it must not serve or teach.
    Failed(String),
}

/// Sizes of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    pub disk_bytes: u64,
    pub memory_bytes: u64,
    /// Rows on disk and in memory; overwritten and deleted ones count until compaction.
    pub estimated_rows: u64,
}

/// The rows of one partition.
///
/// One caller at a time writes (`apply`, `load`, `finish_load`), with growing decrees; any number read. An IO
/// error or a panic of the library below never unwinds out of here: it becomes an [`EngineError`] and
/// [`Self::health`].
pub trait PartitionEngine: Send + Sync + fmt::Debug {
    fn contract(&self) -> Contract;

    /// Applies a committed mutation. `body` as in [`pegasus_types::mutation`]; empty bodies are allowed and only
    /// move the decree. `timestamp_us` is the mutation's. `location` says where the body lies in the log, for
    /// engines that leave values there. Keeps no reference to `body`, and waits for the disk
    /// only in an engine that writes in place.
    ///
    /// # Errors
    /// A damaged body, or a decree that does not grow: nothing was applied. Any error of an engine that writes
    /// in place leaves the partition [`Health::Failed`].
    fn apply(
        &self,
        decree: Decree,
        timestamp_us: u64,
        body: &Bytes,
        location: LogLocation,
    ) -> Result<(), EngineError>;

    /// The last mutation that was applied.
    fn applied_decree(&self) -> Decree;

    /// Everything up to here survives a power failure: the log may forget it.
    fn durable_decree(&self) -> Decree;

    /// The largest timestamp that was applied, microseconds since 1970.
    fn newest_timestamp_us(&self) -> u64;

    /// Asks for everything applied so far to become durable; `wait` = returns when it is. Returns the decree
    /// that this makes durable.
    fn flush(&self, wait: bool) -> Result<Decree, EngineError>;

    /// The newest value of a key, as of the last `apply`; expired rows included.
    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError>;

    /// Pins the rows as they are. Held views cost disk space (replaced files stay) and memory.
    fn view(&self) -> Result<Box<dyn View>, EngineError>;

    /// Takes rows copied from another replica, as a body of puts, into a partition that is being filled
    /// ([`crate::rows`]). They are no mutation: the decree does not move, and until [`Self::finish_load`] a
    /// restart finds some of them or none.
    fn load(&self, rows: &Bytes) -> Result<(), EngineError>;

    /// The loaded rows are complete as of `decree`. Returns when all of them are durable.
    fn finish_load(&self, decree: Decree, timestamp_us: u64) -> Result<(), EngineError>;

    /// Rewrites the whole partition without overwritten, deleted and long expired rows. Returns when done.
    fn compact(&self) -> Result<(), EngineError> {
        self.compact_until(&Stop::default())
    }

    /// As [`Self::compact`], but ends when `stop` says so; the engine says so, too, when it is in the way of what
    /// clients write.
    ///
    /// # Errors
    /// [`EngineError::Stopped`]: the rows are where they were.
    fn compact_until(&self, stop: &Stop) -> Result<(), EngineError>;

    fn health(&self) -> Health;

    fn sizes(&self) -> Sizes;
}

/// Ends a compaction early. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A partition at one decree. Dropping it lets go of what it pins.
pub trait View: Send + fmt::Debug {
    fn decree(&self) -> Decree;

    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError>;

    /// The rows between two keys, expired ones included, in key order or against it. Ends after the first
    /// error.
    fn range(&self, lo: Bound<&[u8]>, hi: Bound<&[u8]>, reverse: bool) -> RowIter<'_>;
}

pub type Row = (Bytes, Value);
pub type RowIter<'a> = Box<dyn Iterator<Item = Result<Row, EngineError>> + Send + 'a>;

/// An upper bound that leaves the engine's own keys out.
pub(crate) fn below_reserved(hi: Bound<&[u8]>) -> Bound<Bytes> {
    match hi {
        Bound::Included(key) if key < &RESERVED_KEYS[..] => Bound::Included(Bytes::copy_from_slice(key)),
        Bound::Excluded(key) if key < &RESERVED_KEYS[..] => Bound::Excluded(Bytes::copy_from_slice(key)),
        _ => Bound::Excluded(Bytes::from_static(&RESERVED_KEYS)),
    }
}

/// The directory of one kind of engine within a partition's: data of another kind is never overlooked.
pub(crate) fn own_dir(dir: &Path, kind: EngineKind) -> Result<PathBuf, EngineError> {
    for other in [EngineKind::Lsm, EngineKind::Sled] {
        if other != kind && dir.join(other.name()).exists() {
            return Err(EngineError::WrongEngine(format!(
                "{} holds data of engine {}, not {}",
                dir.display(),
                other.name(),
                kind.name()
            )));
        }
    }
    let own = dir.join(kind.name());
    let create = || {
        fs::create_dir_all(&own)?;
        sync_dir(dir)?;
        dir.parent().map_or(Ok(()), sync_dir)
    };
    create().map_err(|e| EngineError::io("create the engine's directory", e))?;
    Ok(own)
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// Bytes on disk, or in a body, are not what was written.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The library below panicked.
    #[error("engine panicked: {0}")]
    Panicked(String),
    #[error("decree {asked} does not follow {applied}")]
    DecreeNotGrowing { applied: Decree, asked: Decree },
    #[error("the compaction was stopped")]
    Stopped,
    /// An earlier error made this partition unusable.
    #[error("the partition has failed: {0}")]
    Failed(String),
    /// A directory of another engine.
    #[error("{0}")]
    WrongEngine(String),
    #[error("the factory of this engine is shut down")]
    ShutDown,
}

impl EngineError {
    pub fn io(what: &'static str, source: io::Error) -> Self {
        Self::Io { what, source }
    }

    /// What is on disk cannot be trusted: the replica must not serve or teach any more.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt(_) | Self::Panicked(_) | Self::Failed(_))
    }

    /// Out of something that comes back, like file descriptors; nothing is damaged.
    pub fn is_transient(&self) -> bool {
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        let Self::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::Interrupted)
            || matches!(source.raw_os_error(), Some(EMFILE | ENFILE))
    }

    /// Space may come back; nothing is damaged.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}
