//! Whether a role's loop turns, as seen from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Role;

/// A replica-server's loop turns at least once a second, also when it has nothing to do.
const BEAT_EVERY: Duration = Duration::from_millis(500);

/// Beaten on the role's thread, felt on the main thread.
#[derive(Clone, Debug)]
pub struct Pulse {
    role: Role,
    beats: Arc<AtomicU64>,
    /// What the feeling side saw last, and when that was new.
    seen: (u64, Instant),
}

impl Pulse {
    pub fn new(role: Role) -> Self {
        Self { role, beats: Arc::default(), seen: (0, Instant::now()) }
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Beats as long as this task gets its turn.
    pub async fn beat_while_turning(self) {
        let mut turns = 0;
        self.beat_with(move || {
            turns += 1;
            turns
        })
        .await;
    }

    /// Beats whenever the number has changed.
    pub async fn beat_with(self, mut turns: impl FnMut() -> u64) {
        let mut last = None;
        loop {
            let now = turns();
            if last.replace(now) != Some(now) {
                self.beats.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(BEAT_EVERY).await;
        }
    }

    /// False when there was no beat for longer than `limit`.
    pub fn beats_within(&mut self, limit: Duration) -> bool {
        let beats = self.beats.load(Ordering::Relaxed);
        if beats != self.seen.0 {
            self.seen = (beats, Instant::now());
        }
        self.seen.1.elapsed() <= limit
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[tokio::test]
    async fn a_loop_that_hangs_is_felt() {
        let mut pulse = Pulse::new(Role::Replica);
        let turns = Rc::new(Cell::new(0));
        let local = tokio::task::LocalSet::new();
        let counted = turns.clone();
        local.spawn_local(pulse.clone().beat_with(move || counted.get()));
        local
            .run_until(async move {
                let limit = BEAT_EVERY * 4;
                for _ in 0..6 {
                    turns.set(turns.get() + 1);
                    tokio::time::sleep(BEAT_EVERY).await;
                    assert!(pulse.beats_within(Duration::from_secs(30)));
                }
                let begun = Instant::now();
                while pulse.beats_within(limit) {
                    assert!(begun.elapsed() < Duration::from_secs(60), "it hangs, and nobody feels it");
                    tokio::time::sleep(BEAT_EVERY).await;
                }
            })
            .await;
    }
}
