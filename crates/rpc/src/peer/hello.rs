//! The first exchange on every peer connection.
//!
//! ```text
//! dialer                                    acceptor
//!   "PGR1" | len u16 | version u16 | Hello  -->
//!                                          <--  len u16 | version u16 | HelloReply
//! ```
//!
//! `len` counts what follows it; all integers little-endian; bodies in postcard. The body is read only when
//! the version is ours, so that a later version may change it. Until the hello is accepted a connection may
//! send 1 KiB and takes at most [`HELLO_TIMEOUT`] (safety-rules.md 6).

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use pegasus_types::Node;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// First bytes of a peer connection; the listener tells protocols apart by them.
pub const PREFACE: [u8; 4] = *b"PGR1";
/// Of everything that is said on peer connections: the services' messages are positional (postcard), so any
/// change of them raises it. A test holds their bytes (tests/golden.rs).
pub const PROTOCOL_VERSION: u16 = 1;
/// A hello or its reply that is longer is no hello.
pub const MAX_HELLO_BYTES: usize = 1 << 10;
/// The acceptor waits this long for a hello: a stranger must not hold a connection slot.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// Who this process is; shared by everything that dials and accepts in it.
#[derive(Debug)]
pub struct Identity {
    /// The address that the process publishes.
    pub node: Node,
    /// Random per process start.
    pub incarnation: u64,
    cluster_id: RefCell<String>,
}

impl Identity {
    /// `cluster_id` is empty while it is not known.
    pub fn new(node: Node, incarnation: u64, cluster_id: impl Into<String>) -> Self {
        Self { node, incarnation, cluster_id: RefCell::new(cluster_id.into()) }
    }

    pub fn cluster_id(&self) -> String {
        self.cluster_id.borrow().clone()
    }

    /// Takes `cluster_id` as ours if we had none. False when we belong to another cluster.
    pub fn learn_cluster_id(&self, cluster_id: &str) -> bool {
        let mut ours = self.cluster_id.borrow_mut();
        if ours.is_empty() {
            cluster_id.clone_into(&mut ours);
        }
        cluster_id.is_empty() || *ours == cluster_id
    }
}

/// What a connection is for. Each has its own, so that a copy never delays a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Heartbeats, beacons, membership: small, and late is bad.
    Control,
    /// Prepares and their answers: many, batched, in order.
    Replication,
    /// Learning and reports: large, and may wait.
    Bulk,
}

impl Class {
    pub const ALL: [Self; 3] = [Self::Control, Self::Replication, Self::Bulk];
}

/// Which tarpc service the dialer expects behind the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Service {
    Replica,
    Meta,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Empty while the dialer does not know it.
    pub cluster_id: String,
    pub from: Node,
    pub incarnation: u64,
    pub service: Service,
    pub class: Class,
    /// Whom the dialer wants to reach. A replica-server refuses to be taken for another node (an address that
    /// was given to another machine, a stale name); a meta-server has many names and does not look.
    pub to: Node,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum HelloReply {
    Accepted(Accepted),
    Refused(Refusal),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Empty while the acceptor does not know it.
    pub cluster_id: String,
    pub node: Node,
    pub incarnation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("it speaks protocol version {0}, we speak {PROTOCOL_VERSION}")]
    OtherVersion(u16),
    #[error("it belongs to cluster {0}")]
    OtherCluster(String),
    #[error("it is a {0:?} server")]
    OtherService(Service),
    #[error("it is node {0}")]
    OtherNode(Node),
}

#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no hello within {HELLO_TIMEOUT:?}")]
    Timeout,
    #[error("what came is no hello: {0}")]
    Garbage(&'static str),
    #[error("refused: {0}")]
    Refused(Refusal),
}

/// Who is at the other end of an accepted connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub node: Node,
    pub incarnation: u64,
    pub class: Class,
    /// Empty when the dialer did not know it.
    pub cluster_id: String,
}

/// The dialer's side.
pub(crate) async fn greet<S>(stream: &mut S, hello: &Hello) -> Result<Accepted, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut message = PREFACE.to_vec();
    message.extend(encode(hello)?);
    stream.write_all(&message).await?;
    stream.flush().await?;
    let (version, body) = read_message(stream).await?;
    if version != PROTOCOL_VERSION {
        return Err(HelloError::Refused(Refusal::OtherVersion(version)));
    }
    match decode::<HelloReply>(&body)? {
        HelloReply::Accepted(accepted) => {
            let ours = &hello.cluster_id;
            if !ours.is_empty() && !accepted.cluster_id.is_empty() && *ours != accepted.cluster_id {
                return Err(HelloError::Refused(Refusal::OtherCluster(accepted.cluster_id)));
            }
            Ok(accepted)
        }
        HelloReply::Refused(refusal) => Err(HelloError::Refused(refusal)),
    }
}

/// The acceptor's side, preface included. On a refusal the reason has been sent.
pub(crate) async fn admit<S>(stream: &mut S, me: &Identity, service: Service) -> Result<Remote, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    timeout(HELLO_TIMEOUT, admit_unhurried(stream, me, service)).await.map_err(|_| HelloError::Timeout)?
}

async fn admit_unhurried<S>(stream: &mut S, me: &Identity, service: Service) -> Result<Remote, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != PREFACE {
        return Err(HelloError::Garbage("wrong preface"));
    }
    let (version, body) = read_message(stream).await?;
    let judged = if version == PROTOCOL_VERSION {
        let hello = decode::<Hello>(&body)?;
        if !hello.from.as_str().bytes().all(|b| b.is_ascii_graphic()) {
            return Err(HelloError::Garbage("unprintable address"));
        }
        judge(hello, me, service)
    } else {
        Err(Refusal::OtherVersion(PROTOCOL_VERSION))
    };
    let reply = match &judged {
        Ok(_) => HelloReply::Accepted(Accepted {
            cluster_id: me.cluster_id(),
            node: me.node.clone(),
            incarnation: me.incarnation,
        }),
        Err(refusal) => HelloReply::Refused(refusal.clone()),
    };
    stream.write_all(&encode(&reply)?).await?;
    stream.flush().await?;
    if version != PROTOCOL_VERSION {
        // To the dialer the other version is ours, to us it is his.
        return Err(HelloError::Refused(Refusal::OtherVersion(version)));
    }
    judged.map_err(HelloError::Refused)
}

fn judge(hello: Hello, me: &Identity, service: Service) -> Result<Remote, Refusal> {
    let ours = me.cluster_id.borrow();
    if !ours.is_empty() && !hello.cluster_id.is_empty() && *ours != hello.cluster_id {
        return Err(Refusal::OtherCluster(ours.clone()));
    }
    if hello.service != service {
        return Err(Refusal::OtherService(service));
    }
    if service == Service::Replica && hello.to != me.node {
        return Err(Refusal::OtherNode(me.node.clone()));
    }
    let Hello { from: node, incarnation, class, cluster_id, .. } = hello;
    Ok(Remote { node, incarnation, class, cluster_id })
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, HelloError> {
    let body = postcard::to_stdvec(message).map_err(|_| HelloError::Garbage("cannot be encoded"))?;
    let len = u16::try_from(body.len() + 2)
        .ok()
        .filter(|len| usize::from(*len) + 2 + PREFACE.len() <= MAX_HELLO_BYTES);
    let len = len.ok_or(HelloError::Garbage("longer than a hello may be"))?;
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend(PROTOCOL_VERSION.to_le_bytes());
    bytes.extend(body);
    Ok(bytes)
}

/// Reads exactly one message, nothing of what follows it: (version, body).
async fn read_message<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(u16, Vec<u8>), HelloError> {
    let len = usize::from(stream.read_u16_le().await?);
    if len < 2 || len + 2 + PREFACE.len() > MAX_HELLO_BYTES {
        return Err(HelloError::Garbage("impossible length"));
    }
    let version = stream.read_u16_le().await?;
    let mut body = vec![0; len - 2];
    stream.read_exact(&mut body).await?;
    Ok((version, body))
}

fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, HelloError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(HelloError::Garbage("malformed body")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn hello() -> Hello {
        Hello {
            cluster_id: "c1".into(),
            from: Node::new("127.0.0.1:1"),
            incarnation: 7,
            service: Service::Replica,
            class: Class::Replication,
            to: Node::new("127.0.0.1:2"),
        }
    }

    fn acceptor(cluster_id: &str) -> Identity {
        Identity::new(Node::new("127.0.0.1:2"), 9, cluster_id)
    }

    async fn meet(hello: Hello, me: Identity) -> (Result<Accepted, HelloError>, Result<Remote, HelloError>) {
        let (mut a, mut b) = duplex(4096);
        tokio::join!(greet(&mut a, &hello), admit(&mut b, &me, Service::Replica))
    }

    #[tokio::test]
    async fn both_sides_learn_who_the_other_is() {
        for (theirs, ours) in [("c1", "c1"), ("", "c1"), ("c1", ""), ("", "")] {
            let (accepted, remote) =
                meet(Hello { cluster_id: theirs.into(), ..hello() }, acceptor(ours)).await;
            let (accepted, remote) = (accepted.unwrap(), remote.unwrap());
            assert_eq!((accepted.cluster_id.as_str(), accepted.incarnation), (ours, 9));
            assert_eq!((remote.node.as_str(), remote.incarnation), ("127.0.0.1:1", 7));
            assert_eq!((remote.class, remote.cluster_id.as_str()), (Class::Replication, theirs));
        }
    }

    #[tokio::test]
    async fn refusals_say_why() {
        let cases = [
            (Hello { cluster_id: "c2".into(), ..hello() }, Refusal::OtherCluster("c1".into())),
            (Hello { service: Service::Meta, ..hello() }, Refusal::OtherService(Service::Replica)),
            (Hello { to: Node::new("127.0.0.1:3"), ..hello() }, Refusal::OtherNode(Node::new("127.0.0.1:2"))),
        ];
        for (hello, want) in cases {
            let (accepted, remote) = meet(hello, acceptor("c1")).await;
            assert!(matches!(accepted, Err(HelloError::Refused(got)) if got == want));
            assert!(matches!(remote, Err(HelloError::Refused(got)) if got == want));
        }
    }

    #[tokio::test]
    async fn another_version_is_refused_whatever_its_hello_looks_like() {
        let (mut a, mut b) = duplex(4096);
        let me = acceptor("");
        let dial = async {
            a.write_all(b"PGR1\x05\x00\x63\x00xyz").await.unwrap();
            read_message(&mut a).await.unwrap()
        };
        let ((version, _), admitted) = tokio::join!(dial, admit(&mut b, &me, Service::Replica));
        assert_eq!(version, PROTOCOL_VERSION);
        let told = admitted.unwrap_err().to_string();
        assert_eq!(told, format!("refused: it speaks protocol version 99, we speak {PROTOCOL_VERSION}"));
    }

    #[tokio::test]
    async fn garbage_is_turned_away_before_it_takes_memory() {
        let long = [b"PGR1".as_slice(), &0xffffu16.to_le_bytes(), &[0; 600]].concat();
        let malformed = [b"PGR1".as_slice(), b"\x04\x00\x01\x00\xff\xff"].concat();
        for garbage in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &long, &malformed, b"PGR1\x00\x00", b"PG"] {
            let (mut a, mut b) = duplex(4096);
            a.write_all(garbage).await.unwrap();
            a.shutdown().await.unwrap();
            let admitted = admit(&mut b, &acceptor("c1"), Service::Replica).await;
            assert!(matches!(admitted, Err(HelloError::Garbage(_) | HelloError::Io(_))), "{admitted:?}");
        }
    }

    #[tokio::test]
    async fn a_silent_stranger_is_dropped() {
        let (_a, mut b) = duplex(64);
        assert!(matches!(admit(&mut b, &acceptor("c1"), Service::Replica).await, Err(HelloError::Timeout)));
    }

    #[test]
    fn a_cluster_id_is_learned_once() {
        let me = acceptor("");
        assert!(me.learn_cluster_id(""));
        assert!(me.learn_cluster_id("c1"));
        assert!(me.learn_cluster_id("c1"));
        assert!(!me.learn_cluster_id("c2"));
        assert_eq!(me.cluster_id(), "c1");
    }
}
