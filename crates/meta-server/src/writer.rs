//! The single writer: decide → persist → adopt → answer (style.md 1.6).
//!
//! Jobs that have gathered while the last write was under way are decided and stored together. Nothing of a
//! decision is told before it is stored. When the outcome of a write is unknown, or somebody else has
//! written, everything is loaded again and the same jobs are decided once more: those that were done are
//! recognised.

use std::time::Duration;

use pegasus_placement::assign::Members;
use pegasus_placement::change::Rejected;
use pegasus_placement::envs::EnvChange;
use pegasus_placement::recall::RecallTable;
use pegasus_placement::tables::{CreateTable, DropTable, TableError};
use pegasus_placement::{Draft, ledger::Write};
use pegasus_types::meta::{ChangeReply, ChangeRequest};
use pegasus_types::{AppId, AppInfo, Ballot, ErrorCode, Gpid, Node};
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{MetaStore, StoreError};
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
/// Tries of one batch when others write, too, or answers get lost. More means that something is wrong.
const MAX_TRIES: u32 = 5;

#[derive(Debug)]
pub enum Job {
    Change {
        request: ChangeRequest,
        answer: oneshot::Sender<ChangeReply>,
    },
    Create {
        request: CreateTable,
        /// The table that an earlier try has made.
        made: Option<AppId>,
        answer: oneshot::Sender<Result<AppId, TableError>>,
    },
    Drop {
        request: DropTable,
        /// The table that an earlier try has dropped.
        made: Option<AppId>,
        answer: oneshot::Sender<Result<(), TableError>>,
    },
    Recall {
        request: RecallTable,
        /// An earlier try has recalled it.
        made: bool,
        answer: oneshot::Sender<Result<AppInfo, TableError>>,
    },
    Envs {
        name: String,
        change: EnvChange,
        /// Gets what to say about it.
        answer: oneshot::Sender<Result<String, TableError>>,
    },
    /// An operator's order: the partition begins again with this node's copy.
    Force {
        gpid: Gpid,
        /// The stored one.
        ballot: Ballot,
        node: Node,
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Configurations of partitions without members, from the cure.
    Assign(Vec<(Gpid, Members)>),
    /// Every member of the table's partitions holds its replica.
    Available(AppId),
    /// Complete what a crash has cut in two.
    Mend(AppId),
}

enum Outcome {
    Change(ChangeReply),
    Created(Result<AppId, TableError>),
    Dropped(Result<(), TableError>),
    Forced(Result<(), String>),
    Recalled(Result<AppInfo, TableError>),
    Envs(Result<String, TableError>),
    Nothing,
}

/// Why the leader cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// Nothing of the last write was done.
    #[error("another meta-server was elected")]
    NotLeader,
    #[error("the metadata store is lost: {0}")]
    Store(StoreError),
    #[error("the metadata cannot be loaded: {0}")]
    Load(#[from] persist::LoadError),
    #[error("a write failed {MAX_TRIES} times: {0}")]
    Stubborn(StoreError),
}

/// Runs until the store is lost or nobody can send jobs any more. `store` is fenced: it refuses the writes of who
/// leads no longer.
pub async fn run(
    leader: &Leader,
    jobs: &mut mpsc::Receiver<Job>,
    store: &dyn MetaStore,
    tree: &Tree,
) -> Result<(), WriterError> {
    while let Some(first) = jobs.recv().await {
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        process(leader, batch, store, tree).await?;
        leader.publish();
        leader.touch();
    }
    Ok(())
}

async fn process(
    leader: &Leader,
    mut batch: Vec<Job>,
    store: &dyn MetaStore,
    tree: &Tree,
) -> Result<(), WriterError> {
    let mut tries = 0;
    loop {
        // Who waits for an answer of an old request has asked again meanwhile.
        batch.retain(|job| !matches!(job, Job::Change { answer, .. } if answer.is_closed()));
        let (outcomes, writes) = decide(leader, &mut batch);
        match write(leader, writes, store, tree).await {
            Ok(()) => {
                batch.into_iter().zip(outcomes).for_each(|(job, outcome)| answer(job, outcome));
                return Ok(());
            }
            Err(StoreError::NotLeader) => return Err(WriterError::NotLeader),
            Err(error @ (StoreError::SessionOver | StoreError::Failed(_))) => {
                return Err(WriterError::Store(error));
            }
            Err(error @ (StoreError::TooLarge { .. } | StoreError::BadPath(_) | StoreError::NotEmpty(_))) => {
                tracing::error!(%error, jobs = batch.len(), "the store refuses a write: its jobs are dropped");
                return Ok(());
            }
            Err(StoreError::Unavailable(why)) => {
                tracing::warn!(why, "the metadata store cannot be reached; changes wait");
                leader.metrics.write_failures.inc();
                sleep(STORE_PAUSE).await;
            }
            Err(error) => {
                tracing::warn!(%error, "a metadata write did not succeed; loading what is stored");
                leader.metrics.write_failures.inc();
                tries += 1;
                if tries >= MAX_TRIES {
                    return Err(WriterError::Stubborn(error));
                }
                let ledger = reload(store, tree).await?;
                leader.state.borrow_mut().ledger = ledger;
            }
        }
    }
}

async fn reload(store: &dyn MetaStore, tree: &Tree) -> Result<pegasus_placement::Ledger, WriterError> {
    loop {
        match persist::load(store, tree).await {
            Err(persist::LoadError::Store(StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_))) => {
                sleep(STORE_PAUSE).await;
            }
            other => return Ok(other?),
        }
    }
}

/// Decides every job on top of what is stored and of the jobs before it.
fn decide(leader: &Leader, batch: &mut [Job]) -> (Vec<Outcome>, Vec<Write>) {
    let state = leader.state.borrow();
    let level = leader.level.get();
    let now_s = wall_s();
    let mut draft = state.ledger.draft();
    let refused = |what: &str| TableError {
        code: ErrorCode::StateFreezed,
        hint: format!("{what} is not allowed at level {level}"),
    };
    let mut outcomes = Vec::with_capacity(batch.len());
    for job in batch {
        outcomes.push(match job {
            Job::Change { request, .. } => {
                let result = if !level.allows_change() {
                    Err(Rejected::LevelForbids)
                } else if state.cure.is_frozen(request.gpid) {
                    Err(Rejected::Frozen)
                } else {
                    draft.change(request)
                };
                Outcome::Change(change_reply(&draft, request, result))
            }
            Job::Create { made: Some(app_id), .. } if draft.view().table(*app_id).is_some() => {
                draft.mend(*app_id);
                Outcome::Created(Ok(*app_id))
            }
            Job::Create { .. } if !level.allows_create() => Outcome::Created(Err(refused("create"))),
            Job::Create { request, made, .. } => {
                let created = draft.create(&leader.limits, request.clone(), now_s);
                let is_new = |id: &AppId| state.ledger.view().table(*id).is_none();
                *made = created.as_ref().ok().map(|info| info.app_id).filter(is_new);
                Outcome::Created(created.map(|info| info.app_id))
            }
            Job::Drop { made: Some(app_id), .. }
                if draft.view().table(*app_id).is_some_and(|table| table.is_dropped()) =>
            {
                draft.mend(*app_id);
                Outcome::Dropped(Ok(()))
            }
            Job::Drop { .. } if !level.allows_change() => Outcome::Dropped(Err(refused("drop"))),
            Job::Drop { request, made, .. } => {
                *made = draft.view().table_by_name(&request.name).map(|table| table.info.app_id);
                Outcome::Dropped(draft.drop_table(&leader.limits, request, now_s))
            }
            Job::Recall { request, made: true, .. }
                if draft.view().table(request.app_id).is_some_and(|table| !table.is_dropped()) =>
            {
                draft.mend(request.app_id);
                let info = draft.view().table(request.app_id).map(|table| table.info.clone());
                Outcome::Recalled(info.ok_or_else(|| refused("recall")))
            }
            Job::Recall { .. } if !level.allows_change() => Outcome::Recalled(Err(refused("recall"))),
            Job::Recall { request, made, .. } => {
                let recalled = draft.recall(request, now_s, |node| state.liveness.is_alive(node));
                *made |= recalled.is_ok();
                Outcome::Recalled(recalled)
            }
            Job::Envs { .. } if !level.allows_change() => Outcome::Envs(Err(refused("a change of settings"))),
            Job::Envs { name, change, .. } => Outcome::Envs(draft.update_envs(name, change)),
            Job::Force { gpid, ballot, node, .. } => {
                let stored = draft.view().partition(*gpid);
                // An earlier try has stored it.
                let again = stored.is_some_and(|c| c.ballot == ballot.next() && c.is_primary(node));
                Outcome::Forced(match draft.force(*gpid, *ballot, node) {
                    Err(why) if !again => Err(why.to_string()),
                    _ => Ok(()),
                })
            }
            Job::Assign(list) => {
                for (gpid, members) in list {
                    draft.assign(*gpid, members);
                }
                Outcome::Nothing
            }
            Job::Available(app_id) => {
                let table = draft.view().table(*app_id);
                if table.is_some_and(|table| state.cure.all_hold(&table.partitions)) {
                    draft.make_available(*app_id);
                }
                Outcome::Nothing
            }
            Job::Mend(app_id) => {
                draft.mend(*app_id);
                Outcome::Nothing
            }
        });
    }
    let writes = draft.writes();
    (outcomes, writes)
}

fn change_reply(
    draft: &Draft<'_>,
    request: &ChangeRequest,
    result: Result<pegasus_types::PartitionConfig, Rejected>,
) -> ChangeReply {
    match result {
        Ok(config) => ChangeReply::Accepted(config),
        Err(why) => ChangeReply::Rejected {
            current: draft.view().partition(request.gpid).map(|config| (**config).clone()),
            why: why.to_string(),
        },
    }
}

/// Stores the writes and adopts what is stored.
async fn write(
    leader: &Leader,
    writes: Vec<Write>,
    store: &dyn MetaStore,
    tree: &Tree,
) -> Result<(), StoreError> {
    for (writes, ops) in persist::chunks(tree, writes) {
        let begun = Instant::now();
        store.multi(ops).await?;
        leader.metrics.write_seconds.observe(begun.elapsed().as_secs_f64());
        adopt(leader, writes);
    }
    Ok(())
}

fn adopt(leader: &Leader, writes: Vec<Write>) {
    let now = leader.clock.now();
    let mut state = leader.state.borrow_mut();
    let adopted = state.ledger.adopt(writes);
    for (old, new) in &adopted.configs {
        state.cure.changed(now, old, new);
    }
    drop(state);
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

fn answer(job: Job, outcome: Outcome) {
    // Whoever asked may have given up waiting.
    match (job, outcome) {
        (Job::Change { request, answer }, Outcome::Change(reply)) => {
            if let ChangeReply::Rejected { why, .. } = &reply {
                tracing::info!(?request, why, "change rejected");
            }
            let _ = answer.send(reply);
        }
        (Job::Create { request, answer, .. }, Outcome::Created(result)) => {
            match &result {
                Ok(app_id) => tracing::info!(app_id, name = request.name, "table created"),
                Err(error) => tracing::info!(name = request.name, %error, "table not created"),
            }
            let _ = answer.send(result);
        }
        (Job::Drop { request, answer, .. }, Outcome::Dropped(result)) => {
            match &result {
                Ok(()) => tracing::info!(name = request.name, "table dropped"),
                Err(error) => tracing::info!(name = request.name, %error, "table not dropped"),
            }
            let _ = answer.send(result);
        }
        (Job::Recall { request, answer, .. }, Outcome::Recalled(result)) => {
            match &result {
                Ok(info) => tracing::info!(app_id = info.app_id, name = info.name, "table recalled"),
                Err(error) => tracing::info!(app_id = request.app_id, %error, "table not recalled"),
            }
            let _ = answer.send(result);
        }
        (Job::Envs { name, change, answer }, Outcome::Envs(result)) => {
            match &result {
                Ok(_) => tracing::info!(name, ?change, "settings of a table changed"),
                Err(error) => tracing::info!(name, %error, "settings of a table not changed"),
            }
            let _ = answer.send(result);
        }
        (Job::Force { answer, .. }, Outcome::Forced(result)) => drop(answer.send(result)),
        (Job::Available(app_id), _) => tracing::info!(app_id, "every member holds its replica"),
        _ => {}
    }
}
