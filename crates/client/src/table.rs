//! Data operations on one table.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use pegasus_rpc::wire::{Request, Response};
use pegasus_types::AppId;
use pegasus_types::data::*;
use pegasus_types::hash::{MAX_HASH_KEY_LEN, crc64, encode_key, key_hash};

use crate::cluster::Inner;
use crate::error::{Error, Result, check_storage};
use crate::resolver::Resolver;
use crate::scan::{ScanOptions, Scanner};
use crate::value::{Change, Check, Checked, IncrTtl, Range, RangeOptions, Rows, TimeLeft, Ttl};

/// Keys in one request of multi_get and batch_get; servers give at most 3000 rows at once.
const KEYS_PER_REQUEST: usize = 1000;
/// Bytes that multi_get asks for at once; the rest is fetched by further requests.
const MULTI_GET_BYTES: i32 = 16 << 20;

/// A table of a cluster. Cheap to clone; clones share what they know about its partitions.
///
/// All operations on one hash key are linearizable. Operations that may be repeated safely are repeated within
/// the timeout, also over a fail-over; `incr`, `check_and_set` and `check_and_mutate` are never repeated after
/// an unclear failure, which they report as [`Error::Unclear`].
#[derive(Clone, Debug)]
pub struct Table {
    pub(crate) inner: Arc<Inner>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) timeout: Duration,
}

/// Which partition a request is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Route {
    Hash(u64),
    Partition(i32),
}

/// One pair of an operation with several hash keys.
pub type Key<'a> = (&'a [u8], &'a [u8]);

impl Table {
    pub(crate) fn new(inner: Arc<Inner>, resolver: Resolver) -> Self {
        let timeout = inner.options.timeout;
        Self { inner, resolver: Arc::new(resolver), timeout }
    }

    /// The same table with another timeout for each operation.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    pub fn name(&self) -> &str {
        &self.resolver.table
    }

    pub fn app_id(&self) -> AppId {
        self.resolver.layout().app_id
    }

    pub fn partition_count(&self) -> i32 {
        self.resolver.layout().partition_count()
    }

    /// Index of the partition that holds a key.
    pub fn partition_of(&self, hash_key: impl AsRef<[u8]>, sort_key: impl AsRef<[u8]>) -> i32 {
        self.resolver.layout().index_of(key_hash(hash_key.as_ref(), sort_key.as_ref()))
    }

    pub async fn get(&self, hash_key: impl AsRef<[u8]>, sort_key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        let (route, key) = single(hash_key.as_ref(), sort_key.as_ref())?;
        let ReadResponseBody::Get(got) = self.read(route, ReadRequest::Get { key }).await? else {
            return Err(confused());
        };
        if got.error == StorageError::NotFound.code() {
            return Ok(None);
        }
        check_storage(got.error).map(|()| Some(got.value))
    }

    pub async fn set(
        &self,
        hash_key: impl AsRef<[u8]>,
        sort_key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
    ) -> Result<()> {
        self.set_with_ttl(hash_key, sort_key, value, Ttl::Default).await
    }

    pub async fn set_with_ttl(
        &self,
        hash_key: impl AsRef<[u8]>,
        sort_key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        ttl: Ttl,
    ) -> Result<()> {
        let (route, key) = single(hash_key.as_ref(), sort_key.as_ref())?;
        let request = UpdateRequest { key, value: value.into(), expire_ts_seconds: ttl.expire_ts()? };
        self.update(route, WriteRequest::Put(request)).await
    }

    /// Removing what is not there is no error.
    pub async fn del(&self, hash_key: impl AsRef<[u8]>, sort_key: impl AsRef<[u8]>) -> Result<()> {
        let (route, key) = single(hash_key.as_ref(), sort_key.as_ref())?;
        self.update(route, WriteRequest::Remove { key }).await
    }

    pub async fn exist(&self, hash_key: impl AsRef<[u8]>, sort_key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.ttl(hash_key, sort_key).await? != TimeLeft::Missing)
    }

    pub async fn ttl(&self, hash_key: impl AsRef<[u8]>, sort_key: impl AsRef<[u8]>) -> Result<TimeLeft> {
        let (route, key) = single(hash_key.as_ref(), sort_key.as_ref())?;
        let ReadResponseBody::Ttl(got) = self.read(route, ReadRequest::Ttl { key }).await? else {
            return Err(confused());
        };
        if got.error == StorageError::NotFound.code() {
            return Ok(TimeLeft::Missing);
        }
        check_storage(got.error)?;
        Ok(u32::try_from(got.ttl_seconds).map_or(TimeLeft::Forever, TimeLeft::Seconds))
    }

    /// Writes several values of one hash key, all or none.
    pub async fn multi_set(
        &self,
        hash_key: impl AsRef<[u8]>,
        values: impl IntoIterator<Item = (impl AsRef<[u8]>, impl Into<Bytes>)>,
        ttl: Ttl,
    ) -> Result<()> {
        let (route, hash_key) = multi(hash_key.as_ref())?;
        let kvs: Vec<_> = values
            .into_iter()
            .map(|(sort_key, value)| KeyValue {
                key: Bytes::copy_from_slice(sort_key.as_ref()),
                value: value.into(),
                expire_ts_seconds: None,
            })
            .collect();
        if kvs.is_empty() {
            return Err(Error::Invalid("multi_set of no values".to_owned()));
        }
        let request = MultiPutRequest { hash_key, kvs, expire_ts_seconds: ttl.expire_ts()? };
        self.update(route, WriteRequest::MultiPut(request)).await
    }

    /// The values of these sort keys that exist: (sort key, value), in the order of the sort keys.
    pub async fn multi_get(
        &self,
        hash_key: impl AsRef<[u8]>,
        sort_keys: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        let (route, hash_key) = multi(hash_key.as_ref())?;
        let sort_keys: Vec<_> =
            sort_keys.into_iter().map(|sort_key| Bytes::copy_from_slice(sort_key.as_ref())).collect();
        let mut rows = Vec::new();
        let mut rest = &sort_keys[..];
        while !rest.is_empty() {
            let asked = &rest[..rest.len().min(KEYS_PER_REQUEST)];
            let request = MultiGetRequest {
                hash_key: hash_key.clone(),
                sort_keys: asked.to_vec(),
                max_kv_size: MULTI_GET_BYTES,
                start_inclusive: true,
                ..Default::default()
            };
            let got = self.multi_get_once(route, request).await?;
            let answered = if got.complete {
                asked.len()
            } else {
                // Too many bytes: go on behind the last one that came.
                let last = got.rows.last().ok_or(Error::Storage(StorageError::Incomplete.code()))?;
                1 + asked.iter().rposition(|sort_key| *sort_key == last.0).ok_or_else(confused)?
            };
            rows.extend(got.rows);
            rest = &rest[answered..];
        }
        Ok(rows)
    }

    /// Rows of one hash key in a range, as many as one request brings. For all of them use
    /// [`Self::hash_scan`].
    pub async fn multi_get_range(&self, hash_key: impl AsRef<[u8]>, options: &RangeOptions) -> Result<Rows> {
        let (route, hash_key) = multi(hash_key.as_ref())?;
        let request = MultiGetRequest {
            hash_key,
            sort_keys: Vec::new(),
            max_kv_count: options.max_count,
            max_kv_size: options.max_bytes,
            no_value: options.no_value,
            start_sortkey: options.range.start.clone(),
            stop_sortkey: options.range.stop.clone(),
            start_inclusive: options.range.start_inclusive,
            stop_inclusive: options.range.stop_inclusive,
            sort_key_filter_type: options.sort_keys.filter_type as i32,
            sort_key_filter_pattern: options.sort_keys.pattern.clone(),
            reverse: options.reverse,
        };
        self.multi_get_once(route, request).await
    }

    async fn multi_get_once(&self, route: Route, request: MultiGetRequest) -> Result<Rows> {
        let ReadResponseBody::MultiGet(got) = self.read(route, ReadRequest::MultiGet(request)).await? else {
            return Err(confused());
        };
        let complete = got.error != StorageError::Incomplete.code();
        if complete {
            check_storage(got.error)?;
        }
        Ok(Rows { rows: got.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect(), complete })
    }

    /// Removes several values of one hash key, all or none. Tells how many sort keys were given.
    pub async fn multi_del(
        &self,
        hash_key: impl AsRef<[u8]>,
        sort_keys: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<i64> {
        let (route, hash_key) = multi(hash_key.as_ref())?;
        let sort_keys: Vec<_> =
            sort_keys.into_iter().map(|sort_key| Bytes::copy_from_slice(sort_key.as_ref())).collect();
        if sort_keys.is_empty() {
            return Err(Error::Invalid("multi_del of no sort keys".to_owned()));
        }
        let request = MultiRemoveRequest { hash_key, sort_keys, max_count: 0 };
        match self.write(route, WriteRequest::MultiRemove(request)).await? {
            WriteResponse::MultiRemove(got) => check_storage(got.error).map(|()| got.count),
            _ => Err(confused()),
        }
    }

    /// How many values a hash key has; None when there are too many to count in one request.
    pub async fn sort_key_count(&self, hash_key: impl AsRef<[u8]>) -> Result<Option<u64>> {
        let (route, hash_key) = multi(hash_key.as_ref())?;
        let ReadResponseBody::SortkeyCount(got) =
            self.read(route, ReadRequest::SortkeyCount { hash_key }).await?
        else {
            return Err(confused());
        };
        check_storage(got.error).map(|()| u64::try_from(got.count).ok())
    }

    /// Adds to a decimal number and tells the sum. A missing or empty value counts as 0. A value that is no
    /// number and a sum that does not fit an i64 are refused (`Error::Storage(4)`) and change nothing.
    pub async fn incr(
        &self,
        hash_key: impl AsRef<[u8]>,
        sort_key: impl AsRef<[u8]>,
        increment: i64,
        ttl: IncrTtl,
    ) -> Result<i64> {
        let (route, key) = single(hash_key.as_ref(), sort_key.as_ref())?;
        let request = IncrRequest { key, increment, expire_ts_seconds: ttl.expire_ts()? };
        match self.write(route, WriteRequest::Incr(request)).await? {
            WriteResponse::Incr(got) => check_storage(got.error).map(|()| got.new_value),
            _ => Err(confused()),
        }
    }

    /// Writes a value if `check` passes; both under the same hash key. `return_value` = tell the checked value.
    pub async fn check_and_set(
        &self,
        hash_key: impl AsRef<[u8]>,
        check: &Check,
        (sort_key, value): (impl AsRef<[u8]>, impl Into<Bytes>),
        ttl: Ttl,
        return_value: bool,
    ) -> Result<Checked> {
        let (route, hash_key) = multi(hash_key.as_ref())?;
        let set_diff_sort_key = sort_key.as_ref() != check.sort_key;
        let set_sort_key =
            if set_diff_sort_key { Bytes::copy_from_slice(sort_key.as_ref()) } else { Bytes::new() };
        let request = CheckAndSetRequest {
            hash_key,
            check_sort_key: check.sort_key.clone(),
            check_type: check.check_type as i32,
            check_operand: check.operand.clone(),
            set_diff_sort_key,
            set_sort_key,
            set_value: value.into(),
            set_expire_ts_seconds: ttl.expire_ts()?,
            return_check_value: return_value,
        };
        self.checked(route, WriteRequest::CheckAndSet(request)).await
    }

    /// Makes several changes under one hash key, all or none, if `check` passes.
    pub async fn check_and_mutate(
        &self,
        hash_key: impl AsRef<[u8]>,
        check: &Check,
        changes: &[Change],
        return_value: bool,
    ) -> Result<Checked> {
        let (route, hash_key) = multi(hash_key.as_ref())?;
        if changes.is_empty() {
            return Err(Error::Invalid("check_and_mutate without changes".to_owned()));
        }
        let mutate_list = changes.iter().map(mutate).collect::<Result<_>>()?;
        let request = CheckAndMutateRequest {
            hash_key,
            check_sort_key: check.sort_key.clone(),
            check_type: check.check_type as i32,
            check_operand: check.operand.clone(),
            mutate_list,
            return_check_value: return_value,
        };
        self.checked(route, WriteRequest::CheckAndMutate(request)).await
    }

    async fn checked(&self, route: Route, request: WriteRequest) -> Result<Checked> {
        let WriteResponse::Check(got) = self.write(route, request).await? else { return Err(confused()) };
        let passed = got.error != StorageError::TryAgain.code();
        if passed {
            check_storage(got.error)?;
        }
        Ok(Checked { passed, value: got.check_value_exist.then_some(got.check_value) })
    }

    /// The values of keys of any hash keys, in the order of `keys`; None where there is none. Not one
    /// snapshot: partitions are asked at the same time, each for itself.
    pub async fn batch_get(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Bytes>>> {
        let layout = self.resolver.layout();
        let mut by_partition = BTreeMap::<i32, Vec<FullKey>>::new();
        for (hash_key, sort_key) in keys {
            check_hash_key(hash_key)?;
            let index = layout.index_of(key_hash(hash_key, sort_key));
            by_partition.entry(index).or_default().push(FullKey {
                hash_key: Bytes::copy_from_slice(hash_key),
                sort_key: Bytes::copy_from_slice(sort_key),
            });
        }
        let requests = by_partition.values().flat_map(|keys| keys.chunks(KEYS_PER_REQUEST)).map(|keys| {
            // By hash, not by index: a split may be completed meanwhile.
            let route = Route::Hash(key_hash(&keys[0].hash_key, &keys[0].sort_key));
            self.read(route, ReadRequest::BatchGet(BatchGetRequest { keys: keys.to_vec() }))
        });
        let mut values = HashMap::new();
        for response in try_join_all(requests).await? {
            let ReadResponseBody::BatchGet(got) = response else { return Err(confused()) };
            check_storage(got.error)?;
            values.extend(got.data.into_iter().map(|data| ((data.hash_key, data.sort_key), data.value)));
        }
        let value = |(hash_key, sort_key): &Key<'_>| {
            values.get(&(Bytes::copy_from_slice(hash_key), Bytes::copy_from_slice(sort_key))).cloned()
        };
        Ok(keys.iter().map(value).collect())
    }

    /// Rows of one hash key in ascending order of their sort keys.
    pub fn hash_scan(
        &self,
        hash_key: impl AsRef<[u8]>,
        range: &Range,
        options: &ScanOptions,
    ) -> Result<Scanner> {
        let (route, hash_key) = multi(hash_key.as_ref())?;
        Scanner::of_hash_key(self.clone(), route, &hash_key, range, options)
    }

    /// All rows of the table, partition by partition. Each partition is a snapshot of its own.
    pub fn full_scan(&self, options: &ScanOptions) -> Scanner {
        Scanner::of_partitions(self.clone(), 0..self.partition_count(), options)
    }

    /// One scanner per partition, to be used in parallel.
    pub fn full_scans(&self, options: &ScanOptions) -> Vec<Scanner> {
        let scan = |index| Scanner::of_partitions(self.clone(), index..index + 1, options);
        (0..self.partition_count()).map(scan).collect()
    }

    async fn update(&self, route: Route, request: WriteRequest) -> Result<()> {
        match self.write(route, request).await? {
            WriteResponse::Update(got) => check_storage(got.error),
            _ => Err(confused()),
        }
    }

    async fn write(&self, route: Route, request: WriteRequest) -> Result<WriteResponse> {
        let repeatable = request.is_idempotent();
        match self.call(route, &Request::Write(request), repeatable).await?.0 {
            Response::Write(response) => Ok(response),
            _ => Err(confused()),
        }
    }

    async fn read(&self, route: Route, request: ReadRequest) -> Result<ReadResponseBody> {
        match self.call(route, &Request::Read(request), true).await?.0 {
            Response::Read(response) => Ok(response),
            _ => Err(confused()),
        }
    }
}

fn mutate(change: &Change) -> Result<Mutate> {
    Ok(match change {
        Change::Set { sort_key, value, ttl } => Mutate {
            operation: MutateOperation::Put as i32,
            sort_key: sort_key.clone(),
            value: value.clone(),
            set_expire_ts_seconds: ttl.expire_ts()?,
        },
        Change::Del { sort_key } => Mutate {
            operation: MutateOperation::Delete as i32,
            sort_key: sort_key.clone(),
            ..Default::default()
        },
    })
}

fn check_hash_key(hash_key: &[u8]) -> Result<()> {
    if hash_key.len() <= MAX_HASH_KEY_LEN {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "hash key of {} bytes, at most {MAX_HASH_KEY_LEN} are allowed",
            hash_key.len()
        )))
    }
}

/// Route and encoded key of an operation on one value.
fn single(hash_key: &[u8], sort_key: &[u8]) -> Result<(Route, Bytes)> {
    check_hash_key(hash_key)?;
    let key = encode_key(hash_key, sort_key).expect("the length was checked");
    Ok((Route::Hash(key_hash(hash_key, sort_key)), key))
}

/// Route of an operation on one hash key.
fn multi(hash_key: &[u8]) -> Result<(Route, Bytes)> {
    check_hash_key(hash_key)?;
    Ok((Route::Hash(crc64(hash_key)), Bytes::copy_from_slice(hash_key)))
}

fn confused() -> Error {
    Error::Nonsense("another kind of answer than was asked for".to_owned())
}
