//! What operators order, over the client protocol: levels, moves, a partition to begin again (replication.md 6.5,
//! admin-protocol.md 4.6).

use std::net::SocketAddrV4;

use pegasus_meta_core::Job;
use pegasus_placement::balance::{Kind, Move};
use pegasus_placement::level::FunctionLevel;
use pegasus_rpc::wire::ErrorName;
use pegasus_rpc::wire::meta::*;
use pegasus_types::meta::{Proposal, ProposalRequest};
use pegasus_types::{ErrorCode, Gpid, Node};
use tokio::sync::oneshot;

use crate::clock::wall_us;
use crate::leader::Leader;
use crate::writer::Ticket;

/// Sets the level, or only tells it.
pub fn control(leader: &Leader, request: &ControlMetaRequest) -> ControlMetaResponse {
    let old = leader.level.get();
    let answer = |code| ControlMetaResponse { err: ErrorName(code), old_level: old as i32 };
    if request.level == LEVEL_READ_ONLY {
        return answer(ErrorCode::Ok);
    }
    match FunctionLevel::from_wire(request.level) {
        Some(level) => {
            set_level(leader, level);
            answer(ErrorCode::Ok)
        }
        None => answer(ErrorCode::InvalidParameters),
    }
}

pub fn set_level(leader: &Leader, level: FunctionLevel) {
    tracing::warn!(from = %leader.level.get(), to = %level, "an operator sets the level");
    leader.level.set(level);
    if !level.allows_balance() {
        leader.state.borrow_mut().cure.stop_moves();
    }
    leader.publish();
    leader.touch();
}

/// A node is to be emptied, or not any more. Stored: a new leader goes on with it.
///
/// # Errors
/// The node is not known, or nothing can be stored now.
pub async fn drain(leader: &Leader, node: &Node, on: bool) -> Result<(), String> {
    let known = {
        let state = leader.state.borrow();
        state.liveness.get(node).is_some() || state.ledger.drained().contains(node)
    };
    if !known {
        return Err(format!("{node} is not known; nodes are named as in meta.nodes"));
    }
    let (answer, answered) = oneshot::channel();
    let job = (Job::Drain { node: node.clone(), on }, Ticket::Drained(answer));
    leader.jobs.try_send(job).map_err(|_| "too many changes wait".to_owned())?;
    answered.await.unwrap_or_else(|_| Err("whether it was stored is not known".to_owned()))
}

/// What the steps of a proposal amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Order<N> {
    Move {
        kind: Kind,
        from: N,
        to: N,
    },
    Add(N),
    Remove(N),
    Promote(N),
    /// Only when no member is alive.
    Force(N),
}

/// Steps as (kind, node), the way tools build them.
fn understand<N: Clone>(steps: &[(i32, N)]) -> Option<Order<N>> {
    let order = |kind, from: &N, to: &N| Order::Move { kind, from: from.clone(), to: to.clone() };
    Some(match steps {
        [(CONFIG_DOWNGRADE_TO_SECONDARY, from), (CONFIG_UPGRADE_TO_PRIMARY, to)] => {
            order(Kind::MovePrimary, from, to)
        }
        [
            (CONFIG_ADD_SECONDARY_FOR_LB, to),
            (CONFIG_DOWNGRADE_TO_SECONDARY, from),
            (CONFIG_UPGRADE_TO_PRIMARY, _),
            (CONFIG_REMOVE | CONFIG_DOWNGRADE_TO_INACTIVE, _),
        ] => order(Kind::CopyPrimary, from, to),
        [(CONFIG_ADD_SECONDARY_FOR_LB, to), (CONFIG_REMOVE | CONFIG_DOWNGRADE_TO_INACTIVE, from)] => {
            order(Kind::CopySecondary, from, to)
        }
        [(CONFIG_ADD_SECONDARY, node)] => Order::Add(node.clone()),
        [(CONFIG_REMOVE | CONFIG_DOWNGRADE_TO_INACTIVE, node)] => Order::Remove(node.clone()),
        [(CONFIG_UPGRADE_TO_PRIMARY, node)] => Order::Promote(node.clone()),
        [(CONFIG_ASSIGN_PRIMARY, node)] => Order::Force(node.clone()),
        _ => return None,
    })
}

/// Orders a move, or one step. The answer says whether it was taken up, not that it is done.
pub async fn propose(leader: &Leader, request: BalancerRequest) -> ErrorCode {
    let gpid = request.gpid.0;
    match try_propose(leader, gpid, &request.action_list).await {
        Ok(()) => ErrorCode::Ok,
        Err(why) => {
            tracing::warn!(%gpid, why, "an operator's proposal is refused");
            ErrorCode::InvalidParameters
        }
    }
}

async fn try_propose(leader: &Leader, gpid: Gpid, steps: &[ProposalAction]) -> Result<(), String> {
    let level = leader.level.get();
    if !level.allows_cure() {
        return Err(format!("nothing is proposed at level {level}"));
    }
    let steps: Vec<(i32, Node)> = steps
        .iter()
        .map(|step| {
            let address = step.node.0.ok_or("a step names no node")?;
            let node = node_at(leader, address).ok_or_else(|| format!("no node is known at {address}"))?;
            Ok((step.kind, node))
        })
        .collect::<Result<_, String>>()?;
    match understand(&steps).ok_or("these steps make no move")? {
        Order::Move { kind, from, to } => request_move(leader, Move { gpid, kind, from, to }),
        Order::Add(node) => to_primary(leader, gpid, Proposal::AddSecondary { node }),
        Order::Remove(node) => to_primary(leader, gpid, Proposal::RemoveSecondary { node }),
        Order::Promote(to) => to_primary(leader, gpid, Proposal::HandOver { to }),
        Order::Force(node) => force(leader, gpid, node).await,
    }
}

/// # Errors
/// Says why the move cannot be done.
pub fn request_move(leader: &Leader, what: Move) -> Result<(), String> {
    let now = leader.clock.now();
    let mut state = leader.state.borrow_mut();
    let state = &mut *state;
    tracing::warn!(%what, "an operator orders a move");
    state.cure.request_move(now, state.ledger.view(), &state.liveness, what)?;
    state.rounds.touch();
    leader.kick.notify_one();
    Ok(())
}

/// One step, told to the primary once.
fn to_primary(leader: &Leader, gpid: Gpid, proposal: Proposal) -> Result<(), String> {
    let state = leader.state.borrow();
    let config =
        state.ledger.view().partition(gpid).ok_or_else(|| format!("there is no partition {gpid}"))?;
    let primary = config.primary.clone().ok_or_else(|| format!("{gpid} has no primary"))?;
    let (node, fits) = match &proposal {
        Proposal::AddSecondary { node } => (node, !config.is_member(node) && state.liveness.is_usable(node)),
        Proposal::RemoveSecondary { node } | Proposal::HandOver { to: node } => {
            (node, config.is_secondary(node))
        }
        Proposal::TakeOver => return Err("nobody is named".to_owned()),
    };
    if !fits {
        return Err(format!("{proposal:?} does not fit {config:?}, or {node} can take nothing now"));
    }
    tracing::warn!(%gpid, ?proposal, "an operator's step");
    // The primary is gone: the heir takes over by itself.
    let (to, proposal) = match proposal {
        Proposal::HandOver { to } if !state.liveness.is_alive(&primary) => (to, Proposal::TakeOver),
        other => (primary, other),
    };
    leader.proposer.propose(&to, ProposalRequest { gpid, ballot: config.ballot, proposal });
    Ok(())
}

/// The partition begins again with the copy on `node`. Only when no member is alive, which the grace time of their
/// beacons has made sure of (safety-rules.md 1.5).
///
/// # Errors
/// Says why not.
pub async fn force(leader: &Leader, gpid: Gpid, node: Node) -> Result<(), String> {
    let (answer, answered) = oneshot::channel();
    let ballot = {
        let state = leader.state.borrow();
        let view = state.ledger.view();
        let config = view.partition(gpid).ok_or_else(|| format!("there is no partition {gpid}"))?;
        if let Some(alive) = config.members().find(|member| state.liveness.is_alive(member)) {
            return Err(format!("{alive}, a member of {gpid}, is alive: nothing is forced"));
        }
        if !state.liveness.is_well(&node) {
            return Err(format!("{node} is not there"));
        }
        config.ballot
    };
    tracing::warn!(%gpid, %node, "an operator has a partition begin again: what only others hold is lost");
    let job = (Job::Force { gpid, ballot, node }, Ticket::Forced(answer));
    leader.jobs.try_send(job).map_err(|_| "too many changes wait".to_owned())?;
    answered.await.unwrap_or_else(|_| Err("whether it was stored is not known".to_owned()))
}

/// Partitions of which no member is alive.
pub fn diagnose(leader: &Leader, asked: Gpid) -> DddDiagnoseResponse {
    let now = leader.clock.now();
    let state = leader.state.borrow();
    let is_asked = |gpid: Gpid| {
        (asked.app_id < 0 || asked.app_id == gpid.app_id) && (asked.index < 0 || asked.index == gpid.index)
    };
    let address = |node: &Node| leader.resolver.get(node);
    let wall_ms = i64::try_from(wall_us() / 1000).unwrap_or(i64::MAX);
    let partitions = state
        .ledger
        .view()
        .live_partitions()
        .filter(|(_, config)| is_asked(config.gpid))
        .filter_map(|(_, config)| {
            let diagnosis = state.cure.diagnose(now, config, &state.liveness)?;
            let dropped = diagnosis
                .former
                .iter()
                .map(|former| DddNodeInfo {
                    node: Address(address(&former.node)),
                    drop_time_ms: former
                        .left_ms_ago
                        .map_or(0, |ago| wall_ms.saturating_sub(i64::try_from(ago).unwrap_or(i64::MAX))),
                    is_alive: former.alive,
                    is_collected: former.reported,
                    ballot: former.seen.map_or(-1, |seen| seen.ballot.0),
                    last_committed_decree: former.seen.map_or(-1, |seen| seen.committed.0),
                    last_prepared_decree: former.seen.map_or(-1, |seen| seen.prepared.0),
                })
                .collect();
            let config = PartitionConfiguration::new(config, address);
            Some(DddPartitionInfo { config, dropped, reason: diagnosis.reason })
        })
        .collect();
    DddDiagnoseResponse { err: ErrorName(ErrorCode::Ok), partitions }
}

/// Nodes are named by host; tools name them by address.
fn node_at(leader: &Leader, address: SocketAddrV4) -> Option<Node> {
    let state = leader.state.borrow();
    let mut nodes = state.liveness.nodes().map(|(node, _)| node);
    nodes.find(|node| leader.resolver.get(node) == Some(address)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_make_moves() {
        let moves = |kind, from, to| Some(Order::Move { kind, from, to });
        for (steps, want) in [
            (vec![(5, 'a'), (2, 'b')], moves(Kind::MovePrimary, 'a', 'b')),
            (vec![(8, 'b'), (5, 'a'), (2, 'b'), (7, 'a')], moves(Kind::CopyPrimary, 'a', 'b')),
            (vec![(8, 'b'), (6, 'a')], moves(Kind::CopySecondary, 'a', 'b')),
            (vec![(8, 'b'), (7, 'a')], moves(Kind::CopySecondary, 'a', 'b')),
            (vec![(1, 'a')], Some(Order::Force('a'))),
            (vec![(2, 'a')], Some(Order::Promote('a'))),
            (vec![(3, 'a')], Some(Order::Add('a'))),
            (vec![(6, 'a')], Some(Order::Remove('a'))),
            (vec![(7, 'a')], Some(Order::Remove('a'))),
            (vec![(8, 'a')], None),
            (vec![(2, 'a'), (5, 'b')], None),
            (vec![], None),
        ] {
            assert_eq!(understand(&steps), want, "{steps:?}");
        }
    }
}
