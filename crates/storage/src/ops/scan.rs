//! Scanners: a range of the partition, page by page, as it was when the scanner was opened.

use std::collections::BTreeMap;

use bytes::Bytes;
use pegasus_types::Millis;
use pegasus_types::data::{GetScannerRequest, KeyValue, SCAN_COMPLETED, ScanResponse, StorageError};
use pegasus_types::hash;

use super::pattern::Pattern;
use super::range::{self, KeyRange};
use super::{Budget, ReadAt};
use crate::engine::{EngineError, PartitionEngine, View};
use crate::schema::Value;

/// Scanners of one partition that wait for their next page. Each pins a view; the one that has waited longest
/// makes room, and its client opens another from where it was.
pub const MAX_CONTEXTS: usize = 1000;
/// A scanner that nobody asks for so long is gone.
pub const EXPIRE_MS: u64 = 5 * 60 * 1000;

/// Which keys belong to a partition. A split leaves keys of the other half behind until compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashCheck {
    pub partition_index: i32,
    pub partition_count: i32,
}

impl HashCheck {
    fn is_mine(self, key: &[u8]) -> bool {
        hash::encoded_key_hash(key)
            .is_some_and(|hash| hash::partition_of(hash, self.partition_count) == self.partition_index)
    }
}

/// The scanners of one partition between their pages. An id is good for one page: the next page has another.
#[derive(Debug)]
pub struct ScanContexts {
    /// Counts from a random start, so that ids of other replicas and earlier lives mean nothing here.
    next_id: i64,
    waiting: BTreeMap<i64, Context>,
}

#[derive(Debug)]
struct Context {
    view: Box<dyn View>,
    rest: KeyRange,
    spec: Spec,
    since: Millis,
}

/// What is wanted of each row.
#[derive(Debug)]
struct Spec {
    batch: usize,
    hash_key: Pattern,
    sort_key: Pattern,
    hash_check: Option<HashCheck>,
    no_value: bool,
    return_expire_ts: bool,
    only_count: bool,
}

impl Default for ScanContexts {
    fn default() -> Self {
        Self::new()
    }
}

impl ScanContexts {
    pub fn new() -> Self {
        Self::starting_at(i64::from(rand::random::<u32>() >> 1) << 32)
    }

    fn starting_at(next_id: i64) -> Self {
        Self { next_id, waiting: BTreeMap::new() }
    }

    /// Opens a scanner and reads its first page.
    #[cfg(test)]
    pub(super) fn get_scanner(
        &mut self,
        request: &GetScannerRequest,
        engine: &dyn PartitionEngine,
        hash_check: Option<HashCheck>,
        at: &ReadAt,
        now: Millis,
    ) -> Result<ScanResponse, EngineError> {
        Ok(match open(request, engine, hash_check, at, now)? {
            Begun::Page(job) => self.finish(job.read(at)?, now),
            Begun::Answered(response) => response,
        })
    }

    #[cfg(test)]
    pub(super) fn scan(
        &mut self,
        context_id: i64,
        at: &ReadAt,
        now: Millis,
    ) -> Result<ScanResponse, EngineError> {
        Ok(match self.resume(context_id, now) {
            Begun::Page(job) => self.finish(job.read(at)?, now),
            Begun::Answered(response) => response,
        })
    }

    /// The next page, to be read by the caller, on any thread. NotFound for an id that was used, cleared, has expired
    /// or is not ours.
    pub fn resume(&mut self, context_id: i64, now: Millis) -> Begun {
        match self.waiting.remove(&context_id) {
            Some(context) if now.since(context.since) <= EXPIRE_MS => Begun::Page(PageJob(context)),
            _ => Begun::Answered(failed(StorageError::NotFound)),
        }
    }

    /// Keeps the scanner of a page that was read when there is more, and gives the answer.
    pub fn finish(&mut self, read: PageRead, now: Millis) -> ScanResponse {
        let PageRead { rest, mut response } = read;
        response.context_id = match rest {
            Some(mut context) => {
                context.since = now;
                self.keep(context)
            }
            None => SCAN_COMPLETED,
        };
        response
    }

    /// The client needs no more pages.
    pub fn clear(&mut self, context_id: i64) {
        self.waiting.remove(&context_id);
    }

    /// For a replica that is primary no longer.
    pub fn clear_all(&mut self) {
        self.waiting.clear();
    }

    /// Drops what nobody asked for in time; returns how many. To be called now and then.
    pub fn expire(&mut self, now: Millis) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|_, context| now.since(context.since) <= EXPIRE_MS);
        before - self.waiting.len()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn keep(&mut self, context: Context) -> i64 {
        if self.waiting.len() >= MAX_CONTEXTS {
            // Ids grow, so the first has waited longest.
            self.waiting.pop_first();
        }
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(0);
        self.waiting.insert(id, context);
        id
    }
}

/// A request for a page, as far as the loop has to see to it.
#[derive(Debug)]
pub enum Begun {
    Page(PageJob),
    /// There is nothing to read.
    Answered(ScanResponse),
}

/// A page that is still to be read.
#[derive(Debug)]
pub struct PageJob(Context);

/// A page, with what is left of its scanner.
#[derive(Debug)]
pub struct PageRead {
    rest: Option<Context>,
    response: ScanResponse,
}

impl PageJob {
    /// At most how many records it looks at, when nothing is filtered.
    pub fn most_records(&self) -> Option<usize> {
        let Spec { batch, hash_key, sort_key, hash_check, .. } = &self.0.spec;
        (hash_key.matches_all() && sort_key.matches_all() && hash_check.is_none()).then_some(*batch)
    }

    pub fn read(self, at: &ReadAt) -> Result<PageRead, EngineError> {
        let (mut context, mut response) = (self.0, ScanResponse::default());
        let more = context.read_page(&mut response, at)?;
        Ok(PageRead { rest: more.then_some(context), response })
    }
}

/// Opens a scanner; its first page is left to be read by the caller, on any thread. `hash_check` is given while the
/// table's partitions may hold foreign keys (table env `replica.split.validate_partition_hash`).
pub fn open(
    request: &GetScannerRequest,
    engine: &dyn PartitionEngine,
    hash_check: Option<HashCheck>,
    at: &ReadAt,
    now: Millis,
) -> Result<Begun, EngineError> {
    let patterns = (
        Pattern::new(request.hash_key_filter_type, &request.hash_key_filter_pattern),
        Pattern::new(request.sort_key_filter_type, &request.sort_key_filter_pattern),
    );
    let (Some(hash_key), Some(sort_key)) = patterns else {
        return Ok(Begun::Answered(failed(StorageError::InvalidArgument)));
    };
    let mut rest = KeyRange {
        lo: range::bound(request.start_key.clone(), request.start_inclusive),
        hi: range::bound(request.stop_key.clone(), request.stop_inclusive),
    };
    if let Some(prefix) = hash_key.prefix() {
        // Longer hash keys lie above, whatever they begin with, so nothing can be said of the end.
        let Some(start) = hash::encode_key(prefix, b"") else {
            return Ok(Begun::Answered(failed(StorageError::InvalidArgument)));
        };
        rest.raise_to(start);
    }
    let most = at.limits.scan_iterations as usize;
    let spec = Spec {
        batch: usize::try_from(request.batch_size).ok().filter(|&n| n > 0).map_or(most, |n| n.min(most)),
        hash_key,
        sort_key,
        hash_check: hash_check.filter(|_| request.validate_partition_hash.unwrap_or(true)),
        no_value: request.no_value,
        return_expire_ts: request.return_expire_ts.unwrap_or(false),
        only_count: request.only_return_count.unwrap_or(false),
    };
    if rest.is_empty() {
        let kv_count = spec.only_count.then_some(0);
        let empty = ScanResponse { context_id: SCAN_COMPLETED, kv_count, ..Default::default() };
        return Ok(Begun::Answered(empty));
    }
    Ok(Begun::Page(PageJob(Context { view: engine.view()?, rest, spec, since: now })))
}

fn failed(error: StorageError) -> ScanResponse {
    ScanResponse { error: error.code(), context_id: SCAN_COMPLETED, ..Default::default() }
}

impl Context {
    /// Whether there are more records after this page.
    fn read_page(&mut self, response: &mut ScanResponse, at: &ReadAt) -> Result<bool, EngineError> {
        let mut budget = Budget::new(&at.limits);
        let mut count = 0;
        let mut last = None;
        let mut more = false;
        let (lo, hi) = self.rest.as_slices();
        for row in self.view.range(lo, hi, false) {
            let (key, value) = row?;
            if count >= self.spec.batch || budget.looked_at >= at.limits.scan_iterations || !budget.look() {
                more = true;
                break;
            }
            last = Some(key.clone());
            if self.spec.wants(&key, &value, at.epoch_now) {
                count += 1;
                if !self.spec.only_count {
                    response.kvs.push(self.spec.row(key, &value));
                }
            }
        }
        if self.spec.only_count {
            response.kv_count = Some(i32::try_from(count).unwrap_or(i32::MAX));
        }
        if let Some(last) = last {
            self.rest.lo = range::bound(last, false);
        }
        Ok(more)
    }
}

impl Spec {
    fn wants(&self, key: &[u8], value: &Value, epoch_now: u32) -> bool {
        let Some((hash_key, sort_key)) = hash::decode_key(key) else { return false };
        !value.is_expired(epoch_now)
            && self.hash_key.matches(hash_key)
            && self.sort_key.matches(sort_key)
            && self.hash_check.is_none_or(|check| check.is_mine(key))
    }

    fn row(&self, key: Bytes, value: &Value) -> KeyValue {
        KeyValue {
            key,
            value: if self.no_value { Bytes::new() } else { value.data() },
            expire_ts_seconds: self.return_expire_ts.then(|| value.expire_ts().cast_signed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pegasus_types::hash::{decode_key, encode_key};

    use super::*;
    use crate::ops::ReadLimits;
    use crate::ops::test_support::{AT, READ_AT, Store};

    const NOW: Millis = Millis(1_000_000);

    /// Hash keys `a`, `b`, `ab` with sort keys 1 to 3 each; `b` 2 is expired.
    fn store() -> Store {
        let mut store = Store::default();
        for hash_key in ["a", "b", "ab"] {
            for sort_key in ["1", "2", "3"] {
                store.put(hash_key, sort_key, "value");
            }
        }
        store.put_until("b", "2", "value", AT.epoch_now.cast_signed());
        store
    }

    fn full() -> GetScannerRequest {
        GetScannerRequest {
            start_key: Bytes::from_static(b"\0\0"),
            stop_key: Bytes::from_static(b"\xff\xff"),
            start_inclusive: true,
            batch_size: 100,
            ..Default::default()
        }
    }

    fn with(edit: impl FnOnce(&mut GetScannerRequest)) -> GetScannerRequest {
        let mut request = full();
        edit(&mut request);
        request
    }

    fn names(response: &ScanResponse) -> String {
        let name = |kv: &KeyValue| {
            let (h, s) = decode_key(&kv.key).unwrap();
            format!("{}{}", std::str::from_utf8(h).unwrap(), std::str::from_utf8(s).unwrap())
        };
        response.kvs.iter().map(name).collect::<Vec<_>>().join(" ")
    }

    fn first_page(contexts: &mut ScanContexts, request: &GetScannerRequest, store: &Store) -> ScanResponse {
        contexts.get_scanner(request, store.engine(), None, &READ_AT, NOW).unwrap()
    }

    #[test]
    fn one_page() {
        let key = |h: &str, s: &str| encode_key(h.as_bytes(), s.as_bytes()).unwrap();
        for (line, request, want) in [
            (line!(), full(), "a1 a2 a3 b1 b3 ab1 ab2 ab3"),
            (line!(), with(|r| r.start_key = key("a", "2")), "a2 a3 b1 b3 ab1 ab2 ab3"),
            (
                line!(),
                with(|r| (r.start_key, r.start_inclusive) = (key("a", "2"), false)),
                "a3 b1 b3 ab1 ab2 ab3",
            ),
            (line!(), with(|r| r.stop_key = key("a", "2")), "a1"),
            (line!(), with(|r| (r.stop_key, r.stop_inclusive) = (key("a", "2"), true)), "a1 a2"),
            (line!(), with(|r| r.stop_key = Bytes::from_static(b"\0\0")), ""),
            (
                line!(),
                with(|r| (r.hash_key_filter_type, r.hash_key_filter_pattern) = (2, "a".into())),
                "a1 a2 a3 ab1 ab2 ab3",
            ),
            (
                line!(),
                with(|r| (r.hash_key_filter_type, r.hash_key_filter_pattern) = (3, "b".into())),
                "b1 b3 ab1 ab2 ab3",
            ),
            (
                line!(),
                with(|r| (r.sort_key_filter_type, r.sort_key_filter_pattern) = (1, "3".into())),
                "a3 b3 ab3",
            ),
        ] {
            let got = first_page(&mut ScanContexts::new(), &request, &store());
            assert_eq!(
                (got.error, got.context_id, &names(&got)[..]),
                (0, SCAN_COMPLETED, want),
                "line {line}"
            );
            assert_eq!(got.kv_count, None);
        }
        for bad in [with(|r| r.hash_key_filter_type = 4), with(|r| r.sort_key_filter_type = -1)] {
            let got = first_page(&mut ScanContexts::new(), &bad, &store());
            assert_eq!((got.error, got.context_id), (4, SCAN_COMPLETED));
        }
    }

    #[test]
    fn pages_have_fresh_single_use_ids() {
        let (store, mut contexts) = (store(), ScanContexts::new());
        let first = first_page(&mut contexts, &with(|r| r.batch_size = 3), &store);
        assert_eq!(names(&first), "a1 a2 a3");
        let second = contexts.scan(first.context_id, &READ_AT, NOW).unwrap();
        assert_eq!(names(&second), "b1 b3 ab1");
        assert!(first.context_id >= 0 && second.context_id > first.context_id);
        assert_eq!(contexts.scan(first.context_id, &READ_AT, NOW).unwrap().error, 1, "used");
        let third = contexts.scan(second.context_id, &READ_AT, NOW).unwrap();
        assert_eq!((&names(&third)[..], third.context_id), ("ab2 ab3", SCAN_COMPLETED));
        assert!(contexts.is_empty());
    }

    #[test]
    fn an_exactly_full_last_page_is_the_end() {
        let mut contexts = ScanContexts::new();
        let got = first_page(&mut contexts, &with(|r| r.batch_size = 8), &store());
        assert_eq!((got.kvs.len(), got.context_id), (8, SCAN_COMPLETED));
    }

    #[test]
    fn a_scan_sees_what_was_there_when_it_was_opened() {
        let (mut store, mut contexts) = (store(), ScanContexts::new());
        let first = first_page(&mut contexts, &with(|r| r.batch_size = 1), &store);
        store.put("a", "2", "changed");
        store.put("a", "4", "new");
        store.remove("a", "3");
        let mut at = READ_AT;
        at.limits.scan_iterations = 2;
        let second = contexts.scan(first.context_id, &at, NOW).unwrap();
        assert_eq!((&names(&second)[..], &second.kvs[0].value[..]), ("a2", &b"value"[..]));
        let third = contexts.scan(second.context_id, &READ_AT, NOW).unwrap();
        assert_eq!(names(&third), "a3");
    }

    #[test]
    fn expiry_is_judged_page_by_page() {
        let (mut store, mut contexts) = (Store::default(), ScanContexts::new());
        store.put("a", "1", "v");
        store.put_until("a", "2", "v", AT.epoch_now.cast_signed() + 10);
        let first = first_page(&mut contexts, &with(|r| r.batch_size = 1), &store);
        let later = ReadAt { epoch_now: AT.epoch_now + 10, ..READ_AT };
        let second = contexts.scan(first.context_id, &later, NOW).unwrap();
        assert_eq!((second.kvs.len(), second.context_id), (0, SCAN_COMPLETED));
    }

    #[test]
    fn what_is_returned() {
        let (mut store, mut contexts) = (Store::default(), ScanContexts::new());
        store.put_until("a", "1", "v", 2_000_000_000);
        let got = first_page(
            &mut contexts,
            &with(|r| (r.no_value, r.return_expire_ts) = (true, Some(true))),
            &store,
        );
        assert_eq!((&got.kvs[0].value[..], got.kvs[0].expire_ts_seconds), (&b""[..], Some(2_000_000_000)));
        let got = first_page(&mut contexts, &full(), &store);
        assert_eq!((&got.kvs[0].value[..], got.kvs[0].expire_ts_seconds), (&b"v"[..], None));

        let counted = with(|r| (r.only_return_count, r.batch_size) = (Some(true), 5));
        let store = self::store();
        let first = first_page(&mut contexts, &counted, &store);
        assert_eq!((first.kvs.len(), first.kv_count), (0, Some(5)));
        let second = contexts.scan(first.context_id, &READ_AT, NOW).unwrap();
        assert_eq!((second.kv_count, second.context_id), (Some(3), SCAN_COMPLETED));
        let empty = with(|r| (r.only_return_count, r.stop_key) = (Some(true), Bytes::from_static(b"\0\0")));
        assert_eq!(first_page(&mut contexts, &empty, &store).kv_count, Some(0));
    }

    #[test]
    fn foreign_keys_are_skipped_when_asked() {
        let (mut store, mut contexts) = (Store::default(), ScanContexts::new());
        (0..40).for_each(|i| store.put(&format!("k{i}"), "", "v"));
        let check = HashCheck { partition_index: 1, partition_count: 2 };
        let mut count = |request: &GetScannerRequest, check| {
            contexts.get_scanner(request, store.engine(), check, &READ_AT, NOW).unwrap().kvs.len()
        };
        let mine = count(&full(), Some(check));
        let others = count(&full(), Some(HashCheck { partition_index: 0, ..check }));
        assert!(mine > 5 && others > 5 && mine + others == 40);
        assert_eq!(count(&full(), None), 40);
        assert_eq!(count(&with(|r| r.validate_partition_hash = Some(false)), Some(check)), 40);
    }

    #[test]
    fn limits_give_short_pages_not_errors() {
        let mut store = Store::default();
        (0..600).for_each(|i| store.put("h", &format!("{i:03}"), "v"));
        let filtered = with(|r| (r.sort_key_filter_type, r.sort_key_filter_pattern) = (3, "99".into()));
        for limits in [
            ReadLimits { scan_iterations: 50, ..READ_AT.limits },
            ReadLimits { time: Duration::ZERO, ..READ_AT.limits },
        ] {
            let at = ReadAt { limits, ..READ_AT };
            let mut contexts = ScanContexts::new();
            let mut page = contexts.get_scanner(&filtered, store.engine(), None, &at, NOW).unwrap();
            let (mut pages, mut rows) = (1, page.kvs.len());
            while page.context_id != SCAN_COMPLETED {
                page = contexts.scan(page.context_id, &at, NOW).unwrap();
                assert_eq!(page.error, 0);
                (pages, rows) = (pages + 1, rows + page.kvs.len());
            }
            assert_eq!(rows, 6);
            assert!(pages > 3, "{pages}");
        }
    }

    #[test]
    fn contexts_expire_are_cleared_and_bounded() {
        let (store, mut contexts) = (store(), ScanContexts::starting_at(i64::MAX - 1));
        let one = with(|r| r.batch_size = 1);
        let mut ids = vec![];
        for _ in 0..3 {
            ids.push(first_page(&mut contexts, &one, &store).context_id);
        }
        assert_eq!(ids, [i64::MAX - 1, i64::MAX, 0], "ids are never negative");
        contexts.clear(ids[1]);
        assert_eq!(contexts.expire(Millis(NOW.0 + EXPIRE_MS)), 0);
        let late = Millis(NOW.0 + EXPIRE_MS + 1);
        assert_eq!(contexts.scan(ids[0], &READ_AT, late).unwrap().error, 1);
        assert_eq!((contexts.expire(late), contexts.len()), (1, 0));

        let first = first_page(&mut contexts, &one, &store).context_id;
        for _ in 0..MAX_CONTEXTS {
            first_page(&mut contexts, &one, &store);
        }
        assert_eq!(contexts.len(), MAX_CONTEXTS);
        assert_eq!(contexts.scan(first, &READ_AT, NOW).unwrap().error, 1, "the oldest made room");
        contexts.clear_all();
        assert!(contexts.is_empty());
        assert_eq!(contexts.scan(-1, &READ_AT, NOW).unwrap().error, 1);
    }

    #[test]
    fn ids_of_two_lives_differ() {
        let (a, b) = (ScanContexts::new().next_id, ScanContexts::new().next_id);
        assert!(a >= 0 && b >= 0 && a != b && a % (1 << 32) == 0);
    }
}
