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
    pub writes: u64,
}

impl Metadata {
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
