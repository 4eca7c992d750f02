//! A table with one replica: every operation through the wire, and what is refused.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use pegasus_rpc::wire::client::CallError;
use pegasus_rpc::wire::meta::RemoteCommand;
use pegasus_rpc::wire::request::{Request, Response};
use pegasus_types::data::*;
use support::*;

const SETTINGS: &str = "mutation_2pc_min_replica_count = 1\n";

fn refusal(result: Result<Response, CallError>) -> String {
    match result {
        Err(CallError::Refused(refusal)) => refusal.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn operations_and_refusals() {
    run(async || {
        let meta = FakeMeta::start().await;
        let dir = tempfile::tempdir().unwrap();
        let node = TestNode::start(&meta.node, dir.path().join("a"), SETTINGS);
        meta.create_table(2, std::slice::from_ref(&node.node), &[]).await;
        let client = Client::new(&meta, 2);

        assert_eq!(client.get("h", "s").await, None);
        let decree = client.put("h", "s", "v1").await;
        assert!(decree >= 1);
        assert_eq!(client.get("h", "s").await.as_deref(), Some("v1"));

        // Bookkeeping of answers.
        let got = client.call("h", put("h", "s", "v2")).await;
        let Response::Write(WriteResponse::Update(answer)) = got else { panic!() };
        assert_eq!((answer.app_id, answer.partition_index), (APP, client.index_of("h")));
        assert_eq!((answer.server.as_str(), answer.decree > decree), (node.node.as_str(), true));

        // A hundred increments of one key at once: each sees the one before it.
        let connection = client.connection(&node.node).await.unwrap();
        let head = client.head(client.index_of("n"));
        let incr = Request::Write(WriteRequest::Incr(IncrRequest {
            key: key("n", ""),
            increment: 1,
            expire_ts_seconds: 0,
        }));
        let calls = (0..100).map(|_| connection.call(head, &incr, WITHIN));
        let mut values: Vec<i64> = futures::future::join_all(calls)
            .await
            .into_iter()
            .map(|answer| match answer.unwrap() {
                Response::Write(WriteResponse::Incr(r)) if r.error == 0 => r.new_value,
                other => panic!("{other:?}"),
            })
            .collect();
        values.sort_unstable();
        assert_eq!(values, (1..=100).collect::<Vec<_>>());

        // A check that fails, alone and behind a pending write that makes it fail.
        let cas = |operand: &'static str, value: &'static str| {
            Request::Write(WriteRequest::CheckAndSet(CheckAndSetRequest {
                hash_key: "c".into(),
                check_sort_key: "s".into(),
                check_type: CheckType::BytesEqual as i32,
                check_operand: operand.into(),
                set_value: value.into(),
                return_check_value: true,
                ..Default::default()
            }))
        };
        client.put("c", "s", "1").await;
        let head = client.head(client.index_of("c"));
        let (first, second) = (cas("1", "2"), cas("1", "3"));
        let (first, second) =
            tokio::join!(connection.call(head, &first, WITHIN), connection.call(head, &second, WITHIN));
        let check = |answer: Result<Response, CallError>| match answer.unwrap() {
            Response::Write(WriteResponse::Check(r)) => (r.error, r.check_value, r.decree),
            other => panic!("{other:?}"),
        };
        let (first, second) = (check(first), check(second));
        assert_eq!((first.0, &first.1[..]), (0, &b"1"[..]));
        assert_eq!((second.0, &second.1[..], second.2), (13, &b"2"[..], -1), "decided on the pending value");
        assert_eq!(client.get("c", "s").await.as_deref(), Some("2"));

        // Ranges, counts, scans.
        for i in 0..300 {
            client.put("r", &format!("{i:03}"), "x").await;
        }
        let count = client.call("r", Request::Read(ReadRequest::SortkeyCount { hash_key: "r".into() })).await;
        assert!(matches!(count, Response::Read(ReadResponseBody::SortkeyCount(r)) if r.count == 300));
        let all = Request::Read(ReadRequest::MultiGet(MultiGetRequest {
            hash_key: "r".into(),
            ..Default::default()
        }));
        let Response::Read(ReadResponseBody::MultiGet(all)) = client.call("r", all).await else { panic!() };
        assert_eq!((all.error, all.kvs.len()), (0, 300), "more than the loop looks at by itself");
        let scanner = Request::Read(ReadRequest::GetScanner(GetScannerRequest {
            start_key: key("r", ""),
            stop_key: key("r", "200"),
            start_inclusive: true,
            batch_size: 150,
            ..Default::default()
        }));
        let Response::Read(ReadResponseBody::Scan(page)) = client.call("r", scanner).await else { panic!() };
        assert_eq!((page.kvs.len(), page.context_id >= 0), (150, true));
        let more = Request::Read(ReadRequest::Scan(ScanRequest { context_id: page.context_id }));
        let Response::Read(ReadResponseBody::Scan(rest)) = client.call("r", more).await else { panic!() };
        assert_eq!((rest.kvs.len(), rest.context_id), (50, SCAN_COMPLETED));

        // Refusals.
        let mut elsewhere = client.head(0);
        elsewhere.app_id = APP + 1;
        let answer = connection.call(elsewhere, &put("h", "s", "v"), WITHIN).await;
        assert!(refusal(answer).contains("ERR_OBJECT_NOT_FOUND"));
        let mut nowhere = client.head(0);
        nowhere.app_id = 0;
        let answer = connection.call(nowhere, &put("h", "s", "v"), WITHIN).await;
        assert!(refusal(answer).contains("ERR_HANDLER_NOT_FOUND"));
        let large = "x".repeat(1 << 20);
        let answer = connection.call(client.head(client.index_of("h")), &put("h", "s", &large), WITHIN).await;
        assert!(refusal(answer).contains("ERR_INVALID_DATA"));
        let bad = Request::Write(WriteRequest::Remove { key: Bytes::from_static(b"\0") });
        let Response::Write(WriteResponse::Update(bad)) = client.call("h", bad).await else { panic!() };
        assert_eq!((bad.error, bad.decree), (4, -1));

        // Remote command and HTTP on the same port.
        let text = command(&client, &node, "replica.list").await;
        assert!(text.contains("2.0 Primary") && text.contains("2.1 Primary"), "{text}");
        let http = http_get(&node, "/metrics").await;
        assert!(http.contains("op=\"incr\"") && http.contains("table=\"temp\""), "{http}");
        assert!(http_get(&node, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(http_get(&node, "/replica/list").await.contains("\"gpid\":\"2.0\""));
        for (path, status, body) in [
            ("/replica/data_version?app_id=2", 200, r#"{"0":{"data_version":"1"},"1":{"data_version":"1"}}"#),
            ("/replica/data_version?app_id=3", 404, "app_id=3 not found"),
            ("/replica/data_version?app_id=x", 400, "invalid app_id=x"),
            ("/replica/data_version?app_id=-1", 400, "invalid app_id=-1"),
            ("/replica/data_version", 400, "app_id should not be empty"),
            ("/updateConfig?max_send_rate_megabytes_per_disk=5", 200, r#"{"update_status":"ERR_OK"}"#),
            (
                "/updateConfig?max_copy_rate_megabytes_per_disk=x",
                200,
                r#"{"update_status":"ERR_INVALID_PARAMETERS: \"x\": expected a number of MiB/s"}"#,
            ),
            ("/updateConfig?max_copy_rate_megabytes_per_disk=6", 200, r#"{"update_status":"ERR_OK"}"#),
        ] {
            let answer = http_get(&node, path).await;
            let (head, told) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")) && told == body, "{path}: {answer}");
        }
        for (name, rate) in [("send", 5), ("copy", 6)] {
            let name = format!("nfs.max_{name}_rate_megabytes_per_disk");
            assert_eq!(command(&client, &node, &name).await, format!("{name} = {rate}"));
        }
    });
}

#[test]
fn what_was_acknowledged_survives() {
    run(async || {
        let meta = FakeMeta::start().await;
        let dir = tempfile::tempdir().unwrap();
        let mut node = TestNode::start(&meta.node, dir.path().join("a"), SETTINGS);
        meta.create_table(4, std::slice::from_ref(&node.node), &[]).await;
        let client = Client::new(&meta, 4);
        for round in 0..3 {
            for i in 0..40 {
                client.put(&format!("k{i}"), "s", &format!("{round}-{i}")).await;
            }
            match round {
                0 => node.restart(),
                1 => {
                    node.stop();
                    node.restart();
                }
                _ => {}
            }
            for i in 0..40 {
                let got = client.get(&format!("k{i}"), "s").await;
                assert_eq!(got, Some(format!("{round}-{i}")));
            }
        }
    });
}

#[test]
fn expiry_follows_the_table() {
    run(async || {
        let meta = FakeMeta::start().await;
        let dir = tempfile::tempdir().unwrap();
        let node = TestNode::start(&meta.node, dir.path().join("a"), SETTINGS);
        meta.create_table(1, std::slice::from_ref(&node.node), &[("default_ttl", "1")]).await;
        let client = Client::new(&meta, 1);
        client.put("h", "s", "v").await;
        assert_eq!(client.get("h", "s").await.as_deref(), Some("v"));
        tokio::time::sleep(Duration::from_millis(2100)).await;
        assert_eq!(client.get("h", "s").await, None);
    });
}

/// The meta answers a report, changes the table's settings, and the answer arrives last.
#[test]
fn a_late_answer_does_not_bring_older_settings_back() {
    run(async || {
        let meta = FakeMeta::start().await;
        let dir = tempfile::tempdir().unwrap();
        let settings = format!("{SETTINGS}config_sync_interval_ms = 100\n");
        let node = TestNode::start(&meta.node, dir.path().join("a"), &settings);
        meta.create_table(1, std::slice::from_ref(&node.node), &[("default_ttl", "1000")]).await;
        let client = Client::new(&meta, 1);

        let late = meta.answer_late();
        let before = meta.reports_taken();
        meta.until("a report waits for its answer", || meta.reports_taken() > before).await;
        meta.set_envs(&node.node, &[("default_ttl", "5000")]).await;
        let before = meta.reports_taken();
        late.notify_one();
        meta.until("the late answer was taken", || meta.reports_taken() > before).await;
        client.put("h", "s", "v").await;
        let ttl = client.call("h", Request::Read(ReadRequest::Ttl { key: key("h", "s") })).await;
        let Response::Read(ReadResponseBody::Ttl(answer)) = ttl else { panic!("{ttl:?}") };
        assert!((4_000..=5_000).contains(&answer.ttl_seconds), "{answer:?}");
    });
}

async fn command(client: &Client<'_>, node: &TestNode, line: &str) -> String {
    let mut words = line.split(' ').map(str::to_owned);
    let command = RemoteCommand { cmd: words.next().unwrap(), arguments: words.collect() };
    let connection = client.connection(&node.node).await.unwrap();
    match connection.call(Default::default(), &Request::RemoteCommand(command), WITHIN).await.unwrap() {
        Response::Text(text) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_that_is_not_there_at_the_start_is_told_of() {
    run(async || {
        let meta = FakeMeta::start().await;
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let settings = format!("{SETTINGS}data_dirs = a:{},b:{}\n", a.display(), b.display());
        let mut node = TestNode::start(&meta.node, dir.path().join("node"), &settings);
        node.stop();
        std::fs::remove_dir_all(&b).unwrap();
        std::fs::create_dir(&b).unwrap();
        node.restart();

        let client = Client::new(&meta, 1);
        let told = command(&client, &node, "disk.list").await;
        let lines: Vec<_> = told.lines().collect();
        assert!(lines[0].starts_with("a ") && lines[0].ends_with(" normal"), "{told}");
        assert!(lines[1].starts_with(&format!("b {}", b.display())), "{told}");
        assert!(
            lines[1].contains(" 0 of 0 MB") && lines[1].contains("broken: its marker is missing"),
            "{told}"
        );
        let metrics = http_get(&node, "/metrics").await;
        for (series, disk, value) in [
            ("pegasus_replica_disk_broken", "a", "0"),
            ("pegasus_replica_disk_broken", "b", "1"),
            ("pegasus_replica_disk_capacity_bytes", "b", "0"),
        ] {
            let is_it = |line: &&str| {
                line.starts_with(&format!("{series}{{")) && line.contains(&format!("disk=\"{disk}\""))
            };
            let line = metrics.lines().find(is_it).unwrap_or_else(|| panic!("{series} {disk}\n{metrics}"));
            assert_eq!(line.rsplit(' ').next(), Some(value), "{line}");
        }
        let entities = http_get(&node, "/metrics?types=disk").await;
        assert!(entities.contains("\"disk@a\"") && entities.contains("\"disk@b\""), "{entities}");
    });
}
