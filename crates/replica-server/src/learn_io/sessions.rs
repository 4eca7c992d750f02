//! Who copies from us: pinned views and pinned log, each with an owner and a time to live.
//!
//! A session outlives neither this process nor its time without a request; its learner is then told that it is
//! gone and starts anew (replication.md 10.2 R3).

use std::collections::BTreeMap;

use pegasus_types::{Gpid, Millis};

/// Copies served at once. Each pins a view of a partition and its log; learners limit themselves to a few at a
/// time, so this is for several that come back together.
pub const MAX_SESSIONS: usize = 64;
/// A learner asks for the next chunk within milliseconds; a minute without is death.
pub const EXPIRE_MS: u64 = 60_000;

#[derive(Debug)]
struct Session<T> {
    gpid: Gpid,
    signature: u64,
    used: Millis,
    held: T,
}

/// `T` is what a session keeps alive.
#[derive(Debug)]
pub struct Sessions<T> {
    next: u64,
    open: BTreeMap<u64, Session<T>>,
}

impl<T> Sessions<T> {
    /// `first_id` is random, so that ids of an earlier life of the process are not known to this one.
    pub fn new(first_id: u64) -> Self {
        Self { next: first_id, open: BTreeMap::new() }
    }

    pub fn has_room(&self) -> bool {
        self.open.len() < MAX_SESSIONS
    }

    /// An earlier session of the same learning ends here.
    pub fn open(&mut self, now: Millis, gpid: Gpid, signature: u64, held: T) -> u64 {
        self.open.retain(|_, s| (s.gpid, s.signature) != (gpid, signature));
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.insert(id, Session { gpid, signature, used: now, held });
        id
    }

    pub fn get(&mut self, now: Millis, gpid: Gpid, id: u64) -> Option<&mut T> {
        let session = self.open.get_mut(&id).filter(|s| s.gpid == gpid)?;
        session.used = now;
        Some(&mut session.held)
    }

    /// A session goes on in another learning of the same partition.
    pub fn resume(&mut self, now: Millis, gpid: Gpid, id: u64, signature: u64) -> Option<&mut T> {
        let session = self.open.get_mut(&id).filter(|s| s.gpid == gpid)?;
        (session.used, session.signature) = (now, signature);
        Some(&mut session.held)
    }

    /// The session of one learning, whatever its id.
    pub fn of(&mut self, now: Millis, gpid: Gpid, signature: u64) -> Option<&mut T> {
        let session = self.open.values_mut().find(|s| (s.gpid, s.signature) == (gpid, signature))?;
        session.used = now;
        Some(&mut session.held)
    }

    pub fn expire(&mut self, now: Millis) -> usize {
        let before = self.open.len();
        self.open.retain(|_, s| now.since(s.used) <= EXPIRE_MS);
        before - self.open.len()
    }

    /// Ends those that are over, by partition, signature and what is held.
    pub fn prune(&mut self, is_over: impl Fn(Gpid, u64, &T) -> bool) {
        self.open.retain(|_, s| !is_over(s.gpid, s.signature, &s.held));
    }

    pub fn end(&mut self, id: u64) {
        self.open.remove(&id);
    }

    pub fn close(&mut self, gpid: Gpid) {
        self.open.retain(|_, s| s.gpid != gpid);
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Gpid = Gpid::new(1, 0);
    const B: Gpid = Gpid::new(1, 1);

    #[test]
    fn sessions_belong_to_a_partition_and_expire() {
        let mut sessions = Sessions::new(u64::MAX);
        let a = sessions.open(Millis(0), A, 1, "view a");
        let b = sessions.open(Millis(0), B, 1, "view b");
        assert_eq!(sessions.get(Millis(10), A, a), Some(&mut "view a"));
        assert_eq!(sessions.get(Millis(10), B, a), None);
        assert_eq!(sessions.of(Millis(10), A, 2), None);
        assert_eq!(sessions.expire(Millis(EXPIRE_MS + 5)), 1, "b was not used");
        assert_eq!(sessions.get(Millis(20), B, b), None);
        let again = sessions.open(Millis(20), A, 1, "newer");
        assert_eq!((sessions.len(), sessions.get(Millis(20), A, a)), (1, None));
        assert_eq!(sessions.get(Millis(20), A, again), Some(&mut "newer"));
        assert_eq!(sessions.resume(Millis(30), B, again, 5), None);
        assert_eq!(sessions.resume(Millis(30), A, again, 5), Some(&mut "newer"));
        assert_eq!(sessions.of(Millis(30), A, 1), None);
        assert_eq!(sessions.of(Millis(30), A, 5), Some(&mut "newer"));
    }

    #[test]
    fn room_is_bounded() {
        let mut sessions = Sessions::new(0);
        for i in 0..MAX_SESSIONS {
            assert!(sessions.has_room());
            sessions.open(Millis(0), Gpid::new(1, i as i32), 1, ());
        }
        assert!(!sessions.has_room());
        sessions.close(Gpid::new(1, 0));
        assert!(sessions.has_room());
        sessions.prune(|gpid, signature, ()| gpid.index < 10 && signature == 1);
        assert_eq!(sessions.len(), MAX_SESSIONS - 10);
    }
}
