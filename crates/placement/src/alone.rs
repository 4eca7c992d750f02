//! A primary that asks to lose its last secondary waits a moment, when the meta-server hears that secondary itself.
//!
//! A primary whose cables to its members are cut asks to remove one after the other, while they, who hear nothing of
//! it, claim its role. When the primary is faster it ends alone: it reads, takes no writes, and two good members stand
//! aside. Held back, it loses to the claim of the last one, which then gets the other one back. Writes lose nothing by
//! the wait: they need a second member, or the secondary is dead and then not heard.

use std::collections::BTreeMap;

use pegasus_types::meta::ChangeRequest;
use pegasus_types::{Ballot, ChangeKind, Gpid, Millis, Node, PartitionConfig};

/// How long it waits at most. The claim of a member comes with the end of its grace time (900 ms), as the primary's
/// request does; the rest is for a first claim at an older ballot, which is refused, and for slow machines.
pub const HOLD_MS: u64 = 2_000;
/// A secondary that has not told the meta-server for so long that it lives is not waited for. Beacons come every second.
const RECENT_MS: u64 = 2_500;
/// A request at the same ballot so long after the first one is another story: it waits anew.
const FORGET_MS: u64 = 10_000;

/// Since when requests wait. At most one entry per partition.
#[derive(Clone, Debug, Default)]
pub struct Held(BTreeMap<Gpid, (Ballot, Millis)>);

impl Held {
    /// Until when this request has to wait, to be looked at again then or earlier. None: it is decided now.
    ///
    /// `last_heard`: when a node's last beacon came, if it is still connected.
    pub fn until(
        &mut self,
        now: Millis,
        current: &PartitionConfig,
        request: &ChangeRequest,
        last_heard: impl Fn(&Node) -> Option<Millis>,
    ) -> Option<Millis> {
        let ChangeKind::RemoveSecondary { primary, node } = &request.kind else { return None };
        let leaves_alone = request.ballot == current.ballot
            && current.is_primary(primary)
            && matches!(current.secondaries.as_slice(), [last] if last == node);
        if !leaves_alone {
            return None;
        }
        let heard = last_heard(node)?;
        let since = match self.0.get(&current.gpid) {
            Some((ballot, since)) if *ballot == current.ballot && now.since(*since) < FORGET_MS => *since,
            _ => now,
        };
        self.0.insert(current.gpid, (current.ballot, since));
        let due = (since + HOLD_MS).min(heard + RECENT_MS);
        (now < due).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use pegasus_types::Decree;

    use super::*;
    use crate::view::testing::{config, node};

    fn remove(ballot: i64, primary: usize, other: usize) -> ChangeRequest {
        let kind = ChangeKind::RemoveSecondary { primary: node(primary), node: node(other) };
        ChangeRequest { gpid: Gpid::new(1, 0), ballot: Ballot(ballot), kind, committed: Decree(0) }
    }

    #[test]
    fn only_the_last_one_that_is_heard_is_waited_for() {
        let three = config(0, 5, 1, &[2, 3]);
        let two = config(0, 5, 1, &[2]);
        let now = Millis(10_000);
        let heard = |ms| move |_: &Node| Some(Millis(ms));
        let take_over = ChangeRequest { kind: ChangeKind::TakeOver { claimant: node(2) }, ..remove(5, 1, 2) };
        for (current, request, last_heard, want) in [
            (&two, remove(5, 1, 2), Some(9_900), Some(12_000)),
            (&two, remove(5, 1, 2), Some(9_000), Some(11_500)),
            (&two, remove(5, 1, 2), Some(7_000), None),
            (&two, remove(5, 1, 2), None, None),
            (&three, remove(5, 1, 2), Some(9_900), None),
            (&two, remove(4, 1, 2), Some(9_900), None),
            (&two, remove(5, 2, 1), Some(9_900), None),
            (&two, remove(5, 1, 3), Some(9_900), None),
            (&two, take_over, Some(9_900), None),
        ] {
            let until = Held::default().until(now, current, &request, |_| last_heard.map(Millis));
            assert_eq!(until, want.map(Millis), "{request:?} on {current:?}");
        }
        // Asked again, it waits for the rest; at the next ballot, or much later, anew.
        let mut held = Held::default();
        let request = remove(5, 1, 2);
        for (at, ballot, want) in [
            (10_000, 5, Some(12_000)),
            (11_000, 5, Some(12_000)),
            (12_000, 5, None),
            (12_100, 5, None),
            (12_200, 6, Some(14_200)),
            (30_000, 6, Some(32_000)),
        ] {
            let current = PartitionConfig { ballot: Ballot(ballot), ..two.clone() };
            let request = ChangeRequest { ballot: Ballot(ballot), ..request.clone() };
            let until = held.until(Millis(at), &current, &request, heard(at));
            assert_eq!(until, want.map(Millis), "at {at}");
        }
        assert_eq!(held.0.len(), 1);
    }
}
