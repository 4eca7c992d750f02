//! Random schedules (review scratch).
#![allow(dead_code)]
use bytes::Bytes;
use pegasus_pacifica::*;
use pegasus_types::message::*;
use pegasus_types::meta::*;
use pegasus_types::*;
use std::collections::{BTreeMap, VecDeque};

const G: Gpid = Gpid::new(2, 0);
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
fn node(i: usize) -> Node {
    Node::new(NAMES[i])
}
fn idx(n: &Node) -> usize {
    NAMES.iter().position(|x| *x == n.as_str()).unwrap()
}

struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn chance(&mut self, pct: u64) -> bool {
        self.below(1000) < pct
    }
}

#[derive(Clone, Default)]
struct DiskState {
    config: Option<(PartitionConfig, bool)>,
    // (ballot, committed, mutation)
    log: Vec<(Ballot, Decree, Mutation)>,
    base: Decree,
    hist: BTreeMap<i64, Mutation>, // content of engine up to base/applied
    applied: Decree,
}

struct N {
    core: Option<NodeCore>,
    inc: u64,
    disk: DiskState,
    pending: VecDeque<(u64, Effect)>, // disk jobs, FIFO: due time
    paused_until: u64,
    start_off: u64,
}

enum Ev {
    Msg { from: usize, env: Envelope },
    Hb { from: usize, inc: u64, hb: Heartbeat },
    Ack { from: usize, ack: HeartbeatAck },
    Core(Event),
    Ask(u64, ChangeRequest),
    Query,
    Answer(u64, Ballot, Option<ChangeReply>),
    Reset(usize),
}

struct World {
    r: Rng,
    now: u64,
    seq: u64,
    q: BTreeMap<(u64, u64), (usize, u64, Ev)>, // to node (or 99 = meta), inc
    n: Vec<N>,
    meta: PartitionConfig,
    meta_away: bool,
    cuts: BTreeMap<(usize, usize), u64>,
    last_at: BTreeMap<(usize, usize), u64>,
    history: BTreeMap<i64, (Mutation, usize)>,
    acked: BTreeMap<u64, Decree>,
    token: u64,
    bad: Vec<String>,
    fifo: bool,
    dup: u64,
    served: u64,
    writes: BTreeMap<u64, ()>,
    slow_disk: bool,
    asks: u64,
    answered: std::collections::BTreeSet<u64>,
    trace: Vec<String>,
}

impl World {
    fn at(&mut self, t: u64, to: usize, ev: Ev) {
        let inc = if to < 9 { self.n[to].inc } else { 0 };
        self.seq += 1;
        self.q.insert((t, self.seq), (to, inc, ev));
    }
    fn delay(&mut self) -> u64 {
        let x = self.r.below(100);
        if x < 85 {
            1
        } else if x < 97 {
            1 + self.r.below(60)
        } else {
            self.r.below(1500)
        }
    }
    fn cut(&self, a: usize, b: usize) -> bool {
        self.cuts.get(&(a, b)).is_some_and(|t| *t > self.now)
    }
    fn send(&mut self, a: usize, b: usize, ev: Ev, fifo: bool) {
        if self.cut(a, b) || self.r.chance(10) {
            return;
        }
        let mut t = self.now + self.delay();
        if fifo {
            let l = self.last_at.entry((a, b)).or_insert(0);
            t = t.max(*l);
            *l = t;
        }
        if let Ev::Msg { from, env } = &ev
            && self.r.chance(self.dup)
        {
            let d = self.now + self.r.below(2000);
            let e = Ev::Msg { from: *from, env: env.clone() };
            self.at(d, b, e);
        }
        self.at(t, b, ev);
    }
    fn step(&mut self, i: usize, event: Event) {
        let now = Millis(self.now + self.n[i].start_off);
        let Some(core) = self.n[i].core.as_mut() else { return };
        let out = core.step(now, event);
        for e in out {
            self.effect(i, e);
        }
    }
    fn effect(&mut self, i: usize, e: Effect) {
        match e {
            Effect::SaveConfig { .. } | Effect::Log { .. } | Effect::Apply { .. } => {
                let slow =
                    if self.slow_disk && self.r.chance(30) { self.r.below(900) } else { self.r.below(6) };
                let last = self.n[i].pending.back().map_or(0, |p| p.0);
                let due = (self.now + slow).max(last);
                self.n[i].pending.push_back((due, e));
            }
            Effect::Send { to, envelope } => {
                let f = self.fifo;
                self.trace(format!(
                    "{} {}->{} {:?} {:?}",
                    self.now, NAMES[i], to, envelope.ballot, envelope.message
                ));
                self.send(i, idx(&to), Ev::Msg { from: i, env: envelope }, f)
            }
            Effect::SendHeartbeat { to, heartbeat } => {
                let inc = self.n[i].inc;
                self.send(i, idx(&to), Ev::Hb { from: i, inc, hb: heartbeat }, false)
            }
            Effect::AckHeartbeat { to, ack } => self.send(i, idx(&to), Ev::Ack { from: i, ack }, false),
            Effect::Reply { token, result, .. } => {
                if let Ok(d) = result {
                    self.acked.insert(token, d);
                }
            }
            Effect::OpenReplica { .. } => {
                let r = Recovered {
                    config: PartitionConfig::unassigned(G, 3),
                    learning: true,
                    intact: true,
                    applied: Decree(0),
                    committed: Decree(0),
                    tail: vec![],
                };
                self.n[i].disk = DiskState {
                    config: Some((PartitionConfig::unassigned(G, 3), true)),
                    ..DiskState::default()
                };
                let t = self.now + 5;
                self.at(t, i, Ev::Core(Event::Opened { gpid: G, replica: r }));
            }
            Effect::AskMeta { request } => {
                self.trace(format!("{} {} asks {:?}", self.now, NAMES[i], request));
                self.asks += 1;
                let id = self.asks;
                self.send(i, 99, Ev::Ask(id, request.clone()), false);
                let t = self.now + 2500;
                self.at(t, i, Ev::Answer(id, request.ballot, None))
            }
            Effect::QueryMeta { .. } => self.send(i, 99, Ev::Query, false),
            Effect::StartCopy { from, ballot, signature, committed, .. } => {
                let f = idx(&from);
                let ok = !self.cut(i, f) && !self.cut(f, i);
                let t = self.now + 3 + self.delay();
                let teach = self.n[f].core.as_ref().map(|c| c.teach(G, ballot, signature));
                if !ok || teach.is_none() {
                    self.at(
                        t,
                        i,
                        Ev::Core(Event::CopyFailed { gpid: G, signature, restart: true, why: "x".into() }),
                    );
                    return;
                }
                match teach.unwrap() {
                    Err(_) => self.at(
                        t,
                        i,
                        Ev::Core(Event::CopyFailed { gpid: G, signature, restart: false, why: "x".into() }),
                    ),
                    Ok(_) => {
                        let applied = self.n[f].disk.applied;
                        if self.r.chance(500) && committed <= applied {
                            self.at(
                                t,
                                i,
                                Ev::Core(Event::CopiedRows { gpid: G, signature, decree: committed }),
                            );
                        } else {
                            let hist: BTreeMap<_, _> = self.n[f]
                                .disk
                                .hist
                                .range(..=applied.0)
                                .map(|(k, v)| (*k, v.clone()))
                                .collect();
                            let d = &mut self.n[i].disk;
                            d.hist = hist;
                            d.applied = applied;
                            d.base = applied;
                            d.log.clear();
                            self.at(
                                t,
                                i,
                                Ev::Core(Event::CopiedRows { gpid: G, signature, decree: applied }),
                            );
                        }
                    }
                }
            }
            Effect::FetchLog { from, signature, after, .. } => {
                let f = idx(&from);
                let ok = !self.cut(i, f) && !self.cut(f, i);
                let t = self.now + 2 + self.delay();
                let b = self.n[f].core.as_ref().and_then(|c| c.config(G)).map_or(Ballot(0), |c| c.ballot);
                let teach = self.n[f].core.as_ref().map(|c| c.teach(G, b, signature));
                match teach {
                    Some(Ok(committed)) if ok => {
                        let mut m = vec![];
                        let mut d = after.next();
                        while d <= committed && m.len() < 5 {
                            match self.history.get(&d.0) {
                                Some(x) => m.push(x.0.clone()),
                                None => break,
                            };
                            d = d.next();
                        }
                        self.at(
                            t,
                            i,
                            Ev::Core(Event::Fetched { gpid: G, signature, mutations: m, committed }),
                        );
                    }
                    Some(Err(_)) if ok => self.at(
                        t,
                        i,
                        Ev::Core(Event::CopyFailed { gpid: G, signature, restart: false, why: "x".into() }),
                    ),
                    _ => self.at(
                        t,
                        i,
                        Ev::Core(Event::CopyFailed { gpid: G, signature, restart: true, why: "x".into() }),
                    ),
                }
            }
            Effect::Quarantine { why, .. } => {
                self.bad.push(format!("{} quarantine {} {why}", self.now, NAMES[i]));
            }
            Effect::Dump { why, .. } => self.bad.push(format!("{} dump {why}", self.now)),
            Effect::RoleChanged { status, ballot, .. } => {
                self.trace(format!("{} {} is {status:?} @{ballot}", self.now, NAMES[i]));
            }
            _ => {}
        }
    }
    fn trace(&mut self, s: String) {
        if self.trace.len() > 4000 {
            self.trace.drain(..2000);
        }
        self.trace.push(s);
    }
    fn disk(&mut self, i: usize) {
        while self.n[i].pending.front().is_some_and(|p| p.0 <= self.now) {
            let (_, e) = self.n[i].pending.pop_front().unwrap();
            match e {
                Effect::SaveConfig { config, learning, .. } => {
                    let ballot = config.ballot;
                    self.n[i].disk.config = Some((config, learning));
                    self.step(i, Event::ConfigSaved { gpid: G, ballot, learning });
                }
                Effect::Log { ballot, committed, mutations, .. } => {
                    let upto = mutations.last().unwrap().decree;
                    for m in mutations {
                        self.n[i].disk.log.push((ballot, committed, m));
                    }
                    self.step(i, Event::Logged { gpid: G, ballot, upto });
                }
                Effect::Apply { mutations, .. } => {
                    let upto = mutations.last().unwrap().decree;
                    for m in mutations {
                        if m.decree != self.n[i].disk.applied.next() {
                            self.bad.push(format!(
                                "{} {} applies {} after {}",
                                self.now, NAMES[i], m.decree, self.n[i].disk.applied
                            ));
                        }
                        match self.history.get(&m.decree.0) {
                            Some((k, who)) if !k.same_content(&m) => self.bad.push(format!(
                                "{} DIVERGED decree {} {} vs {}: origin {} vs {}",
                                self.now, m.decree, NAMES[i], NAMES[*who], m.origin, k.origin
                            )),
                            Some(_) => {}
                            None => {
                                self.history.insert(m.decree.0, (m.clone(), i));
                            }
                        }
                        let d = &mut self.n[i].disk;
                        d.applied = m.decree;
                        d.hist.insert(m.decree.0, m);
                    }
                    self.step(i, Event::Applied { gpid: G, upto });
                }
                _ => {}
            }
        }
    }
    fn crash(&mut self, i: usize) {
        self.trace(format!("{} crash {}", self.now, NAMES[i]));
        self.n[i].core = None;
        self.n[i].inc += 1;
        self.n[i].pending.clear();
    }
    fn start(&mut self, i: usize) {
        if self.n[i].core.is_some() {
            return;
        }
        let now = Millis(self.now + self.n[i].start_off);
        let mut core = NodeCore::new(node(i), self.n[i].inc * 1000 + i as u64 + 1, Options::default(), now);
        self.trace(format!("{} start {}", self.now, NAMES[i]));
        if let Some((config, learning)) = self.n[i].disk.config.clone() {
            let d = &mut self.n[i].disk;
            // engine durable somewhere at or below applied
            let keep = 256;
            let durable = d.applied;
            let mut replay = Replay::new(durable, keep);
            let mut apply = vec![];
            let mut err = None;
            for (b, c, m) in d.log.iter().filter(|x| x.2.decree > durable) {
                if let Err(e) = replay.push(*b, *c, m.clone(), LogLocation::default(), &mut apply) {
                    err = Some(e);
                    break;
                }
            }
            if let Some(e) = err {
                self.bad.push(format!("{} replay {e}", self.now));
                return;
            }
            let (rec, _) = replay.finish(config, learning, true);
            for (m, _) in apply {
                if let Some((k, _)) = self.history.get(&m.decree.0)
                    && !k.same_content(&m)
                {
                    self.bad.push(format!("{} DIVERGED at replay {}", self.now, m.decree));
                } else {
                    self.history.insert(m.decree.0, (m.clone(), i));
                }
                let d = &mut self.n[i].disk;
                d.applied = m.decree;
                d.hist.insert(m.decree.0, m);
            }
            core.step(now, Event::Opening { gpid: G });
            self.n[i].core = Some(core);
            self.step(i, Event::Opened { gpid: G, replica: rec });
        } else {
            self.n[i].core = Some(core);
        }
    }
    fn change(&mut self, r: &ChangeRequest) -> ChangeReply {
        let c = self.meta.clone();
        if r.ballot != c.ballot {
            return ChangeReply::Rejected { current: Some(c), why: "stale".into() };
        }
        let mut n = c.clone();
        n.ballot = c.ballot.next();
        n.last_committed = c.last_committed.max(r.committed);
        let ok = match &r.kind {
            ChangeKind::TakeOver { claimant } => {
                let ok = c.is_secondary(claimant);
                n.secondaries.retain(|x| x != claimant);
                n.primary = Some(claimant.clone());
                ok
            }
            ChangeKind::Renew { primary } => c.is_primary(primary),
            ChangeKind::AddSecondary { primary, node } => {
                n.secondaries.push(node.clone());
                c.is_primary(primary) && !c.is_member(node) && c.member_count() < 3
            }
            ChangeKind::RemoveSecondary { primary, node } => {
                n.secondaries.retain(|x| x != node);
                c.is_primary(primary) && c.is_secondary(node)
            }
            ChangeKind::HandOver { primary, to, stay } => {
                n.secondaries.retain(|x| x != to);
                n.primary = Some(to.clone());
                if *stay {
                    n.secondaries.push(primary.clone());
                }
                c.is_primary(primary) && c.is_secondary(to)
            }
        };
        if !ok {
            return ChangeReply::Rejected { current: Some(c), why: "no".into() };
        }
        self.meta = n.clone();
        self.trace(format!("{} META {:?}", self.now, n));
        for i in 0..4 {
            if c.is_member(&node(i)) || n.is_member(&node(i)) {
                self.send(99, i, Ev::Core(Event::MetaConfig { config: n.clone() }), false);
            }
        }
        ChangeReply::Accepted(n)
    }
    fn serving(&self, i: usize) -> bool {
        self.n[i]
            .core
            .as_ref()
            .is_some_and(|c| c.serving(Millis(self.now + self.n[i].start_off), G) == Serving::Yes)
    }
    fn run(seed: u64, fifo: bool, dup: u64, faults: bool, ms: u64) -> Self {
        let mut r = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..5 {
            r.next();
        }
        let cfg = PartitionConfig {
            ballot: Ballot(1),
            primary: Some(node(0)),
            secondaries: vec![node(1), node(2)],
            ..PartitionConfig::unassigned(G, 3)
        };
        let mut w = World {
            r,
            now: 0,
            seq: 0,
            q: BTreeMap::new(),
            n: vec![],
            meta: cfg.clone(),
            meta_away: false,
            cuts: BTreeMap::new(),
            last_at: BTreeMap::new(),
            history: BTreeMap::new(),
            acked: BTreeMap::new(),
            token: 0,
            bad: vec![],
            fifo,
            dup,
            served: 0,
            writes: BTreeMap::new(),
            slow_disk: true,
            asks: 0,
            answered: Default::default(),
            trace: vec![],
        };
        for i in 0..4 {
            w.n.push(N {
                core: None,
                inc: 1,
                disk: DiskState::default(),
                pending: VecDeque::new(),
                paused_until: 0,
                start_off: 100_000 * (i as u64 + 1),
            });
        }
        for i in 0..4 {
            w.start(i);
            if i < 3 {
                w.n[i].disk.config = Some((cfg.clone(), false));
                w.step(i, Event::Create { config: cfg.clone() });
            }
        }
        let quiet = ms - 25_000;
        while w.now < ms && w.bad.is_empty() {
            w.now += 1;
            let calm = w.now > quiet || !faults;
            if w.now == quiet {
                w.cuts.clear();
                w.meta_away = false;
                for i in 0..4 {
                    w.n[i].paused_until = 0;
                    w.start(i);
                }
            }
            for i in 0..4 {
                if w.n[i].paused_until > w.now {
                    continue;
                }
                w.disk(i);
                let t = Millis(w.now + w.n[i].start_off);
                if w.n[i].core.as_ref().is_some_and(|c| c.next_timer().is_some_and(|x| x <= t)) {
                    w.step(i, Event::Tick);
                }
            }
            let mut requeue = vec![];
            while w.q.first_key_value().is_some_and(|(k, _)| k.0 <= w.now) {
                let (_, (to, inc, ev)) = w.q.pop_first().unwrap();
                if to < 9 {
                    if w.n[to].inc != inc || w.n[to].core.is_none() {
                        continue;
                    }
                    if w.n[to].paused_until > w.now {
                        requeue.push((w.n[to].paused_until, to, ev));
                        continue;
                    }
                    match ev {
                        Ev::Msg { from, env } => {
                            w.step(to, Event::Received { from: node(from), envelope: env })
                        }
                        Ev::Hb { from, hb, .. } => {
                            w.step(to, Event::Heartbeat { from: node(from), heartbeat: hb })
                        }
                        Ev::Ack { from, ack } => w.step(to, Event::HeartbeatAcked { from: node(from), ack }),
                        Ev::Reset(j) => w.step(to, Event::PeerReset { node: node(j) }),
                        Ev::Core(e) => {
                            let late = matches!(&e, Event::ChangeAnswered { reply: None, .. });
                            let _ = late;
                            w.step(to, e)
                        }
                        Ev::Answer(id, asked_at, reply) => {
                            if w.answered.insert(id) {
                                w.step(to, Event::ChangeAnswered { gpid: G, asked_at, reply })
                            }
                        }
                        Ev::Ask(..) | Ev::Query => {}
                    }
                } else if !w.meta_away {
                    match ev {
                        Ev::Ask(id, r) => {
                            let a = idx(r.kind.asker());
                            let reply = w.change(&r);
                            w.send(99, a, Ev::Answer(id, r.ballot, Some(reply)), false);
                        }
                        Ev::Query => {
                            let c = w.meta.clone();
                            for i in 0..4 {
                                w.send(99, i, Ev::Core(Event::MetaConfig { config: c.clone() }), false);
                            }
                        }
                        _ => {}
                    }
                }
            }
            for (t, to, ev) in requeue {
                w.at(t, to, ev);
            }
            // cure
            if w.now % 3000 == 0 && !w.meta_away {
                let c = w.meta.clone();
                let pi = idx(c.primary.as_ref().unwrap());
                if w.n[pi].core.is_none() {
                    if let Some(s) = c.secondaries.first() {
                        let s = idx(s);
                        w.send(
                            99,
                            s,
                            Ev::Core(Event::Propose {
                                gpid: G,
                                ballot: c.ballot,
                                proposal: Proposal::TakeOver,
                            }),
                            false,
                        );
                    }
                } else if c.member_count() < 3 {
                    let k = w.r.below(4) as usize;
                    if !c.is_member(&node(k)) {
                        w.send(
                            99,
                            pi,
                            Ev::Core(Event::Propose {
                                gpid: G,
                                ballot: c.ballot,
                                proposal: Proposal::AddSecondary { node: node(k) },
                            }),
                            false,
                        );
                    }
                } else if !calm && w.r.chance(300) {
                    let s = c.secondaries[w.r.below(c.secondaries.len() as u64) as usize].clone();
                    w.send(
                        99,
                        pi,
                        Ev::Core(Event::Propose {
                            gpid: G,
                            ballot: c.ballot,
                            proposal: Proposal::HandOver { to: s },
                        }),
                        false,
                    );
                }
                for i in 0..4 {
                    w.send(99, i, Ev::Core(Event::MetaConfig { config: c.clone() }), false);
                }
            }
            // writes
            if w.r.chance(80) {
                for i in 0..4 {
                    let t = Millis(w.now + w.n[i].start_off);
                    if w.n[i].paused_until <= w.now
                        && w.n[i]
                            .core
                            .as_ref()
                            .is_some_and(|c| matches!(c.admit_write(t, G), Admission::Ready { .. }))
                    {
                        w.token += 1;
                        let token = w.token;
                        let body = Bytes::from(format!("w{token}"));
                        w.step(i, Event::Write { gpid: G, token, timestamp_us: w.now, body });
                    }
                }
            }
            // faults
            if faults && !calm && w.r.below(700) == 0 {
                let i = w.r.below(4) as usize;
                match w.r.below(100) {
                    0..30 => w.n[i].paused_until = w.now + [50, 300, 700, 1200, 3000][w.r.below(5) as usize],
                    30..55 => {
                        if w.n[i].core.is_some() {
                            w.crash(i);
                            if w.r.chance(700) {
                                for j in 0..4 {
                                    if j != i {
                                        let t = w.now + w.r.below(5);
                                        w.at(t, j, Ev::Reset(i));
                                    }
                                }
                            }
                        }
                    }
                    55..60 => {
                        w.meta_away = !w.meta_away;
                    }
                    _ => {
                        let j = [0, 1, 2, 3, 99][w.r.below(5) as usize];
                        let t = w.now + [100, 800, 1500, 4000][w.r.below(4) as usize];
                        if j != i {
                            w.cuts.insert((i, j), t);
                            if w.r.chance(600) {
                                w.cuts.insert((j, i), t);
                            }
                            if w.r.chance(300) {
                                for o in [0, 1, 2, 3, 99] {
                                    if o != i {
                                        w.cuts.insert((i, o), t);
                                        w.cuts.insert((o, i), t);
                                    }
                                }
                            }
                        }
                    }
                }
            }
            if faults && !calm && w.r.below(2000) == 0 {
                w.meta_away = false;
            }
            for i in 0..4 {
                if w.n[i].core.is_none() && w.r.below(600) == 0 {
                    w.start(i);
                }
            }
            let s: Vec<_> = (0..4).filter(|i| w.serving(*i)).collect();
            if s.len() > 1 {
                w.bad.push(format!("{} TWO SERVE {s:?}", w.now));
            }
            if s.len() == 1 {
                w.served += 1;
            }
        }
        if w.bad.is_empty() {
            let s = (0..4).filter(|i| w.serving(*i)).count();
            if s != 1 {
                let st: Vec<_> = (0..4)
                    .map(|i| {
                        w.n[i].core.as_ref().and_then(|c| {
                            c.status(G).map(|s| {
                                (s, c.config(G).cloned(), c.reports()[0].committed, c.reports()[0].prepared)
                            })
                        })
                    })
                    .collect();
                w.bad.push(format!("STUCK at end: meta {:?} {st:#?}", w.meta));
            }
            for (t, d) in &w.acked {
                match w.history.get(&d.0) {
                    Some((m, _)) if m.body == format!("w{t}") => {}
                    x => w.bad.push(format!("LOST token {t} decree {d}: {:?}", x.map(|x| x.0.origin))),
                }
                if w.bad.len() > 3 {
                    break;
                }
            }
        }
        w
    }
}

#[test]
fn fuzz() {
    let var = |n: &str, d: u64| std::env::var(n).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    let (from, count) = (var("FROM", 1), var("COUNT", 30));
    let (fifo, dup) = (var("FIFO", 1) == 1, var("DUP", 0));
    let mut bad = 0;
    let mut served = 0;
    let mut acked = 0;
    let mut ballots = 0;
    for seed in from..from + count {
        let w = match std::panic::catch_unwind(|| World::run(seed, fifo, dup, true, var("MS", 60_000))) {
            Ok(w) => w,
            Err(_) => {
                println!("seed {seed} PANIC");
                bad += 1;
                continue;
            }
        };
        served += w.served;
        acked += w.acked.len();
        ballots += w.meta.ballot.0;
        if !w.bad.is_empty() {
            bad += 1;
            println!("seed {seed}: {}", w.bad.join("; "));
            if count == 1 {
                for l in w.trace.iter().rev().take(var("TRACE", 60) as usize).rev() {
                    println!("{l}");
                }
            }
        }
    }
    println!(
        "bad {bad} of {count}, served {} %, acked {acked}, ballots {ballots}",
        served * 100 / (count * var("MS", 60_000))
    );
    assert_eq!(bad, 0);
}
