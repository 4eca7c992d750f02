//! Faults of processes.

use std::future::Future;
use std::time::{Duration, Instant};

use pegasus_client::{Cluster, MoveKind, Table};
use pegasus_integration_tests::{Known, Load, Seen, TestCluster};
use pegasus_types::PartitionConfig;

use crate::report::Report;

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

/// All meta-servers down: how often, and for how long each time.
#[derive(Clone, Copy)]
pub struct MetasDown {
    pub runs: usize,
    pub time: Duration,
}

pub async fn measure(cluster: &TestCluster, runs: usize, metas_down: MetasDown, report: &mut Report) {
    let client = cluster.client().await;
    let table = cluster.table().await;

    for (name, role) in [("kill -9 of a primary", As::Primary), ("kill -9 of a secondary", As::Secondary)] {
        let mut gaps = Vec::new();
        for _ in 0..if report.wants(name) { runs } else { 0 } {
            let (victim, concerned) = victim(cluster, &client, role).await;
            let fault = || async {
                tokio::task::block_in_place(|| cluster.kill(&victim)).expect("it can be killed");
                tokio::time::sleep(AFTER).await;
            };
            let (seen, at) = under_writers(&table, fault).await;
            gaps.push(seen.gap(&concerned, at, AFTER));
            println!("{name}, {victim}: {:?}", last(&gaps));
            tokio::task::block_in_place(|| cluster.start_member(&victim)).expect("it starts");
            cluster.heal();
        }
        report.add(name, Some(SECOND), gaps);
    }

    for (name, role) in [("SIGSTOP of a primary", As::Primary), ("SIGSTOP of a secondary", As::Secondary)] {
        let mut gaps = Vec::new();
        for _ in 0..if report.wants(name) { runs } else { 0 } {
            let (victim, concerned) = victim(cluster, &client, role).await;
            let fault = || async {
                tokio::task::block_in_place(|| cluster.pause(&victim)).expect("it can be stopped");
                tokio::time::sleep(FROZEN).await;
                cluster.resume(&victim).expect("it goes on");
                tokio::time::sleep(SECOND).await;
            };
            let (seen, at) = under_writers(&table, fault).await;
            gaps.push(seen.gap(&concerned, at, FROZEN));
            println!("{name}, {victim}: {:?}", last(&gaps));
            cluster.heal();
        }
        report.add(name, Some(2 * SECOND), gaps);
    }

    const MOVE: &str = "planned move of a primary";
    let mut moves = Vec::new();
    for _ in 0..if report.wants(MOVE) { runs } else { 0 } {
        let gap = planned_move(cluster, &client, &table).await;
        println!("planned move: {gap:?}");
        moves.push(gap);
    }
    report.add(MOVE, Some(Duration::from_millis(100)), moves);

    let all: Vec<_> = (0..table.partition_count()).collect();
    const METAS: &str = "all meta-servers down (any pause of a writer counts)";
    let MetasDown { runs, time: down } = metas_down;
    let mut gaps = Vec::new();
    for _ in 0..if report.wants(METAS) { runs } else { 0 } {
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
        assert!(seen.failed.is_empty(), "{:?}", seen.failed);
        gaps.push(seen.gap(&all, at, down + AFTER));
        println!("all meta-servers down for {down:?}: {:?}, {} writes", last(&gaps), seen.writes);
        cluster.heal();
    }
    report.add(METAS, Some(SECOND), gaps);
}

fn last(gaps: &[Duration]) -> Duration {
    gaps.last().copied().unwrap_or_default()
}

/// Of one partition, from its primary to its first secondary.
async fn planned_move(cluster: &TestCluster, client: &Cluster, table: &Table) -> Duration {
    cluster.heal();
    let partitions = client.partitions("temp").await.expect("the meta-server answers");
    let partition = &partitions[rand::random_range(0..partitions.len())];
    let (from, to) = (partition.primary.clone().expect("a primary"), partition.secondaries[0].clone());
    let fault = || async {
        let gpid = partition.gpid;
        client.propose_move(gpid, MoveKind::MovePrimary, &from, &to).await.expect("the move is taken up");
        let begun = Instant::now();
        loop {
            let now = client.partitions("temp").await.expect("the meta-server answers");
            if now[usize::try_from(gpid.index).unwrap_or(0)].primary.as_ref() == Some(&to) {
                break;
            }
            assert!(begun.elapsed() < MOVED_WITHIN, "{gpid} is not moved");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(WARM_UP).await;
    };
    let (seen, at) = under_writers(table, fault).await;
    seen.gap(&[partition.gpid.index], at, MOVED_WITHIN)
}
