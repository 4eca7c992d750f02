//! Groups that are whole need no meta-server.

use std::time::{Duration, Instant};

use pegasus_client::{CreateTable, Options};
use pegasus_integration_tests::{Known, Load, TestCluster, block_on, env_or};
use pegasus_types::PartitionConfig;

/// Longer than the grace after which a new meta leader takes silent nodes for dead.
const CALM: Duration = Duration::from_secs(12);

/// `PEGASUS_TEST_METAS_GONE_SECONDS` sets for how long: 60 in the long run.
#[test]
fn reads_and_writes_go_on_without_meta_servers_and_nothing_moves_when_they_return() {
    let seconds = env_or("PEGASUS_TEST_METAS_GONE_SECONDS", 15);
    let cluster = TestCluster::start(pegasus_onebox::Options::default());
    block_on(async {
        let client = cluster.client().await;
        let table = cluster.table().await;
        let before = membership(&client.partitions("temp").await.unwrap());
        let known = Known::start(&table, Load::default());
        known.proceed(200, Duration::from_secs(60)).await;

        let begun = Instant::now();
        for meta in metas(&cluster) {
            tokio::task::block_in_place(|| cluster.kill(&meta)).unwrap();
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        // What stops: tables and their settings, every change of membership.
        let patience = Options { admin_timeout: Duration::from_secs(2), ..Options::default() };
        let impatient = pegasus_client::Cluster::new(&cluster.metas(), patience).unwrap();
        let refused = impatient.create_table("while_metas_are_gone", &CreateTable::default()).await;
        assert!(refused.is_err(), "{refused:?}");
        known.proceed(200, Duration::from_secs(60)).await;
        let gone_for = begun.elapsed();
        for meta in metas(&cluster) {
            tokio::task::block_in_place(|| cluster.start_member(&meta)).unwrap();
        }
        cluster.heal();
        tokio::time::sleep(CALM).await;

        let seen = known.finish(&table).await;
        println!("{gone_for:?} without: {} writes, {} reads", seen.writes, seen.reads);
        assert_eq!((seen.failed, seen.violations), (Vec::new(), Vec::new()));
        assert_eq!(seen.unclear, 0);
        let after = membership(&client.partitions("temp").await.unwrap());
        assert_eq!(before, after, "something has moved");
    });
}

fn metas(cluster: &TestCluster) -> Vec<String> {
    let names = cluster.members().iter().map(|member| member.name.clone());
    names.filter(|name| name.starts_with("meta")).collect()
}

/// Who serves, and how often that has changed.
fn membership(partitions: &[PartitionConfig]) -> Vec<(i64, Option<String>, Vec<String>)> {
    let text = |node: &pegasus_types::Node| node.as_str().to_owned();
    partitions
        .iter()
        .map(|p| (p.ballot.0, p.primary.as_ref().map(text), p.secondaries.iter().map(text).collect()))
        .collect()
}
