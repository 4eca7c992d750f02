//! A member that is not the primary.

use pegasus_types::message::Message;
use pegasus_types::meta::Proposal;
use pegasus_types::{ChangeKind, Millis, Node};

use super::follower::Follower;
use super::{FIRST_BALLOT, FOLLOWER_RECENT, not_primary};
use crate::input::Input;
use crate::lease::PeerId;
use crate::shared::{Env, Next, Shared};

/// A primary that restarted and has its new ballot already is seen as another process just after that ballot was
/// adopted here. So long after it (two heartbeats), another process does not have the ballot.
const FRESH_MS: u64 = 300;

#[derive(Debug)]
pub(crate) struct Secondary {
    primary: Node,
    peer: PeerId,
    follower: Follower,
    begun_at: Millis,
    /// Asked for the primary's role, so grants it no more.
    claimed: bool,
    /// The primary's process is another one by now, which can act at a new ballot only (safety-rules.md 1.4).
    deposed: bool,
    /// The primary has spoken under this role: its replica was there.
    met: bool,
}

impl Secondary {
    /// `cx.config` names this node as secondary of a primary.
    pub fn begin(cx: &mut Shared, env: &mut Env<'_>, primary: Node) -> Self {
        let peer = env.leases.peer(&primary, env.now);
        env.leases.start_granting(peer, cx.gpid, cx.ballot(), env.now);
        let role = Self {
            peer,
            follower: Follower::new(cx, 0),
            begun_at: env.now,
            claimed: false,
            deposed: false,
            met: false,
            primary,
        };
        role.report(cx, env);
        role
    }

    pub fn leave(self, cx: &mut Shared, env: &mut Env<'_>) {
        let last = env.leases.stop_granting(self.peer, cx.gpid);
        cx.granted_until_now(last);
    }

    fn report(&self, cx: &Shared, env: &mut Env<'_>) {
        let state = Message::State { committed: cx.tail.committed(), prepared: cx.tail.prepared() };
        cx.send(env, &self.primary, state);
    }

    pub fn on(&mut self, cx: &mut Shared, env: &mut Env<'_>, input: Input) -> Next {
        match input {
            Input::Message { from, message } => return self.message(cx, env, &from, message),
            Input::Logged { upto } => self.follower.logged(cx, env, &self.primary, upto),
            Input::Applied { upto } => cx.applied(env, upto, FOLLOWER_RECENT),
            Input::Suspect { node } => {
                if node == self.primary {
                    self.claim(cx, env);
                }
            }
            Input::Restarted { node } => {
                if node == self.primary && env.now.since(self.begun_at) >= FRESH_MS {
                    self.deposed = true;
                    self.claim(cx, env);
                }
            }
            Input::Propose(Proposal::TakeOver) => self.claim(cx, env),
            Input::Propose(
                Proposal::AddSecondary { .. } | Proposal::RemoveSecondary { .. } | Proposal::HandOver { .. },
            ) => {}
            Input::Answered(_) => self.review_claim(cx, env),
            Input::Wake => {
                cx.ask_timed_out(env);
                self.review_claim(cx, env);
            }
            Input::Sweep => {
                self.review_claim(cx, env);
                self.sweep(cx, env);
            }
            Input::Write { token, .. } => not_primary(cx, env, token),
            Input::CopiedRows { .. }
            | Input::Fetched { .. }
            | Input::CopyFailed { .. }
            | Input::Granted { .. } => {}
        }
        Next::Stay
    }

    fn message(&mut self, cx: &mut Shared, env: &mut Env<'_>, from: &Node, message: Message) -> Next {
        if *from != self.primary {
            return Next::Stay;
        }
        self.met |= !matches!(message, Message::NotHere);
        match message {
            Message::Prepare { mutation, committed } => {
                return self.follower.prepare(cx, env, from, mutation, committed);
            }
            Message::Commit { committed } => return self.follower.commit(cx, env, from, committed),
            Message::Configure { .. } => self.report(cx, env),
            // While a table is being created its members open one after another; a primary that has really lost
            // its replica is noticed by the meta.
            Message::NotHere if cx.ballot() <= FIRST_BALLOT && !self.met => {}
            Message::NotHere => self.claim(cx, env),
            Message::Released => cx.released_at = Some(cx.ballot()),
            Message::State { .. }
            | Message::Prepared { .. }
            | Message::Gap { .. }
            | Message::NeedConfig
            | Message::Stale
            | Message::Learn { .. }
            | Message::Join { .. }
            | Message::FetchMore { .. }
            | Message::Joined { .. }
            | Message::LearnFailed { .. } => {}
        }
        Next::Stay
    }

    /// Asks for the primary's role. Safe at any time: whoever gets it waits out its own last grant.
    fn claim(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        if !env.leases.log_healthy || cx.saving.is_some() {
            return;
        }
        if !self.claimed {
            self.claimed = true;
            let last = env.leases.stop_granting(self.peer, cx.gpid);
            cx.granted_until_now(last);
        }
        cx.ask(env, ChangeKind::TakeOver { claimant: env.me.clone() });
    }

    /// A claim that came to nothing is repeated while the primary is silent. Should it be well, it gets its grants
    /// back: a group that is whole goes on while the meta is away (safety-rules.md 1.6). A late success of the
    /// claim does no harm.
    fn review_claim(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        if !(self.claimed || self.deposed) || cx.ask.is_some() || cx.saving.is_some() {
            return;
        }
        if self.deposed || env.leases.is_silent(self.peer, env.now, env.options) {
            self.claim(cx, env);
        } else {
            self.claimed = false;
            env.leases.start_granting(self.peer, cx.gpid, cx.ballot(), env.now);
        }
    }

    fn sweep(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        if !self.met {
            // After a restart the primary does not know that this member knows less than before.
            self.report(cx, env);
        }
        // The primary's node may be well without holding the partition. Then it never asks for a grant.
        let granted = env.leases.last_given(self.peer, cx.gpid).max(cx.last_grant);
        if granted.is_none_or(|at| env.now.since(at) > env.options.grace_ms) {
            let primary = self.primary.clone();
            cx.need_config(env, &primary);
        }
    }

    pub fn check(&self, cx: &Shared) -> Result<(), String> {
        self.follower.check(cx)?;
        if cx.config.primary.as_ref() != Some(&self.primary) {
            return Err(format!("follows {}, not the primary of {:?}", self.primary, cx.config));
        }
        Ok(())
    }
}
