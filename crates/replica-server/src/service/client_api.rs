//! What clients ask.

use std::rc::{Rc, Weak};

use pegasus_pacifica::Admission;
use pegasus_rpc::wire::frame::RequestHead;
use pegasus_rpc::wire::request::Request;
use pegasus_rpc::wire::server::{ClientService, ReplyTo};
use pegasus_types::data::{ReadRequest, WriteRequest};
use pegasus_types::{ErrorCode, Gpid};

use super::remote_command;
use crate::clock;
use crate::metrics::Op;
use crate::node::{NodeState, Shell};
use crate::partition::queue::{DEFAULT_TIMEOUT_MS, Queued};
use crate::reads::{self, Read};

/// Weak, because requests that wait in the shell hold their connection, which holds this.
#[derive(Debug)]
pub struct ClientApi(pub Weak<Shell>);

impl ClientService for ClientApi {
    fn call(&self, head: RequestHead, frame_bytes: usize, request: Request, reply: ReplyTo) {
        let Some(shell) = &self.0.upgrade() else { return };
        match request {
            Request::Read(request) => match head.gpid() {
                Some(gpid) => read(shell, gpid, head, request, reply),
                None => reply.error(ErrorCode::HandlerNotFound),
            },
            Request::Write(request) => match head.gpid() {
                Some(gpid) => {
                    let listed =
                        shell.with(|state| state.enqueue(shell, gpid, &head, frame_bytes, request, reply));
                    if listed {
                        shell.wake.notify_one();
                    }
                }
                None => reply.error(ErrorCode::HandlerNotFound),
            },
            Request::RemoteCommand(command) => {
                reply.text(remote_command::run(shell, &command.cmd, &command.arguments));
            }
            // Answered by the wire server itself.
            Request::Negotiation(_) => reply.error(ErrorCode::HandlerNotFound),
            Request::QueryConfig(_) | Request::Admin(_) => reply.error(ErrorCode::HandlerNotFound),
        }
    }
}

fn read(shell: &Rc<Shell>, gpid: Gpid, head: RequestHead, request: ReadRequest, reply: ReplyTo) {
    let now = clock::boot_ms();
    let deadline = reads::deadline(now, &head);
    let arrived_us = clock::mono_us();
    let read = Read { gpid, head, request, reply, arrived_us, began_us: arrived_us, deadline, reign: None };
    let has_events = shell.with(|state| {
        state.read(shell, now, read);
        !state.events.is_empty()
    });
    if has_events {
        shell.wake.notify_one();
    }
}

impl NodeState {
    /// The gates of replication.md 2.1, in their order. True when a turn of the loop is due for it.
    fn enqueue(
        &mut self,
        shell: &Shell,
        gpid: Gpid,
        head: &RequestHead,
        frame_bytes: usize,
        request: WriteRequest,
        reply: ReplyTo,
    ) -> bool {
        let now = clock::boot_ms();
        let op = Op::of_write(&request);
        let refused = match self.replicas.get(&gpid) {
            None => Some(ErrorCode::ObjectNotFound),
            Some(_) if shell.settings.max_write_bytes > 0 && frame_bytes > shell.settings.max_write_bytes => {
                Some(ErrorCode::InvalidData)
            }
            Some(replica) => match self.core.admit_write(now, gpid) {
                Admission::Refused(code) => Some(code),
                _ if shell.settings.reject_when_full && self.disks[replica.disk].full => {
                    Some(ErrorCode::DiskInsufficient)
                }
                Admission::Ready { .. } | Admission::Full | Admission::Wait => None,
            },
        };
        if let Some(code) = refused {
            self.refuse(gpid, op, reply, code);
            return false;
        }
        let Some(replica) = self.replicas.get_mut(&gpid) else { return false };
        let timeout = match u64::from(head.client_timeout_ms) {
            0 => DEFAULT_TIMEOUT_MS,
            ms => ms,
        };
        if !replica.queue.has_room(frame_bytes) {
            self.refuse(gpid, op, reply, ErrorCode::CapacityExceeded);
            return false;
        }
        replica.queue.push(Queued {
            request,
            bytes: frame_bytes,
            arrived: now,
            arrived_us: clock::mono_us(),
            deadline: now + timeout,
            reply,
        });
        replica.counts.write_bytes += frame_bytes as u64;
        self.metrics.table(gpid.app_id).op(op).bytes += frame_bytes as u64;
        if !std::mem::replace(&mut replica.listed, true) {
            self.listed.push(gpid);
        }
        true
    }
}
