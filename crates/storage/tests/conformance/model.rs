//! Random mutations, reads, flushes, compactions and restarts, compared with a map.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use pegasus_storage::{Contract, EngineKind, PartitionEngine, View};
use pegasus_types::Decree;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::harness::*;

const STEPS: usize = 1500;
const KEYS: u32 = 400;

pub fn random_operations_equal_a_map(kind: EngineKind) {
    for seed in 1..=2 {
        println!("seed {seed}");
        Run::new(kind, seed).run();
    }
}

struct Run {
    rng: StdRng,
    bench: Bench,
    engine: Arc<dyn PartitionEngine>,
    /// Mutation n at index n - 1, as a log would have them.
    log: Vec<Bytes>,
    map: Map,
    views: Vec<(Box<dyn View>, Map)>,
}

impl Run {
    fn new(kind: EngineKind, seed: u64) -> Self {
        let bench = Bench::new(kind);
        let engine = bench.open();
        let rng = StdRng::seed_from_u64(seed);
        Self { rng, bench, engine, log: vec![], map: Map::new(), views: vec![] }
    }

    fn run(mut self) {
        for step in 0..STEPS {
            match self.rng.random_range(0..100) {
                0..50 => self.write(),
                50..70 => self.get(),
                70..85 => self.range(),
                85..90 => self.look_again(),
                90..94 => self.views.push((self.engine.view().unwrap(), self.map.clone())),
                94..97 => {
                    let decree = self.engine.flush(true).unwrap();
                    assert_eq!(decree, Decree(self.log.len() as i64));
                    assert_eq!(self.engine.durable_decree(), decree);
                }
                97..98 => self.engine.compact().unwrap(),
                _ => self.reopen(),
            }
            if self.views.len() > 3 {
                self.views.remove(0);
            }
            assert_eq!(self.engine.applied_decree(), Decree(self.log.len() as i64), "step {step}");
        }
        self.look_again();
        assert_eq!(contents(&*self.engine), self.map);
    }

    fn key(&mut self) -> Bytes {
        format!("k{:03}", self.rng.random_range(0..KEYS)).into()
    }

    fn write(&mut self) {
        let count = [0, 1, 1, 1, 5, 40][self.rng.random_range(0..6)];
        let changes: Vec<_> = (0..count)
            .map(|_| {
                let value = self.rng.random_bool(0.75).then(|| {
                    let len = [0, 10, 300][self.rng.random_range(0..3)];
                    stored(0, &vec![self.rng.random(); len])
                });
                (self.key(), value)
            })
            .collect();
        let body = body(changes.iter().map(|(key, value)| (&key[..], value.clone())));
        apply_next(&*self.engine, &body);
        apply_to_map(&mut self.map, &body);
        self.log.push(body);
    }

    fn get(&mut self) {
        let key = self.key();
        let got = self.engine.get(&key).unwrap().map(|value| value.stored().clone());
        assert_eq!(got.as_ref(), self.map.get(&key), "{key:?}");
    }

    fn bound(&mut self) -> Bound<Bytes> {
        match self.rng.random_range(0..3) {
            0 => Bound::Unbounded,
            1 => Bound::Included(self.key()),
            _ => Bound::Excluded(self.key()),
        }
    }

    fn range(&mut self) {
        let (lo, hi, reverse) = (self.bound(), self.bound(), self.rng.random());
        let is_in = |key: &Bytes| std::ops::RangeBounds::<Bytes>::contains(&(lo.clone(), hi.clone()), key);
        let mut want: Vec<_> =
            self.map.iter().filter(|(key, _)| is_in(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        if reverse {
            want.reverse();
        }
        let slice = |bound: &Bound<Bytes>| bound.clone();
        let (lo, hi) = (slice(&lo), slice(&hi));
        let view = self.engine.view().unwrap();
        let (lo, hi) = (lo.as_ref().map(|key| &key[..]), hi.as_ref().map(|key| &key[..]));
        assert_eq!(rows(&*view, lo, hi, reverse), want, "{lo:?} {hi:?} {reverse}");
    }

    /// Held views still show what was there.
    fn look_again(&mut self) {
        if self.engine.contract() == Contract::LowerBound {
            return;
        }
        for (view, map) in &self.views {
            assert_eq!(&all(&**view), map, "view of {:?}", view.decree());
        }
    }

    fn reopen(&mut self) {
        let durable = self.engine.durable_decree();
        // A view of sled keeps its database open.
        self.views.clear();
        let gone = std::mem::replace(
            &mut self.engine,
            pegasus_storage::new_factory(EngineKind::Memory, small_options()).open(&self.bench.dir).unwrap(),
        );
        drop(gone);
        self.engine = self.bench.open();
        let applied = self.engine.applied_decree();
        if self.bench.factory.kind() == EngineKind::Memory {
            assert_eq!(applied, Decree(0));
        } else {
            assert!(applied >= durable, "{applied} {durable}");
        }
        if self.engine.contract() == Contract::Exact {
            let mut then = Map::new();
            self.log[..applied.0 as usize].iter().for_each(|body| apply_to_map(&mut then, body));
            assert_eq!(contents(&*self.engine), then, "after reopening at {applied}");
        }
        for (i, body) in self.log.iter().enumerate().skip(applied.0 as usize) {
            apply(&*self.engine, Decree(i as i64 + 1), body);
        }
        assert_eq!(contents(&*self.engine), self.map, "after replay from {applied}");
    }
}
