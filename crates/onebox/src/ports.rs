//! Who holds a port, and ports for clusters that must not meet another.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::Context;
use rand::RngExt;

/// A process that listens on a TCP port of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// None when it belongs to another user, whose processes cannot be looked into.
    process: Option<(i32, String)>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, command)) => write!(f, "pid {pid} ({command})"),
            None => f.write_str("a process of another user (try `ss -ltnp` as root)"),
        }
    }
}

/// The process that listens on `port`, at 127.0.0.1 or everywhere.
pub fn holder_of(port: u16) -> Option<Holder> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|table| listener_inode(&table, port))?;
    let socket = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc").ok()?.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let holds = |pid: &i32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).ok();
        fds.is_some_and(|fds| {
            fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == socket.as_str()))
        })
    };
    let process = pids.into_iter().find(holds).map(|pid| (pid, command_line(pid)));
    Some(Holder { process })
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&bytes).replace('\0', " ");
    match words.trim() {
        "" => fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned(),
        words => words.chars().take(100).collect(),
    }
}

/// Finds the inode of the socket that listens on `port` in the text of `/proc/net/tcp`.
fn listener_inode(table: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let here = u16::from_str_radix(local_port, 16).ok()? == port && *fields.get(3)? == LISTEN;
        if here { fields.get(9)?.parse().ok() } else { None }
    })
}

/// Free ports, kept from other test processes while this lives. The sockets that keep them are UDP, so that the
/// servers find the TCP ports free, also between two starts.
#[derive(Debug)]
pub struct Reserved {
    pub ports: Vec<u16>,
    _guards: Vec<UdpSocket>,
}

impl Reserved {
    /// Below the range from which the kernel picks the ports of outgoing connections: none of these may take the
    /// place of a server that is down for a moment. Never 34xxx, where `make onebox` lives.
    const RANGE: std::ops::Range<u16> = 10_000..32_000;
    const TRIES: usize = 10_000;

    pub fn new(count: usize) -> anyhow::Result<Self> {
        let mut reserved = Self { ports: Vec::new(), _guards: Vec::new() };
        let mut rng = rand::rng();
        for _ in 0..Self::TRIES {
            if reserved.ports.len() == count {
                return Ok(reserved);
            }
            let port = rng.random_range(Self::RANGE);
            let guard = UdpSocket::bind((Ipv4Addr::LOCALHOST, port));
            // Free everywhere, not only at 127.0.0.1.
            let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
            if let (Ok(guard), Ok(_)) = (guard, free) {
                reserved.ports.push(port);
                reserved._guards.push(guard);
            }
        }
        anyhow::bail!("no {count} free ports in {:?}", Self::RANGE)
    }

    /// One after the other.
    pub fn take(&mut self) -> anyhow::Result<u16> {
        self.ports.pop().context("more ports taken than reserved")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let told = holder_of(port).unwrap().to_string();
        assert!(told.starts_with(&format!("pid {} (", std::process::id())), "{told}");
        assert!(told.contains("onebox"), "{told}");
        drop(listener);
        assert_eq!(holder_of(port), None);
    }

    #[test]
    fn only_listeners_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:8721 0100007F:1F90 01 00000000:00000000 00:00000000 00000000 0 0 111 1\n\
                     1: 0100007F:8721 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 222 1\n";
        assert_eq!(listener_inode(table, 0x8721), Some(222));
        assert_eq!(listener_inode(table, 0x8722), None);
        assert_eq!(listener_inode("sl\nrubbish\n", 1), None);
    }

    #[test]
    fn reserved_ports_are_different_and_free() {
        let (a, b) = (Reserved::new(20).unwrap(), Reserved::new(20).unwrap());
        let mut all: Vec<_> = a.ports.iter().chain(&b.ports).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 40);
        TcpListener::bind(("127.0.0.1", a.ports[0])).unwrap();
    }
}
