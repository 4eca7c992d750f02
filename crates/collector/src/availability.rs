//! Availability of the probed table, as a value: results of probes in, windows of the clock out.

use std::collections::VecDeque;
use std::time::{Duration, UNIX_EPOCH};

use pegasus_telemetry::time::Calendar;

/// Share in millionths: what Pegasus's counters and alerts use.
pub const FULL: u64 = 1_000_000;

/// Probes of one stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub detects: u64,
    pub fails: u64,
}

impl Counts {
    /// Succeeded / detects in millionths; full when nothing was probed.
    pub fn availability(self) -> u64 {
        if self.detects == 0 {
            return FULL;
        }
        let good = u128::from(self.detects - self.fails.min(self.detects));
        u64::try_from(good * u128::from(FULL) / u128::from(self.detects)).unwrap_or(FULL)
    }

    fn add(&mut self, ok: bool) {
        self.detects += 1;
        self.fails += u64::from(!ok);
    }
}

/// A window that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Index into [`WINDOWS`].
    pub window: usize,
    pub began_unix_s: u64,
    pub counts: Counts,
}

impl Ended {
    /// Its row, as the reference's collector writes it: hash key, sort key, value (metrics.md 4.1). Times are UTC.
    pub fn row(&self) -> (String, String, String) {
        let window = WINDOWS.get(self.window).copied().unwrap_or("minute");
        let began = Calendar::of(UNIX_EPOCH + Duration::from_secs(self.began_unix_s)).date_time();
        let shown = match window {
            "day" => "2000-01-01".len(),
            "hour" => "2000-01-01 00".len(),
            _ => "2000-01-01 00:00".len(),
        };
        let Counts { detects, fails } = self.counts;
        let value = format!("{detects},{},{}", detects.saturating_sub(fails), self.counts.availability());
        (format!("detect_available_{window}"), began.chars().take(shown).collect(), value)
    }
}

/// Kept while the table cannot be written to: two hours of minutes.
const ENDED_MAX: usize = 128;

/// One kind of window: the running one, and the last one that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    length_s: u64,
    /// Number of the running window since 1970; None before the first probe.
    number: Option<u64>,
    running: Counts,
    last: Option<Counts>,
}

impl Window {
    const fn new(length_s: u64) -> Self {
        Self { length_s, number: None, running: Counts { detects: 0, fails: 0 }, last: None }
    }

    /// What has ended with it.
    fn roll(&mut self, unix_s: u64) -> Option<(u64, Counts)> {
        let number = unix_s / self.length_s;
        let mut ended = None;
        match self.number {
            Some(running) if running == number => return None,
            // A clock that jumps back neither ends nor repeats a window.
            Some(running) if number < running => return None,
            // Windows without a single probe in between say nothing: the last one with probes stays.
            Some(running) if self.running.detects > 0 => {
                self.last = Some(self.running);
                ended = Some((running.saturating_mul(self.length_s), self.running));
            }
            Some(_) | None => {}
        }
        self.number = Some(number);
        self.running = Counts::default();
        ended
    }

    /// The last whole window; before the first one has ended, what there is.
    fn shown(&self) -> Counts {
        self.last.unwrap_or(self.running)
    }
}

/// Availability by minute, hour and day (UTC), and since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    windows: [Window; 3],
    overall: Counts,
    /// Failures in a row, by partition.
    failing: Vec<u32>,
    /// To be written down, oldest first.
    ended: VecDeque<Ended>,
}

/// Names of the windows, in the order of [`Availability::windows`].
pub const WINDOWS: [&str; 3] = ["minute", "hour", "day"];

impl Default for Availability {
    fn default() -> Self {
        Self {
            windows: [Window::new(60), Window::new(3600), Window::new(86_400)],
            overall: Counts::default(),
            failing: Vec::new(),
            ended: VecDeque::new(),
        }
    }
}

impl Availability {
    /// Takes the result of one probe. `partition` is None when the table could not be found at all. Returns the
    /// failures in a row of that partition.
    pub fn record(&mut self, unix_s: u64, partition: Option<usize>, ok: bool) -> u32 {
        self.tick(unix_s);
        self.overall.add(ok);
        for window in &mut self.windows {
            window.running.add(ok);
        }
        let Some(partition) = partition else { return 0 };
        if self.failing.len() <= partition {
            self.failing.resize(partition + 1, 0);
        }
        let Some(failures) = self.failing.get_mut(partition) else { return 0 };
        *failures = if ok { 0 } else { failures.saturating_add(1) };
        *failures
    }

    /// Lets time pass without a probe.
    pub fn tick(&mut self, unix_s: u64) {
        for (window, rolled) in self.windows.iter_mut().enumerate() {
            let Some((began_unix_s, counts)) = rolled.roll(unix_s) else { continue };
            if self.ended.len() == ENDED_MAX {
                self.ended.pop_front();
            }
            self.ended.push_back(Ended { window, began_unix_s, counts });
        }
    }

    /// By minute, hour, day.
    pub fn windows(&self) -> [Counts; 3] {
        self.windows.map(|window| window.shown())
    }

    /// The oldest window that is over and not yet written down.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.front().copied()
    }

    /// It is written down.
    pub fn forget_ended(&mut self, written: Ended) {
        self.ended.retain(|ended| *ended != written);
    }

    pub fn overall(&self) -> Counts {
        self.overall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios() {
        for (detects, fails, want) in
            [(0, 0, FULL), (4, 1, 750_000), (3, 1, 666_666), (5, 5, 0), (u64::MAX, 0, FULL)]
        {
            assert_eq!(Counts { detects, fails }.availability(), want);
        }
    }

    #[test]
    fn windows_roll_with_the_clock() {
        let mut seen = Availability::default();
        assert_eq!(seen.windows().map(Counts::availability), [FULL; 3]);
        let day = 86_400 * 20_000;
        for (at, ok) in [(day, true), (day + 30, false), (day + 59, false), (day + 59, true)] {
            seen.record(at, Some(0), ok);
        }
        assert_eq!(seen.windows()[0], Counts { detects: 4, fails: 2 }, "the first minute shows as it runs");
        seen.record(day + 61, Some(0), true);
        assert_eq!(seen.windows()[0], Counts { detects: 4, fails: 2 }, "the last whole minute");
        assert_eq!(seen.windows()[1], Counts { detects: 5, fails: 2 }, "the hour runs on");
        seen.tick(day + 121);
        assert_eq!(seen.windows()[0], Counts { detects: 1, fails: 0 });
        seen.tick(day + 1000);
        assert_eq!(seen.windows()[0], Counts { detects: 1, fails: 0 }, "minutes without a probe say nothing");
        seen.tick(day + 3600);
        assert_eq!(seen.windows()[1], Counts { detects: 5, fails: 2 });
        assert_eq!(seen.windows()[2], Counts { detects: 5, fails: 2 });
        assert_eq!(seen.overall(), Counts { detects: 5, fails: 2 });

        seen.tick(day + 86_400);
        let mut rows = Vec::new();
        while let Some(ended) = seen.ended() {
            rows.push(ended.row());
            seen.forget_ended(ended);
        }
        let row =
            |kind: &str, at: &str, value: &str| (format!("detect_available_{kind}"), at.into(), value.into());
        let want = [
            row("minute", "2024-10-04 00:00", "4,2,500000"),
            row("minute", "2024-10-04 00:01", "1,1,1000000"),
            row("hour", "2024-10-04 00", "5,3,600000"),
            row("day", "2024-10-04", "5,3,600000"),
        ];
        assert_eq!(rows, want);
    }

    #[test]
    fn what_cannot_be_written_is_bounded() {
        let mut seen = Availability::default();
        for minute in 0..1000 {
            seen.record(minute * 60, None, true);
        }
        assert_eq!(seen.ended.len(), ENDED_MAX);
        assert!(seen.ended().is_some_and(|ended| ended.began_unix_s > 800 * 60), "the newest are kept");
    }

    #[test]
    fn a_clock_that_jumps_back_loses_nothing() {
        let mut seen = Availability::default();
        seen.record(600, Some(0), true);
        seen.record(60, Some(0), false);
        assert_eq!(seen.windows()[0], Counts { detects: 2, fails: 1 });
        assert_eq!(seen.windows[0].last, None);
    }

    #[test]
    fn failures_in_a_row_are_per_partition() {
        let mut seen = Availability::default();
        assert_eq!(seen.record(1, Some(2), false), 1);
        assert_eq!(seen.record(1, Some(2), false), 2);
        assert_eq!(seen.record(1, Some(0), false), 1);
        assert_eq!(seen.record(1, Some(2), true), 0);
        assert_eq!(seen.record(1, Some(2), false), 1);
        assert_eq!(seen.record(1, None, false), 0);
        assert_eq!(seen.overall(), Counts { detects: 6, fails: 5 });
    }
}
