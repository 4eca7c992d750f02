//! Key layout and key → partition (wire-protocol.md section 5).

use bytes::{BufMut, Bytes, BytesMut};
use crc::{CRC_64_NVME, Crc, Table};

const CRC64: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_NVME);

/// Longest legal hash key; 0xffff is reserved for the engine's own records.
pub const MAX_HASH_KEY_LEN: usize = 0xfffe;

/// Pegasus's hash of a hash key (CRC-64/NVME; the empty key hashes to 0).
pub fn crc64(bytes: &[u8]) -> u64 {
    CRC64.checksum(bytes)
}

/// Hash that routes a key: of the hash key, or of the sort key when the hash key is empty.
pub fn key_hash(hash_key: &[u8], sort_key: &[u8]) -> u64 {
    crc64(if hash_key.is_empty() { sort_key } else { hash_key })
}

/// Partition index for a hash.
pub fn partition_of(hash: u64, partition_count: i32) -> i32 {
    i32::try_from(hash % partition_count.max(1) as u64).expect("less than an i32 partition count")
}

/// Encoded key: u16 big-endian hash key length, hash key, sort key. None when the hash key is too long.
pub fn encode_key(hash_key: &[u8], sort_key: &[u8]) -> Option<Bytes> {
    let len = u16::try_from(hash_key.len()).ok().filter(|&l| usize::from(l) <= MAX_HASH_KEY_LEN)?;
    let mut key = BytesMut::with_capacity(2 + hash_key.len() + sort_key.len());
    key.put_u16(len);
    key.put_slice(hash_key);
    key.put_slice(sort_key);
    Some(key.freeze())
}

/// Splits an encoded key into (hash key, sort key). None when it is malformed.
pub fn decode_key(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = key.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_be_bytes(*len));
    if len > MAX_HASH_KEY_LEN { None } else { rest.split_at_checked(len) }
}

/// Routing hash of an encoded key.
pub fn encoded_key_hash(key: &[u8]) -> Option<u64> {
    decode_key(key).map(|(hash_key, sort_key)| key_hash(hash_key, sort_key))
}

/// The smallest key above every key that starts with `prefix`: trailing 0xff bytes dropped, the last byte
/// plus one. None when there is no such key.
pub fn next_prefix(prefix: &[u8]) -> Option<Bytes> {
    let end = prefix.iter().rposition(|&b| b != 0xff)?;
    let mut next = BytesMut::from(&prefix[..=end]);
    next[end] += 1;
    Some(next.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_samples() {
        for (key, want) in [
            ("", 0),
            ("123456789", 0xae8b_1486_0a79_9888),
            ("a", 0x8c2f_8445_b4cb_fc3c),
            ("hash_1", 0x004c_cfe5_35d9_c1a9),
            ("hello", 0x3377_8570_0652_4257),
            ("pegasus", 0xce87_09cf_bd39_73c4),
        ] {
            assert_eq!(crc64(key.as_bytes()), want, "{key}");
        }
    }

    #[test]
    fn keys_round_trip_and_bad_keys_are_refused() {
        let key = encode_key(b"h", b"s").unwrap();
        assert_eq!(&key[..], b"\x00\x01hs");
        assert_eq!(decode_key(&key), Some((&b"h"[..], &b"s"[..])));
        assert_eq!(decode_key(b"\x00"), None);
        assert_eq!(decode_key(b"\x00\x05ab"), None);
        assert_eq!(decode_key(b"\xff\xffab"), None);
        assert!(encode_key(&vec![0; 0xffff], b"").is_none());
        assert!(encode_key(&vec![0; 0xfffe], b"").is_some());
    }

    #[test]
    fn next_prefix_is_the_upper_bound() {
        assert_eq!(next_prefix(b"\x00\x01a").unwrap(), &b"\x00\x01b"[..]);
        assert_eq!(next_prefix(b"\x00\x02a\xff").unwrap(), &b"\x00\x02b"[..]);
        assert_eq!(next_prefix(b"\xff\xff"), None);
    }
}
