//! As much of Redis's protocol as the bench needs.

use std::net::SocketAddrV4;

use anyhow::{Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const READ_BYTES: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Status,
    Error(String),
    Int(i64),
    Bulk(Option<Bytes>),
}

#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    input: BytesMut,
}

impl Connection {
    pub async fn open(address: SocketAddrV4) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, out: Vec::new(), input: BytesMut::new() })
    }

    /// Adds a command to what the next [`Self::exchange`] sends.
    pub fn queue(&mut self, words: &[&[u8]]) {
        self.out.extend(format!("*{}\r\n", words.len()).bytes());
        for word in words {
            self.out.extend(format!("${}\r\n", word.len()).bytes());
            self.out.extend_from_slice(word);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    /// Sends what is queued and takes `replies` replies.
    pub async fn exchange(&mut self, replies: usize) -> Result<Vec<Reply>> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        let mut got = Vec::with_capacity(replies);
        while got.len() < replies {
            if let Some(reply) = take_reply(&mut self.input)? {
                got.push(reply);
                continue;
            }
            self.input.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                bail!("closed by redis");
            }
        }
        Ok(got)
    }
}

/// Takes one whole reply off the front; None when it is not complete yet.
fn take_reply(input: &mut BytesMut) -> Result<Option<Reply>> {
    let Some(line_len) = input.windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
    let line = String::from_utf8_lossy(&input[..line_len]).into_owned();
    let rest = line.get(1..).unwrap_or_default();
    let head = line_len + 2;
    let reply = match line.as_bytes().first() {
        Some(b'+') => Reply::Status,
        Some(b'-') => Reply::Error(rest.to_owned()),
        Some(b':') => Reply::Int(rest.parse()?),
        Some(b'$') if rest == "-1" => Reply::Bulk(None),
        Some(b'$') => {
            let len: usize = rest.parse()?;
            if input.len() < head + len + 2 {
                return Ok(None);
            }
            input.advance(head);
            let value = input.split_to(len).freeze();
            input.advance(2);
            return Ok(Some(Reply::Bulk(Some(value))));
        }
        _ => bail!("redis says {line:?}"),
    };
    input.advance(head);
    Ok(Some(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_taken_whole() {
        let stream = b"+OK\r\n:-2\r\n$3\r\na\r\n\r\n$-1\r\n-ERR no\r\n$0\r\n\r\n";
        let want = [
            Reply::Status,
            Reply::Int(-2),
            Reply::Bulk(Some(Bytes::from_static(b"a\r\n"))),
            Reply::Bulk(None),
            Reply::Error("ERR no".into()),
            Reply::Bulk(Some(Bytes::new())),
        ];
        let mut input = BytesMut::new();
        let mut got = Vec::new();
        for byte in stream {
            input.extend([*byte]);
            got.extend(take_reply(&mut input).unwrap());
        }
        assert_eq!(got, want);
        assert!(input.is_empty());
        assert!(take_reply(&mut BytesMut::from(&b"?\r\n"[..])).is_err());
    }
}
