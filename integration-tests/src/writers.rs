use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pegasus_client::{Error, IncrTtl, Table};
use tokio::task::JoinHandle;

/// Reads of the check at the end that are under way at a time.
const CHECKS_AT_ONCE: usize = 32;

/// Writers that run until they are stopped. Each writes new keys all over the table, and adds to a counter.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<One>>,
}

/// What one writer was told.
#[derive(Debug)]
struct One {
    keys: Vec<String>,
    /// Additions that were acknowledged, and those of which nobody knows.
    added: i64,
    unclear: i64,
    failed: Vec<String>,
    /// Begin and duration of each write.
    writes: Vec<(Instant, Duration)>,
}

/// What all of them were told. Holds for ever, whatever happens to the servers.
#[derive(Debug)]
pub struct Acknowledged {
    writers: Vec<One>,
    value_bytes: usize,
}

impl Writers {
    pub fn start(table: &Table, count: usize, value_bytes: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let tasks = (0..count)
            .map(|i| {
                let (table, stop, written) = (table.clone(), stop.clone(), written.clone());
                tokio::spawn(write(table, i, value_bytes, stop, written))
            })
            .collect();
        Self { stop, written, tasks }
    }

    /// Writes that were acknowledged so far.
    pub fn count(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes have been acknowledged.
    ///
    /// # Panics
    /// After a minute.
    pub async fn proceed(&self, more: u64) {
        let (from, begun) = (self.count(), Instant::now());
        while self.count() < from + more {
            assert!(begun.elapsed() < Duration::from_secs(60), "the writers are stuck at {}", self.count());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// # Panics
    /// When a writer has panicked.
    pub async fn stop(self, value_bytes: usize) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        let mut writers = Vec::new();
        for task in self.tasks {
            writers.push(task.await.expect("writers do not panic"));
        }
        Acknowledged { writers, value_bytes }
    }
}

async fn write(
    table: Table,
    writer: usize,
    value_bytes: usize,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
) -> One {
    let run: u32 = rand::random();
    let mut one = One { keys: Vec::new(), added: 0, unclear: 0, failed: Vec::new(), writes: Vec::new() };
    let counter = format!("counter of {run:08x}");
    one.keys.push(counter.clone());
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("writer {writer} of {run:08x}, {n}");
        let begun = Instant::now();
        match table.set(&key, "s", value_of(&key, value_bytes)).await {
            Ok(()) => {
                one.keys.push(key);
                written.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => one.failed.push(error.to_string()),
        }
        one.writes.push((begun, begun.elapsed()));
        if n % 8 == 0 {
            match table.incr(&counter, "", 1, IncrTtl::Keep).await {
                Ok(_) => one.added += 1,
                Err(Error::Unclear(_) | Error::Timeout { .. }) => one.unclear += 1,
                Err(error) => one.failed.push(error.to_string()),
            }
        }
    }
    one
}

fn value_of(key: &str, bytes: usize) -> Vec<u8> {
    let mut value = key.as_bytes().to_vec();
    value.resize(bytes.max(key.len()), b'.');
    value
}

impl Acknowledged {
    pub fn count(&self) -> usize {
        self.writers.iter().map(|one| one.keys.len() - 1).sum()
    }

    /// Additions to a counter of which nobody knows whether they were done.
    pub fn unclear(&self) -> i64 {
        self.writers.iter().map(|one| one.unclear).sum()
    }

    /// The longest that a write took which was under way at `at` or began within a second of it: how long the fault of
    /// that moment was felt.
    pub fn outage(&self, at: Instant) -> Duration {
        let felt = |(begun, took): &&(Instant, Duration)| {
            *begun <= at + Duration::from_secs(1) && *begun + *took >= at
        };
        let all = self.writers.iter().flat_map(|one| &one.writes);
        all.filter(felt).map(|(_, took)| *took).max().unwrap_or_default()
    }

    /// The longest write of all.
    pub fn longest(&self) -> Duration {
        let all = self.writers.iter().flat_map(|one| &one.writes);
        all.map(|(_, took)| *took).max().unwrap_or_default()
    }

    /// Reads everything back.
    ///
    /// # Panics
    /// When something that was acknowledged is missing or different, when a counter is impossible, or when a write
    /// failed for another reason than time.
    pub async fn check(&self, table: &Table) {
        for one in &self.writers {
            assert_eq!(one.failed, Vec::<String>::new(), "writes fail within their time");
            let (counter, keys) = one.keys.split_first().expect("the counter is the first");
            let value = table.get(counter, "").await.expect("read a counter");
            let value = value.map_or(0, |v| String::from_utf8_lossy(&v).parse::<i64>().expect("a number"));
            assert!(
                (one.added..=one.added + one.unclear).contains(&value),
                "{counter}: {value}, but {} were acknowledged and {} are unclear",
                one.added,
                one.unclear
            );
            for some in keys.chunks(CHECKS_AT_ONCE) {
                let reads: Vec<_> = some
                    .iter()
                    .map(|key| {
                        let (table, key) = (table.clone(), key.clone());
                        tokio::spawn(async move { table.get(&key, "s").await })
                    })
                    .collect();
                for (key, read) in some.iter().zip(reads) {
                    let value = read.await.expect("no panic").expect("read back");
                    let whole = value.as_deref() == Some(&value_of(key, self.value_bytes)[..]);
                    assert!(whole, "{key}: acknowledged, but reads as {value:?}");
                }
            }
        }
    }
}
