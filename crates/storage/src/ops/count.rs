//! sortkey_count.

use pegasus_types::data::{CountResponse, StorageError};

use super::range::KeyRange;
use super::{Budget, ReadAt, valid_key};
use crate::engine::{EngineError, PartitionEngine};

/// Live records of a hash key; -1 when there was no time to count them all.
pub fn sortkey_count(
    hash_key: &[u8],
    engine: &dyn PartitionEngine,
    at: &ReadAt,
) -> Result<CountResponse, EngineError> {
    let Some(prefix) = valid_key(hash_key, b"") else {
        return Ok(CountResponse { error: StorageError::InvalidArgument.code(), ..Default::default() });
    };
    let range = KeyRange::of_prefix(&prefix);
    let (lo, hi) = range.as_slices();
    let view = engine.view()?;
    let mut budget = Budget::new(&at.limits);
    let mut count = 0;
    for row in view.range(lo, hi, false) {
        let (_, value) = row?;
        if !budget.look() {
            return Ok(CountResponse { count: -1, ..Default::default() });
        }
        count += i64::from(!value.is_expired(at.epoch_now));
    }
    Ok(CountResponse { count, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ops::ReadLimits;
    use crate::ops::test_support::{AT, READ_AT, Store};

    #[test]
    fn counts_live_records_of_one_hash_key() {
        let mut store = Store::default();
        for i in 0..200 {
            store.put("h", &i.to_string(), "");
        }
        store.put_until("h", "gone", "", AT.epoch_now.cast_signed());
        store.put("", "of the empty hash key", "");
        store.put("i", "", "");
        let count = |hash_key: &[u8], at: &ReadAt| {
            let got = sortkey_count(hash_key, store.engine(), at).unwrap();
            (got.error, got.count)
        };
        for (hash_key, want) in [(&b"h"[..], 200), (b"", 1), (b"i", 1), (b"none", 0)] {
            assert_eq!(count(hash_key, &READ_AT), (0, want), "{hash_key:?}");
        }
        assert_eq!(count(&[0; 0xffff], &READ_AT).0, 4);
        let at = ReadAt { limits: ReadLimits { time: Duration::ZERO, ..READ_AT.limits }, ..READ_AT };
        assert_eq!(count(b"h", &at), (0, -1));
    }
}
