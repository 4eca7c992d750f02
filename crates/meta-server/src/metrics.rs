//! Series of the meta-server, named as in metrics.md 3.2 and 3.3.

use pegasus_telemetry::prometheus::{
    self, Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::published::Published;

#[derive(Debug)]
pub struct Metrics {
    alive: IntGauge,
    unalive: IntGauge,
    pub disconnections: IntCounter,
    pub config_changes: IntCounter,
    pub write_failures: IntCounter,
    /// Of one multi to the store.
    pub write_seconds: Histogram,
    frozen: IntGauge,
    draining: IntGauge,
    wanted_moves: IntGauge,
    pub stuck: IntCounter,
    /// Per table: dead, unreadable, unwritable, writable_ill, healthy.
    partitions: [IntGaugeVec; 5],
}

const CLASSES: [(&str, &str); 5] = [
    ("dead_partitions", "Partitions without a living member."),
    ("unreadable_partitions", "Partitions whose primary is not alive."),
    ("unwritable_partitions", "Partitions with fewer members than a write needs."),
    ("writable_ill_partitions", "Partitions that take writes with fewer members than wanted."),
    ("healthy_partitions", "Partitions with all their members."),
];

impl Metrics {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let class = |(name, help): (&str, &str)| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &["table_id", "table"])?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let buckets = prometheus::exponential_buckets(0.000_5, 2.0, 14)?;
        let write_seconds = Histogram::with_opts(
            HistogramOpts::new("metadata_write_seconds", "Time of one write to the metadata store.")
                .buckets(buckets),
        )?;
        registry.register(Box::new(write_seconds.clone()))?;
        let [a, b, c, d, e] = CLASSES.map(class);
        Ok(Self {
            alive: gauge("alive_replica_servers", "Replica-servers whose beacons arrive.")?,
            unalive: gauge("unalive_replica_servers", "Known replica-servers whose beacons do not arrive.")?,
            disconnections: counter(
                "replica_server_disconnections",
                "Times that a replica-server was declared dead.",
            )?,
            config_changes: counter(
                "partition_configuration_changes",
                "Configurations of partitions that were stored.",
            )?,
            write_failures: counter("metadata_write_failures", "Writes to the metadata store that failed.")?,
            write_seconds,
            frozen: gauge(
                "frozen_partitions",
                "Partitions of which nodes know a higher ballot than stored.",
            )?,
            draining: gauge("draining_replica_servers", "Replica-servers that are about to end.")?,
            wanted_moves: gauge(
                "greedy_recent_balance_operations",
                "Moves that would spread primaries and copies evenly, as of the last plan.",
            )?,
            stuck: counter(
                "choose_primary_failed_operations",
                "Times that a partition was found that only an operator or a returning node can help.",
            )?,
            partitions: [a?, b?, c?, d?, e?],
        })
    }

    pub fn show(&self, published: &Published) {
        let alive = published.nodes.values().filter(|state| state.alive).count();
        self.alive.set(number(alive));
        self.unalive.set(number(published.nodes.len() - alive));
        self.frozen.set(number(published.frozen.len()));
        self.draining.set(number(published.nodes.values().filter(|s| s.alive && s.draining).count()));
        self.wanted_moves.set(number(published.wanted_moves.total()));
        // Dropped tables lose their series.
        self.partitions.iter().for_each(IntGaugeVec::reset);
        for table in published.view.tables().filter(|table| !table.is_dropped()) {
            let count = published.health_count(table);
            let counts = [count.dead, count.unreadable, count.unwritable, count.writable_ill, count.healthy];
            let id = table.info.app_id.to_string();
            for (gauges, count) in self.partitions.iter().zip(counts) {
                gauges.with_label_values(&[id.as_str(), table.info.name.as_str()]).set(number(count));
            }
        }
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
