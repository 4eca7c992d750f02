//! A node more, and one less, with gigabytes of data in the cluster: how long until all is spread evenly again, how much
//! is copied for it, and what small operations feel of it.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pegasus_client::{Cluster, ScanOptions, Table, Ttl};
use pegasus_integration_tests::{Held, TestCluster, Usage, block_on, held, is_even, metric, say};
use pegasus_onebox::{Durability, Options};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, block_in_place};

use crate::part::Rows;

const NODES: u16 = 4;
const PARTITIONS: u32 = 16;
const ROW_BYTES: usize = 1000;
/// Rows of one hash key, written together.
const ROWS_PER_KEY: usize = 20;
const LOADERS: usize = 16;
/// Clients of small operations, and what each waits between two: some 1,500 operations per second of all, so that two
/// processors are not full before anything moves.
const PROBES: usize = 8;
const PAUSE: Duration = Duration::from_millis(4);
const PROBE_BYTES: usize = 100;
/// Before anything moves, and in between.
const BEFORE: Duration = Duration::from_secs(60);
const BETWEEN: Duration = Duration::from_secs(15);
/// 5 GB take some minutes.
const MOVED_WITHIN: Duration = Duration::from_secs(1_800);
const LOOK_EVERY: Duration = Duration::from_millis(500);
const TELL_EVERY: Duration = Duration::from_secs(10);
/// What loading has left to do (flushes, compaction) is done when all servers together take less of a processor.
const IDLE: f64 = 0.3;
const IDLE_WITHIN: Duration = Duration::from_secs(240);
/// The 99th of a hundred may take so much longer while copies are made.
const P99_FACTOR: f64 = 3.0;

/// All that was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Scale {
    pub megabytes: usize,
    pub rows: usize,
    pub load_seconds: f64,
    pub phases: Vec<Phase>,
    /// Rows that were read at the end, all of them, and those that were wrong or missing.
    pub checked: usize,
    pub wrong: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub seconds: f64,
    /// Rows and log that servers copied from one another.
    pub moved_megabytes: f64,
    pub gets: Times,
    pub puts: Times,
    pub failed: usize,
}

/// In microseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Times {
    pub count: usize,
    pub median: u64,
    pub p99: u64,
    pub worst: u64,
}

impl Scale {
    /// What of the promise is not kept.
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        if self.wrong > 0 || self.checked != self.rows {
            broken.push(format!("{} of {} rows read, {} wrong", self.checked, self.rows, self.wrong));
        }
        let Some((before, rest)) = self.phases.split_first() else { return broken };
        for phase in &self.phases {
            if phase.failed > 0 {
                broken.push(format!("{}: {} operations failed", phase.name, phase.failed));
            }
        }
        for phase in rest {
            for (kind, was, is) in [("gets", &before.gets, &phase.gets), ("puts", &before.puts, &phase.puts)]
            {
                if is.p99 as f64 > was.p99 as f64 * P99_FACTOR {
                    broken
                        .push(format!("{}: p99 of {kind} {} us, {} us before", phase.name, is.p99, was.p99));
                }
            }
        }
        broken
    }
}

impl Rows for Scale {
    const PART: &'static str = "scale";
    const TITLE: &'static str = "A node more, and one less";

    fn is_kept(&self) -> bool {
        self.broken().is_empty()
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{} MB in {} rows of {ROW_BYTES} bytes, {PARTITIONS} partitions, three copies of each on {NODES} nodes, loaded in \
             {:.0} s. Then {PROBES}\nclients that get rows and put values of {PROBE_BYTES} bytes, a node more, and one \
             less (`drain`, then stopped).\nPromised: no operation fails, nothing is lost, p99 at most {P99_FACTOR} times of \
             before.\n\n| | seconds | MB copied | gets | p50 | p99 | worst | puts | p50 | p99 | worst | failed |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|\n",
            self.megabytes, self.rows, self.load_seconds
        );
        for phase in &self.phases {
            let of = |times: &Times| {
                let ms = |us: u64| us as f64 / 1e3;
                let Times { count, median, p99, worst } = *times;
                format!("{count} | {:.2} ms | {:.2} ms | {:.0} ms", ms(median), ms(p99), ms(worst))
            };
            let Phase { name, seconds, moved_megabytes, gets, puts, failed } = phase;
            let (gets, puts) = (of(gets), of(puts));
            let _ = writeln!(
                text,
                "| {name} | {seconds:.0} | {moved_megabytes:.0} | {gets} | {puts} | {failed} |"
            );
        }
        let _ =
            write!(text, "\nAt the end all rows were read: {}, {} of them wrong. ", self.checked, self.wrong);
        let broken = self.broken();
        let _ = match broken.is_empty() {
            true => writeln!(text, "All promises kept."),
            false => writeln!(text, "Not kept: {}.", broken.join("; ")),
        };
        text
    }
}

/// On a cluster of its own, which is removed afterwards.
pub fn measure(megabytes: usize) -> Result<Scale> {
    let options = Options {
        replicas: NODES,
        partitions: PARTITIONS,
        durability: Durability::PageCache,
        collector: false,
        ..Options::default()
    };
    let mut cluster = TestCluster::start(options);
    enough_space(&cluster.member_dir("replica1"), megabytes)?;
    block_on(measure_on(&mut cluster, megabytes))
}

/// Three copies, of which a part is rewritten by compaction at a time, one more of a part of them, and the logs.
fn enough_space(dir: &Path, megabytes: usize) -> Result<()> {
    let stat = rustix::fs::statvfs(dir)?;
    let free = (stat.f_bavail * stat.f_frsize) >> 20;
    let needed = megabytes as u64 * 6;
    ensure!(
        free >= needed,
        "{} has {free} MB free, {needed} are needed: less with --scale-mb",
        dir.display()
    );
    Ok(())
}

async fn measure_on(cluster: &mut TestCluster, megabytes: usize) -> Result<Scale> {
    let table = cluster.table().await;
    let client = cluster.client().await;
    let keys = megabytes * 1_000_000 / ROW_BYTES / ROWS_PER_KEY;
    let begun = Instant::now();
    load(&table, keys).await?;
    let load_seconds = begun.elapsed().as_secs_f64();
    say!("{megabytes} MB are written after {load_seconds:.0} s");
    settle(cluster).await;

    let probes = Probes::start(&table, keys);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut phases = Vec::new();
    let mut phase = Phases::begin(cluster);
    tokio::time::sleep(BEFORE).await;
    phases.push(phase.end(cluster, "before"));

    let name = block_in_place(|| cluster.add_replica())?;
    let all = |held: &Held| held.len() == usize::from(NODES) + 1 && is_even(held);
    wait_for(cluster, &client, &name, all).await?;
    phases.push(phase.end(cluster, "a fifth node gets its share"));
    tokio::time::sleep(BETWEEN).await;
    phases.push(phase.end(cluster, "in between"));

    let first = cluster.member("replica1")?.address.to_string();
    let answer = client.leader_command("meta.drain", std::slice::from_ref(&first)).await?;
    ensure!(answer == "OK", "meta.drain {first}: {answer}");
    let rest = |held: &Held| held.len() == usize::from(NODES) && !held.contains_key(&first) && is_even(held);
    wait_for(cluster, &client, "replica1", rest).await?;
    phases.push(phase.end(cluster, "the first node is emptied"));
    block_in_place(|| cluster.stop("replica1"))?;
    wait_for(cluster, &client, "replica1", rest).await?;
    tokio::time::sleep(BETWEEN).await;
    phases.push(phase.end(cluster, "and stopped"));

    let operations = probes.stop().await;
    let phases = phases.into_iter().map(|phase| phase.with(&operations)).collect();
    let (checked, wrong) = check(&table).await?;
    Ok(Scale { megabytes, rows: keys * ROWS_PER_KEY, load_seconds, phases, checked, wrong })
}

fn hash_key(key: usize) -> String {
    format!("key {key}")
}

/// Does not compress, and tells whose it is.
fn value(key: usize, row: usize) -> Vec<u8> {
    let mut state = (key * ROWS_PER_KEY + row) as u64 | 1 << 63;
    let mut value = Vec::with_capacity(ROW_BYTES + 8);
    while value.len() < ROW_BYTES {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value.extend_from_slice(&state.to_le_bytes());
    }
    value.truncate(ROW_BYTES);
    value
}

async fn load(table: &Table, keys: usize) -> Result<()> {
    let begun = Instant::now();
    let loaders: Vec<_> = (0..LOADERS)
        .map(|first| {
            let table = table.clone();
            tokio::spawn(async move {
                let mut told = Instant::now();
                for key in (first..keys).step_by(LOADERS) {
                    let rows = (0..ROWS_PER_KEY).map(|row| (row.to_string(), value(key, row)));
                    table.multi_set(hash_key(key), rows, Ttl::Default).await?;
                    if first == 0 && told.elapsed() >= TELL_EVERY {
                        told = Instant::now();
                        say!("{:?}: {} of 100 written", begun.elapsed(), key * 100 / keys);
                    }
                }
                Ok::<_, pegasus_client::Error>(())
            })
        })
        .collect();
    for loader in loaders {
        loader.await.context("a loader")??;
    }
    Ok(())
}

/// Waits until the servers have little to do.
async fn settle(cluster: &TestCluster) {
    const WINDOW: Duration = Duration::from_secs(5);
    let used = || -> u64 {
        let pids = cluster.replicas().into_iter().filter_map(|name| cluster.pid(&name).ok());
        pids.map(|pid| Usage::of(pid).cpu_ms).sum()
    };
    let begun = Instant::now();
    loop {
        let before = used();
        tokio::time::sleep(WINDOW).await;
        let busy = (used() - before) as f64 / WINDOW.as_millis() as f64;
        say!("settling: {busy:.2} processors busy");
        if busy < IDLE || begun.elapsed() >= IDLE_WITHIN {
            return;
        }
    }
}

/// Waits until the replicas lie so, three copies of each partition.
async fn wait_for(
    cluster: &TestCluster,
    client: &Cluster,
    what: &str,
    is_good: impl Fn(&Held) -> bool,
) -> Result<()> {
    let begun = Instant::now();
    let mut told = begun;
    loop {
        // No answer in time is told and asked again: it is the machine that is measured, not this question.
        let partitions = client.partitions("temp").await.unwrap_or_else(|error| {
            say!("{what}: {error}");
            Vec::new()
        });
        let held = held(&partitions);
        if !partitions.is_empty()
            && partitions.iter().all(|partition| partition.member_count() == 3)
            && is_good(&held)
        {
            say!("{what}: {held:?} after {:?}", begun.elapsed());
            return Ok(());
        }
        ensure!(begun.elapsed() < MOVED_WITHIN, "{what}: not even after {MOVED_WITHIN:?}: {held:?}");
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            say!("{what}, {:?}: {held:?}, {:.0} MB", begun.elapsed(), copied(cluster));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// MB that the servers that run have copied since they started.
fn copied(cluster: &TestCluster) -> f64 {
    let running = cluster.replicas().into_iter().filter(|name| cluster.pid(name).is_ok());
    let bytes = running.map(|name| {
        let address = cluster.member(&name).map(|member| member.address);
        address
            .map_or(0.0, |address| block_in_place(|| metric(address, "pegasus_replica_learned_bytes_total")))
    });
    bytes.sum::<f64>() / 1e6
}

/// Times between which something was measured.
struct Phases {
    from: Instant,
    copied: f64,
}

/// A phase, and when it was.
struct Past {
    phase: Phase,
    from: Instant,
    to: Instant,
}

impl Phases {
    fn begin(cluster: &TestCluster) -> Self {
        Self { from: Instant::now(), copied: copied(cluster) }
    }

    fn end(&mut self, cluster: &TestCluster, name: &str) -> Past {
        let now = Self::begin(cluster);
        let phase = Phase {
            name: name.to_owned(),
            seconds: (now.from - self.from).as_secs_f64(),
            // A server that has ended meanwhile has copied nothing before.
            moved_megabytes: (now.copied - self.copied).max(0.0),
            gets: Times::default(),
            puts: Times::default(),
            failed: 0,
        };
        say!("{name}: {:.0} s, {:.0} MB copied", phase.seconds, phase.moved_megabytes);
        let from = self.from;
        *self = now;
        Past { phase, from, to: self.from }
    }
}

impl Past {
    fn with(self, operations: &[Operation]) -> Phase {
        let Self { mut phase, from, to } = self;
        let of = || operations.iter().filter(|o| o.begun >= from && o.begun < to);
        phase.gets = Times::of(of().filter(|o| o.is_get).map(|o| o.took).collect());
        phase.puts = Times::of(of().filter(|o| !o.is_get).map(|o| o.took).collect());
        phase.failed = of().filter(|o| o.failed).count();
        phase
    }
}

impl Times {
    fn of(mut took: Vec<Duration>) -> Self {
        took.sort();
        let at = |part: usize| {
            let index = (took.len() * part / 100).min(took.len().saturating_sub(1));
            took.get(index).map_or(0, |took| took.as_micros() as u64)
        };
        Self { count: took.len(), median: at(50), p99: at(99), worst: at(100) }
    }
}

#[derive(Clone, Copy)]
struct Operation {
    begun: Instant,
    took: Duration,
    is_get: bool,
    /// Also: a get that gave something else than what was written.
    failed: bool,
}

/// Clients of small operations.
struct Probes {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Operation>>>,
}

impl Probes {
    fn start(table: &Table, keys: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks =
            (0..PROBES).map(|id| tokio::spawn(probe(table.clone(), id, keys, stop.clone()))).collect();
        Self { stop, tasks }
    }

    async fn stop(self) -> Vec<Operation> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await.expect("clients do not panic"));
        }
        all
    }
}

async fn probe(table: Table, id: usize, keys: usize, stop: Arc<AtomicBool>) -> Vec<Operation> {
    let mut seen = Vec::new();
    for n in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        let is_get = n % 2 == 0;
        let told = if is_get {
            let (key, row) = (rand::random_range(0..keys), rand::random_range(0..ROWS_PER_KEY));
            match table.get(hash_key(key), row.to_string()).await {
                Ok(Some(read)) if read == value(key, row) => None,
                Ok(_) => Some(format!("row {row} of key {key} is wrong")),
                Err(error) => Some(format!("get: {error}")),
            }
        } else {
            let put = table.set(format!("probe {id} {}", n % 10_000), "", vec![b'p'; PROBE_BYTES]);
            put.await.err().map(|error| format!("set: {error}"))
        };
        let took = begun.elapsed();
        if let Some(told) = &told {
            say!("a small operation failed after {took:?}: {told}");
        }
        seen.push(Operation { begun, took, is_get, failed: told.is_some() });
        tokio::time::sleep(PAUSE).await;
    }
    seen
}

/// How many rows of the load there are, and how many of them are not what was written.
async fn check(table: &Table) -> Result<(usize, usize)> {
    let scans: Vec<_> = table
        .full_scans(&ScanOptions::default())
        .into_iter()
        .map(|mut scanner| {
            tokio::spawn(async move {
                let (mut checked, mut wrong) = (0, 0);
                while let Some(row) = scanner.next().await? {
                    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<usize>().ok();
                    let Some(key) = row.hash_key.strip_prefix(b"key ") else { continue };
                    let is_good = match (number(key), number(&row.sort_key)) {
                        (Some(key), Some(sort)) => row.value == value(key, sort),
                        _ => false,
                    };
                    checked += 1;
                    wrong += usize::from(!is_good);
                }
                Ok::<_, pegasus_client::Error>((checked, wrong))
            })
        })
        .collect();
    let (mut checked, mut wrong) = (0, 0);
    for scan in scans {
        let (c, w) = scan.await.context("a scan")??;
        (checked, wrong) = (checked + c, wrong + w);
    }
    say!("{checked} rows read, {wrong} wrong");
    Ok((checked, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &str, p99: u64, failed: usize) -> Phase {
        let times = || Times { count: 1000, median: 1, p99, worst: 9 };
        let (name, gets, puts) = (name.to_owned(), times(), times());
        Phase { name, seconds: 1.0, moved_megabytes: 0.0, gets, puts, failed }
    }

    #[test]
    fn promises_are_looked_at() {
        for (phases, checked, wrong, broken) in [
            (vec![phase("before", 100, 0), phase("a", 300, 0)], 20, 0, 0),
            (vec![phase("before", 100, 0), phase("a", 301, 0)], 20, 0, 2),
            (vec![phase("before", 100, 1), phase("a", 100, 1)], 20, 0, 2),
            (vec![phase("before", 100, 0)], 20, 1, 1),
            (vec![phase("before", 100, 0)], 19, 0, 1),
        ] {
            let scale = Scale { megabytes: 1, rows: 20, load_seconds: 1.0, phases, checked, wrong };
            assert_eq!(scale.broken().len(), broken, "{:?}", scale.broken());
            assert_eq!(scale.text().contains("All promises kept."), broken == 0);
        }
    }

    #[test]
    fn times_of_nothing_and_of_a_hundred() {
        assert_eq!(Times::of(Vec::new()).p99, 0);
        let times = Times::of((1..=200).rev().map(Duration::from_micros).collect());
        assert_eq!((times.count, times.median, times.p99, times.worst), (200, 101, 199, 200));
    }
}
