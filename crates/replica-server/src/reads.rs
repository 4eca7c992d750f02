//! Reads: gate, engine, lease, answer.
//!
//! Short reads run on the loop, ranged ones and those that wait for the disk ([`crate::cold`]) on a thread. The lease
//! is looked at *after* the engine was read (safety-rules.md 1.2): an answer that is given then was true while this
//! node held the role. When the lease has a hole, the request is parked and read again after the next grant.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pegasus_pacifica::Serving;
use pegasus_rpc::wire::frame::RequestHead;
use pegasus_rpc::wire::server::ReplyTo;
use pegasus_storage::EngineError;
use pegasus_storage::ops::{self, Begun, HashCheck, PageRead, ReadAt, ReadLimits};
use pegasus_types::data::{MultiGetRequest, ReadRequest, ReadResponseBody, StorageError};
use pegasus_types::meta::ReplicaStatus;
use pegasus_types::time::epoch_seconds;
use pegasus_types::{Ballot, ErrorCode, Gpid, Millis};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::clock;
use crate::cold;
use crate::metrics::Op;
use crate::node::{NodeState, Shell};
use crate::partition::inflight::Waiting;
use crate::partition::queue::{DEFAULT_TIMEOUT_MS, timeout_ms};
use crate::slow::Slow;
use crate::units;

/// Requests that may wait for a grant; a lease hole lasts for a second at most.
pub const MAX_PARKED: usize = 20_000;
/// Keys that one request may ask for on the loop.
const KEYS_ON_LOOP: usize = 128;
/// Records and bytes that a ranged multi_get may look at on the loop; larger ones start again on a thread.
const RANGE_ON_LOOP: ReadLimits = ReadLimits {
    multi_get_iterations: 128,
    multi_get_bytes: 256 << 10,
    scan_iterations: 128,
    time: Duration::from_millis(5),
};

/// What is read on threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Takes a processor.
    Ranged,
    /// Waits for the disk.
    Cold,
}

/// Reads on threads.
#[derive(Debug)]
pub struct OffLoop {
    threads: Arc<Semaphore>,
    /// For one of them.
    waiting: usize,
    most: usize,
}

impl OffLoop {
    /// Ranged reads: enough to use the processors, few enough to leave them to the loop.
    pub fn ranged() -> Self {
        Self { threads: Arc::new(Semaphore::new(4)), waiting: 0, most: 1_000 }
    }

    /// Short reads: as many as a disk serves beside each other.
    pub fn cold() -> Self {
        Self { threads: Arc::new(Semaphore::new(32)), waiting: 0, most: 20_000 }
    }
}

/// A client's read.
#[derive(Debug)]
pub struct Read {
    pub gpid: Gpid,
    pub head: RequestHead,
    pub request: ReadRequest,
    pub reply: ReplyTo,
    pub arrived_us: u64,
    /// When the engine was asked: for what is read at once the same, so that fast reads look at no clock for it.
    pub began_us: u64,
    /// Until then it may wait for the lease.
    pub deadline: Millis,
    /// Whether a thread has waited for the disk for it; None as long as only the loop has read.
    pub from_disk: Option<bool>,
    /// As what primary this node began to read: what was read under one reign may be old in the next.
    pub reign: Option<Ballot>,
}

/// What waits for a grant.
#[derive(Debug)]
pub struct Parked {
    gpid: Gpid,
    deadline: Millis,
    what: What,
}

#[derive(Debug)]
enum What {
    Read(Read),
    /// The answer of a failed check: read already, under the role that this node still has. It goes when the
    /// role goes.
    Answer(Waiting<ReplyTo>),
}

impl Parked {
    pub fn answer(now: Millis, gpid: Gpid, waiting: Waiting<ReplyTo>) -> Self {
        Self { gpid, deadline: now + DEFAULT_TIMEOUT_MS, what: What::Answer(waiting) }
    }

    fn reply(&self) -> &ReplyTo {
        match &self.what {
            What::Read(read) => &read.reply,
            What::Answer(waiting) => &waiting.reply,
        }
    }

    fn refuse(self, state: &mut NodeState, code: ErrorCode) {
        let (op, reply) = match self.what {
            What::Read(read) => (Op::of_read(&read.request), read.reply),
            What::Answer(waiting) => (waiting.op, waiting.reply),
        };
        state.refuse(self.gpid, op, reply, code);
    }
}

/// How long a request may wait here: nearly as long as its client does, so that the refusal still arrives.
pub fn deadline(now: Millis, head: &RequestHead) -> Millis {
    let timeout = timeout_ms(head);
    now + (timeout - timeout / 8)
}

/// A thread to read on, once the client has taken enough of its earlier answers. None when that takes too long, or
/// too many wait for a thread.
async fn thread_for(shell: &Shell, kind: Kind, read: &Read) -> Option<OwnedSemaphorePermit> {
    let end = deadline(clock::boot_ms(), &read.head);
    while read.reply.is_wanted() {
        let threads = shell.with(|state| {
            let off_loop = state.off_loop(kind);
            let may_wait = off_loop.waiting < off_loop.most;
            off_loop.waiting += usize::from(may_wait);
            may_wait.then(|| off_loop.threads.clone())
        })?;
        let permit = threads.acquire_owned().await;
        shell.with(|state| state.off_loop(kind).waiting -= 1);
        // Its client has given up: what the disk can do is for the others.
        if clock::boot_ms() >= end {
            return None;
        }
        // Looked at with the thread in hand: else all that wait would see the room for one.
        if read.reply.has_room() {
            return permit.ok();
        }
        drop(permit);
        let left = Duration::from_millis(end.since(clock::boot_ms()));
        timeout(left, read.reply.room()).await.ok()?;
    }
    None
}

impl NodeState {
    fn off_loop(&mut self, kind: Kind) -> &mut OffLoop {
        match kind {
            Kind::Ranged => &mut self.ranged_reads,
            Kind::Cold => &mut self.cold_reads,
        }
    }

    pub fn refuse(&mut self, gpid: Gpid, op: Op, reply: ReplyTo, code: ErrorCode) {
        if let Some(replica) = self.replicas.get_mut(&gpid) {
            replica.counts.failed += 1;
            self.metrics.table(gpid.app_id).op(op).failed += 1;
        }
        reply.error(code);
    }

    pub fn read(&mut self, shell: &Rc<Shell>, now: Millis, mut read: Read) {
        let gpid = read.gpid;
        read.reign = self.core.reign(gpid);
        if let Err(code) = self.read_gate(now, &read) {
            return self.refuse(gpid, Op::of_read(&read.request), read.reply, code);
        }
        // Of one that was parked: thousands of them are read together when the lease holds again.
        if !read.reply.has_room() {
            let deadline = read.deadline;
            return self.park(now, Parked { gpid, deadline, what: What::Read(read) });
        }
        let Some(replica) = self.replicas.get_mut(&gpid) else { return };
        let is_cold = replica.warmth.is_cold();
        let limits = shell.settings.read_limits;
        let at = ReadAt { epoch_now: epoch_seconds(clock::wall_us()), limits };
        let result = match &read.request {
            request if is_cold && names_keys(request) => {
                return self.read_off_loop(shell, Kind::Cold, read);
            }
            ReadRequest::Get { .. } | ReadRequest::Ttl { .. } => {
                ops::read(&read.request, &*replica.engine, &at)
            }
            ReadRequest::BatchGet(keys) if keys.keys.len() <= KEYS_ON_LOOP => {
                ops::read(&read.request, &*replica.engine, &at)
            }
            ReadRequest::MultiGet(get) if !is_cold && get.sort_keys.len() <= KEYS_ON_LOOP => {
                match ops::read(&read.request, &*replica.engine, &ReadAt { limits: on_loop(&limits), ..at }) {
                    Ok(response) if is_cut(get, &response) => {
                        return self.read_off_loop(shell, Kind::Ranged, read);
                    }
                    result => result,
                }
            }
            ReadRequest::MultiGet(_) | ReadRequest::BatchGet(_) | ReadRequest::SortkeyCount { .. } => {
                return self.read_off_loop(shell, Kind::Ranged, read);
            }
            ReadRequest::GetScanner(request) => {
                let check = hash_check(gpid, &replica.meta.app);
                match ops::open_scanner(request, &*replica.engine, check, &at, now) {
                    Ok(begun) => return self.scan(shell, now, read, begun, at),
                    Err(error) => Err(error),
                }
            }
            ReadRequest::Scan(request) => {
                let begun = replica.scans.resume(request.context_id, now);
                return self.scan(shell, now, read, begun, at);
            }
            ReadRequest::ClearScanner { context_id } => return replica.scans.clear(*context_id),
        };
        self.finish_read(read, result);
    }

    /// Cheap refusals, before the engine is asked (wire-protocol.md 6.3).
    fn read_gate(&self, now: Millis, read: &Read) -> Result<(), ErrorCode> {
        if !self.replicas.contains_key(&read.gpid) {
            return Err(ErrorCode::ObjectNotFound);
        }
        if read.head.is_backup {
            return match self.core.status(read.gpid) {
                Some(ReplicaStatus::Primary | ReplicaStatus::Secondary) => Ok(()),
                _ => Err(ErrorCode::InvalidState),
            };
        }
        match self.core.serving(now, read.gpid) {
            Serving::No(code) => Err(code),
            Serving::Yes | Serving::Wait => Ok(()),
        }
    }

    /// After the engine was read.
    fn finish_read(&mut self, read: Read, result: Result<ReadResponseBody, EngineError>) {
        let (gpid, op) = (read.gpid, Op::of_read(&read.request));
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                tracing::error!(%gpid, %error, "read failed");
                self.read_failed(gpid, &error);
                return self.refuse(gpid, op, read.reply, ErrorCode::LocalAppFailure);
            }
        };
        if !read.head.is_backup {
            // The clock is read here and not handed in: a time from before the read proves nothing when the process, or
            // the disk, stood still in between (safety-rules.md 1.2).
            let now = clock::boot_ms();
            match self.core.serving(now, gpid) {
                Serving::Yes if self.core.reign(gpid) != read.reign => {
                    // The role was lost and has come back while a thread was reading.
                    return self.refuse(gpid, op, read.reply, ErrorCode::InvalidState);
                }
                Serving::Yes => {}
                Serving::Wait => {
                    let deadline = read.deadline;
                    return self.park(now, Parked { gpid, deadline, what: What::Read(read) });
                }
                Serving::No(code) => return self.refuse(gpid, op, read.reply, code),
            }
        }
        let bytes = payload(&response);
        let units = units::of_read(&read.request, &response);
        let answered_us = clock::mono_us();
        let from_disk = read.from_disk.unwrap_or_else(|| {
            let took_us = answered_us.saturating_sub(read.began_us);
            self.loop_reads.was_from_disk(took_us)
        });
        if let Some(replica) = self.replicas.get_mut(&gpid) {
            replica.counts.reads += 1;
            replica.counts.read_bytes += bytes;
            replica.limits.has_read(bytes);
            replica.counts.read_units += units;
            replica.counts.answered(op, bytes);
            replica.warmth.read(from_disk);
        }
        let metrics = self.metrics.table(gpid.app_id).op(op);
        metrics.read_units += units;
        let took = answered_us.saturating_sub(read.arrived_us);
        metrics.answered.record(took);
        metrics.bytes += bytes;
        self.look_at_time(gpid, op, &read.reply, read.arrived_us, took, |slow| {
            Slow { bytes, ..slow }.read(read.began_us);
        });
        read.reply.read(response);
    }

    /// A scanner gives each page once, so when the lease has a hole a client that asks for the next one is refused
    /// rather than parked: it opens another scanner from the last key that it has.
    fn scan(&mut self, shell: &Rc<Shell>, now: Millis, mut read: Read, begun: Begun, at: ReadAt) {
        if matches!(read.request, ReadRequest::Scan(_)) {
            read.deadline = now;
        }
        let job = match begun {
            Begun::Answered(response) => {
                return self.finish_read(read, Ok(ReadResponseBody::Scan(response)));
            }
            Begun::Page(job) => job,
        };
        let is_cold = self.replicas.get(&read.gpid).is_some_and(|replica| replica.warmth.is_cold());
        if !is_cold && job.most_records().is_some_and(|n| n <= KEYS_ON_LOOP) {
            let page = job.read(&at);
            return self.finish_scan(now, read, page);
        }
        let shell = shell.clone();
        tokio::task::spawn_local(async move {
            let Some(permit) = thread_for(&shell, Kind::Ranged, &read).await else {
                return shell.with(|state| state.refuse_busy(read));
            };
            read.began_us = clock::mono_us();
            let page = on_thread(&mut read, move || job.read(&at)).await;
            drop(permit);
            shell.with(|state| state.finish_scan(clock::boot_ms(), read, page));
            shell.wake.notify_one();
        });
    }

    fn finish_scan(&mut self, now: Millis, read: Read, page: Result<PageRead, EngineError>) {
        let Some(replica) = self.replicas.get_mut(&read.gpid) else {
            return self.refuse(read.gpid, Op::Scan, read.reply, ErrorCode::ObjectNotFound);
        };
        let response = page.map(|page| ReadResponseBody::Scan(replica.scans.finish(page, now)));
        self.finish_read(read, response);
    }

    fn read_off_loop(&mut self, shell: &Rc<Shell>, kind: Kind, mut read: Read) {
        let Some(replica) = self.replicas.get(&read.gpid) else { return };
        self.metrics.cold_reads += u64::from(kind == Kind::Cold);
        let (shell, engine) = (shell.clone(), replica.engine.clone());
        tokio::task::spawn_local(async move {
            let Some(permit) = thread_for(&shell, kind, &read).await else {
                return shell.with(|state| state.refuse_busy(read));
            };
            read.began_us = clock::mono_us();
            let (request, limits) = (read.request.clone(), shell.settings.read_limits);
            let result = on_thread(&mut read, move || {
                let at = ReadAt { epoch_now: epoch_seconds(clock::wall_us()), limits };
                ops::read(&request, &*engine, &at)
            })
            .await;
            drop(permit);
            shell.with(|state| state.finish_read(read, result));
            // A failed engine is reported by an event.
            shell.wake.notify_one();
        });
    }

    fn refuse_busy(&mut self, read: Read) {
        self.refuse(read.gpid, Op::of_read(&read.request), read.reply, ErrorCode::Busy);
    }

    fn park(&mut self, now: Millis, parked: Parked) {
        if now >= parked.deadline {
            parked.refuse(self, ErrorCode::InvalidState);
        } else if self.parked.len() >= MAX_PARKED {
            parked.refuse(self, ErrorCode::Busy);
        } else {
            self.metrics.reads_waited += 1;
            self.parked.push(parked.gpid, parked.deadline, parked);
        }
    }

    /// Sends the answer of a failed check when the lease holds now.
    pub fn send_or_park(&mut self, parked: Parked) {
        // As in `finish_read`: later than the read on which the check was decided.
        let now = clock::boot_ms();
        match self.core.serving(now, parked.gpid) {
            Serving::Wait => self.park(now, parked),
            Serving::No(code) => parked.refuse(self, code),
            // It carries the value that was checked.
            Serving::Yes if parked.reply().is_clogged() => parked.refuse(self, ErrorCode::Busy),
            Serving::Yes => {
                if let What::Answer(waiting) = parked.what {
                    let units = units::read_by_write(&waiting.response);
                    if let Some(replica) = self.replicas.get_mut(&parked.gpid) {
                        replica.counts.read_units += units;
                        replica.counts.answered(waiting.op, waiting.reply.frame_bytes() as u64);
                    }
                    self.metrics.table(parked.gpid.app_id).op(waiting.op).read_units += units;
                    self.send_answer(parked.gpid, waiting, -1, None);
                }
            }
        }
    }

    pub fn retry_parked(&mut self, shell: &Rc<Shell>, now: Millis) {
        for parked in self.parked.take_overdue(now) {
            parked.refuse(self, ErrorCode::InvalidState);
        }
        let now_us = clock::mono_us();
        for gpid in self.parked.partitions() {
            match self.core.serving(now, gpid) {
                Serving::Wait => {}
                Serving::No(code) => {
                    for parked in self.parked.take(gpid) {
                        parked.refuse(self, code);
                    }
                }
                Serving::Yes => {
                    for parked in self.parked.take(gpid) {
                        match parked {
                            Parked { what: What::Read(read), .. } => {
                                self.read(shell, now, Read { began_us: now_us, from_disk: None, ..read });
                            }
                            answer => self.send_or_park(answer),
                        }
                    }
                }
            }
        }
    }

    /// The role is lost: what was read under it may be old.
    pub fn refuse_parked_answers(&mut self, gpid: Gpid) {
        for parked in self.parked.take_if(gpid, |parked| matches!(parked.what, What::Answer(_))) {
            parked.refuse(self, ErrorCode::InvalidState);
        }
    }
}

/// Notes whether the thread has waited for the disk.
async fn on_thread<T: Send + 'static>(
    read: &mut Read,
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let work = move || {
        let before = cold::blocks_read();
        let result = work();
        (result, cold::blocks_read() > before)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok((result, from_disk)) => {
            read.from_disk = Some(from_disk);
            result
        }
        Err(panic) => Err(EngineError::Panicked(panic.to_string())),
    }
}

/// Few keys, each with its row or nothing.
fn names_keys(request: &ReadRequest) -> bool {
    match request {
        ReadRequest::Get { .. } | ReadRequest::Ttl { .. } => true,
        ReadRequest::BatchGet(keys) => keys.keys.len() <= KEYS_ON_LOOP,
        ReadRequest::MultiGet(get) => (1..=KEYS_ON_LOOP).contains(&get.sort_keys.len()),
        _ => false,
    }
}

fn on_loop(limits: &ReadLimits) -> ReadLimits {
    ReadLimits {
        multi_get_iterations: limits.multi_get_iterations.min(RANGE_ON_LOOP.multi_get_iterations),
        multi_get_bytes: match limits.multi_get_bytes {
            0 => RANGE_ON_LOOP.multi_get_bytes,
            bytes => bytes.min(RANGE_ON_LOOP.multi_get_bytes),
        },
        time: limits.time.min(RANGE_ON_LOOP.time),
        ..*limits
    }
}

/// Whether the loop's limits, rather than the request's own, ended the read.
fn is_cut(request: &MultiGetRequest, response: &ReadResponseBody) -> bool {
    let ReadResponseBody::MultiGet(response) = response else { return false };
    let enough = usize::try_from(request.max_kv_count).is_ok_and(|n| n > 0 && response.kvs.len() >= n);
    response.error == StorageError::Incomplete.code() && !enough
}

/// After a split, until compaction, partitions hold keys of the other half.
fn hash_check(gpid: Gpid, app: &pegasus_types::AppInfo) -> Option<HashCheck> {
    let on = app.envs.get("replica.split.validate_partition_hash").is_some_and(|v| v.trim() == "true");
    on.then_some(HashCheck { partition_index: gpid.index, partition_count: app.partition_count })
}

/// Key and value bytes of an answer.
fn payload(response: &ReadResponseBody) -> u64 {
    let kv = |kvs: &[pegasus_types::data::KeyValue]| kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
    let bytes: usize = match response {
        ReadResponseBody::Get(r) => r.value.len(),
        ReadResponseBody::Ttl(_) | ReadResponseBody::SortkeyCount(_) => 0,
        ReadResponseBody::MultiGet(r) => kv(&r.kvs),
        ReadResponseBody::Scan(r) => kv(&r.kvs),
        ReadResponseBody::BatchGet(r) => r.data.iter().map(|d| d.value.len()).sum(),
    };
    bytes as u64
}
