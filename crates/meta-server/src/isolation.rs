//! A leader whom nobody reaches gives its role back.
//!
//! The store alone decides who leads, so a leader that is cut off from nodes, clients and the other meta-servers, but
//! not from the store, would lead for ever, and nobody could change anything.

use std::time::Duration;

use pegasus_zk_coordination::MetaStore;
use tokio::time::sleep;

use crate::rivals;
use crate::role::Role;

const INTERVAL: Duration = Duration::from_secs(1);
/// Looks in a row that must find the same: one may fall into the moment in which a connection is made anew.
const LOOKS: u32 = 3;

/// What one look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    /// Some node's beacon came within the grace time.
    node_heard: bool,
    /// Another meta-server answered, or its machine said that it does not run.
    meta_heard: bool,
    /// Somebody else stands in line.
    has_heir: bool,
}

/// How often in a row a look has found that nobody reaches us.
#[derive(Clone, Copy, Debug, Default)]
struct Isolation(u32);

impl Isolation {
    /// True when the role is to be given back.
    fn is_certain(&mut self, look: Look) -> bool {
        let isolated = !look.node_heard && !look.meta_heard && look.has_heir;
        self.0 = if isolated { self.0 + 1 } else { 0 };
        self.0 >= LOOKS
    }
}

/// Returns when this leader should give its role back. Each look costs one call per meta-server, and one of the
/// store, only while no node is heard.
pub async fn found(role: &Role, store: &dyn MetaStore, line: &str) {
    let mut isolation = Isolation::default();
    loop {
        sleep(INTERVAL).await;
        let mut look = Look { node_heard: hears_a_node(role), meta_heard: true, has_heir: true };
        if !look.node_heard {
            look.meta_heard = rivals::is_any_reached(role).await;
            look.has_heir = store.children(line).await.is_ok_and(|line| line.len() > 1);
        }
        if isolation.is_certain(look) {
            return;
        }
    }
}

/// Also true for one grace time after the term's begin, and while we only load.
fn hears_a_node(role: &Role) -> bool {
    let Some(leader) = role.leader() else { return true };
    let grace = role.config.liveness.fd_grace_seconds.0;
    let is_new = u128::from(leader.clock.now().0) <= grace.as_millis();
    let (alive, _) = leader.state.borrow().liveness.count();
    is_new || alive > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_hears_nobody_and_has_an_heir_gives_up() {
        let alone = Look { node_heard: false, meta_heard: false, has_heir: true };
        let looks = |looks: &[Look]| {
            let mut isolation = Isolation::default();
            looks.iter().map(|look| isolation.is_certain(*look)).collect::<Vec<_>>()
        };
        assert_eq!(looks(&[alone; 3]), [false, false, true]);
        for other in [
            Look { node_heard: true, ..alone },
            Look { meta_heard: true, ..alone },
            Look { has_heir: false, ..alone },
        ] {
            assert_eq!(looks(&[other; 4]), [false; 4], "{other:?}");
            assert_eq!(looks(&[alone, alone, other, alone, alone]), [false; 5], "{other:?} in between");
        }
    }
}
