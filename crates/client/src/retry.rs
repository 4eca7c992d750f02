//! What to do after an attempt failed, as a function (wire-protocol.md 7.3 and 10).

use pegasus_rpc::wire::{CallError, Refusal};
use pegasus_types::ErrorCode;

/// How an attempt can fail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("partition {0} has no primary")]
    NoPrimary(i32),
    /// No address: nothing was sent.
    #[error("cannot resolve {node}: {why}")]
    Resolve { node: String, why: String },
    /// No connection: nothing was sent.
    #[error("cannot connect to {address}: {why}")]
    Connect { address: String, why: String },
    #[error("{address}: {error}")]
    Call { address: String, error: CallError },
    /// Given up because the partition has another primary by now.
    #[error("{0} is silent, and not the primary any more")]
    Moved(String),
}

impl Failure {
    /// The server has not been reached at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Resolve { .. } | Self::Connect { .. })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after a pause; `refresh` = ask the meta-server for the partitions first.
    Again { refresh: bool },
    /// It may have been executed, and must not be executed twice.
    Unclear,
    /// The answer is final.
    Fail,
}

/// `repeatable` = executing the request twice does the same as once.
pub fn judge(failure: &Failure, repeatable: bool) -> Verdict {
    use ErrorCode::*;
    let error = match failure {
        Failure::NoPrimary(_) | Failure::Resolve { .. } | Failure::Connect { .. } => {
            return Verdict::Again { refresh: true };
        }
        // Only requests that may be repeated are given up for this.
        Failure::Moved(_) => return Verdict::Again { refresh: false },
        Failure::Call { error, .. } => error,
    };
    match error {
        CallError::Refused(Refusal::Code(code)) => match code {
            // Not here, or not any more.
            ObjectNotFound | InvalidState | InactiveState | ParentPartitionMisused => {
                Verdict::Again { refresh: true }
            }
            // Here, but not now.
            NotEnoughMember | CapacityExceeded | Busy | Splitting | TryAgain => {
                Verdict::Again { refresh: false }
            }
            // The server gave up waiting: what it waited for may still happen.
            Timeout | NetworkFailure | Unknown if repeatable => Verdict::Again { refresh: true },
            Timeout | NetworkFailure | Unknown => Verdict::Unclear,
            _ => Verdict::Fail,
        },
        CallError::Refused(Refusal::Other(_)) => Verdict::Fail,
        CallError::NotSent(_) => Verdict::Again { refresh: true },
        CallError::Lost(_) | CallError::Timeout if repeatable => Verdict::Again { refresh: true },
        CallError::Lost(_) | CallError::Timeout => Verdict::Unclear,
        // The server is of another kind than we think: asking again brings the same.
        CallError::Malformed(_) if repeatable => Verdict::Fail,
        CallError::Malformed(_) => Verdict::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use pegasus_rpc::wire::DecodeError;

    use super::*;

    fn call(error: CallError) -> Failure {
        Failure::Call { address: "127.0.0.1:1".to_owned(), error }
    }

    fn refused(code: ErrorCode) -> Failure {
        call(CallError::Refused(Refusal::Code(code)))
    }

    #[test]
    fn verdicts() {
        use ErrorCode::*;
        let elsewhere = Verdict::Again { refresh: true };
        let later = Verdict::Again { refresh: false };
        let lost = || call(CallError::Lost("reset".into()));
        let not_sent = call(CallError::NotSent("dead".into()));
        let connect = Failure::Connect { address: "127.0.0.1:1".into(), why: "refused".into() };
        let resolve = Failure::Resolve { node: "a:1".into(), why: "unknown".into() };
        for (failure, repeatable, once) in [
            (Failure::NoPrimary(3), elsewhere, elsewhere),
            (connect, elsewhere, elsewhere),
            (resolve, elsewhere, elsewhere),
            (not_sent, elsewhere, elsewhere),
            (lost(), elsewhere, Verdict::Unclear),
            (call(CallError::Timeout), elsewhere, Verdict::Unclear),
            (call(CallError::Malformed(DecodeError::Truncated)), Verdict::Fail, Verdict::Unclear),
            (refused(ObjectNotFound), elsewhere, elsewhere),
            (refused(InvalidState), elsewhere, elsewhere),
            (refused(InactiveState), elsewhere, elsewhere),
            (refused(ParentPartitionMisused), elsewhere, elsewhere),
            (refused(NotEnoughMember), later, later),
            (refused(CapacityExceeded), later, later),
            (refused(Busy), later, later),
            (refused(Splitting), later, later),
            (refused(Timeout), elsewhere, Verdict::Unclear),
            (refused(InvalidData), Verdict::Fail, Verdict::Fail),
            (refused(AclDeny), Verdict::Fail, Verdict::Fail),
            (refused(OperationDisabled), Verdict::Fail, Verdict::Fail),
            (call(CallError::Refused(Refusal::Other("ERR_NEW".into()))), Verdict::Fail, Verdict::Fail),
        ] {
            assert_eq!(judge(&failure, true), repeatable, "{failure}");
            assert_eq!(judge(&failure, false), once, "{failure}");
        }
    }

    /// Whatever may have been executed is never asked again when it must not be executed twice.
    #[test]
    fn unclear_is_never_repeated() {
        let errors = [
            CallError::NotSent(String::new()),
            CallError::Lost(String::new()),
            CallError::Timeout,
            CallError::Malformed(DecodeError::BadText),
        ];
        for error in errors {
            let unclear = error.is_unclear();
            let again = matches!(judge(&call(error.clone()), false), Verdict::Again { .. });
            assert!(!(unclear && again), "{error}");
        }
    }
}
