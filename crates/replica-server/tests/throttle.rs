//! Settings of a table that hold its clients up, obeyed by the servers that have it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use pegasus_rpc::wire::client::CallError;
use pegasus_rpc::wire::request::{Request, Response};
use pegasus_types::data::ReadRequest;
use support::*;

const KEY: &str = "k";

fn get() -> Request {
    Request::Read(ReadRequest::Get { key: key(KEY, "s") })
}

/// What became of 20 requests of one partition that are sent together: how many were executed, what the others were
/// told, and how long all took.
async fn burst(client: &Client<'_>, request: &Request) -> (usize, Vec<String>, Duration) {
    let begun = Instant::now();
    let all = (0..20).map(|_| client.once(KEY, request, WITHIN));
    let results = futures::future::join_all(all).await;
    let refused: Vec<_> = results.iter().filter_map(|r| r.as_ref().err()).map(ToString::to_string).collect();
    (results.len() - refused.len(), refused, begun.elapsed())
}

/// Repeats bursts until one ends as it should: settings come with the next report, and a second may end in between.
async fn until_burst(
    client: &Client<'_>,
    what: &str,
    request: Request,
    is_good: impl Fn(usize, &[String], Duration) -> bool,
) {
    let begun = Instant::now();
    loop {
        let (executed, refused, took) = burst(client, &request).await;
        if is_good(executed, &refused, took) {
            return;
        }
        let seen = format!("{executed} executed in {took:?}, refused: {refused:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {seen}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn set_envs(meta: &FakeMeta, nodes: &[TestNode], envs: &[(&str, &str)]) {
    for node in nodes {
        meta.set_envs(&node.node, envs).await;
    }
}

#[test]
fn tables_limit_and_deny_their_clients() {
    run(async || {
        let Cluster { meta, nodes, dir: _dir } = cluster("").await;
        let client = Client::new(&meta, PARTITIONS);
        client.put(KEY, "s", "v").await;
        let free = |executed, _: &[String], _| executed == 20;
        let write = || put(KEY, "s", "v");
        let busy = |refused: &[String]| refused.iter().all(|why| why.contains("ERR_BUSY"));

        // 20 / 4 + 1 = 6 in a second.
        set_envs(&meta, &nodes, &[("replica.write_throttling", "20*reject*0")]).await;
        let few = |executed, refused: &[String], _| executed == 6 && busy(refused);
        until_burst(&client, "more writes are refused", write(), few).await;
        until_burst(&client, "reads are not", get(), free).await;

        set_envs(&meta, &nodes, &[("replica.read_throttling", "20*delay*700")]).await;
        let late = |executed, _: &[String], took| executed == 20 && took >= Duration::from_millis(700);
        until_burst(&client, "more reads come late", get(), late).await;
        until_burst(&client, "writes are free again", write(), free).await;

        set_envs(&meta, &nodes, &[("replica.read_throttling_by_size", "1")]).await;
        let one = |executed, refused: &[String], _| executed == 0 && busy(refused);
        until_burst(&client, "bytes are used up", get(), one).await;

        set_envs(&meta, &nodes, &[("replica.deny_client_request", "reconfig*write")]).await;
        let sent_away = |executed, refused: &[String], _| {
            executed == 0 && refused.iter().all(|why| why.contains("ERR_INVALID_STATE"))
        };
        until_burst(&client, "writes are sent away", write(), sent_away).await;
        until_burst(&client, "reads are not denied", get(), free).await;

        set_envs(&meta, &nodes, &[("replica.deny_client_request", "timeout*all")]).await;
        let begun = Instant::now();
        loop {
            match client.once(KEY, &get(), Duration::from_millis(500)).await {
                Err(CallError::Timeout) => break,
                other => assert!(begun.elapsed() < Duration::from_secs(20), "{other:?}"),
            }
        }
        set_envs(&meta, &nodes, &[]).await;
        until_burst(&client, "all is as before", write(), free).await;

        let mut held = std::collections::BTreeSet::new();
        for node in &nodes {
            let text = http_get(node, "/metrics").await;
            for line in text.lines().filter(|line| line.contains("requests_throttled_total{")) {
                for (kind, how) in
                    [("write", "rejected"), ("read", "delayed"), ("read", "rejected"), ("write", "denied")]
                {
                    if line.contains(kind) && line.contains(how) {
                        held.insert((kind, how));
                    }
                }
            }
        }
        assert_eq!(held.len(), 4, "{held:?}");
        assert!(matches!(client.once(KEY, &get(), WITHIN).await, Ok(Response::Read(_))));
    });
}
