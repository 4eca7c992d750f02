//! For an operator: replicas of a node that is not running, which stood down because acknowledged writes may be missing
//! in them, count as whole again.
//!
//! In page_cache mode a replica that was there when its machine lost power waits until a member that lost nothing leads
//! its group, and learns from it. When all members lost power there is none, and nobody knows which of them lacks least
//! of what was acknowledged: so nobody decides but the operator. One copy that is taken for whole leads the group again,
//! and the others learn from it.

use anyhow::{Context, anyhow, bail, ensure};
use pegasus_storage::data_dir::{DirSpec, FoundReplica};
use pegasus_storage::{DataDirs, ReplicaMeta};
use pegasus_types::{Ballot, Gpid, Node};

use crate::Config;

/// Which replicas are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every one that stood down.
    All,
    These(Vec<Gpid>),
}

impl Which {
    /// `all`, or partitions such as `2.0,2.3`.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let gpid = |part: &str| {
            part.trim().parse().map_err(|_| format!("{part:?}: expected `all` or partitions such as 2.0,2.3"))
        };
        text.split(',').map(gpid).collect::<Result<_, _>>().map(Self::These)
    }

    fn wants(&self, gpid: Gpid) -> bool {
        match self {
            Self::All => true,
            Self::These(gpids) => gpids.contains(&gpid),
        }
    }
}

/// A replica that counts as whole from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub gpid: Gpid,
    pub ballot: Ballot,
}

/// What was done, for people.
pub fn text(accepted: &[Accepted]) -> String {
    let mut text = String::new();
    for Accepted { gpid, ballot } in accepted {
        text.push_str(&format!("{gpid}: whole from now on, ballot {ballot}; what it lacks is lost\n"));
    }
    text.push_str(&format!("{} replicas; start the node now\n", accepted.len()));
    text
}

/// Marks the replicas of the node that this configuration describes.
///
/// # Errors
/// When the node runs, when it was not started since its machine lost power (then nothing has stood down yet), or when
/// a replica that is named did not stand down; nothing is changed then.
pub fn accept(config: &Config, which: &Which) -> anyhow::Result<Vec<Accepted>> {
    let address = config.network.listen_address(config.app.ports).map_err(|why| anyhow!(why))?;
    let me = config.network.node(address.port()).map_err(|why| anyhow!(why))?;
    let specs = config.data_dirs().into_iter().map(|(tag, path)| DirSpec { tag, path });
    // Holds their locks: no server uses them meanwhile.
    let dirs = DataDirs::open(&specs.collect::<Vec<_>>(), &me, 0)
        .context("data directories (the node has to be stopped)")?;
    let mut found = Vec::new();
    for dir in dirs.usable() {
        ensure!(
            !dir.lost_power_unsynced(),
            "{}: start the node once, so that its replicas tell what they hold, compare them, and stop it again",
            dir.path().display()
        );
        for replica in dir.replicas().with_context(|| dir.path().display().to_string())? {
            let FoundReplica { gpid, path, meta } = replica;
            let meta = meta.with_context(|| path.display().to_string())?;
            if let Some(meta) = meta.filter(|meta| which.wants(gpid) && stood_down(meta, &me)) {
                found.push((gpid, path, meta));
            }
        }
    }
    if let Which::These(gpids) = which
        && let Some(gpid) = gpids.iter().find(|gpid| !found.iter().any(|(found, ..)| found == *gpid))
    {
        bail!("{gpid}: no replica of {me} that stood down; nothing was changed");
    }
    found.sort_by_key(|(gpid, ..)| *gpid);
    let mut accepted = Vec::new();
    for (gpid, path, meta) in found {
        let ballot = meta.config.ballot;
        ReplicaMeta { learning: false, ..meta }.save(&path)?;
        accepted.push(Accepted { gpid, ballot });
    }
    Ok(accepted)
}

/// A member that need not hold what a member holds. One that copies rows is no member yet.
fn stood_down(meta: &ReplicaMeta, me: &Node) -> bool {
    meta.learning && meta.config.is_member(me)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_are_meant() {
        let these = |list: &[(i32, i32)]| {
            Ok(Which::These(list.iter().map(|(app, index)| Gpid::new(*app, *index)).collect()))
        };
        for (text, expected) in
            [("all", Ok(Which::All)), ("2.0", these(&[(2, 0)])), ("2.0, 3.17", these(&[(2, 0), (3, 17)]))]
        {
            assert_eq!(Which::parse(text), expected, "{text}");
        }
        for text in ["", "2", "2.0,", "every"] {
            let why = Which::parse(text).unwrap_err();
            assert!(why.contains("2.0,2.3"), "{text}: {why}");
        }
    }
}
