//! The orderly end of a node.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use pegasus_rpc::wire::client::CallError;
use pegasus_rpc::wire::frame::Refusal;
use pegasus_types::ErrorCode;
use support::*;

#[test]
fn primaries_are_handed_over_and_old_routes_answered_before_it_ends() {
    run(async || {
        let Cluster { meta, mut nodes, dir: _dir } = cluster("drain_linger_ms = 1500\n").await;
        let client = Client::new(&meta, PARTITIONS);
        let keys: Vec<String> = (0..PARTITIONS)
            .map(|i| (0..).map(|n| format!("k{n}")).find(|k| client.index_of(k) == i).unwrap())
            .collect();
        for key in &keys {
            client.put(key, "s", "before").await;
        }
        let leaving = nodes[0].node.clone();
        let served: Vec<i32> = (0..PARTITIONS).filter(|i| meta.config(*i).is_primary(&leaving)).collect();
        assert!(!served.is_empty());
        nodes[0].begin_drain();
        meta.until("the meta knows", || meta.is_draining(&leaving)).await;
        meta.hand_over_all(&leaving).await;
        let handed_over = Instant::now();
        // It is a member still, and tells clients that come with an old route.
        let route = client.connection(&leaving).await.unwrap();
        for index in served {
            assert!(meta.config(index).is_secondary(&leaving));
            let old = route.call(client.head(index), &put(&keys[index as usize], "s", "x"), WITHIN).await;
            assert!(
                matches!(old, Err(CallError::Refused(Refusal::Code(ErrorCode::InvalidState)))),
                "{old:?}"
            );
        }
        assert!(http_get(&nodes[0], "/readyz").await.contains("503"));
        for key in &keys {
            client.put(key, "s", "meanwhile").await;
        }
        assert!(!nodes[0].has_ended());
        meta.until("it has ended", || nodes[0].has_ended()).await;
        let lingered = handed_over.elapsed();
        assert!(lingered >= Duration::from_millis(1300), "only {lingered:?}");
        for key in &keys {
            client.put(key, "s", "after").await;
            assert_eq!(client.get(key, "s").await.as_deref(), Some("after"));
        }
    });
}

#[test]
fn it_waits_for_nobody_when_no_meta_server_is_left() {
    run(async || {
        let Cluster { meta, mut nodes, dir: _dir } = cluster("").await;
        meta.vanish();
        let begun = Instant::now();
        nodes[0].begin_drain();
        meta.until("it has ended", || nodes[0].has_ended()).await;
        // Some time of silence has to pass (META_SILENT of drain.rs).
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(8), "ended after {took:?}");
    });
}
