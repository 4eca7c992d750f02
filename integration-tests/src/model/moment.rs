use std::time::{SystemTime, UNIX_EPOCH};

/// 2016-01-01T00:00:00Z, from where expiry counts.
const EPOCH_UNIX_S: u64 = 1_451_606_400;

pub fn epoch_now() -> u32 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(unix.saturating_sub(EPOCH_UNIX_S)).unwrap_or(u32::MAX)
}

/// When an answer was decided: some second of `from..=to`, and `now` is the one that is looked into.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: u32,
    pub from: u32,
    pub to: u32,
}

/// Seconds between a send and its receipt.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub from: u32,
    pub to: u32,
}

impl Window {
    pub fn at(self, now: u32) -> Moment {
        Moment { now, from: self.from, to: self.to }
    }
}
