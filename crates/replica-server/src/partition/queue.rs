//! Writes that wait for their turn: admitted, not yet resolved.
//!
//! A write waits while the prepare window is full or another turn of the loop is due. It leaves in arrival
//! order, or is answered with ERR_BUSY when it has waited too long, or is dropped without an answer when its
//! client has given up.

use std::collections::VecDeque;

use pegasus_rpc::wire::frame::RequestHead;
use pegasus_types::Millis;
use pegasus_types::data::WriteRequest;

/// Requests of one partition that may wait. 50 clients at depth 100 fit; more is overload.
pub const MAX_REQUESTS: usize = 8192;
/// Bytes of one partition that may wait: 64 of the largest writes.
pub const MAX_BYTES: usize = 64 << 20;
/// A write that waited this long is refused: the partition cannot keep up (safety-rules.md 6).
pub const BUSY_AFTER_MS: u64 = 1_000;
/// For clients that send no timeout (Python, Node); their own default is 1 to 2 s.
pub const DEFAULT_TIMEOUT_MS: u64 = 5_000;

/// How long the client waits.
pub fn timeout_ms(head: &RequestHead) -> u64 {
    match u64::from(head.client_timeout_ms) {
        0 => DEFAULT_TIMEOUT_MS,
        ms => ms,
    }
}

/// A client's write with where its answer goes (`R`).
#[derive(Debug)]
pub struct Queued<R> {
    pub request: WriteRequest,
    pub bytes: usize,
    pub arrived: Millis,
    pub arrived_us: u64,
    pub deadline: Millis,
    pub reply: R,
}

#[derive(Debug)]
pub struct WriteQueue<R> {
    waiting: VecDeque<Queued<R>>,
    bytes: usize,
}

impl<R> Default for WriteQueue<R> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), bytes: 0 }
    }
}

impl<R> WriteQueue<R> {
    /// Whether one more write of so many bytes may wait. To be asked before [`Self::push`].
    pub fn has_room(&self, bytes: usize) -> bool {
        self.waiting.len() < MAX_REQUESTS && self.bytes + bytes <= MAX_BYTES
    }

    pub fn push(&mut self, queued: Queued<R>) {
        self.bytes += queued.bytes;
        self.waiting.push_back(queued);
    }

    /// The next write whose client still waits.
    pub fn pop(&mut self, now: Millis) -> Option<Queued<R>> {
        loop {
            let queued = self.waiting.pop_front()?;
            self.bytes -= queued.bytes;
            if now <= queued.deadline {
                return Some(queued);
            }
        }
    }

    /// Takes out what waited too long; the caller answers these with ERR_BUSY. Abandoned ones just go.
    pub fn take_overdue(&mut self, now: Millis) -> Vec<Queued<R>> {
        let mut overdue = Vec::new();
        while self.waiting.front().is_some_and(|q| now.since(q.arrived) > BUSY_AFTER_MS) {
            let Some(queued) = self.waiting.pop_front() else { break };
            self.bytes -= queued.bytes;
            overdue.extend((now <= queued.deadline).then_some(queued));
        }
        overdue
    }

    pub fn take_all(&mut self) -> impl Iterator<Item = Queued<R>> + use<R> {
        self.bytes = 0;
        std::mem::take(&mut self.waiting).into_iter()
    }

    pub fn front(&self) -> Option<&WriteRequest> {
        self.waiting.front().map(|queued| &queued.request)
    }

    /// Room to reserve for the body of the next mutation, which is closed at `most` bytes.
    pub fn body_hint(&self, most: usize) -> usize {
        const OVERHEAD_PER_WRITE: usize = 64;
        let first = self.waiting.front().map_or(0, |queued| queued.bytes);
        (self.bytes + self.waiting.len() * OVERHEAD_PER_WRITE).min(most + first)
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn queued(id: u32, arrived: u64, deadline: u64, bytes: usize) -> Queued<u32> {
        Queued {
            request: WriteRequest::Remove { key: Bytes::new() },
            bytes,
            arrived: Millis(arrived),
            arrived_us: 0,
            deadline: Millis(deadline),
            reply: id,
        }
    }

    #[test]
    fn keeps_order_and_drops_the_abandoned() {
        let mut queue = WriteQueue::default();
        for (id, deadline) in [(1, 100), (2, 10), (3, 100)] {
            queue.push(queued(id, 0, deadline, 1));
        }
        let left: Vec<_> = std::iter::from_fn(|| queue.pop(Millis(50))).map(|q| q.reply).collect();
        assert_eq!(left, [1, 3]);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn full_is_refused_by_count_and_by_bytes() {
        let mut queue = WriteQueue::default();
        queue.push(queued(1, 0, 9, MAX_BYTES));
        assert!(!queue.has_room(1));
        queue.pop(Millis(0)).unwrap();
        for id in 0..MAX_REQUESTS {
            assert!(queue.has_room(1));
            queue.push(queued(id as u32, 0, 9, 1));
        }
        assert!(!queue.has_room(1));
    }

    #[test]
    fn overdue_writes_come_out_once() {
        let mut queue = WriteQueue::default();
        queue.push(queued(1, 0, 9_000, 1));
        queue.push(queued(2, 0, 900, 1));
        queue.push(queued(3, 800, 9_000, 1));
        assert!(queue.take_overdue(Millis(BUSY_AFTER_MS)).is_empty());
        let overdue: Vec<_> = queue.take_overdue(Millis(BUSY_AFTER_MS + 1)).iter().map(|q| q.reply).collect();
        assert_eq!(overdue, [1], "the second one's client has gone");
        assert_eq!(queue.len(), 1);
    }
}
