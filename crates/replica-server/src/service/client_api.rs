//! What clients ask.

use std::rc::{Rc, Weak};
use std::time::Duration;

use pegasus_pacifica::Admission;
use pegasus_rpc::wire::frame::RequestHead;
use pegasus_rpc::wire::request::Request;
use pegasus_rpc::wire::server::{ClientService, ReplyTo};
use pegasus_types::data::{ReadRequest, WriteRequest};
use pegasus_types::{ErrorCode, Gpid, Millis};

use super::remote_command;
use crate::clock;
use crate::metrics::Op;
use crate::node::{NodeState, Shell};
use crate::partition::queue::{Queued, timeout_ms};
use crate::reads::{self, Read};
use crate::throttle::{Kind, Verdict};

/// Weak, because requests that wait in the shell hold their connection, which holds this.
#[derive(Debug)]
pub struct ClientApi(pub Weak<Shell>);

impl ClientService for ClientApi {
    fn call(&self, head: RequestHead, frame_bytes: usize, request: Request, reply: ReplyTo) {
        let Some(shell) = &self.0.upgrade() else { return };
        match request {
            Request::Read(request) => match head.gpid() {
                Some(gpid) => {
                    let (now, arrived_us) = (clock::boot_ms(), clock::mono_us());
                    let deadline = reads::deadline(now, &head);
                    let read = Read {
                        gpid,
                        head,
                        request,
                        reply,
                        arrived_us,
                        began_us: arrived_us,
                        from_disk: None,
                        deadline,
                        reign: None,
                    };
                    admit_read(shell, now, read);
                }
                None => reply.error(ErrorCode::HandlerNotFound),
            },
            Request::Write(request) => match head.gpid() {
                Some(gpid) => {
                    let (arrived, arrived_us) = (clock::boot_ms(), clock::mono_us());
                    write(
                        shell,
                        Write { gpid, head, frame_bytes, request, reply, arrived, arrived_us },
                        false,
                    );
                }
                None => reply.error(ErrorCode::HandlerNotFound),
            },
            Request::RemoteCommand(command) => {
                remote_command::answer(shell, command, reply);
            }
            // Answered by the wire server itself.
            Request::Negotiation(_) => reply.error(ErrorCode::HandlerNotFound),
            Request::QueryConfig(_) | Request::Admin(_) => reply.error(ErrorCode::HandlerNotFound),
        }
    }
}

fn admit_read(shell: &Rc<Shell>, now: Millis, asked: Read) {
    let kind = if asked.head.is_backup { Kind::BackupRead } else { Kind::Read };
    let bytes = asked.reply.frame_bytes();
    let verdict = shell.with(|state| match state.replicas.get_mut(&asked.gpid) {
        // It ends something, and has no answer.
        _ if matches!(asked.request, ReadRequest::ClearScanner { .. }) => Verdict::Pass,
        Some(replica) => {
            let limits = &mut replica.limits;
            limits.denied(kind).unwrap_or_else(|| limits.ask(now, kind, bytes, timeout_ms(&asked.head)))
        }
        None => Verdict::Pass,
    });
    let held = Held { gpid: asked.gpid, kind, op: Op::of_read(&asked.request), bytes };
    match verdict {
        Verdict::Pass => read(shell, now, asked),
        verdict => held.up(
            shell,
            verdict,
            asked,
            |read| read.reply,
            |shell, held| read(shell, clock::boot_ms(), held),
        ),
    }
}

fn read(shell: &Rc<Shell>, now: Millis, read: Read) {
    let has_events = shell.with(|state| {
        state.read(shell, now, read);
        !state.events.is_empty()
    });
    if has_events {
        shell.wake.notify_one();
    }
}

/// A client's write that is not queued yet.
struct Write {
    gpid: Gpid,
    head: RequestHead,
    frame_bytes: usize,
    request: WriteRequest,
    reply: ReplyTo,
    arrived: Millis,
    arrived_us: u64,
}

/// `waited`: what the table's limits asked of it.
fn write(shell: &Rc<Shell>, write: Write, waited: bool) {
    let held = Held {
        gpid: write.gpid,
        kind: Kind::Write,
        op: Op::of_write(&write.request),
        bytes: write.frame_bytes,
    };
    match shell.with(|state| state.enqueue(shell, write, waited)) {
        Enqueued::Refused => {}
        Enqueued::Queued => shell.wake.notify_one(),
        Enqueued::HeldUp(verdict, write) => {
            held.up(
                shell,
                verdict,
                *write,
                |write| write.reply,
                |shell, held| self::write(shell, held, true),
            );
        }
    }
}

enum Enqueued {
    Refused,
    /// A turn of the loop is due for it.
    Queued,
    HeldUp(Verdict, Box<Write>),
}

/// A request that its table's settings do not let through.
struct Held {
    gpid: Gpid,
    kind: Kind,
    op: Op,
    bytes: usize,
}

impl Held {
    fn up<T: 'static>(
        self,
        shell: &Rc<Shell>,
        verdict: Verdict,
        request: T,
        reply_of: fn(T) -> ReplyTo,
        go_on: fn(&Rc<Shell>, T),
    ) {
        let Self { gpid, kind, op, bytes } = self;
        let refuse = move |shell: &Shell, request, code| {
            shell.with(|state| state.refuse(gpid, op, reply_of(request), code));
        };
        shell.with(|state| {
            let counts = state.metrics.table(gpid.app_id).held_up(kind);
            match verdict {
                Verdict::Pass => {}
                Verdict::Delay(_) => counts.delayed += 1,
                Verdict::Reject(_) => counts.rejected += 1,
                Verdict::Reconfigure | Verdict::Ignore => counts.denied += 1,
            }
        });
        let ms = match verdict {
            Verdict::Pass => return go_on(shell, request),
            Verdict::Ignore => return,
            // Nobody is promised an answer to it: the client has asked another server, too.
            Verdict::Reject(_) if kind == Kind::BackupRead => return,
            Verdict::Reconfigure => return refuse(shell, request, ErrorCode::InvalidState),
            Verdict::Reject(0) => return refuse(shell, request, ErrorCode::Busy),
            Verdict::Delay(ms) | Verdict::Reject(ms) => ms,
        };
        if !shell.with(|state| state.delayed.enter(bytes)) {
            return refuse(shell, request, ErrorCode::Busy);
        }
        let shell = shell.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            shell.with(|state| state.delayed.leave(bytes));
            match verdict {
                Verdict::Delay(_) => go_on(&shell, request),
                _ => refuse(&shell, request, ErrorCode::Busy),
            }
        });
    }
}

impl NodeState {
    /// The gates of replication.md 2.1, in their order.
    fn enqueue(&mut self, shell: &Shell, write: Write, waited: bool) -> Enqueued {
        let Write { gpid, frame_bytes, .. } = write;
        let now = if waited { clock::boot_ms() } else { write.arrived };
        let op = Op::of_write(&write.request);
        let refused = match self.replicas.get(&gpid) {
            None => Some(ErrorCode::ObjectNotFound),
            Some(replica) if let Some(verdict) = replica.limits.denied(Kind::Write) => {
                return Enqueued::HeldUp(verdict, Box::new(write));
            }
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
            self.refuse(gpid, op, write.reply, code);
            return Enqueued::Refused;
        }
        let Some(replica) = self.replicas.get_mut(&gpid) else { return Enqueued::Refused };
        if !waited {
            match replica.limits.ask(now, Kind::Write, frame_bytes, timeout_ms(&write.head)) {
                Verdict::Pass => {}
                verdict => return Enqueued::HeldUp(verdict, Box::new(write)),
            }
        }
        if !replica.queue.has_room(frame_bytes) {
            self.refuse(gpid, op, write.reply, ErrorCode::CapacityExceeded);
            return Enqueued::Refused;
        }
        replica.queue.push(Queued {
            request: write.request,
            bytes: frame_bytes,
            // How long it waits for its turn is another matter than what a limit asked of it.
            arrived: now,
            arrived_us: write.arrived_us,
            deadline: write.arrived + timeout_ms(&write.head),
            reply: write.reply,
        });
        replica.counts.write_bytes += frame_bytes as u64;
        self.metrics.table(gpid.app_id).op(op).bytes += frame_bytes as u64;
        if !std::mem::replace(&mut replica.listed, true) {
            self.listed.push(gpid);
        }
        Enqueued::Queued
    }
}
