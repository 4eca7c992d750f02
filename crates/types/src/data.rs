//! Requests and responses of the data operations, field for field as on the wire (wire-protocol.md 4.3).
//!
//! `rpc::wire` turns them into bytes and back, `storage::ops` executes them, `client` builds them. A field
//! that is absent in a request has its zero value here, so encoding a decoded request may add such a field
//! only where every client writes it; what is `Option` stays absent.
//!
//! In responses `app_id`, `partition_index`, `server` and `decree` are bookkeeping that the replica-server
//! fills in; `error` is a [`StorageError`] number.

use bytes::Bytes;

/// `error` in data responses: numbers of RocksDB's status codes (wire-protocol.md 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StorageError {
    Ok = 0,
    NotFound = 1,
    Corruption = 2,
    NotSupported = 3,
    InvalidArgument = 4,
    IoError = 5,
    /// There is more; what was gathered is in the response.
    Incomplete = 7,
    Aborted = 10,
    Busy = 11,
    /// The check of check_and_set or check_and_mutate did not pass.
    TryAgain = 13,
}

impl StorageError {
    pub const fn code(self) -> i32 {
        self as i32
    }

    pub fn from_code(code: i32) -> Option<Self> {
        use StorageError::*;
        [
            Ok,
            NotFound,
            Corruption,
            NotSupported,
            InvalidArgument,
            IoError,
            Incomplete,
            Aborted,
            Busy,
            TryAgain,
        ]
        .into_iter()
        .find(|e| e.code() == code)
    }
}

macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $n:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant = $n,)* }

        impl $name {
            /// None for a number that no client sends.
            pub const fn from_wire(n: i32) -> Option<Self> {
                match n { $($n => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

wire_enum! {
    /// How a pattern must lie in a key.
    FilterType { NoFilter = 0, MatchAnywhere = 1, MatchPrefix = 2, MatchPostfix = 3, }
}
wire_enum! {
    /// What check_and_set and check_and_mutate ask of the checked value.
    CheckType {
        NoCheck = 0,
        ValueNotExist = 1,
        ValueNotExistOrEmpty = 2,
        ValueExist = 3,
        ValueNotEmpty = 4,
        MatchAnywhere = 5,
        MatchPrefix = 6,
        MatchPostfix = 7,
        BytesLess = 8,
        BytesLessOrEqual = 9,
        BytesEqual = 10,
        BytesGreaterOrEqual = 11,
        BytesGreater = 12,
        IntLess = 13,
        IntLessOrEqual = 14,
        IntEqual = 15,
        IntGreaterOrEqual = 16,
        IntGreater = 17,
    }
}
wire_enum! {
    /// One step of check_and_mutate.
    MutateOperation { Put = 0, Delete = 1, }
}

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* })*
    };
}

// Enums travel as i32 and stay i32 here: an unknown number is answered with InvalidArgument, not dropped.
plain! {
    /// Keys are encoded keys ([`crate::hash::encode_key`]) unless said otherwise.
    UpdateRequest { key: Bytes, value: Bytes, expire_ts_seconds: i32, }
    UpdateResponse { error: i32, app_id: i32, partition_index: i32, decree: i64, server: String, }
    ReadResponse { error: i32, value: Bytes, app_id: i32, partition_index: i32, server: String, }
    TtlResponse { error: i32, ttl_seconds: i32, app_id: i32, partition_index: i32, server: String, }
    CountResponse { error: i32, count: i64, app_id: i32, partition_index: i32, server: String, }
    /// In multi operations `key` is the sort key, in scans the encoded key.
    KeyValue { key: Bytes, value: Bytes, expire_ts_seconds: Option<i32>, }
    MultiPutRequest { hash_key: Bytes, kvs: Vec<KeyValue>, expire_ts_seconds: i32, }
    MultiRemoveRequest { hash_key: Bytes, sort_keys: Vec<Bytes>, max_count: i64, }
    MultiRemoveResponse {
        error: i32, count: i64, app_id: i32, partition_index: i32, decree: i64, server: String,
    }
    MultiGetRequest {
        hash_key: Bytes,
        sort_keys: Vec<Bytes>,
        max_kv_count: i32,
        max_kv_size: i32,
        no_value: bool,
        start_sortkey: Bytes,
        stop_sortkey: Bytes,
        start_inclusive: bool,
        stop_inclusive: bool,
        sort_key_filter_type: i32,
        sort_key_filter_pattern: Bytes,
        reverse: bool,
    }
    MultiGetResponse { error: i32, kvs: Vec<KeyValue>, app_id: i32, partition_index: i32, server: String, }
    FullKey { hash_key: Bytes, sort_key: Bytes, }
    FullData { hash_key: Bytes, sort_key: Bytes, value: Bytes, }
    BatchGetRequest { keys: Vec<FullKey>, }
    BatchGetResponse { error: i32, data: Vec<FullData>, app_id: i32, partition_index: i32, server: String, }
    IncrRequest { key: Bytes, increment: i64, expire_ts_seconds: i32, }
    IncrResponse {
        error: i32, new_value: i64, app_id: i32, partition_index: i32, decree: i64, server: String,
    }
    CheckAndSetRequest {
        hash_key: Bytes,
        check_sort_key: Bytes,
        check_type: i32,
        check_operand: Bytes,
        set_diff_sort_key: bool,
        set_sort_key: Bytes,
        set_value: Bytes,
        set_expire_ts_seconds: i32,
        return_check_value: bool,
    }
    /// Of check_and_set and check_and_mutate.
    CheckAndSetResponse {
        error: i32,
        check_value_returned: bool,
        check_value_exist: bool,
        check_value: Bytes,
        app_id: i32,
        partition_index: i32,
        decree: i64,
        server: String,
    }
    Mutate { operation: i32, sort_key: Bytes, value: Bytes, set_expire_ts_seconds: i32, }
    CheckAndMutateRequest {
        hash_key: Bytes,
        check_sort_key: Bytes,
        check_type: i32,
        check_operand: Bytes,
        mutate_list: Vec<Mutate>,
        return_check_value: bool,
    }
    GetScannerRequest {
        start_key: Bytes,
        stop_key: Bytes,
        start_inclusive: bool,
        stop_inclusive: bool,
        batch_size: i32,
        no_value: bool,
        hash_key_filter_type: i32,
        hash_key_filter_pattern: Bytes,
        sort_key_filter_type: i32,
        sort_key_filter_pattern: Bytes,
        /// Absent = true.
        validate_partition_hash: Option<bool>,
        return_expire_ts: Option<bool>,
        full_scan: Option<bool>,
        only_return_count: Option<bool>,
    }
    ScanRequest { context_id: i64, }
    ScanResponse {
        error: i32,
        kvs: Vec<KeyValue>,
        context_id: i64,
        app_id: i32,
        partition_index: i32,
        server: String,
        /// Only when `only_return_count` was asked for.
        kv_count: Option<i32>,
    }
}

/// `context_id` of a scan that has reached its end.
pub const SCAN_COMPLETED: i64 = -1;

/// A write as a client asked for it: not yet resolved (design.md 1, decision 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteRequest {
    Put(UpdateRequest),
    Remove { key: Bytes },
    MultiPut(MultiPutRequest),
    MultiRemove(MultiRemoveRequest),
    Incr(IncrRequest),
    CheckAndSet(CheckAndSetRequest),
    CheckAndMutate(CheckAndMutateRequest),
}

/// Answers to [`WriteRequest`], in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteResponse {
    /// Of put, remove and multi_put.
    Update(UpdateResponse),
    MultiRemove(MultiRemoveResponse),
    Incr(IncrResponse),
    /// Of check_and_set and check_and_mutate.
    Check(CheckAndSetResponse),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadRequest {
    Get {
        key: Bytes,
    },
    Ttl {
        key: Bytes,
    },
    SortkeyCount {
        hash_key: Bytes,
    },
    MultiGet(MultiGetRequest),
    BatchGet(BatchGetRequest),
    GetScanner(GetScannerRequest),
    Scan(ScanRequest),
    /// Has no answer, not even an error (wire-protocol.md rule 2).
    ClearScanner {
        context_id: i64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadResponseBody {
    Get(ReadResponse),
    Ttl(TtlResponse),
    SortkeyCount(CountResponse),
    MultiGet(MultiGetResponse),
    BatchGet(BatchGetResponse),
    Scan(ScanResponse),
}

impl WriteRequest {
    /// False of incr, check_and_set and check_and_mutate: never to be repeated after an unclear failure
    /// (safety-rules.md 3.5).
    pub const fn is_idempotent(&self) -> bool {
        match self {
            Self::Put(_) | Self::Remove { .. } | Self::MultiPut(_) | Self::MultiRemove(_) => true,
            Self::Incr(_) | Self::CheckAndSet(_) | Self::CheckAndMutate(_) => false,
        }
    }
}
