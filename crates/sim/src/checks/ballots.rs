//! For one partition and ballot only one process ever acts as primary (replication.md S3).

use std::collections::BTreeMap;

use pegasus_types::{Ballot, Gpid};

#[derive(Debug, Default)]
pub struct Ballots {
    /// Host and its life.
    authors: BTreeMap<(Gpid, Ballot), (usize, u64)>,
}

impl Ballots {
    pub fn primary(&mut self, host: usize, life: u64, gpid: Gpid, ballot: Ballot) -> Result<(), String> {
        let author = *self.authors.entry((gpid, ballot)).or_insert((host, life));
        if author == (host, life) {
            return Ok(());
        }
        Err(format!(
            "two primaries of {gpid} at ballot {ballot}: n{} in life {} and n{} in life {life}",
            author.0 + 1,
            author.1,
            host + 1
        ))
    }
}
