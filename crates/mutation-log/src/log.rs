//! The log on its own threads: a writer and a keeper.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::catalog::House;
use crate::core::LogCore;
use crate::disk::{DirDisk, Disk};
use crate::read::Records;
use crate::{Completion, LogError, LogOptions, LogStats, Record, RecoverySummary};

/// The queue of the writer is full; here are the records back. Try again after some completions.
#[derive(Debug)]
pub struct Full(pub Vec<Record>);

/// Handle to the log of one disk; clones share it. The writer ends, after it has written all that was queued,
/// when the last handle is dropped.
///
/// Dereferences to [`Records`] for everything that reads the log or says what is still needed of it.
#[derive(Clone)]
pub struct MutationLog {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    records: Records,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    filled: Condvar,
    house: Arc<House>,
    max_queue_bytes: usize,
}

#[derive(Default)]
struct Inbox {
    appends: Vec<(Vec<Record>, u64)>,
    /// Of all appends that have not been answered.
    bytes: usize,
    unanswered: usize,
    /// When the last append was answered, or the first of the unanswered ones came in.
    progress: Option<Instant>,
    /// The writer is asked to look although nothing is queued.
    nudged: bool,
    closed: bool,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MutationLog {
    /// Opens (creates) the log in `dir` and recovers what it holds; takes about as long as reading all of it.
    ///
    /// `on_done` is called on the writer's thread with all completions of a batch, in the order of the appends.
    /// It must not block.
    pub fn open(
        dir: &Path,
        options: LogOptions,
        on_done: Box<dyn Fn(Vec<Completion>) + Send>,
    ) -> Result<(Self, RecoverySummary), LogError> {
        let disk = DirDisk::open(dir).map_err(LogError::io("create the log's directory"))?;
        Self::open_on(Arc::new(disk), options, on_done)
    }

    /// As [`open`](Self::open), on any disk.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        on_done: Box<dyn Fn(Vec<Completion>) + Send>,
    ) -> Result<(Self, RecoverySummary), LogError> {
        let max_queue_bytes = options.max_queue_bytes;
        let (core, summary) = LogCore::open(disk, options, random())?;
        let records = core.records().clone();
        let house = Arc::clone(core.house());
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            filled: Condvar::new(),
            house: Arc::clone(&house),
            max_queue_bytes,
        });
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.into())
                .spawn(body)
                .map_err(LogError::io("start the log's thread"))
        };
        let handle = Arc::new(Handle { shared: Arc::clone(&shared), records, threads: Mutex::default() });
        let writer = spawn("log-writer", {
            let shared = Arc::clone(&shared);
            Box::new(move || write_loop(&shared, core, &*on_done))
        })?;
        let keeper = spawn("log-keeper", Box::new(move || keep_loop(&shared)))?;
        handle.threads.lock().unwrap_or_else(PoisonError::into_inner).extend([writer, keeper]);
        Ok((Self { handle }, summary))
    }

    /// Queues one append and returns at once. The records are written in their order, appends in the order of
    /// the calls. `token` comes back in the [`Completion`]. An append larger than the whole queue is taken when
    /// nothing else waits.
    pub fn append(&self, records: Vec<Record>, token: u64) -> Result<(), Full> {
        let bytes = weight(&records);
        let shared = &self.handle.shared;
        let mut inbox = shared.inbox();
        if inbox.bytes > 0 && inbox.bytes + bytes > shared.max_queue_bytes {
            return Err(Full(records));
        }
        if inbox.unanswered == 0 {
            inbox.progress = Some(Instant::now());
        }
        inbox.bytes += bytes;
        inbox.unanswered += 1;
        inbox.appends.push((records, token));
        // Only the first one finds the writer asleep.
        if inbox.appends.len() == 1 {
            shared.filled.notify_one();
        }
        Ok(())
    }

    /// Every copy of this disk has been replayed, or quarantined durably: losses that could not be assigned
    /// are dealt with, and records of copies that nobody has asked for are forgotten. Call it once, after the
    /// replicas of the disk have been opened and before new ones are made.
    pub fn recovery_done(&self) {
        if self.handle.records.settle() {
            self.handle.shared.inbox().nudged = true;
            self.handle.shared.filled.notify_one();
        }
    }

    pub fn stats(&self) -> LogStats {
        let mut stats = self.handle.records.stats();
        let inbox = self.handle.shared.inbox();
        stats.queued_bytes = inbox.bytes;
        stats.stalled = inbox.stalled();
        stats
    }

    /// How long appends have been waiting without progress; zero when none waits. From 5 s on the node counts
    /// as silent (safety-rules.md 1.7).
    pub fn stalled(&self) -> Duration {
        self.handle.shared.inbox().stalled()
    }
}

impl Inbox {
    fn stalled(&self) -> Duration {
        if self.unanswered == 0 {
            Duration::ZERO
        } else {
            self.progress.map_or(Duration::ZERO, |p| p.elapsed())
        }
    }
}

impl Deref for MutationLog {
    type Target = Records;
    fn deref(&self) -> &Records {
        &self.handle.records
    }
}

impl fmt::Debug for MutationLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutationLog").field("stats", &self.stats()).finish()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.inbox().closed = true;
        self.shared.filled.notify_all();
        // Under the catalog's lock, or the keeper could miss it between its check and its sleep.
        drop(self.shared.house.lock());
        self.shared.house.chores.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // The last handle may be dropped inside `on_done`, that is on the writer itself.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the log has panicked");
            }
        }
    }
}

fn weight(records: &[Record]) -> usize {
    records.iter().map(|r| r.mutation.body.len() + crate::format::RECORD_HEADER_LEN).sum()
}

fn write_loop(shared: &Shared, mut core: LogCore, on_done: &dyn Fn(Vec<Completion>)) {
    let mut appends = Vec::new();
    loop {
        {
            let mut inbox = shared.inbox();
            while inbox.appends.is_empty() && !inbox.nudged && !inbox.closed && core.is_idle() {
                inbox = shared.filled.wait(inbox).unwrap_or_else(PoisonError::into_inner);
            }
            if inbox.closed && inbox.appends.is_empty() && core.is_idle() {
                return;
            }
            inbox.nudged = false;
            std::mem::swap(&mut appends, &mut inbox.appends);
        }
        let before = core.queued_bytes();
        let mut came = 0;
        for (records, token) in appends.drain(..) {
            came += weight(&records);
            core.enqueue(records, token);
        }
        let mut done = Vec::new();
        core.write(&mut done);
        core.sync(&mut done);
        if done.is_empty() {
            continue;
        }
        {
            let mut inbox = shared.inbox();
            inbox.bytes -= before + came - core.queued_bytes();
            inbox.unanswered -= done.len();
            inbox.progress = Some(Instant::now());
        }
        on_done(done);
    }
}

fn keep_loop(shared: &Shared) {
    loop {
        while shared.house.do_chore() {}
        let catalog = shared.house.lock();
        if catalog.has_chores() {
            continue;
        }
        if shared.inbox().closed {
            return;
        }
        drop(shared.house.chores.wait(catalog).unwrap_or_else(PoisonError::into_inner));
    }
}

/// Unpredictable enough for an id that only has to differ from those of other logs.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
