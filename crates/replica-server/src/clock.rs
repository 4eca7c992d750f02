//! The two clocks of the server, read here and nowhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use pegasus_types::Millis;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME: leases must count the time that a suspended machine slept (safety-rules.md 1.1).
pub fn boot_ms() -> Millis {
    let t = clock_gettime(ClockId::Boottime);
    Millis(t.tv_sec.unsigned_abs() * 1000 + t.tv_nsec.unsigned_abs() / 1_000_000)
}

/// Wall clock, microseconds since 1970: time tags and expiry times.
pub fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Monotonic, microseconds: how long something took.
pub fn mono_us() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec.unsigned_abs() * 1_000_000 + t.tv_nsec.unsigned_abs() / 1000
}

/// `now_us`, or just above the time tag of what was committed last: time tags never go back, whatever the clocks of
/// the nodes that were primary before said.
pub fn after_committed(now_us: u64, newest_us: u64) -> u64 {
    now_us.max(newest_us.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::after_committed;

    #[test]
    fn time_tags_never_go_back() {
        for (now, newest, expected) in
            [(10, 0, 10), (10, 9, 10), (10, 10, 11), (10, 50, 51), (0, u64::MAX, u64::MAX)]
        {
            assert_eq!(after_committed(now, newest), expected);
        }
    }
}
