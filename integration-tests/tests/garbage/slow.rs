//! Connections that take their time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::stranger::{Target, hello, random_bytes, read_reply};

const IDLE: usize = 1000;
/// A value that the test has written: with an empty sort key.
pub const LARGE_KEY: &str = "large";
pub const LARGE_BYTES: usize = 512 << 10;

pub fn idle(target: &Target) -> Vec<TcpStream> {
    (0..IDLE).map(|_| target.connect()).collect()
}

pub fn come_and_go(target: &Target) -> Vec<TcpStream> {
    for n in 0..1500 {
        let mut stream = target.connect();
        match n % 3 {
            0 => drop(stream),
            1 => drop(stream.write_all(&random_bytes(n % 100 + 1))),
            // Leaves before the answer.
            _ => drop(stream.write_all(&hello(1))),
        }
    }
    Vec::new()
}

/// Requests one byte at a time. Those that are whole in the end are answered.
pub fn drop_by_drop(target: &Target) -> Vec<TcpStream> {
    let frame = hello(7);
    let http = b"GET /livez HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let mut clients: Vec<_> = (0..30).map(|_| target.connect()).collect();
    let mut browsers: Vec<_> = (0..30).map(|_| target.connect()).collect();
    let mut never_done: Vec<_> = (0..30).map(|_| target.connect()).collect();
    for at in 0..frame.len().max(http.len()) {
        for (streams, what) in
            [(&mut clients, &frame[..]), (&mut browsers, http), (&mut never_done, b"GET /a")]
        {
            if let Some(byte) = what.get(at) {
                streams.iter_mut().for_each(|stream| drop(stream.write_all(&[*byte])));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for client in &mut clients {
        assert_eq!(read_reply(client).unwrap(), (7, None), "{}", target.name);
    }
    for browser in &mut browsers {
        let mut answer = String::new();
        browser.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{}: {answer}", target.name);
    }
    never_done
}
