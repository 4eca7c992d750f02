//! Where a service puts its answer.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;

use bytes::BytesMut;
use pegasus_types::ErrorCode;
use pegasus_types::data::{ReadResponseBody, WriteResponse};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::WireServer;
use super::out::Out;
use crate::wire::codes::Rpc;
use crate::wire::frame::{RequestHead, put_refusal};
use crate::wire::meta::{NegotiationMessage, QueryConfigResponse};
use crate::wire::request::{AdminResponse, Response};
use crate::wire::thrift::Writer;

/// Less than this of one client's answers is not worth to close its connection for.
const LARGE_OUT: usize = 64 << 10;

/// Answers of one connection that have not been written to the socket yet.
pub(super) struct Outbox {
    server: Rc<WireServer>,
    /// Of the client; None when it was gone before it could be asked for.
    from: Option<SocketAddr>,
    pub out: RefCell<Out>,
    /// Since when the client has taken nothing of it; None when it is not known to be waited for.
    pub stuck_since: Cell<Option<Instant>>,
    /// Tells those who wait for room that there may be some.
    pub room: Notify,
    /// Of the connection's task while it sleeps; taken by the first answer, so that all that come before it
    /// runs share one write.
    pub waker: RefCell<Option<Waker>>,
    pub in_flight: Cell<usize>,
    pub in_flight_bytes: Cell<usize>,
    /// The connection waits for requests to be finished before it goes on.
    pub blocked: Cell<bool>,
    /// The connection waits for requests of others to be finished.
    pub waiting: Cell<bool>,
    /// What the connection counts for in [`Limits::partial_bytes`](super::Limits::partial_bytes).
    pub partial: Cell<usize>,
    /// The connection is to be closed: others need the room.
    pub evicted: Cell<bool>,
    pub closed: Cell<bool>,
}

impl Outbox {
    pub fn new(server: Rc<WireServer>, from: Option<SocketAddr>) -> Self {
        Self {
            server,
            from,
            out: RefCell::default(),
            stuck_since: Cell::new(None),
            room: Notify::new(),
            waker: RefCell::default(),
            in_flight: Cell::new(0),
            in_flight_bytes: Cell::new(0),
            blocked: Cell::new(false),
            waiting: Cell::new(false),
            partial: Cell::new(0),
            evicted: Cell::new(false),
            closed: Cell::new(false),
        }
    }

    pub fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Appends an answer and lets the connection write it.
    pub fn append(&self, encode: impl FnOnce(&mut BytesMut)) {
        let added = self.out.borrow_mut().append(&self.server.spare, encode);
        self.server.add_unread(added);
        self.wake();
    }

    pub fn is_large(&self) -> bool {
        self.out.borrow().len() >= LARGE_OUT
    }

    pub fn has_room(&self) -> bool {
        let unread = self.out.borrow().len();
        unread == 0 || (unread < self.server.limits.out_bytes && !self.server.is_short_of_output())
    }

    /// Lets the connection end.
    pub fn evict(&self) {
        self.evicted.set(true);
        self.close();
        self.wake();
    }

    /// Answers vanish from now on.
    pub fn close(&self) {
        self.closed.set(true);
        self.room.notify_waiters();
    }

    /// Counts a request that now awaits its answer.
    pub fn begin(self: &Rc<Self>, head: &RequestHead, rpc: Rpc, frame_bytes: usize, oneway: bool) -> ReplyTo {
        self.in_flight.set(self.in_flight.get() + 1);
        self.in_flight_bytes.set(self.in_flight_bytes.get() + frame_bytes);
        self.server.add_request(frame_bytes);
        ReplyTo {
            outbox: self.clone(),
            rpc,
            seqid: head.seqid,
            app_id: head.app_id,
            partition_index: head.partition_index,
            partition_hash: head.partition_hash,
            frame_bytes,
            silent: oneway || rpc == Rpc::ClearScanner,
        }
    }

    fn finish(&self, frame_bytes: usize) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.in_flight_bytes.set(self.in_flight_bytes.get() - frame_bytes);
        self.server.finish_request(frame_bytes);
        if self.blocked.get() {
            self.wake();
        }
    }
}

/// The place to answer one request. Answers of requests that have none by rule (clear_scanner, one-way
/// messages) and of closed connections vanish.
pub struct ReplyTo {
    outbox: Rc<Outbox>,
    rpc: Rpc,
    seqid: i32,
    app_id: i32,
    partition_index: i32,
    partition_hash: u64,
    frame_bytes: usize,
    silent: bool,
}

impl std::fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReplyTo({} seqid {})", self.rpc.name(), self.seqid)
    }
}

impl ReplyTo {
    pub fn rpc(&self) -> Rpc {
        self.rpc
    }

    /// Address of the client.
    pub fn client(&self) -> Option<SocketAddr> {
        self.outbox.from
    }

    /// As in [`RequestHead::partition_hash`].
    pub fn partition_hash(&self) -> u64 {
        self.partition_hash
    }

    /// Size of the request.
    pub fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    /// False when nobody waits for the answer any more: the work for it may be dropped if it has no effect.
    pub fn is_wanted(&self) -> bool {
        !self.silent && !self.outbox.closed.get()
    }

    /// Ends when a long answer may be given, or when nobody waits for it any more. Whoever lets requests wait for
    /// something (a thread, a lease) waits for this too before it executes one: a client may have thousands of
    /// them waiting and read none of the answers. It may take as long as [`Limits::stall`](super::Limits::stall).
    pub async fn room(&self) {
        loop {
            let changed = self.outbox.room.notified();
            if self.has_room() || !self.is_wanted() {
                return;
            }
            changed.await;
        }
    }

    /// Whether a long answer may be given ([`Limits::out_bytes`](super::Limits::out_bytes)).
    pub fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    /// Whether the client leaves so many answers unread that a request with a long one is better refused:
    /// [`Limits::clogged_bytes`](super::Limits::clogged_bytes), or [`Limits::out_bytes`](super::Limits::out_bytes) while all clients together leave too many.
    pub fn is_clogged(&self) -> bool {
        let (limits, unread) = (&self.outbox.server.limits, self.outbox.out.borrow().len());
        unread >= limits.clogged_bytes
            || (unread >= limits.out_bytes && self.outbox.server.is_short_of_output())
    }

    /// Answers a read. `app_id`, `partition_index` and `server` are filled in here.
    pub fn read(self, response: ReadResponseBody) {
        self.send(Response::Read(response));
    }

    /// Answers a write. `app_id`, `partition_index` and `server` are filled in here.
    pub fn write(self, response: WriteResponse) {
        self.send(Response::Write(response));
    }

    pub fn query_config(self, response: QueryConfigResponse) {
        self.send(Response::QueryConfig(response));
    }

    pub fn admin(self, response: AdminResponse) {
        self.send(Response::Admin(response));
    }

    /// Answers a remote command.
    pub fn text(self, text: impl Into<String>) {
        self.send(Response::Text(text.into()));
    }

    pub(super) fn negotiation(self, response: NegotiationMessage) {
        self.send(Response::Negotiation(response));
    }

    /// Refuses the request (the error in the reply's header).
    pub fn error(self, code: ErrorCode) {
        if self.is_wanted() {
            self.outbox.append(|out| put_refusal(out, self.rpc.name().as_bytes(), self.seqid, code));
        }
    }

    fn send(self, mut response: Response) {
        if !self.is_wanted() {
            return;
        }
        self.outbox.append(|out| {
            let w = &mut Writer::new(out);
            let Some((app_id, partition_index, server)) = response.origin() else {
                return response.encode(w, self.rpc, self.seqid);
            };
            (*app_id, *partition_index) = (self.app_id, self.partition_index);
            // Lent, not copied: this is the hot path.
            let mut name = self.outbox.server.name.borrow_mut();
            std::mem::swap(server, &mut name);
            response.encode(w, self.rpc, self.seqid);
            if let Some((_, _, server)) = response.origin() {
                std::mem::swap(server, &mut name);
            }
        });
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        self.outbox.finish(self.frame_bytes);
    }
}
