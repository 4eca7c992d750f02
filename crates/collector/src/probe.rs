//! Probes: real writes and reads, one row in each partition of the probed table.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pegasus_client::Ttl;
use pegasus_telemetry::Shutdown;
use pegasus_types::hash;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::availability::{Availability, WINDOWS};
use crate::metrics::Metrics;

/// Before the first probe has succeeded, failures this long after the start do not count: a cluster that is being
/// started together with its collector has not been unavailable.
const START_GRACE: Duration = Duration::from_secs(60);
/// The number of partitions is looked up again after so many rounds.
const ROUNDS_PER_LOOK: u64 = 20;
/// A table has no more partitions than this, whatever somebody answers.
const PARTITIONS_MAX: usize = 1 << 16;
/// Names tried until every partition has a key: some count * ln(count) are expected.
const KEY_TRIES_MAX: u64 = 1 << 24;

/// Rows of minutes and hours are kept so long; those of days for ever.
const RECORD_TTL: Duration = Duration::from_secs(90 * 86_400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Set,
    Get,
}

impl Step {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Get => "get",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Error(String),
    /// The read gave another value than the one just written.
    WrongValue,
}

/// The probed table.
pub trait Target {
    /// Finds the table; its number of partitions.
    async fn look_up(&self) -> Result<usize, String>;
    async fn set(&self, hash_key: &[u8], value: &[u8]) -> Result<(), String>;
    async fn get(&self, hash_key: &[u8]) -> Result<Option<Vec<u8>>, String>;
    /// Writes a row of the record of availability.
    async fn keep(&self, hash_key: &str, sort_key: &str, value: &str, ttl: Ttl) -> Result<(), String>;
}

#[derive(Clone, Debug)]
pub struct Options {
    pub table: String,
    pub every: Duration,
    /// Of each write, each read, and of looking the table up.
    pub timeout: Duration,
    /// Failures in a row that are logged as an alert.
    pub alert_after: u32,
}

/// Where results of probes go.
#[derive(Debug)]
pub struct Board {
    options: Options,
    metrics: Metrics,
    availability: RefCell<Availability>,
    started: Instant,
    ever_succeeded: RefCell<bool>,
    /// The record is being written.
    keeping: Cell<bool>,
}

impl Board {
    pub fn new(options: Options, metrics: Metrics) -> Self {
        let availability = RefCell::new(Availability::default());
        metrics.availability(&availability.borrow());
        Self {
            options,
            metrics,
            availability,
            started: Instant::now(),
            ever_succeeded: RefCell::new(false),
            keeping: Cell::new(false),
        }
    }

    fn result(&self, partition: Option<usize>, result: Result<(), (Step, Failure)>) {
        let ok = result.is_ok();
        if let Some(partition) = partition {
            self.metrics.partition(&self.options.table, partition, ok);
        }
        let ever = self.ever_succeeded.replace_with(|ever| *ever || ok);
        if !ok && !ever && self.started.elapsed() < START_GRACE {
            return;
        }
        let mut availability = self.availability.borrow_mut();
        let failures = availability.record(unix_s(), partition, ok);
        self.metrics.availability(&availability);
        let (Some(partition), Err((step, failure))) = (partition, result) else { return };
        let table = &self.options.table;
        match &failure {
            Failure::WrongValue => {
                tracing::error!(table, partition, "a probe read another value than it had written");
            }
            Failure::Error(why) if failures == 1 => {
                tracing::warn!(table, partition, step = step.name(), why, "probe failed");
            }
            Failure::Error(why) if failures.is_multiple_of(self.options.alert_after) => {
                tracing::error!(table, partition, failures, why, "alert: the partition is not available");
            }
            Failure::Error(_) => {}
        }
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Probes every partition once per round, spread over the round, for ever. A probe that is still on its
/// way when its next turn comes is not doubled.
pub async fn run<T: Target + 'static>(target: Rc<T>, board: Rc<Board>, shutdown: Shutdown) {
    let options = board.options.clone();
    let mut rounds = interval(options.every);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let on_their_way = Rc::new(RefCell::new(BTreeSet::new()));
    let mut keys: Vec<String> = Vec::new();
    let mut lost = false;
    for round in 0_u64.. {
        rounds.tick().await;
        board.availability.borrow_mut().tick(unix_s());
        if !keys.is_empty() && !board.keeping.replace(true) {
            let (target, board) = (target.clone(), board.clone());
            shutdown.spawn_local_until(async move {
                keep_records(&*target, &board).await;
                board.keeping.set(false);
            });
        }
        if keys.is_empty() || round % ROUNDS_PER_LOOK == 0 {
            match timeout(options.timeout, target.look_up())
                .await
                .unwrap_or_else(|_| Err("timed out".to_owned()))
                .and_then(|count| match count {
                    0..=PARTITIONS_MAX => Ok(count),
                    _ => Err(format!("it has {count} partitions")),
                }) {
                Ok(count) if count != keys.len() => {
                    tracing::info!(table = options.table, partitions = count, "probing");
                    board.metrics.forget_partitions();
                    keys = keys_of(count);
                    lost = false;
                }
                Ok(_) => {}
                // Partitions that are known are still probed: metas may be down while groups are whole.
                Err(why) if keys.is_empty() => {
                    if !lost {
                        tracing::warn!(table = options.table, why, "cannot find the table to probe");
                    }
                    lost = true;
                    board.result(None, Err((Step::Get, Failure::Error(why))));
                }
                Err(why) => tracing::debug!(table = options.table, why, "cannot look the probed table up"),
            }
        }
        for (partition, key) in keys.iter().enumerate() {
            if !on_their_way.borrow_mut().insert(partition) {
                continue;
            }
            let wait = options.every.mul_f64(partition as f64 / keys.len() as f64);
            let (target, board, key, on_their_way) =
                (target.clone(), board.clone(), key.clone(), on_their_way.clone());
            shutdown.spawn_local_until(async move {
                sleep(wait).await;
                let result = probe(&*target, &board, &key, round).await;
                board.result(Some(partition), result);
                on_their_way.borrow_mut().remove(&partition);
            });
        }
    }
}

/// Writes down windows that are over, oldest first, until there are none left or one cannot be written: that one is tried
/// again in the next round.
async fn keep_records<T: Target>(target: &T, board: &Board) {
    loop {
        let Some(ended) = board.availability.borrow().ended() else { return };
        let (hash_key, sort_key, value) = ended.row();
        let ttl = if WINDOWS.get(ended.window) == Some(&"day") { Ttl::Default } else { Ttl::For(RECORD_TTL) };
        let writing = target.keep(&hash_key, &sort_key, &value, ttl);
        match timeout(board.options.timeout, writing).await.unwrap_or_else(|_| Err("timed out".to_owned())) {
            Ok(()) => board.availability.borrow_mut().forget_ended(ended),
            Err(why) => {
                tracing::debug!(hash_key, sort_key, why, "availability is not written down yet");
                return;
            }
        }
    }
}

async fn probe<T: Target>(target: &T, board: &Board, key: &str, round: u64) -> Result<(), (Step, Failure)> {
    let value = format!("detect_value_{}_{round}", unix_s()).into_bytes();
    let set = async { target.set(key.as_bytes(), &value).await.map_err(Failure::Error) };
    step(board, Step::Set, set).await?;
    let get = async {
        match target.get(key.as_bytes()).await {
            Ok(Some(read)) if read == value => Ok(()),
            Ok(_) => Err(Failure::WrongValue),
            Err(why) => Err(Failure::Error(why)),
        }
    };
    step(board, Step::Get, get).await
}

async fn step(
    board: &Board,
    step: Step,
    call: impl Future<Output = Result<(), Failure>>,
) -> Result<(), (Step, Failure)> {
    let begun = Instant::now();
    let result = timeout(board.options.timeout, call).await;
    let result = result.unwrap_or_else(|_| Err(Failure::Error("timed out".to_owned())));
    board.metrics.step(&board.options.table, step, &result.clone().map(|()| begun.elapsed()));
    result.map_err(|failure| (step, failure))
}

/// A hash key in each of the partitions.
fn keys_of(count: usize) -> Vec<String> {
    let mut keys = vec![String::new(); count];
    let mut missing = count;
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    for n in 0..KEY_TRIES_MAX {
        if missing == 0 {
            break;
        }
        let key = format!("detect_available_{n}");
        let partition = hash::partition_of(hash::key_hash(key.as_bytes(), b""), count);
        let slot = usize::try_from(partition).ok().and_then(|partition| keys.get_mut(partition));
        if let Some(slot) = slot.filter(|slot| slot.is_empty()) {
            *slot = key;
            missing -= 1;
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tokio::task::LocalSet;

    #[test]
    fn every_partition_has_its_key() {
        for count in [1, 2, 8, 64, 4096] {
            let keys = keys_of(count);
            assert_eq!(keys.len(), count);
            for (partition, key) in keys.iter().enumerate() {
                let hash = hash::key_hash(key.as_bytes(), b"");
                assert_eq!(hash::partition_of(hash, count as i32), partition as i32, "{key}");
            }
        }
    }

    /// A table in memory that can be told to misbehave.
    #[derive(Default)]
    struct Fake {
        rows: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
        partitions: RefCell<usize>,
        broken: RefCell<bool>,
        stale: RefCell<bool>,
        kept: RefCell<BTreeMap<String, String>>,
    }

    impl Target for Fake {
        async fn look_up(&self) -> Result<usize, String> {
            match *self.partitions.borrow() {
                0 => Err("no table".to_owned()),
                n => Ok(n),
            }
        }
        async fn set(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
            if *self.broken.borrow() {
                return Err("ERR_INVALID_STATE".to_owned());
            }
            if !*self.stale.borrow() {
                self.rows.borrow_mut().insert(key.to_vec(), value.to_vec());
            }
            Ok(())
        }
        async fn keep(&self, key: &str, sort_key: &str, value: &str, _: Ttl) -> Result<(), String> {
            if *self.broken.borrow() {
                return Err("ERR_INVALID_STATE".to_owned());
            }
            self.kept.borrow_mut().insert(format!("{key} {sort_key}"), value.to_owned());
            Ok(())
        }
        async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
            Ok(self.rows.borrow().get(key).cloned())
        }
    }

    fn board() -> (Rc<Board>, pegasus_telemetry::prometheus::Registry) {
        let registry = pegasus_telemetry::prometheus::Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let options = Options {
            table: "temp".into(),
            every: Duration::from_secs(3),
            timeout: Duration::from_secs(1),
            alert_after: 2,
        };
        (Rc::new(Board::new(options, metrics)), registry)
    }

    #[tokio::test]
    async fn windows_that_are_over_are_written_down_when_it_can_be() {
        let (board, _) = board();
        let fake = Fake::default();
        for minute in 0..3 {
            board.availability.borrow_mut().record(minute * 60, None, minute != 1);
        }
        *fake.broken.borrow_mut() = true;
        keep_records(&fake, &board).await;
        assert!(fake.kept.borrow().is_empty() && board.availability.borrow().ended().is_some());
        *fake.broken.borrow_mut() = false;
        keep_records(&fake, &board).await;
        assert_eq!(board.availability.borrow().ended(), None);
        let kept = fake.kept.borrow();
        assert_eq!(kept["detect_available_minute 1970-01-01 00:00"], "1,1,1000000");
        assert_eq!(kept["detect_available_minute 1970-01-01 00:01"], "1,0,0");
        assert_eq!(kept.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_that_comes_breaks_lies_and_recovers() {
        let (board, registry) = board();
        let fake = Rc::new(Fake::default());
        let text = || pegasus_telemetry::registry::encode(&registry).unwrap();
        LocalSet::new()
            .run_until(async {
                let shutdown = Shutdown::new();
                let task = shutdown.spawn_local_until(run(fake.clone(), board.clone(), shutdown.clone()));
                sleep(Duration::from_secs(10)).await;
                assert_eq!(
                    board.availability.borrow().overall().detects,
                    0,
                    "not counted before the first success"
                );

                *fake.partitions.borrow_mut() = 4;
                sleep(Duration::from_secs(30)).await;
                let seen = board.availability.borrow().overall();
                assert!(seen.detects >= 32 && seen.fails == 0, "{seen:?}");
                assert_eq!(fake.rows.borrow().len(), 4);
                assert!(text().contains("probe_partition_up{partition=\"3\",table=\"temp\"} 1"));

                *fake.broken.borrow_mut() = true;
                sleep(Duration::from_secs(9)).await;
                let broken = board.availability.borrow().overall();
                assert!(broken.fails >= 8, "{broken:?}");
                assert!(text().contains("probe_partition_up{partition=\"3\",table=\"temp\"} 0"));

                *fake.broken.borrow_mut() = false;
                *fake.stale.borrow_mut() = true;
                sleep(Duration::from_secs(6)).await;
                assert!(text().contains("result=\"wrong_value\""));

                *fake.stale.borrow_mut() = false;
                *fake.partitions.borrow_mut() = 0;
                sleep(Duration::from_secs(90)).await;
                assert!(
                    text().contains("probe_partition_up{partition=\"3\",table=\"temp\"} 1"),
                    "metas away, groups whole"
                );

                shutdown.trigger();
                assert!(shutdown.wait_for_tasks(Duration::from_secs(1)).await);
                assert_eq!(task.await.unwrap(), None);
            })
            .await;
    }
}
