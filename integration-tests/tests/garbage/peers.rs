//! Those who say that they are daemons of the cluster. Nothing authenticates them yet, so what they say after a good
//! hello is read as what daemons say.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use pegasus_onebox::Role;
use pegasus_rpc::peer::{MAX_HELLO_BYTES, PREFACE, PROTOCOL_VERSION};

use crate::stranger::{Target, random_bytes};

/// The preface, a length, a version, and whatever.
fn message(len: u16, version: u16, body: &[u8]) -> Vec<u8> {
    [&PREFACE[..], &len.to_le_bytes(), &version.to_le_bytes(), body].concat()
}

/// As a daemon says it (postcard), but for the cluster, which a new one does not know.
fn hello(target: &Target, name: &str, class: u8) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
    let service = if target.role == Role::Meta { 1 } else { 0 };
    let body = [&[0][..], &text(name), &[77], &[service, class], &text(&target.address.to_string())].concat();
    message(u16::try_from(2 + body.len()).unwrap(), PROTOCOL_VERSION, &body)
}

pub fn prefaces(target: &Target) -> Vec<TcpStream> {
    for len in [0, 1, 10, 100, 1000] {
        for version in [0, PROTOCOL_VERSION, 2, u16::MAX] {
            for claimed in [0, 2, len + 2, u16::try_from(MAX_HELLO_BYTES).unwrap() + 1, u16::MAX] {
                target.throw(&message(claimed, version, &random_bytes(len.into())));
            }
        }
    }
    target.is_closed_after(&message(u16::MAX, PROTOCOL_VERSION, &random_bytes(100)));
    target.is_closed_after(&message(100, PROTOCOL_VERSION, &[0xff; 98]));
    target.is_closed_after(&message(10, 9, &[0; 8]));
    // Silent after the preface, or in the middle of the hello: not for long.
    target.is_closed_after(&PREFACE);
    target.is_closed_after(&message(100, PROTOCOL_VERSION, &[0; 10]));
    (0..100)
        .map(|_| {
            let mut stream = target.connect();
            let _ = stream.write_all(&PREFACE);
            stream
        })
        .collect()
}

/// A good hello, then noise in good frames and in bad ones.
pub fn nonsense(target: &Target) -> Vec<TcpStream> {
    let mut kept = Vec::new();
    for n in 0..200u16 {
        let mut stream = target.connect();
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        // Nodes that nobody knows, so that what they say is of no partition's concern.
        let name = format!("127.99.{}.{}:{}", n / 250, n % 250, 1000 + n);
        let _ = stream.write_all(&hello(target, &name, u8::try_from(n % 3).unwrap()));
        let mut reply = [0; 4];
        let is_greeted = stream.read_exact(&mut reply).is_ok();
        assert!(is_greeted || target.role == Role::Collector, "{} knows this kind of hello", target.name);
        for m in 0..20 {
            let len = 1 << (m % 12);
            let claimed: u32 = match m {
                17 => u32::MAX,
                18 => 64 << 20,
                19 => 0,
                _ => len,
            };
            let mut body = random_bytes(len as usize);
            if m % 2 == 0 {
                // A request, by its first number: what follows is read more deeply.
                body[0] = 0;
            }
            if n % 4 != u16::try_from(m % 4).unwrap()
                && stream.write_all(&[&claimed.to_le_bytes()[..], &body].concat()).is_err()
            {
                break;
            }
        }
        if n % 2 == 0 {
            kept.push(stream);
        }
    }
    kept
}
