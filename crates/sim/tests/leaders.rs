//! The leader of the metas changes 1,000 times while tables are made, dropped and recalled: the metadata is whole after
//! every write, no table is lost, no ballot is reused, and in the end all is well.

use pegasus_sim::run::{change_leaders, leader_settings};
use pegasus_sim::trace::Trace;

const CHANGES: u64 = 500;

fn leaders_change(from: u64) {
    let (mut changes, mut created, mut recalled) = (0, 0, 0);
    for seed in from.. {
        let outcome = change_leaders(seed, leader_settings(), Trace::off());
        assert!(outcome.result.is_ok(), "{}", outcome.report().unwrap_or_default());
        changes += outcome.metas.leader_changes;
        created += outcome.metas.tables_created;
        recalled += outcome.metas.tables_recalled;
        if changes >= CHANGES {
            break;
        }
        assert!(seed < from + 100, "only {changes} changes in 100 runs");
    }
    assert!(created > CHANGES / 4 && recalled > CHANGES / 20, "{created} tables made, {recalled} recalled");
}

#[test]
fn five_hundred_times() {
    leaders_change(1);
}

#[test]
fn five_hundred_times_more() {
    leaders_change(1_001);
}
