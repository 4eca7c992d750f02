//! Threads that flush and compact, and the budget that all memtables share.
//!
//! A partition is queued at most once for a flush and once for a compaction. Flushes have threads of their own, so
//! that a long compaction never holds them up. A clock tick looks for memtables that are old, for a budget that is
//! exceeded, and for work that failed or waits for the log.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lsm_tree::{Cache, DescriptorTable};

use super::partition::Partition;
use crate::engine::{EngineOptions, FactoryStats, Pressure};
use crate::panics;

const TICK: Duration = Duration::from_secs(1);
/// Memtables are sealed for the budget at most so often: a flush needs time to give memory back.
const BUDGET_EVERY: Duration = Duration::from_millis(100);
/// Tables waiting for compaction in one partition at which writers are slowed down, and stopped
/// (engine-choice.md 7).
pub const L0_SLOW: usize = 20;
const L0_STOP: usize = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Flush,
    Compact,
}

/// Owns the threads.
#[derive(Debug)]
pub struct Background {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What partitions and threads share.
pub struct Shared {
    pub options: EngineOptions,
    pub cache: Arc<Cache>,
    pub open_files: Arc<DescriptorTable>,
    /// Bytes of all memtables.
    pub memtable_bytes: AtomicU64,
    pub counters: Counters,
    over_budget: AtomicBool,
    worst_l0: AtomicUsize,
    partitions: Mutex<Vec<Weak<Partition>>>,
    queues: Mutex<Queues>,
    wake: Condvar,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub flushes: AtomicU64,
    pub flushed_bytes: AtomicU64,
    pub compactions: AtomicU64,
    pub failures: AtomicU64,
}

#[derive(Debug, Default)]
struct Queues {
    flush: VecDeque<Arc<Partition>>,
    compact: VecDeque<Arc<Partition>>,
    stop: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Background {
    pub fn start(options: EngineOptions) -> Self {
        let shared = Arc::new(Shared {
            cache: Arc::new(Cache::with_capacity_bytes(options.cache_bytes)),
            open_files: Arc::new(DescriptorTable::new(options.open_files)),
            memtable_bytes: AtomicU64::new(0),
            counters: Counters::default(),
            over_budget: AtomicBool::new(false),
            worst_l0: AtomicUsize::new(0),
            partitions: Mutex::default(),
            queues: Mutex::default(),
            wake: Condvar::new(),
            options,
        });
        let threads = shared.options.background_threads.max(1);
        let threads = (0..threads).flat_map(|i| [(Work::Flush, i), (Work::Compact, i)]);
        let threads = threads.filter_map(|(work, i)| {
            let shared = Arc::clone(&shared);
            let name = format!("{}-{i}", if work == Work::Flush { "flush" } else { "compact" });
            thread::Builder::new()
                .name(name)
                .spawn(move || shared.run(work))
                .inspect_err(|e| tracing::error!(error = %e, ?work, "cannot start a background thread"))
                .ok()
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let mut queues = self.shared.queues();
        queues.stop = true;
        queues.flush.clear();
        queues.compact.clear();
        drop(queues);
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // The last partition may have been dropped by the thread itself.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!("a background thread of the engine has panicked");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        lock(&self.queues)
    }

    pub fn register(&self, partition: &Arc<Partition>) {
        lock(&self.partitions).push(Arc::downgrade(partition));
    }

    fn live(&self) -> Vec<Arc<Partition>> {
        let mut partitions = lock(&self.partitions);
        partitions.retain(|partition| partition.strong_count() > 0);
        partitions.iter().filter_map(Weak::upgrade).filter(|partition| !partition.is_closed()).collect()
    }

    /// At most once, until it is run.
    pub fn queue(&self, work: Work, partition: &Arc<Partition>) {
        if partition.queued(work).swap(true, Ordering::AcqRel) {
            return;
        }
        let mut queues = self.queues();
        if !queues.stop {
            queues.of(work).push_back(Arc::clone(partition));
            drop(queues);
            self.wake.notify_all();
        }
    }

    /// To be called when a memtable has grown.
    pub fn grown(&self, by: u64) {
        let total = self.memtable_bytes.fetch_add(by, Ordering::AcqRel) + by;
        if total > self.options.memtable_budget_bytes && !self.over_budget.swap(true, Ordering::AcqRel) {
            self.wake.notify_all();
        }
    }

    pub fn shrunk(&self, by: u64) {
        self.memtable_bytes.fetch_sub(by, Ordering::AcqRel);
    }

    pub fn pressure(&self) -> Pressure {
        let bytes = self.memtable_bytes.load(Ordering::Acquire);
        let budget = self.options.memtable_budget_bytes;
        let l0 = self.worst_l0.load(Ordering::Acquire);
        if bytes > budget + budget / 2 || l0 > L0_STOP {
            Pressure::Stop
        } else if bytes > budget || l0 > L0_SLOW {
            Pressure::Slow
        } else {
            Pressure::None
        }
    }

    pub fn stats(&self) -> FactoryStats {
        let queues = self.queues();
        let queued_tasks = queues.flush.len() + queues.compact.len();
        drop(queues);
        FactoryStats {
            partitions: self.live().len(),
            cache_used_bytes: self.cache.size(),
            cache_capacity_bytes: self.cache.capacity(),
            memtable_bytes: self.memtable_bytes.load(Ordering::Acquire),
            queued_tasks,
            flushes: self.counters.flushes.load(Ordering::Relaxed),
            flushed_bytes: self.counters.flushed_bytes.load(Ordering::Relaxed),
            compactions: self.counters.compactions.load(Ordering::Relaxed),
            failures: self.counters.failures.load(Ordering::Relaxed),
        }
    }

    /// A thread's life. Ticks are the business of those that flush.
    fn run(&self, work: Work) {
        let (mut next_tick, mut next_budget) = (Instant::now() + TICK, Instant::now());
        loop {
            let mut queues = self.queues();
            let task = loop {
                if queues.stop {
                    return;
                }
                if let Some(partition) = queues.of(work).pop_front() {
                    break Some(partition);
                }
                let due = if self.over_budget.load(Ordering::Acquire) {
                    next_tick.min(next_budget)
                } else {
                    next_tick
                };
                let wait = match work {
                    Work::Flush => due.saturating_duration_since(Instant::now()),
                    Work::Compact => Duration::from_secs(3600),
                };
                if wait.is_zero() {
                    break None;
                }
                queues = self.wake.wait_timeout(queues, wait).unwrap_or_else(PoisonError::into_inner).0;
            };
            drop(queues);
            if let Some(partition) = task {
                self.run_one(work, &partition);
                continue;
            }
            if self.over_budget.swap(false, Ordering::AcqRel) {
                next_budget = Instant::now() + BUDGET_EVERY;
                self.flush_largest();
            }
            if next_tick <= Instant::now() {
                next_tick = Instant::now() + TICK;
                self.tick();
            }
        }
    }

    fn run_one(&self, work: Work, partition: &Arc<Partition>) {
        partition.queued(work).store(false, Ordering::Release);
        let run = || match work {
            Work::Flush => partition.run_flush(),
            Work::Compact => partition.run_compaction(),
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            partition.fail(format!("{work:?} panicked: {}", panics::message(&*panic)));
        }
    }

    fn tick(&self) {
        let partitions = self.live();
        for partition in &partitions {
            partition.tick();
        }
        let worst = partitions.iter().map(|partition| partition.l0_runs()).max().unwrap_or(0);
        self.worst_l0.store(worst, Ordering::Release);
    }

    /// Seals the largest memtables until what is not sealed fits into half of the budget.
    fn flush_largest(&self) {
        let mut partitions: Vec<_> =
            self.live().into_iter().map(|partition| (partition.active_bytes(), partition)).collect();
        partitions.sort_by_key(|(bytes, _)| *bytes);
        let mut active: u64 = partitions.iter().map(|(bytes, _)| *bytes).sum();
        while active > self.options.memtable_budget_bytes / 2
            && let Some((bytes, partition)) = partitions.pop()
        {
            active -= bytes;
            partition.seal();
        }
    }
}

impl Queues {
    fn of(&mut self, work: Work) -> &mut VecDeque<Arc<Partition>> {
        match work {
            Work::Flush => &mut self.flush,
            Work::Compact => &mut self.compact,
        }
    }
}
