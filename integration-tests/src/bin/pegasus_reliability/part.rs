//! A part of the measurements: what it has found, where that is kept, and how it reads in the document.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};
use pegasus_integration_tests::say;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What one part has found. Its file in the directory of results is the value itself, so that the document can be
/// written from parts that were measured at different times.
pub trait Rows: Serialize + DeserializeOwned {
    /// As on the command line, and the name of the file.
    const PART: &'static str;
    /// Of its section in the document.
    const TITLE: &'static str;

    /// Markdown: what was done, then the table.
    fn text(&self) -> String;

    /// Everything that is promised about it is true.
    fn is_kept(&self) -> bool;
}

/// The circumstances of a measurement.
#[derive(Debug, Deserialize, Serialize)]
pub struct Circumstances {
    /// UTC, of the end.
    date: String,
    /// What was measured: version, commit and kind of build as the servers tell it.
    server: String,
    processors: usize,
    /// Runnable processes on average of one, five and fifteen minutes, before and after.
    load_before: String,
    load_after: String,
}

#[derive(Debug, Deserialize, Serialize)]
struct Measured<R> {
    circumstances: Circumstances,
    rows: R,
}

impl Circumstances {
    pub fn begin() -> Result<Self> {
        let server = pegasus_onebox::find_server()?;
        let version = Command::new(&server).arg("--version").output();
        let version = version.with_context(|| format!("run {}", server.display()))?;
        Ok(Self {
            date: String::new(),
            server: String::from_utf8_lossy(&version.stdout).trim().to_owned(),
            processors: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            load_before: load(),
            load_after: String::new(),
        })
    }

    fn end(mut self) -> Self {
        self.date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        self.load_after = load();
        self
    }
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn file<R: Rows>(results: &Path) -> PathBuf {
    results.join(format!("{}.json", R::PART))
}

/// Keeps what a part has found, in place of what it found before. Whether its promises are kept.
pub fn save<R: Rows>(results: &Path, circumstances: Circumstances, rows: R) -> Result<bool> {
    let is_kept = rows.is_kept();
    let measured = Measured { circumstances: circumstances.end(), rows };
    fs::create_dir_all(results).with_context(|| format!("make {}", results.display()))?;
    let file = file::<R>(results);
    fs::write(&file, serde_json::to_string_pretty(&measured)?)
        .with_context(|| format!("write {}", file.display()))?;
    say!("{}", section::<R>(results)?);
    Ok(is_kept)
}

/// What the document says of a part.
pub fn section<R: Rows>(results: &Path) -> Result<String> {
    let mut text = format!("## {}\n\n", R::TITLE);
    let file = file::<R>(results);
    let json = match fs::read_to_string(&file) {
        Ok(json) => json,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let _ = writeln!(text, "Not measured: `make reliability PARTS={}`.", R::PART);
            return Ok(text);
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    let measured: Measured<R> = serde_json::from_str(&json)
        .with_context(|| format!("{}: remove it, or measure this part again", file.display()))?;
    text.push_str(measured.rows.text().trim_end());
    let Circumstances { date, server, processors, load_before, load_after } = &measured.circumstances;
    let _ = writeln!(
        text,
        "\n\n{date}, {server}, {processors} processors, load of the machine {load_before} before and {load_after} after."
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Serialize)]
    struct Some {
        worst: u32,
    }

    impl Rows for Some {
        const PART: &'static str = "some";
        const TITLE: &'static str = "Something";

        fn text(&self) -> String {
            format!("| worst |\n|---|\n| {} |\n", self.worst)
        }

        fn is_kept(&self) -> bool {
            self.worst < 10
        }
    }

    #[test]
    fn what_was_measured_is_kept_and_the_rest_is_not_invented() {
        let dir = tempfile::tempdir().unwrap();
        let results = dir.path().join("results");
        let none = section::<Some>(&results).unwrap();
        assert!(none.contains("Not measured: `make reliability PARTS=some`"), "{none}");

        let circumstances = || Circumstances {
            date: String::new(),
            server: "Pegasus Server 1 (abc) release".to_owned(),
            processors: 2,
            load_before: "1 2 3".to_owned(),
            load_after: String::new(),
        };
        assert!(save(&results, circumstances(), Some { worst: 9 }).unwrap());
        assert!(!save(&results, circumstances(), Some { worst: 10 }).unwrap());
        let text = section::<Some>(&results).unwrap();
        assert!(text.starts_with("## Something\n\n| worst |\n|---|\n| 10 |\n\n20"), "{text}");
        assert!(text.contains("(abc) release, 2 processors, load of the machine 1 2 3 before"), "{text}");

        fs::write(results.join("some.json"), "{}").unwrap();
        let error = format!("{:#}", section::<Some>(&results).unwrap_err());
        assert!(error.contains("some.json: remove it"), "{error}");
    }
}
