//! The clocks of one machine: CLOCK_BOOTTIME, which leases are counted on, and the wall clock, which nothing that
//! is safe depends on.

use pegasus_types::Millis;

use crate::bus::Micros;

/// Wall time at the beginning of a run, for clocks that go right.
pub const WALL_US: u64 = 1_700_000_000_000_000;

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Parts per million fast (or slow).
    drift_ppm: i64,
    /// What the boot clock showed when the drift became this.
    shown_us: u64,
    since: Micros,
    wall_offset_us: i64,
}

impl Clock {
    pub fn new(drift_ppm: i64, shown_us: u64) -> Self {
        Self { drift_ppm, shown_us, since: 0, wall_offset_us: 0 }
    }

    fn us(self, now: Micros) -> u64 {
        let passed = i64::try_from(now.saturating_sub(self.since)).unwrap_or(i64::MAX);
        let gained = i64::try_from(i128::from(passed) * i128::from(self.drift_ppm) / 1_000_000).unwrap_or(0);
        self.shown_us + (passed + gained).unsigned_abs()
    }

    pub fn at(self, now: Micros) -> Millis {
        Millis(self.us(now) / 1_000)
    }

    /// From now on it goes that fast.
    pub fn set_drift(&mut self, now: Micros, drift_ppm: i64) {
        *self = Self { shown_us: self.us(now), since: now, drift_ppm, ..*self };
    }

    /// Somebody sets the wall clock.
    pub fn set_wall_offset(&mut self, us: i64) {
        self.wall_offset_us = us;
    }

    pub fn wall_us(self, now: Micros) -> u64 {
        (WALL_US + now).saturating_add_signed(self.wall_offset_us)
    }

    /// How long until the boot clock shows `ms` more than now, rounded up.
    pub fn lasts(self, now: Micros, ms: u64) -> Micros {
        let missing = ((self.us(now) / 1_000 + ms) * 1_000).saturating_sub(self.us(now));
        let rate = 1_000_000_u64.saturating_add_signed(self.drift_ppm);
        missing * 1_000_000 / rate + 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_drifts_from_where_it_was_and_never_goes_back() {
        let mut clock = Clock::new(1_000, 5_000_000);
        assert_eq!(clock.at(10_000_000), Millis(15_010));
        clock.set_drift(10_000_000, -1_000);
        assert_eq!(clock.at(10_000_000), Millis(15_010));
        assert_eq!(clock.at(20_000_000), Millis(25_000));
        for (drift, now, ms) in [(-1_000, 20_000_123, 600), (1_000, 20_000_777, 150), (-1_000, 20_000_001, 0)]
        {
            clock.set_drift(20_000_000, drift);
            let before = clock.at(now).0;
            let lasts = clock.lasts(now, ms);
            assert!(clock.at(now + lasts).0 >= before + ms, "{drift} {now} {ms}");
            assert!(ms == 0 || clock.at(now + lasts - 4).0 < before + ms, "{drift} {now} {ms}");
        }
        clock.set_drift(20_000_000, 0);
        clock.set_wall_offset(-60_000_000);
        assert_eq!(clock.wall_us(1), WALL_US - 59_999_999);
        assert_eq!(clock.at(20_000_000), Millis(25_000));
    }
}
