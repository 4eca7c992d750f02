//! What the operations of clients mean (wire-protocol.md 6), one file per family.
//!
//! A write is resolved by the primary before it is logged: [`resolve`] reads what it must, decides once, and
//! appends blind, absolute puts and deletes to a mutation body (replication.md 10.4). Requests that are wrong are
//! answered by a response with an error number, never by a panic or an [`EngineError`]: that is left for what
//! the engine could not read.
//!
//! ```text
//! put, remove, multi_put, multi_remove       write.rs        read nothing
//! incr                                       incr.rs         reads one key
//! check_and_set, check_and_mutate            check.rs        read one key
//! get, ttl, batch_get                        point_read.rs
//! multi_get                                  multi_get.rs
//! sortkey_count                              count.rs
//! get_scanner, scan, clear_scanner           scan.rs         [`ScanContexts`]
//! ```

mod check;
mod count;
mod incr;
mod integer;
mod multi_get;
mod pattern;
mod point_read;
mod range;
mod scan;
mod write;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
pub(crate) mod test_support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use pegasus_types::data::{ReadRequest, ReadResponseBody, StorageError, WriteRequest, WriteResponse};
use pegasus_types::hash;
use pegasus_types::mutation::{BodyBuilder, OP_HEADER_LEN};

use crate::engine::{EngineError, MAX_KEY_LEN, PartitionEngine, View};
use crate::schema::{self, TimeTag, Value};

pub use scan::{Begun, HashCheck, PageJob, PageRead, ScanContexts, open as open_scanner};

/// Newest values of keys: the engine, overlaid with what is in flight when a primary resolves writes.
pub trait Reader {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError>;
}

impl Reader for &dyn PartitionEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError> {
        PartitionEngine::get(*self, key)
    }
}

impl Reader for &dyn View {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError> {
        View::get(*self, key)
    }
}

/// When and where a write is decided.
#[derive(Clone, Copy, Debug)]
pub struct DecideAt {
    /// The mutation's timestamp, microseconds since 1970: the time tag of its rows.
    pub timestamp_us: u64,
    /// Now, in seconds since the Pegasus epoch.
    pub epoch_now: u32,
    /// Lifetime of rows that are written without one; 0 = for ever.
    pub default_ttl_s: u32,
    /// Number of this cluster among those that duplicate to one another, 1 to 127.
    pub cluster_id: u8,
}

impl DecideAt {
    fn time_tag(&self) -> TimeTag {
        TimeTag::new(self.timestamp_us, self.cluster_id, false)
    }

    /// `expire_ts_seconds` of a request as it is stored.
    fn expire_ts(&self, requested: i32) -> u32 {
        match requested {
            0 if self.default_ttl_s > 0 => self.epoch_now.saturating_add(self.default_ttl_s),
            // The field is a u32 that clients put into an i32.
            given => given.cast_unsigned(),
        }
    }

    fn put(&self, body: &mut BodyBuilder, key: &[u8], data: &[u8], expire_ts: i32) {
        body.put(key, [&schema::header(self.expire_ts(expire_ts), self.time_tag()), data]);
    }
}

/// What became of a write request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Its operations are in the body; answer when they are applied, with their decree.
    Write(WriteResponse),
    /// Nothing is to be written, because of what was read (a check that failed): answer it as a read, when the
    /// state that it saw is committed and the lease holds (replication.md 10.4).
    Unchanged(WriteResponse),
    /// The request itself is wrong: answer at once.
    Refused(WriteResponse),
}

/// What one request may become in a mutation's body. A multi_put repeats its hash key before every sort key, so that a
/// small frame can ask for thousands of times its size; peers take no frame above 64 MiB.
pub const MAX_RESOLVED_BYTES: usize = 32 << 20;

/// Whether the rows of `keys`, `(sort key, value)` lengths below one hash key, fit into [`MAX_RESOLVED_BYTES`].
fn fits(hash_key: &[u8], keys: impl Iterator<Item = (usize, usize)>) -> bool {
    let each = OP_HEADER_LEN + schema::HEADER_LEN + 2 + hash_key.len();
    keys.fold(0_usize, |sum, (sort_key, value)| sum.saturating_add(each + sort_key + value))
        <= MAX_RESOLVED_BYTES
}

/// Decides a write. Appends to `body` only when the answer is [`Resolved::Write`], so several requests may share
/// a body as long as none of them reads (wire-protocol.md 3: puts and removes).
pub fn resolve(
    request: &WriteRequest,
    reader: &dyn Reader,
    at: &DecideAt,
    body: &mut BodyBuilder,
) -> Result<Resolved, EngineError> {
    match request {
        WriteRequest::Put(put) => Ok(write::put(put, at, body)),
        WriteRequest::Remove { key } => Ok(write::remove(key, body)),
        WriteRequest::MultiPut(put) => Ok(write::multi_put(put, at, body)),
        WriteRequest::MultiRemove(remove) => Ok(write::multi_remove(remove, body)),
        WriteRequest::Incr(incr) => incr::incr(incr, reader, at, body),
        WriteRequest::CheckAndSet(cas) => check::check_and_set(cas, reader, at, body),
        WriteRequest::CheckAndMutate(cam) => check::check_and_mutate(cam, reader, at, body),
    }
}

/// Bounds of reads, so that one request cannot hold the node (wire-protocol.md 6.4, 6.5).
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// Records that one multi_get looks at, and the most that it returns
    /// (`rocksdb_multi_get_max_iteration_count`).
    pub multi_get_iterations: u32,
    /// Bytes of keys and values after which a ranged multi_get stops
    /// (`rocksdb_multi_get_max_iteration_size`); 0 = [`MOST_BYTES`].
    pub multi_get_bytes: u64,
    /// Records that one scan page looks at, and the most that it returns (`rocksdb_max_iteration_count`).
    pub scan_iterations: u32,
    /// Time that one ranged read may take (`rocksdb_iteration_threshold_time_ms`).
    pub time: Duration,
}

/// Keys and values of one answer, beyond which it ends with Incomplete: one small frame can ask for the same large row
/// thousands of times, which would fit neither into memory nor into a frame.
pub const MOST_BYTES: u64 = 60 << 20;

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            multi_get_iterations: 3000,
            multi_get_bytes: 30 << 20,
            scan_iterations: 1000,
            time: Duration::from_secs(30),
        }
    }
}

/// When a read runs, and how much it may do.
#[derive(Clone, Copy, Debug)]
pub struct ReadAt {
    /// Now, in seconds since the Pegasus epoch: what is expired by then is not there.
    pub epoch_now: u32,
    pub limits: ReadLimits,
}

/// Answers every read but those of scanners, which [`ScanContexts`] answers; asked for one, it says NotSupported.
/// `server`, `app_id` and `partition_index` of the response are left to the caller.
pub fn read(
    request: &ReadRequest,
    engine: &dyn PartitionEngine,
    at: &ReadAt,
) -> Result<ReadResponseBody, EngineError> {
    Ok(match request {
        ReadRequest::Get { key } => ReadResponseBody::Get(point_read::get(key, engine, at)?),
        ReadRequest::Ttl { key } => ReadResponseBody::Ttl(point_read::ttl(key, engine, at)?),
        ReadRequest::BatchGet(keys) => ReadResponseBody::BatchGet(point_read::batch_get(keys, engine, at)?),
        ReadRequest::MultiGet(get) => ReadResponseBody::MultiGet(multi_get::multi_get(get, engine, at)?),
        ReadRequest::SortkeyCount { hash_key } => {
            ReadResponseBody::SortkeyCount(count::sortkey_count(hash_key, engine, at)?)
        }
        ReadRequest::GetScanner(_) | ReadRequest::Scan(_) | ReadRequest::ClearScanner { .. } => {
            ReadResponseBody::Scan(pegasus_types::data::ScanResponse {
                error: StorageError::NotSupported.code(),
                context_id: pegasus_types::data::SCAN_COMPLETED,
                ..Default::default()
            })
        }
    })
}

/// Whether an encoded key from outside may be stored.
fn is_valid_key(key: &[u8]) -> bool {
    key.len() <= MAX_KEY_LEN && hash::decode_key(key).is_some()
}

/// The encoded key, when it may be stored.
fn valid_key(hash_key: &[u8], sort_key: &[u8]) -> Option<Bytes> {
    hash::encode_key(hash_key, sort_key).filter(|key| key.len() <= MAX_KEY_LEN)
}

/// `key`'s value unless it is missing or expired.
fn live(reader: &dyn Reader, key: &[u8], epoch_now: u32) -> Result<Option<Value>, EngineError> {
    Ok(reader.get(key)?.filter(|value| !value.is_expired(epoch_now)))
}

/// How much of a ranged read is done.
struct Budget {
    deadline: Option<Instant>,
    looked_at: u32,
}

impl Budget {
    /// The clock is read once per so many records.
    const CLOCK_EVERY: u32 = 128;

    fn new(limits: &ReadLimits) -> Self {
        Self { deadline: Instant::now().checked_add(limits.time), looked_at: 0 }
    }

    /// Counts a record; false when the time is over.
    fn look(&mut self) -> bool {
        self.looked_at += 1;
        !self.looked_at.is_multiple_of(Self::CLOCK_EVERY)
            || self.deadline.is_none_or(|deadline| Instant::now() < deadline)
    }
}
