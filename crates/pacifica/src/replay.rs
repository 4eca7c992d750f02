//! From log records to a recovered replica.

use std::collections::VecDeque;

use pegasus_types::{Ballot, Decree, LogLocation, Mutation, PartitionConfig};

use crate::Recovered;

/// Takes the records of one copy in log order, gives back what is committed for the engine, and keeps the
/// rest as the tail.
///
/// A decree may be recorded several times: prepared again by a later primary, or again by the same one after
/// a change of membership. The newest record counts. If it tells another content than the record before, all
/// later decrees recorded so far are void too: they were prepared after something that never was committed.
/// With the same content they stay, for they may have been acknowledged.
#[derive(Debug)]
pub struct Replay {
    applied: Decree,
    committed: Decree,
    keep: usize,
    /// Committed and applied ones that are kept, then the tail proper. Consecutive decrees.
    entries: VecDeque<(Ballot, Mutation, LogLocation)>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("decree {found} follows {expected}: records between are missing", expected = .last)]
    Gap { last: Decree, found: Decree },
    #[error("decree {0} is recorded with two contents, the first of them committed")]
    Mismatch(Decree),
}

impl Replay {
    /// `durable` = what the engine surely holds; records from `durable + 1` on are needed, earlier ones are
    /// welcome. `keep` = how many committed mutations to hand to the core for peers that lag
    /// ([`Options::recent`](crate::Options::recent)).
    pub fn new(durable: Decree, keep: usize) -> Self {
        Self { applied: durable, committed: durable, keep, entries: VecDeque::new() }
    }

    /// `committed` as in the record. What must go into the engine now is appended to `apply`.
    pub fn push(
        &mut self,
        ballot: Ballot,
        committed: Decree,
        mutation: Mutation,
        location: LogLocation,
        apply: &mut Vec<(Mutation, LogLocation)>,
    ) -> Result<(), ReplayError> {
        let decree = mutation.decree;
        match self.entries.front() {
            None if decree > self.applied.next() => {
                return Err(ReplayError::Gap { last: self.applied, found: decree });
            }
            None => self.entries.push_back((ballot, mutation, location)),
            // Older than anything kept: committed and applied long ago.
            Some((_, first, _)) if decree < first.decree => {}
            Some((_, first, _)) => {
                let index = usize::try_from(decree.0 - first.decree.0).unwrap_or(usize::MAX);
                if index > self.entries.len() {
                    return Err(ReplayError::Gap { last: self.prepared(), found: decree });
                }
                if let Some((_, known, _)) = self.entries.get(index) {
                    if known.same_content(&mutation) {
                        self.entries[index] = (ballot, mutation, location);
                    } else if decree <= self.committed {
                        return Err(ReplayError::Mismatch(decree));
                    } else {
                        self.entries.truncate(index);
                        self.entries.push_back((ballot, mutation, location));
                    }
                } else {
                    self.entries.push_back((ballot, mutation, location));
                }
            }
        }
        self.committed = self.committed.max(committed.min(self.prepared()));
        self.release(apply);
        Ok(())
    }

    fn prepared(&self) -> Decree {
        self.entries.back().map_or(self.applied, |(_, m, _)| m.decree)
    }

    fn release(&mut self, apply: &mut Vec<(Mutation, LogLocation)>) {
        if self.committed > self.applied {
            let first = self.entries.front().map_or(self.applied, |(_, m, _)| m.decree);
            let from = usize::try_from((self.applied.next().0 - first.0).max(0)).unwrap_or(0);
            let to = usize::try_from(self.committed.next().0 - first.0).unwrap_or(0);
            apply.extend(self.entries.range(from..to).map(|(_, m, l)| (m.clone(), *l)));
            self.applied = self.committed;
        }
        while self.entries.len() > self.keep
            && self.entries.front().is_some_and(|(_, m, _)| m.decree <= self.applied)
        {
            self.entries.pop_front();
        }
    }

    /// The replica, and where the mutations of its tail lie.
    pub fn finish(
        self,
        config: PartitionConfig,
        learning: bool,
        intact: bool,
    ) -> (Recovered, Vec<(Decree, LogLocation)>) {
        let locations = self.entries.iter().map(|(_, m, l)| (m.decree, *l)).collect();
        let tail = self.entries.into_iter().map(|(ballot, mutation, _)| (ballot, mutation)).collect();
        let (applied, committed) = (self.applied, self.committed);
        (Recovered { config, learning, intact, applied, committed, tail }, locations)
    }
}
