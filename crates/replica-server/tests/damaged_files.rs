//! Files that cannot be opened, are gone or are damaged: nothing is lost and nothing is wiped.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::*;

/// The file that names the manifest of the engine of partition 0.
fn current(node: &TestNode) -> PathBuf {
    let data = node.dir.join("replica/reps/2.0.pegasus/data");
    let mut lives = std::fs::read_dir(data).expect("the replica has an engine");
    let life = lives.next().expect("of one life").expect("readable");
    life.path().join("lsm/current")
}

/// A node that holds the only copy of one row, killed.
struct Alone {
    meta: FakeMeta,
    dir: tempfile::TempDir,
    node: TestNode,
}

async fn alone(value: &str) -> Alone {
    let meta = FakeMeta::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut node = TestNode::start(&meta.node, dir.path().join("a"), "mutation_2pc_min_replica_count = 1\n");
    meta.create_table(1, &[node.node.clone()], &[]).await;
    Client::new(&meta, 1).put("h", "s", value).await;
    node.kill();
    Alone { meta, dir, node }
}

/// Waits until `node` has dealt with all that it found, and knows that it cannot open its one replica.
async fn until_given_up(node: &TestNode) {
    for (path, wanted) in [("/readyz", "HTTP/1.1 200"), ("/replica/list", "\"status\":\"Error\"")] {
        let begun = Instant::now();
        while !http_get(node, path).await.contains(wanted) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", http_get(node, path).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[test]
fn a_replica_that_cannot_be_opened_once_loses_nothing() {
    run(async || {
        let Alone { meta, dir, mut node } = alone("only in the log").await;
        let client = Client::new(&meta, 1);

        // Something that comes back is in the way, and no space to save anything elsewhere.
        let (file, aside) = (current(&node), dir.path().join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        std::fs::create_dir(&file).unwrap();
        let export = node.dir.join("replica/reps/2.0.pegasus/log-records");
        std::fs::create_dir(&export).unwrap();
        node.restart();
        until_given_up(&node).await;
        node.kill();

        std::fs::remove_dir(&file).unwrap();
        std::fs::remove_dir(&export).unwrap();
        std::fs::rename(&aside, &file).unwrap();
        node.restart();
        assert_eq!(client.get("h", "s").await.as_deref(), Some("only in the log"));
    });
}

#[test]
fn a_log_that_is_gone_is_not_a_new_log() {
    run(async || {
        let Alone { meta, dir, mut node } = alone("only in the log").await;
        let client = Client::new(&meta, 1);

        let (log, aside) = (node.dir.join("replica/log"), dir.path().join("aside"));
        std::fs::rename(&log, &aside).unwrap();
        for emptied in [false, true] {
            if emptied {
                std::fs::create_dir_all(&log).unwrap();
            }
            let refused = node.try_restart().unwrap_err();
            assert!(refused.contains("the log that was here is gone"), "{refused}");
        }
        // The log of another disk.
        let other = TestNode::start(&meta.node, dir.path().join("b"), "").dir.join("replica/log");
        std::fs::remove_dir_all(&log).unwrap();
        std::fs::rename(&other, &log).unwrap();
        let refused = node.try_restart().unwrap_err();
        assert!(refused.contains("another log"), "{refused}");

        std::fs::remove_dir_all(&log).unwrap();
        std::fs::rename(&aside, &log).unwrap();
        // Of a young log the header does not matter.
        let first = log.join("log.000000000001");
        let mut bytes = std::fs::read(&first).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&first, bytes).unwrap();
        node.restart();
        assert_eq!(client.get("h", "s").await.as_deref(), Some("only in the log"));
    });
}

#[test]
fn a_learner_that_cannot_be_opened_is_not_wiped() {
    run(async || {
        let Alone { meta, dir, mut node } = alone("the last copy").await;
        let client = Client::new(&meta, 1);

        // It has stood down, as after a power cut, and its group has nobody else.
        let replica = node.dir.join("replica/reps/2.0.pegasus");
        let stand = |learning| {
            let sound = pegasus_storage::ReplicaMeta::load(&replica).unwrap().unwrap();
            pegasus_storage::ReplicaMeta { learning, ..sound }.save(&replica).unwrap();
        };
        stand(true);
        let (file, aside) = (current(&node), dir.path().join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        std::fs::create_dir(&file).unwrap();
        node.restart();
        until_given_up(&node).await;
        node.kill();

        std::fs::remove_dir(&file).expect("the engine's directory is where it was");
        std::fs::rename(&aside, &file).unwrap();
        stand(false);
        node.restart();
        assert_eq!(client.get("h", "s").await.as_deref(), Some("the last copy"));
    });
}

#[test]
fn a_bad_record_in_the_teachers_log_does_not_stop_the_lesson() {
    run(async || {
        let Cluster { meta, nodes, dir } = cluster("").await;
        let client = Client::new(&meta, PARTITIONS);
        for i in 0..20 {
            client.put(&format!("k{i}"), "s", &format!("value-of-{i:03}")).await;
        }
        // The same values in all three logs, so that it does not matter who teaches.
        for node in &nodes {
            let log = node.dir.join("replica/log/log.000000000001");
            let mut bytes = std::fs::read(&log).unwrap();
            let places: Vec<_> =
                (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"value-of-")).collect();
            assert!(places.len() >= 20);
            let file = std::fs::OpenOptions::new().write(true).open(&log).unwrap();
            for at in places {
                bytes[at] ^= 1;
                std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..=at], at as u64).unwrap();
            }
        }
        let fourth = TestNode::start(&meta.node, dir.path().join("d"), "");
        meta.add_everywhere(&fourth.node).await;
        let copied = metric(&fourth, "pegasus_replica_learned_total").await;
        assert!(copied >= 1.0, "rows instead of the log");
    });
}

#[test]
fn a_broken_learner_is_put_aside_and_learns_again() {
    run(async || {
        let Cluster { meta, mut nodes, dir: _dir } = cluster("").await;
        let client = Client::new(&meta, PARTITIONS);
        for i in 0..20 {
            client.put(&format!("k{i}"), "s", "v").await;
        }
        let away = nodes[1].node.clone();
        nodes[1].kill();
        meta.until("the groups go on", || (0..PARTITIONS).all(|i| !meta.config(i).is_member(&away))).await;
        let replica = nodes[1].dir.join("replica/reps/2.0.pegasus");
        let sound = pegasus_storage::ReplicaMeta::load(&replica).unwrap().unwrap();
        pegasus_storage::ReplicaMeta { learning: true, ..sound }.save(&replica).unwrap();
        let file = current(&nodes[1]);
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        nodes[1].restart();
        meta.add_everywhere(&away).await;
        let reps = std::fs::read_dir(nodes[1].dir.join("replica/reps")).unwrap();
        let names: Vec<_> = reps.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert!(names.iter().any(|n| n.starts_with("2.0.pegasus.") && n.ends_with(".err")), "{names:?}");
    });
}
