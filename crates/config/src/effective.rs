//! The settings as they are in force, for `/config`, `/configs` and whoever asks.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::Place;

/// One known setting.
#[derive(Clone, Debug)]
pub struct EffectiveKey {
    pub section: String,
    pub name: String,
    pub kind: &'static str,
    pub description: String,
    pub value: String,
    pub origin: Place,
}

/// Every known setting, by the name under which `/config?name=` finds it: the key alone where it is unique
/// (as in Pegasus), else `section.key`. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Effective(Arc<BTreeMap<String, EffectiveKey>>);

impl Effective {
    pub(crate) fn new(keys: Vec<EffectiveKey>) -> Self {
        let mut sections: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for key in &keys {
            let seen = sections.entry(&key.name).or_default();
            if !seen.contains(&key.section.as_str()) {
                seen.push(&key.section);
            }
        }
        let shared: Vec<String> =
            sections.iter().filter(|(_, seen)| seen.len() > 1).map(|(name, _)| (*name).to_owned()).collect();
        let named = keys.into_iter().map(|key| {
            let name = if shared.contains(&key.name) {
                format!("{}.{}", key.section, key.name)
            } else {
                key.name.clone()
            };
            (name, key)
        });
        Self(Arc::new(named.collect()))
    }

    #[cfg(test)]
    pub(crate) fn get(&self, name: &str) -> Option<&EffectiveKey> {
        self.0.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &EffectiveKey)> {
        self.0.iter().map(|(name, key)| (name.as_str(), key))
    }
}

/// `{"<name>": {"name", "section", "type", "tags", "description", "value", "origin"}}` (shell-and-http.md 4.2).
impl Serialize for Effective {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

impl Serialize for EffectiveKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(7))?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("section", &self.section)?;
        map.serialize_entry("type", self.kind)?;
        map.serialize_entry("tags", "")?;
        map.serialize_entry("description", &self.description)?;
        map.serialize_entry("value", &self.value)?;
        map.serialize_entry("origin", &self.origin.to_string())?;
        map.end()
    }
}
