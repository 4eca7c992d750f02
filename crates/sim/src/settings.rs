//! What a run is made of.

use pegasus_mutation_log::Durability;
use pegasus_pacifica::Options;

/// A rule of the world, not of the core, that is broken so that a checker can be seen to notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sabotage {
    /// Engines come up without what they had not flushed, and the log is not replayed into them.
    pub skip_replay: bool,
    /// Hosts answer reads without asking the core whether they may.
    pub serve_unasked: bool,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub hosts: usize,
    /// A power of two, at least 2.
    pub partitions: i32,
    pub clients: usize,
    pub durability: Durability,
    pub core: Options,
    pub sabotage: Sabotage,
}

impl Default for Settings {
    fn default() -> Self {
        // A small memory, so that runs of seconds see learners and members fall out of it.
        let core = Options { window: 16, recent: 24, recent_bytes: 1 << 16, ..Options::default() };
        Self {
            hosts: 3,
            partitions: 2,
            clients: 3,
            durability: Durability::Sync,
            core,
            sabotage: Sabotage::default(),
        }
    }
}
