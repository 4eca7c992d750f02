//! put, remove, multi_put, multi_remove: nothing is read.

use pegasus_types::data::{
    MultiPutRequest, MultiRemoveRequest, MultiRemoveResponse, StorageError, UpdateRequest, UpdateResponse,
    WriteResponse,
};
use pegasus_types::mutation::BodyBuilder;

use super::{DecideAt, Resolved, fits, is_valid_key, valid_key};

fn done() -> Resolved {
    Resolved::Write(WriteResponse::Update(UpdateResponse::default()))
}

fn refused() -> Resolved {
    Resolved::Refused(WriteResponse::Update(UpdateResponse {
        error: StorageError::InvalidArgument.code(),
        decree: -1,
        ..Default::default()
    }))
}

pub fn put(request: &UpdateRequest, at: &DecideAt, body: &mut BodyBuilder) -> Resolved {
    if !is_valid_key(&request.key) || !fits(b"", [(request.key.len(), request.value.len())].into_iter()) {
        return refused();
    }
    at.put(body, &request.key, &request.value, request.expire_ts_seconds);
    done()
}

/// Removing what is not there is fine.
pub fn remove(key: &[u8], body: &mut BodyBuilder) -> Resolved {
    if !is_valid_key(key) {
        return refused();
    }
    body.delete(key);
    done()
}

pub fn multi_put(request: &MultiPutRequest, at: &DecideAt, body: &mut BodyBuilder) -> Resolved {
    if !fits(&request.hash_key, request.kvs.iter().map(|kv| (kv.key.len(), kv.value.len()))) {
        return refused();
    }
    let keys: Option<Vec<_>> = request.kvs.iter().map(|kv| valid_key(&request.hash_key, &kv.key)).collect();
    let Some(keys) = keys.filter(|keys| !keys.is_empty()) else { return refused() };
    for (key, kv) in keys.iter().zip(&request.kvs) {
        at.put(body, key, &kv.value, request.expire_ts_seconds);
    }
    done()
}

/// `count` in the response is how many sort keys were asked for, there or not.
pub fn multi_remove(request: &MultiRemoveRequest, body: &mut BodyBuilder) -> Resolved {
    let fits = fits(&request.hash_key, request.sort_keys.iter().map(|sort_key| (sort_key.len(), 0)));
    let keys = fits.then(|| request.sort_keys.iter().map(|sort_key| valid_key(&request.hash_key, sort_key)));
    let keys: Option<Vec<_>> = keys.and_then(|keys| keys.collect());
    let Some(keys) = keys.filter(|keys| !keys.is_empty()) else {
        return Resolved::Refused(WriteResponse::MultiRemove(MultiRemoveResponse {
            error: StorageError::InvalidArgument.code(),
            decree: -1,
            ..Default::default()
        }));
    };
    keys.iter().for_each(|key| body.delete(key));
    let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
    Resolved::Write(WriteResponse::MultiRemove(MultiRemoveResponse { count, ..Default::default() }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pegasus_types::data::{CheckAndMutateRequest, CheckAndSetRequest, KeyValue, Mutate, WriteRequest};
    use pegasus_types::hash::encode_key;

    use super::*;
    use crate::ops::test_support::{AT, Store, error_of};

    fn key(hash_key: &str, sort_key: &str) -> Bytes {
        encode_key(hash_key.as_bytes(), sort_key.as_bytes()).unwrap()
    }

    #[test]
    fn a_put_stores_expiry_tag_and_data() {
        for (expire, default_ttl_s, want) in
            [(0, 0, 0), (500, 0, 500), (0, 60, AT.epoch_now + 60), (500, 60, 500), (-1, 60, u32::MAX)]
        {
            let mut store = Store::default();
            let at = DecideAt { default_ttl_s, ..AT };
            let put = UpdateRequest { key: key("h", "s"), value: "v".into(), expire_ts_seconds: expire };
            assert!(matches!(store.write_at(&WriteRequest::Put(put), &at), Resolved::Write(_)));
            let value = store.get(&key("h", "s")).unwrap();
            assert_eq!((value.expire_ts(), &value.data()[..]), (want, &b"v"[..]), "{expire} {default_ttl_s}");
            assert_eq!(value.time_tag(), at.time_tag());
        }
    }

    #[test]
    fn malformed_keys_are_refused_and_write_nothing() {
        let long = Bytes::from([&[0, 1, b'h'][..], &[b's'; crate::engine::MAX_KEY_LEN]].concat());
        for bad in [Bytes::new(), "\0".into(), "\0\x05ab".into(), Bytes::from_static(b"\xff\xffd"), long] {
            let mut store = Store::default();
            for request in [
                WriteRequest::Put(UpdateRequest { key: bad.clone(), ..Default::default() }),
                WriteRequest::Remove { key: bad.clone() },
            ] {
                assert_eq!(error_of(&store.write(&request)), StorageError::InvalidArgument.code(), "{bad:?}");
            }
            assert!(store.is_untouched());
        }
    }

    #[test]
    fn remove_works_on_missing_keys() {
        let mut store = Store::default();
        store.put("h", "s", "v");
        for _ in 0..2 {
            let answer = store.write(&WriteRequest::Remove { key: key("h", "s") });
            assert!(matches!(answer, Resolved::Write(_)));
            assert_eq!(error_of(&answer), 0);
            assert!(store.get(&key("h", "s")).is_none());
        }
    }

    #[test]
    fn multi_put_is_all_or_nothing() {
        let kv = |key: &'static str, value: &'static str| KeyValue {
            key: key.into(),
            value: value.into(),
            expire_ts_seconds: None,
        };
        let request = |hash_key: Bytes, kvs: Vec<KeyValue>| {
            WriteRequest::MultiPut(MultiPutRequest { hash_key, kvs, expire_ts_seconds: 900 })
        };
        let mut store = Store::default();
        let bad_sort = KeyValue { key: vec![b'x'; 70_000].into(), ..kv("", "") };
        for bad in [
            request("h".into(), vec![]),
            request(vec![0; 0xffff].into(), vec![kv("a", "1")]),
            request("h".into(), vec![kv("a", "1"), bad_sort]),
        ] {
            assert_eq!(error_of(&store.write(&bad)), StorageError::InvalidArgument.code());
            assert!(store.is_untouched());
        }
        let twice = request("h".into(), vec![kv("a", "1"), kv("b", "2"), kv("a", "3")]);
        assert_eq!(error_of(&store.write(&twice)), 0);
        let value = store.get(&key("h", "a")).unwrap();
        assert_eq!((&value.data()[..], value.expire_ts()), (&b"3"[..], 900), "the later of two wins");
        assert_eq!(&store.get(&key("h", "b")).unwrap().data()[..], b"2");
    }

    #[test]
    fn a_request_that_would_become_huge_is_refused() {
        // A frame of 100 KB that repeats its hash key 1000 times.
        let hash_key = Bytes::from(vec![b'h'; 60_000]);
        let kvs = vec![KeyValue { key: "s".into(), value: "v".into(), expire_ts_seconds: None }; 1000];
        let sort_keys = vec![Bytes::from("s"); 1000];
        let huge = Bytes::from(vec![0; crate::ops::MAX_RESOLVED_BYTES]);
        let mutate_list = vec![Mutate { sort_key: "s".into(), ..Default::default() }; 1000];
        for request in [
            WriteRequest::MultiPut(MultiPutRequest { hash_key: hash_key.clone(), kvs, expire_ts_seconds: 0 }),
            WriteRequest::Put(UpdateRequest {
                key: key("h", "s"),
                value: huge.clone(),
                expire_ts_seconds: 0,
            }),
            WriteRequest::CheckAndSet(CheckAndSetRequest { set_value: huge, ..Default::default() }),
            WriteRequest::MultiRemove(MultiRemoveRequest {
                hash_key: hash_key.clone(),
                sort_keys,
                max_count: 0,
            }),
            WriteRequest::CheckAndMutate(CheckAndMutateRequest {
                hash_key,
                mutate_list,
                ..Default::default()
            }),
        ] {
            let mut store = Store::default();
            assert_eq!(error_of(&store.write(&request)), StorageError::InvalidArgument.code());
            assert!(store.is_untouched());
        }
    }

    #[test]
    fn multi_remove_counts_what_was_asked_for() {
        let mut store = Store::default();
        store.put("h", "a", "1");
        let request = |hash_key: Bytes, sort_keys: Vec<Bytes>| {
            WriteRequest::MultiRemove(MultiRemoveRequest { hash_key, sort_keys, max_count: 1 })
        };
        let Resolved::Write(WriteResponse::MultiRemove(answer)) =
            store.write(&request("h".into(), vec!["a".into(), "missing".into()]))
        else {
            panic!("written")
        };
        assert_eq!((answer.error, answer.count), (0, 2));
        assert!(store.get(&key("h", "a")).is_none());
        for bad in [request("h".into(), vec![]), request(vec![0; 0xffff].into(), vec!["a".into()])] {
            assert_eq!(error_of(&store.write(&bad)), StorageError::InvalidArgument.code());
        }
    }
}
