//! How a row lies in an engine: Pegasus's value layouts (wire-protocol.md 5), so that data keeps its meaning.
//!
//! ```text
//! v1:  u32 expire_ts | u64 time tag | user data            big-endian
//! ```
//!
//! Pegasus's v0 (no time tag) and v2 (`82` in front) are not read: the bytes alone do not tell them from v1,
//! whose expiry is whatever a client sent, and no table of ours has them.
//!
//! Keys are encoded keys ([`pegasus_types::hash::encode_key`]); keys that begin with `ff ff` are the engine's.

use bytes::Bytes;
use pegasus_types::Decree;
use pegasus_types::time::{PEGASUS_EPOCH_UNIX_S, is_expired};

/// Bytes before the user data in layout v1.
pub const HEADER_LEN: usize = 12;

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

/// The time tag of a stored value; None for one that is malformed.
pub fn time_tag_of(stored: &[u8]) -> Option<TimeTag> {
    Some(TimeTag(u64::from_be_bytes(*stored.get(4..)?.first_chunk()?)))
}

/// A stored value. Clones share the bytes; the user data is a slice of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    stored: Bytes,
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
        let (expire, rest) = stored.split_first_chunk::<4>().ok_or(malformed)?;
        let tag = rest.first_chunk::<8>().ok_or(malformed)?;
        let (expire_ts, time_tag) = (u32::from_be_bytes(*expire), TimeTag(u64::from_be_bytes(*tag)));
        Ok(Self { stored, expire_ts, time_tag })
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
        self.stored.slice(HEADER_LEN..)
    }

    pub fn data_len(&self) -> usize {
        self.stored.len() - HEADER_LEN
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
    fn values_decode() {
        // An expiry with the high bit is what a client gets that sends a negative one.
        for expire_ts in [0, 7, u32::MAX] {
            let stored = v1(expire_ts, 9, b"data");
            let value = Value::decode(stored.clone()).unwrap();
            assert_eq!((value.expire_ts(), value.time_tag()), (expire_ts, TimeTag(9)));
            assert_eq!((&value.data()[..], value.data_len(), value.stored()), (&b"data"[..], 4, &stored));
            assert_eq!((value.is_expired(6), value.is_expired(7)), (false, expire_ts == 7));
        }
        for len in 0..HEADER_LEN {
            assert_eq!(Value::decode(vec![0; len].into()), Err(MalformedValue { len }));
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
