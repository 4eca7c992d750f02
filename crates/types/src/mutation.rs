//! The unit of replication and its bytes.
//!
//! A mutation's body is a run of blind, absolute operations (replication.md 10): what each key becomes,
//! never how to compute it. The primary builds the body once; the same bytes go to its log, to its peers and
//! to the engine. Layout of one operation, little-endian:
//!
//! ```text
//! kind u8 (1 = put, 2 = delete) | key_len u32 | value_len u32 | value_crc32c u32 | key | value
//! ```
//!
//! A value is contiguous and carries its own checksum, so that it can be read and verified where it lies in
//! the log without the rest of the record.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{Ballot, Decree, Gpid};

/// Bytes before the key of an operation.
pub const OP_HEADER_LEN: usize = 1 + 4 + 4 + 4;
const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;

/// Where a mutation's body lies in a disk's mutation log. The engine gets it beside the batch, so that one that
/// leaves values in the log can point at them (design.md 1, decision 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LogLocation {
    /// Number of the segment file.
    pub segment: u64,
    /// Byte offset of the mutation's body in it.
    pub offset: u64,
    pub len: u32,
}

/// One decided write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOp {
    /// `value` is the whole stored value: expiry, time tag and user data.
    Put {
        key: Bytes,
        value: Bytes,
    },
    Delete {
        key: Bytes,
    },
}

/// Builds a mutation body.
#[derive(Debug, Default)]
pub struct BodyBuilder {
    buf: BytesMut,
}

impl BodyBuilder {
    pub fn with_capacity(bytes: usize) -> Self {
        Self { buf: BytesMut::with_capacity(bytes) }
    }

    /// Adds a put whose stored value is the concatenation of `value_parts` (header, user data).
    pub fn put(&mut self, key: &[u8], value_parts: [&[u8]; 2]) {
        let crc = crc32c::crc32c_append(crc32c::crc32c(value_parts[0]), value_parts[1]);
        self.header(KIND_PUT, key, value_parts[0].len() + value_parts[1].len(), crc);
        self.buf.put_slice(key);
        self.buf.put_slice(value_parts[0]);
        self.buf.put_slice(value_parts[1]);
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.header(KIND_DELETE, key, 0, 0);
        self.buf.put_slice(key);
    }

    fn header(&mut self, kind: u8, key: &[u8], value_len: usize, crc: u32) {
        self.buf.put_u8(kind);
        self.buf.put_u32_le(u32::try_from(key.len()).expect("keys are bounded by the frame size"));
        self.buf.put_u32_le(u32::try_from(value_len).expect("values are bounded by the frame size"));
        self.buf.put_u32_le(crc);
    }

    pub fn len(&self) -> usize {
        self.buf.len()
    }

    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    pub fn finish(self) -> Bytes {
        self.buf.freeze()
    }
}

/// An operation as it lies in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpRef<'a> {
    pub key: &'a [u8],
    /// None = delete.
    pub value: Option<ValueRef<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueRef<'a> {
    pub bytes: &'a [u8],
    /// Offset of the value in the body.
    pub offset: usize,
    pub crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mutation body damaged at byte {at}")]
pub struct DamagedBody {
    pub at: usize,
}

/// Iterates over the operations of a body. Stops with an error at the first malformed one.
pub fn ops(body: &[u8]) -> Ops<'_> {
    Ops { body, at: 0 }
}

#[derive(Clone, Debug)]
pub struct Ops<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<OpRef<'a>, DamagedBody>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.body.len() {
            return None;
        }
        let at = self.at;
        match self.parse() {
            Some(op) => Some(Ok(op)),
            None => {
                self.at = self.body.len();
                Some(Err(DamagedBody { at }))
            }
        }
    }
}

impl<'a> Ops<'a> {
    fn parse(&mut self) -> Option<OpRef<'a>> {
        let header: &[u8; OP_HEADER_LEN] = self.body.get(self.at..)?.first_chunk()?;
        let u32_at = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let (key_len, value_len, crc) = (u32_at(1) as usize, u32_at(5) as usize, u32_at(9));
        let key_at = self.at + OP_HEADER_LEN;
        let value_at = key_at.checked_add(key_len)?;
        let end = value_at.checked_add(value_len)?;
        let key = self.body.get(key_at..value_at)?;
        let bytes = self.body.get(value_at..end)?;
        self.at = end;
        match header[0] {
            KIND_PUT => Some(OpRef { key, value: Some(ValueRef { bytes, offset: value_at, crc }) }),
            KIND_DELETE if value_len == 0 => Some(OpRef { key, value: None }),
            _ => None,
        }
    }
}

/// A batch of writes with its place in the partition's history.
///
/// `checksum` covers everything else, is computed once by the primary that admitted the client's request,
/// and is verified by every hop before it acknowledges (safety-rules.md 2.2). An empty body is the empty
/// write, which only moves the commit point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutation {
    pub gpid: Gpid,
    pub decree: Decree,
    /// Ballot of the primary that created it. A later primary prepares it again under its own ballot, with
    /// the origin unchanged.
    pub origin: Ballot,
    /// Unique and growing within the partition, microseconds since 1970.
    pub timestamp_us: u64,
    pub checksum: u32,
    #[serde(with = "crate::blob")]
    pub body: Bytes,
}

impl Mutation {
    pub fn new(gpid: Gpid, decree: Decree, origin: Ballot, timestamp_us: u64, body: Bytes) -> Self {
        let mut mutation = Self { gpid, decree, origin, timestamp_us, checksum: 0, body };
        mutation.checksum = mutation.compute_checksum();
        mutation
    }

    fn compute_checksum(&self) -> u32 {
        Self::checksum_of(self.gpid, self.decree, self.origin, self.timestamp_us, &self.body)
    }

    /// The checksum that a mutation of these parts carries.
    pub fn checksum_of(gpid: Gpid, decree: Decree, origin: Ballot, timestamp_us: u64, body: &[u8]) -> u32 {
        let mut head = [0u8; 32];
        head[..4].copy_from_slice(&gpid.app_id.to_le_bytes());
        head[4..8].copy_from_slice(&gpid.index.to_le_bytes());
        head[8..16].copy_from_slice(&decree.0.to_le_bytes());
        head[16..24].copy_from_slice(&origin.0.to_le_bytes());
        head[24..].copy_from_slice(&timestamp_us.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&head), body)
    }

    pub fn verify(&self) -> bool {
        self.checksum == self.compute_checksum()
    }

    /// Same decision? Two mutations of one decree may only stand for each other when this holds.
    pub fn same_content(&self, other: &Self) -> bool {
        (self.gpid, self.decree, self.origin, self.checksum)
            == (other.gpid, other.decree, other.origin, other.checksum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Bytes {
        let mut b = BodyBuilder::default();
        b.put(b"k1", [b"hd", b"value"]);
        b.delete(b"k2");
        b.put(b"", [b"", b""]);
        b.finish()
    }

    #[test]
    fn body_round_trips_and_values_are_addressable() {
        let body = body();
        let got: Vec<_> = ops(&body).map(Result::unwrap).collect();
        assert_eq!(got.len(), 3);
        let value = got[0].value.unwrap();
        assert_eq!((got[0].key, value.bytes), (&b"k1"[..], &b"hdvalue"[..]));
        assert_eq!(&body[value.offset..value.offset + 7], b"hdvalue");
        assert_eq!(crc32c::crc32c(value.bytes), value.crc);
        assert_eq!((got[1].key, got[1].value), (&b"k2"[..], None));
    }

    #[test]
    fn damage_never_panics_and_never_passes_the_checksum() {
        let whole = Mutation::new(Gpid::new(1, 2), Decree(3), Ballot(4), 5, body());
        assert!(whole.verify());
        for i in 0..whole.body.len() {
            let mut bytes = whole.body.to_vec();
            bytes[i] ^= 0x40;
            let damaged = Mutation { body: bytes.into(), ..whole.clone() };
            assert!(!damaged.verify());
            ops(&damaged.body).for_each(drop);
            ops(&whole.body[..i]).for_each(drop);
        }
        assert!(!Mutation { decree: Decree(4), ..whole.clone() }.verify());
        assert!(!Mutation { origin: Ballot(9), ..whole }.verify());
    }
}
