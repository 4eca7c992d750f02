//! What keys, values and times the operations are about.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::rows::encode;

/// Texts that are numbers to C, or nearly.
const NUMBERS: [&[u8]; 28] = [
    b"0",
    b"1",
    b"-1",
    b"7",
    b"42",
    b"100",
    b"-100",
    b"+5",
    b" 12",
    b"\t\n 3",
    b"0x10",
    b"-0X1f",
    b"010",
    b"08",
    b"0x",
    b"12 ",
    b"1.5",
    b"1e3",
    b"--1",
    b"- 1",
    b"1\0",
    b" ",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775808",
    b"0x7fffffffffffffff",
    b"0x8000000000000000",
    b"18446744073709551616",
];

/// Keys of one partition.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The first is the one that is used most.
    pub hash_keys: Vec<Bytes>,
    pub sort_keys: Vec<Bytes>,
}

impl Keys {
    /// Few and odd ones: empty, of 0xff, long, beginnings of one another. `is_mine` tells which hash keys belong here.
    pub fn odd(is_mine: &dyn Fn(&[u8]) -> bool) -> Self {
        let mine = |stem: &[u8]| {
            let candidates = (0u32..).map(|n| [stem, n.to_string().as_bytes()].concat());
            Bytes::from(candidates.into_iter().find(|key| is_mine(key)).unwrap_or_default())
        };
        let ff = (0u16..)
            .map(|n| [&[0xff, 0xff][..], &n.to_be_bytes(), &[0xff]].concat())
            .find(|key| is_mine(key))
            .unwrap_or_default();
        let hash_keys =
            vec![mine(b"h"), mine(b"user:"), Bytes::new(), ff.into(), mine(&[0]), mine(&[b'L'; 400])];
        let mut sort_keys: Vec<Bytes> = [
            &b""[..],
            b"a",
            b"aa",
            b"ab",
            b"aab",
            b"b",
            b"ba",
            b"\0",
            b"\0\0",
            b"\xff",
            b"\xff\xff",
            b"a\xff",
            b"a\xff\xff",
            b"zz",
        ]
        .map(Bytes::from_static)
        .to_vec();
        sort_keys.extend((0..18).map(|n| Bytes::from(format!("k{n:02}"))));
        sort_keys.push(vec![b's'; 1500].into());
        Self { hash_keys, sort_keys }
    }

    /// So many that the limits on records come into play.
    pub fn many(is_mine: &dyn Fn(&[u8]) -> bool) -> Self {
        let odd = Self::odd(is_mine);
        let sort_keys = (0..4200).map(|n| Bytes::from(format!("{n:05}"))).collect();
        Self { hash_keys: odd.hash_keys[..2].to_vec(), sort_keys }
    }

    pub fn hash_key(&self, rng: &mut StdRng) -> Bytes {
        match rng.random_range(0..100) {
            0..40 => self.hash_keys[0].clone(),
            40..99 => one(rng, &self.hash_keys).clone(),
            _ => Bytes::from_static(b"nobody has this one"),
        }
    }

    pub fn sort_key(&self, rng: &mut StdRng) -> Bytes {
        match rng.random_range(0..100) {
            0..98 => one(rng, &self.sort_keys).clone(),
            _ => bytes_of(rng, 0..6),
        }
    }

    pub fn key(&self, rng: &mut StdRng) -> Bytes {
        encode(&self.hash_key(rng), &self.sort_key(rng)).unwrap_or_default()
    }

    /// A part of some key, as filters want it.
    pub fn pattern(&self, rng: &mut StdRng) -> Bytes {
        let whole = if rng.random_bool(0.3) { self.hash_key(rng) } else { self.sort_key(rng) };
        if whole.is_empty() || rng.random_bool(0.1) {
            return whole;
        }
        let from = rng.random_range(0..whole.len());
        let to = (from + rng.random_range(0..4)).min(whole.len());
        if rng.random_bool(0.5) { whole.slice(..to - from) } else { whole.slice(from..to) }
    }
}

/// No encoded key, or one that nobody may write: too short, cut off, of an impossible or too great length.
pub fn malformed(rng: &mut StdRng) -> Bytes {
    match rng.random_range(0..6) {
        0 => Bytes::new(),
        1 => Bytes::from_static(b"\0"),
        2 => Bytes::from_static(b"\0\x05abcd"),
        3 => Bytes::from_static(b"\xff\xff"),
        4 => [&[0xff, 0xff][..], &vec![b'x'; 0xffff]].concat().into(),
        _ => [&b"\0\x01h"[..], &vec![b's'; 0x1_0000 - 3]].concat().into(),
    }
}

/// A hash key that is too long, or the longest one that there is.
pub fn long_hash_key(rng: &mut StdRng) -> Bytes {
    vec![b'H'; *one(rng, &[0xfffd, 0xfffe, 0xffff, 0x1_0001])].into()
}

fn number(rng: &mut StdRng) -> Bytes {
    Bytes::from_static(NUMBERS[rng.random_range(0..NUMBERS.len())])
}

pub fn value(rng: &mut StdRng) -> Bytes {
    match rng.random_range(0..100) {
        0..10 => Bytes::new(),
        10..55 => number(rng),
        55..75 => bytes_of(rng, 0..8),
        75..95 => bytes_of(rng, 8..200),
        95..99 => bytes_of(rng, 200..5_000),
        _ => bytes_of(rng, 5_000..40_000),
    }
}

/// What a check compares with.
pub fn operand(rng: &mut StdRng) -> Bytes {
    match rng.random_range(0..10) {
        0..2 => Bytes::new(),
        2..8 => number(rng),
        8 => bytes_of(rng, 0..3),
        _ => value(rng),
    }
}

pub fn increment(rng: &mut StdRng) -> i64 {
    match rng.random_range(0..10) {
        0..6 => rng.random_range(-10..100),
        6 => 0,
        7 => i64::MAX,
        8 => i64::MIN,
        _ => rng.random(),
    }
}

/// Never, long ago, far away, within some seconds, and numbers that fit into no life.
pub fn expire_ts(rng: &mut StdRng, now: u32) -> i32 {
    let now = now.cast_signed();
    match rng.random_range(0..100) {
        0..55 => 0,
        55..75 => now + rng.random_range(100_000..1_000_000),
        75..83 => now - rng.random_range(0..100),
        83 => 1,
        84..95 => now + rng.random_range(1..4),
        95..98 => -1,
        98 => i32::MAX,
        _ => i32::MIN,
    }
}

pub fn bytes_of(rng: &mut StdRng, len: std::ops::Range<usize>) -> Bytes {
    let mut bytes = vec![0; rng.random_range(len)];
    rng.fill_bytes(&mut bytes);
    bytes.into()
}

pub fn one<'a, T>(rng: &mut StdRng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}
