//! One listening port for clients, HTTP and peers: the first four bytes of a connection decide.
//!
//! The bytes are only peeked at, so each handler sees its connection from the start. Strangers are bounded:
//! so many connections, so many of them undecided, and slots that only peers may use.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::peer;
use crate::wire::frame::MAGIC;
use crate::wire::server::WireServer;

/// Which protocol a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Pegasus client frames.
    Client,
    Http,
    /// Another daemon of the cluster.
    Peer,
}

const PREFACES: [([u8; 4], Protocol); 8] = [
    (MAGIC, Protocol::Client),
    (peer::PREFACE, Protocol::Peer),
    (*b"GET ", Protocol::Http),
    (*b"POST", Protocol::Http),
    (*b"PUT ", Protocol::Http),
    (*b"HEAD", Protocol::Http),
    (*b"DELE", Protocol::Http),
    (*b"OPTI", Protocol::Http),
];

/// What the first bytes (at most four) of a connection say.
fn decide(first: &[u8]) -> Decision {
    let mut fits = PREFACES.iter().filter(|(preface, _)| preface.starts_with(first));
    match fits.next() {
        Some((preface, protocol)) if preface.len() == first.len() => Decision::Speak(*protocol),
        Some(_) => Decision::NeedMore,
        None => Decision::Stranger,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Speak(Protocol),
    NeedMore,
    Stranger,
}

#[derive(Clone, Debug)]
pub struct Limits {
    /// Client and HTTP connections, the undecided included. Beyond it new ones are closed.
    pub connections: usize,
    /// Connections of peers have slots of their own: clients cannot crowd a cluster out of its own daemons.
    pub peers: usize,
    /// Connections that have not said anything yet; the oldest is closed for a new one beyond it.
    pub undecided: usize,
    /// How long a connection may stay silent at first. Generous: pypegasus opens connections to all servers
    /// and may use them much later.
    pub silent: Duration,
    /// How long the first four bytes may take from the first one on.
    pub preface: Duration,
    /// How long running requests may take when the listener shuts down.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            peers: 1_000,
            undecided: 2_000,
            silent: Duration::from_secs(600),
            preface: Duration::from_secs(5),
            drain: Duration::from_secs(1),
        }
    }
}

/// Serves one connection to its end. Dropped when the listener shuts down.
pub type Handler = Rc<dyn Fn(TcpStream, SocketAddr) -> Pin<Box<dyn Future<Output = ()>>>>;

/// Wraps an async function as a [`Handler`].
pub fn handler<F, Fut>(f: F) -> Handler
where
    F: Fn(TcpStream, SocketAddr) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    Rc::new(move |stream, from| Box::pin(f(stream, from)))
}

/// Who serves which protocol.
#[derive(Clone)]
pub struct Handlers {
    /// None: client frames are refused (the collector's port).
    pub client: Option<Rc<WireServer>>,
    pub http: Handler,
    /// None: peers are refused.
    pub peer: Option<Handler>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers").field("client", &self.client).finish_non_exhaustive()
    }
}

/// Dead clients are noticed after about two minutes.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Between looks at a connection whose first four bytes came in pieces.
const PREFACE_POLL: Duration = Duration::from_millis(20);
/// After a failed accept, typically because file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `shutdown`, then lets running client requests end (bounded by [`Limits::drain`]) and drops
/// what is left. Needs a `LocalSet`.
pub async fn serve(listener: TcpListener, handlers: Handlers, limits: Limits, shutdown: CancellationToken) {
    let client = handlers.client.clone();
    let port = Rc::new(Port { handlers, limits, slots: RefCell::default() });
    let mut tasks = JoinSet::new();
    let mut accept_failures = 0_u64;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => report_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => drop(tasks.spawn_local(port.clone().connection(stream, from))),
                Err(error) => {
                    accept_failures += 1;
                    if accept_failures.is_power_of_two() {
                        tracing::warn!(%error, accept_failures, "cannot accept a connection");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    if let Some(client) = client {
        client.close();
        let drained = async { while client.connection_count() > 0 && tasks.join_next().await.is_some() {} };
        if timeout(port.limits.drain, drained).await.is_err() {
            tracing::info!(connections = client.connection_count(), "client requests cut off by shutdown");
        }
    }
    tasks.shutdown().await;
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}

struct Port {
    handlers: Handlers,
    limits: Limits,
    slots: RefCell<Slots>,
}

#[derive(Default)]
struct Slots {
    connections: usize,
    peers: usize,
    next_id: u64,
    /// Oldest first; dropping the sender closes the connection.
    undecided: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Port {
    async fn connection(self: Rc<Self>, stream: TcpStream, from: SocketAddr) {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%from, %error, "cannot set socket options");
            return;
        }
        let Some(protocol) = self.first_word(&stream, from).await else { return };
        let Some(_slot) = Slot::take(&self, protocol) else {
            tracing::debug!(%from, ?protocol, "connection closed: all slots are taken");
            return;
        };
        match (protocol, &self.handlers) {
            (Protocol::Client, Handlers { client: Some(server), .. }) => {
                let closed = server.clone().serve(stream).await;
                tracing::debug!(%from, %closed, "client connection ended");
            }
            (Protocol::Peer, Handlers { peer: Some(peer), .. }) => peer(stream, from).await,
            (Protocol::Http, Handlers { http, .. }) => http(stream, from).await,
            (Protocol::Client | Protocol::Peer, _) => {
                tracing::debug!(%from, ?protocol, "connection closed: not spoken here");
            }
        }
    }

    /// What the connection wants to speak; None = close it.
    async fn first_word(&self, stream: &TcpStream, from: SocketAddr) -> Option<Protocol> {
        let (id, evicted) = self.slots.borrow_mut().enter(self.limits.undecided);
        let protocol = tokio::select! {
            protocol = peek(stream, &self.limits) => protocol,
            _ = evicted => {
                tracing::debug!(%from, "silent connection closed: too many of them");
                None
            }
        };
        self.slots.borrow_mut().undecided.remove(&id);
        protocol
    }
}

impl Slots {
    /// Registers an undecided connection, at the cost of the oldest one when there are too many.
    fn enter(&mut self, max: usize) -> (u64, oneshot::Receiver<()>) {
        while self.undecided.len() >= max.max(1) {
            self.undecided.pop_first();
        }
        self.next_id += 1;
        let (keep, evicted) = oneshot::channel();
        self.undecided.insert(self.next_id, keep);
        (self.next_id, evicted)
    }

    fn of(&mut self, protocol: Protocol) -> &mut usize {
        match protocol {
            Protocol::Client | Protocol::Http => &mut self.connections,
            Protocol::Peer => &mut self.peers,
        }
    }
}

/// A decided connection's place.
struct Slot {
    port: Rc<Port>,
    protocol: Protocol,
}

impl Slot {
    fn take(port: &Rc<Port>, protocol: Protocol) -> Option<Self> {
        let max = match protocol {
            Protocol::Client | Protocol::Http => port.limits.connections,
            Protocol::Peer => port.limits.peers,
        };
        let mut slots = port.slots.borrow_mut();
        let taken = slots.of(protocol);
        if *taken >= max {
            return None;
        }
        *taken += 1;
        drop(slots);
        Some(Self { port: port.clone(), protocol })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.port.slots.borrow_mut().of(self.protocol) -= 1;
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE))
}

async fn peek(stream: &TcpStream, limits: &Limits) -> Option<Protocol> {
    let mut first = [0; 4];
    let mut len = timeout(limits.silent, stream.peek(&mut first)).await.ok()?.ok()?;
    let deadline = Instant::now() + limits.preface;
    loop {
        if len == 0 {
            return None;
        }
        match decide(&first[..len]) {
            Decision::Speak(protocol) => return Some(protocol),
            Decision::Stranger => return None,
            Decision::NeedMore if Instant::now() >= deadline => return None,
            // Readiness says nothing new while some bytes wait, so look again from time to time.
            Decision::NeedMore => sleep(PREFACE_POLL).await,
        }
        len = stream.peek(&mut first).await.ok()?;
    }
}

#[cfg(test)]
mod tests;
