//! Requests of all replica-servers added up by table and operation, as a value.
//!
//! A node's counters begin anew when it starts, and it may be away for a while. The sums never fall: what is added is
//! what each node has counted since it was seen last.

use std::collections::{BTreeMap, BTreeSet};

use pegasus_telemetry::text;
use pegasus_types::Node;

/// Families of the replica-servers that are added up, by table and operation.
const BUCKET: &str = "pegasus_replica_request_seconds_bucket";
const SUM: &str = "pegasus_replica_request_seconds_sum";
const COUNT: &str = "pegasus_replica_request_seconds_count";
const FAILED: &str = "pegasus_replica_requests_failed_total";
const BYTES: &str = "pegasus_replica_request_bytes_total";
const READ_UNITS: &str = "pegasus_replica_read_capacity_units_total";
const WRITE_UNITS: &str = "pegasus_replica_write_capacity_units_total";

/// Series kept per node, and of the sums; 1,000 tables with all operations have about 200,000. Those beyond are left out.
const SERIES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Count,
    Seconds,
    Failed,
    Bytes,
    ReadUnits,
    WriteUnits,
    /// Requests that took at most the series' bound.
    Within,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    table: String,
    op: String,
    kind: Kind,
    /// Upper bound of a bucket, as written.
    le: String,
}

#[derive(Debug, Default)]
pub struct Totals {
    seen: BTreeMap<Node, BTreeMap<Series, f64>>,
    sums: BTreeMap<Series, f64>,
}

/// One operation of one table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    pub count: f64,
    pub seconds: f64,
    pub failed: f64,
    pub bytes: f64,
    /// Capacity units.
    pub read_units: f64,
    pub write_units: f64,
    /// Bound in seconds, as written, and requests within it; bounds ascend.
    pub within: Vec<(String, f64)>,
}

impl Totals {
    /// Takes what a node says of itself.
    pub fn take(&mut self, node: &Node, metrics: &str) {
        let mut now = BTreeMap::new();
        for sample in text::samples(metrics) {
            let kind = match sample.name {
                BUCKET => Kind::Within,
                SUM => Kind::Seconds,
                COUNT => Kind::Count,
                FAILED => Kind::Failed,
                BYTES => Kind::Bytes,
                READ_UNITS => Kind::ReadUnits,
                WRITE_UNITS => Kind::WriteUnits,
                _ => continue,
            };
            let (Some(table), Some(op)) = (sample.label("table"), sample.label("op")) else { continue };
            if now.len() >= SERIES_MAX || !sample.value.is_finite() || sample.value < 0.0 {
                continue;
            }
            let le = sample.label("le").unwrap_or_default().to_owned();
            now.insert(Series { table: table.to_owned(), op: op.to_owned(), kind, le }, sample.value);
        }
        // What a node had counted before we saw it first was counted at another time.
        if let Some(before) = self.seen.get(node) {
            // Its process is a new one when any counter has fallen; all of them began at nothing then.
            let restarted =
                before.iter().any(|(series, value)| now.get(series).is_none_or(|now| now < value));
            for (series, value) in &now {
                let old = if restarted { 0.0 } else { before.get(series).copied().unwrap_or(0.0) };
                if let Some(sum) = self.sums.get_mut(series) {
                    *sum += value - old;
                } else if self.sums.len() < SERIES_MAX {
                    self.sums.insert(series.clone(), value - old);
                }
            }
        } else {
            for series in now.keys().take(SERIES_MAX.saturating_sub(self.sums.len())) {
                self.sums.entry(series.clone()).or_insert(0.0);
            }
        }
        self.seen.insert(node.clone(), now);
    }

    /// Nodes and tables that are no more are forgotten.
    pub fn keep(&mut self, nodes: &BTreeSet<&Node>, tables: &BTreeSet<&str>) {
        self.seen.retain(|node, _| nodes.contains(node));
        self.sums.retain(|series, _| tables.contains(series.table.as_str()));
    }

    /// By table and operation.
    pub fn requests(&self) -> BTreeMap<(&str, &str), Requests> {
        let mut all: BTreeMap<(&str, &str), Requests> = BTreeMap::new();
        for (series, value) in &self.sums {
            let requests = all.entry((&series.table, &series.op)).or_default();
            match series.kind {
                Kind::Count => requests.count = *value,
                Kind::Seconds => requests.seconds = *value,
                Kind::Failed => requests.failed = *value,
                Kind::Bytes => requests.bytes = *value,
                Kind::ReadUnits => requests.read_units = *value,
                Kind::WriteUnits => requests.write_units = *value,
                Kind::Within => requests.within.push((series.le.clone(), *value)),
            }
        }
        let bound = |le: &str| le.parse::<f64>().unwrap_or(f64::INFINITY);
        for requests in all.values_mut() {
            requests.within.sort_by(|(a, _), (b, _)| bound(a).total_cmp(&bound(b)));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(count: u64, failed: u64) -> String {
        format!(
            "# TYPE pegasus_replica_request_seconds histogram\n\
             pegasus_replica_request_seconds_bucket{{table=\"t\",op=\"put\",le=\"0.01\"}} {}\n\
             pegasus_replica_request_seconds_bucket{{table=\"t\",op=\"put\",le=\"0.002\"}} {}\n\
             pegasus_replica_request_seconds_bucket{{table=\"t\",op=\"put\",le=\"+Inf\"}} {count}\n\
             pegasus_replica_request_seconds_sum{{table=\"t\",op=\"put\"}} {}\n\
             pegasus_replica_request_seconds_count{{table=\"t\",op=\"put\"}} {count}\n\
             pegasus_replica_requests_failed_total{{table=\"t\",op=\"put\"}} {failed}\n\
             pegasus_replica_request_bytes_total{{table=\"t\",op=\"put\"}} {}\n\
             something_else 7\n",
            count,
            count / 2,
            count as f64 / 1000.0,
            count * 100
        )
    }

    fn puts(totals: &Totals) -> Requests {
        totals.requests().remove(&("t", "put")).unwrap_or_default()
    }

    #[test]
    fn sums_over_nodes_never_fall() {
        let mut totals = Totals::default();
        let (a, b) = (Node::new("a:1"), Node::new("b:1"));
        totals.take(&a, &said(1000, 5));
        assert_eq!(puts(&totals).count, 0.0, "what was before us is nobody's rate");
        totals.take(&a, &said(1010, 6));
        totals.take(&b, "");
        totals.take(&b, &said(4, 0));
        let put = puts(&totals);
        assert_eq!((put.count, put.failed, put.bytes), (14.0, 1.0, 1400.0));
        assert_eq!(put.within, [("0.002".into(), 7.0), ("0.01".into(), 14.0), ("+Inf".into(), 14.0)]);
        // b starts anew and has served more than before already: some counter shows it.
        totals.take(&b, &said(3, 0));
        assert_eq!(puts(&totals).count, 17.0);
        totals.take(&b, "");
        totals.take(&b, &said(2, 0));
        assert_eq!(puts(&totals).count, 19.0);
        // a was away: nothing is lost or counted twice.
        totals.take(&a, &said(1020, 6));
        assert_eq!(puts(&totals).count, 29.0);
        totals.keep(&[&b].into(), &["t"].into());
        assert_eq!(puts(&totals).count, 29.0);
        totals.keep(&[&b].into(), &[].into());
        assert_eq!(totals.requests(), BTreeMap::new());
    }

    #[test]
    fn nonsense_is_passed_over() {
        let mut totals = Totals::default();
        let node = Node::new("a:1");
        totals.take(&node, "");
        totals.take(&node, "pegasus_replica_request_seconds_count{op=\"put\"} 4\npegasus_replica_request_seconds_count{table=\"t\",op=\"put\"} NaN\n");
        totals.take(&node, "pegasus_replica_request_seconds_count{table=\"t\",op=\"put\"} -1\n");
        assert_eq!(totals.requests(), BTreeMap::new());
    }
}
