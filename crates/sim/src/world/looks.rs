//! What can be asked of the cluster: by scripts, and at the end of a run.

use pegasus_types::meta::ReplicaStatus;
use pegasus_types::{Gpid, Node};

use super::World;
use crate::host::Host;
use crate::workload::Workload;

impl World {
    fn member(&self, gpid: Gpid, index: usize) -> Option<usize> {
        Host::index(self.store.config(gpid)?.members().nth(index)?)
    }

    pub fn primary(&self, gpid: Gpid) -> Option<usize> {
        Host::index(self.store.config(gpid)?.primary.as_ref()?)
    }

    /// Beginning with 1.
    pub fn secondary(&self, gpid: Gpid, number: usize) -> Option<usize> {
        self.member(gpid, number).filter(|_| number > 0)
    }

    /// How many primaries each machine has.
    pub fn primaries(&self) -> Vec<usize> {
        let mut counts = vec![0; self.hosts.len()];
        for host in self.gpids.iter().filter_map(|gpid| self.primary(*gpid)) {
            counts[host] += 1;
        }
        counts
    }

    /// How many replicas each machine has, primaries included.
    pub fn copies(&self) -> Vec<usize> {
        let mut counts = vec![0; self.hosts.len()];
        let configs = self.gpids.iter().filter_map(|gpid| self.store.config(*gpid));
        for host in configs.flat_map(|config| config.members()).filter_map(Host::index) {
            counts[host] += 1;
        }
        counts
    }

    /// All is well, and no machine that runs has more than one primary, or replica, more than any other.
    pub fn is_balanced(&self) -> bool {
        let even = |counts: Vec<usize>| {
            let running = counts.iter().zip(&self.hosts).filter(|(_, host)| host.is_up());
            let running: Vec<usize> = running.map(|(count, _)| *count).collect();
            let (least, most) = (running.iter().min(), running.iter().max());
            most.copied().unwrap_or(0) <= least.copied().unwrap_or(0) + 1
        };
        even(self.primaries()) && even(self.copies()) && self.all_healthy()
    }

    pub fn is_serving(&self, gpid: Gpid) -> bool {
        self.hosts.iter().any(|h| h.serving(self.bus.now, gpid))
    }

    /// The partition has all its members, each in its role, and the primary serves.
    pub fn is_healthy(&self, gpid: Gpid) -> bool {
        let Some(config) = self.store.config(gpid) else { return false };
        let wanted = usize::try_from(config.max_replica_count).unwrap_or(0).min(self.hosts.len());
        let status = |node: &Node| Host::index(node).and_then(|h| self.hosts[h].status(gpid));
        config.member_count() == wanted
            && config.primary.as_ref().is_some_and(|p| status(p) == Some(ReplicaStatus::Primary))
            && config.secondaries.iter().all(|s| status(s) == Some(ReplicaStatus::Secondary))
            && self.is_serving(gpid)
    }

    pub fn all_healthy(&self) -> bool {
        self.gpids.iter().all(|gpid| self.is_healthy(*gpid))
    }

    /// Everything that anybody was told is there, at every member, and the members are equal. To be asked when
    /// all is healthy and nobody writes any more.
    pub fn compare_members(&self) -> Result<(), String> {
        for &gpid in &self.gpids {
            let Some(config) = self.store.config(gpid) else { continue };
            let members: Vec<_> = config.members().filter_map(Host::index).collect();
            let Some(first) = members.first().and_then(|h| self.hosts[*h].engine(gpid)) else {
                return Err(format!("{gpid} has no primary"));
            };
            for key in Workload::keys() {
                let shown = self.checks.history.floor(gpid, &key);
                let held = first.get(&key).map(|row| row.decree).unwrap_or_default();
                if held < shown {
                    return Err(format!("{gpid} {key:?}: decree {shown} was answered, {held} is there"));
                }
            }
            for host in members {
                let Some(engine) = self.hosts[host].engine(gpid) else {
                    return Err(format!("n{} has no {gpid}", host + 1));
                };
                if engine.rows() != first.rows() {
                    return Err(format!("n{} differs from its primary in {gpid}", host + 1));
                }
            }
        }
        Ok(())
    }
}
