//! The gap in writes after faults of processes and after a planned move.

use std::fmt::Write as _;
use std::future::Future;
use std::time::{Duration, Instant};

use pegasus_client::{Cluster, MoveKind, Table};
use pegasus_integration_tests::{Known, Load, Seen, TestCluster, block_on, say};
use pegasus_onebox::{Durability, Options};
use pegasus_types::PartitionConfig;
use serde::{Deserialize, Serialize};

use crate::part::Rows;

/// One writer for each partition, without a pause.
pub const LOAD: Load =
    Load { writers_per_partition: 1, readers: 0, value_bytes: 100, pause: Duration::ZERO, incr_every: 0 };
/// Before a fault, so that every writer is under way, and after it, so that every writer gets on again.
pub const WARM_UP: Duration = Duration::from_millis(500);
pub const AFTER: Duration = Duration::from_secs(3);
/// How long a process is frozen.
const FROZEN: Duration = Duration::from_secs(4);
/// Until a partition is moved.
const MOVED_WITHIN: Duration = Duration::from_secs(10);

const SECOND: Duration = Duration::from_secs(1);

/// What a node is to the partitions that a fault of it concerns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    Primary,
    Secondary,
}

/// The replica-server that is this for most partitions, and which these are.
async fn victim(cluster: &TestCluster, client: &Cluster, role: As) -> (String, Vec<i32>) {
    let partitions = client.partitions("temp").await.expect("the meta-server answers");
    let all = cluster.replicas().into_iter().map(|name| {
        let address = cluster.member(&name).expect("a member").address.to_string();
        let is_concerned = |p: &&PartitionConfig| match role {
            As::Primary => p.primary.as_ref().is_some_and(|node| node.as_str() == address),
            As::Secondary => p.secondaries.iter().any(|node| node.as_str() == address),
        };
        (name, partitions.iter().filter(is_concerned).map(|p| p.gpid.index).collect::<Vec<_>>())
    });
    all.max_by_key(|(_, concerned)| concerned.len()).expect("there are replica-servers")
}

/// Writers, a fault, and what they have seen of it.
pub async fn under_writers<F: Future<Output = ()>>(
    table: &Table,
    fault: impl FnOnce() -> F,
) -> (Seen, Instant) {
    let known = Known::start(table, LOAD);
    tokio::time::sleep(WARM_UP).await;
    let at = Instant::now();
    fault().await;
    let seen = known.finish(table).await;
    assert!(seen.violations.is_empty(), "{:?}", seen.violations);
    (seen, at)
}

/// The gaps of one kind of fault, of each run.
#[derive(Debug, Deserialize, Serialize)]
pub struct Gap {
    fault: String,
    promised_below_ms: u64,
    ms: Vec<u64>,
}

impl Gap {
    pub fn new(fault: &str, promised_below: Duration, gaps: &[Duration]) -> Self {
        let ms = |duration: &Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            fault: fault.to_owned(),
            promised_below_ms: ms(&promised_below),
            ms: gaps.iter().map(ms).collect(),
        }
    }

    pub fn is_kept(&self) -> bool {
        self.ms.iter().all(|ms| *ms < self.promised_below_ms)
    }

    /// A table of these.
    pub fn table(gaps: &[Self]) -> String {
        let mut text = "| fault | runs | promised | worst | median |\n|---|---|---|---|---|\n".to_owned();
        for gap in gaps {
            let mut sorted = gap.ms.clone();
            sorted.sort_unstable();
            let worst = sorted.last().copied().unwrap_or_default();
            let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
            let kept = if gap.is_kept() { "" } else { " (not kept)" };
            let Self { fault, promised_below_ms, ms } = gap;
            let _ = writeln!(
                text,
                "| {fault} | {} | < {promised_below_ms} ms | {worst} ms{kept} | {median} ms |",
                ms.len()
            );
        }
        text
    }
}

/// The faults of this part.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Gaps {
    gaps: Vec<Gap>,
}

impl Rows for Gaps {
    const PART: &'static str = "gaps";
    const TITLE: &'static str = "The gap in writes";

    fn text(&self) -> String {
        format!(
            "A cluster of three replica-servers and a meta-server on this one machine, `durability = sync`, a table of 8\n\
             partitions, one writer each that writes as fast as it can. The gap is the longest time without an acknowledged\n\
             write in any partition that the fault concerns, as the Rust client sees it.\n\n{}",
            Gap::table(&self.gaps)
        )
    }

    fn is_kept(&self) -> bool {
        self.gaps.iter().all(Gap::is_kept)
    }
}

/// All meta-servers down.
#[derive(Debug, Deserialize, Serialize)]
pub struct MetasDown {
    seconds: u64,
    writes: u64,
    failed: usize,
    gap: Gap,
}

impl Rows for MetasDown {
    const PART: &'static str = "metas-down";
    const TITLE: &'static str = "Without meta-servers";

    fn text(&self) -> String {
        format!(
            "The same cluster while all its meta-servers are down for {} s and come back; any pause of a writer counts, also\n\
             those that this machine makes. {} writes, {} failed operations.\n\n{}",
            self.seconds,
            self.writes,
            self.failed,
            Gap::table(std::slice::from_ref(&self.gap))
        )
    }

    fn is_kept(&self) -> bool {
        self.failed == 0 && self.gap.is_kept()
    }
}

fn cluster() -> TestCluster {
    TestCluster::start(Options { durability: Durability::Sync, ..Options::default() })
}

/// `runs` of each fault whose name contains `only`.
pub fn measure(runs: usize, only: &str) -> Gaps {
    let cluster = cluster();
    let gaps = block_on(each_fault(&cluster, |name| if name.contains(only) { runs } else { 0 }));
    Gaps { gaps: gaps.into_iter().filter(|gap| !gap.ms.is_empty()).collect() }
}

async fn each_fault(cluster: &TestCluster, runs: impl Fn(&str) -> usize) -> Vec<Gap> {
    let client = cluster.client().await;
    let table = cluster.table().await;
    let mut all = Vec::new();

    for (name, role) in [("kill -9 of a primary", As::Primary), ("kill -9 of a secondary", As::Secondary)] {
        let mut gaps = Vec::new();
        for _ in 0..runs(name) {
            let (victim, concerned) = victim(cluster, &client, role).await;
            let fault = || async {
                tokio::task::block_in_place(|| cluster.kill(&victim)).expect("it can be killed");
                tokio::time::sleep(AFTER).await;
            };
            let (seen, at) = under_writers(&table, fault).await;
            gaps.push(seen.gap(&concerned, at, AFTER));
            say!("{name}, {victim}: {:?}", last(&gaps));
            tokio::task::block_in_place(|| cluster.start_member(&victim)).expect("it starts");
            cluster.heal();
        }
        all.push(Gap::new(name, SECOND, &gaps));
    }

    for (name, role) in [("SIGSTOP of a primary", As::Primary), ("SIGSTOP of a secondary", As::Secondary)] {
        let mut gaps = Vec::new();
        for _ in 0..runs(name) {
            let (victim, concerned) = victim(cluster, &client, role).await;
            let fault = || async {
                tokio::task::block_in_place(|| cluster.pause(&victim)).expect("it can be stopped");
                tokio::time::sleep(FROZEN).await;
                cluster.resume(&victim).expect("it goes on");
                tokio::time::sleep(SECOND).await;
            };
            let (seen, at) = under_writers(&table, fault).await;
            gaps.push(seen.gap(&concerned, at, FROZEN));
            say!("{name}, {victim}: {:?}", last(&gaps));
            cluster.heal();
        }
        all.push(Gap::new(name, 2 * SECOND, &gaps));
    }

    const MOVE: &str = "planned move of a primary";
    let mut gaps = Vec::new();
    for _ in 0..runs(MOVE) {
        gaps.push(planned_move(cluster, &client, &table).await);
        say!("{MOVE}: {:?}", last(&gaps));
    }
    all.push(Gap::new(MOVE, Duration::from_millis(100), &gaps));
    all
}

/// All meta-servers down for a time, `runs` times.
pub fn measure_metas_down(runs: usize, down: Duration) -> MetasDown {
    let cluster = cluster();
    block_on(async {
        let table = cluster.table().await;
        let all: Vec<_> = (0..table.partition_count()).collect();
        let (mut gaps, mut writes, mut failed) = (Vec::new(), 0, 0);
        for _ in 0..runs {
            let metas: Vec<_> = cluster.members().iter().filter(|m| m.name.starts_with("meta")).collect();
            let fault = || async {
                for meta in &metas {
                    tokio::task::block_in_place(|| cluster.kill(&meta.name)).expect("it can be killed");
                }
                tokio::time::sleep(down).await;
                tokio::task::block_in_place(|| cluster.start_all()).expect("they start");
                tokio::time::sleep(AFTER).await;
            };
            let (seen, at) = under_writers(&table, fault).await;
            gaps.push(seen.gap(&all, at, down + AFTER));
            say!("all meta-servers down for {down:?}: {:?}, {} writes", last(&gaps), seen.writes);
            for failure in &seen.failed {
                say!("  {failure}");
            }
            writes += seen.writes;
            failed += seen.failed.len();
            cluster.heal();
        }
        let gap = Gap::new("all meta-servers down", SECOND, &gaps);
        MetasDown { seconds: down.as_secs(), writes, failed, gap }
    })
}

fn last(gaps: &[Duration]) -> Duration {
    gaps.last().copied().unwrap_or_default()
}

/// Of one partition, from its primary to its first secondary.
async fn planned_move(cluster: &TestCluster, client: &Cluster, table: &Table) -> Duration {
    cluster.heal();
    let index = rand::random_range(0..table.partition_count());
    let partition = || async {
        let partitions = client.partitions("temp").await.expect("the meta-server answers");
        partitions.into_iter().find(|p| p.gpid.index == index).expect("all partitions")
    };
    let fault = || async {
        let begun = Instant::now();
        // Asked now: the cluster balances itself, and may have moved it since it was healthy.
        let PartitionConfig { gpid, primary, secondaries, .. } = partition().await;
        let (from, to) = (primary.expect("a primary"), &secondaries[0]);
        client.propose_move(gpid, MoveKind::MovePrimary, &from, to).await.expect("the move is taken up");
        while partition().await.primary.as_ref() != Some(to) {
            assert!(begun.elapsed() < MOVED_WITHIN, "{gpid} is not moved");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(WARM_UP).await;
    };
    let (seen, at) = under_writers(table, fault).await;
    let gap = seen.gap(&[index], at, MOVED_WITHIN);
    let others: Vec<_> = (0..table.partition_count()).filter(|other| *other != index).collect();
    let pause = seen.gap(&others, at, MOVED_WITHIN);
    say!("partition {index} is moved; writes to the others pause for up to {pause:?}");
    gap
}
