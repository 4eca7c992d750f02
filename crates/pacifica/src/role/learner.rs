//! A node outside of the group that is becoming a secondary.
//!
//! ```text
//!  Waiting -> Copying -> Fetching -> Logging -> Joining -> Joined --(meta adds it)--> Secondary
//!     ^          rows      ^  log       |  reached the commit point
//!     |                    +-- more ----+        |          |
//!     +-- retry            +---------------------+----------+  too far behind for prepares
//! ```

use pegasus_types::message::Message;
use pegasus_types::{Decree, Millis, Mutation, Node};

use super::follower::Follower;
use super::{FOLLOWER_RECENT, not_primary};
use crate::Effect;
use crate::input::Input;
use crate::lease::PeerId;
use crate::shared::{Env, Next, Shared};
use crate::tail::Offer;

/// Pause before copying is begun again.
const RETRY_MS: u64 = 500;

#[derive(Debug)]
enum Stage {
    /// Until what is committed is applied, and the pause after a failure is over.
    Waiting {
        until: Millis,
    },
    Copying,
    Fetching,
    /// Until what is committed is applied: fetching does not outrun the engine.
    Applying,
    /// `target` = the primary's commit point when it sent the chunk.
    Logging {
        upto: Decree,
        target: Decree,
    },
    /// `missed` = prepares came already, ahead of the answer.
    Joining {
        told_at: Millis,
        missed: bool,
    },
    /// The primary counts on this learner. It holds what a member holds with everything up to `must_hold`.
    Joined {
        must_hold: Decree,
    },
}

#[derive(Debug)]
pub(crate) struct Learner {
    primary: Node,
    peer: PeerId,
    signature: u64,
    stage: Stage,
    follower: Follower,
    heard_at: Millis,
}

impl Learner {
    /// Whatever this replica holds beyond its commit point is not to be kept.
    pub fn begin(cx: &mut Shared, env: &mut Env<'_>, primary: Node, signature: u64) -> Self {
        cx.tail.truncate_to(cx.tail.committed());
        let peer = env.leases.peer(&primary, env.now);
        env.leases.start_granting(peer, cx.gpid, cx.ballot(), env.now);
        let stage = Stage::Waiting { until: env.now };
        let mut role =
            Self { primary, peer, signature, stage, follower: Follower::new(cx, 0), heard_at: env.now };
        role.advance(cx, env);
        role
    }

    /// The same session at a new ballot of the same primary.
    pub fn carry_on(mut self, cx: &mut Shared, env: &mut Env<'_>) -> Self {
        env.leases.start_granting(self.peer, cx.gpid, cx.ballot(), env.now);
        match self.stage {
            Stage::Joining { .. } | Stage::Joined { .. } => self.join(cx, env),
            // The log reports the old ballot, which tells nothing any more.
            Stage::Logging { .. } => self.fetch(cx, env),
            Stage::Waiting { .. } | Stage::Copying | Stage::Fetching | Stage::Applying => {}
        }
        self
    }

    pub fn leave(self, cx: &mut Shared, env: &mut Env<'_>) {
        let last = env.leases.stop_granting(self.peer, cx.gpid);
        cx.granted_until_now(last);
        env.out.push(Effect::StopCopy { gpid: cx.gpid });
    }

    fn is_joined(&self) -> bool {
        matches!(self.stage, Stage::Joined { .. })
    }

    /// Its log has all that it acknowledged in this round, all that was committed when the round began, and
    /// `last_committed`, which the meta knows of.
    pub fn may_be_member(&self, last_committed: Decree) -> bool {
        match self.stage {
            Stage::Joined { must_hold } => self.follower.logged_to() >= must_hold.max(last_committed),
            _ => false,
        }
    }

    pub fn session(&self) -> (&Node, u64) {
        (&self.primary, self.signature)
    }

    pub fn on(&mut self, cx: &mut Shared, env: &mut Env<'_>, input: Input) -> Next {
        match input {
            Input::Message { from, message } => return self.message(cx, env, &from, message),
            Input::Logged { upto } => self.logged(cx, env, upto),
            Input::Applied { upto } => {
                cx.applied(env, upto, FOLLOWER_RECENT);
                self.advance(cx, env);
            }
            Input::CopiedRows { signature, decree } => {
                if signature == self.signature && matches!(self.stage, Stage::Copying) {
                    if decree != cx.tail.committed() {
                        cx.tail = crate::tail::Tail::new(decree);
                    }
                    self.fetch(cx, env);
                }
            }
            Input::Fetched { signature, mutations, committed } => {
                if signature == self.signature && matches!(self.stage, Stage::Fetching) {
                    return self.fetched(cx, env, mutations, committed);
                }
            }
            Input::CopyFailed { signature, restart, why } => {
                let copying = matches!(self.stage, Stage::Copying | Stage::Fetching);
                if signature == self.signature && copying {
                    tracing::info!(gpid = %cx.gpid, primary = %self.primary, %why, restart, "copying failed");
                    if !restart {
                        cx.send(env, &self.primary, Message::LearnFailed { signature });
                        return Next::Retire;
                    }
                    self.stage = Stage::Waiting { until: env.now + RETRY_MS };
                }
            }
            Input::Wake => {
                self.advance(cx, env);
                if let Stage::Joining { told_at, missed } = self.stage
                    && env.now.since(told_at) >= env.options.resend_ms
                {
                    self.stage = Stage::Joining { told_at: env.now, missed };
                    self.tell_joining(cx, env);
                }
            }
            Input::Sweep => {
                // The primary may have forgotten this session, and says so when asked.
                if self.is_joined() && env.now.since(self.heard_at) >= env.options.learn_idle_ms {
                    self.heard_at = env.now;
                    self.tell_joining(cx, env);
                }
            }
            Input::Write { token, .. } => not_primary(cx, env, token),
            Input::Answered(_)
            | Input::Propose(_)
            | Input::Suspect { .. }
            | Input::Restarted { .. }
            | Input::Granted { .. } => {}
        }
        Next::Stay
    }

    fn message(&mut self, cx: &mut Shared, env: &mut Env<'_>, from: &Node, message: Message) -> Next {
        if *from != self.primary {
            return Next::Stay;
        }
        self.heard_at = env.now;
        let next = match message {
            Message::Prepare { mutation, committed } => {
                if let Stage::Joining { missed, .. } = &mut self.stage {
                    *missed = true;
                }
                if !self.is_joined() {
                    return Next::Stay;
                }
                self.follower.prepare(cx, env, from, mutation, committed)
            }
            Message::Commit { committed } => {
                if !self.is_joined() {
                    return Next::Stay;
                }
                self.follower.commit(cx, env, from, committed)
            }
            Message::Joined { signature, round, committed } => {
                if self.is_round(signature, round)
                    && let Stage::Joining { missed, .. } = self.stage
                {
                    self.stage = Stage::Joined { must_hold: committed };
                    if missed {
                        self.follower.gap(cx, env, from);
                    }
                }
                Next::Stay
            }
            // One of an earlier round must not make it forget what it acknowledged in this one.
            Message::FetchMore { signature, round } => {
                if self.is_round(signature, round) {
                    self.fetch(cx, env);
                }
                Next::Stay
            }
            Message::LearnFailed { signature } if signature == self.signature => Next::Retire,
            Message::NotHere => Next::Retire,
            Message::LearnFailed { .. }
            | Message::Configure { .. }
            | Message::State { .. }
            | Message::Prepared { .. }
            | Message::Gap { .. }
            | Message::NeedConfig
            | Message::Stale
            | Message::Learn { .. }
            | Message::Join { .. }
            | Message::Released => Next::Stay,
        };
        match next {
            // What a secondary may not lack, a learner fetches.
            Next::StandDown(_) => {
                self.fetch(cx, env);
                Next::Stay
            }
            next => next,
        }
    }

    fn is_round(&self, signature: u64, round: u64) -> bool {
        signature == self.signature
            && round == self.follower.round()
            && matches!(self.stage, Stage::Joining { .. } | Stage::Joined { .. })
    }

    fn advance(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        if cx.tail.applied() < cx.tail.committed() {
            return;
        }
        match self.stage {
            Stage::Waiting { until } if env.now >= until => {
                self.stage = Stage::Copying;
                env.out.push(Effect::StartCopy {
                    gpid: cx.gpid,
                    from: self.primary.clone(),
                    ballot: cx.ballot(),
                    signature: self.signature,
                    committed: cx.tail.committed(),
                });
            }
            Stage::Applying => self.fetch(cx, env),
            Stage::Waiting { .. }
            | Stage::Copying
            | Stage::Fetching
            | Stage::Logging { .. }
            | Stage::Joining { .. }
            | Stage::Joined { .. } => {}
        }
    }

    fn fetch(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        cx.tail.truncate_to(cx.tail.committed());
        if cx.tail.applied() < cx.tail.committed() {
            self.stage = Stage::Applying;
            return;
        }
        self.stage = Stage::Fetching;
        env.out.push(Effect::FetchLog {
            gpid: cx.gpid,
            from: self.primary.clone(),
            signature: self.signature,
            after: cx.tail.committed(),
        });
    }

    fn fetched(
        &mut self,
        cx: &mut Shared,
        env: &mut Env<'_>,
        mutations: Vec<Mutation>,
        committed: Decree,
    ) -> Next {
        let mut taken = Vec::new();
        for mutation in mutations {
            if mutation.decree <= cx.tail.committed() {
                continue;
            }
            let fits = mutation.gpid == cx.gpid && mutation.decree == cx.tail.prepared().next();
            if !fits || !mutation.verify() {
                tracing::warn!(gpid = %cx.gpid, decree = %mutation.decree, primary = %self.primary, "bad log chunk");
                self.stage = Stage::Waiting { until: env.now + RETRY_MS };
                cx.tail.truncate_to(cx.tail.committed());
                return Next::Stay;
            }
            cx.last_timestamp_us = cx.last_timestamp_us.max(mutation.timestamp_us);
            let offered = cx.tail.offer(cx.ballot(), mutation.clone());
            debug_assert_eq!(offered, Offer::Taken);
            taken.push(mutation);
        }
        if taken.is_empty() {
            self.join(cx, env);
            return Next::Stay;
        }
        self.stage = Stage::Logging { upto: cx.tail.prepared(), target: committed };
        cx.log(env, taken);
        Next::Stay
    }

    fn logged(&mut self, cx: &mut Shared, env: &mut Env<'_>, logged: Decree) {
        match self.stage {
            Stage::Logging { upto, target } => {
                cx.tail.logged(logged);
                if cx.tail.durable() >= upto {
                    cx.commit_to(env, upto);
                    if upto >= target {
                        self.join(cx, env);
                    } else {
                        self.fetch(cx, env);
                    }
                }
            }
            Stage::Joining { .. } | Stage::Joined { .. } => {
                let primary = self.primary.clone();
                self.follower.logged(cx, env, &primary, logged);
            }
            Stage::Waiting { .. } | Stage::Copying | Stage::Fetching | Stage::Applying => {}
        }
    }

    /// Begins a round.
    fn join(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        self.follower = Follower::new(cx, env.sessions.next());
        self.stage = Stage::Joining { told_at: env.now, missed: false };
        self.tell_joining(cx, env);
    }

    fn tell_joining(&self, cx: &Shared, env: &mut Env<'_>) {
        let (round, prepared) = (self.follower.round(), self.follower.logged_to());
        cx.send(env, &self.primary, Message::Join { signature: self.signature, round, prepared });
    }

    pub fn wake(&self, env: &Env<'_>) -> Option<Millis> {
        match self.stage {
            Stage::Waiting { until } => Some(until).filter(|at| *at > env.now),
            Stage::Joining { told_at, .. } => Some(told_at + env.options.resend_ms),
            Stage::Copying
            | Stage::Fetching
            | Stage::Applying
            | Stage::Logging { .. }
            | Stage::Joined { .. } => None,
        }
    }

    pub fn check(&self, cx: &Shared) -> Result<(), String> {
        match self.stage {
            Stage::Joining { .. } | Stage::Joined { .. } => self.follower.check(cx),
            Stage::Waiting { .. }
            | Stage::Copying
            | Stage::Fetching
            | Stage::Applying
            | Stage::Logging { .. } => Ok(()),
        }
    }
}
