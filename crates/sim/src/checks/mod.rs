//! What must hold at every step, each checker in its own file.
//!
//! | checker | what |
//! |---|---|
//! | `one_primary` | at most one host serves a partition at any instant |
//! | `ballots` | at most one process acts as primary at a ballot |
//! | `prefix` | what is committed at a decree is the same everywhere, for ever |
//! | `order` | every engine applies every decree once, in order |
//! | `digest` | whoever has applied the same decrees holds the same rows |
//! | `metadata` | every write of the meta leaves whole metadata; no ballot goes back |
//! | `tables` | tables that somebody was told to have are there, dropped ones dropped |
//! | `linear` | per key there is one order of all operations that explains every answer |
//! | `history` | what was acknowledged is read; reads never go back; counters count each request once |

mod ballots;
mod digest;
mod history;
mod linear;
mod metadata;
mod one_primary;
mod order;
mod prefix;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use pegasus_types::meta::ReplicaStatus;
use pegasus_types::{Ballot, Decree, Gpid, Mutation, PartitionConfig};

use crate::bus::Micros;
use crate::host::Host;

pub use history::History;

#[derive(Debug, Default)]
pub struct Checks {
    violations: Vec<String>,
    ballots: ballots::Ballots,
    prefix: prefix::Prefix,
    digests: digest::Digests,
    pub metadata: metadata::Metadata,
    pub tables: tables::Tables,
    pub history: History,
    /// Hosts that may report broken replicas, until their process ends.
    faulty: BTreeSet<usize>,
    /// Hosts with damage on their disks: they may do so for ever.
    damaged: BTreeSet<usize>,
    /// Since when nobody serves a partition, and the longest time of it since `watch_silence`.
    silent: BTreeMap<Gpid, Micros>,
    worst_silence: Micros,
    pub figures: Figures,
}

/// What a run has seen, to show that it was worth running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub steps: u64,
    pub ballots: u64,
    pub commits: u64,
    pub take_overs: u64,
    pub learned: u64,
    /// Instants at which some host served, of those looked at.
    pub served: u64,
    pub looked: u64,
    /// From the last fault until everything was healthy.
    pub healed_ms: u64,
}

impl Checks {
    pub fn violation(&mut self, now: Micros, what: String) {
        self.violations.push(format!("{}.{:03} ms: {what}", now / 1000, now % 1000));
    }

    /// The first thing that went wrong.
    pub fn failure(&self) -> Option<&str> {
        self.violations.first().map(String::as_str).or_else(|| self.history.failure())
    }

    pub fn after_step(&mut self, now: Micros, hosts: &[Host], gpids: &[Gpid]) {
        self.figures.steps += 1;
        for &gpid in gpids {
            self.figures.looked += 1;
            match one_primary::check(now, hosts, gpid) {
                Ok(true) => {
                    self.figures.served += 1;
                    if let Some(since) = self.silent.remove(&gpid) {
                        self.worst_silence = self.worst_silence.max(now - since);
                    }
                }
                Ok(false) => drop(self.silent.entry(gpid).or_insert(now)),
                Err(what) => self.violation(now, what),
            }
        }
    }

    /// From now on.
    pub fn watch_silence(&mut self, now: Micros) {
        self.worst_silence = 0;
        self.silent.values_mut().for_each(|since| *since = now);
    }

    /// The longest time that nobody served some partition since `watch_silence`.
    pub fn worst_silence(&self, now: Micros) -> Micros {
        let open = self.silent.values().map(|since| now - since);
        open.max().unwrap_or(0).max(self.worst_silence)
    }

    pub fn role_changed(
        &mut self,
        now: Micros,
        host: usize,
        life: u64,
        gpid: Gpid,
        status: ReplicaStatus,
        ballot: Ballot,
    ) {
        match status {
            ReplicaStatus::Primary => {
                if let Err(what) = self.ballots.primary(host, life, gpid, ballot) {
                    self.violation(now, what);
                }
            }
            ReplicaStatus::Error if !self.is_faulty(host) => {
                self.violation(now, format!("n{} {gpid} broke at ballot {ballot}", host + 1));
            }
            ReplicaStatus::Error
            | ReplicaStatus::Inactive
            | ReplicaStatus::Learner
            | ReplicaStatus::Secondary => {}
        }
    }

    pub fn committed(&mut self, now: Micros, host: usize, mutation: &Mutation) {
        self.figures.commits += 1;
        if let Err(what) = self.prefix.committed(host, mutation) {
            self.violation(now, what);
        }
    }

    pub fn order_violated(&mut self, now: Micros, host: usize, gpid: Gpid, why: &str) {
        self.violation(now, order::describe(host, gpid, why));
    }

    pub fn stored(&mut self, now: Micros, old: &PartitionConfig, new: &PartitionConfig) {
        self.figures.ballots += 1;
        self.figures.take_overs += u64::from(old.primary.is_some() && old.primary != new.primary);
        self.figures.learned += u64::from(old.primary.is_some() && new.member_count() > old.member_count());
        if new.ballot != old.ballot.next() {
            self.violation(now, format!("{new:?} was stored over {old:?}"));
        }
    }

    pub fn process_ended(&mut self, host: usize) {
        self.faulty.remove(&host);
    }

    pub fn expect_faults(&mut self, host: usize) {
        self.faulty.insert(host);
    }

    pub fn expect_damage(&mut self, host: usize) {
        self.damaged.insert(host);
    }

    /// Its process has a disk that it must not believe any more.
    pub fn needs_restart(&self, host: usize) -> bool {
        self.faulty.contains(&host)
    }

    /// May replicas of this host be broken?
    pub fn is_faulty(&self, host: usize) -> bool {
        self.faulty.contains(&host) || self.damaged.contains(&host)
    }

    pub fn applied(&mut self, now: Micros, host: usize, gpid: Gpid, decree: Decree, digest: u64) {
        if let Err(what) = self.digests.applied(host, gpid, decree, digest) {
            self.violation(now, what);
        }
    }
}
