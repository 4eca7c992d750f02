//! Copies for new nodes, damaged replicas, dropped tables.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;

use support::rows::until_rows;
use support::*;

async fn fill(client: &Client<'_>, rows: usize) {
    // Few at a time, so that they are many mutations.
    for chunk in 0..rows / 10 {
        let puts = (0..10).map(|i| {
            let hash_key = format!("k{}", chunk * 10 + i);
            async move { client.put(&hash_key, "s", &"v".repeat(200)).await }
        });
        futures::future::join_all(puts).await;
    }
}

fn names(dir: &Path) -> Vec<String> {
    let reps = std::fs::read_dir(dir.join("replica/reps")).unwrap();
    reps.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_new_node_is_taught_rows_and_log() {
    run(async || {
        let Cluster { meta, mut nodes, dir } = cluster("").await;
        let client = Client::new(&meta, PARTITIONS);
        // More than a learner with nothing is taught from the log.
        fill(&client, 2_000).await;
        let fourth = TestNode::start(&meta.node, dir.path().join("d"), "");
        let writing = async {
            for i in 0..300 {
                client.put(&format!("late{i}"), "s", "v").await;
            }
        };
        tokio::join!(writing, meta.add_everywhere(&fourth.node));
        // The commit point follows.
        until_rows(&meta, &client, &fourth, 2_300).await;
        let copied = metric(&fourth, "pegasus_replica_learned_total").await;
        assert_eq!(copied, f64::from(PARTITIONS), "by rows, once each");
        for index in 0..PARTITIONS {
            let data = dir.path().join(format!("d/replica/reps/2.{index}.pegasus/data"));
            assert_eq!(std::fs::read_dir(data).unwrap().count(), 1, "one life, nothing is kept of others");
        }
        // It stands on its own after a restart of everything.
        nodes.iter_mut().for_each(TestNode::kill);
        let mut fourth = fourth;
        fourth.restart();
        nodes.iter_mut().for_each(TestNode::restart);
        client.put("after", "s", "v").await;
        for i in [0, 1_234, 1_999] {
            assert_eq!(client.get(&format!("k{i}"), "s").await.map(|v| v.len()), Some(200));
        }
    });
}

#[test]
fn a_damaged_replica_is_put_aside_and_learned_again() {
    run(async || {
        let Cluster { meta, mut nodes, dir } = cluster("").await;
        let client = Client::new(&meta, PARTITIONS);
        fill(&client, 300).await;
        nodes[1].kill();
        let broken = dir.path().join("b/replica/reps/2.0.pegasus/.replica-meta");
        let mut bytes = std::fs::read(&broken).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::write(&broken, bytes).unwrap();
        nodes[1].restart();
        let back = nodes[1].node.clone();
        meta.until("the damaged replica has left", || !meta.config(0).is_member(&back)).await;
        until_rows(&meta, &client, &nodes[1], 300).await;
        let names = names(&dir.path().join("b"));
        assert!(names.iter().any(|n| n.starts_with("2.0.pegasus.") && n.ends_with(".err")), "{names:?}");
        assert!(names.iter().any(|n| n == "2.0.pegasus"), "{names:?}");
    });
}

#[test]
fn a_dropped_table_leaves_the_disks() {
    run(async || {
        let Cluster { meta, nodes, dir } = cluster("").await;
        let client = Client::new(&meta, PARTITIONS);
        fill(&client, 100).await;
        let all: Vec<_> = nodes.iter().map(|n| n.node.clone()).collect();
        let connection = client.connection(&all[0]).await.unwrap();
        meta.drop_table(&all).await;
        meta.until("all replicas are garbage", || {
            ["a", "b", "c"].iter().all(|node| {
                let names = names(&dir.path().join(node));
                names.len() == PARTITIONS as usize && names.iter().all(|n| n.ends_with(".gar"))
            })
        })
        .await;
        let refused = connection.call(client.head(0), &put("h", "s", "v"), WITHIN).await.unwrap_err();
        assert!(refused.to_string().contains("ERR_OBJECT_NOT_FOUND"), "{refused}");
    });
}

#[test]
fn a_disk_that_goes_away_takes_its_replicas_out_of_their_groups() {
    run(async || {
        let Cluster { meta, nodes, dir } = cluster("disk_stat_interval_seconds = 1\n").await;
        let client = Client::new(&meta, PARTITIONS);
        fill(&client, 50).await;
        std::fs::rename(dir.path().join("b"), dir.path().join("elsewhere")).unwrap();
        let gone = nodes[1].node.clone();
        meta.until("the groups go on without it", || {
            (0..PARTITIONS).all(|index| !meta.config(index).is_member(&gone))
        })
        .await;
        client.put("after", "s", "v").await;
        assert_eq!(client.get("k7", "s").await.map(|v| v.len()), Some(200));
        assert!(http_get(&nodes[1], "/livez").await.starts_with("HTTP/1.1 200"), "its process stays");
        let broken = http_get(&nodes[1], "/metrics").await;
        let line = broken.lines().find(|l| l.starts_with("pegasus_replica_disk_broken")).unwrap().to_owned();
        assert!(line.ends_with(" 1"), "{line}");
    });
}
