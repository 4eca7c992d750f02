//! Who leads among several meta-servers, and how a leader that is one no more is kept from writing.
//!
//! Each meta-server makes an ephemeral sequential node under the reference's lock path; the lowest number
//! leads. The winner raises the epoch (a number that only grows) in one multi that also checks its own node.
//! From then on every write of metadata is a multi that checks both, the node and the epoch: the store itself
//! refuses what a deposed leader sends, however late it arrives. No clock is needed for that. A clock is only
//! needed to stop *answering* as a leader in time: see [`Leadership::Suspended`].
//!
//! ```text
//!  /pegasus/c1/lock/dsn.meta.server.leader/LOCKNODE0000000007   "meta1:34601"   <- leads
//!                                         /LOCKNODE0000000009   "meta2:34601"
//!  /pegasus/c1/leader_epoch                                     "12"
//!
//!  Election (a value: events in, calls and news out)  <--  run (the shell: store, clock)  -->  watch<Leadership>
//! ```
//!
//! A meta-server does, again and again:
//!
//! 1. make a store (a new one when the last one's session is over);
//! 2. `run(&*store, Election::new(..), &tell, stop)` beside its work, and follow the [`Leadership`];
//! 3. when it leads: load everything through a [`FencedStore`] and write through it alone;
//! 4. on [`StoreError::NotLeader`](crate::StoreError::NotLeader), `Standby` or `Over`: forget what it had loaded.

mod decide;
mod fence;
mod run;

use pegasus_types::Node;

pub use decide::{Action, Answer, Call, Candidate, Election, Event, Options};
pub use fence::{Fence, FencedStore};
pub use run::run;

/// What a meta-server may do. The value changes; who follows it needs the last one only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// Another one leads. None: nobody yet, or it is not known who.
    Standby { leader: Option<Node> },
    /// This one leads, and writes with this fence.
    Leading(Fence),
    /// This one led a moment ago and can no longer prove it: the store does not answer. Another one may lead.
    /// Decide nothing; what is known may be old. `Leading` with the *same* fence may follow: then nobody
    /// else has led meanwhile.
    Suspended(Fence),
    /// The session is over (or unclear, or given back): nothing follows. Make a new store.
    Over,
}

impl Leadership {
    /// The fence, while it is proven.
    pub fn leading(&self) -> Option<&Fence> {
        match self {
            Self::Leading(fence) => Some(fence),
            Self::Standby { .. } | Self::Suspended(_) | Self::Over => None,
        }
    }
}
