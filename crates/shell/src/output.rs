//! Answers as text for people or as JSON for programs, with the same names.

use std::fmt::Display;
use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde_json::{Map, Value as Json};

/// Where a command puts its answer.
pub struct Output<'a> {
    to: &'a mut dyn Write,
    json: bool,
    object: Map<String, Json>,
    /// Something was printed in pieces.
    streamed: bool,
}

impl std::fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("json", &self.json).finish_non_exhaustive()
    }
}

impl<'a> Output<'a> {
    pub fn new(to: &'a mut dyn Write, json: bool) -> Self {
        Self { to, json, object: Map::new(), streamed: false }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// One fact: `text` for people, `name` and `value` for programs.
    pub fn fact(&mut self, name: &str, value: impl Into<Json>, text: impl Display) -> io::Result<()> {
        if self.json {
            self.object.insert(name.to_owned(), value.into());
            return Ok(());
        }
        writeln!(self.to, "{text}")
    }

    /// A remark that only people want.
    pub fn remark(&mut self, text: impl Display) -> io::Result<()> {
        if self.json { Ok(()) } else { writeln!(self.to, "{text}") }
    }

    /// One of many, printed at once: a line of text, or a JSON object on a line of its own.
    pub fn stream(&mut self, value: &Json, text: impl Display) -> io::Result<()> {
        self.streamed = true;
        if self.json { writeln!(self.to, "{value}") } else { writeln!(self.to, "{text}") }
    }

    /// `[title]` and a line per field.
    pub fn fields(&mut self, title: &str, fields: &[(&str, String)]) -> io::Result<()> {
        if self.json {
            let object = fields.iter().map(|(name, value)| ((*name).to_owned(), Json::from(value.as_str())));
            self.object.insert(title.to_owned(), Json::Object(object.collect()));
            return Ok(());
        }
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        writeln!(self.to, "[{title}]")?;
        for (name, value) in fields {
            writeln!(self.to, "{name:width$} : {value}")?;
        }
        writeln!(self.to)
    }

    /// `[title]`, a line of column names and a line per row; in JSON an object per row, by its first column.
    pub fn table(&mut self, title: &str, columns: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
        if self.json {
            let object = rows.iter().map(|row| {
                let cells = columns
                    .iter()
                    .zip(row)
                    .map(|(name, cell)| ((*name).to_owned(), Json::from(cell.as_str())));
                (row.first().cloned().unwrap_or_default(), Json::Object(cells.collect()))
            });
            self.object.insert(title.to_owned(), Json::Object(object.collect()));
            return Ok(());
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(columns).add_rows(rows);
        writeln!(self.to, "[{title}]")?;
        for line in table.lines() {
            writeln!(self.to, "{}", line.strip_prefix(' ').unwrap_or(&line).trim_end())?;
        }
        writeln!(self.to)
    }

    /// Prints what was gathered.
    pub fn finish(self) -> io::Result<()> {
        if self.json && !(self.streamed && self.object.is_empty()) {
            writeln!(self.to, "{}", Json::Object(self.object))?;
        }
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(json: bool) -> String {
        let mut bytes = Vec::new();
        let mut out = Output::new(&mut bytes, json);
        out.fact("value", "v", "\"v\"").unwrap();
        out.remark("for people").unwrap();
        out.fields("general", &[("app_name", "t".into()), ("app_id", "2".into())]).unwrap();
        let rows = [vec!["0".to_owned(), "3/3".to_owned()], vec!["10".to_owned(), "-".to_owned()]];
        out.table("replicas", &["pidx", "replica_count"], &rows).unwrap();
        out.finish().unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_and_json_say_the_same() {
        let text = "\"v\"\nfor people\n[general]\napp_name : t\napp_id   : 2\n\n\
                    [replicas]\npidx  replica_count\n0     3/3\n10    -\n\n";
        assert_eq!(print(false), text);
        let json = r#"{"value":"v","general":{"app_name":"t","app_id":"2"},"replicas":{"0":{"pidx":"0","replica_count":"3/3"},"10":{"pidx":"10","replica_count":"-"}}}"#;
        let (got, want): (Json, Json) =
            (serde_json::from_str(&print(true)).unwrap(), serde_json::from_str(json).unwrap());
        assert_eq!(got, want);
    }
}
