use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// Hash keys are shorter than this: their length has two bytes, and this one is no length.
pub const NO_HASH_KEY_LEN: usize = 0xffff;
/// Our limit, not Pegasus's: an engine counts the bytes of a key with two bytes.
pub const MAX_KEY_LEN: usize = 0xffff;

/// By encoded key. What has expired stays until it is overwritten or removed: a server may still hold it, and may
/// not, which is to be seen where records are counted that are not returned.
pub type Rows = BTreeMap<Bytes, Row>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub value: Bytes,
    pub expiry: Expiry,
}

/// The second in which a record expires. The server computes some of them, so that we know bounds only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub lo: u32,
    pub hi: u32,
}

impl Expiry {
    pub const NEVER: Self = Self::at(0);

    pub const fn at(second: u32) -> Self {
        Self { lo: second, hi: second }
    }

    pub fn is_over(self, now: u32) -> bool {
        self.hi > 0 && self.hi <= now
    }

    /// As it stands in an answer.
    pub fn allows(self, told: i32) -> bool {
        (self.lo..=self.hi).contains(&told.cast_unsigned())
    }
}

impl Row {
    pub fn is_live(&self, now: u32) -> bool {
        !self.expiry.is_over(now)
    }
}

/// None when there can be no such key.
pub fn encode(hash_key: &[u8], sort_key: &[u8]) -> Option<Bytes> {
    if hash_key.len() >= NO_HASH_KEY_LEN || 2 + hash_key.len() + sort_key.len() > MAX_KEY_LEN {
        return None;
    }
    let len = u16::try_from(hash_key.len()).ok()?;
    Some([&len.to_be_bytes(), hash_key, sort_key].concat().into())
}

/// (hash key, sort key)
pub fn decode(key: &[u8]) -> Option<(&[u8], &[u8])> {
    if key.len() < 2 || key.len() > MAX_KEY_LEN {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([key[0], key[1]]));
    if len >= NO_HASH_KEY_LEN || key.len() < 2 + len {
        return None;
    }
    Some((&key[2..2 + len], &key[2 + len..]))
}

/// Between two bounds, of which the lower one may lie above.
pub fn between<'a>(
    rows: &'a Rows,
    lo: Bound<&[u8]>,
    hi: Bound<&'a [u8]>,
) -> impl Iterator<Item = (&'a Bytes, &'a Row)> {
    rows.range::<[u8], _>((lo, Bound::Unbounded)).take_while(move |(key, _)| match hi {
        Bound::Included(hi) => key[..] <= *hi,
        Bound::Excluded(hi) => key[..] < *hi,
        Bound::Unbounded => true,
    })
}

/// Filters on keys (wire-protocol.md 6.4). None when there is no such kind.
pub fn filter(kind: i32, pattern: &[u8], text: &[u8]) -> Option<bool> {
    let fits = match kind {
        0 => true,
        1 => is_within(pattern, text),
        2 => text.starts_with(pattern),
        3 => text.ends_with(pattern),
        _ => return None,
    };
    Some(fits)
}

pub fn is_within(part: &[u8], text: &[u8]) -> bool {
    (0..=text.len()).any(|at| text[at..].starts_with(part))
}
