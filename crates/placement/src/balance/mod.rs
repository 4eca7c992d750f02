//! Which moves would spread primaries and copies evenly over the nodes, and empty nodes that are to leave.
//!
//! ```text
//!  view + nodes --plan--> moves, in this order:
//!    1 primaries off leaving nodes        hand-overs: no data is copied
//!    2 primaries spread                   hand-overs along paths: A -> C and C -> B when A and B share nothing
//!    3 copies off leaving nodes           a copy is made, then the old one removed: never fewer than wanted
//!    4 copies spread, per table, then over the cluster
//!    5 primaries spread again             now with the copies where they are
//! ```
//!
//! What is reached: copies of each table differ by one at most between nodes, and so do copies over the cluster.
//! Primaries too, per table and over the cluster, when all tables have the same replica count: with copies
//! spread evenly a third of each node's copies is a fair share of primaries, a flow with whole numbers next to
//! that fraction exists, and step 5 finds it, because a spread that no path can improve is the best one.
//! Every step lowers a sum of squares, so that a plan ends.
//!
//! The plan is a value: shown to operators as it is, executed a few moves at a time ([`moves`]).

mod copies;
pub mod moves;
mod picture;
mod roles;

use std::collections::BTreeSet;

use pegasus_types::{AppId, Gpid, Node};

use crate::view::{ClusterView, Loads};
use picture::Picture;

/// Between which nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Among these everything is spread.
    pub open: BTreeSet<Node>,
    /// To be emptied. Nodes in neither set are left alone.
    pub leaving: BTreeSet<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// False: leaving nodes are emptied and nothing else moves.
    pub spread: bool,
    /// False: only roles change, data stays (`only_move_primary`). Leaving nodes are emptied all the same.
    pub copies: bool,
    /// Tables that are left alone (`meta.lb.ignored_app_list`). Leaving nodes are emptied all the same.
    pub ignored: BTreeSet<AppId>,
    /// A plan need not be longer: who carries out its beginning makes a new one then. A whole plan for 25,000
    /// partitions on 100 nodes takes a second.
    pub enough: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { spread: true, copies: true, ignored: BTreeSet::new(), enough: usize::MAX }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The role goes to a secondary.
    MovePrimary,
    /// The primary's copy goes to a node that has none, with the role.
    CopyPrimary,
    CopySecondary,
}

impl Kind {
    /// As in the shell's `balance -p` and in `balance_operation_count`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MovePrimary => "move_pri",
            Self::CopyPrimary => "copy_pri",
            Self::CopySecondary => "copy_sec",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        [Self::MovePrimary, Self::CopyPrimary, Self::CopySecondary].into_iter().find(|k| k.name() == name)
    }
}

/// One partition's role or copy, from one node to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    pub gpid: Gpid,
    pub kind: Kind,
    pub from: Node,
    pub to: Node,
}

impl std::fmt::Display for Move {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} from {} to {}", self.kind.name(), self.gpid, self.from, self.to)
    }
}

/// On which disk of a node a copy lies, as far as reported.
pub type DiskOf<'a> = dyn Fn(Gpid, &Node) -> Option<&'a str> + 'a;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they are to be done.
    pub moves: Vec<Move>,
    /// Copies on leaving nodes for which no other node is there.
    pub unplaced: usize,
    /// What nodes hold when all is done.
    pub after: Loads,
}

impl Plan {
    pub fn count(&self, kind: Kind) -> usize {
        self.moves.iter().filter(|m| m.kind == kind).count()
    }
}

/// The moves from this view to an even one. Partitions without a primary are left out.
pub fn plan(view: &ClusterView, nodes: &Nodes, disk_of: &DiskOf<'_>, options: &Options) -> Plan {
    let mut picture = Picture::new(view, nodes, disk_of, options);
    roles::off_leaving(&mut picture);
    if options.spread {
        roles::spread(&mut picture);
    }
    let unplaced = copies::off_leaving(&mut picture);
    if options.spread && options.copies {
        copies::spread(&mut picture);
    }
    if options.spread {
        roles::spread(&mut picture);
    }
    let after = picture.loads();
    Plan { moves: picture.moves, unplaced, after }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
