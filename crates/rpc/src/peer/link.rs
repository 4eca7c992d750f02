//! One connection to one peer, kept up: dialled when it is needed, dialled again when it broke.
//!
//! ```text
//!            call                     accepted
//!   Idle -----------> Dialing -----------------------> Up
//!    ^  ^               |  ^                            |
//!    |  +-- pause over  |  | call, after the pause      | broke: dial again at once, a few times
//!    |                  v  |                            v
//!    |               Failed <---- refused / no luck -- Dialing
//! ```
//!
//! One dial at a time; whoever calls meanwhile waits for its outcome, within his own deadline. After a failed
//! dial calls fail at once until a pause with jitter is over, so nothing piles up for a dead peer.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant as StdInstant};

use pegasus_types::Node;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tarpc::client::{Channel, RpcError};
use tarpc::{ChannelError, RequestName, context};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::frame::FrameOptions;
use super::hello::{Accepted, Class, Hello, HelloError, Refusal, Service, greet};
use super::pool::Shared;
use super::transport::ClientWire;

/// Added to a call's deadline for the bound that travels to the server: our own clock decides first.
const SERVER_SLACK: Duration = Duration::from_millis(500);
/// After a connection broke: dials that follow one another this quickly, to tell a dead process (refused) from
/// a broken connection. The first can still meet the dying process's backlog, hence several.
const PROBES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
];
/// A connection that broke sooner counts as a flap; each flap in a row starts the dials at a later pause, so
/// that a peer which takes connections only to close them is not dialled in a tight loop.
const STEADY: Duration = Duration::from_secs(1);
/// The answer to a batch of one-way messages says only that it was queued. Each on its own would be half of all packets
/// between two nodes; gathered for this long they are few. An [`Outbox`](super::Outbox) has enough calls in flight not to
/// wait for them.
const ANSWERS_LINGER: Duration = Duration::from_millis(5);
/// A name server that does not answer costs a lookup at most this.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nobody listens there.
    #[error("connection refused")]
    ConnectionRefused,
    #[error("no answer within the dial's timeout")]
    Timeout,
    #[error("its name does not resolve: {0}")]
    Resolve(String),
    #[error("{0}")]
    Io(String),
    /// It answered the hello with a refusal.
    #[error("refused: {0}")]
    Refused(Refusal),
}

/// How a call ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// As many calls as allowed are under way on this connection. Not sent.
    #[error("too many calls to this peer are under way")]
    Busy,
    /// Not sent.
    #[error("not connected: {0}")]
    Unreachable(DialError),
    /// Not sent.
    #[error("the request is larger than a frame may be: {0}")]
    TooLarge(String),
    /// May have been executed, or may be still.
    #[error("no answer in time")]
    Timeout,
    /// May have been executed.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// The peer answered with an error of its transport: overload, a panic, an answer too large to send.
    /// May have been executed.
    #[error("the peer failed: {0}")]
    Remote(String),
    /// The answer belongs to another question: a broken peer. May have been executed.
    #[error("the peer answered another question")]
    Confused,
}

impl CallError {
    /// False only when the request surely never left this process.
    pub fn may_have_been_executed(&self) -> bool {
        !matches!(self, Self::Busy | Self::Unreachable(_) | Self::TooLarge(_))
    }
}

/// A connection to `node` for one class of one service.
pub(crate) struct Link<Req, Resp> {
    shared: Rc<Shared>,
    node: Node,
    service: Service,
    class: Class,
    slots: Semaphore,
    state: RefCell<State<Req, Resp>>,
    /// Told when a dial has ended.
    changed: Notify,
    /// Failed dials in a row.
    failures: Cell<u32>,
    /// Connections in a row that broke young.
    flaps: Cell<usize>,
    /// Incarnation of the last connection that broke, until the next one stands or the loss was reported.
    lost: Cell<Option<u64>>,
    /// Number of the connection, so that only the current one's end counts.
    generation: Cell<u64>,
}

enum State<Req, Resp> {
    Idle,
    Dialing,
    Up(Channel<Req, Resp>),
    Failed { why: DialError, until: Instant },
}

impl<Req, Resp> Link<Req, Resp>
where
    Req: RequestName + Serialize + 'static,
    Resp: DeserializeOwned + 'static,
{
    pub(crate) fn new(shared: Rc<Shared>, node: Node, service: Service, class: Class) -> Rc<Self> {
        let slots = Semaphore::new(shared.options.max_in_flight);
        Rc::new(Self {
            shared,
            node,
            service,
            class,
            slots,
            state: RefCell::new(State::Idle),
            changed: Notify::new(),
            failures: Cell::new(0),
            flaps: Cell::new(0),
            lost: Cell::new(None),
            generation: Cell::new(0),
        })
    }

    /// One call; `within` bounds all of it: dialling, queueing and the answer.
    pub(crate) async fn call(self: &Rc<Self>, within: Duration, request: Req) -> Result<Resp, CallError> {
        let work = async {
            let channel = self.connected().await?;
            self.call_on(channel, within, request).await
        };
        timeout(within, work).await.unwrap_or(Err(CallError::Timeout))
    }

    /// One call on a connection got by [`Self::connected`]. Sent on its first poll, so calls on one connection
    /// arrive in the order of their first polls. The caller bounds the time.
    pub(crate) async fn call_on(
        &self,
        channel: Channel<Req, Resp>,
        within: Duration,
        request: Req,
    ) -> Result<Resp, CallError> {
        let _slot = self.slots.try_acquire().map_err(|_| CallError::Busy)?;
        let mut context = context::current();
        context.deadline = StdInstant::now() + within + SERVER_SLACK;
        channel.call(context, request).await.map_err(|error| match error {
            RpcError::DeadlineExceeded => CallError::Timeout,
            RpcError::Server(error) => CallError::Remote(error.detail),
            RpcError::Send(error) => CallError::TooLarge(error.to_string()),
            RpcError::Shutdown => CallError::Lost("closed".into()),
            RpcError::Channel(error) => CallError::Lost(source_text(&error)),
        })
    }

    /// The connection, when there is one.
    pub(crate) fn standing(&self) -> Option<Channel<Req, Resp>> {
        match &*self.state.borrow() {
            State::Up(channel) => Some(channel.clone()),
            State::Idle | State::Dialing | State::Failed { .. } => None,
        }
    }

    /// The connection; dials when there is none and no pause holds.
    pub(crate) async fn connected(self: &Rc<Self>) -> Result<Channel<Req, Resp>, CallError> {
        loop {
            // Before the look at the state, so that no change is missed.
            let changed = self.changed.notified();
            let dial = match &*self.state.borrow() {
                State::Up(channel) => return Ok(channel.clone()),
                State::Failed { why, until } if Instant::now() < *until => {
                    return Err(CallError::Unreachable(why.clone()));
                }
                State::Dialing => false,
                State::Idle | State::Failed { .. } => true,
            };
            if dial {
                *self.state.borrow_mut() = State::Dialing;
                let link = self.clone();
                self.spawn(async move {
                    let outcome = link.dial().await;
                    link.settle(outcome);
                });
            }
            changed.await;
            // The dial that we waited for failed: that is our answer, whatever the pause.
            if let State::Failed { why, .. } = &*self.state.borrow() {
                return Err(CallError::Unreachable(why.clone()));
            }
        }
    }

    /// The node was heard from: a pause after failed dials makes no sense any more.
    pub(crate) fn end_pause(&self) {
        let mut state = self.state.borrow_mut();
        if matches!(*state, State::Failed { .. }) {
            self.failures.set(0);
            *state = State::Idle;
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), State::Up(_))
    }

    /// Runs `work` until the pool is closed.
    fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        let closed = self.shared.closed.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = work => {}
                () = closed.cancelled() => {}
            }
        });
    }

    async fn dial(&self) -> Result<(TcpStream, Accepted), DialError> {
        // Anew for each dial: a node that moved to another address is found again.
        let addresses = look_up(&self.node).await.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => DialError::Timeout,
            _ => DialError::Resolve(error.to_string()),
        })?;
        if addresses.is_empty() {
            return Err(DialError::Resolve("no address".into()));
        }
        let hello = Hello {
            cluster_id: self.shared.me.cluster_id(),
            from: self.shared.me.node.clone(),
            incarnation: self.shared.me.incarnation,
            service: self.service,
            class: self.class,
            to: self.node.clone(),
        };
        let meet = async {
            let mut stream = TcpStream::connect(&*addresses).await?;
            prepare_socket(&stream)?;
            set_user_timeout(&stream, self.class)?;
            let accepted = greet(&mut stream, &hello).await?;
            Ok::<_, HelloError>((stream, accepted))
        };
        match timeout(self.shared.options.dial_timeout, meet).await {
            Ok(Ok(met)) => Ok(met),
            Ok(Err(HelloError::Refused(refusal))) => Err(DialError::Refused(refusal)),
            Ok(Err(HelloError::Io(error))) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Err(DialError::ConnectionRefused)
            }
            Ok(Err(HelloError::Timeout)) | Err(_) => Err(DialError::Timeout),
            Ok(Err(error)) => Err(DialError::Io(error.to_string())),
        }
    }

    /// The end of a dial, or of a run of them.
    fn settle(self: &Rc<Self>, outcome: Result<(TcpStream, Accepted), DialError>) {
        match outcome {
            Ok((stream, accepted)) => self.install(stream, &accepted),
            Err(why) => self.fail(why),
        }
        self.changed.notify_waiters();
    }

    fn install(self: &Rc<Self>, stream: TcpStream, accepted: &Accepted) {
        let wire = ClientWire::new(stream, frame_options(self.class));
        let mut config = tarpc::client::Config::default();
        // Our own semaphore is the bound; tarpc would queue, and a queued call's deadline does not run.
        config.max_in_flight_requests = usize::MAX;
        config.pending_request_buffer = self.shared.options.max_in_flight;
        let client = tarpc::client::new(config, wire);
        *self.state.borrow_mut() = State::Up(client.client);
        self.failures.set(0);
        self.lost.set(None);
        self.generation.set(self.generation.get() + 1);
        let (generation, incarnation) = (self.generation.get(), accepted.incarnation);
        tracing::debug!(node = %self.node, class = ?self.class, incarnation, "peer connected");
        self.shared.note_up(&self.node, self.class, accepted);
        let link = self.clone();
        let dispatch = client.dispatch;
        let since = Instant::now();
        self.spawn(async move {
            let why = match dispatch.await {
                Ok(()) => "closed by the peer".to_owned(),
                Err(error) => source_text(&error),
            };
            if link.generation.get() == generation {
                link.flaps.set(if since.elapsed() < STEADY { link.flaps.get() + 1 } else { 0 });
                link.after_loss(incarnation, &why).await;
            }
        });
    }

    /// A standing connection broke: find out quickly whether the process is gone.
    async fn after_loss(self: &Rc<Self>, incarnation: u64, why: &str) {
        tracing::debug!(node = %self.node, class = ?self.class, why, "peer connection broke");
        *self.state.borrow_mut() = State::Dialing;
        self.lost.set(Some(incarnation));
        let mut outcome = Err(DialError::Io(why.to_owned()));
        let start = self.flaps.get().min(PROBES.len() - 1);
        for pause in &PROBES[start..] {
            sleep(*pause).await;
            outcome = self.dial().await;
            // Only a connection that was reset once more (the dying process's backlog) is worth another try.
            if !matches!(outcome, Err(DialError::Io(_))) {
                break;
            }
        }
        self.settle(outcome);
    }

    fn fail(&self, why: DialError) {
        let failures = self.failures.get();
        self.failures.set(failures.saturating_add(1));
        let options = &self.shared.options;
        let most = match self.class {
            Class::Control => options.control_pause_max,
            Class::Replication | Class::Bulk => options.pause_max,
        };
        let pause = options.pause_min.saturating_mul(1 << failures.min(10)).min(most);
        // Half to whole, so that the peers of a node that comes back do not all dial in the same instant.
        let pause = pause.mul_f64(rand::random_range(0.5..=1.0));
        tracing::debug!(node = %self.node, class = ?self.class, %why, failures, "dial failed");
        let refused = why == DialError::ConnectionRefused;
        *self.state.borrow_mut() = State::Failed { why, until: Instant::now() + pause };
        if refused && let Some(incarnation) = self.lost.take() {
            self.shared.note_reset_and_refused(&self.node, incarnation);
        }
    }
}

/// The text of what broke, not of the layer that noticed it.
fn source_text<E: std::fmt::Display + ?Sized>(error: &ChannelError<E>) -> String {
    match error {
        ChannelError::Read(e)
        | ChannelError::Ready(e)
        | ChannelError::Write(e)
        | ChannelError::Flush(e)
        | ChannelError::Close(e) => e.to_string(),
    }
}

/// The addresses of a node, as far as its name server tells them within three seconds; then `TimedOut`.
pub async fn look_up(node: &Node) -> io::Result<Vec<SocketAddr>> {
    if let Some((ip, port)) = node.ipv4() {
        return Ok(vec![(ip, port).into()]);
    }
    timeout(RESOLVE_TIMEOUT, lookup_host((node.host(), node.port()))).await?.map(Iterator::collect)
}

/// No Nagle delays; and a host that vanished without a word is noticed in seconds, by the kernel.
pub(crate) fn prepare_socket(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(3))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    set_user_timeout(stream, Class::Bulk)
}

/// How long sent data may stay unacknowledged by the other kernel. After that the dialer begins anew: a kernel sends lost
/// bytes again after ever longer pauses, so that a connection which outlives a cut of 3 s may be of no use for 3 s more,
/// and the group would need it for leases and prepares as soon as the cable is whole. Above the time after which
/// the group acts (`grace_ms`, 900 ms), so that nothing is broken that it would still have waited for.
fn set_user_timeout(stream: &TcpStream, class: Class) -> io::Result<()> {
    let ms = match class {
        Class::Control => 1_000,
        Class::Replication => 2_000,
        // A receiver may have to wait for its disk and take nothing meanwhile.
        Class::Bulk => 5_000,
    };
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, ms)?)
}

/// Of the dialer's end.
pub(crate) fn frame_options(class: Class) -> FrameOptions {
    let base = FrameOptions::default();
    match class {
        // Small and urgent.
        Class::Control => FrameOptions { read_chunk_bytes: 8 << 10, ..base },
        Class::Replication | Class::Bulk => base,
    }
}

/// Of the acceptor's end.
pub(crate) fn serve_options(class: Class) -> FrameOptions {
    let linger = (class == Class::Replication).then_some(ANSWERS_LINGER);
    FrameOptions { linger, ..frame_options(class) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_leases_and_prepares_need_is_given_up_soon_after_the_group_acts() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare_socket(&stream).unwrap();
        for (class, ms) in [(Class::Control, 1_000), (Class::Replication, 2_000), (Class::Bulk, 5_000)] {
            set_user_timeout(&stream, class).unwrap();
            assert_eq!(rustix::net::sockopt::tcp_user_timeout(&stream), Ok(ms), "{class:?}");
        }
    }
}
