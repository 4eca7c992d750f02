//! The bytes of a segment, little-endian.
//!
//! ```text
//! segment  = header (64) | batch | batch | ...
//! batch    = header (48) | record | record | ...        one write
//! record   = header (84) | body                         the body is the mutation's, contiguous
//!
//! segment header: magic 8 | version u32 | crc u32 | log id u64 | number u64 | zeros
//! batch header:   crc u32 | magic u16 | version u8 | 0 | length u32 | count u32 | first log seq u64
//!                 | mark segment u64 | mark offset u64 | previous batch's crc u32 | records' crc u32
//! record header:  crc u32 | magic u16 | kind u8 | flags u8 | body len u32 | log seq u32 | copy id u64
//!                 | app i32 | index i32 | decree i64 | ballot i64 | origin i64 | timestamp u64 | previous decree i64
//!                 | checksum u32 | copy seq u32 | decree - committed i32
//! ```
//!
//! **Every header proves itself.** Its checksum starts from the log's random id and the segment's number and
//! covers its own offset: neither an older file's bytes nor log bytes inside somebody's value pass for a
//! header. So a reader that has met a bad byte goes on at the next byte that starts a valid header, and what
//! is lost is the one record that was hit; nothing has to be padded to block boundaries for that.
//! A body is covered by the mutation's own end to end checksum, which its record header carries.
//!
//! **Two counters find every loss.** `log seq` counts the records of the log, `copy seq` those of one copy,
//! and `previous decree` is the highest decree that the copy had logged before: so a gap tells how many
//! records are missing, whose they were, and up to which decree they reached.

use pegasus_types::{Ballot, Decree, Gpid, Mutation};

use crate::Record;

pub const VERSION: u8 = 1;
pub const SEGMENT_HEADER_LEN: usize = 64;
pub const BATCH_HEADER_LEN: usize = 48;
pub const RECORD_HEADER_LEN: usize = 84;
/// A length beyond this is damage. Far above any frame that a client or peer may send.
pub const MAX_BODY_LEN: usize = 256 << 20;

const SEGMENT_MAGIC: [u8; 8] = *b"PGSMLOG\n";
const BATCH_MAGIC: u16 = 0xBA7C;
const RECORD_MAGIC: u16 = 0x4EC0;

/// One life of one partition on this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CopyKey {
    pub gpid: Gpid,
    pub copy_id: u64,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    pub segment: u64,
    pub offset: u64,
}

pub fn segment_name(number: u64) -> String {
    format!("log.{number:012}")
}

/// None for files that are not segments.
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log.")?;
    let number = digits.parse().ok()?;
    (segment_name(number) == name).then_some(number)
}

/// Where the checksums of a segment's headers start.
pub fn seed(log_id: u64, segment: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&log_id.to_le_bytes()), &segment.to_le_bytes())
}

fn header_crc(seed: u32, offset: u64, after_crc: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &offset.to_le_bytes()), after_crc)
}

fn u16_at(b: &[u8], i: usize) -> u16 {
    u16::from_le_bytes(chunk(b, i))
}

fn u32_at(b: &[u8], i: usize) -> u32 {
    u32::from_le_bytes(chunk(b, i))
}

fn u64_at(b: &[u8], i: usize) -> u64 {
    u64::from_le_bytes(chunk(b, i))
}

fn i64_at(b: &[u8], i: usize) -> i64 {
    i64::from_le_bytes(chunk(b, i))
}

fn chunk<const N: usize>(b: &[u8], i: usize) -> [u8; N] {
    // Only called on arrays whose length the callers have just established.
    let mut out = [0; N];
    out.copy_from_slice(&b[i..i + N]);
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentHeader {
    Valid {
        log_id: u64,
        number: u64,
    },
    /// Written by a later release.
    Newer {
        version: u32,
    },
    Invalid,
}

pub fn encode_segment_header(log_id: u64, number: u64) -> [u8; SEGMENT_HEADER_LEN] {
    let mut h = [0; SEGMENT_HEADER_LEN];
    h[..8].copy_from_slice(&SEGMENT_MAGIC);
    h[8..12].copy_from_slice(&u32::from(VERSION).to_le_bytes());
    h[16..24].copy_from_slice(&log_id.to_le_bytes());
    h[24..32].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c::crc32c(&h);
    h[12..16].copy_from_slice(&crc.to_le_bytes());
    h
}

pub fn decode_segment_header(data: &[u8]) -> SegmentHeader {
    let Some(h) = data.first_chunk::<SEGMENT_HEADER_LEN>() else { return SegmentHeader::Invalid };
    let mut unsigned = *h;
    unsigned[12..16].fill(0);
    if h[..8] != SEGMENT_MAGIC || crc32c::crc32c(&unsigned) != u32_at(h, 12) {
        return SegmentHeader::Invalid;
    }
    match u32_at(h, 8) {
        v if v == u32::from(VERSION) => SegmentHeader::Valid { log_id: u64_at(h, 16), number: u64_at(h, 24) },
        version => SegmentHeader::Newer { version },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Of the header; what the next batch carries as `previous`.
    pub crc: u32,
    /// Of the whole batch, header included.
    pub length: u32,
    pub count: u32,
    /// Number of its first record (rosters are not counted).
    pub first_seq: u64,
    /// Up to here the log was synced before this batch was written.
    pub mark: Position,
    /// Checksum of the last batch before it that is not a roster; 0 for the first of all.
    pub previous: u32,
    /// Over the checksums of the record headers.
    pub records_crc: u32,
}

impl BatchHeader {
    /// Writes the header into the first bytes of `batch`, which already holds the records, and returns its
    /// crc. `length` and `crc` of self are not looked at.
    pub fn seal(&self, batch: &mut [u8], seed: u32, offset: u64) -> u32 {
        let length =
            u32::try_from(batch.len()).expect("a batch is bounded by max_batch_bytes and MAX_BODY_LEN");
        let h = &mut batch[..BATCH_HEADER_LEN];
        h[4..6].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        h[6] = VERSION;
        h[7] = 0;
        h[8..12].copy_from_slice(&length.to_le_bytes());
        h[12..16].copy_from_slice(&self.count.to_le_bytes());
        h[16..24].copy_from_slice(&self.first_seq.to_le_bytes());
        h[24..32].copy_from_slice(&self.mark.segment.to_le_bytes());
        h[32..40].copy_from_slice(&self.mark.offset.to_le_bytes());
        h[40..44].copy_from_slice(&self.previous.to_le_bytes());
        h[44..48].copy_from_slice(&self.records_crc.to_le_bytes());
        let crc = header_crc(seed, offset, &h[4..]);
        h[..4].copy_from_slice(&crc.to_le_bytes());
        crc
    }
}

/// `data` starts at `offset` of the segment with that seed. None = no valid batch header starts here.
pub fn decode_batch_header(data: &[u8], seed: u32, offset: u64) -> Option<BatchHeader> {
    let h = data.first_chunk::<BATCH_HEADER_LEN>()?;
    if u16_at(h, 4) != BATCH_MAGIC || u32_at(h, 0) != header_crc(seed, offset, &h[4..]) {
        return None;
    }
    Some(BatchHeader {
        crc: u32_at(h, 0),
        length: u32_at(h, 8),
        count: u32_at(h, 12),
        first_seq: u64_at(h, 16),
        mark: Position { segment: u64_at(h, 24), offset: u64_at(h, 32) },
        previous: u32_at(h, 40),
        records_crc: u32_at(h, 44),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Mutation,
    /// See `crate::roster`.
    Roster,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub crc: u32,
    pub kind: Kind,
    /// Flag 1, see [`Record::cuts`].
    pub cuts: bool,
    pub body_len: u32,
    /// Low half of the record's number in the log.
    pub log_seq: u32,
    pub copy: CopyKey,
    pub decree: Decree,
    pub ballot: Ballot,
    pub origin: Ballot,
    pub committed: Decree,
    pub timestamp_us: u64,
    /// Highest decree that the copy had in the log before this record; 0 = this is its first.
    pub previous: Decree,
    /// End to end checksum of the mutation; of a roster the crc of its body.
    pub checksum: u32,
    /// 1 for the first record of the copy.
    pub copy_seq: u32,
}

impl RecordHeader {
    pub fn of(record: &Record, log_seq: u32, copy_seq: u32, previous: Decree) -> Self {
        let m = &record.mutation;
        Self {
            crc: 0,
            kind: Kind::Mutation,
            cuts: record.cuts,
            body_len: u32::try_from(m.body.len()).expect("checked against MAX_BODY_LEN on entry"),
            log_seq,
            copy: CopyKey { gpid: m.gpid, copy_id: record.copy_id },
            decree: m.decree,
            ballot: record.ballot,
            origin: m.origin,
            committed: record.committed,
            timestamp_us: m.timestamp_us,
            previous,
            checksum: m.checksum,
            copy_seq,
        }
    }

    pub fn of_roster(body: &[u8], log_seq: u32) -> Self {
        Self {
            crc: 0,
            kind: Kind::Roster,
            cuts: false,
            body_len: u32::try_from(body.len()).expect("bounded by the number of copies on a disk"),
            log_seq,
            copy: CopyKey { gpid: Gpid::new(0, 0), copy_id: 0 },
            decree: Decree::ZERO,
            ballot: Ballot::ZERO,
            origin: Ballot::ZERO,
            committed: Decree::ZERO,
            timestamp_us: 0,
            previous: Decree::ZERO,
            checksum: crc32c::crc32c(body),
            copy_seq: 0,
        }
    }

    /// Appends header and body to `out`; `offset` is where the header will lie. Returns the header's crc.
    pub fn encode(&self, out: &mut Vec<u8>, seed: u32, offset: u64, body: &[u8]) -> u32 {
        let mut h = [0; RECORD_HEADER_LEN];
        h[4..6].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        h[6] = match self.kind {
            Kind::Mutation => 1,
            Kind::Roster => 2,
        };
        h[7] = u8::from(self.cuts);
        h[8..12].copy_from_slice(&self.body_len.to_le_bytes());
        h[12..16].copy_from_slice(&self.log_seq.to_le_bytes());
        h[16..24].copy_from_slice(&self.copy.copy_id.to_le_bytes());
        h[24..28].copy_from_slice(&self.copy.gpid.app_id.to_le_bytes());
        h[28..32].copy_from_slice(&self.copy.gpid.index.to_le_bytes());
        h[32..40].copy_from_slice(&self.decree.0.to_le_bytes());
        h[40..48].copy_from_slice(&self.ballot.0.to_le_bytes());
        h[48..56].copy_from_slice(&self.origin.0.to_le_bytes());
        h[56..64].copy_from_slice(&self.timestamp_us.to_le_bytes());
        h[64..72].copy_from_slice(&self.previous.0.to_le_bytes());
        h[72..76].copy_from_slice(&self.checksum.to_le_bytes());
        h[76..80].copy_from_slice(&self.copy_seq.to_le_bytes());
        h[80..84].copy_from_slice(&committed_back(self.decree, self.committed).to_le_bytes());
        let crc = header_crc(seed, offset, &h[4..]);
        h[..4].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&h);
        out.extend_from_slice(body);
        crc
    }

    /// `data` starts at `offset`. None = no valid record header starts here.
    pub fn decode(data: &[u8], seed: u32, offset: u64) -> Option<Self> {
        let h = data.first_chunk::<RECORD_HEADER_LEN>()?;
        if u16_at(h, 4) != RECORD_MAGIC || u32_at(h, 0) != header_crc(seed, offset, &h[4..]) {
            return None;
        }
        let kind = match h[6] {
            1 => Kind::Mutation,
            2 => Kind::Roster,
            _ => return None,
        };
        let gpid = Gpid::new(u32_at(h, 24).cast_signed(), u32_at(h, 28).cast_signed());
        let decree = Decree(i64_at(h, 32));
        let body_len = u32_at(h, 8);
        (body_len as usize <= MAX_BODY_LEN).then_some(Self {
            crc: u32_at(h, 0),
            kind,
            cuts: h[7] & 1 != 0,
            body_len,
            log_seq: u32_at(h, 12),
            copy: CopyKey { gpid, copy_id: u64_at(h, 16) },
            decree,
            ballot: Ballot(i64_at(h, 40)),
            origin: Ballot(i64_at(h, 48)),
            committed: committed_of(decree, u32_at(h, 80).cast_signed()),
            timestamp_us: u64_at(h, 56),
            previous: Decree(i64_at(h, 64)),
            checksum: u32_at(h, 72),
            copy_seq: u32_at(h, 76),
        })
    }

    pub fn body_matches(&self, body: &[u8]) -> bool {
        self.checksum
            == match self.kind {
                Kind::Mutation => {
                    Mutation::checksum_of(self.copy.gpid, self.decree, self.origin, self.timestamp_us, body)
                }
                Kind::Roster => crc32c::crc32c(body),
            }
    }

    /// With a body that has been compared by [`body_matches`](Self::body_matches).
    pub fn into_record(self, body: bytes::Bytes) -> Record {
        let mutation = Mutation {
            gpid: self.copy.gpid,
            decree: self.decree,
            origin: self.origin,
            timestamp_us: self.timestamp_us,
            checksum: self.checksum,
            body,
        };
        Record {
            copy_id: self.copy.copy_id,
            ballot: self.ballot,
            committed: self.committed,
            cuts: self.cuts,
            mutation,
        }
    }
}

/// What does not fit becomes a lower commit point, which is always true.
fn committed_back(decree: Decree, committed: Decree) -> i32 {
    let back = decree.0.saturating_sub(committed.0);
    if back >= i64::from(i32::MAX) { i32::MAX } else { i32::try_from(back).unwrap_or(i32::MIN) }
}

fn committed_of(decree: Decree, back: i32) -> Decree {
    if back == i32::MAX { Decree::ZERO } else { Decree(decree.0.saturating_sub(i64::from(back))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(segment_number(&segment_name(7)), Some(7));
        for other in ["log.7", "log.", "log.000000000007.tmp", "marker", "log.+00000000007"] {
            assert_eq!(segment_number(other), None, "{other}");
        }
    }

    #[test]
    fn commit_points_never_grow() {
        for (decree, committed, read) in [
            (10, 7, 7),
            (10, 10, 10),
            (3, 900, 900),
            (i64::from(i32::MAX) + 9, 3, 0),
            (1, i64::MAX, 1 + (1 << 31)),
        ] {
            let back = committed_back(Decree(decree), Decree(committed));
            assert_eq!(committed_of(Decree(decree), back), Decree(read), "{decree} {committed}");
        }
    }

    #[test]
    fn headers_prove_their_place() {
        let m = Mutation::new(Gpid::new(2, 3), Decree(9), Ballot(4), 77, b"body"[..].into());
        let record = Record { copy_id: 5, ballot: Ballot(6), committed: Decree(8), cuts: true, mutation: m };
        let header = RecordHeader::of(&record, 1, 2, Decree(7));
        let mut bytes = Vec::new();
        header.encode(&mut bytes, seed(1, 1), 100, b"body");
        let read = RecordHeader::decode(&bytes, seed(1, 1), 100).expect("as written");
        assert_eq!(RecordHeader { crc: 0, ..read }, header);
        assert!(read.body_matches(b"body") && !read.body_matches(b"bodY"));
        assert_eq!(read.into_record(b"body"[..].into()), record);
        assert_eq!(RecordHeader::decode(&bytes, seed(1, 1), 101), None, "elsewhere in the file");
        assert_eq!(RecordHeader::decode(&bytes, seed(1, 2), 100), None, "in another segment");
        assert_eq!(RecordHeader::decode(&bytes, seed(2, 1), 100), None, "in another log");
        for bit in 0..RECORD_HEADER_LEN * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&damaged, seed(1, 1), 100), None, "bit {bit}");
        }
    }
}
