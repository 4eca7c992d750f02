//! How a replica catches up: by the log where that is enough, else by rows; interrupted, slowed down, given up.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use support::rows::fill_with;
use support::*;

/// Memtables that are flushed, and segments that are freed, as soon as there are a few rows.
const SMALL: &str = "log_private_file_size_mb = 1\n[pegasus.server]\nrocksdb_write_buffer_size = 64K\n";

#[test]
fn who_comes_back_gets_the_log_and_not_the_rows() {
    run(async || {
        let Cluster { meta, mut nodes, dir: _dir } = cluster(SMALL).await;
        let client = Client::new(&meta, PARTITIONS);
        fill_with(&client, "before", 1_000, 500).await;
        let back = nodes[1].node.clone();
        nodes[1].kill();
        // Flushed, so that nobody needs it in the log any more.
        fill_with(&client, "meanwhile", 6_000, 1_000).await;
        meta.until("its groups go on without it", || {
            (0..PARTITIONS).all(|index| !meta.config(index).is_member(&back))
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        nodes[1].restart();
        meta.add_everywhere(&back).await;
        let by_log = metric(&nodes[1], "pegasus_replica_learned_by_log_total").await;
        let by_rows = metric(&nodes[1], "pegasus_replica_learned_total").await;
        assert!(by_log >= f64::from(PARTITIONS) && by_rows == 0.0, "{by_log} by log, {by_rows} by rows");
        // It holds everything: the others may go.
        nodes[0].kill();
        for i in [0, 1_234, 5_999] {
            let value = client.get(&format!("meanwhile{i}"), "s").await;
            assert_eq!(value.map(|v| v.len()), Some(1_000));
        }
    });
}

#[test]
fn a_copy_goes_on_where_its_connection_broke_and_keeps_to_its_rate() {
    run(async || {
        const ROWS: usize = 3_000;
        const ROW_BYTES: usize = 2_000;
        let slow = "[nfs]\nmax_send_rate_megabytes_per_disk = 1\n";
        let Cluster { meta, nodes, dir } = cluster(slow).await;
        let client = Client::new(&meta, PARTITIONS);
        fill_with(&client, "row", ROWS, ROW_BYTES).await;
        let begun = Instant::now();
        let fourth = TestNode::start(&meta.node, dir.path().join("d"), "");
        let breaking = async {
            let mut broken = 0;
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(700)).await;
                for node in &nodes {
                    broken += break_connections_to(node);
                }
            }
            broken
        };
        let ((), broken) = tokio::join!(meta.add_everywhere(&fourth.node), breaking);
        let took = begun.elapsed();
        let copied = metric(&fourth, "pegasus_replica_learned_bytes_total").await;
        let resumed = metric(&fourth, "pegasus_replica_learn_resumed_total").await;
        println!("{copied} bytes in {took:?}, {broken} connections broken, {resumed} times resumed");
        assert!(broken > 0 && resumed >= 1.0);
        let data = (ROWS * ROW_BYTES) as f64;
        assert!(copied >= data && copied < 1.6 * data, "some rows were copied twice: {copied} of {data}");
        // From three teachers, 1 MiB/s each.
        assert!(took >= Duration::from_millis(1_500), "{took:?}");
        let text = http_get(&fourth, "/replica/list").await;
        assert!(text.contains("\"learning\""), "{text}");
    });
}

#[test]
fn a_copy_is_given_up_before_the_log_fills_the_disk() {
    run(async || {
        const MEGABYTES: f64 = 1_048_576.0;
        let settings = "log_private_file_size_mb = 1\nlog_size_mb_max = 64\n[nfs]\n\
                        max_send_rate_megabytes_per_disk = 1\n[pegasus.server]\nrocksdb_write_buffer_size = 1M\n";
        let Cluster { meta, nodes, dir } = cluster(settings).await;
        let client = Client::new(&meta, PARTITIONS);
        fill_with(&client, "row", 60, 500_000).await;
        let fourth = TestNode::start(&meta.node, dir.path().join("d"), "");
        meta.propose_everywhere(&fourth.node).await;
        let begun = Instant::now();
        let mut round = 0;
        let (mut abandoned, mut largest) = (0.0, 0.0_f64);
        while abandoned == 0.0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "the log has {largest} bytes");
            fill_with(&client, &format!("more{round} "), 10, 500_000).await;
            round += 1;
            for node in &nodes {
                abandoned += metric(node, "pegasus_replica_teach_abandoned_total").await;
                largest = largest.max(metric(node, "pegasus_replica_log_bytes").await);
            }
        }
        println!("given up after {:?}, the longest log had {} MB", begun.elapsed(), largest / MEGABYTES);
        assert!(largest < 110.0 * MEGABYTES, "{largest}");
    });
}
