//! Random operations. What comes depends on the seed alone, except for times, which lie around the present.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use pegasus_types::data::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::keys::{self, Keys, expire_ts, one};
use super::rows::encode;

/// Longest thrift message of a write.
pub const MAX_WRITE_BYTES: usize = 1 << 20;
/// Of the requests of one burst, which are all on the way together.
const MAX_BURST: usize = 16;
/// Some writes are done within that.
const MAX_PAUSE_US: u64 = 4000;

#[derive(Clone, Debug)]
pub struct Op {
    pub ask: Ask,
    /// Of reads: through the header that a secondary would answer, too. Here the primary does.
    pub is_backup: bool,
    /// As some clients send it: nobody checks it.
    pub partition_hash: u64,
    /// Before it is sent, when it is in a burst of reads and writes: so that reads arrive when some writes are done.
    pub pause: Duration,
    pub address: Address,
}

impl Op {
    pub fn plain(ask: Ask) -> Self {
        let (partition_hash, pause) = (0, Duration::ZERO);
        Self { ask, is_backup: false, partition_hash, pause, address: Address::Partition }
    }
}

#[derive(Clone, Debug)]
pub enum Ask {
    Write(WriteRequest),
    Read(ReadRequest),
    /// The next page of some scanner, one that is open if there is one.
    NextPage(u32),
    /// No more pages of some scanner.
    Clear(u32),
}

/// For whom the header says that a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    Partition,
    NoSuchTable,
    NoSuchPartition,
    /// No partition at all, as for questions to a server.
    Server,
}

/// What kind of partition is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Few rows, and everything that can happen to them.
    Odd,
    /// More rows than one request may return or look at. None of them expires, because whether an expired one is
    /// looked at is not determined.
    Many,
}

#[derive(Debug)]
pub struct Generator {
    rng: StdRng,
    keys: Keys,
    flavour: Flavour,
    /// What comes before the random part.
    script: VecDeque<Vec<Ask>>,
}

impl Generator {
    pub fn new(seed: u64, flavour: Flavour, is_mine: &dyn Fn(&[u8]) -> bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (keys, script) = match flavour {
            Flavour::Odd => (Keys::odd(is_mine), VecDeque::new()),
            Flavour::Many => {
                let keys = Keys::many(is_mine);
                let script = many_rows(&mut rng, &keys);
                (keys, script)
            }
        };
        Self { rng, keys, flavour, script }
    }

    /// Adds rows of 0.9 MB until one answer cannot hold them, asks for them, and removes them.
    pub fn add_large_rows(&mut self) {
        let hash_key = self.keys.hash_keys[1].clone();
        let sort_key = |n: usize| Bytes::from(format!("large {n:02}"));
        let put = |n| {
            let value = vec![b'0' + (n % 10) as u8; 900_000].into();
            let key = encode(&hash_key, &sort_key(n)).unwrap_or_default();
            Ask::Write(WriteRequest::Put(UpdateRequest { key, value, expire_ts_seconds: 0 }))
        };
        let numbers: Vec<_> = (0..37).collect();
        self.script.extend(numbers.chunks(4).map(|some| some.iter().copied().map(put).collect()));
        let get = |reverse, max_kv_size, no_value| {
            Ask::Read(ReadRequest::MultiGet(MultiGetRequest {
                hash_key: hash_key.clone(),
                start_sortkey: "large".into(),
                stop_sortkey: "largf".into(),
                reverse,
                max_kv_size,
                no_value,
                ..Default::default()
            }))
        };
        self.script.push_back(vec![get(false, 0, false)]);
        self.script.push_back(vec![get(true, i32::MAX, false)]);
        self.script.push_back(vec![
            get(false, 5_000_000, false),
            get(true, 900_009, false),
            get(false, 1000, true),
        ]);
        let sort_keys = numbers.into_iter().map(sort_key).collect();
        let remove = MultiRemoveRequest { hash_key: hash_key.clone(), sort_keys, max_count: 0 };
        self.script.push_back(vec![Ask::Write(WriteRequest::MultiRemove(remove))]);
    }

    /// The last burst was answered as usual. One of the script that was not comes again.
    pub fn proceed(&mut self) {
        self.script.pop_front();
    }

    /// The next requests: only writes, only reads, or simple reads among writes.
    pub fn burst(&mut self, now: u32) -> Vec<Op> {
        if let Some(asks) = self.script.front() {
            return asks.iter().cloned().map(Op::plain).collect();
        }
        let (kind, most) = match self.flavour {
            Flavour::Odd => (self.rng.random_range(0..9), MAX_BURST),
            Flavour::Many => (self.rng.random_range(0..8), 5),
        };
        let len = self.rng.random_range(1..=most);
        (0..len)
            .map(|_| {
                let ask = match kind {
                    0..4 => Ask::Write(self.write(now)),
                    4..8 => self.read(),
                    _ if self.rng.random_bool(0.5) => Ask::Write(self.write(now)),
                    _ => Ask::Read(self.simple_read()),
                };
                self.op(ask)
            })
            .collect()
    }

    fn op(&mut self, ask: Ask) -> Op {
        let rng = &mut self.rng;
        let is_backup = matches!(ask, Ask::Read(_) | Ask::NextPage(_)) && rng.random_bool(0.1);
        let partition_hash = if rng.random_bool(0.5) { 0 } else { rng.random() };
        let address = match rng.random_range(0..600) {
            0 => Address::NoSuchTable,
            1 => Address::NoSuchPartition,
            2 => Address::Server,
            _ => Address::Partition,
        };
        let pause = if rng.random_bool(0.5) { rng.random_range(0..MAX_PAUSE_US) } else { 0 };
        Op { ask, is_backup, partition_hash, pause: Duration::from_micros(pause), address }
    }

    fn expire_ts(&mut self, now: u32) -> i32 {
        match self.flavour {
            Flavour::Odd => expire_ts(&mut self.rng, now),
            Flavour::Many => *one(&mut self.rng, &[0, 0, now.cast_signed() + 500_000]),
        }
    }

    fn hash_key(&mut self) -> Bytes {
        if self.rng.random_range(0..400) == 0 {
            return keys::long_hash_key(&mut self.rng);
        }
        self.keys.hash_key(&mut self.rng)
    }

    fn sort_key(&mut self) -> Bytes {
        self.keys.sort_key(&mut self.rng)
    }

    fn key(&mut self) -> Bytes {
        match self.rng.random_range(0..100) {
            0..2 => keys::malformed(&mut self.rng),
            _ => self.keys.key(&mut self.rng),
        }
    }

    fn value(&mut self) -> Bytes {
        match self.flavour {
            Flavour::Many if self.rng.random_bool(0.9) => keys::bytes_of(&mut self.rng, 0..20),
            _ => keys::value(&mut self.rng),
        }
    }

    /// Sort keys, some of them twice. `none`: how often there are none.
    fn sort_keys(&mut self, none: f64) -> Vec<Bytes> {
        if self.rng.random_bool(none) {
            return Vec::new();
        }
        let most = match (self.flavour, self.rng.random_bool(0.3)) {
            (Flavour::Odd, _) => 6,
            (Flavour::Many, false) => 40,
            (Flavour::Many, true) => 300,
        };
        let len = self.rng.random_range(1..=most);
        let mut sort_keys: Vec<_> = (0..len).map(|_| self.sort_key()).collect();
        if self.rng.random_range(0..200) == 0 {
            sort_keys.push(vec![b's'; 0x1_0000].into());
        }
        sort_keys
    }

    fn write(&mut self, now: u32) -> WriteRequest {
        match (self.rng.random_range(0..1000), self.flavour) {
            (0..280, Flavour::Odd) | (0..100, _) => {
                let (key, value, expire_ts_seconds) = (self.key(), self.value(), self.expire_ts(now));
                WriteRequest::Put(UpdateRequest { key, value, expire_ts_seconds })
            }
            (280, Flavour::Odd) => self.large_put(now),
            (0..360, Flavour::Odd) | (0..150, _) => WriteRequest::Remove { key: self.key() },
            (0..500, _) => {
                let (hash_key, sort_keys) = (self.hash_key(), self.sort_keys(0.03));
                let kv = |key| KeyValue { key, value: self.value(), expire_ts_seconds: None };
                let kvs = sort_keys.into_iter().map(kv).collect();
                let expire_ts_seconds = self.expire_ts(now);
                WriteRequest::MultiPut(MultiPutRequest { hash_key, kvs, expire_ts_seconds })
            }
            (0..580, _) => {
                let (hash_key, sort_keys) = (self.hash_key(), self.sort_keys(0.05));
                let max_count = i64::from(self.rng.random_range(-1..3));
                WriteRequest::MultiRemove(MultiRemoveRequest { hash_key, sort_keys, max_count })
            }
            (0..740, _) => WriteRequest::Incr(IncrRequest {
                key: self.key(),
                increment: keys::increment(&mut self.rng),
                expire_ts_seconds: self.expire_ts(now),
            }),
            (0..880, _) => {
                let (check_type, check_operand) = self.check();
                WriteRequest::CheckAndSet(CheckAndSetRequest {
                    hash_key: self.hash_key(),
                    check_sort_key: self.sort_key(),
                    check_type,
                    check_operand,
                    set_diff_sort_key: self.rng.random(),
                    set_sort_key: self.sort_key(),
                    set_value: self.value(),
                    set_expire_ts_seconds: self.expire_ts(now),
                    return_check_value: self.rng.random(),
                })
            }
            _ => {
                let (check_type, check_operand) = self.check();
                let len = if self.rng.random_range(0..20) == 0 { 0 } else { self.rng.random_range(1..5) };
                let mutate_list = (0..len)
                    .map(|_| Mutate {
                        operation: match self.rng.random_range(0..60) {
                            0 => *one(&mut self.rng, &[-1, 2, 77]),
                            n => n % 2,
                        },
                        sort_key: self.sort_key(),
                        value: self.value(),
                        set_expire_ts_seconds: self.expire_ts(now),
                    })
                    .collect();
                WriteRequest::CheckAndMutate(CheckAndMutateRequest {
                    hash_key: self.hash_key(),
                    check_sort_key: self.sort_key(),
                    check_type,
                    check_operand,
                    mutate_list,
                    return_check_value: self.rng.random(),
                })
            }
        }
    }

    /// Around the longest message that is taken. Soon gone, or else every scan would carry it.
    fn large_put(&mut self, now: u32) -> WriteRequest {
        // 0x8001 0001, name, seqid; field, key; field, value; field, number; stops.
        let (key, name) = (self.keys.key(&mut self.rng), "RPC_RRDB_RRDB_PUT".len());
        let rest = 4 + (4 + name) + 4 + 3 + (3 + 4 + key.len()) + (3 + 4) + (3 + 4) + 2;
        let len = MAX_WRITE_BYTES - rest;
        let len = len + *one(&mut self.rng, &[0, 1, 2, 100_000]) - self.rng.random_range(0..2);
        let value = vec![self.rng.random(); len].into();
        WriteRequest::Put(UpdateRequest { key, value, expire_ts_seconds: now.cast_signed() + 2 })
    }

    fn check(&mut self) -> (i32, Bytes) {
        let kind = match self.rng.random_range(0..40) {
            0 => *one(&mut self.rng, &[-1, 18, 99, i32::MIN]),
            n => n % 18,
        };
        (kind, keys::operand(&mut self.rng))
    }

    fn filter(&mut self) -> (i32, Bytes) {
        let kind = match self.rng.random_range(0..60) {
            0 => *one(&mut self.rng, &[-1, 4, i32::MAX]),
            n => (n % 6 - 2).max(0),
        };
        let pattern = if self.rng.random_bool(0.3) { Bytes::new() } else { self.keys.pattern(&mut self.rng) };
        (kind, pattern)
    }

    fn read(&mut self) -> Ask {
        let request = match self.rng.random_range(0..100) {
            0..68 => self.simple_read(),
            68..74 => ReadRequest::SortkeyCount { hash_key: self.hash_key() },
            74..87 => ReadRequest::GetScanner(self.scanner()),
            87..98 => return Ask::NextPage(self.rng.random()),
            _ => return Ask::Clear(self.rng.random()),
        };
        Ask::Read(request)
    }

    fn simple_read(&mut self) -> ReadRequest {
        match self.rng.random_range(0..68) {
            0..20 => ReadRequest::Get { key: self.key() },
            20..32 => ReadRequest::Ttl { key: self.key() },
            32..60 => ReadRequest::MultiGet(self.multi_get()),
            _ => {
                let len = match self.rng.random_range(0..20) {
                    0 => 0,
                    1 => 120,
                    _ => self.rng.random_range(1..8),
                };
                let keys = (0..len)
                    .map(|_| FullKey { hash_key: self.hash_key(), sort_key: self.sort_key() })
                    .collect();
                ReadRequest::BatchGet(BatchGetRequest { keys })
            }
        }
    }

    /// A filter that passes many rows, but fewer than are looked at.
    fn thinning(&mut self) -> (i32, Bytes) {
        let digit = [b'0' + self.rng.random_range(0..10)];
        (*one(&mut self.rng, &[1, 3]), Bytes::copy_from_slice(&digit))
    }

    fn multi_get(&mut self) -> MultiGetRequest {
        if self.flavour == Flavour::Many && self.rng.random_bool(0.3) {
            let (sort_key_filter_type, sort_key_filter_pattern) = self.thinning();
            return MultiGetRequest {
                hash_key: self.keys.hash_keys[0].clone(),
                max_kv_count: *one(&mut self.rng, &[0, 0, 500, 3000]),
                no_value: self.rng.random(),
                sort_key_filter_type,
                sort_key_filter_pattern,
                reverse: self.rng.random(),
                ..Default::default()
            };
        }
        let sort_keys = self.sort_keys(0.7);
        let (sort_key_filter_type, sort_key_filter_pattern) = self.filter();
        let bound = |this: &mut Self| {
            if this.rng.random_bool(0.5) { Bytes::new() } else { this.sort_key() }
        };
        let max_kv_count = *one(&mut self.rng, &[0, 0, 0, -1, 1, 2, 5, 100, 2999, 3000, 3001, i32::MAX]);
        let max_kv_size = *one(&mut self.rng, &[0, 0, 0, -1, 1, 10, 100, 10_000, 1_000_000, i32::MAX]);
        MultiGetRequest {
            hash_key: self.hash_key(),
            sort_keys,
            max_kv_count,
            max_kv_size,
            no_value: self.rng.random_bool(0.3),
            start_sortkey: bound(self),
            stop_sortkey: bound(self),
            start_inclusive: self.rng.random(),
            stop_inclusive: self.rng.random(),
            sort_key_filter_type,
            sort_key_filter_pattern,
            reverse: self.rng.random_bool(0.4),
        }
    }

    fn scanner(&mut self) -> GetScannerRequest {
        let (start_key, stop_key) = match self.rng.random_range(0..10) {
            0..4 => (Bytes::from_static(b"\0\0"), Bytes::from_static(b"\xff\xff")),
            4..7 => {
                // One hash key, as clients ask for it.
                let hash_key = self.keys.hash_key(&mut self.rng);
                let start = encode(&hash_key, b"").unwrap_or_default();
                let stop = encode(&hash_key, &[0xff; 4]).unwrap_or_default();
                (start, stop)
            }
            7 => (self.keys.key(&mut self.rng), Bytes::from_static(b"\xff\xff\xff\xff\xff")),
            8 => (Bytes::new(), self.key()),
            _ => (self.key(), self.key()),
        };
        let no_filter = (0, Bytes::new());
        let (hash_key, sort_key) = match self.rng.random_range(0..10) {
            0..4 => (self.filter(), self.filter()),
            4..6 if self.flavour == Flavour::Many => (no_filter, self.thinning()),
            _ => (no_filter.clone(), no_filter),
        };
        let (hash_key_filter_type, hash_key_filter_pattern) = hash_key;
        let (sort_key_filter_type, sort_key_filter_pattern) = sort_key;
        let sizes: &[i32] = match self.flavour {
            Flavour::Odd => &[0, 1, 1, 2, 2, 3, 5, 5, 10, 20, 100, 1000, 1001, -1, i32::MAX],
            Flavour::Many => &[0, 100, 127, 128, 129, 999, 1000, 1001, -1, i32::MAX],
        };
        let option = |rng: &mut StdRng| *one(rng, &[None, Some(false), Some(true)]);
        GetScannerRequest {
            start_key,
            stop_key,
            start_inclusive: self.rng.random(),
            stop_inclusive: self.rng.random(),
            batch_size: *one(&mut self.rng, sizes),
            no_value: self.rng.random_bool(0.3),
            hash_key_filter_type,
            hash_key_filter_pattern,
            sort_key_filter_type,
            sort_key_filter_pattern,
            validate_partition_hash: option(&mut self.rng),
            return_expire_ts: option(&mut self.rng),
            full_scan: option(&mut self.rng),
            only_return_count: if self.rng.random_bool(0.2) { option(&mut self.rng) } else { None },
        }
    }
}

/// Fills the first hash key with all of its sort keys.
fn many_rows(rng: &mut StdRng, keys: &Keys) -> VecDeque<Vec<Ask>> {
    let put = |some: &[Bytes]| {
        let kvs = some
            .iter()
            .map(|key| KeyValue {
                key: key.clone(),
                value: keys::bytes_of(rng, 0..20),
                expire_ts_seconds: None,
            })
            .collect();
        let put = MultiPutRequest { hash_key: keys.hash_keys[0].clone(), kvs, expire_ts_seconds: 0 };
        Ask::Write(WriteRequest::MultiPut(put))
    };
    let puts: Vec<_> = keys.sort_keys.chunks(300).map(put).collect();
    puts.chunks(3).map(<[Ask]>::to_vec).collect()
}
