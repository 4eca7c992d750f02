//! Random requests against a partition and against a plain map that does the same.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use pegasus_types::Millis;
use pegasus_types::data::*;
use pegasus_types::hash::encode_key;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::test_support::{AT, READ_AT, Store, error_of};
use super::*;
use crate::engine::{EngineKind, EngineOptions, new_factory};

const STEPS: usize = 6000;
const LIMITS: ReadLimits =
    ReadLimits { multi_get_iterations: 12, multi_get_bytes: 60, scan_iterations: 7, ..READ_AT.limits };

/// Sort keys and values.
type Kvs = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Clone, Debug, PartialEq)]
struct Record {
    value: Vec<u8>,
    expire: u32,
}

/// The reference: (hash key, sort key) → record.
#[derive(Debug, Default)]
struct Model {
    rows: BTreeMap<(Vec<u8>, Vec<u8>), Record>,
    now: u32,
    ttl: u32,
}

impl Model {
    fn live(&self, hash: &[u8], sort: &[u8]) -> Option<&Record> {
        let record = self.rows.get(&(hash.to_vec(), sort.to_vec()))?;
        (record.expire == 0 || record.expire > self.now).then_some(record)
    }

    fn put(&mut self, hash: &[u8], sort: &[u8], value: &[u8], expire: i32) {
        let expire = match expire {
            0 if self.ttl > 0 => self.now + self.ttl,
            other => other as u32,
        };
        self.rows.insert((hash.to_vec(), sort.to_vec()), Record { value: value.to_vec(), expire });
    }

    fn remove(&mut self, hash: &[u8], sort: &[u8]) {
        self.rows.remove(&(hash.to_vec(), sort.to_vec()));
    }

    /// Records of a hash key, expired ones too, in order.
    fn of(&self, hash: &[u8]) -> Vec<(Vec<u8>, Record)> {
        let of = self.rows.iter().filter(|((h, _), _)| h == hash);
        of.map(|((_, sort), record)| (sort.clone(), record.clone())).collect()
    }
}

fn matches(kind: i32, pattern: &[u8], text: &[u8]) -> bool {
    let text = String::from_utf8(text.to_vec()).unwrap();
    let pattern = std::str::from_utf8(pattern).unwrap();
    match kind {
        1 => text.contains(pattern),
        2 => text.starts_with(pattern),
        3 => text.ends_with(pattern),
        _ => true,
    }
}

struct Run {
    rng: StdRng,
    store: Store,
    model: Model,
}

impl Run {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())]
    }

    fn hash(&mut self) -> Bytes {
        self.pick(&["", "h", "hh", "i"]).into()
    }

    fn sort(&mut self) -> Bytes {
        self.pick(&["", "a", "aa", "ab", "abc", "b", "ba", "c", "d", "e", "ea", "f", "g", "z", "zz"]).into()
    }

    fn value(&mut self) -> Bytes {
        self.pick(&["", "1", "-7", "0x10", "9223372036854775807", "abc", "b", "some longer value"]).into()
    }

    fn expire(&mut self) -> i32 {
        let now = self.model.now.cast_signed();
        // Nothing so old that compaction drops it: limits count expired records that are still there.
        self.pick(&[0, 0, 0, now + 5, now + 50, now, now - 60, -1])
    }

    fn at(&self) -> DecideAt {
        DecideAt { epoch_now: self.model.now, default_ttl_s: self.model.ttl, ..AT }
    }

    fn read_at(&self) -> ReadAt {
        ReadAt { epoch_now: self.model.now, limits: LIMITS }
    }

    fn write(&mut self, request: WriteRequest) -> WriteResponse {
        let at = self.at();
        match self.store.write_at(&request, &at) {
            Resolved::Write(a) | Resolved::Unchanged(a) | Resolved::Refused(a) => a,
        }
    }

    fn read(&self, request: ReadRequest) -> ReadResponseBody {
        read(&request, self.store.engine(), &self.read_at()).unwrap()
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..15 => self.put(),
            15..22 => self.remove(),
            22..30 => self.multi_put(),
            30..35 => self.multi_remove(),
            35..42 => self.incr(),
            42..50 => self.check_and_set(),
            50..57 => self.check_and_mutate(),
            57..65 => self.get_and_ttl(),
            65..70 => self.count_and_batch(),
            70..85 => self.multi_get(),
            85..95 => self.scan(),
            _ => {
                self.model.now += self.rng.random_range(0..4);
                self.model.ttl = self.pick(&[0, 0, 30]);
            }
        }
    }

    fn put(&mut self) {
        let (h, s, value, expire_ts_seconds) = (self.hash(), self.sort(), self.value(), self.expire());
        let key = encode_key(&h, &s).unwrap();
        self.write(WriteRequest::Put(UpdateRequest { key, value: value.clone(), expire_ts_seconds }));
        self.model.put(&h, &s, &value, expire_ts_seconds);
    }

    fn remove(&mut self) {
        let (h, s) = (self.hash(), self.sort());
        self.write(WriteRequest::Remove { key: encode_key(&h, &s).unwrap() });
        self.model.remove(&h, &s);
    }

    fn multi_put(&mut self) {
        let (h, expire_ts_seconds) = (self.hash(), self.expire());
        let kvs: Vec<_> = (0..self.rng.random_range(0..5))
            .map(|_| KeyValue { key: self.sort(), value: self.value(), expire_ts_seconds: None })
            .collect();
        let request = MultiPutRequest { hash_key: h.clone(), kvs: kvs.clone(), expire_ts_seconds };
        let WriteResponse::Update(answer) = self.write(WriteRequest::MultiPut(request)) else { panic!() };
        assert_eq!(answer.error, if kvs.is_empty() { 4 } else { 0 });
        kvs.iter().for_each(|kv| self.model.put(&h, &kv.key, &kv.value, expire_ts_seconds));
    }

    fn multi_remove(&mut self) {
        let h = self.hash();
        let sort_keys: Vec<_> = (0..self.rng.random_range(1..4)).map(|_| self.sort()).collect();
        let request = MultiRemoveRequest { hash_key: h.clone(), sort_keys: sort_keys.clone(), max_count: 0 };
        let WriteResponse::MultiRemove(answer) = self.write(WriteRequest::MultiRemove(request)) else {
            panic!()
        };
        assert_eq!(answer.count, sort_keys.len() as i64);
        sort_keys.iter().for_each(|s| self.model.remove(&h, s));
    }

    fn incr(&mut self) {
        let (h, s, expire) = (self.hash(), self.sort(), self.expire());
        let increment = self.pick(&[0, 1, -1, 1000, i64::MAX, i64::MIN]);
        let request = IncrRequest { key: encode_key(&h, &s).unwrap(), increment, expire_ts_seconds: expire };
        let WriteResponse::Incr(answer) = self.write(WriteRequest::Incr(request)) else { panic!() };
        let old = self.model.live(&h, &s).cloned();
        let number = match old.as_ref().map(|record| &record.value[..]) {
            None | Some(b"") => Some(0),
            Some(b"0x10") => Some(16),
            Some(text) => std::str::from_utf8(text).unwrap().parse::<i64>().ok(),
        };
        match number.map(|n| (n, n.checked_add(increment))) {
            None => assert_eq!((answer.error, answer.new_value), (4, 0)),
            Some((n, None)) => assert_eq!((answer.error, answer.new_value), (4, n)),
            Some((_, Some(sum))) => {
                assert_eq!((answer.error, answer.new_value), (0, sum));
                let kept = old.map_or(0, |record| record.expire.cast_signed());
                let expire = if expire == 0 { kept } else { expire.max(0) };
                self.model.put(&h, &s, sum.to_string().as_bytes(), expire);
            }
        }
    }

    /// Which check, its operand, and whether a value passes: None = it is no number.
    fn check(&mut self) -> (i32, Bytes, impl Fn(Option<&[u8]>) -> Option<bool> + use<>) {
        let kind = self.rng.random_range(0..18);
        let operand = self.pick(&["", "b", "abc", "1", "16"]);
        let number = |text: &[u8]| match text {
            b"0x10" => Some(16),
            text => std::str::from_utf8(text).unwrap().parse::<i64>().ok(),
        };
        let passes = move |value: Option<&[u8]>| match (kind, value) {
            (0, _) => Some(true),
            (1, value) => Some(value.is_none()),
            (2, value) => Some(value.is_none_or(|v| v.is_empty())),
            (3, value) => Some(value.is_some()),
            (4, value) => Some(value.is_some_and(|v| !v.is_empty())),
            (_, None) => Some(false),
            (5..=7, Some(v)) => Some(matches(kind - 4, operand.as_bytes(), v)),
            (8, Some(v)) => Some(v < operand.as_bytes()),
            (9, Some(v)) => Some(v <= operand.as_bytes()),
            (10, Some(v)) => Some(v == operand.as_bytes()),
            (11, Some(v)) => Some(v >= operand.as_bytes()),
            (12, Some(v)) => Some(v > operand.as_bytes()),
            (_, Some(v)) => {
                let (v, o) = (number(v)?, number(operand.as_bytes())?);
                Some([v < o, v <= o, v == o, v >= o, v > o][(kind - 13) as usize])
            }
        };
        (kind, operand.into(), passes)
    }

    /// Compares the answer of a check; whether it passed.
    fn checked(
        &self,
        answer: &WriteResponse,
        value: Option<Vec<u8>>,
        passes: Option<bool>,
        wanted: bool,
    ) -> bool {
        let WriteResponse::Check(answer) = answer else { panic!() };
        let error = match passes {
            Some(true) => 0,
            Some(false) => 13,
            None => 4,
        };
        let value = value.filter(|_| wanted);
        assert_eq!(answer.error, error);
        assert_eq!((answer.check_value_returned, answer.check_value_exist), (wanted, value.is_some()));
        assert_eq!(&answer.check_value[..], &value.unwrap_or_default()[..]);
        passes == Some(true)
    }

    fn check_and_set(&mut self) {
        let (h, check, set, value, expire) =
            (self.hash(), self.sort(), self.sort(), self.value(), self.expire());
        let (kind, operand, passes) = self.check();
        let (other, wanted) = (self.rng.random(), self.rng.random());
        let answer = self.write(WriteRequest::CheckAndSet(CheckAndSetRequest {
            hash_key: h.clone(),
            check_sort_key: check.clone(),
            check_type: kind,
            check_operand: operand,
            set_diff_sort_key: other,
            set_sort_key: set.clone(),
            set_value: value.clone(),
            set_expire_ts_seconds: expire,
            return_check_value: wanted,
        }));
        let seen = self.model.live(&h, &check).map(|record| record.value.clone());
        let passed = passes(seen.as_deref());
        if self.checked(&answer, seen, passed, wanted) {
            self.model.put(&h, if other { &set } else { &check }, &value, expire);
        }
    }

    fn check_and_mutate(&mut self) {
        let (h, check, wanted) = (self.hash(), self.sort(), self.rng.random());
        let (kind, operand, passes) = self.check();
        let mutate_list: Vec<_> = (0..self.rng.random_range(1..4))
            .map(|_| Mutate {
                operation: self.rng.random_range(0..2),
                sort_key: self.sort(),
                value: self.value(),
                set_expire_ts_seconds: self.expire(),
            })
            .collect();
        let answer = self.write(WriteRequest::CheckAndMutate(CheckAndMutateRequest {
            hash_key: h.clone(),
            check_sort_key: check.clone(),
            check_type: kind,
            check_operand: operand,
            mutate_list: mutate_list.clone(),
            return_check_value: wanted,
        }));
        let seen = self.model.live(&h, &check).map(|record| record.value.clone());
        let passed = passes(seen.as_deref());
        if self.checked(&answer, seen, passed, wanted) {
            for step in &mutate_list {
                match step.operation {
                    0 => self.model.put(&h, &step.sort_key, &step.value, step.set_expire_ts_seconds),
                    _ => self.model.remove(&h, &step.sort_key),
                }
            }
        }
    }

    fn get_and_ttl(&mut self) {
        let (h, s) = (self.hash(), self.sort());
        let key = encode_key(&h, &s).unwrap();
        let ReadResponseBody::Get(got) = self.read(ReadRequest::Get { key: key.clone() }) else { panic!() };
        let ReadResponseBody::Ttl(ttl) = self.read(ReadRequest::Ttl { key }) else { panic!() };
        match self.model.live(&h, &s) {
            None => assert_eq!((got.error, ttl.error), (1, 1)),
            Some(record) => {
                assert_eq!((got.error, &got.value[..]), (0, &record.value[..]));
                let left = i64::from(record.expire) - i64::from(self.model.now);
                let left = if record.expire == 0 { -1 } else { left.min(i64::from(i32::MAX)) };
                assert_eq!((ttl.error, i64::from(ttl.ttl_seconds)), (0, left));
            }
        }
    }

    fn count_and_batch(&mut self) {
        let hash_key = self.hash();
        let live =
            self.model.of(&hash_key).iter().filter(|(s, _)| self.model.live(&hash_key, s).is_some()).count();
        let got = self.read(ReadRequest::SortkeyCount { hash_key });
        let ReadResponseBody::SortkeyCount(got) = got else { panic!() };
        assert_eq!((got.error, got.count), (0, live as i64));

        let keys: Vec<_> = (0..4).map(|_| FullKey { hash_key: self.hash(), sort_key: self.sort() }).collect();
        let ReadResponseBody::BatchGet(got) =
            self.read(ReadRequest::BatchGet(BatchGetRequest { keys: keys.clone() }))
        else {
            panic!()
        };
        let want: Vec<_> = keys
            .iter()
            .filter_map(|key| {
                let record = self.model.live(&key.hash_key, &key.sort_key)?;
                Some(FullData {
                    hash_key: key.hash_key.clone(),
                    sort_key: key.sort_key.clone(),
                    value: record.value.clone().into(),
                })
            })
            .collect();
        assert_eq!(got.data, want);
    }

    fn multi_get(&mut self) {
        let listed = self.rng.random_bool(0.3);
        let sort_keys = if listed { (0..6).map(|_| self.sort()).collect() } else { vec![] };
        let request = MultiGetRequest {
            hash_key: self.hash(),
            sort_keys,
            max_kv_count: self.pick(&[0, 0, -1, 1, 3, 100]),
            max_kv_size: self.pick(&[0, 0, 10, 1000]),
            no_value: self.rng.random(),
            start_sortkey: self.sort(),
            stop_sortkey: self.sort(),
            start_inclusive: self.rng.random(),
            stop_inclusive: self.rng.random(),
            sort_key_filter_type: self.rng.random_range(0..4),
            sort_key_filter_pattern: self.pick(&["", "a", "b", "ab"]).into(),
            reverse: self.rng.random(),
        };
        let ReadResponseBody::MultiGet(got) = self.read(ReadRequest::MultiGet(request.clone())) else {
            panic!()
        };
        let got_kvs: Vec<_> = got.kvs.iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec())).collect();
        let (error, kvs) = if listed { self.listed(&request) } else { self.ranged(&request) };
        assert_eq!((got.error, got_kvs), (error, kvs), "{request:?}");
    }

    fn listed(&self, request: &MultiGetRequest) -> (i32, Kvs) {
        let max = if request.max_kv_count > 0 { request.max_kv_count.min(12) } else { 12 };
        let (mut kvs, mut size) = (vec![], 0);
        for sort in &request.sort_keys {
            let Some(record) = self.model.live(&request.hash_key, sort) else { continue };
            if kvs.len() >= max as usize || request.max_kv_size > 0 && size >= request.max_kv_size as usize {
                return (7, kvs);
            }
            let value = if request.no_value { vec![] } else { record.value.clone() };
            size += sort.len() + value.len();
            kvs.push((sort.to_vec(), value));
        }
        (0, kvs)
    }

    fn ranged(&self, request: &MultiGetRequest) -> (i32, Kvs) {
        let (start, stop) = (&request.start_sortkey[..], &request.stop_sortkey[..]);
        let mut rows = self.model.of(&request.hash_key);
        rows.retain(|(sort, _)| {
            let below = &sort[..] < start || &sort[..] == start && !request.start_inclusive;
            let above =
                !stop.is_empty() && (&sort[..] > stop || &sort[..] == stop && !request.stop_inclusive);
            // A prefix filter bounds the range, other filters only choose.
            let outside =
                request.sort_key_filter_type == 2 && !matches(2, &request.sort_key_filter_pattern, sort);
            !below && !above && !outside
        });
        if request.reverse {
            rows.reverse();
        }
        let max_count = if request.max_kv_count > 0 { request.max_kv_count.min(12) } else { 12 } as usize;
        let max_size = if request.max_kv_size > 0 { request.max_kv_size.min(60) } else { 60 } as usize;
        let (mut kvs, mut size, mut complete) = (vec![], 0, true);
        for (looked_at, (sort, record)) in rows.into_iter().enumerate() {
            if kvs.len() >= max_count || looked_at >= 12 || size >= max_size {
                complete = false;
                break;
            }
            let chosen = matches(request.sort_key_filter_type, &request.sort_key_filter_pattern, &sort);
            if chosen && (record.expire == 0 || record.expire > self.model.now) {
                let value = if request.no_value { vec![] } else { record.value };
                size += sort.len() + value.len();
                kvs.push((sort, value));
            }
        }
        if request.reverse {
            kvs.reverse();
        }
        (if complete { 0 } else { 7 }, kvs)
    }

    fn scan(&mut self) {
        let full = self.rng.random_bool(0.5);
        let bound = |run: &mut Self| encode_key(&run.hash(), &run.sort()).unwrap();
        let (start_key, stop_key) = if full {
            (Bytes::from_static(b"\0\0"), Bytes::from_static(b"\xff\xff"))
        } else {
            (bound(self), bound(self))
        };
        let request = GetScannerRequest {
            start_key,
            stop_key,
            start_inclusive: self.rng.random(),
            stop_inclusive: self.rng.random(),
            batch_size: self.pick(&[0, 1, 2, 5, 100]),
            no_value: self.rng.random(),
            hash_key_filter_type: self.rng.random_range(0..4),
            hash_key_filter_pattern: self.pick(&["", "h", "hh", "i"]).into(),
            sort_key_filter_type: self.rng.random_range(0..4),
            sort_key_filter_pattern: self.pick(&["", "a", "b"]).into(),
            return_expire_ts: Some(true),
            only_return_count: Some(self.rng.random_bool(0.2)),
            ..Default::default()
        };
        let mut contexts = ScanContexts::new();
        let (at, now) = (self.read_at(), Millis(0));
        let mut page = contexts.get_scanner(&request, self.store.engine(), None, &at, now).unwrap();
        let (mut kvs, mut count) = (vec![], 0);
        loop {
            assert_eq!(page.error, 0);
            assert!(page.kvs.len() <= 7 && page.kv_count.unwrap_or(0) <= 7);
            count += page.kv_count.unwrap_or(0);
            kvs.append(&mut page.kvs);
            if page.context_id == SCAN_COMPLETED {
                break;
            }
            page = contexts.scan(page.context_id, &at, now).unwrap();
        }
        let want = self.scanned(&request);
        if request.only_return_count == Some(true) {
            assert_eq!((count as usize, kvs.len()), (want.len(), 0));
        } else {
            assert_eq!(kvs, want, "{request:?}");
        }
    }

    fn scanned(&self, request: &GetScannerRequest) -> Vec<KeyValue> {
        let bound = |key: &Bytes, inclusive| {
            if inclusive { Bound::Included(key.clone()) } else { Bound::Excluded(key.clone()) }
        };
        let range = (
            bound(&request.start_key, request.start_inclusive),
            bound(&request.stop_key, request.stop_inclusive),
        );
        let mut rows: Vec<_> = self
            .model
            .rows
            .iter()
            .filter(|((h, s), record)| {
                (record.expire == 0 || record.expire > self.model.now)
                    && matches(request.hash_key_filter_type, &request.hash_key_filter_pattern, h)
                    && matches(request.sort_key_filter_type, &request.sort_key_filter_pattern, s)
            })
            .map(|((h, s), record)| KeyValue {
                key: encode_key(h, s).unwrap(),
                value: if request.no_value { Bytes::new() } else { record.value.clone().into() },
                expire_ts_seconds: Some(record.expire.cast_signed()),
            })
            .filter(|kv| std::ops::RangeBounds::<Bytes>::contains(&range, &kv.key))
            .collect();
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        rows
    }
}

fn run(kind: EngineKind, steps: usize) {
    for seed in 1..=3 {
        println!("seed {seed}");
        let dir = tempfile::tempdir().unwrap();
        let options =
            EngineOptions { memtable_bytes: 8 << 10, cache_bytes: 1 << 20, ..EngineOptions::default() };
        let factory = new_factory(kind, options);
        let store = Store::over(factory.open(dir.path()).unwrap());
        let model = Model { now: AT.epoch_now, ..Model::default() };
        let mut run = Run { rng: StdRng::seed_from_u64(seed), store, model };
        for step in 0..steps {
            run.step();
            if step % 500 == 499 {
                run.store.engine().flush(true).unwrap();
            }
        }
        let empty = WriteRequest::Remove { key: Bytes::new() };
        assert_eq!(error_of(&run.store.write(&empty)), 4);
    }
}

#[test]
fn random_requests_equal_a_map_in_memory() {
    run(EngineKind::Memory, STEPS);
}

#[test]
fn random_requests_equal_a_map_on_lsm() {
    run(EngineKind::Lsm, STEPS);
}

#[test]
fn random_requests_equal_a_map_on_sled() {
    run(EngineKind::Sled, STEPS / 3);
}
