//! The learner's side of a copy.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pegasus_pacifica::{Event, Fault};
use pegasus_rpc::peer::{CallError, ReplicaClient};
use pegasus_storage::rows::Loading;
use pegasus_storage::{EngineError, PartitionEngine, Pressure};
use pegasus_types::learn::{LearnOpen, LearnPlan, LearnRefused, LogRequest, RowsChunk, RowsRequest};
use pegasus_types::{Ballot, Decree, Gpid, Node};

use super::sessions::EXPIRE_MS;
use super::{Copying, Partial, Progress, Stage};
use crate::clock;
use crate::compaction;
use crate::node::{NodeState, Shell};
use crate::partition::locations::Locations;
use crate::replica_files;

/// One call of a copy: the teacher reads at most [`CHUNK_BYTES`] for it.
const CALL_WITHIN: Duration = Duration::from_secs(30);
/// What is asked for at a time: large enough that the round trip does not matter.
const CHUNK_BYTES: u32 = 1 << 20;
/// A teacher that is busy with others is asked again after this time.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// While memtables are full, their flush is waited for in such steps.
const PRESSURE_PAUSE: Duration = Duration::from_millis(10);
/// When flushes are behind, each chunk waits so long at most: clients come first, but the copy must come to an end.
const PRESSURE_MOST: Duration = Duration::from_millis(200);
/// A broken stream is taken up again, for somewhat less than the teacher keeps its session.
const RESUME_WITHIN: Duration = Duration::from_millis(EXPIRE_MS - 10_000);
/// Rows of an interrupted copy are kept so long: then the teacher has surely ended its session.
const PARTIAL_WITHIN: Duration = Duration::from_millis(EXPIRE_MS + CALL_WITHIN.as_millis() as u64);

/// Why a copy ended.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("call: {0}")]
    Call(#[from] CallError),
    #[error("refused: {0}")]
    Refused(#[from] LearnRefused),
    #[error("engine: {0}")]
    Engine(#[from] EngineError),
    #[error("{0}")]
    Local(String),
}

impl Failed {
    /// Whether another try from the beginning may help.
    fn restart(&self) -> bool {
        match self {
            Self::Call(_) => true,
            Self::Refused(LearnRefused::NoSession(_) | LearnRefused::LogGone(_) | LearnRefused::Busy) => true,
            Self::Refused(LearnRefused::NotPrimary(_) | LearnRefused::Failed(_)) => false,
            Self::Engine(_) | Self::Local(_) => false,
        }
    }
}

/// Begins a copy; an earlier one of the partition ends.
pub fn start(
    state: &mut NodeState,
    shell: &Rc<Shell>,
    gpid: Gpid,
    from: Node,
    ballot: Ballot,
    signature: u64,
    committed: Decree,
) {
    tracing::info!(%gpid, teacher = %from, signature, %committed, "learning");
    let client = shell.pool.replica(&from);
    let partial = state.partials.get(&gpid).filter(|partial| partial.teacher == from);
    let request =
        LearnOpen { gpid, ballot, signature, committed, resume: partial.map(|partial| partial.session) };
    let task = {
        let shell = shell.clone();
        tokio::task::spawn_local(async move {
            let copied = copy(&shell, client, request).await;
            report(
                &shell,
                gpid,
                signature,
                copied.map(|decree| Event::CopiedRows { gpid, signature, decree }),
            );
        })
    };
    let progress = Progress::new(from);
    state.copying.insert(gpid, Copying { signature, progress, task: task.abort_handle() });
}

/// Fetches the next chunk of the primary's log.
pub fn fetch(
    state: &mut NodeState,
    shell: &Rc<Shell>,
    gpid: Gpid,
    from: Node,
    signature: u64,
    after: Decree,
) {
    let client = shell.pool.replica(&from);
    let task = {
        let shell = shell.clone();
        tokio::task::spawn_local(async move {
            let request = LogRequest { gpid, signature, from: after.next(), max_bytes: CHUNK_BYTES };
            let answer = client.learn_log(CALL_WITHIN, request).await;
            tracing::debug!(%gpid, %after, fetched = ?answer.as_ref().map(|a| a.as_ref().map(|c| (c.mutations.len(), c.committed))), "log");
            let fetched = match answer {
                Ok(Ok(chunk)) => {
                    let bytes = chunk.mutations.iter().map(|mutation| mutation.body.len()).sum();
                    moved(&shell, gpid, 0, bytes).await;
                    Ok(Event::Fetched {
                        gpid,
                        signature,
                        mutations: chunk.mutations,
                        committed: chunk.committed,
                    })
                }
                Ok(Err(refused)) => Err(refused.into()),
                Err(error) => Err(Failed::from(error)),
            };
            report(&shell, gpid, signature, fetched);
        })
    };
    let before = state.copying.remove(&gpid).filter(|copying| copying.signature == signature);
    let mut progress = before.map_or_else(|| Progress::new(from), |copying| copying.progress.clone());
    progress.stage = Stage::Log;
    state.copying.insert(gpid, Copying { signature, progress, task: task.abort_handle() });
}

/// Counts what has come, and waits until more may come.
async fn moved(shell: &Rc<Shell>, gpid: Gpid, rows: u64, bytes: usize) {
    let pause = shell.with(|state| {
        state.metrics.learned_bytes += bytes as u64;
        if let Some(Copying { progress, .. }) = state.copying.get_mut(&gpid) {
            progress.rows += rows;
            progress.bytes += bytes as u64;
        }
        state.learn_rate.moved(Instant::now(), bytes)
    });
    // The timer knows no less than a millisecond; what is not waited for now is owed.
    if pause >= Duration::from_millis(1) {
        tokio::time::sleep(pause).await;
    }
}

fn report(shell: &Rc<Shell>, gpid: Gpid, signature: u64, result: Result<Event, Failed>) {
    shell.post(result.unwrap_or_else(|failed| {
        tracing::warn!(%gpid, signature, %failed, "learning failed");
        shell.with(|state| state.metrics.learn_failed += 1);
        Event::CopyFailed { gpid, signature, restart: failed.restart(), why: failed.to_string() }
    }));
}

/// The decree at which the engine stands in the end.
async fn copy(shell: &Rc<Shell>, client: ReplicaClient, request: LearnOpen) -> Result<Decree, Failed> {
    let (gpid, signature) = (request.gpid, request.signature);
    let slots = shell.learning.clone();
    let _slot = slots.acquire_owned().await.map_err(|_| Failed::Local("shutting down".to_owned()))?;
    while shell.with(|state| state.switching.contains(&gpid)) {
        tokio::time::sleep(PRESSURE_PAUSE).await;
    }
    let mut said = false;
    let plan = loop {
        match client.learn_open(CALL_WITHIN, request.clone()).await? {
            Err(LearnRefused::Busy) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::info!(%gpid, teacher = %client.node(), "teacher is busy, waiting");
                }
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            answer => break answer?,
        }
    };
    tracing::debug!(%gpid, ?plan, "learning");
    let (session, decree, of_rows) = match plan {
        LearnPlan::Log => {
            shell.with(|state| {
                state.metrics.learned_by_log += 1;
                drop_partial(state, gpid);
            });
            return Ok(request.committed);
        }
        LearnPlan::Rows { session, decree, rows } => (session, decree, rows),
    };
    resume_or_begin(shell, &client, gpid, session, decree).await?;
    shell.with(|state| {
        let have = state.partials.get(&gpid).map_or(0, |partial| partial.loading.rows());
        if let Some(Copying { progress, .. }) = state.copying.get_mut(&gpid) {
            (progress.stage, progress.rows, progress.of_rows) = (Stage::Rows, have, of_rows);
        }
    });
    let (copy_id, begun_ms, loading) = loop {
        ease_pressure(shell).await;
        let next = shell.with(|state| {
            let partial = state.partials.get_mut(&gpid).ok_or_else(stopped)?;
            partial.used = Instant::now();
            let disk = state.replicas.get(&gpid).map(|replica| &state.disks[replica.disk]);
            if disk.is_none_or(|disk| disk.full) {
                return Err(Failed::Local("the disk is full".to_owned()));
            }
            Ok((!partial.loading.is_done()).then(|| partial.loading.after().cloned()))
        })?;
        let Some(after) = next else {
            let whole = shell.with(|state| state.partials.remove(&gpid)).ok_or_else(stopped)?;
            break (whole.copy_id, whole.begun_ms, whole.loading);
        };
        let rows = RowsRequest { gpid, session, after, max_bytes: CHUNK_BYTES };
        let chunk = next_rows(shell, &client, rows).await?;
        let bytes = chunk.body.len();
        // Not left to a stopped task: then its rows would be gone, and the copy would begin anew.
        let mut partial = shell.with(|state| state.partials.remove(&gpid)).ok_or_else(stopped)?;
        let added = tokio::task::spawn_local({
            let shell = shell.clone();
            async move {
                let add = move || {
                    let before = partial.loading.rows();
                    let added = partial.loading.add(&chunk);
                    (partial, before, added)
                };
                let added = shell.copiers.run(add).await;
                let (partial, before, added) = added.map_err(|panic| Failed::Local(panic.to_string()))?;
                let rows = partial.loading.rows() - before;
                if let Err(error) = added {
                    // A copy that does not take its rows begins with an empty engine the next time.
                    drop_off_loop(partial);
                    return Err(error.into());
                }
                shell.with(|state| {
                    let newest = state.copying.get(&gpid);
                    if newest.is_none_or(|copying| copying.signature == signature) {
                        state.partials.insert(gpid, partial);
                    } else {
                        // Another copy has begun without it.
                        drop_off_loop(partial);
                    }
                });
                Ok(rows)
            }
        });
        let rows = added.await.unwrap_or_else(|panic| Err(Failed::Local(panic.to_string())))?;
        moved(shell, gpid, rows, bytes).await;
    };
    let (rows, engine) = (loading.rows(), loading.engine().clone());
    let now_us = clock::wall_us();
    if let Err(error) = off_loop(move || Ok(loading.finish(decree, now_us)?)).await {
        drop_off_loop(engine);
        return Err(error);
    }
    // A task of its own: begun, it must come to an end even when this copy is stopped.
    let switching = switch(shell.clone(), gpid, signature, copy_id, begun_ms, engine);
    let switched = tokio::task::spawn_local(switching);
    switched.await.unwrap_or_else(|panic| Err(Failed::Local(panic.to_string())))?;
    tracing::info!(%gpid, rows, %decree, "rows copied");
    shell.with(|state| state.metrics.learned += 1);
    Ok(decree)
}

fn stopped() -> Failed {
    Failed::Local("the copy was stopped".to_owned())
}

/// Afterwards there is a partial copy of the session.
async fn resume_or_begin(
    shell: &Rc<Shell>,
    client: &ReplicaClient,
    gpid: Gpid,
    session: u64,
    decree: Decree,
) -> Result<(), Failed> {
    let resumed = shell.with(|state| {
        let partial = state.partials.get(&gpid)?;
        let is_same = (&partial.teacher, partial.session, partial.decree) == (client.node(), session, decree);
        if !is_same {
            drop_partial(state, gpid);
            return None;
        }
        state.metrics.learn_resumed += 1;
        Some(partial.loading.rows())
    });
    if let Some(rows) = resumed {
        tracing::info!(%gpid, teacher = %client.node(), session, rows, "the copy goes on where it was");
        return Ok(());
    }
    let (copy_id, begun_ms) = (rand::random(), clock::wall_us() / 1000);
    let engine = open_second_engine(shell, gpid, copy_id).await?;
    let loading = Loading::new(engine)?;
    let used = Instant::now();
    let teacher = client.node().clone();
    let partial = Partial { teacher, session, decree, copy_id, loading, begun_ms, used };
    shell.with(|state| state.partials.insert(gpid, partial));
    Ok(())
}

/// Repeats what a broken connection has lost.
async fn next_rows(
    shell: &Rc<Shell>,
    client: &ReplicaClient,
    request: RowsRequest,
) -> Result<RowsChunk, Failed> {
    let mut broken: Option<Instant> = None;
    loop {
        match client.learn_rows(CALL_WITHIN, request.clone()).await {
            Ok(Err(LearnRefused::Busy)) => {}
            Ok(answer) => {
                if broken.is_some() {
                    tracing::info!(gpid = %request.gpid, teacher = %client.node(), "the copy goes on");
                    shell.with(|state| state.metrics.learn_resumed += 1);
                }
                return Ok(answer?);
            }
            Err(error) => {
                let since = *broken.get_or_insert_with(Instant::now);
                tracing::debug!(gpid = %request.gpid, %error, "rows");
                if since.elapsed() >= RESUME_WITHIN {
                    return Err(error.into());
                }
            }
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

/// Clients' writes come first.
async fn ease_pressure(shell: &Rc<Shell>) {
    let begun = Instant::now();
    loop {
        match shell.factory.pressure() {
            Pressure::None => return,
            Pressure::Slow if begun.elapsed() >= PRESSURE_MOST => return,
            Pressure::Slow | Pressure::Stop => tokio::time::sleep(PRESSURE_PAUSE).await,
        }
    }
}

/// Whatever is left of a copy; its directory goes with the next one, or with the replica.
pub fn drop_partial(state: &mut NodeState, gpid: Gpid) {
    if let Some(partial) = state.partials.remove(&gpid) {
        // Waits for flushes and compactions.
        drop_off_loop(partial);
    }
}

/// Ends interrupted copies that cannot be resumed any more.
pub fn expire(shell: &Rc<Shell>) {
    shell.with(|state| {
        let old = |partial: &Partial| partial.used.elapsed() >= PARTIAL_WITHIN;
        let gone: Vec<_> = state.partials.iter().filter(|(_, p)| old(p)).map(|(gpid, _)| *gpid).collect();
        gone.into_iter().for_each(|gpid| drop_partial(state, gpid));
    });
}

/// What owns an engine: to drop it waits for its flushes and compactions.
fn drop_off_loop<T: Send + 'static>(owner: T) {
    drop(tokio::task::spawn_blocking(move || drop(owner)));
}

async fn off_loop<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(Failed::Local(panic.to_string())))
}

/// An empty engine beside the present one.
async fn open_second_engine(
    shell: &Rc<Shell>,
    gpid: Gpid,
    copy_id: u64,
) -> Result<Arc<dyn PartitionEngine>, Failed> {
    let place = shell.with(|state| state.replicas.get(&gpid).map(|r| (r.dir.clone(), r.copy_id)));
    let (dir, present) = place.ok_or_else(|| Failed::Local("the replica is gone".to_owned()))?;
    let factory = shell.factory.clone();
    let work = move || {
        let io = |error: std::io::Error| Failed::Local(error.to_string());
        replica_files::remove_other_engines(&dir, present).map_err(io)?;
        let path = replica_files::engine_dir(&dir, copy_id);
        std::fs::create_dir_all(&path).map_err(io)?;
        Ok(factory.open(&path)?)
    };
    shell
        .lanes
        .run(gpid, work)
        .await
        .unwrap_or_else(|| Err(Failed::Local("opening an engine panicked".to_owned())))
}

/// A new life of the replica begins: the meta file names it first, then memory follows.
async fn switch(
    shell: Rc<Shell>,
    gpid: Gpid,
    signature: u64,
    copy_id: u64,
    begun_ms: u64,
    engine: Arc<dyn PartitionEngine>,
) -> Result<(), Failed> {
    shell.with(|state| state.switching.insert(gpid));
    let result = switch_saved(&shell, gpid, signature, copy_id, begun_ms, engine.clone()).await;
    shell.with(|state| state.switching.remove(&gpid));
    drop_off_loop(engine);
    result
}

async fn switch_saved(
    shell: &Rc<Shell>,
    gpid: Gpid,
    signature: u64,
    copy_id: u64,
    begun_ms: u64,
    engine: Arc<dyn PartitionEngine>,
) -> Result<(), Failed> {
    let gone = stopped;
    let name_life = |id: u64| {
        shell.with(|state| {
            let replica = state.replicas.get_mut(&gpid)?;
            // From here on every save names that life, in whatever order saves are asked for.
            replica.meta.copy_id = id;
            Some(replica_files::save_meta(shell, replica))
        })
    };
    let present = shell.with(|state| {
        let replica = state.replicas.get(&gpid)?;
        let log = state.disks[replica.disk].log.clone();
        Some((replica.dir.clone(), replica.copy_id, replica.engine.clone(), log))
    });
    let (dir, old, old_engine, log) = present.ok_or_else(gone)?;
    let keep = move || replica_files::keep_life(&dir, gpid, old, &*old_engine, &log);
    let kept = shell.lanes.run(gpid, keep).await;
    kept.unwrap_or_else(|| Err("keeping the present life panicked".to_owned())).map_err(Failed::Local)?;
    let saved = name_life(copy_id).ok_or_else(gone)?.await.map_err(Failed::Local);
    let is_current = shell.with(|state| state.copying.get(&gpid).is_some_and(|c| c.signature == signature));
    if saved.is_err() || !is_current {
        // It goes on with its old life, and so must every meta file from here on: one that named the other would lead
        // the next start to an engine without what this life acknowledges.
        let old = shell.with(|state| state.replicas.get(&gpid).map(|replica| replica.copy_id));
        if let Some(Err(why)) = futures::future::OptionFuture::from(old.and_then(name_life)).await {
            // Nobody knows what the file names now.
            shell.post(Event::Failed { gpid, fault: Fault::Save, why });
        }
        return Err(saved.err().unwrap_or_else(gone));
    }
    let switched = shell.with(|state| {
        let replica = state.replicas.get_mut(&gpid)?;
        let old = std::mem::replace(&mut replica.copy_id, copy_id);
        let old_engine = std::mem::replace(&mut replica.engine, engine);
        replica.locations = Locations::default();
        replica.needed_from = Decree::ZERO;
        let (disk, dir) = (replica.disk, replica.dir.clone());
        state.compactions.stop(gpid);
        compaction::copied(state, shell, gpid, begun_ms);
        Some((state.disks[disk].log.clone(), old, old_engine, dir))
    });
    let (log, old, old_engine, dir) = switched.ok_or_else(gone)?;
    log.forget(gpid, old);
    let cleaned = shell.lanes.run(gpid, move || {
        // Waits for its flushes and compactions: not on the loop.
        replica_files::let_go(old_engine, gpid);
        replica_files::remove_other_engines(&dir, copy_id)
    });
    tokio::task::spawn_local(async move {
        if let Some(Err(error)) = cleaned.await {
            // Tried again at the next start.
            tracing::warn!(%gpid, %error, "cannot remove the engine of an earlier life");
        }
    });
    Ok(())
}
