//! One partition: its memtables, its tree, and the picture of both that readers use.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lsm_tree::compaction::Leveled;
use lsm_tree::config::PinningPolicy;
use lsm_tree::{AbstractTree, AnyTree, Config, InternalValue, SeqNo, SequenceNumberCounter, ValueType};
use pegasus_types::Decree;

use super::background::{Shared, Work};
use super::guard::guarded;
use super::manifest::{self, Found};
use super::tables::Tables;
use super::ttl::{self, Purge, PurgeFactory};
use crate::engine::{EngineError, Health, RESERVED_KEYS, RowIter, Sizes, View, below_reserved};
use crate::memtable::{self, Memtable, OpenView, Views};
use crate::merge::{Merge, Source, decode};
use crate::schema::{DECREE_KEY, Value, decode_decree, encode_decree};
use crate::small_file::sync_dir;

/// Old versions of a row are needed by nobody who asks the tree: views hold the tables that they see.
const NO_SNAPSHOTS: SeqNo = SeqNo::MAX;
/// Work that failed is tried again so long after.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Compactions that one task runs before it lets other partitions have their turn.
const COMPACTIONS_IN_A_ROW: usize = 8;
const TABLE_BYTES: u64 = 64 << 20;
/// `lsm-tree` 3.1.10 writes the number of runs of a level as one byte: at 256 its manifest forgets tables, and the next
/// open deletes them. Long before that a flush has to compact first.
const MAX_L0_RUNS: usize = 128;
/// Room that compaction leaves on the disk, for flushes and the log.
const ROOM_LEFT_BYTES: u64 = 16 << 20;

pub struct Partition {
    dir: PathBuf,
    shared: Arc<Shared>,
    tree: AnyTree,
    seqno: SequenceNumberCounter,
    state: RwLock<Arc<State>>,
    views: Arc<Views>,
    /// Held while the memtable changes hands or a mutation goes into it, and while a view is opened. Never over IO.
    writer: Mutex<Writer>,
    applied: AtomicI64,
    durable: AtomicI64,
    log_durable: AtomicI64,
    purge: Arc<Purge>,
    health: Mutex<Trouble>,
    /// One flush, one compaction of this partition at a time; in this order when both are taken.
    flushing: Mutex<()>,
    compacting: Mutex<()>,
    /// Ids of all tables that ever were in a version. Other files are left-overs of failed work.
    published: Mutex<HashSet<u64>>,
    flush_queued: AtomicBool,
    compact_queued: AtomicBool,
    max_memtable_age: Duration,
}

/// What readers see. Replaced as a whole.
pub struct State {
    active: Arc<Memtable>,
    /// Oldest first.
    sealed: Vec<Sealed>,
    tables: Arc<Tables>,
}

#[derive(Clone)]
struct Sealed {
    rows: Arc<Memtable>,
    /// The last mutation in it.
    decree: Decree,
    newest_timestamp_us: u64,
}

#[derive(Default)]
struct Writer {
    /// When the active memtable got its first mutation.
    since: Option<Instant>,
}

#[derive(Default)]
struct Trouble {
    full: bool,
    failed: Option<String>,
    /// Of flush or compaction.
    last_failure: Option<Instant>,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition")
            .field("dir", &self.dir)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Partition {
    pub fn open(dir: &Path, shared: &Arc<Shared>) -> Result<Arc<Self>, EngineError> {
        match manifest::verify(dir)? {
            Found::Nothing => {}
            Found::Tree(listed) => manifest::set_unlisted_aside(dir, &listed)?,
        }
        let (seqno, purge) = (SequenceNumberCounter::default(), Arc::new(Purge::default()));
        let filter = PurgeFactory { shared: Arc::clone(&purge), purge_after: shared.options.purge_after };
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
            log_durable: AtomicI64::new(i64::MAX),
            purge,
            health: Mutex::default(),
            flushing: Mutex::default(),
            compacting: Mutex::default(),
            published: Mutex::new(published),
            flush_queued: AtomicBool::new(false),
            compact_queued: AtomicBool::new(false),
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
        self.insert(&mut writer, self.applied(), rows);
        self.seal_when_full(&mut writer);
        Ok(())
    }

    pub fn finish_load(self: &Arc<Self>, decree: Decree, timestamp_us: u64) -> Result<(), EngineError> {
        let mut writer = lock(&self.writer);
        writer.since.get_or_insert_with(Instant::now);
        self.purge.newest_committed_us.fetch_max(timestamp_us, Ordering::AcqRel);
        self.applied.fetch_max(decree.0, Ordering::AcqRel);
        drop(writer);
        self.seal();
        self.flush_sealed()
    }

    fn insert(&self, writer: &mut Writer, decree: Decree, body: &[u8]) {
        let active = &self.state().active;
        let before = active.bytes();
        active.apply(decree, body, &self.views, false);
        writer.since.get_or_insert_with(Instant::now);
        match active.bytes().checked_sub(before) {
            Some(more) => self.shared.grown(more),
            None => self.shared.shrunk(before - active.bytes()),
        }
    }

    fn seal_when_full(self: &Arc<Self>, writer: &mut Writer) {
        if self.state().active.bytes() >= self.shared.options.memtable_bytes {
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

    pub fn set_log_durable(self: &Arc<Self>, decree: Decree) {
        self.log_durable.store(decree.0, Ordering::Release);
        // Cheap, and called after every sync of the log: flushes that waited for it go on here.
        if self.state().sealed.first().is_some_and(|sealed| sealed.decree <= decree) {
            self.shared.queue(Work::Flush, self);
        }
    }

    // ---- readers

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace_state(&self, next: impl FnOnce(&State) -> State) {
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

    // ---- background work

    pub fn queued(&self, work: Work) -> &AtomicBool {
        match work {
            Work::Flush => &self.flush_queued,
            Work::Compact => &self.compact_queued,
        }
    }

    /// Once a second.
    pub fn tick(self: &Arc<Self>) {
        let old = lock(&self.writer).since.is_some_and(|since| since.elapsed() >= self.max_memtable_age);
        if old {
            self.seal();
        }
        if lock(&self.health).last_failure.is_some_and(|at| at.elapsed() >= RETRY_AFTER) {
            self.shared.queue(Work::Flush, self);
            self.shared.queue(Work::Compact, self);
        }
    }

    pub fn run_flush(self: &Arc<Self>) {
        // What waits for the log is queued again by the log.
        match self.flush_sealed() {
            Ok(())
            | Err(EngineError::LogNotDurable { .. } | EngineError::Failed(_) | EngineError::ShutDown) => {}
            Err(e) => self.work_failed("flush", &e),
        }
    }

    pub fn run_compaction(self: &Arc<Self>) {
        match self.compact_some() {
            Ok(true) => self.shared.queue(Work::Compact, self),
            Ok(false) | Err(EngineError::Failed(_) | EngineError::ShutDown) => {}
            Err(e) => self.work_failed("compaction", &e),
        }
    }

    /// Writes all sealed memtables, oldest first, as far as the log is durable.
    pub fn flush_sealed(self: &Arc<Self>) -> Result<(), EngineError> {
        let _flushing = lock(&self.flushing);
        self.clear_left_overs()?;
        while let Some(oldest) = self.state().sealed.first().cloned() {
            self.usable()?;
            let durable = Decree(self.log_durable.load(Ordering::Acquire));
            if oldest.decree > durable {
                return Err(EngineError::LogNotDurable { wanted: oldest.decree, durable });
            }
            while self.l0_runs() >= MAX_L0_RUNS {
                if !self.compact_some()? && self.l0_runs() >= MAX_L0_RUNS {
                    return Err(EngineError::Failed(
                        "compaction does not reduce the number of tables".to_owned(),
                    ));
                }
            }
            self.write_tables(&oldest)
                .and_then(|()| self.publish(Some(&oldest)))
                .inspect_err(|e| self.note(e))?;
            let bytes = oldest.rows.bytes();
            self.shared.shrunk(bytes);
            self.shared.counters.flushes.fetch_add(1, Ordering::Relaxed);
            self.shared.counters.flushed_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.durable.fetch_max(oldest.decree.0, Ordering::AcqRel);
            self.recovered();
            self.shared.queue(Work::Compact, self);
        }
        Ok(())
    }

    /// Rows and decree become visible on disk in one step, with everything synced before.
    fn write_tables(&self, sealed: &Sealed) -> Result<(), EngineError> {
        let rows = sealed.rows.range(Bound::Unbounded, Bound::Unbounded, false, Decree(i64::MAX));
        let decree = Bytes::copy_from_slice(&encode_decree(sealed.decree, sealed.newest_timestamp_us));
        let rows = rows.chain([(Bytes::from_static(&DECREE_KEY), Some(decree))]);
        guarded("flush", || {
            let seqno = self.seqno.next();
            let items = rows.map(|(key, change)| {
                if self.is_closed() {
                    return Err(ttl::stopped());
                }
                Ok(match change {
                    Some(value) => InternalValue::from_components(key, value, seqno, ValueType::Value),
                    None => InternalValue::new_tombstone(key, seqno),
                })
            });
            match self.tree.flush_to_tables(items)? {
                Some((tables, _)) => self.tree.register_tables(&tables, None, None, &[], NO_SNAPSHOTS),
                None => Ok(()),
            }
        })
    }

    /// Runs what compaction is due; true when there may be more.
    fn compact_some(&self) -> Result<bool, EngineError> {
        let _compacting = lock(&self.compacting);
        for _ in 0..COMPACTIONS_IN_A_ROW {
            self.usable()?;
            if let Err(e) = self.check_room(self.state().tables.due_bytes) {
                lock(&self.health).last_failure = Some(Instant::now());
                return if self.l0_runs() < MAX_L0_RUNS { Ok(false) } else { Err(e) };
            }
            let strategy = Arc::new(Leveled::default());
            let changed = guarded("compaction", || {
                let before = self.tree.current_version().id();
                self.tree.compact(strategy, NO_SNAPSHOTS)?;
                Ok(self.tree.current_version().id() != before)
            });
            let changed = changed.inspect_err(|e| self.note(e))?;
            if self.state().sealed.is_empty() {
                self.recovered();
            }
            if !changed {
                return Ok(false);
            }
            self.shared.counters.compactions.fetch_add(1, Ordering::Relaxed);
            self.publish(None)?;
        }
        Ok(true)
    }

    /// A compaction writes its output before its input goes. It must not be what fills the disk.
    fn check_room(&self, bytes: u64) -> Result<(), EngineError> {
        let stat = rustix::fs::statvfs(&self.dir)
            .map_err(|e| EngineError::io("look at the disk's free space", e.into()))?;
        if stat.f_bavail.saturating_mul(stat.f_frsize) >= bytes + ROOM_LEFT_BYTES {
            return Ok(());
        }
        Err(EngineError::io("compaction", io::ErrorKind::StorageFull.into()))
    }

    pub fn compact_all(self: &Arc<Self>) -> Result<(), EngineError> {
        self.seal();
        self.flush_sealed()?;
        let _compacting = lock(&self.compacting);
        self.usable()?;
        if self.state().tables.is_empty() {
            return Ok(());
        }
        self.check_room(self.state().tables.bytes())?;
        guarded("compaction", || self.tree.major_compact(TABLE_BYTES, NO_SNAPSHOTS))
            .inspect_err(|e| self.note(e))?;
        self.shared.counters.compactions.fetch_add(1, Ordering::Relaxed);
        self.publish(None)
    }

    /// Shows readers the tree's newest version, without a memtable that it now contains.
    fn publish(&self, flushed: Option<&Sealed>) -> Result<(), EngineError> {
        // Flush and compaction publish beside one another: list and replace in one step, so that an older list never
        // replaces a newer one.
        let mut published = lock(&self.published);
        let tables = Arc::new(Tables::of(&self.tree)?);
        published.extend(tables.iter().map(|table| table.id()));
        self.replace_state(|state| State {
            active: Arc::clone(&state.active),
            sealed: state
                .sealed
                .iter()
                .filter(|sealed| flushed.is_none_or(|flushed| !Arc::ptr_eq(&sealed.rows, &flushed.rows)))
                .cloned()
                .collect(),
            tables,
        });
        Ok(())
    }

    /// After a failure: removes the files that it left, which may be what fills the disk.
    fn clear_left_overs(&self) -> Result<(), EngineError> {
        if self.is_closed() || lock(&self.health).last_failure.is_none() {
            return Ok(());
        }
        let _compacting = lock(&self.compacting);
        let published = lock(&self.published);
        manifest::remove_all_but(&self.dir, |id| published.contains(&id))
    }

    // ---- trouble

    pub fn health(&self) -> Health {
        let trouble = lock(&self.health);
        match (&trouble.failed, trouble.full) {
            (Some(why), _) => Health::Failed(why.clone()),
            (None, true) => Health::Full,
            (None, false) => Health::Ok,
        }
    }

    pub fn fail(&self, why: String) {
        if !self.is_closed() {
            let mut trouble = lock(&self.health);
            if trouble.failed.is_none() {
                tracing::error!(partition = %self.dir.display(), why, "the engine of a partition has failed");
                trouble.failed = Some(why);
            }
        }
    }

    fn usable(&self) -> Result<(), EngineError> {
        if self.is_closed() {
            return Err(EngineError::ShutDown);
        }
        match &lock(&self.health).failed {
            Some(why) => Err(EngineError::Failed(why.clone())),
            None => Ok(()),
        }
    }

    /// What an error of background work means for the partition.
    fn note(&self, error: &EngineError) {
        if self.is_closed() {
            return;
        }
        self.shared.counters.failures.fetch_add(1, Ordering::Relaxed);
        let mut trouble = lock(&self.health);
        trouble.last_failure = Some(Instant::now());
        trouble.full |= error.is_full();
        drop(trouble);
        if !error.is_full() && !is_transient(error) {
            self.fail(error.to_string());
        }
    }

    fn recovered(&self) {
        let mut trouble = lock(&self.health);
        (trouble.full, trouble.last_failure) = (false, None);
    }

    fn work_failed(&self, what: &str, error: &EngineError) {
        if !self.is_closed() {
            tracing::warn!(partition = %self.dir.display(), %error, "{what} failed");
        }
    }

    pub fn is_closed(&self) -> bool {
        self.purge.closed.load(Ordering::Acquire)
    }

    /// Ends background work and waits for it, so that nothing touches the directory any more.
    pub fn close(&self) {
        self.purge.closed.store(true, Ordering::Release);
        let _flushing = lock(&self.flushing);
        let _compacting = lock(&self.compacting);
        let state = self.state();
        let bytes = state.active.bytes() + state.sealed.iter().map(|sealed| sealed.rows.bytes()).sum::<u64>();
        self.shared.shrunk(bytes);
        // The shared table of open files would keep the space of removed files.
        for table in state.tables.iter() {
            self.shared.open_files.remove_for_table(&(self.tree.id(), table.id()).into());
        }
    }
}

/// Out of something that comes back.
fn is_transient(error: &EngineError) -> bool {
    let EngineError::Io { source, .. } = error else { return false };
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(source.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::Interrupted)
        || matches!(source.raw_os_error(), Some(EMFILE | ENFILE))
}

/// Up to a quarter less, so that partitions that were opened together do not flush together.
fn spread(age: Duration, dir: &Path) -> Duration {
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    age - age / 4 * u32::try_from(hasher.finish() % 1000).unwrap_or(0) / 1000
}

impl State {
    fn get(&self, key: &[u8], at: Decree) -> Result<Option<Value>, EngineError> {
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

struct LsmView {
    state: Arc<State>,
    open: OpenView,
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
