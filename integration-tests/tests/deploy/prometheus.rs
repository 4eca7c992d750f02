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
