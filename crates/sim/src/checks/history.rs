//! What clients saw. Every value tells the decree that wrote it, so order is known and linearizability of a key
//! comes down to: an operation sees at least what was answered before it began, and nothing that nobody wrote.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pegasus_types::{Decree, Gpid};

use super::linear::Linear;
use crate::bus::Micros;
use crate::workload::{OpId, Request, Response, Verb};

type Key = (Gpid, Bytes);

#[derive(Debug)]
struct Begun {
    key: Key,
    verb: Verb,
    /// Highest decree that any answer about the key had shown before.
    floor: Decree,
}

#[derive(Debug, Default)]
pub struct History {
    running: BTreeMap<OpId, Begun>,
    floors: BTreeMap<Key, Decree>,
    /// Values that were sent, whatever became of them.
    attempted: BTreeMap<Key, BTreeSet<Bytes>>,
    /// Increments that were sent.
    increments: BTreeMap<Key, u64>,
    /// What was acknowledged or read at a decree.
    known: BTreeMap<(Key, Decree), Option<Bytes>>,
    counted: BTreeSet<(Key, Bytes)>,
    linear: Linear,
    failure: Option<String>,
    last_write: BTreeMap<Gpid, Micros>,
    worst_gaps: BTreeMap<Gpid, Micros>,
    pub acknowledged: u64,
    pub refused: u64,
    pub unknown: u64,
    pub reads: u64,
}

impl History {
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The last look: is there an order that explains all answers? See `linear.rs`.
    ///
    /// # Errors
    /// The key and the operation.
    pub fn has_an_order(&self) -> Result<(), String> {
        self.linear.check()
    }

    pub fn begin(&mut self, now: Micros, op: OpId, request: &Request) {
        let key = (request.gpid, request.key.clone());
        match &request.verb {
            Verb::Put(value) | Verb::Cas { new: value, .. } => {
                self.attempted.entry(key.clone()).or_default().insert(value.clone());
            }
            Verb::Incr => *self.increments.entry(key.clone()).or_default() += 1,
            Verb::Delete | Verb::Get => {}
        }
        self.last_write.entry(request.gpid).or_insert(now);
        let floor = self.floors.get(&key).copied().unwrap_or_default();
        self.linear.begin(op, request);
        self.running.insert(op, Begun { key, verb: request.verb.clone(), floor });
    }

    pub fn give_up(&mut self, op: OpId) {
        self.unknown += 1;
        self.running.remove(&op);
        self.linear.give_up(op);
    }

    pub fn end(&mut self, now: Micros, op: OpId, response: &Response) {
        let Some(begun) = self.running.remove(&op) else { return };
        self.linear.end(op, response);
        let found = match response {
            Response::Refused(_) => {
                self.refused += 1;
                return;
            }
            Response::Got { value, decree } => {
                self.reads += 1;
                self.look_at_read(&begun, value.as_ref(), *decree)
                    .or_else(|| self.know(&begun, *decree, value))
            }
            Response::Written { decree, value } => {
                self.acknowledged += 1;
                self.wrote_at(now, begun.key.0);
                self.look_at_write(&begun, value.as_ref(), *decree)
                    .or_else(|| self.know(&begun, *decree, value))
            }
        };
        if let Some(found) = found {
            let key = String::from_utf8_lossy(&begun.key.1).into_owned();
            self.failure.get_or_insert(format!(
                "{}.{:03} ms: operation {op} on {key} of {}: {found}",
                now / 1000,
                now % 1000,
                begun.key.0
            ));
        }
    }

    fn look_at_read(&self, begun: &Begun, value: Option<&Bytes>, decree: Decree) -> Option<String> {
        if decree < begun.floor {
            return Some(format!("read decree {decree}, although {} was answered before", begun.floor));
        }
        let value = value?;
        let counter = begun.key.1.starts_with(b"n");
        let written = self.attempted.get(&begun.key).is_some_and(|a| a.contains(value));
        (!counter && !written).then(|| format!("read {value:?}, which nobody wrote"))
    }

    fn look_at_write(&mut self, begun: &Begun, value: Option<&Bytes>, decree: Decree) -> Option<String> {
        if decree <= begun.floor {
            return Some(format!("wrote decree {decree}, although {} was answered before", begun.floor));
        }
        if begun.verb != Verb::Incr {
            return None;
        }
        let value = value?;
        let count: u64 = std::str::from_utf8(value).ok()?.parse().ok()?;
        let sent = self.increments.get(&begun.key).copied().unwrap_or(0);
        if count > sent {
            return Some(format!("counted to {count} with {sent} requests"));
        }
        let first = self.counted.insert((begun.key.clone(), value.clone()));
        (!first).then(|| format!("two increments were answered with {count}"))
    }

    /// One decree has one value, and from now on nobody may see less.
    fn know(&mut self, begun: &Begun, decree: Decree, value: &Option<Bytes>) -> Option<String> {
        let floor = self.floors.entry(begun.key.clone()).or_default();
        *floor = (*floor).max(decree);
        let known = self.known.entry((begun.key.clone(), decree)).or_insert_with(|| value.clone());
        (known != value).then(|| format!("decree {decree} showed {known:?} before, and {value:?} now"))
    }

    // --- gaps ---

    fn wrote_at(&mut self, now: Micros, gpid: Gpid) {
        if let Some(last) = self.last_write.insert(gpid, now) {
            let worst = self.worst_gaps.entry(gpid).or_default();
            *worst = (*worst).max(now - last);
        }
    }

    /// From now on.
    pub fn watch_gaps(&mut self, now: Micros) {
        self.worst_gaps.clear();
        self.last_write.values_mut().for_each(|last| *last = now);
    }

    /// Longest time that the partition was without an acknowledged write since `watch_gaps`.
    pub fn worst_gap(&self, now: Micros, gpid: Gpid) -> Micros {
        let open = self.last_write.get(&gpid).map_or(0, |last| now - last);
        self.worst_gaps.get(&gpid).copied().unwrap_or(0).max(open)
    }

    /// When the partition's last write was acknowledged.
    pub fn last_write(&self, gpid: Gpid) -> Option<Micros> {
        self.last_write.get(&gpid).copied()
    }

    /// Highest decree of a key that was shown to anybody, for the last look.
    pub fn floor(&self, gpid: Gpid, key: &Bytes) -> Decree {
        self.floors.get(&(gpid, key.clone())).copied().unwrap_or_default()
    }
}
