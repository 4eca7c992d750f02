//! What operators order of the meta-servers beyond tables: levels, moves, partitions without living members.

use futures::future::try_join_all;
use pegasus_rpc::wire::meta::{
    Address, BalancerRequest, CONFIG_ADD_SECONDARY_FOR_LB, CONFIG_ASSIGN_PRIMARY,
    CONFIG_DOWNGRADE_TO_INACTIVE, CONFIG_DOWNGRADE_TO_SECONDARY, CONFIG_REMOVE, CONFIG_UPGRADE_TO_PRIMARY,
    ControlMetaRequest, DddDiagnoseRequest, LEVEL_READ_ONLY, ProposalAction,
};
use pegasus_rpc::wire::{AdminRequest, AdminResponse, WireGpid};
use pegasus_types::{Gpid, Node, PartitionConfig};
use tokio::time::timeout;

use crate::cluster::{Cluster, nonsense};
use crate::deadline::Attempts;
use crate::error::{Error, Result};
use crate::http::http_get;
use crate::meta::final_error;

/// A move of one partition, as the shell's `balance` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveKind {
    /// The role goes to a secondary.
    MovePrimary,
    /// The primary's copy and role go to a node that has none.
    CopyPrimary,
    CopySecondary,
}

/// A partition of which no member is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadPartition {
    pub config: PartitionConfig,
    pub reason: String,
    /// Members, then former members, the newest first.
    pub former: Vec<FormerMember>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerMember {
    /// None: its address is not known any more.
    pub node: Option<Node>,
    pub alive: bool,
    /// It has told the leader what it holds.
    pub reported: bool,
    /// (ballot, committed, prepared) of its copy, when it has one.
    pub copy: Option<(i64, i64, i64)>,
    /// Unix milliseconds; 0 = not known.
    pub left_at_ms: i64,
}

impl Cluster {
    /// The function level's number (`meta_function_level`).
    pub async fn level(&self) -> Result<i32> {
        self.control(LEVEL_READ_ONLY).await
    }

    /// Sets the function level and tells the old one.
    pub async fn set_level(&self, level: i32) -> Result<i32> {
        self.control(level).await
    }

    async fn control(&self, level: i32) -> Result<i32> {
        match self.order(AdminRequest::ControlMeta(ControlMetaRequest { level }), self.order_time()).await? {
            AdminResponse::ControlMeta(response) => Ok(response.old_level),
            other => Err(nonsense(&other)),
        }
    }

    /// Has one partition moved. Returns when the order is taken up.
    pub async fn propose_move(&self, gpid: Gpid, kind: MoveKind, from: &Node, to: &Node) -> Result<()> {
        let steps: &[(i32, &Node, &Node)] = match kind {
            MoveKind::MovePrimary => {
                &[(CONFIG_DOWNGRADE_TO_SECONDARY, from, from), (CONFIG_UPGRADE_TO_PRIMARY, to, to)]
            }
            MoveKind::CopyPrimary => &[
                (CONFIG_ADD_SECONDARY_FOR_LB, from, to),
                (CONFIG_DOWNGRADE_TO_SECONDARY, from, from),
                (CONFIG_UPGRADE_TO_PRIMARY, to, to),
                (CONFIG_REMOVE, to, from),
            ],
            MoveKind::CopySecondary => {
                &[(CONFIG_ADD_SECONDARY_FOR_LB, from, to), (CONFIG_DOWNGRADE_TO_INACTIVE, from, from)]
            }
        };
        self.propose(gpid, steps).await
    }

    /// Has a partition without a living member begin again with the copy on `node`. What only others hold is lost.
    pub async fn force_primary(&self, gpid: Gpid, node: &Node) -> Result<()> {
        self.propose(gpid, &[(CONFIG_ASSIGN_PRIMARY, node, node)]).await
    }

    /// Steps as (kind, who does it, whom it concerns).
    async fn propose(&self, gpid: Gpid, steps: &[(i32, &Node, &Node)]) -> Result<()> {
        let time = self.order_time();
        let address = async |node: &Node| {
            let left = time.left().unwrap_or_default();
            let found = self.inner.metas.names.resolve(node, left).await;
            found.map(|address| Address(Some(address))).map_err(final_error)
        };
        let action = async |(kind, target, node): &(i32, &Node, &Node)| {
            Ok(ProposalAction { target: address(target).await?, node: address(node).await?, kind: *kind })
        };
        let action_list = try_join_all(steps.iter().map(action)).await?;
        let request = BalancerRequest { gpid: WireGpid(gpid), action_list, force: None, balance_type: None };
        self.order(AdminRequest::ProposeBalancer(request), time).await.map(drop)
    }

    /// Partitions of which no member is alive.
    pub async fn diagnose(&self) -> Result<Vec<DeadPartition>> {
        let request = DddDiagnoseRequest { pid: WireGpid(Gpid::new(-1, -1)) };
        let response = match self.order(AdminRequest::DddDiagnose(request), self.order_time()).await? {
            AdminResponse::DddDiagnose(response) => response,
            other => return Err(nonsense(&other)),
        };
        let partitions = response.partitions.into_iter().map(|partition| DeadPartition {
            config: partition.config.to_config(),
            reason: partition.reason,
            former: partition
                .dropped
                .iter()
                .map(|info| FormerMember {
                    node: info.node.node(),
                    alive: info.is_alive,
                    reported: info.is_collected,
                    copy: (info.ballot >= 0).then_some((
                        info.ballot,
                        info.last_committed_decree,
                        info.last_prepared_decree,
                    )),
                    left_at_ms: info.drop_time_ms,
                })
                .collect(),
        });
        Ok(partitions.collect())
    }

    /// Has the leading meta-server execute a command that an operator typed, and tells what it says.
    pub async fn leader_command(&self, command: &str, arguments: &[String]) -> Result<String> {
        let leader = self.leader(self.options().timeout).await?;
        self.remote_command(&leader, command, arguments).await
    }

    /// What the leading meta-server tells over HTTP (`GET path`).
    pub async fn leader_http(&self, path: &str) -> Result<String> {
        let time = Attempts::within(self.options().timeout);
        let left = || time.left().unwrap_or_default();
        let leader = self.leader(left()).await?;
        let address = self.inner.metas.names.resolve(&leader, left()).await.map_err(final_error)?;
        let why = match timeout(left(), http_get(&Node::new(address.to_string()), path)).await {
            Ok(Ok(body)) => return Ok(body),
            Ok(Err(why)) => why,
            Err(_) => "no answer in time".to_owned(),
        };
        Err(Error::Timeout { last: format!("{leader}: {why}"), unreachable: false })
    }

    fn order_time(&self) -> Attempts {
        Attempts::within(self.options().admin_timeout)
    }

    async fn order(&self, request: AdminRequest, time: Attempts) -> Result<AdminResponse> {
        self.inner.metas.admin(request, true, time.left().unwrap_or_default()).await
    }
}
