//! Timing and bounds. Times are milliseconds.

use serde::{Deserialize, Serialize};

/// Defaults are those of safety-rules.md 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Each node sends a heartbeat to each peer with which it shares a partition this often.
    pub heartbeat_ms: u64,
    /// How long a grant lasts, counted by its holder from the sending of the heartbeat.
    pub lease_ms: u64,
    /// A node that was not heard for so long is taken for dead.
    pub grace_ms: u64,
    /// Added to every wait that must outlast somebody else's lease.
    pub margin_ms: u64,
    /// Largest difference in rate between two clocks that the waits allow for, parts per million.
    pub drift_ppm: u64,
    /// Decrees that may be prepared and not committed. Inherited ones are exempt (replication.md H26).
    pub window: usize,
    /// Bytes of bodies that may be prepared and not committed.
    pub window_bytes: usize,
    /// Committed mutations kept in memory for members and learners that lag: count and bytes.
    pub recent: usize,
    pub recent_bytes: usize,
    /// An unanswered message to a peer is sent again after this time.
    pub resend_ms: u64,
    /// A secondary whose oldest prepare is unanswered for so long is removed, although it is heard.
    pub prepare_timeout_ms: u64,
    /// A learner whose oldest prepare is unanswered for so long goes back to copying (safety-rules.md 3.3).
    pub learner_silence_ms: u64,
    /// Without a prepare that carries it, the commit point is told to members after this time.
    pub commit_notify_ms: u64,
    /// An unanswered or refused request to the meta is repeated after this time.
    pub ask_retry_ms: u64,
    /// An attempt to reach the meta that reports nothing for so long counts as unanswered.
    pub ask_timeout_ms: u64,
    /// A planned hand-over whose writes in flight do not finish in this time is given up.
    pub hand_over_ms: u64,
    /// A learner that hears nothing about its session for so long asks its primary again.
    pub learn_idle_ms: u64,
    /// Members without which writes are refused; at most the table's replica count is demanded.
    pub min_members: usize,
    /// Learners that one primary teaches at a time, per partition.
    pub max_learners: usize,
    /// Rules to leave out, so that tests can show what each is good for. Never set outside of tests.
    #[serde(skip)]
    pub sabotage: Sabotage,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            heartbeat_ms: 150,
            lease_ms: 600,
            grace_ms: 900,
            margin_ms: 50,
            drift_ppm: 2_000,
            window: 128,
            window_bytes: 16 << 20,
            recent: 256,
            recent_bytes: 4 << 20,
            resend_ms: 300,
            prepare_timeout_ms: 3_000,
            learner_silence_ms: 200,
            commit_notify_ms: 100,
            ask_retry_ms: 200,
            ask_timeout_ms: 3_000,
            hand_over_ms: 500,
            learn_idle_ms: 2_000,
            min_members: 2,
            max_learners: 2,
            sabotage: Sabotage::None,
        }
    }
}

impl Options {
    /// After so long on the own clock, a lease that another node counts on its clock has run out.
    pub fn lease_is_over_ms(&self) -> u64 {
        if self.sabotage == Sabotage::NoWaitAtTakeOver {
            return 0;
        }
        self.lease_ms + (self.lease_ms * self.drift_ppm).div_ceil(1_000_000) + self.margin_ms
    }

    /// Impossible timing, told as sentences; empty = fine.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut must = |ok: bool, why: String| {
            if !ok {
                found.push(why);
            }
        };
        must(self.heartbeat_ms > 0, "lease_heartbeat_ms must be above 0".into());
        must(
            self.lease_ms >= self.heartbeat_ms * 3,
            format!(
                "lease_ms ({}) must be at least 3 x lease_heartbeat_ms ({})",
                self.lease_ms, self.heartbeat_ms
            ),
        );
        must(
            self.grace_ms > self.lease_ms,
            format!("grace_ms ({}) must be above lease_ms ({})", self.grace_ms, self.lease_ms),
        );
        must(self.window > 0 && self.window_bytes > 0, "the prepare window must not be empty".into());
        must(self.recent >= self.window, "recent must be at least the prepare window".into());
        must(self.drift_ppm < 100_000, "drift_ppm must be below 100000".into());
        found
    }

    /// Worst gap in writes, from the last sign of life of a primary: (after a reset, after a silence).
    pub fn fail_over_ms(&self) -> (u64, u64) {
        (self.lease_is_over_ms(), self.grace_ms + self.heartbeat_ms + self.lease_is_over_ms())
    }
}

/// One safety rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sabotage {
    #[default]
    None,
    /// The new primary does not wait out its own last grant (safety-rules.md 1.3).
    NoWaitAtTakeOver,
    /// Grants ignore ballots and claims (1.1).
    GrantAnything,
    /// The holder counts a grant from the arrival of the acknowledgement (1.1).
    CountFromReceipt,
    /// A member whose addition was asked for need not grant (1.2).
    ForgetAskedMember,
    /// A primary goes on at its old ballot after a restart (1.4).
    KeepBallotAfterRestart,
    /// A mutation commits without the secondaries (replication.md S6).
    CommitAlone,
    /// A secondary acknowledges before its log has the mutation (S7).
    AckBeforeLog,
    /// A new primary does not prepare again what it inherited.
    DropInherited,
    /// A secondary applies what it received without regard to the commit point (S1).
    ApplyEarly,
}
