//! Partitions whose short reads wait for the disk.
//!
//! A read of a row that is in memory takes microseconds and is done on the loop, where nothing is handed over. One that
//! has to wait for the disk would hold up everything else that the node serves; on a busy disk for tens of milliseconds.
//! Whether a read will wait is not known before. So the first read of a replica that has waited makes it *cold*: its reads
//! go to threads, where many wait beside each other, until [`WARM_AFTER`] of them in succession found all in memory.

use nix::sys::resource::{UsageWho, getrusage};

/// So many reads that found everything in memory: with more than one miss among them, threads are the better place.
const WARM_AFTER: u32 = 256;
/// A read on the loop that took so long, in microseconds, may have waited for the disk.
const MAY_HAVE_WAITED_US: u64 = 50;

/// What one replica's reads have met.
#[derive(Clone, Copy, Debug, Default)]
pub struct Warmth {
    /// Reads on threads that have to find everything in memory until the loop reads again.
    left: u32,
}

impl Warmth {
    pub fn is_cold(self) -> bool {
        self.left > 0
    }

    /// A read, wherever it was done.
    pub fn read(&mut self, from_disk: bool) {
        self.left = if from_disk { WARM_AFTER } else { self.left.saturating_sub(1) };
    }
}

/// Tells of the loop's reads which have waited for the disk.
#[derive(Debug, Default)]
pub struct LoopReads {
    /// Of this thread, up to the last look.
    blocks: i64,
}

impl LoopReads {
    /// Fast reads are not looked at. Whatever the thread has read from the disk since the last look counts, too.
    pub fn was_from_disk(&mut self, took_us: u64) -> bool {
        if took_us < MAY_HAVE_WAITED_US {
            return false;
        }
        let blocks = blocks_read();
        std::mem::replace(&mut self.blocks, blocks) < blocks
    }
}

/// What this thread has made disks read since its start, in blocks of 512 bytes; what it found in the page cache is not
/// among it. 0 where the system does not count.
pub fn blocks_read() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.block_reads())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_cold_until_enough_reads_in_succession_found_all_in_memory() {
        let mut warmth = Warmth::default();
        warmth.read(false);
        assert!(!warmth.is_cold());
        warmth.read(true);
        for _ in 1..WARM_AFTER {
            warmth.read(false);
            assert!(warmth.is_cold());
        }
        warmth.read(true);
        for _ in 1..WARM_AFTER {
            warmth.read(false);
        }
        assert!(warmth.is_cold(), "counted anew");
        warmth.read(false);
        assert!(!warmth.is_cold());
    }
}
