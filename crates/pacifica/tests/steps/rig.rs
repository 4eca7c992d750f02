//! One core with its disk, and everybody else as messages.

use bytes::Bytes;
use pegasus_pacifica::{Admission, Effect, Event, NodeCore, Options, Recovered, Serving};
use pegasus_types::message::{Envelope, Grant, Heartbeat, HeartbeatAck, Message};
use pegasus_types::meta::{ChangeReply, Proposal};
use pegasus_types::{Ballot, ChangeKind, Decree, Gpid, Millis, Mutation, Node, PartitionConfig};

pub const GPID: Gpid = Gpid::new(2, 0);
pub const INCARNATION: u64 = 77;

pub fn node(name: &str) -> Node {
    Node::new(name)
}

/// `config(3, "a b c")`: ballot 3, primary a, secondaries b and c.
pub fn config(ballot: i64, members: &str) -> PartitionConfig {
    let mut members = members.split_whitespace().map(node);
    PartitionConfig {
        ballot: Ballot(ballot),
        primary: members.next(),
        secondaries: members.collect(),
        ..PartitionConfig::unassigned(GPID, 3)
    }
}

pub fn mutation(decree: i64, origin: i64) -> Mutation {
    let body = Bytes::from(format!("write {decree} of {origin}"));
    Mutation::new(GPID, Decree(decree), Ballot(origin), 1_000 + decree.unsigned_abs(), body)
}

pub fn recovered(config: PartitionConfig, committed: i64, tail: &[Mutation]) -> Recovered {
    Recovered {
        learning: false,
        intact: true,
        applied: Decree(committed),
        committed: Decree(committed),
        tail: tail.iter().map(|m| (config.ballot, m.clone())).collect(),
        config,
    }
}

pub struct Rig {
    pub core: NodeCore,
    pub now: Millis,
    /// False: what the core asks of its disk is only recorded.
    pub disk_works: bool,
    beat: u64,
    asked: Option<ChangeKind>,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let now = Millis(10_000);
        Self {
            core: NodeCore::new(node("a"), INCARNATION, options, now),
            now,
            disk_works: true,
            beat: 0,
            asked: None,
        }
    }

    /// A primary at ballot 1 that serves: members have answered and granted.
    pub fn primary(members: &str) -> Self {
        let mut rig = Self::new();
        rig.event(Event::Create { config: config(1, members) });
        for peer in members.split_whitespace().skip(1) {
            rig.message(peer, 1, Message::State { committed: Decree(0), prepared: Decree(0) });
        }
        rig.pass(700);
        rig.all_grant(members);
        assert_eq!(rig.serving(), Serving::Yes);
        rig
    }

    /// A secondary of b at ballot 1, with c.
    pub fn secondary() -> Self {
        let mut rig = Self::new();
        rig.event(Event::Create { config: config(1, "b a c") });
        rig
    }

    pub fn event(&mut self, event: Event) -> Vec<Effect> {
        let mut todo = self.core.step(self.now, event);
        let mut seen = Vec::new();
        while !todo.is_empty() {
            for effect in std::mem::take(&mut todo) {
                if self.disk_works
                    && let Some(done) = done(&effect)
                {
                    todo.extend(self.core.step(self.now, done));
                }
                if let Effect::AskMeta { request } = &effect {
                    self.asked = Some(request.kind.clone());
                }
                seen.push(effect);
            }
        }
        seen
    }

    pub fn message(&mut self, from: &str, ballot: i64, message: Message) -> Vec<Effect> {
        let envelope = Envelope { gpid: GPID, ballot: Ballot(ballot), message };
        self.event(Event::Received { from: node(from), envelope })
    }

    pub fn write(&mut self, token: u64) -> Vec<Effect> {
        let body = Bytes::from(format!("body {token}"));
        self.event(Event::Write { gpid: GPID, token, timestamp_us: 5, body })
    }

    pub fn propose(&mut self, ballot: i64, proposal: Proposal) -> Vec<Effect> {
        self.event(Event::Propose { gpid: GPID, ballot: Ballot(ballot), proposal })
    }

    /// Answers the last request.
    pub fn answer(&mut self, asked_at: i64, reply: Option<ChangeReply>) -> Vec<Effect> {
        let kind = self.asked.clone().expect("it has asked");
        self.answer_to(asked_at, kind, reply)
    }

    pub fn answer_to(&mut self, asked_at: i64, kind: ChangeKind, reply: Option<ChangeReply>) -> Vec<Effect> {
        self.event(Event::ChangeAnswered { gpid: GPID, asked_at: Ballot(asked_at), kind, reply })
    }

    pub fn accept(&mut self, config: PartitionConfig) -> Vec<Effect> {
        self.answer(config.ballot.0 - 1, Some(ChangeReply::Accepted(config)))
    }

    /// Lets time pass, in steps of the timers.
    pub fn pass(&mut self, ms: u64) -> Vec<Effect> {
        let end = self.now + ms;
        let mut seen = Vec::new();
        while self.core.next_timer().is_some_and(|at| at <= end) {
            self.now = self.core.next_timer().expect("heartbeats never end").max(self.now);
            seen.extend(self.event(Event::Tick));
        }
        self.now = end;
        seen
    }

    /// Until the next heartbeats leave.
    pub fn pass_to_beat(&mut self) -> Vec<Effect> {
        loop {
            self.now = self.core.next_timer().expect("heartbeats never end").max(self.now);
            let seen = self.event(Event::Tick);
            if seen.iter().any(|e| matches!(e, Effect::SendHeartbeat { .. })) {
                return seen;
            }
        }
    }

    /// As `pass`, while these peers send heartbeats.
    pub fn pass_with(&mut self, ms: u64, alive: &str) -> Vec<Effect> {
        let mut seen = Vec::new();
        for _ in 0..ms / 50 {
            for peer in alive.split_whitespace() {
                seen.extend(self.heartbeat(peer, &[]));
            }
            seen.extend(self.pass(50));
        }
        seen
    }

    /// Every member acknowledges the newest heartbeat that a beat from now on sends.
    pub fn all_grant(&mut self, members: &str) {
        let beats = self.pass(150);
        for peer in members.split_whitespace().skip(1) {
            let seq = last_beat(&beats, peer).expect("a heartbeat to every member").seq;
            self.grant(peer, seq, Grant::All);
        }
    }

    pub fn grant(&mut self, from: &str, seq: u64, grant: Grant) -> Vec<Effect> {
        let ack = HeartbeatAck { incarnation: 5, to_incarnation: INCARNATION, seq, grant, log_healthy: true };
        self.event(Event::HeartbeatAcked { from: node(from), ack })
    }

    /// A heartbeat of a peer that is primary of `pairs`, spelled out; gives what the core answers.
    pub fn heartbeat(&mut self, from: &str, pairs: &[(Gpid, Ballot)]) -> Vec<Effect> {
        self.beat += 1;
        let heartbeat = Heartbeat {
            incarnation: 5,
            seq: self.beat,
            digest: 1,
            count: u32::try_from(pairs.len()).expect("few"),
            pairs: Some(pairs.to_vec()),
            log_healthy: true,
        };
        self.event(Event::Heartbeat { from: node(from), heartbeat })
    }

    pub fn serving(&self) -> Serving {
        self.core.serving(self.now, GPID)
    }

    pub fn admission(&self) -> Admission {
        self.core.admit_write(self.now, GPID)
    }
}

fn done(effect: &Effect) -> Option<Event> {
    Some(match effect {
        Effect::SaveConfig { gpid, config, learning } => {
            Event::ConfigSaved { gpid: *gpid, ballot: config.ballot, learning: *learning }
        }
        Effect::Log { gpid, ballot, mutations, .. } => {
            Event::Logged { gpid: *gpid, ballot: *ballot, upto: mutations.last()?.decree }
        }
        Effect::Apply { gpid, mutations } => Event::Applied { gpid: *gpid, upto: mutations.last()?.decree },
        _ => return None,
    })
}

/// Messages to a peer, in order, heartbeats apart.
pub fn sent<'a>(effects: &'a [Effect], to: &str) -> Vec<&'a Message> {
    let to = node(to);
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Send { to: peer, envelope } if *peer == to => Some(&envelope.message),
            _ => None,
        })
        .collect()
}

/// Decree and round of the joining that was told.
pub fn joining(effects: &[Effect], to: &str) -> Option<(i64, u64)> {
    sent(effects, to).iter().find_map(|m| match m {
        Message::Join { round, prepared, .. } => Some((prepared.0, *round)),
        _ => None,
    })
}

pub fn prepares(effects: &[Effect], to: &str) -> Vec<i64> {
    sent(effects, to)
        .iter()
        .filter_map(|m| match m {
            Message::Prepare { mutation, .. } => Some(mutation.decree.0),
            _ => None,
        })
        .collect()
}

pub fn last_beat<'a>(effects: &'a [Effect], to: &str) -> Option<&'a Heartbeat> {
    let to = node(to);
    effects.iter().rev().find_map(|e| match e {
        Effect::SendHeartbeat { to: peer, heartbeat } if *peer == to => Some(heartbeat),
        _ => None,
    })
}

pub fn asked(effects: &[Effect]) -> Vec<&ChangeKind> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::AskMeta { request } => Some(&request.kind),
            _ => None,
        })
        .collect()
}

pub fn applied(effects: &[Effect]) -> Vec<i64> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Apply { mutations, .. } => Some(mutations.iter().map(|m| m.decree.0)),
            _ => None,
        })
        .flatten()
        .collect()
}

pub fn replies(effects: &[Effect]) -> Vec<(u64, bool)> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Reply { token, result, .. } => Some((*token, result.is_ok())),
            _ => None,
        })
        .collect()
}
