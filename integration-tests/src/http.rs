use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

/// A server on a busy machine answers within this time, or something is wrong with it.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Head and body of what a server answers.
///
/// # Panics
/// When it cannot be reached.
pub fn http_get(address: SocketAddrV4, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(ANSWER_WITHIN)).expect("a timeout can be set");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").expect("it listens");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer); // what came is looked at
    answer
}

/// A counter or gauge without labels from the server's `/metrics`; 0 when it has none of that name.
///
/// # Panics
/// When it cannot be reached.
pub fn metric(address: SocketAddrV4, name: &str) -> f64 {
    let text = http_get(address, "/metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(0.0)
}
