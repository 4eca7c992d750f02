//! What is committed at a decree is the same everywhere, for ever; and time tags grow with the decrees, whatever
//! the wall clocks of successive primaries show (replication.md 9.2, 6).

use std::collections::BTreeMap;

use pegasus_types::{Ballot, Decree, Gpid, Mutation};

#[derive(Debug)]
struct Decided {
    origin: Ballot,
    checksum: u32,
    timestamp_us: u64,
    /// Who committed it first.
    first: usize,
}

#[derive(Debug, Default)]
pub struct Prefix {
    decided: BTreeMap<(Gpid, Decree), Decided>,
}

impl Prefix {
    pub fn committed(&mut self, host: usize, mutation: &Mutation) -> Result<(), String> {
        let Mutation { gpid, decree, origin, checksum, timestamp_us, .. } = *mutation;
        let Some(decided) = self.decided.get(&(gpid, decree)) else {
            self.decided.insert((gpid, decree), Decided { origin, checksum, timestamp_us, first: host });
            let before = self.decided.get(&(gpid, decree.prev()));
            return match before.filter(|before| before.timestamp_us > timestamp_us) {
                Some(before) => Err(format!(
                    "the time tag of {gpid} decree {decree} lies {} us before that of the decree before",
                    before.timestamp_us - timestamp_us
                )),
                None => Ok(()),
            };
        };
        if (decided.origin, decided.checksum) == (origin, checksum) {
            return Ok(());
        }
        Err(format!(
            "two contents of {gpid} decree {decree}: n{} committed one of ballot {}, n{} one of ballot {origin}",
            decided.first + 1,
            decided.origin,
            host + 1,
        ))
    }
}
