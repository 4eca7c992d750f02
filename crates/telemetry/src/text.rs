//! Prometheus text, written without a registry and read again.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};

/// Text in the making. Every sample carries the common labels.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
    common: Vec<(&'static str, String)>,
}

impl Text {
    pub fn new(common: Vec<(&'static str, String)>) -> Self {
        Self { out: String::new(), common }
    }

    /// The head of a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}"); // writing into a String cannot fail
    }

    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.out.push_str(name);
        let common = self.common.iter().map(|(key, text)| (*key, text.as_str()));
        let mut open = '{';
        for (key, text) in common.chain(labels.iter().copied()) {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{open}{key}=\"{escaped}\"");
            open = ',';
        }
        if open == ',' {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }

    /// A family of one sample.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    /// A family of one sample.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    pub fn finish(self) -> String {
        self.out
    }
}

/// One line of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    pub name: &'a str,
    pub labels: Vec<(&'a str, Cow<'a, str>)>,
    pub value: f64,
}

impl Sample<'_> {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| *key == name).map(|(_, value)| &**value)
    }
}

/// The samples of a text; lines that are none are passed over.
pub fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            inside = inside.trim_start_matches([',', ' ']);
            if let Some(after) = inside.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = inside.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.push((key, value));
            inside = after;
        }
    }
    // A time may follow the value.
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample { name, labels, value })
}

/// The text up to the quote that ends it, and what follows.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut value = String::new();
    let mut from = 0;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                let after = text.get(at + 1..)?;
                let tail = text.get(from..at)?;
                if from == 0 {
                    return Some((Cow::Borrowed(tail), after));
                }
                value.push_str(tail);
                return Some((Cow::Owned(value), after));
            }
            '\\' => {
                value.push_str(text.get(from..at)?);
                let (next, escaped) = chars.next()?;
                value.push(if escaped == 'n' { '\n' } else { escaped });
                from = next + escaped.len_utf8();
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut text = Text::new(vec![("cluster", "c".to_owned())]);
        text.family("requests", "counter", "Requests.");
        let odd = "a\"b\\c\nd{e} 7,";
        text.sample("requests", &[("table", odd), ("op", "")], 1.5);
        Text::default().sample("plain", &[], 7);
        let text = text.finish() + "plain 7\nwith_time{a=\"b\"} +Inf 1700000000\n";
        let read: Vec<_> = samples(&text).collect();
        assert_eq!(read.len(), 3, "{read:?}");
        assert_eq!((read[0].name, read[0].value), ("requests", 1.5));
        assert_eq!((read[0].label("table"), read[0].label("op")), (Some(odd), Some("")));
        assert_eq!((read[0].label("cluster"), read[0].label("nothing")), (Some("c"), None));
        assert_eq!((read[1].name, read[1].labels.len(), read[1].value), ("plain", 0, 7.0));
        assert_eq!((read[2].label("a"), read[2].value), (Some("b"), f64::INFINITY));
    }

    #[test]
    fn garbage_is_passed_over() {
        for line in [
            "",
            "x",
            "x{",
            "x{a}",
            "x{a=\"b} 1",
            "x{a=\"b\\",
            "x{a=\"b\"}",
            "x y",
            "{} ",
            "# x 1",
            "é{é=\"é\"} é",
        ] {
            assert_eq!(samples(line).count(), 0, "{line}");
        }
    }
}
