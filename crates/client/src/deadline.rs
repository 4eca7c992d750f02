//! How long an operation may take, and how long to wait between its attempts.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Pause before an attempt, doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// A fail-over takes less than a second and is to be noticed within a fraction of it.
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// The end of an operation and the attempts that it has made.
#[derive(Debug)]
pub struct Attempts {
    end: Instant,
    next_pause: Duration,
    is_first: bool,
}

impl Attempts {
    pub fn within(time: Duration) -> Self {
        Self { end: Instant::now() + time, next_pause: FIRST_PAUSE, is_first: true }
    }

    /// Time left, None when it is over.
    pub fn left(&self) -> Option<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        (left > Duration::from_millis(1)).then_some(left)
    }

    /// Waits before the next attempt. False when there is no time for one. `news`: there may be something new to know, so
    /// that the first one goes at once: who is told that the partition has moved need not wait for it.
    pub async fn pause(&mut self, news: bool) -> bool {
        if std::mem::take(&mut self.is_first) && news {
            return self.left().is_some();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_news_are_followed_at_once_and_only_once() {
        for (news, at_once) in [(true, true), (false, false)] {
            let mut attempts = Attempts::within(Duration::from_secs(30));
            let begun = Instant::now();
            assert!(attempts.pause(news).await);
            assert_eq!(begun.elapsed() < FIRST_PAUSE / 2, at_once, "{:?}", begun.elapsed());
            let begun = Instant::now();
            assert!(attempts.pause(news).await);
            assert!(begun.elapsed() >= FIRST_PAUSE / 2, "{:?}", begun.elapsed());
        }
        assert!(!Attempts::within(Duration::ZERO).pause(true).await, "there is no time left");
    }
}
