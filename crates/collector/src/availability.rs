//! Availability of the probed table, as a value: results of probes in, windows of the clock out.

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

    fn roll(&mut self, unix_s: u64) {
        let number = unix_s / self.length_s;
        match self.number {
            Some(running) if running == number => return,
            // A clock that jumps back neither ends nor repeats a window.
            Some(running) if number < running => return,
            // Windows without a single probe in between say nothing: the last one with probes stays.
            Some(_) if self.running.detects > 0 => self.last = Some(self.running),
            Some(_) | None => {}
        }
        self.number = Some(number);
        self.running = Counts::default();
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
}

/// Names of the windows, in the order of [`Availability::windows`].
pub const WINDOWS: [&str; 3] = ["minute", "hour", "day"];

impl Default for Availability {
    fn default() -> Self {
        Self {
            windows: [Window::new(60), Window::new(3600), Window::new(86_400)],
            overall: Counts::default(),
            failing: Vec::new(),
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
        for window in &mut self.windows {
            window.roll(unix_s);
        }
    }

    /// By minute, hour, day.
    pub fn windows(&self) -> [Counts; 3] {
        self.windows.map(|window| window.shown())
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
