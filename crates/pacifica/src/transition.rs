//! What a configuration makes of a replica.

use pegasus_types::{Ballot, Node, PartitionConfig};

use crate::role::Role;
use crate::shared::Shared;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Primary,
    Secondary,
    Learner,
    /// Keeps what it has. As a member that need not hold all it must, it waits to be put out.
    Inactive {
        learning: bool,
    },
}

impl Target {
    /// The mark that is saved with the configuration.
    pub fn learning(self) -> bool {
        match self {
            Self::Primary | Self::Secondary => false,
            Self::Learner => true,
            Self::Inactive { learning } => learning,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Primary,
    Secondary,
    Outside,
}

fn place(config: &PartitionConfig, me: &Node) -> Place {
    if config.is_primary(me) {
        Place::Primary
    } else if config.is_secondary(me) {
        Place::Secondary
    } else {
        Place::Outside
    }
}

/// `config` is newer than the replica's. A broken replica does not get here.
///
/// | is now | primary | secondary | outside |
/// |---|---|---|---|
/// | primary, secondary | primary | secondary | inactive |
/// | learner, joined, holds all | put out | secondary | learner of the same primary, else inactive |
/// | learner, else | put out | put out | the same |
/// | new, or member before a restart | primary | secondary | inactive |
/// | left behind | primary (forced by the meta) | put out | inactive |
/// | marked as learning | put out | put out | inactive |
pub(crate) fn target(role: &Role, cx: &Shared, me: &Node, config: &PartitionConfig) -> Target {
    let out = Target::Inactive { learning: true };
    let stay = Target::Inactive { learning: cx.learning };
    // Without a primary there is nobody to follow.
    let secondary = if config.primary.is_some() { Target::Secondary } else { stay };
    match (role, place(config, me)) {
        (Role::Primary(_) | Role::Secondary(_), Place::Primary) => Target::Primary,
        (Role::Primary(_) | Role::Secondary(_), Place::Secondary) => secondary,
        (Role::Primary(_) | Role::Secondary(_), Place::Outside) => stay,
        (Role::Learner(learner), Place::Secondary) if learner.may_be_member(config.last_committed) => {
            secondary
        }
        (Role::Learner(_), Place::Primary | Place::Secondary) => out,
        (Role::Learner(learner), Place::Outside) => {
            if config.primary.as_ref() == Some(learner.session().0) {
                Target::Learner
            } else {
                stay
            }
        }
        (Role::Inactive(_) | Role::Error(_), Place::Outside) => stay,
        (Role::Inactive(_) | Role::Error(_), _) if cx.learning => out,
        (Role::Inactive(_) | Role::Error(_), Place::Primary) => Target::Primary,
        (Role::Inactive(_) | Role::Error(_), Place::Secondary) => {
            let was_member = cx.ballot() == Ballot::ZERO || cx.config.is_member(me);
            if was_member { secondary } else { out }
        }
    }
}
