//! A workload that knows every value: each key has one writer, which counts its versions, so that any reader can tell
//! at any time whether what it reads may be.
//!
//! | checked | how |
//! |---|---|
//! | no acknowledged write is lost, no read is stale | a read gives no version below the one acknowledged when it began, and none that was not begun when it ended |
//! | no read goes back | of one reader, by key |
//! | an increment is applied once | its answer is one more than the last, or as many more as were unclear meanwhile |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pegasus_client::{Error, IncrTtl, Table};
use tokio::task::JoinHandle;

/// Violations that are told; more of the same teach nothing.
const MAX_TOLD: usize = 20;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub writers_per_partition: usize,
    pub readers: usize,
    pub value_bytes: usize,
    /// Between two operations of one client.
    pub pause: Duration,
    /// Every so many writes an increment; 0 = none.
    pub incr_every: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            writers_per_partition: 1,
            readers: 4,
            value_bytes: 200,
            pause: Duration::from_millis(2),
            incr_every: 8,
        }
    }
}

/// A key, its counter, and what its writer knows.
#[derive(Debug)]
struct Slot {
    key: String,
    partition: i32,
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

/// Clients at work.
#[derive(Debug)]
pub struct Known {
    stop: Arc<AtomicBool>,
    slots: Arc<Vec<Slot>>,
    written: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Seen>>,
}

/// What one client, or all, have seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub writes: u64,
    pub reads: u64,
    /// Increments that were acknowledged, and those of which nobody knows.
    pub incremented: u64,
    pub unclear: u64,
    /// Operations that came to no good end within the client's timeout.
    pub failed: Vec<String>,
    pub violations: Vec<String>,
    pub longest_read: Duration,
    /// When writes were acknowledged, by partition.
    acks: Vec<(i32, Instant)>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.incremented += other.incremented;
        self.unclear += other.unclear;
        self.failed.extend(other.failed);
        self.violations.extend(other.violations);
        self.violations.truncate(MAX_TOLD);
        self.longest_read = self.longest_read.max(other.longest_read);
        self.acks.extend(other.acks);
    }

    /// The longest time without an acknowledged write in any of `partitions` that began, or was under way, within
    /// `window` of `at`. Zero when there are no such partitions.
    pub fn gap(&self, partitions: &[i32], at: Instant, window: Duration) -> Duration {
        partitions.iter().map(|p| self.gap_of(*p, at, window)).max().unwrap_or_default()
    }

    fn gap_of(&self, partition: i32, at: Instant, window: Duration) -> Duration {
        let mut acks: Vec<_> = self.acks.iter().filter(|(p, _)| *p == partition).map(|(_, at)| *at).collect();
        acks.sort();
        let felt = acks.windows(2).filter(|pair| pair[1] >= at && pair[0] <= at + window);
        felt.map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::MAX)
    }
}

impl Known {
    pub fn start(table: &Table, load: Load) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let run: u32 = rand::random();
        let mut slots = Vec::new();
        for partition in 0..table.partition_count() {
            for lane in 0..load.writers_per_partition {
                let mut names = (0..).map(|n| format!("known {run:08x} {lane} {n}"));
                let key = names.find(|key| table.partition_of(key, "") == partition).expect("some key");
                let (begun, acknowledged) = (AtomicU64::new(0), AtomicU64::new(0));
                slots.push(Slot { key, partition, begun, acknowledged });
            }
        }
        let slots = Arc::new(slots);
        let mut clients = Vec::new();
        for at in 0..slots.len() {
            let (table, slots, stop, written) = (table.clone(), slots.clone(), stop.clone(), written.clone());
            clients.push(tokio::spawn(async move { write(&table, &slots[at], load, &stop, &written).await }));
        }
        for _ in 0..load.readers {
            let (table, slots, stop) = (table.clone(), slots.clone(), stop.clone());
            clients.push(tokio::spawn(async move { read(&table, &slots, load, &stop).await }));
        }
        Self { stop, slots, written, clients }
    }

    /// Waits until every client has had time for some more, or `within` is over: then something hangs, and the end
    /// will tell.
    pub async fn proceed(&self, more: u64, within: Duration) {
        let (from, begun) = (self.written.load(Ordering::Relaxed), Instant::now());
        while self.written.load(Ordering::Relaxed) < from + more && begun.elapsed() < within {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops the clients, reads everything once more, and gives what all have seen.
    ///
    /// # Panics
    /// When a client has panicked.
    pub async fn finish(self, table: &Table) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for client in self.clients {
            all.add(client.await.expect("clients do not panic"));
        }
        for slot in self.slots.iter() {
            read_once(table, slot, &mut 0, &mut all).await;
        }
        all
    }
}

fn value_of(key: &str, version: u64, bytes: usize) -> Vec<u8> {
    let mut value = format!("{version} {key} ").into_bytes();
    value.resize(bytes.max(value.len()), b'.');
    value
}

/// The version, when the rest is as it must be, too.
fn version_of(key: &str, value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let (version, rest) = text.split_once(' ')?;
    let rest = rest.strip_prefix(key)?.trim_start();
    rest.bytes().all(|b| b == b'.').then(|| version.parse().ok())?
}

async fn write(table: &Table, slot: &Slot, load: Load, stop: &AtomicBool, written: &AtomicU64) -> Seen {
    let mut seen = Seen::default();
    let (mut counter, mut open) = (0_i64, 0_i64);
    for version in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        slot.begun.store(version, Ordering::SeqCst);
        let value = Bytes::from(value_of(&slot.key, version, load.value_bytes));
        match table.set(&slot.key, "v", value).await {
            Ok(()) => {
                slot.acknowledged.store(version, Ordering::SeqCst);
                seen.acks.push((slot.partition, Instant::now()));
                seen.writes += 1;
                written.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => seen.failed.push(format!("set version {version} of {}: {error}", slot.key)),
        }
        if load.incr_every > 0 && version % load.incr_every == 0 {
            match table.incr(&slot.key, "n", 1, IncrTtl::Keep).await {
                Ok(new) => {
                    if !(counter + 1..=counter + 1 + open).contains(&new) {
                        let was = format!("{counter} before, {open} unclear since");
                        seen.violations.push(format!("counter of {}: {new}, but {was}", slot.key));
                    }
                    (counter, open) = (new, 0);
                    seen.incremented += 1;
                }
                Err(Error::Unclear(_) | Error::Timeout { .. }) => {
                    open += 1;
                    seen.unclear += 1;
                }
                Err(error) => seen.failed.push(format!("incr of {}: {error}", slot.key)),
            }
        }
        tokio::time::sleep(load.pause).await;
    }
    match table.get(&slot.key, "n").await {
        Ok(value) => {
            let value = value.map_or(Some(0), |v| std::str::from_utf8(&v).ok()?.parse::<i64>().ok());
            if !value.is_some_and(|value| (counter..=counter + open).contains(&value)) {
                let was = format!("{counter} acknowledged, {open} unclear since");
                seen.violations.push(format!("counter of {} at the end: {value:?}, but {was}", slot.key));
            }
        }
        Err(error) => seen.failed.push(format!("counter of {}: {error}", slot.key)),
    }
    seen
}

async fn read(table: &Table, slots: &[Slot], load: Load, stop: &AtomicBool) -> Seen {
    let mut all = Seen::default();
    let mut newest = vec![0; slots.len()];
    while !stop.load(Ordering::Relaxed) {
        let at = rand::random_range(0..slots.len());
        read_once(table, &slots[at], &mut newest[at], &mut all).await;
        tokio::time::sleep(load.pause).await;
    }
    all
}

/// `newest` = what this reader has seen of the key.
async fn read_once(table: &Table, slot: &Slot, newest: &mut u64, all: &mut Seen) {
    let least = slot.acknowledged.load(Ordering::SeqCst).max(*newest);
    let begun = Instant::now();
    let value = match table.get(&slot.key, "v").await {
        Ok(value) => value,
        Err(error) => return all.failed.push(format!("get of {}: {error}", slot.key)),
    };
    all.reads += 1;
    all.longest_read = all.longest_read.max(begun.elapsed());
    let most = slot.begun.load(Ordering::SeqCst);
    let version = value.as_deref().map_or(Some(0), |value| version_of(&slot.key, value));
    match version {
        Some(version) if (least..=most).contains(&version) => *newest = version,
        _ if all.violations.len() >= MAX_TOLD => {}
        _ => all.violations.push(format!("{}: read {version:?}, not within {least}..={most}", slot.key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_tell_their_version() {
        for (key, version) in [("k", 1), ("known 00ab 1 2", 77)] {
            assert_eq!(version_of(key, &value_of(key, version, 100)), Some(version));
            assert_eq!(version_of("other", &value_of(key, version, 100)), None);
        }
        let mut damaged = value_of("k", 3, 50);
        damaged[40] = b'x';
        assert_eq!(version_of("k", &damaged), None);
    }

    #[test]
    fn a_gap_is_the_longest_time_without_an_acknowledgement() {
        let begun = Instant::now();
        let ms = Duration::from_millis;
        let acks = [(0, 0), (0, 10), (1, 12), (0, 20), (0, 520), (1, 30), (0, 530), (1, 1_000)];
        let seen =
            Seen { acks: acks.iter().map(|(p, at)| (*p, begun + ms(*at))).collect(), ..Seen::default() };
        assert_eq!(seen.gap(&[0], begun + ms(25), ms(100)), ms(500));
        assert_eq!(seen.gap(&[0], begun + ms(522), ms(100)), ms(10));
        assert_eq!(seen.gap(&[0, 1], begun + ms(25), ms(100)), ms(970));
        assert_eq!(seen.gap(&[], begun, ms(100)), ms(0));
        assert_eq!(seen.gap(&[2], begun, ms(100)), Duration::MAX, "nothing was written at all");
    }
}
