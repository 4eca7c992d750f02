//! One turn of the loop: everything that has happened goes through the core, queued writes are resolved, and what
//! comes out leaves as one append per disk and one batch per peer.
//!
//! No timer gathers anything: a turn takes what came while the last one ran (write-path.md 1).

use std::rc::Rc;
use std::time::Duration;

use pegasus_pacifica::{Admission, Event};
use pegasus_rpc::wire::server::ReplyTo;
use pegasus_storage::ops::{self, DecideAt, Resolved};
use pegasus_storage::{EngineError, Pressure};
use pegasus_types::data::{WriteRequest, WriteResponse};
use pegasus_types::mutation::BodyBuilder;
use pegasus_types::time::epoch_seconds;
use pegasus_types::{ErrorCode, Gpid, Millis};

use super::inflight::Waiting;
use super::overlay::Overlay;
use super::stages::Times;
use crate::clock;
use crate::effects;
use crate::metrics::Op;
use crate::node::{NodeState, Shell};
use crate::reads::Parked;
use crate::slow::Slow;
use crate::units;

/// A mutation takes more writes until its body has this size: larger ones only make each of them wait longer.
pub const MUTATION_BYTES: usize = 64 << 10;
/// Values that failed checks carry back, after which those are answered before more are made.
const ANSWER_BYTES: usize = 1 << 20;
/// Number of this cluster among those that duplicate to one another; told by the configuration once there is
/// duplication.
const CLUSTER: u8 = 1;
/// The loop looks at its timers at least this often, whatever the core asks for.
const LONGEST_SLEEP_MS: u64 = 1_000;

/// Turns the loop until shutdown.
pub async fn run(shell: Rc<Shell>) {
    let sleep = tokio::time::sleep(Duration::from_millis(LONGEST_SLEEP_MS));
    tokio::pin!(sleep);
    let mut armed = None;
    loop {
        let timer = shell.with(|state| state.core.next_timer());
        // Only ever set earlier: the core's timer moves with every write, and firing in vain now and then costs less than
        // setting it at every turn.
        if armed.is_none_or(|armed| timer.is_some_and(|at| at < armed)) {
            let now = clock::boot_ms();
            let at = timer.map_or(now + LONGEST_SLEEP_MS, |at| at.min(now + LONGEST_SLEEP_MS));
            sleep.as_mut().reset(tokio::time::Instant::now() + Duration::from_millis(at.since(now)));
            armed = Some(at);
        }
        tokio::select! {
            biased;
            () = shell.shutdown.triggered() => return,
            () = shell.wake.notified() => {
                // Whoever else is ready now adds to the same turn.
                tokio::task::yield_now().await;
            }
            () = &mut sleep => armed = None,
        }
        let now = clock::boot_ms();
        shell.with(|state| {
            if armed.is_none() || timer.is_some_and(|at| at <= now) {
                state.events.push_back(Event::Tick);
            }
            state.turn(&shell, now);
        });
    }
}

impl NodeState {
    pub fn turn(&mut self, shell: &Rc<Shell>, now: Millis) {
        self.metrics.turns += 1;
        self.work_off_events(shell, now);
        self.submit_writes(shell, now);
        self.flush_logs();
        if std::mem::take(&mut self.unpark) {
            self.retry_parked(shell, now);
        }
    }

    fn work_off_events(&mut self, shell: &Rc<Shell>, now: Millis) {
        while let Some(event) = self.events.pop_front() {
            self.step(shell, now, event);
        }
    }

    /// Gives one event to the core and begins what it answers.
    pub fn step(&mut self, shell: &Rc<Shell>, now: Millis, event: Event) {
        // What may end the waiting of parked reads (see `Serving::Wait`).
        self.unpark |= matches!(
            event,
            Event::HeartbeatAcked { .. } | Event::Tick | Event::Applied { .. } | Event::Received { .. }
        );
        let mut out = std::mem::take(&mut self.effects);
        self.core.step_into(now, event, &mut out);
        for effect in out.drain(..) {
            effects::begin(self, shell, now, effect);
        }
        self.effects = out;
    }

    pub fn flush_logs(&mut self) {
        for disk in &mut self.disks {
            let records = disk.flush();
            if records > 0 {
                self.metrics.log_batches += 1;
                self.metrics.log_records += records as u64;
            }
        }
    }

    /// Turns queued writes into mutations as far as the windows are open.
    fn submit_writes(&mut self, shell: &Rc<Shell>, now: Millis) {
        if self.listed.is_empty() {
            return;
        }
        let stop = shell.factory.pressure() == Pressure::Stop;
        for gpid in std::mem::take(&mut self.listed) {
            self.answer_overdue(gpid, now);
            if !stop {
                self.submit_partition(shell, now, gpid);
            }
            if let Some(replica) = self.replicas.get_mut(&gpid) {
                replica.listed = !replica.queue.is_empty();
                if replica.listed {
                    self.listed.push(gpid);
                }
            }
        }
        // Applying a mutation of a group of one may have made events.
        self.work_off_events(shell, now);
    }

    fn submit_partition(&mut self, shell: &Rc<Shell>, now: Millis, gpid: Gpid) {
        loop {
            let Some(replica) = self.replicas.get(&gpid) else { return };
            if replica.queue.is_empty() || !self.disks[replica.disk].has_room() {
                return;
            }
            match self.core.admit_write(now, gpid) {
                Admission::Ready { slots: 0 } | Admission::Full | Admission::Wait => return,
                Admission::Refused(code) => return self.refuse_queued(gpid, code),
                Admission::Ready { .. } => {}
            }
            if let Some(event) = self.make_mutation(now, gpid) {
                self.metrics.mutations += 1;
                self.step(shell, now, event);
            }
        }
    }

    /// Resolves queued writes into one body. None when none of them writes anything.
    fn make_mutation(&mut self, now: Millis, gpid: Gpid) -> Option<Event> {
        let now_us = clock::wall_us();
        let replica = self.replicas.get_mut(&gpid)?;
        replica.taken_us = clock::mono_us();
        // After a start or a copy the core knows only the times of what it has seen since.
        let not_before = clock::after_committed(now_us, replica.engine.newest_timestamp_us());
        let timestamp_us = self.core.next_timestamp(gpid, not_before);
        let at = DecideAt {
            timestamp_us,
            epoch_now: epoch_seconds(now_us),
            default_ttl_s: replica.meta.app.default_ttl_s(),
            cluster_id: CLUSTER,
        };
        let mut body = BodyBuilder::with_capacity(replica.queue.body_hint(MUTATION_BYTES));
        let mut waiting = Vec::new();
        let mut answers = Vec::new();
        let (mut broken, mut answer_bytes) = (None, 0);
        while body.len() < MUTATION_BYTES && answer_bytes < ANSWER_BYTES {
            // What reads must see all writes before it in flight, so it can only begin a body.
            if !body.is_empty() && replica.queue.front().is_none_or(reads) {
                break;
            }
            let Some(queued) = replica.queue.pop(now) else { break };
            let op = Op::of_write(&queued.request);
            // A check carries the value back, whatever comes of it.
            if reads(&queued.request) && queued.reply.is_clogged() {
                replica.counts.failed += 1;
                self.metrics.table(gpid.app_id).op(op).failed += 1;
                queued.reply.error(ErrorCode::Busy);
                continue;
            }
            let overlay = Overlay::new(&mut replica.inflight, &*replica.engine);
            let resolved = ops::resolve(&queued.request, &overlay, &at, &mut body);
            let saw_pending = overlay.saw_pending();
            let (reply, arrived_us) = (queued.reply, queued.arrived_us);
            let units = units::of_write(&queued.request);
            let waiter =
                |reply, response, is_read| Waiting { reply, response, is_read, op, arrived_us, units };
            match resolved {
                Ok(Resolved::Write(response)) => waiting.push(waiter(reply, response, false)),
                Ok(Resolved::Refused(response)) => answers.push((waiter(reply, response, false), false)),
                Ok(Resolved::Unchanged(response)) => {
                    if let WriteResponse::Check(check) = &response {
                        answer_bytes += check.check_value.len();
                    }
                    answers.push((waiter(reply, response, true), saw_pending));
                }
                Err(error) => {
                    tracing::error!(%gpid, %error, "cannot read the state that a write is decided on");
                    reply.error(ErrorCode::LocalAppFailure);
                    broken = Some(error);
                }
            }
        }
        // What was decided on pending values is told with the newest of them, the rest at once.
        let now_ready: Vec<_> = answers
            .into_iter()
            .filter_map(|(answer, saw_pending)| match saw_pending {
                true => replica.inflight.wait_for_newest(answer).err(),
                false => Some(answer),
            })
            .collect();
        if let Some(error) = broken {
            self.read_failed(gpid, &error);
        }
        for answer in now_ready {
            self.answer(now, gpid, answer, -1, None);
        }
        if waiting.is_empty() {
            return None;
        }
        self.last_token += 1;
        let body = body.finish();
        let replica = self.replicas.get_mut(&gpid)?;
        replica.inflight.submitted(self.last_token, body.clone(), waiting);
        Some(Event::Write { gpid, token: self.last_token, timestamp_us, body })
    }

    /// Answers a write whose outcome is known. `decree` and `times` of its mutation, -1 and None when it has none.
    pub fn answer(
        &mut self,
        now: Millis,
        gpid: Gpid,
        waiting: Waiting<ReplyTo>,
        decree: i64,
        times: Option<Times>,
    ) {
        if waiting.is_read {
            return self.send_or_park(Parked::answer(now, gpid, waiting));
        }
        self.send_answer(gpid, waiting, decree, times);
    }

    /// Answers a write, whatever it was decided on.
    pub fn send_answer(
        &mut self,
        gpid: Gpid,
        mut waiting: Waiting<ReplyTo>,
        decree: i64,
        times: Option<Times>,
    ) {
        waiting.set_decree(decree);
        let took = clock::mono_us().saturating_sub(waiting.arrived_us);
        self.metrics.table(gpid.app_id).op(waiting.op).answered.record(took);
        self.look_at_time(gpid, waiting.op, &waiting.reply, waiting.arrived_us, took, |slow| {
            slow.write(times)
        });
        waiting.reply.write(waiting.response);
    }

    /// Tells of an answered request when it took long.
    pub fn look_at_time(
        &mut self,
        gpid: Gpid,
        op: Op,
        reply: &ReplyTo,
        arrived_us: u64,
        took_us: u64,
        tell: impl FnOnce(Slow<'_>),
    ) {
        if !self.slow.may_be_slow(took_us) {
            return;
        }
        let Some(replica) = self.replicas.get(&gpid) else { return };
        let app = &replica.meta.app;
        if self.slow.is_slow(took_us, app) {
            self.metrics.table(gpid.app_id).op(op).slow += 1;
            let (client, hash, bytes) = (reply.client(), reply.partition_hash(), reply.frame_bytes() as u64);
            tell(Slow { app, gpid, op, client, hash, bytes, arrived_us, took_us });
        }
    }

    fn answer_overdue(&mut self, gpid: Gpid, now: Millis) {
        let Some(replica) = self.replicas.get_mut(&gpid) else { return };
        for queued in replica.queue.take_overdue(now) {
            replica.counts.failed += 1;
            self.metrics.table(gpid.app_id).op(Op::of_write(&queued.request)).failed += 1;
            queued.reply.error(ErrorCode::Busy);
        }
    }

    /// Nothing queued was executed, so it is told (replication.md H8).
    pub fn refuse_queued(&mut self, gpid: Gpid, code: ErrorCode) {
        let Some(replica) = self.replicas.get_mut(&gpid) else { return };
        for queued in replica.queue.take_all() {
            replica.counts.failed += 1;
            self.metrics.table(gpid.app_id).op(Op::of_write(&queued.request)).failed += 1;
            queued.reply.error(code);
        }
    }

    /// An engine that cannot be read is no replica (safety-rules.md 4.7); one that only lacked file descriptors is.
    pub fn read_failed(&mut self, gpid: Gpid, error: &EngineError) {
        if !error.is_transient() {
            self.engine_failed(gpid, error);
        }
    }

    pub fn engine_failed(&mut self, gpid: Gpid, error: &EngineError) {
        self.events.push_back(Event::Failed {
            gpid,
            fault: pegasus_pacifica::Fault::Engine,
            why: error.to_string(),
        });
    }
}

fn reads(request: &WriteRequest) -> bool {
    // Exactly the operations that are decided on what is stored.
    !request.is_idempotent()
}
