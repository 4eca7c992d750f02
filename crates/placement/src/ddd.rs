//! "Dead, dead, dead": a partition without a living member, and whose copy to go on with.
//!
//! The primary of a partition is never removed without a successor, so that a group whose nodes all died waits
//! for the first of them to return: it is in the configuration and has everything that was acknowledged. What
//! comes here by itself is a partition whose configuration names nobody: recalled, or taken over from metadata
//! of the reference. Then the rule of replication.md 6.6 holds: the last member that left may lack what was only
//! in the other's page cache, so the last two are compared.

use std::collections::BTreeMap;

use pegasus_types::meta::ReplicaReport;
use pegasus_types::{Ballot, Decree, Gpid, Node, PartitionConfig};

/// What a node reported of its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub ballot: Ballot,
    pub committed: Decree,
    pub prepared: Decree,
}

impl Seen {
    pub fn of(report: &ReplicaReport) -> Self {
        Self { ballot: report.ballot, committed: report.committed, prepared: report.prepared }
    }
}

/// One node that is or was a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    pub node: Node,
    /// None: before this leader began, or it is a member.
    pub left_ms_ago: Option<u64>,
    pub alive: bool,
    /// It has told this leader what it holds.
    pub reported: bool,
    /// Its copy, if it has one.
    pub seen: Option<Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    pub gpid: Gpid,
    /// Members, then former members, the newest first.
    pub former: Vec<Former>,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Take(Node),
    /// Somebody has to return or to report first.
    Wait(String),
    /// No rule tells which one is right.
    Operator(String),
}

/// Whose copy to go on with. `has_reported`: alive and told what it holds.
pub fn choose(
    config: &PartitionConfig,
    seen: &BTreeMap<Node, Seen>,
    has_reported: impl Fn(&Node) -> bool,
) -> Choice {
    let mut newest = config.last_drops.iter().rev();
    let Some(last) = newest.next() else {
        return Choice::Operator(
            "it had members once, and nobody knows which: an operator must choose".into(),
        );
    };
    let candidates: Vec<&Node> = std::iter::once(last).chain(newest.next()).collect();
    if let Some(absent) = candidates.iter().find(|node| !has_reported(node)) {
        return Choice::Wait(format!("no member is left: waiting for {absent} to return and report"));
    }
    let mut copies: Vec<(Seen, &Node)> =
        candidates.iter().filter_map(|node| Some((*seen.get(*node)?, *node))).collect();
    // Newest ballot first.
    copies.sort_by_key(|(seen, _)| std::cmp::Reverse((seen.ballot, seen.committed, seen.prepared)));
    let Some((best, node)) = copies.first() else {
        let nodes: Vec<_> = candidates.iter().map(|node| node.as_str()).collect();
        return Choice::Operator(format!(
            "{} hold no copy any more: an operator must choose",
            nodes.join(" and ")
        ));
    };
    if let Some((other, other_node)) = copies.get(1)
        && other.committed > best.committed
    {
        return Choice::Operator(format!(
            "{node} has the newer ballot and {other_node} has committed more: an operator must choose"
        ));
    }
    if best.prepared < config.last_committed {
        return Choice::Operator(format!(
            "{node} has prepared up to {}, and {} was committed: an operator must choose",
            best.prepared, config.last_committed
        ));
    }
    Choice::Take((*node).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{config, node};

    #[test]
    fn every_branch() {
        let copy = |ballot, committed, prepared| Seen {
            ballot: Ballot(ballot),
            committed: Decree(committed),
            prepared: Decree(prepared),
        };
        let take = |n| Choice::Take(node(n));
        let told = |choice: &Choice| match choice {
            Choice::Take(node) => node.to_string(),
            Choice::Wait(why) | Choice::Operator(why) => why.clone(),
        };
        // drops (oldest first), reported, copies, committed by the meta -> chosen or part of the reason
        type Case<'a> = (&'a [usize], &'a [usize], &'a [(usize, Seen)], i64, Result<Choice, &'a str>);
        let cases: &[Case<'_>] = &[
            (&[], &[1], &[], 0, Err("nobody knows which")),
            (&[1], &[], &[], 0, Err("waiting for")),
            (&[1], &[1], &[(1, copy(3, 5, 6))], 0, Ok(take(1))),
            (&[1], &[1], &[], 0, Err("no copy any more")),
            // Scenario 29: (a) both back, (b) only the last, (c) only the earlier, (d) the last with less.
            (&[3, 1, 2], &[1, 2], &[(1, copy(4, 9, 9)), (2, copy(5, 9, 9))], 9, Ok(take(2))),
            (&[1, 2], &[2], &[(2, copy(5, 9, 9))], 0, Err("waiting for 127.0.0.1:34801")),
            (&[1, 2], &[1], &[(1, copy(5, 9, 9))], 0, Err("waiting for 127.0.0.1:34802")),
            (&[1, 2], &[1, 2], &[(1, copy(4, 9, 9)), (2, copy(5, 8, 8))], 0, Err("committed more")),
            (&[1, 2], &[1, 2], &[(1, copy(5, 9, 9)), (2, copy(5, 8, 9))], 9, Ok(take(1))),
            (&[1, 2], &[1, 2], &[(1, copy(5, 9, 9)), (2, copy(5, 9, 10))], 9, Ok(take(2))),
            (&[1, 2], &[1, 2], &[(2, copy(5, 9, 9))], 9, Ok(take(2))),
            (&[1, 2], &[1, 2], &[(2, copy(5, 9, 9))], 10, Err("10 was committed")),
            (&[1, 2], &[1, 2], &[], 0, Err("no copy any more")),
        ];
        for (drops, reported, copies, committed, want) in cases {
            let stored = PartitionConfig {
                last_drops: drops.iter().map(|n| node(*n)).collect(),
                last_committed: Decree(*committed),
                ..config(0, 6, 0, &[])
            };
            let seen = copies.iter().map(|(n, seen)| (node(*n), *seen)).collect();
            let got = choose(&stored, &seen, |n| reported.iter().any(|r| node(*r) == *n));
            match want {
                Ok(want) => assert_eq!(got, *want, "{drops:?} {copies:?}"),
                Err(part) => assert!(told(&got).contains(part), "{drops:?} {copies:?}: {got:?}"),
            }
        }
    }
}
