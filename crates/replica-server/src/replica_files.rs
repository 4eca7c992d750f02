//! Making, saving and setting aside the directories of replicas. Nothing here runs on the loop for long: the work
//! goes to the replica's file lane.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pegasus_mutation_log::MutationLog;
use pegasus_pacifica::{Event, Fault, Recovered};
use pegasus_storage::{PartitionEngine, ReplicaMeta, data_dir};
use pegasus_types::meta::ReplicaStatus;
use pegasus_types::{AppInfo, Decree, ErrorCode, Gpid, PartitionConfig};

use crate::compaction::rules::Rules;
use crate::learn_io::learner;
use crate::node::{NodeState, Shell};
use crate::partition::Replica;
use crate::throttle::Limits;

/// How long the files of an engine may still be read after its replica is gone (a scan, a learner).
const LET_GO_WITHIN: Duration = Duration::from_secs(10);

/// Directory of the engine of one life of a replica.
pub fn engine_dir(replica_dir: &Path, copy_id: u64) -> PathBuf {
    data_dir::engine_dir(replica_dir).join(format!("{copy_id:016x}"))
}

/// Of `<life>.keep` beside the engine of an earlier life that is kept, see [`keep_life`].
const KEPT: &str = "keep";

fn is_kept_mark(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == KEPT)
}

/// Removes what earlier lives, or copies that were not finished, have left; not what is kept.
pub fn remove_other_engines(replica_dir: &Path, copy_id: u64) -> std::io::Result<()> {
    let keep = engine_dir(replica_dir, copy_id);
    let all = data_dir::engine_dir(replica_dir);
    if !all.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(all)? {
        let path = entry?.path();
        if path != keep && !is_kept_mark(&path) && !path.with_extension(KEPT).exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// To be called before another life, copied from a primary, takes the place of this one: it is kept, with the log
/// records that its engine lacks, until the replica is a member again. So no copy is thrown away for one of which it
/// is not yet known that it can stand in for it. Of several lives the oldest is kept: the later ones were never
/// members.
pub fn keep_life(
    replica_dir: &Path,
    gpid: Gpid,
    copy_id: u64,
    engine: &dyn PartitionEngine,
    log: &MutationLog,
) -> Result<(), String> {
    let is_empty = engine.applied_decree() == Decree::ZERO && log.held(gpid, copy_id).is_none();
    let all = data_dir::engine_dir(replica_dir);
    let mark = engine_dir(replica_dir, copy_id).with_extension(KEPT);
    let io = |error: std::io::Error| format!("keeping the present life: {error}");
    for entry in std::fs::read_dir(&all).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if is_kept_mark(&path) && path != mark {
            return Ok(());
        }
    }
    if is_empty {
        return Ok(());
    }
    if let Err(error) = engine.flush(true) {
        tracing::debug!(%gpid, %error, "flush of a life that is kept; its records say the rest");
    }
    let unfinished = all.join("unfinished");
    for old in [&unfinished, &mark] {
        if old.exists() {
            std::fs::remove_dir_all(old).map_err(io)?;
        }
    }
    std::fs::create_dir(&unfinished).map_err(io)?;
    log.export_after(gpid, copy_id, engine.durable_decree(), &unfinished.join("log-records"))
        .map_err(|error| error.to_string())?;
    std::fs::rename(&unfinished, &mark).map_err(io)?;
    std::fs::File::open(&all).and_then(|dir| dir.sync_all()).map_err(io)
}

/// The life `copy_id` is a member's now: what was kept of earlier ones goes.
fn drop_kept(replica_dir: &Path, copy_id: u64) -> std::io::Result<()> {
    let present = engine_dir(replica_dir, copy_id);
    for entry in std::fs::read_dir(data_dir::engine_dir(replica_dir))? {
        let mark = entry?.path();
        if !is_kept_mark(&mark) {
            continue;
        }
        let life = mark.with_extension("");
        if life != present && life.exists() {
            std::fs::remove_dir_all(life)?;
        }
        std::fs::remove_dir_all(mark)?;
    }
    Ok(())
}

/// As [`drop_kept`], in the replica's file lane.
pub fn drop_kept_later(shell: &Rc<Shell>, gpid: Gpid) {
    let Some((dir, copy_id)) =
        shell.with(|state| state.replicas.get(&gpid).map(|replica| (replica.dir.clone(), replica.copy_id)))
    else {
        return;
    };
    let dropped = move || {
        if let Err(error) = drop_kept(&dir, copy_id) {
            // Tried again with the next configuration.
            tracing::warn!(%gpid, %error, "cannot remove an earlier life");
        }
    };
    drop(shell.lanes.run(gpid, dropped));
}

/// Why a meta file was not saved.
#[derive(Debug)]
pub struct SaveError {
    /// Space may come back.
    pub full: bool,
    pub why: String,
}

/// Makes the meta file as it is in memory now durable, in the order of the calls.
pub fn try_save_meta(
    shell: &Rc<Shell>,
    replica: &Replica,
) -> impl Future<Output = Result<(), SaveError>> + use<> {
    let (meta, dir) = (replica.meta.clone(), replica.dir.clone());
    let save =
        move || meta.save(&dir).map_err(|error| SaveError { full: error.is_full(), why: error.to_string() });
    let saved = shell.lanes.run(replica.gpid, save);
    let panicked = || SaveError { full: false, why: "saving the meta file panicked".to_owned() };
    async move { saved.await.unwrap_or_else(|| Err(panicked())) }
}

/// As [`try_save_meta`], for those who do not wait for space.
pub fn save_meta(shell: &Rc<Shell>, replica: &Replica) -> impl Future<Output = Result<(), String>> + use<> {
    let saved = try_save_meta(shell, replica);
    async move { saved.await.map_err(|error| error.why) }
}

/// What a new replica consists of.
struct Made {
    disk: usize,
    dir: PathBuf,
    meta: ReplicaMeta,
    engine: Arc<dyn PartitionEngine>,
}

/// An empty replica on the disk that suits best.
async fn make(shell: &Rc<Shell>, gpid: Gpid, meta: ReplicaMeta) -> Result<Made, String> {
    let (dirs, factory) = (shell.dirs.clone(), shell.factory.clone());
    let work = move || {
        let made = dirs.place_new(|disk| disk.create_replica(&meta).map(|dir| (disk.tag().to_owned(), dir)));
        let (tag, dir) = made.ok_or("no disk takes new replicas")?.map_err(|error| error.to_string())?;
        let engine = engine_dir(&dir, meta.copy_id);
        std::fs::create_dir_all(&engine).map_err(|error| error.to_string())?;
        let engine = factory.open(&engine).map_err(|error| error.to_string())?;
        Ok((tag, dir, meta, engine))
    };
    let (tag, dir, meta, engine) =
        shell.lanes.run(gpid, work).await.unwrap_or_else(|| Err("making the replica panicked".to_owned()))?;
    let disk = shell.with(|state| state.disks.iter().position(|disk| disk.tag == tag));
    let disk = disk.ok_or_else(|| format!("disk {tag} has no log"))?;
    Ok(Made { disk, dir, meta, engine })
}

fn take_in(shell: &Rc<Shell>, gpid: Gpid, made: Made, event: Event) {
    shell.with(|state| {
        let Made { disk, dir, meta, engine } = made;
        state.take_in(Replica::new(gpid, disk, dir, meta, engine), event);
    });
    shell.wake.notify_one();
    shell.meta.report_soon();
}

/// For a node that is to become a learner.
pub fn open_for_learning(shell: &Rc<Shell>, gpid: Gpid, config: PartitionConfig) {
    let shell = shell.clone();
    tokio::task::spawn_local(async move {
        let unassigned = PartitionConfig::unassigned(gpid, config.max_replica_count);
        let made = match app_of(&shell, gpid).await {
            Some(app) => make(&shell, gpid, ReplicaMeta::new(app, unassigned.clone(), true)).await,
            None => Err("the meta-server does not tell of its table".to_owned()),
        };
        match made {
            Ok(made) => {
                let replica = Recovered {
                    config: unassigned,
                    learning: true,
                    intact: true,
                    applied: Decree::ZERO,
                    committed: Decree::ZERO,
                    tail: Vec::new(),
                };
                take_in(&shell, gpid, made, Event::Opened { gpid, replica });
            }
            Err(why) => {
                tracing::error!(%gpid, why, "cannot make a replica to learn into");
                shell.post(Event::OpenFailed { gpid, why });
            }
        }
    });
}

async fn app_of(shell: &Rc<Shell>, gpid: Gpid) -> Option<AppInfo> {
    if let Some(app) = shell.with(|state| state.apps.get(&gpid.app_id).cloned()) {
        return Some((*app).clone());
    }
    shell.meta.query(&shell.pool, gpid).await.map(|(app, _)| app)
}

/// For a table that is being created: the only case in which a member begins empty (safety-rules.md 4.3).
pub fn create(shell: &Rc<Shell>, app: AppInfo, config: PartitionConfig) {
    let gpid = config.gpid;
    if !shell.with(|state| state.creating.insert(gpid)) {
        return;
    }
    let shell = shell.clone();
    tokio::task::spawn_local(async move {
        match make(&shell, gpid, ReplicaMeta::new(app, config.clone(), false)).await {
            Ok(made) => take_in(&shell, gpid, made, Event::Create { config }),
            Err(why) => tracing::error!(%gpid, why, "cannot create a replica"),
        }
        shell.with(|state| state.creating.remove(&gpid));
    });
}

impl NodeState {
    /// From here on the core knows it. `event` tells it so.
    pub fn take_in(&mut self, replica: Replica, event: Event) {
        let gpid = replica.gpid;
        let broken = self.disks[replica.disk].broken.clone();
        self.replicas.insert(gpid, replica);
        self.events.push_back(event);
        // The disk broke while it was being opened: its log takes nothing, and tells nobody.
        if let Some(why) = broken {
            self.events.push_back(Event::Failed { gpid, fault: Fault::Log, why });
        }
    }
}

/// Takes the replica out of memory; its clients are told.
fn take_out(state: &mut NodeState, gpid: Gpid) -> Option<Replica> {
    state.refuse_queued(gpid, ErrorCode::ObjectNotFound);
    state.refuse_parked_answers(gpid);
    state.teaching.close(gpid);
    state.copying.remove(&gpid);
    state.compactions.stop(gpid);
    learner::drop_partial(state, gpid);
    let replica = state.replicas.remove(&gpid)?;
    state.disks[replica.disk].forget(gpid);
    if !state.replicas.keys().any(|other| other.app_id == gpid.app_id) {
        state.metrics.forget(gpid.app_id);
    }
    Some(replica)
}

/// Engines must not be used while their files are moved away or removed.
pub fn let_go(engine: Arc<dyn PartitionEngine>, gpid: Gpid) {
    let begun = Instant::now();
    while Arc::strong_count(&engine) > 1 && begun.elapsed() < LET_GO_WITHIN {
        std::thread::sleep(Duration::from_millis(10));
    }
    if Arc::strong_count(&engine) > 1 {
        tracing::warn!(%gpid, "its files are moved away although something still reads them");
    }
}

/// A damaged replica whose group goes on without it: renamed for the operator, with what the log still has of it.
pub fn quarantine(state: &mut NodeState, shell: &Rc<Shell>, gpid: Gpid, why: &str) {
    tracing::error!(%gpid, why, "replica put aside");
    state.metrics.quarantined += 1;
    let Some(replica) = take_out(state, gpid) else { return set_broken_aside(state, shell, gpid) };
    let log = state.disks[replica.disk].log.clone();
    let (dirs, tag) = (shell.dirs.clone(), state.disks[replica.disk].tag.clone());
    let Replica { dir, copy_id, engine, .. } = replica;
    let work = move || {
        let_go(engine, gpid);
        if let Err(error) = log.export(gpid, copy_id, &dir.join("log-records")) {
            tracing::warn!(%gpid, %error, "cannot keep its log records");
        }
        match dirs.get(&tag).map(|disk| disk.quarantine(gpid)) {
            Some(Ok(to)) => {
                log.forget(gpid, copy_id);
                tracing::info!(%gpid, to = %to.display(), "quarantined");
            }
            Some(Err(error)) => tracing::error!(%gpid, %error, "cannot rename its directory"),
            None => {}
        }
    };
    report_when_done(shell, gpid, work);
}

/// One that could not even be opened, with whatever the log still has of it.
fn set_broken_aside(state: &mut NodeState, shell: &Rc<Shell>, gpid: Gpid) {
    let Some(broken) = state.broken.remove(&gpid) else { return };
    let log = state.disks[broken.disk].log.clone();
    let (dirs, tag) = (shell.dirs.clone(), state.disks[broken.disk].tag.clone());
    let work = move || {
        let Some(disk) = dirs.get(&tag) else { return };
        let copies = log.copies(gpid);
        for copy_id in &copies {
            let to = disk.replica_dir(gpid).join(format!("log-records.{copy_id:016x}"));
            if let Err(error) = log.export(gpid, *copy_id, &to) {
                tracing::warn!(%gpid, %error, "cannot keep its log records");
            }
        }
        match disk.quarantine(gpid) {
            Ok(_) => copies.into_iter().for_each(|copy_id| log.forget(gpid, copy_id)),
            Err(error) => tracing::error!(%gpid, %error, "cannot rename its directory"),
        }
    };
    report_when_done(shell, gpid, work);
}

/// A replica that nobody wants any more.
pub fn discard(state: &mut NodeState, shell: &Rc<Shell>, gpid: Gpid) {
    let Some(replica) = take_out(state, gpid) else { return };
    tracing::info!(%gpid, "replica is garbage");
    let log = state.disks[replica.disk].log.clone();
    let (dirs, tag) = (shell.dirs.clone(), state.disks[replica.disk].tag.clone());
    let Replica { copy_id, engine, .. } = replica;
    let work = move || {
        let_go(engine, gpid);
        match dirs.get(&tag).map(|disk| disk.discard(gpid)) {
            Some(Ok(_)) => log.forget(gpid, copy_id),
            Some(Err(error)) => tracing::error!(%gpid, %error, "cannot rename its directory"),
            None => {}
        }
    };
    report_when_done(shell, gpid, work);
}

fn report_when_done(shell: &Rc<Shell>, gpid: Gpid, work: impl FnOnce() + Send + 'static) {
    let done = shell.lanes.run(gpid, work);
    let shell = shell.clone();
    tokio::task::spawn_local(async move {
        done.await;
        shell.meta.report_soon();
    });
}

/// Saves a table's settings with a replica when they have changed.
pub fn update_app(state: &mut NodeState, shell: &Rc<Shell>, app: &AppInfo, gpid: Gpid) {
    let Some(replica) = state.replicas.get_mut(&gpid).filter(|r| r.meta.app != *app) else { return };
    replica.meta.app = app.clone();
    replica.limits = Limits::of(app);
    replica.compaction.rules = Rules::of(&app.envs);
    let saved = save_meta(shell, replica);
    tokio::task::spawn_local(async move {
        if let Err(why) = saved.await {
            // Told again with the next report; the one in memory counts.
            tracing::warn!(%gpid, why, "cannot save the settings of its table");
        }
    });
}

/// The meta says what it wants no more.
pub fn collect(shell: &Rc<Shell>, garbage: Vec<Gpid>) {
    shell.with(|state| {
        for gpid in garbage {
            // A member that the meta calls garbage is a misunderstanding that a newer configuration will clear up.
            let is_member =
                matches!(state.core.status(gpid), Some(ReplicaStatus::Primary | ReplicaStatus::Secondary));
            if state.replicas.contains_key(&gpid) && !is_member {
                state.events.push_back(Event::Removed { gpid });
                discard(state, shell, gpid);
            }
        }
    });
    shell.wake.notify_one();
}

#[cfg(test)]
mod tests {
    use pegasus_mutation_log::{LogOptions, Record};
    use pegasus_storage::{EngineKind, EngineOptions, new_factory};
    use pegasus_types::{Ballot, Mutation};

    use super::*;

    #[test]
    fn the_last_life_that_was_a_member_is_kept_until_there_is_another() {
        let root = tempfile::tempdir().unwrap();
        let gpid = Gpid::new(2, 0);
        let factory = new_factory(EngineKind::Lsm, EngineOptions::default());
        let dir = root.path().join("replica");
        let (done, logged) = std::sync::mpsc::channel();
        let on_done = Box::new(move |all| drop(done.send(all)));
        let (log, _) = MutationLog::open(&root.path().join("log"), LogOptions::default(), on_done).unwrap();
        let life = |copy_id: u64| {
            let path = engine_dir(&dir, copy_id);
            std::fs::create_dir_all(&path).unwrap();
            factory.open(&path).unwrap()
        };
        let names = || {
            let all = std::fs::read_dir(data_dir::engine_dir(&dir)).unwrap();
            let mut names: Vec<_> = all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names.iter().map(|name| name.trim_start_matches('0').to_owned()).collect::<Vec<_>>()
        };
        let append = |copy_id| {
            let body = pegasus_types::mutation::BodyBuilder::with_capacity(0).finish();
            let mutation = Mutation::new(gpid, Decree(1), Ballot(1), 1, body);
            let record = Record { copy_id, ballot: Ballot(1), committed: Decree(0), cuts: false, mutation };
            log.append(vec![record], 1).unwrap();
            logged.recv().unwrap();
        };

        // Nothing to keep of a life that never had anything.
        let empty = life(1);
        keep_life(&dir, gpid, 1, &*empty, &log).unwrap();
        assert_eq!(names(), ["1"]);
        append(1);
        keep_life(&dir, gpid, 1, &*empty, &log).unwrap();
        let records = engine_dir(&dir, 1).with_extension(KEPT).join("log-records");
        assert!(std::fs::metadata(records).unwrap().len() > 64, "what only the log has");
        drop((empty, life(2), life(3)));
        remove_other_engines(&dir, 2).unwrap();
        assert_eq!(names(), ["1", "1.keep", "2"]);
        // The next copy before the second life was ever a member's.
        append(2);
        keep_life(&dir, gpid, 2, &*life(2), &log).unwrap();
        drop(life(3));
        remove_other_engines(&dir, 3).unwrap();
        assert_eq!(names(), ["1", "1.keep", "3"]);
        drop_kept(&dir, 3).unwrap();
        assert_eq!(names(), ["3"]);
        // It went on with the life that it was about to leave.
        append(3);
        keep_life(&dir, gpid, 3, &*life(3), &log).unwrap();
        drop_kept(&dir, 3).unwrap();
        assert_eq!(names(), ["3"]);
    }
}
