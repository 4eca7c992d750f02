//! What the collector exports. Names follow Pegasus's (metrics.md 3.3 and 4.1), dots written as underscores.

use std::time::Duration;

use pegasus_telemetry::prometheus::core::Collector;
use pegasus_telemetry::prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result,
};
use pegasus_types::cluster::ClusterOverview;

use crate::availability::{Availability, WINDOWS};
use crate::health::{self, HEALTHS};
use crate::probe::{Failure, Step};

#[derive(Clone, Debug)]
pub struct Metrics {
    available: IntGaugeVec,
    detect_times: IntGaugeVec,
    fail_times: IntGaugeVec,
    probes: IntCounterVec,
    probe_seconds: HistogramVec,
    probe_up: IntGaugeVec,
    leader_reachable: IntGauge,
    overview_age: Gauge,
    alive_nodes: IntGauge,
    unalive_nodes: IntGauge,
    node_alive: IntGaugeVec,
    node_replicas: IntGaugeVec,
    node_skew: GaugeVec,
    table_partitions: IntGaugeVec,
    table_healthy: IntGaugeVec,
    partitions: [IntGaugeVec; 5],
    ill_partition: IntGaugeVec,
}

/// From a loopback read to the longest probe.
const SECONDS: [f64; 14] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

impl Metrics {
    pub fn new(registry: &Registry) -> Result<Self> {
        let r = registry;
        let table = ["table", "table_id"];
        Ok(Self {
            available: gauges(
                r,
                "cluster_available",
                "Probes that succeeded, in millionths: in the last whole minute, hour, day (UTC), or since the start.",
                &["window"],
            )?,
            detect_times: gauges(r, "cluster_available_detect_times", "Probes in that window.", &["window"])?,
            fail_times: gauges(
                r,
                "cluster_available_fail_times",
                "Failed probes in that window.",
                &["window"],
            )?,
            probes: add(
                r,
                IntCounterVec::new(
                    Opts::new(
                        "probes_total",
                        "Writes and reads of probes by result: ok, error, wrong_value.",
                    ),
                    &["table", "op", "result"],
                )?,
            )?,
            probe_seconds: add(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "probe_duration_seconds",
                        "Time of successful writes and reads of probes.",
                    )
                    .buckets(SECONDS.to_vec()),
                    &["table", "op"],
                )?,
            )?,
            probe_up: gauges(
                r,
                "probe_partition_up",
                "1 when the last probe of the partition succeeded.",
                &["table", "partition"],
            )?,
            leader_reachable: gauge(
                r,
                "meta_leader_reachable",
                "1 when a meta leader answered the last question.",
            )?,
            overview_age: add(
                r,
                Gauge::new(
                    "cluster_overview_age_seconds",
                    "Age of what is known of tables and nodes; -1 = nothing yet.",
                )?,
            )?,
            alive_nodes: gauge(r, "alive_replica_servers", "Replica-servers whose beacons arrive.")?,
            unalive_nodes: gauge(r, "unalive_replica_servers", "Known replica-servers that are silent.")?,
            node_alive: gauges(r, "replica_server_alive", "1 when the node's beacons arrive.", &["node"])?,
            node_replicas: gauges(
                r,
                "replica_server_replicas",
                "Replicas of the node by role.",
                &["node", "role_of_replica"],
            )?,
            node_skew: add(
                r,
                GaugeVec::new(
                    Opts::new(
                        "replica_server_clock_skew_seconds",
                        "The node's wall clock minus the meta leader's.",
                    ),
                    &["node"],
                )?,
            )?,
            table_partitions: gauges(r, "table_partitions", "Partitions of the table.", &table)?,
            table_healthy: gauges(
                r,
                "table_fully_healthy",
                "1 when every partition of the table is healthy.",
                &table,
            )?,
            partitions: [
                gauges(r, "dead_partitions", "Partitions without a living replica.", &table)?,
                gauges(r, "unreadable_partitions", "Partitions without a primary.", &table)?,
                gauges(
                    r,
                    "unwritable_partitions",
                    "Partitions with fewer replicas than a write needs.",
                    &table,
                )?,
                gauges(
                    r,
                    "writable_ill_partitions",
                    "Partitions that work, with fewer replicas than wanted.",
                    &table,
                )?,
                gauges(r, "healthy_partitions", "Partitions with all their replicas.", &table)?,
            ],
            ill_partition: gauges(
                r,
                "ill_partition",
                "1 for each partition that is not healthy, at most 64 per table.",
                &["table", "table_id", "partition", "health", "primary"],
            )?,
        })
    }

    /// One step of a probe.
    pub fn step(&self, table: &str, step: Step, result: &std::result::Result<Duration, Failure>) {
        let text = match result {
            Ok(took) => {
                self.probe_seconds.with_label_values(&[table, step.name()]).observe(took.as_secs_f64());
                "ok"
            }
            Err(Failure::WrongValue) => "wrong_value",
            Err(Failure::Error(_)) => "error",
        };
        self.probes.with_label_values(&[table, step.name(), text]).inc();
    }

    pub fn partition(&self, table: &str, partition: usize, up: bool) {
        self.probe_up.with_label_values(&[table, &partition.to_string()]).set(i64::from(up));
    }

    /// The probed table has another number of partitions than before.
    pub fn forget_partitions(&self) {
        self.probe_up.reset();
    }

    pub fn availability(&self, availability: &Availability) {
        let windows =
            WINDOWS.into_iter().zip(availability.windows()).chain([("overall", availability.overall())]);
        for (window, counts) in windows {
            let set = |family: &IntGaugeVec, value: u64| {
                family.with_label_values(&[window]).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(&self.available, counts.availability());
            set(&self.detect_times, counts.detects);
            set(&self.fail_times, counts.fails);
        }
    }

    pub fn leader(&self, reachable: bool) {
        self.leader_reachable.set(i64::from(reachable));
    }

    /// None = nothing is known yet.
    pub fn age(&self, age: Option<Duration>) {
        self.overview_age.set(age.map_or(-1.0, |age| age.as_secs_f64()));
    }

    /// Tables and nodes that are gone lose their series.
    pub fn overview(&self, overview: &ClusterOverview) {
        self.forget_overview();
        let (alive, unalive) = health::node_counts(overview);
        self.alive_nodes.set(as_i64(alive));
        self.unalive_nodes.set(as_i64(unalive));
        for node in &overview.nodes {
            let name = node.node.as_str();
            self.node_alive.with_label_values(&[name]).set(i64::from(node.alive));
            self.node_replicas.with_label_values(&[name, "primary"]).set(i64::from(node.primaries));
            self.node_replicas.with_label_values(&[name, "secondary"]).set(i64::from(node.secondaries));
            self.node_skew.with_label_values(&[name]).set(node.clock_skew_us as f64 / 1e6);
        }
        for table in health::tables(overview) {
            let id = table.app_id.to_string();
            let labels = [table.name.as_str(), id.as_str()];
            let whole = table.ill.is_empty() && table.partitions > 0;
            self.table_partitions.with_label_values(&labels).set(as_i64(table.partitions));
            self.table_healthy.with_label_values(&labels).set(i64::from(whole));
            for ((family, count), _) in self.partitions.iter().zip(table.counts).zip(HEALTHS) {
                family.with_label_values(&labels).set(as_i64(count));
            }
            for ill in &table.ill {
                let index = ill.gpid.index.to_string();
                let primary = ill.primary.as_ref().map_or("", |node| node.as_str());
                let labels = [&table.name, id.as_str(), &index, ill.health.name(), primary];
                self.ill_partition.with_label_values(&labels).set(1);
            }
        }
    }

    /// What was known is too old to be shown.
    pub fn forget_overview(&self) {
        self.alive_nodes.set(0);
        self.unalive_nodes.set(0);
        self.node_skew.reset();
        let families = [
            &self.node_alive,
            &self.node_replicas,
            &self.table_partitions,
            &self.table_healthy,
            &self.ill_partition,
        ];
        for family in families.into_iter().chain(&self.partitions) {
            family.reset();
        }
    }
}

fn as_i64(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge> {
    add(registry, IntGauge::new(name, help)?)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
    add(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> Vec<String> {
        let text = pegasus_telemetry::registry::encode(registry).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn what_is_exported() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let mut availability = Availability::default();
        for ok in [true, true, true, false] {
            availability.record(60, Some(0), ok);
        }
        metrics.availability(&availability);
        metrics.overview(&crate::health::tests::overview());
        metrics.step("temp", Step::Set, &Ok(Duration::from_millis(3)));
        metrics.step("temp", Step::Get, &Err(Failure::WrongValue));
        metrics.partition("temp", 7, false);
        metrics.leader(true);
        metrics.age(None);
        let lines = text(&registry);
        for want in [
            "cluster_available{window=\"minute\"} 750000",
            "cluster_available{window=\"overall\"} 750000",
            "cluster_available_detect_times{window=\"day\"} 4",
            "cluster_available_fail_times{window=\"hour\"} 1",
            "alive_replica_servers 2",
            "unalive_replica_servers 1",
            "replica_server_alive{node=\"c:1\"} 0",
            "replica_server_replicas{node=\"a:1\",role_of_replica=\"secondary\"} 4",
            "replica_server_clock_skew_seconds{node=\"a:1\"} 0.0015",
            "table_fully_healthy{table=\"t1\",table_id=\"1\"} 0",
            "dead_partitions{table=\"t1\",table_id=\"1\"} 1",
            "healthy_partitions{table=\"t1\",table_id=\"1\"} 2",
            "unreadable_partitions{table=\"t3\",table_id=\"3\"} 100",
            "ill_partition{health=\"dead\",partition=\"1\",primary=\"\",table=\"t1\",table_id=\"1\"} 1",
            "probe_partition_up{partition=\"7\",table=\"temp\"} 0",
            "probes_total{op=\"get\",result=\"wrong_value\",table=\"temp\"} 1",
            "probe_duration_seconds_count{op=\"set\",table=\"temp\"} 1",
            "meta_leader_reachable 1",
            "cluster_overview_age_seconds -1",
        ] {
            assert!(lines.iter().any(|line| line == want), "{want}\n{lines:#?}");
        }
        metrics.forget_overview();
        let lines = text(&registry);
        assert!(!lines.iter().any(|line| line.contains("t1") || line.contains("a:1")), "{lines:#?}");
    }
}
