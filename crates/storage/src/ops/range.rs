//! Ranges of encoded keys.

use std::ops::Bound;

use bytes::Bytes;
use pegasus_types::hash;

/// A range that is narrowed step by step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub lo: Bound<Bytes>,
    pub hi: Bound<Bytes>,
}

pub fn bound(key: Bytes, inclusive: bool) -> Bound<Bytes> {
    if inclusive { Bound::Included(key) } else { Bound::Excluded(key) }
}

/// Upper bound of everything that begins with `prefix`.
pub fn end_of(prefix: &[u8]) -> Bound<Bytes> {
    hash::next_prefix(prefix).map_or(Bound::Unbounded, Bound::Excluded)
}

impl KeyRange {
    /// Everything that begins with `prefix`.
    pub fn of_prefix(prefix: &Bytes) -> Self {
        Self { lo: Bound::Included(prefix.clone()), hi: end_of(prefix) }
    }

    /// Leaves out what is below `prefix`. At an equal key the old bound stays, with its inclusiveness.
    pub fn raise_to(&mut self, prefix: Bytes) {
        let raises = match &self.lo {
            Bound::Included(lo) | Bound::Excluded(lo) => prefix > *lo,
            Bound::Unbounded => true,
        };
        if raises {
            self.lo = Bound::Included(prefix);
        }
    }

    /// Leaves out what does not begin with `prefix` and is above it.
    pub fn lower_to_end_of(&mut self, prefix: &[u8]) {
        let Bound::Excluded(end) = end_of(prefix) else { return };
        let lowers = match &self.hi {
            Bound::Included(hi) | Bound::Excluded(hi) => end <= *hi,
            Bound::Unbounded => true,
        };
        if lowers {
            self.hi = Bound::Excluded(end);
        }
    }

    /// Whether no key can lie in it.
    pub fn is_empty(&self) -> bool {
        match (&self.lo, &self.hi) {
            (Bound::Included(lo), Bound::Included(hi)) => lo > hi,
            (Bound::Included(lo) | Bound::Excluded(lo), Bound::Included(hi) | Bound::Excluded(hi)) => {
                lo >= hi
            }
            _ => false,
        }
    }

    pub fn as_slices(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (self.lo.as_ref().map(|key| &key[..]), self.hi.as_ref().map(|key| &key[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(lo: &'static str, lo_in: bool, hi: &'static str, hi_in: bool) -> KeyRange {
        KeyRange { lo: bound(lo.into(), lo_in), hi: bound(hi.into(), hi_in) }
    }

    #[test]
    fn emptiness() {
        for (range, want) in [
            (range("a", true, "b", false), false),
            (range("a", true, "a", true), false),
            (range("a", true, "a", false), true),
            (range("a", false, "a", true), true),
            (range("b", true, "a", true), true),
            (KeyRange { lo: Bound::Unbounded, hi: Bound::Unbounded }, false),
        ] {
            assert_eq!(range.is_empty(), want, "{range:?}");
        }
    }

    #[test]
    fn narrowing_keeps_the_stricter_bound() {
        let mut narrowed = range("a", false, "z", true);
        narrowed.raise_to("a".into());
        assert_eq!(narrowed, range("a", false, "z", true), "an equal key moves nothing");
        narrowed.raise_to("b".into());
        narrowed.lower_to_end_of(b"b");
        assert_eq!(narrowed, range("b", true, "c", false));
        narrowed.lower_to_end_of(b"d");
        assert_eq!(narrowed, range("b", true, "c", false));
        narrowed.lower_to_end_of(b"\xff");
        assert_eq!(narrowed, range("b", true, "c", false), "nothing is above");
    }
}
