//! Taking prepares: what a secondary and a joined learner have in common.

use pegasus_types::message::Message;
use pegasus_types::{Decree, Millis, Mutation, Node};

use crate::event::Fault;
use crate::options::Sabotage;
use crate::shared::{Env, Next, Shared};
use crate::tail::Offer;

/// A follower whose engine lags by more than this many windows takes nothing new: the primary's window then
/// holds the writers back.
const UNAPPLIED_WINDOWS: usize = 4;
/// A burst of prepares that do not follow asks once for the missing one; one of prepares that are known is
/// answered once.
const AGAIN_MS: u64 = 20;

#[derive(Debug)]
pub(crate) struct Follower {
    /// Of the joining, for a learner.
    round: u64,
    /// Everything up to here was prepared in order by the primary of this ballot, or is committed.
    received: Decree,
    /// ... and is in the own log.
    logged: Decree,
    /// As the primary told.
    committed: Decree,
    gap: Option<(Decree, Millis)>,
    /// When a prepare that came again was answered last.
    repeated_at: Option<Millis>,
}

impl Follower {
    pub fn new(cx: &Shared, round: u64) -> Self {
        let committed = cx.tail.committed();
        Self { round, received: committed, logged: committed, committed, gap: None, repeated_at: None }
    }

    pub fn round(&self) -> u64 {
        self.round
    }

    pub fn logged_to(&self) -> Decree {
        self.logged
    }

    pub fn prepare(
        &mut self,
        cx: &mut Shared,
        env: &mut Env<'_>,
        primary: &Node,
        mutation: Mutation,
        committed: Decree,
    ) -> Next {
        if mutation.gpid != cx.gpid || !mutation.verify() {
            tracing::warn!(gpid = %cx.gpid, decree = %mutation.decree, %primary, "prepare damaged on its way");
            return Next::Stay;
        }
        self.committed = self.committed.max(committed);
        let decree = mutation.decree;
        if decree > self.received.next() {
            self.trust(cx);
        }
        if decree > self.received.next() {
            self.gap(cx, env, primary);
        } else if decree <= self.received {
            if cx.tail.contradicts(&mutation) {
                return contradiction(decree);
            }
            let told = self.repeated_at.is_some_and(|at| env.now.since(at) < AGAIN_MS);
            if decree <= self.logged && !told {
                self.repeated_at = Some(env.now);
                self.tell_prepared(cx, env, primary, self.logged);
            }
        } else {
            let unapplied = self.received.0 - cx.tail.applied().0;
            if usize::try_from(unapplied).unwrap_or(0) > env.options.window * UNAPPLIED_WINDOWS {
                return Next::Stay;
            }
            cx.last_timestamp_us = cx.last_timestamp_us.max(mutation.timestamp_us);
            let ballot = cx.ballot();
            match cx.tail.offer(ballot, mutation.clone()) {
                Offer::Taken => {
                    self.received = decree;
                    cx.log(env, vec![mutation]);
                    if env.options.sabotage == Sabotage::AckBeforeLog {
                        self.tell_prepared(cx, env, primary, decree);
                    }
                }
                Offer::Mismatch => return contradiction(decree),
                Offer::Gap => {
                    return Next::Fail(Fault::Invariant, format!("decree {decree} does not follow the tail"));
                }
            }
        }
        self.advance(cx, env);
        Next::Stay
    }

    /// The commit point came without a prepare.
    pub fn commit(&mut self, cx: &mut Shared, env: &mut Env<'_>, primary: &Node, committed: Decree) -> Next {
        self.committed = self.committed.max(committed);
        if committed > self.received {
            self.trust(cx);
            // What was acknowledged is committed, so that nothing of it is given up below.
            self.advance(cx, env);
            if committed > self.received {
                if self.received == self.logged && committed > cx.tail.prepared() {
                    return Next::StandDown(format!(
                        "{committed} is committed, and only {} is held here",
                        cx.tail.prepared()
                    ));
                }
                self.gap(cx, env, primary);
            } else {
                self.tell_prepared(cx, env, primary, self.logged);
            }
        }
        self.advance(cx, env);
        Next::Stay
    }

    fn tell_prepared(&self, cx: &Shared, env: &mut Env<'_>, primary: &Node, prepared: Decree) {
        cx.send(env, primary, Message::Prepared { prepared, round: self.round });
    }

    /// A committed decree that this member has in its log is the one that it acknowledged: it need not be
    /// compared with the primary's, which may not keep it any more (replication.md S1).
    fn trust(&mut self, cx: &Shared) {
        let known = self.committed.min(cx.tail.durable());
        self.received = self.received.max(known);
        self.logged = self.logged.max(known);
    }

    /// Asks for what comes next.
    pub fn gap(&mut self, cx: &Shared, env: &mut Env<'_>, primary: &Node) {
        let expected = self.received.next();
        let told = self.gap.is_some_and(|(d, at)| d == expected && env.now.since(at) < AGAIN_MS);
        if !told {
            self.gap = Some((expected, env.now));
            cx.send(env, primary, Message::Gap { expected, round: self.round });
        }
    }

    pub fn logged(&mut self, cx: &mut Shared, env: &mut Env<'_>, primary: &Node, upto: Decree) {
        cx.tail.logged(upto);
        let logged = upto.min(self.received);
        if logged > self.logged {
            self.logged = logged;
            self.tell_prepared(cx, env, primary, logged);
        }
        self.advance(cx, env);
    }

    fn advance(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        let upto = if env.options.sabotage == Sabotage::ApplyEarly {
            self.received
        } else {
            self.committed.min(self.received).min(cx.tail.durable())
        };
        cx.commit_to(env, upto);
    }

    pub fn check(&self, cx: &Shared) -> Result<(), String> {
        let order = [self.logged, self.received, cx.tail.prepared()];
        if order.is_sorted() {
            Ok(())
        } else {
            Err(format!("logged, received, prepared out of order: {order:?}"))
        }
    }
}

fn contradiction(decree: Decree) -> Next {
    Next::Fail(Fault::Engine, format!("decree {decree} has two contents"))
}
