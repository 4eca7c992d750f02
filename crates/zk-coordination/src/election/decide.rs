//! The election as a value: no IO, no clock, no lock.
//!
//! ```text
//!  Prepare -> Join -> Look --behind--> (watch) --changed--> Look
//!                      |  ^
//!                first |  | lost the race, or the answer was lost
//!                      v  |
//!                    Read epoch -> Claim -> Leading --every quarter of a session--> Confirm
//! ```
//!
//! At most one call is under way. Whatever goes wrong leads back to `Look`, which sees what is true; only a
//! `Join` whose answer is lost ends the session, since a second node would be the consequence otherwise.

use pegasus_types::Node;

use crate::election::{Fence, Leadership};
use crate::store::{Datum, Mode, Op, OpResult, SessionState, StoreError, Version};
use crate::tree::Tree;

/// Names of the candidates' nodes, as the reference has them; ten digits follow.
const NODE_PREFIX: &str = "LOCKNODE";
/// After an error of the store.
const RETRY_MS: u64 = 500;
/// A leader proves itself this many times within a session timeout (replication.md 9.3 a).
const CONFIRMS_PER_SESSION: u64 = 4;
/// After this share of a session timeout without proof a leader is suspended, in percent: before the store can
/// have ended its session, counted from the *sending* of the last proof.
const SUSPEND_PERCENT: u64 = 60;

/// Where a meta-server stands for election, and under which name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Paths of the cluster.
    pub tree: Tree,
    /// `[meta_server] distributed_lock_service_parameters`; empty = below the cluster's root.
    pub lock_root: String,
    /// Of this meta-server, as clients reach it: the content of its node.
    pub me: Node,
    /// Of the store, in ms.
    pub session_ms: u64,
}

/// A node in the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Of the node, without its directory.
    pub name: String,
    /// Its content.
    pub address: String,
}

/// What the shell is asked to do with the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Make these nodes and their parents where they are missing.
    Prepare(Vec<String>),
    /// List the candidates below this path with their content, and watch the list.
    Look(String),
    Read(String),
    Write(Vec<Op>),
}

/// What came of the call under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Prepared(Result<(), StoreError>),
    Seen(Result<Vec<Candidate>, StoreError>),
    Read(Result<Option<Datum>, StoreError>),
    Written(Result<Vec<OpResult>, StoreError>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// First, and once.
    Start,
    Answer(Answer),
    /// The list of candidates that was seen is old.
    Changed,
    Session(SessionState),
    /// The time of [`Election::next_tick`] has come.
    Tick,
    /// The process is about to end: give the role back, so that another one leads at once.
    Resign,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Call(Call),
    Tell(Leadership),
}

/// What the call under way is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Prepare,
    Join,
    Look,
    /// A node that an earlier life of this process has left.
    Clear(String),
    ReadEpoch,
    /// The new epoch, and the version of the old one, if there is one.
    Claim(u64, Option<Version>),
    Confirm,
    Resign,
}

/// One meta-server's part in the elections of one session.
#[derive(Clone, Debug)]
pub struct Election {
    options: Options,
    dir: String,
    /// Path of the own node.
    node: Option<String>,
    reign: Option<Reign>,
    /// What is to be done next, unless a call is under way, from this time on. None = wait for news.
    next: Option<(u64, Step)>,
    under_way: Option<(u64, Step)>,
    /// The list changed while a call was under way.
    look_again: bool,
    resigning: bool,
    told: Option<Leadership>,
}

#[derive(Clone, Debug)]
struct Reign {
    fence: Fence,
    /// When the last proof was *sent*.
    proven_ms: u64,
}

impl Election {
    pub fn new(options: Options) -> Self {
        Self {
            dir: options.tree.leader_lock(&options.lock_root),
            options,
            node: None,
            reign: None,
            next: None,
            under_way: None,
            look_again: false,
            resigning: false,
            told: None,
        }
    }

    /// When [`Event::Tick`] is due, in ms of the clock whose time `step` is given.
    pub fn next_tick(&self) -> Option<u64> {
        if self.is_over() {
            return None;
        }
        let call = self.next.as_ref().filter(|_| self.under_way.is_none()).map(|(at, _)| *at);
        let leading = self.reign.as_ref().filter(|_| matches!(self.told, Some(Leadership::Leading(_))));
        let suspend = leading.map(|reign| self.suspend_at_of(reign.proven_ms));
        call.into_iter().chain(suspend).min()
    }

    /// Nothing more comes.
    pub fn is_over(&self) -> bool {
        self.told == Some(Leadership::Over)
    }

    /// `now` in ms of any clock that does not go back.
    pub fn step(&mut self, now: u64, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        if self.is_over() {
            return out;
        }
        match event {
            Event::Start => {
                self.tell(Leadership::Standby { leader: None }, &mut out);
                self.next = Some((now, Step::Prepare));
            }
            Event::Changed if self.under_way.is_some() => self.look_again = true,
            // A leader's node cannot be overtaken; whether it still exists is asked anyway.
            Event::Changed if self.reign.is_some() => {}
            Event::Changed => self.next = Some((now, Step::Look)),
            Event::Session(SessionState::Over) => self.tell(Leadership::Over, &mut out),
            // What waits for another try need not wait any longer.
            Event::Session(SessionState::Connected) => {
                self.next = self.next.take().map(|(_, step)| (now, step))
            }
            Event::Session(SessionState::Disconnected) | Event::Tick => {}
            Event::Resign => self.resigning = true,
            Event::Answer(answer) => {
                if let Some((sent, step)) = self.under_way.take() {
                    self.answered(now, sent, step, answer, &mut out);
                }
            }
        }
        self.suspend_when_due(now, &mut out);
        self.call_when_due(now, &mut out);
        out
    }

    fn call_when_due(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.is_over() || self.under_way.is_some() {
            return;
        }
        if self.resigning {
            self.next = Some((now, Step::Resign));
        } else if std::mem::take(&mut self.look_again) && self.reign.is_none() && self.node.is_some() {
            self.next = Some((now, Step::Look));
        }
        if let Some((_, step)) = self.next.take_if(|(at, _)| *at <= now) {
            match self.call(&step) {
                Some(call) => {
                    self.under_way = Some((now, step));
                    out.push(Action::Call(call));
                }
                // Nothing to give back.
                None => self.tell(Leadership::Over, out),
            }
        }
    }

    fn call(&self, step: &Step) -> Option<Call> {
        let tree = &self.options.tree;
        Some(match step {
            Step::Prepare => {
                let root = Some(tree.root().to_owned()).filter(|root| !root.is_empty());
                Call::Prepare(root.into_iter().chain([self.dir.clone()]).collect())
            }
            Step::Join => Call::Write(vec![Op::Create {
                path: format!("{}/{NODE_PREFIX}", self.dir),
                bytes: self.options.me.to_string().into(),
                mode: Mode::EphemeralSequential,
            }]),
            Step::Look => Call::Look(self.dir.clone()),
            Step::Clear(path) => Call::Write(vec![Op::Delete { path: path.clone(), version: None }]),
            Step::ReadEpoch => Call::Read(tree.leader_epoch()),
            Step::Claim(epoch, version) => {
                let (path, bytes) = (tree.leader_epoch(), epoch.to_string());
                let raise = match version {
                    Some(version) => Op::set(path, bytes, *version),
                    None => Op::create(path, bytes),
                };
                Call::Write(vec![Op::Check { path: self.node.clone()?, version: None }, raise])
            }
            Step::Confirm => Call::Write(self.reign.as_ref()?.fence.checks().to_vec()),
            Step::Resign => Call::Write(vec![Op::Delete { path: self.node.clone()?, version: None }]),
        })
    }

    fn answered(&mut self, now: u64, sent: u64, step: Step, answer: Answer, out: &mut Vec<Action>) {
        let error = match (&step, answer) {
            (Step::Prepare, Answer::Prepared(Ok(()))) => return self.next = Some((now, Step::Join)),
            (Step::Join, Answer::Written(Ok(results))) => return self.joined(now, results, out),
            (Step::Look, Answer::Seen(Ok(candidates))) => return self.seen(now, candidates, out),
            (Step::Clear(_), Answer::Written(Ok(_) | Err(StoreError::NoNode(_)))) => {
                return self.next = Some((now, Step::Look));
            }
            (Step::ReadEpoch, Answer::Read(Ok(datum))) => return self.claim(now, datum),
            (Step::Claim(epoch, old), Answer::Written(Ok(_))) => {
                return self.won(now, sent, *epoch, old.map_or(0, |old| old.wrapping_add(1)), out);
            }
            (Step::Confirm, Answer::Written(Ok(_))) => return self.confirmed(now, sent, out),
            (Step::Resign, Answer::Written(_)) => return self.tell(Leadership::Over, out),
            (
                _,
                Answer::Prepared(Err(error))
                | Answer::Seen(Err(error))
                | Answer::Read(Err(error))
                | Answer::Written(Err(error)),
            ) => error,
            (step, answer) => StoreError::Failed(format!("{answer:?} is no answer to {step:?}")),
        };
        tracing::debug!(?step, %error, "election");
        match (step, error) {
            (_, StoreError::SessionOver | StoreError::Failed(_)) => self.tell(Leadership::Over, out),
            // Perhaps there is a node of ours now, perhaps not; the end of the session takes it away.
            (Step::Join, StoreError::OutcomeUnknown(_)) => self.tell(Leadership::Over, out),
            (Step::Join | Step::Look, StoreError::NoNode(_)) => self.deposed(now, Step::Prepare, out),
            (
                Step::Claim(..),
                StoreError::NoNode(_) | StoreError::BadVersion { .. } | StoreError::NodeExists(_),
            ) => {
                self.next = Some((now, Step::Look));
            }
            (Step::Confirm, StoreError::NoNode(_) | StoreError::BadVersion { .. }) => {
                tracing::warn!("the leader's role was taken away");
                self.deposed(now, Step::Look, out);
            }
            // Whether it was done is seen by looking.
            (Step::Claim(..) | Step::Clear(_), _) => self.next = Some((now + RETRY_MS, Step::Look)),
            (step, _) => self.next = Some((now + RETRY_MS, step)),
        }
    }

    fn joined(&mut self, now: u64, results: Vec<OpResult>, out: &mut Vec<Action>) {
        match results.into_iter().next() {
            Some(OpResult::Created(path)) => {
                self.node = Some(path);
                self.next = Some((now, Step::Look));
            }
            _ => self.tell(Leadership::Over, out),
        }
    }

    fn seen(&mut self, now: u64, candidates: Vec<Candidate>, out: &mut Vec<Action>) {
        let path = |candidate: &Candidate| format!("{}/{}", self.dir, candidate.name);
        let mut line: Vec<_> = candidates.iter().filter_map(|c| Some((number(&c.name)?, c))).collect();
        line.sort_by_key(|(number, _)| *number);
        let own = line.iter().position(|(_, c)| self.node.as_ref() == Some(&path(c)));
        let Some(own) = own else { return self.deposed(now, Step::Join, out) };
        if own == 0 {
            self.next = Some((now, Step::ReadEpoch));
            return;
        }
        // Nobody else has our address: it is of a life that ended without telling the store.
        let me = self.options.me.to_string();
        if let Some((_, left)) = line[..own].iter().find(|(_, candidate)| candidate.address == me) {
            self.next = Some((now, Step::Clear(path(left))));
            return;
        }
        let leader = line[0].1.address.parse().ok();
        self.tell(Leadership::Standby { leader }, out);
    }

    fn claim(&mut self, now: u64, datum: Option<Datum>) {
        let old = match &datum {
            None => Some(0),
            Some(datum) => std::str::from_utf8(&datum.bytes).ok().and_then(|text| text.trim().parse().ok()),
        };
        self.next = Some(match old.and_then(|old: u64| old.checked_add(1)) {
            Some(epoch) => (now, Step::Claim(epoch, datum.map(|datum| datum.version))),
            None => {
                let path = self.options.tree.leader_epoch();
                tracing::error!(path, "is no number: nobody can lead until it is removed or mended");
                (now + RETRY_MS, Step::ReadEpoch)
            }
        });
    }

    fn won(&mut self, now: u64, sent: u64, epoch: u64, epoch_version: Version, out: &mut Vec<Action>) {
        let Some(node) = self.node.clone() else { return self.deposed(now, Step::Join, out) };
        let epoch_path = self.options.tree.leader_epoch();
        let fence = Fence { epoch, node, epoch_path, epoch_version };
        self.reign = Some(Reign { fence, proven_ms: sent });
        self.confirmed(now, sent, out);
    }

    fn confirmed(&mut self, now: u64, sent: u64, out: &mut Vec<Action>) {
        let Some(reign) = &mut self.reign else { return };
        reign.proven_ms = sent;
        let fence = reign.fence.clone();
        // A proof that was long under way proves nothing about now.
        if now < self.suspend_at_of(sent) {
            self.tell(Leadership::Leading(fence), out);
        }
        self.next = Some((sent + self.options.session_ms / CONFIRMS_PER_SESSION, Step::Confirm));
    }

    /// Whatever we were, we are no leader, and go on with `step`.
    fn deposed(&mut self, now: u64, step: Step, out: &mut Vec<Action>) {
        self.reign = None;
        if step != Step::Look {
            self.node = None;
        }
        self.tell(Leadership::Standby { leader: None }, out);
        self.next = Some((now, step));
    }

    fn suspend_at_of(&self, proven_ms: u64) -> u64 {
        proven_ms + self.options.session_ms * SUSPEND_PERCENT / 100
    }

    fn suspend_when_due(&mut self, now: u64, out: &mut Vec<Action>) {
        let due = |reign: &&Reign| now >= self.suspend_at_of(reign.proven_ms);
        if let Some(reign) = self.reign.as_ref().filter(due) {
            let fence = reign.fence.clone();
            self.tell(Leadership::Suspended(fence), out);
        }
    }

    fn tell(&mut self, leadership: Leadership, out: &mut Vec<Action>) {
        if self.is_over() || self.told.as_ref() == Some(&leadership) {
            return;
        }
        self.told = Some(leadership.clone());
        out.push(Action::Tell(leadership));
    }
}

/// Of a candidate's node; None = something else lies there.
fn number(name: &str) -> Option<i64> {
    name.strip_prefix(NODE_PREFIX)?.parse().ok()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
