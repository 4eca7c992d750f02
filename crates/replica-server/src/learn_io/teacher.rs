//! The primary's side of a copy.

use std::rc::Rc;
use std::time::{Duration, Instant};

use pegasus_mutation_log::LogError;
use pegasus_storage::{EngineError, rows};
use pegasus_types::learn::{
    LearnOpen, LearnPlan, LearnRefused, LogChunk, LogRequest, RowsChunk, RowsRequest,
};
use pegasus_types::meta::ReplicaStatus;
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
/// Who is asked for more than it may send in so long says that it is busy, before the learner's patience ends.
const MAX_DEBT: Duration = Duration::from_secs(10);

pub fn open(shell: &Rc<Shell>, request: &LearnOpen) -> Result<LearnPlan, LearnRefused> {
    let LearnOpen { gpid, ballot, signature, committed, resume } = *request;
    let now = clock::boot_ms();
    shell.with(|state| {
        let commit_point = state.core.teach(gpid, ballot, signature)?;
        prune(state);
        let replica = state.replicas.get(&gpid).ok_or(LearnRefused::NotPrimary(ballot))?;
        let rows = replica.engine.sizes().estimated_rows;
        if let Some(id) = resume
            && let Some(held) = state.teaching.resume(now, gpid, id, signature).filter(|held| held.has_rows)
        {
            tracing::info!(%gpid, session = id, decree = %held.decree, "teaching goes on");
            return Ok(LearnPlan::Rows { session: id, decree: held.decree, rows });
        }
        let is_new = state.teaching.of(now, gpid, signature).is_none();
        if is_new && !state.teaching.has_room() || !may_pin(state, replica.disk, shell) {
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
            let held = Teaching { view: None, has_rows: false, decree: committed, copy_id, _pin: pin };
            state.teaching.open(now, gpid, signature, held);
            return Ok(LearnPlan::Log);
        }
        let view = replica.engine.view().map_err(|error| failed(&error))?;
        let decree = view.decree();
        // What is not in the view is above it: committed and logged, or still to come.
        let pin =
            log.pin(gpid, copy_id, decree.next()).map_err(|error| LearnRefused::Failed(error.to_string()))?;
        let held = Teaching { view: Some(view), has_rows: true, decree, copy_id, _pin: pin };
        let session = state.teaching.open(now, gpid, signature, held);
        tracing::info!(%gpid, session, %decree, "teaching");
        Ok(LearnPlan::Rows { session, decree, rows })
    })
}

/// Whether the log of the disk may grow by what a copy keeps of it.
fn may_pin(state: &NodeState, disk: usize, shell: &Shell) -> bool {
    let disk = &state.disks[disk];
    !disk.full && disk.log.stats().bytes <= shell.settings.max_log_bytes
}

/// Gives up the copies that keep a log that is too long, or on a disk that is full.
pub fn abandon(state: &mut NodeState, shell: &Shell) {
    for index in 0..state.disks.len() {
        if may_pin(state, index, shell) {
            continue;
        }
        let replicas = &state.replicas;
        let before = state.teaching.len();
        state.teaching.prune(|gpid, _, _| replicas.get(&gpid).is_some_and(|replica| replica.disk == index));
        let ended = before - state.teaching.len();
        if ended > 0 {
            let (disk, full) = (&state.disks[index].tag, state.disks[index].full);
            state.metrics.teach_abandoned += ended as u64;
            tracing::error!(
                disk,
                full,
                ended,
                "the log gets too long or the disk is full: learners begin anew"
            );
        }
    }
}

/// Waits until so many bytes may be sent.
async fn pace(shell: &Rc<Shell>, bytes: usize) {
    let pause = shell.with(|state| {
        state.metrics.taught_bytes += bytes as u64;
        state.teach_rate.moved(Instant::now(), bytes)
    });
    // The timer knows no less than a millisecond; what is not waited for now is owed.
    if pause >= Duration::from_millis(1) {
        tokio::time::sleep(pause).await;
    }
}

pub async fn rows(shell: &Rc<Shell>, request: RowsRequest) -> Result<RowsChunk, LearnRefused> {
    let RowsRequest { gpid, session, after, max_bytes } = request;
    let gone = LearnRefused::NoSession(session);
    let view = shell.with(|state| {
        let held = state.teaching.get(clock::boot_ms(), gpid, session).filter(|held| held.has_rows);
        let held = held.ok_or(gone)?;
        if state.teach_rate.debt(Instant::now()) > MAX_DEBT {
            return Err(LearnRefused::Busy);
        }
        held.view.take().ok_or(LearnRefused::Busy)
    })?;
    let most = (max_bytes as usize).min(MAX_CHUNK_BYTES);
    let work = move || {
        let chunk = rows::chunk(&*view, after.as_deref(), most);
        (view, chunk)
    };
    let read = shell.copiers.run(work).await;
    let chunk = shell.with(|state| match read {
        Ok((view, chunk)) => {
            // Also after the last rows: that answer may get lost.
            if let Some(held) = state.teaching.get(clock::boot_ms(), gpid, session) {
                held.view = Some(view);
            }
            chunk.map_err(|error| failed(&error))
        }
        Err(panic) => {
            state.teaching.end(session);
            Err(LearnRefused::Failed(panic.to_string()))
        }
    })?;
    pace(shell, chunk.body.len()).await;
    Ok(chunk)
}

pub async fn log(shell: &Rc<Shell>, request: LogRequest) -> Result<LogChunk, LearnRefused> {
    let LogRequest { gpid, signature, from, max_bytes } = request;
    let (log, copy_id, committed) = shell.with(|state| {
        let ballot = state.core.config(gpid).map_or(Ballot::ZERO, |config| config.ballot);
        let committed = state.core.teach(gpid, ballot, signature)?;
        let held = state.teaching.of(clock::boot_ms(), gpid, signature);
        let held = held.ok_or(LearnRefused::NoSession(signature))?;
        // It has all rows.
        (held.view, held.has_rows) = (None, false);
        let copy_id = held.copy_id;
        let replica = state.replicas.get(&gpid).ok_or(LearnRefused::NotPrimary(ballot))?;
        Ok((state.disks[replica.disk].log.clone(), copy_id, committed))
    })?;
    if from > committed {
        return Ok(LogChunk { mutations: Vec::new(), committed });
    }
    let most = (max_bytes as usize).min(MAX_CHUNK_BYTES);
    let read = shell.copiers.run(move || log.read_range(gpid, copy_id, from, committed, most)).await;
    match read.map_err(|panic| LearnRefused::Failed(panic.to_string()))? {
        Ok(read) => {
            let mutations: Vec<_> = read.into_iter().map(|(_, mutation)| mutation).collect();
            pace(shell, mutations.iter().map(|mutation| mutation.body.len()).sum()).await;
            Ok(LogChunk { mutations, committed })
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

/// Ends sessions of which nobody needs the rest: the learner is a member, or the log is all that it wants, and it is
/// not being taught. One that copies rows may have lost its connection, and comes back.
fn prune(state: &mut NodeState) {
    let core = &state.core;
    let is_over = |gpid, signature, held: &Teaching| {
        let ballot = core.config(gpid).map_or(Ballot::ZERO, |config| config.ballot);
        core.status(gpid) != Some(ReplicaStatus::Primary)
            || (!held.has_rows && core.teach(gpid, ballot, signature).is_err())
    };
    state.teaching.prune(is_over);
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
