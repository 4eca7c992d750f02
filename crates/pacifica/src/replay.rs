//! From log records to a recovered replica.

use std::collections::VecDeque;

use pegasus_types::{Ballot, Decree, LogLocation, Mutation, PartitionConfig};

use crate::Recovered;

/// Takes the records of one copy in decree order (or in the order of the log), gives back what is committed for
/// the engine, and keeps the rest as the tail.
///
/// A decree may be recorded several times: prepared again by a later primary, or again by the same one after
/// a change of membership. The newest record counts. If it tells another content than the record before, all
/// later decrees recorded so far are void: they were prepared after something that never was committed. With
/// the same content they stay, for they may have been acknowledged.
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

    /// Whoever made a decree had all decrees before it, so origins never decrease. Where they do, a log that tells
    /// only the newest record of each decree shows one that was replaced, and void ones after it.
    fn cut_void(&mut self) {
        let tail = usize::try_from(self.prepared().0 - self.committed.0).unwrap_or(0);
        for index in (self.entries.len() - tail).max(1)..self.entries.len() {
            if self.entries[index].1.origin < self.entries[index - 1].1.origin {
                return self.entries.truncate(index);
            }
        }
    }

    /// The replica, and where the mutations of its tail lie.
    pub fn finish(
        mut self,
        config: PartitionConfig,
        learning: bool,
        intact: bool,
    ) -> (Recovered, Vec<(Decree, LogLocation)>) {
        self.cut_void();
        let locations = self.entries.iter().map(|(_, m, l)| (m.decree, *l)).collect();
        let tail = self.entries.into_iter().map(|(ballot, mutation, _)| (ballot, mutation)).collect();
        let (applied, committed) = (self.applied, self.committed);
        (Recovered { config, learning, intact, applied, committed, tail }, locations)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pegasus_types::Gpid;

    use super::*;

    const GPID: Gpid = Gpid::new(1, 0);

    /// Pushes (decree, origin, ballot, committed) and gives (applied, tail) decrees with origins.
    type Told = Vec<(i64, i64)>;
    fn replay(durable: i64, records: &[(i64, i64, i64, i64)]) -> Result<(Told, Told), ReplayError> {
        let mut replay = Replay::new(Decree(durable), 2);
        let mut applied = Vec::new();
        for &(decree, origin, ballot, committed) in records {
            let body = Bytes::from(format!("{decree} of {origin}"));
            let mutation = Mutation::new(GPID, Decree(decree), Ballot(origin), 1, body);
            replay.push(Ballot(ballot), Decree(committed), mutation, LogLocation::default(), &mut applied)?;
        }
        let (recovered, locations) = replay.finish(PartitionConfig::unassigned(GPID, 3), false, true);
        assert_eq!(locations.len(), recovered.tail.len());
        assert_eq!(recovered.applied, recovered.committed);
        let told = |m: &Mutation| (m.decree.0, m.origin.0);
        let applied = applied.iter().map(|(m, _)| told(m)).collect();
        let tail = recovered.tail.iter().filter(|(_, m)| m.decree > recovered.applied);
        Ok((applied, tail.map(|(_, m)| told(m)).collect()))
    }

    #[test]
    fn the_newest_record_counts() {
        let first = [(1, 1, 1, 0), (2, 1, 1, 0), (3, 1, 1, 1)];
        assert_eq!(replay(0, &first).unwrap(), (vec![(1, 1)], vec![(2, 1), (3, 1)]));
        // Prepared again with the same content: what follows stays.
        let again = [&first[..], &[(2, 1, 4, 1)]].concat();
        assert_eq!(replay(0, &again).unwrap(), (vec![(1, 1)], vec![(2, 1), (3, 1)]));
        // Replaced: what follows is void.
        let replaced = [&first[..], &[(2, 4, 4, 1)]].concat();
        assert_eq!(replay(0, &replaced).unwrap(), (vec![(1, 1)], vec![(2, 4)]));
        // The same from a log that tells the newest record only.
        let newest = [first[0], (2, 4, 4, 1), first[2]];
        assert_eq!(replay(0, &newest).unwrap(), (vec![(1, 1)], vec![(2, 4)]));
        // The commit point that an old record tells does not reach past what is there.
        assert_eq!(replay(0, &[(1, 1, 1, 9)]).unwrap(), (vec![(1, 1)], vec![]));
    }

    #[test]
    fn gaps_and_contradictions_are_found() {
        assert_eq!(replay(4, &[(6, 1, 1, 0)]), Err(ReplayError::Gap { last: Decree(4), found: Decree(6) }));
        let hole = [(5, 1, 1, 0), (7, 1, 1, 0)];
        assert_eq!(replay(4, &hole), Err(ReplayError::Gap { last: Decree(5), found: Decree(7) }));
        let contradiction = [(5, 1, 1, 0), (6, 1, 1, 5), (5, 2, 2, 5)];
        assert_eq!(replay(4, &contradiction), Err(ReplayError::Mismatch(Decree(5))));
        assert_eq!(replay(4, &[]).unwrap(), (vec![], vec![]));
        // Records that the engine holds already are welcome.
        assert_eq!(replay(4, &[(4, 1, 1, 3), (5, 1, 1, 4)]).unwrap(), (vec![], vec![(5, 1)]));
    }
}
