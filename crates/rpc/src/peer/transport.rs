//! tarpc's messages over our frames.
//!
//! ```text
//! request  1 | id u64 | deadline_ms u32 | postcard(request)
//! cancel   2 | id u64
//! answer   3 | id u64 | postcard(response)
//! failure  4 | id u64 | text
//! ```
//!
//! The envelope is ours and not tarpc's own serde form: it is smaller, does not change with the library, and a
//! deadline from outside cannot overflow a clock. Payload bytes inside a message are slices of its frame.

use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use pegasus_types::blob;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tarpc::{ClientMessage, Request, Response, ServerError, context};
use tokio::io::{AsyncRead, AsyncWrite};

use super::frame::{FrameBuilder, FrameError, FrameIo, FrameOptions};

const REQUEST: u8 = 1;
const CANCEL: u8 = 2;
const ANSWER: u8 = 3;
const FAILURE: u8 = 4;
/// An error text that is longer is cut.
const MAX_FAILURE_TEXT: usize = 1 << 10;

/// The dialer's end: requests out, responses in.
#[derive(Debug)]
pub(crate) struct ClientWire<S, Req, Resp> {
    frames: FrameIo<S>,
    messages: PhantomData<fn(Req) -> Resp>,
}

/// The acceptor's end: requests in, responses out.
#[derive(Debug)]
pub(crate) struct ServerWire<S, Req, Resp> {
    frames: FrameIo<S>,
    /// Only its deadline differs from request to request; making a new one costs a random number.
    context: context::Context,
    messages: PhantomData<fn(Req) -> Resp>,
}

impl<S: AsyncRead + AsyncWrite + Unpin, Req, Resp> ClientWire<S, Req, Resp> {
    pub(crate) fn new(io: S, options: FrameOptions) -> Self {
        Self { frames: FrameIo::new(io, options), messages: PhantomData }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, Req, Resp> ServerWire<S, Req, Resp> {
    pub(crate) fn new(io: S, options: FrameOptions) -> Self {
        Self { frames: FrameIo::new(io, options), context: context::current(), messages: PhantomData }
    }
}

fn put_head(to: &mut FrameBuilder<'_>, kind: u8, id: u64) -> Result<(), postcard::Error> {
    to.put(&[kind])?;
    to.put(&id.to_le_bytes())
}

fn put_body<T: Serialize>(to: &mut FrameBuilder<'_>, message: &T) -> Result<(), postcard::Error> {
    postcard::serialize_with_flavor(message, to)
}

fn take_head(frame: &mut Bytes) -> Result<(u8, u64), FrameError> {
    let kind = frame.try_get_u8();
    let id = frame.try_get_u64_le();
    match (kind, id) {
        (Ok(kind), Ok(id)) => Ok((kind, id)),
        _ => Err(FrameError::Unexpected("frame without a head")),
    }
}

fn take_body<T: DeserializeOwned>(body: &Bytes) -> Result<T, FrameError> {
    match blob::decode_within(body, || postcard::take_from_bytes(body))? {
        (message, []) => Ok(message),
        _ => Err(FrameError::Unexpected("bytes after the message")),
    }
}

impl<S, Req: Serialize, Resp> ClientWire<S, Req, Resp>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn queue(&mut self, message: &ClientMessage<Req>) -> Result<(), FrameError> {
        self.frames.queue(|to| match message {
            ClientMessage::Request(request) => {
                let left = request.context.deadline.saturating_duration_since(Instant::now());
                put_head(to, REQUEST, request.id)?;
                to.put(&u32::try_from(left.as_millis()).unwrap_or(u32::MAX).to_le_bytes())?;
                put_body(to, &request.message)
            }
            ClientMessage::Cancel { request_id, .. } => put_head(to, CANCEL, *request_id),
            _ => Err(postcard::Error::WontImplement),
        })
    }
}

impl<S, Req, Resp: Serialize> ServerWire<S, Req, Resp>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn queue(&mut self, response: &Response<Resp>) -> Result<(), FrameError> {
        match &response.message {
            Ok(answer) => {
                let queued = self.frames.queue(|to| {
                    put_head(to, ANSWER, response.request_id)?;
                    put_body(to, answer)
                });
                match queued {
                    // The one caller gets an error; the connection and everybody else's calls go on.
                    Err(error @ (FrameError::TooLarge { .. } | FrameError::Malformed(_))) => self
                        .queue_failure(response.request_id, &format!("its answer cannot be sent: {error}")),
                    other => other,
                }
            }
            Err(error) => self.queue_failure(response.request_id, &error.detail),
        }
    }

    fn queue_failure(&mut self, id: u64, text: &str) -> Result<(), FrameError> {
        let text = &text.as_bytes()[..text.len().min(MAX_FAILURE_TEXT)];
        self.frames.queue(|to| {
            put_head(to, FAILURE, id)?;
            to.put(text)
        })
    }
}

fn decode_response<Resp: DeserializeOwned>(mut frame: Bytes) -> Result<Response<Resp>, FrameError> {
    let (kind, request_id) = take_head(&mut frame)?;
    let message = match kind {
        ANSWER => Ok(take_body(&frame)?),
        FAILURE => Err(ServerError::new(io::ErrorKind::Other, String::from_utf8_lossy(&frame).into_owned())),
        _ => return Err(FrameError::Unexpected("unknown kind of frame")),
    };
    Ok(Response { request_id, message })
}

fn decode_request<Req: DeserializeOwned>(
    mut frame: Bytes,
    mut context: context::Context,
) -> Result<ClientMessage<Req>, FrameError> {
    let (kind, id) = take_head(&mut frame)?;
    match kind {
        REQUEST => {
            let left =
                frame.try_get_u32_le().map_err(|_| FrameError::Unexpected("request without deadline"))?;
            context.deadline = Instant::now() + Duration::from_millis(left.into());
            Ok(ClientMessage::Request(Request { context, id, message: take_body(&frame)? }))
        }
        CANCEL => Ok(ClientMessage::Cancel { trace_context: context.trace_context, request_id: id }),
        _ => Err(FrameError::Unexpected("unknown kind of frame")),
    }
}

impl<S, Req, Resp> Stream for ClientWire<S, Req, Resp>
where
    S: AsyncRead + AsyncWrite + Unpin,
    Resp: DeserializeOwned,
{
    type Item = Result<Response<Resp>, FrameError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let frame = ready!(self.frames.poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.and_then(decode_response)))
    }
}

impl<S, Req, Resp> Stream for ServerWire<S, Req, Resp>
where
    S: AsyncRead + AsyncWrite + Unpin,
    Req: DeserializeOwned,
{
    type Item = Result<ClientMessage<Req>, FrameError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let frame = ready!(self.frames.poll_frame(cx));
        let context = self.context;
        Poll::Ready(frame.map(|frame| frame.and_then(|frame| decode_request(frame, context))))
    }
}

macro_rules! sink {
    ($wire:ident, $out:ty, $serialized:ident) => {
        impl<S, Req, Resp> Sink<$out> for $wire<S, Req, Resp>
        where
            S: AsyncRead + AsyncWrite + Unpin,
            $serialized: Serialize,
        {
            type Error = FrameError;

            fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), FrameError>> {
                self.frames.poll_room(cx)
            }

            fn start_send(mut self: Pin<&mut Self>, message: $out) -> Result<(), FrameError> {
                self.queue(&message)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), FrameError>> {
                self.frames.poll_flush(cx)
            }

            fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), FrameError>> {
                self.frames.poll_close(cx)
            }
        }
    };
}
sink!(ClientWire, ClientMessage<Req>, Req);
sink!(ServerWire, Response<Resp>, Resp);

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use futures::{SinkExt, StreamExt};
    use pegasus_types::learn::RowsChunk;
    use pegasus_types::message::{Envelope, Message};
    use pegasus_types::{Ballot, Decree, Gpid, Mutation};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn prepare(value: usize) -> Envelope {
        let gpid = Gpid::new(2, 1);
        let body = Bytes::from(vec![7u8; value]);
        let mutation = Mutation::new(gpid, Decree(5), Ballot(3), 11, body);
        Envelope { gpid, ballot: Ballot(3), message: Message::Prepare { mutation, committed: Decree(4) } }
    }

    fn encoded<T: Serialize>(message: &T) -> Bytes {
        let mut frame = BytesMut::from(&[REQUEST, 9, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0][..]);
        frame.extend(postcard::to_stdvec(message).unwrap());
        frame.freeze()
    }

    #[test]
    fn payloads_are_slices_of_the_frame() {
        let batch = vec![prepare(1024), prepare(10_000)];
        let frame = encoded(&batch);
        let inside = frame.as_ptr_range();
        let message = decode_request::<Vec<Envelope>>(frame, context::current()).unwrap();
        let ClientMessage::Request(request) = message else { panic!("{message:?}") };
        assert_eq!(request.message, batch);
        for envelope in &request.message {
            let Message::Prepare { mutation, .. } = &envelope.message else { panic!() };
            let body = mutation.body.as_ptr_range();
            assert!(inside.start <= body.start && body.end <= inside.end, "the body was copied");
            assert!(mutation.verify());
        }

        let chunk = RowsChunk { body: vec![1; 5000].into(), crc: 1, last_key: None, done: true };
        let mut frame = encoded(&chunk);
        frame.advance(13);
        let inside = frame.as_ptr_range();
        let decoded: RowsChunk = take_body(&frame).unwrap();
        assert_eq!(decoded, chunk);
        assert!(inside.contains(&decoded.body.as_ptr()), "the body was copied");
    }

    #[test]
    fn without_a_frame_payloads_are_copied() {
        let bytes = postcard::to_stdvec(&prepare(100)).unwrap();
        let decoded: Envelope = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(decoded, prepare(100));
    }

    #[tokio::test]
    async fn payloads_that_crossed_a_socket_lie_in_one_read_buffer() {
        let (a, b) = duplex(1 << 20);
        let mut a = ClientWire::<_, Vec<Envelope>, ()>::new(a, FrameOptions::default());
        let mut b = ServerWire::<_, Vec<Envelope>, ()>::new(b, FrameOptions::default());
        let mut context = context::current();
        context.deadline = Instant::now() + Duration::from_secs(3);
        let batch = vec![prepare(1024); 20];
        a.send(ClientMessage::Request(Request { context, id: 3, message: batch.clone() })).await.unwrap();
        let Some(Ok(ClientMessage::Request(request))) = b.next().await else { panic!() };
        assert_eq!((request.id, &request.message), (3, &batch));
        let left = request.context.deadline - Instant::now();
        assert!(left > Duration::from_secs(2) && left <= Duration::from_secs(3), "{left:?}");
        let at: Vec<usize> = request
            .message
            .iter()
            .map(|e| match &e.message {
                Message::Prepare { mutation, .. } => mutation.body.as_ptr() as usize,
                other => panic!("{other:?}"),
            })
            .collect();
        // Copies would lie where the allocator likes; slices lie one after the other, a header apart.
        assert!(at.windows(2).all(|w| w[1] > w[0] + 1024 && w[1] < w[0] + 1024 + 64), "{at:?}");
    }

    #[tokio::test]
    async fn an_answer_above_the_bound_becomes_an_error_of_that_caller() {
        let (a, b) = duplex(1 << 20);
        let options = FrameOptions { max_frame_bytes: 200, ..FrameOptions::default() };
        let mut a = ClientWire::<_, (), Bytes>::new(a, options);
        let mut b = ServerWire::<_, (), Bytes>::new(b, options);
        for (request_id, size) in [(1, 100), (2, 300), (3, 100)] {
            b.send(Response { request_id, message: Ok(Bytes::from(vec![0; size])) }).await.unwrap();
        }
        let mut got = Vec::new();
        for _ in 0..3 {
            let response = a.next().await.unwrap().unwrap();
            got.push((response.request_id, response.message.map(|b| b.len()).map_err(|e| e.detail)));
        }
        assert_eq!((&got[0], &got[2]), (&(1, Ok(100)), &(3, Ok(100))));
        assert!(got[1].1.as_ref().is_err_and(|text| text.contains("larger than 200")), "{got:?}");
    }

    #[tokio::test]
    async fn malformed_frames_end_the_stream_without_panic() {
        let huge_deadline = [&[1u8][..], &[0; 8], &[0xff; 4], &[0xff; 9]].concat();
        let frames: &[&[u8]] = &[b"", b"\x01", &[9; 9], &[1; 9], &[3; 9], &huge_deadline];
        for frame in frames {
            let (mut raw, b) = duplex(1 << 10);
            let mut b = ServerWire::<_, Vec<Envelope>, ()>::new(b, FrameOptions::default());
            raw.write_u32_le(u32::try_from(frame.len()).unwrap()).await.unwrap();
            raw.write_all(frame).await.unwrap();
            assert!(b.next().await.unwrap().is_err(), "{frame:?}");
        }
        let (mut raw, a) = duplex(1 << 10);
        let mut a = ClientWire::<_, (), Vec<Envelope>>::new(a, FrameOptions::default());
        raw.write_all(&[&9u32.to_le_bytes()[..], &[1; 9]].concat()).await.unwrap();
        assert!(a.next().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_cancel_is_nine_bytes() {
        let (a, mut raw) = duplex(1 << 10);
        let mut a = ClientWire::<_, (), ()>::new(a, FrameOptions::default());
        let trace_context = context::current().trace_context;
        a.send(ClientMessage::Cancel { trace_context, request_id: 0x0102 }).await.unwrap();
        let mut got = [0; 13];
        raw.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [9, 0, 0, 0, CANCEL, 2, 1, 0, 0, 0, 0, 0, 0]);
    }
}
