//! What the replica-servers said, as Prometheus text: requests by table, sizes, disks, learning.
//!
//! Names follow Pegasus's (metrics.md 3.4 and 4.2) with dots as underscores, in plain units: requests and bytes per
//! second, bytes, rows. `_all_` stands for all tables together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pegasus_rpc::peer::NodeStats;
use pegasus_telemetry::text::Text;
use pegasus_types::cluster::ClusterOverview;
use pegasus_types::meta::ReplicaStatus;
use pegasus_types::{AppId, Node};

use crate::health;
use crate::hotspot::{Hotspots, Load};
use crate::scrape::Answer;
use crate::totals::{Requests, Totals};

/// Operations that the reference counts as reads; all others write.
const READS: [&str; 6] = ["get", "ttl", "sortkey_count", "multi_get", "batch_get", "scan"];
const ALL: &str = "_all_";

const STATUSES: [(ReplicaStatus, &str); 5] = [
    (ReplicaStatus::Primary, "primary"),
    (ReplicaStatus::Secondary, "secondary"),
    (ReplicaStatus::Learner, "learner"),
    (ReplicaStatus::Inactive, "inactive"),
    (ReplicaStatus::Error, "error"),
];

/// Rates of one table between two looks, per second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    by_op: BTreeMap<String, f64>,
    reads: f64,
    writes: f64,
    read_bytes: f64,
    write_bytes: f64,
    failed: f64,
    read_units: f64,
    write_units: f64,
}

impl Rates {
    fn add(&mut self, op: &str, now: &Requests, before: &Requests, seconds: f64) {
        let per_second = |now: f64, before: f64| ((now - before) / seconds).max(0.0);
        let count = per_second(now.count, before.count);
        let bytes = per_second(now.bytes, before.bytes);
        *self.by_op.entry(op.to_owned()).or_default() += count;
        self.failed += per_second(now.failed, before.failed);
        self.read_units += per_second(now.read_units, before.read_units);
        self.write_units += per_second(now.write_units, before.write_units);
        if READS.contains(&op) {
            self.reads += count;
            self.read_bytes += bytes;
        } else {
            self.writes += count;
            self.write_bytes += bytes;
        }
    }
}

type Counted = BTreeMap<(String, String), Requests>;

/// What is kept from one look to the next.
#[derive(Debug)]
pub struct Report {
    totals: Totals,
    before: Counted,
    rates: BTreeMap<String, Rates>,
    hotspots: Hotspots,
}

impl Report {
    pub fn new(hotspots: Hotspots) -> Self {
        Self { totals: Totals::default(), before: Counted::new(), rates: BTreeMap::new(), hotspots }
    }

    /// Takes a look at all nodes; `since` = time since the last one.
    pub fn take(
        &mut self,
        answers: &BTreeMap<Node, Result<Answer, String>>,
        overview: &ClusterOverview,
        since: Duration,
    ) {
        for (node, answer) in answers {
            if let Ok(answer) = answer {
                self.totals.take(node, &answer.metrics);
            }
        }
        let tables = health::tables(overview);
        let names: BTreeSet<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        self.totals.keep(&overview.nodes.iter().map(|node| &node.node).collect(), &names);
        let now: Counted = self
            .totals
            .requests()
            .into_iter()
            .map(|((t, op), r)| ((t.to_owned(), op.to_owned()), r))
            .collect();
        let seconds = since.as_secs_f64();
        self.rates = names.iter().chain([&ALL]).map(|name| ((*name).to_owned(), Rates::default())).collect();
        for ((table, op), requests) in &now {
            let Some(before) = self.before.get(&(table.clone(), op.clone())).filter(|_| seconds > 0.0) else {
                continue;
            };
            for name in [table.as_str(), ALL] {
                if let Some(rates) = self.rates.get_mut(name) {
                    rates.add(op, requests, before, seconds);
                }
            }
        }
        self.before = now;
        for (gpid, kind, qps) in self.hotspots.take(loads(answers), since) {
            tracing::warn!(%gpid, kind, qps, "the partition has become hot");
        }
    }

    /// The text. `common`: labels of every sample.
    pub fn render(
        &self,
        answers: &BTreeMap<Node, Result<Answer, String>>,
        overview: &ClusterOverview,
        common: Vec<(&'static str, String)>,
    ) -> String {
        let mut out = Text::new(common);
        self.requests(&mut out);
        self.rates(&mut out);
        let stats: Vec<&NodeStats> = answers.values().flatten().map(|answer| &answer.stats).collect();
        sizes(&mut out, overview, &stats);
        self.hotspots.render(&mut out, |app| {
            let mut tables = overview.tables.iter().filter(|table| health::exists(table));
            tables.find(|table| table.info.app_id == app).map(|table| table.info.name.clone())
        });
        nodes(&mut out, answers);
        work(&mut out, overview);
        out.finish()
    }

    fn requests(&self, out: &mut Text) {
        const SECONDS: &str = "table_request_seconds";
        out.family(
            SECONDS,
            "histogram",
            "Client requests answered by all replica-servers, since the collector's start.",
        );
        for ((table, op), requests) in &self.before {
            let labels = [("table", table.as_str()), ("op", op.as_str())];
            for (le, count) in &requests.within {
                out.sample("table_request_seconds_bucket", &[labels[0], labels[1], ("le", le)], count);
            }
            out.sample("table_request_seconds_sum", &labels, requests.seconds);
            out.sample("table_request_seconds_count", &labels, requests.count);
        }
        type Value = fn(&Requests) -> f64;
        let families: [(&str, &str, Value); 4] = [
            ("table_requests_failed_total", "Client requests that were refused with an error.", |r| r.failed),
            ("table_request_bytes_total", "Bytes of writes asked for and of reads answered.", |r| r.bytes),
            (
                "table_read_capacity_units_total",
                "Capacity units read: 4 KiB of keys and values, begun ones count whole.",
                |r| r.read_units,
            ),
            (
                "table_write_capacity_units_total",
                "Capacity units written: 4 KiB of keys and values, begun ones count whole.",
                |r| r.write_units,
            ),
        ];
        for (name, help, value) in families {
            out.family(name, "counter", help);
            for ((table, op), requests) in &self.before {
                out.sample(name, &[("table", table), ("op", op)], value(requests));
            }
        }
    }

    fn rates(&self, out: &mut Text) {
        let ops: BTreeSet<&String> = self.rates.values().flat_map(|rates| rates.by_op.keys()).collect();
        for op in ops {
            let name = format!("app_stat_{op}_qps");
            out.family(&name, "gauge", "Requests per second.");
            for (table, rates) in &self.rates {
                out.sample(&name, &[("table", table)], rates.by_op.get(op).copied().unwrap_or(0.0));
            }
        }
        type Value = fn(&Rates) -> f64;
        let families: [(&str, &str, Value); 7] = [
            ("app_stat_read_qps", "Reads per second.", |r| r.reads),
            ("app_stat_write_qps", "Writes per second.", |r| r.writes),
            ("app_stat_read_bytes", "Bytes read per second.", |r| r.read_bytes),
            ("app_stat_write_bytes", "Bytes written per second.", |r| r.write_bytes),
            ("app_stat_failed_qps", "Requests refused with an error per second.", |r| r.failed),
            ("app_stat_recent_read_cu", "Capacity units read per second.", |r| r.read_units),
            ("app_stat_recent_write_cu", "Capacity units written per second.", |r| r.write_units),
        ];
        for (name, help, value) in families {
            out.family(name, "gauge", help);
            for (table, rates) in &self.rates {
                out.sample(name, &[("table", table)], value(rates));
            }
        }
    }
}

/// What each primary has counted.
fn loads(answers: &BTreeMap<Node, Result<Answer, String>>) -> Vec<Load> {
    let nodes = answers.values().flatten().map(|answer| &answer.stats);
    nodes
        .flat_map(|node| {
            let primaries = node.replicas.iter().filter(|r| r.report.status == ReplicaStatus::Primary);
            primaries.map(|replica| Load {
                gpid: replica.report.gpid,
                node: node.node.clone(),
                incarnation: node.incarnation,
                counted: [replica.reads, replica.writes],
            })
        })
        .collect()
}

/// Of the primaries, as the reference sums them: one copy of each partition.
fn sizes(out: &mut Text, overview: &ClusterOverview, stats: &[&NodeStats]) {
    let (mut bytes, mut rows): (BTreeMap<AppId, u64>, BTreeMap<AppId, u64>) = Default::default();
    for replica in stats.iter().flat_map(|node| &node.replicas) {
        if replica.report.status == ReplicaStatus::Primary {
            *bytes.entry(replica.report.gpid.app_id).or_default() += replica.disk_bytes;
            *rows.entry(replica.report.gpid.app_id).or_default() += replica.estimated_rows;
        }
    }
    for (name, help, values) in [
        ("app_stat_storage_bytes", "Bytes on disk of one copy of the table.", &bytes),
        ("app_stat_estimate_num_keys", "Rows of the table, estimated.", &rows),
    ] {
        out.family(name, "gauge", help);
        for table in health::tables(overview) {
            let value = values.get(&table.app_id).copied().unwrap_or(0);
            out.sample(name, &[("table", &table.name), ("table_id", &table.app_id.to_string())], value);
        }
    }
}

fn nodes(out: &mut Text, answers: &BTreeMap<Node, Result<Answer, String>>) {
    out.family("replica_server_answers", "gauge", "1 when the node told its numbers when it was asked last.");
    for (node, answer) in answers {
        out.sample("replica_server_answers", &[("node", node.as_str())], u8::from(answer.is_ok()));
    }
    let stats: Vec<_> = answers.values().flatten().map(|answer| &answer.stats).collect();
    type OfNode = fn(&NodeStats) -> u64;
    let families: [(&str, &str, OfNode); 2] = [
        ("replica_server_memory_bytes", "Resident memory of the process.", |s| s.memory_bytes),
        ("replica_server_uptime_seconds", "Time since its start.", |s| s.uptime_ms / 1000),
    ];
    for (name, help, value) in families {
        out.family(name, "gauge", help);
        for stats in &stats {
            out.sample(name, &[("node", stats.node.as_str())], value(stats));
        }
    }
    const STATUS: &str = "replica_server_replicas_by_status";
    out.family(
        STATUS,
        "gauge",
        "Replicas of the node as itself sees them; learner = a copy that is being made.",
    );
    for stats in &stats {
        for (status, name) in STATUSES {
            let count = stats.replicas.iter().filter(|replica| replica.report.status == status).count();
            out.sample(STATUS, &[("node", stats.node.as_str()), ("status", name)], count);
        }
    }
    type OfDisk = fn(&pegasus_rpc::peer::DiskStats) -> u64;
    let families: [(&str, &str, OfDisk); 4] = [
        ("disk_capacity_total_mb", "Size of the disk in MiB.", |d| d.capacity_bytes >> 20),
        ("disk_capacity_avail_mb", "Free space of the disk in MiB.", |d| d.available_bytes >> 20),
        ("disk_healthy", "0 when the disk is broken.", |d| u64::from(d.healthy)),
        ("disk_log_bytes", "Size of the disk's mutation log.", |d| d.log_bytes),
    ];
    for (name, help, value) in families {
        out.family(name, "gauge", help);
        for stats in &stats {
            for disk in &stats.disks {
                out.sample(name, &[("node", stats.node.as_str()), ("disk", &disk.tag)], value(disk));
            }
        }
    }
}

/// Repair and balance under way.
fn work(out: &mut Text, overview: &ClusterOverview) {
    const NAME: &str = "partitions_in_work";
    out.family(NAME, "gauge", "Partitions with which the meta leader does something, or for which it waits.");
    for table in overview.tables.iter().filter(|table| health::exists(table)) {
        let busy = table.partitions.iter().filter(|partition| !partition.note.is_empty()).count();
        out.sample(NAME, &[("table", &table.info.name)], busy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pegasus_rpc::peer::{DiskStats, ReplicaStats};
    use pegasus_types::meta::ReplicaReport;
    use pegasus_types::{Ballot, Decree, Gpid};

    fn answer(node: &str, puts: u64) -> (Node, Result<Answer, String>) {
        let replica = |index, status| ReplicaStats {
            report: ReplicaReport {
                gpid: Gpid::new(1, index),
                ballot: Ballot(1),
                status,
                committed: Decree(1),
                prepared: Decree(1),
                durable: Decree(1),
                disk_tag: "ssd1".into(),
            },
            reads: 0,
            writes: 0,
            read_bytes: 0,
            write_bytes: 0,
            failed: 0,
            disk_bytes: 1000,
            estimated_rows: 10,
        };
        let disk = DiskStats {
            tag: "ssd1".into(),
            healthy: true,
            capacity_bytes: 10 << 20,
            available_bytes: 4 << 20,
            log_bytes: 77,
        };
        let stats = NodeStats {
            node: Node::new(node),
            incarnation: 1,
            uptime_ms: 2500,
            version: String::new(),
            memory_bytes: 5,
            disks: vec![disk],
            replicas: vec![replica(0, ReplicaStatus::Primary), replica(1, ReplicaStatus::Learner)],
        };
        let metrics = format!(
            "pegasus_replica_request_seconds_bucket{{table=\"t1\",op=\"put\",le=\"+Inf\"}} {puts}\n\
             pegasus_replica_request_seconds_count{{table=\"t1\",op=\"put\"}} {puts}\n\
             pegasus_replica_request_bytes_total{{table=\"t1\",op=\"put\"}} {}\n\
             pegasus_replica_write_capacity_units_total{{table=\"t1\",op=\"put\"}} {}\n",
            puts * 10,
            puts * 2
        );
        (Node::new(node), Ok(Answer { stats, metrics }))
    }

    #[test]
    fn half_a_cluster_is_told() {
        let overview = crate::health::tests::overview();
        let mut report = Report::new(Hotspots::new(3, 100));
        for (round, puts) in [100, 130].into_iter().enumerate() {
            let silent = (Node::new("c:1"), Err("no answer in time".to_owned()));
            let answers = BTreeMap::from([answer("a:1", puts), answer("b:1", puts), silent]);
            report.take(&answers, &overview, Duration::from_secs(2));
            let text = report.render(&answers, &overview, vec![("cluster", "c".into())]);
            if round == 0 {
                assert!(text.contains("app_stat_write_qps{cluster=\"c\",table=\"t1\"} 0\n"), "{text}");
                continue;
            }
            for line in [
                "table_request_seconds_count{cluster=\"c\",table=\"t1\",op=\"put\"} 60",
                "table_request_seconds_bucket{cluster=\"c\",table=\"t1\",op=\"put\",le=\"+Inf\"} 60",
                "table_request_bytes_total{cluster=\"c\",table=\"t1\",op=\"put\"} 600",
                "table_write_capacity_units_total{cluster=\"c\",table=\"t1\",op=\"put\"} 120",
                "app_stat_recent_write_cu{cluster=\"c\",table=\"t1\"} 60",
                "app_stat_hotspots_total{cluster=\"c\",table=\"t1\",kind=\"read\"} 0",
                "app_stat_put_qps{cluster=\"c\",table=\"t1\"} 30",
                "app_stat_write_qps{cluster=\"c\",table=\"_all_\"} 30",
                "app_stat_write_bytes{cluster=\"c\",table=\"t1\"} 300",
                "app_stat_read_qps{cluster=\"c\",table=\"t1\"} 0",
                "app_stat_write_qps{cluster=\"c\",table=\"t3\"} 0",
                "app_stat_storage_bytes{cluster=\"c\",table=\"t1\",table_id=\"1\"} 2000",
                "app_stat_estimate_num_keys{cluster=\"c\",table=\"t3\",table_id=\"3\"} 0",
                "replica_server_answers{cluster=\"c\",node=\"a:1\"} 1",
                "replica_server_answers{cluster=\"c\",node=\"c:1\"} 0",
                "replica_server_uptime_seconds{cluster=\"c\",node=\"b:1\"} 2",
                "replica_server_replicas_by_status{cluster=\"c\",node=\"a:1\",status=\"learner\"} 1",
                "disk_capacity_avail_mb{cluster=\"c\",node=\"a:1\",disk=\"ssd1\"} 4",
                "disk_log_bytes{cluster=\"c\",node=\"b:1\",disk=\"ssd1\"} 77",
                "partitions_in_work{cluster=\"c\",table=\"t1\"} 0",
            ] {
                assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
            }
            assert!(!text.contains("t2"), "dropped: {text}");
        }
    }
}
