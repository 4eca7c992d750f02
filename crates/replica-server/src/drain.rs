//! The orderly end of a node that others can stand in for (SIGTERM).
//!
//! ```text
//!  asked ─▶ beacons say "draining" ─▶ the meta has each primary handed over ─▶ linger ─▶ stop
//! ```
//!
//! A primary that hands over finishes its writes in flight, and nobody waits for a lease (safety-rules.md 1.3).
//! Afterwards the node goes on as a secondary for a while, and answers clients that come with an old route with
//! ERR_INVALID_STATE: they look for the new one, as they would not when the connection broke. Its groups notice the
//! end itself by the reset connection.

use std::rc::Rc;
use std::time::Duration;

use pegasus_telemetry::{Health, Shutdown};
use pegasus_types::meta::ReplicaStatus;
use tokio::time::{Instant, sleep};

use crate::node::{NodeState, Shell};

/// Whatever is handed over by then: who asked for the end must not wait for ever.
const WITHIN: Duration = Duration::from_secs(60);
/// When no meta-server has answered for so long, not even one that knows no leader, nothing will be handed over.
const META_SILENT: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What has been seen since the node was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    since_asked: Duration,
    /// Since a meta-server answered.
    meta_silent: Duration,
    /// None: the meta leader does not know yet that this node drains.
    all_draining: Option<bool>,
    /// Partitions that others could serve, and this node does.
    primaries: usize,
    /// There were such partitions, and since this time there are none.
    without: Option<Duration>,
}

/// Why it is time to stop, if it is.
fn verdict(seen: &Seen, linger: Duration) -> Option<&'static str> {
    if seen.all_draining == Some(true) {
        return Some("all nodes drain");
    }
    if seen.meta_silent.min(seen.since_asked) >= META_SILENT {
        return Some("no meta-server answers");
    }
    if seen.since_asked >= WITHIN {
        return Some("the time is over");
    }
    if seen.all_draining.is_none() || seen.primaries > 0 {
        return None;
    }
    match seen.without {
        None => Some("there is nothing to hand over"),
        Some(without) => (without >= linger).then_some("all is handed over"),
    }
}

/// Waits until `asked` is triggered, drains, and triggers the shutdown of the node. At once when `asked` is in a hurry,
/// or becomes so.
pub async fn run(shell: Rc<Shell>, asked: Shutdown, health: Health, linger: Duration) {
    asked.triggered().await;
    health.not_ready("drain", "the node hands its partitions over and ends");
    let why = tokio::select! {
        biased;
        () = asked.hurried() => "there is no time",
        why = drain(&shell, linger) => why,
    };
    tracing::info!(why, "the node stops");
    shell.shutdown.trigger();
}

async fn drain(shell: &Rc<Shell>, linger: Duration) -> &'static str {
    let begun = Instant::now();
    shell.meta.begin_drain();
    let (mut said, mut had_any, mut without) = (None::<Instant>, false, None::<Instant>);
    loop {
        let primaries = shell.with(|state| primaries(state));
        had_any |= primaries > 0;
        without = if primaries > 0 || !had_any { None } else { without.or_else(|| Some(Instant::now())) };
        let since_asked = begun.elapsed();
        let seen = Seen {
            since_asked,
            meta_silent: shell.meta.silent_for().unwrap_or(since_asked),
            all_draining: shell.meta.all_draining(),
            primaries,
            without: without.map(|since| since.elapsed()),
        };
        if let Some(why) = verdict(&seen, linger) {
            if primaries > 0 {
                tracing::warn!(primaries, "ends as the primary of partitions");
            }
            return why;
        }
        if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            said = Some(Instant::now());
            tracing::info!(primaries, meta_told = seen.all_draining.is_some(), "draining");
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Not those of which there is one copy only, by its table's wish.
fn primaries(state: &NodeState) -> usize {
    let serves = |gpid| {
        state.core.status(gpid) == Some(ReplicaStatus::Primary)
            && state.core.config(gpid).is_some_and(|config| config.max_replica_count > 1)
    };
    state.replicas.keys().filter(|gpid| serves(**gpid)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stops_when_there_is_nothing_to_wait_for() {
        let s = Duration::from_secs;
        let linger = s(5);
        let seen = Seen {
            since_asked: s(10),
            meta_silent: s(0),
            all_draining: Some(false),
            primaries: 3,
            without: None,
        };
        for (seen, expected) in [
            (seen, None),
            (Seen { all_draining: Some(true), ..seen }, Some("all nodes drain")),
            (Seen { all_draining: None, ..seen }, None),
            (Seen { all_draining: None, primaries: 0, ..seen }, None),
            (Seen { since_asked: s(2), meta_silent: s(100), ..seen }, None),
            (Seen { since_asked: s(3), meta_silent: s(100), ..seen }, Some("no meta-server answers")),
            (Seen { primaries: 0, ..seen }, Some("there is nothing to hand over")),
            (Seen { primaries: 0, without: Some(s(4)), ..seen }, None),
            (Seen { primaries: 0, without: Some(s(5)), ..seen }, Some("all is handed over")),
            (Seen { since_asked: s(59), ..seen }, None),
            (Seen { since_asked: s(60), ..seen }, Some("the time is over")),
        ] {
            assert_eq!(verdict(&seen, linger), expected, "{seen:?}");
        }
    }
}
