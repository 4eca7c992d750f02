//! Finds everything valid in the bytes of one segment. Total: any bytes whatever give an answer.

use pegasus_types::LogLocation;

use crate::format::{
    BATCH_HEADER_LEN, BatchHeader, Kind, RECORD_HEADER_LEN, RecordHeader, decode_batch_header,
};
use crate::roster::Roster;

/// A stretch of a segment: one whole batch, or bytes between whole batches.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    pub at: u64,
    pub end: u64,
    /// The batch is complete and every byte of it verified.
    pub whole: bool,
    /// In the order in which they lie there; of a broken piece whatever is valid by itself.
    pub entries: Vec<Found>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Found {
    Batch(BatchHeader),
    Record(RecordHeader, LogLocation),
    /// The header is valid, the body is not.
    BodyLost(RecordHeader),
    Roster(RecordHeader, Roster),
}

/// Scans `data` from `start` on; `data[0]` is byte 0 of segment `number`.
pub(crate) fn scan(data: &[u8], start: u64, number: u64, seed: u32) -> Vec<Piece> {
    let s = Scanner { data, number, seed };
    let mut pieces = Vec::new();
    let mut at = (start as usize).min(data.len());
    while at < data.len() {
        let piece = s.whole_batch(at).unwrap_or_else(|| s.broken(at));
        at = piece.end as usize;
        pieces.push(piece);
    }
    pieces
}

struct Scanner<'a> {
    data: &'a [u8],
    number: u64,
    seed: u32,
}

impl Scanner<'_> {
    fn whole_batch(&self, at: usize) -> Option<Piece> {
        let header = decode_batch_header(&self.data[at..], self.seed, at as u64)?;
        let end = at.checked_add(header.length as usize)?;
        if header.length < BATCH_HEADER_LEN as u32 || end > self.data.len() {
            return None;
        }
        let mut entries = vec![Found::Batch(header)];
        let (mut p, mut records_crc) = (at + BATCH_HEADER_LEN, 0);
        while p < end {
            let (found, next) = self.record(p)?;
            let crc = match &found {
                Found::Record(h, _) | Found::Roster(h, _) => h.crc,
                Found::BodyLost(_) | Found::Batch(_) => return None,
            };
            records_crc = crc32c::crc32c_append(records_crc, &crc.to_le_bytes());
            entries.push(found);
            p = next;
        }
        let complete =
            p == end && entries.len() - 1 == header.count as usize && records_crc == header.records_crc;
        complete.then_some(Piece { at: at as u64, end: end as u64, whole: true, entries })
    }

    /// The record whose header starts at `p`, and where the next one would.
    fn record(&self, p: usize) -> Option<(Found, usize)> {
        let header = RecordHeader::decode(&self.data[p..], self.seed, p as u64)?;
        let body_at = p + RECORD_HEADER_LEN;
        let next = body_at + header.body_len as usize;
        let Some(body) = self.data.get(body_at..next).filter(|b| header.body_matches(b)) else {
            return Some((Found::BodyLost(header), next));
        };
        let found = match header.kind {
            Kind::Mutation => {
                let place =
                    LogLocation { segment: self.number, offset: body_at as u64, len: header.body_len };
                Found::Record(header, place)
            }
            Kind::Roster => Found::Roster(header, Roster::decode(body)?),
        };
        Some((found, next))
    }

    /// From a place where no whole batch starts to the next place where one does, or the end.
    fn broken(&self, at: usize) -> Piece {
        let mut entries = Vec::new();
        let mut p = at;
        while p < self.data.len() {
            // Both magics are looked for by the decoders; most places fail on these two bytes.
            if let Some(header) = decode_batch_header(&self.data[p..], self.seed, p as u64) {
                if p > at && self.whole_batch(p).is_some() {
                    break;
                }
                entries.push(Found::Batch(header));
                p += BATCH_HEADER_LEN;
            } else if let Some((found, next)) = self.record(p) {
                // The length of a lost body may be trusted (its header is verified) unless it leads past what
                // is there.
                p = if next <= self.data.len() { next } else { p + RECORD_HEADER_LEN };
                entries.push(found);
            } else {
                p += 1;
            }
        }
        Piece { at: at as u64, end: p as u64, whole: false, entries }
    }
}
