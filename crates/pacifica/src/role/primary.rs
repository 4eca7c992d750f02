//! The member that decides: gives decrees, gathers answers, commits, and asks for changes of membership.

mod membership;

use std::collections::VecDeque;

use bytes::Bytes;
use pegasus_types::message::Message;
use pegasus_types::{Ballot, Decree, ErrorCode, Millis, Mutation, Node};

use super::FIRST_BALLOT;
use super::progress::Progress;
use super::teach::Pupil;
use crate::Effect;
use crate::input::Input;
use crate::node::{Admission, Serving};
use crate::options::Sabotage;
use crate::shared::{Env, Look, Next, Shared};

/// A planned hand-over (safety-rules.md 1.3).
#[derive(Debug)]
struct Release {
    to: Node,
    since: Millis,
    /// The successor was told, so this node serves at this ballot no more.
    done: bool,
    refused: bool,
}

#[derive(Debug)]
pub(crate) struct Primary {
    /// The secondaries of the configuration.
    members: Vec<Progress>,
    pupils: Vec<Pupil>,
    /// First ballot of this uninterrupted time as primary.
    reign: Ballot,
    /// No lease of a predecessor lasts longer.
    acting_from: Millis,
    /// Last decree in the tail when the role was taken: nothing is served before it is applied.
    inherited: Decree,
    /// Every member has told what it holds (safety-rules.md 2.4).
    compared: bool,
    /// Own log, under this ballot.
    logged: Decree,
    /// Writes of clients that are not applied yet.
    waiting: VecDeque<(Decree, u64)>,
    release: Option<Release>,
    committed_at: Millis,
}

impl Primary {
    pub fn reign(&self) -> Ballot {
        self.reign
    }

    /// `before` = the ballot at which this node was something else.
    pub fn take_over(cx: &mut Shared, env: &mut Env<'_>, before: Ballot) -> Self {
        let wait = env.options.lease_is_over_ms();
        let mut acting_from = env.started + wait;
        let released = cx.released_at == Some(before) && cx.ballot() == before.next();
        if !released && let Some(granted) = cx.last_grant {
            acting_from = acting_from.max(granted + wait);
        }
        if env.options.sabotage == Sabotage::DropInherited {
            cx.tail.truncate_to(cx.tail.committed());
        }
        let mut role = Self {
            members: Vec::new(),
            pupils: Vec::new(),
            reign: cx.ballot(),
            acting_from,
            inherited: cx.tail.prepared(),
            compared: false,
            logged: Decree::ZERO,
            waiting: VecDeque::new(),
            release: None,
            committed_at: env.now,
        };
        role.enter_ballot(cx, env);
        role
    }

    /// The same primary at a new ballot: members changed, clients go on waiting (replication.md H12).
    pub fn carry_on(mut self, cx: &mut Shared, env: &mut Env<'_>) -> Self {
        self.release = None;
        self.enter_ballot(cx, env);
        self
    }

    /// Everything that is not committed is prepared again under the new ballot (replication.md S2), by
    /// everybody as soon as they have adopted it.
    fn enter_ballot(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        let old_members = std::mem::take(&mut self.members);
        let old_pupils = std::mem::take(&mut self.pupils);
        let config = cx.config.clone();
        for node in &config.secondaries {
            let slot = old_members
                .iter()
                .chain(old_pupils.iter().map(|p| &p.progress))
                .find(|p| p.node == *node)
                .map(|p| p.slot);
            self.members.push(Progress::new(cx, env, node, slot));
            cx.send(env, node, Message::Configure { config: config.clone() });
        }
        for old in old_members {
            if !config.is_member(&old.node) {
                env.leases.dismiss(old.peer, cx.gpid);
                cx.send(env, &old.node, Message::Configure { config: config.clone() });
            }
        }
        for mut pupil in old_pupils {
            if !config.is_member(&pupil.progress.node) {
                pupil.carry_on(cx, env);
                self.pupils.push(pupil);
            }
        }
        self.logged = cx.tail.committed();
        let again = cx.tail.prepare_again(cx.ballot());
        cx.log(env, again);
        self.compare();
    }

    pub fn leave(self, cx: &mut Shared, env: &mut Env<'_>) {
        for peer in self.everybody().map(|p| p.peer).collect::<Vec<_>>() {
            env.leases.dismiss(peer, cx.gpid);
        }
        for (_, token) in self.waiting {
            env.out.push(Effect::Drop { gpid: cx.gpid, token });
        }
    }

    fn everybody(&self) -> impl Iterator<Item = &Progress> {
        self.members.iter().chain(self.pupils.iter().map(|p| &p.progress))
    }

    fn somebody(&mut self, node: &Node) -> Option<&mut Progress> {
        self.members
            .iter_mut()
            .chain(self.pupils.iter_mut().map(|p| &mut p.progress))
            .find(|p| p.node == *node)
    }

    pub fn on(&mut self, cx: &mut Shared, env: &mut Env<'_>, input: Input) -> Next {
        match input {
            Input::Write { token, timestamp_us, body } => self.write(cx, env, token, timestamp_us, body),
            Input::Message { from, message } => {
                let next = self.message(cx, env, &from, message);
                if !matches!(next, Next::Stay) {
                    return next;
                }
            }
            Input::Logged { upto } => {
                cx.tail.logged(upto);
                self.logged = self.logged.max(upto.min(cx.tail.prepared()));
                self.commit(cx, env);
            }
            Input::Applied { upto } => {
                cx.applied(env, upto, env.options.recent);
                while let Some(&(decree, token)) = self.waiting.front() {
                    if decree > cx.tail.applied() {
                        break;
                    }
                    self.waiting.pop_front();
                    env.out.push(Effect::Reply { gpid: cx.gpid, token, result: Ok(decree) });
                }
            }
            Input::Granted { from, ballot, sent } => {
                let reign = self.reign;
                if let Some(progress) = self.somebody(&from) {
                    progress.granted(ballot, reign, sent);
                }
            }
            Input::Suspect { node } => self.suspect(cx, env, &node),
            Input::Answered(answer) => self.answered(cx, env, answer),
            Input::Propose(proposal) => self.propose(cx, env, proposal),
            Input::Wake => self.wake_up(cx, env),
            Input::Sweep => self.sweep(cx, env),
            Input::Restarted { .. }
            | Input::CopiedRows { .. }
            | Input::Fetched { .. }
            | Input::CopyFailed { .. } => {}
        }
        self.try_release(cx, env);
        self.pursue(cx, env);
        Next::Stay
    }

    // --- writes ---

    fn write(&mut self, cx: &mut Shared, env: &mut Env<'_>, token: u64, timestamp_us: u64, body: Bytes) {
        match self.admit(cx, &env.look()) {
            Admission::Ready { .. } => {}
            Admission::Full => return refuse(cx, env, token, ErrorCode::CapacityExceeded),
            Admission::Wait => return refuse(cx, env, token, ErrorCode::InvalidState),
            Admission::Refused(code) => return refuse(cx, env, token, code),
        }
        let timestamp_us = timestamp_us.max(cx.last_timestamp_us + 1);
        cx.last_timestamp_us = timestamp_us;
        let decree = cx.tail.prepared().next();
        let mutation = Mutation::new(cx.gpid, decree, cx.ballot(), timestamp_us, body);
        cx.tail.push(cx.ballot(), mutation.clone());
        cx.log(env, vec![mutation]);
        self.waiting.push_back((decree, token));
        for member in &mut self.members {
            member.pump(cx, env);
        }
        for pupil in &mut self.pupils {
            pupil.progress.pump(cx, env);
        }
    }

    pub fn admit(&self, cx: &Shared, look: &Look<'_>) -> Admission {
        if leaving(cx, look.me) {
            return Admission::Refused(ErrorCode::InvalidState);
        }
        let wanted = usize::try_from(cx.config.max_replica_count).unwrap_or(1).max(1);
        if cx.config.member_count() < look.options.min_members.min(wanted) {
            return Admission::Refused(ErrorCode::NotEnoughMember);
        }
        if !self.acts(cx, look.now) || self.release.is_some() {
            return Admission::Wait;
        }
        let slots = look.options.window.saturating_sub(cx.tail.in_flight());
        if slots == 0 || cx.tail.in_flight_bytes() >= look.options.window_bytes {
            return Admission::Full;
        }
        Admission::Ready { slots }
    }

    /// Nothing of a predecessor can be in the way any more, and nothing is missing here.
    fn acts(&self, cx: &Shared, now: Millis) -> bool {
        now >= self.acting_from && self.compared && cx.tail.applied() >= self.inherited
    }

    pub fn serving(&self, cx: &Shared, look: &Look<'_>) -> Serving {
        if leaving(cx, look.me) {
            return Serving::No(ErrorCode::InvalidState);
        }
        let released = self.release.as_ref().is_some_and(|r| r.done);
        let granted = |p: &Progress| look.leases.holds(p.peer, &p.slot, look.now, look.options);
        let forget = look.options.sabotage == Sabotage::ForgetAskedMember;
        let all = self.members.iter().all(granted)
            && self.pupils.iter().filter(|p| p.asked && !forget).all(|p| granted(&p.progress));
        if all && !released && self.acts(cx, look.now) { Serving::Yes } else { Serving::Wait }
    }

    /// A mutation commits when the own log, every member and every joined learner have it (replication.md S6).
    fn commit(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        let mut ready = self.logged;
        if env.options.sabotage != Sabotage::CommitAlone {
            for member in &self.members {
                ready = ready.min(if member.answered { member.acked } else { Decree::ZERO });
            }
            for pupil in self.pupils.iter().filter(|p| p.counts()) {
                ready = ready.min(pupil.progress.acked);
            }
        }
        if ready > cx.tail.committed() {
            cx.commit_to(env, ready);
            self.committed_at = env.now;
        }
    }

    // --- the others ---

    fn message(&mut self, cx: &mut Shared, env: &mut Env<'_>, from: &Node, message: Message) -> Next {
        match message {
            Message::Prepared { round, .. } | Message::Gap { round, .. }
                if self.is_ended_round(cx, env, from, round) => {}
            Message::Prepared { prepared, round } => {
                if self.somebody(from).is_some_and(|p| p.prepared(cx, env, prepared, round)) {
                    self.commit(cx, env);
                }
            }
            Message::State { committed, prepared } => return self.state(cx, env, from, committed, prepared),
            Message::Gap { expected, round } => self.gap(cx, env, from, expected, round),
            Message::NeedConfig => {
                let config = cx.config.clone();
                match self.pupils.iter_mut().find(|p| p.progress.node == *from) {
                    Some(pupil) => pupil.call(cx, env),
                    None => cx.send(env, from, Message::Configure { config }),
                }
            }
            Message::NotHere => {
                if let Some(member) = self.members.iter_mut().find(|m| m.node == *from) {
                    // While a table is being created its members open one after another.
                    if member.answered || cx.ballot() > FIRST_BALLOT {
                        member.give_up(env);
                    }
                } else {
                    self.drop_pupil(cx, env, |p| p.progress.node == *from);
                }
            }
            Message::Join { signature, round, prepared } => {
                self.join(cx, env, from, signature, round, prepared);
            }
            Message::LearnFailed { signature } => self.drop_pupil(cx, env, |p| p.signature == signature),
            Message::Prepare { .. }
            | Message::Commit { .. }
            | Message::Configure { .. }
            | Message::Learn { .. }
            | Message::FetchMore { .. }
            | Message::Joined { .. }
            | Message::Stale
            | Message::Released => {}
        }
        Next::Stay
    }

    fn state(
        &mut self,
        cx: &mut Shared,
        env: &mut Env<'_>,
        from: &Node,
        committed: Decree,
        prepared: Decree,
    ) -> Next {
        if committed > cx.tail.prepared() {
            return Next::StandDown(format!(
                "{from} has committed {committed}, only {} is held here",
                cx.tail.prepared()
            ));
        }
        let Some(member) = self.members.iter_mut().find(|m| m.node == *from) else {
            return Next::Stay;
        };
        if member.answered {
            // Doubled, or its process has restarted: then it knows less of the commit point, and misses prepares,
            // which it will say.
            let committed = cx.tail.committed().min(member.acked);
            cx.send(env, from, Message::Commit { committed });
            return Next::Stay;
        }
        if prepared < cx.tail.base() {
            tracing::warn!(gpid = %cx.gpid, node = %from, %prepared, "member lacks committed decrees");
            member.give_up(env);
            return Next::Stay;
        }
        member.answer(env, committed);
        member.pump(cx, env);
        let peer = member.peer;
        env.leases.hurry(peer);
        self.compare();
        self.commit(cx, env);
        Next::Stay
    }

    fn compare(&mut self) {
        self.compared = self.compared || self.members.iter().all(|m| m.answered);
    }

    fn gap(&mut self, cx: &Shared, env: &mut Env<'_>, from: &Node, expected: Decree, round: u64) {
        if let Some(pupil) = self.pupils.iter_mut().find(|p| p.progress.node == *from && p.joined()) {
            if expected <= cx.tail.base() && !pupil.asked {
                pupil.back_to_copying(cx, env);
            } else {
                pupil.progress.gap(cx, env, expected, round);
            }
        } else if let Some(member) = self.members.iter_mut().find(|m| m.node == *from) {
            member.gap(cx, env, expected, round);
        }
    }

    fn suspect(&mut self, cx: &mut Shared, env: &mut Env<'_>, node: &Node) {
        if let Some(member) = self.members.iter_mut().find(|m| m.node == *node) {
            member.lose(env);
        } else {
            self.drop_pupil(cx, env, |p| p.progress.node == *node);
        }
    }

    // --- learners ---

    pub fn teaches(&self, signature: u64) -> bool {
        self.pupils.iter().any(|p| p.signature == signature)
    }

    /// A learner that goes on in a round that counts no more is told so.
    fn is_ended_round(&self, cx: &Shared, env: &mut Env<'_>, from: &Node, round: u64) -> bool {
        match self.pupils.iter().find(|p| p.progress.node == *from) {
            Some(pupil) if !pupil.is_round(round) => {
                pupil.tell_ended(cx, env, round);
                true
            }
            _ => false,
        }
    }

    fn join(
        &mut self,
        cx: &mut Shared,
        env: &mut Env<'_>,
        from: &Node,
        signature: u64,
        round: u64,
        prepared: Decree,
    ) {
        let found = self.pupils.iter_mut().find(|p| p.signature == signature && p.progress.node == *from);
        let Some(pupil) = found else {
            if !cx.config.is_member(from) {
                cx.send(env, from, Message::LearnFailed { signature });
            }
            return;
        };
        if pupil.is_exhausted() {
            cx.send(env, from, Message::LearnFailed { signature });
            return self.drop_pupil(cx, env, |p| p.signature == signature);
        }
        // What a predecessor prepared may be committed, although this primary does not know it yet.
        pupil.join(cx, env, round, prepared, cx.tail.committed().max(self.inherited));
        self.commit(cx, env);
    }

    /// A learner whose addition was asked for may be a member already and cannot be dropped.
    fn drop_pupil(&mut self, cx: &mut Shared, env: &mut Env<'_>, which: impl Fn(&Pupil) -> bool) {
        self.pupils.retain_mut(|pupil| {
            if !which(pupil) {
                return true;
            }
            pupil.progress.lose(env);
            if !pupil.asked {
                env.leases.dismiss(pupil.progress.peer, cx.gpid);
            }
            pupil.asked
        });
        self.commit(cx, env);
    }

    // --- timers ---

    fn wake_up(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        if let Some(answer) = cx.ask_timed_out(env) {
            self.answered(cx, env, answer);
        }
        let news = env.now.since(self.committed_at) >= env.options.commit_notify_ms;
        for member in &mut self.members {
            if member.resend(cx, env) {
                let config = cx.config.clone();
                cx.send(env, &member.node, Message::Configure { config });
            }
            if member.stalled_ms(env) >= env.options.prepare_timeout_ms {
                member.lose(env);
            }
            if news {
                member.tell_committed(cx, env);
            }
        }
        for pupil in &mut self.pupils {
            pupil.wake(cx, env);
            if news {
                pupil.progress.tell_committed(cx, env);
            }
        }
        // A learner that went back to copying counts no more.
        self.commit(cx, env);
    }

    fn sweep(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        for member in &mut self.members {
            if member.withholds(env) {
                member.lose(env);
            }
            member.tell_committed_again(cx, env);
        }
        for pupil in &mut self.pupils {
            // A learner that has restarted knows nothing of its joining.
            if pupil.progress.withholds(env) && pupil.joined() && !pupil.asked {
                pupil.back_to_copying(cx, env);
            }
            pupil.progress.tell_committed_again(cx, env);
        }
        self.commit(cx, env);
    }

    pub fn wake(&self, cx: &Shared, env: &Env<'_>) -> Option<Millis> {
        let options = env.options;
        let members = self.members.iter().flat_map(|m| {
            let stalled = (!m.is_lost()).then(|| m.stalled_at(options.prepare_timeout_ms)).flatten();
            [m.resend_at(env), stalled]
        });
        let pupils = self.pupils.iter().map(|p| p.wake_at(env));
        let news =
            self.everybody().any(|p| p.owes_news(cx)).then(|| self.committed_at + options.commit_notify_ms);
        let release = self.release.as_ref().filter(|r| !r.done).map(|r| r.since + options.hand_over_ms);
        let acting = Some(self.acting_from).filter(|at| *at > env.now);
        members.chain(pupils).chain([news, release, acting, cx.ask_wake(env)]).flatten().min()
    }

    pub fn check(&self, cx: &Shared) -> Result<(), String> {
        if !self.members.iter().map(|m| &m.node).eq(&cx.config.secondaries) {
            return Err(format!("members differ from {:?}", cx.config));
        }
        for progress in self.everybody().filter(|p| p.answered) {
            progress.check(cx)?;
        }
        if self.logged > cx.tail.prepared() || self.logged > cx.tail.durable().max(cx.tail.committed()) {
            return Err(format!("logged {} lies above {}", self.logged, cx.tail.durable()));
        }
        Ok(())
    }
}

/// A newer configuration with another primary is on its way to the disk.
fn leaving(cx: &Shared, me: &Node) -> bool {
    cx.saving.as_ref().is_some_and(|s| !s.config.is_primary(me))
}

fn refuse(cx: &Shared, env: &mut Env<'_>, token: u64, code: ErrorCode) {
    env.out.push(Effect::Reply { gpid: cx.gpid, token, result: Err(code) });
}
