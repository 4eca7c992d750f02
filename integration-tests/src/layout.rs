use std::collections::BTreeMap;

use pegasus_types::PartitionConfig;

/// (primaries, copies) by node.
pub type Held = BTreeMap<String, (usize, usize)>;

/// Who holds what of these partitions.
pub fn held(partitions: &[PartitionConfig]) -> Held {
    let mut held = Held::new();
    for partition in partitions {
        for node in partition.members() {
            let counts = held.entry(node.to_string()).or_default();
            counts.0 += usize::from(partition.is_primary(node));
            counts.1 += 1;
        }
    }
    held
}

/// Whether no two nodes differ by more than one primary or one copy.
pub fn is_even(held: &Held) -> bool {
    let differ = |counts: Vec<usize>| counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0);
    differ(held.values().map(|h| h.0).collect()) <= 1 && differ(held.values().map(|h| h.1).collect()) <= 1
}
