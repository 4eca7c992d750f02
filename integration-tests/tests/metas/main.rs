//! Several meta-servers and a real ZooKeeper, while clients read and write: whatever happens to them, no operation on
//! data fails; and after a while tables can be made again. How long that takes is printed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: also its helpers may panic, and tell what they measured"
)]

mod zkcli;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use pegasus_integration_tests::{Cable, TABLES_WITHIN, TablesAgain, TestCluster, block_on, env_or};
use pegasus_onebox::{Coordination, Durability, Options};

/// Session of a meta-server; short, so that many leaders fit into a test.
const SESSION: Duration = Duration::from_secs(3);

fn options(zookeepers: u16) -> Options {
    Options {
        metas: 3,
        coordination: Coordination::Zookeeper,
        zookeepers,
        durability: Durability::PageCache,
        collector: false,
        sets: vec![format!("zookeeper.timeout_ms={}", SESSION.as_millis())],
        ..Options::default()
    }
}

struct Show {
    cluster: TestCluster,
    again: TablesAgain,
    took: Vec<(String, Duration)>,
}

impl Show {
    async fn start(cluster: TestCluster) -> Self {
        let again = TablesAgain::start(cluster.client().await).await;
        Self { cluster, again, took: Vec::new() }
    }

    /// Name of the meta-server that leads.
    async fn leader(&self) -> String {
        let address = self.again.leader().await;
        self.cluster.member_at(&address).unwrap().name.clone()
    }

    fn act(&self, act: impl FnOnce(&TestCluster)) {
        tokio::task::block_in_place(|| act(&self.cluster));
    }

    fn start_again(&self, name: &str) {
        self.act(|cluster| assert!(cluster.start_member(name).unwrap(), "{name} runs"));
    }

    /// Makes a table, and notes how long that took since `fault`.
    async fn tables_again(&mut self, what: &str, fault: Instant) {
        let took = self.again.after(what, fault).await;
        self.took.push((what.to_owned(), took));
    }

    /// Every operation has succeeded, every table is there and whole.
    async fn finish(self) {
        let seen = self.again.finish().await;
        self.cluster.heal();
        println!("{} writes, {} reads, longest read {:?}", seen.writes, seen.reads, seen.longest_read);
        let mut worst: BTreeMap<&str, Duration> = BTreeMap::new();
        for (what, took) in &self.took {
            let kind = what.split(" of ").next().unwrap_or(what);
            let longest = worst.entry(kind).or_default();
            *longest = (*longest).max(*took);
        }
        for (kind, took) in worst {
            println!("worst: {kind}: {took:.1?}");
        }
        assert_eq!((seen.failed, seen.violations), (Vec::new(), Vec::new()));
        assert_eq!(seen.unclear, 0, "increments of which nobody knows");
    }
}

/// The leader is killed, paused for longer than its session, and cut off from ZooKeeper alone, one after the other.
/// `PEGASUS_TEST_LEADER_CHANGES` sets how often: 50 in the long run.
#[test]
fn leaders_fail_in_every_way() {
    let changes = env_or("PEGASUS_TEST_LEADER_CHANGES", 5);
    let cluster = TestCluster::start(options(1));
    let cables = lay_cables(&cluster);
    block_on(async {
        let mut show = Show::start(cluster).await;
        for n in 0..changes {
            let leader = show.leader().await;
            let fault = Instant::now();
            match n % 3 {
                0 => {
                    show.act(|cluster| cluster.kill(&leader).unwrap());
                    show.tables_again(&format!("kill -9 of {leader}"), fault).await;
                    show.start_again(&leader);
                }
                1 => {
                    cables[&leader].cut();
                    show.tables_again(&format!("cut from ZooKeeper of {leader}"), fault).await;
                    cables[&leader].mend();
                }
                _ => {
                    show.act(|cluster| cluster.pause(&leader).unwrap());
                    show.tables_again(&format!("pause of {leader}"), fault).await;
                    show.act(|cluster| cluster.resume(&leader).unwrap());
                }
            }
            // Whoever comes back finds another leader and stands in line.
            show.tables_again(&format!("return of {leader}"), Instant::now()).await;
        }
        // A restart in order costs no session timeout.
        let leader = show.leader().await;
        let fault = Instant::now();
        show.act(|cluster| cluster.stop(&leader).unwrap());
        show.tables_again(&format!("SIGTERM of {leader}"), fault).await;
        show.start_again(&leader);
        show.finish().await;
    });
}

/// Every meta-server reaches ZooKeeper through a cable of its own from here on.
fn lay_cables(cluster: &TestCluster) -> BTreeMap<String, Cable> {
    let hosts = cluster.zookeeper().unwrap().hosts();
    let mut cables = BTreeMap::new();
    for meta in cluster.members().iter().filter(|member| member.name.starts_with("meta")) {
        let cable = Cable::to(hosts.parse().unwrap());
        let file = cluster.member_dir(&meta.name).join("config.ini");
        let text = fs::read_to_string(&file).unwrap();
        let line = format!("hosts_list = {hosts}");
        assert!(text.contains(&line), "{text}");
        fs::write(&file, text.replace(&line, &format!("hosts_list = {}", cable.address()))).unwrap();
        cluster.stop(&meta.name).unwrap();
        cluster.start_member(&meta.name).unwrap();
        cables.insert(meta.name.clone(), cable);
    }
    cluster.heal();
    cables
}

/// `PEGASUS_TEST_ZOOKEEPER_GONE_SECONDS` sets for how long: 600 in the long run.
#[test]
fn all_of_zookeeper_is_gone_and_returns() {
    let gone = Duration::from_secs(env_or("PEGASUS_TEST_ZOOKEEPER_GONE_SECONDS", 10));
    let cluster = TestCluster::start(options(1));
    block_on(async {
        let mut show = Show::start(cluster).await;
        show.tables_again("before", Instant::now()).await;
        show.act(|cluster| cluster.kill("zookeeper1").unwrap());
        tokio::time::sleep(gone).await;
        show.again.proceed().await;
        // Who comes new is told where the data lies, by the last leader.
        let newcomer = show.cluster.client().await.table("temp").await.unwrap();
        newcomer.set("newcomer", "", "while ZooKeeper is gone").await.unwrap();
        let back = Instant::now();
        show.start_again("zookeeper1");
        show.tables_again(&format!("return of ZooKeeper after {} s", gone.as_secs()), back).await;
        show.finish().await;
    });
}

/// Of three servers each is killed and paused in turn. `PEGASUS_TEST_ZOOKEEPER_ROUNDS` sets how often.
#[test]
fn one_server_of_zookeeper_after_the_other() {
    let rounds: u16 = env_or("PEGASUS_TEST_ZOOKEEPER_ROUNDS", 1);
    let cluster = TestCluster::start(options(3));
    block_on(async {
        let mut show = Show::start(cluster).await;
        for number in (0..rounds).flat_map(|_| 1..=3) {
            let name = format!("zookeeper{number}");
            let fault = Instant::now();
            show.act(|cluster| cluster.kill(&name).unwrap());
            show.tables_again(&format!("kill -9 of {name}"), fault).await;
            show.start_again(&name);
            show.act(|cluster| cluster.zookeeper().unwrap().wait_serving(TABLES_WITHIN).unwrap());
            let fault = Instant::now();
            show.act(|cluster| cluster.pause(&name).unwrap());
            show.tables_again(&format!("pause of {name}"), fault).await;
            show.act(|cluster| cluster.resume(&name).unwrap());
        }
        show.finish().await;
    });
}
