//! Requests of clients at a host.

use std::collections::BTreeMap;

use bytes::Bytes;
use pegasus_pacifica::{Admission, Event, Serving};
use pegasus_types::mutation::{BodyBuilder, ops};
use pegasus_types::{Decree, ErrorCode, Gpid, Mutation};

use super::{Cx, Host};
use crate::bus::{Chore, MS, Micros, Packet, Place};
use crate::workload::{OpId, Request, Response, Verb, one_more};

/// How long a request waits at a primary that may not serve.
const PATIENCE: Micros = 400 * MS;

/// Values of writes under way, by key.
type Pending = BTreeMap<Bytes, (Decree, Option<Bytes>)>;

enum Condition {
    Met,
    Failed,
    /// What decides it is still under way.
    Open,
}

#[derive(Debug, Default)]
pub struct Clients {
    /// Writes that the core has.
    writes: BTreeMap<u64, (usize, OpId, Option<Bytes>)>,
    /// What reads of a resolution see on top of the engine (safety-rules.md 3.2).
    pending: BTreeMap<Gpid, Pending>,
    /// In order of arrival.
    parked: Vec<(usize, OpId, Request)>,
}

impl Clients {
    pub fn clear_pending(&mut self, gpid: Gpid) {
        self.pending.remove(&gpid);
    }
}

impl Host {
    pub(super) fn request(&mut self, cx: &mut Cx<'_>, client: usize, op: OpId, request: Request) {
        if !self.try_request(cx, client, op, &request)
            && let Some(process) = &mut self.process
        {
            process.clients.parked.push((client, op, request));
            cx.bus.chore(self.id, PATIENCE, Chore::Deadline { op });
        }
    }

    pub(super) fn unpark(&mut self, cx: &mut Cx<'_>) {
        let Some(process) = &mut self.process else { return };
        if process.clients.parked.is_empty() {
            return;
        }
        for (client, op, request) in std::mem::take(&mut process.clients.parked) {
            if !self.try_request(cx, client, op, &request)
                && let Some(process) = &mut self.process
            {
                process.clients.parked.push((client, op, request));
            }
        }
    }

    pub(super) fn deadline(&mut self, cx: &mut Cx<'_>, op: OpId) {
        let Some(process) = &mut self.process else { return };
        if let Some(index) = process.clients.parked.iter().position(|(_, parked, _)| *parked == op) {
            let (client, op, _) = process.clients.parked.remove(index);
            self.respond(cx, client, op, Response::Refused(ErrorCode::InvalidState));
        }
    }

    /// False = not now.
    fn try_request(&mut self, cx: &mut Cx<'_>, client: usize, op: OpId, request: &Request) -> bool {
        let now = self.clock.at(cx.bus.now);
        let Some(process) = &self.process else { return true };
        let gpid = request.gpid;
        if request.verb == Verb::Get {
            return self.try_read(cx, client, op, request);
        }
        match process.core.admit_write(now, gpid) {
            Admission::Ready { .. } => match self.condition(cx, request) {
                Condition::Met => self.write(cx, client, op, request),
                Condition::Failed => return self.try_read(cx, client, op, request),
                Condition::Open => return false,
            },
            Admission::Full | Admission::Wait => return false,
            Admission::Refused(code) => self.respond(cx, client, op, Response::Refused(code)),
        }
        true
    }

    /// A condition that fails on what is not committed yet must not be answered before it is.
    fn condition(&self, cx: &Cx<'_>, request: &Request) -> Condition {
        let Verb::Cas { expected, .. } = &request.verb else { return Condition::Met };
        let (stored, pending) = self.stored(request);
        if stored == expected.as_ref() || cx.settings.sabotage.blind_cas {
            Condition::Met
        } else if pending {
            Condition::Open
        } else {
            Condition::Failed
        }
    }

    /// What the key holds when all that is under way is through, and whether something is.
    fn stored(&self, request: &Request) -> (Option<&Bytes>, bool) {
        let pending =
            self.process.as_ref().and_then(|p| p.clients.pending.get(&request.gpid)?.get(&request.key));
        match pending {
            Some((_, value)) => (value.as_ref(), true),
            None => {
                let row = self.files.get(&request.gpid).and_then(|file| file.engine.get(&request.key));
                (row.and_then(|row| row.value.as_ref()), false)
            }
        }
    }

    fn try_read(&mut self, cx: &mut Cx<'_>, client: usize, op: OpId, request: &Request) -> bool {
        match self.may_read(cx, request.gpid) {
            Serving::Yes => self.read(cx, client, op, request),
            Serving::Wait => return false,
            Serving::No(code) => self.respond(cx, client, op, Response::Refused(code)),
        }
        true
    }

    fn may_read(&self, cx: &Cx<'_>, gpid: Gpid) -> Serving {
        let Some(process) = &self.process else { return Serving::Wait };
        if cx.settings.sabotage.serve_unasked && self.is_primary(gpid) {
            return Serving::Yes;
        }
        process.core.serving(self.clock.at(cx.bus.now), gpid)
    }

    fn read(&mut self, cx: &mut Cx<'_>, client: usize, op: OpId, request: &Request) {
        let gpid = request.gpid;
        let row = self.files.get(&gpid).and_then(|file| file.engine.get(&request.key));
        let response = Response::Got {
            value: row.and_then(|row| row.value.clone()),
            decree: row.map_or(Decree::ZERO, |row| row.decree),
        };
        // A read may take its time; then the lease is looked at after it (safety-rules.md 1.2).
        if cx.bus.dice.permille(300) {
            let delay = cx.bus.dice.below(30 * MS);
            cx.bus.chore(self.id, delay, Chore::ReadDone { op, from: client, gpid, response });
        } else {
            self.respond(cx, client, op, response);
        }
    }

    pub(super) fn read_done(
        &mut self,
        cx: &mut Cx<'_>,
        op: OpId,
        client: usize,
        gpid: Gpid,
        response: Response,
    ) {
        let response = match self.may_read(cx, gpid) {
            Serving::Yes => response,
            Serving::Wait | Serving::No(_) => Response::Refused(ErrorCode::InvalidState),
        };
        self.respond(cx, client, op, response);
    }

    /// Resolves the write: what is replicated is blind and absolute.
    fn write(&mut self, cx: &mut Cx<'_>, client: usize, op: OpId, request: &Request) {
        let mut body = BodyBuilder::default();
        let value = match &request.verb {
            Verb::Put(value) | Verb::Cas { new: value, .. } => Some(value.clone()),
            Verb::Delete => None,
            Verb::Incr => Some(one_more(self.stored(request).0)),
            Verb::Get => return,
        };
        // After a start or a copy the core knows only the times of what it has seen since.
        let newest_us = match self.files.get(&request.gpid) {
            Some(file) if !cx.settings.sabotage.wall_tags => file.engine.newest_us(),
            _ => 0,
        };
        let Some(process) = &mut self.process else { return };
        match &value {
            Some(value) => body.put(&request.key, [b"", value]),
            None => body.delete(&request.key),
        }
        let token = process.number();
        process.clients.writes.insert(token, (client, op, value));
        let not_before = self.clock.wall_us(cx.bus.now).max(newest_us + 1);
        let timestamp_us = process.core.next_timestamp(request.gpid, not_before);
        self.step(cx, Event::Write { gpid: request.gpid, token, timestamp_us, body: body.finish() });
    }

    pub(super) fn pend(&mut self, gpid: Gpid, mutations: &[Mutation]) {
        if !self.is_primary(gpid) {
            return;
        }
        let Some(process) = &mut self.process else { return };
        let pending = process.clients.pending.entry(gpid).or_default();
        for mutation in mutations {
            for op in ops(&mutation.body).flatten() {
                let value = op.value.map(|v| Bytes::copy_from_slice(v.bytes));
                pending.insert(Bytes::copy_from_slice(op.key), (mutation.decree, value));
            }
        }
    }

    /// What is applied is read from the engine.
    pub(super) fn unpend(&mut self, gpid: Gpid) {
        let Some(process) = &mut self.process else { return };
        let Some(applied) = self.files.get(&gpid).map(|file| file.engine.applied()) else { return };
        if let Some(pending) = process.clients.pending.get_mut(&gpid) {
            pending.retain(|_, (decree, _)| *decree > applied);
        }
    }

    pub(super) fn reply(&mut self, cx: &mut Cx<'_>, token: u64, result: Result<Decree, ErrorCode>) {
        let Some(process) = &mut self.process else { return };
        let Some((client, op, value)) = process.clients.writes.remove(&token) else { return };
        let response = match result {
            Ok(decree) => Response::Written { decree, value },
            Err(code) => Response::Refused(code),
        };
        self.respond(cx, client, op, response);
    }

    pub(super) fn forget_write(&mut self, token: u64) {
        if let Some(process) = &mut self.process {
            process.clients.writes.remove(&token);
        }
    }

    fn respond(&self, cx: &mut Cx<'_>, client: usize, op: OpId, response: Response) {
        cx.bus.send(Place::Host(self.id), Place::Client(client), Packet::Response { op, response });
    }
}
