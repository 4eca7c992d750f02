//! What `docs/architecture.md` names is there: files and folders by their paths, modules as `crate::module`.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn what_the_architecture_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    assert_eq!(missing(root, &text), [""; 0]);
    let made_up = "| a | `crates/rpc/src/{port,gone}.rs`, `wire`, `port.rs`, `lost.rs` |\n\
                   | b | `rpc::wire::server`, `rpc::nowhere`, `rpc::port::Port`, `crates/none/*`, `/metrics` |\n";
    let expected = ["crates/rpc/src/gone.rs", "lost.rs", "rpc::nowhere", "crates/none"];
    assert_eq!(missing(root, made_up), expected);
}

/// Names in backquotes of which nothing is there. After a path of a crate, the rest of the line may leave that away.
fn missing(root: &Path, text: &str) -> Vec<String> {
    let mut missing = Vec::new();
    for line in text.lines() {
        let mut bases = vec![root.to_owned()];
        for name in line.split('`').skip(1).step_by(2) {
            if let Some((of, module)) = name.split_once("::") {
                let of = root.join("crates").join(of);
                let module = module.split("::").take_while(|part| part.starts_with(char::is_lowercase));
                let file = of.join("src").join(module.collect::<Vec<_>>().join("/"));
                if of.exists() && !file.exists() && !file.with_extension("rs").exists() {
                    missing.push(name.to_owned());
                }
                continue;
            }
            let is_path = name.contains('/') || (name.ends_with(".rs") && bases.len() > 1);
            if !is_path || name.starts_with('/') || name.contains(' ') {
                continue;
            }
            for path in alternatives(name.trim_end_matches("/*")) {
                if path.starts_with("crates/") {
                    let of = root.join(path.split('/').take(2).collect::<PathBuf>());
                    bases = vec![root.to_owned(), of.join("src"), of];
                }
                if !bases.iter().any(|base| base.join(&path).exists()) {
                    missing.push(path);
                }
            }
        }
    }
    missing
}

/// `a{b,c}d` is `abd` and `acd`.
fn alternatives(path: &str) -> Vec<String> {
    match path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
        Some((before, (list, after))) => {
            list.split(',').map(|part| format!("{before}{part}{after}")).collect()
        }
        None => vec![path.to_owned()],
    }
}
