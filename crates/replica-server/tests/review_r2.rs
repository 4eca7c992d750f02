//! What a review of data loss has found.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use support::*;

/// The file that names the manifest of the engine of partition 0.
fn current(node: &TestNode) -> PathBuf {
    let data = node.dir.join("replica/reps/2.0.pegasus/data");
    let mut lives = std::fs::read_dir(data).expect("the replica has an engine");
    let life = lives.next().expect("of one life").expect("readable");
    life.path().join("lsm/current")
}

#[test]
fn a_replica_that_cannot_be_opened_once_loses_nothing() {
    run(async || {
        let meta = FakeMeta::start().await;
        let dir = tempfile::tempdir().unwrap();
        let mut node =
            TestNode::start(&meta.node, dir.path().join("a"), "mutation_2pc_min_replica_count = 1\n");
        meta.create_table(1, &[node.node.clone()], &[]).await;
        let client = Client::new(&meta, 1);
        client.put("h", "s", "only in the log").await;
        node.kill();

        // Something that comes back is in the way, and no space to save anything elsewhere.
        let (file, aside) = (current(&node), dir.path().join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        std::fs::create_dir(&file).unwrap();
        let export = node.dir.join("replica/reps/2.0.pegasus/log-records");
        std::fs::create_dir(&export).unwrap();
        node.restart();
        // Until it has dealt with all that it found.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(http_get(&node, "/readyz").await.starts_with("HTTP/1.1 200"));
        node.kill();

        std::fs::remove_dir(&file).unwrap();
        std::fs::remove_dir(&export).unwrap();
        std::fs::rename(&aside, &file).unwrap();
        node.restart();
        assert_eq!(client.get("h", "s").await.as_deref(), Some("only in the log"));
    });
}
