//! Time as a value. The pure crates never read a clock: `now` is an argument.

use std::fmt;
use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

/// Milliseconds on a monotonic clock of one process, which means nothing elsewhere. Where leases depend on it, it has to
/// count suspended time (CLOCK_BOOTTIME).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl Millis {
    pub const ZERO: Self = Self(0);

    /// Time passed since `earlier`; zero when `earlier` lies ahead.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Millis {
    type Output = Self;
    fn add(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl Sub<u64> for Millis {
    type Output = Self;
    fn sub(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms))
    }
}

impl fmt::Debug for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// Unix time of 2016-01-01T00:00:00Z, from which expiry times count (wire-protocol.md 6.1).
pub const PEGASUS_EPOCH_UNIX_S: u64 = 1_451_606_400;

/// Seconds since the Pegasus epoch for a wall clock reading in microseconds since 1970.
pub const fn epoch_seconds(unix_us: u64) -> u32 {
    let s = (unix_us / 1_000_000).saturating_sub(PEGASUS_EPOCH_UNIX_S);
    if s > u32::MAX as u64 { u32::MAX } else { s as u32 }
}

/// A record with `expire_ts` is invisible from that second on; 0 never expires.
pub const fn is_expired(expire_ts: u32, epoch_now: u32) -> bool {
    expire_ts > 0 && expire_ts <= epoch_now
}
