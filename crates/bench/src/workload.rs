//! Which operation comes next: the mix, the keys, the values.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::args::{Args, Case, Distribution};

/// Values are slices of this much random data: they do not compress and cost nothing to make.
const POOL_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub enum Operation {
    Put { key: u64, value: Bytes },
    Get { key: u64 },
}

/// The operations of one worker. Workers with different seeds share the value pool.
#[derive(Clone, Debug)]
pub struct Workload {
    rng: SmallRng,
    reads_percent: u8,
    keys: Keys,
    values: Values,
}

impl Workload {
    pub fn new(args: &Args, case: Case) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(0),
            reads_percent: case.reads_percent,
            keys: Keys::new(args.keys.max(1), args.distribution),
            values: Values::new(args.value_bytes),
        }
    }

    pub fn with_seed(&self, seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), ..self.clone() }
    }

    pub fn next(&mut self) -> Operation {
        let key = self.keys.next(&mut self.rng);
        if self.rng.random_range(0..100) < self.reads_percent {
            Operation::Get { key }
        } else {
            Operation::Put { key, value: self.values.next(&mut self.rng) }
        }
    }
}

/// The name of a key: 20 bytes, the hash key in Pegasus.
pub fn key_name(key: u64) -> String {
    format!("user{key:016}")
}

#[derive(Clone, Debug)]
pub struct Values {
    pool: Bytes,
    len: usize,
}

impl Values {
    pub fn new(len: usize) -> Self {
        let mut pool = vec![0; POOL_BYTES + len];
        SmallRng::seed_from_u64(1).fill_bytes(&mut pool);
        Self { pool: pool.into(), len }
    }

    pub fn next(&self, rng: &mut SmallRng) -> Bytes {
        let at = rng.random_range(0..=self.pool.len() - self.len);
        self.pool.slice(at..at + self.len)
    }
}

#[derive(Clone, Debug)]
enum Keys {
    Uniform { keys: u64 },
    Zipfian(Zipfian),
}

impl Keys {
    fn new(keys: u64, distribution: Distribution) -> Self {
        match distribution {
            Distribution::Uniform => Self::Uniform { keys },
            Distribution::Zipfian => Self::Zipfian(Zipfian::new(keys)),
        }
    }

    fn next(&self, rng: &mut SmallRng) -> u64 {
        match self {
            Self::Uniform { keys } => rng.random_range(0..*keys),
            Self::Zipfian(zipfian) => scatter(zipfian.rank(rng.random())) % zipfian.keys,
        }
    }
}

/// Ranks by the method of Gray et al., "Quickly generating billion-record synthetic databases" (1994).
#[derive(Clone, Debug)]
struct Zipfian {
    keys: u64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

const THETA: f64 = 0.99;

impl Zipfian {
    fn new(keys: u64) -> Self {
        let zeta = |n: u64| (1..=n).map(|i| (i as f64).powf(-THETA)).sum::<f64>();
        let (zeta_2, zeta) = (zeta(2.min(keys)), zeta(keys));
        let eta = (1.0 - (2.0 / keys as f64).powf(1.0 - THETA)) / (1.0 - zeta_2 / zeta);
        Self { keys, zeta, alpha: 1.0 / (1.0 - THETA), eta }
    }

    /// `u` is uniform in [0, 1); 0 is the most popular rank.
    fn rank(&self, u: f64) -> u64 {
        let uz = u * self.zeta;
        if uz < 1.0 || self.keys == 1 {
            0
        } else if uz < 1.0 + 0.5f64.powf(THETA) || self.keys == 2 {
            1
        } else {
            let rank = self.keys as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha);
            (rank as u64).min(self.keys - 1)
        }
    }
}

/// Spreads neighbouring ranks over the key space (the finaliser of splitmix64).
fn scatter(rank: u64) -> u64 {
    let mut x = rank.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipfian_ranks_follow_the_law() {
        const KEYS: u64 = 1000;
        const DRAWS: u32 = 200_000;
        let zipfian = Zipfian::new(KEYS);
        let mut rng = SmallRng::seed_from_u64(7);
        let mut counts = vec![0u32; KEYS as usize];
        for _ in 0..DRAWS {
            counts[zipfian.rank(rng.random()) as usize] += 1;
        }
        let share = |rank: usize| f64::from(counts[rank]) / f64::from(DRAWS);
        let law = |rank: usize| ((rank + 1) as f64).powf(-THETA) / zipfian.zeta;
        // The first two are exact by construction; the rest is the method's approximation.
        for (rank, slack) in [(0, 0.03), (1, 0.05), (9, 0.25), (99, 0.3)] {
            let error = (share(rank) / law(rank) - 1.0).abs();
            assert!(error < slack, "rank {rank}: {} against {}", share(rank), law(rank));
        }
        assert!(counts[900..].iter().sum::<u32>() > 0, "the tail is reached");
    }

    #[test]
    fn the_mix_is_as_asked_and_keys_stay_in_range() {
        use clap::Parser;
        for (reads_percent, distribution, keys) in
            [(0, "uniform", 10), (100, "zipfian", 1), (50, "zipfian", 2), (50, "zipfian", 1000)]
        {
            let keys_text = u64::to_string(&keys);
            let args = Args::parse_from([
                "pegasus_bench",
                "--keys",
                &keys_text,
                "--distribution",
                distribution,
                "--value-bytes",
                "100",
            ]);
            let mut workload = Workload::new(&args, Case { reads_percent, depth: 1 }).with_seed(3);
            let mut reads = 0;
            for _ in 0..10_000 {
                let key = match workload.next() {
                    Operation::Get { key } => {
                        reads += 1;
                        key
                    }
                    Operation::Put { key, value } => {
                        assert_eq!(value.len(), 100);
                        key
                    }
                };
                assert!(key < keys);
            }
            let want = u32::from(reads_percent) * 100;
            assert!(u32::abs_diff(reads, want) <= 300, "{reads} reads, wanted about {want}");
        }
    }
}
