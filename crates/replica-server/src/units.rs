//! Capacity units: what requests are worth, for who pays for a shared cluster (metrics.md 3.5).
//!
//! A unit is 4 KiB of keys and values, begun ones count whole, and a request has at least one. Failed requests are free.

use pegasus_types::data::{KeyValue, ReadRequest, ReadResponseBody, WriteRequest, WriteResponse};

const UNIT_BYTES: u64 = 4096;

fn units(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(UNIT_BYTES).max(1)
}

/// Of a write, as it was asked for. Operations on several rows count the hash key with each.
pub fn of_write(request: &WriteRequest) -> u64 {
    units(match request {
        WriteRequest::Put(put) => put.key.len() + put.value.len(),
        WriteRequest::Remove { key } => key.len(),
        WriteRequest::MultiPut(put) => pairs(put.hash_key.len(), &put.kvs),
        WriteRequest::MultiRemove(remove) => {
            remove.sort_keys.iter().map(|key| remove.hash_key.len() + key.len()).sum()
        }
        WriteRequest::Incr(incr) => incr.key.len(),
        WriteRequest::CheckAndSet(set) => {
            let key = if set.set_diff_sort_key { &set.set_sort_key } else { &set.check_sort_key };
            set.hash_key.len() + key.len() + set.set_value.len()
        }
        WriteRequest::CheckAndMutate(mutate) => {
            let rows = mutate.mutate_list.iter();
            rows.map(|row| mutate.hash_key.len() + row.sort_key.len() + row.value.len()).sum()
        }
    })
}

/// What a write has read: the value that it checked, as far as the answer has it, or the number that grew.
pub fn read_by_write(response: &WriteResponse) -> u64 {
    match response {
        WriteResponse::Check(check) => units(check.check_value.len()),
        WriteResponse::Incr(_) => 1,
        WriteResponse::Update(_) | WriteResponse::MultiRemove(_) => 0,
    }
}

/// Of a read that was answered.
pub fn of_read(request: &ReadRequest, response: &ReadResponseBody) -> u64 {
    let key = match request {
        ReadRequest::Get { key } | ReadRequest::Ttl { key } => key.len(),
        ReadRequest::SortkeyCount { hash_key } => hash_key.len(),
        ReadRequest::MultiGet(get) => get.hash_key.len(),
        ReadRequest::BatchGet(_)
        | ReadRequest::GetScanner(_)
        | ReadRequest::Scan(_)
        | ReadRequest::ClearScanner { .. } => 0,
    };
    units(match response {
        ReadResponseBody::Get(got) => key + got.value.len(),
        ReadResponseBody::Ttl(_) | ReadResponseBody::SortkeyCount(_) => key,
        ReadResponseBody::MultiGet(got) => pairs(key, &got.kvs),
        ReadResponseBody::BatchGet(got) => {
            got.data.iter().map(|row| row.hash_key.len() + row.sort_key.len() + row.value.len()).sum()
        }
        ReadResponseBody::Scan(got) => pairs(0, &got.kvs),
    })
}

fn pairs(hash_key: usize, kvs: &[KeyValue]) -> usize {
    kvs.iter().map(|kv| hash_key + kv.key.len() + kv.value.len()).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pegasus_types::data::*;

    use super::*;

    fn bytes(n: usize) -> Bytes {
        Bytes::from(vec![b'x'; n])
    }

    fn kv(n: usize) -> KeyValue {
        KeyValue { key: bytes(6), value: bytes(n), expire_ts_seconds: None }
    }

    #[test]
    fn writes() {
        let put =
            |n| WriteRequest::Put(UpdateRequest { key: bytes(6), value: bytes(n), expire_ts_seconds: 0 });
        let multi = |rows: &[usize]| {
            let kvs = rows.iter().map(|n| kv(*n)).collect();
            WriteRequest::MultiPut(MultiPutRequest { hash_key: bytes(90), kvs, expire_ts_seconds: 0 })
        };
        let cas = |sets_other| {
            WriteRequest::CheckAndSet(CheckAndSetRequest {
                hash_key: bytes(4000),
                check_sort_key: bytes(1),
                set_diff_sort_key: sets_other,
                set_sort_key: bytes(200),
                ..Default::default()
            })
        };
        for (request, want) in [
            (put(0), 1),
            (put(4090), 1),
            (put(4091), 2),
            (put(3 * 4096 - 6), 3),
            (WriteRequest::Remove { key: bytes(5000) }, 2),
            (multi(&[]), 1),
            (multi(&[4000; 10]), 10),
            (cas(false), 1),
            (cas(true), 2),
        ] {
            assert_eq!(of_write(&request), want, "{request:?}");
        }
        assert_eq!(read_by_write(&WriteResponse::Incr(IncrResponse::default())), 1);
        assert_eq!(read_by_write(&WriteResponse::Update(UpdateResponse::default())), 0);
        let check = CheckAndSetResponse { check_value: bytes(5000), ..Default::default() };
        assert_eq!(read_by_write(&WriteResponse::Check(check)), 2);
    }

    #[test]
    fn reads() {
        let get = ReadRequest::Get { key: bytes(6) };
        let got = |n| ReadResponseBody::Get(ReadResponse { value: bytes(n), ..Default::default() });
        let multi = ReadRequest::MultiGet(MultiGetRequest { hash_key: bytes(90), ..Default::default() });
        let several =
            ReadResponseBody::MultiGet(MultiGetResponse { kvs: vec![kv(4000); 3], ..Default::default() });
        let scan = ReadRequest::Scan(ScanRequest { context_id: 1 });
        let page = ReadResponseBody::Scan(ScanResponse { kvs: vec![kv(4096)], ..Default::default() });
        for (request, response, want) in [
            (&get, got(0), 1), // not found, too
            (&get, got(4090), 1),
            (&get, got(4091), 2),
            (&multi, several, 3),
            (&scan, page, 2),
        ] {
            assert_eq!(of_read(request, &response), want, "{request:?}");
        }
    }
}
