//! What ZooKeeper's own shell shows of a cluster is what docs/zookeeper.md says.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use pegasus_client::CreateTable;
use pegasus_integration_tests::{TestCluster, block_on};
use pegasus_onebox::{Coordination, Options};
use serde_json::Value;

const ZKCLI: &str = "/usr/share/zookeeper/bin/zkCli.sh";
const DOCUMENT: &str = include_str!("../../../docs/zookeeper.md");
const ROOT: &str = "/pegasus/onebox";
const LOCK: &str = "lock/dsn.meta.server.leader";
/// Until a dropped table is forgotten.
const HOLD_SECONDS: i64 = 604_800;

#[test]
fn zkcli_shows_what_the_document_says() {
    let options = Options {
        metas: 2,
        coordination: Coordination::Zookeeper,
        partitions: 4,
        collector: false,
        // Roles stay where they are.
        sets: vec!["meta_server.meta_function_level_on_start=steady".to_owned()],
        ..Options::default()
    };
    let cluster = TestCluster::start(options);
    block_on(async {
        let client = cluster.client().await;
        let envs = BTreeMap::from([("default_ttl".to_owned(), "86400".to_owned())]);
        let usertable = CreateTable { partitions: 4, envs, ..CreateTable::default() };
        client.create_table("usertable", &usertable).await.unwrap();
        client.create_table("old", &CreateTable { partitions: 2, ..CreateTable::default() }).await.unwrap();
        for name in ["usertable", "old"] {
            client.wait_healthy(name, Duration::from_secs(60)).await.unwrap();
        }
        client.drop_table("old", false, None).await.unwrap();
    });
    let host = cluster.zookeeper().unwrap().hosts();

    let listing = zkcli(&host, &[format!("ls -R {ROOT}")]);
    let mut paths: Vec<&str> = listing.lines().filter(|line| line.starts_with('/')).collect();
    // By level, in the order of their creation: not what a reader looks for.
    paths.sort_unstable();
    assert_eq!(block("text", 0), paths.join("\n"), "ls -R");

    let nodes = ["apps/1", "apps/2", "apps/2/0", "apps/3", "apps/3/0"];
    let commands: Vec<String> = nodes.iter().map(|node| format!("get {ROOT}/{node}")).collect();
    let shown = zkcli(&host, &commands);
    let json: Vec<String> = shown.lines().filter(|line| line.starts_with('{')).map(timeless).collect();
    assert_eq!(block("json", 0), json.join("\n"), "the content of {nodes:?}");

    // What is no JSON.
    let words = |node: &str| zkcli(&host, &[format!("get {ROOT}/{node}")]);
    assert!(words("leader_epoch").lines().any(|line| line == "1"));
    assert!(words("cluster_id").lines().any(|line| line.len() == 36 && line.split('-').count() == 5));
    for number in 0..2 {
        let candidate = words(&format!("{LOCK}/LOCKNODE000000000{number}"));
        let is_meta = |line: &str| {
            cluster.members().iter().any(|m| m.address.to_string() == line && m.name.starts_with("meta"))
        };
        assert!(candidate.lines().any(is_meta), "{candidate}");
    }
}

/// What it prints when these commands are typed.
fn zkcli(host: &str, commands: &[String]) -> String {
    let mut command = Command::new(ZKCLI);
    command.args(["-server", host]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut shell = command.spawn().unwrap_or_else(|error| panic!("{ZKCLI}: {error}"));
    let mut keys = shell.stdin.take().unwrap();
    keys.write_all(format!("{}\nquit\n", commands.join("\n")).as_bytes()).unwrap();
    drop(keys);
    String::from_utf8(shell.wait_with_output().unwrap().stdout).unwrap()
}

/// The document's `n`th block in this language.
fn block(language: &str, n: usize) -> &'static str {
    let fence = format!("```{language}\n");
    let start = DOCUMENT.match_indices(&fence).nth(n).map(|(at, _)| at + fence.len()).unwrap();
    let rest = &DOCUMENT[start..];
    rest[..rest.find("\n```").unwrap()].trim_end()
}

/// A line of content without what differs from cluster to cluster: nodes in the order of their appearance, times.
fn timeless(line: &str) -> String {
    let json: Value = serde_json::from_str(line).unwrap();
    let mut text = line.to_owned();
    if let Some(created) = json["create_second"].as_i64() {
        let (dropped, expires) =
            (json["drop_second"].as_i64().unwrap(), json["expire_second"].as_i64().unwrap());
        assert!(created > 1_700_000_000 && (dropped == 0 || dropped >= created), "{line}");
        assert_eq!(expires, if dropped == 0 { 0 } else { dropped + HOLD_SECONDS }, "{line}");
        for (key, value, shown) in [
            ("create", created, 1_795_656_941),
            ("drop", dropped, 1_795_656_942),
            ("expire", expires, 1_795_656_942 + HOLD_SECONDS),
        ] {
            if value > 0 {
                text =
                    text.replace(&format!("\"{key}_second\":{value}"), &format!("\"{key}_second\":{shown}"));
            }
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for part in line.split('"').filter(|part| part.starts_with("127.")) {
        if !seen.contains(&part) {
            seen.push(part);
        }
    }
    for (number, node) in (1..).zip(seen) {
        text = text.replace(&format!("\"{node}\""), &format!("\"127.0.0.1:3480{number}\""));
    }
    text
}
