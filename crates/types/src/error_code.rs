//! The error names of the wire, once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Errors that clients know by name (wire-protocol.md 2.6). Only names of that list exist here: an
        /// unknown name costs most clients their connection.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum ErrorCode { $($(#[$doc])* $variant,)* }

        impl ErrorCode {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl FromStr for ErrorCode {
            type Err = UnknownErrorCode;
            fn from_str(s: &str) -> Result<Self, UnknownErrorCode> {
                match s { $($name => Ok(Self::$variant),)* _ => Err(UnknownErrorCode(s.to_owned())) }
            }
        }
    };
}

error_codes! {
    Ok = "ERR_OK",
    Unknown = "ERR_UNKNOWN",
    Timeout = "ERR_TIMEOUT",
    ServiceNotActive = "ERR_SERVICE_NOT_ACTIVE",
    /// Queued too long, or throttled.
    Busy = "ERR_BUSY",
    NetworkFailure = "ERR_NETWORK_FAILURE",
    /// Not the meta leader.
    ForwardToOthers = "ERR_FORWARD_TO_OTHERS",
    /// No such table, or no such replica on this node.
    ObjectNotFound = "ERR_OBJECT_NOT_FOUND",
    HandlerNotFound = "ERR_HANDLER_NOT_FOUND",
    InvalidVersion = "ERR_INVALID_VERSION",
    InvalidParameters = "ERR_INVALID_PARAMETERS",
    /// The prepare window is full.
    CapacityExceeded = "ERR_CAPACITY_EXCEEDED",
    /// Not the primary, or a primary that may not serve yet.
    InvalidState = "ERR_INVALID_STATE",
    InactiveState = "ERR_INACTIVE_STATE",
    NotEnoughMember = "ERR_NOT_ENOUGH_MEMBER",
    FileOperationFailed = "ERR_FILE_OPERATION_FAILED",
    InvalidData = "ERR_INVALID_DATA",
    IncompleteData = "ERR_INCOMPLETE_DATA",
    PathNotFound = "ERR_PATH_NOT_FOUND",
    PathAlreadyExist = "ERR_PATH_ALREADY_EXIST",
    StateFreezed = "ERR_STATE_FREEZED",
    LocalAppFailure = "ERR_LOCAL_APP_FAILURE",
    NotImplemented = "ERR_NOT_IMPLEMENTED",
    WrongTiming = "ERR_WRONG_TIMING",
    NoNeedOperate = "ERR_NO_NEED_OPERATE",
    Corruption = "ERR_CORRUPTION",
    TryAgain = "ERR_TRY_AGAIN",
    ClusterNotFound = "ERR_CLUSTER_NOT_FOUND",
    ReplicationFailure = "ERR_REPLICATION_FAILURE",
    AppExist = "ERR_APP_EXIST",
    AppNotExist = "ERR_APP_NOT_EXIST",
    AppDropped = "ERR_APP_DROPPED",
    BusyCreating = "ERR_BUSY_CREATING",
    BusyDropping = "ERR_BUSY_DROPPING",
    Expired = "ERR_EXPIRED",
    UnderRecovery = "ERR_UNDER_RECOVERY",
    OperationDisabled = "ERR_OPERATION_DISABLED",
    AclDeny = "ERR_ACL_DENY",
    Splitting = "ERR_SPLITTING",
    ParentPartitionMisused = "ERR_PARENT_PARTITION_MISUSED",
    ZookeeperOperation = "ERR_ZOOKEEPER_OPERATION",
    /// Not known to pypegasus3, which drops the connection (safety-rules.md 6).
    DiskInsufficient = "ERR_DISK_INSUFFICIENT",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown error name {0:?}")]
pub struct UnknownErrorCode(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for code in ErrorCode::ALL {
            assert_eq!(code.name().parse::<ErrorCode>().unwrap(), *code);
        }
        assert!("ERR_RETRY_EXHAUSTED".parse::<ErrorCode>().is_err());
    }
}
