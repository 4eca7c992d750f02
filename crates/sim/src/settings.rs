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
    /// A primary tags its writes by its wall clock, whatever is there already.
    pub wall_tags: bool,
    /// A conditional write is done whatever its condition says.
    pub blind_cas: bool,
    /// Secondaries lose a row now and then.
    pub lossy_apply: bool,
    /// The meta leaves a new primary among the secondaries.
    pub double_member: bool,
    /// The meta cures nothing.
    pub no_cure: bool,
    /// Writes of a meta-server do not check that it still leads.
    pub no_fence: bool,
    /// ... nor which version they replace.
    pub blind_writes: bool,
    /// A leader takes a write whose answer was lost for done.
    pub believe_lost_answers: bool,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub hosts: usize,
    pub metas: usize,
    /// A power of two, at least 2.
    pub partitions: i32,
    pub clients: usize,
    /// The meta evens out roles and copies whenever all is well.
    pub balance: bool,
    /// Somebody makes, drops and recalls tables all the time.
    pub operator: bool,
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
            metas: 1,
            partitions: 2,
            clients: 3,
            balance: false,
            operator: false,
            durability: Durability::Sync,
            core,
            sabotage: Sabotage::default(),
        }
    }
}
