//! Writes between resolution and apply: who waits for them, and what they will have written.
//!
//! incr and check_and_* are decided on the state that the queue of writes before them leaves behind
//! (safety-rules.md 3.2). That state is the engine plus the bodies in flight. Plain puts need not know it, so
//! the bodies are only kept, and indexed at the first request that has to look ([`Inflight::overlay`]).
//!
//! ```text
//!  resolve ──▶ submitted(token, body, replies) ──▶ log + prepare ──▶ applied(token) ──▶ replies
//!     ▲                     │
//!     └── overlay.get(key) ─┘
//! ```

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use pegasus_types::data::WriteResponse;
use pegasus_types::mutation;

use crate::metrics::Op;

/// One client's share in a mutation.
#[derive(Debug)]
pub struct Waiting<R> {
    pub reply: R,
    pub response: WriteResponse,
    /// The request changed nothing (a failed check): its answer is a read and needs the lease
    /// (replication.md 10.4).
    pub is_read: bool,
    pub op: Op,
    pub arrived_us: u64,
    /// What it is worth, see [`crate::units`].
    pub units: u64,
}

impl<R> Waiting<R> {
    /// `decree` of the mutation, -1 when there is none.
    pub fn set_decree(&mut self, to: i64) {
        match &mut self.response {
            WriteResponse::Update(r) => r.decree = to,
            WriteResponse::MultiRemove(r) => r.decree = to,
            WriteResponse::Incr(r) => r.decree = to,
            WriteResponse::Check(r) => r.decree = to,
        }
    }
}

#[derive(Debug)]
struct Submitted<R> {
    token: u64,
    body: Bytes,
    waiting: Vec<Waiting<R>>,
}

/// Values that are on their way. None = deleted.
type Pending = HashMap<Bytes, (u64, Option<Bytes>)>;

#[derive(Debug)]
pub struct Inflight<R> {
    submitted: VecDeque<Submitted<R>>,
    /// Some once a request had to look; dropped when nothing is in flight any more.
    pending: Option<Pending>,
}

impl<R> Default for Inflight<R> {
    fn default() -> Self {
        Self { submitted: VecDeque::new(), pending: None }
    }
}

impl<R> Inflight<R> {
    /// `token`s grow.
    pub fn submitted(&mut self, token: u64, body: Bytes, waiting: Vec<Waiting<R>>) {
        if let Some(pending) = &mut self.pending {
            index(pending, token, &body);
        }
        self.submitted.push_back(Submitted { token, body, waiting });
    }

    /// The mutation is applied, or known to be lost: its waiters. Empty when the token is not known.
    pub fn finished(&mut self, token: u64) -> Vec<Waiting<R>> {
        let Some(at) = self.submitted.iter().position(|s| s.token == token) else { return Vec::new() };
        let Some(submitted) = self.submitted.remove(at) else { return Vec::new() };
        if self.submitted.is_empty() {
            self.pending = None;
        } else if let Some(pending) = &mut self.pending {
            for op in mutation::ops(&submitted.body).flatten() {
                if pending.get(op.key).is_some_and(|(by, _)| *by == token) {
                    pending.remove(op.key);
                }
            }
        }
        submitted.waiting
    }

    /// Lets `waiting` be answered together with the newest mutation in flight; gives it back when there is none.
    pub fn wait_for_newest(&mut self, waiting: Waiting<R>) -> Result<(), Waiting<R>> {
        match self.submitted.back_mut() {
            Some(newest) => {
                newest.waiting.push(waiting);
                Ok(())
            }
            None => Err(waiting),
        }
    }

    /// The value that `key` will have: None = nothing in flight touches it, Some(None) = deleted.
    pub fn overlay(&mut self, key: &[u8]) -> Option<Option<Bytes>> {
        if self.submitted.is_empty() {
            return None;
        }
        let submitted = &self.submitted;
        let pending = self.pending.get_or_insert_with(|| {
            let mut pending = Pending::new();
            for s in submitted {
                index(&mut pending, s.token, &s.body);
            }
            pending
        });
        pending.get(key).map(|(_, value)| value.clone())
    }

    pub fn len(&self) -> usize {
        self.submitted.len()
    }
}

fn index(pending: &mut Pending, token: u64, body: &Bytes) {
    for op in mutation::ops(body).flatten() {
        let value = op.value.map(|v| body.slice_ref(v.bytes));
        pending.insert(body.slice_ref(op.key), (token, value));
    }
}

#[cfg(test)]
mod tests {
    use pegasus_types::data::UpdateResponse;
    use pegasus_types::mutation::BodyBuilder;

    use super::*;

    fn put(key: &str, value: &str) -> Bytes {
        let mut body = BodyBuilder::default();
        body.put(key.as_bytes(), [b"", value.as_bytes()]);
        body.finish()
    }

    fn delete(key: &str) -> Bytes {
        let mut body = BodyBuilder::default();
        body.delete(key.as_bytes());
        body.finish()
    }

    fn waiting(id: u32) -> Waiting<u32> {
        let response = WriteResponse::Update(UpdateResponse::default());
        Waiting { reply: id, response, is_read: false, op: Op::Put, arrived_us: 0, units: 1 }
    }

    fn ids(waiting: Vec<Waiting<u32>>) -> Vec<u32> {
        waiting.into_iter().map(|w| w.reply).collect()
    }

    #[test]
    fn the_newest_pending_value_is_seen_until_it_is_applied() {
        let mut inflight = Inflight::default();
        assert_eq!(inflight.overlay(b"k"), None);
        inflight.submitted(1, put("k", "a"), vec![waiting(1)]);
        assert_eq!(inflight.overlay(b"k").flatten().as_deref(), Some(&b"a"[..]));
        inflight.submitted(2, delete("k"), vec![waiting(2), waiting(3)]);
        inflight.submitted(3, put("other", "x"), vec![]);
        assert_eq!(inflight.overlay(b"k"), Some(None));
        assert_eq!(ids(inflight.finished(1)), [1]);
        assert_eq!(inflight.overlay(b"k"), Some(None), "decided by 2, not by 1");
        assert_eq!(ids(inflight.finished(2)), [2, 3]);
        assert_eq!(inflight.overlay(b"k"), None);
        assert!(inflight.overlay(b"other").is_some());
        assert!(inflight.finished(9).is_empty());
        inflight.finished(3);
        assert!(inflight.len() == 0 && inflight.pending.is_none());
    }

    #[test]
    fn a_failed_check_waits_for_what_it_saw() {
        let mut inflight = Inflight::default();
        assert_eq!(inflight.wait_for_newest(waiting(7)).unwrap_err().reply, 7);
        inflight.submitted(1, put("k", "a"), vec![waiting(1)]);
        inflight.submitted(2, put("k", "b"), vec![waiting(2)]);
        inflight.wait_for_newest(waiting(8)).unwrap();
        assert_eq!(ids(inflight.finished(1)), [1]);
        assert_eq!(ids(inflight.finished(2)), [2, 8]);
    }
}
