//! All partitions of one process.

use pegasus_types::learn::LearnRefused;
use pegasus_types::meta::{ReplicaReport, ReplicaStatus};
use pegasus_types::{Ballot, Decree, ErrorCode, Gpid, Millis, Node, PartitionConfig};

use crate::{Effect, Event, Options};

/// May a primary answer a read now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// What the engine answered before this was asked may be sent.
    Yes,
    /// Not at this moment: a grant has run out, or the new primary still waits. Worth asking again after the next
    /// step that handled `HeartbeatAcked`, `Received` or `Tick`, within the request's deadline.
    Wait,
    No(ErrorCode),
}

/// May a write be given to the core now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// So many mutations may be given.
    Ready { slots: usize },
    /// The prepare window is full: worth asking again after the next commit.
    Full,
    /// The new primary is not ready yet: as [`Serving::Wait`].
    Wait,
    Refused(ErrorCode),
}

#[derive(Debug)]
pub struct NodeCore {
    me: Node,
    incarnation: u64,
    options: Options,
    started: Millis,
}

impl NodeCore {
    /// `incarnation` is random per process start. `now` is this process's start: it acts as primary nowhere
    /// before one lease has passed.
    pub fn new(me: Node, incarnation: u64, options: Options, now: Millis) -> Self {
        Self { me, incarnation, options, started: now }
    }

    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.step_into(now, event, &mut out);
        out
    }

    /// Appends the effects to `out`.
    pub fn step_into(&mut self, now: Millis, event: Event, out: &mut Vec<Effect>) {
        let _ = (now, event, out);
    }

    /// When [`Event::Tick`] is wanted, at the latest. May change with every step.
    pub fn next_timer(&self) -> Option<Millis> {
        None
    }

    /// Checks 7 and 10 of replication.md 2.1, and the window.
    pub fn admit_write(&self, now: Millis, gpid: Gpid) -> Admission {
        let _ = (now, gpid);
        Admission::Refused(ErrorCode::ObjectNotFound)
    }

    /// To be asked *after* the engine was read (safety-rules.md 1.2).
    pub fn serving(&self, now: Millis, gpid: Gpid) -> Serving {
        let _ = (now, gpid);
        Serving::No(ErrorCode::ObjectNotFound)
    }

    /// Timestamp for the next write of a primary: `now_us`, or just above the last one.
    pub fn next_timestamp(&self, gpid: Gpid, now_us: u64) -> u64 {
        let _ = gpid;
        now_us
    }

    /// May this node teach the learner of session `signature`? Gives the commit point, to which log and engine
    /// may be shown.
    pub fn teach(&self, gpid: Gpid, ballot: Ballot, signature: u64) -> Result<Decree, LearnRefused> {
        let _ = (gpid, signature);
        Err(LearnRefused::NotPrimary(ballot))
    }

    pub fn status(&self, gpid: Gpid) -> Option<ReplicaStatus> {
        let _ = gpid;
        None
    }

    pub fn config(&self, gpid: Gpid) -> Option<&PartitionConfig> {
        let _ = gpid;
        None
    }

    pub fn committed(&self, gpid: Gpid) -> Option<Decree> {
        let _ = gpid;
        None
    }

    /// For config sync. `durable` and `disk_tag` are left for the shell to fill in.
    pub fn reports(&self) -> Vec<ReplicaReport> {
        let _ = (&self.me, self.incarnation, &self.options, self.started);
        Vec::new()
    }
}
