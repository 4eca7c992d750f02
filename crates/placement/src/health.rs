//! What clients can do with a partition, given which nodes are alive.

use pegasus_types::cluster::PartitionHealth;
use pegasus_types::{Node, PartitionConfig};

/// Members that a write needs (`mutation_2pc_min_replica_count`; 0 or less = a rule by the replica count).
pub fn write_minimum(configured: i32, max_replica_count: i32) -> usize {
    let wanted = match configured {
        1.. => configured,
        _ if max_replica_count <= 2 => 1,
        _ => max_replica_count / 2 + 1,
    };
    usize::try_from(wanted.min(max_replica_count)).unwrap_or(0).max(1)
}

pub fn health(
    config: &PartitionConfig,
    alive: impl Fn(&Node) -> bool,
    min_replica_count: i32,
) -> PartitionHealth {
    let members = config.members().filter(|node| alive(node)).count();
    let wanted = usize::try_from(config.max_replica_count).unwrap_or(0).max(1);
    match &config.primary {
        _ if members == 0 => PartitionHealth::Dead,
        Some(primary) if alive(primary) => {
            if members < write_minimum(min_replica_count, config.max_replica_count) {
                PartitionHealth::Unwritable
            } else if members < wanted {
                PartitionHealth::WritableIll
            } else {
                PartitionHealth::Healthy
            }
        }
        _ => PartitionHealth::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{config, node};
    use PartitionHealth::*;

    #[test]
    fn classes() {
        for (primary, secondaries, dead, want) in [
            (1, [2, 3].as_slice(), [].as_slice(), Healthy),
            (1, &[2, 3], &[3], WritableIll),
            (1, &[2], &[], WritableIll),
            (1, &[2, 3], &[2, 3], Unwritable),
            (1, &[], &[], Unwritable),
            (1, &[2, 3], &[1], Unreadable),
            (1, &[2, 3], &[1, 2, 3], Dead),
            (0, &[], &[], Dead),
        ] {
            let dead: Vec<_> = dead.iter().map(|n| node(*n)).collect();
            let got = health(&config(0, 1, primary, secondaries), |n| !dead.contains(n), 2);
            assert_eq!(got, want, "{primary} {secondaries:?} dead {dead:?}");
        }
    }

    #[test]
    fn minimum_follows_the_reference_and_never_exceeds_the_table() {
        for (configured, max, want) in
            [(2, 3, 2), (0, 3, 2), (0, 5, 3), (0, 2, 1), (0, 1, 1), (2, 1, 1), (1, 3, 1), (-1, 0, 1)]
        {
            assert_eq!(write_minimum(configured, max), want, "{configured} of {max}");
        }
    }
}
