//! Calls that reach a living peer.

use super::*;

#[test]
fn every_message_of_a_replica_server_crosses() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        assert!(!peer.is_up(Class::Control), "nothing is dialled before the first call");

        let messages = [
            Message::Configure { config: config() },
            Message::State { committed: Decree(1), prepared: Decree(2) },
            Message::Prepare { mutation: mutation(3, 70_000), committed: Decree(2) },
            Message::Prepare { mutation: mutation(4, 0), committed: Decree(i64::MAX) },
            Message::Prepared { prepared: Decree(-1), round: 0 },
            Message::Gap { expected: Decree(2), round: 1 },
            Message::NeedConfig,
            Message::Stale,
            Message::NotHere,
            Message::Commit { committed: Decree(2) },
            Message::Learn { config: config(), signature: u64::MAX },
            Message::Join { signature: 2, round: 3, prepared: Decree(3) },
            Message::Joined { signature: 2, round: 3, committed: Decree(3) },
            Message::FetchMore { signature: 2, round: 3 },
            Message::LearnFailed { signature: 2 },
        ];
        let batch: Vec<_> = messages
            .into_iter()
            .map(|message| Envelope { gpid: GPID, ballot: Ballot(i64::MAX), message })
            .collect();
        peer.deliver(SOON, batch.clone()).await.unwrap();
        assert_eq!(*server.seen.delivered.borrow(), batch);

        let ack = peer.heartbeat(SOON, heartbeat(3)).await.unwrap();
        assert_eq!((ack.incarnation, ack.to_incarnation, ack.seq, ack.grant), (77, 5, 3, Grant::All));
        let pairs = Some(vec![(GPID, Ballot(1))]);
        let ack = peer.heartbeat(SOON, Heartbeat { pairs, ..heartbeat(4) }).await.unwrap();
        let grant = Grant::Some { granted: vec![(GPID, Ballot(1))], newer: vec![(GPID, Ballot(9))] };
        assert_eq!(ack.grant, grant);

        let plan = peer.learn_open(SOON, learn_open(1)).await.unwrap();
        assert_eq!(plan, Ok(LearnPlan::Rows { session: 1, decree: Decree(8), rows: 3 }));
        let refused = peer.learn_open(SOON, LearnOpen { ballot: Ballot(0), ..learn_open(1) }).await.unwrap();
        assert_eq!(refused, Err(LearnRefused::NotPrimary(Ballot(4))));
        let after = Some(Bytes::from_static(b"key"));
        let rows = RowsRequest { gpid: GPID, session: 1, after: after.clone(), max_bytes: 1 << 20 };
        let rows = peer.learn_rows(SOON, rows).await.unwrap().unwrap();
        assert_eq!((rows.body.len(), rows.last_key, rows.crc), (1 << 20, after, 5));
        let log = peer.learn_log(SOON, log_request()).await.unwrap().unwrap();
        assert_eq!(log, LogChunk { mutations: vec![mutation(3, 100)], committed: Decree(3) });

        peer.adopt(SOON, vec![(app(), config())]).await.unwrap();
        assert_eq!(*server.seen.configs.borrow(), [(app(), config())]);
        let proposals = [
            (Proposal::AddSecondary { node: Node::new("d:1") }, ErrorCode::Ok),
            (Proposal::HandOver { to: Node::new("b:1") }, ErrorCode::InvalidState),
        ];
        for (proposal, want) in proposals {
            let request = ProposalRequest { gpid: GPID, ballot: Ballot(4), proposal };
            assert_eq!(peer.propose(SOON, request).await.unwrap(), want);
        }
        assert_eq!(peer.stats(SOON).await.unwrap(), node_stats());

        assert!(Class::ALL.into_iter().all(|class| peer.is_up(class)));
        let connected = |class| PeerEvent::Connected {
            node: server.node.clone(),
            class,
            incarnation: 1,
            cluster_id: "c1".into(),
        };
        assert_eq!(*events.borrow(), [Class::Replication, Class::Control, Class::Bulk].map(connected));
    });
}

#[test]
fn every_message_of_a_meta_server_crosses() {
    local(async {
        let server = Server::start_at("127.0.0.1:0", 1, "c1", Service::Meta).await;
        let (pool, _) = pool_of("", PoolOptions::default());
        // By a name that is not the one the server publishes: resolved at the dial.
        let meta = pool.meta(&Node::new(format!("localhost:{}", server.node.port())));
        let beacon =
            Beacon { node: Node::new("a:1"), incarnation: 1, wall_us: 2, log_healthy: true, draining: false };
        let ack = meta.beacon(SOON, beacon).await.unwrap();
        assert_eq!((ack.accepted, ack.leader, ack.wants_report), (true, Some(Node::new("a:1")), false));
        assert!(pool.identity().learn_cluster_id(&ack.cluster_id));

        let sync = ConfigSync { node: Node::new("a:1"), incarnation: 1, replicas: vec![report()] };
        let ack = meta.config_sync(SOON, sync).await.unwrap();
        assert_eq!((ack.configs, ack.garbage), (vec![(app(), config())], vec![GPID]));

        let change = |ballot| ChangeRequest {
            gpid: GPID,
            ballot: Ballot(ballot),
            kind: ChangeKind::TakeOver { claimant: Node::new("b:1") },
            committed: Decree(1),
        };
        let order = RefCell::new(Vec::new());
        let ask = async |ballot| {
            let reply = meta.change(SOON, change(ballot)).await.unwrap();
            let ChangeReply::Rejected { current, why } = reply else { panic!("{reply:?}") };
            assert_eq!((current, why), (Some(config()), ballot.to_string()));
            order.borrow_mut().push(ballot);
        };
        tokio::join!(ask(1), ask(2), ask(3));
        assert_eq!(*order.borrow(), [3, 2, 1], "handlers that wait do not hold up one another");

        assert_eq!(meta.query(SOON, GPID).await.unwrap(), QueryReply::Known(app(), config()));
        assert_eq!(meta.query(SOON, Gpid::new(1, 1)).await.unwrap(), QueryReply::Unknown);
        assert_eq!(meta.cluster_view(SOON).await.unwrap().cluster_name, "onebox");
    });
}

#[test]
fn what_is_too_large_fails_one_call_only() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        let too_large = peer.deliver(SOON, vec![prepare(1, MAX_FRAME_BYTES)]).await.unwrap_err();
        assert!(matches!(too_large, CallError::TooLarge(_)), "{too_large}");
        assert!(!too_large.may_have_been_executed());
        peer.deliver(SOON, vec![prepare(2, 10)]).await.unwrap();

        let rows = RowsRequest { gpid: GPID, session: HUGE_ANSWER, after: None, max_bytes: 0 };
        let (huge, small) = tokio::join!(peer.learn_rows(SOON, rows), peer.learn_log(SOON, log_request()));
        assert!(matches!(&huge, Err(CallError::Remote(why)) if why.contains("larger than")), "{huge:?}");
        assert!(small.is_ok());
        assert_eq!(events.borrow().len(), 2, "no connection broke: {:?}", events.borrow());
    });
}

#[test]
fn a_deadline_ends_the_call_but_not_its_handler() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let peer = pool.replica(&server.node);
        peer.learn_log(SOON, log_request()).await.unwrap().unwrap();
        let slow = peer.learn_open(SHORT, learn_open(WAIT_300_MS)).await;
        assert_eq!(slow, Err(CallError::Timeout));
        assert_eq!(server.seen.finished.get(), 0, "it did not wait for the handler");
        peer.learn_log(SOON, log_request()).await.expect("the connection goes on").unwrap();
        until("the handler ends", || server.seen.finished.get() == 1).await;
        peer.learn_log(SOON, log_request()).await.expect("the late answer harms nobody").unwrap();
    });
}

#[test]
fn a_handler_outlives_its_connection() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let peer = pool.replica(&server.node);
        let call = spawn_local(async move { peer.learn_open(SOON, learn_open(WAIT_300_MS)).await });
        sleep(SHORT).await;
        server.cut_connections();
        let broken = call.await.unwrap().unwrap_err();
        assert!(matches!(broken, CallError::Lost(_)) && broken.may_have_been_executed(), "{broken}");
        until("the handler ends", || server.seen.finished.get() == 1).await;
    });
}

#[test]
fn a_handler_that_panics_costs_one_call() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        let panicked = peer.learn_open(SOON, learn_open(PANIC)).await;
        assert!(matches!(panicked, Err(CallError::Remote(_))), "{panicked:?}");
        peer.learn_open(SOON, learn_open(1)).await.unwrap().unwrap();
        assert_eq!(events.borrow().len(), 1);
    });
}

#[test]
fn more_calls_than_allowed_fail_at_once() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool_of("c1", PoolOptions { max_in_flight: 2, ..PoolOptions::default() });
        let peer = pool.replica(&server.node);
        peer.learn_log(SOON, log_request()).await.unwrap().unwrap();
        let slow = || peer.learn_open(SOON, learn_open(WAIT_300_MS));
        let (first, second, third) = tokio::join!(slow(), slow(), slow());
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(third, Err(CallError::Busy));
        assert!(!CallError::Busy.may_have_been_executed());
        peer.learn_log(SOON, log_request()).await.expect("the slots are free again").unwrap();
    });
}
