//! The only place that changes tables and configurations: takes jobs, drives `pegasus_meta_core`'s writer with the
//! store, tells what was adopted and answers. Jobs that have gathered while the last write was under way are decided
//! and stored together.

use std::time::Duration;

use pegasus_meta_core::{Desk, Done, Job, Next, Outcome, Step, Writer, WriterError};
use pegasus_placement::ledger::Adopted;
use pegasus_placement::tables::TableError;
use pegasus_types::meta::ChangeReply;
use pegasus_types::{AppId, AppInfo, ErrorCode};
use pegasus_zk_coordination::MetaStore;
use pegasus_zk_coordination::tree::Tree;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::clock::wall_s;
use crate::leader::Leader;
use crate::persist;

/// Jobs that may wait. A node that dies causes one change per partition that it holds.
pub const MAX_JOBS: usize = 65_536;
/// Jobs decided together.
const MAX_BATCH: usize = 4096;
/// Between tries while the store cannot be reached.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// A job, and who waits for what comes of it.
pub type Asked = (Job, Ticket);

#[derive(Debug)]
pub enum Ticket {
    Change(oneshot::Sender<ChangeReply>),
    Created(oneshot::Sender<Result<AppId, TableError>>),
    Dropped(oneshot::Sender<Result<(), TableError>>),
    Recalled(oneshot::Sender<Result<AppInfo, TableError>>),
    /// Gets what to say about it.
    Envs(oneshot::Sender<Result<String, TableError>>),
    Forced(oneshot::Sender<Result<(), String>>),
    Drained(oneshot::Sender<Result<(), String>>),
    Nobody,
}

impl Ticket {
    fn is_gone(&self) -> bool {
        matches!(self, Self::Change(answer) if answer.is_closed())
    }

    /// Of a job that was never begun. Dropping the ticket instead would say that its outcome is not known.
    pub fn refuse(self) {
        let error =
            TableError { code: ErrorCode::ForwardToOthers, hint: "this meta-server leads no longer".into() };
        // Whoever asked may have given up waiting.
        match self {
            Self::Created(answer) => drop(answer.send(Err(error))),
            Self::Dropped(answer) => drop(answer.send(Err(error))),
            Self::Recalled(answer) => drop(answer.send(Err(error))),
            Self::Envs(answer) => drop(answer.send(Err(error))),
            Self::Forced(answer) | Self::Drained(answer) => drop(answer.send(Err(error.hint))),
            // Replica-servers ask again in any case.
            Self::Change(_) | Self::Nobody => {}
        }
    }
}

/// Runs until the store is lost or nobody can send jobs any more. `store` is fenced: it refuses the writes of who
/// leads no longer.
pub async fn run(
    leader: &Leader,
    jobs: &mut mpsc::Receiver<Asked>,
    store: &dyn MetaStore,
    tree: &Tree,
) -> Result<(), WriterError> {
    let mut writer = Writer::new(tree.clone());
    while let Some(first) = jobs.recv().await {
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        writer.begin(batch);
        finish(leader, &mut writer, store, tree).await?;
        leader.publish();
        leader.touch();
    }
    Ok(())
}

/// From the jobs that were begun to their answers.
async fn finish(
    leader: &Leader,
    writer: &mut Writer<Ticket>,
    store: &dyn MetaStore,
    tree: &Tree,
) -> Result<(), WriterError> {
    loop {
        writer.forget_changes(Ticket::is_gone);
        let mut next = told(leader, at_desk(leader, |desk| writer.decide(desk)));
        while let Next::Store(ops) = next {
            let begun = Instant::now();
            let result = store.multi(ops).await.map(|_| ());
            match &result {
                Ok(()) => leader.metrics.write_seconds.observe(begun.elapsed().as_secs_f64()),
                Err(_) => leader.metrics.write_failures.inc(),
            }
            next = told(leader, at_desk(leader, |desk| writer.stored(desk, result))?);
        }
        match next {
            Next::Idle => return Ok(()),
            Next::Pause => sleep(STORE_PAUSE).await,
            Next::Load => {
                let ledger = persist::load_at_last(store, tree, STORE_PAUSE).await?;
                let mut state = leader.state.borrow_mut();
                state.liveness.set_retired(ledger.drained().clone());
                state.ledger = ledger;
            }
            Next::Store(_) => unreachable!("stored above"),
        }
    }
}

fn at_desk<R>(leader: &Leader, act: impl FnOnce(&mut Desk<'_>) -> R) -> R {
    let state = &mut *leader.state.borrow_mut();
    act(&mut Desk {
        ledger: &mut state.ledger,
        cure: &mut state.cure,
        liveness: &state.liveness,
        level: leader.level.get(),
        limits: &leader.limits,
        now: leader.clock.now(),
        now_s: wall_s(),
    })
}

/// Tells what was adopted and answers what is done.
fn told(leader: &Leader, step: Step<Ticket>) -> Next {
    announce(leader, &step.adopted);
    step.done.into_iter().for_each(answer);
    step.next
}

fn announce(leader: &Leader, adopted: &Adopted) {
    if let Some(nodes) = &adopted.drained {
        tracing::warn!(?nodes, "nodes that operators drain");
        let mut state = leader.state.borrow_mut();
        state.liveness.set_retired(nodes.clone());
        // Moves may lead to a node that is to be emptied now, or away from one that is not any more.
        state.cure.stop_moves();
    }
    let state = leader.state.borrow();
    // Members keep what is known of their table beside the replica: it decides, for example, whether an empty
    // one may be made.
    for table in adopted.infos.iter().filter_map(|app_id| state.ledger.view().table(*app_id)) {
        table.partitions.iter().for_each(|config| leader.push(&table.info, config, config));
    }
    for (old, new) in &adopted.configs {
        tracing::info!(old = ?old, new = ?new, "configuration changed");
        leader.metrics.config_changes.inc();
        if let Some(table) = state.ledger.view().table(new.gpid.app_id) {
            leader.push(&table.info, old, new);
        }
    }
}

fn answer(Done { job, ticket, outcome }: Done<Ticket>) {
    tell_log(&job, &outcome);
    // Whoever asked may have given up waiting.
    match (ticket, outcome) {
        (Ticket::Change(answer), Outcome::Change(reply)) => drop(answer.send(reply)),
        (Ticket::Created(answer), Outcome::Created(result)) => drop(answer.send(result)),
        (Ticket::Dropped(answer), Outcome::Dropped(result)) => drop(answer.send(result)),
        (Ticket::Recalled(answer), Outcome::Recalled(result)) => drop(answer.send(result)),
        (Ticket::Envs(answer), Outcome::Envs(result)) => drop(answer.send(result)),
        (Ticket::Forced(answer), Outcome::Forced(result))
        | (Ticket::Drained(answer), Outcome::Drained(result)) => drop(answer.send(result)),
        _ => {}
    }
}

fn tell_log(job: &Job, outcome: &Outcome) {
    match (job, outcome) {
        (Job::Change(request), Outcome::Change(ChangeReply::Rejected { why, .. })) => {
            tracing::info!(?request, why, "change rejected");
        }
        (Job::Create(request), Outcome::Created(result)) => match result {
            Ok(app_id) => tracing::info!(app_id, name = request.name, "table created"),
            Err(error) => tracing::info!(name = request.name, %error, "table not created"),
        },
        (Job::Drop(request), Outcome::Dropped(result)) => match result {
            Ok(()) => tracing::info!(name = request.name, "table dropped"),
            Err(error) => tracing::info!(name = request.name, %error, "table not dropped"),
        },
        (Job::Recall(request), Outcome::Recalled(result)) => match result {
            Ok(info) => tracing::info!(app_id = info.app_id, name = info.name, "table recalled"),
            Err(error) => tracing::info!(app_id = request.app_id, %error, "table not recalled"),
        },
        (Job::Envs { name, change }, Outcome::Envs(result)) => match result {
            Ok(_) => tracing::info!(name, ?change, "settings of a table changed"),
            Err(error) => tracing::info!(name, %error, "settings of a table not changed"),
        },
        (Job::Available(app_id), _) => tracing::info!(app_id, "every member holds its replica"),
        _ => {}
    }
}
