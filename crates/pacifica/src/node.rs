//! All partitions of one process.

use std::collections::{BTreeMap, BTreeSet};

use pegasus_types::learn::LearnRefused;
use pegasus_types::message::{Envelope, HeartbeatAck, Message};
use pegasus_types::meta::{ReplicaReport, ReplicaStatus};
use pegasus_types::{Ballot, Decree, ErrorCode, Gpid, Millis, Node, PartitionConfig};

use crate::event::Fault;
use crate::history::History;
use crate::input::Input;
use crate::lease::Leases;
use crate::replica::Replica;
use crate::role::Role;
use crate::shared::{Env, Look, Sessions};
use crate::{Effect, Event, Options};

/// Rare cares of every replica: retries that no timer of its own drives.
pub(crate) const SWEEP_MS: u64 = 1_000;

/// May a primary answer a read now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// What the engine answered before this was asked may be sent.
    Yes,
    /// Not at this moment: a grant has run out, or the new primary still waits. Worth asking again after the next
    /// step that handled `HeartbeatAcked`, `Received`, `Applied` or `Tick`, within the request's deadline.
    Wait,
    No(ErrorCode),
}

/// May a write be given to the core now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// So many mutations may be given.
    Ready {
        slots: usize,
    },
    /// The prepare window is full: worth asking again after the next commit.
    Full,
    /// The new primary is not ready yet, or hands over: as [`Serving::Wait`].
    Wait,
    Refused(ErrorCode),
}

/// A replica that the shell is opening.
#[derive(Debug, Default)]
struct Opening {
    /// A call to learn that came meanwhile.
    learn: Option<(Node, Envelope)>,
}

#[derive(Debug)]
pub struct NodeCore {
    me: Node,
    options: Options,
    started: Millis,
    leases: Leases,
    sessions: Sessions,
    replicas: BTreeMap<Gpid, Replica>,
    opening: BTreeMap<Gpid, Opening>,
    /// When which replica wants to be woken. Lazy: a timer that moved back fires early and is set again.
    timers: BTreeSet<(Millis, Gpid)>,
    next_sweep: Millis,
    history: History,
}

impl NodeCore {
    /// `incarnation` is random per process start. `now` is this process's start: it acts as primary nowhere
    /// before one lease has passed.
    pub fn new(me: Node, incarnation: u64, options: Options, now: Millis) -> Self {
        Self {
            me,
            options,
            started: now,
            leases: Leases::new(incarnation, now),
            sessions: Sessions::new(incarnation),
            replicas: BTreeMap::new(),
            opening: BTreeMap::new(),
            timers: BTreeSet::new(),
            next_sweep: now + SWEEP_MS,
            history: History::default(),
        }
    }

    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.step_into(now, event, &mut out);
        out
    }

    /// Appends the effects to `out`.
    pub fn step_into(&mut self, now: Millis, event: Event, out: &mut Vec<Effect>) {
        self.history.add(now, &event);
        match event {
            Event::Opening { gpid } => {
                if !self.replicas.contains_key(&gpid) {
                    self.opening.entry(gpid).or_default();
                }
            }
            Event::Opened { gpid, replica } => {
                self.insert(now, out, gpid, |env| Replica::open(env, replica));
            }
            Event::OpenFailed { gpid, why } => {
                // Which configuration it had is not known; the meta will tell. Until then it is nobody's member.
                let config = PartitionConfig::unassigned(gpid, 0);
                let learn = self.opening.get(&gpid).and_then(|opening| opening.learn.clone());
                if let Some((from, Envelope { ballot, message: Message::Learn { signature, .. }, .. })) =
                    learn
                {
                    // There is room for others in its class.
                    let message = Message::LearnFailed { signature };
                    out.push(Effect::Send { to: from, envelope: Envelope { gpid, ballot, message } });
                }
                self.insert(now, out, gpid, |env| Replica::broken(env, config, Fault::Open, why));
            }
            Event::Create { config } => {
                if self.replicas.contains_key(&config.gpid) {
                    self.with(now, out, config.gpid, |r, env| r.configure(env, &config));
                } else {
                    self.insert(now, out, config.gpid, |env| Replica::create(env, &config));
                }
            }
            Event::Removed { gpid } => {
                self.opening.remove(&gpid);
                self.with(now, out, gpid, |r, env| {
                    r.end_role(env);
                    r.vanished = true;
                });
            }
            Event::Write { gpid, token, timestamp_us, body } => {
                if self.replicas.contains_key(&gpid) {
                    let input = Input::Write { token, timestamp_us, body };
                    self.with(now, out, gpid, |r, env| r.on(env, input));
                } else {
                    out.push(Effect::Reply { gpid, token, result: Err(ErrorCode::ObjectNotFound) });
                }
            }
            Event::Received { from, envelope } => self.received(now, out, &from, envelope),
            Event::Heartbeat { from, heartbeat } => {
                let replicas = &self.replicas;
                let ballot_of = |gpid| replicas.get(&gpid).map(|r| r.cx.ballot());
                let ack = self.leases.answer(&from, &heartbeat, now, &self.options, ballot_of);
                out.push(Effect::AckHeartbeat { to: from.clone(), ack });
                self.review_process(now, out, &from);
            }
            Event::HeartbeatAcked { from, ack } => self.heartbeat_acked(now, out, &from, ack),
            Event::PeerReset { node } => self.suspect(now, out, &node),
            Event::Logged { gpid, ballot, upto } => self.with(now, out, gpid, |r, env| {
                if ballot == r.cx.ballot() {
                    r.on(env, Input::Logged { upto });
                }
            }),
            Event::ConfigSaved { gpid, ballot, learning } => {
                self.with(now, out, gpid, |r, env| r.saved(env, ballot, learning));
            }
            Event::Applied { gpid, upto } => {
                self.with(now, out, gpid, |r, env| r.on(env, Input::Applied { upto }));
            }
            Event::Failed { gpid, fault, why } => {
                self.with(now, out, gpid, |r, env| r.fail(env, fault, why));
            }
            Event::MetaConfig { config } => {
                self.with(now, out, config.gpid, |r, env| r.configure(env, &config));
            }
            Event::ChangeAnswered { gpid, asked_at, kind, reply } => {
                self.with(now, out, gpid, |r, env| r.change_answered(env, asked_at, &kind, reply.as_ref()));
            }
            Event::Propose { gpid, ballot, proposal } => self.with(now, out, gpid, |r, env| {
                if ballot == r.cx.ballot() {
                    r.on(env, Input::Propose(proposal));
                }
            }),
            Event::CopiedRows { gpid, signature, decree } => {
                self.with(now, out, gpid, |r, env| r.on(env, Input::CopiedRows { signature, decree }));
            }
            Event::Fetched { gpid, signature, mutations, committed } => {
                let input = Input::Fetched { signature, mutations, committed };
                self.with(now, out, gpid, |r, env| r.on(env, input));
            }
            Event::CopyFailed { gpid, signature, restart, why } => {
                let input = Input::CopyFailed { signature, restart, why };
                self.with(now, out, gpid, |r, env| r.on(env, input));
            }
            Event::LogHealth { healthy } => self.leases.log_healthy = healthy,
            Event::Tick => self.tick(now, out),
        }
        self.leases.flush_urgent(now, out);
    }

    fn received(&mut self, now: Millis, out: &mut Vec<Effect>, from: &Node, envelope: Envelope) {
        self.leases.heard(from, now);
        let gpid = envelope.gpid;
        if let Some(opening) = self.opening.get_mut(&gpid) {
            if matches!(envelope.message, Message::Learn { .. }) {
                opening.learn = Some((from.clone(), envelope));
            }
            return;
        }
        if self.replicas.contains_key(&gpid) {
            return self.with(now, out, gpid, |r, env| r.receive(env, from, envelope));
        }
        let ballot = envelope.ballot;
        match envelope.message {
            Message::Learn { ref config, .. } => {
                out.push(Effect::OpenReplica { gpid, config: config.clone() });
                self.opening.insert(gpid, Opening { learn: Some((from.clone(), envelope)) });
            }
            Message::Configure { ref config } if !config.is_member(&self.me) => {}
            Message::Configure { .. }
            | Message::Prepare { .. }
            | Message::Commit { .. }
            | Message::NeedConfig
            | Message::Join { .. } => {
                let envelope = Envelope { gpid, ballot, message: Message::NotHere };
                out.push(Effect::Send { to: from.clone(), envelope });
            }
            Message::State { .. }
            | Message::Prepared { .. }
            | Message::Gap { .. }
            | Message::Stale
            | Message::NotHere
            | Message::FetchMore { .. }
            | Message::Joined { .. }
            | Message::LearnFailed { .. }
            | Message::Released => {}
        }
    }

    fn heartbeat_acked(&mut self, now: Millis, out: &mut Vec<Effect>, from: &Node, ack: HeartbeatAck) {
        let said = self.leases.acknowledged(from, ack, now, &self.options);
        self.review_process(now, out, from);
        let Some(said) = said else { return };
        for (gpid, ballot) in said.granted {
            let input = Input::Granted { from: from.clone(), ballot, sent: said.sent };
            self.with(now, out, gpid, |r, env| r.on(env, input));
        }
        for (gpid, ballot) in said.newer {
            self.with(now, out, gpid, |r, env| {
                if ballot > r.cx.known_ballot() {
                    r.cx.query(env);
                }
            });
        }
    }

    fn tick(&mut self, now: Millis, out: &mut Vec<Effect>) {
        for peer in self.leases.tick(now, &self.options, out) {
            let node = self.leases.node(peer).clone();
            self.suspect(now, out, &node);
        }
        while let Some(&(at, gpid)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            self.with(now, out, gpid, |r, env| {
                r.armed = None;
                r.on(env, Input::Wake);
            });
        }
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP_MS;
            for gpid in self.replicas.keys().copied().collect::<Vec<_>>() {
                self.with(now, out, gpid, |r, env| {
                    r.cx.tail.own_applied();
                    r.on(env, Input::Sweep);
                });
            }
        }
    }

    fn suspect(&mut self, now: Millis, out: &mut Vec<Effect>, node: &Node) {
        for gpid in self.replicas.keys().copied().collect::<Vec<_>>() {
            let input = Input::Suspect { node: node.clone() };
            self.with(now, out, gpid, |r, env| r.on(env, input));
        }
    }

    fn review_process(&mut self, now: Millis, out: &mut Vec<Effect>, node: &Node) {
        if self.leases.take_restarted(node) {
            for gpid in self.replicas.keys().copied().collect::<Vec<_>>() {
                let input = Input::Restarted { node: node.clone() };
                self.with(now, out, gpid, |r, env| r.on(env, input));
            }
        }
    }

    fn insert(
        &mut self,
        now: Millis,
        out: &mut Vec<Effect>,
        gpid: Gpid,
        make: impl FnOnce(&mut Env<'_>) -> Replica,
    ) {
        if self.replicas.contains_key(&gpid) {
            tracing::warn!(%gpid, "opened twice");
            return;
        }
        let opening = self.opening.remove(&gpid).unwrap_or_default();
        let mut env = Env {
            me: &self.me,
            now,
            started: self.started,
            options: &self.options,
            leases: &mut self.leases,
            out,
            sessions: &mut self.sessions,
        };
        let replica = make(&mut env);
        self.replicas.insert(gpid, replica);
        self.with(now, out, gpid, |r, env| {
            if let Some((from, envelope)) = opening.learn {
                r.receive(env, &from, envelope);
            }
        });
    }

    /// Runs something on a replica, if there is one, and what has to follow every step.
    fn with(
        &mut self,
        now: Millis,
        out: &mut Vec<Effect>,
        gpid: Gpid,
        run: impl FnOnce(&mut Replica, &mut Env<'_>),
    ) {
        let Some(replica) = self.replicas.get_mut(&gpid) else { return };
        let mut env = Env {
            me: &self.me,
            now,
            started: self.started,
            options: &self.options,
            leases: &mut self.leases,
            out,
            sessions: &mut self.sessions,
        };
        run(replica, &mut env);
        if let Err(why) = replica.check(&self.me) {
            let events = self.history.of(gpid);
            // A test must not go on; a daemon must not stop (safety-rules.md 4.7).
            debug_assert!(false, "{} {gpid}: {why}\n{}", self.me, events.join("\n"));
            env.out.push(Effect::Dump { gpid, why: why.clone(), events });
            replica.fail(&mut env, Fault::Invariant, why);
        }
        if replica.vanished {
            if let Some(at) = replica.armed {
                self.timers.remove(&(at, gpid));
            }
            self.replicas.remove(&gpid);
            return;
        }
        if let Some(at) = replica.role.wake(&replica.cx, &env) {
            let at = at.max(now + 1);
            if replica.armed.is_none_or(|armed| at < armed) {
                if let Some(armed) = replica.armed.replace(at) {
                    self.timers.remove(&(armed, gpid));
                }
                self.timers.insert((at, gpid));
            }
        }
    }

    /// When [`Event::Tick`] is wanted, at the latest. May change with every step.
    pub fn next_timer(&self) -> Option<Millis> {
        let replicas = self.timers.first().map(|(at, _)| *at);
        Some(self.leases.next_timer().min(self.next_sweep)).min(replicas.or(Some(self.next_sweep)))
    }

    fn look(&self, now: Millis) -> Look<'_> {
        Look { me: &self.me, now, options: &self.options, leases: &self.leases }
    }

    /// Checks 7 and 10 of replication.md 2.1, and the window.
    pub fn admit_write(&self, now: Millis, gpid: Gpid) -> Admission {
        match self.replicas.get(&gpid).map(|r| (&r.role, &r.cx)) {
            Some((Role::Primary(primary), cx)) => primary.admit(cx, &self.look(now)),
            Some(_) => Admission::Refused(ErrorCode::InvalidState),
            None => Admission::Refused(self.unknown(gpid)),
        }
    }

    /// To be asked *after* the engine was read (safety-rules.md 1.2).
    pub fn serving(&self, now: Millis, gpid: Gpid) -> Serving {
        match self.replicas.get(&gpid).map(|r| (&r.role, &r.cx)) {
            Some((Role::Primary(primary), cx)) => primary.serving(cx, &self.look(now)),
            Some(_) => Serving::No(ErrorCode::InvalidState),
            None => Serving::No(self.unknown(gpid)),
        }
    }

    fn unknown(&self, gpid: Gpid) -> ErrorCode {
        if self.opening.contains_key(&gpid) { ErrorCode::InvalidState } else { ErrorCode::ObjectNotFound }
    }

    /// Timestamp for the next write of a primary: `now_us`, or just above the last one.
    pub fn next_timestamp(&self, gpid: Gpid, now_us: u64) -> u64 {
        self.replicas.get(&gpid).map_or(now_us, |r| now_us.max(r.cx.last_timestamp_us + 1))
    }

    /// May this node teach the learner of session `signature`? Gives the commit point, to which log and engine
    /// may be shown.
    /// `ballot` = the one that the learner knows.
    pub fn teach(&self, gpid: Gpid, ballot: Ballot, signature: u64) -> Result<Decree, LearnRefused> {
        match self.replicas.get(&gpid).map(|r| (&r.role, &r.cx)) {
            Some((Role::Primary(primary), cx)) if primary.teaches(signature) && ballot <= cx.ballot() => {
                Ok(cx.tail.committed())
            }
            Some((_, cx)) => Err(LearnRefused::NotPrimary(cx.ballot())),
            None => Err(LearnRefused::NotPrimary(Ballot::ZERO)),
        }
    }

    pub fn status(&self, gpid: Gpid) -> Option<ReplicaStatus> {
        Some(self.replicas.get(&gpid)?.role.status())
    }

    /// First ballot of this node's present, uninterrupted time as primary. What a reader saw under one reign must
    /// not be told under another.
    pub fn reign(&self, gpid: Gpid) -> Option<Ballot> {
        match &self.replicas.get(&gpid)?.role {
            Role::Primary(primary) => Some(primary.reign()),
            _ => None,
        }
    }

    /// The configuration that this node acts on.
    pub fn config(&self, gpid: Gpid) -> Option<&PartitionConfig> {
        Some(&self.replicas.get(&gpid)?.cx.config)
    }

    pub fn committed(&self, gpid: Gpid) -> Option<Decree> {
        Some(self.replicas.get(&gpid)?.cx.tail.committed())
    }

    pub fn partitions(&self) -> impl Iterator<Item = Gpid> {
        self.replicas.keys().copied()
    }

    /// For config sync. `durable` and `disk_tag` are left for the shell to fill in.
    pub fn reports(&self) -> Vec<ReplicaReport> {
        self.replicas.values().map(Replica::report).collect()
    }
}
