//! Random life of a log against what it promised.

use std::collections::BTreeMap;

use pegasus_mutation_log::mem_disk::{Faults, MemDisk};
use pegasus_mutation_log::{Durability, LogCore, LogOptions, Record};
use pegasus_types::{Ballot, Decree, Gpid};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::*;

#[derive(Default)]
struct Partition {
    ballot: i64,
    /// Everything that was sent to the log: what may be found.
    sent: BTreeMap<i64, Vec<Record>>,
    /// Last acknowledged record of each decree: what must be found, or a later one.
    acked: BTreeMap<i64, Record>,
    durable: i64,
    next: i64,
    /// The next record cuts what follows it.
    cuts: bool,
}

struct World {
    rng: StdRng,
    disk: MemDisk,
    log: LogCore,
    options: LogOptions,
    partitions: BTreeMap<Gpid, Partition>,
    /// Of the appends that are not answered.
    waiting: BTreeMap<u64, Vec<Record>>,
    token: u64,
}

#[test]
fn random_lives() {
    for seed in 0..400 {
        let mut rng = StdRng::seed_from_u64(seed);
        let durability = if seed % 2 == 0 { Durability::Sync } else { Durability::PageCache };
        let options = LogOptions {
            durability,
            max_batch_bytes: rng.random_range(300..3000),
            max_log_bytes: if rng.random_bool(0.5) { 14_000 } else { u64::MAX },
            ..options(durability)
        };
        let disk = MemDisk::default();
        let (log, _) = open_with(&disk, options.clone());
        let partitions = [P0, P1, P2].map(|p| (p, Partition { ballot: 1, next: 1, ..Default::default() }));
        let mut world = World {
            rng,
            disk,
            log,
            options,
            partitions: partitions.into(),
            waiting: BTreeMap::new(),
            token: 0,
        };
        for step in 0..150 {
            let what = format!("seed {seed} step {step}");
            world.step(&what);
        }
    }
}

impl World {
    fn step(&mut self, what: &str) {
        let gpid = [P0, P1, P2][self.rng.random_range(0..3)];
        match self.rng.random_range(0..100) {
            0..50 => self.send(gpid),
            50..68 => self.write(),
            68..82 => self.sync(),
            82..88 => {
                // The engine flushes: durable up to something acknowledged.
                let p = self.partitions.get_mut(&gpid).unwrap();
                let reached = p.acked.keys().next_back().copied().unwrap_or(0);
                p.durable = p.durable.max(self.rng.random_range(p.durable..=reached.max(p.durable)));
                self.log.set_needed_from(gpid, copy_of(gpid), Decree(p.durable));
            }
            88..92 => self.log.keep_house(),
            92..95 => {
                // A new primary prepares some of the tail again and drops the rest.
                let p = self.partitions.get_mut(&gpid).unwrap();
                let reached = p.acked.keys().next_back().copied().unwrap_or(0);
                if self.waiting.values().flatten().all(|r| r.mutation.gpid != gpid) {
                    p.ballot += 1;
                    p.next = self.rng.random_range(p.durable.max(reached - 3) + 1..=reached + 1);
                    p.cuts = self.rng.random_bool(0.5);
                }
            }
            95..97 => self.full_disk(),
            97 => self.restart(false, what),
            98 => self.restart(self.options.durability == Durability::Sync, what),
            _ => {
                self.flush();
                self.check(what);
            }
        }
    }

    fn send(&mut self, gpid: Gpid) {
        let p = self.partitions.get_mut(&gpid).unwrap();
        let mut records = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            let mut record = record_at(gpid, p.ballot, p.next, self.rng.random_range(0..400));
            record.cuts = std::mem::take(&mut p.cuts);
            if record.cuts {
                // From here on they may be gone.
                p.acked.split_off(&p.next);
            }
            p.sent.entry(p.next).or_default().push(record.clone());
            p.next += 1;
            records.push(record);
        }
        self.token += 1;
        self.log.enqueue(records.clone(), self.token);
        self.waiting.insert(self.token, records);
    }

    fn write(&mut self) {
        let mut done = Vec::new();
        self.log.write(&mut done);
        self.answered(done);
    }

    fn sync(&mut self) {
        let mut done = Vec::new();
        self.log.sync(&mut done);
        self.answered(done);
    }

    fn flush(&mut self) {
        while !self.log.is_idle() {
            self.write();
            self.sync();
        }
    }

    fn answered(&mut self, done: Vec<pegasus_mutation_log::Completion>) {
        for completion in done {
            let (first, _) = self.waiting.first_key_value().expect("each append is answered once");
            assert_eq!(*first, completion.token, "in the order of the appends");
            let records = self.waiting.remove(&completion.token).unwrap();
            for record in records {
                let p = self.partitions.get_mut(&record.mutation.gpid).unwrap();
                let decree = record.mutation.decree.0;
                if completion.result.is_ok() {
                    if record.cuts {
                        // What was sent before is void now, and must not come back.
                        for (_, sent) in p.sent.range_mut(decree + 1..) {
                            sent.retain(|r| r.ballot >= record.ballot);
                        }
                    }
                    p.acked.insert(decree, record);
                } else {
                    p.next = p.next.min(decree);
                    p.cuts |= record.cuts;
                }
            }
        }
    }

    fn full_disk(&mut self) {
        self.flush();
        self.disk
            .set_faults(Faults { capacity: Some(self.rng.random_range(0..20_000)), ..Faults::default() });
        let gpid = [P0, P1, P2][self.rng.random_range(0..3)];
        self.send(gpid);
        self.flush();
        self.disk.set_faults(Faults::default());
    }

    /// `power`: what was not synced may be gone.
    fn restart(&mut self, power: bool, what: &str) {
        if power {
            let mut rng = StdRng::seed_from_u64(self.rng.random());
            self.disk.crash(|len| match rng.random_range(0..3) {
                0 => 0,
                1 => len.max(1),
                _ => rng.random_range(0..=len),
            });
        } else {
            self.disk = self.disk.snapshot();
        }
        let (log, summary) = open_with(&self.disk, self.options.clone());
        assert!(summary.damaged.is_empty() && summary.lost.is_empty(), "{what}: {summary:?}");
        self.log = log;
        self.waiting.clear();
        self.check(what);
        for (gpid, p) in &mut self.partitions {
            self.log.set_needed_from(*gpid, copy_of(*gpid), Decree(p.durable));
            // What was found counts as held from now on: the next restart must find it as well.
            for read in self.log.replay(*gpid, copy_of(*gpid), Decree(p.durable)).unwrap() {
                let (record, _) = read.unwrap();
                p.ballot = p.ballot.max(record.ballot.0);
                p.acked.insert(record.mutation.decree.0, record);
            }
            p.ballot += 1;
            p.cuts = false;
            p.next = p.acked.keys().next_back().map_or(1, |d| d + 1);
        }
        if self.rng.random_bool(0.5) {
            self.log.recovery_done();
        }
    }

    fn check(&self, what: &str) {
        for (gpid, p) in &self.partitions {
            let from = Decree(p.durable);
            let found: BTreeMap<i64, Record> = self
                .log
                .replay(*gpid, copy_of(*gpid), from)
                .unwrap_or_else(|e| panic!("{what}: {e}"))
                .map(|read| read.map(|(record, _)| (record.mutation.decree.0, record)))
                .collect::<Result<_, _>>()
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            for (decree, record) in p.acked.range(p.durable + 1..) {
                let got = found.get(decree).unwrap_or_else(|| panic!("{what}: {gpid} {decree} is gone"));
                assert!(got.ballot >= record.ballot, "{what}: {gpid} {decree} went back");
                let same = got.mutation == record.mutation && got.committed == record.committed;
                assert!(got.ballot > record.ballot || same, "{what}: {gpid} {decree} differs");
            }
            for (decree, record) in &found {
                // Records that were moved have lost their `cuts`.
                let sent =
                    p.sent[decree].iter().any(|s| s.mutation == record.mutation && s.ballot == record.ballot);
                assert!(sent, "{what}: {gpid} {decree} was never sent, or is void");
                assert!(record.ballot > Ballot::ZERO);
            }
        }
    }
}
