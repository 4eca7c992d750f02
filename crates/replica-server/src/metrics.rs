//! What the server counts. Plain integers on the one thread that serves; rendered as Prometheus text on demand.

use std::collections::BTreeMap;

use pegasus_telemetry::text::Text;
use pegasus_types::AppId;
use pegasus_types::data::{ReadRequest, WriteRequest};

use crate::throttle::Kind;

/// A kind of client request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Get,
    Ttl,
    SortkeyCount,
    MultiGet,
    BatchGet,
    Scan,
    Put,
    Remove,
    MultiPut,
    MultiRemove,
    Incr,
    CheckAndSet,
    CheckAndMutate,
}

impl Op {
    pub const ALL: [Self; 13] = [
        Self::Get,
        Self::Ttl,
        Self::SortkeyCount,
        Self::MultiGet,
        Self::BatchGet,
        Self::Scan,
        Self::Put,
        Self::Remove,
        Self::MultiPut,
        Self::MultiRemove,
        Self::Incr,
        Self::CheckAndSet,
        Self::CheckAndMutate,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Ttl => "ttl",
            Self::SortkeyCount => "sortkey_count",
            Self::MultiGet => "multi_get",
            Self::BatchGet => "batch_get",
            Self::Scan => "scan",
            Self::Put => "put",
            Self::Remove => "remove",
            Self::MultiPut => "multi_put",
            Self::MultiRemove => "multi_remove",
            Self::Incr => "incr",
            Self::CheckAndSet => "check_and_set",
            Self::CheckAndMutate => "check_and_mutate",
        }
    }

    pub const fn is_read(self) -> bool {
        match self {
            Self::Get | Self::Ttl | Self::SortkeyCount | Self::MultiGet | Self::BatchGet | Self::Scan => true,
            Self::Put
            | Self::Remove
            | Self::MultiPut
            | Self::MultiRemove
            | Self::Incr
            | Self::CheckAndSet
            | Self::CheckAndMutate => false,
        }
    }

    pub const fn of_read(request: &ReadRequest) -> Self {
        match request {
            ReadRequest::Get { .. } => Self::Get,
            ReadRequest::Ttl { .. } => Self::Ttl,
            ReadRequest::SortkeyCount { .. } => Self::SortkeyCount,
            ReadRequest::MultiGet(_) => Self::MultiGet,
            ReadRequest::BatchGet(_) => Self::BatchGet,
            ReadRequest::GetScanner(_) | ReadRequest::Scan(_) | ReadRequest::ClearScanner { .. } => {
                Self::Scan
            }
        }
    }

    pub const fn of_write(request: &WriteRequest) -> Self {
        match request {
            WriteRequest::Put(_) => Self::Put,
            WriteRequest::Remove { .. } => Self::Remove,
            WriteRequest::MultiPut(_) => Self::MultiPut,
            WriteRequest::MultiRemove(_) => Self::MultiRemove,
            WriteRequest::Incr(_) => Self::Incr,
            WriteRequest::CheckAndSet(_) => Self::CheckAndSet,
            WriteRequest::CheckAndMutate(_) => Self::CheckAndMutate,
        }
    }
}

/// Upper bounds of the latency buckets, microseconds; one more bucket holds the rest.
pub const BOUNDS_US: [u64; 14] =
    [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000];

/// Time from arrival to answer.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    buckets: [u64; BOUNDS_US.len() + 1],
    sum_us: u64,
}

impl Latency {
    pub fn record(&mut self, us: u64) {
        let at = BOUNDS_US.iter().position(|&bound| us <= bound).unwrap_or(BOUNDS_US.len());
        self.buckets[at] += 1;
        self.sum_us += us;
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// By bucket.
    pub fn counts(&self) -> &[u64] {
        &self.buckets
    }
}

#[derive(Clone, Debug, Default)]
pub struct OpMetrics {
    pub answered: Latency,
    /// Answered with an error of the RPC header.
    pub failed: u64,
    /// Key and value bytes of requests (writes) or frames of responses (reads).
    pub bytes: u64,
    /// Answered ones that took longer than the table's threshold.
    pub slow: u64,
    pub read_units: u64,
    pub write_units: u64,
}

/// Requests that the table's settings did not let through at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeldUp {
    pub delayed: u64,
    pub rejected: u64,
    pub denied: u64,
}

#[derive(Clone, Debug, Default)]
pub struct TableMetrics {
    ops: [OpMetrics; Op::ALL.len()],
    held_up: [HeldUp; Kind::ALL.len()],
}

impl TableMetrics {
    pub fn op(&mut self, op: Op) -> &mut OpMetrics {
        &mut self.ops[op as usize]
    }

    pub fn held_up(&mut self, kind: Kind) -> &mut HeldUp {
        &mut self.held_up[kind as usize]
    }
}

/// Everything that is counted by table; the rest is asked of its owner when rendered.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    tables: BTreeMap<AppId, TableMetrics>,
    pub turns: u64,
    pub mutations: u64,
    pub log_batches: u64,
    pub log_records: u64,
    pub reads_waited: u64,
    pub cold_reads: u64,
    pub learned: u64,
    pub learned_by_log: u64,
    pub learned_bytes: u64,
    pub learn_resumed: u64,
    pub learn_failed: u64,
    pub taught_bytes: u64,
    pub teach_abandoned: u64,
    pub quarantined: u64,
    pub beacons_failed: u64,
}

impl Metrics {
    pub fn table(&mut self, app: AppId) -> &mut TableMetrics {
        self.tables.entry(app).or_default()
    }

    /// Reads and writes refused with an error, of all tables.
    pub fn failed(&self) -> (u64, u64) {
        let (mut reads, mut writes) = (0, 0);
        for op in Op::ALL {
            let failed: u64 = self.tables.values().map(|table| table.ops[op as usize].failed).sum();
            *(if op.is_read() { &mut reads } else { &mut writes }) += failed;
        }
        (reads, writes)
    }

    /// Of each operation of each table that was asked for anything.
    pub fn latencies(&self) -> impl Iterator<Item = (AppId, Op, &Latency)> {
        self.tables.iter().flat_map(|(&app, table)| {
            Op::ALL.into_iter().zip(&table.ops).map(move |(op, metrics)| (app, op, &metrics.answered))
        })
    }

    pub fn forget(&mut self, app: AppId) {
        self.tables.remove(&app);
    }

    /// `name_of` gives a table's name; ids stand in for tables without one.
    pub fn render(&self, out: &mut Text, name_of: impl Fn(AppId) -> Option<String>) {
        out.family(
            "pegasus_replica_request_seconds",
            "histogram",
            "Client requests answered, by table and operation.",
        );
        for (app, table) in &self.tables {
            let name = name_of(*app).unwrap_or_else(|| app.to_string());
            for op in Op::ALL {
                let metrics = &table.ops[op as usize];
                if metrics.answered.count() > 0 {
                    histogram(
                        out,
                        "pegasus_replica_request_seconds",
                        &[("table", &name), ("op", op.name())],
                        &metrics.answered,
                    );
                }
            }
        }
        let per_op = |out: &mut Text, family: &str, help: &str, value: fn(&OpMetrics) -> u64| {
            out.family(family, "counter", help);
            for (app, table) in &self.tables {
                let name = name_of(*app).unwrap_or_else(|| app.to_string());
                for op in Op::ALL {
                    let n = value(&table.ops[op as usize]);
                    if n > 0 {
                        out.sample(family, &[("table", &name), ("op", op.name())], n);
                    }
                }
            }
        };
        per_op(out, "pegasus_replica_requests_failed_total", "Client requests refused with an error.", |m| {
            m.failed
        });
        per_op(out, "pegasus_replica_request_bytes_total", "Bytes of client requests.", |m| m.bytes);
        per_op(
            out,
            "pegasus_replica_slow_requests_total",
            "Requests answered later than the slow-request threshold; each is in the log.",
            |m| m.slow,
        );
        let units = "Capacity units of answered requests: 4 KiB of keys and values, begun ones count whole.";
        per_op(out, "pegasus_replica_read_capacity_units_total", units, |m| m.read_units);
        per_op(out, "pegasus_replica_write_capacity_units_total", units, |m| m.write_units);
        self.render_held_up(out, &name_of);
        for (name, help, value) in [
            ("turns", "Turns of the serving loop.", self.turns),
            ("mutations", "Mutations proposed as primary.", self.mutations),
            ("log_batches", "Batches handed to the mutation logs.", self.log_batches),
            ("log_records", "Mutations handed to the mutation logs.", self.log_records),
            ("reads_waited", "Reads that waited for the lease.", self.reads_waited),
            (
                "cold_reads",
                "Short reads of partitions whose rows come from the disk: done on threads.",
                self.cold_reads,
            ),
            ("learned", "Partitions copied from a primary by rows.", self.learned),
            ("learned_by_log", "Partitions for which the primary's log was enough.", self.learned_by_log),
            ("learned_bytes", "Bytes of rows and log copied from primaries.", self.learned_bytes),
            ("learn_resumed", "Copies that went on after a broken connection.", self.learn_resumed),
            ("taught_bytes", "Bytes of rows and log given to learners.", self.taught_bytes),
            ("teach_abandoned", "Copies given up for the sake of the disk.", self.teach_abandoned),
            ("learn_failed", "Copies that failed.", self.learn_failed),
            ("quarantined", "Replicas taken out because they were damaged.", self.quarantined),
            ("beacons_failed", "Beacons that no meta-server accepted.", self.beacons_failed),
        ] {
            out.counter(&format!("pegasus_replica_{name}_total"), help, value);
        }
    }
}

impl Metrics {
    fn render_held_up(&self, out: &mut Text, name_of: &impl Fn(AppId) -> Option<String>) {
        let family = "pegasus_replica_requests_throttled_total";
        let help = "Requests that the table's settings delayed, rejected or denied.";
        out.family(family, "counter", help);
        for (app, table) in &self.tables {
            let name = name_of(*app).unwrap_or_else(|| app.to_string());
            for kind in Kind::ALL {
                let HeldUp { delayed, rejected, denied } = table.held_up[kind as usize];
                for (how, n) in [("delayed", delayed), ("rejected", rejected), ("denied", denied)] {
                    if n > 0 {
                        out.sample(family, &[("table", &name), ("kind", kind.name()), ("how", how)], n);
                    }
                }
            }
        }
    }
}

/// Samples of one histogram of times; its family is written before.
fn histogram(out: &mut Text, name: &str, labels: &[(&str, &str)], latency: &Latency) {
    let bucket = format!("{name}_bucket");
    let mut total = 0;
    for (i, n) in latency.buckets.iter().enumerate() {
        total += n;
        let le = BOUNDS_US.get(i).map_or_else(|| "+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
        let mut with_le = labels.to_vec();
        with_le.push(("le", &le));
        out.sample(&bucket, &with_le, total);
    }
    out.sample(&format!("{name}_sum"), labels, latency.sum_us as f64 / 1e6);
    out.sample(&format!("{name}_count"), labels, total);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ops_index_their_own_slot() {
        for (i, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, i);
        }
    }

    #[test]
    fn text_is_cumulative_and_escaped() {
        let mut metrics = Metrics::default();
        let put = metrics.table(2).op(Op::Put);
        put.answered.record(50);
        put.answered.record(51);
        put.answered.record(u64::from(u32::MAX));
        let mut text = Text::default();
        metrics.render(&mut text, |_| Some("a\"b".to_owned()));
        let text = text.finish();
        for line in [
            r#"pegasus_replica_request_seconds_bucket{table="a\"b",op="put",le="0.00005"} 1"#,
            r#"pegasus_replica_request_seconds_bucket{table="a\"b",op="put",le="0.0001"} 2"#,
            r#"pegasus_replica_request_seconds_bucket{table="a\"b",op="put",le="+Inf"} 3"#,
            r#"pegasus_replica_request_seconds_count{table="a\"b",op="put"} 3"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
