//! One-way messages to one peer, batched: what gathers while calls are in flight goes as one call.
//!
//! The first message wakes the outbox's task, so what is pushed until that runs goes along: all that one turn of the
//! replication loop has to say. While [`CALLS_IN_FLIGHT`] calls, or [`BYTES_IN_FLIGHT`], are unanswered, messages gather.
//!
//! Messages that arrive do so in the order of `push`. None is sent twice, and any may be lost: a lost
//! connection or a peer that cannot be reached loses what was in flight or tried; a full queue refuses the new
//! message (the older ones come first at the peer, dropping one of them would make a gap for sure). The
//! replication core repeats whatever stays unanswered.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use pegasus_types::message::Envelope;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::link::CallError;
use super::replica::{ReplicaClient, ReplicaPeerRequest};

/// Answers come late and together (see `link::ANSWERS_LINGER`): as many calls as a fast node makes meanwhile.
pub const CALLS_IN_FLIGHT: usize = 64;
/// A peer that does not read gets no more than this to hold, beside what its sockets hold.
pub const BYTES_IN_FLIGHT: usize = 4 << 20;
/// A batch is closed when it reaches either; a single larger message goes alone.
pub const BATCH_BYTES: usize = 1 << 20;
pub const BATCH_MESSAGES: usize = 4096;
/// Bounds of what waits for one peer: about a second of a fast primary's writes.
pub const QUEUE_BYTES: usize = 64 << 20;
pub const QUEUE_MESSAGES: usize = 64 << 10;
/// The receiver only queues a batch, so an answer that takes longer will not come: the peer hangs.
pub const DELIVER_WITHIN: Duration = Duration::from_secs(2);

/// What an outbox has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxStats {
    pub calls: u64,
    /// Messages that the peer confirmed to have queued.
    pub delivered: u64,
    /// Messages whose call failed; some may have arrived.
    pub failed: u64,
    /// Messages refused because the queue was full.
    pub refused: u64,
    pub queued: usize,
    pub queued_bytes: usize,
}

/// The way to one peer. Dropping it ends its task; what is queued is dropped then.
#[derive(Debug)]
pub struct Outbox(Rc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: RefCell<VecDeque<Envelope>>,
    bytes: Cell<usize>,
    bytes_in_flight: Cell<usize>,
    filled: Notify,
    closed: Cell<bool>,
    stats: Cell<OutboxStats>,
}

impl Outbox {
    /// Starts the outbox's task in the current LocalSet.
    pub fn new(client: ReplicaClient) -> Self {
        let queue = Rc::<Queue>::default();
        tokio::task::spawn_local(run(queue.clone(), client));
        Self(queue)
    }

    /// Never waits. False when the queue is full and the message was dropped.
    pub fn push(&self, envelope: Envelope) -> bool {
        let queue = &*self.0;
        let mut waiting = queue.waiting.borrow_mut();
        let bytes = queue.bytes.get() + envelope.message.weight();
        // A message that is larger than the whole bound still gets its turn when nothing else waits.
        if waiting.len() >= QUEUE_MESSAGES || (bytes > QUEUE_BYTES && !waiting.is_empty()) {
            queue.count(|stats| stats.refused += 1);
            return false;
        }
        queue.bytes.set(bytes);
        waiting.push_back(envelope);
        queue.filled.notify_one();
        true
    }

    pub fn stats(&self) -> OutboxStats {
        let queued = self.0.waiting.borrow().len();
        OutboxStats { queued, queued_bytes: self.0.bytes.get(), ..self.0.stats.get() }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.0.closed.set(true);
        self.0.filled.notify_one();
    }
}

impl Queue {
    fn count(&self, change: impl FnOnce(&mut OutboxStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    /// The next batch, in order, and its weight; empty when nothing waits.
    fn take_batch(&self) -> (Vec<Envelope>, usize) {
        let mut waiting = self.waiting.borrow_mut();
        let mut bytes = 0;
        let mut count = 0;
        while let Some(envelope) = waiting.get(count) {
            let weight = envelope.message.weight();
            if count == BATCH_MESSAGES || (count > 0 && bytes + weight > BATCH_BYTES) {
                break;
            }
            bytes += weight;
            count += 1;
        }
        self.bytes.set(self.bytes.get() - bytes);
        (waiting.drain(..count).collect(), bytes)
    }

    fn may_call(&self, calls: usize) -> bool {
        calls < CALLS_IN_FLIGHT && self.bytes_in_flight.get() < BYTES_IN_FLIGHT
    }

    fn sent(&self, bytes: usize) {
        self.bytes_in_flight.set(self.bytes_in_flight.get() + bytes);
        self.count(|stats| stats.calls += 1);
    }

    /// The end of a call with so many messages and bytes.
    fn ended(&self, client: &ReplicaClient, (count, bytes): (u64, usize), result: Result<(), CallError>) {
        self.bytes_in_flight.set(self.bytes_in_flight.get() - bytes);
        match result {
            Ok(()) => self.count(|stats| stats.delivered += count),
            Err(error) => {
                tracing::debug!(node = %client.node(), count, %error, "messages to a peer were lost");
                self.count(|stats| stats.failed += count);
            }
        }
    }
}

async fn run(queue: Rc<Queue>, client: ReplicaClient) {
    let link = client.replication();
    let mut in_flight = FuturesUnordered::new();
    while !queue.closed.get() {
        if queue.waiting.borrow().is_empty() || !queue.may_call(in_flight.len()) {
            tokio::select! {
                Some((size, result)) = in_flight.next(), if !in_flight.is_empty() => {
                    queue.ended(&client, size, result);
                }
                () = queue.filled.notified(), if queue.may_call(in_flight.len()) => {}
            }
            continue;
        }
        let connection = match link.standing() {
            Some(connection) => Ok(connection),
            None => timeout(DELIVER_WITHIN, link.connected()).await.unwrap_or(Err(CallError::Timeout)),
        };
        let (batch, bytes) = queue.take_batch();
        let size = (batch.len() as u64, bytes);
        queue.sent(bytes);
        match connection {
            Ok(connection) => {
                let link = link.clone();
                let call = async move {
                    let request = ReplicaPeerRequest::Deliver { batch };
                    // tarpc's own deadline will do: a timer more for every call is not worth half a second.
                    let result = link.call_on(connection, DELIVER_WITHIN, request).await;
                    (size, result.map(drop))
                };
                in_flight.push(call);
                // First polls send; they must happen in order, so now.
                while let Poll::Ready(Some((size, result))) = futures::poll!(in_flight.next()) {
                    queue.ended(&client, size, result);
                }
            }
            Err(error) => queue.ended(&client, size, Err(error)),
        }
    }
}
