//! Debian's Prometheus with the shipped configuration, against a cluster.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;

use pegasus_integration_tests::TestCluster;
use pegasus_onebox::Options;
use serde_json::Value;

use crate::package::http_get;
use crate::servers::{Server, repository, run, wait};

#[test]
fn the_alert_rules_do_what_they_say() {
    let dir = repository().join("deploy/prometheus");
    run(Command::new("promtool").args(["check", "config", "prometheus.yml"]).current_dir(&dir));
    let told = run(Command::new("promtool").args(["test", "rules", "alerts_test.yml"]).current_dir(&dir));
    assert!(told.contains("SUCCESS"), "{told}");
    // Each alert is tested, and explained where an operator looks.
    let rules = fs::read_to_string(dir.join("alerts.yml")).unwrap();
    let tests = fs::read_to_string(dir.join("alerts_test.yml")).unwrap();
    let explained = fs::read_to_string(repository().join("docs/troubleshooting.md")).unwrap();
    let names: Vec<_> = rules.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 15, "{names:?}");
    for name in names {
        let fires = format!("alertname: {name}\n        exp_alerts:");
        assert!(tests.contains(&fires), "{name} never fires in alerts_test.yml");
        assert!(explained.contains(&format!("### {name}\n")), "{name} is not in docs/troubleshooting.md");
    }
}

/// The value of a query with one result; the reason when there is none.
fn query(address: &str, query: &str) -> Result<f64, String> {
    let encoded: String = query.bytes().map(|b| format!("%{b:02x}")).collect();
    let answer = http_get(&format!("http://{address}/api/v1/query?query={encoded}"));
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let json: Value = serde_json::from_str(body).map_err(|error| format!("{error}: {answer}"))?;
    match json["data"]["result"].as_array().map(Vec::as_slice) {
        Some([one]) => one["value"][1].as_str().and_then(|n| n.parse().ok()).ok_or_else(|| one.to_string()),
        _ => Err(json.to_string()),
    }
}

/// The shipped files with the addresses of this cluster, looking often.
fn configure(dir: &Path, cluster: &TestCluster) {
    let shipped = repository().join("deploy/prometheus");
    let (mut collector, mut servers) = (String::new(), Vec::new());
    for member in cluster.members() {
        if member.name.starts_with("collector") {
            collector = member.address.to_string();
        } else {
            servers.push(member.address.to_string());
        }
    }
    let text = fs::read_to_string(shipped.join("prometheus.yml")).unwrap();
    let mut out = Vec::new();
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        match line.trim() {
            "- targets: [127.0.0.1:34101]" => out.push(format!("{indent}- targets: ['{collector}']")),
            item if item.starts_with("- 127.0.0.1:") => {
                out.extend(servers.drain(..).map(|server| format!("{indent}- '{server}'")));
            }
            _ => out.push(line.replace("_interval: 10s", "_interval: 1s")),
        }
    }
    fs::write(dir.join("prometheus.yml"), out.join("\n")).unwrap();
    fs::copy(shipped.join("alerts.yml"), dir.join("alerts.yml")).unwrap();
}

/// Every query of the Grafana dashboard, with its variables filled in, and the names of series in it.
fn dashboard_queries() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(repository().join("deploy/grafana/pegasus.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let (panels, restarts) = (dashboard["panels"].as_array().unwrap(), &dashboard["annotations"]["list"][0]);
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.chain([restarts]).map(|target| {
        let query = target["expr"].as_str().unwrap().replace("$cluster", "onebox");
        let query = query.replace("$table", ".*").replace("$node", ".*");
        assert!(!query.contains('$'), "{query}");
        let names = series_of(&query);
        (query, names)
    });
    queries.collect()
}

/// Names of series: what is left of a query without labels, ranges, groupings, functions and numbers.
fn series_of(query: &str) -> Vec<String> {
    let mut bare = String::new();
    let mut inside = false;
    for c in query.chars() {
        match c {
            '{' | '[' => inside = true,
            '}' | ']' => inside = false,
            _ if !inside => bare.push(c),
            _ => {}
        }
    }
    let mut names = Vec::new();
    let mut is_grouping = false;
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = bare.as_str();
    while let Some(begin) = rest.find(is_letter) {
        rest = &rest[begin..];
        let (word, after) = rest.split_at(rest.find(|c| !is_letter(c)).unwrap_or(rest.len()));
        rest = after;
        let after = after.trim_start();
        let is_grouped = is_grouping;
        is_grouping = word == "by" || (is_grouping && after.starts_with(','));
        let is_number = word.starts_with(|c: char| c.is_ascii_digit());
        if !is_grouped
            && !is_number
            && !after.starts_with('(')
            && !after.starts_with("by ")
            && !["or", "and", "by", "ALERTS"].contains(&word)
        {
            names.push(word.to_owned());
        }
    }
    names
}

#[test]
fn names_of_series_are_found() {
    for (query, want) in [
        ("sum by (le, op) (rate(a_bucket{x=\"b\"}[1m])) / 1e6 or vector(0)", &["a_bucket"][..]),
        ("count(ALERTS{a=\"b\"}) + sum(c) by (table)", &["c"]),
        ("min(a) - 1.5 > b{}", &["a", "b"]),
    ] {
        assert_eq!(series_of(query), want, "{query}");
    }
}

/// With a server that is down there is something to be shown everywhere.
fn the_dashboard_finds_its_series(cluster: &TestCluster, prometheus: &str) {
    let members = cluster.members();
    let told: String = ["collector", "meta1", "replica1"]
        .into_iter()
        .map(|name| {
            let member = members.iter().find(|member| member.name.starts_with(name)).unwrap();
            http_get(&format!("http://{}/metrics", member.address))
        })
        .collect();
    let queries = dashboard_queries();
    assert!(queries.len() >= 60, "{}", queries.len());
    for (query, names) in queries {
        for name in names {
            let family =
                ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
            let has = |name: &str| {
                told.contains(&format!("\n# TYPE {name} "))
                    || told.contains(&format!("\r\n\r\n# TYPE {name} "))
            };
            assert!(has(family) || has(&name), "{name} of {query} is told by nobody");
        }
        let encoded: String = query.bytes().map(|b| format!("%{b:02x}")).collect();
        let answer = http_get(&format!("http://{prometheus}/api/v1/query?query={encoded}"));
        assert!(answer.contains("\"status\":\"success\""), "{query}: {answer}");
    }
}

#[test]
fn prometheus_sees_the_cluster_and_a_server_that_dies() {
    let cluster = TestCluster::start(Options::default());
    let dir = tempfile::tempdir().unwrap();
    configure(dir.path(), &cluster);
    // Free a moment ago; nobody else binds ports of this address.
    let host = Ipv4Addr::new(127, rand::random_range(1..=254), rand::random_range(0..=255), 9);
    let address = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().to_string();
    let mut command = Command::new("prometheus");
    command.arg("--config.file=prometheus.yml").arg(format!("--web.listen-address={address}"));
    command.arg("--storage.tsdb.path=data").current_dir(dir.path());
    let _prometheus = Server::start(&mut command, &dir.path().join("out"));

    let is = |what: &str, wanted: f64| {
        wait(what, || match query(&address, what) {
            Ok(value) if value == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    is("sum(up)", 5.0);
    is("sum(healthy_partitions{role=\"collector\",cluster=\"onebox\"})", 8.0);
    is("alive_replica_servers{role=\"collector\"}", 3.0);
    is("cluster_available{window=\"overall\"}", 1_000_000.0);
    is("count(disk_capacity_avail_mb > 0)", 3.0);
    // The probes of the collector are requests, too.
    is("sum(app_stat_write_qps{table=\"_all_\"}) > bool 0", 1.0);
    is("sum(rate(table_request_seconds_count{table=\"temp\",op=\"put\"}[30s])) > bool 0", 1.0);
    is(
        "count(histogram_quantile(0.99, sum by (le) (rate(table_request_seconds_bucket{op=\"get\"}[30s]))) > 0)",
        1.0,
    );
    is("count(pegasus_replica_log_syncs_total{role=\"replica\"})", 3.0);

    cluster.kill("replica2").unwrap();
    is("sum(replica_server_answers)", 2.0);
    is("unalive_replica_servers{role=\"collector\"}", 1.0);
    is("sum(writable_ill_partitions{role=\"collector\"})", 8.0);
    is("count(ALERTS{alertname=\"PegasusServerDown\"})", 1.0);
    the_dashboard_finds_its_series(&cluster, &address);
    // Half the cluster away, the meta-server too: the collector says so, and of those that are there what they do.
    cluster.kill("meta1").unwrap();
    cluster.kill("replica1").unwrap();
    is("meta_leader_reachable{role=\"collector\"}", 0.0);
    is("sum(replica_server_answers)", 1.0);
    is("sum(up{job=\"pegasus-collector\"})", 1.0);

    cluster.start_all().unwrap();
    is("meta_leader_reachable{role=\"collector\"}", 1.0);
    is("sum(replica_server_answers)", 3.0);
    is("sum(healthy_partitions{role=\"collector\"})", 8.0);
}
