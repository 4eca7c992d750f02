//! Clients: each does one thing after the other, and knows every value that it may read.

use std::collections::BTreeMap;

use bytes::Bytes;
use pegasus_types::{Decree, ErrorCode, Gpid};

use crate::bus::{Bus, Happening, MS, Micros, Packet, Place};
use crate::checks::Checks;

/// Number of an operation; unique in a run.
pub type OpId = u64;

/// When a client gives up an operation: its outcome is unknown.
const TIMEOUT: Micros = 700 * MS;
/// Before another meta is asked.
const ASK_PAUSE: Micros = 20 * MS;
const KEYS: u64 = 6;
const COUNTERS: u64 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    Put(Bytes),
    Delete,
    Incr,
    /// Write `new` if the key holds `expected`. A condition that failed is answered as a read.
    Cas {
        expected: Option<Bytes>,
        new: Bytes,
    },
    Get,
}

/// What an increment makes of a value.
pub fn one_more(value: Option<&Bytes>) -> Bytes {
    let old: u64 = value.and_then(|v| std::str::from_utf8(v).ok()).and_then(|v| v.parse().ok()).unwrap_or(0);
    Bytes::from((old + 1).to_string())
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub gpid: Gpid,
    pub key: Bytes,
    pub verb: Verb,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// `value` = what the key holds now.
    Written {
        decree: Decree,
        value: Option<Bytes>,
    },
    /// `decree` = of the write that made the value, 0 = never written.
    Got {
        value: Option<Bytes>,
        decree: Decree,
    },
    Refused(ErrorCode),
}

#[derive(Debug)]
struct Client {
    /// The operation under way.
    op: Option<(OpId, Request)>,
    /// It is on its way to a host; a request is sent once.
    sent: bool,
    routes: BTreeMap<Gpid, Route>,
    /// What each key held when this client looked last.
    known: BTreeMap<(Gpid, Bytes), Option<Bytes>>,
    /// The meta-server that it asks.
    meta: usize,
}

#[derive(Clone, Copy, Debug)]
struct Route {
    host: usize,
    /// It did not answer, or refused: better ask the meta, but the meta may be away.
    doubtful: bool,
}

#[derive(Debug)]
pub struct Workload {
    clients: Vec<Client>,
    gpids: Vec<Gpid>,
    metas: usize,
    ops: OpId,
    /// Pause between two operations of a client.
    pause: (Micros, Micros),
    /// Reads only, in order of keys: the last look at everything.
    pub only_reads: bool,
    pub stopped: bool,
}

impl Workload {
    pub fn new(clients: usize, metas: usize, gpids: Vec<Gpid>) -> Self {
        let client =
            || Client { op: None, sent: false, routes: BTreeMap::new(), known: BTreeMap::new(), meta: 0 };
        Self {
            clients: (0..clients).map(|_| client()).collect(),
            gpids,
            metas,
            ops: 0,
            pause: (2 * MS, 25 * MS),
            only_reads: false,
            stopped: false,
        }
    }

    pub fn start(&self, bus: &mut Bus) {
        for client in 0..self.clients.len() {
            let delay = bus.dice.below(20 * MS);
            bus.after(delay, Happening::ClientNext(client));
        }
    }

    /// Begins the client's next operation.
    pub fn next(&mut self, bus: &mut Bus, checks: &mut Checks, client: usize) {
        if self.stopped || self.clients[client].op.is_some() {
            return;
        }
        self.ops += 1;
        let (op, request) = (self.ops, self.choose(bus, client));
        let Some(request) = request else { return };
        checks.history.begin(bus.now, op, &request);
        self.clients[client].op = Some((op, request));
        self.clients[client].sent = false;
        bus.after(TIMEOUT, Happening::ClientTimeout { client, op });
        self.send(bus, client);
    }

    fn choose(&self, bus: &mut Bus, client: usize) -> Option<Request> {
        let gpid = *bus.dice.pick(&self.gpids)?;
        let dice = bus.dice.below(100);
        let register = Bytes::from(format!("k{}", bus.dice.below(KEYS)));
        let counter = Bytes::from(format!("n{}", bus.dice.below(COUNTERS)));
        let either = if bus.dice.permille(300) { counter.clone() } else { register.clone() };
        Some(match dice {
            _ if self.only_reads => Request { gpid, key: either, verb: Verb::Get },
            0..40 => {
                let value = Bytes::from(format!("c{}.{}", client + 1, self.ops));
                let known = self.clients[client].known.get(&(gpid, register.clone()));
                let verb = match known {
                    Some(expected) if dice < 12 => Verb::Cas { expected: expected.clone(), new: value },
                    _ => Verb::Put(value),
                };
                Request { gpid, key: register, verb }
            }
            40..45 => Request { gpid, key: register, verb: Verb::Delete },
            45..65 => Request { gpid, key: counter, verb: Verb::Incr },
            _ => Request { gpid, key: either, verb: Verb::Get },
        })
    }

    fn send(&mut self, bus: &mut Bus, client: usize) {
        let Client { op, sent, routes, meta, .. } = &mut self.clients[client];
        let Some((op, request)) = op.as_ref().filter(|_| !*sent) else { return };
        match routes.get(&request.gpid) {
            Some(route) if !route.doubtful || bus.dice.permille(300) => {
                *sent = true;
                let packet = Packet::Request { op: *op, request: request.clone() };
                bus.send(Place::Client(client), Place::Host(route.host), packet);
            }
            _ => bus.send(Place::Client(client), Place::Meta(*meta), Packet::Route(request.gpid)),
        }
    }

    pub fn deliver(&mut self, bus: &mut Bus, checks: &mut Checks, client: usize, packet: Packet) {
        let Client { op: operation, routes, known, meta, .. } = &mut self.clients[client];
        match packet {
            Packet::RouteIs { gpid, primary } => {
                let waits = operation.as_ref().is_some_and(|(_, r)| r.gpid == gpid);
                let asked = routes.get(&gpid).is_none_or(|route| route.doubtful);
                if let Some(host) = primary
                    && asked
                {
                    routes.insert(gpid, Route { host, doubtful: false });
                }
                if primary.is_some() && asked && waits {
                    self.send(bus, client);
                }
            }
            Packet::NotLeader { leader } => {
                let next = (*meta + 1) % self.metas;
                *meta = leader.as_ref().and_then(crate::meta::index_of).unwrap_or(next);
                bus.after(ASK_PAUSE, Happening::ClientAsk(client));
            }
            Packet::Reset(host) => {
                let waits = |(_, request): &mut (OpId, Request)| {
                    routes.get(&request.gpid).is_some_and(|r| r.host == host)
                };
                if let Some((op, _)) = operation.take_if(waits) {
                    routes.values_mut().filter(|r| r.host == host).for_each(|r| r.doubtful = true);
                    checks.history.give_up(op);
                    self.again(bus, client);
                }
            }
            Packet::Response { op, response } => {
                let Some((_, request)) = operation.take_if(|(now, _)| *now == op) else { return };
                if bus.trace.is_on() {
                    let name = Place::Client(client);
                    bus.trace.line(bus.now, format_args!("{name} {op} {request:?}: {response:?}"));
                }
                match &response {
                    Response::Refused(_) => {
                        routes.entry(request.gpid).and_modify(|r| r.doubtful = true);
                    }
                    Response::Got { value, .. } | Response::Written { value, .. } => {
                        known.insert((request.gpid, request.key), value.clone());
                    }
                }
                checks.history.end(bus.now, op, &response);
                self.again(bus, client);
            }
            _ => {}
        }
    }

    /// Asks for the route again, if it still wants one.
    pub fn ask(&mut self, bus: &mut Bus, client: usize) {
        self.send(bus, client);
    }

    pub fn timed_out(&mut self, bus: &mut Bus, checks: &mut Checks, client: usize, op: OpId) {
        if let Some((_, request)) = self.clients[client].op.take_if(|(now, _)| *now == op) {
            let Client { routes, meta, sent, .. } = &mut self.clients[client];
            routes.entry(request.gpid).and_modify(|r| r.doubtful = true);
            if !*sent {
                *meta = (*meta + 1) % self.metas;
            }
            checks.history.give_up(op);
            self.again(bus, client);
        }
    }

    fn again(&self, bus: &mut Bus, client: usize) {
        let delay = bus.dice.between(self.pause.0, self.pause.1);
        bus.after(delay, Happening::ClientNext(client));
    }

    /// Every key that was ever written.
    pub fn keys() -> Vec<Bytes> {
        let registers = (0..KEYS).map(|k| Bytes::from(format!("k{k}")));
        registers.chain((0..COUNTERS).map(|k| Bytes::from(format!("n{k}")))).collect()
    }
}
