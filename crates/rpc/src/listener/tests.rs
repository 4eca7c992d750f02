use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use pegasus_types::data::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::wire::server::WireServer;
use crate::wire::{self, ClientService, Connection, ReplyTo, Request, RequestHead};

const SOON: Duration = Duration::from_secs(5);

struct Found;

impl ClientService for Found {
    fn call(&self, _: RequestHead, _: usize, _: Request, reply: ReplyTo) {
        reply.read(ReadResponseBody::Get(ReadResponse::default()));
    }
}

struct Served {
    address: SocketAddr,
    client: Rc<WireServer>,
    stop: CancellationToken,
    /// Connections that reached the HTTP and the peer handler.
    http: Rc<Cell<u32>>,
    peers: Rc<Cell<u32>>,
    task: tokio::task::JoinHandle<()>,
}

async fn start(limits: Limits) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = WireServer::new(address.to_string(), wire::Limits::default(), Rc::new(Found));
    let (http, peers) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let count_and_echo = |count: &Rc<Cell<u32>>| {
        let count = count.clone();
        handler(move |mut stream: TcpStream, _| {
            count.set(count.get() + 1);
            async move {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all).await;
                let _ = stream.write_all(&all).await;
            }
        })
    };
    let handlers = Handlers {
        client: Some(client.clone()),
        http: count_and_echo(&http),
        peer: Some(count_and_echo(&peers)),
    };
    let stop = CancellationToken::new();
    let task = spawn_local(serve(listener, handlers, limits, stop.clone()));
    Served { address, client, stop, http, peers, task }
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(LocalSet::new().run_until(async { timeout(Duration::from_secs(60), test).await.unwrap() }))
}

async fn get(connection: &Connection) -> bool {
    let get = Request::Read(ReadRequest::Get { key: Bytes::from_static(b"k") });
    connection.call(RequestHead::default(), &get, SOON).await.is_ok()
}

/// What the server sends until it closes, None when it does not close in time.
async fn said(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    // A reset is a close as well.
    let _ = timeout(SOON, stream.read_to_end(&mut all)).await.ok()?;
    Some(all)
}

#[test]
fn first_words() {
    use Decision::{NeedMore, Speak, Stranger};
    for (first, want) in [
        (&b"THFT"[..], Speak(Protocol::Client)),
        (b"PGR1", Speak(Protocol::Peer)),
        (b"GET ", Speak(Protocol::Http)),
        (b"POST", Speak(Protocol::Http)),
        (b"OPTI", Speak(Protocol::Http)),
        (b"T", NeedMore),
        (b"P", NeedMore),
        (b"PGR", NeedMore),
        (b"GET", NeedMore),
        (b"RDSN", Stranger),
        (b"X", Stranger),
        (b"GETX", Stranger),
        (b"\0\0\0\0", Stranger),
    ] {
        assert_eq!(decide(first), want, "{first:?}");
    }
}

#[test]
fn three_protocols_on_one_port() {
    run(async {
        let served = start(Limits::default()).await;
        let client = Connection::connect(served.address, SOON).await.unwrap();
        assert!(get(&client).await);
        for (words, count) in [(&b"GET / HTTP/1.1\r\n\r\n"[..], &served.http), (b"PGR1hello", &served.peers)]
        {
            let mut stream = TcpStream::connect(served.address).await.unwrap();
            // In two pieces, the first shorter than four bytes.
            stream.write_all(&words[..3]).await.unwrap();
            sleep(Duration::from_millis(10)).await;
            stream.write_all(&words[3..]).await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(said(&mut stream).await.as_deref(), Some(words), "the handler sees every byte");
            assert_eq!(count.get(), 1);
        }
        served.stop.cancel();
        served.task.await.unwrap();
        assert!(!get(&client).await);
        assert!(TcpStream::connect(served.address).await.is_err());
    });
}

#[test]
fn silence_and_slow_words_are_closed() {
    run(async {
        let limits = Limits {
            silent: Duration::from_millis(100),
            preface: Duration::from_millis(100),
            ..Limits::default()
        };
        let served = start(limits).await;
        for words in [&b""[..], b"T", b"GET", b"RDSN"] {
            let mut stream = TcpStream::connect(served.address).await.unwrap();
            stream.write_all(words).await.unwrap();
            assert_eq!(said(&mut stream).await, Some(Vec::new()), "{words:?}");
        }
    });
}

#[test]
fn slots_are_bounded_and_peers_have_their_own() {
    run(async {
        let served = start(Limits { connections: 3, peers: 2, ..Limits::default() }).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            let client = Connection::connect(served.address, SOON).await.unwrap();
            assert!(get(&client).await);
            clients.push(client);
        }
        let fourth = Connection::connect(served.address, SOON).await.unwrap();
        assert!(!get(&fourth).await);
        let mut peers = Vec::new();
        for want in [1, 2, 2] {
            let mut peer = TcpStream::connect(served.address).await.unwrap();
            peer.write_all(b"PGR1").await.unwrap();
            sleep(Duration::from_millis(20)).await;
            assert_eq!(served.peers.get(), want);
            peers.push(peer);
        }
        clients.pop();
        while served.client.connection_count() > 2 {
            sleep(Duration::from_millis(1)).await;
        }
        let fifth = Connection::connect(served.address, SOON).await.unwrap();
        assert!(get(&fifth).await);
    });
}

#[test]
fn a_crowd_of_silent_connections_costs_the_oldest_of_them() {
    run(async {
        let served = start(Limits { undecided: 10, ..Limits::default() }).await;
        let mut silent = Vec::new();
        for _ in 0..30 {
            silent.push(TcpStream::connect(served.address).await.unwrap());
        }
        for stream in &mut silent[..20] {
            assert_eq!(said(stream).await, Some(Vec::new()));
        }
        let client = Connection::connect(served.address, SOON).await.unwrap();
        assert!(get(&client).await, "while {} others are silent", silent.len());
        silent.last_mut().unwrap().write_all(b"THFT").await.unwrap();
        assert!(timeout(Duration::from_millis(50), silent[29].read_u8()).await.is_err(), "still open");
    });
}

/// Random bytes, huge lengths, half frames, HTTP to nowhere, a thousand idle connections: nothing stops the
/// service, and nothing is held for them.

#[test]
fn garbage() {
    run(async {
        let served = start(Limits::default()).await;
        let good = Connection::connect(served.address, SOON).await.unwrap();
        assert!(get(&good).await);
        let mut idle = Vec::new();
        for _ in 0..1000 {
            idle.push(TcpStream::connect(served.address).await.unwrap());
        }
        let mut open = Vec::new();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..400_usize {
            let mut bytes = BytesMut::new();
            match round % 4 {
                0 => {}
                1 => bytes.extend_from_slice(b"THFT"),
                2 => bytes.extend_from_slice(b"THFT\0\0\0\0\0\0\0\x30\0\0\0\0\x7f\xff\xff\xff"),
                _ => bytes.extend_from_slice(b"THFT\0\0\0\0\0\0\0\x30\0\0\0\0\x03\0\0\0"),
            }
            for _ in 0..round % 50 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                bytes.extend_from_slice(&random.to_be_bytes());
            }
            let mut stream = TcpStream::connect(served.address).await.unwrap();
            // The server may close before it has taken everything.
            let _ = stream.write_all(&bytes).await;
            if round % 3 == 0 {
                open.push(stream);
            }
            if round % 40 == 0 {
                assert!(get(&good).await, "round {round}");
            }
        }
        assert!(get(&good).await);
        assert_eq!(served.client.held_bytes(), 0);
        drop((idle, open));
        while served.client.connection_count() > 1 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(get(&good).await);
    });
}
