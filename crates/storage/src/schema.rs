//! How a row lies in an engine: Pegasus's value layouts (wire-protocol.md 5), so that data keeps its meaning.
//!
//! ```text
//! v1 (written):  u32 expire_ts | u64 time tag | user data            big-endian
//! v2 (read):     0x82 | u32 expire_ts | u64 time tag | user data
//! ```
//!
//! Keys are encoded keys ([`pegasus_types::hash::encode_key`]); keys that begin with `ff ff` are the engine's.

use bytes::Bytes;
use pegasus_types::Decree;
use pegasus_types::time::{PEGASUS_EPOCH_UNIX_S, is_expired};

/// Bytes before the user data in layout v1.
pub const HEADER_LEN: usize = 12;

/// First byte of layout v2. No v1 value begins with the high bit before the year 2084.
const V2_MARK: u8 = 0x82;
const VERSIONED: u8 = 0x80;

/// When and where a value was written: orders writes of one key between clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimeTag(pub u64);

impl TimeTag {
    pub const fn new(timestamp_us: u64, cluster_id: u8, deleted: bool) -> Self {
        Self(timestamp_us << 8 | (cluster_id as u64 & 0x7f) << 1 | deleted as u64)
    }

    pub const fn timestamp_us(self) -> u64 {
        self.0 >> 8
    }

    pub const fn cluster_id(self) -> u8 {
        (self.0 >> 1) as u8 & 0x7f
    }

    pub const fn deleted(self) -> bool {
        self.0 & 1 == 1
    }
}

/// The bytes before the user data of a v1 value.
pub fn header(expire_ts: u32, time_tag: TimeTag) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&expire_ts.to_be_bytes());
    header[4..].copy_from_slice(&time_tag.0.to_be_bytes());
    header
}

/// A stored value. Clones share the bytes; the user data is a slice of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    stored: Bytes,
    data_at: usize,
    expire_ts: u32,
    time_tag: TimeTag,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stored value of {len} bytes is malformed")]
pub struct MalformedValue {
    pub len: usize,
}

impl Value {
    pub fn decode(stored: Bytes) -> Result<Self, MalformedValue> {
        let malformed = MalformedValue { len: stored.len() };
        let head_at = match stored.first() {
            Some(&V2_MARK) => 1,
            Some(first) if first & VERSIONED == 0 => 0,
            _ => return Err(malformed),
        };
        let head: &[u8; HEADER_LEN] = stored.get(head_at..).and_then(<[u8]>::first_chunk).ok_or(malformed)?;
        let (expire, tag) = head.split_first_chunk::<4>().expect("12 bytes");
        let tag = tag.first_chunk::<8>().expect("12 bytes");
        let (expire_ts, time_tag) = (u32::from_be_bytes(*expire), TimeTag(u64::from_be_bytes(*tag)));
        Ok(Self { data_at: head_at + HEADER_LEN, stored, expire_ts, time_tag })
    }

    /// Seconds since the Pegasus epoch; 0 = never.
    pub const fn expire_ts(&self) -> u32 {
        self.expire_ts
    }

    pub const fn time_tag(&self) -> TimeTag {
        self.time_tag
    }

    pub const fn is_expired(&self, epoch_now: u32) -> bool {
        is_expired(self.expire_ts, epoch_now)
    }

    /// What the user stored.
    pub fn data(&self) -> Bytes {
        self.stored.slice(self.data_at..)
    }

    pub fn data_len(&self) -> usize {
        self.stored.len() - self.data_at
    }

    /// The whole value as it is stored.
    pub fn stored(&self) -> &Bytes {
        &self.stored
    }
}

/// Whether compaction may drop a row: `purge_after_s` behind the local clock and behind the newest committed
/// time tag, so that a clock that runs ahead on one node loses nothing (safety-rules.md 5).
pub fn may_purge(expire_ts: u32, purge_after_s: u64, local_unix_s: u64, newest_committed_us: u64) -> bool {
    let expire_unix_s = PEGASUS_EPOCH_UNIX_S + u64::from(expire_ts);
    expire_ts > 0 && expire_unix_s + purge_after_s <= local_unix_s.min(newest_committed_us / 1_000_000)
}

/// Where an engine keeps its decree.
pub(crate) const DECREE_KEY: [u8; 3] = [0xff, 0xff, b'd'];

/// `1 | i64 decree | u64 newest timestamp`, big-endian.
pub(crate) fn encode_decree(decree: Decree, newest_timestamp_us: u64) -> [u8; 17] {
    let mut bytes = [1; 17];
    bytes[1..9].copy_from_slice(&decree.0.to_be_bytes());
    bytes[9..].copy_from_slice(&newest_timestamp_us.to_be_bytes());
    bytes
}

pub(crate) fn decode_decree(bytes: &[u8]) -> Option<(Decree, u64)> {
    let (&[1], rest) = bytes.split_first_chunk::<1>()? else { return None };
    let (decree, rest) = rest.split_first_chunk::<8>()?;
    let timestamp: [u8; 8] = rest.try_into().ok()?;
    Some((Decree(i64::from_be_bytes(*decree)), u64::from_be_bytes(timestamp)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(expire_ts: u32, tag: u64, data: &[u8]) -> Bytes {
        [&header(expire_ts, TimeTag(tag)), data].concat().into()
    }

    #[test]
    fn layouts_are_pegasuss() {
        let tag = TimeTag::new(0x0102_0304_0506, 1, true);
        assert_eq!(tag.0, 0x0001_0203_0405_0603);
        assert_eq!((tag.timestamp_us(), tag.cluster_id(), tag.deleted()), (0x0102_0304_0506, 1, true));
        assert_eq!(&v1(0x1112_1314, tag.0, b"xy")[..], b"\x11\x12\x13\x14\x00\x01\x02\x03\x04\x05\x06\x03xy");
    }

    #[test]
    fn values_decode_in_v1_and_v2() {
        let plain = v1(7, 9, b"data");
        let versioned: Bytes = [&[V2_MARK][..], &plain].concat().into();
        for stored in [plain, versioned] {
            let value = Value::decode(stored.clone()).unwrap();
            assert_eq!(
                (value.expire_ts(), value.time_tag(), &value.data()[..]),
                (7, TimeTag(9), &b"data"[..])
            );
            assert_eq!((value.data_len(), value.stored()), (4, &stored));
            assert!(value.is_expired(7) && !value.is_expired(6));
        }
        assert!(!Value::decode(v1(0, 0, b"")).unwrap().is_expired(u32::MAX));
    }

    #[test]
    fn malformed_values_are_refused() {
        for bad in [&b""[..], &[0; 11], &[V2_MARK; 12], &[0x83; 20], &[0xff; 20]] {
            assert!(Value::decode(Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn purging_waits_for_both_clocks() {
        let at = |expire: u32| PEGASUS_EPOCH_UNIX_S + u64::from(expire) + 3600;
        for (expire, local, committed_s, want) in [
            (100, at(100), at(100), true),
            (100, at(99), at(100), false),
            (100, at(100), at(99), false),
            (0, u64::MAX, u64::MAX / 1_000_000, false),
            (100, at(100), 0, false),
        ] {
            assert_eq!(
                may_purge(expire, 3600, local, committed_s * 1_000_000),
                want,
                "{expire} {local} {committed_s}"
            );
        }
    }

    #[test]
    fn decree_record_round_trips() {
        let bytes = encode_decree(Decree(7), 8);
        assert_eq!(decode_decree(&bytes), Some((Decree(7), 8)));
        assert_eq!(decode_decree(&bytes[..16]), None);
        assert_eq!(decode_decree(&[0; 17]), None);
    }
}
