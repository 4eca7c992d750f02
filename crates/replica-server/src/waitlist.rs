//! What waits for a grant, by partition.
//!
//! A hole in a lease lets thousands of reads wait, and every turn of the loop may end it. A turn asks once per
//! partition and not once per read; whose time is over is looked for now and then.

use std::collections::{BTreeMap, VecDeque};

use pegasus_types::{Gpid, Millis};

/// A refusal may come so much later than its deadline, which is an eighth of the client's timeout before its end.
const OVERDUE_EVERY_MS: u64 = 20;

#[derive(Debug)]
pub struct Waitlist<T> {
    waiting: BTreeMap<Gpid, VecDeque<(Millis, T)>>,
    len: usize,
    looked_at: Millis,
}

impl<T> Default for Waitlist<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), len: 0, looked_at: Millis::ZERO }
    }
}

impl<T> Waitlist<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn push(&mut self, gpid: Gpid, deadline: Millis, what: T) {
        self.len += 1;
        self.waiting.entry(gpid).or_default().push_back((deadline, what));
    }

    /// Those for which something waits.
    pub fn partitions(&self) -> Vec<Gpid> {
        self.waiting.keys().copied().collect()
    }

    /// Everything that waits for a partition, in the order in which it came.
    pub fn take(&mut self, gpid: Gpid) -> impl Iterator<Item = T> + use<T> {
        self.take_if(gpid, |_| true).into_iter()
    }

    pub fn take_if(&mut self, gpid: Gpid, which: impl Fn(&T) -> bool) -> Vec<T> {
        self.take_where(Some(gpid), |_, what| which(what))
    }

    /// What has waited too long; nothing when that was asked just now.
    pub fn take_overdue(&mut self, now: Millis) -> Vec<T> {
        if self.len == 0 || now.since(self.looked_at) < OVERDUE_EVERY_MS {
            return Vec::new();
        }
        self.looked_at = now;
        self.take_where(None, |deadline, _| deadline <= now)
    }

    fn take_where(&mut self, gpid: Option<Gpid>, which: impl Fn(Millis, &T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        let lists = self.waiting.iter_mut().filter(|(of, _)| gpid.is_none_or(|gpid| gpid == **of));
        for (_, list) in lists {
            if list.iter().any(|(deadline, what)| which(*deadline, what)) {
                for (deadline, what) in std::mem::take(list) {
                    if which(deadline, &what) {
                        taken.push(what);
                    } else {
                        list.push_back((deadline, what));
                    }
                }
            }
        }
        self.waiting.retain(|_, list| !list.is_empty());
        self.len -= taken.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Gpid = Gpid::new(1, 0);
    const B: Gpid = Gpid::new(1, 1);

    #[test]
    fn partitions_are_apart_and_keep_their_order() {
        let mut list = Waitlist::default();
        for (gpid, deadline, id) in [(A, 900, 1), (B, 100, 2), (A, 100, 3), (A, 900, 4), (B, 900, 5)] {
            list.push(gpid, Millis(deadline), id);
        }
        assert_eq!((list.len(), list.partitions()), (5, vec![A, B]));
        assert!(list.take_overdue(Millis(99)).is_empty());
        assert!(list.take_overdue(Millis(100)).is_empty(), "asked just now");
        assert_eq!(list.take_overdue(Millis(99 + OVERDUE_EVERY_MS)), [3, 2]);
        assert_eq!(list.take_if(A, |id| *id == 4), [4]);
        assert!(list.take(A).eq([1]) && list.take(A).count() == 0);
        assert_eq!((list.len(), list.partitions()), (1, vec![B]));
        assert!(list.take(B).eq([5]));
        assert_eq!((list.len(), list.partitions()), (0, vec![]));
    }
}
