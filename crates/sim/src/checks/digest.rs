//! Whoever has applied the same decrees holds the same rows: members, learners, and every life of a copy.

use std::collections::BTreeMap;

use pegasus_types::{Decree, Gpid};

#[derive(Debug, Default)]
pub struct Digests {
    /// And who told it first.
    known: BTreeMap<(Gpid, Decree), (u64, usize)>,
}

impl Digests {
    pub fn applied(&mut self, host: usize, gpid: Gpid, decree: Decree, digest: u64) -> Result<(), String> {
        let (known, first) = *self.known.entry((gpid, decree)).or_insert((digest, host));
        if known == digest {
            return Ok(());
        }
        Err(format!("n{} and n{} hold different rows of {gpid} at decree {decree}", first + 1, host + 1))
    }
}
