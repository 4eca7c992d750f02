//! Rows that tests write and count.

use std::time::{Duration, Instant};

use pegasus_rpc::wire::client::CallError;
use pegasus_rpc::wire::frame::RequestHead;
use pegasus_rpc::wire::request::{Request, Response};
use pegasus_types::Node;
use pegasus_types::data::*;

use super::{Client, FakeMeta, PARTITIONS, TestNode, WITHIN};

/// Rows of `bytes` each, all over the table.
pub async fn fill_with(client: &Client<'_>, name: &str, rows: usize, bytes: usize) {
    const AT_ONCE: usize = 16;
    let value = &"v".repeat(bytes);
    for first in (0..rows).step_by(AT_ONCE) {
        let puts = (first..rows.min(first + AT_ONCE)).map(|i| async move {
            client.put(&format!("{name}{i}"), "s", value).await;
        });
        futures::future::join_all(puts).await;
    }
}

/// Rows of all partitions as `node` has them, as far as it answers.
async fn rows_on(client: &Client<'_>, node: &Node) -> Result<usize, CallError> {
    let lost = |error: std::io::Error| CallError::NotSent(error.to_string());
    let connection = client.connection(node).await.map_err(lost)?;
    let mut rows = 0;
    for index in 0..PARTITIONS {
        let head = RequestHead { is_backup: true, ..client.head(index) };
        let scan = GetScannerRequest {
            start_key: bytes::Bytes::from_static(b"\0\0"),
            stop_key: bytes::Bytes::from_static(b"\xff\xff"),
            start_inclusive: true,
            only_return_count: Some(true),
            ..Default::default()
        };
        let mut request = Request::Read(ReadRequest::GetScanner(scan));
        loop {
            let Response::Read(ReadResponseBody::Scan(page)) =
                connection.call(head, &request, WITHIN).await?
            else {
                panic!()
            };
            assert_eq!(page.error, 0);
            rows += usize::try_from(page.kv_count.unwrap()).unwrap();
            if page.context_id == SCAN_COMPLETED {
                break;
            }
            request = Request::Read(ReadRequest::Scan(ScanRequest { context_id: page.context_id }));
        }
    }
    Ok(rows)
}

/// Has `node` added wherever it is no member, until it has so many rows.
pub async fn until_rows(meta: &FakeMeta, client: &Client<'_>, node: &TestNode, rows: usize) {
    let begun = Instant::now();
    loop {
        meta.add_everywhere(&node.node).await;
        match rows_on(client, &node.node).await {
            Ok(counted) if counted == rows => return,
            other => assert!(begun.elapsed() < Duration::from_secs(30), "{other:?} rows of {rows}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
