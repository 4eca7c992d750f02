//! A cluster, its lanes, and kills in between.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use pegasus_client::CreateTable;
use pegasus_onebox::{Durability, Engine, Options};
use pegasus_types::hash::{crc64, partition_of};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use super::candidates::Candidates;
use super::generate::{Flavour, Generator};
use super::lane::{Counts, Lane, REFUSED, Shared};
use super::partition::Partition;
use crate::{TestCluster, block_on};

const PARTITIONS: i32 = 8;
/// The last ones of them.
const MANY_ROWS: i32 = 2;
const TTL_PARTITIONS: i32 = 2;
/// Of the second table: far away, because when exactly it begins is the server's choice.
const DEFAULT_TTL_S: u32 = 200_000;
/// Answers of partitions with many rows are long: their share of the operations, per mille.
const MANY_SHARE: u64 = 30;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub engine: Engine,
    pub durability: Durability,
    pub seed: u64,
    pub operations: u64,
    /// kill -9 of all processes at once, then start.
    pub kills: u64,
    /// kill -9 of one replica-server, then start.
    pub failovers: u64,
}

/// What was done, without a difference.
#[derive(Debug)]
pub struct Report {
    plan: Plan,
    counts: Counts,
    took: Duration,
    /// From the start of all processes until the first partition was written and read, and until the last one was.
    restarts: Vec<(Duration, Duration)>,
}

impl Report {
    /// Answers that were compared.
    pub fn compared(&self) -> u64 {
        self.counts.compared.values().sum()
    }

    /// Refusals that tell that a partition is not served at the moment: some are the rule while processes are killed.
    pub fn refused(&self) -> u64 {
        self.counts.refused.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { compared, refused, unclear, lost, doubts, looks } = &self.counts;
        writeln!(f, "{:?}: {} answers compared in {:.1?}", self.plan, self.compared(), self.took)?;
        let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((kind, error), count) in compared {
            let error = if *error == REFUSED { "refused".to_owned() } else { format!("error {error}") };
            kinds.entry(kind).or_default().push(format!("{count} {error}"));
        }
        for (kind, errors) in kinds {
            writeln!(f, "  {kind:16} {}", errors.join(", "))?;
        }
        let refused: Vec<_> = refused.iter().map(|(code, count)| format!("{count} {code}")).collect();
        writeln!(
            f,
            "  refused for now: [{}]; without an answer: {lost}, {unclear} of them writes",
            refused.join(", ")
        )?;
        writeln!(f, "  {doubts} times made sure, {looks} looks at a whole partition")?;
        write!(
            f,
            "  from the start of all processes to the first and the last partition: {:.1?}",
            self.restarts
        )
    }
}

/// Runs a plan.
///
/// # Panics
/// At the first difference.
pub fn run(plan: Plan) -> Report {
    let begun = Instant::now();
    let cluster = TestCluster::start(Options {
        engine: plan.engine,
        durability: plan.durability,
        collector: false,
        partitions: 2,
        ..Options::default()
    });
    let (counts, restarts) = block_on(drive(&cluster, plan));
    Report { plan, counts, took: begun.elapsed(), restarts }
}

async fn drive(cluster: &TestCluster, plan: Plan) -> (Counts, Vec<(Duration, Duration)>) {
    let shared = Arc::new(Shared::default());
    let mut lanes = JoinSet::new();
    for (lane, quota) in lanes_of(cluster, plan, &shared).await {
        lanes.spawn(lane.run(quota));
    }
    let mut counts = Counts::default();
    let mut starts = Vec::new();
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let faults = plan.kills + plan.failovers;
    let mut replicas = cluster.replicas().into_iter().cycle();
    for fault in 0..faults {
        let at = plan.operations * (2 * fault + 1) / (2 * faults)
            + rng.random_range(0..plan.operations / (4 * faults));
        while shared.done.load(Ordering::Relaxed) < at && !lanes.is_empty() {
            tokio::time::sleep(LOOK_INTERVAL).await;
            gather(&mut counts, lanes.try_join_next());
        }
        // Spread evenly among the kills.
        if fault * plan.failovers % faults < plan.failovers {
            let name = replicas.next().expect("an endless list");
            cluster.kill(&name).expect("a kill");
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
            cluster.start_member(&name).expect("a start");
            continue;
        }
        shared.life.fetch_add(1, Ordering::AcqRel);
        cluster.kill_all().expect("a kill of all");
        cluster.start_all().expect("a start of all");
        let life = shared.life.fetch_add(1, Ordering::AcqRel) + 1;
        starts.push((life, Instant::now()));
    }
    while let Some(ended) = lanes.join_next().await {
        gather(&mut counts, Some(ended));
    }
    let served = shared.served.lock().unwrap_or_else(PoisonError::into_inner);
    let restarts = starts
        .into_iter()
        .filter_map(|(life, start)| {
            let times = served.iter().filter(|(of, _)| *of == life).map(|(_, at)| *at - start);
            Some((times.clone().min()?, times.max()?))
        })
        .collect();
    (counts, restarts)
}

async fn lanes_of(cluster: &TestCluster, plan: Plan, shared: &Arc<Shared>) -> Vec<(Lane, u64)> {
    let client = cluster.client().await;
    let mut lanes = Vec::new();
    let mut rng = StdRng::seed_from_u64(!plan.seed);
    let quota_many = plan.operations * MANY_SHARE / 1000;
    let odd = u64::from((PARTITIONS - MANY_ROWS + TTL_PARTITIONS).unsigned_abs());
    let quota_odd = (plan.operations - quota_many * u64::from(MANY_ROWS.unsigned_abs())).div_ceil(odd);
    for (table, partitions, many, default_ttl) in
        [("model", PARTITIONS, MANY_ROWS, 0), ("model_ttl", TTL_PARTITIONS, 0, DEFAULT_TTL_S)]
    {
        let envs = BTreeMap::from([("default_ttl".to_owned(), default_ttl.to_string())]);
        let create = CreateTable { partitions, replicas: 3, envs, if_missing: false };
        let app_id = client.create_table(table, &create).await.expect("a table of its own");
        client.wait_healthy(table, Duration::from_secs(60)).await.expect("a healthy table");
        for index in 0..partitions {
            let flavour = if index >= partitions - many { Flavour::Many } else { Flavour::Odd };
            let is_mine = move |hash_key: &[u8]| partition_of(crc64(hash_key), partitions) == index;
            let mut generator = Generator::new(rng.random(), flavour, &is_mine);
            if flavour == Flavour::Many && index == partitions - 1 {
                generator.add_large_rows();
            }
            let partition = Partition::new(default_ttl, plan.engine == Engine::Lsm);
            let of = (table, app_id, index);
            let lane = Lane::new(client.clone(), shared.clone(), of, generator, Candidates::new(partition));
            lanes.push((lane, if flavour == Flavour::Many { quota_many } else { quota_odd }));
        }
    }
    lanes
}

/// # Panics
/// When a lane has.
fn gather(counts: &mut Counts, ended: Option<Result<Counts, tokio::task::JoinError>>) {
    let Some(ended) = ended else { return };
    let Counts { compared, refused, unclear, lost, doubts, looks } =
        ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    for (kind, count) in compared {
        *counts.compared.entry(kind).or_default() += count;
    }
    for (code, count) in refused {
        *counts.refused.entry(code).or_default() += count;
    }
    counts.unclear += unclear;
    counts.lost += lost;
    counts.doubts += doubts;
    counts.looks += looks;
}
