//! The clocks of the meta-server, read here and nowhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use pegasus_types::Millis;
use tokio::time::Instant;

/// Monotonic milliseconds since the role's start. Does not count suspended time: a meta-server that slept has
/// not heard beacons, but nobody was silent.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(self) -> Millis {
        Millis(u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// Wall clock, microseconds since 1970.
pub fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Wall clock, seconds since 1970.
pub fn wall_s() -> i64 {
    i64::try_from(wall_us() / 1_000_000).unwrap_or(i64::MAX)
}
