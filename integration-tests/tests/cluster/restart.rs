//! kill -9 of everything at once, then start.

use std::time::{Duration, Instant};

use pegasus_client::Table;
use pegasus_integration_tests::{TestCluster, Usage, Writers, block_on, env_or};
use pegasus_onebox::{Durability, Engine, Options};

const WRITERS: usize = 8;
const VALUE_BYTES: usize = 300;

#[test]
fn nothing_acknowledged_is_missing_in_sync_mode() {
    die_together(Options { durability: Durability::Sync, ..Options::default() });
}

#[test]
fn nothing_acknowledged_is_missing_in_page_cache_mode() {
    die_together(Options { durability: Durability::PageCache, ..Options::default() });
}

#[test]
fn nothing_acknowledged_is_missing_with_sled() {
    die_together(Options { engine: Engine::Sled, ..Options::default() });
}

fn die_together(options: Options) {
    let cluster = TestCluster::start(options);
    block_on(async {
        let table = cluster.table().await;
        for round in 0..2 {
            let writers = Writers::start(&table, WRITERS, VALUE_BYTES);
            writers.proceed(1000).await;
            tokio::task::block_in_place(|| cluster.kill_all()).unwrap();
            tokio::task::block_in_place(|| cluster.start_all()).unwrap();
            writers.proceed(300).await;
            let acknowledged = writers.stop(VALUE_BYTES).await;
            println!("round {round}: {} writes", acknowledged.count());
            cluster.heal();
            acknowledged.check(&table).await;
        }
    });
}

#[test]
fn a_clean_stop_and_start_keeps_everything() {
    let cluster = TestCluster::start(Options::default());
    block_on(async {
        let table = cluster.table().await;
        let writers = Writers::start(&table, WRITERS, VALUE_BYTES);
        writers.proceed(500).await;
        let acknowledged = writers.stop(VALUE_BYTES).await;
        let stopped = tokio::task::block_in_place(|| cluster.stop_all()).unwrap();
        assert_eq!(stopped.len(), 5);
        tokio::task::block_in_place(|| cluster.start_all()).unwrap();
        cluster.heal();
        acknowledged.check(&table).await;
    });
}

/// How long a restart takes with much data. `PEGASUS_TEST_ROWS_MB` sets how much; the promise is 5 s with 1,000 of a
/// release build, a test with a debug build has a part of it.
#[test]
fn a_restart_with_data_is_quick() {
    const ROW_BYTES: usize = 1024;
    let megabytes: usize = env_or("PEGASUS_TEST_ROWS_MB", 40);
    let cluster = TestCluster::start(Options { durability: Durability::PageCache, ..Options::default() });
    block_on(async {
        let table = cluster.table().await;
        fill(&table, megabytes * 1_000_000 / ROW_BYTES, ROW_BYTES).await;
        let writers = Writers::start(&table, WRITERS, VALUE_BYTES);
        writers.proceed(200).await;
        tokio::task::block_in_place(|| cluster.kill_all()).unwrap();
        let begun = Instant::now();
        tokio::task::block_in_place(|| cluster.start_all()).unwrap();
        every_partition(&table).await;
        let took = begun.elapsed();
        let acknowledged = writers.stop(VALUE_BYTES).await;
        println!("{megabytes} MB of rows: all partitions read and write {took:?} after the start");
        for name in cluster.replicas() {
            println!("{name}: {} MB resident", Usage::of(cluster.pid(&name).unwrap()).resident_kib / 1000);
        }
        assert!(took < Duration::from_secs(20), "{took:?}");
        cluster.heal();
        acknowledged.check(&table).await;
        assert_eq!(table.get("row 0", "").await.unwrap().unwrap().len(), ROW_BYTES);
    });
}

/// Rows of one size, many at a time.
async fn fill(table: &Table, rows: usize, bytes: usize) {
    const AT_ONCE: usize = 64;
    let value = bytes::Bytes::from((0..bytes).map(|_| rand::random::<u8>()).collect::<Vec<_>>());
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|first| {
            let (table, value) = (table.clone(), value.clone());
            tokio::spawn(async move {
                for i in (first..rows).step_by(AT_ONCE) {
                    table.set(format!("row {i}"), "", value.clone()).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// One write and one read of each partition.
async fn every_partition(table: &Table) {
    for index in 0..table.partition_count() {
        let key = (0..).map(|i| format!("probe {i}")).find(|k| table.partition_of(k, "") == index).unwrap();
        table.set(&key, "", "here").await.unwrap();
        assert_eq!(table.get(&key, "").await.unwrap().as_deref(), Some(&b"here"[..]));
    }
}
