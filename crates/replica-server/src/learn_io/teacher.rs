//! The primary's side of a copy.

use std::rc::Rc;

use pegasus_mutation_log::LogError;
use pegasus_storage::{EngineError, rows};
use pegasus_types::learn::{
    LearnOpen, LearnPlan, LearnRefused, LogChunk, LogRequest, RowsChunk, RowsRequest,
};
use pegasus_types::{Ballot, Decree};

use super::{Teaching, sessions::EXPIRE_MS};
use crate::clock;
use crate::node::{NodeState, Shell};

/// A learner that is further behind copies rows: replaying so many mutations would take longer.
const MAX_LOG_DISTANCE: i64 = 200_000;
/// A learner that has nothing copies rows when there are more mutations than this: the log tells of rows that
/// were overwritten since, too.
const MAX_LOG_FROM_NOTHING: i64 = 100;
/// Largest answer; what the learner asks for is cut to it.
const MAX_CHUNK_BYTES: usize = 4 << 20;

pub fn open(shell: &Rc<Shell>, request: &LearnOpen) -> Result<LearnPlan, LearnRefused> {
    let LearnOpen { gpid, ballot, signature, committed } = *request;
    let now = clock::boot_ms();
    shell.with(|state| {
        let commit_point = state.core.teach(gpid, ballot, signature)?;
        prune(state);
        let replica = state.replicas.get(&gpid).ok_or(LearnRefused::NotPrimary(ballot))?;
        if state.teaching.of(now, gpid, signature).is_none() && !state.teaching.has_room() {
            return Err(LearnRefused::Busy);
        }
        let log = &state.disks[replica.disk].log;
        let copy_id = replica.copy_id;
        let next = committed.next();
        let is_readable = commit_point == committed || next > replica.unreadable;
        let is_near = committed <= commit_point && commit_point.0 - committed.0 <= MAX_LOG_DISTANCE;
        let worth = committed > Decree::ZERO || commit_point.0 <= MAX_LOG_FROM_NOTHING;
        let reaches = commit_point == committed || log.held(gpid, copy_id).is_some_and(|(lo, _)| lo <= next);
        if is_near
            && is_readable
            && worth
            && reaches
            && let Ok(pin) = log.pin(gpid, copy_id, next)
        {
            let held = Teaching { view: None, has_rows: false, copy_id, _pin: pin };
            state.teaching.open(now, gpid, signature, held);
            return Ok(LearnPlan::Log);
        }
        let view = replica.engine.view().map_err(|error| failed(&error))?;
        let decree = view.decree();
        // What is not in the view is above it: committed and logged, or still to come.
        let pin =
            log.pin(gpid, copy_id, decree.next()).map_err(|error| LearnRefused::Failed(error.to_string()))?;
        let held = Teaching { view: Some(view), has_rows: true, copy_id, _pin: pin };
        let session = state.teaching.open(now, gpid, signature, held);
        tracing::info!(%gpid, session, %decree, "teaching");
        Ok(LearnPlan::Rows { session, decree })
    })
}

pub async fn rows(shell: &Rc<Shell>, request: RowsRequest) -> Result<RowsChunk, LearnRefused> {
    let RowsRequest { gpid, session, after, max_bytes } = request;
    let gone = LearnRefused::NoSession(session);
    let view = shell.with(|state| {
        let held = state.teaching.get(clock::boot_ms(), gpid, session).filter(|held| held.has_rows);
        held.ok_or(gone)?.view.take().ok_or(LearnRefused::Busy)
    })?;
    let most = (max_bytes as usize).min(MAX_CHUNK_BYTES);
    let work = move || {
        let chunk = rows::chunk(&*view, after.as_deref(), most);
        (view, chunk)
    };
    let (view, chunk) =
        tokio::task::spawn_blocking(work).await.map_err(|panic| LearnRefused::Failed(panic.to_string()))?;
    let chunk = chunk.map_err(|error| failed(&error))?;
    shell.with(|state| {
        // The last rows need the view no more; a chunk that gets lost is asked for again from the beginning.
        if let Some(held) = state.teaching.get(clock::boot_ms(), gpid, session).filter(|_| !chunk.done) {
            held.view = Some(view);
        }
    });
    Ok(chunk)
}

pub async fn log(shell: &Rc<Shell>, request: LogRequest) -> Result<LogChunk, LearnRefused> {
    let LogRequest { gpid, signature, from, max_bytes } = request;
    let (log, copy_id, committed) = shell.with(|state| {
        let ballot = state.core.config(gpid).map_or(Ballot::ZERO, |config| config.ballot);
        let committed = state.core.teach(gpid, ballot, signature)?;
        let held = state.teaching.of(clock::boot_ms(), gpid, signature);
        let copy_id = held.ok_or(LearnRefused::NoSession(signature))?.copy_id;
        let replica = state.replicas.get(&gpid).ok_or(LearnRefused::NotPrimary(ballot))?;
        Ok((state.disks[replica.disk].log.clone(), copy_id, committed))
    })?;
    if from > committed {
        return Ok(LogChunk { mutations: Vec::new(), committed });
    }
    let most = (max_bytes as usize).min(MAX_CHUNK_BYTES);
    let read =
        tokio::task::spawn_blocking(move || log.read_range(gpid, copy_id, from, committed, most)).await;
    match read.map_err(|panic| LearnRefused::Failed(panic.to_string()))? {
        Ok(read) => {
            Ok(LogChunk { mutations: read.into_iter().map(|(_, mutation)| mutation).collect(), committed })
        }
        Err(LogError::LogGone { from, .. }) => Err(LearnRefused::LogGone(from)),
        Err(error @ LogError::BadRecord { .. }) => {
            tracing::error!(%gpid, %error, "a record that a learner asks for is damaged: it gets rows");
            shell.with(|state| {
                let Some(replica) = state.replicas.get_mut(&gpid) else { return };
                replica.unreadable = replica.unreadable.max(committed);
                // While the process lives, memory has what the next start would miss.
                if replica.engine.durable_decree() < committed
                    && let Err(error) = replica.engine.flush(false)
                {
                    tracing::warn!(%gpid, %error, "flush of what the log has lost");
                }
            });
            Err(LearnRefused::LogGone(from))
        }
        Err(error) => Err(LearnRefused::Failed(error.to_string())),
    }
}

fn failed(error: &EngineError) -> LearnRefused {
    LearnRefused::Failed(error.to_string())
}

/// Ends sessions whose learner is no pupil any more.
fn prune(state: &mut NodeState) {
    let core = &state.core;
    state.teaching.prune(|gpid, signature| {
        let ballot = core.config(gpid).map_or(Ballot::ZERO, |config| config.ballot);
        core.teach(gpid, ballot, signature).is_err()
    });
}

/// Ends sessions that nobody used for [`EXPIRE_MS`].
pub fn expire(shell: &Rc<Shell>) {
    let ended = shell.with(|state| {
        prune(state);
        state.teaching.expire(clock::boot_ms())
    });
    if ended > 0 {
        tracing::warn!(ended, after_ms = EXPIRE_MS, "learning sessions without a sign of life ended");
    }
}
