//! File, environment and flags laid over one another (figment), checked, and handed out section by section.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use crate::ini::{self, Document};
use crate::known::{self, Known};
use crate::mistake::{Mistake, Mistakes, Place};
use crate::section::{Reader, Section, SectionInfo};
use crate::{Effective, EffectiveKey};

/// Settings from the environment start with this: `PEGASUS__META_SERVER__SERVER_LIST`.
pub(crate) const ENV_PREFIX: &str = "PEGASUS__";
/// Values of variables from the environment: `PEGASUS__VAR__CLUSTER_NAME` for `%{cluster.name}`.
const ENV_VARIABLE_PREFIX: &str = "PEGASUS__VAR__";
/// Pegasus's own file has 60 KiB; anything beyond this is not a configuration.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Where the settings come from, the later ones win: file, environment, flags.
#[derive(Debug, Default)]
pub struct Sources {
    input: Input,
    env: Vec<(String, String)>,
    sets: Vec<String>,
    cargs: Vec<String>,
    allow_unknown_keys: bool,
}

#[derive(Debug, Default)]
enum Input {
    #[default]
    Nothing,
    File(PathBuf),
    Text {
        name: String,
        text: String,
    },
}

impl Sources {
    /// The file and the environment of this process.
    pub fn file(path: impl AsRef<Path>) -> Self {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with(ENV_PREFIX))
            .collect();
        Self { input: Input::File(path.as_ref().to_owned()), env, ..Self::default() }
    }

    /// Text alone, without the environment: for tests and tools.
    pub fn text(name: &str, text: &str) -> Self {
        Self { input: Input::Text { name: name.to_owned(), text: text.to_owned() }, ..Self::default() }
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `section.key=value`; or `name=value` for a variable `%{name}` of the file.
    #[must_use]
    pub fn set(mut self, text: &str) -> Self {
        self.sets.push(text.to_owned());
        self
    }

    /// Pegasus's `-cargs`: `name=value;name=value` (or commas) for `%name%` and `%{name}`.
    #[must_use]
    pub fn cargs(mut self, text: &str) -> Self {
        self.cargs.push(text.to_owned());
        self
    }

    /// Unknown keys in owned sections become warnings.
    #[must_use]
    pub fn allow_unknown_keys(mut self, allow: bool) -> Self {
        self.allow_unknown_keys = allow;
        self
    }

    /// Reads everything and checks names and variables against `sections`, which must be those of *all* roles:
    /// one file serves them all. Never fails: mistakes wait for [`Loaded::finish`].
    pub fn load(self, sections: &[&'static SectionInfo]) -> Loaded {
        let known = Known::new(sections);
        let mut mistakes = Vec::new();
        let (file, text) = self.input.read(&mut mistakes);

        let mut variables = BTreeMap::new();
        for name in text.as_deref().into_iter().flat_map(ini::variables_in) {
            if let Some((_, value)) = self.env.iter().find(|(env, _)| *env == variable_env_name(name)) {
                variables.insert(name.to_owned(), value.clone());
            }
        }
        for item in self.cargs.iter().flat_map(|all| all.split([';', ','])).map(str::trim) {
            match item.split_once('=') {
                Some((name, value)) => {
                    drop(variables.insert(name.trim().to_owned(), value.trim().to_owned()))
                }
                None if item.is_empty() => {}
                None => mistakes.push(flag_mistake(item, "expected name=value")),
            }
        }
        let mut flags = Layer { name: "flags", values: BTreeMap::new() };
        for set in &self.sets {
            let Some((name, value)) = set.split_once('=').map(|(n, v)| (n.trim(), v.trim())) else {
                mistakes.push(flag_mistake(set, "expected section.key=value"));
                continue;
            };
            if let Some((section, key)) = known.resolve(name) {
                flags.values.insert((section.to_owned(), key.to_owned()), value.to_owned());
            } else if text.as_deref().is_some_and(|t| ini::variables_in(t).contains(&name)) {
                variables.insert(name.to_owned(), value.to_owned());
            } else {
                mistakes.push(flag_mistake(name, &known.unknown_setting(name)));
            }
        }

        let doc = match &text {
            Some(text) => ini::parse(&file, text, &variables),
            None => Document::default(),
        };
        if let Some(text) = &text
            && doc.sections.is_empty()
            && doc.mistakes.is_empty()
        {
            let what = if text.trim().is_empty() { "is empty" } else { "has no [section]" };
            mistakes
                .push(Mistake { place: Place::File { name: file.clone(), line: 0 }, text: what.to_owned() });
        }

        let (env, env_names) = self.env_layer(&known, &doc, &mut mistakes);
        let figment = Figment::new().merge(Layer::of(&doc)).merge(env).merge(flags);
        let values = found(&figment, &file, &doc, &env_names);

        let mut loaded = Loaded {
            file,
            section_lines: doc.sections.iter().cloned().collect(),
            values,
            known: sections.to_vec(),
            unreadable: text.is_none() && !matches!(self.input, Input::Nothing),
            mistakes,
            warnings: doc.warnings.clone(),
        };
        if loaded.unreadable {
            return loaded;
        }
        loaded.mistakes.extend(doc.mistakes.iter().cloned());
        known::check(&known, &doc, self.allow_unknown_keys, &mut loaded);
        loaded
    }

    fn env_layer(
        &self,
        known: &Known,
        doc: &Document,
        mistakes: &mut Vec<Mistake>,
    ) -> (Layer, BTreeMap<(String, String), String>) {
        let mut layer = Layer { name: "environment", values: BTreeMap::new() };
        let mut names = BTreeMap::new();
        let candidates = known.all_keys(doc.sections.iter().map(|(name, _)| name.as_str()));
        for (name, value) in &self.env {
            if name.starts_with(ENV_VARIABLE_PREFIX) || !name.starts_with(ENV_PREFIX) {
                continue;
            }
            match candidates.iter().find(|(section, key)| env_name(section, key) == *name) {
                Some(found) => {
                    layer.values.insert(found.clone(), value.trim().to_owned());
                    names.insert(found.clone(), name.clone());
                }
                None => {
                    let near = known::nearest(name, candidates.iter().map(|(s, k)| env_name(s, k)));
                    mistakes.push(Mistake {
                        place: Place::Env(name.clone()),
                        text: format!("no such setting{}", known::did_you_mean(near.as_deref())),
                    });
                }
            }
        }
        (layer, names)
    }
}

impl Input {
    fn read(&self, mistakes: &mut Vec<Mistake>) -> (Arc<str>, Option<String>) {
        let path = match self {
            Self::Nothing => return (Arc::from("(no file)"), None),
            Self::Text { name, text } => return (Arc::from(name.as_str()), Some(text.clone())),
            Self::File(path) => path,
        };
        let name: Arc<str> = Arc::from(path.display().to_string());
        let mut fail =
            |line, text| mistakes.push(Mistake { place: Place::File { name: name.clone(), line }, text });
        let text = match std::fs::metadata(path) {
            Ok(meta) if meta.len() > FILE_BYTES_MAX => {
                fail(0, format!("has {} bytes, more than any configuration", meta.len()));
                None
            }
            Ok(_) => match std::fs::read(path).map(String::from_utf8) {
                Ok(Ok(text)) => Some(text),
                Ok(Err(error)) => {
                    let good = error.utf8_error().valid_up_to();
                    let lines = error.as_bytes().iter().take(good).filter(|b| **b == b'\n').count();
                    fail(u32::try_from(lines + 1).unwrap_or(0), "is not UTF-8 text".to_owned());
                    None
                }
                Err(error) => {
                    fail(0, format!("cannot be read: {error}"));
                    None
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fail(
                    0,
                    "is not there; pegasus_server --print-default-config writes one to begin with".to_owned(),
                );
                None
            }
            Err(error) => {
                fail(0, format!("cannot be read: {error}"));
                None
            }
        };
        (name, text)
    }
}

fn flag_mistake(flag: &str, text: &str) -> Mistake {
    Mistake { place: Place::Flag(flag.to_owned()), text: text.to_owned() }
}

fn upper(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// Environment variable of a setting: `PEGASUS__META_SERVER__SERVER_LIST`.
pub(crate) fn env_name(section: &str, key: &str) -> String {
    format!("{ENV_PREFIX}{}__{}", upper(section), upper(key))
}

pub(crate) fn variable_env_name(variable: &str) -> String {
    format!("{ENV_VARIABLE_PREFIX}{}", upper(variable))
}

/// One figment provider. Values stay text: the section that asks for one knows its type.
struct Layer {
    name: &'static str,
    values: BTreeMap<(String, String), String>,
}

const FILE_LAYER: &str = "file";

impl Layer {
    fn of(doc: &Document) -> Self {
        let values =
            doc.entries.iter().map(|e| ((e.section.clone(), e.key.clone()), e.value.clone())).collect();
        Self { name: FILE_LAYER, values }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let mut sections: BTreeMap<&str, Dict> = BTreeMap::new();
        for ((section, key), value) in &self.values {
            sections.entry(section).or_default().insert(key.clone(), Value::from(value.clone()));
        }
        let dict = sections.into_iter().map(|(name, keys)| (name.to_owned(), Value::from(keys))).collect();
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

/// What figment's layers agreed on, each value with its place.
fn found(
    figment: &Figment,
    file: &Arc<str>,
    doc: &Document,
    env_names: &BTreeMap<(String, String), String>,
) -> BTreeMap<(String, String), Found> {
    let lines: BTreeMap<(&str, &str), u32> =
        doc.entries.iter().map(|e| ((e.section.as_str(), e.key.as_str()), e.line)).collect();
    let profiles = figment.data().unwrap_or_default(); // our providers never fail
    let mut values = BTreeMap::new();
    for (section, dict) in profiles.into_values().flatten() {
        let Some(keys) = dict.into_dict() else { continue };
        for (key, value) in keys {
            let layer = figment.get_metadata(value.tag()).map_or("", |m| &*m.name).to_owned();
            let Some(text) = value.into_string() else { continue };
            let at = (section.clone(), key);
            let place = match (layer.as_str(), env_names.get(&at)) {
                (FILE_LAYER, _) => Place::File {
                    name: file.clone(),
                    line: lines.get(&(at.0.as_str(), at.1.as_str())).copied().unwrap_or(0),
                },
                ("environment", Some(name)) => Place::Env(name.clone()),
                _ => Place::Flag(format!("{}.{}", at.0, at.1)),
            };
            values.insert(at, Found { text, place });
        }
    }
    values
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub text: String,
    pub place: Place,
}

impl Found {
    pub(crate) fn has_variable(&self) -> bool {
        !ini::variables_in(&self.text).is_empty()
    }
}

/// The settings, read but not yet accepted: sections are taken out, rules add mistakes, [`finish`](Self::finish)
/// says whether the daemon may start.
#[derive(Debug)]
pub struct Loaded {
    file: Arc<str>,
    section_lines: BTreeMap<String, u32>,
    values: BTreeMap<(String, String), Found>,
    known: Vec<&'static SectionInfo>,
    /// The file could not be read: all else that is missing comes from that.
    unreadable: bool,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

impl Loaded {
    /// Takes a section. Wrong values are recorded and replaced by their defaults.
    pub fn section<T: Section>(&mut self) -> T {
        T::read(&mut Reader { loaded: self, section: T::INFO.name })
    }

    /// Takes all members of a family such as `meta_server.apps.*`, by the part of their name that `*` stands for.
    pub fn family<T: Section>(&mut self) -> BTreeMap<String, T> {
        let prefix = T::INFO.name.trim_end_matches('*');
        let mut members = BTreeSet::new();
        for section in self.section_lines.keys().chain(self.values.keys().map(|(section, _)| section)) {
            if let Some(member) = section.strip_prefix(prefix)
                && !member.starts_with('.')
            {
                members.insert((member.to_owned(), section.clone()));
            }
        }
        members
            .into_iter()
            .map(|(member, section)| (member, T::read(&mut Reader { loaded: self, section: &section })))
            .collect()
    }

    /// True when the file has this section.
    pub fn has_section(&self, section: &str) -> bool {
        self.section_lines.contains_key(section)
    }

    /// True when the value still has a `%{variable}` in it, which is told as a mistake of its own.
    pub fn has_variable(&self, section: &str, key: &str) -> bool {
        self.find(section, key).is_some_and(Found::has_variable)
    }

    /// Records a broken rule; the place is where `key` was written, else where its section begins.
    pub fn mistake(&mut self, section: &str, key: &str, text: impl std::fmt::Display) {
        let place = self.place(section, key);
        self.mistake_at(place, format!("[{section}] {key}: {text}"));
    }

    /// Records something odd that does not keep the daemon from starting.
    pub fn warning(&mut self, section: &str, key: &str, text: impl std::fmt::Display) {
        let place = self.place(section, key);
        self.warnings.push(Mistake { place, text: format!("[{section}] {key}: {text}") });
    }

    /// Every known setting with its text, for `/config` and the log.
    pub fn effective(&self) -> Effective {
        let mut keys = Vec::new();
        for info in &self.known {
            for (section, key) in
                self.members(info).into_iter().flat_map(|s| info.keys.iter().map(move |k| (s.clone(), k)))
            {
                let found = self.find(&section, key.name);
                keys.push(EffectiveKey {
                    name: key.name.to_owned(),
                    kind: key.kind,
                    description: key.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "),
                    value: found.map_or_else(key.default, |f| f.text.clone()),
                    origin: found.map_or(Place::Default, |f| f.place.clone()),
                    section,
                });
            }
        }
        Effective::new(keys)
    }

    /// The warnings, or everything that is wrong.
    pub fn finish(mut self) -> Result<Vec<Mistake>, Mistakes> {
        self.mistakes.sort();
        self.mistakes.dedup();
        if self.mistakes.is_empty() { Ok(self.warnings) } else { Err(Mistakes(self.mistakes)) }
    }

    /// `[x.y] key`, else `[x..default] key`.
    pub(crate) fn find(&self, section: &str, key: &str) -> Option<&Found> {
        let own = self.values.get(&(section.to_owned(), key.to_owned()));
        own.or_else(|| {
            let (family, _) = section.rsplit_once('.')?;
            self.values.get(&(format!("{family}..default"), key.to_owned()))
        })
    }

    pub(crate) fn mistake_at(&mut self, place: Place, text: String) {
        if self.unreadable {
            return;
        }
        self.mistakes.push(Mistake { place, text });
    }

    pub(crate) fn warning_at(&mut self, place: Place, text: String) {
        self.warnings.push(Mistake { place, text });
    }

    pub(crate) fn values(&self) -> &BTreeMap<(String, String), Found> {
        &self.values
    }

    pub(crate) fn file_place(&self, line: u32) -> Place {
        Place::File { name: self.file.clone(), line }
    }

    fn place(&self, section: &str, key: &str) -> Place {
        match self.find(section, key) {
            Some(found) => found.place.clone(),
            None => self.file_place(self.section_lines.get(section).copied().unwrap_or(0)),
        }
    }

    fn members(&self, info: &SectionInfo) -> Vec<String> {
        match info.name.strip_suffix('*') {
            None => vec![info.name.to_owned()],
            Some(prefix) => {
                let member = |s: &&String| s.strip_prefix(prefix).is_some_and(|m| !m.starts_with('.'));
                self.section_lines.keys().filter(member).cloned().collect()
            }
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
