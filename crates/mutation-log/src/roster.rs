//! The first record of every segment: each live copy and how far it had come.
//!
//! It makes the end of a copy's records certain: without it, damage that hits the last records of an idle
//! copy would leave no gap behind. It also carries damage that was found at an earlier start and whose copy
//! has not been quarantined yet, so that a crash in between does not make it forgotten.
//!
//! ```text
//! flags u8 (1 = unsettled) | count u32 | count times:
//!   copy id u64 | app i32 | index i32 | copy seq u32 | highest decree i64 | lost up to i64 (0 none, max unknown)
//! ```

use pegasus_types::{Decree, Gpid};

use crate::error::Lost;
use crate::format::CopyKey;

/// Of a roster without entries.
pub(crate) const EMPTY_LEN: usize = 1 + 4;
const ENTRY_LEN: usize = 8 + 4 + 4 + 4 + 8 + 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RosterEntry {
    pub copy: CopyKey,
    pub copy_seq: u32,
    pub highest: Decree,
    pub lost: Option<Lost>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    /// At the last recovery records were lost that could not be assigned, and the disk's owner has not yet
    /// said that it has dealt with all copies.
    pub unsettled: bool,
    pub entries: Vec<RosterEntry>,
}

impl Roster {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(EMPTY_LEN + self.entries.len() * ENTRY_LEN);
        out.push(u8::from(self.unsettled));
        out.extend(u32::try_from(self.entries.len()).expect("copies on one disk").to_le_bytes());
        for e in &self.entries {
            out.extend(e.copy.copy_id.to_le_bytes());
            out.extend(e.copy.gpid.app_id.to_le_bytes());
            out.extend(e.copy.gpid.index.to_le_bytes());
            out.extend(e.copy_seq.to_le_bytes());
            out.extend(e.highest.0.to_le_bytes());
            let lost = match e.lost {
                None => 0,
                Some(Lost::UpTo(decree)) => decree.0,
                Some(Lost::Unknown) => i64::MAX,
            };
            out.extend(lost.to_le_bytes());
        }
        out
    }

    /// None for bytes that are no roster.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let (flags, rest) = body.split_first()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let (entries, tail) = rest.as_chunks::<ENTRY_LEN>();
        if !tail.is_empty() || entries.len() != u32::from_le_bytes(*count) as usize {
            return None;
        }
        let entries = entries.iter().map(decode_entry).collect();
        Some(Self { unsettled: flags & 1 != 0, entries })
    }
}

fn decode_entry(e: &[u8; ENTRY_LEN]) -> RosterEntry {
    let mut at = 0;
    let mut next = |n: usize| {
        let mut wide = [0; 8];
        wide[..n].copy_from_slice(&e[at..at + n]);
        at += n;
        i64::from_le_bytes(wide)
    };
    let copy_id = next(8).cast_unsigned();
    // Truncation undoes the widening of `next`.
    let gpid = Gpid::new(next(4) as i32, next(4) as i32);
    let copy_seq = next(4) as u32;
    let highest = Decree(next(8));
    let lost = match next(8) {
        0 => None,
        i64::MAX => Some(Lost::Unknown),
        decree => Some(Lost::UpTo(Decree(decree))),
    };
    RosterEntry { copy: CopyKey { gpid, copy_id }, copy_seq, highest, lost }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let entry = |copy_id, lost| RosterEntry {
            copy: CopyKey { gpid: Gpid::new(3, -1), copy_id },
            copy_seq: u32::MAX,
            highest: Decree(1 << 40),
            lost,
        };
        let roster = Roster {
            unsettled: true,
            entries: vec![
                entry(u64::MAX, None),
                entry(1, Some(Lost::UpTo(Decree(7)))),
                entry(2, Some(Lost::Unknown)),
            ],
        };
        assert_eq!(Roster::default().encode().len(), EMPTY_LEN);
        let bytes = roster.encode();
        assert_eq!(Roster::decode(&bytes), Some(roster));
        for len in 0..bytes.len() {
            assert_eq!(Roster::decode(&bytes[..len]), None);
        }
    }
}
