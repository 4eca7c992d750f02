//! When the mutations of a primary passed their stages, for what is told of slow writes.
//!
//! Costs three readings of the clock per mutation and one per batch that is logged, so it is always on.

use std::collections::VecDeque;

use pegasus_types::Decree;

/// More than a window of mutations: those whose answer never comes (a lost role) are forgotten.
const KEPT_MAX: usize = 1024;

/// Monotonic microseconds; 0 = not yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Taken from the queue and put into a mutation.
    pub taken: u64,
    /// Durable, or in the page cache, on this node.
    pub logged: u64,
    /// All members have it.
    pub committed: u64,
    pub applied: u64,
}

#[derive(Debug, Default)]
pub struct Stages {
    /// Decree of the front.
    first: Decree,
    kept: VecDeque<Times>,
}

impl Stages {
    /// A mutation got its decree. Decrees of a primary follow one another; others begin anew.
    pub fn proposed(&mut self, decree: Decree, taken: u64) {
        let next = self.first.0 + self.kept.len() as i64;
        if decree.0 != next || self.kept.is_empty() {
            self.kept.clear();
            self.first = decree;
        } else if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
            self.first = self.first.next();
        }
        self.kept.push_back(Times { taken, ..Times::default() });
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub fn logged(&mut self, decree: Decree, now: u64) {
        if let Some(times) = self.of(decree) {
            times.logged = now;
        }
    }

    pub fn committed(&mut self, decree: Decree, now: u64) {
        if let Some(times) = self.of(decree) {
            times.committed = now;
        }
    }

    pub fn applied(&mut self, decree: Decree, now: u64) {
        if let Some(times) = self.of(decree) {
            times.applied = now;
        }
    }

    /// Of a mutation that is being answered; it and all before it are forgotten.
    pub fn take(&mut self, decree: Decree) -> Option<Times> {
        let times = self.of(decree).copied()?;
        let index = usize::try_from(decree.0 - self.first.0).ok()?;
        self.kept.drain(..=index);
        self.first = decree.next();
        Some(times)
    }

    fn of(&mut self, decree: Decree) -> Option<&mut Times> {
        let index = usize::try_from(decree.0.checked_sub(self.first.0)?).ok()?;
        self.kept.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mutation_has_its_own_times() {
        let mut stages = Stages::default();
        for decree in 7..10 {
            stages.proposed(Decree(decree), decree as u64);
        }
        stages.logged(Decree(8), 20);
        stages.committed(Decree(8), 30);
        stages.applied(Decree(8), 31);
        stages.logged(Decree(99), 50);
        stages.logged(Decree(1), 50);
        assert_eq!(stages.take(Decree(6)), None);
        let want = Times { taken: 8, logged: 20, committed: 30, applied: 31 };
        assert_eq!(stages.take(Decree(8)), Some(want));
        assert_eq!(stages.take(Decree(7)), None, "before an answered one");
        assert_eq!(stages.take(Decree(9)), Some(Times { taken: 9, ..Times::default() }));
        assert!(stages.is_empty());
    }

    #[test]
    fn what_is_never_answered_is_forgotten() {
        let mut stages = Stages::default();
        for decree in 1..=KEPT_MAX as i64 + 5 {
            stages.proposed(Decree(decree), 1);
        }
        assert_eq!((stages.kept.len(), stages.take(Decree(5))), (KEPT_MAX, None));
        assert!(stages.take(Decree(6)).is_some());
        stages.proposed(Decree(3), 2);
        assert_eq!((stages.kept.len(), stages.take(Decree(3)).unwrap().taken), (1, 2), "another reign");
    }
}
