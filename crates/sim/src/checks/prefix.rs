//! What is committed at a decree is the same everywhere, for ever.

use std::collections::BTreeMap;

use pegasus_types::{Ballot, Decree, Gpid, Mutation};

#[derive(Debug, Default)]
pub struct Prefix {
    /// Origin and checksum, and who committed it first.
    decided: BTreeMap<(Gpid, Decree), (Ballot, u32, usize)>,
}

impl Prefix {
    pub fn committed(&mut self, host: usize, mutation: &Mutation) -> Result<(), String> {
        let (gpid, decree) = (mutation.gpid, mutation.decree);
        let found = (mutation.origin, mutation.checksum);
        let (origin, checksum, first) =
            *self.decided.entry((gpid, decree)).or_insert((found.0, found.1, host));
        if (origin, checksum) == found {
            return Ok(());
        }
        Err(format!(
            "two contents of {gpid} decree {decree}: n{} committed one of ballot {origin}, n{} one of ballot {}",
            first + 1,
            host + 1,
            found.0
        ))
    }
}
