//! What a replica has in every role.

use pegasus_types::message::{Envelope, Message};
use pegasus_types::meta::{ChangeReply, ChangeRequest};
use pegasus_types::{Ballot, ChangeKind, Decree, Gpid, Millis, Mutation, Node, PartitionConfig};

use crate::Effect;
use crate::event::Fault;
use crate::lease::Leases;
use crate::options::Options;
use crate::tail::Tail;

/// Not more than one query or gap report per partition in this time.
const CHATTER_MS: u64 = 50;

/// The node around a replica, for the time of one step.
#[derive(Debug)]
pub(crate) struct Env<'a> {
    pub me: &'a Node,
    pub now: Millis,
    /// Start of this process.
    pub started: Millis,
    pub options: &'a Options,
    pub leases: &'a mut Leases,
    pub out: &'a mut Vec<Effect>,
    /// For the signatures of learning sessions.
    pub sessions: &'a mut Sessions,
}

impl Env<'_> {
    pub fn look(&self) -> Look<'_> {
        Look { me: self.me, now: self.now, options: self.options, leases: self.leases }
    }
}

/// The same, to be asked only.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    pub me: &'a Node,
    pub now: Millis,
    pub options: &'a Options,
    pub leases: &'a Leases,
}

/// Names learning sessions: never twice, not in another life of the process either (replication.md H13).
#[derive(Debug)]
pub(crate) struct Sessions {
    incarnation: u64,
    count: u64,
}

impl Sessions {
    pub fn new(incarnation: u64) -> Self {
        Self { incarnation, count: 0 }
    }

    pub fn next(&mut self) -> u64 {
        self.count += 1;
        // 0 is no session.
        (self.incarnation ^ self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1)
    }
}

/// A configuration that is on its way to the disk. Nothing is done at its ballot before it is there
/// (replication.md S10).
#[derive(Debug)]
pub(crate) struct Saving {
    pub config: PartitionConfig,
    pub learning: bool,
    /// Become the learner of this node in this session.
    pub learn: Option<(Node, u64)>,
}

/// A request to the meta under way.
#[derive(Debug)]
pub(crate) struct Ask {
    pub request: ChangeRequest,
    pub sent_at: Millis,
}

/// A request that did not move the ballot, as far as one knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub kind: ChangeKind,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The meta will not have it.
    Refused,
    /// It may have been carried out, or may still be.
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub gpid: Gpid,
    /// Durable.
    pub config: PartitionConfig,
    /// Durable: this replica need not hold all that a member must hold.
    pub learning: bool,
    pub tail: Tail,
    pub saving: Option<Saving>,
    pub ask: Option<Ask>,
    /// Before this time no new request is sent: the last one came to nothing.
    pub ask_again_at: Millis,
    /// Last grant to anyone as primary of this partition, when it is not in the leases any more.
    pub last_grant: Option<Millis>,
    /// The primary of this ballot has told that it serves no more.
    pub released_at: Option<Ballot>,
    pub last_timestamp_us: u64,
    queried_at: Option<Millis>,
    needed_at: Option<Millis>,
}

impl Shared {
    pub fn new(config: PartitionConfig, learning: bool, tail: Tail) -> Self {
        Self {
            gpid: config.gpid,
            last_timestamp_us: tail.last_timestamp_us(),
            config,
            learning,
            tail,
            saving: None,
            ask: None,
            ask_again_at: Millis::ZERO,
            last_grant: None,
            released_at: None,
            queried_at: None,
            needed_at: None,
        }
    }

    pub fn ballot(&self) -> Ballot {
        self.config.ballot
    }

    /// The highest ballot known here, whether or not it is saved yet.
    pub fn known_ballot(&self) -> Ballot {
        self.saving.as_ref().map_or(self.config.ballot, |s| s.config.ballot.max(self.config.ballot))
    }

    pub fn send(&self, env: &mut Env<'_>, to: &Node, message: Message) {
        self.send_at(env, to, self.ballot(), message);
    }

    pub fn send_at(&self, env: &mut Env<'_>, to: &Node, ballot: Ballot, message: Message) {
        debug_assert!(to != env.me, "{} sends {message:?} to itself", self.gpid);
        env.out
            .push(Effect::Send { to: to.clone(), envelope: Envelope { gpid: self.gpid, ballot, message } });
    }

    pub fn save(&mut self, env: &mut Env<'_>, saving: Saving) {
        env.out.push(Effect::SaveConfig {
            gpid: self.gpid,
            config: saving.config.clone(),
            learning: saving.learning,
        });
        self.saving = Some(saving);
    }

    /// To the own log, under the present ballot.
    pub fn log(&mut self, env: &mut Env<'_>, mutations: Vec<Mutation>) {
        if !mutations.is_empty() {
            env.out.push(Effect::Log {
                gpid: self.gpid,
                ballot: self.ballot(),
                committed: self.tail.committed(),
                cuts: self.tail.take_cut(),
                mutations,
            });
        }
    }

    pub fn commit_to(&mut self, env: &mut Env<'_>, decree: Decree) {
        let mutations = self.tail.commit_to(decree);
        if !mutations.is_empty() {
            env.out.push(Effect::Apply { gpid: self.gpid, mutations });
        }
    }

    /// Keeps `recent` of what is committed.
    pub fn applied(&mut self, env: &Env<'_>, upto: Decree, recent: usize) {
        self.tail.applied_to(upto);
        self.tail.trim(recent, env.options.recent_bytes);
    }

    pub fn granted_until_now(&mut self, last: Option<Millis>) {
        self.last_grant = self.last_grant.max(last);
    }

    /// Asks the meta who belongs to the partition, not too often.
    pub fn query(&mut self, env: &mut Env<'_>) {
        if due(&mut self.queried_at, env.now) {
            env.out.push(Effect::QueryMeta { gpid: self.gpid });
        }
    }

    /// Asks a primary for its configuration, not too often.
    pub fn need_config(&mut self, env: &mut Env<'_>, of: &Node) {
        if due(&mut self.needed_at, env.now) {
            self.send(env, of, Message::NeedConfig);
        }
    }

    /// Starts a request, unless one is under way or the last one came to nothing just now.
    pub fn ask(&mut self, env: &mut Env<'_>, kind: ChangeKind) -> bool {
        if self.ask.is_some() || env.now < self.ask_again_at || self.saving.is_some() {
            return false;
        }
        let request =
            ChangeRequest { gpid: self.gpid, ballot: self.ballot(), kind, committed: self.tail.committed() };
        env.out.push(Effect::AskMeta { request: request.clone() });
        self.ask = Some(Ask { request, sent_at: env.now });
        true
    }

    /// Takes the end of a request. A configuration in it is looked at by the caller.
    pub fn answered(
        &mut self,
        env: &Env<'_>,
        asked_at: Ballot,
        kind: &ChangeKind,
        reply: Option<&ChangeReply>,
    ) -> Option<Answer> {
        // The answer of a request that was given up tells nothing about the one that followed it.
        let ask = self.ask.take_if(|ask| ask.request.ballot == asked_at && ask.request.kind == *kind)?;
        self.ask_again_at = env.now + env.options.ask_retry_ms;
        match reply {
            Some(ChangeReply::Accepted(_)) => None,
            Some(ChangeReply::Rejected { .. }) => Some(Outcome::Refused),
            // A leader that stepped down in the middle may have stored it.
            Some(ChangeReply::NotLeader { .. }) | None => Some(Outcome::Unknown),
        }
        .map(|outcome| Answer { kind: ask.request.kind, outcome })
    }

    /// Gives up waiting for the answer of a request.
    pub fn ask_timed_out(&mut self, env: &Env<'_>) -> Option<Answer> {
        let overdue = env.options.ask_timeout_ms;
        let ask = self.ask.take_if(|ask| env.now.since(ask.sent_at) >= overdue)?;
        self.ask_again_at = env.now;
        Some(Answer { kind: ask.request.kind, outcome: Outcome::Unknown })
    }

    pub fn ask_wake(&self, env: &Env<'_>) -> Option<Millis> {
        match &self.ask {
            Some(ask) => Some(ask.sent_at + env.options.ask_timeout_ms),
            None => Some(self.ask_again_at).filter(|at| *at > env.now),
        }
    }
}

fn due(last: &mut Option<Millis>, now: Millis) -> bool {
    let due = last.is_none_or(|at| now.since(at) >= CHATTER_MS);
    if due {
        *last = Some(now);
    }
    due
}

/// What becomes of the role after an input.
#[derive(Debug)]
pub(crate) enum Next {
    Stay,
    /// The replica is broken.
    Fail(Fault, String),
    /// It lacks what it must hold: out of the group, to come back as a learner.
    StandDown(String),
    /// The learning session is over.
    Retire,
    /// The group goes on without this broken replica.
    Vanish(String),
}
