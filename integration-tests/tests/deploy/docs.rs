//! The documents: every link leads somewhere, and the book has every page.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::servers::repository;

/// All documents that people read, as paths from the root of the repository.
pub fn documents() -> BTreeSet<PathBuf> {
    let root = repository();
    let mut all: BTreeSet<PathBuf> =
        ["README.md", "deploy/README.md"].into_iter().map(PathBuf::from).collect();
    for folder in ["docs", "docs/decisions"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                all.insert(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    all
}

/// Lines outside of code blocks.
fn prose(text: &str) -> Vec<&str> {
    let mut is_code = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            lines.push(line);
        }
    }
    lines
}

/// What stands between `](` and `)`.
fn links(text: &str) -> Vec<String> {
    let parts = prose(text).join("\n");
    let targets = parts.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of a document, as GitHub and mdbook make them from headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).into_iter().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// The broken links of one document. What lies in docs/ is also a book and in packages, where nothing is beside it.
fn broken(root: &Path, document: &Path) -> Vec<String> {
    let text = fs::read_to_string(root.join(document)).unwrap();
    let reach = if document.starts_with("docs") { root.join("docs") } else { root.to_owned() };
    let reach = reach.canonicalize().unwrap();
    let is_broken = |link: &String| {
        if link.contains("://") || link.starts_with("mailto:") {
            return false;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let path = match file {
            "" => root.join(document),
            file => root.join(document).parent().unwrap().join(file),
        };
        let Ok(path) = path.canonicalize() else { return true };
        !path.starts_with(&reach)
            || (!anchor.is_empty() && !anchors(&fs::read_to_string(&path).unwrap()).contains(anchor))
    };
    let bad = links(&text).into_iter().filter(is_broken);
    bad.map(|link| format!("{}: {link}", document.display())).collect()
}

#[test]
fn links_lead_somewhere() {
    let root = repository();
    let all: Vec<_> = documents().iter().flat_map(|document| broken(root, document)).collect();
    assert!(all.is_empty(), "{all:#?}");
    let dir = tempfile::tempdir().unwrap();
    let text = "# A, `b` c-d\n```\n[no](link)\n```\n[1](a.md#a-b-c-d) [2](#gone) [3](b.md) [4](https://h/x)";
    fs::write(dir.path().join("a.md"), text).unwrap();
    assert_eq!(broken(dir.path(), Path::new("a.md")), ["a.md: #gone", "a.md: b.md"]);
    fs::create_dir(dir.path().join("docs")).unwrap();
    fs::write(dir.path().join("docs/c.md"), "[1](../a.md) [2](c.md)").unwrap();
    assert_eq!(broken(dir.path(), Path::new("docs/c.md")), ["docs/c.md: ../a.md"]);
}

#[test]
fn the_book_has_every_page() {
    let root = repository();
    let listed_in = |list: &str| {
        let text = fs::read_to_string(root.join(list)).unwrap();
        let folder = Path::new(list).parent().unwrap();
        links(&text).into_iter().map(|link| folder.join(link)).collect::<Vec<_>>()
    };
    // A decision is found from the list of decisions, too.
    let listed: BTreeSet<PathBuf> =
        ["docs/SUMMARY.md", "docs/decisions/README.md"].into_iter().flat_map(listed_in).collect();
    let pages =
        documents().into_iter().filter(|path| path.starts_with("docs") && !path.ends_with("SUMMARY.md"));
    let missing: Vec<_> = pages.filter(|page| !listed.contains(page)).collect();
    assert!(missing.is_empty(), "in no list: {missing:?}");
    let book = fs::read_to_string(root.join("book.toml")).unwrap();
    // Pages are where links to them lead, README.md too.
    for line in ["src = \"docs\"", "use-default-preprocessors = false"] {
        assert!(book.contains(line), "{line} is not in {book}");
    }
}
