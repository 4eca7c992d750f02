//! One run by chance: everything follows from the seed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pegasus_mutation_log::Durability;

use crate::bus::{MS, SECOND, Weather};
use crate::checks::{Checks, Figures};
use crate::dice::Dice;
use crate::settings::Settings;
use crate::trace::Trace;
use crate::world::World;

/// All is healthy so long after the last fault, at the latest.
const HEALED_WITHIN: u64 = 30 * SECOND;

/// So long leaders change in a run about them.
const LEADERS_CHANGE_FOR: u64 = 120 * SECOND;

#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub play: Play,
    pub result: Result<(), String>,
    pub figures: Figures,
    pub acknowledged: u64,
    pub reads: u64,
    pub metas: Metas,
    pub trace: Trace,
}

/// What the meta-servers did in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metas {
    /// Another process led than before.
    pub leader_changes: u64,
    pub writes: u64,
    pub tables_created: u64,
    pub tables_dropped: u64,
    pub tables_recalled: u64,
}

impl Outcome {
    /// What a red run prints: what is wrong, and how to see it again.
    pub fn report(&self) -> Option<String> {
        let why = self.result.as_ref().err()?;
        Some(format!(
            "seed {}: {why}\n  again: cargo run -p pegasus-sim --bin sim -- {}--seed {} --trace",
            self.seed,
            if self.play == Play::LeaderChanges { "--leader-changes 1 " } else { "" },
            self.seed
        ))
    }
}

/// What the seed makes of the settings.
pub fn settings(seed: u64) -> Settings {
    let mut dice = Dice::new(seed ^ 0x5eed_5eed);
    let mut settings = Settings {
        hosts: 3 + usize::try_from(dice.below(3)).unwrap_or(0),
        partitions: if dice.permille(200) { 4 } else { 2 },
        clients: 2 + usize::try_from(dice.below(5)).unwrap_or(0),
        balance: dice.permille(500),
        metas: if dice.permille(400) { 1 } else { 3 },
        ..Settings::default()
    };
    if dice.permille(250) {
        settings.durability = Durability::PageCache;
    }
    settings
}

pub fn run(seed: u64, trace: Trace) -> Outcome {
    run_with(seed, settings(seed), trace)
}

pub fn run_with(seed: u64, settings: Settings, trace: Trace) -> Outcome {
    act(seed, settings, trace, Play::Anything)
}

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Play {
    /// Faults of every kind.
    Anything,
    /// The leader among the metas changes again and again while tables are made, dropped and recalled.
    LeaderChanges,
}

/// What a run of leader changes is made of.
pub fn leader_settings() -> Settings {
    Settings { metas: 3, clients: 2, operator: true, ..Settings::default() }
}

pub fn change_leaders(seed: u64, settings: Settings, trace: Trace) -> Outcome {
    act(seed, settings, trace, Play::LeaderChanges)
}

fn act(seed: u64, settings: Settings, trace: Trace, what: Play) -> Outcome {
    let mut dice = Dice::new(seed ^ 0x0dd5);
    let mut world = World::new(seed, settings, trace);
    // An invariant of the core that fails panics here: it is one more thing that is wrong with the seed.
    let result = catch_unwind(AssertUnwindSafe(|| play(&mut world, &mut dice, what)));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned())
    });
    let (acknowledged, reads) = (world.checks.history.acknowledged, world.checks.history.reads);
    let Checks { metadata, tables, figures, .. } = &world.checks;
    let metas = Metas {
        leader_changes: metadata.leader_changes(),
        writes: metadata.writes,
        tables_created: tables.created,
        tables_dropped: tables.dropped,
        tables_recalled: tables.recalled,
    };
    let figures = *figures;
    Outcome { seed, play: what, result, figures, acknowledged, reads, metas, trace: world.bus.trace }
}

fn play(world: &mut World, dice: &mut Dice, what: Play) -> Result<(), String> {
    if world.run_until(10 * SECOND, World::all_healthy).is_none() {
        let why = world.checks.failure().unwrap_or("the table does not become healthy");
        return Err(why.to_owned());
    }
    if what == Play::LeaderChanges {
        world.set_meta_chaos(Some(dice.between(700, 2_000) * MS));
        world.run(LEADERS_CHANGE_FOR);
        return world.settle(HEALED_WITHIN);
    }
    if dice.permille(700) {
        world.set_weather(Weather::Stormy);
    }
    world.set_chaos(Some(dice.between(200, 1_500) * MS));
    world.run(dice.between(8, 25) * SECOND);
    world.settle(HEALED_WITHIN)
}
