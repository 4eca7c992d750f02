//! Peers that die, come back, hang, or are not what they seem.

use super::*;

#[test]
fn a_killed_peer_is_reported_at_once_and_found_again() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        peer.heartbeat(SOON, heartbeat(1)).await.unwrap();
        peer.deliver(SOON, vec![prepare(1, 10)]).await.unwrap();

        server.kill();
        // Nobody calls: the loss itself starts the dial.
        let took = until("the event", || !gone(&events).is_empty()).await;
        // A few milliseconds; the rest is for a busy machine.
        assert!(took < Duration::from_millis(500), "{took:?}");
        sleep(SHORT).await;
        assert_eq!(gone(&events), [(server.node.clone(), 1)], "told once, not per connection");
        let refused = peer.heartbeat(SOON, heartbeat(2)).await.unwrap_err();
        assert_eq!(refused, CallError::Unreachable(DialError::ConnectionRefused));

        // Back with a new life; then cut off and back with the same one: each end is an event of its own.
        for (events_before, incarnation) in [(1, 2), (2, 2)] {
            let again = Server::start_at(server.node.as_str(), incarnation, "c1", Service::Replica).await;
            let start = Instant::now();
            while peer.heartbeat(SOON, heartbeat(3)).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
            let connected =
                |e: &PeerEvent| matches!(e, PeerEvent::Connected { incarnation: i, .. } if *i == incarnation);
            assert!(events.borrow().iter().any(connected));
            again.kill();
            until("the event", || gone(&events).len() > events_before).await;
            assert_eq!(gone(&events)[events_before].1, incarnation);
        }
    });
}

#[test]
fn a_dying_peer_whose_port_closes_last_is_reported_too() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        pool.replica(&server.node).heartbeat(SOON, heartbeat(1)).await.unwrap();
        // The first dials after the loss still land in the backlog of a process that will not accept them.
        server.cut_connections();
        server.shutdown.cancel();
        sleep(Duration::from_millis(4)).await;
        server.kill();
        until("the event", || !gone(&events).is_empty()).await;
    });
}

#[test]
fn a_broken_connection_to_a_living_peer_is_no_death() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        peer.heartbeat(SOON, heartbeat(1)).await.unwrap();
        server.cut_connections();
        until("connected again, without a call", || events.borrow().len() == 2 && peer.is_up(Class::Control))
            .await;
        peer.heartbeat(SOON, heartbeat(2)).await.unwrap();
        assert_eq!(gone(&events), []);
    });
}

#[test]
fn a_peer_that_hangs_up_on_everyone_is_not_dialled_in_a_tight_loop() {
    local(async {
        let server = Server::start(1).await;
        server.shutdown.cancel();
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        let failed = peer.heartbeat(SHORT, heartbeat(1)).await;
        assert!(matches!(failed, Err(CallError::Lost(_) | CallError::Timeout)), "{failed:?}");
        sleep(Duration::from_millis(500)).await;
        let dials = events.borrow().len();
        assert!((3..20).contains(&dials), "{dials} dials");
    });
}

#[test]
fn a_peer_that_was_never_there_is_no_death_and_no_queue() {
    local(async {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (pool, events) = pool();
        let peer = pool.replica(&Node::new(free.to_string()));
        let dials =
            async || tokio::join!(peer.heartbeat(SOON, heartbeat(1)), peer.heartbeat(SOON, heartbeat(2)));
        let start = Instant::now();
        for _ in 0..100 {
            let refused = Err(CallError::Unreachable(DialError::ConnectionRefused));
            assert_eq!(dials().await, (refused.clone(), refused));
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!(*events.borrow(), []);

        // Heard from: no pause is waited out.
        let server = Server::start_at(&free.to_string(), 1, "c1", Service::Replica).await;
        pool.heard_from(&server.node);
        peer.heartbeat(SOON, heartbeat(1)).await.unwrap();
    });
}

#[test]
fn a_peer_that_says_nothing_costs_only_the_deadline() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Node::new(listener.local_addr().unwrap().to_string());
        let (pool, events) =
            pool_of("c1", PoolOptions { dial_timeout: Duration::from_millis(200), ..PoolOptions::default() });
        let peer = pool.replica(&node);
        // It accepts (its kernel does), but never answers the hello.
        assert_eq!(peer.heartbeat(SHORT, heartbeat(1)).await, Err(CallError::Timeout));
        let late = peer.heartbeat(SOON, heartbeat(1)).await;
        assert_eq!(late, Err(CallError::Unreachable(DialError::Timeout)));

        // It says hello, and nothing more.
        let _mute = spawn_local(async move {
            let me = Identity::new(Node::new(listener.local_addr().unwrap().to_string()), 1, "c1");
            let mut held = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if admit(&mut stream, &me, Service::Replica).await.is_ok() {
                    held.push(stream);
                }
            }
        });
        sleep(Duration::from_millis(400)).await;
        for _ in 0..3 {
            assert_eq!(peer.heartbeat(SHORT, heartbeat(1)).await, Err(CallError::Timeout));
        }
        assert_eq!(gone(&events), []);
    });
}

#[test]
fn strangers_are_refused() {
    local(async {
        let server = Server::start(1).await;
        let (other_cluster, _) = pool_of("c2", PoolOptions::default());
        let refused = other_cluster.replica(&server.node).heartbeat(SOON, heartbeat(1)).await;
        let refusal = DialError::Refused(Refusal::OtherCluster("c1".into()));
        assert_eq!(refused, Err(CallError::Unreachable(refusal)));

        let (pool, _) = pool();
        let refused = pool.meta(&server.node).query(SOON, GPID).await.unwrap_err();
        assert!(refused.to_string().contains("Replica server"), "{refused}");
        let alias = Node::new(format!("localhost:{}", server.node.port()));
        let refused = pool.replica(&alias).heartbeat(SOON, heartbeat(1)).await.unwrap_err();
        assert!(refused.to_string().contains(server.node.as_str()), "{refused}");
        let unknown = pool.replica(&Node::new("no-such-host.invalid:1")).heartbeat(SOON, heartbeat(1)).await;
        assert!(matches!(unknown, Err(CallError::Unreachable(DialError::Resolve(_)))), "{unknown:?}");

        for garbage in [b"PGR1\xff\xff".as_slice(), b"GET / HTTP/1.1\r\n\r\n", &[0; 2000]] {
            let mut stream = TcpStream::connect(server.node.as_str()).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            let mut rest = Vec::new();
            // Closed, by an end or a reset.
            let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the stranger is turned away");
            assert!(rest.is_empty());
        }
        pool.replica(&server.node).heartbeat(SOON, heartbeat(1)).await.unwrap();
    });
}

#[test]
fn a_malformed_frame_ends_that_connection_only() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let peer = pool.replica(&server.node);
        peer.heartbeat(SOON, heartbeat(1)).await.unwrap();
        let bytes = b"\x00\x00\x00\x00";
        for frame in [&[0xff; 8][..], b"\x09\x00\x00\x00\x01\0\0\0\0\0\0\0\0", bytes] {
            let mut stream = TcpStream::connect(server.node.as_str()).await.unwrap();
            let hello = hello::Hello {
                cluster_id: String::new(),
                from: Node::new("x:1"),
                incarnation: 1,
                service: Service::Replica,
                class: Class::Bulk,
                to: server.node.clone(),
            };
            hello::greet(&mut stream, &hello).await.unwrap();
            stream.write_all(frame).await.unwrap();
            let mut rest = Vec::new();
            let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the connection ends");
        }
        peer.heartbeat(SOON, heartbeat(2)).await.unwrap();
    });
}

#[test]
fn shutdown_brings_running_answers_out() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let peer = pool.replica(&server.node);
        server.seen.delay.set(Duration::from_millis(20));
        let call = spawn_local({
            let peer = peer.clone();
            async move { peer.deliver(SOON, vec![prepare(1, 10)]).await }
        });
        until("it runs", || server.seen.batches.get() == 1).await;
        server.stop_listening();
        server.shutdown.cancel();
        call.await.unwrap().expect("answered while the server went down");
        let after = peer.deliver(SOON, vec![prepare(2, 10)]).await.unwrap_err();
        assert!(matches!(after, CallError::Unreachable(_) | CallError::Lost(_)), "{after}");
    });
}

#[test]
fn a_closed_pool_leaves_no_connection() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        pool.replica(&server.node).heartbeat(SOON, heartbeat(1)).await.unwrap();
        drop(pool);
        until("the server sees the end", || server.connections.borrow().iter().all(JoinHandle::is_finished))
            .await;
    });
}
