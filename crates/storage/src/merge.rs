//! One ordered stream out of several, newest source first.

use bytes::Bytes;

use crate::engine::{EngineError, Row};
use crate::memtable::Change;
use crate::schema::Value;

pub type Source<'a> = Box<dyn Iterator<Item = Result<(Bytes, Change), EngineError>> + Send + 'a>;

/// Rows of sources that are each in order (or all against it). Of equal keys the one of the first source counts;
/// deletes hide and vanish. Ends after the first error.
pub struct Merge<'a> {
    sources: Vec<Peeked<'a>>,
    reverse: bool,
    failed: bool,
}

struct Peeked<'a> {
    source: Source<'a>,
    head: Option<(Bytes, Change)>,
}

impl<'a> Merge<'a> {
    pub fn new(sources: Vec<Source<'a>>, reverse: bool) -> Result<Self, EngineError> {
        let mut merge = Self { sources: Vec::with_capacity(sources.len()), reverse, failed: false };
        for mut source in sources {
            if let Some(head) = source.next().transpose()? {
                merge.sources.push(Peeked { source, head: Some(head) });
            }
        }
        Ok(merge)
    }

    /// The next key with what became of it; all its older versions are skipped.
    fn next_change(&mut self) -> Result<Option<(Bytes, Change)>, EngineError> {
        let mut first: Option<(usize, &Bytes)> = None;
        for (i, source) in self.sources.iter().enumerate() {
            let Some((key, _)) = &source.head else { continue };
            if first.is_none_or(|(_, least)| if self.reverse { key > least } else { key < least }) {
                first = Some((i, key));
            }
        }
        let Some((at, _)) = first else { return Ok(None) };
        let Some((key, change)) = self.sources[at].advance()? else { return Ok(None) };
        for source in &mut self.sources[at + 1..] {
            if source.head.as_ref().is_some_and(|(other, _)| *other == key) {
                source.advance()?;
            }
        }
        Ok(Some((key, change)))
    }
}

impl Peeked<'_> {
    fn advance(&mut self) -> Result<Option<(Bytes, Change)>, EngineError> {
        let next = self.source.next().transpose()?;
        Ok(std::mem::replace(&mut self.head, next))
    }
}

impl Iterator for Merge<'_> {
    type Item = Result<Row, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        loop {
            let row = match self.next_change() {
                Ok(None) => return None,
                Ok(Some((_, None))) => continue,
                Ok(Some((key, Some(stored)))) => decode(stored).map(|value| (key, value)),
                Err(e) => Err(e),
            };
            self.failed = row.is_err();
            return Some(row);
        }
    }
}

pub fn decode(stored: Bytes) -> Result<Value, EngineError> {
    Value::decode(stored).map_err(|malformed| EngineError::Corrupt(malformed.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{TimeTag, header};

    /// `k1 k2-`: a value and a delete; `!` is an error.
    fn source(text: &'static str, name: &'static str) -> Source<'static> {
        Box::new(text.split_whitespace().map(move |word| {
            if word == "!" {
                return Err(EngineError::Corrupt("bad".into()));
            }
            let key = Bytes::from(word.trim_end_matches('-'));
            let value = Bytes::from([&header(0, TimeTag(0)), name.as_bytes()].concat());
            Ok((key, (!word.ends_with('-')).then_some(value)))
        }))
    }

    fn merged(sources: Vec<Source<'_>>, reverse: bool) -> String {
        let text = |b: Bytes| String::from_utf8(b.to_vec()).unwrap();
        match Merge::new(sources, reverse) {
            Err(_) => "!".into(),
            Ok(merge) => merge
                .map(|row| {
                    row.map_or("!".into(), |(key, value)| format!("{}{}", text(key), text(value.data())))
                })
                .collect::<Vec<_>>()
                .join(" "),
        }
    }

    #[test]
    fn newest_first_and_deletes_hide() {
        let sources = || vec![source("b d-", "1"), source("a b- c", "2"), source("a b c d e", "3")];
        assert_eq!(merged(sources(), false), "a2 b1 c2 e3");
        let reversed = || vec![source("d- b", "1"), source("c b- a", "2"), source("e d c b a", "3")];
        assert_eq!(merged(reversed(), true), "e3 c2 b1 a2");
        assert_eq!(merged(vec![], false), "");
    }

    #[test]
    fn errors_end_it() {
        assert_eq!(merged(vec![source("a c", "1"), source("b ! d", "2")], false), "a1 !");
        assert_eq!(merged(vec![source("!", "1")], false), "!");
        let short: Source<'_> = Box::new([Ok((Bytes::from("a"), Some(Bytes::from("short"))))].into_iter());
        assert_eq!(merged(vec![short, source("b", "2")], false), "!");
    }
}
