//! What has to be looked at now and then: logs, disks, engines, things that expire.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pegasus_pacifica::{Event, Fault};
use pegasus_storage::data_dir::{DataDir, DiskState};
use pegasus_storage::{DataDirs, Health};
use pegasus_types::Gpid;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};

use crate::clock;
use crate::compaction;
use crate::disk::Disk;
use crate::learn_io::{learner, teacher};
use crate::node::{NodeState, Settings, Shell};

const EVERY: Duration = Duration::from_secs(1);
/// A log that made no progress for so long while requests wait makes the node silent (safety-rules.md 1.7).
const LOG_STALLED: Duration = Duration::from_secs(5);
/// What was set aside is removed then; looked for this often.
const REMOVE_EVERY: Duration = Duration::from_secs(600);
const GARBAGE_AFTER: Duration = Duration::from_secs(24 * 3600);
const QUARANTINE_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Runs until shutdown. `space_every` = how often free space is measured.
pub async fn run(shell: Rc<Shell>, space_every: Duration) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut measuring, mut removing) = (Chore::every(space_every), Chore::every(REMOVE_EVERY));
    loop {
        ticks.tick().await;
        if shell.with(|state| state.disks.iter().any(Disk::has_refused)) {
            measuring.make_due();
        }
        measuring.begin_if_due(|| measure(shell.clone()));
        removing.begin_if_due(|| remove_set_aside(shell.dirs.clone()));
        shell.with(|state| {
            logs(state, &shell);
            engines(state);
            teacher::abandon(state, &shell);
            compaction::look(state, &shell);
        });
        teacher::expire(&shell);
        learner::expire(&shell);
        shell.lanes.sweep();
        shell.wake.notify_one();
    }
}

/// Work on disks, beside the watch: a disk that hangs must neither hang the node nor what watches it.
struct Chore {
    every: Duration,
    begun: Option<Instant>,
    running: Option<JoinHandle<()>>,
}

impl Chore {
    fn every(every: Duration) -> Self {
        Self { every, begun: None, running: None }
    }

    fn make_due(&mut self) {
        self.begun = None;
    }

    /// One at a time.
    fn begin_if_due<F: Future<Output = ()> + 'static>(&mut self, work: impl FnOnce() -> F) {
        let is_due = self.begun.is_none_or(|at| at.elapsed() >= self.every);
        if is_due && self.running.as_ref().is_none_or(JoinHandle::is_finished) {
            self.begun = Some(Instant::now());
            self.running = Some(tokio::task::spawn_local(work()));
        }
    }
}

fn logs(state: &mut NodeState, shell: &Shell) {
    let Settings { max_log_bytes, log_reserve_bytes, .. } = shell.settings;
    let healthy = state.disks.iter().all(|disk| disk.log.stalled() < LOG_STALLED);
    if healthy != state.log_healthy {
        if healthy {
            tracing::info!("the mutation logs make progress again");
        } else {
            tracing::error!("a mutation log makes no progress although requests wait");
        }
        state.log_healthy = healthy;
        state.events.push_back(Event::LogHealth { healthy });
    }
    let mut flush = Vec::new();
    for disk in &mut state.disks {
        disk.retry();
        disk.log.set_reserve(if disk.full { 0 } else { log_reserve_bytes });
        // What frees the log takes space itself, but less than the log has of the same rows.
        if disk.has_refused() || disk.log.stats().bytes > max_log_bytes / 2 {
            flush.extend(disk.log.blockers().into_iter().map(|(gpid, ..)| gpid));
        }
    }
    for gpid in flush {
        if let Some(replica) = state.replicas.get(&gpid)
            && let Err(error) = replica.engine.flush(false)
        {
            tracing::debug!(%gpid, %error, "flush to free the log");
        }
    }
}

fn engines(state: &mut NodeState) {
    let now = clock::boot_ms();
    for (gpid, replica) in &mut state.replicas {
        let durable = replica.engine.durable_decree();
        if durable > replica.needed_from {
            replica.needed_from = durable;
            state.disks[replica.disk].log.set_needed_from(*gpid, replica.copy_id, durable);
        }
        if let Health::Failed(why) = replica.engine.health()
            && !std::mem::replace(&mut replica.reported_failed, true)
        {
            tracing::error!(%gpid, why, "engine failed");
            state.events.push_back(Event::Failed { gpid: *gpid, fault: Fault::Engine, why });
        }
        replica.scans.expire(now);
    }
}

/// Looks at free space.
async fn measure(shell: Rc<Shell>) {
    let dirs = shell.dirs.clone();
    let look = move || -> Vec<_> {
        let measured = |dir: &DataDir| {
            let condition = dir.refresh();
            (dir.tag().to_owned(), condition, dir.space(), dir.keep_ballast())
        };
        dirs.iter().map(measured).collect()
    };
    let Ok(found) = tokio::task::spawn_blocking(look).await else { return };
    shell.with(|state| {
        for (tag, condition, space, left_free_bytes) in found {
            let Some(index) = state.disks.iter().position(|disk| disk.tag == tag) else { continue };
            let disk = &mut state.disks[index];
            (disk.capacity_bytes, disk.available_bytes) = (space.total_bytes, space.available_bytes);
            disk.left_free_bytes = left_free_bytes;
            let full = condition == DiskState::SpaceInsufficient || disk.has_refused() || disk.is_short();
            if full != disk.full {
                tracing::warn!(disk = tag, full, available_mb = space.available_bytes >> 20, "free space");
                disk.full = full;
            }
            if let DiskState::Broken(why) = condition
                && disk.broken.is_none()
            {
                state.disk_broken(&shell, index, &why);
            }
        }
    });
}

async fn remove_set_aside(dirs: Arc<DataDirs>) {
    let remove = move || {
        for dir in dirs.usable() {
            match dir.remove_set_aside(GARBAGE_AFTER, QUARANTINE_AFTER) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(disk = dir.tag(), removed, "old garbage removed"),
                Err(error) => tracing::warn!(disk = dir.tag(), %error, "cannot remove old garbage"),
            }
        }
    };
    if let Err(panic) = tokio::task::spawn_blocking(remove).await {
        tracing::error!(%panic, "removing old garbage");
    }
}

impl NodeState {
    /// Nothing on the disk may be believed any more until restart: its replicas leave (safety-rules.md 2.8).
    pub fn disk_broken(&mut self, shell: &Shell, index: usize, why: &str) {
        let disk = &mut self.disks[index];
        if let Some(dir) = shell.dirs.get(&disk.tag) {
            dir.mark_broken(why);
        }
        disk.broken = Some(why.to_owned());
        tracing::error!(disk = disk.tag, why, "disk is broken, its replicas leave");
        let gone: Vec<Gpid> = self.replicas.values().filter(|r| r.disk == index).map(|r| r.gpid).collect();
        for gpid in gone {
            self.events.push_back(Event::Failed { gpid, fault: Fault::Log, why: why.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use tokio::task::LocalSet;

    use super::*;

    /// How often the chore is begun when three ticks find it due.
    async fn begun(every: Duration, hangs: bool) -> u32 {
        let (mut chore, begun) = (Chore::every(every), Rc::new(Cell::new(0)));
        for _ in 0..3 {
            let begun = begun.clone();
            chore.begin_if_due(|| async move {
                begun.set(begun.get() + 1);
                if hangs {
                    pending::<()>().await;
                }
            });
            tokio::task::yield_now().await;
        }
        begun.get()
    }

    #[tokio::test]
    async fn what_hangs_is_begun_once_and_waited_for_by_nobody() {
        let ticks = async {
            assert_eq!(begun(Duration::ZERO, false).await, 3);
            assert_eq!(begun(Duration::from_secs(3600), false).await, 1, "not due");
            assert_eq!(begun(Duration::ZERO, true).await, 1);
        };
        LocalSet::new().run_until(ticks).await;
    }
}
