//! multi_get: some, or a range, of the sort keys of one hash key.

use bytes::Bytes;
use pegasus_types::data::{KeyValue, MultiGetRequest, MultiGetResponse, StorageError};
use pegasus_types::hash;

use super::pattern::Pattern;
use super::range::{self, KeyRange};
use super::{Budget, MOST_BYTES, ReadAt, live, valid_key};
use crate::engine::{EngineError, PartitionEngine, View};
use crate::schema::Value;

pub fn multi_get(
    request: &MultiGetRequest,
    engine: &dyn PartitionEngine,
    at: &ReadAt,
) -> Result<MultiGetResponse, EngineError> {
    let Some(prefix) = valid_key(&request.hash_key, b"") else { return Ok(refused()) };
    if !request.sort_keys.is_empty() {
        return points(request, &*engine.view()?, at);
    }
    let Some(filter) = Pattern::new(request.sort_key_filter_type, &request.sort_key_filter_pattern) else {
        return Ok(refused());
    };
    let Some(range) = range_of(request, &prefix, &filter) else { return Ok(refused()) };
    if range.is_empty() {
        return Ok(MultiGetResponse::default());
    }
    ranged(request, &range, prefix.len(), &filter, &*engine.view()?, at)
}

fn refused() -> MultiGetResponse {
    MultiGetResponse { error: StorageError::InvalidArgument.code(), ..Default::default() }
}

/// What was gathered so far.
struct Gathered {
    kvs: Vec<KeyValue>,
    bytes: u64,
    no_value: bool,
}

impl Gathered {
    fn add(&mut self, sort_key: Bytes, value: &Value) {
        self.bytes += (sort_key.len() + if self.no_value { 0 } else { value.data_len() }) as u64;
        let value = if self.no_value { Bytes::new() } else { value.data() };
        self.kvs.push(KeyValue { key: sort_key, value, expire_ts_seconds: None });
    }

    fn answer(self, complete: bool) -> MultiGetResponse {
        let error = if complete { StorageError::Ok } else { StorageError::Incomplete };
        MultiGetResponse { error: error.code(), kvs: self.kvs, ..Default::default() }
    }
}

/// The smaller of a limit that the request may set (> 0) and ours.
fn count_limit(requested: i32, ours: u32) -> usize {
    u32::try_from(requested).ok().filter(|&n| n > 0).map_or(ours, |n| n.min(ours)) as usize
}

/// Listed sort keys, in the order of the list; filters, bounds and reverse are ignored.
fn points(request: &MultiGetRequest, view: &dyn View, at: &ReadAt) -> Result<MultiGetResponse, EngineError> {
    let max_count = count_limit(request.max_kv_count, at.limits.multi_get_iterations);
    let max_bytes = u64::try_from(request.max_kv_size).ok().filter(|&n| n > 0).unwrap_or(MOST_BYTES);
    let mut got = Gathered { kvs: Vec::new(), bytes: 0, no_value: request.no_value };
    for sort_key in &request.sort_keys {
        let Some(key) = valid_key(&request.hash_key, sort_key) else { return Ok(refused()) };
        let Some(value) = live(&view, &key, at.epoch_now)? else { continue };
        if got.kvs.len() >= max_count || got.bytes >= max_bytes.min(MOST_BYTES) {
            return Ok(got.answer(false));
        }
        got.add(sort_key.clone(), &value);
    }
    Ok(got.answer(true))
}

/// None when a bound is no valid key.
fn range_of(request: &MultiGetRequest, prefix: &Bytes, filter: &Pattern) -> Option<KeyRange> {
    let key = |sort_key: &[u8]| hash::encode_key(&request.hash_key, sort_key);
    let mut range = KeyRange {
        lo: range::bound(key(&request.start_sortkey)?, request.start_inclusive),
        hi: if request.stop_sortkey.is_empty() {
            range::end_of(prefix)
        } else {
            range::bound(key(&request.stop_sortkey)?, request.stop_inclusive)
        },
    };
    if let Some(start) = filter.prefix() {
        let start = key(start)?;
        range.raise_to(start.clone());
        range.lower_to_end_of(&start);
    }
    Some(range)
}

fn ranged(
    request: &MultiGetRequest,
    range: &KeyRange,
    prefix_len: usize,
    filter: &Pattern,
    view: &dyn View,
    at: &ReadAt,
) -> Result<MultiGetResponse, EngineError> {
    let limits = &at.limits;
    let max_count = count_limit(request.max_kv_count, limits.multi_get_iterations);
    let ours = if limits.multi_get_bytes > 0 { limits.multi_get_bytes } else { MOST_BYTES };
    let max_bytes = u64::try_from(request.max_kv_size).ok().filter(|&n| n > 0).map_or(ours, |n| n.min(ours));

    let mut got = Gathered { kvs: Vec::new(), bytes: 0, no_value: request.no_value };
    let mut budget = Budget::new(limits);
    let mut complete = true;
    let (lo, hi) = range.as_slices();
    for row in view.range(lo, hi, request.reverse) {
        let (key, value) = row?;
        // There is a record more than the limits allow to look at.
        if got.kvs.len() >= max_count
            || budget.looked_at >= limits.multi_get_iterations
            || got.bytes >= max_bytes
            || !budget.look()
        {
            complete = false;
            break;
        }
        let sort_key = key.slice(prefix_len..);
        if !value.is_expired(at.epoch_now) && filter.matches(&sort_key) {
            got.add(sort_key, &value);
        }
    }
    if request.reverse {
        got.kvs.reverse();
    }
    Ok(got.answer(complete))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ops::ReadLimits;
    use crate::ops::test_support::{AT, READ_AT, Store};

    /// `a` to `e` under `h`, `c` expired; neighbours on both sides.
    fn store() -> Store {
        let mut store = Store::default();
        for sort_key in ["a", "b", "d", "e"] {
            store.put("h", sort_key, "12345");
        }
        store.put_until("h", "c", "12345", AT.epoch_now.cast_signed());
        store.put("g", "z", "x");
        store.put("i", "", "x");
        store
    }

    fn ask() -> MultiGetRequest {
        MultiGetRequest { hash_key: "h".into(), start_inclusive: true, ..Default::default() }
    }

    /// The error and the sort keys, joined.
    fn keys(request: &MultiGetRequest, at: &ReadAt) -> (i32, String) {
        let got = multi_get(request, store().engine(), at).unwrap();
        (got.error, got.kvs.iter().map(|kv| std::str::from_utf8(&kv.key).unwrap()).collect())
    }

    fn with(edit: impl FnOnce(&mut MultiGetRequest)) -> MultiGetRequest {
        let mut request = ask();
        edit(&mut request);
        request
    }

    const OK: i32 = 0;
    const INVALID: i32 = 4;
    const INCOMPLETE: i32 = 7;

    #[test]
    fn ranges_filters_and_limits() {
        for (line, request, want) in [
            (line!(), ask(), (OK, "abde")),
            (line!(), with(|r| r.start_inclusive = false), (OK, "abde")),
            (line!(), with(|r| r.start_sortkey = "b".into()), (OK, "bde")),
            (line!(), with(|r| (r.start_sortkey, r.start_inclusive) = ("b".into(), false)), (OK, "de")),
            (line!(), with(|r| r.stop_sortkey = "d".into()), (OK, "ab")),
            (line!(), with(|r| (r.stop_sortkey, r.stop_inclusive) = ("d".into(), true)), (OK, "abd")),
            (line!(), with(|r| (r.start_sortkey, r.stop_sortkey) = ("d".into(), "b".into())), (OK, "")),
            (line!(), with(|r| (r.start_sortkey, r.stop_sortkey) = ("d".into(), "d".into())), (OK, "")),
            (line!(), with(|r| r.max_kv_count = 2), (INCOMPLETE, "ab")),
            (line!(), with(|r| r.max_kv_count = 4), (OK, "abde")),
            (line!(), with(|r| r.max_kv_count = -1), (OK, "abde")),
            (line!(), with(|r| (r.max_kv_count, r.reverse) = (2, true)), (INCOMPLETE, "de")),
            (line!(), with(|r| r.reverse = true), (OK, "abde")),
            (line!(), with(|r| r.max_kv_size = 7), (INCOMPLETE, "ab")),
            (line!(), with(|r| r.max_kv_size = 1), (INCOMPLETE, "a")),
            (line!(), with(|r| (r.max_kv_size, r.no_value) = (3, true)), (INCOMPLETE, "abd")),
            (
                line!(),
                with(|r| (r.sort_key_filter_type, r.sort_key_filter_pattern) = (2, "b".into())),
                (OK, "b"),
            ),
            (
                line!(),
                with(|r| (r.sort_key_filter_type, r.sort_key_filter_pattern) = (2, "c".into())),
                (OK, ""),
            ),
            (
                line!(),
                with(|r| (r.sort_key_filter_type, r.sort_key_filter_pattern) = (1, "e".into())),
                (OK, "e"),
            ),
            (
                line!(),
                with(|r| (r.sort_key_filter_type, r.sort_key_filter_pattern) = (3, "x".into())),
                (OK, ""),
            ),
            (line!(), with(|r| r.sort_key_filter_type = 3), (OK, "abde")),
            (line!(), with(|r| r.sort_key_filter_type = 4), (INVALID, "")),
            (line!(), with(|r| r.hash_key = vec![0; 0xffff].into()), (INVALID, "")),
            (line!(), with(|r| r.hash_key = "none".into()), (OK, "")),
        ] {
            assert_eq!(keys(&request, &READ_AT), (want.0, want.1.to_owned()), "line {line}");
        }
    }

    #[test]
    fn a_prefix_filter_and_an_exclusive_start_agree() {
        let request = with(|r| {
            (r.start_sortkey, r.start_inclusive) = ("b".into(), false);
            (r.sort_key_filter_type, r.sort_key_filter_pattern) = (2, "b".into());
        });
        assert_eq!(keys(&request, &READ_AT), (OK, String::new()));
    }

    #[test]
    fn our_own_limits_end_it_too() {
        let limited = |edit: fn(&mut ReadLimits)| {
            let mut at = READ_AT;
            edit(&mut at.limits);
            keys(&ask(), &at)
        };
        assert_eq!(limited(|l| l.multi_get_iterations = 3), (INCOMPLETE, "ab".into()), "expired ones count");
        assert_eq!(limited(|l| l.multi_get_iterations = 5), (OK, "abde".into()));
        assert_eq!(limited(|l| l.multi_get_bytes = 6), (INCOMPLETE, "a".into()));
        assert_eq!(limited(|l| l.multi_get_bytes = 0), (OK, "abde".into()));
    }

    #[test]
    fn time_ends_it() {
        let mut store = Store::default();
        for i in 0..300 {
            store.put("h", &format!("{i:03}"), "v");
        }
        let at = ReadAt { limits: ReadLimits { time: Duration::ZERO, ..READ_AT.limits }, ..READ_AT };
        let got = multi_get(&ask(), store.engine(), &at).unwrap();
        assert_eq!((got.error, got.kvs.len()), (INCOMPLETE, Budget::CLOCK_EVERY as usize - 1));
    }

    #[test]
    fn listed_sort_keys() {
        let listed = |edit: fn(&mut MultiGetRequest)| {
            let mut request = MultiGetRequest {
                hash_key: "h".into(),
                sort_keys: ["e", "c", "x", "a", "b", "a"].map(Bytes::from).to_vec(),
                // All of these are ignored.
                reverse: true,
                sort_key_filter_type: 9,
                start_sortkey: "z".into(),
                ..Default::default()
            };
            edit(&mut request);
            keys(&request, &READ_AT)
        };
        assert_eq!(listed(|_| ()), (OK, "eaba".into()));
        assert_eq!(listed(|r| r.max_kv_count = 2), (INCOMPLETE, "ea".into()));
        assert_eq!(listed(|r| r.max_kv_count = 4), (OK, "eaba".into()));
        assert_eq!(listed(|r| r.max_kv_size = 7), (INCOMPLETE, "ea".into()));
        assert_eq!(listed(|r| r.sort_keys.push(vec![0; 70_000].into())), (INVALID, String::new()));
    }

    #[test]
    fn values_and_no_values() {
        for no_value in [false, true] {
            for sort_keys in [vec![], vec![Bytes::from("a")]] {
                let request = with(|r| (r.no_value, r.sort_keys) = (no_value, sort_keys));
                let got = multi_get(&request, store().engine(), &READ_AT).unwrap();
                assert_eq!(&got.kvs[0].value[..], if no_value { &b""[..] } else { b"12345" });
                assert_eq!(got.kvs[0].expire_ts_seconds, None);
            }
        }
    }
}
