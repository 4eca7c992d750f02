//! incr: adds to a decimal number that a value holds.

use pegasus_types::data::{IncrRequest, IncrResponse, StorageError, WriteResponse};
use pegasus_types::mutation::BodyBuilder;

use super::{DecideAt, Reader, Resolved, integer, is_valid_key, live};
use crate::engine::EngineError;

pub fn incr(
    request: &IncrRequest,
    reader: &dyn Reader,
    at: &DecideAt,
    body: &mut BodyBuilder,
) -> Result<Resolved, EngineError> {
    let answer = |error: StorageError, new_value| {
        WriteResponse::Incr(IncrResponse { error: error.code(), new_value, decree: -1, ..Default::default() })
    };
    if !is_valid_key(&request.key) {
        return Ok(Resolved::Refused(answer(StorageError::InvalidArgument, 0)));
    }
    let old = live(reader, &request.key, at.epoch_now)?;
    let old_number = match old.as_ref().map(|value| value.data()) {
        Some(text) if !text.is_empty() => match integer::parse(&text) {
            Some(number) => number,
            None => return Ok(Resolved::Unchanged(answer(StorageError::InvalidArgument, 0))),
        },
        _ => 0,
    };
    let Some(new_value) = old_number.checked_add(request.increment) else {
        return Ok(Resolved::Unchanged(answer(StorageError::InvalidArgument, old_number)));
    };
    let expire_ts = match (request.expire_ts_seconds, &old) {
        (0, Some(value)) => value.expire_ts().cast_signed(),
        (given, _) => given.max(0),
    };
    at.put(body, &request.key, new_value.to_string().as_bytes(), expire_ts);
    Ok(Resolved::Write(answer(StorageError::Ok, new_value)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pegasus_types::data::WriteRequest;
    use pegasus_types::hash::encode_key;

    use super::*;
    use crate::ops::test_support::{AT, Store};

    const NOW: i32 = AT.epoch_now as i32;

    /// Outcome: the error, the number in the answer, and what is stored afterwards with its expiry.
    fn run(stored: Option<(&str, i32)>, by: i64, expire: i32, ttl: u32) -> (i32, i64, Option<(String, i32)>) {
        let mut store = Store::default();
        if let Some((value, expire)) = stored {
            store.put_until("h", "s", value, expire);
        }
        let key = encode_key(b"h", b"s").unwrap();
        let request = IncrRequest { key: key.clone(), increment: by, expire_ts_seconds: expire };
        let at = DecideAt { default_ttl_s: ttl, ..AT };
        let (Resolved::Write(answer) | Resolved::Unchanged(answer) | Resolved::Refused(answer)) =
            store.write_at(&WriteRequest::Incr(request), &at);
        let WriteResponse::Incr(answer) = answer else { panic!("an incr response") };
        let after = store
            .get(&key)
            .map(|v| (String::from_utf8(v.data().to_vec()).unwrap(), v.expire_ts().cast_signed()));
        (answer.error, answer.new_value, after)
    }

    fn stored(text: &str, expire: i32) -> Option<(String, i32)> {
        Some((text.to_owned(), expire))
    }

    #[test]
    fn adds_to_what_is_there() {
        assert_eq!(run(None, 5, 0, 0), (0, 5, stored("5", 0)));
        assert_eq!(run(Some(("", 0)), -3, 0, 0), (0, -3, stored("-3", 0)));
        assert_eq!(run(Some(("10", 0)), 5, 0, 0), (0, 15, stored("15", 0)));
        assert_eq!(run(Some((" 0x10", 0)), 1, 0, 0), (0, 17, stored("17", 0)));
        assert_eq!(run(Some(("010", 0)), 0, 0, 0), (0, 8, stored("8", 0)));
        assert_eq!(run(Some(("7", NOW)), 5, 0, 0), (0, 5, stored("5", 0)), "expired counts as missing");
    }

    #[test]
    fn expiry_is_kept_set_or_cleared() {
        assert_eq!(run(Some(("1", NOW + 9)), 1, 0, 0), (0, 2, stored("2", NOW + 9)));
        assert_eq!(run(Some(("1", NOW + 9)), 1, NOW + 50, 0), (0, 2, stored("2", NOW + 50)));
        assert_eq!(run(Some(("1", NOW + 9)), 1, -1, 0), (0, 2, stored("2", 0)));
        assert_eq!(run(None, 1, NOW + 50, 0), (0, 1, stored("1", NOW + 50)));
        assert_eq!(run(None, 1, -1, 0), (0, 1, stored("1", 0)));
        assert_eq!(run(None, 1, 0, 60), (0, 1, stored("1", NOW + 60)), "default_ttl");
        assert_eq!(run(Some(("1", 0)), 1, 0, 60), (0, 2, stored("2", NOW + 60)), "default_ttl");
        assert_eq!(run(Some(("1", NOW + 9)), 1, -1, 60), (0, 2, stored("2", NOW + 60)), "default_ttl");
    }

    #[test]
    fn what_is_no_number_or_overflows_stays() {
        assert_eq!(run(Some(("x", 0)), 1, 0, 0), (4, 0, stored("x", 0)));
        assert_eq!(
            run(Some(("99999999999999999999", 0)), 1, 0, 0),
            (4, 0, stored("99999999999999999999", 0))
        );
        let max = i64::MAX.to_string();
        assert_eq!(run(Some((&max, 0)), 1, 0, 0), (4, i64::MAX, stored(&max, 0)));
        let min = i64::MIN.to_string();
        assert_eq!(run(Some((&min, 0)), -1, 0, 0), (4, i64::MIN, stored(&min, 0)));
        assert_eq!(run(Some((&max, 0)), i64::MIN, 0, 0), (0, -1, stored("-1", 0)));
    }

    #[test]
    fn a_malformed_key_is_refused() {
        let mut store = Store::default();
        let request = IncrRequest { key: Bytes::from_static(b"\0"), ..Default::default() };
        assert!(matches!(store.write(&WriteRequest::Incr(request)), Resolved::Refused(_)));
        assert!(store.is_untouched());
    }
}
