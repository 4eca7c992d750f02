//! Is there one order of all operations on a key that explains every answer, and that agrees with real time:
//! whatever was answered before another one began comes first? (Linearizability, told by the clients' view alone,
//! without the decrees that the other checkers lean on.)
//!
//! An operation without a clear answer may have happened at any time after it was sent, or never. The search (Wing
//! and Gong, event by event as Lowe has it) keeps every state that the key may be in together with the open
//! operations that made it so; when an operation is answered, only those stay in which it has happened with that
//! answer.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pegasus_types::Gpid;

use crate::workload::{OpId, Request, Response, Verb};

type Key = (Gpid, Bytes);

/// States of one key that are looked at for one answer. Clients have at most some unclear deletions and increments
/// open; what needs more is reported, not guessed.
const MAX_STATES: usize = 50_000;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// No answer: it happened or not, or will.
    Unclear,
    /// It is done, and the key holds this now.
    Wrote(Option<Bytes>),
    /// It has changed nothing: the key held this. Also for a condition that failed.
    Held(Option<Bytes>),
}

#[derive(Debug)]
struct Operation {
    id: OpId,
    verb: Verb,
    seen: Seen,
}

#[derive(Clone, Copy, Debug)]
enum Moment {
    Begun(usize),
    Answered(usize),
}

#[derive(Debug, Default)]
struct KeyHistory {
    operations: Vec<Operation>,
    moments: Vec<Moment>,
    /// Surely not executed.
    refused: BTreeSet<usize>,
}

#[derive(Debug, Default)]
pub struct Linear {
    keys: BTreeMap<Key, KeyHistory>,
    running: BTreeMap<OpId, (Key, usize)>,
}

impl Linear {
    pub fn begin(&mut self, op: OpId, request: &Request) {
        let key = (request.gpid, request.key.clone());
        let history = self.keys.entry(key.clone()).or_default();
        let index = history.operations.len();
        history.operations.push(Operation { id: op, verb: request.verb.clone(), seen: Seen::Unclear });
        history.moments.push(Moment::Begun(index));
        self.running.insert(op, (key, index));
    }

    pub fn end(&mut self, op: OpId, response: &Response) {
        let Some((key, index)) = self.running.remove(&op) else { return };
        let Some(history) = self.keys.get_mut(&key) else { return };
        match response {
            Response::Refused(_) => {
                history.refused.insert(index);
                return;
            }
            Response::Got { value, .. } => history.operations[index].seen = Seen::Held(value.clone()),
            Response::Written { value, .. } => history.operations[index].seen = Seen::Wrote(value.clone()),
        }
        history.moments.push(Moment::Answered(index));
    }

    /// Nobody waits for it any longer; what it does it may do at any time.
    pub fn give_up(&mut self, op: OpId) {
        self.running.remove(&op);
    }

    /// # Errors
    /// The key, and the first operation whose answer no order explains.
    pub fn check(&self) -> Result<(), String> {
        for ((gpid, key), history) in &self.keys {
            history.check().map_err(|why| format!("{} of {gpid}: {why}", String::from_utf8_lossy(key)))?;
        }
        Ok(())
    }
}

/// What the key may hold, and which of the open operations have happened in that case.
type State = (Option<Bytes>, BTreeSet<usize>);

impl KeyHistory {
    fn check(&self) -> Result<(), String> {
        let mut open = BTreeSet::new();
        let mut states = BTreeSet::from([(None, BTreeSet::new())]);
        for moment in &self.moments {
            match *moment {
                Moment::Begun(index) => {
                    if self.matters(index) {
                        open.insert(index);
                    }
                }
                Moment::Answered(index) => {
                    let after = self.states_after(&states, &open, index)?;
                    if after.is_empty() {
                        let held: Vec<_> = states.iter().take(3).map(|(value, _)| value).collect();
                        let Operation { id, verb, seen } = &self.operations[index];
                        return Err(format!(
                            "no order explains operation {id}, {verb:?}: {seen:?}; before, the key may hold {held:?}"
                        ));
                    }
                    states = after;
                    open.remove(&index);
                }
            }
        }
        Ok(())
    }

    /// An unclear write of a value that nobody ever saw explains nothing: it may as well not have happened.
    fn matters(&self, index: usize) -> bool {
        let operation = &self.operations[index];
        if self.refused.contains(&index) {
            return false;
        }
        if operation.seen != Seen::Unclear {
            return true;
        }
        let shown = |value: &Bytes| {
            self.operations.iter().any(|other| match (&other.seen, &other.verb) {
                (Seen::Held(held), _) => held.as_ref() == Some(value),
                // Its condition may have been met.
                (_, Verb::Cas { expected, .. }) => expected.as_ref() == Some(value),
                _ => false,
            })
        };
        match &operation.verb {
            Verb::Get => false,
            Verb::Put(value) | Verb::Cas { new: value, .. } => shown(value),
            Verb::Delete | Verb::Incr => true,
        }
    }

    /// Every state in which `answered` has happened as it was answered.
    fn states_after(
        &self,
        before: &BTreeSet<State>,
        open: &BTreeSet<usize>,
        answered: usize,
    ) -> Result<BTreeSet<State>, String> {
        let mut after = BTreeSet::new();
        let mut met = before.clone();
        let mut todo: Vec<State> = before.iter().cloned().collect();
        while let Some((value, mut happened)) = todo.pop() {
            // A read that fits changes nothing: it may as well have happened here.
            let reads = |index: &usize| {
                let operation = &self.operations[*index];
                matches!(operation.seen, Seen::Held(_)) && happen(operation, &value).is_some()
            };
            happened.extend(open.iter().copied().filter(reads));
            if happened.contains(&answered) {
                let mut happened = happened;
                happened.remove(&answered);
                after.insert((value, happened));
                continue;
            }
            let mut alike = Vec::new();
            for &index in open.difference(&happened) {
                let operation = &self.operations[index];
                // Of unclear operations that do the same only the first need be tried.
                if operation.seen == Seen::Unclear {
                    if alike.contains(&&operation.verb) {
                        continue;
                    }
                    alike.push(&operation.verb);
                }
                if let Some(next) = happen(operation, &value) {
                    let mut happened = happened.clone();
                    happened.insert(index);
                    let state = (next, happened);
                    if met.insert(state.clone()) {
                        todo.push(state);
                    }
                }
            }
            if met.len() > MAX_STATES {
                return Err(format!(
                    "more than {MAX_STATES} orders at operation {}",
                    self.operations[answered].id
                ));
            }
        }
        Ok(after)
    }
}

/// What the key holds after it; None = not with this answer.
fn happen(operation: &Operation, value: &Option<Bytes>) -> Option<Option<Bytes>> {
    if let Seen::Held(held) = &operation.seen {
        let failed = !matches!(&operation.verb, Verb::Cas { expected, .. } if expected == held);
        return (held == value && failed).then(|| value.clone());
    }
    let next = match &operation.verb {
        Verb::Put(new) => Some(new.clone()),
        Verb::Delete => None,
        Verb::Incr => Some(crate::workload::one_more(value.as_ref())),
        Verb::Cas { expected, new } => (expected == value).then(|| Some(new.clone()))?,
        Verb::Get => return None,
    };
    match &operation.seen {
        Seen::Wrote(wrote) if *wrote != next => None,
        _ => Some(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pegasus_types::{Decree, ErrorCode};

    fn value(text: &str) -> Option<Bytes> {
        (!text.is_empty()).then(|| Bytes::copy_from_slice(text.as_bytes()))
    }

    fn verb(text: &str) -> Verb {
        match text.split(' ').collect::<Vec<_>>()[..] {
            ["put", new] => Verb::Put(Bytes::copy_from_slice(new.as_bytes())),
            ["cas", old, new] => Verb::Cas {
                expected: value(old.trim_matches('-')),
                new: Bytes::copy_from_slice(new.as_bytes()),
            },
            ["delete"] => Verb::Delete,
            ["incr"] => Verb::Incr,
            ["get"] => Verb::Get,
            _ => panic!("{text}"),
        }
    }

    /// Lines: `1 put a` begins operation 1, `1 = a` answers a write, `1 ~ a` a read or a failed condition,
    /// `1 no` refuses it, `1 ?` gives it up.
    fn play(text: &str) -> Result<(), String> {
        let mut linear = Linear::default();
        for line in text.split(';') {
            let (op, what) = line.trim().split_once(' ').unwrap();
            let op: OpId = op.parse().unwrap();
            let decree = Decree(0);
            match what.split_once(' ').unwrap_or((what, "")) {
                ("=", text) => linear.end(op, &Response::Written { decree, value: value(text) }),
                ("~", text) => linear.end(op, &Response::Got { decree, value: value(text) }),
                ("no", _) => linear.end(op, &Response::Refused(ErrorCode::InvalidState)),
                ("?", _) => linear.give_up(op),
                _ => {
                    let key = Bytes::from_static(b"k");
                    linear.begin(op, &Request { gpid: Gpid::new(1, 0), key, verb: verb(what) });
                }
            }
        }
        linear.check()
    }

    #[test]
    fn orders_that_exist_and_orders_that_do_not() {
        for (text, good) in [
            ("1 put a; 1 = a; 2 get; 2 ~ a", true),
            ("1 put a; 1 = a; 2 get; 2 ~", false),
            // Side by side: either.
            ("1 put a; 2 get; 2 ~; 1 = a", true),
            ("1 put a; 2 get; 2 ~ a; 1 = a", true),
            // Seen, then not seen.
            ("1 put a; 2 get; 2 ~ a; 3 get; 3 ~; 1 = a", false),
            ("1 put a; 2 put b; 1 = a; 2 = b; 3 get; 3 ~ a; 4 get; 4 ~ b", false),
            ("1 put a; 2 put b; 1 = a; 2 = b; 3 get; 3 ~ b; 4 get; 4 ~ b", true),
            // Unclear ones may happen late, or never.
            ("1 put a; 1 ?; 2 put b; 2 = b; 3 get; 3 ~ a", true),
            ("1 put a; 1 ?; 2 put b; 2 = b; 3 get; 3 ~ b", true),
            ("1 put a; 1 ?; 2 get; 2 ~ a; 3 put b; 3 = b; 4 get; 4 ~ a", false),
            ("1 delete; 1 ?; 2 put b; 2 = b; 3 get; 3 ~; 4 put c; 4 = c; 5 get; 5 ~", false),
            ("1 delete; 1 ?; 2 delete; 2 ?; 3 put b; 3 = b; 4 get; 4 ~; 5 put c; 5 = c; 6 get; 6 ~", true),
            // Refused ones have not happened.
            ("1 put a; 1 no; 2 get; 2 ~ a", false),
            // Counters.
            ("1 incr; 1 = 1; 2 incr; 2 = 2", true),
            ("1 incr; 1 = 1; 2 incr; 2 = 3", false),
            ("1 incr; 1 ?; 2 incr; 2 = 1; 3 incr; 3 = 3", true),
            ("1 incr; 1 ?; 2 incr; 2 = 2; 3 incr; 3 = 4", false),
            ("1 incr; 2 incr; 2 = 2; 1 = 1", true),
            // Conditions.
            ("1 cas - a; 1 = a; 2 cas a b; 2 = b; 3 get; 3 ~ b", true),
            ("1 put a; 1 = a; 2 cas x b; 2 = b", false),
            ("1 put a; 1 = a; 2 cas x b; 2 ~ a", true),
            ("1 put a; 1 = a; 2 cas a b; 2 ~ a", false),
            ("1 put a; 1 = a; 2 cas a b; 2 ?; 3 get; 3 ~ b", true),
            ("1 put a; 1 = a; 2 cas x b; 2 ?; 3 get; 3 ~ b", false),
            ("1 cas - a; 2 cas - b; 1 = a; 2 = b", false),
            ("1 put a; 1 ?; 2 cas a b; 2 ?; 3 get; 3 ~ b", true),
        ] {
            assert_eq!(play(text).is_ok(), good, "{text}: {:?}", play(text));
        }
    }
}
