//! The server side: requests of many connections to one [`ClientService`], replies back.
//!
//! ```text
//!  socket --read--> input --frames--> ClientService::call(head, request, ReplyTo)
//!                                                                        | now or later
//!  socket <--one write for many replies-- out <--------------------------'
//! ```
//!
//! Everything lives on one thread. What strangers can make the daemon hold is bounded by [`Limits`]: a
//! connection stops reading when it has too much in flight or too much unread output, and it is closed when
//! it stalls in the middle of a frame or does not take its answers. What all connections hold together has a
//! budget for each kind, and none of them keeps somebody else from a small request.

mod connection;
mod long_frame;
mod out;
mod reply;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::frame::RequestHead;
use super::request::Request;
pub use connection::Closed;
use reply::Outbox;
pub use reply::ReplyTo;

/// What a daemon does with client requests.
pub trait ClientService {
    /// Called inline for every request that decodes, in the order of arrival on a connection; must not block.
    /// `frame_bytes` is the length of the thrift message (the write limit is compared with it). The reply may
    /// be given now or later, on the same thread; dropping it leaves the client without an answer.
    fn call(&self, head: RequestHead, frame_bytes: usize, request: Request, reply: ReplyTo);
}

/// What clients may make the daemon hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Unanswered requests of one connection; then it is not read. A benchmark client pipelines some hundred.
    pub in_flight: usize,
    /// Bytes of those requests; one longer frame alone is still taken.
    pub in_flight_bytes: usize,
    /// Output that the client has not taken; then it is not read, and what it has asked for already and may be long
    /// waits ([`ReplyTo::room`]). One answer more may be added.
    pub out_bytes: usize,
    /// Output that the client has not taken, above which its requests that cannot wait and may have long answers
    /// should be refused ([`ReplyTo::is_clogged`]): thousands of them may be queued.
    pub clogged_bytes: usize,
    /// Output that clients have not taken, over all connections. Above half of it a connection has room only when
    /// its client has taken everything; above it the one that has taken nothing for the longest time is closed.
    pub unread_bytes: usize,
    /// Buffers of long frames that have not arrived or may not be taken yet, over all connections. Above it the
    /// connection with the largest one is closed: no write is as long as the longest frame, 64 MiB.
    pub partial_bytes: usize,
    /// Bytes of unanswered requests over all connections. Above it a connection that awaits an answer has to wait
    /// with its next request; the others may have a small one each.
    pub request_bytes: usize,
    /// A connection is closed when a begun frame or pending output makes no progress for so long.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: 4096,
            in_flight_bytes: 16 << 20,
            out_bytes: 1 << 20,
            clogged_bytes: 16 << 20,
            unread_bytes: 128 << 20,
            partial_bytes: 128 << 20,
            request_bytes: 256 << 20,
            stall: Duration::from_secs(30),
        }
    }
}

/// Serves client connections; shared by all of a listener.
pub struct WireServer {
    service: Rc<dyn ClientService>,
    /// `server` in data responses. Moved into a response while it is encoded.
    name: RefCell<String>,
    limits: Limits,
    /// Reads go into this buffer, which all connections share, so that idle ones hold none.
    slab: RefCell<BytesMut>,
    /// The same for answers.
    spare: out::Spare,
    /// Counted against [`Limits::partial_bytes`].
    partial: Cell<usize>,
    /// Counted against [`Limits::request_bytes`].
    requests: Cell<usize>,
    /// Counted against [`Limits::unread_bytes`].
    unread: Cell<usize>,
    /// Connections that wait for `requests` to fall.
    waiting: RefCell<Vec<Weak<Outbox>>>,
    connections: RefCell<BTreeMap<u64, Weak<Outbox>>>,
    last_id: Cell<u64>,
    closing: Cell<bool>,
}

impl fmt::Debug for WireServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireServer")
            .field("name", &self.name.borrow())
            .field("connections", &self.connection_count())
            .field("partial_bytes", &self.partial.get())
            .field("request_bytes", &self.requests.get())
            .field("unread_bytes", &self.unread.get())
            .finish_non_exhaustive()
    }
}

impl WireServer {
    /// `name` is this server's published `host:port`; data responses carry it.
    pub fn new(name: impl Into<String>, limits: Limits, service: Rc<dyn ClientService>) -> Rc<Self> {
        Rc::new(Self {
            service,
            name: RefCell::new(name.into()),
            limits,
            slab: RefCell::default(),
            spare: out::Spare::default(),
            partial: Cell::new(0),
            requests: Cell::new(0),
            unread: Cell::new(0),
            waiting: RefCell::default(),
            connections: RefCell::default(),
            last_id: Cell::new(0),
            closing: Cell::new(false),
        })
    }

    /// Speaks the protocol on an accepted connection until it ends.
    pub async fn serve(self: Rc<Self>, stream: TcpStream) -> Closed {
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        let outbox = Rc::new(Outbox::new(self.clone(), stream.peer_addr().ok()));
        self.connections.borrow_mut().insert(id, Rc::downgrade(&outbox));
        let closed = connection::Connection::new(self.clone(), outbox, stream).run().await;
        self.connections.borrow_mut().remove(&id);
        closed
    }

    pub fn connection_count(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Bytes of requests that are incomplete or not answered yet.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.partial.get() + self.requests.get()
    }

    /// Bytes of answers that clients have not taken yet.
    pub fn unread_bytes(&self) -> usize {
        self.unread.get()
    }

    /// Takes no more requests; every connection ends when its requests are answered.
    pub fn close(&self) {
        self.closing.set(true);
        for outbox in self.connections.borrow().values().filter_map(Weak::upgrade) {
            outbox.wake();
        }
        self.wake_waiting();
    }

    /// What the connection holds of a long frame. Whoever holds the most makes room when that is too much.
    fn set_partial(&self, outbox: &Outbox, bytes: usize) {
        self.partial.set(self.partial.get() + bytes - outbox.partial.replace(bytes));
        while self.partial.get() > self.limits.partial_bytes {
            let Some(largest) = self.max_by_key(|outbox| outbox.partial.get()) else { break };
            // Given back as soon as its task runs.
            self.partial.set(self.partial.get() - largest.partial.replace(0));
            largest.evict();
        }
    }

    fn add_unread(&self, bytes: usize) {
        self.unread.set(self.unread.get() + bytes);
        while self.unread.get() > self.limits.unread_bytes {
            let now = Instant::now();
            let Some(worst) = self.max_by_key(|outbox| {
                let stuck = outbox.stuck_since.get().map(|since| now - since);
                (outbox.is_large(), stuck, outbox.out.borrow().len())
            }) else {
                break;
            };
            self.take_unread(worst.out.take().len());
            worst.evict();
        }
    }

    fn take_unread(&self, bytes: usize) {
        self.unread.set(self.unread.get() - bytes);
    }

    /// Whether clients have taken so little that nobody should get ahead of his.
    fn is_short_of_output(&self) -> bool {
        self.unread.get() > self.limits.unread_bytes / 2
    }

    fn max_by_key<K: Ord>(&self, key: impl Fn(&Outbox) -> K) -> Option<Rc<Outbox>> {
        let all = self.connections.borrow();
        all.values().filter_map(Weak::upgrade).filter(|o| !o.evicted.get()).max_by_key(|outbox| key(outbox))
    }

    fn has_room_for_requests(&self) -> bool {
        self.requests.get() < self.limits.request_bytes
    }

    fn add_request(&self, bytes: usize) {
        self.requests.set(self.requests.get() + bytes);
    }

    fn finish_request(&self, bytes: usize) {
        self.requests.set(self.requests.get() - bytes);
        if self.has_room_for_requests() && !self.waiting.borrow().is_empty() {
            self.wake_waiting();
        }
    }

    /// Wakes the connection when requests may be taken again.
    fn wait(&self, outbox: &Rc<Outbox>) {
        if !outbox.waiting.replace(true) {
            self.waiting.borrow_mut().push(Rc::downgrade(outbox));
        }
    }

    fn wake_waiting(&self) {
        for outbox in self.waiting.take().iter().filter_map(Weak::upgrade) {
            outbox.waiting.set(false);
            outbox.wake();
        }
    }
}
