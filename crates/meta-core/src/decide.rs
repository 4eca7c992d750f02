//! Jobs, and what comes of them on top of what is stored and of the jobs before them.

use pegasus_placement::assign::Members;
use pegasus_placement::change::Rejected;
use pegasus_placement::cure::Cure;
use pegasus_placement::envs::EnvChange;
use pegasus_placement::level::FunctionLevel;
use pegasus_placement::liveness::Liveness;
use pegasus_placement::recall::RecallTable;
use pegasus_placement::tables::{CreateTable, DropTable, Limits, TableError};
use pegasus_placement::{Draft, Ledger};
use pegasus_types::meta::{ChangeReply, ChangeRequest};
use pegasus_types::{AppId, AppInfo, Ballot, ErrorCode, Gpid, Millis, Node, PartitionConfig};

/// Something to be stored.
#[derive(Clone, Debug)]
pub enum Job {
    /// A node's request.
    Change(ChangeRequest),
    Create(CreateTable),
    Drop(DropTable),
    Recall(RecallTable),
    Envs {
        name: String,
        change: EnvChange,
    },
    /// An operator's order: the partition begins again with this node's copy.
    Force {
        gpid: Gpid,
        /// The stored one.
        ballot: Ballot,
        node: Node,
    },
    /// An operator's order: the node is to be emptied, or not any more.
    Drain {
        node: Node,
        on: bool,
    },
    /// Configurations of partitions without members, from the cure.
    Assign(Vec<(Gpid, Members)>),
    /// Every member of the table's partitions holds its replica.
    Available(AppId),
    /// Complete what a crash has cut in two.
    Mend(AppId),
}

/// What came of a job, when it is stored.
#[derive(Clone, Debug)]
pub enum Outcome {
    Change(ChangeReply),
    Created(Result<AppId, TableError>),
    Dropped(Result<(), TableError>),
    Recalled(Result<AppInfo, TableError>),
    /// What to say about it.
    Envs(Result<String, TableError>),
    Forced(Result<(), String>),
    Drained(Result<(), String>),
    Nothing,
}

/// What the leader knows, as far as decisions need it.
#[derive(Debug)]
pub struct Desk<'a> {
    pub ledger: &'a mut Ledger,
    pub cure: &'a mut Cure,
    pub liveness: &'a Liveness,
    pub level: FunctionLevel,
    pub limits: &'a Limits,
    pub now: Millis,
    /// Wall clock, seconds since 1970.
    pub now_s: i64,
}

/// A job on its way.
#[derive(Debug)]
pub(crate) struct Task<T> {
    pub job: Job,
    /// The table that an earlier try has made, dropped or recalled: whether that was stored is not known.
    pub made: Option<AppId>,
    pub ticket: T,
}

/// The draft then holds what has to be stored.
pub(crate) fn decide<T>(desk: &Desk<'_>, draft: &mut Draft<'_>, tasks: &mut [Task<T>]) -> Vec<Outcome> {
    tasks.iter_mut().map(|task| decide_one(desk, draft, &task.job, &mut task.made)).collect()
}

fn decide_one(desk: &Desk<'_>, draft: &mut Draft<'_>, job: &Job, made: &mut Option<AppId>) -> Outcome {
    let level = desk.level;
    let refused = |what: &str| TableError {
        code: ErrorCode::StateFreezed,
        hint: format!("{what} is not allowed at level {level}"),
    };
    match job {
        Job::Change(request) => {
            let result = if !level.allows_change() {
                Err(Rejected::LevelForbids)
            } else if desk.cure.is_frozen(request.gpid) {
                Err(Rejected::Frozen)
            } else {
                draft.change(request)
            };
            Outcome::Change(change_reply(draft, request, result))
        }
        Job::Create(request) => {
            if let Some(app_id) = made.filter(|app_id| draft.view().table(*app_id).is_some()) {
                draft.mend(app_id);
                return Outcome::Created(Ok(app_id));
            }
            if !level.allows_create() {
                return Outcome::Created(Err(refused("create")));
            }
            let created = draft.create(desk.limits, request.clone(), desk.now_s).map(|info| info.app_id);
            let is_new = |app_id: &AppId| desk.ledger.view().table(*app_id).is_none();
            *made = created.as_ref().ok().copied().filter(is_new);
            Outcome::Created(created)
        }
        Job::Drop(request) => {
            let is_done = |app_id: &AppId| draft.view().table(*app_id).is_some_and(|t| t.is_dropped());
            if let Some(app_id) = made.filter(is_done) {
                draft.mend(app_id);
                return Outcome::Dropped(Ok(()));
            }
            if !level.allows_change() {
                return Outcome::Dropped(Err(refused("drop")));
            }
            *made = draft.view().table_by_name(&request.name).map(|table| table.info.app_id);
            Outcome::Dropped(draft.drop_table(desk.limits, request, desk.now_s))
        }
        Job::Recall(request) => {
            let is_done = |app_id: &AppId| draft.view().table(*app_id).is_some_and(|t| !t.is_dropped());
            if let Some(app_id) = made.filter(is_done) {
                draft.mend(app_id);
                let info = draft.view().table(app_id).map(|table| table.info.clone());
                return Outcome::Recalled(info.ok_or_else(|| refused("recall")));
            }
            if !level.allows_change() {
                return Outcome::Recalled(Err(refused("recall")));
            }
            let recalled = draft.recall(request, desk.now_s, |node| desk.liveness.is_alive(node));
            if let Ok(info) = &recalled {
                *made = Some(info.app_id);
            }
            Outcome::Recalled(recalled)
        }
        Job::Envs { .. } if !level.allows_change() => Outcome::Envs(Err(refused("a change of settings"))),
        Job::Envs { name, change } => Outcome::Envs(draft.update_envs(name, change)),
        Job::Force { gpid, ballot, node } => {
            let stored = draft.view().partition(*gpid);
            // An earlier try has stored it.
            let again = stored.is_some_and(|c| c.ballot == ballot.next() && c.is_primary(node));
            Outcome::Forced(match draft.force(*gpid, *ballot, node) {
                Err(why) if !again => Err(why.to_string()),
                _ => Ok(()),
            })
        }
        Job::Drain { .. } if !level.allows_change() => Outcome::Drained(Err(refused("drain").hint)),
        Job::Drain { node, on } => Outcome::Drained(draft.drain(node, *on)),
        Job::Assign(list) => {
            for (gpid, members) in list {
                draft.assign(*gpid, members);
            }
            Outcome::Nothing
        }
        Job::Available(app_id) => {
            let table = draft.view().table(*app_id);
            if table.is_some_and(|table| desk.cure.all_hold(&table.partitions)) {
                draft.make_available(*app_id);
            }
            Outcome::Nothing
        }
        Job::Mend(app_id) => {
            draft.mend(*app_id);
            Outcome::Nothing
        }
    }
}

fn change_reply(
    draft: &Draft<'_>,
    request: &ChangeRequest,
    result: Result<PartitionConfig, Rejected>,
) -> ChangeReply {
    match result {
        Ok(config) => ChangeReply::Accepted(config),
        Err(why) => ChangeReply::Rejected {
            current: draft.view().partition(request.gpid).map(|config| (**config).clone()),
            why: why.to_string(),
        },
    }
}
