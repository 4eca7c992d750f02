//! Field ids of the data operations (wire-protocol.md 4.3); the structs themselves are nouns of
//! [`pegasus_types::data`].

use bytes::Bytes;
use pegasus_types::data::*;

use super::thrift::wire_struct;

wire_struct! {
    UpdateRequest { 1 key, 2 value, 3 expire_ts_seconds; ignoring 7 Bytes }
    UpdateResponse { 1 error, 2 app_id, 3 partition_index, 4 decree, 5 server }
    ReadResponse { 1 error, 2 value, 3 app_id, 4 partition_index, 6 server }
    TtlResponse { 1 error, 2 ttl_seconds, 3 app_id, 4 partition_index, 6 server }
    CountResponse { 1 error, 2 count, 3 app_id, 4 partition_index, 6 server }
    KeyValue { 1 key, 2 value, 3 expire_ts_seconds }
    MultiPutRequest { 1 hash_key, 2 kvs, 3 expire_ts_seconds }
    MultiRemoveRequest { 1 hash_key, 2 sort_keys, 3 max_count }
    MultiRemoveResponse { 1 error, 2 count, 3 app_id, 4 partition_index, 5 decree, 6 server }
    MultiGetRequest {
        1 hash_key, 2 sort_keys, 3 max_kv_count, 4 max_kv_size, 5 no_value, 6 start_sortkey, 7 stop_sortkey,
        8 start_inclusive, 9 stop_inclusive, 10 sort_key_filter_type, 11 sort_key_filter_pattern, 12 reverse,
    }
    MultiGetResponse { 1 error, 2 kvs, 3 app_id, 4 partition_index, 6 server }
    FullKey { 1 hash_key, 2 sort_key }
    FullData { 1 hash_key, 2 sort_key, 3 value }
    BatchGetRequest { 1 keys }
    BatchGetResponse { 1 error, 2 data, 3 app_id, 4 partition_index, 6 server }
    IncrRequest { 1 key, 2 increment, 3 expire_ts_seconds }
    IncrResponse { 1 error, 2 new_value, 3 app_id, 4 partition_index, 5 decree, 6 server }
    CheckAndSetRequest {
        1 hash_key, 2 check_sort_key, 3 check_type, 4 check_operand, 5 set_diff_sort_key, 6 set_sort_key,
        7 set_value, 8 set_expire_ts_seconds, 9 return_check_value,
    }
    CheckAndSetResponse {
        1 error, 2 check_value_returned, 3 check_value_exist, 4 check_value, 5 app_id, 6 partition_index,
        7 decree, 8 server,
    }
    Mutate { 1 operation, 2 sort_key, 3 value, 4 set_expire_ts_seconds }
    CheckAndMutateRequest {
        1 hash_key, 2 check_sort_key, 3 check_type, 4 check_operand, 5 mutate_list, 6 return_check_value,
    }
    GetScannerRequest {
        1 start_key, 2 stop_key, 3 start_inclusive, 4 stop_inclusive, 5 batch_size, 6 no_value,
        7 hash_key_filter_type, 8 hash_key_filter_pattern, 9 sort_key_filter_type,
        10 sort_key_filter_pattern, 11 validate_partition_hash, 12 return_expire_ts, 13 full_scan,
        14 only_return_count,
    }
    ScanRequest { 1 context_id }
    ScanResponse { 1 error, 2 kvs, 3 context_id, 4 app_id, 5 partition_index, 6 server, 7 kv_count }
}
