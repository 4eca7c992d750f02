//! Memtables that nothing much is written to any more: the rest of a burst does not keep its memory until it is old.

use pegasus_types::Decree;

/// Ticks, one a second, over which mutations are counted.
const TICKS: u32 = 30;
/// So few mutations meanwhile are quiet: availability probes write now and then.
const MUTATIONS: i64 = 100;
/// Memory that is worth a table of its own.
const LEAST_BYTES: u64 = 1 << 20;

#[derive(Debug, Default)]
pub struct Quiet {
    ticks: u32,
    /// Applied when counting began.
    from: Decree,
}

impl Quiet {
    /// To be called once a second: is the active memtable, of so many bytes, to be flushed?
    pub fn tick(&mut self, applied: Decree, bytes: u64) -> bool {
        self.ticks += 1;
        let is_busy = applied.0 - self.from.0 > MUTATIONS;
        if !is_busy && self.ticks < TICKS {
            return false;
        }
        *self = Self { ticks: 0, from: applied };
        !is_busy && bytes >= LEAST_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_flushed_when_it_is_over() {
        for (per_tick, bytes, expected) in [
            (0, LEAST_BYTES, vec![30, 60]),
            (3, LEAST_BYTES, vec![30, 60]),
            (0, LEAST_BYTES - 1, vec![]),
            (4, LEAST_BYTES, vec![]),
            (1000, u64::MAX, vec![]),
        ] {
            let mut quiet = Quiet { ticks: 0, from: Decree(7) };
            let flushed: Vec<i64> =
                (1..=70).filter(|tick| quiet.tick(Decree(7 + tick * per_tick), bytes)).collect();
            assert_eq!(flushed, expected, "{per_tick} a tick, {bytes} bytes");
        }
        // From the end of the burst on.
        let mut quiet = Quiet::default();
        let flushed: Vec<i64> =
            (1..=60).filter(|tick| quiet.tick(Decree(50 * (*tick).min(20)), LEAST_BYTES)).collect();
        assert_eq!(flushed, [48]);
    }
}
