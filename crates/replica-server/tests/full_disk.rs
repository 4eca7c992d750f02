//! Copies on disks that are full: they end, nothing else does, and they come about when there is room again.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use pegasus_rpc::wire::meta::RemoteCommand;
use pegasus_rpc::wire::request::{Request, Response};
use support::rows::{fill_with, until_rows};
use support::small_disk::SmallDisk;
use support::*;

const MIB: u64 = 1 << 20;
const SETTINGS: &str = "durability = page_cache\nlog_private_file_size_mb = 1\ndisk_stat_interval_seconds = 1\n\
                        disk_min_available_space_ratio = 2\n[pegasus.server]\nrocksdb_write_buffer_size = 256K\n";
/// What the table holds.
const ROWS: usize = 4_000;
const ROW_BYTES: usize = 3_000;

/// Waits until a metric of `node` is so high.
async fn until_metric(node: &TestNode, name: &str, least: f64) {
    let begun = Instant::now();
    loop {
        let value = metric(node, name).await;
        if value >= least {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{name} is {value}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn set_send_rate(client: &Client<'_>, node: &TestNode, megabytes_per_second: &str) {
    let command = RemoteCommand {
        cmd: "nfs.max_send_rate_megabytes_per_disk".to_owned(),
        arguments: vec![megabytes_per_second.to_owned()],
    };
    let connection = client.connection(&node.node).await.unwrap();
    let answer = connection.call(Default::default(), &Request::RemoteCommand(command), WITHIN).await.unwrap();
    assert!(matches!(answer, Response::Text(text) if text.ends_with(megabytes_per_second)));
}

#[test]
fn a_full_disk_ends_the_copies_that_pin_its_log() {
    run(async || {
        let small = SmallDisk::mount(128 * MIB);
        let Cluster { meta, nodes, dir } =
            cluster_with(tempfile::tempdir().unwrap(), small.path.join("a"), SETTINGS).await;
        let client = Client::new(&meta, PARTITIONS);
        fill_with(&client, "row", ROWS, ROW_BYTES).await;
        set_send_rate(&client, &nodes[0], "1").await;
        let fourth = TestNode::start(&meta.node, dir.path().join("d"), "");
        meta.propose_everywhere(&fourth.node).await;
        until_metric(&nodes[0], "pegasus_replica_teaching", 1.0).await;
        assert_eq!(metric(&nodes[0], "pegasus_replica_teach_abandoned_total").await, 0.0);
        small.fill_up();
        until_metric(&nodes[0], "pegasus_replica_teach_abandoned_total", 1.0).await;
        until_metric(&fourth, "pegasus_replica_learn_failed_total", 1.0).await;
        let teaching = metric(&nodes[0], "pegasus_replica_teaching").await;
        assert_eq!(teaching, 0.0, "and none begins while the disk is full");
        assert_eq!(client.get("row7", "s").await.map(|v| v.len()), Some(ROW_BYTES), "it goes on reading");

        std::fs::remove_file(small.path.join("filler")).unwrap();
        set_send_rate(&client, &nodes[0], "100").await;
        client.put("after", "s", "v").await;
        until_rows(&meta, &client, &fourth, ROWS + 1).await;
    });
}

#[test]
fn a_learner_on_a_full_disk_gives_up_and_comes_when_there_is_room() {
    run(async || {
        let Cluster { meta, nodes, dir: _dir } = cluster(SETTINGS).await;
        let client = Client::new(&meta, PARTITIONS);
        fill_with(&client, "row", ROWS, ROW_BYTES).await;
        let small = SmallDisk::mount(96 * MIB);
        // The segment of its log fits, and a part of the rows.
        small.fill("filler", 90 * MIB);
        let mut fourth = TestNode::start(&meta.node, small.path.join("d"), SETTINGS);
        meta.propose_everywhere(&fourth.node).await;
        until_metric(&fourth, "pegasus_replica_learn_failed_total", 1.0).await;
        // Nobody else feels it, however often it is asked.
        for round in 0..5 {
            meta.propose_everywhere(&fourth.node).await;
            client.put(&format!("meanwhile {round}"), "s", "v").await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert!(http_get(&fourth, "/livez").await.starts_with("HTTP/1.1 200"), "its process stays");
        let members = (0..PARTITIONS).filter(|index| meta.config(*index).is_member(&fourth.node)).count();
        assert!(members < PARTITIONS as usize, "12 MB do not fit into 6");
        let abandoned = metric(&nodes[0], "pegasus_replica_teach_abandoned_total").await;
        println!("{members} of {PARTITIONS} fitted, {abandoned} copies given up by a teacher");

        std::fs::remove_file(small.path.join("filler")).unwrap();
        until_rows(&meta, &client, &fourth, ROWS + 5).await;
        // What it has is whole also after a restart.
        fourth.restart();
        client.put("after", "s", "v").await;
        until_rows(&meta, &client, &fourth, ROWS + 6).await;
        fourth.kill();
    });
}

#[test]
fn a_server_starts_on_a_full_disk() {
    run(async || {
        let small = SmallDisk::mount(64 * MIB);
        let Cluster { meta, mut nodes, dir: _dir } =
            cluster_with(tempfile::tempdir().unwrap(), small.path.join("a"), SETTINGS).await;
        let client = Client::new(&meta, PARTITIONS);
        fill_with(&client, "row", 200, ROW_BYTES).await;
        nodes[0].kill();
        small.fill_up();
        nodes[0].restart();
        for n in 0..200 {
            let value = client.get(&format!("row{n}"), "s").await;
            assert_eq!(value.map(|v| v.len()), Some(ROW_BYTES), "row{n}");
        }
        std::fs::remove_file(small.path.join("filler")).unwrap();
        fill_with(&client, "later", 200, ROW_BYTES).await;
        until_rows(&meta, &client, &nodes[0], 400).await;
    });
}

/// What pins the log is only in memory, and to flush it takes space.
#[test]
fn a_full_disk_makes_room_for_itself() {
    const UNFLUSHED: &str = "durability = page_cache\nlog_private_file_size_mb = 1\ndisk_stat_interval_seconds = 1\n\
                             disk_min_available_space_ratio = 0\n[pegasus.server]\nrocksdb_write_buffer_size = 64M\n";
    run(async || {
        let small = SmallDisk::mount(128 * MIB);
        let Cluster { meta, nodes, dir: _dir } =
            cluster_with(tempfile::tempdir().unwrap(), small.path.join("a"), UNFLUSHED).await;
        let client = Client::new(&meta, PARTITIONS);
        // The same rows again and again: much log, few rows.
        for _ in 0..20 {
            fill_with(&client, "row", 200, ROW_BYTES).await;
        }
        let ballast = small.path.join("a/.pegasus-ballast");
        assert!(ballast.exists());
        small.fill_up();
        let (name, before) =
            ("pegasus_replica_log_bytes", metric(&nodes[0], "pegasus_replica_log_bytes").await);
        assert!(before > 10e6, "{before}");
        let begun = Instant::now();
        let mut n = 0;
        while metric(&nodes[0], name).await > before / 2.0 {
            n += 1;
            assert!(begun.elapsed() < Duration::from_secs(60), "{name} stays at {before}");
            // Some of them wait for this node's log, and its primaries refuse theirs.
            let row = format!("later{n}");
            let _ = client.once(&row, &put(&row, "s", "v"), Duration::from_millis(300)).await;
        }
        assert!(small.path.join("filler").exists());
        for n in 0..PARTITIONS {
            client.put(&format!("after{n}"), "s", "v").await;
        }
        std::fs::remove_file(small.path.join("filler")).unwrap();
        while !ballast.exists() {
            assert!(begun.elapsed() < Duration::from_secs(90), "the ballast is held again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}
