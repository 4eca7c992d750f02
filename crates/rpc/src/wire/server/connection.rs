//! One accepted connection: a task that reads, decodes, calls the service and writes.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use pegasus_types::ErrorCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::WireServer;
use super::long_frame::LongFrame;
use super::reply::Outbox;
use crate::wire::frame::{FrameError, open_request, put_refusal, request_len};
use crate::wire::meta::{NegotiationMessage, SASL_AUTH_DISABLE};
use crate::wire::request::Request;
use crate::wire::thrift::DecodeError;

/// The shared read buffer; frames of one read are slices of it.
const SLAB_BYTES: usize = 256 << 10;
/// A read gets at least so much room; below it a new slab is made.
const MIN_READ: usize = 32 << 10;
/// A frame longer than this gets pages of its own when [`EARNEST`] of it has arrived; until then, and for others, a
/// buffer doubles.
const LONG: usize = 4 << 20;
/// What is claimed takes address space only, and at most 64 times as much as what has come and is counted.
const EARNEST: usize = 1 << 20;
/// Incomplete frames up to this size do not count against the bound over all connections.
const SMALL_PARTIAL: usize = 64 << 10;
/// A request that a connection may have in flight whatever others hold: most are shorter.
const SMALL_REQUEST: usize = 4 << 10;
/// Most bytes of one read: who sends a long frame at full speed must not keep the thread to himself.
const MAX_READ: usize = 256 << 10;
/// After so many reads the other tasks of the thread run.
const READS_PER_TURN: u32 = 4;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    #[error("closed by the client")]
    ByClient,
    #[error("this server is closing")]
    Shutdown,
    #[error("no progress in the middle of a frame or of an answer")]
    Stalled,
    #[error("it held the longest of too many unfinished requests, or took none of too many answers")]
    Overloaded,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(super) struct Connection {
    server: Rc<WireServer>,
    outbox: Rc<Outbox>,
    stream: TcpStream,
    /// Bytes read and not yet decoded: complete frames that may not be taken yet, or an incomplete one.
    input: BytesMut,
    /// A long frame that is arriving, or may not be taken yet; then `input` is empty.
    long: Option<LongFrame>,
    /// The client sends no more.
    eof: bool,
    stall: Option<Pin<Box<Sleep>>>,
    /// Since the stall timer was set.
    progress: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.outbox.close();
        self.server.set_partial(&self.outbox, 0);
        self.server.take_unread(self.outbox.out.take().len());
    }
}

impl Connection {
    pub fn new(server: Rc<WireServer>, outbox: Rc<Outbox>, stream: TcpStream) -> Self {
        let (input, eof, stall, progress) = (BytesMut::new(), false, None, true);
        Self { server, outbox, stream, input, long: None, eof, stall, progress }
    }

    pub async fn run(mut self) -> Closed {
        poll_fn(|cx| self.poll(cx)).await.err().unwrap_or(Closed::ByClient)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let result = self.turn(cx);
        if result.is_pending() {
            let mut waker = self.outbox.waker.borrow_mut();
            waker.get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
        }
        result
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        // No wake-up is needed for answers that come while this runs.
        *self.outbox.waker.borrow_mut() = None;
        let mut reads = 0;
        loop {
            let waiting = self.take_frames()?;
            if self.outbox.evicted.get() {
                return Poll::Ready(Err(Closed::Overloaded));
            }
            let flushed = self.poll_flush(cx)?.is_ready();
            let closing = self.server.closing.get();
            if (self.eof || closing)
                && flushed
                && self.outbox.in_flight.get() == 0
                && (waiting.is_none() || closing)
            {
                return Poll::Ready(if self.eof { Ok(()) } else { Err(Closed::Shutdown) });
            }
            let may_go_on = self.may_take(waiting.unwrap_or(0));
            let may_read = may_go_on && waiting.is_none() && !self.eof;
            self.outbox.blocked.set(!may_read);
            if may_read {
                reads += 1;
                if reads > READS_PER_TURN {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if self.poll_fill(cx)?.is_ready() {
                    continue;
                }
            } else if may_go_on && waiting.is_some() {
                continue;
            } else if !self.server.has_room_for_requests() {
                self.server.wait(&self.outbox);
            }
            let has_begun = !self.input.is_empty() || self.long.is_some();
            return self.poll_stall(cx, !flushed || (may_read && has_begun));
        }
    }

    /// Whether another request, of so many bytes, may be decoded now.
    fn may_take(&self, bytes: usize) -> bool {
        let (limits, in_flight) = (&self.server.limits, self.outbox.in_flight.get());
        !self.server.closing.get()
            && !self.outbox.evicted.get()
            && in_flight < limits.in_flight
            && self.outbox.in_flight_bytes.get() < limits.in_flight_bytes
            && self.outbox.has_room()
            && (self.server.has_room_for_requests() || (in_flight == 0 && bytes <= SMALL_REQUEST))
    }

    /// Hands complete frames to the service. What is left begins with a complete one of the returned length that
    /// may not be taken yet, or with none.
    fn take_frames(&mut self) -> Result<Option<usize>, Closed> {
        loop {
            let whole = match &self.long {
                Some(long) => long.is_whole().then_some(long.len()),
                None => request_len(&self.input)?.filter(|&total| total <= self.input.len()),
            };
            let Some(total) = whole else {
                self.settle_input();
                return Ok(None);
            };
            if !self.may_take(total) {
                self.count_input();
                return Ok(Some(total));
            }
            let frame = match self.long.take() {
                Some(long) => long.finish(),
                None => self.input.split_to(total).freeze(),
            };
            self.call(frame)?;
        }
    }

    fn call(&mut self, frame: Bytes) -> Result<(), Closed> {
        let frame_bytes = frame.len();
        let mut request = open_request(frame)?;
        let Some(rpc) = request.rpc else {
            if !request.oneway {
                let (name, seqid) = (&request.unknown, request.head.seqid);
                self.outbox.append(|out| put_refusal(out, name, seqid, ErrorCode::HandlerNotFound));
            }
            return Ok(());
        };
        let reply = self.outbox.begin(&request.head, rpc, frame_bytes, request.oneway);
        match Request::decode(rpc, &mut request.args) {
            Ok(Request::Negotiation(_)) => {
                reply.negotiation(NegotiationMessage { status: SASL_AUTH_DISABLE, ..Default::default() });
            }
            Ok(decoded) => self.server.service.call(request.head, request.body_len, decoded, reply),
            Err(why) => refuse_malformed(reply, why),
        }
        Ok(())
    }

    /// An incomplete frame moves out of the shared buffer, so that a slow client does not pin it; nothing at
    /// all holds no buffer.
    fn settle_input(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        } else if self.outbox.partial.get() == 0 && self.input.len() <= SMALL_PARTIAL {
            self.input = BytesMut::from(&self.input[..]);
        }
        self.count_input();
    }

    fn count_input(&mut self) {
        let held = match &self.long {
            Some(long) => long.len(),
            None if self.input.capacity() > SMALL_PARTIAL => self.input.capacity(),
            None => 0,
        };
        if held != self.outbox.partial.get() {
            self.server.set_partial(&self.outbox, held);
        }
    }

    /// Reads once. Ready when bytes or the end arrived.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let len = self.input.len();
        let total = request_len(&self.input)?;
        if let Some(total) = total.filter(|&total| len >= EARNEST && total > LONG) {
            self.long = Some(LongFrame::begin(&std::mem::take(&mut self.input), total)?);
        }
        let n = if let Some(long) = &mut self.long {
            let mut next = ReadBuf::new(long.next(MAX_READ));
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut next))?;
            let n = next.filled().len();
            long.filled(n);
            n
        } else if self.input.is_empty() {
            let mut slab = self.server.slab.borrow_mut();
            if slab.capacity() < MIN_READ {
                slab.reserve(SLAB_BYTES);
            }
            let n = ready!(pin!(self.stream.read_buf(&mut *slab)).poll(cx))?;
            self.input = slab.split();
            n
        } else {
            let missing = total.map_or(MIN_READ, |total| total.saturating_sub(len));
            self.input.reserve(missing.min(len.max(MIN_READ)));
            ready!(pin!(self.stream.read_buf(&mut (&mut self.input).limit(MAX_READ))).poll(cx))?
        };
        self.progress = true;
        self.eof = n == 0;
        Poll::Ready(Ok(()))
    }

    /// Writes what is in the outbox. Ready when it is empty.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let mut out = self.outbox.out.borrow_mut();
        if out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let before = out.len();
        while !out.is_empty() {
            let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, out.next()) else { break };
            let n = written?;
            if n == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            out.written(&self.server.spare, n);
        }
        let left = out.len();
        if left < before {
            self.progress = true;
            self.server.take_unread(before - left);
            self.outbox.room.notify_waiters();
        }
        if left == 0 {
            self.outbox.stuck_since.set(None);
            return Poll::Ready(Ok(()));
        }
        if left < before || self.outbox.stuck_since.get().is_none() {
            self.outbox.stuck_since.set(Some(Instant::now()));
        }
        Poll::Pending
    }

    /// Watches a connection that owes us bytes or does not take ours.
    fn poll_stall(&mut self, cx: &mut Context<'_>, waiting: bool) -> Poll<Result<(), Closed>> {
        if !waiting {
            self.stall = None;
            return Poll::Pending;
        }
        let deadline = Instant::now() + self.server.limits.stall;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if std::mem::take(&mut self.progress) {
            stall.as_mut().reset(deadline);
        }
        match stall.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Closed::Stalled)),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn refuse_malformed(reply: super::ReplyTo, why: DecodeError) {
    tracing::debug!(?reply, %why, "request that does not decode");
    reply.error(ErrorCode::InvalidData);
}
