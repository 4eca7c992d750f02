//! Frames of clients that are none.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use pegasus_rpc::wire::Refusal;
use pegasus_types::ErrorCode;

use crate::stranger::{self, Target, call, frame, header, hello, message, read_reply};

/// Longest frame that a server takes.
const MAX_FRAME: u32 = 64 << 20;
/// So many of them are more than all connections together may hold.
const LONG_FRAMES: usize = 12;

pub fn random_bytes(target: &Target) -> Vec<TcpStream> {
    let random = |len: usize| {
        let mut bytes = stranger::random_bytes(len);
        // Not by chance the beginning of something.
        bytes[0] |= 0x80;
        bytes
    };
    for n in 0..200 {
        target.throw(&random(1 << (n % 17)));
    }
    for n in 0..20 {
        target.is_closed_after(&random(4 + n * 100));
    }
    // Well begun.
    for _ in 0..50 {
        target.throw(&[b"THFT".to_vec(), stranger::random_bytes(500)].concat());
        target.throw(&call("RPC_RRDB_RRDB_MULTI_PUT", 1, &stranger::random_bytes(500)));
    }
    Vec::new()
}

pub fn wrong_headers(target: &Target) -> Vec<TcpStream> {
    let name = b"RPC_RRDB_RRDB_GET";
    let good = message(1, name, 1, b"\x0c\0\x01\0\0\0\0\0");
    let with = |header: BytesMut| [&header[..], &good].concat();
    let len = u32::try_from(good.len()).unwrap();
    let mut bad: Vec<Vec<u8>> = vec![
        b"RDSN0123456789".to_vec(),
        b"THFX0123456789".to_vec(),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(),
        b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(),
        b"*1\r\n$4\r\nPING\r\n".to_vec(),
        with(header(2, 48, len)),
        with(header(u32::MAX, 48, len)),
        with(header(0, 0, len)),
        with(header(0, 47, len)),
        with(header(0, 49, len)),
        with(header(0, u32::MAX, len)),
        with(header(0, 48, u32::MAX)),
        with(header(0, 48, MAX_FRAME)),
        with(header(0, 48, 0)),
        with(header(0, 48, 3)),
    ];
    // v1: the lengths of its own header and of the body.
    for (meta_len, body_len) in
        [(u32::MAX, len), (1 << 20, len), (0, u32::MAX), (4096, MAX_FRAME), (3, len), (0, 0)]
    {
        let mut frame = BytesMut::from(&b"THFT\0\0\0\x01"[..]);
        frame.put_u32(meta_len);
        frame.put_u32(body_len);
        frame.put_bytes(0x0c, 5000);
        bad.push(frame.to_vec());
    }
    // Answers, exceptions and what has no name yet; thrift without its version; names that do not end.
    for kind in [0, 2, 3, 5, 0x99, 0x2_0001] {
        bad.push(frame(&message(kind, name, 1, b"\0")).to_vec());
    }
    let mut old = BytesMut::new();
    old.put_u32(u32::try_from(name.len()).unwrap());
    old.put_slice(name);
    old.put_slice(b"\x01\0\0\0\x01\0");
    bad.push(frame(&old).to_vec());
    for name_len in [1000, u32::MAX, i32::MAX.unsigned_abs()] {
        let mut endless = BytesMut::new();
        endless.put_u32(0x8001_0001);
        endless.put_u32(name_len);
        endless.put_slice(name);
        bad.push(frame(&endless).to_vec());
    }
    for what in bad {
        target.is_closed_after(&what);
    }
    unknown_names(target);
    Vec::new()
}

/// Are answered as such, and the connection stays.
fn unknown_names(target: &Target) {
    let mut stream = target.connect();
    let names: [&[u8]; 6] =
        [b"", b"RPC_NO_SUCH", b"RPC_RRDB_RRDB_PUT\0", &[b'N'; 10_000], b"\xff\xfe", b"get"];
    for (seqid, name) in (10..).zip(names) {
        stream.write_all(&frame(&message(1, name, seqid, b"whatever"))).unwrap();
        let want = (seqid, Some(Refusal::Code(ErrorCode::HandlerNotFound)));
        assert_eq!(read_reply(&mut stream).unwrap(), want, "{}", target.name);
    }
    stream.write_all(&hello(1)).unwrap();
    assert_eq!(read_reply(&mut stream).unwrap(), (1, None), "{}", target.name);
}

/// They begin and do not end, at every place.
pub fn half_frames(target: &Target) -> Vec<TcpStream> {
    let whole = call("RPC_RRDB_RRDB_GET", 1, b"\x0c\0\x01\0\0\0\0\0");
    let mut kept = Vec::new();
    for len in 1..whole.len() {
        for _ in 0..3 {
            let mut stream = target.connect();
            let _ = stream.write_all(&whole[..len]);
            kept.push(stream);
        }
    }
    // Their length costs nothing before their bytes arrive.
    for _ in 0..100 {
        let mut stream = target.connect();
        let _ = stream.write_all(&header(0, 48, MAX_FRAME - 48));
        let _ = stream.write_all(&[0; 100]);
        kept.push(stream);
    }
    kept
}

/// All but the last byte of the longest frames.
pub fn long_half_frames(target: &Target) -> Vec<TcpStream> {
    if !["meta1", "replica1"].contains(&&*target.name) {
        return Vec::new();
    }
    let bytes = vec![0x5a; MAX_FRAME as usize - 49];
    let threads: Vec<_> = (0..LONG_FRAMES)
        .map(|_| {
            let (target, bytes) = (target.clone(), bytes.clone());
            std::thread::spawn(move || {
                let mut stream = target.connect();
                stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
                let _ =
                    stream.write_all(&header(0, 48, MAX_FRAME - 48)).and_then(|()| stream.write_all(&bytes));
                stream
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}
