//! What survives the process: log, replica files, engines.

use std::sync::Arc;

use pegasus_mutation_log::mem_disk::Faults;
use pegasus_mutation_log::{Completion, LogCore, LogError, LogOptions, Record};
use pegasus_pacifica::{Event, Fault, Replay};
use pegasus_types::{Ballot, Decree, Gpid, Mutation, PartitionConfig};

use super::{Cx, Host};
use crate::bus::{Chore, MS, Micros, SECOND};
use crate::engine::Engine;

/// Small segments, so that runs of seconds see many of them begin and go.
const SEGMENT_BYTES: u64 = 16 << 10;

/// The small file beside the engine, and the engine.
#[derive(Clone, Debug)]
pub struct ReplicaFile {
    pub config: PartitionConfig,
    pub learning: bool,
    pub copy_id: u64,
    pub engine: Engine,
}

impl ReplicaFile {
    pub fn new(config: PartitionConfig, learning: bool, copy_id: u64) -> Self {
        Self { config, learning, copy_id, engine: Engine::default() }
    }
}

/// One append under way.
#[derive(Clone, Debug)]
pub struct Append {
    gpid: Gpid,
    copy_id: u64,
    ballot: Ballot,
    upto: Decree,
    records: Vec<Record>,
}

/// Before a full disk is tried again.
const FULL_PAUSE: Micros = 50 * MS;

/// A replica file on its way to the disk.
#[derive(Clone, Debug)]
pub struct Save {
    pub gpid: Gpid,
    pub config: PartitionConfig,
    pub learning: bool,
}

impl Host {
    pub(super) fn open_log(&self, cx: &mut Cx<'_>) -> Result<LogCore, String> {
        let options = LogOptions {
            segment_bytes: SEGMENT_BYTES,
            durability: cx.settings.durability,
            ..LogOptions::default()
        };
        let log_id = cx.bus.dice.roll();
        let (log, summary) = LogCore::open(Arc::new(self.disk.clone()), options, log_id)
            .map_err(|error| format!("the log does not open: {error}"))?;
        cx.bus.trace.line(cx.bus.now, format_args!("{} log: {summary:?}", self.node));
        Ok(log)
    }

    /// Reads the replica back from its engine and the log.
    pub(super) fn opened(&mut self, cx: &mut Cx<'_>, gpid: Gpid) {
        let Some(process) = &mut self.process else { return };
        let Some(file) = self.files.get_mut(&gpid) else { return };
        let mut replay = Replay::new(file.engine.durable(), cx.settings.core.recent);
        let mut read = || -> Result<(), String> {
            let records =
                process.log.replay(gpid, file.copy_id, file.engine.durable()).map_err(|e| e.to_string())?;
            let mut ready = Vec::new();
            for record in records {
                let (record, location) = record.map_err(|e| e.to_string())?;
                let (ballot, committed) = (record.ballot, record.committed);
                replay
                    .push(ballot, committed, record.mutation, location, &mut ready)
                    .map_err(|e| e.to_string())?;
                for (mutation, _) in ready.drain(..) {
                    if !cx.settings.sabotage.skip_replay {
                        file.engine.apply(&mutation)?;
                    }
                }
            }
            Ok(())
        };
        let result = read();
        let intact = !self.lost_power || cx.settings.durability == pegasus_mutation_log::Durability::Sync;
        process.opening -= 1;
        if process.opening == 0 {
            process.log.recovery_done();
            self.lost_power = false;
        }
        let event = match result {
            Ok(()) => {
                let (replica, _) = replay.finish(file.config.clone(), file.learning, intact);
                Event::Opened { gpid, replica }
            }
            Err(why) => {
                if !cx.checks.is_faulty(self.id) {
                    cx.checks.violation(cx.bus.now, format!("{} {gpid} does not open: {why}", self.node));
                }
                Event::OpenFailed { gpid, why }
            }
        };
        self.start_flushing(cx, gpid);
        self.step(cx, event);
    }

    // --- the log ---

    pub(super) fn log(
        &mut self,
        cx: &mut Cx<'_>,
        gpid: Gpid,
        (ballot, committed, mut cuts): (Ballot, Decree, bool),
        mutations: Vec<Mutation>,
    ) {
        let (Some(file), Some(last)) = (self.files.get(&gpid), mutations.last()) else { return };
        let (copy_id, upto) = (file.copy_id, last.decree);
        let record =
            |mutation| Record { copy_id, ballot, committed, cuts: std::mem::take(&mut cuts), mutation };
        let records = mutations.into_iter().map(record).collect();
        self.append(cx, Append { gpid, copy_id, ballot, upto, records });
    }

    fn append(&mut self, cx: &mut Cx<'_>, append: Append) {
        let Some(process) = &mut self.process else { return };
        let token = process.number();
        process.log.enqueue(append.records.clone(), token);
        process.appends.insert(token, append);
        if process.log_busy_since.is_none() {
            process.log_busy_since = Some(cx.bus.now);
            let delay = cx.bus.dice.between(20, 200);
            cx.bus.chore(self.id, delay, Chore::LogWrite);
        }
    }

    /// What a full disk refused, once more.
    pub(super) fn log_again(&mut self, cx: &mut Cx<'_>) {
        let Some(process) = &mut self.process else { return };
        for append in std::mem::take(&mut process.refused) {
            self.append(cx, append);
        }
    }

    pub(super) fn log_write(&mut self, cx: &mut Cx<'_>) {
        let Some(process) = &mut self.process else { return };
        let mut done = Vec::new();
        process.log.write(&mut done);
        let slow = self.disk_slow_until.saturating_sub(cx.bus.now);
        let usual = if cx.bus.dice.permille(10) { 50 * MS } else { 3 * MS };
        let delay = slow + cx.bus.dice.between(200, usual);
        cx.bus.chore(self.id, delay, Chore::LogSync);
        self.appended(cx, done);
    }

    pub(super) fn log_sync(&mut self, cx: &mut Cx<'_>) {
        let Some(process) = &mut self.process else { return };
        let mut done = Vec::new();
        process.log.sync(&mut done);
        if process.log.is_idle() {
            process.log_busy_since = None;
        } else {
            process.log_busy_since = Some(cx.bus.now);
            cx.bus.chore(self.id, 20, Chore::LogWrite);
        }
        self.appended(cx, done);
    }

    fn appended(&mut self, cx: &mut Cx<'_>, done: Vec<Completion>) {
        for Completion { token, result } in done {
            let Some(append) = self.process.as_mut().and_then(|p| p.appends.remove(&token)) else { continue };
            let Append { gpid, copy_id, ballot, upto, .. } = append;
            // Of a copy that a learner has replaced meanwhile, it would tell nothing.
            if self.files.get(&gpid).is_none_or(|file| file.copy_id != copy_id) {
                continue;
            }
            match result {
                Ok(_) => {
                    if let Some(process) = &mut self.process {
                        process.full_since = None;
                    }
                    self.step(cx, Event::Logged { gpid, ballot, upto });
                }
                Err(LogError::DiskFull | LogError::Hole { .. }) => {
                    let Some(process) = &mut self.process else { return };
                    if process.refused.is_empty() {
                        cx.bus.chore(self.id, FULL_PAUSE, Chore::LogAgain);
                    }
                    process.full_since.get_or_insert(cx.bus.now);
                    process.refused.push(append);
                }
                Err(error) => {
                    self.step(cx, Event::Failed { gpid, fault: Fault::Log, why: error.to_string() });
                }
            }
        }
    }

    /// The disk fails its fsyncs from now on, and the shell finds out at the next one.
    pub fn break_disk(&mut self, cx: &mut Cx<'_>) {
        self.disk.set_faults(Faults { fail_syncs: true, ..self.disk.faults() });
        cx.checks.expect_faults(self.id);
    }

    // --- replica files ---

    pub(super) fn save(&mut self, cx: &mut Cx<'_>, save: Save) {
        let Some(process) = &mut self.process else { return };
        let chore = Chore::Saved { gpid: save.gpid, ballot: save.config.ballot, learning: save.learning };
        process.saves.push_back(save);
        // In order: a file system journal does not reorder the renames of one directory.
        let delay = MS + cx.bus.dice.below(2 * MS);
        cx.bus.chore(self.id, delay, chore);
    }

    pub(super) fn saved(&mut self, cx: &mut Cx<'_>, gpid: Gpid, ballot: Ballot, learning: bool) {
        let Some(process) = &mut self.process else { return };
        let is_it = |s: &Save| s.gpid == gpid && s.config.ballot == ballot && s.learning == learning;
        let Some(index) = process.saves.iter().position(is_it) else { return };
        // Earlier ones of the same partition are overtaken by it.
        let mut earlier: Vec<Save> = process.saves.drain(..=index).collect();
        let save = earlier.pop().expect("the range is not empty");
        for other in earlier.into_iter().rev().filter(|s| s.gpid != gpid) {
            process.saves.push_front(other);
        }
        self.save_done(&save);
        self.step(cx, Event::ConfigSaved { gpid, ballot, learning });
    }

    pub(super) fn save_done(&mut self, save: &Save) {
        if let Some(file) = self.files.get_mut(&save.gpid) {
            file.config = save.config.clone();
            file.learning = save.learning;
        }
    }

    pub(super) fn drop_replica(&mut self, gpid: Gpid) {
        if let Some(file) = self.files.remove(&gpid)
            && let Some(process) = &mut self.process
        {
            process.log.forget(gpid, file.copy_id);
            process.copying.remove(&gpid);
        }
    }

    // --- engines ---

    pub(super) fn start_flushing(&self, cx: &mut Cx<'_>, gpid: Gpid) {
        let delay = cx.bus.dice.between(SECOND / 2, 2 * SECOND);
        cx.bus.chore(self.id, delay, Chore::FlushEngine(gpid));
    }

    pub(super) fn flush_engine(&mut self, cx: &mut Cx<'_>, gpid: Gpid) {
        let Some(process) = &mut self.process else { return };
        let Some(file) = self.files.get_mut(&gpid) else { return };
        file.engine.flush();
        process.log.set_needed_from(gpid, file.copy_id, file.engine.durable());
        process.log.keep_house();
        self.start_flushing(cx, gpid);
    }
}
