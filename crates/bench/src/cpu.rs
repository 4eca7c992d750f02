//! CPU time of server processes, and which process serves an address: both from /proc.

use std::fs;
use std::net::SocketAddrV4;

use anyhow::{Context, Result, bail};
use pegasus_rpc::port;
use serde::Serialize;

/// Of /proc/PID/stat; fixed by the kernel's interface to user space on the platforms that we run on.
const TICKS_PER_SECOND: u64 = 100;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    pub name: String,
    pub pid: u32,
}

impl Process {
    /// The process that listens on `address`.
    pub fn serving(name: &str, address: SocketAddrV4) -> Result<Self> {
        let pid = port::listener(address.into())
            .with_context(|| format!("no process of ours listens on {address}"))?;
        Ok(Self { name: name.to_owned(), pid })
    }

    /// User and system time since its start, microseconds; that of children that it waited for included
    /// (Redis rewrites its log in one).
    pub fn cpu_us(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .with_context(|| format!("{} (pid {}) has ended", self.name, self.pid))?;
        cpu_ticks(&stat)
            .map(|ticks| ticks * 1_000_000 / TICKS_PER_SECOND)
            .with_context(|| format!("/proc/{}/stat is not as expected", self.pid))
    }
}

/// Everybody's CPU time, in order.
pub fn read_all(processes: &[Process]) -> Result<Vec<u64>> {
    processes.iter().map(Process::cpu_us).collect()
}

/// Our own, the driver's.
pub fn driver() -> Process {
    Process { name: "driver".into(), pid: std::process::id() }
}

/// utime + stime + cutime + cstime. The command name before may hold anything, so count from its end.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let times: Vec<u64> = fields.split(' ').skip(11).take(4).filter_map(|field| field.parse().ok()).collect();
    (times.len() == 4).then(|| times.iter().sum())
}

/// `NAME=ADDRESS`.
pub fn parse_server(text: &str) -> Result<(&str, SocketAddrV4)> {
    match text.split_once('=').map(|(name, address)| (name, address.parse())) {
        Some((name, Ok(address))) => Ok((name, address)),
        _ => bail!("--server {text}: expected NAME=IPv4:PORT"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_command_name_may_hold_anything() {
        let stat = "17 (a ) b) S 1 1 1 0 -1 4 0 0 0 0 5 6 7 8 20 0 1 0";
        assert_eq!(cpu_ticks(stat), Some(26));
        assert_eq!(cpu_ticks("17 (x) S 1"), None);
    }

    #[test]
    fn our_own_listener_is_found_and_our_cpu_grows() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!() };
        let process = Process::serving("me", address).unwrap();
        assert_eq!(process.pid, std::process::id());
        let before = process.cpu_us().unwrap();
        let start = Instant::now();
        while process.cpu_us().unwrap() == before {
            assert!(start.elapsed() < Duration::from_secs(10), "CPU time stands still");
        }
        drop(listener);
        assert!(Process::serving("me", address).is_err());
    }

    #[test]
    fn servers_are_named() {
        assert_eq!(parse_server("a=127.0.0.1:1").unwrap(), ("a", "127.0.0.1:1".parse().unwrap()));
        assert!(parse_server("127.0.0.1:1").is_err());
    }
}
