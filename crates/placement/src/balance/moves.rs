//! Moves that are under way: what each needs next, and when new ones may begin.

use std::collections::BTreeMap;

use pegasus_types::meta::Proposal;
use pegasus_types::{Gpid, Millis, Node, PartitionConfig};

use super::{Kind, Move, Plan};

/// How fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Nothing begins before everything was healthy for this time (`lb_interval_ms`).
    pub calm_ms: u64,
    /// A move that shows no progress for this time has failed.
    pub patience_ms: u64,
    /// After a failed move nothing begins for this time.
    pub pause_ms: u64,
    /// Hand-overs at a time: each stops the writes of its partition for some milliseconds.
    pub roles: usize,
    /// Copies at a time (`balance_op_count_per_round` bounds the reference's moves): each costs two nodes disk and
    /// network.
    pub copies: usize,
    /// Copies at a time that one node gives or takes.
    pub copies_per_node: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            calm_ms: 10_000,
            patience_ms: 60_000,
            pause_ms: 60_000,
            roles: 10,
            copies: 6,
            copies_per_node: 2,
        }
    }
}

/// What a move needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// To the primary.
    Propose(Proposal),
    Done,
    /// Something else has happened to the partition.
    Void(&'static str),
}

/// The next step of a move of a partition whose members are all well. Nobody is removed while there are not
/// more members than wanted.
pub fn step(config: &PartitionConfig, what: &Move) -> Step {
    let (from, to) = (&what.from, &what.to);
    let wanted = usize::try_from(config.max_replica_count).unwrap_or(0);
    match what.kind {
        Kind::MovePrimary if config.is_primary(to) => Step::Done,
        Kind::MovePrimary if config.is_primary(from) && config.is_secondary(to) => {
            Step::Propose(Proposal::HandOver { to: to.clone() })
        }
        Kind::MovePrimary => Step::Void("the roles have changed"),
        Kind::CopyPrimary | Kind::CopySecondary => match (config.is_member(from), config.is_member(to)) {
            (false, true) => Step::Done,
            (false, false) => Step::Void("neither node is a member"),
            (true, false) if config.member_count() > wanted => Step::Void("there is one member too many"),
            (true, false) => Step::Propose(Proposal::AddSecondary { node: to.clone() }),
            (true, true) if config.member_count() <= wanted => Step::Void("a member has left"),
            (true, true) if config.is_primary(from) => Step::Propose(Proposal::HandOver { to: to.clone() }),
            (true, true) => Step::Propose(Proposal::RemoveSecondary { node: from.clone() }),
        },
    }
}

#[derive(Clone, Debug)]
struct Active {
    what: Move,
    /// The last sign of progress.
    moved_at: Millis,
}

/// The moves under way, at most one per partition.
#[derive(Clone, Debug, Default)]
pub struct Moves {
    active: BTreeMap<Gpid, Active>,
    /// Since when everything is healthy.
    calm_since: Option<Millis>,
    not_before: Millis,
}

impl Moves {
    pub fn get(&self, gpid: Gpid) -> Option<&Move> {
        self.active.get(&gpid).map(|active| &active.what)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Move> {
        self.active.values().map(|active| &active.what)
    }

    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    pub fn begin(&mut self, now: Millis, what: Move) {
        self.active.insert(what.gpid, Active { what, moved_at: now });
    }

    pub fn end(&mut self, gpid: Gpid) {
        self.active.remove(&gpid);
    }

    pub fn clear(&mut self) {
        self.active.clear();
    }

    /// The move of this partition goes on.
    pub fn moved(&mut self, now: Millis, gpid: Gpid) {
        if let Some(active) = self.active.get_mut(&gpid) {
            active.moved_at = now;
        }
    }

    /// `node` learns this partition.
    pub fn learns(&mut self, now: Millis, gpid: Gpid, node: &Node) {
        if self.get(gpid).is_some_and(|what| what.to == *node) {
            self.moved(now, gpid);
        }
    }

    /// Gives up a move without progress. True when it did.
    pub fn give_up(&mut self, now: Millis, gpid: Gpid, pace: &Pace) -> bool {
        let late = self.active.get(&gpid).is_some_and(|a| now.since(a.moved_at) >= pace.patience_ms);
        if late {
            self.active.remove(&gpid);
            self.not_before = now + pace.pause_ms;
        }
        late
    }

    /// Is everything healthy, apart from what moves?
    pub fn set_calm(&mut self, now: Millis, calm: bool) {
        self.calm_since = if calm { self.calm_since.or(Some(now)) } else { None };
    }

    /// When the next moves may begin, if nothing happens until then; None while something moves or is ill.
    pub fn due_at(&self, pace: &Pace) -> Option<Millis> {
        let calm_since = self.calm_since.filter(|_| self.active.is_empty())?;
        Some((calm_since + pace.calm_ms).max(self.not_before))
    }

    /// Nothing was found to do: no need to look before this.
    pub fn rest_until(&mut self, until: Millis) {
        self.not_before = self.not_before.max(until);
    }
}

/// The first moves of a plan that may run side by side.
pub fn first_of(plan: &Plan, pace: &Pace) -> Vec<Move> {
    let mut chosen: Vec<Move> = Vec::new();
    let mut per_node: BTreeMap<&Node, usize> = BTreeMap::new();
    let (mut roles, mut copies) = (0, 0);
    for what in &plan.moves {
        if chosen.iter().any(|earlier| earlier.gpid == what.gpid) {
            break;
        }
        if what.kind == Kind::MovePrimary {
            if roles == pace.roles {
                break;
            }
            roles += 1;
        } else {
            let busy = |node| per_node.get(node).is_some_and(|count| *count >= pace.copies_per_node);
            if copies == pace.copies || busy(&what.from) || busy(&what.to) {
                break;
            }
            copies += 1;
            *per_node.entry(&what.from).or_default() += 1;
            *per_node.entry(&what.to).or_default() += 1;
        }
        chosen.push(what.clone());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{config, node};

    fn make(kind: Kind, index: i32, from: usize, to: usize) -> Move {
        Move { gpid: Gpid::new(1, index), kind, from: node(from), to: node(to) }
    }

    #[test]
    fn steps() {
        let add = |n| Step::Propose(Proposal::AddSecondary { node: node(n) });
        let remove = |n| Step::Propose(Proposal::RemoveSecondary { node: node(n) });
        let hand = |n| Step::Propose(Proposal::HandOver { to: node(n) });
        use Kind::*;
        for (primary, secondaries, kind, from, to, want) in [
            (1, [2, 3].as_slice(), MovePrimary, 1, 2, hand(2)),
            (2, &[1, 3], MovePrimary, 1, 2, Step::Done),
            (3, &[1, 2], MovePrimary, 1, 2, Step::Void("the roles have changed")),
            (1, &[3, 4], MovePrimary, 1, 2, Step::Void("the roles have changed")),
            (1, &[2, 3], CopySecondary, 3, 4, add(4)),
            (1, &[2, 3, 4], CopySecondary, 3, 4, remove(3)),
            (1, &[2, 4], CopySecondary, 3, 4, Step::Done),
            (3, &[2, 1, 4], CopySecondary, 3, 4, hand(4)),
            (1, &[2, 3], CopyPrimary, 1, 4, add(4)),
            (1, &[2, 3, 4], CopyPrimary, 1, 4, hand(4)),
            (4, &[2, 3, 1], CopyPrimary, 1, 4, remove(1)),
            (4, &[2, 3], CopyPrimary, 1, 4, Step::Done),
            (1, &[3, 4], CopySecondary, 3, 4, Step::Void("a member has left")),
            (1, &[2, 3, 5], CopySecondary, 3, 4, Step::Void("there is one member too many")),
            (1, &[2, 5], CopySecondary, 3, 4, Step::Void("neither node is a member")),
        ] {
            let got = step(&config(0, 1, primary, secondaries), &make(kind, 0, from, to));
            assert_eq!(got, want, "{primary} {secondaries:?} {kind:?} {from} {to}");
        }
    }

    #[test]
    fn a_few_at_a_time() {
        let pace = Pace { roles: 2, copies: 3, copies_per_node: 2, ..Pace::default() };
        let first = |moves: Vec<Move>| first_of(&Plan { moves, ..Plan::default() }, &pace).len();
        use Kind::*;
        let role = |index| make(MovePrimary, index, 1, 2);
        assert_eq!(first((0..5).map(role).collect()), 2);
        assert_eq!(first(vec![role(0), role(0)]), 1, "one move per partition");
        let copy = |index, from, to| make(CopySecondary, index, from, to);
        assert_eq!(first(vec![copy(0, 1, 4), copy(1, 2, 4), copy(2, 3, 4)]), 2, "node 4 takes two");
        assert_eq!(first(vec![copy(0, 1, 4), copy(1, 1, 5), copy(2, 1, 6)]), 2, "node 1 gives two");
        assert_eq!(first((0..9).map(|n| copy(n, 10 + n as usize, 30 + n as usize)).collect()), 3);
        assert_eq!(first(vec![role(0), role(1), copy(2, 1, 4), role(3)]), 3);
    }

    #[test]
    fn begin_when_calm_and_pause_after_a_failure() {
        let pace = Pace::default();
        let mut moves = Moves::default();
        let at = |ms: u64| Millis(1_000_000 + ms);
        assert_eq!(moves.due_at(&pace), None);
        moves.set_calm(at(0), true);
        moves.set_calm(at(5_000), true);
        assert_eq!(moves.due_at(&pace), Some(at(10_000)));
        moves.set_calm(at(6_000), false);
        assert_eq!(moves.due_at(&pace), None);
        moves.set_calm(at(7_000), true);
        assert_eq!(moves.due_at(&pace), Some(at(17_000)));
        let what = make(Kind::CopySecondary, 0, 1, 4);
        moves.begin(at(17_000), what.clone());
        assert_eq!((moves.due_at(&pace), moves.get(what.gpid)), (None, Some(&what)));
        moves.learns(at(50_000), what.gpid, &node(5));
        moves.learns(at(60_000), what.gpid, &node(4));
        assert!(!moves.give_up(at(119_999), what.gpid, &pace), "it learns");
        assert!(moves.give_up(at(120_000), what.gpid, &pace));
        assert_eq!(moves.due_at(&pace), Some(at(180_000)));
    }
}
