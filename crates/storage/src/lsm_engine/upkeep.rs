//! What goes on behind a partition: flush, compaction, and what becomes of their errors.

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lsm_tree::compaction::Leveled;
use lsm_tree::{AbstractTree, InternalValue, SeqNo, ValueType};
use pegasus_types::Decree;

use super::background::{L0_SLOW, Work};
use super::guard::guarded;
use super::manifest::{self, Found};
use super::partition::{Partition, lock};
use super::state::{Sealed, State};
use super::tables::Tables;
use super::ttl;
use super::writeback::Writeback;
use crate::engine::{EngineError, Health, Stop};
use crate::schema::{DECREE_KEY, encode_decree};

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

#[derive(Default)]
pub struct Trouble {
    full: bool,
    failed: Option<String>,
    /// Of flush or compaction.
    pub(super) last_failure: Option<Instant>,
}

impl Partition {
    pub fn queued(&self, work: Work) -> &AtomicBool {
        match work {
            Work::Flush => &self.flush_queued,
            Work::Compact => &self.compact_queued,
        }
    }

    /// Once a second.
    pub fn tick(self: &Arc<Self>) {
        let bytes = self.active_bytes();
        let mut writer = lock(&self.writer);
        let is_old = writer.since.is_some_and(|since| since.elapsed() >= self.max_memtable_age);
        let is_quiet = writer.quiet.tick(self.applied(), bytes);
        drop(writer);
        if is_old || is_quiet {
            self.seal();
        }
        // Clients would wait soon for what cannot be compacted meanwhile.
        if self.l0_runs() >= L0_SLOW {
            self.stop_compacting_all("many tables wait for compaction");
        }
        if lock(&self.health).last_failure.is_some_and(|at| at.elapsed() >= RETRY_AFTER) {
            self.shared.queue(Work::Flush, self);
            self.shared.queue(Work::Compact, self);
        }
    }

    pub fn run_flush(self: &Arc<Self>) {
        match self.flush_sealed() {
            Ok(()) | Err(EngineError::Failed(_) | EngineError::ShutDown) => {}
            Err(e) => self.work_failed("flush", &e),
        }
    }

    pub fn run_compaction(self: &Arc<Self>) {
        // A compaction of everything may take long, and other partitions wait for this thread. It queues this anew when
        // it ends.
        let compacting = match self.compacting.try_lock() {
            Ok(compacting) => compacting,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        match self.compact_some(compacting) {
            Ok(true) => self.shared.queue(Work::Compact, self),
            Ok(false) | Err(EngineError::Failed(_) | EngineError::ShutDown) => {}
            Err(e) => self.work_failed("compaction", &e),
        }
    }

    /// Writes all sealed memtables, oldest first. The log need not be durable up to there (replication.md 10.5 asks that
    /// of engines that persist rows at any time): what is applied is committed, rows and their decree become durable
    /// together, and nobody replays a log below it.
    pub fn flush_sealed(self: &Arc<Self>) -> Result<(), EngineError> {
        let _flushing = lock(&self.flushing);
        self.clear_left_overs()?;
        while let Some(oldest) = self.state().sealed.first().cloned() {
            self.usable()?;
            while self.l0_runs() >= MAX_L0_RUNS {
                self.stop_compacting_all("there is no room for another table");
                if !self.compact_some(lock(&self.compacting))? && self.l0_runs() >= MAX_L0_RUNS {
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
        // While rows come in key order, tables without it overlap no others, so that compaction moves them to where they
        // stay instead of writing them again and again. Nobody needs the decree of half a copy.
        let is_whole = !self.loading.load(Ordering::Acquire);
        let rows = rows.chain(is_whole.then(|| (Bytes::from_static(&DECREE_KEY), Some(decree))));
        let mut writeback = Writeback::new(&self.dir);
        guarded("flush", || {
            let seqno = self.seqno.next();
            let items = rows.map(|(key, change)| {
                if self.is_closed() {
                    return Err(ttl::stopped());
                }
                writeback.wrote(key.len() + change.as_ref().map_or(0, Bytes::len));
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
    fn compact_some(&self, _compacting: MutexGuard<'_, ()>) -> Result<bool, EngineError> {
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

    pub fn compact_all(self: &Arc<Self>, stop: &Stop) -> Result<(), EngineError> {
        self.seal();
        self.flush_sealed()?;
        let compacting = lock(&self.compacting);
        self.usable()?;
        if self.state().tables.is_empty() {
            return Ok(());
        }
        self.check_room(self.state().tables.bytes())?;
        *lock(&self.purge.stop) = Some(stop.clone());
        let done = guarded("compaction", || self.tree.major_compact(TABLE_BYTES, NO_SNAPSHOTS));
        *lock(&self.purge.stop) = None;
        let done = match done {
            Ok(()) => {
                self.shared.counters.compactions.fetch_add(1, Ordering::Relaxed);
                self.publish(None)
            }
            Err(EngineError::Io { source, .. })
                if source.kind() == io::ErrorKind::Interrupted && !self.is_closed() =>
            {
                // Nothing is wrong, but what it has written must go.
                lock(&self.health).last_failure = Some(Instant::now());
                Err(EngineError::Stopped)
            }
            Err(e) => {
                self.note(&e);
                Err(e)
            }
        };
        drop(compacting);
        if matches!(done, Err(EngineError::Stopped)) {
            let _flushing = lock(&self.flushing);
            self.clear_left_overs()?;
        }
        // What became due meanwhile.
        self.shared.queue(Work::Compact, self);
        done
    }

    /// A compaction of everything gives way to what cannot wait so long; its caller may try again later.
    fn stop_compacting_all(&self, why: &str) {
        if let Some(stop) = lock(&self.purge.stop).as_ref().filter(|stop| !stop.is_set()) {
            tracing::info!(partition = %self.dir.display(), why, "the compaction of everything gives way");
            stop.stop();
        }
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
        self.usable()?;
        self.stop_compacting_all("files of failed work are removed");
        let _compacting = lock(&self.compacting);
        let published = lock(&self.published);
        // A change of version may fail after its manifest has taken effect (`lsm-tree` opens and syncs that again).
        // Then the disk knows tables that memory does not, and nothing may be built on what memory knows.
        let listed = match manifest::verify(&self.dir).inspect_err(|e| self.fail(e.to_string()))? {
            Found::Tree(listed) => listed,
            Found::Nothing => BTreeSet::new(),
        };
        if let Some(unknown) = listed.iter().find(|id| !published.contains(id)) {
            let why = format!("the manifest on disk lists table {unknown}, the one in memory does not");
            self.fail(why.clone());
            return Err(EngineError::Failed(why));
        }
        manifest::remove_all_but(&self.dir, |id| published.contains(&id))
    }

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
        if !error.is_full() && !error.is_transient() {
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
