//! Connections that take their time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use pegasus_onebox::Role;
use pegasus_types::hash::{crc64, partition_of};

use crate::stranger::{Target, call, hello, random_bytes, read_reply};

const IDLE: usize = 1000;
/// A value that the test has written: with an empty sort key.
pub const LARGE_KEY: &str = "large";
pub const LARGE_BYTES: usize = 512 << 10;
/// Of table `temp`.
const PARTITIONS: i32 = 8;

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

/// Asks for much more than it ever reads, on many connections: in short reads, in long ones and in checks that fail.
pub fn unread_answers(target: &Target) -> Vec<TcpStream> {
    let mut kept = Vec::new();
    for request in requests(target) {
        for partition in 0..PARTITIONS {
            kept.push(ask_and_read_nothing(target, &request, partition, 2000));
        }
    }
    std::thread::sleep(Duration::from_secs(2));
    kept
}

/// Of more connections than all of them together may leave unread.
pub fn unread_answers_of_many(target: &Target) -> Vec<TcpStream> {
    if target.role != Role::Replica {
        return Vec::new();
    }
    let partition = partition_of(crc64(LARGE_KEY.as_bytes()), PARTITIONS);
    let kept = requests(target)
        .iter()
        .flat_map(|request| (0..150).map(|_| ask_and_read_nothing(target, request, partition, 30)))
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    kept
}

/// What is answered at length.
fn requests(target: &Target) -> Vec<Vec<u8>> {
    let blob = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let field = |id: u8, ty: u8, value: &[u8]| [&[ty, 0, id][..], value].concat();
    let hash_key = field(1, 12, &blob(LARGE_KEY.as_bytes()));
    let key_len = u16::try_from(LARGE_KEY.len()).unwrap().to_be_bytes();
    let key = [&key_len[..], LARGE_KEY.as_bytes()].concat();
    let argument = |inside: &[u8]| [&field(1, 12, inside), &b"\0"[..]].concat();
    let request = |name, args: Vec<u8>| call(name, 1, &args).to_vec();
    match target.role {
        Role::Meta => vec![request("RPC_CM_LIST_APPS", argument(b"\0"))],
        Role::ZooKeeper => Vec::new(),
        Role::Collector => vec![b"GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n".to_vec()],
        Role::Replica => vec![
            request("RPC_RRDB_RRDB_GET", argument(&blob(&key))),
            request("RPC_RRDB_RRDB_MULTI_GET", argument(&[&hash_key[..], b"\x02\0\x08\x01\0"].concat())),
            // VALUE_NOT_EXIST, and the value is to be returned.
            request(
                "RPC_RRDB_RRDB_CHECK_AND_SET",
                argument(&[&hash_key[..], b"\x08\0\x03\0\0\0\x01\x02\0\x09\x01\0"].concat()),
            ),
        ],
    }
}

/// The request many times, for one partition of table `temp`. The large value lies in one; the others say that they have
/// nothing.
fn ask_and_read_nothing(target: &Target, request: &[u8], partition: i32, times: usize) -> TcpStream {
    let mut requests = request.repeat(times);
    if target.role == Role::Replica {
        // Where the partition stands in the header.
        let partition = u8::try_from(partition).unwrap();
        requests.chunks_mut(request.len()).for_each(|request| request[31] = partition);
    }
    let mut stream = target.connect();
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    // They stop being taken when the answers are not.
    let _ = stream.write_all(&requests);
    stream
}
