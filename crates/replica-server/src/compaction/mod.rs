//! Manual compaction: a table's settings ask for it, each of its replicas does it on its own (operations.md 7).
//!
//! ```text
//!  settings, every second ──▶ rules: is it due? ──▶ queue ──▶ threads of low priority ──▶ finished: saved, shown
//! ```
//!
//! Only members do it: what is being copied in is compact anyway, and counts as done. It ends early when the replica
//! leaves, when the table says `manual_compact.disabled`, and when too many tables wait behind it (`storage`); then it
//! is tried again a minute later.

pub mod rules;
pub mod saved;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use pegasus_storage::{EngineError, PartitionEngine, Stop};
use pegasus_telemetry::time::Calendar;
use pegasus_types::meta::ReplicaStatus;
use pegasus_types::{AppId, AppInfo, Gpid};
use rules::{History, Rules, Verdict, has_room};
use saved::Saved;
use serde_json::json;

use crate::clock;
use crate::node::{NodeState, Shell};

/// Replicas of a node that are compacted at a time. A table's `manual_compact.max_concurrent_running_count` may say less.
pub const THREADS: usize = 2;
/// What is in memory is flushed first, by the threads that do it all the time.
const FLUSH_WITHIN: Duration = Duration::from_secs(60);
const FLUSH_PAUSE: Duration = Duration::from_millis(20);

/// Of one replica.
#[derive(Debug, Default)]
pub struct Compaction {
    pub rules: Rules,
    saved: Saved,
    /// Unix milliseconds; 0 = it is not queued, not running.
    queued_ms: u64,
    started_ms: u64,
    /// Unix seconds.
    failed_s: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Idle,
    Queuing,
    Running,
    Finished,
}

impl Compaction {
    pub fn new(app: &AppInfo, saved: Saved) -> Self {
        Self { rules: Rules::of(&app.envs), saved, ..Self::default() }
    }

    pub fn state(&self) -> State {
        match (self.queued_ms, self.started_ms, self.saved.finished_ms) {
            (1.., ..) => State::Queuing,
            (_, 1.., _) => State::Running,
            (_, _, 1..) => State::Finished,
            (0, 0, 0) => State::Idle,
        }
    }

    /// As the reference tells it: times in UTC, `-` = none.
    pub fn json(&self) -> serde_json::Value {
        let time = |ms: u64| match ms {
            0 => "-".to_owned(),
            ms => format!("{}.{:03}", Calendar::from_unix_ms(ms).date_time(), ms % 1000),
        };
        let used = match self.saved.finished_ms {
            0 => "-".to_owned(),
            _ => self.saved.used_ms.to_string(),
        };
        json!({
            "recent_enqueue_at": time(self.queued_ms),
            "recent_start_at": time(self.started_ms),
            "last_finish": time(self.saved.finished_ms),
            "last_used_ms": used,
        })
    }

    fn decide(&self, now_ms: u64, min_interval_s: u64) -> Verdict {
        let Saved { finished_ms, once_s, .. } = self.saved;
        let history = History { finished_s: finished_ms / 1000, once_s, failed_s: self.failed_s };
        self.rules.decide(history, now_ms / 1000, min_interval_s)
    }
}

/// Of all replicas of the node.
#[derive(Debug, Default)]
pub struct Compactions {
    /// In the order in which they became due.
    queue: Vec<Gpid>,
    /// Those that have a thread; also one that is ending while its replica is gone already.
    running: BTreeMap<Gpid, Running>,
}

#[derive(Debug)]
struct Running {
    stop: Stop,
    disk: usize,
    /// Of the replica when it began: the disk has to take as much again.
    bytes: u64,
}

impl Compactions {
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// The replica leaves, or goes on with other files.
    pub fn stop(&mut self, gpid: Gpid) {
        self.queue.retain(|queued| *queued != gpid);
        if let Some(running) = self.running.get(&gpid) {
            running.stop.stop();
        }
    }

    pub fn stop_all(&mut self) {
        self.queue.clear();
        self.running.values().for_each(|running| running.stop.stop());
    }
}

/// Looks at all replicas: who is due is queued, and begun as far as threads and limits allow. Every second, which is soon
/// enough after a change of settings.
pub fn look(state: &mut NodeState, shell: &Rc<Shell>) {
    let now_ms = clock::wall_us() / 1000;
    let mut due = BTreeSet::new();
    for (gpid, replica) in &state.replicas {
        let verdict = replica.compaction.decide(now_ms, shell.settings.compact_interval_s);
        let is_member =
            matches!(state.core.status(*gpid), Some(ReplicaStatus::Primary | ReplicaStatus::Secondary));
        if is_member && verdict == Verdict::Compact && !state.switching.contains(gpid) {
            due.insert(*gpid);
        } else if (!is_member || verdict == Verdict::Disabled)
            && let Some(running) = state.compactions.running.get(gpid)
        {
            running.stop.stop();
        }
    }
    let Compactions { queue, running } = &mut state.compactions;
    queue.retain(|gpid| due.contains(gpid));
    let waiting: BTreeSet<Gpid> = queue.iter().copied().collect();
    due.retain(|gpid| !waiting.contains(gpid) && !running.contains_key(gpid));
    queue.extend(&due);
    for (gpid, replica) in &mut state.replicas {
        if due.contains(gpid) {
            replica.compaction.queued_ms = now_ms;
        } else if !waiting.contains(gpid) {
            replica.compaction.queued_ms = 0;
        }
    }
    begin(state, shell);
}

fn begin(state: &mut NodeState, shell: &Rc<Shell>) {
    for gpid in std::mem::take(&mut state.compactions.queue) {
        let Compactions { queue, running } = &mut state.compactions;
        let Some(replica) = state.replicas.get_mut(&gpid) else { continue };
        let disk = &state.disks[replica.disk];
        let is_measured = disk.capacity_bytes > 0;
        if !is_measured || running.len() >= THREADS || !replica.compaction.rules.may_begin(running.len()) {
            queue.push(gpid);
            continue;
        }
        let bytes = replica.engine.sizes().disk_bytes;
        let beside = running.values().filter(|other| other.disk == replica.disk).map(|other| other.bytes);
        let needs = bytes + beside.sum::<u64>();
        replica.compaction.queued_ms = 0;
        if !has_room(needs, disk.available_bytes, disk.capacity_bytes, shell.settings.least_free_percent) {
            tracing::warn!(%gpid, disk = disk.tag, needs, "too little free space for a manual compaction");
            replica.compaction.failed_s = clock::wall_us() / 1_000_000;
            continue;
        }
        let stop = Stop::default();
        running.insert(gpid, Running { stop: stop.clone(), disk: replica.disk, bytes });
        replica.compaction.started_ms = clock::wall_us() / 1000;
        let (copy_id, once_s) = (replica.copy_id, replica.compaction.rules.once_s());
        let engine = replica.engine.clone();
        tracing::info!(%gpid, disk_bytes = bytes, "manual compaction begins");
        let shell = shell.clone();
        tokio::task::spawn_local(async move {
            let work = move || compact(&*engine, &stop);
            let result = shell.compactors.run(work).await;
            let result = result.unwrap_or_else(|panic| Err(EngineError::Panicked(panic.to_string())));
            shell.with(|state| {
                state.compactions.running.remove(&gpid);
                ended(state, &shell, gpid, copy_id, once_s, result);
                begin(state, &shell);
            });
        });
    }
}

/// On a thread of its own.
fn compact(engine: &dyn PartitionEngine, stop: &Stop) -> Result<(), EngineError> {
    // Not by this thread, which has little right to the processors while others wait for flushes.
    let upto = engine.flush(false)?;
    let begun = Instant::now();
    while engine.durable_decree() < upto {
        if stop.is_set() {
            return Err(EngineError::Stopped);
        }
        if begun.elapsed() >= FLUSH_WITHIN {
            return Err(EngineError::io("flush before compaction", std::io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(FLUSH_PAUSE);
    }
    engine.compact_until(stop)
}

fn ended(
    state: &mut NodeState,
    shell: &Rc<Shell>,
    gpid: Gpid,
    copy_id: u64,
    once_s: u64,
    result: Result<(), EngineError>,
) {
    // Another life, which has not been compacted.
    let Some(replica) = state.replicas.get_mut(&gpid).filter(|replica| replica.copy_id == copy_id) else {
        return;
    };
    let now_ms = clock::wall_us() / 1000;
    let compaction = &mut replica.compaction;
    let used_ms = now_ms.saturating_sub(std::mem::take(&mut compaction.started_ms));
    match result {
        Ok(()) => {
            let disk_bytes = replica.engine.sizes().disk_bytes;
            tracing::info!(%gpid, used_ms, disk_bytes, "manual compaction done");
            let once_s = once_s.max(compaction.saved.once_s);
            finished(state, shell, gpid, Saved { finished_ms: now_ms, used_ms, once_s });
        }
        Err(error) => {
            compaction.failed_s = now_ms / 1000;
            match error {
                EngineError::Stopped => tracing::info!(%gpid, used_ms, "manual compaction stopped"),
                error => tracing::warn!(%gpid, %error, "manual compaction failed"),
            }
        }
    }
}

/// A life that was copied row by row holds nothing that a compaction would drop, but for what was written since the
/// copy began.
pub fn copied(state: &mut NodeState, shell: &Rc<Shell>, gpid: Gpid, begun_ms: u64) {
    if let Some(replica) = state.replicas.get_mut(&gpid) {
        replica.compaction.started_ms = 0;
        finished(state, shell, gpid, Saved { finished_ms: begun_ms, used_ms: 0, once_s: 0 });
    }
}

fn finished(state: &mut NodeState, shell: &Rc<Shell>, gpid: Gpid, saved: Saved) {
    let Some(replica) = state.replicas.get_mut(&gpid) else { return };
    replica.compaction.saved = saved;
    replica.compaction.failed_s = 0;
    let dir = replica.dir.clone();
    let save = move || {
        if let Err(error) = saved.save(&dir) {
            tracing::warn!(%gpid, %error, "after a restart it will be compacted again");
        }
    };
    drop(shell.lanes.run(gpid, save));
}

/// Which replicas a remote command is about; None = these are no ids.
fn named(arguments: &[String]) -> Option<Vec<(AppId, Option<i32>)>> {
    let ids = arguments.iter().flat_map(|argument| argument.split(',')).map(str::trim);
    let id = |text: &str| match text.split_once('.') {
        Some((app, index)) => Some((app.parse().ok()?, Some(index.parse().ok()?))),
        None => Some((text.parse().ok()?, None)),
    };
    ids.filter(|text| !text.is_empty()).map(id).collect()
}

/// `replica.query-compact [ids]`: of the members among the replicas of this node.
pub fn query(shell: &Rc<Shell>, arguments: &[String]) -> String {
    let Some(wanted) = named(arguments) else { return "invalid arguments".to_owned() };
    shell.with(|state| {
        let members: BTreeMap<Gpid, char> = state
            .replicas
            .keys()
            .filter_map(|gpid| match state.core.status(*gpid)? {
                ReplicaStatus::Primary => Some((*gpid, 'P')),
                ReplicaStatus::Secondary => Some((*gpid, 'S')),
                _ => None,
            })
            .collect();
        let is_wanted = |gpid: &Gpid| {
            let names = |(app, index): &(AppId, Option<i32>)| {
                *app == gpid.app_id && index.is_none_or(|i| i == gpid.index)
            };
            wanted.is_empty() || wanted.iter().any(names)
        };
        let mut lines: Vec<String> = members
            .iter()
            .filter(|(gpid, _)| is_wanted(gpid))
            .map(|(gpid, role)| {
                let told = state.replicas[gpid].compaction.json();
                format!("    {gpid}@{}@{role} : {told}", shell.me)
            })
            .collect();
        let processed = lines.len();
        let exact = wanted.iter().filter_map(|(app, index)| Some(Gpid::new(*app, (*index)?)));
        lines.extend(
            exact
                .filter(|gpid| !members.contains_key(gpid))
                .map(|gpid| format!("    {gpid}@{} : not found", shell.me)),
        );
        let missing = lines.len() - processed;
        std::iter::once(format!("{processed} processed, {missing} not found"))
            .chain(lines)
            .collect::<Vec<_>>()
            .join("\n")
    })
}

/// How many replicas of a table are in which state, for `GET /replica/manual_compaction`.
pub fn status(shell: &Rc<Shell>, app: AppId) -> serde_json::Value {
    let states: Vec<State> = shell.with(|state| {
        let own = state.replicas.values().filter(|replica| replica.gpid.app_id == app);
        own.map(|replica| replica.compaction.state()).collect()
    });
    let count = |wanted| states.iter().filter(|state| **state == wanted).count();
    json!({"status": {
        "idle": count(State::Idle),
        "queuing": count(State::Queuing),
        "running": count(State::Running),
        "finished": count(State::Finished),
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown() {
        let mut compaction = Compaction::default();
        let none = json!({
            "recent_enqueue_at": "-", "recent_start_at": "-", "last_finish": "-", "last_used_ms": "-",
        });
        assert_eq!((compaction.state(), compaction.json()), (State::Idle, none));
        compaction.saved = Saved { finished_ms: 1_795_651_200_042, used_ms: 7, once_s: 0 };
        assert_eq!(compaction.state(), State::Finished);
        compaction.started_ms = 1_795_651_201_000;
        assert_eq!(compaction.state(), State::Running);
        let told = compaction.json();
        assert_eq!(told["last_finish"], "2026-11-26 00:00:00.042");
        assert_eq!(
            (&told["last_used_ms"], &told["recent_start_at"]),
            (&json!("7"), &json!("2026-11-26 00:00:01.000"))
        );
        (compaction.started_ms, compaction.queued_ms) = (0, 1);
        assert_eq!(compaction.state(), State::Queuing);
    }

    #[test]
    fn who_leaves_is_neither_queued_nor_run_on() {
        let [one, two] = [Gpid::new(1, 0), Gpid::new(1, 1)];
        let stop = Stop::default();
        let running = Running { stop: stop.clone(), disk: 0, bytes: 0 };
        let mut compactions = Compactions { queue: vec![one, two], running: [(one, running)].into() };
        compactions.stop(two);
        assert_eq!((compactions.queue.clone(), stop.is_set()), (vec![one], false));
        compactions.stop(one);
        // The thread is taken until it has noticed.
        assert_eq!((compactions.queued(), compactions.running(), stop.is_set()), (0, 1, true));
    }

    #[test]
    fn ids_of_replicas() {
        let of = |arguments: &[&str]| named(&arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]), Some(vec![]));
        assert_eq!(of(&["2", "3.1,4"]), Some(vec![(2, None), (3, Some(1)), (4, None)]));
        assert_eq!((of(&["x"]), of(&["1.x"])), (None, None));
    }
}
