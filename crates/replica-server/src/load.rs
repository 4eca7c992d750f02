//! Opening the replicas that lie on the disks: several at a time, off the loop, each replaying its part of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use pegasus_mutation_log::{LogError, MutationLog};
use pegasus_pacifica::{Event, Recovered, Replay, ReplayError};
use pegasus_storage::data_dir::FoundReplica;
use pegasus_storage::replica_meta::SmallFileError;
use pegasus_storage::{EngineError, EngineFactory, PartitionEngine, ReplicaMeta};
use pegasus_types::{Decree, Gpid, LogLocation};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::clock;
use crate::compaction::Compaction;
use crate::compaction::saved::Saved;
use crate::node::Shell;
use crate::partition::Replica;
use crate::replica_files;

/// Replicas opened at a time: disk and processors are busy with a few, more would only cost memory.
const AT_A_TIME: usize = 8;
/// Says that this replica is damaged and its records have left the log, so that its data alone is no good.
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
    compacted: Saved,
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

impl LoadError {
    /// What is on disk is not what was written, and no other start will find it better.
    fn is_damage(&self) -> bool {
        match self {
            Self::Engine(error) => matches!(error, EngineError::Corrupt(_)),
            Self::Log(error) => matches!(error, LogError::Damaged { .. }),
            Self::Replay(_) => true,
            Self::Meta(_) | Self::Io(_) => false,
        }
    }
}

/// Why a replica could not be opened.
struct Failure {
    error: LoadError,
    /// It is damaged, and that could not be noted: the log has to find it out again at the next start.
    unnoted: bool,
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
    let mut unclean = Vec::new();
    for found in found {
        let how = shell.with(|state| How {
            factory: shell.factory.clone(),
            log: state.disks[found.disk].log.clone(),
            keep: shell.settings.recent,
            intact: !state.disks[found.disk].lost_power_unsynced,
        });
        if !how.intact {
            unclean.push((found.replica.gpid, found.replica.path.clone()));
        }
        let slots = slots.clone();
        tasks.spawn_local(async move {
            let Ok(_slot) = slots.acquire().await else { return None };
            let Found { disk, replica } = found;
            let (gpid, dir) = (replica.gpid, replica.path.clone());
            let opened = tokio::task::spawn_blocking(move || open(replica, &how)).await;
            let panicked = |panic: tokio::task::JoinError| Failure {
                error: LoadError::Meta(panic.to_string()),
                unnoted: true,
            };
            Some((disk, gpid, dir, opened.unwrap_or_else(|panic| Err(panicked(panic)))))
        });
    }
    let (mut done, mut failed, mut said) = (0_usize, 0_usize, Instant::now());
    let mut unsettled = BTreeSet::new();
    while let Some(finished) = tasks.join_next().await {
        done += 1;
        match finished {
            Ok(Some((disk, gpid, dir, Ok(opened)))) => take_in(&shell, disk, gpid, dir, opened),
            Ok(Some((disk, gpid, _, Err(Failure { error, unnoted })))) => {
                failed += 1;
                unsettled.extend(unnoted.then_some(disk));
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
    shell.with(|state| {
        let settled = state.disks.iter().enumerate().filter(|(index, _)| !unsettled.contains(index));
        settled.for_each(|(_, disk)| disk.log.recovery_done());
    });
    if total > 0 {
        let ms = begun.elapsed().as_millis() as u64;
        tracing::info!(total, failed, ms, "replicas opened");
    }
    shell.meta.report_soon();
    note_boot(&shell, unclean).await;
}

/// Replicas that may lack acknowledged writes stand down, which their meta files have to say before this boot of the
/// machine counts as known: the next start would trust them else.
async fn note_boot(shell: &Rc<Shell>, unclean: Vec<(Gpid, PathBuf)>) {
    // The core hears of the last of them, and has what follows saved.
    shell.with(|state| state.turn(shell, clock::boot_ms()));
    for (gpid, path) in unclean {
        let me = shell.me.clone();
        let says_so = move || match ReplicaMeta::load(&path) {
            Ok(Some(meta)) => meta.learning || !meta.config.is_member(&me),
            // Set aside meanwhile.
            Ok(None) => !path.exists(),
            // Can never be opened; else it must be looked at again.
            Err(error) => !matches!(error, SmallFileError::Io { .. }),
        };
        if shell.lanes.run(gpid, says_so).await != Some(true) {
            tracing::warn!(%gpid, "it is not on disk yet that it lost power; the next start will look again");
            return;
        }
    }
    let (dirs, unsynced) = (shell.dirs.clone(), shell.settings.page_cache);
    if let Err(panic) = tokio::task::spawn_blocking(move || dirs.note_boot(unsynced)).await {
        tracing::error!(%panic, "noting the boot of the machine");
    }
}

/// Of several directories of one replica only the one that was a member last may be opened: an older one, come back
/// with its disk or with an operator's copy, would be taken for it, and what it has acknowledged since be lost. Where
/// that cannot be told, none is opened.
pub fn newest(all: Vec<Found>) -> Vec<Found> {
    let mut by_gpid: BTreeMap<Gpid, Vec<Found>> = BTreeMap::new();
    for found in all {
        by_gpid.entry(found.replica.gpid).or_default().push(found);
    }
    by_gpid.into_values().flat_map(newest_of).collect()
}

fn newest_of(mut found: Vec<Found>) -> Vec<Found> {
    if found.len() < 2 {
        return found;
    }
    for Found { disk, replica } in &found {
        tracing::error!(gpid = %replica.gpid, disk, path = %replica.path.display(), "one of several directories of a replica");
    }
    let ballot = |found: &Found| Some(found.replica.meta.as_ref().ok()?.as_ref()?.config.ballot);
    found.sort_by_key(ballot);
    let is_clear =
        ballot(&found[0]).is_some() && ballot(&found[found.len() - 1]) > ballot(&found[found.len() - 2]);
    if is_clear {
        return found.split_off(found.len() - 1);
    }
    for Found { replica, .. } in &mut found {
        let why = "there are several directories of this replica, and it is not clear which is the newest"
            .to_owned();
        replica.meta = Err(SmallFileError::Damaged { path: replica.path.display().to_string(), why });
    }
    found
}

fn take_in(shell: &Rc<Shell>, disk: usize, gpid: Gpid, dir: PathBuf, opened: Opened) {
    let Opened { meta, engine, recovered, locations, replayed, compacted } = opened;
    tracing::info!(
        %gpid, ballot = %recovered.config.ballot, applied = %recovered.applied, replayed,
        tail = recovered.tail.len(), learning = recovered.learning, intact = recovered.intact, "opened"
    );
    let compaction = Compaction::new(&meta.app, compacted);
    let mut replica = Replica { compaction, ..Replica::new(gpid, disk, dir, meta, engine) };
    for (decree, location) in locations.into_iter().filter(|(decree, _)| *decree > recovered.applied) {
        replica.locations.set(decree, location);
    }
    shell.with(|state| {
        state.take_in(replica, Event::Opened { gpid, replica: recovered });
        state.opening -= 1;
    });
    shell.wake.notify_one();
}

fn open(found: FoundReplica, how: &How) -> Result<Opened, Failure> {
    let FoundReplica { gpid, path, meta } = found;
    let failure = |why: String| Failure { error: LoadError::Meta(why), unnoted: false };
    let meta =
        meta.map_err(|error| error.to_string()).and_then(|meta| meta.ok_or("it has no meta file".into()));
    let meta = meta.map_err(|why| {
        // Which of these are its records is not known.
        how.log.copies(gpid).into_iter().for_each(|copy_id| how.log.keep(gpid, copy_id));
        failure(why)
    })?;
    // Whatever goes wrong from here on may go well at the next start, which needs its records.
    how.log.keep(gpid, meta.copy_id);
    if let Ok(why) = std::fs::read_to_string(path.join(BROKEN_FILE)) {
        return Err(failure(format!("found broken at an earlier start: {why}")));
    }
    let copy_id = meta.copy_id;
    match open_sound(gpid, &path, meta, how) {
        Ok(opened) => Ok(opened),
        // A learner's, too: who has stood down is one, and after a power cut of the whole group its data may be all
        // that is left. Where the group goes on without it, it is put aside and learns into a new directory.
        Err(error) => {
            let unnoted = error.is_damage() && !let_log_go(gpid, copy_id, &path, how, &error);
            Err(Failure { error, unnoted })
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
    Ok(Opened { meta, engine, recovered, locations, replayed, compacted: Saved::load(path) })
}

/// A damaged replica must not pin the log (safety-rules.md 2.7): its records move into its directory, which says from
/// then on that it is broken. False when that did not work, and the log keeps them.
fn let_log_go(gpid: Gpid, copy_id: u64, path: &Path, how: &How, error: &LoadError) -> bool {
    let note = || -> std::io::Result<()> {
        let mut file = File::create(path.join(BROKEN_FILE))?;
        file.write_all(error.to_string().as_bytes())?;
        file.sync_all()?;
        File::open(path)?.sync_all()
    };
    let exported =
        how.log.export(gpid, copy_id, &path.join("log-records")).map_err(|error| error.to_string());
    match exported.and_then(|_| note().map_err(|error| error.to_string())) {
        Ok(()) => {
            how.log.forget(gpid, copy_id);
            true
        }
        Err(why) => {
            tracing::warn!(%gpid, why, "cannot move its records out of the log");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use pegasus_types::{AppInfo, AppStatus, Ballot, PartitionConfig};

    use super::*;

    #[test]
    fn of_several_directories_the_last_member_counts() {
        let app = AppInfo {
            app_id: 1,
            name: "t".into(),
            app_type: "pegasus".into(),
            status: AppStatus::Available,
            partition_count: 8,
            max_replica_count: 3,
            envs: BTreeMap::new(),
            create_second: 0,
            drop_second: 0,
            expire_second: 0,
        };
        // (partition, disk, ballot; 0 = its meta file is gone)
        let found = |index, disk, ballot| {
            let gpid = Gpid::new(1, index);
            let config = PartitionConfig { ballot: Ballot(ballot), ..PartitionConfig::unassigned(gpid, 3) };
            let meta = (ballot > 0).then(|| ReplicaMeta::new(app.clone(), config, false));
            Found { disk, replica: FoundReplica { gpid, path: PathBuf::new(), meta: Ok(meta) } }
        };
        let all = vec![
            found(0, 0, 5),
            found(1, 0, 9),
            found(2, 0, 7),
            found(3, 0, 0),
            found(4, 0, 0),
            found(0, 1, 9),
            found(1, 1, 5),
            found(2, 1, 7),
            found(3, 1, 4),
        ];
        let newest = newest(all);
        let told: Vec<_> =
            newest.iter().map(|f| (f.replica.gpid.index, f.disk, f.replica.meta.is_ok())).collect();
        let unclear = [(2, 0, false), (2, 1, false), (3, 0, false), (3, 1, false)];
        assert_eq!(told, [&[(0, 1, true), (1, 0, true)][..], &unclear, &[(4, 0, true)]].concat());
    }
}
