//! The next configuration of one partition, or why there is none.
//!
//! Every change is conditional on the ballot that the asker knows and yields ballot + 1: of all requests at
//! one ballot at most one succeeds. The caller stores the result, conditional on the version that it read,
//! before anybody hears of it.

use pegasus_types::meta::ChangeRequest;
use pegasus_types::{Ballot, ChangeKind, Node, PartitionConfig};

use crate::view::FLAG_DROPPED;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("no such partition")]
    NoPartition,
    #[error("the partition is at ballot {stored}, not {asked}")]
    StaleBallot { stored: Ballot, asked: Ballot },
    /// The store went back in time: the partition must be frozen (safety-rules.md 4.4).
    #[error("ballot {asked} is above the stored {stored}: the metadata is older than the nodes")]
    FutureBallot { stored: Ballot, asked: Ballot },
    #[error("the table is dropped")]
    Dropped,
    #[error("the partition is frozen: a node reported a higher ballot than stored")]
    Frozen,
    #[error("the meta-server's level does not allow changes")]
    LevelForbids,
    #[error("{0} is not the primary")]
    NotPrimary(Node),
    #[error("{0} is not a secondary")]
    NotSecondary(Node),
    #[error("{0} is a member already")]
    AlreadyMember(Node),
    #[error("the partition has its {0} members")]
    Full(usize),
}

/// Applies a node's request to the stored configuration.
pub fn apply(current: &PartitionConfig, request: &ChangeRequest) -> Result<PartitionConfig, Rejected> {
    let (stored, asked) = (current.ballot, request.ballot);
    if asked > stored {
        return Err(Rejected::FutureBallot { stored, asked });
    }
    if asked < stored {
        return Err(Rejected::StaleBallot { stored, asked });
    }
    if current.partition_flags & FLAG_DROPPED != 0 {
        return Err(Rejected::Dropped);
    }
    let mut next = successor(current);
    next.last_committed = current.last_committed.max(request.committed);
    match &request.kind {
        ChangeKind::TakeOver { claimant } => {
            require_secondary(current, claimant)?;
            promote(&mut next, claimant);
            if let Some(old) = &current.primary {
                remember_drop(&mut next, old);
            }
        }
        ChangeKind::Renew { primary } => require_primary(current, primary)?,
        ChangeKind::AddSecondary { primary, node } => {
            require_primary(current, primary)?;
            if current.is_member(node) {
                return Err(Rejected::AlreadyMember(node.clone()));
            }
            let members = current.member_count();
            // One more than wanted while a copy moves to another node.
            if members > usize::try_from(current.max_replica_count).unwrap_or(0) {
                return Err(Rejected::Full(members));
            }
            next.secondaries.push(node.clone());
            next.last_drops.retain(|n| n != node);
        }
        ChangeKind::RemoveSecondary { primary, node } => {
            require_primary(current, primary)?;
            require_secondary(current, node)?;
            next.secondaries.retain(|n| n != node);
            remember_drop(&mut next, node);
        }
        ChangeKind::HandOver { primary, to, stay } => {
            require_primary(current, primary)?;
            require_secondary(current, to)?;
            promote(&mut next, to);
            if *stay {
                next.secondaries.push(primary.clone());
            } else {
                remember_drop(&mut next, primary);
            }
        }
    }
    Ok(next)
}

/// Is `current` what this request made of the ballot before? A repeated request after a lost answer is then
/// answered like the first. [`ChangeKind::Renew`] is never recognised: its result looks like that of others,
/// and a refused one is repeated at the new ballot anyway.
pub fn already_done(current: &PartitionConfig, request: &ChangeRequest) -> bool {
    if current.ballot != request.ballot.next() {
        return false;
    }
    let dropped_last = |node: &Node| current.last_drops.last() == Some(node) && !current.is_member(node);
    match &request.kind {
        ChangeKind::TakeOver { claimant } => current.is_primary(claimant),
        ChangeKind::Renew { .. } => false,
        ChangeKind::AddSecondary { primary, node } => {
            current.is_primary(primary) && current.is_secondary(node)
        }
        ChangeKind::RemoveSecondary { primary, node } => current.is_primary(primary) && dropped_last(node),
        ChangeKind::HandOver { primary, to, stay } => {
            current.is_primary(to)
                && if *stay { current.is_secondary(primary) } else { dropped_last(primary) }
        }
    }
}

/// The configuration of a partition that has no members: all of a new one at once, since they are all empty
/// (safety-rules.md 3.6).
pub fn first(current: &PartitionConfig, primary: Node, secondaries: Vec<Node>) -> PartitionConfig {
    let mut next = PartitionConfig { primary: Some(primary), secondaries, ..successor(current) };
    let PartitionConfig { last_drops, primary, secondaries, .. } = &mut next;
    last_drops.retain(|node| primary.as_ref() != Some(node) && !secondaries.contains(node));
    next
}

/// A partition without a living member begins again with the copy on `node`, by an operator's order. Who was a
/// member is remembered.
pub fn force(current: &PartitionConfig, node: &Node) -> PartitionConfig {
    let mut next = current.clone();
    for member in current.secondaries.iter().chain(&current.primary) {
        remember_drop(&mut next, member);
    }
    first(&next, node.clone(), Vec::new())
}

/// The table is dropped: nobody is a member any more. The members are remembered, they alone and the primary last,
/// so that a recall knows who has everything.
pub fn drop_partition(current: &PartitionConfig) -> PartitionConfig {
    let mut next = successor(current);
    next.last_drops.clear();
    for node in current.secondaries.iter().chain(&current.primary) {
        remember_drop(&mut next, node);
    }
    next.primary = None;
    next.secondaries.clear();
    next.partition_flags |= FLAG_DROPPED;
    next
}

fn successor(current: &PartitionConfig) -> PartitionConfig {
    PartitionConfig { ballot: current.ballot.next(), ..current.clone() }
}

fn promote(next: &mut PartitionConfig, node: &Node) {
    next.secondaries.retain(|n| n != node);
    next.primary = Some(node.clone());
}

fn remember_drop(next: &mut PartitionConfig, node: &Node) {
    next.last_drops.retain(|n| n != node);
    next.last_drops.push(node.clone());
    let excess = next.last_drops.len().saturating_sub(PartitionConfig::LAST_DROPS_KEPT);
    next.last_drops.drain(..excess);
}

fn require_primary(current: &PartitionConfig, node: &Node) -> Result<(), Rejected> {
    if current.is_primary(node) { Ok(()) } else { Err(Rejected::NotPrimary(node.clone())) }
}

fn require_secondary(current: &PartitionConfig, node: &Node) -> Result<(), Rejected> {
    if current.is_secondary(node) { Ok(()) } else { Err(Rejected::NotSecondary(node.clone())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{config, node};
    use pegasus_types::Decree;

    fn ask(ballot: i64, kind: ChangeKind) -> ChangeRequest {
        ChangeRequest { gpid: config(0, 1, 1, &[]).gpid, ballot: Ballot(ballot), kind, committed: Decree(7) }
    }

    /// Builds kinds by node numbers, to keep the tables short.
    fn kind(what: &str, a: usize, b: usize) -> ChangeKind {
        let (primary, other) = (node(a), node(b));
        match what {
            "take" => ChangeKind::TakeOver { claimant: primary },
            "renew" => ChangeKind::Renew { primary },
            "add" => ChangeKind::AddSecondary { primary, node: other },
            "remove" => ChangeKind::RemoveSecondary { primary, node: other },
            "hand" => ChangeKind::HandOver { primary, to: other, stay: false },
            "swap" => ChangeKind::HandOver { primary, to: other, stay: true },
            _ => unreachable!(),
        }
    }

    #[test]
    fn legal_changes() {
        // stored members, what, asker, other -> primary, secondaries, last drops
        for (members, what, a, b, primary, secondaries, drops) in [
            ([1, 2, 3].as_slice(), "take", 2, 0, 2, [3].as_slice(), [1].as_slice()),
            (&[1, 2], "take", 2, 0, 2, &[], &[1]),
            (&[1, 2, 3], "renew", 1, 0, 1, &[2, 3], &[]),
            (&[1, 2], "add", 1, 4, 1, &[2, 4], &[]),
            (&[1, 2, 3], "remove", 1, 3, 1, &[2], &[3]),
            (&[1, 3], "remove", 1, 3, 1, &[], &[3]),
            (&[1, 2, 3], "hand", 1, 3, 3, &[2], &[1]),
            (&[1, 2, 3], "swap", 1, 3, 3, &[2, 1], &[]),
        ] {
            let current = config(0, 5, members[0], &members[1..]);
            let request = ask(5, kind(what, a, b));
            let next = apply(&current, &request).unwrap();
            let mut want = config(0, 6, primary, secondaries);
            want.last_drops = drops.iter().map(|n| node(*n)).collect();
            want.last_committed = Decree(7);
            assert_eq!(next, want, "{what}");
            assert_eq!(already_done(&next, &request), what != "renew", "{what}");
            assert!(!already_done(&current, &request), "{what}");
            assert!(apply(&next, &request).is_err(), "{what}: at most one change per ballot");
        }
    }

    #[test]
    fn illegal_changes() {
        use Rejected::*;
        let stored = config(0, 5, 1, &[2, 3]);
        let dropped = PartitionConfig { partition_flags: FLAG_DROPPED, ..config(0, 5, 0, &[]) };
        let unassigned = config(0, 0, 0, &[]);
        let over = config(0, 5, 1, &[2, 3, 4]);
        assert!(apply(&stored, &ask(5, kind("add", 1, 4))).is_ok(), "one more, while a copy moves");
        for (current, ballot, kind, why) in [
            (&stored, 4, kind("renew", 1, 0), StaleBallot { stored: Ballot(5), asked: Ballot(4) }),
            (&stored, 6, kind("renew", 1, 0), FutureBallot { stored: Ballot(5), asked: Ballot(6) }),
            (&stored, 5, kind("renew", 2, 0), NotPrimary(node(2))),
            (&stored, 5, kind("take", 1, 0), NotSecondary(node(1))),
            (&stored, 5, kind("take", 4, 0), NotSecondary(node(4))),
            (&over, 5, kind("add", 1, 5), Full(4)),
            (&stored, 5, kind("add", 1, 3), AlreadyMember(node(3))),
            (&stored, 5, kind("add", 1, 1), AlreadyMember(node(1))),
            (&stored, 5, kind("remove", 2, 3), NotPrimary(node(2))),
            (&stored, 5, kind("remove", 1, 1), NotSecondary(node(1))),
            (&stored, 5, kind("hand", 1, 4), NotSecondary(node(4))),
            (&stored, 5, kind("hand", 2, 3), NotPrimary(node(2))),
            (&dropped, 5, kind("take", 2, 0), Dropped),
            (&unassigned, 0, kind("take", 2, 0), NotSecondary(node(2))),
        ] {
            assert_eq!(apply(current, &ask(ballot, kind.clone())), Err(why), "{kind:?}");
        }
    }

    #[test]
    fn a_result_of_somebody_else_is_not_mine() {
        let base = config(0, 5, 1, &[2, 3]);
        let taken = apply(&base, &ask(5, kind("take", 3, 0))).unwrap();
        for other in [
            kind("take", 2, 0),
            kind("renew", 1, 0),
            kind("remove", 1, 3),
            kind("hand", 1, 2),
            kind("swap", 1, 3),
        ] {
            assert!(!already_done(&taken, &ask(5, other.clone())), "{other:?}");
        }
        let twice = apply(&taken, &ask(6, kind("renew", 3, 0))).unwrap();
        assert!(!already_done(&twice, &ask(5, kind("take", 3, 0))), "two ballots later");
    }

    #[test]
    fn last_drops_keep_the_newest_three_and_lose_who_returns() {
        let mut current = config(0, 1, 1, &[2, 3]);
        current.last_drops = vec![node(4), node(5), node(6)];
        let next = apply(&current, &ask(1, kind("remove", 1, 3))).unwrap();
        assert_eq!(next.last_drops, [node(5), node(6), node(3)]);
        let next = apply(&next, &ask(2, kind("add", 1, 6))).unwrap();
        assert_eq!(next.last_drops, [node(5), node(3)]);
    }

    #[test]
    fn first_and_drop() {
        let made = first(&config(0, 0, 0, &[]), node(1), vec![node(2)]);
        assert_eq!(made, config(0, 1, 1, &[2]));
        let forced = force(&config(0, 3, 1, &[2, 3]), &node(3));
        let want = PartitionConfig { last_drops: vec![node(2), node(1)], ..config(0, 4, 3, &[]) };
        assert_eq!(forced, want);
        let gone = drop_partition(&config(0, 3, 1, &[2, 3]));
        assert_eq!((gone.ballot, gone.member_count(), gone.partition_flags), (Ballot(4), 0, FLAG_DROPPED));
        assert_eq!(gone.last_drops, [node(2), node(3), node(1)]);
    }
}
