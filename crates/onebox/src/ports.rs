//! Is a port free, and if not, who has it.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::Path;

use anyhow::{Result, bail};

/// Other addresses to try when the first choice is taken.
const ADDRESS_TRIES: usize = 20;
/// Longest part of a command line that is shown.
const COMMAND_CHARS_MAX: usize = 100;

/// Why `member` cannot listen there, with the name of the process that has the port. None = it can.
pub fn obstacle(member: &str, address: SocketAddrV4) -> Option<String> {
    let error = TcpListener::bind(address).err()?;
    if error.kind() != io::ErrorKind::AddrInUse {
        return Some(format!("{member} cannot listen on {address}: {error}"));
    }
    let holder = holder(address).unwrap_or_else(|| "a process that cannot be seen from here".to_owned());
    Some(format!("port {} of {member} is in use by {holder}", address.port()))
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

/// `name (pid N): command line`.
fn holder(address: SocketAddrV4) -> Option<String> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let inodes = sockets_on(&read("/proc/net/tcp"), &read("/proc/net/tcp6"), address);
    let pid = inodes.into_iter().find_map(process_with_socket)?;
    Some(describe(pid))
}

fn describe(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let short: String = command.trim().chars().take(COMMAND_CHARS_MAX).collect();
    format!("{} (pid {pid}): {short}", name.trim())
}

/// Inodes of the sockets that keep others from this port, listeners first. IPv6 ones count when they listen on all
/// addresses.
fn sockets_on(tcp: &str, tcp6: &str, address: SocketAddrV4) -> Vec<u64> {
    let mut found: Vec<(bool, u64)> = Vec::new();
    for line in tcp.lines().chain(tcp6.lines()) {
        found.extend(socket_on(line, address));
    }
    found.sort_by_key(|(listens, _)| !listens);
    found.into_iter().map(|(_, inode)| inode).collect()
}

/// (listens, inode) of a line `sl local_address rem_address st ... inode`; addresses as hex in host byte order.
fn socket_on(line: &str, address: SocketAddrV4) -> Option<(bool, u64)> {
    const LISTEN: &str = "0A";
    const INODE_FIELD: usize = 9;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let same_ip = match ip.len() {
        8 => {
            let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
            ip == *address.ip() || ip.is_unspecified()
        }
        _ => ip.bytes().all(|digit| digit == b'0'),
    };
    let inode: u64 = fields.get(INODE_FIELD)?.parse().ok()?;
    // Without a process (TIME_WAIT) it does not hold the port against a listener.
    let fits = same_ip && u16::from_str_radix(port, 16).ok()? == address.port() && inode != 0;
    fits.then_some((*fields.get(3)? == LISTEN, inode))
}

fn process_with_socket(inode: u64) -> Option<u32> {
    let wanted = format!("socket:[{inode}]");
    let pids =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &u32| {
        // Processes of others cannot be looked into, and some end while we look.
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|to| to == Path::new(&wanted)))
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

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

    #[test]
    fn lines_of_proc_net_tcp() {
        let address: SocketAddrV4 = "127.0.0.1:34801".parse().unwrap();
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:87F1 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0\n\
            1: 0100007F:87F1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0\n\
            2: 0100007F:87F1 0100007F:1F91 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0\n\
            3: 0200007F:87F1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 33 1 0\n\
            4: 0100007F:87F2 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 44 1 0\n\
            garbage\n";
        let tcp6 = "0: 00000000000000000000000000000000:87F1 0:0 0A 0:0 00:0 0 0 0 55 1 0\n\
            1: 00000000000000000000000001000000:87F1 0:0 0A 0:0 00:0 0 0 0 66 1 0\n";
        assert_eq!(sockets_on(tcp, tcp6, address), [22, 55, 11]);
    }
}
