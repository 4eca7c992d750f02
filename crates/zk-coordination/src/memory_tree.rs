//! The tree as a value: what a store holds, and what operations do to it. Shared by the memory store and
//! the simulation; the embedded store holds one in front of its disk.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::store::{Datum, Mode, Op, OpResult, StoreError, Version, check_ops, check_path};

/// Whose ephemeral nodes.
pub type SessionId = u64;

#[derive(Clone, Debug, PartialEq, Eq)]
struct TreeNode {
    datum: Datum,
    owner: Option<SessionId>,
    /// Number of the next sequential child.
    next_child: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTree {
    nodes: BTreeMap<String, TreeNode>,
}

/// What an accepted multi changed, for watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Nodes created, set or deleted.
    pub nodes: BTreeSet<String>,
    /// Nodes whose list of children changed.
    pub parents: BTreeSet<String>,
}

/// A multi that was checked and not yet carried out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// None = deleted.
    written: BTreeMap<String, Option<TreeNode>>,
    results: Vec<OpResult>,
    changed: Changed,
}

/// Kind, version and next child's number before a node's bytes in a record.
const RECORD_HEAD: usize = 1 + 4 + 4;
const PERSISTENT: u8 = 0;
const EPHEMERAL: u8 = 1;

impl Plan {
    /// What a durable store has to write: path and record, None = remove.
    pub fn records(&self) -> impl Iterator<Item = (&str, Option<Vec<u8>>)> {
        self.written.iter().map(|(path, node)| {
            let record = node.as_ref().map(|node| {
                let mut record = Vec::with_capacity(RECORD_HEAD + node.datum.bytes.len());
                record.push(if node.owner.is_some() { EPHEMERAL } else { PERSISTENT });
                record.extend_from_slice(&node.datum.version.to_le_bytes());
                record.extend_from_slice(&node.next_child.to_le_bytes());
                record.extend_from_slice(&node.datum.bytes);
                record
            });
            (path.as_str(), record)
        })
    }
}

impl MemoryTree {
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn get(&self, path: &str) -> Result<Option<Datum>, StoreError> {
        check_path(path)?;
        Ok(self.nodes.get(path).map(|node| node.datum.clone()))
    }

    pub fn children(&self, path: &str) -> Result<Vec<String>, StoreError> {
        check_path(path)?;
        if !self.nodes.contains_key(path) {
            return Err(StoreError::NoNode(path.into()));
        }
        Ok(child_names(self.nodes.range(format!("{path}/")..).map(|(key, _)| key.as_str()), path))
    }

    /// All or nothing.
    pub fn multi(&mut self, session: SessionId, ops: &[Op]) -> Result<(Vec<OpResult>, Changed), StoreError> {
        let plan = self.plan(session, ops)?;
        Ok(self.commit(plan))
    }

    /// Checks a multi and works out its effect, without having it.
    pub fn plan(&self, session: SessionId, ops: &[Op]) -> Result<Plan, StoreError> {
        check_ops(ops)?;
        let mut draft = Draft { tree: self, written: BTreeMap::new() };
        let mut changed = Changed::default();
        let apply = |op| draft.apply(session, op, &mut changed);
        let results = ops.iter().map(apply).collect::<Result<_, _>>()?;
        Ok(Plan { written: draft.written, results, changed })
    }

    /// The plan must be the last one made of this tree.
    pub fn commit(&mut self, plan: Plan) -> (Vec<OpResult>, Changed) {
        for (path, node) in plan.written {
            match node {
                Some(node) => drop(self.nodes.insert(path, node)),
                None => drop(self.nodes.remove(&path)),
            }
        }
        (plan.results, plan.changed)
    }

    /// Puts back a node as [`Plan::records`] wrote it. Ephemeral nodes are of a session that is over: they
    /// are dropped. False when the record is malformed.
    pub fn restore(&mut self, path: &str, record: &[u8]) -> bool {
        let Some((head, bytes)) = record.split_first_chunk::<RECORD_HEAD>() else { return false };
        let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        let node = TreeNode {
            datum: Datum { bytes: Bytes::copy_from_slice(bytes), version: i32::from_le_bytes(word(1)) },
            owner: None,
            next_child: u32::from_le_bytes(word(5)),
        };
        if head[0] == PERSISTENT && check_path(path).is_ok() {
            self.nodes.insert(path.into(), node);
        }
        head[0] <= EPHEMERAL
    }

    /// Removes the ephemeral nodes of a session.
    pub fn end_session(&mut self, session: SessionId) -> Changed {
        let mine = |node: &TreeNode| node.owner == Some(session);
        let paths: Vec<String> =
            self.nodes.iter().filter(|(_, node)| mine(node)).map(|(path, _)| path.clone()).collect();
        let mut changed = Changed::default();
        for path in paths {
            self.nodes.remove(&path);
            changed.parents.extend(parent(&path).map(str::to_owned));
            changed.nodes.insert(path);
        }
        changed
    }
}

/// Direct children among sorted keys that start at `path/`.
pub(crate) fn child_names<'a>(keys: impl Iterator<Item = &'a str>, path: &str) -> Vec<String> {
    keys.map_while(|key| key.strip_prefix(path)?.strip_prefix('/'))
        .filter(|rest| !rest.contains('/'))
        .map(str::to_owned)
        .collect()
}

/// None for a child of the root, which always exists.
pub(crate) fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent).filter(|parent| !parent.is_empty())
}

/// The tree with the operations of one multi on top. None = deleted.
struct Draft<'a> {
    tree: &'a MemoryTree,
    written: BTreeMap<String, Option<TreeNode>>,
}

impl Draft<'_> {
    fn find(&self, path: &str) -> Option<&TreeNode> {
        match self.written.get(path) {
            Some(node) => node.as_ref(),
            None => self.tree.nodes.get(path),
        }
    }

    fn at_version(&self, path: &str, version: Option<Version>) -> Result<TreeNode, StoreError> {
        let node = self.find(path).ok_or_else(|| StoreError::NoNode(path.into()))?;
        match version {
            Some(wanted) if wanted != node.datum.version => {
                Err(StoreError::BadVersion { path: path.into(), wanted })
            }
            _ => Ok(node.clone()),
        }
    }

    fn has_children(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        let in_tree = self.tree.nodes.range(prefix.clone()..).map(|(key, _)| key);
        let written = self.written.range(prefix.clone()..).map(|(key, _)| key);
        let below = |key: &&String| key.starts_with(&prefix);
        in_tree.take_while(below).chain(written.take_while(below)).any(|key| self.find(key).is_some())
    }

    fn apply(&mut self, session: SessionId, op: &Op, changed: &mut Changed) -> Result<OpResult, StoreError> {
        match op {
            Op::Create { path, bytes, mode } => self.create(session, path, bytes, *mode, changed),
            Op::Set { path, bytes, version } => {
                let mut node = self.at_version(path, *version)?;
                node.datum = Datum { bytes: bytes.clone(), version: node.datum.version.wrapping_add(1) };
                let result = OpResult::Set(node.datum.version);
                self.written.insert(path.clone(), Some(node));
                changed.nodes.insert(path.clone());
                Ok(result)
            }
            Op::Delete { path, version } => {
                self.at_version(path, *version)?;
                if self.has_children(path) {
                    return Err(StoreError::NotEmpty(path.clone()));
                }
                self.written.insert(path.clone(), None);
                changed.nodes.insert(path.clone());
                changed.parents.extend(parent(path).map(str::to_owned));
                Ok(OpResult::Deleted)
            }
            Op::Check { path, version } => self.at_version(path, *version).map(|_| OpResult::Checked),
        }
    }

    fn create(
        &mut self,
        session: SessionId,
        path: &str,
        bytes: &Bytes,
        mode: Mode,
        changed: &mut Changed,
    ) -> Result<OpResult, StoreError> {
        let mut path = path.to_owned();
        if let Some(parent) = parent(&path).map(str::to_owned) {
            let mut node = self.at_version(&parent, None)?;
            if node.owner.is_some() {
                return Err(StoreError::NoChildren(parent));
            }
            if mode == Mode::EphemeralSequential {
                path = format!("{path}{:010}", node.next_child);
                node.next_child += 1;
                self.written.insert(parent.clone(), Some(node));
            }
            changed.parents.insert(parent);
        }
        if self.find(&path).is_some() {
            return Err(StoreError::NodeExists(path));
        }
        let node = TreeNode {
            datum: Datum { bytes: bytes.clone(), version: 0 },
            owner: (mode != Mode::Persistent).then_some(session),
            next_child: 0,
        };
        self.written.insert(path.clone(), Some(node));
        changed.nodes.insert(path.clone());
        Ok(OpResult::Created(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> MemoryTree {
        let mut tree = MemoryTree::default();
        for path in paths {
            tree.multi(1, &[Op::create(*path, "x")]).unwrap();
        }
        tree
    }

    #[test]
    fn conditions_and_their_errors() {
        let delete = |path: &str, version| Op::Delete { path: path.into(), version };
        let check = |path: &str, version| Op::Check { path: path.into(), version };
        let set = |path: &str, version| Op::Set { path: path.into(), bytes: "y".into(), version };
        let no = |path: &str| StoreError::NoNode(path.into());
        let bad = |path: &str, wanted| StoreError::BadVersion { path: path.into(), wanted };
        for (ops, want) in [
            (vec![set("/a", Some(0))], Ok(())),
            (vec![set("/a", None), set("/a", Some(1)), check("/a", Some(2))], Ok(())),
            (vec![set("/a", Some(1))], Err(bad("/a", 1))),
            (vec![set("/x", None)], Err(no("/x"))),
            (vec![Op::create("/a", "")], Err(StoreError::NodeExists("/a".into()))),
            (vec![Op::create("/x/y", "")], Err(no("/x"))),
            (vec![Op::create("/x", ""), Op::create("/x/y", "")], Ok(())),
            (vec![delete("/a", None)], Err(StoreError::NotEmpty("/a".into()))),
            (vec![delete("/a/b", Some(0)), delete("/a", Some(0))], Ok(())),
            (vec![delete("/a/b", None), Op::create("/a/b", "")], Ok(())),
            (vec![check("/a", Some(3))], Err(bad("/a", 3))),
            (vec![set("/a", None), check("/q", None)], Err(no("/q"))),
            (vec![Op::create("a", "")], Err(StoreError::BadPath("a".into()))),
            (vec![Op::create("/a//b", "")], Err(StoreError::BadPath("/a//b".into()))),
            (vec![Op::create("/", "")], Err(StoreError::BadPath("/".into()))),
        ] {
            let before = tree(&["/a", "/a/b", "/ab"]);
            let mut after = before.clone();
            let got = after.multi(1, &ops).map(drop);
            assert_eq!(got, want, "{ops:?}");
            assert_eq!(after == before, want.is_err(), "a failed multi changes nothing: {ops:?}");
        }
    }

    #[test]
    fn children_are_direct_and_sorted() {
        let tree = tree(&["/a", "/a/2", "/a/10", "/a/2/x", "/ab"]);
        assert_eq!(tree.children("/a").unwrap(), ["10", "2"]);
        assert_eq!(tree.children("/ab").unwrap(), [""; 0]);
        assert_eq!(tree.children("/none"), Err(StoreError::NoNode("/none".into())));
    }

    #[test]
    fn ephemerals_are_numbered_and_end_with_their_session() {
        let mut tree = tree(&["/e"]);
        let join = |path: &str| Op::Create {
            path: path.into(),
            bytes: Bytes::new(),
            mode: Mode::EphemeralSequential,
        };
        for (session, want) in [(1, "/e/n0000000000"), (2, "/e/n0000000001"), (1, "/e/n0000000002")] {
            let (results, _) = tree.multi(session, &[join("/e/n")]).unwrap();
            assert_eq!(results, [OpResult::Created(want.into())]);
        }
        let changed = tree.end_session(1);
        assert_eq!(changed.parents, ["/e".to_owned()].into());
        assert_eq!(tree.children("/e").unwrap(), ["n0000000001"]);
        let (results, _) = tree.multi(1, &[join("/e/n")]).unwrap();
        assert_eq!(results, [OpResult::Created("/e/n0000000003".into())], "numbers never return");
    }

    #[test]
    fn too_large() {
        let big = |n| Op::create("/big", vec![0; n]);
        let mut tree = MemoryTree::default();
        let too_large = |r| matches!(r, Err(StoreError::TooLarge { .. }));
        assert!(too_large(tree.multi(1, &[big(crate::store::MAX_NODE_BYTES)])));
        assert!(too_large(tree.multi(1, &[Op::create("/a", ""), big(crate::store::MAX_MULTI_BYTES)])));
        assert!(tree.multi(1, &[big(crate::store::MAX_MULTI_BYTES)]).is_ok());
    }
}
