//! Recorded frames of the real clients (tests/vectors), both ways.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use pegasus_types::data::*;
use pegasus_types::{ErrorCode, hash};
use serde_json::Value as Json;

use super::frame::{HeaderVersion, Refusal, open_reply, open_request, put_refusal, reply_len, request_len};
use super::request::{AdminRequest, AdminResponse, Request, Response};
use super::thrift::{Value, Writer};
use super::{Rpc, meta};

const FILES: [(&str, &str, usize); 6] = [
    ("generated-ops", include_str!("../../tests/vectors/generated-ops.json"), 22),
    ("go-client", include_str!("../../tests/vectors/go-client.json"), 33),
    ("java-client", include_str!("../../tests/vectors/java-client.json"), 35),
    ("nodejs-client", include_str!("../../tests/vectors/nodejs-client-2.6.0.json"), 17),
    ("python-client", include_str!("../../tests/vectors/python-client-2.6.0.json"), 43),
    ("pypegasus3", include_str!("../../tests/vectors/python-pypegasus3-0.0.1.1.json"), 39),
];
const HASHES: &str = include_str!("../../tests/vectors/hash.json");

pub fn unhex(text: &str) -> Bytes {
    assert!(text.len().is_multiple_of(2));
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// All recorded exchanges: (file and name, entry).
fn vectors() -> Vec<(String, Json)> {
    let mut all = Vec::new();
    for (file, text, count) in FILES {
        let json: Json = serde_json::from_str(text).unwrap();
        let entries = json["vectors"].as_array().unwrap();
        assert_eq!(entries.len(), count, "{file}");
        all.extend(entries.iter().map(|e| (format!("{file}: {}", e["name"]), e.clone())));
    }
    all
}

type Frames = (Vec<Bytes>, Vec<(Rpc, Bytes)>);

/// Every request and reply frame, for the fuzz tests.
pub fn frames() -> Frames {
    static FRAMES: LazyLock<Frames> = LazyLock::new(load_frames);
    FRAMES.clone()
}

fn load_frames() -> Frames {
    let (mut requests, mut replies) = (Vec::new(), Vec::new());
    for (_, entry) in vectors() {
        requests.push(unhex(text(&entry["request_hex"])));
        let reply = unhex(text(&entry["response_hex"]));
        if !reply.is_empty() {
            replies.push((rpc(&entry), reply));
        }
    }
    (requests, replies)
}

fn text(json: &Json) -> &str {
    json.as_str().unwrap()
}

fn rpc(entry: &Json) -> Rpc {
    Rpc::from_name(text(&entry["rpc"]).as_bytes()).unwrap()
}

fn request(rpc: Rpc, args: &Json, present: &mut Vec<u64>) -> Request {
    fn arg<T: Value>(args: &Json, present: &mut Vec<u64>) -> T {
        T::from_json(args, present)
    }
    let p = present;
    match rpc {
        Rpc::Get => Request::Read(ReadRequest::Get { key: arg(args, p) }),
        Rpc::Ttl => Request::Read(ReadRequest::Ttl { key: arg(args, p) }),
        Rpc::SortkeyCount => Request::Read(ReadRequest::SortkeyCount { hash_key: arg(args, p) }),
        Rpc::MultiGet => Request::Read(ReadRequest::MultiGet(arg(args, p))),
        Rpc::BatchGet => Request::Read(ReadRequest::BatchGet(arg(args, p))),
        Rpc::GetScanner => Request::Read(ReadRequest::GetScanner(arg(args, p))),
        Rpc::Scan => Request::Read(ReadRequest::Scan(arg(args, p))),
        Rpc::ClearScanner => Request::Read(ReadRequest::ClearScanner { context_id: arg(args, p) }),
        Rpc::Put => Request::Write(WriteRequest::Put(arg(args, p))),
        Rpc::Remove => Request::Write(WriteRequest::Remove { key: arg(args, p) }),
        Rpc::MultiPut => Request::Write(WriteRequest::MultiPut(arg(args, p))),
        Rpc::MultiRemove => Request::Write(WriteRequest::MultiRemove(arg(args, p))),
        Rpc::Incr => Request::Write(WriteRequest::Incr(arg(args, p))),
        Rpc::CheckAndSet => Request::Write(WriteRequest::CheckAndSet(arg(args, p))),
        Rpc::CheckAndMutate => Request::Write(WriteRequest::CheckAndMutate(arg(args, p))),
        Rpc::QueryConfig => Request::QueryConfig(arg(args, p)),
        Rpc::RemoteCommand => Request::RemoteCommand(arg(args, p)),
        Rpc::Negotiation => Request::Negotiation(arg(args, p)),
        Rpc::CreateApp => Request::Admin(AdminRequest::CreateApp(arg(args, p))),
        Rpc::ListApps => Request::Admin(AdminRequest::ListApps(arg(args, p))),
        Rpc::ListNodes => Request::Admin(AdminRequest::ListNodes(arg(args, p))),
        Rpc::ClusterInfo => Request::Admin(AdminRequest::ClusterInfo(arg(args, p))),
        Rpc::DropApp
        | Rpc::RecallApp
        | Rpc::UpdateAppEnv
        | Rpc::ControlMeta
        | Rpc::ProposeBalancer
        | Rpc::DddDiagnose
        | Rpc::StartManualCompact
        | Rpc::QueryManualCompact => panic!("not recorded"),
    }
}

fn response(rpc: Rpc, result: &Json) -> Response {
    fn of<T: Value>(result: &Json) -> T {
        T::from_json(result, &mut Vec::new())
    }
    match rpc {
        Rpc::Get => Response::Read(ReadResponseBody::Get(of(result))),
        Rpc::Ttl => Response::Read(ReadResponseBody::Ttl(of(result))),
        Rpc::SortkeyCount => Response::Read(ReadResponseBody::SortkeyCount(of(result))),
        Rpc::MultiGet => Response::Read(ReadResponseBody::MultiGet(of(result))),
        Rpc::BatchGet => Response::Read(ReadResponseBody::BatchGet(of(result))),
        Rpc::GetScanner | Rpc::Scan => Response::Read(ReadResponseBody::Scan(of(result))),
        Rpc::Put | Rpc::Remove | Rpc::MultiPut => Response::Write(WriteResponse::Update(of(result))),
        Rpc::MultiRemove => Response::Write(WriteResponse::MultiRemove(of(result))),
        Rpc::Incr => Response::Write(WriteResponse::Incr(of(result))),
        Rpc::CheckAndSet | Rpc::CheckAndMutate => Response::Write(WriteResponse::Check(of(result))),
        Rpc::QueryConfig => Response::QueryConfig(of(result)),
        Rpc::RemoteCommand => Response::Text(of(result)),
        Rpc::Negotiation => Response::Negotiation(of(result)),
        Rpc::CreateApp => Response::Admin(AdminResponse::CreateApp(of(result))),
        Rpc::ListApps => Response::Admin(AdminResponse::ListApps(of(result))),
        Rpc::ListNodes => Response::Admin(AdminResponse::ListNodes(of(result))),
        Rpc::ClusterInfo => Response::Admin(AdminResponse::ClusterInfo(of(result))),
        Rpc::ClearScanner
        | Rpc::DropApp
        | Rpc::RecallApp
        | Rpc::UpdateAppEnv
        | Rpc::ControlMeta
        | Rpc::ProposeBalancer
        | Rpc::DddDiagnose
        | Rpc::StartManualCompact
        | Rpc::QueryManualCompact => panic!("not recorded"),
    }
}

/// Each recorded request decodes to its arguments, and these encode to the same bytes: what a client leaves
/// out stays out.
#[test]
fn requests_both_ways() {
    let mut versions = BTreeSet::new();
    for (name, entry) in vectors() {
        let bytes = unhex(text(&entry["request_hex"]));
        assert_eq!(request_len(&bytes), Ok(Some(bytes.len())), "{name}");
        let mut frame = open_request(bytes.clone()).unwrap();
        let rpc = rpc(&entry);
        assert_eq!(frame.rpc, Some(rpc), "{name}");

        let header = &entry["header"];
        let number = |key: &str| header[key].as_i64().unwrap();
        let head = frame.head;
        assert_eq!(i64::from(head.seqid), entry["seqid"].as_i64().unwrap(), "{name}");
        assert_eq!(i64::from(head.app_id), number("app_id"), "{name}");
        assert_eq!(i64::from(head.partition_index), number("partition_index"), "{name}");
        assert_eq!(i64::from(head.client_timeout_ms), number("client_timeout"), "{name}");
        assert_eq!(frame.body_len as i64, number("body_length"), "{name}");
        let version = if bytes[7] == 0 { HeaderVersion::V0 } else { HeaderVersion::V1 };
        versions.insert(bytes[7]);
        match version {
            HeaderVersion::V0 => assert_eq!(head.partition_hash, header["partition_hash"].as_u64().unwrap()),
            HeaderVersion::V1 => {
                let hash = ["client_partition_hash", "partition_hash"]
                    .iter()
                    .find_map(|key| header[*key].as_i64().or(header[*key].as_u64().map(u64::cast_signed)));
                assert_eq!(head.partition_hash.cast_signed(), hash.unwrap(), "{name}");
                assert_eq!(Some(head.is_backup), header["is_backup_request"].as_bool(), "{name}");
            }
        }

        let mut present = Vec::new();
        let want = request(rpc, &entry["args"], &mut present);
        assert_eq!(Request::decode(rpc, &mut frame.args).as_ref(), Ok(&want), "{name}");
        assert_eq!(want.rpc(), rpc);

        let mut encoded = BytesMut::new();
        let mut w = Writer::new(&mut encoded);
        w.present = Some(present.into());
        want.encode(&mut w, version, &head);
        assert_eq!(hex(&encoded), hex(&bytes), "{name}");
    }
    assert_eq!(versions, BTreeSet::from([0, 1]));
}

fn has_host_ports(json: &Json) -> bool {
    match json {
        Json::Object(map) => map
            .iter()
            .any(|(key, value)| (key.starts_with("hp_") && !value.is_null()) || has_host_ports(value)),
        Json::Array(list) => list.iter().any(has_host_ports),
        _ => false,
    }
}

/// Each recorded reply decodes to its result, and this encodes to the same bytes. Those with `hp_*` fields,
/// which we never send, decode all the same.
#[test]
fn replies_both_ways() {
    let (mut identical, mut refusals, mut foreign) = (0, 0, 0);
    for (name, entry) in vectors() {
        let bytes = unhex(text(&entry["response_hex"]));
        let rpc = rpc(&entry);
        if rpc == Rpc::ClearScanner {
            assert!(bytes.is_empty(), "{name}");
            continue;
        }
        if bytes.is_empty() {
            continue;
        }
        let json =
            [&entry["response"], &entry["response_decoded"]].into_iter().find(|j| !j.is_null()).unwrap();
        assert_eq!(reply_len(&bytes), Ok(Some(bytes.len())), "{name}");
        let mut reply = open_reply(bytes.clone()).unwrap();
        let seqid = i32::try_from(json["seqid"].as_i64().unwrap()).unwrap();
        assert_eq!(reply.seqid, seqid, "{name}");

        let mut encoded = BytesMut::new();
        let error = text(&json["error"]);
        match (error.parse::<ErrorCode>(), reply.refusal.take()) {
            (Ok(ErrorCode::Ok), None) => {
                let want = response(rpc, &json["result"]);
                assert_eq!(Response::decode(rpc, reply).as_ref(), Ok(&want), "{name}");
                want.encode(&mut Writer::new(&mut encoded), rpc, seqid);
                if has_host_ports(&json["result"]) {
                    foreign += 1;
                    let again = open_reply(encoded.freeze()).unwrap();
                    assert_eq!(Response::decode(rpc, again), Ok(want), "{name}");
                } else {
                    identical += 1;
                    assert_eq!(hex(&encoded), hex(&bytes), "{name}");
                }
            }
            (Ok(code), Some(Refusal::Code(got))) => {
                assert_eq!(got, code, "{name}");
                put_refusal(&mut encoded, rpc.name().as_bytes(), seqid, code);
                assert_eq!(hex(&encoded), hex(&bytes), "{name}");
                refusals += 1;
            }
            (Err(_), Some(Refusal::Other(got))) => assert_eq!(got, error, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(identical > 120 && refusals > 15 && foreign == 3, "{identical} {refusals} {foreign}");
}

/// Rule 1: no field of ours is a `host_port`, whatever we are asked to say about a partition.
#[test]
fn configurations_carry_no_host_names() {
    let config = meta::PartitionConfiguration::default();
    let mut bytes = BytesMut::new();
    config.write(&mut Writer::new(&mut bytes));
    // 8 fields; the absent primary is eight zero bytes.
    let want = "0c0001 0000000000000000 0a0002 0000000000000000 080003 00000000 0c0004 0000000000000000 \
                0f0005 0c00000000 0f0006 0c00000000 0a0007 0000000000000000 080008 00000000 00";
    assert_eq!(hex(&bytes), want.replace(' ', ""));
}

#[test]
fn hashes() {
    let json: Json = serde_json::from_str(HASHES).unwrap();
    let keys = json["hash_key"].as_array().unwrap();
    for entry in keys {
        let got = hash::crc64(&unhex(text(&entry["hash_key_hex"])));
        assert_eq!(format!("{got:016x}"), text(&entry["hash_hex"]));
        for (count, index) in entry["partition_index"].as_object().unwrap() {
            assert_eq!(i64::from(hash::partition_of(got, count.parse().unwrap())), index.as_i64().unwrap());
        }
    }
    let composite = json["composite"].as_array().unwrap();
    for entry in composite {
        let key = entry.as_object().unwrap().iter().find(|(name, _)| name.contains("key_hex")).unwrap().1;
        let got = hash::encoded_key_hash(&unhex(text(key))).unwrap();
        assert_eq!(format!("{got:016x}"), text(&entry["hash_hex"]), "{entry}");
    }
    assert_eq!((keys.len(), composite.len()), (22, 6));
}
