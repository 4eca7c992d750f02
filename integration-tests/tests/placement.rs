//! Nodes that come and go while clients write: each gets its share, who leaves is emptied first, and nobody notices. And
//! what is left for an operator when all members of a partition are dead.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: also its helpers may panic, and tell what they measured"
)]

use std::time::{Duration, Instant};

use pegasus_client::{FormerMember, Table};
use pegasus_integration_tests::{Held, TestCluster, Writers, block_on, env_or, held, is_even};
use pegasus_onebox::{Durability, Options};
use pegasus_types::Node;

const WRITERS: usize = 8;
const VALUE_BYTES: usize = 400;
/// A debug build on a busy machine.
const EVEN_WITHIN: Duration = Duration::from_secs(150);
/// What a hand-over costs is some milliseconds; the rest is the machine.
const NOTICEABLE: Duration = Duration::from_secs(3);

/// `PEGASUS_TEST_ROWS_MB` sets how much data moves.
#[test]
fn a_new_node_takes_its_share_and_nodes_that_leave_are_emptied_first() {
    let sets = vec!["meta_server.lb_interval_ms=1000".to_owned()];
    let mut cluster =
        TestCluster::start(Options { durability: Durability::PageCache, sets, ..Options::default() });
    block_on(async {
        let table = cluster.table().await;
        let megabytes: usize = env_or("PEGASUS_TEST_ROWS_MB", 10);
        let rows = megabytes * 1000;
        fill(&table, rows).await;
        let writers = Writers::start(&table, WRITERS, VALUE_BYTES);
        writers.proceed(300).await;

        // One node more.
        let begun = Instant::now();
        let name = tokio::task::block_in_place(|| cluster.add_replica()).unwrap();
        let new = address(&cluster, &name);
        let held = wait_for(&cluster, &writers, |held| held.len() == 4 && is_even(held)).await;
        println!("{megabytes} MB: {name} has its share {:?} after its start: {held:?}", begun.elapsed());
        assert_eq!((held[&new].0, held[&new].1), (2, 6), "8 primaries and 24 copies on 4 nodes");

        // One that works on is emptied, by an operator's order.
        let begun = Instant::now();
        let first = address(&cluster, "replica1");
        let client = cluster.client().await;
        assert_eq!(client.leader_command("meta.drain", std::slice::from_ref(&first)).await.unwrap(), "OK");
        let held = wait_for(&cluster, &writers, |held| !held.contains_key(&first) && is_even(held)).await;
        println!("replica1 is empty after {:?}: {held:?}", begun.elapsed());
        let off = [first.clone(), "off".to_owned()];
        assert_eq!(client.leader_command("meta.drain", &off).await.unwrap(), "OK");
        wait_for(&cluster, &writers, |held| held.len() == 4 && is_even(held)).await;

        // One is stopped: it hands over first.
        let begun = Instant::now();
        tokio::task::block_in_place(|| cluster.stop("replica2")).unwrap();
        println!("replica2 has ended {:?} after SIGTERM", begun.elapsed());
        writers.proceed(300).await;
        tokio::task::block_in_place(|| cluster.start_member("replica2")).unwrap();
        wait_for(&cluster, &writers, |held| held.len() == 4 && is_even(held)).await;

        let acknowledged = writers.stop(VALUE_BYTES).await;
        let longest = acknowledged.longest();
        println!("{} writes meanwhile, the longest took {longest:?}", acknowledged.count());
        assert_eq!(acknowledged.unclear(), 0, "nobody noticed");
        assert!(longest < NOTICEABLE, "{longest:?}");
        acknowledged.check(&table).await;
        for row in (0..rows).step_by(97) {
            let value = table.get(format!("row {row}"), "").await.unwrap();
            assert_eq!(value.map(|value| value.len()), Some(1000), "row {row}");
        }
    });
}

/// The third copy is old, the other two are lost with their nodes. Nothing is decided by itself; an operator has the
/// old copy go on.
#[test]
fn an_operator_has_an_old_copy_go_on_when_all_members_are_dead() {
    let cluster = TestCluster::start(Options { durability: Durability::PageCache, ..Options::default() });
    block_on(async {
        let table = cluster.table().await;
        let client = cluster.client().await;
        for row in 0..200 {
            table.set(format!("old {row}"), "", "is on all three").await.unwrap();
        }
        let last = address(&cluster, "replica3");
        tokio::task::block_in_place(|| cluster.kill("replica3")).unwrap();
        until("replica3 is no member any more", async || {
            let partitions = client.partitions("temp").await.unwrap();
            partitions.iter().all(|p| p.members().all(|node| node.as_str() != last)).then_some(())
        })
        .await;
        table.set("new", "", "is on two").await.unwrap();
        for name in ["replica1", "replica2"] {
            tokio::task::block_in_place(|| cluster.kill(name)).unwrap();
        }
        tokio::task::block_in_place(|| cluster.start_member("replica3")).unwrap();
        let dead = until("all partitions are dead, and replica3 has told what it holds", async || {
            let dead = client.diagnose().await.unwrap();
            let told = |node: &FormerMember| node.alive && node.reported && node.copy.is_some();
            (dead.len() == 8 && dead.iter().all(|p| p.former.iter().any(told))).then_some(dead)
        })
        .await;
        println!("{}: {}, {:?}", dead[0].config.gpid, dead[0].reason, dead[0].former);
        let short = table.clone().with_timeout(Duration::from_secs(1));
        assert!(short.get("old 0", "").await.is_err(), "nobody decides that by itself");

        let node: Node = last.parse().unwrap();
        for partition in &dead {
            client.force_primary(partition.config.gpid, &node).await.unwrap();
        }
        for row in 0..200 {
            let value = table.get(format!("old {row}"), "").await.unwrap();
            assert_eq!(value.as_deref(), Some(&b"is on all three"[..]), "row {row}");
        }
        assert_eq!(table.get("new", "").await.unwrap(), None, "that is the price");
        // The others come back, with what they had: it does not come to life again.
        for name in ["replica1", "replica2"] {
            tokio::task::block_in_place(|| cluster.start_member(name)).unwrap();
        }
        cluster.heal();
        assert_eq!(client.diagnose().await.unwrap(), []);
        table.set("newer", "", "is on three").await.unwrap();
        assert_eq!(table.get("new", "").await.unwrap(), None);
        assert_eq!(table.get("old 7", "").await.unwrap().as_deref(), Some(&b"is on all three"[..]));
    });
}

/// Waits until `f` says Some.
async fn until<T>(what: &str, mut f: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = f().await {
            return value;
        }
        assert!(begun.elapsed() < EVEN_WITHIN, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the replicas lie so, with three copies of each partition at every look, while writes go on.
async fn wait_for(cluster: &TestCluster, writers: &Writers, is_good: impl Fn(&Held) -> bool) -> Held {
    let client = cluster.client().await;
    let begun = Instant::now();
    loop {
        let partitions = client.partitions("temp").await.unwrap();
        let now = held(&partitions);
        if partitions.iter().all(|partition| partition.member_count() == 3) && is_good(&now) {
            return now;
        }
        assert!(begun.elapsed() < EVEN_WITHIN, "not so after {EVEN_WITHIN:?}: {partitions:?}");
        writers.proceed(20).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn address(cluster: &TestCluster, name: &str) -> String {
    cluster.member(name).unwrap().address.to_string()
}

/// Rows of 1,000 bytes.
async fn fill(table: &Table, rows: usize) {
    const AT_ONCE: usize = 32;
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|first| {
            let table = table.clone();
            tokio::spawn(async move {
                for row in (first..rows).step_by(AT_ONCE) {
                    table.set(format!("row {row}"), "", vec![b'.'; 1000]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}
