//! Scanners (wire-protocol.md 6.5).

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use pegasus_types::data::*;

use super::moment::Moment;
use super::partition::{Difference, Expired, INVALID_ARGUMENT, NOT_FOUND, OK, Partition, same};
use super::rows::{Expiry, Row, Rows, between, decode, encode, filter};

/// Records that one page looks at, and the most that it returns. The reference looks at no more than the batch size
/// after the first page; ours fill a page when there is enough to fill it, which no client can mind.
pub const PAGE_RECORDS: usize = 1000;
/// In place of an id: there are no more pages.
const FINISHED: i64 = -1;

#[derive(Clone, Debug, PartialEq)]
pub struct Scanner {
    request: Arc<GetScannerRequest>,
    /// The last record that was looked at.
    after: Bytes,
    /// What was there at the start, if this engine can pin it.
    snapshot: Option<Arc<Rows>>,
    /// Its server may have lost it.
    pub is_doubtful: bool,
}

/// What a page must hold.
#[derive(Debug, PartialEq)]
struct Page {
    kvs: Vec<(Bytes, Bytes, Option<Expiry>)>,
    kv_count: Option<i32>,
    /// Where the next one continues; None = this is the last.
    after: Option<Bytes>,
}

impl Partition {
    pub fn check_first_page(
        &mut self,
        request: &GetScannerRequest,
        got: &ScanResponse,
        at: Moment,
    ) -> Result<(), Difference> {
        let kinds = [request.hash_key_filter_type, request.sort_key_filter_type];
        if kinds.into_iter().any(|kind| filter(kind, b"", b"").is_none()) {
            let refused =
                ScanResponse { error: INVALID_ARGUMENT, context_id: FINISHED, ..Default::default() };
            return same(got, &refused);
        }
        let request = Arc::new(request.clone());
        let start = bound(&request.start_key, request.start_inclusive);
        let after = check_page(&self.rows, &request, start, got, at)?;
        if let Some(after) = after {
            let rest = || between(&self.rows, Bound::Excluded(&after), upper(&request));
            let snapshot = self
                .has_snapshots
                .then(|| Arc::new(rest().map(|(key, row)| (key.clone(), row.clone())).collect()));
            self.keep(got.context_id, Scanner { request, after, snapshot, is_doubtful: false })?;
        }
        Ok(())
    }

    pub fn check_next_page(&mut self, id: i64, got: &ScanResponse, at: Moment) -> Result<(), Difference> {
        let is_lost = got.error == NOT_FOUND && got.kvs.is_empty() && got.kv_count.is_none();
        let mut scanner = match self.scanners.remove(&id) {
            None if is_lost => return Ok(()),
            None => return Err(Difference(format!("NotFound, for there is no scanner {id} (any more)"))),
            Some(scanner) if scanner.is_doubtful && is_lost => return Ok(()),
            Some(scanner) => scanner,
        };
        let rows = scanner.snapshot.as_deref().unwrap_or(&self.rows);
        let after = check_page(rows, &scanner.request, Bound::Excluded(&scanner.after), got, at)?;
        if let Some(after) = after {
            scanner.after = after;
            self.keep(got.context_id, scanner)?;
        }
        Ok(())
    }

    fn keep(&mut self, id: i64, scanner: Scanner) -> Result<(), Difference> {
        match self.scanners.insert(id, scanner) {
            None => Ok(()),
            Some(_) => Err(Difference(format!("an id that no other scanner has, not {id}"))),
        }
    }
}

fn bound(key: &[u8], inclusive: bool) -> Bound<&[u8]> {
    if inclusive { Bound::Included(key) } else { Bound::Excluded(key) }
}

fn upper(request: &GetScannerRequest) -> Bound<&[u8]> {
    bound(&request.stop_key, request.stop_inclusive)
}

/// Compares a page that begins at `start`; where the next one continues.
fn check_page(
    rows: &Rows,
    request: &GetScannerRequest,
    start: Bound<&[u8]>,
    got: &ScanResponse,
    at: Moment,
) -> Result<Option<Bytes>, Difference> {
    let gone = page(rows, request, start, at, Expired::Gone);
    if gone.is(got) {
        return Ok(gone.after);
    }
    let kept = page(rows, request, start, at, Expired::Kept);
    if kept.is(got) {
        return Ok(kept.after);
    }
    Err(Difference(if gone == kept { format!("{gone:?}") } else { format!("{gone:?}\nor {kept:?}") }))
}

fn page(rows: &Rows, request: &GetScannerRequest, start: Bound<&[u8]>, at: Moment, expired: Expired) -> Page {
    let most = usize::try_from(request.batch_size).ok().filter(|n| *n > 0).unwrap_or(usize::MAX);
    let batch = most.min(PAGE_RECORDS);
    let (hash_kind, hash_pattern) = (request.hash_key_filter_type, &request.hash_key_filter_pattern);
    let (sort_kind, sort_pattern) = (request.sort_key_filter_type, &request.sort_key_filter_pattern);
    // Such a prefix raises the start: what lies below is not looked at.
    let raised = if hash_kind == 2 { encode(hash_pattern, b"") } else { None };
    let start = match (&raised, start) {
        (Some(raised), Bound::Included(from) | Bound::Excluded(from)) if raised[..] > *from => {
            Bound::Included(&raised[..])
        }
        _ => start,
    };

    let (mut matches, mut after, mut has_more, mut looked_at) = (Vec::new(), None, false, 0);
    for (key, row) in between(rows, start, upper(request)) {
        if expired == Expired::Gone && !row.is_live(at.now) {
            continue;
        }
        if matches.len() >= batch || looked_at >= PAGE_RECORDS {
            has_more = true;
            break;
        }
        looked_at += 1;
        after = Some(key.clone());
        let Some((hash_key, sort_key)) = decode(key) else { continue };
        if row.is_live(at.now)
            && filter(hash_kind, hash_pattern, hash_key) == Some(true)
            && filter(sort_kind, sort_pattern, sort_key) == Some(true)
        {
            matches.push((key, row));
        }
    }
    let count_only = request.only_return_count == Some(true);
    let kv_count = count_only.then(|| i32::try_from(matches.len()).unwrap_or(i32::MAX));
    let kvs = if count_only { Vec::new() } else { matches };
    let kv = |(key, row): (&Bytes, &Row)| {
        let value = if request.no_value { Bytes::new() } else { row.value.clone() };
        (key.clone(), value, (request.return_expire_ts == Some(true)).then_some(row.expiry))
    };
    Page { kvs: kvs.into_iter().map(kv).collect(), kv_count, after: after.filter(|_| has_more) }
}

impl Page {
    fn is(&self, got: &ScanResponse) -> bool {
        let Self { kvs, kv_count, after } = self;
        let is_kv = |want: &(Bytes, Bytes, Option<Expiry>), got: &KeyValue| {
            let expiry = match (want.2, got.expire_ts_seconds) {
                (None, None) => true,
                (Some(want), Some(got)) => want.allows(got),
                _ => false,
            };
            expiry && want.0 == got.key && want.1 == got.value
        };
        got.error == OK
            && *kv_count == got.kv_count
            && kvs.len() == got.kvs.len()
            && kvs.iter().zip(&got.kvs).all(|(want, got)| is_kv(want, got))
            && if after.is_some() { got.context_id >= 0 } else { got.context_id == FINISHED }
    }
}
