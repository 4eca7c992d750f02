use std::collections::BTreeSet;

use pegasus_types::data::*;

use super::moment::{Moment, Window};
use super::partition::{Difference, Partition};

/// A burst of unanswered writes makes one more each; seconds in which something expires multiply that.
const MAX_CANDIDATES: usize = 500;

/// In which order the requests of a burst are decided.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    AsSent,
    Any,
}

/// What a partition may hold. Each answer rules out those that would not have given it.
#[derive(Clone, Debug)]
pub struct Candidates {
    all: Vec<Candidate>,
    /// Every second in which something was ever to expire.
    expiries: BTreeSet<u32>,
}

#[derive(Clone, Debug, PartialEq)]
struct Candidate {
    partition: Partition,
    /// Its last write was decided in this second, or later; then it made no difference.
    now: u32,
    /// An unanswered write of this burst was not executed here, so none that came after it was.
    has_ended: bool,
}

impl Candidates {
    pub fn new(partition: Partition) -> Self {
        Self { all: vec![Candidate { partition, now: 0, has_ended: false }], expiries: BTreeSet::new() }
    }

    /// Scanners whose next page can be asked for.
    pub fn scanners(&self) -> Vec<i64> {
        let ids: BTreeSet<_> = self.all.iter().flat_map(|c| c.partition.scanners.keys().copied()).collect();
        ids.into_iter().collect()
    }

    /// A write that was answered.
    pub fn answered_write(
        &mut self,
        request: &WriteRequest,
        answer: &WriteResponse,
        has_decree: bool,
        window: Window,
    ) -> Result<(), Vec<Difference>> {
        self.note_expiries(request);
        if has_decree {
            self.all.retain(|candidate| !candidate.has_ended);
        }
        self.narrow(window, Order::AsSent, |partition, at| {
            partition.answers_write(request, answer, has_decree, at)
        })
    }

    pub fn answered_read(
        &mut self,
        request: &ReadRequest,
        answer: &ReadResponseBody,
        window: Window,
    ) -> Result<(), Vec<Difference>> {
        self.narrow(window, Order::Any, |partition, at| partition.answers_read(request, answer, at))
    }

    /// The client asked for no more pages.
    pub fn cleared(&mut self, id: i64) {
        self.all.iter_mut().for_each(|candidate| drop(candidate.partition.scanners.remove(&id)));
    }

    /// A write of which nobody knows whether it was executed.
    pub fn unclear(&mut self, request: &WriteRequest, window: Window) {
        self.note_expiries(request);
        let mut executed = Vec::new();
        for candidate in self.all.iter_mut().filter(|candidate| !candidate.has_ended) {
            candidate.has_ended = true;
            for now in seconds(&self.expiries, candidate.now, window) {
                let mut other = candidate.clone();
                (other.now, other.has_ended) = (now, false);
                if other.partition.write(request, window.at(now)).1 {
                    executed.push(other);
                } else {
                    // It writes nothing: executed or not is the same.
                    candidate.has_ended = false;
                }
            }
        }
        self.all.append(&mut executed);
        self.merge();
    }

    /// All writes of the burst have been accounted for.
    pub fn end_burst(&mut self) {
        self.all.iter_mut().for_each(|candidate| candidate.has_ended = false);
        self.merge();
    }

    /// The server that holds them may have changed, or not.
    pub fn doubt_scanners(&mut self) {
        let scanners = self.all.iter_mut().flat_map(|candidate| candidate.partition.scanners.values_mut());
        scanners.for_each(|scanner| scanner.is_doubtful = true);
    }

    /// Their servers have ended.
    pub fn forget_scanners(&mut self) {
        self.all.iter_mut().for_each(|candidate| candidate.partition.scanners.clear());
        self.merge();
    }

    fn narrow(
        &mut self,
        window: Window,
        order: Order,
        mut answers: impl FnMut(&mut Partition, Moment) -> Result<(), Difference>,
    ) -> Result<(), Vec<Difference>> {
        let (mut left, mut differences) = (Vec::new(), Vec::new());
        for mut candidate in std::mem::take(&mut self.all) {
            let earliest = if order == Order::AsSent { candidate.now } else { 0 };
            let mut nows = seconds(&self.expiries, earliest, window);
            let last = nows.pop();
            for now in nows {
                let mut other = candidate.clone();
                if order == Order::AsSent {
                    other.now = now;
                }
                match answers(&mut other.partition, window.at(now)) {
                    Ok(()) => left.push(other),
                    Err(difference) => differences.push(difference),
                }
            }
            if let Some(now) = last {
                match answers(&mut candidate.partition, window.at(now)) {
                    Ok(()) => left.push(candidate),
                    Err(difference) => differences.push(difference),
                }
            }
        }
        self.all = left;
        self.merge();
        if self.all.is_empty() { Err(differences) } else { Ok(()) }
    }

    /// One of each: the one that leaves more open.
    fn merge(&mut self) {
        let mut merged: Vec<Candidate> = Vec::with_capacity(self.all.len());
        for candidate in std::mem::take(&mut self.all) {
            match merged.iter_mut().find(|other| other.partition == candidate.partition) {
                Some(other) => {
                    other.now = other.now.min(candidate.now);
                    other.has_ended &= candidate.has_ended;
                }
                None => merged.push(candidate),
            }
        }
        assert!(merged.len() <= MAX_CANDIDATES, "too much is unclear");
        self.all = merged;
    }

    fn note_expiries(&mut self, request: &WriteRequest) {
        let mut note = |second: i32| {
            if second != 0 {
                self.expiries.insert(second.cast_unsigned());
            }
        };
        match request {
            WriteRequest::Put(put) => note(put.expire_ts_seconds),
            WriteRequest::MultiPut(put) => note(put.expire_ts_seconds),
            WriteRequest::Incr(incr) => note(incr.expire_ts_seconds),
            WriteRequest::CheckAndSet(set) => note(set.set_expire_ts_seconds),
            WriteRequest::CheckAndMutate(mutate) => {
                mutate.mutate_list.iter().for_each(|step| note(step.set_expire_ts_seconds));
            }
            WriteRequest::Remove { .. } | WriteRequest::MultiRemove(_) => {}
        }
    }
}

/// The seconds in which an answer may have been decided, as far as they differ: all of them when something expires
/// meanwhile, else the last one.
fn seconds(expiries: &BTreeSet<u32>, earliest: u32, window: Window) -> Vec<u32> {
    let from = window.from.max(earliest).min(window.to);
    match expiries.range(from + 1..).next() {
        Some(second) if *second <= window.to => (from..=window.to).collect(),
        _ => vec![window.to],
    }
}
