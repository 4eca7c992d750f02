//! The words of one command: flags and the rest.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A mistake in how a command was typed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

type Result<T> = std::result::Result<T, Usage>;

/// Flags and words, as the command's flag letters say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    flags: BTreeMap<char, Vec<u8>>,
    words: Vec<Vec<u8>>,
    next: usize,
}

impl Args {
    /// `letters`: flags of the command, one that takes a value is followed by a colon ("dp:r:"). A word that
    /// looks like a flag but is none of them is a word, so that negative numbers need no care; `--` ends the
    /// flags.
    pub fn parse(letters: &str, words: impl IntoIterator<Item = Vec<u8>>) -> Result<Self> {
        let mut args = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == b"--" {
                args.words.extend(words);
                break;
            }
            match flag(letters, &word) {
                None => args.words.push(word),
                Some((letter, false)) => drop(args.flags.insert(letter, Vec::new())),
                Some((letter, true)) => {
                    let value = words.next().ok_or_else(|| Usage(format!("-{letter} needs a value")))?;
                    args.flags.insert(letter, value);
                }
            }
        }
        Ok(args)
    }

    pub fn has(&self, letter: char) -> bool {
        self.flags.contains_key(&letter)
    }

    pub fn flag(&self, letter: char) -> Option<&[u8]> {
        self.flags.get(&letter).map(Vec::as_slice)
    }

    /// The value of a flag as a number or the like.
    pub fn flag_as<T: FromStr>(&self, letter: char) -> Result<Option<T>> {
        self.flag(letter).map(|value| parse(value, &format!("-{letter}"))).transpose()
    }

    /// The next word; `name` is what the usage calls it.
    pub fn word(&mut self, name: &str) -> Result<Vec<u8>> {
        self.optional().ok_or_else(|| Usage(format!("<{name}> is missing")))
    }

    pub fn optional(&mut self) -> Option<Vec<u8>> {
        let word = self.words.get(self.next).cloned();
        self.next += usize::from(word.is_some());
        word
    }

    /// Words that nobody has taken.
    pub fn left(&self) -> usize {
        self.words.len().saturating_sub(self.next)
    }

    pub fn text(&mut self, name: &str) -> Result<String> {
        text(self.word(name)?, name)
    }

    pub fn optional_as<T: FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        self.optional().map(|word| parse(&word, name)).transpose()
    }

    pub fn rest(&mut self) -> Vec<Vec<u8>> {
        let rest = self.words.split_off(self.next);
        self.next = self.words.len();
        rest
    }

    /// Refuses words that nobody has taken.
    pub fn end(&self) -> Result<()> {
        match self.words.get(self.next) {
            None => Ok(()),
            Some(word) => Err(Usage(format!("one word too many: {:?}", String::from_utf8_lossy(word)))),
        }
    }
}

/// (letter, takes a value) when `word` is a flag of the command.
fn flag(letters: &str, word: &[u8]) -> Option<(char, bool)> {
    let [b'-', letter] = *word else { return None };
    let letter = char::from(letter);
    if letter == ':' {
        return None;
    }
    let at = letters.find(letter)?;
    Some((letter, letters[at + 1..].starts_with(':')))
}

pub fn text(word: Vec<u8>, name: impl fmt::Display) -> Result<String> {
    String::from_utf8(word).map_err(|_| Usage(format!("<{name}> is not text")))
}

pub fn parse<T: FromStr>(word: &[u8], name: &str) -> Result<T> {
    let text = String::from_utf8_lossy(word);
    text.parse().map_err(|_| Usage(format!("{name}: {text:?} is not what is expected here")))
}

/// Seconds above zero.
pub fn seconds(value: u32, name: &str) -> Result<Duration> {
    if value == 0 {
        return Err(Usage(format!("{name}: 0 seconds")));
    }
    Ok(Duration::from_secs(u64::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(letters: &str, line: &str) -> Result<Args> {
        Args::parse(letters, line.split_whitespace().map(|word| word.as_bytes().to_vec()))
    }

    #[test]
    fn flags_and_words() {
        let mut got = args("dp:r:", "name -p 8 -d -5 -x -- -d").unwrap();
        assert_eq!((got.flag_as::<i32>('p'), got.has('d'), got.has('r')), (Ok(Some(8)), true, false));
        assert_eq!(got.text("name"), Ok("name".to_owned()));
        assert_eq!(got.optional_as::<i64>("n"), Ok(Some(-5)));
        assert_eq!(got.end(), Err(Usage("one word too many: \"-x\"".to_owned())));
        assert_eq!(got.rest(), [b"-x".to_vec(), b"-d".to_vec()]);
        assert_eq!((got.end(), got.word("key")), (Ok(()), Err(Usage("<key> is missing".to_owned()))));
        assert_eq!(args("p:", "-p").unwrap_err().to_string(), "-p needs a value");
        assert!(args("p:", "-p many").unwrap().flag_as::<i32>('p').is_err());
    }
}
