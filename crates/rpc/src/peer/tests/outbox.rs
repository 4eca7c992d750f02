//! One-way messages in batches.

use super::*;
use crate::peer::outbox::{BATCH_MESSAGES, CALLS_IN_FLIGHT, QUEUE_MESSAGES};

#[test]
fn an_outbox_batches_and_keeps_the_order() {
    const MESSAGES: i64 = 20_000;
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let outbox = Outbox::new(pool.replica(&server.node));
        for decree in 0..MESSAGES {
            // Bursts of all lengths, every size of value up to 2 KiB; waits now and then.
            assert!(outbox.push(prepare(decree, usize::try_from(decree * 37 % 2048).unwrap())));
            if decree % 97 == 0 {
                tokio::task::yield_now().await;
            }
            if decree % 1999 == 0 {
                sleep(Duration::from_millis(2)).await;
            }
        }
        until("all have arrived", || outbox.stats().delivered == MESSAGES as u64).await;
        assert_eq!(decrees(&server.seen.delivered.borrow()), (0..MESSAGES).collect::<Vec<_>>());
        let stats = outbox.stats();
        assert_eq!((stats.failed, stats.refused, stats.queued, stats.queued_bytes), (0, 0, 0, 0));
        assert!(stats.calls < 2_000, "{stats:?}");
        assert_eq!(server.seen.batches.get() as u64, stats.calls);
    });
}

#[test]
fn what_one_turn_sends_is_one_call() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let outbox = Outbox::new(pool.replica(&server.node));
        for turn in 1..=3 {
            (0..100).for_each(|decree| assert!(outbox.push(prepare(decree, 10))));
            until("delivered", || outbox.stats().delivered == 100 * turn).await;
            assert_eq!(outbox.stats().calls, turn);
        }
    });
}

#[test]
fn a_broken_connection_loses_messages_but_never_reorders_or_repeats() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let outbox = Outbox::new(pool.replica(&server.node));
        for decree in 0..5_000 {
            outbox.push(prepare(decree, 500));
            if decree % 10 == 0 {
                tokio::task::yield_now().await;
            }
            if decree % 1_000 == 500 {
                server.cut_connections();
            }
        }
        let settled = |stats: OutboxStats| stats.queued == 0 && stats.delivered + stats.failed == 5_000;
        until("all have been tried", || settled(outbox.stats())).await;
        let got = decrees(&server.seen.delivered.borrow());
        assert!(got.windows(2).all(|w| w[0] < w[1]), "{got:?}");
        assert_eq!(got.last(), Some(&4_999), "the new connection is used");
        assert!(outbox.stats().delivered <= got.len() as u64);
    });
}

#[test]
fn a_peer_that_hangs_fills_a_bounded_queue() {
    local(async {
        let server = Server::start(1).await;
        server.seen.delay.set(Duration::from_secs(60));
        let (pool, _) = pool();
        let outbox = Outbox::new(pool.replica(&server.node));
        let in_flight = CALLS_IN_FLIGHT * BATCH_MESSAGES;
        for decree in 0..(QUEUE_MESSAGES + in_flight + 100) as i64 {
            outbox.push(prepare(decree, 0));
            if decree % 5_000 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let stats = outbox.stats();
        assert_eq!(stats.queued, QUEUE_MESSAGES);
        assert!(stats.refused >= 100, "{stats:?}");
        assert!(stats.calls <= CALLS_IN_FLIGHT as u64, "{stats:?}");
        // By bytes as well.
        let outbox = Outbox::new(pool.replica(&server.node));
        let pushed = (0..200).filter(|decree| outbox.push(prepare(*decree, 1 << 20))).count();
        assert!((60..70).contains(&pushed), "{pushed}");
    });
}
