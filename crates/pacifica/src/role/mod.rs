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
use pegasus_types::{Ballot, ErrorCode, Millis};

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
