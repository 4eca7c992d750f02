//! The regular look at the cluster ([`pegasus_meta_core::Rounds`]): when it comes, and what is done with what it finds.

use std::rc::Rc;
use std::time::Duration;

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
        if round(&leader) {
            leader.publish();
        }
    }
}

/// True when there is something new to show.
fn round(leader: &Leader) -> bool {
    let state = &mut *leader.state.borrow_mut();
    let at = (leader.clock.now(), leader.level.get());
    let found = state.rounds.look(at, state.ledger.view(), &mut state.cure, &mut state.liveness);
    leader.metrics.disconnections.inc_by(found.silent.len() as u64);
    leader.metrics.stuck.inc_by(found.stuck.len() as u64);
    for job in found.jobs {
        // When the queue is full the next round finds the same.
        if leader.jobs.try_send((job, Ticket::Nobody)).is_err() {
            state.rounds.touch();
        }
    }
    state.proposed.retain(|gpid, _| state.rounds.notes().contains_key(gpid));
    for (to, request) in found.proposals {
        let ProposalRequest { gpid, ballot, proposal } = &request;
        if state.proposed.get(gpid) == Some(&request) {
            tracing::debug!(%to, %gpid, %ballot, ?proposal, "proposing again");
        } else {
            tracing::info!(%to, %gpid, %ballot, ?proposal, "proposing");
            state.proposed.insert(*gpid, request.clone());
        }
        leader.proposer.propose(&to, request);
    }
    found.is_news
}
