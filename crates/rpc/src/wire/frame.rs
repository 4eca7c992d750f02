//! Frames: how a request or reply lies in the byte stream (wire-protocol.md 2).
//!
//! ```text
//! request v0   THFT | 0 | 48 | 0 | body_len | 0 | app_id | index | timeout | thread_hash | hash u64 | body
//! request v1   THFT | 1 | meta_len | body_len | meta struct | body
//! body         80 01 00 type | name | seqid | args struct { 1: argument }
//! reply        total_len | error name | 80 01 00 02 | name_ACK | seqid | result struct { 0: result }
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use pegasus_types::{ErrorCode, Gpid};

use super::codes::Rpc;
use super::thrift::{DecodeError, Reader, Value, Writer, wire_struct};

pub const MAGIC: [u8; 4] = *b"THFT";
/// Longest request or reply. Far above the write limit (1 MiB) and the largest read (30 MiB).
pub const MAX_FRAME_BYTES: usize = 64 << 20;

const V0_HEADER: usize = 48;
const V1_HEADER: usize = 16;
/// The five fields of the meta struct take 37 bytes; room for fields to come.
const V1_MAX_META: usize = 4 << 10;
/// Longest RPC name that is answered; the reference keeps 47 bytes of it.
pub const MAX_NAME: usize = 47;

const MESSAGE_VERSION: u32 = 0x8001_0000;
const CALL: u32 = 1;
const REPLY: u32 = 2;
const ONEWAY: u32 = 4;

/// What the header of a request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RequestHead {
    /// Chosen by the client, echoed in the answer.
    pub seqid: i32,
    /// ≤ 0 for requests to the node rather than to a partition.
    pub app_id: i32,
    pub partition_index: i32,
    /// 0 = the client did not say.
    pub client_timeout_ms: u32,
    /// Hash of the hash key; the partition index for full scans; 0 = unknown. Old clients always send 0.
    pub partition_hash: u64,
    /// A read that a secondary may answer from what it has.
    pub is_backup: bool,
}

impl RequestHead {
    /// The partition that is meant, None for requests to the node.
    pub fn gpid(&self) -> Option<Gpid> {
        (self.app_id > 0).then(|| Gpid::new(self.app_id, self.partition_index))
    }
}

/// Layout of a request header. Only v1 (Java's) carries the backup flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderVersion {
    V0,
    V1,
}

/// The stream makes no sense from here on: the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("bad magic {0:02x?}")]
    BadMagic([u8; 4]),
    #[error("header version {0}")]
    BadVersion(u32),
    #[error("header of {0} bytes")]
    BadHeaderLength(u32),
    #[error("frame of {0} bytes, at most {MAX_FRAME_BYTES} are allowed")]
    TooLong(u64),
    #[error("message type {0}")]
    BadMessageType(u32),
    #[error("message begin: {0}")]
    BadMessage(#[from] DecodeError),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct RequestMeta {
    app_id: i32,
    partition_index: i32,
    client_timeout: i32,
    partition_hash: i64,
    is_backup_request: bool,
}

wire_struct! {
    RequestMeta { 1 app_id, 2 partition_index, 3 client_timeout, 4 partition_hash, 5 is_backup_request }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Length of the request frame at the start of `bytes`; None while too few bytes are there to tell.
pub fn request_len(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    if let Some(magic) = bytes.first_chunk::<4>()
        && *magic != MAGIC
    {
        return Err(FrameError::BadMagic(*magic));
    }
    let (Some(version), Some(header)) = (u32_at(bytes, 4), u32_at(bytes, 8)) else { return Ok(None) };
    let (prefix, body_at) = match version {
        0 if header as usize == V0_HEADER => (V0_HEADER, 16),
        1 if header as usize <= V1_MAX_META => (V1_HEADER + header as usize, 12),
        0 | 1 => return Err(FrameError::BadHeaderLength(header)),
        other => return Err(FrameError::BadVersion(other)),
    };
    let Some(body) = u32_at(bytes, body_at) else { return Ok(None) };
    let total = prefix as u64 + u64::from(body);
    match usize::try_from(total) {
        Ok(total) if total <= MAX_FRAME_BYTES => Ok(Some(total)),
        _ => Err(FrameError::TooLong(total)),
    }
}

/// A request frame up to its arguments.
#[derive(Debug)]
pub struct RequestFrame {
    pub head: RequestHead,
    /// Length of the thrift message: what the write limit is compared with.
    pub body_len: usize,
    /// None when there is no such RPC.
    pub rpc: Option<Rpc>,
    /// The name that is none of ours, at most [`MAX_NAME`] bytes of it.
    pub unknown: Bytes,
    /// The client waits for no answer.
    pub oneway: bool,
    /// Stands before the arguments.
    pub args: Reader,
}

/// Opens a whole frame of the length that [`request_len`] told.
pub fn open_request(frame: Bytes) -> Result<RequestFrame, FrameError> {
    let total = frame.len();
    let mut r = Reader::new(frame);
    r.advance(4)?;
    let version = r.i32()?;
    let (mut head, body_len) = if version == 0 {
        r.advance(8)?;
        let body_len = r.i32()?;
        r.advance(4)?;
        let (app_id, partition_index, timeout) = (r.i32()?, r.i32()?, r.i32()?);
        r.advance(4)?;
        let partition_hash = r.i64()?.cast_unsigned();
        let client_timeout_ms = timeout.max(0).cast_unsigned();
        let head =
            RequestHead { app_id, partition_index, client_timeout_ms, partition_hash, ..Default::default() };
        (head, body_len)
    } else {
        let (meta_len, body_len) = (r.i32()?, r.i32()?);
        let body_at = V1_HEADER + usize::try_from(meta_len).map_err(|_| DecodeError::BadLength(meta_len))?;
        let meta = RequestMeta::read(&mut r)?;
        // The struct may end before its announced length, never behind it.
        r.advance(body_at.checked_sub(total - r.remaining()).ok_or(DecodeError::Truncated)?)?;
        let head = RequestHead {
            seqid: 0,
            app_id: meta.app_id,
            partition_index: meta.partition_index,
            client_timeout_ms: meta.client_timeout.max(0).cast_unsigned(),
            partition_hash: meta.partition_hash.cast_unsigned(),
            is_backup: meta.is_backup_request,
        };
        (head, body_len)
    };
    let message = r.i32()?.cast_unsigned();
    let kind = message & 0xff;
    if message & 0xffff_ff00 != MESSAGE_VERSION || !matches!(kind, CALL | ONEWAY) {
        return Err(FrameError::BadMessageType(message));
    }
    let name = r.bytes()?;
    let rpc = Rpc::from_name(name);
    let unknown =
        if rpc.is_none() { Bytes::copy_from_slice(&name[..name.len().min(MAX_NAME)]) } else { Bytes::new() };
    head.seqid = r.i32()?;
    Ok(RequestFrame {
        head,
        body_len: usize::try_from(body_len).unwrap_or(0),
        rpc,
        unknown,
        oneway: kind == ONEWAY,
        args: r,
    })
}

/// Reads the argument: field 1 of the args struct.
pub fn argument<T: Value>(r: &mut Reader) -> Result<T, DecodeError> {
    while let Some((ty, id)) = r.field()? {
        if id == 1 && ty == T::TYPE {
            return T::read(r);
        }
        r.skip(ty)?;
    }
    Err(DecodeError::NoArgument)
}

/// Appends a request frame. The backup flag needs [`HeaderVersion::V1`].
pub fn put_request(
    w: &mut Writer<'_>,
    version: HeaderVersion,
    head: &RequestHead,
    rpc: Rpc,
    argument: impl FnOnce(&mut Writer<'_>),
) {
    let start = w.buf.len();
    let timeout = i32::try_from(head.client_timeout_ms).unwrap_or(i32::MAX);
    w.buf.put_slice(&MAGIC);
    let body_len_at = match version {
        HeaderVersion::V0 => {
            // Ignored by servers; what every client sends.
            let thread_hash = match head.gpid() {
                Some(gpid) => gpid.app_id.wrapping_mul(7919).wrapping_add(gpid.index),
                None => 0,
            };
            for word in [0, 48, 0, 0, 0, head.app_id, head.partition_index, timeout, thread_hash] {
                w.buf.put_i32(word);
            }
            w.buf.put_u64(head.partition_hash);
            start + 16
        }
        HeaderVersion::V1 => {
            w.buf.put_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
            let meta_at = w.buf.len();
            let mut meta = Writer::new(w.buf);
            RequestMeta {
                app_id: head.app_id,
                partition_index: head.partition_index,
                client_timeout: timeout,
                partition_hash: head.partition_hash.cast_signed(),
                is_backup_request: head.is_backup,
            }
            .write(&mut meta);
            patch_len(w.buf, start + 8, w.buf.len() - meta_at);
            start + 12
        }
    };
    let body_at = w.buf.len();
    w.buf.put_u32(MESSAGE_VERSION | CALL);
    w.bytes(rpc.name().as_bytes());
    w.buf.put_i32(head.seqid);
    argument(w);
    w.stop();
    patch_len(w.buf, body_len_at, w.buf.len() - body_at);
}

fn patch_len(buf: &mut BytesMut, at: usize, len: usize) {
    let len = u32::try_from(len).expect("frames are bounded far below 4 GiB");
    buf[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

fn put_reply_head(w: &mut Writer<'_>, error: &str, ack_name: [&[u8]; 2], seqid: i32) {
    w.buf.put_i32(0);
    w.bytes(error.as_bytes());
    w.buf.put_u32(MESSAGE_VERSION | REPLY);
    let [name, suffix] = ack_name;
    w.buf.put_u32(u32::try_from(name.len() + suffix.len()).expect("names are short"));
    w.buf.put_slice(name);
    w.buf.put_slice(suffix);
    w.buf.put_i32(seqid);
}

/// Appends a reply with a result.
pub fn put_reply<T: Value>(w: &mut Writer<'_>, rpc: Rpc, seqid: i32, result: &T) {
    let start = w.buf.len();
    put_reply_head(w, ErrorCode::Ok.name(), [rpc.ack_name().as_bytes(), b""], seqid);
    w.field(0, result, u64::MAX);
    w.stop();
    patch_len(w.buf, start, w.buf.len() - start);
}

/// Appends a refusal by the RPC layer. `name` is the request's.
pub fn put_refusal(buf: &mut BytesMut, name: &[u8], seqid: i32, error: ErrorCode) {
    let start = buf.len();
    put_reply_head(&mut Writer::new(buf), error.name(), [name, b"_ACK"], seqid);
    patch_len(buf, start, buf.len() - start);
}

/// Length of the reply frame at the start of `bytes`.
pub fn reply_len(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    match u32_at(bytes, 0) {
        None => Ok(None),
        Some(total) if (4..=2 * MAX_FRAME_BYTES).contains(&(total as usize)) => Ok(Some(total as usize)),
        Some(total) => Err(FrameError::TooLong(u64::from(total))),
    }
}

/// What the RPC layer of a server said instead of a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Code(ErrorCode),
    /// A name that other servers send.
    #[error("{0:?}")]
    Other(String),
}

/// A reply frame up to its result.
#[derive(Debug)]
pub struct ReplyFrame {
    pub seqid: i32,
    pub refusal: Option<Refusal>,
    /// Stands before the result struct.
    result: Reader,
}

impl ReplyFrame {
    /// The result: field 0 of the result struct. Only of a reply without a refusal.
    pub fn result<T: Value>(mut self) -> Result<T, DecodeError> {
        while let Some((ty, id)) = self.result.field()? {
            if id == 0 && ty == T::TYPE {
                return T::read(&mut self.result);
            }
            self.result.skip(ty)?;
        }
        Err(DecodeError::NoArgument)
    }
}

/// Opens a whole frame of the length that [`reply_len`] told.
pub fn open_reply(frame: Bytes) -> Result<ReplyFrame, FrameError> {
    let mut r = Reader::new(frame);
    r.advance(4)?;
    let error = std::str::from_utf8(r.bytes()?).map_err(|_| DecodeError::BadText)?;
    let refusal = match error.parse() {
        Ok(ErrorCode::Ok) => None,
        Ok(code) => Some(Refusal::Code(code)),
        Err(_) => Some(Refusal::Other(error.chars().take(MAX_NAME).collect())),
    };
    let message = r.i32()?.cast_unsigned();
    if message & 0xffff_ff00 != MESSAGE_VERSION {
        return Err(FrameError::BadMessageType(message));
    }
    r.bytes()?;
    let seqid = r.i32()?;
    Ok(ReplyFrame { seqid, refusal, result: r })
}
