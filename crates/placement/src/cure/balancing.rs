//! Moves: which begin now, and what operators ask for.

use std::collections::BTreeSet;

use pegasus_types::{Gpid, Millis, Node};

use super::Cure;
use crate::balance::moves::{self, Step};
use crate::balance::{self, Kind, Move, Plan};
use crate::liveness::Liveness;
use crate::view::ClusterView;

/// How often all wanted moves are counted.
const COUNT_EVERY_MS: u64 = 30_000;

/// Moves by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub move_primary: usize,
    pub copy_primary: usize,
    pub copy_secondary: usize,
}

impl Counts {
    pub fn of(plan: &Plan) -> Self {
        Self {
            move_primary: plan.count(Kind::MovePrimary),
            copy_primary: plan.count(Kind::CopyPrimary),
            copy_secondary: plan.count(Kind::CopySecondary),
        }
    }

    pub fn total(&self) -> usize {
        self.move_primary + self.copy_primary + self.copy_secondary
    }
}

impl Cure {
    /// What would be moved now, if everything were well. `spread`: to even out too, not only to empty retired
    /// nodes.
    pub fn plan(&self, view: &ClusterView, liveness: &Liveness, spread: bool) -> Plan {
        self.plan_begin(view, liveness, spread, usize::MAX)
    }

    /// The first moves of the plan, at least `enough`.
    fn plan_begin(&self, view: &ClusterView, liveness: &Liveness, spread: bool, enough: usize) -> Plan {
        let disk_of = |gpid, node: &_| {
            self.memory.get(&gpid).and_then(|memory| memory.holders.get(node)).map(String::as_str)
        };
        let takes =
            |node: &&Node| liveness.is_fit_for_primary(node) && !self.options.black_list.contains(*node);
        let open = liveness.usable().filter(takes).cloned().collect();
        let nodes = balance::Nodes { open, leaving: liveness.retired().clone() };
        balance::plan(
            view,
            &nodes,
            &disk_of,
            &balance::Options { spread, enough, ..self.options.balance.clone() },
        )
    }

    /// Moves of the last plan.
    pub fn planned(&self) -> Counts {
        self.planned
    }

    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.moves.iter()
    }

    /// Lets go of all moves: what is half done is finished or taken back by the cure.
    pub fn stop_moves(&mut self) {
        self.moves.clear();
    }

    /// When to look again although nothing happens.
    pub fn looks_again_at(&self) -> Option<Millis> {
        self.moves.due_at(&self.options.pace).filter(|_| !self.is_resting)
    }

    /// An operator's move. It is carried out as soon as its partition is whole, one per partition at a time.
    ///
    /// # Errors
    /// Says why it cannot be done.
    pub fn request_move(
        &mut self,
        now: Millis,
        view: &ClusterView,
        liveness: &Liveness,
        what: Move,
    ) -> Result<(), String> {
        let config =
            view.partition(what.gpid).ok_or_else(|| format!("there is no partition {}", what.gpid))?;
        if self.is_frozen(what.gpid) {
            return Err(format!("{} is frozen", what.gpid));
        }
        let goes_on = |other: &&Move| matches!(moves::step(config, other), Step::Propose(_));
        if let Some(other) = self.moves.get(what.gpid).filter(|other| **other != what).filter(goes_on) {
            return Err(format!("{other} is under way"));
        }
        if !liveness.is_usable(&what.to) {
            return Err(format!("{} cannot take anything now", what.to));
        }
        let role = config.is_primary(&what.from);
        if what.kind != Kind::CopySecondary && !role || what.kind == Kind::CopySecondary && role {
            return Err(format!(
                "{} is {}the primary of {}",
                what.from,
                if role { "" } else { "not " },
                what.gpid
            ));
        }
        match moves::step(config, &what) {
            Step::Propose(_) => {
                self.moves.begin(now, what);
                Ok(())
            }
            Step::Done => Err("that is so already".to_owned()),
            Step::Void(why) => Err(why.to_owned()),
        }
    }

    /// Begins the next moves when everything has been well for long enough. Returns their partitions.
    pub(super) fn begin_moves(
        &mut self,
        now: Millis,
        view: &ClusterView,
        liveness: &Liveness,
    ) -> BTreeSet<Gpid> {
        self.is_resting = false;
        if self.moves.due_at(&self.options.pace).is_none_or(|due| due > now) {
            return BTreeSet::new();
        }
        // All moves are only counted now and then.
        if self.counted_at.is_none_or(|at| now.since(at) >= COUNT_EVERY_MS) {
            self.counted_at = Some(now);
            self.planned = Counts::of(&self.plan(view, liveness, true));
        }
        let spread = self.options.balance.spread;
        let enough = self.options.pace.roles + self.options.pace.copies + 1;
        let plan = self.plan_begin(view, liveness, spread, enough);
        let chosen = moves::first_of(&plan, &self.options.pace);
        if chosen.is_empty() {
            if spread {
                self.planned = Counts::default();
            }
            self.is_resting = true;
            self.moves.rest_until(now + self.options.pace.calm_ms);
        }
        for what in &chosen {
            tracing::info!(%what, "a move begins");
            self.moves.begin(now, what.clone());
        }
        chosen.into_iter().map(|what| what.gpid).collect()
    }
}
