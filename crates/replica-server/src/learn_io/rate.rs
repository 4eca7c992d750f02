//! How fast a node copies, all its copies together.

use std::time::{Duration, Instant};

/// Bytes per second in one direction. What has moved is paid for by a pause afterwards.
#[derive(Debug)]
pub struct Rate {
    /// 0 = no limit.
    per_second: u64,
    paid_until: Instant,
}

impl Rate {
    /// 0 = no limit.
    pub fn new(megabytes_per_second: u32, now: Instant) -> Self {
        let mut rate = Self { per_second: 0, paid_until: now };
        rate.set(megabytes_per_second);
        rate
    }

    pub fn set(&mut self, megabytes_per_second: u32) {
        self.per_second = u64::from(megabytes_per_second) << 20;
    }

    pub fn megabytes_per_second(&self) -> u64 {
        self.per_second >> 20
    }

    /// How long it takes until what has moved so far is paid for.
    pub fn debt(&self, now: Instant) -> Duration {
        self.paid_until.saturating_duration_since(now)
    }

    /// So many bytes have moved. They are paid for after this pause, in the order of the calls.
    pub fn moved(&mut self, now: Instant, bytes: usize) -> Duration {
        if self.per_second == 0 {
            return Duration::ZERO;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        self.paid_until = self.paid_until.max(now) + cost;
        self.debt(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_paid_for_in_time() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let mut rate = Rate::new(1, begun);
        assert_eq!(rate.moved(at(0), 1 << 19), ms(500));
        assert_eq!(rate.moved(at(100), 1 << 18), ms(650), "behind the other copy");
        assert_eq!(rate.debt(at(700)), ms(50));
        assert_eq!(rate.moved(at(5_000), 1 << 18), ms(250), "what was not used is not saved up");
        rate.set(0);
        assert_eq!(rate.moved(at(6_000), usize::MAX), ms(0));
    }
}
