//! The nouns of the data operations, in a caller's words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use pegasus_types::data::{CheckType, FilterType};
use pegasus_types::time::epoch_seconds;

use crate::error::{Error, Result};

/// How long a written value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Ttl {
    /// For ever, or as long as the table's default says.
    #[default]
    Default,
    /// Whole seconds; fractions are rounded up.
    For(Duration),
}

impl Ttl {
    /// The absolute expiry that the wire wants.
    pub(crate) fn expire_ts(self) -> Result<i32> {
        match self {
            Self::Default => Ok(0),
            Self::For(time) if time.is_zero() => Err(Error::Invalid("a time to live of zero".to_owned())),
            Self::For(time) => {
                let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
                i32::try_from(seconds.saturating_add(u64::from(epoch_now())))
                    .map_err(|_| Error::Invalid(format!("a time to live of {seconds} s is too long")))
            }
        }
    }
}

/// What is left of a value's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeLeft {
    /// No such value.
    Missing,
    Forever,
    Seconds(u32),
}

/// What incr does to the life of a value that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IncrTtl {
    #[default]
    Keep,
    Set(Duration),
    /// Let it live for ever.
    Clear,
}

impl IncrTtl {
    pub(crate) fn expire_ts(self) -> Result<i32> {
        match self {
            Self::Keep => Ok(0),
            Self::Set(time) => Ttl::For(time).expire_ts(),
            Self::Clear => Ok(-1),
        }
    }
}

/// Condition of check_and_set and check_and_mutate: the value at `sort_key` is as `check_type` and `operand` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub sort_key: Bytes,
    pub check_type: CheckType,
    /// Of no meaning for checks of existence.
    pub operand: Bytes,
}

impl Check {
    pub fn new(sort_key: impl AsRef<[u8]>, check_type: CheckType, operand: impl AsRef<[u8]>) -> Self {
        Self {
            sort_key: Bytes::copy_from_slice(sort_key.as_ref()),
            check_type,
            operand: Bytes::copy_from_slice(operand.as_ref()),
        }
    }

    pub fn not_exist(sort_key: impl AsRef<[u8]>) -> Self {
        Self::new(sort_key, CheckType::ValueNotExist, b"")
    }

    pub fn exist(sort_key: impl AsRef<[u8]>) -> Self {
        Self::new(sort_key, CheckType::ValueExist, b"")
    }

    pub fn equal(sort_key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self::new(sort_key, CheckType::BytesEqual, value)
    }
}

/// What came of a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The check passed and the write was done.
    pub passed: bool,
    /// The checked value as it was before; None when it was absent or not asked for.
    pub value: Option<Bytes>,
}

/// One step of check_and_mutate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Set { sort_key: Bytes, value: Bytes, ttl: Ttl },
    Del { sort_key: Bytes },
}

impl Change {
    pub fn set(sort_key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self::Set {
            sort_key: Bytes::copy_from_slice(sort_key.as_ref()),
            value: Bytes::copy_from_slice(value.as_ref()),
            ttl: Ttl::Default,
        }
    }

    pub fn del(sort_key: impl AsRef<[u8]>) -> Self {
        Self::Del { sort_key: Bytes::copy_from_slice(sort_key.as_ref()) }
    }
}

/// Which keys are wanted, by a pattern in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub filter_type: FilterType,
    pub pattern: Bytes,
}

impl Default for Filter {
    fn default() -> Self {
        Self { filter_type: FilterType::NoFilter, pattern: Bytes::new() }
    }
}

impl Filter {
    pub fn anywhere(pattern: impl AsRef<[u8]>) -> Self {
        Self::of(FilterType::MatchAnywhere, pattern)
    }

    pub fn prefix(pattern: impl AsRef<[u8]>) -> Self {
        Self::of(FilterType::MatchPrefix, pattern)
    }

    pub fn postfix(pattern: impl AsRef<[u8]>) -> Self {
        Self::of(FilterType::MatchPostfix, pattern)
    }

    fn of(filter_type: FilterType, pattern: impl AsRef<[u8]>) -> Self {
        Self { filter_type, pattern: Bytes::copy_from_slice(pattern.as_ref()) }
    }
}

/// Sort keys from `start` to `stop`; an empty `stop` is the end of the hash key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: Bytes,
    pub start_inclusive: bool,
    pub stop: Bytes,
    pub stop_inclusive: bool,
}

impl Default for Range {
    /// All sort keys.
    fn default() -> Self {
        Self { start: Bytes::new(), start_inclusive: true, stop: Bytes::new(), stop_inclusive: false }
    }
}

impl Range {
    /// `start` included, `stop` excluded.
    pub fn new(start: impl AsRef<[u8]>, stop: impl AsRef<[u8]>) -> Self {
        Self {
            start: Bytes::copy_from_slice(start.as_ref()),
            stop: Bytes::copy_from_slice(stop.as_ref()),
            ..Self::default()
        }
    }
}

/// Which rows of one hash key are wanted, and how many at once.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RangeOptions {
    pub range: Range,
    pub sort_keys: Filter,
    /// 0 = as many as the server gives at once (3000).
    pub max_count: i32,
    /// Bytes of keys and values; 0 = as many as the server gives at once (30 MiB).
    pub max_bytes: i32,
    pub no_value: bool,
    /// Take them from the end of the range. They come in ascending order all the same.
    pub reverse: bool,
}

/// Rows of one hash key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// (sort key, value)
    pub rows: Vec<(Bytes, Bytes)>,
    /// False = a limit was reached and there may be more.
    pub complete: bool,
}

/// Seconds since the Pegasus epoch.
pub(crate) fn epoch_now() -> u32 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    epoch_seconds(u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_absolute_and_rounded_up() {
        assert_eq!(Ttl::Default.expire_ts(), Ok(0));
        let before = i32::try_from(epoch_now()).unwrap();
        let got = Ttl::For(Duration::from_millis(1500)).expire_ts().unwrap();
        assert!((before + 2..=before + 3).contains(&got));
        assert!(Ttl::For(Duration::ZERO).expire_ts().is_err());
        assert!(Ttl::For(Duration::from_secs(u64::MAX)).expire_ts().is_err());
        assert_eq!((IncrTtl::Keep.expire_ts(), IncrTtl::Clear.expire_ts()), (Ok(0), Ok(-1)));
    }
}
