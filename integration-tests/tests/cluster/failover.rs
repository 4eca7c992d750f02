//! kill -9 of replica-servers while clients write.

use std::time::{Duration, Instant};

use pegasus_integration_tests::{TestCluster, Writers, block_on, env_or};
use pegasus_onebox::{Durability, Options};

const WRITERS: usize = 8;
const VALUE_BYTES: usize = 200;

/// `PEGASUS_TEST_KILLS` sets the number of kills.
#[test]
fn acknowledged_writes_survive_the_death_of_primaries() {
    let kills = env_or("PEGASUS_TEST_KILLS", 4);
    let cluster = TestCluster::start(Options { durability: Durability::Sync, ..Options::default() });
    block_on(async {
        let table = cluster.table().await;
        let mut worst = Duration::ZERO;
        for kill in 0..kills {
            let victim = leader(&cluster).await;
            let writers = Writers::start(&table, WRITERS, VALUE_BYTES);
            writers.proceed(300).await;
            let at = Instant::now();
            tokio::task::block_in_place(|| cluster.kill(&victim)).unwrap();
            // The rest of the group serves without it.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            writers.proceed(300).await;
            tokio::task::block_in_place(|| cluster.start_member(&victim)).unwrap();
            writers.proceed(300).await;
            let acknowledged = writers.stop(VALUE_BYTES).await;
            let outage = acknowledged.outage(at);
            println!("kill {kill} of {victim}: {} writes, resumed after {outage:?}", acknowledged.count());
            worst = worst.max(outage);
            acknowledged.check(&table).await;
            let begun = Instant::now();
            cluster.heal();
            println!("three replicas again after {:?} more", begun.elapsed());
            acknowledged.check(&table).await;
        }
        println!("worst of {kills}: {worst:?}");
        assert!(worst < Duration::from_secs(5), "{worst:?}");
    });
}

/// Stops clocks, threads and connections of a primary, but not its sockets: only silence tells.
#[test]
fn a_frozen_primary_is_replaced_and_cannot_answer_when_it_wakes() {
    let cluster = TestCluster::start(Options { durability: Durability::PageCache, ..Options::default() });
    block_on(async {
        let table = cluster.table().await;
        let victim = leader(&cluster).await;
        let writers = Writers::start(&table, WRITERS, VALUE_BYTES);
        writers.proceed(300).await;
        let at = Instant::now();
        cluster.pause(&victim).unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        writers.proceed(300).await;
        cluster.resume(&victim).unwrap();
        writers.proceed(300).await;
        let acknowledged = writers.stop(VALUE_BYTES).await;
        let outage = acknowledged.outage(at);
        println!("{victim} frozen: writes resumed after {outage:?}");
        assert!(outage < Duration::from_secs(10), "{outage:?}");
        acknowledged.check(&table).await;
        cluster.heal();
        acknowledged.check(&table).await;
    });
}

/// The replica-server that is primary of most partitions.
async fn leader(cluster: &TestCluster) -> String {
    let partitions = cluster.client().await.partitions("temp").await.unwrap();
    let primaries: Vec<_> = partitions.iter().filter_map(|p| p.primary.as_ref()).collect();
    let count = |name: &String| {
        let address = cluster.member(name).unwrap().address.to_string();
        primaries.iter().filter(|node| node.as_str() == address).count()
    };
    cluster.replicas().into_iter().max_by_key(count).unwrap()
}
