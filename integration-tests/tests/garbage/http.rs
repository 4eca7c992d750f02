//! HTTP, right and wrong.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::stranger::{Target, random_bytes};

fn ask(target: &Target, request: &[u8]) -> String {
    let mut stream = target.connect();
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

pub fn all(target: &Target) -> Vec<TcpStream> {
    for path in ["/no/such/path", "/../../../etc/passwd", "/%00%ff%2e%2e", "//", "/metrics/x", "/\u{7f}"] {
        let answer =
            ask(target, format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 4"), "{}: {path}: {answer:?}", target.name);
    }
    for (method, path) in
        [("POST", "/livez"), ("DELETE", "/metrics"), ("PUT", "/"), ("OPTIONS", "*"), ("HEAD", "/no")]
    {
        let answer = ask(
            target,
            format!("{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").as_bytes(),
        );
        assert!(answer.starts_with("HTTP/1.1 4"), "{}: {method} {path}: {answer:?}", target.name);
    }
    for path in ["/livez", "/version", "/metrics"] {
        let answer =
            ask(target, format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200"), "{}: {path}: {answer:?}", target.name);
    }
    let header = |bytes: usize| [&b"GET / HTTP/1.1\r\nx: "[..], &vec![b'y'; bytes], b"\r\n\r\n"].concat();
    let chunks = |text: &[u8]| {
        [&b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"[..], text].concat()
    };
    for bad in [
        b"GET ".to_vec(),
        b"GET /\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"POST\0\0\0\0\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n\0\xff\xfe".to_vec(),
        b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999999\r\n\r\nfew".to_vec(),
        [&b"GET "[..], &random_bytes(5000)].concat(),
        [&b"GET /"[..], &vec![b'a'; 1 << 20]].concat(),
        [&b"GET / HTTP/1.1\r\n"[..], &b"x: y\r\n".repeat(50_000)].concat(),
        header(1 << 20),
        header(60_000),
        chunks(b"fffffffffffffff\r\n"),
        chunks(b"nonsense\r\n\r\n"),
        chunks(&b"1\r\na\r\n".repeat(100_000)),
        b"GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n".repeat(200),
    ] {
        target.throw(&bad);
        let mut stream = target.connect();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = stream.write_all(&bad);
        let _ = stream.read(&mut [0; 4096]);
    }
    // Kept open, with a body that never comes.
    let unfinished = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\n";
    (0..100)
        .map(|_| {
            let mut stream = target.connect();
            let _ = stream.write_all(unfinished);
            stream
        })
        .collect()
}
