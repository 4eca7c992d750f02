//! What has to be looked at now and then: logs, disks, engines, things that expire.

use std::rc::Rc;
use std::time::Duration;

use pegasus_pacifica::{Event, Fault};
use pegasus_storage::Health;
use pegasus_storage::data_dir::DiskState;
use pegasus_types::Gpid;
use tokio::time::{Instant, interval};

use crate::clock;
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
    let mut measured: Option<Instant> = None;
    let mut removed: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let due = |last: Option<Instant>, every| last.is_none_or(|at| at.elapsed() >= every);
        if due(measured, space_every) {
            measured = Some(Instant::now());
            measure(&shell).await;
        }
        if due(removed, REMOVE_EVERY) {
            removed = Some(Instant::now());
            remove_set_aside(&shell);
        }
        shell.with(|state| {
            logs(state, &shell);
            engines(state);
            teacher::abandon(state, &shell);
        });
        teacher::expire(&shell);
        learner::expire(&shell);
        shell.lanes.sweep();
        shell.wake.notify_one();
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
        if disk.log.stats().bytes > max_log_bytes / 2 {
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

/// Looks at free space, off the loop: a disk that hangs must not hang the node.
async fn measure(shell: &Rc<Shell>) {
    let dirs = shell.dirs.clone();
    let look = move || -> Vec<_> {
        dirs.iter().map(|dir| (dir.tag().to_owned(), dir.refresh(), dir.space())).collect()
    };
    let Ok(found) = tokio::task::spawn_blocking(look).await else { return };
    shell.with(|state| {
        for (tag, condition, space) in found {
            let Some(index) = state.disks.iter().position(|disk| disk.tag == tag) else { continue };
            let disk = &mut state.disks[index];
            (disk.capacity_bytes, disk.available_bytes) = (space.total_bytes, space.available_bytes);
            let full = condition == DiskState::SpaceInsufficient || disk.has_refused();
            if full != disk.full {
                tracing::warn!(disk = tag, full, available_mb = space.available_bytes >> 20, "free space");
                disk.full = full;
            }
            if let DiskState::Broken(why) = condition
                && disk.broken.is_none()
            {
                state.disk_broken(shell, index, &why);
            }
        }
    });
}

fn remove_set_aside(shell: &Rc<Shell>) {
    let dirs = shell.dirs.clone();
    tokio::task::spawn_blocking(move || {
        for dir in dirs.usable() {
            match dir.remove_set_aside(GARBAGE_AFTER, QUARANTINE_AFTER) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(disk = dir.tag(), removed, "old garbage removed"),
                Err(error) => tracing::warn!(disk = dir.tag(), %error, "cannot remove old garbage"),
            }
        }
    });
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
