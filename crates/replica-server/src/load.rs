//! Opening the replicas that lie on the disks: several at a time, off the loop, each replaying its part of the log.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use pegasus_mutation_log::{LogError, MutationLog};
use pegasus_pacifica::{Event, Recovered, Replay, ReplayError};
use pegasus_storage::data_dir::FoundReplica;
use pegasus_storage::{EngineError, EngineFactory, PartitionEngine, ReplicaMeta};
use pegasus_types::{Decree, Gpid, LogLocation};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::node::Shell;
use crate::partition::Replica;
use crate::replica_files;

/// Replicas opened at a time: disk and processors are busy with a few, more would only cost memory.
const AT_A_TIME: usize = 8;
/// Says that the records of this replica have left the log, so that its data alone is no good.
const BROKEN_FILE: &str = ".broken";

/// A replica directory whose disk is index `disk` of the node.
#[derive(Debug)]
pub struct Found {
    pub disk: usize,
    pub replica: FoundReplica,
}

/// What opening needs of the node.
#[derive(Clone)]
struct How {
    factory: Arc<dyn EngineFactory>,
    log: MutationLog,
    /// Committed mutations to keep for peers that lag.
    keep: usize,
    /// False after a power cut without synced log.
    intact: bool,
}

struct Opened {
    meta: ReplicaMeta,
    engine: Arc<dyn PartitionEngine>,
    recovered: Recovered,
    locations: Vec<(Decree, LogLocation)>,
    replayed: usize,
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("{0}")]
    Meta(String),
    #[error("engine: {0}")]
    Engine(#[from] EngineError),
    #[error("log: {0}")]
    Log(#[from] LogError),
    #[error("log: {0}")]
    Replay(#[from] ReplayError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// A replica that could not be opened; stays where it is until the group goes on without it.
#[derive(Debug)]
pub struct Broken {
    pub disk: usize,
}

/// Opens all of `found` and reports each to the core. The core knows them already as being opened.
pub async fn all(shell: Rc<Shell>, found: Vec<Found>) {
    let begun = Instant::now();
    let total = found.len();
    if total > 0 {
        tracing::info!(total, "opening replicas");
    }
    let slots = Arc::new(Semaphore::new(AT_A_TIME));
    let mut tasks = JoinSet::new();
    for found in found {
        let how = shell.with(|state| How {
            factory: shell.factory.clone(),
            log: state.disks[found.disk].log.clone(),
            keep: shell.settings.recent,
            intact: !(shell.settings.page_cache && state.disks[found.disk].rebooted),
        });
        let slots = slots.clone();
        tasks.spawn_local(async move {
            let Ok(_slot) = slots.acquire().await else { return None };
            let Found { disk, replica } = found;
            let (gpid, dir) = (replica.gpid, replica.path.clone());
            let opened = tokio::task::spawn_blocking(move || open(replica, &how)).await;
            Some((disk, gpid, dir, opened.unwrap_or_else(|panic| Err(LoadError::Meta(panic.to_string())))))
        });
    }
    let (mut done, mut failed, mut said) = (0_usize, 0_usize, Instant::now());
    while let Some(finished) = tasks.join_next().await {
        done += 1;
        match finished {
            Ok(Some((disk, gpid, dir, Ok(opened)))) => take_in(&shell, disk, gpid, dir, opened),
            Ok(Some((disk, gpid, _, Err(error)))) => {
                failed += 1;
                tracing::error!(%gpid, %error, "cannot open a replica");
                shell.with(|state| {
                    state.broken.insert(gpid, Broken { disk });
                    state.opening -= 1;
                });
                shell.post(Event::OpenFailed { gpid, why: error.to_string() });
            }
            Ok(None) => shell.with(|state| state.opening -= 1),
            Err(panic) => {
                tracing::error!(%panic, "opening a replica panicked");
                shell.with(|state| state.opening -= 1);
            }
        }
        if said.elapsed().as_secs() >= 1 {
            tracing::info!(done, total, "opening replicas");
            said = Instant::now();
        }
    }
    shell.with(|state| state.disks.iter().for_each(|disk| disk.log.recovery_done()));
    if total > 0 {
        let ms = begun.elapsed().as_millis() as u64;
        tracing::info!(total, failed, ms, "replicas opened");
    }
    shell.meta.report_soon();
}

fn take_in(shell: &Rc<Shell>, disk: usize, gpid: Gpid, dir: PathBuf, opened: Opened) {
    let Opened { meta, engine, recovered, locations, replayed } = opened;
    tracing::info!(
        %gpid, ballot = %recovered.config.ballot, applied = %recovered.applied, replayed,
        tail = recovered.tail.len(), learning = recovered.learning, intact = recovered.intact, "opened"
    );
    let mut replica = Replica::new(gpid, disk, dir, meta, engine);
    for (decree, location) in locations.into_iter().filter(|(decree, _)| *decree > recovered.applied) {
        replica.locations.set(decree, location);
    }
    shell.with(|state| {
        state.replicas.insert(gpid, replica);
        state.opening -= 1;
    });
    shell.post(Event::Opened { gpid, replica: recovered });
}

fn open(found: FoundReplica, how: &How) -> Result<Opened, LoadError> {
    let FoundReplica { gpid, path, meta } = found;
    let meta = meta.map_err(|error| LoadError::Meta(error.to_string()))?;
    let meta = meta.ok_or_else(|| LoadError::Meta("it has no meta file".to_owned()))?;
    if let Ok(why) = std::fs::read_to_string(path.join(BROKEN_FILE)) {
        return Err(LoadError::Meta(format!("found broken at an earlier start: {why}")));
    }
    match open_sound(gpid, &path, meta.clone(), how) {
        Ok(opened) => Ok(opened),
        // Nobody counts on a learner: it begins again, empty.
        Err(error) if meta.learning => {
            tracing::warn!(%gpid, %error, "a learner begins anew");
            how.log.forget(gpid, meta.copy_id);
            let meta = ReplicaMeta { copy_id: rand::random(), ..meta };
            meta.save(&path).map_err(|error| LoadError::Meta(error.to_string()))?;
            let engine = open_engine(&path, &meta, how)?;
            let replay = Replay::new(engine.applied_decree(), how.keep);
            let (recovered, locations) = replay.finish(meta.config.clone(), true, how.intact);
            Ok(Opened { meta, engine, recovered, locations, replayed: 0 })
        }
        Err(error) => {
            let_log_go(gpid, meta.copy_id, &path, how, &error);
            Err(error)
        }
    }
}

fn open_engine(path: &Path, meta: &ReplicaMeta, how: &How) -> Result<Arc<dyn PartitionEngine>, LoadError> {
    replica_files::remove_other_engines(path, meta.copy_id)?;
    let dir = replica_files::engine_dir(path, meta.copy_id);
    std::fs::create_dir_all(&dir)?;
    Ok(how.factory.open(&dir)?)
}

fn open_sound(gpid: Gpid, path: &Path, meta: ReplicaMeta, how: &How) -> Result<Opened, LoadError> {
    let engine = open_engine(path, &meta, how)?;
    let mut records = how.log.replay(gpid, meta.copy_id, engine.applied_decree())?;
    let mut replay = Replay::new(engine.applied_decree(), how.keep);
    let mut apply = Vec::new();
    let mut replayed = 0;
    for record in &mut records {
        let (record, location) = record?;
        replay.push(record.ballot, record.committed, record.mutation, location, &mut apply)?;
        for (mutation, location) in apply.drain(..) {
            engine.apply(mutation.decree, mutation.timestamp_us, &mutation.body, location)?;
            replayed += 1;
        }
    }
    let (recovered, locations) = replay.finish(meta.config.clone(), meta.learning, how.intact);
    Ok(Opened { meta, engine, recovered, locations, replayed })
}

/// A replica that cannot be opened must not pin the log (safety-rules.md 2.7): its records move into its
/// directory, which says from then on that it is broken.
fn let_log_go(gpid: Gpid, copy_id: u64, path: &Path, how: &How, error: &LoadError) {
    let moved =
        how.log.export(gpid, copy_id, &path.join("log-records")).map_err(|error| error.to_string()).and_then(
            |_| std::fs::write(path.join(BROKEN_FILE), error.to_string()).map_err(|error| error.to_string()),
        );
    match moved {
        Ok(()) => how.log.forget(gpid, copy_id),
        Err(why) => tracing::warn!(%gpid, why, "cannot move its records out of the log"),
    }
}
