//! What the metas store: whole after every write, changed by one leader at a time, and never going back.

use std::collections::BTreeMap;

use pegasus_placement::lint::lint;
use pegasus_placement::view::ClusterView;
use pegasus_types::{Ballot, Gpid};

#[derive(Debug, Default)]
pub struct Metadata {
    /// Highest ballot that was ever stored.
    ballots: BTreeMap<Gpid, Ballot>,
    /// Which meta wrote with an epoch, and in which of its lives.
    authors: BTreeMap<u64, (usize, u64)>,
    last_epoch: u64,
    /// Of each reign that came as far as knowing what is stored.
    reigns: BTreeMap<u64, (usize, u64)>,
    pub writes: u64,
}

impl Metadata {
    /// A meta-server, in one of its lives, leads and knows what is stored.
    pub fn leads(&mut self, author: (usize, u64), epoch: u64) {
        self.reigns.entry(epoch).or_insert(author);
    }

    /// How often another process began to lead than the one that led before.
    pub fn leader_changes(&self) -> u64 {
        let authors: Vec<_> = self.reigns.values().collect();
        authors.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
    }

    /// The store holds `view` after a write of `author` in its reign `epoch`.
    pub fn written(&mut self, author: (usize, u64), epoch: u64, view: &ClusterView) -> Result<(), String> {
        self.writes += 1;
        for (_, config) in view.live_partitions() {
            let highest = self.ballots.entry(config.gpid).or_insert(config.ballot);
            if config.ballot < *highest {
                let (gpid, ballot) = (config.gpid, config.ballot);
                return Err(format!("the ballot of {gpid} goes back from {highest} to {ballot}"));
            }
            *highest = config.ballot;
        }
        let first = *self.authors.entry(epoch).or_insert(author);
        if first != author {
            return Err(format!(
                "two leaders write with epoch {epoch}: meta {} and meta {}",
                first.0 + 1,
                author.0 + 1
            ));
        }
        if epoch < self.last_epoch {
            let last = self.last_epoch;
            return Err(format!(
                "meta {} writes with epoch {epoch} after one with epoch {last}",
                author.0 + 1
            ));
        }
        self.last_epoch = epoch;
        if let Some(fault) = lint(view).first() {
            return Err(format!("the metadata is not whole: {fault}"));
        }
        Ok(())
    }
}
