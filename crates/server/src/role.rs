//! The roles, by the names that operators use.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Meta,
    Replica,
    Collector,
}

impl Role {
    /// In the order of their start.
    pub const ALL: [Self; 3] = [Self::Meta, Self::Replica, Self::Collector];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Replica => "replica",
            Self::Collector => "collector",
        }
    }

    /// `meta,replica`, also with Pegasus's `;` and its instance number: `meta@1`.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut roles = Vec::new();
        for item in text.split([',', ';']).map(str::trim).filter(|item| !item.is_empty()) {
            let (name, instance) = item.split_once('@').unwrap_or((item, "1"));
            let role = Self::ALL.into_iter().find(|role| role.name() == name);
            let role =
                role.ok_or_else(|| format!("{name:?} is no role: expected meta, replica or collector"))?;
            if instance != "1" {
                return Err(format!(
                    "{item:?}: a process has one {name}; start another process with its own file"
                ));
            }
            if roles.contains(&role) {
                return Err(format!("{name} stands twice"));
            }
            roles.push(role);
        }
        if roles.is_empty() {
            return Err("no role given: expected meta, replica or collector".to_owned());
        }
        roles.sort();
        Ok(roles)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(Role::parse_list("replica, meta"), Ok(vec![Role::Meta, Role::Replica]));
        assert_eq!(Role::parse_list("collector@1;replica@1"), Ok(vec![Role::Replica, Role::Collector]));
        for bad in ["", ",", "proxy", "meta,meta", "replica@2"] {
            assert!(Role::parse_list(bad).is_err(), "{bad}");
        }
    }
}
