//! Names of tables, partitions, nodes and positions.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Number of a table. Never reused.
pub type AppId = i32;

/// One partition of one table, printed `app.index`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gpid {
    pub app_id: AppId,
    pub index: i32,
}

impl Gpid {
    pub const fn new(app_id: AppId, index: i32) -> Self {
        Self { app_id, index }
    }
}

impl fmt::Display for Gpid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.app_id, self.index)
    }
}

impl fmt::Debug for Gpid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Gpid {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, ParseIdError> {
        let parse = || {
            let (app, index) = s.split_once('.')?;
            Some(Self::new(app.parse().ok()?, index.parse().ok()?))
        };
        parse().ok_or_else(|| ParseIdError::Gpid(s.to_owned()))
    }
}

macro_rules! position {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub i64);

        impl $name {
            pub const ZERO: Self = Self(0);
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
            #[must_use]
            pub const fn prev(self) -> Self {
                Self(self.0 - 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

position! {
    /// Version of a partition's membership. 0 = never assigned. Each change by the meta-server adds one.
    Ballot
}
position! {
    /// Position of a mutation in its partition's history. 0 = nothing yet, the first write is 1.
    Decree
}

/// A process of the cluster, by the address that it publishes: `host:port`.
/// The text is the identity; it is resolved as late as possible.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Node(Arc<str>);

impl Node {
    /// Takes `host:port` as it stands. Use [`str::parse`] for text from outside.
    pub fn new(address: impl AsRef<str>) -> Self {
        Self(Arc::from(address.as_ref()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn host(&self) -> &str {
        self.0.rsplit_once(':').map_or(&*self.0, |(host, _)| host)
    }

    pub fn port(&self) -> u16 {
        self.0.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0)
    }

    /// The address as IPv4, when the host is written as one.
    pub fn ipv4(&self) -> Option<(Ipv4Addr, u16)> {
        Some((self.host().parse().ok()?, self.port()))
    }
}

impl FromStr for Node {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, ParseIdError> {
        let text = s.trim();
        let valid = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
                && port.parse::<u16>().is_ok_and(|p| p != 0)
        });
        if valid { Ok(Self::new(text)) } else { Err(ParseIdError::Node(s.to_owned())) }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    #[error("{0:?} is not a partition: expected app_id.partition_index, for example 2.0")]
    Gpid(String),
    #[error("{0:?} is not a node address: expected host:port, for example 127.0.0.1:34801")]
    Node(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_addresses() {
        for good in ["127.0.0.1:34801", "replica-1.rack_2:1", " host:65535 "] {
            assert_eq!(good.parse::<Node>().unwrap().as_str(), good.trim());
        }
        for bad in ["", "host", "host:", ":1", "host:0", "host:65536", "a b:1", "::1:80"] {
            assert!(bad.parse::<Node>().is_err(), "{bad}");
        }
        assert_eq!(Node::new("127.0.0.1:34801").ipv4(), Some((Ipv4Addr::LOCALHOST, 34801)));
        assert_eq!(Node::new("host:34801").ipv4(), None);
    }

    #[test]
    fn gpid_text() {
        assert_eq!("2.10".parse::<Gpid>().unwrap(), Gpid::new(2, 10));
        assert_eq!(Gpid::new(2, 10).to_string(), "2.10");
        assert!("2".parse::<Gpid>().is_err());
    }
}
