//! The documented default file, written from the declarations.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::section::SectionInfo;

const HEAD: &str = "\
; Configuration of Pegasus: one file for all roles. Written by `pegasus_server --print-default-config`.
;
; Replace every %{variable}, or give its value at the start: --set cluster.name=onebox, or
; PEGASUS__VAR__CLUSTER_NAME=onebox in the environment. Keys that are commented out show their default.
; Any key can be overridden: PEGASUS__SECTION__KEY=value in the environment, --set section.key=value as a flag.
; `;` and `#` start a comment anywhere in a line; write ^; and ^# for the characters themselves.
; `pegasus_server FILE --check-config` reports everything that is wrong with a file.
";

/// All sections in the order given, one struct's keys after the other's where they share a section.
pub fn default_file(sections: &[&'static SectionInfo]) -> String {
    let mut out = HEAD.to_owned();
    let mut done = BTreeSet::new();
    for info in sections.iter().filter(|info| done.insert(info.name)) {
        let parts: Vec<_> = sections.iter().filter(|other| other.name == info.name).collect();
        if info.name.ends_with('*') || info.open {
            shown(&mut out, info);
        } else {
            documented(&mut out, info.name, &parts);
        }
    }
    out
}

fn documented(out: &mut String, name: &str, parts: &[&&'static SectionInfo]) {
    out.push('\n');
    for line in parts.iter().flat_map(|part| part.doc) {
        comment(out, line);
    }
    line(out, &format!("[{name}]"));
    let mut keys = BTreeSet::new();
    for key in parts.iter().flat_map(|part| part.keys).filter(|key| keys.insert(key.name)) {
        for line in key.doc {
            comment(out, line);
        }
        match key.template {
            Some(template) => match template.strip_prefix('#') {
                Some(hidden) => line(out, &format!("# {} = {}", key.name, hidden.trim())),
                None => line(out, &format!("{} = {template}", key.name)),
            },
            None => line(out, &format!("# {} = {}", key.name, escaped(&(key.default)()))),
        }
    }
}

/// A family or an open section: what its keys mean, then the members that the default file has.
fn shown(out: &mut String, info: &SectionInfo) {
    for (n, (section, values)) in info.shown_as.iter().enumerate() {
        out.push('\n');
        if n == 0 {
            for line in info.doc {
                comment(out, line);
            }
            for key in info.keys {
                comment(out, &format!("{} ({}): {}", key.name, (key.default)(), key.doc.join("").trim()));
            }
        }
        line(out, &format!("[{section}]"));
        for (key, value) in *values {
            line(out, &format!("{key} = {value}"));
        }
    }
}

fn comment(out: &mut String, text: &str) {
    line(out, &format!("; {}", text.trim()));
}

fn line(out: &mut String, text: &str) {
    let _ = writeln!(out, "{}", text.trim_end()); // writing into a String cannot fail
}

fn escaped(text: &str) -> String {
    text.replace('#', "^#").replace(';', "^;")
}

/// The same as a table for readers, in Markdown: what each key means, its default, and its name in the environment.
pub fn markdown(sections: &[&'static SectionInfo]) -> String {
    let mut out = MARKDOWN_HEAD.to_owned();
    let mut done = BTreeSet::new();
    for info in sections.iter().filter(|info| done.insert(info.name)) {
        let parts: Vec<_> = sections.iter().filter(|other| other.name == info.name).collect();
        line(&mut out, &format!("\n## [{}]\n", info.name));
        let doc: Vec<_> = parts.iter().flat_map(|part| part.doc).map(|line| line.trim()).collect();
        line(&mut out, &doc.join(" "));
        let mut keys = BTreeSet::new();
        let keys: Vec<_> =
            parts.iter().flat_map(|part| part.keys).filter(|key| keys.insert(key.name)).collect();
        if keys.is_empty() {
            continue;
        }
        line(&mut out, "\n| key | default | meaning |\n|---|---|---|");
        for key in keys {
            let meaning: Vec<_> = key.doc.iter().map(|line| line.trim()).collect();
            let default = (key.default)();
            let default = if default.is_empty() { "(empty)".to_owned() } else { format!("`{default}`") };
            line(
                &mut out,
                &format!("| `{}` | {default} | {} |", key.name, meaning.join(" ").replace('|', "\\|")),
            );
        }
    }
    out
}

const MARKDOWN_HEAD: &str = "\
# Configuration reference

Written by `pegasus_server --print-config-reference` from the declarations in the code; a test keeps this page current.
One file, `config.ini`, serves all roles; the one of the package (`config/config.ini` in the repository) tells its form at its
head. The environment (`PEGASUS__SECTION__KEY=value`, dots as underscores) wins over the file, `--set section.key=value` wins
over both. Sizes take K, M, G, T; times take ms, s, m, h, d, and a bare number
has the unit of the key's name. Keys and sections of Apache Pegasus that have no meaning here are accepted, and named once in the log.
";
