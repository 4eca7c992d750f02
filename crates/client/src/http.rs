//! `GET` of what a server tells over HTTP on its port, for tools.

use pegasus_types::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Metrics of a node with thousands of partitions have some MB.
const BODY_BYTES_MAX: usize = 32 << 20;

/// The body of a GET, in the oldest and simplest way: the answer ends with the connection. Waits for ever: callers set
/// a time. The error tells why there is no body.
pub async fn http_get(node: &Node, path: &str) -> Result<String, String> {
    let fail = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let mut stream = TcpStream::connect(node.as_str()).await.map_err(|error| fail("connect", error))?;
    let request =
        format!("GET {path} HTTP/1.0\r\nhost: {node}\r\naccept: text/plain, application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| fail("ask", error))?;
    let mut bytes = Vec::new();
    let mut limited = stream.take(BODY_BYTES_MAX as u64 + 1);
    limited.read_to_end(&mut bytes).await.map_err(|error| fail("read", error))?;
    if bytes.len() > BODY_BYTES_MAX {
        return Err(format!("{path} has more than {BODY_BYTES_MAX} bytes"));
    }
    body(String::from_utf8(bytes).map_err(|_| format!("{path} is not text"))?)
}

fn body(answer: String) -> Result<String, String> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err("not an HTTP answer".to_owned());
    };
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!("answered {status:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let good = "HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\na 1\n\r\n\r\n";
        assert_eq!(body(good.to_owned()), Ok("a 1\n\r\n\r\n".to_owned()));
        for bad in
            ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 503 Service Unavailable\r\n\r\nno", "SSH-2.0\r\n\r\n"]
        {
            assert!(body(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
