//! What can go wrong, in the words of a caller.

use pegasus_rpc::wire::Refusal;
use pegasus_types::ErrorCode;
use pegasus_types::data::StorageError;

use crate::retry::Failure;

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The arguments can not be sent; nothing was.
    #[error("{0}")]
    Invalid(String),
    #[error("table {0:?} does not exist")]
    NoTable(String),
    /// A server refused; nothing was changed.
    #[error("refused by the server: {0}")]
    Refused(Refusal),
    /// A meta-server refused an administrative request.
    #[error("refused by the meta-server: {code}{}", hint_text(.hint))]
    Meta {
        code: ErrorCode,
        /// What the server says about it; may be empty.
        hint: String,
    },
    /// The storage engine's answer: a number of `StorageError`.
    #[error("storage error {0} ({name})", name = storage_name(*.0))]
    Storage(i32),
    /// Not done in time. A write that was sent may have been applied, or may still be; it is safe to repeat
    /// what has the same effect twice.
    #[error("not done in time; the last attempt: {last}")]
    Timeout {
        last: String,
        /// In the last attempt a server was not reached: its name does not resolve, or nobody takes the connection.
        unreachable: bool,
    },
    /// incr, check_and_set or check_and_mutate was sent and its answer is not known: it may have been executed
    /// once, or not at all. It was not repeated. Read the value before deciding what to do.
    #[error("unclear whether it was executed, not repeated: {0}")]
    Unclear(String),
    /// A server answered something that does not belong to the question.
    #[error("answer that makes no sense: {0}")]
    Nonsense(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The time is over before anything was tried.
    pub(crate) fn no_time() -> Self {
        Self::Timeout { last: "there was no time for one".to_owned(), unreachable: false }
    }

    /// The time is over, and this is how the last attempt went.
    pub(crate) fn late(last: &Failure) -> Self {
        Self::Timeout { last: last.to_string(), unreachable: last.is_unreachable() }
    }

    /// The name that the server gave, if it refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(Refusal::Code(code)) | Self::Meta { code, .. } => Some(*code),
            _ => None,
        }
    }
}

fn hint_text(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!(" ({hint})") }
}

fn storage_name(code: i32) -> String {
    StorageError::from_code(code).map_or_else(|| "unknown".to_owned(), |error| format!("{error:?}"))
}

/// Ok for the storage code 0.
pub(crate) fn check_storage(code: i32) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::Storage(code)) }
}
