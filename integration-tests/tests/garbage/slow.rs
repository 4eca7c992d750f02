//! Connections that take their time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::{BufMut, BytesMut};

use crate::stranger::{Target, call, hello, random_bytes, read_reply};

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

/// Asks for much more than it ever reads, on many connections.
pub fn unread_answers(target: &Target) -> Vec<TcpStream> {
    let mut get = BytesMut::from(&b"\x0c\0\x01"[..]);
    get.put_u32(u32::try_from(2 + LARGE_KEY.len()).unwrap());
    get.put_u16(u16::try_from(LARGE_KEY.len()).unwrap());
    get.put_slice(LARGE_KEY.as_bytes());
    get.put_u8(0);
    let requests = match target.name.as_str() {
        "meta1" => call("RPC_CM_LIST_APPS", 1, b"\x0c\0\x01\0\0"),
        "collector" => BytesMut::from(&b"GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n"[..]),
        _ => call("RPC_RRDB_RRDB_GET", 1, &get),
    }
    .repeat(2000);
    let ask = || {
        // The large value lies in one partition; the others say that they have nothing.
        (0..8).map(|partition: u8| {
            let mut stream = target.connect();
            stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut requests = requests.clone();
            if target.name.starts_with("replica") {
                let len = requests.len() / 2000;
                requests.chunks_mut(len).for_each(|request| request[31] = partition);
            }
            // Stops being taken when the answers are not.
            let _ = stream.write_all(&requests);
            stream
        })
    };
    ask().chain(ask()).collect()
}
