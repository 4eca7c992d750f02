//! When a replica is to be compacted as a whole: a decision from the table's settings, what was done before and the
//! time (operations.md 7).

use std::collections::BTreeMap;

const DAY_S: u64 = 24 * 3600;
/// What failed, or gave way to writes, is tried again so much later.
pub const RETRY_AFTER_S: u64 = 60;

/// The settings `manual_compact.*` of a table. How deep is not among them: the engine always rewrites all it has into
/// the last level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    disabled: bool,
    /// On one server, replicas of all tables counted; None = no limit.
    most_running: Option<i64>,
    /// Unix seconds.
    once_s: Option<u64>,
    /// Seconds of the day, UTC.
    daily_s: Vec<u64>,
}

/// What a replica did of it so far. Times in Unix seconds, 0 = never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub finished_s: u64,
    /// Latest trigger that was obeyed: it may lie after `finished_s` where clocks differ.
    pub once_s: u64,
    /// Latest attempt that came to nothing.
    pub failed_s: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Compact,
    Disabled,
    NoneMayRun,
    NotDue,
    TooSoon,
    FailedLately,
}

impl Rules {
    /// A value that cannot be read counts as not set.
    pub fn of(envs: &BTreeMap<String, String>) -> Self {
        let env = |name: &str| envs.get(&format!("manual_compact.{name}")).map(|value| value.trim());
        Self {
            disabled: env("disabled").is_some_and(|value| value.eq_ignore_ascii_case("true")),
            most_running: env("max_concurrent_running_count").and_then(|value| value.parse().ok()),
            once_s: env("once.trigger_time").and_then(|value| value.parse().ok()),
            daily_s: env("periodic.trigger_time")
                .map(|value| value.split(',').filter_map(second_of_day).collect())
                .unwrap_or_default(),
        }
    }

    /// The trigger that a compaction obeys which begins now.
    pub fn once_s(&self) -> u64 {
        self.once_s.unwrap_or(0)
    }

    /// The gates, in the order of the reference.
    pub fn decide(&self, history: History, now_s: u64, min_interval_s: u64) -> Verdict {
        if self.disabled {
            return Verdict::Disabled;
        }
        if self.most_running.is_some_and(|most| most <= 0) {
            return Verdict::NoneMayRun;
        }
        let once = self.once_s() > history.finished_s.max(history.once_s);
        let today_s = now_s - now_s % DAY_S;
        let is_due = |at_s: u64| at_s <= now_s && at_s > history.finished_s;
        if !once && !self.daily_s.iter().any(|second| is_due(today_s + second)) {
            return Verdict::NotDue;
        }
        if history.finished_s > 0 && now_s < history.finished_s.saturating_add(min_interval_s) {
            return Verdict::TooSoon;
        }
        if history.failed_s > 0 && now_s < history.failed_s.saturating_add(RETRY_AFTER_S) {
            return Verdict::FailedLately;
        }
        Verdict::Compact
    }

    /// Whether one may begin beside so many that run on this server.
    pub fn may_begin(&self, running: usize) -> bool {
        self.most_running.is_none_or(|most| i64::try_from(running).is_ok_and(|running| running < most))
    }
}

/// Whether a disk can take so much more, and then still be far enough from being full for clients' writes.
pub fn has_room(needs: u64, available: u64, capacity: u64, least_percent: u64) -> bool {
    available >= needs.saturating_add(capacity / 100 * least_percent)
}

/// Of `H:MM`, 24 hours.
fn second_of_day(text: &str) -> Option<u64> {
    let (hour, minute) = text.trim().split_once(':')?;
    let (hour, minute): (u64, u64) = (hour.parse().ok()?, minute.parse().ok()?);
    (hour < 24 && minute < 60).then_some(hour * 3600 + minute * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-26 00:00:00 UTC.
    const TODAY: u64 = 1_795_651_200;
    const MINUTE: u64 = 60;
    const HOUR: u64 = 3600;

    fn rules(envs: &[(&str, &str)]) -> Rules {
        let full = |(name, value): &(&str, &str)| (format!("manual_compact.{name}"), (*value).to_owned());
        Rules::of(&envs.iter().map(full).collect())
    }

    #[test]
    fn gates_in_their_order() {
        use Verdict::*;
        const ONCE: (&str, &str) = ("once.trigger_time", "1795651200");
        const DAILY: (&str, &str) = ("periodic.trigger_time", "3:00,21:30");
        let never = History::default();
        let finished = |finished_s| History { finished_s, ..never };
        let at = |hour: u64, minute: u64| TODAY + hour * HOUR + minute * MINUTE;
        type Case<'a> = (&'a [(&'a str, &'a str)], History, u64, Verdict);
        let cases: &[Case<'_>] = &[
            (&[], never, at(4, 0), NotDue),
            (&[ONCE], never, at(4, 0), Compact),
            // A trigger in the future is obeyed at once, as by the reference, and not again when its time comes.
            (&[ONCE], never, TODAY - HOUR, Compact),
            (&[ONCE], History { once_s: TODAY, ..finished(TODAY - HOUR) }, TODAY + HOUR, NotDue),
            (&[ONCE], finished(TODAY - HOUR), at(4, 0), Compact),
            (&[ONCE], finished(TODAY), at(4, 0), NotDue),
            (&[("once.trigger_time", "0")], never, at(4, 0), NotDue),
            (&[("once.trigger_time", "now")], never, at(4, 0), NotDue),
            (&[ONCE, ("disabled", "TRUE")], never, at(4, 0), Disabled),
            (&[ONCE, ("disabled", "false")], never, at(4, 0), Compact),
            // Disabled is said first, a limit of none before what is due.
            (&[("disabled", "true"), ("max_concurrent_running_count", "0")], never, at(4, 0), Disabled),
            (&[("max_concurrent_running_count", "0")], never, at(4, 0), NoneMayRun),
            (&[ONCE, ("max_concurrent_running_count", "0")], never, at(4, 0), NoneMayRun),
            (&[ONCE, ("max_concurrent_running_count", "1")], never, at(4, 0), Compact),
            // Daily: some time of today is past and nothing was finished since.
            (&[DAILY], finished(TODAY - HOUR), at(2, 59), NotDue),
            (&[DAILY], finished(TODAY - HOUR), at(3, 0), Compact),
            (&[DAILY], finished(at(3, 5)), at(21, 29), NotDue),
            (&[DAILY], finished(at(3, 5)), at(21, 30), Compact),
            (&[DAILY], never, at(12, 0), Compact),
            (&[("periodic.trigger_time", "25:00, 3:61,x, 4:00 ")], never, at(3, 59), NotDue),
            (&[("periodic.trigger_time", "25:00, 3:61,x, 4:00 ")], never, at(4, 0), Compact),
            // Ten minutes between two; told only of what is due.
            (&[DAILY], finished(at(2, 55)), at(3, 1), TooSoon),
            (&[DAILY], finished(at(2, 55)), at(3, 5), Compact),
            (&[ONCE], finished(TODAY - MINUTE), TODAY + MINUTE, TooSoon),
            (&[DAILY], finished(at(3, 5)), at(3, 6), NotDue),
            (&[ONCE], History { failed_s: at(4, 0), ..never }, at(4, 0) + RETRY_AFTER_S - 1, FailedLately),
            (&[ONCE], History { failed_s: at(4, 0), ..never }, at(4, 0) + RETRY_AFTER_S, Compact),
        ];
        for (envs, history, now_s, expected) in cases {
            assert_eq!(
                rules(envs).decide(*history, *now_s, 10 * MINUTE),
                *expected,
                "{envs:?} {history:?} at {}",
                now_s - TODAY
            );
        }
        assert_eq!(rules(&[ONCE]).decide(finished(TODAY - 1), TODAY + 1, 0), Compact, "no pause");
    }

    #[test]
    fn clients_keep_their_room() {
        for (needs, available, capacity, room) in [
            (10, 20, 100, true),
            (11, 20, 100, false),
            (0, 10, 100, true),
            (0, 9, 100, false),
            (u64::MAX, 20, 100, false),
        ] {
            assert_eq!(has_room(needs, available, capacity, 10), room, "{needs} of {available}");
        }
    }

    #[test]
    fn how_many_run_at_a_time() {
        for (most, running, may) in [
            (None, 0, true),
            (None, 99, true),
            (Some("2"), 1, true),
            (Some("2"), 2, false),
            (Some("x"), 9, true),
        ] {
            let envs: Vec<_> = most.iter().map(|most| ("max_concurrent_running_count", *most)).collect();
            assert_eq!(rules(&envs).may_begin(running), may, "{most:?} {running}");
        }
    }
}
