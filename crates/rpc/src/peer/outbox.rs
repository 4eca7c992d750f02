//! One-way messages to one peer, batched: what gathers while calls are in flight goes as one call.
//!
//! No timer anywhere. The first message starts a call at the end of the present turn of the event loop, so what
//! the same turn adds goes along; while [`CALLS_IN_FLIGHT`] calls are unanswered, messages gather.
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

/// More bring nothing (write-path.md 1) and make batches smaller.
pub const CALLS_IN_FLIGHT: usize = 2;
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

    /// The next batch, in order; empty when nothing waits.
    fn take_batch(&self) -> Vec<Envelope> {
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
        waiting.drain(..count).collect()
    }
}

async fn run(queue: Rc<Queue>, client: ReplicaClient) {
    let link = client.replication();
    let mut in_flight = FuturesUnordered::new();
    while !queue.closed.get() {
        if queue.waiting.borrow().is_empty() || in_flight.len() >= CALLS_IN_FLIGHT {
            tokio::select! {
                Some((count, result)) = in_flight.next(), if !in_flight.is_empty() => {
                    record(&queue, &client, count, result);
                }
                () = queue.filled.notified(), if in_flight.len() < CALLS_IN_FLIGHT => {}
            }
            continue;
        }
        // Whatever else this turn of the event loop has to send goes along.
        tokio::task::yield_now().await;
        let connection = timeout(DELIVER_WITHIN, link.connected()).await.unwrap_or(Err(CallError::Timeout));
        let batch = queue.take_batch();
        let count = batch.len() as u64;
        queue.count(|stats| stats.calls += 1);
        match connection {
            Ok(connection) => {
                let link = link.clone();
                let call = async move {
                    let request = ReplicaPeerRequest::Deliver { batch };
                    let call = link.call_on(connection, DELIVER_WITHIN, request);
                    let result = timeout(DELIVER_WITHIN, call).await.unwrap_or(Err(CallError::Timeout));
                    (count, result.map(drop))
                };
                in_flight.push(call);
                // First polls send; they must happen in order, so now.
                while let Poll::Ready(Some((count, result))) = futures::poll!(in_flight.next()) {
                    record(&queue, &client, count, result);
                }
            }
            Err(error) => record(&queue, &client, count, Err(error)),
        }
    }
}

fn record(queue: &Queue, client: &ReplicaClient, count: u64, result: Result<(), CallError>) {
    match result {
        Ok(()) => queue.count(|stats| stats.delivered += count),
        Err(error) => {
            tracing::debug!(node = %client.node(), count, %error, "messages to a peer were lost");
            queue.count(|stats| stats.failed += count);
        }
    }
}
