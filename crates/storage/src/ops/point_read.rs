//! get, ttl, batch_get: single keys.

use pegasus_types::data::{
    BatchGetRequest, BatchGetResponse, FullData, ReadResponse, StorageError, TtlResponse,
};

use super::{MOST_BYTES, ReadAt, is_valid_key, live, valid_key};
use crate::engine::{EngineError, PartitionEngine};
use crate::schema::Value;

/// A live value, or the error of the answer.
fn find(key: &[u8], engine: &dyn PartitionEngine, at: &ReadAt) -> Result<Result<Value, i32>, EngineError> {
    if !is_valid_key(key) {
        return Ok(Err(StorageError::InvalidArgument.code()));
    }
    Ok(live(&engine, key, at.epoch_now)?.ok_or(StorageError::NotFound.code()))
}

pub fn get(key: &[u8], engine: &dyn PartitionEngine, at: &ReadAt) -> Result<ReadResponse, EngineError> {
    Ok(match find(key, engine, at)? {
        Ok(value) => ReadResponse { value: value.data(), ..Default::default() },
        Err(error) => ReadResponse { error, ..Default::default() },
    })
}

/// Seconds left, -1 = for ever.
pub fn ttl(key: &[u8], engine: &dyn PartitionEngine, at: &ReadAt) -> Result<TtlResponse, EngineError> {
    Ok(match find(key, engine, at)? {
        Ok(value) => {
            let ttl_seconds = match value.expire_ts() {
                0 => -1,
                expire_ts => i32::try_from(expire_ts - at.epoch_now).unwrap_or(i32::MAX),
            };
            TtlResponse { ttl_seconds, ..Default::default() }
        }
        Err(error) => TtlResponse { error, ..Default::default() },
    })
}

/// Keys of any hash keys of this partition, answered in the order asked; what is not there is left out.
pub fn batch_get(
    request: &BatchGetRequest,
    engine: &dyn PartitionEngine,
    at: &ReadAt,
) -> Result<BatchGetResponse, EngineError> {
    let refused = BatchGetResponse { error: StorageError::InvalidArgument.code(), ..Default::default() };
    if request.keys.is_empty() {
        return Ok(refused);
    }
    let view = engine.view()?;
    let mut data = Vec::new();
    let mut bytes = 0;
    for key in &request.keys {
        let Some(encoded) = valid_key(&key.hash_key, &key.sort_key) else { return Ok(refused) };
        if let Some(value) = live(&&*view, &encoded, at.epoch_now)? {
            // A key may be asked for thousands of times in one frame.
            if bytes >= MOST_BYTES {
                return Ok(BatchGetResponse {
                    error: StorageError::Incomplete.code(),
                    data,
                    ..Default::default()
                });
            }
            bytes += (encoded.len() + value.data_len()) as u64;
            data.push(FullData {
                hash_key: key.hash_key.clone(),
                sort_key: key.sort_key.clone(),
                value: value.data(),
            });
        }
    }
    Ok(BatchGetResponse { data, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pegasus_types::data::FullKey;
    use pegasus_types::hash::encode_key;

    use super::*;
    use crate::ops::test_support::{AT, READ_AT, Store};

    const NOW: i32 = AT.epoch_now as i32;

    fn key(sort_key: &str) -> Bytes {
        encode_key(b"h", sort_key.as_bytes()).unwrap()
    }

    fn store() -> Store {
        let mut store = Store::default();
        store.put("h", "kept", "v");
        store.put("h", "empty", "");
        store.put_until("h", "short", "w", NOW + 1);
        store.put_until("h", "late", "w", NOW);
        store
    }

    #[test]
    fn one_key_asked_for_often_does_not_fill_the_memory() {
        let mut store = Store::default();
        store.put("h", "s", &"v".repeat(1 << 20));
        let keys = vec![FullKey { hash_key: "h".into(), sort_key: "s".into() }; 1000];
        let got = batch_get(&BatchGetRequest { keys }, store.engine(), &READ_AT).unwrap();
        assert_eq!((got.error, got.data.len()), (StorageError::Incomplete.code(), 60));
    }

    #[test]
    fn get_and_ttl() {
        let store = store();
        for (sort_key, error, data, ttl_seconds) in [
            ("kept", 0, "v", -1),
            ("empty", 0, "", -1),
            ("short", 0, "w", 1),
            ("late", 1, "", 0),
            ("missing", 1, "", 0),
        ] {
            let got = get(&key(sort_key), store.engine(), &READ_AT).unwrap();
            assert_eq!((got.error, &got.value[..]), (error, data.as_bytes()), "{sort_key}");
            let got = ttl(&key(sort_key), store.engine(), &READ_AT).unwrap();
            assert_eq!((got.error, got.ttl_seconds), (error, ttl_seconds), "{sort_key}");
        }
        for bad in [&b""[..], b"\0", b"\0\x09abc", b"\xff\xffd"] {
            assert_eq!(get(bad, store.engine(), &READ_AT).unwrap().error, 4, "{bad:?}");
            assert_eq!(ttl(bad, store.engine(), &READ_AT).unwrap().error, 4, "{bad:?}");
        }
    }

    #[test]
    fn batch_get_keeps_the_order_asked() {
        let mut store = store();
        store.put("other", "s", "o");
        let full = |hash_key: &'static str, sort_key: &'static str| FullKey {
            hash_key: hash_key.into(),
            sort_key: sort_key.into(),
        };
        let ask = |keys| batch_get(&BatchGetRequest { keys }, store.engine(), &READ_AT).unwrap();
        let got = ask(vec![full("other", "s"), full("h", "late"), full("h", "kept"), full("x", "y")]);
        let data: Vec<_> =
            got.data.iter().map(|d| (&d.hash_key[..], &d.sort_key[..], &d.value[..])).collect();
        assert_eq!(got.error, 0);
        assert_eq!(data, [(&b"other"[..], &b"s"[..], &b"o"[..]), (b"h", b"kept", b"v")]);
        assert_eq!(ask(vec![]).error, 4);
        let long = FullKey { hash_key: vec![0; 0xffff].into(), ..Default::default() };
        assert_eq!(ask(vec![full("h", "kept"), long]).error, 4);
    }
}
