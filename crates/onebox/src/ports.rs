//! Is a port free, and if not, who has it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use pegasus_rpc::port::Holder;

/// Other addresses to try when the first choice is taken.
const ADDRESS_TRIES: usize = 20;

/// A process that was killed keeps its ports until its memory is freed; one that this process is just starting has all of
/// this process's until it begins.
const GRACE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

/// What is still in the way after [`GRACE`].
pub fn after_grace(obstacles: impl Fn() -> Vec<String>) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let found = obstacles();
        if found.is_empty() || begun.elapsed() >= GRACE {
            return found;
        }
        thread::sleep(PAUSE);
    }
}

/// Why `member` cannot listen there, with the name of the process that has the port. None = it can.
pub fn obstacle(member: &str, address: SocketAddrV4) -> Option<String> {
    let error = TcpListener::bind(address).err()?;
    if error.kind() != io::ErrorKind::AddrInUse {
        return Some(format!("{member} cannot listen on {address}: {error}"));
    }
    let port = address.port();
    Some(match Holder::of(address.into()) {
        Some(holder) => format!("port {port} of {member} is in use by {holder}"),
        None => format!("port {port} of {member} is in use"),
    })
}

/// 127.x.y.z at random on which everything is `free`: nobody's connections take a port there, as they do on
/// 127.0.0.1, so that a member that was killed gets its port again.
pub fn own_address(free: impl Fn(Ipv4Addr) -> bool) -> Result<Ipv4Addr> {
    for _ in 0..ADDRESS_TRIES {
        let host = Ipv4Addr::new(
            127,
            rand::random_range(1..=254),
            rand::random_range(0..=255),
            rand::random_range(1..=254),
        );
        if free(host) {
            return Ok(host);
        }
    }
    bail!("no loopback address has the usual ports free: who listens on 0.0.0.0?")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn a_port_that_is_just_being_closed_is_no_obstacle() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!() };
        let look = || Vec::from_iter(obstacle("replica1", address));
        assert_eq!(after_grace(look).len(), 1);
        let closing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            drop(listener);
        });
        assert_eq!(after_grace(look), Vec::<String>::new());
        closing.join().unwrap();
    }

    #[test]
    fn who_has_a_port_is_named() {
        for ip in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(ip).unwrap();
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port());
            let told = obstacle("replica1", address).unwrap();
            assert!(told.contains("of replica1 is in use by"), "{told}");
            assert!(told.contains(&format!("(pid {})", std::process::id())), "{told}");
        }
        let listener = TcpListener::bind("127.77.0.1:0").unwrap();
        let SocketAddr::V4(free) = listener.local_addr().unwrap() else { panic!() };
        drop(listener);
        assert_eq!(obstacle("x", free), None);
    }
}
