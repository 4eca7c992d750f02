//! Faults of meta-servers and of a real ZooKeeper: how long until a table can be created again, and whether clients
//! notice on their data.
//!
//! Three meta-servers, each in a network namespace with two wires: one to everybody else, one to ZooKeeper. ZooKeeper's
//! three servers, three replica-servers and the clients are in the hub.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pegasus_client::Cluster;
use pegasus_integration_tests::{TABLES_WITHIN, TablesAgain, block_on, say};
use pegasus_onebox::{ZooKeeper, ZooKeeperPlan};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::netns::{Bridge, Net, Server, Servers, wait_healthy};
use crate::part::Rows;

const OTHERS: Bridge = Bridge { name: "others", prefix: "10.213.1" };
const ZOO: Bridge = Bridge { name: "zoo", prefix: "10.214.1" };
const METAS: usize = 3;
const REPLICAS: u16 = 3;
const META_PORT: u16 = 34601;
const REPLICA_PORT: u16 = 34801;
const HEALTHY_WITHIN: Duration = Duration::from_secs(90);
/// A leader is paused for so long at least and at most; the runs are spread over it.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What one kind of fault came to.
#[derive(Debug, Deserialize, Serialize)]
struct Fault {
    what: String,
    /// Until a table could be created, of each run.
    ms: Vec<u64>,
    operations: u64,
    /// Operations on data that came to no good end within the client's 20 s, and increments of which nobody knows.
    failed: usize,
    unclear: u64,
    /// Lost, stale or applied twice.
    wrong: usize,
}

#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Metas {
    faults: Vec<Fault>,
}

impl Rows for Metas {
    const PART: &'static str = "metas";
    const TITLE: &'static str = "Several meta-servers and ZooKeeper";

    fn text(&self) -> String {
        let mut text = "Three meta-servers, three servers of ZooKeeper and three replica-servers, each meta-server in a network namespace \
             with\none wire to ZooKeeper and one to everybody else; sessions of 6 s; `durability = page_cache`. Clients that know every \
             value read\nand write all the time. The time is that until a client that knows all meta-servers has created a table: since \
             the fault,\nor since the return of ZooKeeper. (A leader that is paused for less than its session goes on leading: the \
             pause counts.)\n\n\
             | fault | times | a table after: worst | median | operations on data | failed | unclear increments | lost, stale or twice |\n\
             |---|---|---|---|---|---|---|---|\n"
            .to_owned();
        for fault in &self.faults {
            let mut sorted = fault.ms.clone();
            sorted.sort_unstable();
            let seconds = |ms: Option<&u64>| ms.map_or(0.0, |ms| *ms as f64 / 1000.0);
            let Fault { what, ms, operations, failed, unclear, wrong } = fault;
            let _ = writeln!(
                text,
                "| {what} | {} | {:.1} s | {:.1} s | {operations} | {failed} | {unclear} | {wrong} |",
                ms.len(),
                seconds(sorted.last()),
                seconds(sorted.get(sorted.len() / 2)),
            );
        }
        text
    }

    fn is_kept(&self) -> bool {
        !self.faults.is_empty() && self.faults.iter().all(|fault| fault.failed == 0 && fault.wrong == 0)
    }
}

/// Makes the namespaces and runs this program again inside of them. `gone`: for how long all of ZooKeeper is down once;
/// zero = not at all.
pub fn measure(runs: usize, gone: Duration) -> Result<Metas> {
    let dir = tempfile::Builder::new().prefix("pgrm").tempdir()?;
    let id = format!("m{}", std::process::id());
    let net = Net::names(&id, METAS);
    net.make(&[OTHERS, ZOO])?;
    fs::write(dir.path().join("id"), &id)?;
    let inside = dir.path().to_str().context("a temporary directory that is text")?;
    let (runs, seconds) = (runs.to_string(), gone.as_secs().to_string());
    let arguments = ["--metas-in", inside, "--runs", &runs, "--zookeeper-gone-seconds", &seconds];
    if let Err(error) = net.run_inside(&arguments) {
        bail!("{error:#}; the logs are in {}", dir.keep().display());
    }
    let found: Metas = serde_json::from_slice(&fs::read(dir.path().join("found.json"))?)?;
    if !found.is_kept() {
        say!("the logs that may say why are in {}", dir.keep().display());
    }
    Ok(found)
}

/// In the hub.
pub fn measure_inside(dir: &Path, runs: usize, gone: Duration) -> Result<()> {
    let id = fs::read_to_string(dir.join("id"))?;
    let net = std::mem::ManuallyDrop::new(Net::names(&id, METAS)); // whoever has made it removes it
    let mut world = World::start(&net, dir)?;
    let found = block_on(world.all(runs, gone)).with_context(|| world.servers.last_words())?;
    fs::write(dir.join("found.json"), serde_json::to_vec(&found)?)?;
    Ok(())
}

struct World {
    zookeeper: ZooKeeper,
    servers: Servers,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = self.zookeeper.kill_all() {
            say!("{error:#}");
        }
    }
}

fn metas() -> String {
    let metas: Vec<_> = (0..METAS).map(|place| format!("{}:{META_PORT}", OTHERS.address(place))).collect();
    metas.join(",")
}

fn meta_name(place: usize) -> String {
    format!("meta{}", place + 1)
}

impl World {
    fn start(net: &Net, dir: &Path) -> Result<Self> {
        let plan = ZooKeeperPlan { servers: 3, host: ZOO.hub().parse()?, port_base: 0, sync: false };
        let zookeeper = ZooKeeper::create(&dir.join("zookeeper"), plan)?;
        let mut world = Self { zookeeper, servers: Servers::new(dir)? };
        world.start_all(net)?;
        Ok(world)
    }

    fn start_all(&mut self, net: &Net) -> Result<()> {
        self.zookeeper.start_all()?;
        self.zookeeper.wait_serving(HEALTHY_WITHIN)?;
        let sets = |host: String, role: &str, port: u16| {
            vec![
                "cluster.name=metas".to_owned(),
                "data.dirs=".to_owned(),
                format!("meta.server.list={}", metas()),
                format!("network.explicit_host_address={host}"),
                format!("apps.{role}.ports={port}"),
                "meta_server.coordination=zookeeper".to_owned(),
                format!("zookeeper.hosts_list={}", self.zookeeper.hosts()),
                "replication.durability=page_cache".to_owned(),
                "replication.disk_min_available_space_ratio=1".to_owned(),
            ]
        };
        let mut all = Vec::new();
        for (place, within) in net.places.iter().enumerate() {
            let sets = sets(OTHERS.address(place), "meta", META_PORT);
            all.push((meta_name(place), Server { role: "meta", within: Some(within.clone()), sets }));
        }
        for n in 0..REPLICAS {
            let sets = sets(OTHERS.hub(), "replica", REPLICA_PORT + n);
            all.push((format!("replica{}", n + 1), Server { role: "replica", within: None, sets }));
        }
        for (name, server) in all {
            self.servers.start(&name, server)?;
        }
        Ok(())
    }

    async fn client(&self) -> Result<Cluster> {
        let client = Cluster::new(&metas(), pegasus_client::Options::default())?;
        wait_healthy(&client, HEALTHY_WITHIN).await?;
        Ok(client)
    }

    /// Which meta-server leads.
    async fn leader(&self, again: &TablesAgain) -> Result<usize> {
        let address = again.leader().await;
        let place = (0..METAS).find(|place| address == format!("{}:{META_PORT}", OTHERS.address(*place)));
        place.with_context(|| format!("{address} is none of our meta-servers"))
    }

    async fn all(&mut self, runs: usize, gone: Duration) -> Result<Metas> {
        let mut faults = Vec::new();

        let mut again = TablesAgain::start(self.client().await?).await;
        let mut took = Vec::new();
        for _ in 0..runs {
            let name = meta_name(self.leader(&again).await?);
            let fault = Instant::now();
            self.servers.kill(&name)?;
            took.push(again.after(&format!("kill -9 of the leader, {name}"), fault).await);
            self.servers.start_again(&name)?;
        }
        faults.push(Fault::of("kill -9 of the leader", took, again).await);

        let mut again = TablesAgain::start(self.client().await?).await;
        let mut took = Vec::new();
        for run in 0..runs {
            let name = meta_name(self.leader(&again).await?);
            let (least, most) = PAUSES;
            let of_all = u32::try_from(run).unwrap_or(0) * (most - least);
            let pause = least + of_all / u32::try_from(runs.saturating_sub(1).max(1)).unwrap_or(1);
            let fault = Instant::now();
            self.servers.signal(&name, Signal::STOP)?;
            let resume = async {
                tokio::time::sleep(pause).await;
                self.servers.signal(&name, Signal::CONT)
            };
            let what = format!("{name}, the leader, stopped for {:.1} s", pause.as_secs_f64());
            let (tables, resumed) = tokio::join!(again.after(&what, fault), resume);
            resumed?;
            took.push(tables);
            again.after("when it is back", Instant::now()).await;
        }
        faults.push(Fault::of("leader stopped (SIGSTOP) for 1 to 30 s", took, again).await);

        for (bridge, what) in [
            (ZOO, "leader cut from ZooKeeper only"),
            (OTHERS, "leader cut from all others, not from ZooKeeper"),
        ] {
            let mut again = TablesAgain::start(self.client().await?).await;
            let mut took = Vec::new();
            for _ in 0..runs {
                let place = self.leader(&again).await?;
                let fault = Instant::now();
                bridge.cut(place)?;
                took.push(again.after(&format!("{what}, {}", meta_name(place)), fault).await);
                bridge.mend(place)?;
                again.after("when it is back", Instant::now()).await;
            }
            faults.push(Fault::of(what, took, again).await);
        }

        for (is_killed, what) in [
            (true, "kill -9 of a server of ZooKeeper, each in turn"),
            (false, "a server of ZooKeeper stopped (SIGSTOP), each in turn"),
        ] {
            let mut again = TablesAgain::start(self.client().await?).await;
            let mut took = Vec::new();
            for number in self.zookeeper.numbers().collect::<Vec<_>>().into_iter().cycle().take(runs) {
                let fault = Instant::now();
                tokio::task::block_in_place(|| {
                    if is_killed { self.zookeeper.kill(number) } else { self.zookeeper.pause(number) }
                })?;
                took.push(again.after(&format!("{what}: {number}"), fault).await);
                tokio::task::block_in_place(|| {
                    if is_killed {
                        self.zookeeper.start_server(number)?;
                    } else {
                        self.zookeeper.resume(number)?;
                    }
                    self.zookeeper.wait_serving(TABLES_WITHIN)
                })?;
            }
            faults.push(Fault::of(what, took, again).await);
        }

        if !gone.is_zero() {
            let mut again = TablesAgain::start(self.client().await?).await;
            tokio::task::block_in_place(|| self.zookeeper.kill_all())?;
            tokio::time::sleep(gone).await;
            again.proceed().await;
            // Who comes new is told where the data lies, by the last leader.
            let newcomer = Cluster::new(&metas(), pegasus_client::Options::default())?.table("temp").await?;
            newcomer.set("newcomer", "", "while ZooKeeper is gone").await?;
            let back = Instant::now();
            tokio::task::block_in_place(|| self.zookeeper.start_all())?;
            let what = format!("all of ZooKeeper killed, and back after {} s", gone.as_secs());
            let took = again.after(&what, back).await;
            faults.push(Fault::of(&what, vec![took], again).await);
        }
        Ok(Metas { faults })
    }
}

impl Fault {
    async fn of(what: &str, took: Vec<Duration>, again: TablesAgain) -> Self {
        let seen = again.finish().await;
        for told in seen.failed.iter().chain(&seen.violations) {
            say!("  {told}");
        }
        Self {
            what: what.to_owned(),
            ms: took.iter().map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)).collect(),
            operations: seen.writes + seen.reads + seen.incremented,
            failed: seen.failed.len(),
            unclear: seen.unclear,
            wrong: seen.violations.len(),
        }
    }
}
