//! The client's errors in the store's terms. What matters most: was something changed, not changed, or is it
//! unknown.

use zookeeper::{Error, MultiWriteError};

use crate::memory_tree::parent;
use crate::store::{Op, StoreError};
use crate::zk_store::Options;

pub fn of_connect(error: Error, options: &Options) -> StoreError {
    let hosts = &options.hosts;
    match error {
        Error::AuthFailed => {
            let user = options.user.as_ref().map_or("nobody", |user| user.name.as_str());
            StoreError::Denied(format!("ZooKeeper at {hosts} as user {user}"))
        }
        Error::BadArguments(why) => StoreError::Failed(format!("ZooKeeper hosts {hosts:?}: {why}")),
        Error::Timeout | Error::NoHosts => StoreError::Unavailable(format!(
            "no ZooKeeper server of {hosts} answers (waited {:?})",
            options.session_timeout
        )),
        error => StoreError::Unavailable(format!("ZooKeeper at {hosts}: {error}")),
    }
}

/// Of a read: nothing was changed in any case.
pub fn of_read(error: Error, path: &str) -> StoreError {
    match of_write(error, &Op::Check { path: path.into(), version: None }) {
        StoreError::OutcomeUnknown(why) => StoreError::Unavailable(why),
        error => error,
    }
}

pub fn of_multi(error: MultiWriteError, ops: &[Op]) -> StoreError {
    let (source, at) = match error {
        MultiWriteError::OperationFailed { index, source } => (source, index),
        MultiWriteError::RequestFailed { source } => (source, 0),
    };
    match ops.get(at) {
        Some(op) => of_write(source, op),
        None => StoreError::OutcomeUnknown(format!("operation {at} of {}: {source}", ops.len())),
    }
}

fn of_write(error: Error, op: &Op) -> StoreError {
    let path = op.path().to_owned();
    let parent = || parent(op.path()).unwrap_or("/").to_owned();
    match error {
        Error::NoNode if matches!(op, Op::Create { .. }) => StoreError::NoNode(parent()),
        Error::NoNode => StoreError::NoNode(path),
        Error::NodeExists => StoreError::NodeExists(path),
        Error::BadVersion => {
            let wanted = match op {
                Op::Set { version, .. } | Op::Delete { version, .. } | Op::Check { version, .. } => *version,
                Op::Create { .. } => None,
            };
            StoreError::BadVersion { path, wanted: wanted.unwrap_or(-1) }
        }
        Error::NotEmpty => StoreError::NotEmpty(path),
        Error::NoChildrenForEphemerals => StoreError::NoChildren(parent()),
        Error::NoAuth | Error::InvalidAcl => StoreError::Denied(path),
        Error::BadArguments(_) => StoreError::BadPath(path),
        Error::SessionExpired | Error::ClientClosed | Error::AuthFailed => StoreError::SessionOver,
        // The server has refused the request before it looked at it.
        error @ (Error::SessionMoved | Error::NotReadOnly | Error::Throttled | Error::QuotaExceeded) => {
            StoreError::Unavailable(format!("{path}: {error}"))
        }
        error => StoreError::OutcomeUnknown(format!("{path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_unknown_and_not_done() {
        let create = Op::create("/a/b", "");
        let top = Op::create("/a", "");
        let set = Op::set("/a/b", "", 7);
        let s = |text: &str| text.to_owned();
        for (error, op, want) in [
            (Error::NoNode, &create, StoreError::NoNode(s("/a"))),
            (Error::NoNode, &top, StoreError::NoNode(s("/"))),
            (Error::NoNode, &set, StoreError::NoNode(s("/a/b"))),
            (Error::BadVersion, &set, StoreError::BadVersion { path: s("/a/b"), wanted: 7 }),
            (Error::NoChildrenForEphemerals, &create, StoreError::NoChildren(s("/a"))),
            (Error::NoAuth, &set, StoreError::Denied(s("/a/b"))),
            (Error::SessionExpired, &set, StoreError::SessionOver),
            (Error::SessionMoved, &set, StoreError::Unavailable(s("/a/b: session moved"))),
            (Error::Timeout, &set, StoreError::OutcomeUnknown(s("/a/b: timeout"))),
        ] {
            assert_eq!(of_write(error, op), want);
        }
        for error in
            [Error::ConnectionLoss, Error::UnexpectedError("x".into()), Error::UnexpectedErrorCode(-99)]
        {
            assert!(matches!(of_write(error.clone(), &set), StoreError::OutcomeUnknown(_)));
            assert!(matches!(of_read(error, "/a"), StoreError::Unavailable(_)));
        }
        let failed = MultiWriteError::OperationFailed { index: 1, source: Error::NodeExists };
        assert_eq!(of_multi(failed, &[set.clone(), create]), StoreError::NodeExists(s("/a/b")));
        let lost = MultiWriteError::RequestFailed { source: Error::ConnectionLoss };
        assert!(matches!(of_multi(lost, &[set]), StoreError::OutcomeUnknown(_)));
    }
}
