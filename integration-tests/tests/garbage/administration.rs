//! Requests that administer the cluster, with values that nobody means.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;

use pegasus_onebox::Role;
use pegasus_rpc::wire::meta::{
    CreateAppOptions, CreateAppRequest, DropAppOptions, DropAppRequest, QueryConfigRequest, RecallAppRequest,
    RemoteCommand, UpdateAppEnvRequest,
};
use pegasus_rpc::wire::thrift::Writer;
use pegasus_rpc::wire::{AdminRequest, HeaderVersion, Request, RequestHead, Response};

use crate::stranger::{Target, read_whole_reply};

pub fn all(target: &Target) -> Vec<TcpStream> {
    let mut requests = commands();
    // Others do not know them, and say so.
    requests.extend(create());
    requests.extend(others());
    let mut stream = target.connect();
    for (seqid, request) in (1..).zip(&requests) {
        let mut frame = bytes::BytesMut::new();
        let head = RequestHead { seqid, ..Default::default() };
        request.encode(&mut Writer::new(&mut frame), HeaderVersion::V0, &head);
        stream.write_all(&frame).unwrap();
        let reply = read_whole_reply(&mut stream).unwrap_or_else(|error| {
            panic!("{}: {error} after {:.300}", target.name, format!("{request:?}"));
        });
        assert_eq!(reply.seqid, seqid);
        let is_known = match request {
            Request::RemoteCommand(_) => true,
            _ => target.role == Role::Meta,
        };
        assert_eq!(reply.refusal.is_none(), is_known, "{}", target.name);
        if let (true, Request::Admin(_)) = (is_known, request) {
            let told = format!("{:?}", Response::decode(request.rpc(), reply).unwrap());
            assert!(!told.contains("ErrorName(Ok)"), "{told:.300} after {:.300}", format!("{request:?}"));
        }
    }
    Vec::new()
}

fn commands() -> Vec<Request> {
    let command = |cmd: &str, arguments: Vec<String>| {
        Request::RemoteCommand(RemoteCommand { cmd: cmd.to_owned(), arguments })
    };
    vec![
        command("", vec![]),
        command("no.such.command", vec![]),
        command("replica.list\0", vec!["\0".into(), "\u{1f980}".into()]),
        command(&"c".repeat(1 << 20), vec![]),
        command("help", vec!["x".repeat(1 << 20)]),
        command("replica.list", vec![String::new(); 50_000]),
        command("server-info", (0..1000).map(|n| n.to_string()).collect()),
    ]
}

/// None of these tables can be.
fn create() -> Vec<Request> {
    let table = |name: &str, partition_count, replica_count, app_type: &str| {
        let options = CreateAppOptions {
            partition_count,
            replica_count,
            success_if_exist: true,
            app_type: app_type.to_owned(),
            is_stateful: true,
            envs: BTreeMap::new(),
            atomic_idempotent: None,
        };
        CreateAppRequest { app_name: name.to_owned(), options }
    };
    let mut all = Vec::new();
    for partitions in [i32::MIN, -1, 0, 3, 1 << 30, i32::MAX] {
        all.push(table("garbage", partitions, 3, "pegasus"));
    }
    for replicas in [i32::MIN, -1, 0, 1000, i32::MAX] {
        all.push(table("garbage", 4, replicas, "pegasus"));
    }
    for name in ["", "a/b", "a\0b", "\n", " ", &"n".repeat(1 << 20)] {
        all.push(table(name, 4, 3, "pegasus"));
    }
    all.push(table("garbage", 4, 3, ""));
    all.push(table("garbage", 4, 3, &"t".repeat(1 << 20)));
    let mut many_envs = table("garbage", 4, 3, "pegasus");
    many_envs.options.envs = (0..50_000).map(|n| (format!("env {n}"), "v".repeat(100))).collect();
    all.push(many_envs);
    all.into_iter().map(|request| Request::Admin(AdminRequest::CreateApp(request))).collect()
}

fn others() -> Vec<Request> {
    let env = |app_name: &str, op, keys: Option<Vec<String>>, values| UpdateAppEnvRequest {
        app_name: app_name.to_owned(),
        op,
        keys,
        values,
        clear_prefix: None,
    };
    let mut all: Vec<_> = ["", "none", "a/b", "\0"]
        .map(|name| {
            let options = DropAppOptions { success_if_not_exist: false, reserve_seconds: Some(i64::MIN) };
            AdminRequest::DropApp(DropAppRequest { app_name: name.to_owned(), options })
        })
        .to_vec();
    for app_id in [i32::MIN, -1, 0, 1, 999, i32::MAX] {
        all.push(AdminRequest::RecallApp(RecallAppRequest { app_id, new_app_name: "garbage".to_owned() }));
    }
    for request in [
        env("none", 1, None, None),
        env("temp", 99, None, None),
        env("temp", -1, None, None),
        env("temp", 1, Some(vec!["a".to_owned()]), None),
        env("temp", 1, Some(vec!["no such env".to_owned()]), Some(vec!["v".repeat(1 << 20)])),
        env("temp", 1, Some(vec![String::new()]), Some(vec![String::new(), String::new()])),
        env("temp", 1, Some(vec!["default_ttl".to_owned()]), Some(vec!["-5".to_owned()])),
        env("temp", 1, Some(vec!["default_ttl".to_owned()]), Some(vec!["soon".to_owned()])),
    ] {
        all.push(AdminRequest::UpdateAppEnv(request));
    }
    let query = |name: &str, partition_indices| {
        Request::QueryConfig(QueryConfigRequest { app_name: name.to_owned(), partition_indices })
    };
    let mut all: Vec<_> = all.into_iter().map(Request::Admin).collect();
    all.push(query("", vec![]));
    all.push(query(&"q".repeat(1 << 20), vec![]));
    all.push(query("temp", vec![i32::MIN, -1, 8, i32::MAX]));
    all.push(query("temp", (0..50_000).collect()));
    all
}
