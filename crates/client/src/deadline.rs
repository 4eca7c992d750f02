//! How long an operation may take, and how long to wait between its attempts.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Pause before the second attempt, doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// A fail-over takes less than a second and is to be noticed within a fraction of it.
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// The end of an operation and the attempts that it has made.
#[derive(Debug)]
pub struct Attempts {
    end: Instant,
    next_pause: Duration,
}

impl Attempts {
    pub fn within(time: Duration) -> Self {
        Self { end: Instant::now() + time, next_pause: FIRST_PAUSE }
    }

    /// Time left, None when it is over.
    pub fn left(&self) -> Option<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        (left > Duration::from_millis(1)).then_some(left)
    }

    /// Waits before the next attempt. False when there is no time for one.
    pub async fn pause(&mut self) -> bool {
        let jittered = self.next_pause.mul_f64(rand::random_range(0.7..1.3));
        self.next_pause = (self.next_pause * 2).min(MAX_PAUSE);
        match self.left() {
            Some(left) if left > jittered => {
                sleep(jittered).await;
                true
            }
            _ => false,
        }
    }
}
