//! The regular look at the cluster: who fell silent, what has to be cured or moved, which tables are ready.

use std::rc::Rc;
use std::time::Duration;

use pegasus_meta_core::Job;
use pegasus_placement::cure::{Order, Verdict};
use pegasus_types::AppStatus;
use pegasus_types::meta::ProposalRequest;
use tokio::time::{sleep, timeout};

use crate::leader::Leader;
use crate::writer::Ticket;

/// Between rounds that changes cause, so that a burst of changes costs few rounds.
const GATHER: Duration = Duration::from_millis(20);

/// A round that comes so much later than it should finds a process that was stopped, or a machine that slept: the
/// beacons of that time lie unread.
const LATE_MS: u64 = 1_000;

/// Runs for ever. `interval`: how often silence is looked for (`fd_check_interval_seconds`).
pub async fn run(leader: Rc<Leader>, interval: Duration) {
    let mut last = leader.clock.now();
    loop {
        let kicked = timeout(interval, leader.kick.notified()).await.is_ok();
        if kicked {
            sleep(GATHER).await;
        }
        let now = leader.clock.now();
        let late_ms = now.since(last).saturating_sub(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX));
        if late_ms > LATE_MS {
            tracing::warn!(late_ms, "this meta-server did not run for a while");
            leader.state.borrow_mut().liveness.overslept(now, late_ms);
        }
        last = now;
        round(&leader);
    }
}

fn round(leader: &Leader) {
    if look(leader) {
        leader.publish();
    }
}

/// True when there is something new to show.
fn look(leader: &Leader) -> bool {
    let now = leader.clock.now();
    let state = &mut *leader.state.borrow_mut();
    let silent = state.liveness.sweep(now);
    for node in &silent {
        tracing::warn!(%node, "no beacon for the grace time: the node counts as dead");
        leader.metrics.disconnections.inc();
    }
    // A healthy cluster without news needs no look, until the next moves are due.
    let moves_due = state.cure.looks_again_at().is_some_and(|at| at <= now);
    if silent.is_empty() && !state.dirty && state.notes.is_empty() && !moves_due {
        return false;
    }
    state.dirty = false;
    state.cure.options_mut().balance.spread = leader.level.get().allows_balance();
    let view = state.ledger.view();
    let known = view.known_nodes();
    state.liveness.forget_dead(|node| known.contains(node));

    let mut assign = Vec::new();
    let mut proposals = Vec::new();
    let before = std::mem::take(&mut state.notes);
    if leader.level.get().allows_cure() {
        for (gpid, verdict) in state.cure.examine(now, view, &state.liveness) {
            match verdict {
                Verdict::Healthy => {}
                Verdict::Act(Order::Assign { gpid, members }) => {
                    tracing::info!(%gpid, ?members, "a partition without members gets some");
                    state.notes.insert(gpid, "its members are being stored".into());
                    assign.push((gpid, members));
                }
                Verdict::Act(Order::Propose { to, request }) => {
                    state.notes.insert(gpid, format!("asked {to}: {:?}", request.proposal));
                    proposals.push((to, request));
                }
                Verdict::Wait(why) => drop(state.notes.insert(gpid, why)),
                Verdict::Stuck(why) => {
                    if before.get(&gpid) != Some(&why) {
                        tracing::error!(%gpid, why, "partition cannot be cured");
                        leader.metrics.stuck.inc();
                    }
                    state.notes.insert(gpid, why);
                }
            }
        }
    }
    let ready = view
        .tables()
        .filter(|table| table.info.status == AppStatus::Creating && state.cure.all_hold(&table.partitions));
    let mut jobs: Vec<Job> = ready.map(|table| Job::Available(table.info.app_id)).collect();
    if !assign.is_empty() {
        jobs.push(Job::Assign(assign));
    }
    let changed = before != state.notes || !silent.is_empty();
    for job in jobs {
        // When the queue is full the next round finds the same.
        if leader.jobs.try_send((job, Ticket::Nobody)).is_err() {
            state.dirty = true;
        }
    }
    state.proposed.retain(|gpid, _| state.notes.contains_key(gpid));
    for (to, request) in proposals {
        let ProposalRequest { gpid, ballot, proposal } = &request;
        if state.proposed.get(gpid) == Some(&request) {
            tracing::debug!(%to, %gpid, %ballot, ?proposal, "proposing again");
        } else {
            tracing::info!(%to, %gpid, %ballot, ?proposal, "proposing");
            state.proposed.insert(*gpid, request.clone());
        }
        leader.proposer.propose(&to, request);
    }
    changed
}
