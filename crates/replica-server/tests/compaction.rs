//! Manual compaction as the settings of a table ask for it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pegasus_rpc::wire::client::Connection;
use pegasus_rpc::wire::frame::RequestHead;
use pegasus_rpc::wire::meta::RemoteCommand;
use pegasus_rpc::wire::request::{Request, Response};
use support::rows::fill_with;
use support::*;

const ALL: u64 = PARTITIONS as u64;

fn now_s() -> String {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().to_string()
}

async fn set_envs(meta: &FakeMeta, nodes: &[TestNode], envs: &[(&str, &str)]) {
    for node in nodes {
        meta.set_envs(&node.node, envs).await;
    }
}

/// Replicas of a node: idle, queued or running, finished.
async fn states(node: &TestNode) -> [u64; 3] {
    let answer = http_get(node, &format!("/replica/manual_compaction?app_id={APP}")).await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let told: serde_json::Value = serde_json::from_str(body).unwrap();
    let count = |state: &str| told["status"][state].as_u64().unwrap();
    [count("idle"), count("queuing") + count("running"), count("finished")]
}

async fn until_finished(node: &TestNode) {
    let begun = Instant::now();
    while states(node).await != [0, 0, ALL] {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", states(node).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What `replica.query-compact` says of one field of each replica.
async fn field(node: &TestNode, name: &str) -> Vec<String> {
    let connection = Connection::connect(node.address(), WITHIN).await.unwrap();
    let command = RemoteCommand { cmd: "replica.query-compact".to_owned(), arguments: Vec::new() };
    let answer = connection.call(RequestHead::default(), &Request::RemoteCommand(command), WITHIN).await;
    let Ok(Response::Text(text)) = answer else { panic!("{answer:?}") };
    let told = text.lines().skip(1).map(|line| {
        let (_, json) = line.split_once(" : ").unwrap();
        let told: serde_json::Value = serde_json::from_str(json).unwrap();
        told[name].as_str().unwrap().to_owned()
    });
    told.collect()
}

async fn until_member(meta: &FakeMeta, node: &TestNode) {
    let begun = Instant::now();
    while field(node, "last_finish").await.len() < ALL as usize {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is no member again");
        meta.add_everywhere(&node.node).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn settings_are_obeyed_one_after_the_other() {
    run(async || {
        let Cluster { meta, mut nodes, dir: _dir } = cluster("").await;
        let client = Client::new(&meta, PARTITIONS);
        fill_with(&client, "row", 200, 100).await;
        let now = now_s();
        let once = ("manual_compact.once.trigger_time", now.as_str());
        for obstacle in
            [("manual_compact.max_concurrent_running_count", "0"), ("manual_compact.disabled", "true")]
        {
            set_envs(&meta, &nodes, &[once, obstacle]).await;
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            for node in &nodes {
                assert_eq!(states(node).await, [ALL, 0, 0], "{obstacle:?}");
            }
        }
        set_envs(&meta, &nodes, &[once]).await;
        for node in &nodes {
            until_finished(node).await;
        }
        let before = field(&nodes[0], "last_finish").await;
        nodes[0].restart();
        until_member(&meta, &nodes[0]).await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(field(&nodes[0], "last_finish").await, before, "none was compacted again");
        assert_eq!(states(&nodes[0]).await, [0, 0, ALL]);

        // Whoever does not know it any more does it once more.
        nodes[0].kill();
        for replica in std::fs::read_dir(nodes[0].dir.join("replica/reps")).unwrap() {
            let file = replica.unwrap().path().join(".manual-compact");
            let whole = std::fs::read(&file).unwrap();
            std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        }
        nodes[0].restart();
        until_member(&meta, &nodes[0]).await;
        until_finished(&nodes[0]).await;
        let again = field(&nodes[0], "last_finish").await;
        assert!(again.iter().zip(&before).all(|(again, before)| again > before), "{again:?} {before:?}");
    });
}

#[test]
fn what_was_copied_is_compact() {
    run(async || {
        // So that the log does not reach back.
        let settings = "log_private_file_size_mb = 1\nlog_private_reserve_max_size_mb = 0\n[pegasus.server]\n\
                        rocksdb_write_buffer_size = 64K\n";
        let Cluster { meta, mut nodes, dir } = cluster(settings).await;
        let client = Client::new(&meta, PARTITIONS);
        fill_with(&client, "row", 6_000, 1_000).await;
        let now = now_s();
        set_envs(&meta, &nodes, &[("manual_compact.once.trigger_time", &now)]).await;
        for node in &nodes {
            until_finished(node).await;
        }
        nodes.push(TestNode::start(&meta.node, dir.path().join("d"), ""));
        meta.add_everywhere(&nodes[3].node).await;
        assert_eq!(metric(&nodes[3], "pegasus_replica_learned_total").await, f64::from(PARTITIONS));
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(states(&nodes[3]).await, [0, 0, ALL]);
        let used = field(&nodes[3], "last_used_ms").await;
        assert_eq!(used, vec!["0"; ALL as usize], "it has not been compacted, and need not be");
        // What is asked for after the copy is done.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let later = now_s();
        set_envs(&meta, &nodes, &[("manual_compact.once.trigger_time", &later)]).await;
        let begun = Instant::now();
        while field(&nodes[3], "last_finish").await.iter().any(|at| at == "-")
            || field(&nodes[3], "last_used_ms").await.iter().any(|used| used == "0")
        {
            assert!(begun.elapsed() < Duration::from_secs(30), "not compacted");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}
