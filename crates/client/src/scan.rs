//! Scans: rows in key order, in batches, from a snapshot that the server keeps while the scan goes on.

use std::collections::VecDeque;

use bytes::Bytes;
use pegasus_rpc::wire::{Connection, Request, Response};
use pegasus_types::data::{
    GetScannerRequest, KeyValue, ReadRequest, ReadResponseBody, SCAN_COMPLETED, ScanRequest, ScanResponse,
    StorageError,
};
use pegasus_types::hash::{decode_key, encode_key, next_prefix};

use crate::error::{Error, Result, check_storage};
use crate::table::{Route, Table};
use crate::value::{Filter, Range, epoch_now};

/// A scan is opened again so often without any progress; then its error is reported.
const MAX_REOPENS: u32 = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanOptions {
    /// Rows per answer; servers give at most 1000.
    pub batch_size: i32,
    pub no_value: bool,
    /// Tell when rows expire.
    pub with_expiry: bool,
    pub hash_keys: Filter,
    pub sort_keys: Filter,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self {
            batch_size: 500,
            no_value: false,
            with_expiry: false,
            hash_keys: Filter::default(),
            sort_keys: Filter::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub hash_key: Bytes,
    pub sort_key: Bytes,
    pub value: Bytes,
    /// Seconds since the Pegasus epoch, 0 = never; None when it was not asked for.
    pub expire_ts: Option<u32>,
}

impl Row {
    /// Seconds that the row still lives, -1 = for ever; None when it was not asked for.
    pub fn ttl_seconds(&self) -> Option<i64> {
        self.expire_ts.map(|expire_ts| match expire_ts {
            0 => -1,
            _ => i64::from(expire_ts.saturating_sub(epoch_now())),
        })
    }
}

/// Reads rows one by one. When the server forgets the scan or another one takes over, it goes on behind the
/// last row, then on a newer snapshot.
#[derive(Debug)]
pub struct Scanner {
    table: Table,
    /// What is still to be scanned; the first one is being scanned.
    todo: VecDeque<Route>,
    request: GetScannerRequest,
    /// The server's name for the snapshot, and where it is.
    context: Option<(i64, Connection)>,
    rows: VecDeque<Row>,
    /// Of the rows that came from the current partition.
    last_key: Option<Bytes>,
    reopens: u32,
}

impl Scanner {
    pub(crate) fn of_hash_key(
        table: Table,
        route: Route,
        hash_key: &[u8],
        range: &Range,
        options: &ScanOptions,
    ) -> Result<Self> {
        if hash_key.is_empty() {
            return Err(Error::Invalid(
                "a scan of the empty hash key, whose rows are in all partitions".to_owned(),
            ));
        }
        let key = |sort_key: &[u8]| encode_key(hash_key, sort_key).expect("the length was checked");
        let (stop_key, stop_inclusive) = if range.stop.is_empty() {
            (next_prefix(&key(b"")).expect("a length below 0xffff has a successor"), false)
        } else {
            (key(&range.stop), range.stop_inclusive)
        };
        let request = GetScannerRequest {
            start_key: key(&range.start),
            stop_key,
            start_inclusive: range.start_inclusive,
            stop_inclusive,
            validate_partition_hash: Some(false),
            ..template(options)
        };
        Ok(Self::new(table, VecDeque::from([route]), request))
    }

    pub(crate) fn of_partitions(table: Table, indices: std::ops::Range<i32>, options: &ScanOptions) -> Self {
        let request = GetScannerRequest {
            start_key: Bytes::from_static(b"\x00\x00"),
            stop_key: Bytes::from_static(b"\xff\xff"),
            start_inclusive: true,
            validate_partition_hash: Some(true),
            full_scan: Some(true),
            ..template(options)
        };
        Self::new(table, indices.map(Route::Partition).collect(), request)
    }

    fn new(table: Table, todo: VecDeque<Route>, request: GetScannerRequest) -> Self {
        Self { table, todo, request, context: None, rows: VecDeque::new(), last_key: None, reopens: 0 }
    }

    /// The next row, None at the end.
    pub async fn next(&mut self) -> Result<Option<Row>> {
        while self.rows.is_empty() && !self.todo.is_empty() {
            let response = self.fetch().await?;
            for kv in response.kvs {
                self.rows.push_back(row(kv)?);
            }
        }
        Ok(self.rows.pop_front())
    }

    /// All rows that are left.
    pub async fn collect(mut self) -> Result<Vec<Row>> {
        let mut all = Vec::new();
        while let Some(row) = self.next().await? {
            all.push(row);
        }
        Ok(all)
    }

    /// Counts the rows that are left, on the servers.
    pub async fn count(mut self) -> Result<u64> {
        let mut total = self.rows.len() as u64;
        self.rows.clear();
        self.forget();
        self.request.only_return_count = Some(true);
        while let Some(&route) = self.todo.front() {
            // A partition whose scan is lost is counted again from where the counting began.
            let (mut counted, mut reopens) = (0, self.reopens);
            while self.todo.front().is_some_and(|front| same(*front, route)) {
                let response = self.fetch().await?;
                if self.reopens != reopens && response.kv_count.is_some() {
                    counted = 0;
                }
                reopens = self.reopens;
                // Servers that do not know counting send the rows.
                counted += response
                    .kv_count
                    .map_or(response.kvs.len() as u64, |count| u64::from(count.max(0).cast_unsigned()));
            }
            total += counted;
            self.reopens = 0;
        }
        Ok(total)
    }

    /// One batch of the current partition; at its end the next one becomes current.
    async fn fetch(&mut self) -> Result<ScanResponse> {
        let Some(&route) = self.todo.front() else { return Ok(ScanResponse::default()) };
        let mut response = None;
        if let Some((context_id, _)) = self.context.take() {
            response = self.go_on(route, context_id).await;
            if response.is_none() {
                self.reopens += 1;
                if self.reopens > MAX_REOPENS {
                    return Err(Error::Timeout {
                        last: "the server forgets the scan again and again".to_owned(),
                        unreachable: false,
                    });
                }
            }
        }
        let (response, connection) = match response {
            Some(response) => response,
            None => self.open(route).await?,
        };
        let incomplete = response.error == StorageError::Incomplete.code();
        if !incomplete {
            check_storage(response.error)?;
        } else if response.kvs.is_empty() {
            return Err(Error::Storage(response.error));
        }
        if let Some(last) = response.kvs.last() {
            self.last_key = Some(last.key.clone());
            self.reopens = 0;
        }
        if incomplete {
            // Its context is of no use; the next batch opens the scan again behind these rows.
        } else if response.context_id == SCAN_COMPLETED {
            self.todo.pop_front();
            self.last_key = None;
        } else {
            self.context = Some((response.context_id, connection));
        }
        Ok(response)
    }

    /// The next batch of an open scan; None when the scan is lost for whatever reason.
    async fn go_on(&self, route: Route, context_id: i64) -> Option<(ScanResponse, Connection)> {
        let request = Request::Read(ReadRequest::Scan(ScanRequest { context_id }));
        match self.table.attempt_now(route, &request).await {
            Ok((Response::Read(ReadResponseBody::Scan(response)), connection))
                if response.error != StorageError::NotFound.code() =>
            {
                Some((response, connection))
            }
            Ok(_) => None,
            Err(failure) => {
                tracing::debug!(table = self.table.name(), %failure, "scan interrupted");
                None
            }
        }
    }

    /// Opens the scan behind the last row.
    async fn open(&self, route: Route) -> Result<(ScanResponse, Connection)> {
        let mut request = self.request.clone();
        if let Some(last) = &self.last_key {
            request.start_key = last.clone();
            request.start_inclusive = false;
        }
        let request = Request::Read(ReadRequest::GetScanner(request));
        match self.table.call(route, &request, true).await? {
            (Response::Read(ReadResponseBody::Scan(response)), connection) => Ok((response, connection)),
            (other, _) => Err(Error::Nonsense(format!("{other:?}"))),
        }
    }

    /// Tells the server that the snapshot is not needed any more.
    fn forget(&mut self) {
        if let (Some((context_id, connection)), Some(&route)) = (self.context.take(), self.todo.front()) {
            let request = Request::Read(ReadRequest::ClearScanner { context_id });
            // Only a courtesy: the server forgets idle scans by itself.
            let _ = connection.send(self.table.head_now(route), &request);
        }
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.forget();
    }
}

fn same(a: Route, b: Route) -> bool {
    match (a, b) {
        (Route::Hash(a), Route::Hash(b)) => a == b,
        (Route::Partition(a), Route::Partition(b)) => a == b,
        _ => false,
    }
}

fn template(options: &ScanOptions) -> GetScannerRequest {
    GetScannerRequest {
        batch_size: options.batch_size,
        no_value: options.no_value,
        hash_key_filter_type: options.hash_keys.filter_type as i32,
        hash_key_filter_pattern: options.hash_keys.pattern.clone(),
        sort_key_filter_type: options.sort_keys.filter_type as i32,
        sort_key_filter_pattern: options.sort_keys.pattern.clone(),
        return_expire_ts: options.with_expiry.then_some(true),
        ..Default::default()
    }
}

fn row(kv: KeyValue) -> Result<Row> {
    let (hash_key, _) =
        decode_key(&kv.key).ok_or_else(|| Error::Nonsense("a scanned key that is not one".to_owned()))?;
    let middle = 2 + hash_key.len();
    Ok(Row {
        hash_key: kv.key.slice(2..middle),
        sort_key: kv.key.slice(middle..),
        value: kv.value,
        expire_ts: kv.expire_ts_seconds.map(i32::cast_unsigned),
    })
}
