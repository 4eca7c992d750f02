//! Who holds the replicas of a partition.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Ballot, Decree, Gpid, Node};

/// Membership of one partition at one ballot. Stored by the meta-server before anyone acts on it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionConfig {
    pub gpid: Gpid,
    pub ballot: Ballot,
    pub max_replica_count: i32,
    pub primary: Option<Node>,
    pub secondaries: Vec<Node>,
    /// At most three members that left, oldest first.
    pub last_drops: Vec<Node>,
    /// A lower bound of the committed decree, told by the primary with its last change.
    pub last_committed: Decree,
    /// Bit 0 = the table is dropped.
    pub partition_flags: i32,
}

impl PartitionConfig {
    pub const LAST_DROPS_KEPT: usize = 3;

    /// A partition that nobody holds yet.
    pub fn unassigned(gpid: Gpid, max_replica_count: i32) -> Self {
        Self {
            gpid,
            ballot: Ballot::ZERO,
            max_replica_count,
            primary: None,
            secondaries: Vec::new(),
            last_drops: Vec::new(),
            last_committed: Decree::ZERO,
            partition_flags: 0,
        }
    }

    pub fn is_primary(&self, node: &Node) -> bool {
        self.primary.as_ref() == Some(node)
    }

    pub fn is_secondary(&self, node: &Node) -> bool {
        self.secondaries.contains(node)
    }

    pub fn is_member(&self, node: &Node) -> bool {
        self.is_primary(node) || self.is_secondary(node)
    }

    /// The primary first, then the secondaries.
    pub fn members(&self) -> impl Iterator<Item = &Node> {
        self.primary.iter().chain(&self.secondaries)
    }

    pub fn member_count(&self) -> usize {
        self.members().count()
    }
}

impl fmt::Debug for PartitionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}[", self.gpid, self.ballot)?;
        match &self.primary {
            Some(primary) => write!(f, "P {primary}")?,
            None => f.write_str("no primary")?,
        }
        for secondary in &self.secondaries {
            write!(f, ", S {secondary}")?;
        }
        f.write_str("]")
    }
}

/// A change of membership that somebody asks of the meta-server. Always conditional on the ballot that the
/// asker knows: of all requests at one ballot at most one succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// By a secondary: the primary is gone, I take its place; the old primary leaves the group.
    TakeOver { claimant: Node },
    /// By the primary: same members, new ballot (after its restart, or to settle an unanswered request).
    Renew { primary: Node },
    /// By the primary: a learner has caught up and becomes a secondary.
    AddSecondary { primary: Node, node: Node },
    /// By the primary: a secondary is dead, slow or damaged.
    RemoveSecondary { primary: Node, node: Node },
    /// By the primary, after it stopped serving: `to`, a secondary, becomes primary.
    /// `stay` = the old primary remains as a secondary (planned move), else it leaves the group.
    HandOver { primary: Node, to: Node, stay: bool },
}

impl ChangeKind {
    /// Who asks.
    pub fn asker(&self) -> &Node {
        match self {
            Self::TakeOver { claimant } => claimant,
            Self::Renew { primary }
            | Self::AddSecondary { primary, .. }
            | Self::RemoveSecondary { primary, .. }
            | Self::HandOver { primary, .. } => primary,
        }
    }
}
