//! Percentiles of numbers that are counted in buckets, of the last minute or two.
//!
//! Apache Pegasus keeps the last 4096 values of each percentile metric; we have histograms, which cost less and can be
//! added up. So a percentile is exact to its bucket, within which values are taken to lie evenly.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// As Apache Pegasus names them (metrics.md 1).
pub const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999)];

/// Values at [`QUANTILES`].
pub type Percentiles = [u64; QUANTILES.len()];

/// `counts[i]` values lie at or below `bounds[i]` and above the bound before; one more count is of those above all
/// bounds, which are taken to lie at the last one. All 0 while there is nothing.
pub fn percentiles(bounds: &[u64], counts: &[u64]) -> Percentiles {
    let total: u64 = counts.iter().sum();
    QUANTILES.map(|(_, quantile)| at(quantile * total as f64, bounds, counts))
}

fn at(rank: f64, bounds: &[u64], counts: &[u64]) -> u64 {
    let (mut below, mut lower) = (0.0, 0);
    for (&upper, &count) in bounds.iter().zip(counts) {
        let count = count as f64;
        if count > 0.0 && below + count >= rank {
            return lower + ((upper - lower) as f64 * (rank - below) / count) as u64;
        }
        (below, lower) = (below + count, upper);
    }
    if counts.iter().any(|&count| count > 0) { lower } else { 0 }
}

/// What is looked at less often is told of since the look before.
const WINDOW: Duration = Duration::from_secs(60);

type Counts<K> = BTreeMap<K, Vec<u64>>;

/// Turns counts since the start of the process into counts of the last while: one to two minutes when somebody
/// looks all the time. Costs nothing while nobody does.
#[derive(Clone, Debug)]
pub struct Recent<K> {
    before: Counts<K>,
    /// Takes the place of `before` when it is old enough.
    next: Counts<K>,
    next_at: Instant,
}

impl<K: Ord + Clone> Recent<K> {
    pub fn new(now: Instant) -> Self {
        Self { before: BTreeMap::new(), next: BTreeMap::new(), next_at: now }
    }

    pub fn look(&mut self, now: Instant, counts: Counts<K>) -> Counts<K> {
        if now.duration_since(self.next_at) >= WINDOW {
            self.before = std::mem::replace(&mut self.next, counts.clone());
            self.next_at = now;
        }
        let grown = |(key, mut counts): (K, Vec<u64>)| {
            let before = self.before.get(&key).into_iter().flatten();
            // What was forgotten meanwhile counts from nothing.
            counts.iter_mut().zip(before).for_each(|(count, before)| *count = count.saturating_sub(*before));
            (key, counts)
        };
        counts.into_iter().map(grown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_evenly_in_their_buckets() {
        let bounds = [10, 20, 50];
        for (counts, want) in [
            ([0, 0, 0, 0], [0, 0, 0, 0, 0]),
            ([1000, 0, 0, 0], [5, 9, 9, 9, 9]),
            ([500, 500, 0, 0], [10, 18, 19, 19, 19]),
            ([900, 90, 10, 0], [5, 10, 15, 20, 47]),
            ([0, 0, 0, 3], [50, 50, 50, 50, 50]),
            ([0, 0, 1000, 0], [35, 47, 48, 49, 49]),
        ] {
            assert_eq!(percentiles(&bounds, &counts), want, "{counts:?}");
        }
    }

    #[test]
    fn old_counts_are_forgotten() {
        let start = Instant::now();
        let mut recent = Recent::new(start);
        let mut look = |after_s, count: u64| {
            let seen =
                recent.look(start + Duration::from_secs(after_s), BTreeMap::from([("k", vec![count])]));
            seen["k"][0]
        };
        // (seconds after the start, all so far, of which are recent)
        for (after_s, all, want) in
            [(1, 5, 5), (59, 8, 8), (60, 10, 10), (61, 11, 11), (119, 15, 15), (120, 16, 6), (150, 20, 10)]
        {
            assert_eq!(look(after_s, all), want, "{after_s} s");
        }
        assert_eq!(look(1000, 30), 14, "since the look at 120 s");
        assert_eq!(look(1001, 3), 0, "counted anew");
    }
}
