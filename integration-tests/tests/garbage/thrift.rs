//! Messages that are well framed, of known names, and whose arguments are a trap.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use pegasus_rpc::wire::{Refusal, Rpc};
use pegasus_types::ErrorCode;

use crate::stranger::{Target, call, hello, is_timeout, random_bytes, read_reply};

const STRUCT: u8 = 12;
const MAP: u8 = 13;
const LIST: u8 = 15;

fn field(ty: u8, id: i16, value: &[u8]) -> Vec<u8> {
    let id = id.to_be_bytes();
    [&[ty, id[0], id[1]], value].concat()
}

fn traps() -> Vec<Vec<u8>> {
    let argument = |inside: &[u8]| field(STRUCT, 1, inside);
    let list = |element: u8, count: i32, rest: &[u8]| [&[element][..], &count.to_be_bytes(), rest].concat();
    let mut traps = vec![
        vec![],
        b"\0".to_vec(),
        random_bytes(200),
        vec![0xff; 200],
        vec![0; 200],
        // Nested without end: structs, lists of lists, maps of maps.
        argument(&field(STRUCT, 99, &[]).repeat(100_000)),
        argument(&field(LIST, 99, &list(LIST, 1, &[]).repeat(100_000))),
        argument(&field(MAP, 99, &[&[MAP, MAP][..], &1i32.to_be_bytes()].concat().repeat(100_000))),
        // A type that there is not, and a struct that does not end.
        argument(&field(0x7f, 2, &[0; 50])),
        argument(&field(8, 3, &[0, 0, 0, 1])),
    ];
    // Lengths and counts, in fields that are known (1 to 6) and one that is not.
    for id in [1, 2, 3, 4, 5, 6, 99] {
        for count in [i32::MAX, -1, i32::MIN, 1 << 20] {
            for element in [2, 8, 11, STRUCT, LIST] {
                traps.push(argument(&field(LIST, id, &list(element, count, &[0; 64]))));
            }
            let map = [&[11, 11][..], &count.to_be_bytes(), &[0; 64]].concat();
            traps.push(argument(&field(MAP, id, &map)));
            for ty in [11, STRUCT] {
                traps.push(argument(&field(ty, id, &[&count.to_be_bytes()[..], &[0; 64]].concat())));
            }
        }
    }
    traps
}

/// Each is answered, whatever the answer says, and the connection goes on.
pub fn hostile(target: &Target) -> Vec<TcpStream> {
    let traps = traps();
    for rpc in Rpc::ALL {
        let mut stream = target.connect();
        let silent = *rpc == Rpc::ClearScanner;
        let mut wanted = BTreeSet::new();
        for (seqid, trap) in (10..).zip(&traps) {
            stream.write_all(&call(rpc.name(), seqid, trap)).unwrap();
            if !silent {
                wanted.insert(seqid);
            }
        }
        stream.write_all(&hello(1)).unwrap();
        wanted.insert(1);
        while !wanted.is_empty() {
            match read_reply(&mut stream) {
                Ok((seqid, _)) => {
                    assert!(wanted.remove(&seqid), "{}: answer {seqid} to {rpc:?}", target.name)
                }
                Err(error) => panic!("{}: {error}, {} answers to {rpc:?} missing", target.name, wanted.len()),
            }
        }
    }
    Vec::new()
}

/// As many elements as the bytes can hold, each of which costs more here than there.
pub fn lists_of_nothing(target: &Target) -> Vec<TcpStream> {
    let list = |id: i16, count: usize, one: &[u8]| {
        let count_bytes = i32::try_from(count).unwrap().to_be_bytes();
        field(LIST, id, &[&[STRUCT][..], &count_bytes, &one.repeat(count)].concat())
    };
    let argument = |inside: &[u8]| field(STRUCT, 1, &[inside, b"\0\0"].concat());
    let traps = |count| {
        [
            // Structs of one byte: all fields are absent.
            ("RPC_RRDB_RRDB_MULTI_PUT", argument(&list(2, count, b"\0"))),
            ("RPC_RRDB_RRDB_CHECK_AND_MUTATE", argument(&list(5, count, b"\0"))),
            ("RPC_RRDB_RRDB_BATCH_GET", argument(&list(1, count, b"\0"))),
            ("RPC_RRDB_RRDB_MULTI_GET", argument(&list(2, count, b"\0\0\0\0"))),
            ("RPC_RRDB_RRDB_MULTI_REMOVE", argument(&list(2, count, b"\0\0\0\0"))),
        ]
    };
    let mut kept = Vec::new();
    for (name, args) in traps(1_000_000).into_iter().chain(traps(1 << 14)) {
        for _ in 0..3 {
            let mut stream = target.connect();
            let _ = stream.write_all(&call(name, 1, &args));
            kept.push((name, args.len(), stream));
        }
    }
    let mut patience = Duration::from_secs(5);
    for (name, len, stream) in &mut kept {
        let (is_long, is_read) = (*len >= 1_000_000, name.ends_with("GET"));
        if !is_long && !is_read {
            stream.set_read_timeout(Some(patience)).unwrap();
        }
        match read_reply(stream) {
            // Longer than what is taken.
            Ok((_, refusal)) if is_long => {
                assert_eq!(refusal, Some(Refusal::Code(ErrorCode::InvalidData)), "{}: {name}", target.name);
            }
            Ok(_) => {}
            // A debug build on a crowded machine executes them for so long that the partition changes hands, and what
            // becomes of a write that is in flight then is not told.
            Err(error) => {
                assert!(!is_long && !is_read && is_timeout(&error), "{}: {error}: {name}", target.name);
                patience = Duration::from_millis(100);
            }
        }
    }
    kept.into_iter().map(|(.., stream)| stream).collect()
}
