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
    write!(stream, "GET {path} HTTP/1.1\r\nhost: h\r\naccept: text/plain\r\nconnection: close\r\n\r\n")
        .expect("it listens");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer); // what came is looked at
    answer
}

/// A counter or gauge of the server, from its `/metrics`: the first of that name; 0 when there is none.
///
/// # Panics
/// When it cannot be reached.
pub fn metric(address: SocketAddrV4, name: &str) -> f64 {
    let text = http_get(address, "/metrics");
    text.lines().find_map(|line| value(line, name)).unwrap_or(0.0)
}

fn value(line: &str, name: &str) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (labels, value) = rest.rsplit_once(' ')?;
    (labels.is_empty() || labels.starts_with('{')).then(|| value.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_metrics() {
        for (line, expected) in [
            ("a_total 7", Some(7.0)),
            ("a_total{cluster=\"o n e\"} 1.5", Some(1.5)),
            ("a_total_more 7", None),
            ("# HELP a_total 7", None),
            ("a_total{x=\"y\"} NaNa", None),
        ] {
            assert_eq!(value(line, "a_total"), expected, "{line}");
        }
    }
}
