use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use pegasus_types::ErrorCode;
use pegasus_types::data::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::{sleep, timeout};

use super::*;
use crate::wire::client::{CallError, Connection};
use crate::wire::frame::{HeaderVersion, Refusal, open_reply, reply_len};
use crate::wire::meta::{NegotiationMessage, RemoteCommand};
use crate::wire::request::Response;
use crate::wire::thrift::Writer;

const SOON: Duration = Duration::from_secs(5);

/// Gets answer with the key repeated, puts answer later, `held` keeps the replies of removes.
#[derive(Default)]
struct Echo {
    held: Rc<RefCell<Vec<ReplyTo>>>,
    heads: Rc<RefCell<Vec<RequestHead>>>,
    value_bytes: usize,
}

impl ClientService for Echo {
    fn call(&self, head: RequestHead, _: usize, request: Request, reply: ReplyTo) {
        self.heads.borrow_mut().push(head);
        match request {
            Request::Read(ReadRequest::Get { key }) => {
                let value = key.repeat(self.value_bytes.max(1)).into();
                reply.read(ReadResponseBody::Get(ReadResponse { value, ..Default::default() }));
            }
            Request::Write(WriteRequest::Put(put)) => {
                spawn_local(async move {
                    for _ in 0..put.expire_ts_seconds {
                        yield_now().await;
                    }
                    let decree = i64::from(put.expire_ts_seconds);
                    reply.write(WriteResponse::Update(UpdateResponse { decree, ..Default::default() }));
                });
            }
            Request::Write(WriteRequest::Remove { .. }) => self.held.borrow_mut().push(reply),
            Request::Read(ReadRequest::ClearScanner { .. }) => reply.error(ErrorCode::Busy),
            Request::RemoteCommand(command) => reply.text(command.cmd),
            Request::QueryConfig(_) | Request::Admin(_) => reply.error(ErrorCode::ServiceNotActive),
            _ => reply.error(ErrorCode::NotImplemented),
        }
    }
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(LocalSet::new().run_until(async { timeout(Duration::from_secs(30), test).await.unwrap() }))
}

async fn start(echo: Echo, limits: Limits) -> (SocketAddr, Rc<WireServer>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = WireServer::new(address.to_string(), limits, Rc::new(echo));
    let accepting = server.clone();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(accepting.clone().serve(stream));
        }
    });
    (address, server)
}

fn get(key: &'static [u8]) -> Request {
    Request::Read(ReadRequest::Get { key: Bytes::from_static(key) })
}

fn put(delay: i32) -> Request {
    Request::Write(WriteRequest::Put(UpdateRequest { expire_ts_seconds: delay, ..Default::default() }))
}

fn remove() -> Request {
    Request::Write(WriteRequest::Remove { key: Bytes::from_static(b"k") })
}

fn head() -> RequestHead {
    RequestHead { app_id: 2, partition_index: 1, partition_hash: 77, ..Default::default() }
}

fn frames(requests: impl IntoIterator<Item = Request>) -> BytesMut {
    let mut bytes = BytesMut::new();
    for (seqid, request) in (1..).zip(requests) {
        request.encode(&mut Writer::new(&mut bytes), HeaderVersion::V0, &RequestHead { seqid, ..head() });
    }
    bytes
}

#[test]
fn pipelined_calls_find_their_answers() {
    run(async {
        let (address, server) = start(Echo::default(), Limits::default()).await;
        let connection = Connection::connect(address, SOON).await.unwrap();
        let answers = join_all((0..2000).map(|i| {
            let connection = connection.clone();
            async move { connection.call(head(), &put(i % 50), SOON).await }
        }))
        .await;
        for (i, answer) in (0..2000).zip(answers) {
            let Ok(Response::Write(WriteResponse::Update(got))) = answer else { panic!("{answer:?}") };
            assert_eq!(got.decree, i % 50);
            assert_eq!((got.app_id, got.partition_index, got.server), (2, 1, address.to_string()));
        }
        let got = connection.call(head(), &get(b"abc"), SOON).await.unwrap();
        let Response::Read(ReadResponseBody::Get(got)) = got else { panic!("{got:?}") };
        assert_eq!((&got.value[..], got.error, got.server), (&b"abc"[..], 0, address.to_string()));
        assert_eq!((server.held_bytes(), connection.in_flight()), (0, 0));
    });
}

#[test]
fn heads_arrive_in_both_versions() {
    run(async {
        let echo = Echo::default();
        let heads = echo.heads.clone();
        let (address, server) = start(echo, Limits::default()).await;
        let connection = Connection::connect(address, SOON).await.unwrap();
        let sent = [false, true].map(|is_backup| RequestHead { client_timeout_ms: 123, is_backup, ..head() });
        for head in sent {
            connection.call(head, &get(b"k"), SOON).await.unwrap();
        }
        // The connection numbers its calls.
        let arrived: Vec<_> = heads.take().into_iter().map(|head| RequestHead { seqid: 0, ..head }).collect();
        assert_eq!(arrived, sent);
        drop(connection);
        while server.connection_count() > 0 {
            yield_now().await;
        }
    });
}

#[test]
fn what_is_not_served_is_refused_and_the_connection_stays() {
    run(async {
        let (address, _server) = start(Echo::default(), Limits::default()).await;
        let connection = Connection::connect(address, SOON).await.unwrap();
        let refused = |code| Err(CallError::Refused(Refusal::Code(code)));
        let query = Request::QueryConfig(Default::default());
        assert_eq!(connection.call(head(), &query, SOON).await, refused(ErrorCode::ServiceNotActive));
        let command = Request::RemoteCommand(RemoteCommand { cmd: "help".into(), arguments: vec![] });
        assert_eq!(connection.call(head(), &command, SOON).await, Ok(Response::Text("help".into())));
        let negotiation = Request::Negotiation(NegotiationMessage { status: 1, ..Default::default() });
        let disabled = NegotiationMessage { status: 9, ..Default::default() };
        assert_eq!(connection.call(head(), &negotiation, SOON).await, Ok(Response::Negotiation(disabled)));

        // By hand: an unknown name, then arguments that do not decode, then clear_scanner, then a get.
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut bytes = frames([get(b"1"), get(b"2")]);
        let name_at = bytes.windows(17).position(|w| w == b"RPC_RRDB_RRDB_GET").unwrap();
        bytes[name_at + 14..name_at + 17].copy_from_slice(b"SET");
        let second = bytes.len() / 2;
        bytes[second + 48 + 4 + 4 + 17 + 4] = 99;
        let rest = [Request::Read(ReadRequest::ClearScanner { context_id: 1 }), get(b"3"), get(b"4")];
        bytes.extend_from_slice(&frames(rest));
        stream.write_all(&bytes).await.unwrap();
        let mut got = BytesMut::new();
        let mut seen = Vec::new();
        while seen.len() < 4 {
            stream.read_buf(&mut got).await.unwrap();
            while let Some(len) = reply_len(&got).unwrap().filter(|&len| len <= got.len()) {
                let frame = got.split_to(len).freeze();
                let unknown = frame.windows(21).any(|w| w == b"RPC_RRDB_RRDB_SET_ACK");
                let reply = open_reply(frame).unwrap();
                seen.push((reply.seqid, reply.refusal, unknown));
            }
        }
        let refusal = |code| Some(Refusal::Code(code));
        assert_eq!(
            seen,
            [
                (1, refusal(ErrorCode::HandlerNotFound), true),
                (2, refusal(ErrorCode::InvalidData), false),
                (2, None, false),
                (3, None, false),
            ],
            "and nothing for clear_scanner"
        );
    });
}

#[test]
fn reading_stops_while_too_much_is_in_flight() {
    run(async {
        let echo = Echo::default();
        let held = echo.held.clone();
        let limits = Limits { in_flight: 10, ..Limits::default() };
        let (address, server) = start(echo, limits).await;
        let connection = Connection::connect(address, SOON).await.unwrap();
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let connection = connection.clone();
                spawn_local(async move { connection.call(head(), &remove(), SOON).await })
            })
            .collect();
        while held.borrow().len() < 10 {
            yield_now().await;
        }
        // All are sent by now, and no more are taken.
        sleep(Duration::from_millis(50)).await;
        assert_eq!(held.borrow().len(), 10);
        let mut answered = 0;
        while answered < 100 {
            let replies = held.take();
            assert!(replies.len() <= 10);
            answered += replies.len();
            replies.into_iter().for_each(|reply| reply.write(WriteResponse::Update(Default::default())));
            yield_now().await;
        }
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert_eq!(server.held_bytes(), 0);
    });
}

#[test]
fn a_client_that_does_not_read_is_neither_buffered_nor_kept() {
    run(async {
        let echo = Echo { value_bytes: 100_000, ..Echo::default() };
        let limits = Limits { out_bytes: 1 << 20, stall: Duration::from_millis(300), ..Limits::default() };
        let (address, server) = start(echo, limits).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&frames((0..1000).map(|_| get(b"x")))).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        let buffered = |server: &WireServer| -> usize {
            server.connections.borrow().values().filter_map(Weak::upgrade).map(|o| o.out.borrow().len()).sum()
        };
        assert!(buffered(&server) <= (1 << 20) + 100_200, "{}", buffered(&server));
        assert_eq!(server.connection_count(), 1);
        while server.connection_count() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(server.held_bytes(), 0);
        drop(stream);
    });
}

#[test]
fn long_answers_wait_for_room() {
    run(async {
        let echo = Echo::default();
        let held = echo.held.clone();
        let limits = Limits { out_bytes: 1 << 20, clogged_bytes: 3 << 20, ..Limits::default() };
        let (address, server) = start(echo, limits).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&frames((0..100).map(|_| remove()))).await.unwrap();
        while held.borrow().len() < 100 {
            sleep(Duration::from_millis(5)).await;
        }
        // As a service does that has a thread for each.
        let given = Rc::new(Cell::new(0));
        for reply in held.borrow_mut().drain(1..) {
            let given = given.clone();
            spawn_local(async move {
                reply.room().await;
                given.set(given.get() + 1);
                reply.text("x".repeat(1 << 20));
            });
        }
        sleep(Duration::from_millis(300)).await;
        // What the socket takes does not count.
        let before = given.get();
        assert!((1..50).contains(&before), "{before} answers of a megabyte");
        assert!(server.unread_bytes() < 3 << 20, "{}", server.unread_bytes());
        // One that does not wait.
        let last = held.borrow_mut().pop().unwrap();
        assert!(!last.has_room() && !last.is_clogged());
        spawn_local(async move { last.text("x".repeat(3 << 20)) }).await.unwrap();
        // As soon as they are read the others come, and all are given.
        let mut bytes = vec![0; 1 << 20];
        while given.get() < 99 || server.unread_bytes() > 0 {
            assert!(stream.read(&mut bytes).await.unwrap() > 0);
            yield_now().await;
        }
    });
}

#[test]
fn nobody_waits_for_room_in_vain() {
    run(async {
        let echo = Echo::default();
        let held = echo.held.clone();
        let limits = Limits { clogged_bytes: 3 << 20, ..Limits::default() };
        let (address, server) = start(echo, limits).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&frames((0..20).map(|_| remove()))).await.unwrap();
        while held.borrow().len() < 20 {
            sleep(Duration::from_millis(5)).await;
        }
        let mut replies = held.take();
        while !replies.last().unwrap().is_clogged() {
            replies.pop().unwrap().text("x".repeat(1 << 20));
            yield_now().await;
        }
        let waits = replies.pop().unwrap();
        let waiting = spawn_local(async move {
            waits.room().await;
            assert!(!waits.is_wanted(), "the connection is closed");
        });
        drop(stream);
        waiting.await.unwrap();
        drop(replies);
        assert_eq!((server.unread_bytes(), server.held_bytes()), (0, 0));
    });
}

#[test]
fn all_connections_together_leave_a_bounded_number_of_bytes_unread() {
    run(async {
        let echo = Echo { value_bytes: 300_000, ..Echo::default() };
        let limits = Limits { unread_bytes: 8 << 20, ..Limits::default() };
        let (address, server) = start(echo, limits.clone()).await;
        let reader = Connection::connect(address, SOON).await.unwrap();
        let mut stuck = Vec::new();
        for _ in 0..60 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&frames((0..100).map(|_| get(b"x")))).await.unwrap();
            stuck.push(stream);
            // Who takes his answers is served.
            reader.call(head(), &get(b"k"), SOON).await.unwrap();
            assert!(server.unread_bytes() <= limits.unread_bytes, "{}", server.unread_bytes());
        }
        assert!(server.unread_bytes() >= limits.unread_bytes / 2, "there were too few of them");
        assert!(server.connection_count() > 1);
        drop((stuck, reader));
        while server.connection_count() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(server.unread_bytes(), 0);
    });
}

#[test]
fn who_takes_nothing_for_the_longest_time_has_to_go() {
    run(async {
        let echo = Echo::default();
        let held = echo.held.clone();
        let limits = Limits { unread_bytes: 70 << 20, ..Limits::default() };
        let (address, server) = start(echo, limits).await;
        let mut streams = Vec::new();
        for n in 0..3 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&frames([remove(), remove()])).await.unwrap();
            while held.borrow().len() < 2 * (n + 1) {
                sleep(Duration::from_millis(1)).await;
            }
            streams.push(stream);
        }
        // Much more than the sockets take. The second one gets its own first.
        let mut replies: Vec<_> = held.take().into_iter().map(Some).collect();
        for n in [2, 0, 4] {
            let reply = replies[n].take().unwrap();
            reply.text("x".repeat(32 << 20));
            // Until the socket takes no more of it.
            let mut before = usize::MAX;
            while before != server.unread_bytes() {
                before = server.unread_bytes();
                sleep(Duration::from_millis(20)).await;
            }
        }
        while server.connection_count() > 2 {
            yield_now().await;
        }
        let wanted: Vec<_> = [1, 3, 5].map(|n| replies[n].as_ref().unwrap().is_wanted()).into();
        assert_eq!(wanted, [true, false, true]);
    });
}

#[test]
fn half_frames_are_closed_and_idle_connections_kept() {
    run(async {
        let limits = Limits { stall: Duration::from_millis(200), ..Limits::default() };
        let (address, server) = start(Echo::default(), limits).await;
        let idle = Connection::connect(address, SOON).await.unwrap();
        idle.call(head(), &get(b"k"), SOON).await.unwrap();
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(&frames([get(b"k")])[..60]).await.unwrap();
        while server.connection_count() < 2 {
            yield_now().await;
        }
        let mut byte = [0];
        assert_eq!(half.read(&mut byte).await.unwrap(), 0, "closed");
        sleep(Duration::from_millis(300)).await;
        idle.call(head(), &get(b"k"), SOON).await.unwrap();
        assert_eq!(server.connection_count(), 1);
    });
}

#[test]
fn large_frames_arrive_in_pieces_and_claimed_ones_cost_nothing() {
    run(async {
        let limits = Limits { partial_bytes: 8 << 20, ..Limits::default() };
        let (address, server) = start(Echo::default(), limits).await;
        let connection = Connection::connect(address, SOON).await.unwrap();
        let value = Bytes::from(vec![7; 3 << 20]);
        let big = Request::Write(WriteRequest::Put(UpdateRequest { value, ..Default::default() }));
        connection.call(head(), &big, SOON).await.unwrap();
        assert_eq!(server.held_bytes(), 0);

        // A header that claims 64 MiB minus its own length, and no more.
        let mut claim = frames([get(b"k")]);
        claim[16..20].copy_from_slice(&u32::to_be_bytes((64 << 20) - 48));
        // In front of it a request: when that is answered the claim, which came with it, has been read.
        let claim = [frames([get(b"k")]), claim].concat();
        let mut claims = Vec::new();
        for _ in 0..50 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&claim).await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            claims.push(stream);
        }
        assert_eq!((server.connection_count(), server.held_bytes()), (51, 0));

        // Those that send on are cut off when all together hold too much.
        let mib = vec![0; 1 << 20];
        for stream in &mut claims[..20] {
            for _ in 0..3 {
                // Fails once the server has closed.
                let _ = timeout(SOON, stream.write_all(&mib)).await.unwrap();
            }
        }
        while server.connection_count() > 45 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(server.held_bytes() <= 8 << 20, "{}", server.held_bytes());
        connection.call(head(), &get(b"still here"), SOON).await.unwrap();
    });
}

#[test]
fn nonsense_closes_the_connection() {
    run(async {
        let (address, server) = start(Echo::default(), Limits::default()).await;
        let mut too_long = frames([get(b"k")]);
        too_long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        let mut version = frames([get(b"k")]);
        version[7] = 2;
        let mut reply_type = frames([get(b"k")]);
        reply_type[51] = 2;
        for bytes in [&b"THFTxxxxxxxxxxxxxxxxx"[..], b"RDSN\0\0\0\0", &too_long, &version, &reply_type] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let closed = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap();
            assert!(closed.is_err() || closed.unwrap() == 0);
        }
        while server.connection_count() > 0 {
            yield_now().await;
        }
    });
}

#[test]
fn a_lost_connection_says_what_is_unclear() {
    run(async {
        let echo = Echo::default();
        let held = echo.held.clone();
        let (address, server) = start(echo, Limits::default()).await;
        let connection = Connection::connect(address, SOON).await.unwrap();
        let late = connection.call(head(), &remove(), Duration::from_millis(30)).await.unwrap_err();
        assert!(late == CallError::Timeout && late.is_unclear());
        held.take();

        // Closing waits for the running request, takes no new one.
        let running = spawn_local({
            let connection = connection.clone();
            async move { connection.call(head(), &remove(), SOON).await }
        });
        while held.borrow().is_empty() {
            yield_now().await;
        }
        server.close();
        for reply in held.take() {
            reply.write(WriteResponse::Update(Default::default()));
        }
        running.await.unwrap().unwrap();
        while connection.is_alive() {
            yield_now().await;
        }
        let gone = connection.call(head(), &remove(), SOON).await.unwrap_err();
        assert!(matches!(gone, CallError::NotSent(_)) && !gone.is_unclear(), "{gone}");
        assert_eq!(server.connection_count(), 0);
    });
}

#[test]
fn unanswered_requests_of_all_connections_are_bounded() {
    run(async {
        let echo = Echo::default();
        let held = echo.held.clone();
        let long = Request::Write(WriteRequest::Remove { key: Bytes::from_static(&[b'k'; 8 << 10]) });
        // Room for three requests.
        let frame = frames([long.clone()]).len();
        let limits = Limits { request_bytes: 3 * frame, ..Limits::default() };
        let (address, server) = start(echo, limits).await;
        let mut calls = Vec::new();
        for _ in 0..20 {
            let (connection, long) = (Connection::connect(address, SOON).await.unwrap(), long.clone());
            calls.push(spawn_local(async move { connection.call(head(), &long, SOON).await }));
        }
        let small = Connection::connect(address, SOON).await.unwrap();
        let mut answered = 0;
        while answered < 20 {
            while held.borrow().is_empty() {
                yield_now().await;
            }
            sleep(Duration::from_millis(5)).await;
            small.call(head(), &get(b"of somebody else"), SOON).await.unwrap();
            let replies = held.take();
            assert!((1..=3).contains(&replies.len()), "{}", replies.len());
            assert_eq!(server.requests.get(), replies.len() * frame);
            answered += replies.len();
            replies.into_iter().for_each(|reply| reply.write(WriteResponse::Update(Default::default())));
        }
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert_eq!(server.held_bytes(), 0);
    });
}

#[test]
fn long_half_frames_keep_nobody_from_a_request() {
    run(async {
        let limits = Limits { partial_bytes: 4 << 20, ..Limits::default() };
        let (address, server) = start(Echo::default(), limits.clone()).await;
        let connection = Connection::connect(address, SOON).await.unwrap();
        // As much as there may be, exactly.
        server.partial.set(limits.partial_bytes);
        connection.call(head(), &get(b"k"), SOON).await.unwrap();
        server.partial.set(0);

        // One of a megabyte is under way; some of the longer ones that come meanwhile have to go.
        let value = Bytes::from(vec![7; 1 << 20]);
        let put = frames([Request::Write(WriteRequest::Put(UpdateRequest { value, ..Default::default() }))]);
        let mut writer = TcpStream::connect(address).await.unwrap();
        writer.write_all(&put[..100 << 10]).await.unwrap();
        let mut half = frames([get(b"k")]);
        half[16..20].copy_from_slice(&u32::to_be_bytes((64 << 20) - 48));
        half.resize(3 << 20, 0);
        let mut strangers = Vec::new();
        for _ in 0..10 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Fails once the server has closed.
            let _ = timeout(SOON, stream.write_all(&half)).await.unwrap();
            strangers.push(stream);
            connection.call(head(), &get(b"k"), SOON).await.unwrap();
            assert!(server.partial.get() <= limits.partial_bytes);
        }
        while server.connection_count() > 3 {
            sleep(Duration::from_millis(5)).await;
        }
        writer.write_all(&put[100 << 10..]).await.unwrap();
        let mut len = [0; 4];
        writer.read_exact(&mut len).await.unwrap();
        connection.call(head(), &get(b"k"), SOON).await.unwrap();
    });
}
