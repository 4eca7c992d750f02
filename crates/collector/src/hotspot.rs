//! Hot partitions, as a value: requests of each partition in, scores out (operations.md 8.4).
//!
//! The score of a partition is how many standard deviations its requests per second lie above the mean of its table,
//! over all partitions and the last rounds, rounded up. It is hot when the score reaches the threshold and it has at least
//! [`HOT_QPS_LEAST`]: in an idle table two requests are far above the mean, and nobody's trouble.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use pegasus_telemetry::text::Text;
use pegasus_types::{AppId, Gpid, Node};

/// Requests per second below which no partition is hot.
pub const HOT_QPS_LEAST: f64 = 100.0;
/// Partitions of which the rates are exported, per kind: all of them would be thousands of series.
const BUSIEST_SHOWN: usize = 16;

/// Reads or writes.
pub const KINDS: [&str; 2] = ["read", "write"];

/// What the primary of a partition has counted since it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    pub gpid: Gpid,
    pub node: Node,
    /// Of the process that counts.
    pub incarnation: u64,
    /// Reads, writes.
    pub counted: [u64; 2],
}

/// Of one partition between two looks.
#[derive(Clone, Debug, PartialEq)]
struct Rate {
    node: Node,
    qps: [f64; 2],
    score: [u32; 2],
}

#[derive(Debug)]
pub struct Hotspots {
    threshold: u32,
    rounds_max: usize,
    before: BTreeMap<Gpid, Load>,
    /// By table the rates of its partitions, round by round.
    rounds: BTreeMap<AppId, VecDeque<Vec<[f64; 2]>>>,
    now: BTreeMap<Gpid, Rate>,
}

impl Hotspots {
    pub fn new(threshold: u32, rounds_max: usize) -> Self {
        Self { threshold, rounds_max, before: BTreeMap::new(), rounds: BTreeMap::new(), now: BTreeMap::new() }
    }

    /// Takes a look; `since` = time since the last one. Returns the partitions that have become hot.
    pub fn take(&mut self, loads: Vec<Load>, since: Duration) -> Vec<(Gpid, &'static str, f64)> {
        let seconds = since.as_secs_f64();
        let was_hot: BTreeSet<(Gpid, usize)> = self.hot().map(|(gpid, kind, _)| (gpid, kind)).collect();
        self.now.clear();
        for load in &loads {
            // Another primary, or the same one opened anew, has counted other requests.
            let same = |old: &&Load| {
                (&old.node, old.incarnation) == (&load.node, load.incarnation)
                    && old.counted.iter().zip(load.counted).all(|(old, new)| *old <= new)
            };
            let Some(old) = self.before.get(&load.gpid).filter(same).filter(|_| seconds > 0.0) else {
                continue;
            };
            let qps = [0, 1].map(|kind| (load.counted[kind] - old.counted[kind]) as f64 / seconds);
            self.now.insert(load.gpid, Rate { node: load.node.clone(), qps, score: [0, 0] });
        }
        let tables: BTreeSet<AppId> = loads.iter().map(|load| load.gpid.app_id).collect();
        self.rounds.retain(|table, _| tables.contains(table));
        self.before = loads.into_iter().map(|load| (load.gpid, load)).collect();
        self.score();
        let hot = self.hot().filter(|(gpid, kind, _)| !was_hot.contains(&(*gpid, *kind)));
        hot.map(|(gpid, kind, rate)| (gpid, KINDS[kind], rate.qps[kind])).collect()
    }

    fn score(&mut self) {
        let mut this_round: BTreeMap<AppId, Vec<[f64; 2]>> = BTreeMap::new();
        for (gpid, rate) in &self.now {
            this_round.entry(gpid.app_id).or_default().push(rate.qps);
        }
        let mut usual = BTreeMap::new();
        for (table, rates) in this_round {
            let rounds = self.rounds.entry(table).or_default();
            rounds.push_back(rates);
            while rounds.len() > self.rounds_max {
                rounds.pop_front();
            }
            usual.insert(table, [0, 1].map(|kind| spread(rounds.iter().flatten().map(|rates| rates[kind]))));
        }
        for (gpid, rate) in &mut self.now {
            let Some(usual) = usual.get(&gpid.app_id) else { continue };
            for (kind, (mean, deviation)) in usual.iter().enumerate() {
                let above = (rate.qps[kind] - mean).max(0.0);
                // Ends at u32::MAX, and a table without spread has no outlier.
                rate.score[kind] = if *deviation > 0.0 { (above / deviation).ceil() as u32 } else { 0 };
            }
        }
    }

    fn hot(&self) -> impl Iterator<Item = (Gpid, usize, &Rate)> {
        let each = self.now.iter().flat_map(|(gpid, rate)| [0, 1].map(|kind| (*gpid, kind, rate)));
        each.filter(|(_, kind, rate)| rate.score[*kind] >= self.threshold && rate.qps[*kind] >= HOT_QPS_LEAST)
    }

    /// `name_of` gives the name of a table that exists.
    pub fn render(&self, out: &mut Text, name_of: impl Fn(AppId) -> Option<String>) {
        let labelled = |gpid: Gpid| Some((name_of(gpid.app_id)?, gpid.index.to_string()));
        out.family(
            "app_stat_hotspots",
            "gauge",
            "Hot partitions: standard deviations above the mean of the table.",
        );
        for (gpid, kind, rate) in self.hot() {
            let Some((table, index)) = labelled(gpid) else { continue };
            let labels = [
                ("table", table.as_str()),
                ("partition", &index),
                ("kind", KINDS[kind]),
                ("node", rate.node.as_str()),
            ];
            out.sample("app_stat_hotspots", &labels, rate.score[kind]);
        }
        out.family("app_stat_hotspots_total", "gauge", "Number of hot partitions of the table.");
        for table in self.rounds.keys() {
            let Some(name) = name_of(*table) else { continue };
            for (kind, kind_name) in KINDS.into_iter().enumerate() {
                let count = self.hot().filter(|(gpid, k, _)| gpid.app_id == *table && *k == kind).count();
                out.sample("app_stat_hotspots_total", &[("table", &name), ("kind", kind_name)], count);
            }
        }
        out.family("partition_qps", "gauge", "Requests per second of the busiest partitions of all tables.");
        for (kind, kind_name) in KINDS.into_iter().enumerate() {
            let mut busiest: Vec<_> = self.now.iter().filter(|(_, rate)| rate.qps[kind] > 0.0).collect();
            busiest.sort_by(|(_, a), (_, b)| b.qps[kind].total_cmp(&a.qps[kind]));
            for (gpid, rate) in busiest.into_iter().take(BUSIEST_SHOWN) {
                let Some((table, index)) = labelled(*gpid) else { continue };
                let labels = [
                    ("table", table.as_str()),
                    ("partition", &index),
                    ("kind", kind_name),
                    ("node", rate.node.as_str()),
                ];
                out.sample("partition_qps", &labels, rate.qps[kind]);
            }
        }
    }
}

/// Mean and standard deviation.
fn spread(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: Duration = Duration::from_secs(10);

    /// Loads of a table whose partitions have had so many reads.
    fn loads(node: &str, reads: &[u64]) -> Vec<Load> {
        let load = |(index, reads): (usize, &u64)| Load {
            gpid: Gpid::new(1, index as i32),
            node: Node::new(node),
            incarnation: 7,
            counted: [*reads, 0],
        };
        reads.iter().enumerate().map(load).collect()
    }

    /// Rounds in which each partition gets so many reads; what became hot in the last one.
    fn hot_after(rounds: &[[u64; 16]]) -> (Hotspots, Vec<(Gpid, &'static str, f64)>) {
        let mut spots = Hotspots::new(3, 5);
        let mut sums = [0; 16];
        spots.take(loads("a:1", &sums), Duration::ZERO);
        let mut became = Vec::new();
        for round in rounds {
            sums.iter_mut().zip(round).for_each(|(sum, reads)| *sum += reads);
            became = spots.take(loads("a:1", &sums), ROUND);
        }
        (spots, became)
    }

    #[test]
    fn one_that_has_most_is_hot() {
        let even = [10_000; 16];
        let mut hot = even;
        hot[5] = 90_000;
        let mut quiet = [1; 16];
        quiet[5] = 900;
        for (rounds, want) in [
            (&[even, even][..], &[][..]),
            (&[even, hot], &[(Gpid::new(1, 5), "read", 9000.0)]),
            (&[even, hot, hot], &[]), // told when it became hot
            (&[even, hot, even, hot], &[(Gpid::new(1, 5), "read", 9000.0)]),
            (&[quiet, quiet], &[]),
            (&[[0; 16]], &[]),
        ] {
            assert_eq!(hot_after(rounds).1, want, "{rounds:?}");
        }
        let (spots, _) = hot_after(&[even; 9]);
        assert_eq!(spots.rounds[&1].len(), 5);
    }

    #[test]
    fn another_primary_counts_anew() {
        let (mut spots, _) = hot_after(&[[10_000; 16]]);
        assert!(spots.take(loads("b:1", &[900_000; 16]), ROUND).is_empty());
        assert_eq!(spots.now.len(), 0, "nothing is known of it yet");
        spots.take(loads("b:1", &[900_100; 16]), ROUND);
        assert_eq!(spots.now[&Gpid::new(1, 0)].qps, [10.0, 0.0]);
        spots.take(loads("b:1", &[5; 16]), ROUND);
        assert_eq!(spots.now.len(), 0, "opened anew");
        spots.take(Vec::new(), ROUND);
        assert!(spots.rounds.is_empty() && spots.before.is_empty(), "the table is gone");
    }

    #[test]
    fn what_is_exported_is_bounded() {
        let mut hot = [10_000; 16];
        hot[5] = 90_000;
        let (spots, _) = hot_after(&[hot]);
        let mut out = Text::default();
        spots.render(&mut out, |table| (table == 1).then(|| "t".to_owned()));
        let text = out.finish();
        for line in [
            r#"app_stat_hotspots{table="t",partition="5",kind="read",node="a:1"} 4"#,
            r#"app_stat_hotspots_total{table="t",kind="read"} 1"#,
            r#"app_stat_hotspots_total{table="t",kind="write"} 0"#,
            r#"partition_qps{table="t",partition="5",kind="read",node="a:1"} 9000"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert_eq!(text.matches("partition_qps{").count(), BUSIEST_SHOWN, "{text}");
        let mut out = Text::default();
        spots.render(&mut out, |_| None);
        assert!(!out.finish().contains('{'), "a dropped table");
    }
}
