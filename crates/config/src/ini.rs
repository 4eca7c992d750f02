//! Pegasus's INI dialect (config-reference.md §1), as a value: text in, entries with line numbers out.
//!
//! `;` and `#` start a comment anywhere in a line unless written `^;` `^#`. A line without `=` is a key with an
//! empty value. A key twice: the first stays, with a warning. A section twice, a key before any section and a
//! broken section line are mistakes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::mistake::{Mistake, Place};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub section: String,
    pub key: String,
    pub value: String,
    pub line: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Document {
    /// In file order, each (section, key) once.
    pub entries: Vec<Entry>,
    /// Name and line, in file order.
    pub sections: Vec<(String, u32)>,
    pub mistakes: Vec<Mistake>,
    pub warnings: Vec<Mistake>,
}

/// Reads `text`. `variables` replace `%{name}` and `%name%` first.
pub(crate) fn parse(file: &Arc<str>, text: &str, variables: &BTreeMap<String, String>) -> Document {
    let mut doc = Document::default();
    let mut seen = BTreeSet::new();
    let mut section: Option<String> = None;
    let at = |line: u32, text: String| Mistake { place: Place::File { name: file.clone(), line }, text };

    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (line, raw) in (1u32..).zip(text.lines()) {
        let content = replace(&strip_comment(raw), variables);
        let content = content.trim();
        if content.is_empty() {
            continue;
        }
        if let Some(rest) = content.strip_prefix('[') {
            let name = rest.strip_suffix(']').map(str::trim);
            match name {
                Some(name) if !name.is_empty() && !name.contains(['=', '[', ']']) => {
                    if let Some((_, first)) = doc.sections.iter().find(|(known, _)| known == name) {
                        doc.mistakes
                            .push(at(line, format!("section [{name}] stands twice, first in line {first}")));
                    } else {
                        doc.sections.push((name.to_owned(), line));
                    }
                    section = Some(name.to_owned());
                }
                _ => {
                    doc.mistakes.push(at(line, format!("{content:?} is not a section line: expected [name]")))
                }
            }
            continue;
        }
        let (key, value) = content.split_once('=').unwrap_or((content, ""));
        let (key, value) = (key.trim(), value.trim());
        match &section {
            None => doc.mistakes.push(at(line, format!("key {key:?} stands before any [section]"))),
            Some(_) if key.is_empty() => doc.mistakes.push(at(line, "a value without a key".to_owned())),
            Some(section) => {
                if seen.insert((section.clone(), key.to_owned())) {
                    doc.entries.push(Entry {
                        section: section.clone(),
                        key: key.to_owned(),
                        value: value.to_owned(),
                        line,
                    });
                } else {
                    doc.warnings
                        .push(at(line, format!("[{section}] {key} stands twice: the first one stays")));
                }
            }
        }
    }
    doc
}

fn strip_comment(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '^' => match chars.next_if(|next| matches!(next, '#' | ';')) {
                Some(escaped) => out.push(escaped),
                None => out.push('^'),
            },
            '#' | ';' => break,
            _ => out.push(c),
        }
    }
    out
}

fn replace(line: &str, variables: &BTreeMap<String, String>) -> String {
    if !line.contains('%') {
        return line.to_owned();
    }
    let mut line = line.to_owned();
    for (name, value) in variables {
        line = line.replace(&format!("%{{{name}}}"), value).replace(&format!("%{name}%"), value);
    }
    line
}

/// Names of the variables that `text` still contains: `%{name}` anywhere, or the whole text being `%name%`.
pub(crate) fn variables_in(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("%{") {
        rest = rest.get(start + 2..).unwrap_or_default();
        let Some(end) = rest.find('}') else { break };
        names.extend(rest.get(..end));
        rest = rest.get(end..).unwrap_or_default();
    }
    let whole = text.strip_prefix('%').and_then(|t| t.strip_suffix('%')).filter(|t| !t.is_empty());
    names.extend(whole.filter(|name| !name.contains(['%', '{', '}'])));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Document {
        parse(&Arc::from("f"), text, &BTreeMap::new())
    }

    fn entries(text: &str) -> Vec<(String, String, String, u32)> {
        read(text).entries.into_iter().map(|e| (e.section, e.key, e.value, e.line)).collect()
    }

    #[test]
    fn values_and_comments() {
        let cases = [
            ("k = v", "k", "v"),
            ("k=v", "k", "v"),
            ("  k  =  a b  ", "k", "a b"),
            ("k", "k", ""),
            ("k =", "k", ""),
            ("k = v ; tail", "k", "v"),
            ("k = v # tail", "k", "v"),
            ("k = a^;b^#c ^d", "k", "a;b#c ^d"),
            ("k = a=b", "k", "a=b"),
            ("a.b::c = \"quoted\\n\"", "a.b::c", "\"quoted\\n\""),
            ("k = v\r", "k", "v"),
        ];
        for (line, key, value) in cases {
            let text = format!("\u{feff}; head\n[s]\n\n{line}");
            assert_eq!(entries(&text), [("s".to_owned(), key.to_owned(), value.to_owned(), 4)], "{line:?}");
        }
    }

    #[test]
    fn a_key_twice_keeps_the_first_and_warns() {
        let doc = read("[s]\nk = 1\nk = 2\n[t]\nk = 3");
        assert_eq!(doc.entries.iter().map(|e| e.value.as_str()).collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(doc.warnings.len(), 1);
        assert_eq!(doc.warnings[0].to_string(), "f:3: [s] k stands twice: the first one stays");
    }

    #[test]
    fn every_broken_line_is_told() {
        let doc = read("early = 1\n[s]\n= v\n[s]\n[a=b]\n[open\n[]\n");
        let told: Vec<_> = doc.mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 6, "{told:#?}");
        for (n, text) in [
            (0, "f:1: key \"early\" stands before any [section]"),
            (1, "f:3: a value without a key"),
            (2, "f:4: section [s] stands twice, first in line 2"),
            (3, "f:5: "),
            (4, "f:6: "),
            (5, "f:7: "),
        ] {
            assert!(told[n].starts_with(text), "{} / {text}", told[n]);
        }
    }

    #[test]
    fn variables() {
        let set = BTreeMap::from([("a.b".to_owned(), "X".to_owned()), ("c".to_owned(), "Y".to_owned())]);
        let doc = parse(&Arc::from("f"), "[s]\n%{a.b} = /p/%{a.b}/%c%/%{d}\nz = %e%", &set);
        assert_eq!(doc.entries[0].key, "X");
        assert_eq!(doc.entries[0].value, "/p/X/Y/%{d}");
        let left: Vec<_> = doc.entries.iter().flat_map(|e| variables_in(&e.value)).collect();
        assert_eq!(left, ["d", "e"]);
        for none in ["100%", "%", "%%", "50% of %d", "%{open"] {
            assert!(variables_in(none).is_empty(), "{none}");
        }
    }
}
