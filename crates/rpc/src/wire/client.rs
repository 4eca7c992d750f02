//! The client side: one connection to one server, shared by any number of callers.
//!
//! ```text
//!  call --encode--> out --writer task--> socket --reader task--> pending[seqid] --> caller decodes
//! ```
//!
//! Requests are pipelined; whatever gathers while the socket is busy leaves in one write. A call that fails
//! says whether the server can have seen the request ([`CallError::is_unclear`]).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::codes::Rpc;
use super::frame::{FrameError, HeaderVersion, Refusal, RequestHead, open_reply, reply_len};
use super::request::{Request, Response};
use super::thrift::{DecodeError, Writer};

/// Calls that one connection has in flight; more are refused, not queued.
pub const MAX_PENDING: usize = 16 << 10;
/// Encoded requests that the socket has not taken; more are refused.
const MAX_OUT_BYTES: usize = 64 << 20;
/// Room for one read; grows with the reply that is being received.
const READ_BYTES: usize = 64 << 10;

/// Why a call brought no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server answered with an error in the header: it did not do what was asked.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The request never left completely, so the server cannot have executed it.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The connection ended before the answer came.
    #[error("connection lost: {0}")]
    Lost(String),
    #[error("no answer in time")]
    Timeout,
    #[error("answer that does not decode: {0}")]
    Malformed(#[from] DecodeError),
}

impl CallError {
    /// The request may have been executed although the caller does not know.
    pub const fn is_unclear(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Timeout | Self::Malformed(_))
    }
}

/// A connection to one server. Clones share it; it closes when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    _tasks: Arc<Tasks>,
}

#[derive(Debug)]
struct Tasks([JoinHandle<()>; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Debug)]
struct Shared {
    peer: SocketAddr,
    state: Mutex<State>,
    has_out: Notify,
}

#[derive(Debug, Default)]
struct State {
    last_seqid: i32,
    pending: HashMap<i32, Pending>,
    out: BytesMut,
    /// Bytes of requests ever put into `out`, and ever taken from it to be written.
    put: u64,
    taken: u64,
    /// Since when an answer is owed and nothing at all was heard.
    silent_since: Option<Instant>,
    /// Anything was ever heard.
    heard: bool,
    /// Why the connection is of no use any more.
    dead: Option<String>,
}

#[derive(Debug)]
struct Pending {
    /// Where the request ends, counted like `put`.
    end: u64,
    answer: oneshot::Sender<Result<Bytes, CallError>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it; a poisoned state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn die(&self, why: &str) {
        let mut state = self.state();
        if state.dead.is_some() {
            return;
        }
        state.dead = Some(why.to_owned());
        state.out = BytesMut::new();
        let taken = state.taken;
        for (_, pending) in state.pending.drain() {
            let error = if pending.end > taken { CallError::NotSent } else { CallError::Lost };
            // A caller that has given up is no error.
            let _ = pending.answer.send(Err(error(why.to_owned())));
        }
        drop(state);
        self.has_out.notify_one();
    }
}

/// Takes the entry out when its caller gives up.
struct Forget<'a>(&'a Shared, i32);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.state().pending.remove(&self.1);
    }
}

impl Connection {
    pub async fn connect(peer: SocketAddr, within: Duration) -> io::Result<Self> {
        let stream =
            timeout(within, TcpStream::connect(peer)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let shared = Arc::new(Shared { peer, state: Mutex::default(), has_out: Notify::new() });
        let tasks =
            [tokio::spawn(run_reader(shared.clone(), read)), tokio::spawn(run_writer(shared.clone(), write))];
        Ok(Self { shared, _tasks: Arc::new(Tasks(tasks)) })
    }

    pub fn peer(&self) -> SocketAddr {
        self.shared.peer
    }

    /// False once it is of no use any more; then every call fails with [`CallError::NotSent`].
    pub fn is_alive(&self) -> bool {
        self.shared.state().dead.is_none()
    }

    pub fn in_flight(&self) -> usize {
        self.shared.state().pending.len()
    }

    /// For how long the server has owed an answer, any answer, and sent none. Zero when it owes nothing. Calls that were
    /// given up meanwhile do not end it: only the server does.
    pub fn silent_for(&self) -> Duration {
        self.shared.state().silent_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The server has answered something, ever.
    pub fn has_heard(&self) -> bool {
        self.shared.state().heard
    }

    /// Sends a request and waits for its response. `head.seqid` is chosen here; `head.client_timeout_ms` of 0
    /// is replaced by `within`. A backup read takes the v1 header, everything else v0.
    pub async fn call(
        &self,
        head: RequestHead,
        request: &Request,
        within: Duration,
    ) -> Result<Response, CallError> {
        let rpc = request.rpc();
        let (answer, received) = oneshot::channel();
        let seqid = self.put(head, request, within, Some(answer))?;
        let _forget = Forget(&self.shared, seqid);
        let frame = match timeout(within, received).await {
            Ok(Ok(answer)) => answer?,
            Ok(Err(_)) => return Err(CallError::Lost("connection dropped".to_owned())),
            Err(_) => return Err(CallError::Timeout),
        };
        let mut reply = open_reply(frame).map_err(|_| DecodeError::Truncated)?;
        match reply.refusal.take() {
            Some(refusal) => Err(CallError::Refused(refusal)),
            None => Ok(Response::decode(rpc, reply)?),
        }
    }

    /// Sends a request that has no answer ([`Rpc::ClearScanner`]).
    pub fn send(&self, head: RequestHead, request: &Request) -> Result<(), CallError> {
        debug_assert_eq!(request.rpc(), Rpc::ClearScanner);
        self.put(head, request, Duration::ZERO, None).map(drop)
    }

    fn put(
        &self,
        mut head: RequestHead,
        request: &Request,
        within: Duration,
        answer: Option<oneshot::Sender<Result<Bytes, CallError>>>,
    ) -> Result<i32, CallError> {
        let mut state = self.shared.state();
        if let Some(why) = &state.dead {
            return Err(CallError::NotSent(why.clone()));
        }
        if state.pending.len() >= MAX_PENDING || state.out.len() >= MAX_OUT_BYTES {
            return Err(CallError::NotSent("too many requests in flight on this connection".to_owned()));
        }
        // Long before a number comes round again its call has timed out.
        state.last_seqid = state.last_seqid.checked_add(1).unwrap_or(1);
        head.seqid = state.last_seqid;
        if head.client_timeout_ms == 0 {
            head.client_timeout_ms = u32::try_from(within.as_millis()).unwrap_or(0);
        }
        let version = if head.is_backup { HeaderVersion::V1 } else { HeaderVersion::V0 };
        let before = state.out.len();
        request.encode(&mut Writer::new(&mut state.out), version, &head);
        state.put += (state.out.len() - before) as u64;
        if let Some(answer) = answer {
            let end = state.put;
            state.pending.insert(head.seqid, Pending { end, answer });
            state.silent_since.get_or_insert_with(Instant::now);
        }
        drop(state);
        if before == 0 {
            self.shared.has_out.notify_one();
        }
        Ok(head.seqid)
    }
}

async fn run_writer(shared: Arc<Shared>, mut socket: OwnedWriteHalf) {
    let mut batch = BytesMut::new();
    loop {
        {
            let mut state = shared.state();
            if state.dead.is_some() {
                return;
            }
            std::mem::swap(&mut state.out, &mut batch);
            // Before the write: the server may act on bytes before we learn that they are gone.
            state.taken += batch.len() as u64;
        }
        if batch.is_empty() {
            shared.has_out.notified().await;
            continue;
        }
        while !batch.is_empty() {
            match socket.write_buf(&mut batch).await {
                Ok(0) => return shared.die("the socket takes no more bytes"),
                Ok(_) => {}
                Err(error) => return shared.die(&error.to_string()),
            }
        }
    }
}

async fn run_reader(shared: Arc<Shared>, mut socket: OwnedReadHalf) {
    let why = read_replies(&shared, &mut socket).await;
    shared.die(&why);
}

/// Hands replies to their callers until the connection ends; says why it did.
async fn read_replies(shared: &Shared, socket: &mut OwnedReadHalf) -> String {
    let mut input = BytesMut::new();
    loop {
        input.reserve(READ_BYTES);
        match socket.read_buf(&mut input).await {
            Ok(0) => return "closed by the server".to_owned(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
        if let Err(error) = deliver(shared, &mut input) {
            return format!("no sense in what the server sends: {error}");
        }
    }
}

fn deliver(shared: &Shared, input: &mut BytesMut) -> Result<(), FrameError> {
    while let Some(len) = reply_len(input)?.filter(|&len| len <= input.len()) {
        let frame = input.split_to(len).freeze();
        let seqid = open_reply(frame.clone())?.seqid;
        let pending = {
            let mut state = shared.state();
            let pending = state.pending.remove(&seqid);
            state.heard = true;
            state.silent_since = (!state.pending.is_empty()).then(Instant::now);
            pending
        };
        // No entry: the caller has given up.
        if let Some(pending) = pending {
            let _ = pending.answer.send(Ok(frame));
        }
    }
    Ok(())
}
