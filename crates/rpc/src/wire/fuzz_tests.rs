//! Whatever arrives, decoding returns: no panic, no allocation beyond what the frame's own bytes justify.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::Rpc;
use super::frame::{open_reply, open_request, reply_len, request_len};
use super::request::{Request, Response};
use super::thrift::{DecodeError, Reader, ty};
use super::vector_tests::frames;

fn decode_request(bytes: &Bytes) -> Option<Request> {
    let len = request_len(bytes).ok()??;
    let frame = bytes.get(..len)?;
    let mut request = open_request(bytes.slice_ref(frame)).ok()?;
    // The arguments are read as those of every RPC, not only of the one that is named.
    for &rpc in Rpc::ALL {
        let _ = Request::decode(rpc, &mut open_request(bytes.slice_ref(frame)).ok()?.args);
    }
    Request::decode(request.rpc?, &mut request.args).ok()
}

fn decode_reply(bytes: &Bytes) {
    let Ok(Some(len)) = reply_len(bytes) else { return };
    let Some(frame) = bytes.get(..len) else { return };
    for &rpc in Rpc::ALL {
        if let Ok(reply) = open_reply(bytes.slice_ref(frame)) {
            let _ = Response::decode(rpc, reply);
        }
    }
}

#[test]
fn truncated_frames() {
    let (requests, replies) = frames();
    for frame in requests {
        for len in 0..frame.len() {
            let cut = frame.slice(..len);
            assert!(request_len(&cut).unwrap().is_none_or(|total| total > len), "still incomplete");
            if len >= 16 {
                // As if the header had told the truth.
                let _ = open_request(cut).map(|mut r| r.rpc.map(|rpc| Request::decode(rpc, &mut r.args)));
            }
        }
    }
    for (rpc, frame) in replies {
        for len in 0..frame.len() {
            if let Ok(reply) = open_reply(frame.slice(..len)) {
                let whole = reply.refusal.is_some();
                assert!(whole || Response::decode(rpc, reply).is_err() || len + 1 == frame.len());
            }
        }
    }
}

/// Every byte of every frame replaced by telling values.
#[test]
fn single_byte_damage() {
    let (requests, replies) = frames();
    let requests = requests.into_iter().map(|frame| (None, frame));
    for (reply_to, frame) in requests.chain(replies.into_iter().map(|(rpc, frame)| (Some(rpc), frame))) {
        let mut bytes = BytesMut::from(&frame[..]);
        for at in 0..frame.len() {
            for value in [0, 1, 0x0c, 0x0f, 0x7f, 0x80, 0xff] {
                bytes[at] = value;
                let damaged = Bytes::copy_from_slice(&bytes);
                match reply_to {
                    Some(rpc) => drop(open_reply(damaged).map(|reply| Response::decode(rpc, reply))),
                    None if request_len(&damaged) == Ok(Some(damaged.len())) => {
                        drop(
                            open_request(damaged)
                                .map(|mut r| r.rpc.map(|rpc| Request::decode(rpc, &mut r.args))),
                        );
                    }
                    None => {}
                }
            }
            bytes[at] = frame[at];
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut framed = BytesMut::from(&b"THFT\0\0\0\0\0\0\0\x30\0\0\0\0"[..]);
        framed.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(&[0; 28]);
        framed.extend_from_slice(&bytes);
        decode_request(&framed.freeze());
        decode_request(&Bytes::from(bytes.clone()));
        decode_reply(&Bytes::from(bytes));
    }

    #[test]
    fn mutated_frames(
        pick in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        splice in prop::collection::vec(any::<u8>(), 0..12),
        at in any::<prop::sample::Index>(),
    ) {
        let (requests, replies) = frames();
        let mut request = requests[pick.index(requests.len())].to_vec();
        let mut reply = replies[pick.index(replies.len())].1.to_vec();
        for (index, value) in edits {
            let (i, j) = (index.index(request.len()), index.index(reply.len()));
            request[i] = value;
            reply[j] = value;
        }
        let (i, j) = (at.index(request.len()), at.index(reply.len()));
        request.splice(i..i, splice.iter().copied());
        reply.splice(j..j, splice);
        decode_request(&request.into());
        decode_reply(&reply.into());
    }
}

/// A list field of a struct, with a claimed length and little behind it.
fn list(element: u8, claimed: i32, tail: &[u8]) -> Reader {
    let mut bytes = vec![ty::STRUCT, 0, 1, ty::LIST, 0, 2, element];
    bytes.extend_from_slice(&claimed.to_be_bytes());
    bytes.extend_from_slice(tail);
    Reader::new(bytes.into())
}

#[test]
fn claimed_lengths_are_not_believed() {
    for claimed in [-1, i32::MIN, i32::MAX, 1 << 28, 5] {
        for element in [ty::STRUCT, ty::STRING, ty::BOOL, ty::LIST, 99] {
            let got = Request::decode(Rpc::MultiPut, &mut list(element, claimed, &[0; 4]));
            assert!(got.is_err(), "{claimed} {element}");
        }
    }
}

#[test]
fn many_tiny_elements_are_refused() {
    // 8 MiB of empty structs would become hundreds of MiB of key-values.
    let tail = vec![0; 8 << 20];
    let got = Request::decode(Rpc::MultiPut, &mut list(ty::STRUCT, 8 << 20, &tail));
    assert_eq!(got, Err(DecodeError::TooManyItems));
    // Fewer are in memory at once, but each is executed.
    let got = Request::decode(Rpc::MultiPut, &mut list(ty::STRUCT, 100 << 10, &tail));
    assert_eq!(got, Err(DecodeError::TooManyItems));
    let most = 1 << 16;
    let got = Request::decode(Rpc::MultiPut, &mut list(ty::STRUCT, most, &tail)).unwrap();
    let Request::Write(pegasus_types::data::WriteRequest::MultiPut(put)) = got else { panic!("{got:?}") };
    assert_eq!(put.kvs.len(), most as usize);
    // The same as an unknown field of a scan request.
    let mut unknown = vec![ty::STRUCT, 0, 1, ty::LIST, 0, 77, ty::BOOL];
    unknown.extend_from_slice(&(8_i32 << 20).to_be_bytes());
    unknown.extend_from_slice(&tail);
    let got = Request::decode(Rpc::Scan, &mut Reader::new(unknown.into()));
    assert_eq!(got, Err(DecodeError::TooManyItems));
}

#[test]
fn deep_nesting_is_refused() {
    let mut nested = vec![ty::STRUCT, 0, 1];
    nested.extend([ty::STRUCT, 0, 99].repeat(100_000));
    assert_eq!(Request::decode(Rpc::Scan, &mut Reader::new(nested.into())), Err(DecodeError::TooDeep));
    let mut nested = vec![ty::STRUCT, 0, 1, ty::LIST, 0, 99];
    nested.extend([ty::LIST, 0, 0, 0, 1].repeat(100_000));
    assert_eq!(Request::decode(Rpc::Scan, &mut Reader::new(nested.into())), Err(DecodeError::TooDeep));
}

/// Fields in any order, repeated, unknown or of another type than expected are no error.
#[test]
fn lenient_where_thrift_is() {
    let mut bytes = vec![ty::STRING, 0, 9, 0, 0, 0, 1, b'x'];
    bytes.extend([ty::STRUCT, 0, 1]);
    bytes.extend([ty::MAP, 0, 50, ty::I32, ty::STRING, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 1, b'y']);
    bytes.extend([ty::I64, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5]);
    bytes.extend([ty::I32, 0, 3, 0, 0, 0, 9]);
    bytes.extend([ty::STRUCT, 0, 2, 0, 0, 0, 1, b'v']);
    bytes.extend([ty::STRUCT, 0, 1, 0, 0, 0, 1, b'k']);
    bytes.extend([ty::STOP, ty::STOP]);
    let got = Request::decode(Rpc::Put, &mut Reader::new(bytes.into())).unwrap();
    let Request::Write(pegasus_types::data::WriteRequest::Put(put)) = got else { panic!("{got:?}") };
    assert_eq!((&put.key[..], &put.value[..], put.expire_ts_seconds), (&b"k"[..], &b"v"[..], 9));
}

/// Keys and values of a decoded put are slices of the frame, not copies.
#[test]
fn puts_are_decoded_without_copying() {
    let (requests, _) = frames();
    let frame = requests.iter().find(|f| f.windows(17).any(|w| w == b"RPC_RRDB_RRDB_PUT")).unwrap();
    let Some(Request::Write(pegasus_types::data::WriteRequest::Put(put))) = decode_request(frame) else {
        panic!("a put")
    };
    let inside = frame.as_ptr_range();
    assert!(!put.value.is_empty());
    assert!(inside.contains(&put.key.as_ptr()) && inside.contains(&put.value.as_ptr()));
}
