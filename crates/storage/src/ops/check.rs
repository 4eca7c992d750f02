//! check_and_set and check_and_mutate: one value decides whether others of its hash key are written.

use std::cmp::Ordering;

use bytes::Bytes;
use pegasus_types::data::{
    CheckAndMutateRequest, CheckAndSetRequest, CheckAndSetResponse, CheckType, MutateOperation, StorageError,
    WriteResponse,
};
use pegasus_types::mutation::BodyBuilder;

use super::{DecideAt, Reader, Resolved, fits, integer, live, pattern, valid_key};
use crate::engine::EngineError;

/// What a check asks.
struct Check<'a> {
    hash_key: &'a [u8],
    sort_key: &'a [u8],
    kind: i32,
    operand: &'a [u8],
    return_value: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    /// A numeric comparison with something that is no number.
    NotANumber,
}

pub fn check_and_set(
    request: &CheckAndSetRequest,
    reader: &dyn Reader,
    at: &DecideAt,
    body: &mut BodyBuilder,
) -> Result<Resolved, EngineError> {
    let set_sort_key =
        if request.set_diff_sort_key { &request.set_sort_key } else { &request.check_sort_key };
    let fits = fits(&request.hash_key, [(set_sort_key.len(), request.set_value.len())].into_iter());
    let set_key = valid_key(&request.hash_key, set_sort_key).filter(|_| fits);
    let Some(set_key) = set_key else { return Ok(refused()) };
    let check = Check {
        hash_key: &request.hash_key,
        sort_key: &request.check_sort_key,
        kind: request.check_type,
        operand: &request.check_operand,
        return_value: request.return_check_value,
    };
    check.decide(reader, at, || at.put(body, &set_key, &request.set_value, request.set_expire_ts_seconds))
}

pub fn check_and_mutate(
    request: &CheckAndMutateRequest,
    reader: &dyn Reader,
    at: &DecideAt,
    body: &mut BodyBuilder,
) -> Result<Resolved, EngineError> {
    let lengths = request.mutate_list.iter().map(|step| (step.sort_key.len(), step.value.len()));
    if !fits(&request.hash_key, lengths) {
        return Ok(refused());
    }
    let steps: Option<Vec<_>> = request
        .mutate_list
        .iter()
        .map(|step| {
            let key = valid_key(&request.hash_key, &step.sort_key)?;
            Some((key, MutateOperation::from_wire(step.operation)?, step))
        })
        .collect();
    let Some(steps) = steps.filter(|steps| !steps.is_empty()) else { return Ok(refused()) };
    let check = Check {
        hash_key: &request.hash_key,
        sort_key: &request.check_sort_key,
        kind: request.check_type,
        operand: &request.check_operand,
        return_value: request.return_check_value,
    };
    check.decide(reader, at, || {
        for (key, operation, step) in &steps {
            match operation {
                MutateOperation::Put => at.put(body, key, &step.value, step.set_expire_ts_seconds),
                MutateOperation::Delete => body.delete(key),
            }
        }
    })
}

fn refused() -> Resolved {
    Resolved::Refused(WriteResponse::Check(CheckAndSetResponse {
        error: StorageError::InvalidArgument.code(),
        decree: -1,
        ..Default::default()
    }))
}

impl Check<'_> {
    fn decide(
        &self,
        reader: &dyn Reader,
        at: &DecideAt,
        write: impl FnOnce(),
    ) -> Result<Resolved, EngineError> {
        let (Some(kind), Some(key)) =
            (CheckType::from_wire(self.kind), valid_key(self.hash_key, self.sort_key))
        else {
            return Ok(refused());
        };
        let value = live(reader, &key, at.epoch_now)?.map(|value| value.data());
        let verdict = verdict(kind, value.as_deref(), self.operand);
        let answer = self.answer(value, verdict);
        Ok(match verdict {
            Verdict::Passed => {
                write();
                Resolved::Write(answer)
            }
            Verdict::Failed | Verdict::NotANumber => Resolved::Unchanged(answer),
        })
    }

    fn answer(&self, value: Option<Bytes>, verdict: Verdict) -> WriteResponse {
        let error = match verdict {
            Verdict::Passed => StorageError::Ok,
            Verdict::Failed => StorageError::TryAgain,
            Verdict::NotANumber => StorageError::InvalidArgument,
        };
        let value = value.filter(|_| self.return_value);
        WriteResponse::Check(CheckAndSetResponse {
            error: error.code(),
            check_value_returned: self.return_value,
            check_value_exist: value.is_some(),
            check_value: value.unwrap_or_default(),
            decree: -1,
            ..Default::default()
        })
    }
}

fn verdict(kind: CheckType, value: Option<&[u8]>, operand: &[u8]) -> Verdict {
    use CheckType::*;
    let passed = match (kind, value) {
        (NoCheck, _) => true,
        (ValueNotExist, value) => value.is_none(),
        (ValueNotExistOrEmpty, value) => value.is_none_or(<[u8]>::is_empty),
        (ValueExist, value) => value.is_some(),
        (ValueNotEmpty, value) => value.is_some_and(|value| !value.is_empty()),
        (_, None) => false,
        (MatchAnywhere, Some(value)) => pattern::contains(value, operand),
        (MatchPrefix, Some(value)) => value.starts_with(operand),
        (MatchPostfix, Some(value)) => value.ends_with(operand),
        (BytesLess | BytesLessOrEqual | BytesEqual | BytesGreaterOrEqual | BytesGreater, Some(value)) => {
            allows(kind, value.cmp(operand))
        }
        (IntLess | IntLessOrEqual | IntEqual | IntGreaterOrEqual | IntGreater, Some(value)) => {
            match (integer::parse(value), integer::parse(operand)) {
                (Some(value), Some(operand)) => allows(kind, value.cmp(&operand)),
                _ => return Verdict::NotANumber,
            }
        }
    };
    if passed { Verdict::Passed } else { Verdict::Failed }
}

/// Whether a comparison of kind `kind` holds for value against operand.
fn allows(kind: CheckType, ordering: Ordering) -> bool {
    use CheckType::*;
    match kind {
        BytesLess | IntLess => ordering.is_lt(),
        BytesLessOrEqual | IntLessOrEqual => ordering.is_le(),
        BytesEqual | IntEqual => ordering.is_eq(),
        BytesGreaterOrEqual | IntGreaterOrEqual => ordering.is_ge(),
        BytesGreater | IntGreater => ordering.is_gt(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use pegasus_types::data::{Mutate, WriteRequest};
    use pegasus_types::hash::encode_key;

    use super::*;
    use crate::ops::test_support::{AT, Store, error_of};

    #[test]
    fn every_check_type() {
        use CheckType::*;
        use Verdict::*;
        for (kind, value, operand, want) in [
            (NoCheck, None, "", Passed),
            (NoCheck, Some("x"), "", Passed),
            (ValueNotExist, None, "", Passed),
            (ValueNotExist, Some(""), "", Failed),
            (ValueNotExistOrEmpty, None, "", Passed),
            (ValueNotExistOrEmpty, Some(""), "", Passed),
            (ValueNotExistOrEmpty, Some("x"), "", Failed),
            (ValueExist, None, "", Failed),
            (ValueExist, Some(""), "", Passed),
            (ValueNotEmpty, None, "", Failed),
            (ValueNotEmpty, Some(""), "", Failed),
            (ValueNotEmpty, Some("x"), "", Passed),
            (MatchAnywhere, None, "", Failed),
            (MatchAnywhere, Some("abc"), "", Passed),
            (MatchAnywhere, Some("abc"), "b", Passed),
            (MatchAnywhere, Some("abc"), "d", Failed),
            (MatchAnywhere, Some("b"), "abc", Failed),
            (MatchPrefix, None, "", Failed),
            (MatchPrefix, Some(""), "", Passed),
            (MatchPrefix, Some("abc"), "ab", Passed),
            (MatchPrefix, Some("abc"), "bc", Failed),
            (MatchPostfix, None, "", Failed),
            (MatchPostfix, Some("abc"), "bc", Passed),
            (MatchPostfix, Some("abc"), "ab", Failed),
            (BytesLess, None, "x", Failed),
            (BytesLess, Some("a"), "b", Passed),
            (BytesLess, Some("a"), "ab", Passed),
            (BytesLess, Some("a"), "a", Failed),
            (BytesLessOrEqual, Some("a"), "a", Passed),
            (BytesLessOrEqual, Some("ab"), "a", Failed),
            (BytesEqual, Some(""), "", Passed),
            (BytesEqual, Some("a"), "b", Failed),
            (BytesEqual, None, "", Failed),
            (BytesGreaterOrEqual, Some("b"), "b", Passed),
            (BytesGreaterOrEqual, Some("a"), "b", Failed),
            (BytesGreater, Some("ba"), "b", Passed),
            (BytesGreater, Some("b"), "b", Failed),
            (BytesGreater, Some("10"), "9", Failed),
            (IntLess, None, "x", Failed),
            (IntLess, Some("9"), "10", Passed),
            (IntLess, Some("10"), "10", Failed),
            (IntLessOrEqual, Some("10"), "0xa", Passed),
            (IntEqual, Some("012"), "10", Passed),
            (IntEqual, Some("-1"), "1", Failed),
            (IntGreaterOrEqual, Some("10"), "10", Passed),
            (IntGreaterOrEqual, Some("9"), "10", Failed),
            (IntGreater, Some("-1"), "-2", Passed),
            (IntGreater, Some("-2"), "-2", Failed),
            (IntEqual, Some(""), "0", NotANumber),
            (IntEqual, Some("0"), "", NotANumber),
            (IntGreater, Some("x"), "0", NotANumber),
            (IntGreater, Some("9223372036854775808"), "0", NotANumber),
        ] {
            let got = verdict(kind, value.map(str::as_bytes), operand.as_bytes());
            assert_eq!(got, want, "{kind:?} {value:?} {operand:?}");
        }
    }

    fn cas(check_type: CheckType, operand: &'static str) -> CheckAndSetRequest {
        CheckAndSetRequest {
            hash_key: "h".into(),
            check_sort_key: "c".into(),
            check_type: check_type as i32,
            check_operand: operand.into(),
            set_value: "new".into(),
            return_check_value: true,
            ..Default::default()
        }
    }

    fn answer(resolved: &Resolved) -> &CheckAndSetResponse {
        match resolved {
            Resolved::Write(WriteResponse::Check(a))
            | Resolved::Unchanged(WriteResponse::Check(a))
            | Resolved::Refused(WriteResponse::Check(a)) => a,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sets_where_it_was_told_to() {
        let at = |store: &Store, sort_key: &str| {
            store.get(&encode_key(b"h", sort_key.as_bytes()).unwrap()).map(|v| (v.data(), v.expire_ts()))
        };
        let mut store = Store::default();
        let mut request = cas(CheckType::ValueNotExist, "");
        request.set_expire_ts_seconds = 777_777_777;
        let resolved = store.write(&WriteRequest::CheckAndSet(request));
        assert!(matches!(resolved, Resolved::Write(_)));
        let a = answer(&resolved);
        assert_eq!((a.error, a.check_value_returned, a.check_value_exist), (0, true, false));
        assert_eq!(at(&store, "c"), Some(("new".into(), 777_777_777)));

        let mut request = cas(CheckType::BytesEqual, "new");
        (request.set_diff_sort_key, request.set_sort_key, request.set_value) = (true, "d".into(), "2".into());
        let resolved = store.write(&WriteRequest::CheckAndSet(request));
        let a = answer(&resolved);
        assert_eq!((a.error, a.check_value_exist, &a.check_value[..]), (0, true, &b"new"[..]));
        assert_eq!((at(&store, "c").unwrap().0, at(&store, "d")), ("new".into(), Some(("2".into(), 0))));
    }

    #[test]
    fn a_failed_check_says_what_it_saw() {
        let mut store = Store::default();
        store.put("h", "c", "old");
        for (kind, operand, error) in [
            (CheckType::ValueNotExist, "", StorageError::TryAgain),
            (CheckType::IntEqual, "1", StorageError::InvalidArgument),
        ] {
            for wanted in [true, false] {
                let request = CheckAndSetRequest { return_check_value: wanted, ..cas(kind, operand) };
                let resolved = store.write(&WriteRequest::CheckAndSet(request));
                assert!(matches!(resolved, Resolved::Unchanged(_)));
                let a = answer(&resolved);
                assert_eq!((a.error, a.decree), (error.code(), -1));
                assert_eq!((a.check_value_returned, a.check_value_exist), (wanted, wanted));
                assert_eq!(&a.check_value[..], if wanted { &b"old"[..] } else { b"" });
            }
        }
        store.put_until("h", "c", "old", AT.epoch_now.cast_signed());
        let resolved = store.write(&WriteRequest::CheckAndSet(cas(CheckType::ValueExist, "")));
        assert_eq!(error_of(&resolved), StorageError::TryAgain.code(), "expired = missing");
        assert!(!answer(&resolved).check_value_exist);
    }

    #[test]
    fn wrong_requests_are_refused() {
        let cam = |steps: Vec<Mutate>| {
            WriteRequest::CheckAndMutate(CheckAndMutateRequest {
                hash_key: "h".into(),
                mutate_list: steps,
                ..Default::default()
            })
        };
        let step = |operation| Mutate { operation, sort_key: "s".into(), ..Default::default() };
        let set = |edit: fn(&mut CheckAndSetRequest)| {
            let mut request = cas(CheckType::NoCheck, "");
            edit(&mut request);
            WriteRequest::CheckAndSet(request)
        };
        for (why, request) in [
            ("no such check", set(|r| r.check_type = 18)),
            ("no such check", set(|r| r.check_type = -1)),
            ("long hash key", set(|r| r.hash_key = vec![0; 0xffff].into())),
            (
                "long check key",
                set(|r| {
                    (r.check_sort_key, r.set_diff_sort_key) = (vec![0; 70_000].into(), true);
                }),
            ),
            (
                "long set key",
                set(|r| {
                    (r.set_sort_key, r.set_diff_sort_key) = (vec![0; 70_000].into(), true);
                }),
            ),
            ("empty list", cam(vec![])),
            ("no such operation", cam(vec![step(0), step(2)])),
        ] {
            let mut store = Store::default();
            let resolved = store.write(&request);
            assert!(matches!(resolved, Resolved::Refused(_)), "{why}");
            assert_eq!(error_of(&resolved), StorageError::InvalidArgument.code(), "{why}");
            assert!(store.is_untouched(), "{why}");
        }
    }

    #[test]
    fn mutations_are_one_batch() {
        let mut store = Store::default();
        store.put("h", "gone", "1");
        let request = CheckAndMutateRequest {
            hash_key: "h".into(),
            check_sort_key: "gone".into(),
            check_type: CheckType::ValueExist as i32,
            mutate_list: vec![
                Mutate {
                    operation: 0,
                    sort_key: "a".into(),
                    value: "x".into(),
                    set_expire_ts_seconds: 888_888_888,
                },
                Mutate { operation: 1, sort_key: "gone".into(), ..Default::default() },
            ],
            ..Default::default()
        };
        let request = WriteRequest::CheckAndMutate(request);
        assert!(matches!(store.write(&request), Resolved::Write(_)));
        let a = store.get(&encode_key(b"h", b"a").unwrap()).unwrap();
        assert_eq!((&a.data()[..], a.expire_ts()), (&b"x"[..], 888_888_888));
        assert!(store.get(&encode_key(b"h", b"gone").unwrap()).is_none());
        assert_eq!(error_of(&store.write(&request)), StorageError::TryAgain.code(), "it is gone");
    }
}
