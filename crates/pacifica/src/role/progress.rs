//! How far one member or learner is, as its primary knows.

use pegasus_types::message::Message;
use pegasus_types::{Ballot, Decree, Millis, Node};

use crate::lease::{PeerId, Slot};
use crate::node::SWEEP_MS;
use crate::shared::{Env, Shared};

/// A node that was taken for dead and is heard again stays in the group, but not for what was still under way
/// when it died.
const REVIVED_MS: u64 = 200;
/// What is unanswered is sent again after `resend_ms`, then after twice, at last after four times that.
const RESEND_DOUBLINGS: u32 = 2;
/// A commit point that no prepare carries is told so many times more: nobody says that he has not heard it.
const COMMIT_REPEATS: u32 = 3;

#[derive(Debug)]
pub(crate) struct Progress {
    pub node: Node,
    pub peer: PeerId,
    pub slot: Slot,
    /// It has adopted this ballot (and joined, as a learner): prepares may be sent.
    pub answered: bool,
    /// Of the learner's joining that counts; 0 for members.
    pub round: u64,
    /// Everything up to here is in its log, under this ballot, or was committed there before.
    pub acked: Decree,
    sent: Decree,
    /// Commit point that it was told last.
    told: Decree,
    /// Since when it owes an answer, or when it gave the last one.
    moved_at: Millis,
    sent_at: Millis,
    /// How often it was sent again since it moved.
    resent: u32,
    /// How often the commit point is to be told again.
    retell: u32,
    /// Looks in a row at which it granted nothing.
    ungranted: u64,
    /// Taken for dead since.
    lost_at: Option<Millis>,
    /// It said that it has no such replica, or its removal was ordered.
    gone: bool,
}

impl Progress {
    pub fn new(cx: &Shared, env: &mut Env<'_>, node: &Node, slot: Option<Slot>) -> Self {
        let peer = env.leases.peer(node, env.now);
        let slot = env.leases.require(peer, cx.gpid, cx.ballot(), slot, env.now);
        Self {
            node: node.clone(),
            peer,
            slot,
            answered: false,
            round: 0,
            acked: Decree::ZERO,
            sent: Decree::ZERO,
            told: Decree::ZERO,
            moved_at: env.now,
            sent_at: env.now,
            resent: 0,
            retell: 0,
            ungranted: 0,
            lost_at: None,
            gone: false,
        }
    }

    /// It holds everything up to `held` as the primary does, and wants what follows.
    pub fn answer(&mut self, env: &Env<'_>, held: Decree) {
        self.answered = true;
        self.acked = held;
        self.sent = held;
        self.told = Decree::ZERO;
        self.moved_at = env.now;
        self.resent = 0;
        self.alive(env);
    }

    /// Back to not answered; the grants stay.
    pub fn suspend(&mut self, env: &Env<'_>) {
        self.answered = false;
        self.moved_at = env.now;
    }

    /// Sends what it has not got yet.
    pub fn pump(&mut self, cx: &Shared, env: &mut Env<'_>) {
        if !self.answered {
            return;
        }
        let owed_nothing = self.acked >= self.sent;
        let before = self.sent;
        let committed = cx.tail.committed();
        if self.sent < cx.tail.base() {
            // No longer kept here. It is committed, so the member has it (replication.md S1), or says that it
            // has not.
            self.sent = cx.tail.base();
            cx.send(env, &self.node, Message::Commit { committed: self.sent });
        }
        while let Some(mutation) = cx.tail.get(self.sent.next()) {
            self.sent = self.sent.next();
            cx.send(env, &self.node, Message::Prepare { mutation: mutation.clone(), committed });
            self.told = committed;
        }
        if self.sent > before {
            self.sent_at = env.now;
            if owed_nothing {
                self.moved_at = env.now;
                self.resent = 0;
            }
        }
    }

    /// Gives true when it moved.
    pub fn prepared(&mut self, cx: &Shared, env: &Env<'_>, prepared: Decree, round: u64) -> bool {
        self.alive(env);
        let prepared = prepared.min(cx.tail.prepared());
        if !self.answered || round != self.round || prepared <= self.acked {
            return false;
        }
        self.acked = prepared;
        self.sent = self.sent.max(prepared);
        self.moved_at = env.now;
        self.resent = 0;
        true
    }

    /// Sends again from `expected` on.
    pub fn gap(&mut self, cx: &Shared, env: &mut Env<'_>, expected: Decree, round: u64) {
        self.alive(env);
        if self.answered && round == self.round && expected <= self.sent && expected > Decree::ZERO {
            self.send_from(cx, env, expected.prev());
        }
    }

    /// Tells the commit point, when it does not know it.
    pub fn tell_committed(&mut self, cx: &Shared, env: &mut Env<'_>) {
        if self.owes_news(cx) {
            self.told = cx.tail.committed();
            self.retell = COMMIT_REPEATS;
            cx.send(env, &self.node, Message::Commit { committed: self.told });
        }
    }

    /// That message may have been lost.
    pub fn tell_committed_again(&mut self, cx: &Shared, env: &mut Env<'_>) {
        if self.retell > 0 && self.answered && self.told == cx.tail.committed() {
            self.retell -= 1;
            cx.send(env, &self.node, Message::Commit { committed: self.told });
        }
    }

    pub fn owes_news(&self, cx: &Shared) -> bool {
        self.answered && self.told < cx.tail.committed() && self.acked >= cx.tail.committed()
    }

    fn owes_answer(&self) -> bool {
        !self.answered || self.acked < self.sent
    }

    /// Repeats what is unanswered for too long. True = it has not answered this ballot at all.
    pub fn resend(&mut self, cx: &Shared, env: &mut Env<'_>) -> bool {
        if self.resend_at(env).is_none_or(|at| at > env.now) {
            return false;
        }
        self.sent_at = env.now;
        self.resent += 1;
        if self.answered {
            self.send_from(cx, env, self.acked);
        }
        !self.answered
    }

    /// What is sent again is owed since it was sent first.
    fn send_from(&mut self, cx: &Shared, env: &mut Env<'_>, sent: Decree) {
        let moved_at = self.moved_at;
        self.sent = sent;
        self.pump(cx, env);
        self.moved_at = moved_at;
    }

    pub fn resend_at(&self, env: &Env<'_>) -> Option<Millis> {
        // One that answers, however slowly, has not lost anything; and where an answer takes long, repeating
        // everything all the time makes it longer.
        let patience = if self.answered { 1 << self.resent.min(RESEND_DOUBLINGS) } else { 1 };
        self.owes_answer().then(|| self.sent_at.max(self.moved_at) + env.options.resend_ms * patience)
    }

    /// For how long has it owed an answer?
    pub fn stalled_ms(&self, env: &Env<'_>) -> u64 {
        if self.owes_answer() { env.now.since(self.moved_at) } else { 0 }
    }

    pub fn stalled_at(&self, limit_ms: u64) -> Option<Millis> {
        self.owes_answer().then(|| self.moved_at + limit_ms)
    }

    pub fn lose(&mut self, env: &Env<'_>) {
        if self.lost_at.is_none() {
            self.lost_at = Some(env.now);
        }
    }

    pub fn give_up(&mut self, env: &Env<'_>) {
        self.gone = true;
        self.lose(env);
    }

    pub fn is_lost(&self) -> bool {
        self.lost_at.is_some()
    }

    /// Looked at about once a second: has it granted nothing for longer than a member may take? Its process may be
    /// heard all the same.
    pub fn withholds(&mut self, env: &Env<'_>) -> bool {
        let holds = env.leases.holds(self.peer, &self.slot, env.now, env.options);
        self.ungranted = if self.answered && !holds { self.ungranted + 1 } else { 0 };
        self.ungranted * SWEEP_MS >= env.options.prepare_timeout_ms.max(SWEEP_MS)
    }

    /// Taken for dead, it has answered a heartbeat that was sent some time after, and owes nothing for long.
    pub fn review_loss(&mut self, env: &Env<'_>) {
        let Some(lost_at) = self.lost_at.filter(|_| !self.gone) else { return };
        let granted = env.leases.granted_at(self.peer, &self.slot);
        if granted.is_some_and(|at| at >= lost_at + REVIVED_MS)
            && !env.leases.is_silent(self.peer, env.now, env.options)
            && self.stalled_ms(env) < env.options.prepare_timeout_ms
        {
            self.lost_at = None;
            self.ungranted = 0;
        }
    }

    fn alive(&mut self, env: &Env<'_>) {
        if !self.gone && self.lost_at.is_some_and(|at| env.now.since(at) >= REVIVED_MS) {
            self.lost_at = None;
        }
    }

    pub fn granted(&mut self, ballot: Ballot, reign: Ballot, sent: Millis) {
        if ballot >= reign {
            self.slot.granted(sent);
        }
    }

    pub fn check(&self, cx: &Shared) -> Result<(), String> {
        if self.acked <= self.sent && self.sent <= cx.tail.prepared().max(cx.tail.base()) {
            Ok(())
        } else {
            Err(format!(
                "{}: acked {}, sent {}, prepared {}",
                self.node,
                self.acked,
                self.sent,
                cx.tail.prepared()
            ))
        }
    }
}
