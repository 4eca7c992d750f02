//! The acceptor's side of a connection: requests are run in the order in which they came.
//!
//! A handler that needs not wait runs to its end right where its request was decoded; so one-way batches are
//! taken in the order in which the peer sent them. A handler that waits goes on in a task of its own, to its
//! end: neither a deadline nor a lost connection drops it half-way, only its answer is thrown away then.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures::{Future, FutureExt, Sink, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tarpc::server::{BaseChannel, Serve, TrackedRequest};
use tarpc::{ChannelError, Response, ServerError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::frame::FrameError;
use super::hello::{HelloError, Identity, Refusal, Remote, Service, admit};
use super::link::prepare_socket;
use super::transport::ServerWire;

/// Handlers of one connection that may wait at a time; a request beyond it is answered with an error. Dialers
/// keep less than this in flight, so only a broken or strange one meets it.
pub const MAX_WAITING: usize = 1024;
/// At shutdown, running handlers get this long to bring their answers onto the wire.
pub const DRAIN: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Frame(Arc<FrameError>),
}

impl From<ChannelError<FrameError>> for ServeError {
    fn from(error: ChannelError<FrameError>) -> Self {
        match error {
            ChannelError::Read(e)
            | ChannelError::Ready(e)
            | ChannelError::Write(e)
            | ChannelError::Flush(e)
            | ChannelError::Close(e) => Self::Frame(e),
        }
    }
}

/// The beginning of an accepted connection, up to who dialled. Who is of another release is told of in the log: whoever
/// looks there alone asks why a node that runs is not taken in.
pub(crate) async fn take_in(
    stream: &mut TcpStream,
    me: &Identity,
    service: Service,
) -> Result<Remote, HelloError> {
    prepare_socket(stream)?;
    let remote = admit(stream, me, service).await;
    if let Err(error @ HelloError::Refused(Refusal::OtherVersion(_))) = &remote {
        let from = stream.peer_addr().map_or_else(|_| "somebody".to_owned(), |from| from.to_string());
        tracing::warn!(from, %error, "a peer of another release was turned away");
    }
    remote
}

/// Serves one connection until the dialer closes it, it breaks, or `shutdown` is cancelled. Runs in a LocalSet.
pub(crate) async fn drive<S, V>(
    wire: ServerWire<S, V::Req, V::Resp>,
    serve: V,
    shutdown: &CancellationToken,
) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    V: Serve + Clone + 'static,
    V::Req: DeserializeOwned + 'static,
    V::Resp: Serialize + 'static,
{
    let (finished, answers) = mpsc::unbounded_channel();
    let channel = BaseChannel::with_defaults(wire);
    let mut driver = Driver { channel, serve, finished, answers, waiting: Rc::default() };
    let stopped = tokio::select! {
        ended = poll_fn(|cx| driver.poll(cx, Taking::Yes)) => return ended,
        () = shutdown.cancelled() => timeout(DRAIN, poll_fn(|cx| driver.poll(cx, Taking::No))),
    };
    stopped.await.unwrap_or(Ok(()))
}

/// Are new requests taken?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taking {
    Yes,
    /// No; done when no handler is running.
    No,
}

type ServerChannel<S, Req, Resp> = BaseChannel<Req, Resp, ServerWire<S, Req, Resp>>;

struct Driver<S, V: Serve> {
    channel: ServerChannel<S, V::Req, V::Resp>,
    serve: V,
    /// Answers of the handlers that had to wait; bounded by [`MAX_WAITING`].
    finished: mpsc::UnboundedSender<Response<V::Resp>>,
    answers: mpsc::UnboundedReceiver<Response<V::Resp>>,
    waiting: Rc<Cell<usize>>,
}

impl<S, V> Driver<S, V>
where
    S: AsyncRead + AsyncWrite + Unpin,
    V: Serve + Clone + 'static,
    V::Req: DeserializeOwned + 'static,
    V::Resp: Serialize + 'static,
{
    fn poll(&mut self, cx: &mut Context<'_>, taking: Taking) -> Poll<Result<(), ServeError>> {
        loop {
            // Room for an answer first: who does not read its answers is not read from either.
            ready!(Pin::new(&mut self.channel).poll_ready(cx))?;
            if let Poll::Ready(Some(response)) = self.answers.poll_recv(cx) {
                Pin::new(&mut self.channel).start_send(response)?;
                continue;
            }
            if taking == Taking::No {
                ready!(Pin::new(&mut self.channel).poll_flush(cx))?;
                return if self.waiting.get() == 0 { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            match Pin::new(&mut self.channel).poll_next(cx)? {
                Poll::Ready(Some(request)) => {
                    if let Some(response) = self.begin(request) {
                        Pin::new(&mut self.channel).start_send(response)?;
                    }
                }
                Poll::Ready(None) => {
                    ready!(Pin::new(&mut self.channel).poll_flush(cx))?;
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => {
                    ready!(Pin::new(&mut self.channel).poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
    }

    /// Runs the handler; None when it has to wait and will answer later.
    fn begin(&self, tracked: TrackedRequest<V::Req>) -> Option<Response<V::Resp>> {
        let request_id = tracked.request.id;
        let Some(waiting) = Waiting::enter(&self.waiting) else {
            return Some(Response { request_id, message: Err(failure("too many requests are waiting")) });
        };
        let work = self.serve.clone().serve(tracked.request.context, tracked.request.message);
        let mut work = Box::pin(AssertUnwindSafe(work).catch_unwind());
        let respond = move |result: std::thread::Result<Result<V::Resp, ServerError>>| {
            let message = result.unwrap_or_else(|_| {
                tracing::error!("a handler of a peer's request panicked");
                Err(failure("its handler failed"))
            });
            Response { request_id, message }
        };
        if let Poll::Ready(result) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(respond(result));
        }
        let finished = self.finished.clone();
        tokio::task::spawn_local(async move {
            let response = respond(work.await);
            // Counted out before the answer is sent: the driver looks at the count when it gets the answer.
            drop(waiting);
            // The connection may be gone by now; then nobody wants the answer.
            let _ = finished.send(response);
        });
        None
    }
}

fn failure(text: &str) -> ServerError {
    ServerError::new(io::ErrorKind::Other, text.to_owned())
}

/// Counts one waiting handler while it lives.
struct Waiting(Rc<Cell<usize>>);

impl Waiting {
    fn enter(count: &Rc<Cell<usize>>) -> Option<Self> {
        (count.get() < MAX_WAITING).then(|| {
            count.set(count.get() + 1);
            Self(count.clone())
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
