//! JSON content of the nodes, as the reference writes it (operations.md 13), so that operators' tools show
//! what they expect and a cluster's metadata can be read by either.
//!
//! Missing keys keep their defaults, unknown keys are ignored. Where the reference has an address and a
//! host name, the host name (`hp_…`) counts. Our addition: a table that is being created is stored as
//! `AS_CREATING`, since only then may nodes make empty replica directories (safety-rules.md 4.3).

use std::collections::{BTreeMap, BTreeSet};

use pegasus_types::{AppInfo, AppStatus, Ballot, Decree, Gpid, Node, PartitionConfig};
use serde::{Deserialize, Serialize};

const NO_ADDRESS: &str = "invalid address";
const NO_HOST: &str = "invalid host_port";

/// What was read is not what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    #[error("no JSON of this kind: {0}")]
    Json(String),
    #[error("unknown table status {0:?}")]
    Status(String),
    #[error("{0:?} is not a partition")]
    Gpid(String),
    #[error("{0:?} is not a node")]
    Node(String),
}

/// Content of the node above all tables, as text. The reference refuses to start on anything but [`UNLOCKED`]
/// and nothing; so do we.
pub const UNLOCKED: &str = "unlock";
/// A first, large write is under way or was cut off: what lies below is not whole.
pub const LOCKED: &str = "lock";

/// The text of that node, unless it says that all is well.
pub fn not_for_use(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    (!text.is_empty() && text != UNLOCKED).then(|| text.into_owned())
}

#[derive(Serialize, Deserialize)]
#[serde(default)]
struct AppJson {
    status: String,
    app_type: String,
    app_name: String,
    app_id: i32,
    partition_count: i32,
    envs: BTreeMap<String, String>,
    #[serde(serialize_with = "zero_one", deserialize_with = "any_bool")]
    is_stateful: bool,
    max_replica_count: i32,
    expire_second: i64,
    create_second: i64,
    drop_second: i64,
    #[serde(serialize_with = "zero_one", deserialize_with = "any_bool")]
    duplicating: bool,
    init_partition_count: i32,
    #[serde(serialize_with = "zero_one", deserialize_with = "any_bool")]
    is_bulk_loading: bool,
    #[serde(serialize_with = "zero_one", deserialize_with = "any_bool")]
    atomic_idempotent: bool,
}

impl Default for AppJson {
    fn default() -> Self {
        Self {
            status: String::new(),
            app_type: "pegasus".into(),
            app_name: String::new(),
            app_id: 0,
            partition_count: 0,
            envs: BTreeMap::new(),
            is_stateful: true,
            max_replica_count: 3,
            expire_second: 0,
            create_second: 0,
            drop_second: 0,
            duplicating: false,
            init_partition_count: -1,
            is_bulk_loading: false,
            atomic_idempotent: false,
        }
    }
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct PartitionJson {
    pid: String,
    ballot: i64,
    max_replica_count: i32,
    primary: String,
    secondaries: Vec<String>,
    last_drops: Vec<String>,
    last_committed_decree: i64,
    partition_flags: i32,
    hp_primary: String,
    hp_secondaries: Vec<String>,
    hp_last_drops: Vec<String>,
}

/// Nodes that operators drain.
#[derive(Serialize, Deserialize)]
struct DrainedJson {
    nodes: Vec<String>,
}

pub fn encode_drained(nodes: &BTreeSet<Node>) -> Vec<u8> {
    let json = DrainedJson { nodes: nodes.iter().map(Node::to_string).collect() };
    serde_json::to_vec(&json).unwrap_or_default()
}

pub fn decode_drained(bytes: &[u8]) -> Result<BTreeSet<Node>, ContentError> {
    let json: DrainedJson =
        serde_json::from_slice(bytes).map_err(|error| ContentError::Json(error.to_string()))?;
    json.nodes.into_iter().map(|text| text.parse().map_err(|_| ContentError::Node(text))).collect()
}

pub fn encode_app(info: &AppInfo) -> Vec<u8> {
    let json = AppJson {
        status: format!("app_status::{}", status_name(info.status)),
        app_type: info.app_type.clone(),
        app_name: info.name.clone(),
        app_id: info.app_id,
        partition_count: info.partition_count,
        envs: info.envs.clone(),
        max_replica_count: info.max_replica_count,
        expire_second: info.expire_second,
        create_second: info.create_second,
        drop_second: info.drop_second,
        init_partition_count: info.partition_count,
        ..AppJson::default()
    };
    serde_json::to_vec(&json).expect("strings and numbers always encode")
}

pub fn decode_app(bytes: &[u8]) -> Result<AppInfo, ContentError> {
    let json: AppJson = parse(bytes)?;
    let name = json.status.strip_prefix("app_status::").unwrap_or(&json.status);
    let status = STATUS_NAMES
        .iter()
        .find(|(_, n)| *n == name)
        .map(|(status, _)| *status)
        .ok_or_else(|| ContentError::Status(json.status.clone()))?;
    Ok(AppInfo {
        app_id: json.app_id,
        name: json.app_name,
        app_type: json.app_type,
        status,
        partition_count: json.partition_count,
        max_replica_count: json.max_replica_count,
        envs: json.envs,
        create_second: json.create_second,
        drop_second: json.drop_second,
        expire_second: json.expire_second,
    })
}

/// What a table's node says beyond what [`decode_app`] takes over; in words.
///
/// # Errors
/// It is no JSON of a table.
pub fn left_out_of_app(bytes: &[u8]) -> Result<Vec<String>, ContentError> {
    let json: AppJson = parse(bytes)?;
    let keys: BTreeMap<String, serde_json::Value> = parse(bytes)?;
    let mut told = Vec::new();
    for (is_so, what) in [
        (json.duplicating, "it is duplicated to another cluster; that stops"),
        (json.is_bulk_loading, "a bulk load was under way; it is given up"),
        (!json.is_stateful, "it is stateless; all tables are stateful here"),
    ] {
        told.extend(is_so.then(|| what.to_owned()));
    }
    if json.init_partition_count > 0 && json.init_partition_count != json.partition_count {
        let (first, now) = (json.init_partition_count, json.partition_count);
        told.push(format!("it was made with {first} partitions and split to {now}; only the latter is kept"));
    }
    let known = serde_json::to_value(AppJson::default()).unwrap_or_default();
    let unknown = keys.keys().filter(|key| known.get(key.as_str()).is_none());
    told.extend(unknown.map(|key| format!("the key {key:?} is not known")));
    Ok(told)
}

pub fn encode_partition(config: &PartitionConfig) -> Vec<u8> {
    let address = |node: &Node| node.ipv4().map_or(NO_ADDRESS.to_owned(), |_| node.to_string());
    let addresses = |nodes: &[Node]| nodes.iter().map(address).collect();
    let hosts = |nodes: &[Node]| nodes.iter().map(Node::to_string).collect();
    let json = PartitionJson {
        pid: config.gpid.to_string(),
        ballot: config.ballot.0,
        max_replica_count: config.max_replica_count,
        primary: config.primary.as_ref().map_or(NO_ADDRESS.to_owned(), address),
        secondaries: addresses(&config.secondaries),
        last_drops: addresses(&config.last_drops),
        last_committed_decree: config.last_committed.0,
        partition_flags: config.partition_flags,
        hp_primary: config.primary.as_ref().map_or(NO_HOST.to_owned(), Node::to_string),
        hp_secondaries: hosts(&config.secondaries),
        hp_last_drops: hosts(&config.last_drops),
    };
    serde_json::to_vec(&json).expect("strings and numbers always encode")
}

pub fn decode_partition(bytes: &[u8]) -> Result<PartitionConfig, ContentError> {
    let json: PartitionJson = parse(bytes)?;
    let list = |hosts: &[String], addresses: &[String]| {
        let list = if hosts.is_empty() { addresses } else { hosts };
        list.iter().filter_map(|text| node(text).transpose()).collect::<Result<Vec<_>, _>>()
    };
    let primary = match node(&json.hp_primary)? {
        Some(node) => Some(node),
        None => node(&json.primary)?,
    };
    Ok(PartitionConfig {
        gpid: json.pid.parse::<Gpid>().map_err(|_| ContentError::Gpid(json.pid.clone()))?,
        ballot: Ballot(json.ballot),
        max_replica_count: json.max_replica_count,
        primary,
        secondaries: list(&json.hp_secondaries, &json.secondaries)?,
        last_drops: list(&json.hp_last_drops, &json.last_drops)?,
        last_committed: Decree(json.last_committed_decree),
        partition_flags: json.partition_flags,
    })
}

const STATUS_NAMES: [(AppStatus, &str); 8] = [
    (AppStatus::Invalid, "AS_INVALID"),
    (AppStatus::Available, "AS_AVAILABLE"),
    (AppStatus::Creating, "AS_CREATING"),
    (AppStatus::CreateFailed, "AS_CREATE_FAILED"),
    (AppStatus::Dropping, "AS_DROPPING"),
    (AppStatus::DropFailed, "AS_DROP_FAILED"),
    (AppStatus::Dropped, "AS_DROPPED"),
    (AppStatus::Recalling, "AS_RECALLING"),
];

/// `AS_AVAILABLE` and so on, as tools show it.
pub fn status_name(status: AppStatus) -> &'static str {
    STATUS_NAMES.iter().find(|(s, _)| *s == status).map_or("AS_INVALID", |(_, name)| name)
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, ContentError> {
    serde_json::from_slice(bytes).map_err(|error| ContentError::Json(error.to_string()))
}

fn node(text: &str) -> Result<Option<Node>, ContentError> {
    match text {
        "" | NO_ADDRESS | NO_HOST => Ok(None),
        _ => text.parse().map(Some).map_err(|_| ContentError::Node(text.into())),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn zero_one<S: serde::Serializer>(flag: &bool, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u8(u8::from(*flag))
}

fn any_bool<'de, D: serde::Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Bool(bool),
        Number(i64),
    }
    Ok(match Flag::deserialize(from)? {
        Flag::Bool(flag) => flag,
        Flag::Number(number) => number != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drained_nodes() {
        let nodes = BTreeSet::from(["b:2".parse().unwrap(), "a:1".parse().unwrap()]);
        assert_eq!(encode_drained(&nodes), br#"{"nodes":["a:1","b:2"]}"#);
        assert_eq!(decode_drained(&encode_drained(&nodes)), Ok(nodes));
        assert!(matches!(decode_drained(b"[]"), Err(ContentError::Json(_))));
        assert!(matches!(decode_drained(br#"{"nodes":["no port"]}"#), Err(ContentError::Node(_))));
    }

    #[test]
    fn a_table_as_the_reference_writes_it() {
        let text =
            br#"{"status":"app_status::AS_AVAILABLE","app_type":"pegasus","app_name":"temp","app_id":2,
            "partition_count":8,"envs":{"default_ttl":"60"},"is_stateful":1,"max_replica_count":3,
            "expire_second":0,"create_second":1700000000,"drop_second":0,"duplicating":0,
            "init_partition_count":8,"is_bulk_loading":false,"new_key":[1]}"#;
        let info = decode_app(text).unwrap();
        assert_eq!((info.app_id, info.name.as_str(), info.status), (2, "temp", AppStatus::Available));
        assert_eq!(info.default_ttl_s(), 60);
        let again = encode_app(&info);
        assert_eq!(decode_app(&again).unwrap(), info);
        let shown = String::from_utf8(again).unwrap();
        for part in [r#""status":"app_status::AS_AVAILABLE""#, r#""is_stateful":1"#, r#""duplicating":0"#] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        for status in STATUS_NAMES {
            let info = AppInfo { status: status.0, ..info.clone() };
            assert_eq!(decode_app(&encode_app(&info)).unwrap(), info);
        }
    }

    #[test]
    fn what_is_not_taken_over_is_told() {
        let plain = br#"{"status":"app_status::AS_AVAILABLE","app_id":1,"partition_count":8,"is_stateful":1,
            "init_partition_count":8,"atomic_idempotent":1}"#;
        assert_eq!(left_out_of_app(plain).unwrap(), [""; 0]);
        assert_eq!(left_out_of_app(br#"{"status":"x","init_partition_count":-1}"#).unwrap(), [""; 0]);
        let full = br#"{"status":"app_status::AS_AVAILABLE","app_id":1,"partition_count":16,"is_stateful":0,
            "init_partition_count":8,"duplicating":1,"is_bulk_loading":1,"colour":"red"}"#;
        let told = left_out_of_app(full).unwrap();
        for (line, word) in
            told.iter().zip(["duplicated", "bulk load", "stateless", "split to 16", "\"colour\""])
        {
            assert!(line.contains(word), "{word}: {told:?}");
        }
        assert_eq!(told.len(), 5);
        assert!(left_out_of_app(b"[]").is_err());
        for (text, want) in [("", None), ("unlock", None), ("lock", Some("lock")), ("moved", Some("moved"))] {
            assert_eq!(not_for_use(text.as_bytes()).as_deref(), want);
        }
    }

    #[test]
    fn a_partition_as_the_reference_writes_it() {
        let text = br#"{"pid":"2.7","ballot":5,"max_replica_count":3,"primary":"10.0.0.1:34801",
            "secondaries":["10.0.0.2:34801","10.0.0.3:34801"],"last_drops":[],"last_committed_decree":9,
            "partition_flags":0,"hp_primary":"a.example:34801","hp_secondaries":["b.example:34801","c:1"],
            "hp_last_drops":[]}"#;
        let config = decode_partition(text).unwrap();
        assert_eq!(format!("{config:?}"), "2.7@5[P a.example:34801, S b.example:34801, S c:1]");
        let shown = String::from_utf8(encode_partition(&config)).unwrap();
        assert!(shown.contains(r#""primary":"invalid address""#), "{shown}");
        assert_eq!(decode_partition(shown.as_bytes()).unwrap(), config);

        let old = br#"{"pid":"2.7","ballot":5,"max_replica_count":3,"primary":"10.0.0.1:34801",
            "secondaries":["10.0.0.2:34801"],"last_drops":["invalid address"]}"#;
        let config = decode_partition(old).unwrap();
        assert_eq!(format!("{config:?}"), "2.7@5[P 10.0.0.1:34801, S 10.0.0.2:34801]");

        let nobody = PartitionConfig::unassigned(Gpid::new(1, 0), 3);
        assert_eq!(decode_partition(&encode_partition(&nobody)).unwrap(), nobody);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [&b""[..], b"[]", b"{", br#"{"status":"app_status::AS_X"}"#, br#"{"status":1}"#] {
            assert!(decode_app(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        for bad in [
            &b"{}"[..],
            br#"{"pid":"2"}"#,
            br#"{"pid":"2.1","primary":"nowhere"}"#,
            br#"{"pid":"2.1","secondaries":["x"]}"#,
            br#"{"pid":"2.1","ballot":"many"}"#,
        ] {
            assert!(decode_partition(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
