//! Where the bodies of logged, not yet applied mutations lie in the log.

use std::collections::VecDeque;

use pegasus_types::{Decree, LogLocation};

#[derive(Debug, Default)]
pub struct Locations {
    /// Decree of the front.
    first: Decree,
    at: VecDeque<LogLocation>,
}

impl Locations {
    /// Decrees come in order; one that was logged again (under a new ballot, or after a lost history) replaces
    /// what was known of it, one that does not follow begins anew (after a copy).
    pub fn set(&mut self, decree: Decree, location: LogLocation) {
        if self.at.is_empty() {
            self.first = decree;
        }
        match usize::try_from(decree.0 - self.first.0) {
            Ok(index) if index < self.at.len() => self.at[index] = location,
            Ok(index) if index == self.at.len() => self.at.push_back(location),
            Ok(_) => {
                self.at.clear();
                self.first = decree;
                self.at.push_back(location);
            }
            // Logged again although applied already: nobody asks for it.
            Err(_) => {}
        }
    }

    /// The location of `decree`; it and all before it are forgotten. None when it was never told, which an
    /// engine with values of its own does not mind.
    pub fn take(&mut self, decree: Decree) -> Option<LogLocation> {
        let index = usize::try_from(decree.0 - self.first.0).ok().filter(|i| *i < self.at.len())?;
        let location = self.at[index];
        self.at.drain(..=index);
        self.first = decree.next();
        Some(location)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> LogLocation {
        LogLocation { segment: 1, offset, len: 1 }
    }

    #[test]
    fn follows_the_log() {
        let mut locations = Locations::default();
        for decree in 5..9 {
            locations.set(Decree(decree), at(decree as u64));
        }
        locations.set(Decree(7), at(70));
        assert_eq!(locations.take(Decree(5)), Some(at(5)));
        locations.set(Decree(4), at(4));
        assert_eq!(locations.take(Decree(7)), Some(at(70)), "logged again");
        assert_eq!(locations.take(Decree(6)), None, "behind");
        assert_eq!(locations.take(Decree(8)), Some(at(8)));
        locations.set(Decree(101), at(101));
        locations.set(Decree(300), at(300));
        assert_eq!(locations.take(Decree(101)), None, "a copy came between");
        assert_eq!(locations.take(Decree(300)), Some(at(300)));
        assert_eq!(locations.take(Decree(301)), None);
    }
}
