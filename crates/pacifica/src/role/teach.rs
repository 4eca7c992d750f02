//! A learner, as its primary sees it.

use pegasus_types::message::Message;
use pegasus_types::{Decree, Millis, Node};

use super::progress::Progress;
use crate::options::Sabotage;
use crate::shared::{Env, Shared};

/// A learner that copies is told of its session again after this time: the first call may be lost, the learner
/// may have restarted.
const LEARN_AGAIN_MS: u64 = 1_000;
/// How often a learner that has joined is looked at: is it ready to be added?
const READY_POLL_MS: u64 = 50;
/// A learner that is there grants within a heartbeat or two. One that has not for so long makes room for others.
const COMES_WITHIN_MS: u64 = 10_000;
/// Rounds of one session that are remembered. A learner that needs more begins a new session.
const MAX_ROUNDS: usize = 64;

#[derive(Debug)]
pub(crate) struct Pupil {
    pub progress: Progress,
    pub signature: u64,
    begun_at: Millis,
    called_at: Millis,
    /// Joinings that count no more, or never did. `progress.round` is the one that counts.
    ended: Vec<u64>,
    /// Its addition was asked for and not surely refused: it counts as a member (safety-rules.md 1.2).
    pub asked: bool,
    /// The meta asked for it while the group was whole: a copy moves to it, and for a while the group has one member
    /// more than wanted.
    pub extra: bool,
    /// A request for its addition may still be carried out.
    pub uncertain: bool,
}

impl Pupil {
    pub fn begin(cx: &Shared, env: &mut Env<'_>, node: &Node) -> Self {
        let progress = Progress::new(cx, env, node, None);
        let signature = env.sessions.next();
        let mut pupil = Self {
            progress,
            signature,
            begun_at: env.now,
            called_at: env.now,
            ended: Vec::new(),
            asked: false,
            extra: false,
            uncertain: false,
        };
        pupil.call(cx, env);
        pupil
    }

    /// At a new ballot of the same primary: it has to adopt that first.
    pub fn carry_on(&mut self, cx: &Shared, env: &mut Env<'_>) {
        let old = &self.progress;
        self.progress = Progress::new(cx, env, &old.node.clone(), Some(old.slot));
        // Rounds are of one ballot.
        self.ended.clear();
        self.asked = false;
        self.uncertain = false;
        self.call(cx, env);
    }

    pub fn call(&mut self, cx: &Shared, env: &mut Env<'_>) {
        self.called_at = env.now;
        let learn = Message::Learn { config: cx.config.clone(), signature: self.signature };
        cx.send(env, &self.progress.node, learn);
    }

    /// Does it get prepares, and do its answers count?
    pub fn joined(&self) -> bool {
        self.progress.answered
    }

    pub fn counts(&self) -> bool {
        self.joined() || self.asked
    }

    /// It holds all that a member holds, and has granted. `inherited`: what a predecessor prepared may be
    /// committed, although this primary does not know it yet.
    pub fn is_ready(&self, cx: &Shared, env: &Env<'_>, inherited: Decree) -> bool {
        let progress = &self.progress;
        let granted = env.options.sabotage == Sabotage::ForgetAskedMember
            || env.leases.holds(progress.peer, &progress.slot, env.now, env.options);
        self.joined() && progress.acked >= cx.tail.committed().max(inherited) && granted
    }

    /// It cannot be fed from memory (any more): let it fetch from the log.
    pub fn back_to_copying(&mut self, cx: &Shared, env: &mut Env<'_>) {
        let round = self.progress.round;
        self.end_round();
        self.progress.suspend(env);
        self.called_at = env.now;
        self.tell_ended(cx, env, round);
    }

    /// From now on nothing that is acknowledged in this round counts.
    fn end_round(&mut self) {
        if self.joined() {
            self.ended.push(self.progress.round);
        }
    }

    pub fn tell_ended(&self, cx: &Shared, env: &mut Env<'_>, round: u64) {
        cx.send(env, &self.progress.node, Message::FetchMore { signature: self.signature, round });
    }

    pub fn is_round(&self, round: u64) -> bool {
        self.joined() && self.progress.round == round
    }

    pub fn is_exhausted(&self) -> bool {
        self.ended.len() >= MAX_ROUNDS && !self.asked
    }

    /// Called, and not there as far as one can see.
    pub fn is_missing(&self, env: &Env<'_>) -> bool {
        let progress = &self.progress;
        !self.joined()
            && !self.asked
            && env.now.since(self.begun_at) >= COMES_WITHIN_MS
            && !env.leases.holds(progress.peer, &progress.slot, env.now, env.options)
    }

    /// It holds everything up to `prepared`, and in another round than before (if any) it may have forgotten
    /// what it acknowledged in that. `must_hold` = what a member holds.
    pub fn join(&mut self, cx: &Shared, env: &mut Env<'_>, round: u64, prepared: Decree, must_hold: Decree) {
        if !self.is_round(round) {
            if self.ended.contains(&round) {
                return self.tell_ended(cx, env, round);
            }
            if prepared < cx.tail.base() || prepared > cx.tail.prepared() {
                self.end_round();
                self.progress.suspend(env);
                self.called_at = env.now;
                self.ended.push(round);
                return self.tell_ended(cx, env, round);
            }
            self.end_round();
            self.progress.answer(env, prepared);
            self.progress.round = round;
        }
        let signature = self.signature;
        cx.send(env, &self.progress.node, Message::Joined { signature, round, committed: must_hold });
        self.progress.pump(cx, env);
        env.leases.hurry(self.progress.peer);
    }

    pub fn wake(&mut self, cx: &Shared, env: &mut Env<'_>) {
        if self.joined() {
            // A learner never delays writers (safety-rules.md 3.3). One that may be a member already has to.
            if !self.asked && self.progress.stalled_ms(env) >= env.options.learner_silence_ms {
                self.back_to_copying(cx, env);
            } else {
                self.progress.resend(cx, env);
            }
        } else if env.now.since(self.called_at) >= LEARN_AGAIN_MS {
            self.call(cx, env);
        }
    }

    pub fn wake_at(&self, env: &Env<'_>) -> Option<Millis> {
        if !self.joined() {
            Some(self.called_at + LEARN_AGAIN_MS)
        } else if self.asked {
            self.progress.resend_at(env)
        } else {
            // It may have granted meanwhile, which nobody tells.
            let poll = Some(env.now + READY_POLL_MS);
            self.progress.stalled_at(env.options.learner_silence_ms).min(poll).or(poll)
        }
    }
}
