//! The RPC names of the client protocol, once (wire-protocol.md 3, admin-protocol.md 2).

macro_rules! rpcs {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// An RPC that this crate can decode. Every other name is answered with ERR_HANDLER_NOT_FOUND.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rpc { $($(#[$doc])* $variant,)* }

        impl Rpc {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Name of the answer. Clients look it up, so it is exactly the request's name and `_ACK`.
            pub const fn ack_name(self) -> &'static str {
                match self { $(Self::$variant => concat!($name, "_ACK"),)* }
            }

            pub fn from_name(name: &[u8]) -> Option<Self> {
                $(if name == $name.as_bytes() { return Some(Self::$variant); })*
                None
            }
        }
    };
}

// The commonest first: names are compared in this order.
rpcs! {
    Put = "RPC_RRDB_RRDB_PUT",
    Get = "RPC_RRDB_RRDB_GET",
    MultiPut = "RPC_RRDB_RRDB_MULTI_PUT",
    MultiGet = "RPC_RRDB_RRDB_MULTI_GET",
    Remove = "RPC_RRDB_RRDB_REMOVE",
    MultiRemove = "RPC_RRDB_RRDB_MULTI_REMOVE",
    Incr = "RPC_RRDB_RRDB_INCR",
    CheckAndSet = "RPC_RRDB_RRDB_CHECK_AND_SET",
    CheckAndMutate = "RPC_RRDB_RRDB_CHECK_AND_MUTATE",
    SortkeyCount = "RPC_RRDB_RRDB_SORTKEY_COUNT",
    Ttl = "RPC_RRDB_RRDB_TTL",
    BatchGet = "RPC_RRDB_RRDB_BATCH_GET",
    GetScanner = "RPC_RRDB_RRDB_GET_SCANNER",
    Scan = "RPC_RRDB_RRDB_SCAN",
    /// Never answered, not even with an error (wire-protocol.md rule 2).
    ClearScanner = "RPC_RRDB_RRDB_CLEAR_SCANNER",
    QueryConfig = "RPC_CM_QUERY_PARTITION_CONFIG_BY_INDEX",
    Negotiation = "RPC_NEGOTIATION",
    RemoteCommand = "RPC_CLI_CLI_CALL",
    CreateApp = "RPC_CM_CREATE_APP",
    DropApp = "RPC_CM_DROP_APP",
    RecallApp = "RPC_CM_RECALL_APP",
    ListApps = "RPC_CM_LIST_APPS",
    ListNodes = "RPC_CM_LIST_NODES",
    ClusterInfo = "RPC_CM_CLUSTER_INFO",
    UpdateAppEnv = "RPC_CM_UPDATE_APP_ENV",
    ControlMeta = "RPC_CM_CONTROL_META",
    ProposeBalancer = "RPC_CM_PROPOSE_BALANCER",
    DddDiagnose = "RPC_CM_DDD_DIAGNOSE",
    StartManualCompact = "RPC_CM_START_MANUAL_COMPACT",
    QueryManualCompact = "RPC_CM_QUERY_MANUAL_COMPACT_STATUS",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for &rpc in Rpc::ALL {
            assert_eq!(Rpc::from_name(rpc.name().as_bytes()), Some(rpc));
            assert_eq!(rpc.ack_name(), format!("{}_ACK", rpc.name()));
        }
        for unknown in ["", "RPC_RRDB_RRDB_PU", "RPC_RRDB_RRDB_PUT ", "RPC_RRDB_RRDB_DUPLICATE"] {
            assert_eq!(Rpc::from_name(unknown.as_bytes()), None, "{unknown}");
        }
    }
}
