//! How much the meta-server may do (`meta_function_level`, replication.md 6.7).

use std::fmt;
use std::str::FromStr;

/// Ordered: what one level may, the next may too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum FunctionLevel {
    /// Nothing is written.
    Stopped = 100,
    /// Nothing is written.
    Blind = 200,
    /// Tables are not created, nothing is proposed; what running groups ask for is done.
    Freezed = 300,
    #[default]
    Steady = 400,
    /// Steady, and partitions are balanced.
    Lively = 500,
}

impl FunctionLevel {
    pub const ALL: [Self; 5] = [Self::Stopped, Self::Blind, Self::Freezed, Self::Steady, Self::Lively];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Blind => "blind",
            Self::Freezed => "freezed",
            Self::Steady => "steady",
            Self::Lively => "lively",
        }
    }

    /// New tables and replica counts.
    pub fn allows_create(self) -> bool {
        self > Self::Freezed
    }

    /// Changes that a group asks for, to lose a dead member or primary. The reference refuses them when
    /// freezed and so stops groups that could go on (replication.md 9.1 H1).
    pub fn allows_change(self) -> bool {
        self >= Self::Freezed
    }

    /// Proposals of the meta itself.
    pub fn allows_cure(self) -> bool {
        self >= Self::Steady
    }

    /// Moves that only even out. Below it they are counted and shown, not done.
    pub fn allows_balance(self) -> bool {
        self >= Self::Lively
    }

    /// By the number of the client protocol.
    pub fn from_wire(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|level| *level as i32 == number)
    }
}

impl fmt::Display for FunctionLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FunctionLevel {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let name = s.trim();
        let name = name.strip_prefix("fl_").unwrap_or(name);
        Self::ALL
            .into_iter()
            .find(|level| level.name() == name)
            .ok_or_else(|| format!("{s:?} is not a level: stopped, blind, freezed, steady or lively"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_rights() {
        for (name, create, change, cure, balance) in [
            ("stopped", false, false, false, false),
            ("blind", false, false, false, false),
            ("freezed", false, true, false, false),
            ("fl_steady", true, true, true, false),
            ("lively", true, true, true, true),
        ] {
            let level: FunctionLevel = name.parse().unwrap();
            assert_eq!(
                (level.allows_create(), level.allows_change(), level.allows_cure(), level.allows_balance()),
                (create, change, cure, balance),
                "{name}"
            );
        }
        assert_eq!(FunctionLevel::from_wire(300), Some(FunctionLevel::Freezed));
        assert_eq!(FunctionLevel::from_wire(10_000), None);
        assert!("frozen".parse::<FunctionLevel>().is_err());
    }
}
