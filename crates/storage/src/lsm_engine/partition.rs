//! One partition: its memtables, its tree, and the picture of both that readers use.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lsm_tree::config::PinningPolicy;
use lsm_tree::{AbstractTree, AnyTree, Config, SequenceNumberCounter};
use pegasus_types::Decree;

use super::background::{Shared, Work};
use super::guard::guarded;
use super::manifest::{self, Found};
use super::quiet::Quiet;
use super::state::{LsmView, Sealed, State};
use super::tables::Tables;
use super::ttl::{Purge, PurgeFactory};
use super::upkeep::Trouble;
use crate::engine::{EngineError, Sizes, View};
use crate::memtable::{self, Views};
use crate::schema::{DECREE_KEY, Value, decode_decree};
use crate::small_file::sync_dir;

/// A memtable whose mutations take so many times its size in the log is sealed, too: rows that are overwritten again and
/// again do not make it grow, but a restart replays all of them.
const LOG_PER_MEMTABLE: u64 = 2;

pub struct Partition {
    pub(super) dir: PathBuf,
    pub(super) shared: Arc<Shared>,
    pub(super) tree: AnyTree,
    pub(super) seqno: SequenceNumberCounter,
    pub(super) state: RwLock<Arc<State>>,
    pub(super) views: Arc<Views>,
    /// Held while the memtable changes hands or a mutation goes into it, and while a view is opened. Never over IO.
    pub(super) writer: Mutex<Writer>,
    pub(super) applied: AtomicI64,
    pub(super) durable: AtomicI64,
    pub(super) purge: Arc<Purge>,
    pub(super) health: Mutex<Trouble>,
    /// One flush, one compaction of this partition at a time; in this order when both are taken.
    pub(super) flushing: Mutex<()>,
    pub(super) compacting: Mutex<()>,
    /// Ids of all tables that ever were in a version. Other files are left-overs of failed work.
    pub(super) published: Mutex<HashSet<u64>>,
    pub(super) flush_queued: AtomicBool,
    pub(super) compact_queued: AtomicBool,
    /// Rows are copied into it, in key order, and not all are here yet.
    pub(super) loading: AtomicBool,
    pub(super) max_memtable_age: Duration,
}

#[derive(Default)]
pub(super) struct Writer {
    /// When the active memtable got its first mutation.
    pub(super) since: Option<Instant>,
    /// Of the bodies that went into the active memtable.
    body_bytes: u64,
    pub(super) quiet: Quiet,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition")
            .field("dir", &self.dir)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Partition {
    pub fn open(dir: &Path, shared: &Arc<Shared>) -> Result<Arc<Self>, EngineError> {
        match manifest::verify(dir)? {
            Found::Nothing => {}
            Found::Tree(listed) => manifest::set_unlisted_aside(dir, &listed)?,
        }
        let (seqno, purge) = (SequenceNumberCounter::default(), Arc::new(Purge::default()));
        let filter = PurgeFactory {
            shared: Arc::clone(&purge),
            dir: dir.to_owned(),
            purge_after: shared.options.purge_after,
        };
        let tree = guarded("open the tree", || {
            Config::new(dir, seqno.clone(), SequenceNumberCounter::default())
                .use_cache(Arc::clone(&shared.cache))
                .use_descriptor_table(Some(Arc::clone(&shared.open_files)))
                // Unpinned, every get reads and hashes a whole filter again (write-path.md 2.9).
                .filter_block_pinning_policy(PinningPolicy::all(true))
                .index_block_pinning_policy(PinningPolicy::all(true))
                .with_compaction_filter_factory(Some(Arc::new(filter)))
                .open()
        })?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent).map_err(|e| EngineError::io("sync the partition's directory", e))?;
        }
        let tables = Tables::of(&tree)?;
        // Sequence numbers order the rows of different tables; the decree is of no use for that, since version
        // changes draw from the same counter.
        seqno.set(guarded("read sequence numbers", || Ok(tree.get_highest_seqno()))?.map_or(1, |n| n + 1));
        let (decree, timestamp_us) = match tables.get(&DECREE_KEY)?.flatten() {
            Some(stored) => decode_decree(&stored)
                .ok_or_else(|| EngineError::Corrupt("the decree record is malformed".to_owned()))?,
            None if tables.is_empty() => (Decree::ZERO, 0),
            None => return Err(EngineError::Corrupt("there are tables but no decree record".to_owned())),
        };
        purge.newest_committed_us.store(timestamp_us, Ordering::Release);
        let published = tables.iter().map(|table| table.id()).collect();
        let state = State { active: Arc::default(), sealed: Vec::new(), tables: Arc::new(tables) };
        let partition = Arc::new(Self {
            max_memtable_age: spread(shared.options.max_memtable_age, dir),
            dir: dir.to_owned(),
            shared: Arc::clone(shared),
            tree,
            seqno,
            state: RwLock::new(Arc::new(state)),
            views: Arc::default(),
            writer: Mutex::default(),
            applied: AtomicI64::new(decree.0),
            durable: AtomicI64::new(decree.0),
            purge,
            health: Mutex::default(),
            flushing: Mutex::default(),
            compacting: Mutex::default(),
            published: Mutex::new(published),
            flush_queued: AtomicBool::new(false),
            compact_queued: AtomicBool::new(false),
            loading: AtomicBool::new(false),
        });
        Ok(partition)
    }

    // ---- the writer

    pub fn apply(
        self: &Arc<Self>,
        decree: Decree,
        timestamp_us: u64,
        body: &Bytes,
    ) -> Result<(), EngineError> {
        let mut writer = lock(&self.writer);
        let applied = self.applied();
        if decree <= applied {
            return Err(EngineError::DecreeNotGrowing { applied, asked: decree });
        }
        memtable::validate(body)?;
        self.insert(&mut writer, decree, body);
        self.purge.newest_committed_us.fetch_max(timestamp_us, Ordering::AcqRel);
        self.applied.store(decree.0, Ordering::Release);
        self.seal_when_full(&mut writer);
        Ok(())
    }

    pub fn load(self: &Arc<Self>, rows: &Bytes) -> Result<(), EngineError> {
        let mut writer = lock(&self.writer);
        memtable::validate(rows)?;
        self.loading.store(true, Ordering::Release);
        self.insert(&mut writer, self.applied(), rows);
        self.seal_when_full(&mut writer);
        Ok(())
    }

    pub fn finish_load(self: &Arc<Self>, decree: Decree, timestamp_us: u64) -> Result<(), EngineError> {
        let mut writer = lock(&self.writer);
        writer.since.get_or_insert_with(Instant::now);
        self.purge.newest_committed_us.fetch_max(timestamp_us, Ordering::AcqRel);
        self.applied.fetch_max(decree.0, Ordering::AcqRel);
        self.loading.store(false, Ordering::Release);
        drop(writer);
        self.seal();
        self.flush_sealed()
    }

    fn insert(&self, writer: &mut Writer, decree: Decree, body: &[u8]) {
        let active = &self.state().active;
        let before = active.bytes();
        active.apply(decree, body, &self.views, false);
        writer.since.get_or_insert_with(Instant::now);
        writer.body_bytes += body.len() as u64;
        match active.bytes().checked_sub(before) {
            Some(more) => self.shared.grown(more),
            None => self.shared.shrunk(before - active.bytes()),
        }
    }

    fn seal_when_full(self: &Arc<Self>, writer: &mut Writer) {
        let most = self.shared.options.memtable_bytes;
        if self.state().active.bytes() >= most || writer.body_bytes >= most * LOG_PER_MEMTABLE {
            self.seal_locked(writer);
        }
    }

    /// Hands the active memtable over to be flushed. Returns the decree up to which that makes things durable.
    pub fn seal(self: &Arc<Self>) -> Decree {
        let mut writer = lock(&self.writer);
        self.seal_locked(&mut writer)
    }

    fn seal_locked(self: &Arc<Self>, writer: &mut Writer) -> Decree {
        let applied = self.applied();
        writer.body_bytes = 0;
        if writer.since.take().is_some() {
            self.replace_state(|state| State {
                active: Arc::default(),
                sealed: state
                    .sealed
                    .iter()
                    .cloned()
                    .chain([Sealed {
                        rows: Arc::clone(&state.active),
                        decree: applied,
                        newest_timestamp_us: self.newest_timestamp_us(),
                    }])
                    .collect(),
                tables: Arc::clone(&state.tables),
            });
            self.shared.queue(Work::Flush, self);
        }
        applied
    }

    pub fn applied(&self) -> Decree {
        Decree(self.applied.load(Ordering::Acquire))
    }

    pub fn durable(&self) -> Decree {
        Decree(self.durable.load(Ordering::Acquire))
    }

    pub fn newest_timestamp_us(&self) -> u64 {
        self.purge.newest_committed_us.load(Ordering::Acquire)
    }

    // ---- readers

    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replace_state(&self, next: impl FnOnce(&State) -> State) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        *state = Arc::new(next(&state));
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError> {
        self.state().get(key, Decree(i64::MAX)).inspect_err(|e| {
            if e.is_damage() {
                self.fail(e.to_string());
            }
        })
    }

    pub fn view(&self) -> Result<Box<dyn View>, EngineError> {
        let writer = lock(&self.writer);
        let view = LsmView { state: self.state(), open: self.views.open(self.applied()) };
        drop(writer);
        Ok(Box::new(view))
    }

    pub fn sizes(&self) -> Sizes {
        let state = self.state();
        let in_memory = [&state.active].into_iter().chain(state.sealed.iter().map(|sealed| &sealed.rows));
        let (memory_bytes, memory_rows) =
            in_memory.fold((0, 0), |(bytes, rows), table| (bytes + table.bytes(), rows + table.len() as u64));
        let on_disk = state.tables.iter().map(|table| &table.metadata);
        let (disk_bytes, disk_rows) =
            on_disk.fold((0, 0), |(bytes, rows), table| (bytes + table.file_size, rows + table.item_count));
        Sizes { disk_bytes, memory_bytes, estimated_rows: memory_rows + disk_rows }
    }

    pub fn active_bytes(&self) -> u64 {
        self.state().active.bytes()
    }

    pub fn l0_runs(&self) -> usize {
        self.state().tables.l0_runs
    }
}

/// Up to a quarter less, so that partitions that were opened together do not flush together.
fn spread(age: Duration, dir: &Path) -> Duration {
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    age - age / 4 * u32::try_from(hasher.finish() % 1000).unwrap_or(0) / 1000
}
