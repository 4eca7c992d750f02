//! The state of a partition, and whether an answer is the one that it gives.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use pegasus_types::data::*;

use super::moment::Moment;
use super::rows::{Row, Rows, between, decode, encode, filter};
use super::scans::Scanner;

pub const OK: i32 = 0;
pub const NOT_FOUND: i32 = 1;
pub const INVALID_ARGUMENT: i32 = 4;
pub const INCOMPLETE: i32 = 7;
pub const TRY_AGAIN: i32 = 13;

/// Records that one multi_get returns or looks at.
pub const MULTI_GET_RECORDS: usize = 3000;
/// Bytes after which a ranged multi_get stops.
const MULTI_GET_BYTES: u64 = 30 << 20;

/// An answer that is none of the allowed ones; these are told.
#[derive(Debug)]
pub struct Difference(pub String);

/// Whether records that have expired still lie in the engine, which nobody promises: both is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    Kept,
    Gone,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Partition {
    pub rows: Rows,
    /// By the id that is good for their next page.
    pub scanners: BTreeMap<i64, Scanner>,
    /// Seconds that a write without expiry lives; 0 = for ever.
    pub default_ttl: u32,
    /// Whether a scanner sees the partition as it was when it was opened; else as it is.
    pub has_snapshots: bool,
}

impl Partition {
    pub fn new(default_ttl: u32, has_snapshots: bool) -> Self {
        Self { rows: Rows::new(), scanners: BTreeMap::new(), default_ttl, has_snapshots }
    }

    pub fn live(&self, key: &[u8], now: u32) -> Option<&Row> {
        self.rows.get(key).filter(|row| row.is_live(now))
    }

    /// Executes a write and compares. The answer's bookkeeping fields are cleared.
    pub fn answers_write(
        &mut self,
        request: &WriteRequest,
        answer: &WriteResponse,
        has_decree: bool,
        at: Moment,
    ) -> Result<(), Difference> {
        let (want, written) = self.write(request, at);
        if (&want, written) == (answer, has_decree) {
            return Ok(());
        }
        let decree = if written { "with" } else { "without" };
        Err(Difference(format!("{want:?} {decree} a decree")))
    }

    /// Compares the answer to a read, and keeps track of scanners. Its bookkeeping fields are cleared.
    pub fn answers_read(
        &mut self,
        request: &ReadRequest,
        answer: &ReadResponseBody,
        at: Moment,
    ) -> Result<(), Difference> {
        match (request, answer) {
            (ReadRequest::Get { key }, ReadResponseBody::Get(got)) => same(got, &self.get(key, at)),
            (ReadRequest::Ttl { key }, ReadResponseBody::Ttl(got)) => self.check_ttl(key, got, at),
            (ReadRequest::SortkeyCount { hash_key }, ReadResponseBody::SortkeyCount(got)) => {
                same(got, &self.count(hash_key, at))
            }
            (ReadRequest::BatchGet(keys), ReadResponseBody::BatchGet(got)) => {
                same(got, &self.batch_get(keys, at))
            }
            (ReadRequest::MultiGet(request), ReadResponseBody::MultiGet(got)) => {
                let want = self.multi_get(request, at, Expired::Gone);
                if *got == want { Ok(()) } else { same(got, &self.multi_get(request, at, Expired::Kept)) }
            }
            (ReadRequest::GetScanner(request), ReadResponseBody::Scan(got)) => {
                self.check_first_page(request, got, at)
            }
            (ReadRequest::Scan(request), ReadResponseBody::Scan(got)) => {
                self.check_next_page(request.context_id, got, at)
            }
            _ => Err(Difference("an answer of another kind".to_owned())),
        }
    }

    fn get(&self, key: &[u8], at: Moment) -> ReadResponse {
        let (error, value) = match (decode(key), self.live(key, at.now)) {
            (None, _) => (INVALID_ARGUMENT, Bytes::new()),
            (_, None) => (NOT_FOUND, Bytes::new()),
            (_, Some(row)) => (OK, row.value.clone()),
        };
        ReadResponse { error, value, ..Default::default() }
    }

    fn check_ttl(&self, key: &[u8], got: &TtlResponse, at: Moment) -> Result<(), Difference> {
        let (error, seconds) = match (decode(key), self.live(key, at.now)) {
            (None, _) => (INVALID_ARGUMENT, 0..=0),
            (_, None) => (NOT_FOUND, 0..=0),
            (_, Some(Row { expiry, .. })) if expiry.hi == 0 => (OK, -1..=-1),
            (_, Some(Row { expiry, .. })) => (OK, left(expiry.lo, at.to)..=left(expiry.hi, at.from)),
        };
        let fits = seconds.contains(&got.ttl_seconds);
        let want = TtlResponse {
            error,
            ttl_seconds: if fits { got.ttl_seconds } else { *seconds.end() },
            ..Default::default()
        };
        same(got, &want)
    }

    fn count(&self, hash_key: &[u8], at: Moment) -> CountResponse {
        let Some(prefix) = encode(hash_key, b"") else {
            return CountResponse { error: INVALID_ARGUMENT, ..Default::default() };
        };
        let count = self.of(&prefix).filter(|(_, row)| row.is_live(at.now)).count();
        CountResponse { count: i64::try_from(count).unwrap_or(i64::MAX), ..Default::default() }
    }

    fn batch_get(&self, request: &BatchGetRequest, at: Moment) -> BatchGetResponse {
        let refused = BatchGetResponse { error: INVALID_ARGUMENT, ..Default::default() };
        let mut data = Vec::new();
        for FullKey { hash_key, sort_key } in &request.keys {
            let Some(key) = encode(hash_key, sort_key) else { return refused };
            if let Some(row) = self.live(&key, at.now) {
                let (hash_key, sort_key) = (hash_key.clone(), sort_key.clone());
                data.push(FullData { hash_key, sort_key, value: row.value.clone() });
            }
        }
        if request.keys.is_empty() { refused } else { BatchGetResponse { data, ..Default::default() } }
    }

    fn multi_get(&self, request: &MultiGetRequest, at: Moment, expired: Expired) -> MultiGetResponse {
        let refused = MultiGetResponse { error: INVALID_ARGUMENT, ..Default::default() };
        let Some(prefix) = encode(&request.hash_key, b"") else { return refused };
        let limit = |asked: i32| u64::try_from(asked).ok().filter(|n| *n > 0);
        let max_count = usize::try_from(request.max_kv_count)
            .ok()
            .filter(|n| *n > 0)
            .unwrap_or(usize::MAX)
            .min(MULTI_GET_RECORDS);
        let mut gathered = Gathered { kvs: Vec::new(), bytes: 0, no_value: request.no_value };

        if !request.sort_keys.is_empty() {
            let max_bytes = limit(request.max_kv_size).unwrap_or(u64::MAX);
            for sort_key in &request.sort_keys {
                let Some(key) = encode(&request.hash_key, sort_key) else { return refused };
                let Some(row) = self.live(&key, at.now) else { continue };
                if gathered.kvs.len() >= max_count || gathered.bytes >= max_bytes {
                    return gathered.answer(INCOMPLETE);
                }
                gathered.add(sort_key.clone(), row);
            }
            return gathered.answer(OK);
        }

        let (kind, pattern) = (request.sort_key_filter_type, &request.sort_key_filter_pattern);
        let (start, stop) = (&request.start_sortkey, &request.stop_sortkey);
        if filter(kind, pattern, b"").is_none() {
            return refused;
        }
        let is_in_range = |sort_key: &[u8]| {
            let above_start = sort_key > &start[..] || sort_key == &start[..] && request.start_inclusive;
            let below_stop =
                stop.is_empty() || sort_key < &stop[..] || sort_key == &stop[..] && request.stop_inclusive;
            // A prefix narrows the range; the other filters look at records and pass them over.
            above_start && below_stop && (kind != 2 || sort_key.starts_with(pattern))
        };
        let mut rows: Vec<_> = self
            .of(&prefix)
            .map(|(key, row)| (key.slice(prefix.len()..), row))
            .filter(|(sort_key, row)| {
                is_in_range(sort_key) && (expired == Expired::Kept || row.is_live(at.now))
            })
            .collect();
        if request.reverse {
            rows.reverse();
        }
        let max_bytes = limit(request.max_kv_size).unwrap_or(u64::MAX).min(MULTI_GET_BYTES);
        let mut error = OK;
        for (looked_at, (sort_key, row)) in rows.into_iter().enumerate() {
            if gathered.kvs.len() >= max_count
                || looked_at >= MULTI_GET_RECORDS
                || gathered.bytes >= max_bytes
            {
                error = INCOMPLETE;
                break;
            }
            if row.is_live(at.now) && filter(kind, pattern, &sort_key) == Some(true) {
                gathered.add(sort_key, row);
            }
        }
        if request.reverse {
            gathered.kvs.reverse();
        }
        gathered.answer(error)
    }

    /// The records of one hash key, whose encoded form with an empty sort key is `prefix`.
    fn of<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Bytes, &'a Row)> {
        between(&self.rows, Bound::Included(prefix), Bound::Unbounded)
            .take_while(move |(key, _)| key.starts_with(prefix))
    }
}

struct Gathered {
    kvs: Vec<KeyValue>,
    bytes: u64,
    no_value: bool,
}

impl Gathered {
    fn add(&mut self, key: Bytes, row: &Row) {
        let value = if self.no_value { Bytes::new() } else { row.value.clone() };
        self.bytes += (key.len() + value.len()) as u64;
        self.kvs.push(KeyValue { key, value, expire_ts_seconds: None });
    }

    fn answer(self, error: i32) -> MultiGetResponse {
        MultiGetResponse { error, kvs: self.kvs, ..Default::default() }
    }
}

/// The field is an i32; a life that does not fit into it is as long as it can tell.
fn left(expiry: u32, now: u32) -> i32 {
    i32::try_from(i64::from(expiry) - i64::from(now)).unwrap_or(i32::MAX)
}

pub fn same<T: PartialEq + std::fmt::Debug>(got: &T, want: &T) -> Result<(), Difference> {
    if got == want { Ok(()) } else { Err(Difference(format!("{want:?}"))) }
}
