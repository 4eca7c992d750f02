//! Tables: whoever was told that one is there finds it, whoever leads; a dropped one stays dropped.

use std::collections::BTreeMap;

use pegasus_placement::view::ClusterView;
use pegasus_types::AppId;

#[derive(Debug, PartialEq, Eq)]
enum Known {
    Live,
    Dropped,
    /// Something is under way, or nobody knows how it ended: one of the two.
    Either,
}

#[derive(Debug, Default)]
pub struct Tables {
    known: BTreeMap<AppId, (String, Known)>,
    pub created: u64,
    pub dropped: u64,
    pub recalled: u64,
}

impl Tables {
    /// # Errors
    /// The number belongs to another table.
    pub fn created(&mut self, app_id: AppId, name: &str) -> Result<(), String> {
        self.created += 1;
        match self.known.insert(app_id, (name.to_owned(), Known::Live)) {
            Some((other, _)) if other != name => Err(format!("tables {other} and {name} both got {app_id}")),
            _ => Ok(()),
        }
    }

    /// A drop or recall is asked for.
    pub fn in_doubt(&mut self, app_id: AppId) {
        if let Some((_, known)) = self.known.get_mut(&app_id) {
            *known = Known::Either;
        }
    }

    pub fn dropped(&mut self, app_id: AppId) {
        self.dropped += 1;
        if let Some((_, known)) = self.known.get_mut(&app_id) {
            *known = Known::Dropped;
        }
    }

    pub fn recalled(&mut self, app_id: AppId) {
        self.recalled += 1;
        if let Some((_, known)) = self.known.get_mut(&app_id) {
            *known = Known::Live;
        }
    }

    /// # Errors
    /// The store holds something else than what was told.
    pub fn written(&self, view: &ClusterView) -> Result<(), String> {
        for (app_id, (name, known)) in &self.known {
            let Some(table) = view.table(*app_id) else {
                return Err(format!("table {name} with number {app_id} was created, and is lost"));
            };
            let says = match known {
                Known::Live if table.is_dropped() => "is dropped, which nobody asked for",
                Known::Dropped if !table.is_dropped() => "was dropped, and is there",
                _ if table.info.name != *name => "has another name",
                _ => continue,
            };
            return Err(format!("table {name} with number {app_id} {says}"));
        }
        Ok(())
    }
}
