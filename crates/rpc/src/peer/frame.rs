//! Frames over a byte stream: `length u32 LE | payload`, bounded on both sides, read without copying.
//!
//! A received frame is a slice of the read buffer and is never copied again (see [`pegasus_types::blob`]).
//! Frames to send gather in one buffer that is written when the task has nothing else to do.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::Future;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::Sleep;

/// Largest payload of a frame on peer connections, both directions. A learn chunk or a batch of prepares is
/// about 1 MiB; the bound only has to hold the largest single mutation that a client may send.
pub const MAX_FRAME_BYTES: usize = 64 << 20;
/// Unsent bytes above which nothing more is accepted from the layer above until the socket takes some.
const WRITE_HIGH_WATER: usize = 64 << 10;
/// Unsent bytes that do not wait for more, whatever the patience: some 16 answers without content.
const LINGER_BYTES: usize = 256;
/// A write buffer that grew beyond this for one large frame is given back once it is empty.
const WRITE_KEEP: usize = 1 << 20;
/// The read buffer is renewed when less than this is left of it, so that a read is worth its system call.
const READ_MIN_SPARE: usize = 2 << 10;
const LENGTH_LEN: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The stream cannot be trusted any more when this comes from the other side.
    #[error("frame of {len} bytes is larger than {max}")]
    TooLarge { len: usize, max: usize },
    #[error("malformed message: {0}")]
    Malformed(#[from] postcard::Error),
    #[error("malformed message: {0}")]
    Unexpected(&'static str),
}

/// How one connection reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct FrameOptions {
    pub max_frame_bytes: usize,
    /// Bytes asked of the socket at a time, and the size of the buffer that small frames share.
    pub read_chunk_bytes: usize,
    /// What is to be sent waits so long for more, while it is little. For answers that nobody is in a hurry for.
    pub linger: Option<Duration>,
}

impl Default for FrameOptions {
    fn default() -> Self {
        Self { max_frame_bytes: MAX_FRAME_BYTES, read_chunk_bytes: 64 << 10, linger: None }
    }
}

#[derive(Debug)]
pub(crate) struct FrameIo<S> {
    io: S,
    options: FrameOptions,
    read: BytesMut,
    write: BytesMut,
    /// Runs while a little waits for more, see [`FrameOptions::linger`].
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameIo<S> {
    pub(crate) fn new(io: S, options: FrameOptions) -> Self {
        Self { io, options, read: BytesMut::new(), write: BytesMut::new(), lingering: None }
    }

    /// The next frame's payload; None when the other side closed between two frames.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FrameError>>> {
        loop {
            let missing = match self.take_frame() {
                Ok(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Err(missing)) => missing,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            if self.read.capacity() - self.read.len() < missing.max(READ_MIN_SPARE) {
                self.read.reserve(missing.max(self.options.read_chunk_bytes));
            }
            let read = pin!(self.io.read_buf(&mut self.read)).poll(cx);
            match ready!(read) {
                Ok(0) if self.read.is_empty() => return Poll::Ready(None),
                Ok(0) => return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// A whole frame out of what has been read, or how many bytes it still lacks.
    fn take_frame(&mut self) -> Result<Result<Bytes, usize>, FrameError> {
        let Some(length) = self.read.first_chunk::<LENGTH_LEN>() else {
            return Ok(Err(LENGTH_LEN - self.read.len()));
        };
        let len = u32::from_le_bytes(*length) as usize;
        let max = self.options.max_frame_bytes;
        if len > max {
            return Err(FrameError::TooLarge { len, max });
        }
        let whole = LENGTH_LEN + len;
        if self.read.len() < whole {
            return Ok(Err(whole - self.read.len()));
        }
        self.read.advance(LENGTH_LEN);
        Ok(Ok(self.read.split_to(len).freeze()))
    }

    /// Ready when another frame may be queued.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FrameError>> {
        if self.write.len() < WRITE_HIGH_WATER { Poll::Ready(Ok(())) } else { self.poll_write(cx) }
    }

    /// Queues one frame, written by `build`. A frame that gets too large leaves no trace.
    pub(crate) fn queue(
        &mut self,
        build: impl FnOnce(&mut FrameBuilder<'_>) -> Result<(), postcard::Error>,
    ) -> Result<(), FrameError> {
        let start = self.write.len();
        self.write.put_u32_le(0);
        let max = self.options.max_frame_bytes;
        let mut builder = FrameBuilder { buf: &mut self.write, room: max, lacking: 0 };
        let built = build(&mut builder);
        let lacking = builder.lacking;
        let len = self.write.len() - start - LENGTH_LEN;
        if lacking == 0 && built.is_ok() {
            let length = u32::try_from(len).expect("bounded by max_frame_bytes");
            self.write[start..start + LENGTH_LEN].copy_from_slice(&length.to_le_bytes());
            return Ok(());
        }
        self.write.truncate(start);
        match built {
            Err(error) if lacking == 0 => Err(error.into()),
            _ => Err(FrameError::TooLarge { len: len + lacking, max }),
        }
    }

    /// Writes what is queued; may put it off, see [`FrameOptions::linger`].
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FrameError>> {
        if let Some(linger) = self.options.linger
            && (1..LINGER_BYTES).contains(&self.write.len())
        {
            let lingering = self.lingering.get_or_insert_with(|| Box::pin(tokio::time::sleep(linger)));
            ready!(lingering.as_mut().poll(cx));
        }
        self.poll_write(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FrameError>> {
        self.lingering = None;
        while !self.write.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.write))? {
                0 => return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into())),
                n => self.write.advance(n),
            }
        }
        if self.write.capacity() > WRITE_KEEP {
            self.write = BytesMut::new();
        }
        Pin::new(&mut self.io).poll_flush(cx).map_err(Into::into)
    }

    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FrameError>> {
        ready!(self.poll_write(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx).map_err(Into::into)
    }
}

/// The payload of a frame under construction; refuses to grow beyond the bound.
#[derive(Debug)]
pub(crate) struct FrameBuilder<'a> {
    buf: &'a mut BytesMut,
    room: usize,
    /// What the first refused piece lacked.
    lacking: usize,
}

impl FrameBuilder<'_> {
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), postcard::Error> {
        match self.room.checked_sub(bytes.len()) {
            Some(room) => {
                self.room = room;
                self.buf.put_slice(bytes);
                Ok(())
            }
            None => {
                self.lacking = bytes.len();
                Err(postcard::Error::SerializeBufferFull)
            }
        }
    }
}

impl postcard::ser_flavors::Flavor for &mut FrameBuilder<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.put(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.put(bytes)
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn pair(options: FrameOptions) -> (FrameIo<DuplexStream>, FrameIo<DuplexStream>) {
        let (a, b) = duplex(1 << 20);
        (FrameIo::new(a, options), FrameIo::new(b, options))
    }

    async fn next(io: &mut FrameIo<DuplexStream>) -> Option<Result<Bytes, FrameError>> {
        poll_fn(|cx| io.poll_frame(cx)).await
    }

    #[tokio::test]
    async fn frames_of_all_sizes_arrive_in_order_and_uncut() {
        for linger in [None, Some(Duration::from_millis(1))] {
            let options = FrameOptions { read_chunk_bytes: 4096, linger, ..FrameOptions::default() };
            let (mut a, mut b) = pair(options);
            let frames: Vec<Vec<u8>> =
                [0, 1, 3, 4095, 4096, 4097, 70_000, 5].map(|n| vec![n as u8; n]).to_vec();
            for frame in &frames {
                a.queue(|to| to.put(frame)).unwrap();
            }
            poll_fn(|cx| a.poll_flush(cx)).await.unwrap();
            poll_fn(|cx| a.poll_close(cx)).await.unwrap();
            for frame in &frames {
                assert_eq!(next(&mut b).await.unwrap().unwrap(), frame);
            }
            assert!(next(&mut b).await.is_none());
        }
    }

    #[tokio::test]
    async fn a_frame_above_the_bound_is_refused_on_both_sides() {
        let (mut a, _b) = pair(FrameOptions { max_frame_bytes: 100, ..FrameOptions::default() });
        a.queue(|to| to.put(&[1; 100])).unwrap();
        let error = a.queue(|to| to.put(&[2; 60]).and_then(|()| to.put(&[2; 41]))).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { len: 101, max: 100 }), "{error}");
        assert_eq!(a.write.len(), 104, "nothing of the refused frame stays");

        let (mut raw, b) = duplex(1 << 10);
        let mut b = FrameIo::new(b, FrameOptions { max_frame_bytes: 100, ..FrameOptions::default() });
        raw.write_all(&101u32.to_le_bytes()).await.unwrap();
        assert!(matches!(next(&mut b).await.unwrap(), Err(FrameError::TooLarge { len: 101, .. })));
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_is_an_error() {
        let (mut raw, b) = duplex(1 << 10);
        let mut b = FrameIo::new(b, FrameOptions::default());
        raw.write_all(&[10, 0, 0, 0, 1, 2, 3]).await.unwrap();
        drop(raw);
        assert!(matches!(next(&mut b).await.unwrap(), Err(FrameError::Io(_))));
    }

    #[tokio::test]
    async fn a_little_waits_for_more_and_much_does_not() {
        let wait = |linger| FrameOptions { linger: Some(linger), ..FrameOptions::default() };
        let (mut a, mut b) = pair(wait(Duration::from_secs(600)));
        a.queue(|to| to.put(b"one")).unwrap();
        let is_put_off = poll_fn(|cx| Poll::Ready(a.poll_flush(cx).is_pending())).await;
        assert!(is_put_off);
        a.queue(|to| to.put(&[2; LINGER_BYTES])).unwrap();
        poll_fn(|cx| a.poll_flush(cx)).await.unwrap();
        assert_eq!(next(&mut b).await.unwrap().unwrap(), "one");
        assert_eq!(next(&mut b).await.unwrap().unwrap()[..], [2; LINGER_BYTES]);

        let (mut a, mut b) = pair(wait(Duration::from_millis(1)));
        a.queue(|to| to.put(b"three")).unwrap();
        poll_fn(|cx| a.poll_flush(cx)).await.unwrap();
        assert_eq!(next(&mut b).await.unwrap().unwrap(), "three");
    }
}
