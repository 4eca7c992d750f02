//! The roles of a replica: data and behaviour of each in its own file.

pub(crate) mod error;
pub(crate) mod follower;
pub(crate) mod inactive;
pub(crate) mod learner;
pub(crate) mod primary;
pub(crate) mod progress;
pub(crate) mod secondary;
pub(crate) mod teach;

use pegasus_types::meta::ReplicaStatus;
use pegasus_types::{AppStatus, Ballot, ErrorCode, Millis, Node, PartitionConfig};

use crate::Effect;
use crate::input::Input;
use crate::shared::{Env, Next, Shared};
use error::Broken;
use inactive::Inactive;
use learner::Learner;
use primary::Primary;
use secondary::Secondary;

/// Of a new partition's first configuration: at it, members begin without a replica.
const FIRST_BALLOT: Ballot = Ballot(1);

/// May this node begin with an empty replica? Only in the first configuration of a table that is being created
/// (safety-rules.md 4.3): at a later ballot somebody has held the partition, and who has nothing has lost it.
pub fn may_begin_empty(table: AppStatus, config: &PartitionConfig, me: &Node) -> bool {
    table == AppStatus::Creating && config.ballot == FIRST_BALLOT && config.is_member(me)
}

/// Committed mutations that a replica keeps in memory that is not primary: nobody asks it for them, and as a new
/// primary it may take for granted that every member holds what is committed (replication.md S1).
const FOLLOWER_RECENT: usize = 16;

/// Refuses a write that came to another role.
fn not_primary(cx: &Shared, env: &mut Env<'_>, token: u64) {
    env.out.push(Effect::Reply { gpid: cx.gpid, token, result: Err(ErrorCode::InvalidState) });
}

#[derive(Debug)]
pub(crate) enum Role {
    Inactive(Inactive),
    Learner(Learner),
    Secondary(Secondary),
    Primary(Primary),
    Error(Broken),
}

impl Role {
    pub fn on(&mut self, cx: &mut Shared, env: &mut Env<'_>, input: Input) -> Next {
        match self {
            Self::Inactive(role) => role.on(cx, env, input),
            Self::Learner(role) => role.on(cx, env, input),
            Self::Secondary(role) => role.on(cx, env, input),
            Self::Primary(role) => role.on(cx, env, input),
            Self::Error(role) => role.on(cx, env, input),
        }
    }

    /// Ends the role: nothing of it survives elsewhere.
    pub fn leave(self, cx: &mut Shared, env: &mut Env<'_>) {
        match self {
            Self::Inactive(_) | Self::Error(_) => {}
            Self::Learner(role) => role.leave(cx, env),
            Self::Secondary(role) => role.leave(cx, env),
            Self::Primary(role) => role.leave(cx, env),
        }
    }

    pub fn wake(&self, cx: &Shared, env: &Env<'_>) -> Option<Millis> {
        match self {
            Self::Inactive(_) => cx.ask_wake(env),
            Self::Learner(role) => role.wake(env),
            Self::Secondary(_) => cx.ask_wake(env),
            Self::Primary(role) => role.wake(cx, env),
            Self::Error(_) => None,
        }
    }

    pub fn status(&self) -> ReplicaStatus {
        match self {
            Self::Inactive(_) => ReplicaStatus::Inactive,
            Self::Learner(_) => ReplicaStatus::Learner,
            Self::Secondary(_) => ReplicaStatus::Secondary,
            Self::Primary(_) => ReplicaStatus::Primary,
            Self::Error(_) => ReplicaStatus::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use pegasus_types::Gpid;

    use super::*;

    /// Found by the simulation (seed 958): a member that had lost its disk while the table was being created began anew at
    /// the ballot at which it had been primary, beside a write that was answered.
    #[test]
    fn nobody_begins_empty_where_somebody_has_held_the_partition() {
        let [me, other] = [Node::new("n1:1"), Node::new("n2:1")];
        let config = |ballot| PartitionConfig {
            ballot: Ballot(ballot),
            primary: Some(me.clone()),
            ..PartitionConfig::unassigned(Gpid::new(1, 0), 3)
        };
        for (table, ballot, node, may) in [
            (AppStatus::Creating, 1, &me, true),
            (AppStatus::Creating, 2, &me, false),
            (AppStatus::Creating, 1, &other, false),
            (AppStatus::Available, 1, &me, false),
        ] {
            assert_eq!(may_begin_empty(table, &config(ballot), node), may, "{table:?} {ballot} {node}");
        }
    }
}
