//! All members of all groups lost power in page_cache mode: nobody decides by himself, and an operator's decision brings
//! the groups back.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;
use std::time::Duration;

use pegasus_replica_server::lost_power::Which;
use pegasus_storage::ReplicaMeta;
use pegasus_types::Gpid;
use support::rows::{fill_with, until_rows};
use support::*;

const ROWS: usize = 200;

/// What a replica notes when it finds that its machine lost power before its log was synced.
fn note_lost_power(dir: &Path) {
    let replicas = std::fs::read_dir(dir.join("replica/reps")).unwrap();
    for replica in replicas.map(|entry| entry.unwrap().path()) {
        let meta = ReplicaMeta::load(&replica).unwrap().unwrap();
        ReplicaMeta { learning: true, ..meta }.save(&replica).unwrap();
    }
}

#[test]
fn an_operator_has_one_copy_count_as_whole() {
    run(async || {
        let Cluster { meta, mut nodes, dir: _dir } = cluster("durability = page_cache\n").await;
        let client = Client::new(&meta, PARTITIONS);
        fill_with(&client, "row", ROWS, 100).await;
        for node in &mut nodes {
            node.stop();
            note_lost_power(&node.dir);
        }
        nodes.iter_mut().for_each(TestNode::restart);
        let row = "row7";
        for _ in 0..10 {
            let asked = client.once(row, &put(row, "s", "v"), Duration::from_millis(300)).await;
            assert!(asked.is_err(), "nobody decides by himself: {asked:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }

        let running = nodes[1].accept_lost_power(&Which::All).unwrap_err();
        assert!(running.contains("has to be stopped"), "{running}");
        for node in &mut nodes {
            node.stop();
        }
        let unknown = nodes[1].accept_lost_power(&Which::parse("2.99").unwrap()).unwrap_err();
        assert!(unknown.contains("2.99"), "{unknown}");
        // Where the meta-server thinks that the role is.
        for node in &nodes {
            let led = (0..PARTITIONS).filter(|index| meta.config(*index).is_primary(&node.node));
            let led = Which::These(led.map(|index| Gpid::new(APP, index)).collect());
            let accepted = node.accept_lost_power(&led).unwrap();
            assert_eq!(Which::These(accepted.iter().map(|a| a.gpid).collect()), led);
        }
        nodes.iter_mut().for_each(TestNode::restart);
        for i in [0, 99, ROWS - 1] {
            let value = client.get(&format!("row{i}"), "s").await;
            assert_eq!(value.map(|value| value.len()), Some(100), "row {i}");
        }
        for node in &nodes {
            until_rows(&meta, &client, node, ROWS).await;
        }
        client.put("after", "s", "v").await;
    });
}
