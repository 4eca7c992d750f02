//! What a table lets its clients do: how much per second, and whether at all (operations.md 4 and 5).
//!
//! A limit of a table is divided among its partitions: each replica lets through `n / partitions + 1` in a second, counted
//! in fixed seconds. What is more waits or is refused; what has waited is not counted again. Replication, copies and
//! other traffic between servers are never held up.

use pegasus_types::envs::{Deny, Step, Throttle};
use pegasus_types::{AppInfo, Millis};

const SECOND_MS: u64 = 1000;

/// Requests that may wait on a node because of throttling, and the bytes of them; what is more is refused at once.
const MAX_DELAYED: usize = 10_000;
const MAX_DELAYED_BYTES: usize = 64 << 20;

/// Requests of a node that wait because of throttling.
#[derive(Debug, Default)]
pub struct Delayed {
    requests: usize,
    bytes: usize,
}

impl Delayed {
    /// Whether one more of so many bytes may wait; it is counted then.
    pub fn enter(&mut self, bytes: usize) -> bool {
        let may = self.requests < MAX_DELAYED && self.bytes + bytes <= MAX_DELAYED_BYTES;
        if may {
            self.requests += 1;
            self.bytes += bytes;
        }
        may
    }

    pub fn leave(&mut self, bytes: usize) {
        self.requests -= 1;
        self.bytes -= bytes;
    }
}

/// A request as the limits see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    Read,
    /// A read of what a secondary has.
    BackupRead,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Write, Self::Read, Self::BackupRead];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::BackupRead => "backup",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// To be executed after so many milliseconds, without asking again.
    Delay(u64),
    /// To be refused after so many milliseconds.
    Reject(u64),
    /// To be refused now: the client looks for another server.
    Reconfigure,
    /// To be dropped without an answer.
    Ignore,
}

/// The limits of one replica, and what has been used of them.
#[derive(Debug, Default)]
pub struct Limits {
    deny: Option<Deny>,
    writes: Meter,
    write_bytes: Meter,
    reads: Meter,
    backup_reads: Meter,
    read_bytes: Option<Bucket>,
}

impl Limits {
    /// What the table's settings say. A value that cannot be read is no limit.
    pub fn of(app: &AppInfo) -> Self {
        let env = |name: &str| app.envs.get(name).map(|value| value.trim());
        let share = |units: u64| units / u64::try_from(app.partition_count).unwrap_or(1).max(1) + 1;
        let meter = |name: &str| Meter::new(env(name).and_then(Throttle::parse).unwrap_or_default(), share);
        let read_bytes =
            env("replica.read_throttling_by_size").and_then(Throttle::parse_read_bytes).flatten();
        Self {
            deny: env("replica.deny_client_request").and_then(Deny::parse),
            writes: meter("replica.write_throttling"),
            write_bytes: meter("replica.write_throttling_by_size"),
            reads: meter("replica.read_throttling"),
            backup_reads: meter("replica.backup_request_throttling"),
            read_bytes: read_bytes.map(|bytes| Bucket::new(share(bytes))),
        }
    }

    /// To be asked first of all: whether the table serves such requests.
    pub fn denied(&self, kind: Kind) -> Option<Verdict> {
        let deny = self.deny.filter(|deny| match kind {
            Kind::Write => deny.writes,
            Kind::Read | Kind::BackupRead => deny.reads,
        })?;
        Some(if deny.reconfig { Verdict::Reconfigure } else { Verdict::Ignore })
    }

    /// For a request of `bytes` whose client waits `timeout_ms`.
    pub fn ask(&mut self, now: Millis, kind: Kind, bytes: usize, timeout_ms: u64) -> Verdict {
        let verdict = match kind {
            Kind::Write => match self.writes.ask(now, 1) {
                Verdict::Pass => self.write_bytes.ask(now, bytes as u64),
                other => other,
            },
            Kind::Read => self.reads.ask(now, 1),
            Kind::BackupRead => self.backup_reads.ask(now, 1),
        };
        // So that the answer still arrives.
        let most = timeout_ms / 2;
        match verdict {
            Verdict::Delay(ms) => Verdict::Delay(ms.min(most)),
            Verdict::Reject(ms) => Verdict::Reject(ms.min(most)),
            Verdict::Pass if kind != Kind::Write => match &mut self.read_bytes {
                Some(bucket) => match bucket.is_empty(now) {
                    true => Verdict::Reject(0),
                    false => Verdict::Pass,
                },
                None => Verdict::Pass,
            },
            other => other,
        }
    }

    /// A read that was let through has become so many bytes.
    pub fn has_read(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.read_bytes {
            bucket.take(bytes);
        }
    }
}

/// What went through in the present second.
#[derive(Debug, Default)]
struct Meter {
    throttle: Throttle,
    second: u64,
    used: u64,
}

impl Meter {
    fn new(throttle: Throttle, share: impl Fn(u64) -> u64) -> Self {
        let own = |step: Step| (step.units > 0).then(|| Step { units: share(step.units), ..step });
        let throttle =
            Throttle { delay: throttle.delay.and_then(own), reject: throttle.reject.and_then(own) };
        Self { throttle, second: 0, used: 0 }
    }

    fn ask(&mut self, now: Millis, units: u64) -> Verdict {
        let second = now.0 / SECOND_MS;
        if second != self.second {
            (self.second, self.used) = (second, 0);
        }
        let used = self.used.saturating_add(units);
        let above = |step: Option<Step>| step.filter(|step| used > step.units).map(|s| u64::from(s.wait_ms));
        // What is refused uses nothing.
        if let Some(ms) = above(self.throttle.reject) {
            return Verdict::Reject(ms);
        }
        self.used = used;
        above(self.throttle.delay).map_or(Verdict::Pass, Verdict::Delay)
    }
}

/// Bytes that may be read; refilled all the time up to those of one second. A read learns only afterwards how much it
/// was, so the bucket goes below zero, and the next reads wait for it.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    /// May be negative.
    bytes: i64,
    filled: Millis,
}

impl Bucket {
    fn new(per_second: u64) -> Self {
        let bytes = i64::try_from(per_second).unwrap_or(i64::MAX);
        Self { per_second, bytes, filled: Millis::ZERO }
    }

    fn fill(&mut self, now: Millis) {
        let more = u128::from(now.since(self.filled)) * u128::from(self.per_second) / u128::from(SECOND_MS);
        if more > 0 {
            let full = i64::try_from(self.per_second).unwrap_or(i64::MAX);
            let more = i64::try_from(more).unwrap_or(i64::MAX);
            (self.bytes, self.filled) = (self.bytes.saturating_add(more).min(full), now);
        }
    }

    fn is_empty(&mut self, now: Millis) -> bool {
        self.fill(now);
        self.bytes <= 0
    }

    fn take(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pegasus_types::AppStatus;

    const PARTITIONS: i32 = 4;

    fn limits(envs: &[(&str, &str)]) -> Limits {
        Limits::of(&AppInfo {
            app_id: 1,
            name: "t".into(),
            app_type: "pegasus".into(),
            status: AppStatus::Available,
            partition_count: PARTITIONS,
            max_replica_count: 3,
            envs: envs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            create_second: 0,
            drop_second: 0,
            expire_second: 0,
        })
    }

    #[test]
    fn a_partition_has_its_share_of_each_second() {
        use Verdict::{Delay, Pass, Reject};
        for (setting, expected) in [
            // 4 / 4 + 1 = 2
            ("4*delay*100", vec![Pass, Pass, Delay(100), Delay(100), Delay(100), Delay(100)]),
            ("4*reject*0", vec![Pass, Pass, Reject(0), Reject(0), Reject(0), Reject(0)]),
            // 12 / 4 + 1 = 4: what is refused is not counted, what waits is.
            ("4*delay*100,12*reject*7", vec![Pass, Pass, Delay(100), Delay(100), Reject(7), Reject(7)]),
            ("4*delay*9000", vec![Pass, Pass, Delay(500), Delay(500), Delay(500), Delay(500)]),
            ("4*reject*9000", vec![Pass, Pass, Reject(500), Reject(500), Reject(500), Reject(500)]),
            ("0*delay*1,0*reject*1", vec![Pass; 6]),
            ("nonsense", vec![Pass; 6]),
        ] {
            for (env, kind) in
                [("replica.write_throttling", Kind::Write), ("replica.read_throttling", Kind::Read)]
            {
                let mut limits = limits(&[(env, setting)]);
                for second in [5_u64, 6] {
                    let at = |i| Millis(second * 1000 + i);
                    let got: Vec<_> = (0..6).map(|i| limits.ask(at(i), kind, 100, 1000)).collect();
                    assert_eq!(got, expected, "{env} {setting}");
                }
                let other = if kind == Kind::Write { Kind::Read } else { Kind::Write };
                assert!((0..9).all(|_| limits.ask(Millis(7_000), other, 100, 1000) == Pass));
            }
        }
    }

    #[test]
    fn writes_by_size() {
        // 400 / 4 + 1
        let mut limits = limits(&[("replica.write_throttling_by_size", "400*reject*0")]);
        let mut ask = |ms, bytes| limits.ask(Millis(ms), Kind::Write, bytes, 1000);
        assert_eq!([ask(1, 100), ask(2, 2), ask(3, 1)], [Verdict::Pass, Verdict::Reject(0), Verdict::Pass]);
        assert_eq!([ask(1000, 102), ask(1001, 101)], [Verdict::Reject(0), Verdict::Pass]);
    }

    #[test]
    fn reads_by_size_borrow_and_pay_back() {
        // 3996 / 4 + 1 = 1000 bytes per second
        let mut limits = limits(&[("replica.read_throttling_by_size", "3996")]);
        for (ms, bytes, expected) in [
            (0, 400, Verdict::Pass),
            (0, 599, Verdict::Pass),
            (0, 1_001, Verdict::Pass),
            (0, 0, Verdict::Reject(0)),
            (1_000, 0, Verdict::Reject(0)),
            (1_001, 0, Verdict::Pass),
            // What is not used is saved up for a second, no longer.
            (9_000, 1_000, Verdict::Pass),
            (9_000, 0, Verdict::Reject(0)),
        ] {
            assert_eq!(limits.ask(Millis(ms), Kind::Read, 50, 1000), expected, "at {ms}");
            limits.has_read(bytes);
        }
        assert_eq!(limits.ask(Millis(9_000), Kind::Write, 50, 1000), Verdict::Pass);
    }

    #[test]
    fn backup_reads_have_a_limit_of_their_own() {
        let mut limits = limits(&[
            ("replica.backup_request_throttling", "3*delay*10,4*reject*10"),
            ("replica.read_throttling", "1*reject*0"),
        ]);
        let got: Vec<_> = (0..3).map(|_| limits.ask(Millis(1), Kind::BackupRead, 50, 1000)).collect();
        assert_eq!(got, [Verdict::Pass, Verdict::Delay(10), Verdict::Reject(10)]);
        assert_eq!(limits.ask(Millis(1), Kind::Read, 50, 1000), Verdict::Pass);
    }

    #[test]
    fn those_that_wait_are_bounded() {
        let mut delayed = Delayed::default();
        assert!(delayed.enter(MAX_DELAYED_BYTES) && !delayed.enter(1));
        delayed.leave(MAX_DELAYED_BYTES);
        assert!((0..MAX_DELAYED).all(|_| delayed.enter(1)) && !delayed.enter(1));
        delayed.leave(1);
        assert!(delayed.enter(1));
    }

    #[test]
    fn what_is_denied() {
        use Verdict::{Ignore, Reconfigure};
        for (setting, expected) in [
            ("timeout*all", [Some(Ignore), Some(Ignore), Some(Ignore)]),
            ("reconfig*write", [Some(Reconfigure), None, None]),
            ("reconfig*read", [None, Some(Reconfigure), Some(Reconfigure)]),
            ("what", [None, None, None]),
        ] {
            let limits = limits(&[("replica.deny_client_request", setting)]);
            assert_eq!(Kind::ALL.map(|kind| limits.denied(kind)), expected, "{setting}");
        }
    }
}
