//! Messages between clients and the meta-server: where partitions are, and the administration of tables
//! (wire-protocol.md 4.3 and 7.1, admin-protocol.md 3). Text and numbers as on the wire.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use bytes::{BufMut, Bytes};
use pegasus_types::{AppInfo, AppStatus, Ballot, Decree, ErrorCode, Gpid, Node, PartitionConfig};

use super::thrift::{DecodeError, ErrorName, Reader, Value, WireGpid, Writer, ty, wire_struct};

/// A server's address, or none. Says struct, is an i64. Clients know IPv4 only (wire-protocol.md rule 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Address(pub Option<SocketAddrV4>);

impl Address {
    /// Of a node that is named by an IPv4 address; none for one with a host name, which has to be resolved
    /// first, and for no node.
    pub fn of(node: Option<&Node>) -> Self {
        Self(node.and_then(Node::ipv4).map(|(ip, port)| SocketAddrV4::new(ip, port)))
    }

    pub fn node(self) -> Option<Node> {
        self.0.map(|address| Node::new(address.to_string()))
    }
}

impl From<SocketAddrV4> for Address {
    fn from(address: SocketAddrV4) -> Self {
        Self(Some(address))
    }
}

impl Value for Address {
    const TYPE: u8 = ty::STRUCT;
    const MIN_BYTES: usize = 8;

    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        let raw = r.i64()?.cast_unsigned();
        let [a, b, c, d, port_high, port_low, _, kind] = raw.to_be_bytes();
        let port = u16::from_be_bytes([port_high, port_low]);
        Ok(Self((kind == 1).then(|| SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port))))
    }

    /// No address is eight zero bytes.
    fn write(&self, w: &mut Writer<'_>) {
        let raw = self.0.map_or(0, |address| {
            (u64::from(u32::from(*address.ip())) << 32) | (u64::from(address.port()) << 16) | 1
        });
        w.buf.put_u64(raw);
    }

    #[cfg(test)]
    fn from_json(json: &serde_json::Value, _: &mut Vec<u64>) -> Self {
        Self(Some(json.as_str().unwrap().parse().unwrap()).filter(|a: &SocketAddrV4| a.port() != 0))
    }
}

/// A `host_port`, which newer servers send beside addresses and which we never write (wire-protocol.md
/// rule 1): read only to get past it.
#[derive(Default)]
struct HostPort;

impl Value for HostPort {
    const TYPE: u8 = ty::STRUCT;
    const MIN_BYTES: usize = 7;

    fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        r.bytes()?;
        r.i16()?;
        r.u8()?;
        Ok(Self)
    }

    fn write(&self, _: &mut Writer<'_>) {}

    fn is_present(&self) -> bool {
        false
    }

    #[cfg(test)]
    fn from_json(_: &serde_json::Value, _: &mut Vec<u64>) -> Self {
        Self
    }
}

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $id:literal $field:ident: $ty:ty,)*
        $(; ignoring $($skip_id:literal $skip:ty),*)? })*) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* })*
        wire_struct! { $($name { $($id $field,)* $(; ignoring $($skip_id $skip),*)? })* }
    };
}

messages! {
    QueryConfigRequest {
        1 app_name: String,
        /// Empty = all. Indices out of range are ignored; if none is left, all are returned.
        2 partition_indices: Vec<i32>,
    }
    QueryConfigResponse {
        1 err: ErrorName,
        2 app_id: i32,
        3 partition_count: i32,
        4 is_stateful: bool,
        5 partitions: Vec<PartitionConfiguration>,
    }
    PartitionConfiguration {
        1 pid: WireGpid,
        2 ballot: i64,
        3 max_replica_count: i32,
        4 primary: Address,
        5 secondaries: Vec<Address>,
        6 last_drops: Vec<Address>,
        7 last_committed_decree: i64,
        8 partition_flags: i32,
        ; ignoring 9 HostPort, 10 Vec<HostPort>, 11 Vec<HostPort>
    }

    /// What clients are told of a table.
    AppInfoMessage {
        /// `AppStatus` as a number.
        1 status: i32,
        2 app_type: String,
        3 app_name: String,
        4 app_id: i32,
        5 partition_count: i32,
        6 envs: BTreeMap<String, String>,
        7 is_stateful: bool,
        8 max_replica_count: i32,
        9 expire_second: i64,
        10 create_second: i64,
        11 drop_second: i64,
        12 duplicating: bool,
        13 init_partition_count: i32,
        14 is_bulk_loading: bool,
        15 atomic_idempotent: bool,
    }
    CreateAppRequest { 1 app_name: String, 2 options: CreateAppOptions, }
    CreateAppOptions {
        1 partition_count: i32,
        2 replica_count: i32,
        3 success_if_exist: bool,
        4 app_type: String,
        5 is_stateful: bool,
        6 envs: BTreeMap<String, String>,
        7 atomic_idempotent: Option<bool>,
    }
    CreateAppResponse { 1 err: ErrorName, 2 appid: i32, }
    DropAppRequest { 1 app_name: String, 2 options: DropAppOptions, }
    DropAppOptions { 1 success_if_not_exist: bool, 2 reserve_seconds: Option<i64>, }
    DropAppResponse { 1 err: ErrorName, }
    RecallAppRequest {
        1 app_id: i32,
        /// Empty = keep the name.
        2 new_app_name: String,
    }
    RecallAppResponse { 1 err: ErrorName, 2 info: AppInfoMessage, }
    ListAppsRequest {
        /// 0 = all, else tables with exactly this status.
        1 status: i32,
        2 app_name_pattern: Option<String>,
        3 match_type: Option<i32>,
    }
    ListAppsResponse { 1 err: ErrorName, 2 infos: Vec<AppInfoMessage>, 3 hint_message: Option<String>, }
    ListNodesRequest {
        /// 0 = all, 1 = alive, 2 = not alive.
        1 status: i32,
    }
    NodeInfo { 1 status: i32, 2 node: Address, ; ignoring 3 HostPort }
    ListNodesResponse { 1 err: ErrorName, 2 infos: Vec<NodeInfo>, }
    ClusterInfoRequest {}
    /// Two lists of equal length (keys: admin-protocol.md 4.3).
    ClusterInfoResponse { 1 err: ErrorName, 2 keys: Vec<String>, 3 values: Vec<String>, }
    UpdateAppEnvRequest {
        1 app_name: String,
        /// 1 = set, 2 = delete, 3 = clear.
        2 op: i32,
        3 keys: Option<Vec<String>>,
        4 values: Option<Vec<String>>,
        5 clear_prefix: Option<String>,
    }
    UpdateAppEnvResponse { 1 err: ErrorName, 2 hint_message: String, }
    ControlMetaRequest {
        /// `meta_function_level`; [`LEVEL_READ_ONLY`] only asks.
        1 level: i32,
    }
    ControlMetaResponse { 1 err: ErrorName, 2 old_level: i32, }
    /// One step of a move, see the `CONFIG_` constants.
    ProposalAction {
        /// Who does it; none = the primary.
        1 target: Address,
        2 node: Address,
        3 kind: i32,
        ; ignoring 5 HostPort, 6 HostPort
    }
    BalancerRequest {
        1 gpid: WireGpid,
        2 action_list: Vec<ProposalAction>,
        3 force: Option<bool>,
        4 balance_type: Option<i32>,
    }
    BalancerResponse { 1 err: ErrorName, }
    DddDiagnoseRequest {
        /// -1 as table or as index: all.
        1 pid: WireGpid,
    }
    /// A node that is or was a member of a partition without living members.
    DddNodeInfo {
        1 node: Address,
        /// 0 = not known.
        2 drop_time_ms: i64,
        3 is_alive: bool,
        /// It has told this leader what it holds.
        4 is_collected: bool,
        /// -1 = it has no copy, as far as known; so for the decrees.
        5 ballot: i64,
        6 last_committed_decree: i64,
        7 last_prepared_decree: i64,
    }
    DddPartitionInfo { 1 config: PartitionConfiguration, 2 dropped: Vec<DddNodeInfo>, 3 reason: String, }
    DddDiagnoseResponse { 1 err: ErrorName, 2 partitions: Vec<DddPartitionInfo>, }
    StartManualCompactRequest {
        1 app_name: String,
        /// Unix seconds; none = now.
        2 trigger_time: Option<i64>,
        3 target_level: Option<i32>,
        4 bottommost: Option<bool>,
        /// Per server; 0 = as it is set.
        5 max_running_count: Option<i32>,
    }
    StartManualCompactResponse { 1 err: ErrorName, 2 hint_msg: String, }
    QueryManualCompactRequest { 1 app_name: String, }
    QueryManualCompactResponse {
        1 err: ErrorName,
        2 hint_msg: String,
        /// Percent.
        3 progress: Option<i32>,
    }
    NegotiationMessage { 1 status: i32, 2 msg: Bytes, }
    /// A command that an operator typed.
    RemoteCommand { 1 cmd: String, 2 arguments: Vec<String>, }
}

/// `status` of a negotiation with a server that does not authenticate.
pub const SASL_AUTH_DISABLE: i32 = 9;
/// `op` of [`UpdateAppEnvRequest`].
pub const APP_ENV_SET: i32 = 1;
pub const APP_ENV_DEL: i32 = 2;
pub const APP_ENV_CLEAR: i32 = 3;
/// Not a level: a request that only asks for the present one.
pub const LEVEL_READ_ONLY: i32 = 10_000;

/// `kind` in [`ProposalAction`] (`config_type` of the reference).
pub const CONFIG_ASSIGN_PRIMARY: i32 = 1;
pub const CONFIG_UPGRADE_TO_PRIMARY: i32 = 2;
pub const CONFIG_ADD_SECONDARY: i32 = 3;
pub const CONFIG_DOWNGRADE_TO_SECONDARY: i32 = 5;
pub const CONFIG_DOWNGRADE_TO_INACTIVE: i32 = 6;
pub const CONFIG_REMOVE: i32 = 7;
pub const CONFIG_ADD_SECONDARY_FOR_LB: i32 = 8;

/// `status` in [`NodeInfo`].
pub const NODE_ALIVE: i32 = 1;
/// `status` in [`NodeInfo`].
pub const NODE_UNALIVE: i32 = 2;

impl PartitionConfiguration {
    /// As clients see it. `address` resolves a node's name; a node that does not resolve is left out.
    pub fn new(config: &PartitionConfig, address: impl Fn(&Node) -> Option<SocketAddrV4>) -> Self {
        let known = |nodes: &[Node]| nodes.iter().filter_map(&address).map(Address::from).collect();
        Self {
            pid: WireGpid(config.gpid),
            ballot: config.ballot.0,
            max_replica_count: config.max_replica_count,
            primary: Address(config.primary.as_ref().and_then(&address)),
            secondaries: known(&config.secondaries),
            last_drops: known(&config.last_drops),
            last_committed_decree: config.last_committed.0,
            partition_flags: config.partition_flags,
        }
    }

    pub fn gpid(&self) -> Gpid {
        self.pid.0
    }

    /// With nodes named by their addresses.
    pub fn to_config(&self) -> PartitionConfig {
        let nodes = |addresses: &[Address]| addresses.iter().filter_map(|address| address.node()).collect();
        PartitionConfig {
            gpid: self.gpid(),
            ballot: Ballot(self.ballot),
            max_replica_count: self.max_replica_count,
            primary: self.primary.node(),
            secondaries: nodes(&self.secondaries),
            last_drops: nodes(&self.last_drops),
            last_committed: Decree(self.last_committed_decree),
            partition_flags: self.partition_flags,
        }
    }
}

impl QueryConfigResponse {
    pub fn error(code: ErrorCode) -> Self {
        Self { err: ErrorName(code), ..Self::default() }
    }

    /// Not the leader: the one partition in it carries the leader's address, when that is known.
    pub fn forward(leader: Option<SocketAddrV4>) -> Self {
        let partitions = leader
            .map(|leader| PartitionConfiguration { primary: leader.into(), ..Default::default() })
            .into_iter()
            .collect();
        Self { partitions, ..Self::error(ErrorCode::ForwardToOthers) }
    }
}

impl From<&AppInfo> for AppInfoMessage {
    fn from(app: &AppInfo) -> Self {
        Self {
            status: app.status as i32,
            app_type: app.app_type.clone(),
            app_name: app.name.clone(),
            app_id: app.app_id,
            partition_count: app.partition_count,
            envs: app.envs.clone(),
            is_stateful: true,
            max_replica_count: app.max_replica_count,
            expire_second: app.expire_second,
            create_second: app.create_second,
            drop_second: app.drop_second,
            duplicating: false,
            init_partition_count: -1,
            is_bulk_loading: false,
            atomic_idempotent: false,
        }
    }
}

impl From<AppInfoMessage> for AppInfo {
    fn from(app: AppInfoMessage) -> Self {
        Self {
            app_id: app.app_id,
            name: app.app_name,
            app_type: app.app_type,
            status: AppStatus::from_wire(app.status).unwrap_or_default(),
            partition_count: app.partition_count,
            max_replica_count: app.max_replica_count,
            envs: app.envs,
            create_second: app.create_second,
            drop_second: app.drop_second,
            expire_second: app.expire_second,
        }
    }
}
