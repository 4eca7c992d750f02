//! Which names exist, and what was probably meant by one that does not.

use std::collections::{BTreeMap, BTreeSet};

use crate::ini::{self, Document};
use crate::load::{Loaded, variable_env_name};
use crate::reference_keys::REFERENCE_KEYS;
use crate::section::SectionInfo;

/// Sections of Pegasus that mean nothing here: its threads, tasks, tools and parts that we do not have.
const FOREIGN: &[&str] = &[
    "apps.",
    "block_service.",
    "components.",
    "ddl_client",
    "duplication-group",
    "fds_",
    "geo_client.",
    "http",
    "meta_server.apps.",
    "metrics",
    "nfs",
    "pegasus.clusters",
    "pegasus.collector",
    "pegasus.proxy",
    "pegasus.server",
    "policy.",
    "ranger",
    "replication.app",
    "security",
    "shell",
    "task.",
    "threadpool.",
    "tools.",
    "toollet.",
    "uri-resolver.",
    "zookeeper",
];

/// A misspelled name differs from the right one by at most this many edits, or by a third of its length.
const TYPO_EDITS_MAX: usize = 3;
/// Names in one line of what is ignored: more are counted. Pegasus's own file has fewer.
const IGNORED_NAMES_MAX: usize = 200;

/// Settings that protect something there, and what is not so here although they are true.
const UNENFORCED: &[(&str, &str, &str)] = &[
    ("meta_server", "enable_white_list", "every replica-server that reaches a meta-server may join"),
    ("security", "enable_auth", "nobody has to say who he is"),
    ("security", "mandatory_auth", "nobody has to say who he is"),
    ("security", "enable_acl", "everybody may read and change every table"),
    ("security", "enable_ranger_acl", "everybody may read and change every table"),
    ("pegasus.server", "encrypt_data_at_rest", "files are not encrypted"),
];

/// Everything that some crate declares.
pub(crate) struct Known {
    sections: BTreeMap<&'static str, SectionKeys>,
}

#[derive(Default)]
struct SectionKeys {
    keys: BTreeSet<&'static str>,
    open: bool,
}

impl Known {
    pub(crate) fn new(infos: &[&'static SectionInfo]) -> Self {
        let mut sections: BTreeMap<&'static str, SectionKeys> = BTreeMap::new();
        for info in infos {
            let section = sections.entry(info.name).or_default();
            section.keys.extend(info.keys.iter().map(|key| key.name));
            section.open |= info.open;
        }
        Self { sections }
    }

    /// The declaration that covers a section of the file.
    fn covering(&self, section: &str) -> Option<&SectionKeys> {
        self.sections.iter().find(|(name, _)| covers(name, section)).map(|(_, keys)| keys)
    }

    fn declares(&self, section: &str, key: &str) -> bool {
        if let Some(keys) = self.covering(section) {
            return keys.open || keys.keys.contains(key);
        }
        self.template_of(section).any(|keys| keys.keys.contains(key))
    }

    fn owns(&self, section: &str) -> bool {
        self.covering(section).is_some() || self.template_of(section).next().is_some()
    }

    /// For `x..default`: the declared sections `x.*`.
    fn template_of<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a SectionKeys> {
        let prefix = section.strip_suffix(".default").filter(|prefix| prefix.ends_with('.'));
        self.sections
            .iter()
            .filter(move |(name, _)| prefix.is_some_and(|p| name.starts_with(p)))
            .map(|(_, keys)| keys)
    }

    /// `section.key` taken apart, where both parts may hold dots.
    pub(crate) fn resolve<'t>(&self, name: &'t str) -> Option<(&'t str, &'t str)> {
        name.match_indices('.')
            .map(|(dot, _)| (&name[..dot], &name[dot + 1..]))
            .find(|(section, key)| !key.is_empty() && self.declares(section, key))
    }

    /// All (section, key), families for the given sections of the file.
    pub(crate) fn all_keys<'a>(
        &self,
        file_sections: impl Iterator<Item = &'a str>,
    ) -> BTreeSet<(String, String)> {
        let mut names: BTreeSet<String> = self.sections.keys().map(|s| (*s).to_owned()).collect();
        names.extend(file_sections.map(str::to_owned));
        let mut all = BTreeSet::new();
        for section in names.into_iter().filter(|name| !name.ends_with(".*")) {
            if let Some(keys) = self.covering(&section) {
                all.extend(keys.keys.iter().map(|key| (section.clone(), (*key).to_owned())));
            }
        }
        all
    }

    pub(crate) fn unknown_setting(&self, name: &str) -> String {
        let all = self.all_keys(std::iter::empty());
        let near = nearest(name, all.iter().map(|(section, key)| format!("{section}.{key}")));
        let near = near.or_else(|| {
            let key = name.rsplit('.').next().unwrap_or(name);
            all.iter().find(|(_, k)| k == key).map(|(section, key)| format!("{section}.{key}"))
        });
        format!("no such setting, and no variable of the file{}", did_you_mean(near.as_deref()))
    }

    fn suggest_key(&self, section: &str, key: &str) -> String {
        let keys: BTreeSet<&str> = self
            .covering(section)
            .into_iter()
            .chain(self.template_of(section))
            .flat_map(|s| s.keys.iter().copied())
            .collect();
        if let Some(near) = nearest(key, keys.into_iter().map(str::to_owned)) {
            return did_you_mean(Some(&near));
        }
        let elsewhere = self.sections.iter().find(|(_, s)| s.keys.contains(key)).map(|(name, _)| *name);
        elsewhere.map_or_else(String::new, |section| format!("; it belongs into [{section}]"))
    }
}

fn covers(declared: &str, section: &str) -> bool {
    match declared.strip_suffix('*') {
        Some(prefix) => {
            section.strip_prefix(prefix).is_some_and(|member| !member.is_empty() && !member.starts_with('.'))
        }
        None => declared == section,
    }
}

pub(crate) fn did_you_mean(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

/// The candidate that was probably meant.
pub(crate) fn nearest(name: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let limit = TYPO_EDITS_MAX.min(name.chars().count().div_ceil(3));
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(name, &candidate), candidate))
        .filter(|(edits, _)| *edits <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

fn is_reference_key(section: &str, key: &str) -> bool {
    let listed = |(name, keys): &(&str, &[&str])| {
        (covers(name, section) || section == format!("{}..default", name.trim_end_matches(".*")))
            && keys.contains(&key)
    };
    REFERENCE_KEYS.iter().any(listed)
}

fn is_foreign(section: &str) -> bool {
    FOREIGN
        .iter()
        .any(|name| if name.ends_with(['.', '_']) { section.starts_with(name) } else { section == *name })
}

/// Unknown names and unreplaced variables become mistakes; what is foreign or obsolete, a warning for each section.
pub(crate) fn check(known: &Known, doc: &Document, allow_unknown: bool, loaded: &mut Loaded) {
    let mut unknown = Vec::new();
    let mut ignored_sections: BTreeMap<String, usize> = BTreeMap::new();
    let mut ignored_keys: BTreeMap<&str, Vec<&str>> = BTreeMap::new();

    for (section, line) in &doc.sections {
        if known.owns(section) {
            continue;
        }
        let owned = known.sections.keys().filter(|name| !name.ends_with('*')).map(|name| (*name).to_owned());
        match nearest(section, owned).filter(|_| !is_foreign(section)) {
            Some(near) => {
                unknown.push((*line, format!("unknown section [{section}]; did you mean [{near}]?")))
            }
            None => {
                let family =
                    section.split_once('.').map_or(section.clone(), |(family, _)| format!("{family}.*"));
                *ignored_sections.entry(family).or_default() += 1;
            }
        }
    }
    for entry in doc.entries.iter().filter(|entry| known.owns(&entry.section)) {
        let (section, key) = (entry.section.as_str(), entry.key.as_str());
        if known.declares(section, key) {
            continue;
        }
        if is_reference_key(section, key) {
            ignored_keys.entry(section).or_default().push(key);
        } else {
            unknown.push((
                entry.line,
                format!("[{section}] {key}: unknown key{}", known.suggest_key(section, key)),
            ));
        }
    }
    for (line, text) in unknown {
        let place = loaded.file_place(line);
        if allow_unknown {
            loaded.warning_at(place, text);
        } else {
            loaded.mistake_at(place, text);
        }
    }
    unreplaced(known, doc, loaded);
    unenforced(known, doc, loaded);
    for text in ignored(&ignored_sections, &ignored_keys) {
        let place = loaded.file_place(0);
        loaded.warning_at(place, text);
    }
}

/// Who has set them relies on them.
fn unenforced(known: &Known, doc: &Document, loaded: &mut Loaded) {
    for (section, key, so) in UNENFORCED.iter().filter(|(section, key, _)| !known.declares(section, key)) {
        let is_set = |e: &&ini::Entry| {
            e.section == *section && e.key == *key && e.value.trim().eq_ignore_ascii_case("true")
        };
        if let Some(entry) = doc.entries.iter().find(is_set) {
            let place = loaded.file_place(entry.line);
            loaded.warning_at(place, format!("[{section}] {key} = true is NOT enforced here: {so}"));
        }
    }
}

/// One mistake per variable, with all its lines. Only where the value counts: not when a flag or the environment
/// replaces it, nor in ignored keys.
fn unreplaced(known: &Known, doc: &Document, loaded: &mut Loaded) {
    let mut lines: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut elsewhere = Vec::new();
    for ((section, key), found) in loaded.values() {
        if !known.declares(section, key) {
            continue;
        }
        let line = doc.entries.iter().find(|e| e.section == *section && e.key == *key).map_or(0, |e| e.line);
        for name in ini::variables_in(key).into_iter().chain(ini::variables_in(&found.text)) {
            if matches!(found.place, crate::Place::File { .. }) {
                lines.entry(name.to_owned()).or_default().push(line);
            } else {
                elsewhere.push((found.place.clone(), format!("variable %{{{name}}} has no value")));
            }
        }
    }
    for (place, text) in elsewhere {
        loaded.mistake_at(place, text);
    }
    for (name, mut at) in lines {
        at.sort_unstable();
        at.dedup();
        let (first, more) = at.split_first().map_or((0, &[][..]), |(first, more)| (*first, more));
        let also = match more {
            [] => String::new(),
            more => {
                format!(" (also in line {})", more.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))
            }
        };
        let place = loaded.file_place(first);
        loaded.mistake_at(
            place,
            format!(
                "variable %{{{name}}} has no value{also}: replace it in the file, or give --set {name}=VALUE or {}",
                variable_env_name(&name)
            ),
        );
    }
}

/// A line for all foreign sections, and one for the keys of each other section.
fn ignored(sections: &BTreeMap<String, usize>, keys: &BTreeMap<&str, Vec<&str>>) -> Vec<String> {
    const IGNORED: &str = "ignored, without a meaning here:";
    let mut lines = Vec::new();
    if !sections.is_empty() {
        let names = sections.iter().map(|(name, count)| match count {
            1 => format!("[{name}]"),
            _ => format!("[{name}] ({count})"),
        });
        let count = sections.values().sum::<usize>();
        lines.push(format!("{IGNORED} {count} sections: {}", shortened(names)));
    }
    // Of sections that are declared: there are a dozen.
    for (section, keys) in keys {
        let names = keys.iter().map(|key| (*key).to_owned());
        lines.push(format!("{IGNORED} [{section}] {}", shortened(names)));
    }
    lines
}

fn shortened(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<_> = names.collect();
    let more = names.len().saturating_sub(IGNORED_NAMES_MAX);
    names.truncate(IGNORED_NAMES_MAX);
    let listed = names.join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}
