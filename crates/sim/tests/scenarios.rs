//! The table of docs/simulation.md says the truth: every scenario is there, and what it names exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Rows of the table of scenarios, cell by cell.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with("| "));
    lines
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|row| row.len() == 4 && row[0].parse::<u32>().is_ok())
        .collect()
}

#[test]
fn every_scenario_is_listed_once_and_shown_or_said_to_be_missing() {
    let text = std::fs::read_to_string(root().join("docs/simulation.md")).unwrap();
    let rows = rows(&text);
    let numbers: Vec<u32> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(numbers, (1..=60).collect::<Vec<_>>());
    for row in &rows {
        let shown = names(row[3]).count() > 0;
        assert!(shown || row[2].contains("not built: "), "{row:?} is neither shown nor said to be missing");
    }
}

#[test]
fn what_is_named_exists_and_every_script_is_named() {
    let text = std::fs::read_to_string(root().join("docs/simulation.md")).unwrap();
    let scripts = root().join("crates/sim/scripts");
    let mut named = BTreeSet::new();
    for name in names(&text) {
        if let Some((file, test)) = name.split_once("::") {
            let source = std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert!(source.contains(&format!("fn {test}(")), "{file} has no test {test}");
        } else if name.ends_with(".sim") && !name.contains('*') {
            assert!(scripts.join(name).exists(), "there is no script {name}");
            named.insert(name.to_owned());
        }
    }
    let there: BTreeSet<String> = std::fs::read_dir(&scripts)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(there, named, "scripts that the page does not name");
}
