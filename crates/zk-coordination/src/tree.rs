//! Every path under `cluster_root` (operations.md 13).

use pegasus_types::{AppId, Gpid};

/// Paths of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    root: String,
}

impl Tree {
    /// `cluster_root` as configured, for example `/pegasus/onebox`; `/` or empty = paths from the top.
    pub fn new(cluster_root: &str) -> Self {
        let parts = cluster_root.split('/').filter(|part| !part.is_empty());
        Self { root: parts.map(|part| format!("/{part}")).collect() }
    }

    /// Of the cluster itself; empty when paths start at the top.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Everything of the cluster that lasts lies in or below these. Not the leader's lock and epoch: they belong
    /// to the store that they are in.
    pub fn lasting(&self) -> [String; 5] {
        let below = |name| format!("{}/{name}", self.root);
        [self.cluster_id(), self.apps(), self.drained(), below("backup"), below("bulk_load")]
    }

    /// Nodes that operators drain. The reference has no such node.
    pub fn drained(&self) -> String {
        format!("{}/drained_nodes", self.root)
    }

    /// UUID of the cluster, made once (safety-rules.md 4.3). The reference has no such node.
    pub fn cluster_id(&self) -> String {
        format!("{}/cluster_id", self.root)
    }

    /// Number of the last leader's reign, decimal: one more with each leader. The reference has no such node.
    pub fn leader_epoch(&self) -> String {
        format!("{}/leader_epoch", self.root)
    }

    /// Where the meta-servers stand in line for the leader's role. `lock_root` as in `[meta_server]
    /// distributed_lock_service_parameters`; empty = `lock` below the cluster's root.
    pub fn leader_lock(&self, lock_root: &str) -> String {
        let lock_root = Self::new(lock_root).root;
        let lock_root = if lock_root.is_empty() { format!("{}/lock", self.root) } else { lock_root };
        format!("{lock_root}/dsn.meta.server.leader")
    }

    /// Text `lock` while a first, large write runs, else `unlock`.
    pub fn apps(&self) -> String {
        format!("{}/apps", self.root)
    }

    pub fn app(&self, app_id: AppId) -> String {
        format!("{}/apps/{app_id}", self.root)
    }

    pub fn partition(&self, gpid: Gpid) -> String {
        format!("{}/apps/{}/{}", self.root, gpid.app_id, gpid.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_operators_know_them() {
        for (root, app) in
            [("/pegasus/c1", "/pegasus/c1/apps/2"), ("pegasus/c1/", "/pegasus/c1/apps/2"), ("/", "/apps/2")]
        {
            assert_eq!(Tree::new(root).app(2), app);
        }
        let tree = Tree::new("/pegasus/c1");
        assert_eq!(tree.partition(Gpid::new(2, 7)), "/pegasus/c1/apps/2/7");
        assert_eq!(tree.leader_lock(""), "/pegasus/c1/lock/dsn.meta.server.leader");
        assert_eq!(tree.leader_lock("/locks/"), "/locks/dsn.meta.server.leader");
        assert_eq!((tree.root(), Tree::new("").root()), ("/pegasus/c1", ""));
    }
}
