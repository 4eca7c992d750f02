//! What writes mean (wire-protocol.md 6.4).

use bytes::Bytes;
use pegasus_types::data::*;

use super::moment::Moment;
use super::number::strtoll;
use super::partition::{INVALID_ARGUMENT, OK, Partition, TRY_AGAIN};
use super::rows::{Expiry, Row, decode, encode, is_within};

/// Whether something was written: then the answer carries a decree.
pub type Written = bool;

enum Verdict {
    Passed,
    Failed,
    NotNumbers,
}

impl Partition {
    /// The answer, its bookkeeping fields left out.
    pub fn write(&mut self, request: &WriteRequest, at: Moment) -> (WriteResponse, Written) {
        match request {
            WriteRequest::Put(put) => {
                let valid = decode(&put.key).is_some();
                if valid {
                    self.put(put.key.clone(), &put.value, put.expire_ts_seconds, at);
                }
                updated(valid)
            }
            WriteRequest::Remove { key } => {
                self.rows.remove(key);
                updated(decode(key).is_some())
            }
            WriteRequest::MultiPut(put) => {
                let keys: Option<Vec<_>> = put.kvs.iter().map(|kv| encode(&put.hash_key, &kv.key)).collect();
                let keys = keys.unwrap_or_default();
                for (key, kv) in keys.iter().zip(&put.kvs) {
                    self.put(key.clone(), &kv.value, put.expire_ts_seconds, at);
                }
                updated(!keys.is_empty())
            }
            WriteRequest::MultiRemove(remove) => {
                let keys = remove.sort_keys.iter().map(|sort_key| encode(&remove.hash_key, sort_key));
                let keys = keys.collect::<Option<Vec<_>>>().unwrap_or_default();
                keys.iter().for_each(|key| drop(self.rows.remove(key)));
                let written = !keys.is_empty();
                let error = if written { OK } else { INVALID_ARGUMENT };
                let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
                (
                    WriteResponse::MultiRemove(MultiRemoveResponse { error, count, ..Default::default() }),
                    written,
                )
            }
            WriteRequest::Incr(incr) => self.incr(incr, at),
            WriteRequest::CheckAndSet(set) => self.check_and_set(set, at),
            WriteRequest::CheckAndMutate(mutate) => self.check_and_mutate(mutate, at),
        }
    }

    fn put(&mut self, key: Bytes, value: &Bytes, expire_ts: i32, at: Moment) {
        let expiry = match expire_ts {
            0 if self.default_ttl > 0 => {
                Expiry { lo: at.from + self.default_ttl, hi: at.to + self.default_ttl }
            }
            second => Expiry::at(second.cast_unsigned()),
        };
        self.rows.insert(key, Row { value: value.clone(), expiry });
    }

    fn incr(&mut self, request: &IncrRequest, at: Moment) -> (WriteResponse, Written) {
        let answer =
            |error, new_value| WriteResponse::Incr(IncrResponse { error, new_value, ..Default::default() });
        if decode(&request.key).is_none() {
            return (answer(INVALID_ARGUMENT, 0), false);
        }
        let old = self.live(&request.key, at.now).cloned();
        let old_number = match &old {
            None => 0,
            Some(row) if row.value.is_empty() => 0,
            Some(row) => match strtoll(&row.value) {
                Some(number) => number,
                None => return (answer(INVALID_ARGUMENT, 0), false),
            },
        };
        let Ok(new) = i64::try_from(i128::from(old_number) + i128::from(request.increment)) else {
            return (answer(INVALID_ARGUMENT, old_number), false);
        };
        let value = Bytes::from(new.to_string());
        match (old, request.expire_ts_seconds) {
            // Kept, unless there is none: then it is a write without one, like others.
            (Some(old), 0) if old.expiry != Expiry::NEVER => {
                self.rows.insert(request.key.clone(), Row { value, expiry: old.expiry });
            }
            (_, second) => self.put(request.key.clone(), &value, second.max(0), at),
        }
        (answer(OK, new), true)
    }

    fn check_and_set(&mut self, request: &CheckAndSetRequest, at: Moment) -> (WriteResponse, Written) {
        let set_sort_key =
            if request.set_diff_sort_key { &request.set_sort_key } else { &request.check_sort_key };
        let (Some(check_key), Some(set_key)) =
            (encode(&request.hash_key, &request.check_sort_key), encode(&request.hash_key, set_sort_key))
        else {
            return refused();
        };
        self.check(
            &check_key,
            request.check_type,
            &request.check_operand,
            request.return_check_value,
            at,
            |this| {
                this.put(set_key, &request.set_value, request.set_expire_ts_seconds, at);
            },
        )
    }

    fn check_and_mutate(&mut self, request: &CheckAndMutateRequest, at: Moment) -> (WriteResponse, Written) {
        let mut keys = Vec::new();
        for step in &request.mutate_list {
            match (encode(&request.hash_key, &step.sort_key), step.operation) {
                (Some(key), 0 | 1) => keys.push(key),
                _ => return refused(),
            }
        }
        let check_key = encode(&request.hash_key, &request.check_sort_key);
        let (false, Some(check_key)) = (keys.is_empty(), check_key) else { return refused() };
        self.check(
            &check_key,
            request.check_type,
            &request.check_operand,
            request.return_check_value,
            at,
            |this| {
                for (key, step) in keys.into_iter().zip(&request.mutate_list) {
                    if step.operation == 0 {
                        this.put(key, &step.value, step.set_expire_ts_seconds, at);
                    } else {
                        this.rows.remove(&key);
                    }
                }
            },
        )
    }

    fn check(
        &mut self,
        key: &Bytes,
        kind: i32,
        operand: &[u8],
        return_value: bool,
        at: Moment,
        write: impl FnOnce(&mut Self),
    ) -> (WriteResponse, Written) {
        let value = self.live(key, at.now).map(|row| row.value.clone());
        let Some(verdict) = judge(kind, value.as_deref(), operand) else { return refused() };
        let error = match verdict {
            Verdict::Passed => OK,
            Verdict::Failed => TRY_AGAIN,
            Verdict::NotNumbers => INVALID_ARGUMENT,
        };
        let written = error == OK;
        if written {
            write(self);
        }
        let answer = CheckAndSetResponse {
            error,
            check_value_returned: return_value,
            check_value_exist: return_value && value.is_some(),
            check_value: value.filter(|_| return_value).unwrap_or_default(),
            ..Default::default()
        };
        (WriteResponse::Check(answer), written)
    }
}

fn updated(written: bool) -> (WriteResponse, Written) {
    let error = if written { OK } else { INVALID_ARGUMENT };
    (WriteResponse::Update(UpdateResponse { error, ..Default::default() }), written)
}

fn refused() -> (WriteResponse, Written) {
    (WriteResponse::Check(CheckAndSetResponse { error: INVALID_ARGUMENT, ..Default::default() }), false)
}

/// None when there is no such check.
fn judge(kind: i32, value: Option<&[u8]>, operand: &[u8]) -> Option<Verdict> {
    let passed = match kind {
        0 => true,
        1 => value.is_none(),
        2 => value.unwrap_or_default().is_empty(),
        3 => value.is_some(),
        4 => !value.unwrap_or_default().is_empty(),
        5..=17 => {
            let Some(value) = value else { return Some(Verdict::Failed) };
            match kind {
                5 => is_within(operand, value),
                6 => value.starts_with(operand),
                7 => value.ends_with(operand),
                8 => value < operand,
                9 => value <= operand,
                10 => value == operand,
                11 => value >= operand,
                12 => value > operand,
                _ => {
                    let (Some(value), Some(operand)) = (strtoll(value), strtoll(operand)) else {
                        return Some(Verdict::NotNumbers);
                    };
                    match kind {
                        13 => value < operand,
                        14 => value <= operand,
                        15 => value == operand,
                        16 => value >= operand,
                        _ => value > operand,
                    }
                }
            }
        }
        _ => return None,
    };
    Some(if passed { Verdict::Passed } else { Verdict::Failed })
}
