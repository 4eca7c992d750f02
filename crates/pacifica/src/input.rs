//! What reaches a role: events about its replica, and what the node found out.

use bytes::Bytes;
use pegasus_types::message::Message;
use pegasus_types::meta::Proposal;
use pegasus_types::{Ballot, Decree, Millis, Mutation, Node};

use crate::shared::Answer;

#[derive(Debug)]
pub(crate) enum Input {
    Write {
        token: u64,
        timestamp_us: u64,
        body: Bytes,
    },
    /// At exactly the ballot of the replica. Configurations in it have been looked at.
    Message {
        from: Node,
        message: Message,
    },
    /// Under exactly the ballot of the replica.
    Logged {
        upto: Decree,
    },
    Applied {
        upto: Decree,
    },
    Answered(Answer),
    /// At exactly the ballot of the replica.
    Propose(Proposal),
    CopiedRows {
        signature: u64,
        decree: Decree,
    },
    Fetched {
        signature: u64,
        mutations: Vec<Mutation>,
        committed: Decree,
    },
    CopyFailed {
        signature: u64,
        restart: bool,
        why: String,
    },
    /// The node is dead as far as one can see: silent, or its connection was reset.
    Suspect {
        node: Node,
    },
    /// The process of this node is another one than before.
    Restarted {
        node: Node,
    },
    /// A member granted this partition's pair.
    Granted {
        from: Node,
        ballot: Ballot,
        sent: Millis,
    },
    /// A timer that this role wanted has come.
    Wake,
    /// About once a second.
    Sweep,
}
