//! Filters on hash keys and sort keys, and the matching checks of check_and_*.

use bytes::Bytes;
use pegasus_types::data::FilterType;

/// A filter as a request carries it. An empty pattern matches everything.
#[derive(Clone, Debug)]
pub struct Pattern {
    kind: FilterType,
    pattern: Bytes,
}

impl Pattern {
    /// None when no such kind of filter exists.
    pub fn new(kind: i32, pattern: &Bytes) -> Option<Self> {
        let kind = FilterType::from_wire(kind)?;
        Some(Self {
            kind: if pattern.is_empty() { FilterType::NoFilter } else { kind },
            pattern: pattern.clone(),
        })
    }

    pub fn matches_all(&self) -> bool {
        self.kind == FilterType::NoFilter
    }

    pub fn matches(&self, text: &[u8]) -> bool {
        match self.kind {
            FilterType::NoFilter => true,
            FilterType::MatchAnywhere => contains(text, &self.pattern),
            FilterType::MatchPrefix => text.starts_with(&self.pattern),
            FilterType::MatchPostfix => text.ends_with(&self.pattern),
        }
    }

    /// What every match begins with, when that is known: narrows the range that is looked at.
    pub fn prefix(&self) -> Option<&[u8]> {
        (self.kind == FilterType::MatchPrefix).then_some(&self.pattern[..])
    }
}

/// Whether `part` lies somewhere in `text`; the empty part always does.
pub fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching() {
        for (kind, pattern, text, want) in [
            (0, "x", "abc", true),
            (1, "b", "abc", true),
            (1, "abcd", "abc", false),
            (1, "", "abc", true),
            (2, "ab", "abc", true),
            (2, "b", "abc", false),
            (2, "", "", true),
            (3, "bc", "abc", true),
            (3, "ab", "abc", false),
        ] {
            let filter = Pattern::new(kind, &Bytes::from(pattern)).unwrap();
            assert_eq!(filter.matches(text.as_bytes()), want, "{kind} {pattern} {text}");
        }
        for bad in [-1, 4] {
            assert!(Pattern::new(bad, &Bytes::new()).is_none(), "{bad}, also with an empty pattern");
        }
    }

    #[test]
    fn only_a_prefix_narrows() {
        for (kind, pattern, want) in [(2, "p", Some("p")), (2, "", None), (1, "p", None), (0, "p", None)] {
            let filter = Pattern::new(kind, &Bytes::from(pattern)).unwrap();
            assert_eq!(filter.prefix(), want.map(str::as_bytes), "{kind} {pattern}");
        }
    }
}
