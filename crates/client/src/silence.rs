//! When a server that owes an answer and says nothing is taken for gone.
//!
//! A process that died is told by its kernel at once. A machine that is cut off, or a process that hangs, is not: the group
//! replaces it after 900 ms of silence, and nobody tells the clients. So who waits for a silent server looks now and then
//! whether the partition has moved, while it waits on.

use std::time::Duration;

/// Nothing but silence is known earlier, and the group cannot have acted on that.
const LOOK_AFTER: Duration = Duration::from_millis(800);
/// Between two looks, at least; the pause grows with the silence, so that a server that hangs for long, and all clients
/// of it, cost the meta-server a handful of questions each.
const LEAST_PAUSE: Duration = Duration::from_millis(150);
const MOST_PAUSE: Duration = Duration::from_secs(2);
/// A connection is replaced after this silence: its kernel sends lost bytes again after ever longer pauses, so that one
/// that outlived a cut may be of no use for as long as the cut lasted.
const FIRST_PATIENCE: Duration = Duration::from_millis(1500);
/// Replaced connections stay open until their calls end; a server that takes connections and hangs gets few of them.
const MOST_PATIENCE: Duration = Duration::from_secs(24);

/// The pause before the layout is looked at, None = now. `looked`: it was, since the last pause.
pub fn before_look(silence: Duration, looked: bool) -> Option<Duration> {
    if silence < LOOK_AFTER {
        Some(LOOK_AFTER - silence)
    } else if looked {
        Some((silence / 4).clamp(LEAST_PAUSE, MOST_PAUSE))
    } else {
        None
    }
}

/// How long the connections to one server may be silent before they are replaced.
#[derive(Debug)]
pub struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(FIRST_PATIENCE)
    }
}

impl Patience {
    pub fn is_over(&self, silence: Duration) -> bool {
        silence >= self.0
    }

    /// One was replaced. `heard`: it had brought answers once.
    pub fn replaced(&mut self, heard: bool) {
        self.0 = if heard { FIRST_PATIENCE } else { (self.0 * 2).min(MOST_PATIENCE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_looked_at_when_a_group_can_have_acted_and_then_ever_less_often() {
        let ms = Duration::from_millis;
        let cases = [
            (0, false, Some(800)),
            (300, true, Some(500)),
            (800, false, None),
            (5_000, false, None),
            (800, true, Some(200)),
            (1_200, true, Some(300)),
            (60_000, true, Some(2_000)),
        ];
        for (silence, looked, pause) in cases {
            assert_eq!(before_look(ms(silence), looked), pause.map(ms), "{silence} {looked}");
        }
    }

    /// A client that waits for 20 s costs the meta-server this many questions.
    #[test]
    fn looks_are_few() {
        let (mut silence, mut looked, mut looks) = (Duration::ZERO, false, 0);
        while silence < Duration::from_secs(20) {
            match before_look(silence, looked) {
                Some(pause) => (silence, looked) = (silence + pause, false),
                None => (looked, looks) = (true, looks + 1),
            }
        }
        assert!((10..=20).contains(&looks), "{looks}");
    }

    #[test]
    fn connections_to_a_server_that_hangs_are_replaced_ever_later() {
        let ms = Duration::from_millis;
        let mut patience = Patience::default();
        for (heard, over) in [(true, 1_500), (false, 3_000), (false, 6_000), (false, 12_000), (false, 24_000)]
        {
            patience.replaced(heard);
            assert!(patience.is_over(ms(over)) && !patience.is_over(ms(over - 1)), "{over}");
        }
        patience.replaced(false);
        assert!(patience.is_over(MOST_PATIENCE));
        patience.replaced(true);
        assert!(patience.is_over(FIRST_PATIENCE));
    }
}
