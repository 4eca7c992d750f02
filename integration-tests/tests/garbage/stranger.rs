//! Somebody who connects, says something, and looks what happens.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use pegasus_onebox::Role;
use pegasus_rpc::wire::Refusal;
use pegasus_rpc::wire::frame::{ReplyFrame, open_reply, reply_len};

/// Servers close at once; a loaded machine takes its time.
const CLOSED_WITHIN: Duration = Duration::from_secs(20);

/// A port of the cluster.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub role: Role,
    pub address: SocketAddrV4,
    pub pid: i32,
}

impl Target {
    pub fn connect(&self) -> TcpStream {
        // The queue of a port may be full for a moment when thousands come.
        let begun = Instant::now();
        loop {
            match TcpStream::connect_timeout(&self.address.into(), Duration::from_secs(5)) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(CLOSED_WITHIN)).unwrap();
                    stream.set_write_timeout(Some(CLOSED_WITHIN)).unwrap();
                    return stream;
                }
                Err(error) => assert!(begun.elapsed() < CLOSED_WITHIN, "{}: {error}", self.name),
            }
        }
    }

    /// Says something and leaves at once. That it cannot be said is what one expects.
    pub fn throw(&self, what: &[u8]) {
        let mut stream = self.connect();
        let _ = stream.write_all(what);
    }

    /// Says something after which the server must end the connection.
    pub fn is_closed_after(&self, what: &[u8]) {
        let mut stream = self.connect();
        let _ = stream.write_all(what);
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let is_open = ended.is_err_and(|error| is_timeout(&error));
        let said = &what[..what.len().min(64)];
        assert!(!is_open, "{} keeps the connection open after {said:?}", self.name);
    }
}

pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// One answer: its number, and the refusal in its header.
pub fn read_reply(stream: &mut TcpStream) -> io::Result<(i32, Option<Refusal>)> {
    let reply = read_whole_reply(stream)?;
    Ok((reply.seqid, reply.refusal))
}

pub fn read_whole_reply(stream: &mut TcpStream) -> io::Result<ReplyFrame> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let len = reply_len(&head).map_err(io::Error::other)?.unwrap();
    let mut frame = vec![0; len];
    frame[..4].copy_from_slice(&head);
    stream.read_exact(&mut frame[4..])?;
    open_reply(Bytes::from(frame)).map_err(io::Error::other)
}

/// A v0 header: magic, version, length, checksum; body's length and checksum; table, partition, timeout, thread hash;
/// partition hash.
pub fn header(version: u32, header_len: u32, body_len: u32) -> BytesMut {
    let mut frame = BytesMut::from(&b"THFT"[..]);
    for word in [version, header_len, 0, body_len, 0, 1, 0, 60_000, 0, 0, 0] {
        frame.put_u32(word);
    }
    frame
}

/// A message: its type, name and number, and what stands for the arguments.
pub fn message(kind: u32, name: &[u8], seqid: i32, args: &[u8]) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_u32(0x8001_0000 | kind);
    body.put_u32(u32::try_from(name.len()).unwrap());
    body.put_slice(name);
    body.put_i32(seqid);
    body.put_slice(args);
    body
}

pub fn frame(body: &[u8]) -> BytesMut {
    let mut frame = header(0, 48, u32::try_from(body.len()).unwrap());
    frame.put_slice(body);
    frame
}

pub fn call(name: &str, seqid: i32, args: &[u8]) -> BytesMut {
    frame(&message(1, name.as_bytes(), seqid, args))
}

/// A request that everybody answers who speaks to clients: negotiation, with an empty message.
pub fn hello(seqid: i32) -> BytesMut {
    call("RPC_NEGOTIATION", seqid, b"\x0c\0\x01\0\0")
}

pub fn random_bytes(len: usize) -> Vec<u8> {
    (0..len).map(|_| rand::random()).collect()
}
