//! The end of a partition's history, as far as it is kept in memory.

use std::collections::VecDeque;

use bytes::Bytes;
use pegasus_types::{Ballot, Decree, Mutation};

#[derive(Debug)]
struct Entry {
    /// Under which it was prepared last.
    ballot: Ballot,
    mutation: Mutation,
    /// Its body keeps nothing else alive.
    owned: bool,
}

/// Consecutive mutations `base + 1 ..= prepared`: a few that are committed, then those that are not.
///
/// ```text
///   base ... applied ... committed ... durable ... prepared
///   (kept for peers that lag)     (may still be replaced)
/// ```
#[derive(Debug)]
pub(crate) struct Tail {
    base: Decree,
    applied: Decree,
    committed: Decree,
    /// Up to here the mutations, as they stand here, are in the own log, under whatever ballot.
    durable: Decree,
    /// Mutations were dropped that the log still has.
    cut: bool,
    entries: VecDeque<Entry>,
    bytes: usize,
    committed_bytes: usize,
}

/// What became of a prepared mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Taken: to be logged.
    Taken,
    /// Not the next one.
    Gap,
    /// The decree is committed here with another content.
    Mismatch,
}

impl Tail {
    pub fn new(at: Decree) -> Self {
        Self {
            base: at,
            applied: at,
            committed: at,
            durable: at,
            cut: false,
            entries: VecDeque::new(),
            bytes: 0,
            committed_bytes: 0,
        }
    }

    /// From disk: everything is durable. None when the decrees do not fit together.
    pub fn recovered(applied: Decree, committed: Decree, tail: Vec<(Ballot, Mutation)>) -> Option<Self> {
        let base = tail.first().map_or(applied, |(_, m)| m.decree.prev());
        let mut new = Self::new(base);
        for (ballot, mutation) in tail {
            if mutation.decree != new.prepared().next() {
                return None;
            }
            new.push(ballot, mutation);
        }
        if base > applied || applied > committed || committed > new.prepared() {
            return None;
        }
        new.durable = new.prepared();
        new.applied = applied;
        new.committed = applied;
        new.committed_bytes =
            new.entries.iter().filter(|e| e.mutation.decree <= applied).map(|e| e.mutation.body.len()).sum();
        Some(new)
    }

    pub fn base(&self) -> Decree {
        self.base
    }

    pub fn applied(&self) -> Decree {
        self.applied
    }

    pub fn committed(&self) -> Decree {
        self.committed
    }

    pub fn durable(&self) -> Decree {
        self.durable
    }

    pub fn prepared(&self) -> Decree {
        Decree(self.base.0 + i64::try_from(self.entries.len()).expect("bounded by window and recent"))
    }

    pub fn in_flight(&self) -> usize {
        usize::try_from(self.prepared().0 - self.committed.0).expect("committed never exceeds prepared")
    }

    pub fn in_flight_bytes(&self) -> usize {
        self.bytes - self.committed_bytes
    }

    fn index(&self, decree: Decree) -> Option<usize> {
        usize::try_from(decree.0 - self.base.0 - 1).ok().filter(|&i| i < self.entries.len())
    }

    pub fn get(&self, decree: Decree) -> Option<&Mutation> {
        Some(&self.entries[self.index(decree)?].mutation)
    }

    /// Adds the next decree.
    pub fn push(&mut self, ballot: Ballot, mutation: Mutation) {
        debug_assert_eq!(mutation.decree, self.prepared().next());
        self.bytes += mutation.body.len();
        self.entries.push_back(Entry { ballot, mutation, owned: false });
    }

    /// A mutation that was prepared under `ballot`. The same content replaces what was there in ballot only;
    /// another content voids everything after it (it followed something that was never committed).
    pub fn offer(&mut self, ballot: Ballot, mutation: Mutation) -> Offer {
        let decree = mutation.decree;
        if let Some(index) = self.index(decree) {
            let known = &mut self.entries[index];
            if known.mutation.same_content(&mutation) {
                known.ballot = known.ballot.max(ballot);
                return Offer::Taken;
            }
            if decree <= self.committed {
                return Offer::Mismatch;
            }
            self.truncate_to(decree.prev());
        } else if decree <= self.base {
            return Offer::Taken;
        } else if decree != self.prepared().next() {
            return Offer::Gap;
        }
        self.push(ballot, mutation);
        Offer::Taken
    }

    /// Is it known with another content? False when it is no longer kept.
    pub fn contradicts(&self, mutation: &Mutation) -> bool {
        self.get(mutation.decree).is_some_and(|known| !known.same_content(mutation))
    }

    /// Forgets what lies above `decree`, which is not below the commit point.
    pub fn truncate_to(&mut self, decree: Decree) {
        debug_assert!(decree >= self.committed);
        while self.prepared() > decree {
            let entry = self.entries.pop_back().expect("prepared lies above base");
            self.bytes -= entry.mutation.body.len();
            self.cut = true;
        }
        self.durable = self.durable.min(decree);
    }

    /// Must the next record tell the log that what it has beyond is void?
    pub fn take_cut(&mut self) -> bool {
        std::mem::take(&mut self.cut)
    }

    /// Everything that is not committed, put under `ballot`.
    pub fn prepare_again(&mut self, ballot: Ballot) -> Vec<Mutation> {
        let from = self.index(self.committed.next()).unwrap_or(self.entries.len());
        self.entries
            .range_mut(from..)
            .map(|entry| {
                entry.ballot = ballot;
                entry.mutation.clone()
            })
            .collect()
    }

    pub fn logged(&mut self, upto: Decree) {
        self.durable = self.durable.max(upto.min(self.prepared()));
    }

    /// Moves the commit point; gives what is to be applied.
    pub fn commit_to(&mut self, decree: Decree) -> Vec<Mutation> {
        let decree = decree.min(self.prepared());
        if decree <= self.committed {
            return Vec::new();
        }
        let from = self.index(self.committed.next()).expect("above base, for base is never above committed");
        let to = self.index(decree).expect("at most prepared");
        let committed: Vec<_> = self.entries.range(from..=to).map(|e| e.mutation.clone()).collect();
        self.committed_bytes += committed.iter().map(|m| m.body.len()).sum::<usize>();
        self.committed = decree;
        committed
    }

    pub fn applied_to(&mut self, upto: Decree) {
        self.applied = self.applied.max(upto.min(self.committed));
    }

    /// Drops the oldest applied mutations beyond `count` and `bytes`.
    pub fn trim(&mut self, count: usize, bytes: usize) {
        while let Some(first) = self.entries.front() {
            let kept = usize::try_from(self.committed.0 - self.base.0).unwrap_or(0);
            let excess = kept > count || self.committed_bytes > bytes;
            if !excess || first.mutation.decree > self.applied {
                break;
            }
            let len = first.mutation.body.len();
            self.bytes -= len;
            self.committed_bytes -= len;
            self.base = first.mutation.decree;
            self.entries.pop_front();
        }
    }

    /// What is applied and still kept shall not keep the buffers alive in which it came. To be called now and then: most
    /// mutations are gone by then, and copying each would cost as much as applying it.
    pub fn own_applied(&mut self) {
        let applied = self.applied;
        for entry in self.entries.iter_mut().take_while(|e| e.mutation.decree <= applied) {
            if !std::mem::replace(&mut entry.owned, true) {
                entry.mutation.body = Bytes::copy_from_slice(&entry.mutation.body);
            }
        }
    }

    pub fn last_timestamp_us(&self) -> u64 {
        self.entries.iter().map(|e| e.mutation.timestamp_us).max().unwrap_or(0)
    }

    /// The first violated order, if any. The walk over the entries is for debug builds.
    pub fn check(&self) -> Result<(), String> {
        let order = [self.base, self.applied, self.committed, self.prepared()];
        if !order.is_sorted() {
            return Err(format!("base, applied, committed, prepared out of order: {order:?}"));
        }
        if self.durable > self.prepared() || self.durable < self.base {
            return Err(format!("durable {} outside of {order:?}", self.durable));
        }
        if cfg!(debug_assertions) {
            let mut decree = self.base;
            for entry in &self.entries {
                decree = decree.next();
                if entry.mutation.decree != decree {
                    return Err(format!("decree {} lies where {decree} belongs", entry.mutation.decree));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pegasus_types::Gpid;

    use super::*;

    fn mutation(decree: i64, origin: i64) -> Mutation {
        Mutation::new(Gpid::new(1, 0), Decree(decree), Ballot(origin), 7, Bytes::from_static(b"12345"))
    }

    fn filled() -> Tail {
        let mut tail = Tail::new(Decree(10));
        for d in 11..=15 {
            assert_eq!(tail.offer(Ballot(1), mutation(d, 1)), Offer::Taken);
        }
        tail.logged(Decree(15));
        tail
    }

    #[test]
    fn the_same_content_stays_and_another_voids_what_follows() {
        let mut tail = filled();
        assert_eq!(tail.offer(Ballot(2), mutation(12, 1)), Offer::Taken);
        assert_eq!((tail.prepared(), tail.durable()), (Decree(15), Decree(15)));
        assert_eq!(tail.offer(Ballot(2), mutation(13, 2)), Offer::Taken);
        assert_eq!((tail.prepared(), tail.durable()), (Decree(13), Decree(12)));
        assert!(tail.take_cut() && !tail.take_cut());
        assert_eq!(tail.offer(Ballot(2), mutation(15, 2)), Offer::Gap);
        tail.check().unwrap();
    }

    #[test]
    fn a_committed_decree_never_changes() {
        let mut tail = filled();
        assert_eq!(tail.commit_to(Decree(13)).len(), 3);
        assert_eq!(tail.offer(Ballot(2), mutation(13, 2)), Offer::Mismatch);
        assert_eq!(tail.offer(Ballot(2), mutation(13, 1)), Offer::Taken);
        assert!(tail.contradicts(&mutation(13, 2)));
        assert_eq!(tail.commit_to(Decree(99)).len(), 2);
        assert!(tail.commit_to(Decree(12)).is_empty());
    }

    #[test]
    fn trimming_keeps_what_is_not_applied() {
        let mut tail = filled();
        tail.commit_to(Decree(14));
        tail.trim(1, usize::MAX);
        assert_eq!(tail.base(), Decree(10));
        tail.applied_to(Decree(12));
        tail.trim(1, usize::MAX);
        assert_eq!(tail.base(), Decree(12));
        tail.applied_to(Decree(14));
        tail.trim(100, 5);
        assert_eq!((tail.base(), tail.in_flight(), tail.in_flight_bytes()), (Decree(13), 1, 5));
        tail.check().unwrap();
    }

    #[test]
    fn what_is_applied_lets_go_of_its_buffer() {
        let mut tail = filled();
        tail.commit_to(Decree(12));
        tail.applied_to(Decree(12));
        let places = |tail: &Tail| [11, 12, 13].map(|d| tail.get(Decree(d)).unwrap().body.as_ptr());
        let before = places(&tail);
        tail.own_applied();
        let after = places(&tail);
        assert!(before[0] != after[0] && before[1] != after[1] && before[2] == after[2]);
        tail.own_applied();
        assert_eq!(places(&tail), after, "copied once");
        assert!((11..=15).all(|d| tail.get(Decree(d)).unwrap().verify()));
    }

    #[test]
    fn recovered_decrees_must_fit() {
        let good =
            vec![(Ballot(1), mutation(9, 1)), (Ballot(1), mutation(10, 1)), (Ballot(2), mutation(11, 2))];
        let tail = Tail::recovered(Decree(9), Decree(10), good.clone()).unwrap();
        // What is committed and not applied is committed by the replica itself, so that it gets applied.
        assert_eq!((tail.base(), tail.applied(), tail.committed()), (Decree(8), Decree(9), Decree(9)));
        assert_eq!((tail.prepared(), tail.in_flight_bytes()), (Decree(11), 10));
        assert!(Tail::recovered(Decree(7), Decree(7), good.clone()).is_none(), "gap after applied");
        assert!(Tail::recovered(Decree(9), Decree(12), good.clone()).is_none(), "committed beyond prepared");
        let holes = vec![good[0].clone(), good[2].clone()];
        assert!(Tail::recovered(Decree(9), Decree(9), holes).is_none());
        assert!(Tail::recovered(Decree(9), Decree(9), Vec::new()).is_some());
    }
}
