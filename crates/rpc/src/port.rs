//! Opens a port, or says who has it.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

/// How long [`bind`] waits for a port that somebody's outgoing connection has. When that ends, the kernel keeps the port
/// for another minute (TIME_WAIT).
pub const BIND_PATIENCE: Duration = Duration::from_secs(75);
/// Between attempts to bind.
const BIND_PAUSE: Duration = Duration::from_millis(250);
/// How long a listening process may keep the port: one that was killed closes it when its memory is freed.
const LISTENER_GRACE: Duration = Duration::from_secs(1);
/// Between warnings while the port is in use.
const WARN_EVERY: Duration = Duration::from_secs(5);
/// Longest part of a command line that is shown.
const COMMAND_CHARS_MAX: usize = 100;

/// Opens the port. Service ports lie where the kernel picks those of outgoing connections, for example of somebody
/// who dials the very process that is being restarted; so this tries again until `patience` is over.
///
/// # Errors
/// The port is in use for that long, or another process listens on it; the error names who.
pub async fn bind(address: SocketAddr, patience: Duration) -> io::Result<TcpListener> {
    let begun = Instant::now();
    let mut warned: Option<Instant> = None;
    loop {
        let error = match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
            result => return result,
        };
        let holder = Holder::of(address);
        let waited = begun.elapsed();
        let listens = holder.as_ref().is_some_and(|holder| holder.listens);
        if waited >= patience || (listens && waited >= LISTENER_GRACE) {
            let Some(holder) = holder else { return Err(error) };
            let port = address.port();
            let why = format!("port {port} is in use by {holder}: stop it, or give this server another port");
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            warned = Some(Instant::now());
            let holder = holder.map_or_else(|| UNSEEN.to_owned(), |holder| holder.to_string());
            tracing::warn!(%address, %holder, "the port is in use, waiting");
        }
        sleep(BIND_PAUSE.min(patience.saturating_sub(waited))).await;
    }
}

const UNSEEN: &str = "a process that cannot be seen from here";

/// Who keeps others from a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// It waits for connections there; else the port is that of a connection, which ends some time.
    pub listens: bool,
    /// `name (pid N): command line`; None when it runs where this process may not look.
    pub process: Option<String>,
    /// The connection is over, and the kernel keeps its port for a minute.
    pub has_ended: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process = self.process.as_deref().unwrap_or(UNSEEN);
        match self {
            Self { has_ended: true, .. } => {
                write!(f, "a connection that has ended, for another minute at most")
            }
            Self { listens: true, .. } => write!(f, "{process}"),
            Self { listens: false, .. } => write!(f, "a connection of {process}"),
        }
    }
}

impl Holder {
    /// None when there is nobody, at least not in this network namespace.
    pub fn of(address: SocketAddr) -> Option<Self> {
        let sockets = sockets(address);
        let (listens, inode) = *sockets.first()?;
        let alike = sockets.iter().filter(|(as_well, _)| *as_well == listens);
        let pid = alike.into_iter().find_map(|(_, inode)| process_with_socket(*inode));
        Some(Self { listens, process: pid.map(describe), has_ended: inode == 0 })
    }
}

/// The process that listens on this address, as far as this process may look; 0.0.0.0 listens on all.
pub fn listener(address: SocketAddr) -> Option<u32> {
    let listening = sockets(address).into_iter().filter(|(listens, _)| *listens);
    listening.into_iter().find_map(|(_, inode)| process_with_socket(inode))
}

fn describe(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let short: String = command.trim().chars().take(COMMAND_CHARS_MAX).collect();
    format!("{} (pid {pid}): {short}", name.trim())
}

fn sockets(address: SocketAddr) -> Vec<(bool, u64)> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    sockets_on(&read("/proc/net/tcp"), &read("/proc/net/tcp6"), address)
}

/// (listens, inode) of the sockets that keep others from this port, listeners first. Those of ended connections have
/// inode 0 and come last: most of them keep nobody from it.
fn sockets_on(tcp: &str, tcp6: &str, address: SocketAddr) -> Vec<(bool, u64)> {
    let lines = tcp.lines().chain(tcp6.lines());
    let mut found: Vec<_> = lines.filter_map(|line| socket_on(line, address)).collect();
    found.sort_by_key(|(listens, inode)| (!listens, *inode == 0));
    found
}

/// A line is `sl local_address rem_address st ... inode`; addresses as hex in host byte order. IPv6 ones are told from
/// one another only by whether they stand for all addresses.
fn socket_on(line: &str, address: SocketAddr) -> Option<(bool, u64)> {
    const LISTEN: &str = "0A";
    const INODE_FIELD: usize = 9;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let is_all = ip.bytes().all(|digit| digit == b'0');
    let clashes = is_all
        || address.ip().is_unspecified()
        || match (ip.len(), address.ip()) {
            (8, IpAddr::V4(own)) => Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes()) == own,
            (32, IpAddr::V6(_)) => true,
            _ => false,
        };
    let inode: u64 = fields.get(INODE_FIELD)?.parse().ok()?;
    let fits = clashes && u16::from_str_radix(port, 16).ok()? == address.port();
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
    use std::net::{TcpListener as StdListener, TcpStream as StdStream};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn run<F: Future>(test: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
    }

    #[test]
    fn who_listens_is_named_at_once() {
        run(async {
            for ip in ["127.0.0.1:0", "0.0.0.0:0"] {
                let taken = StdListener::bind(ip).unwrap();
                let port = taken.local_addr().unwrap().port();
                let begun = Instant::now();
                let address = (Ipv4Addr::LOCALHOST, port).into();
                let error = bind(address, 10 * SOON).await.unwrap_err().to_string();
                assert!(begun.elapsed() < SOON);
                let want = [format!("port {port} is in use by "), format!("(pid {})", std::process::id())];
                assert!(want.iter().all(|part| error.contains(part)), "{error}");
                assert!(!error.contains("a connection of"), "{error}");
            }
        });
    }

    #[test]
    fn a_listener_that_is_about_to_go_is_waited_for() {
        run(async {
            let taken = StdListener::bind("127.0.0.1:0").unwrap();
            let address = taken.local_addr().unwrap();
            let error = bind(address, Duration::ZERO).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            let free = async {
                sleep(LISTENER_GRACE / 10).await;
                drop(taken);
            };
            let (bound, ()) = tokio::join!(bind(address, SOON), free);
            assert_eq!(bound.unwrap().local_addr().unwrap(), address);
        });
    }

    #[test]
    fn connections_are_waited_for() {
        run(async {
            let served = StdListener::bind("127.0.0.1:0").unwrap();
            let connection = connect_from([127, 83, 0, 1], served.local_addr().unwrap());
            let address = connection.local_addr().unwrap();
            let holder = Holder::of(address).unwrap();
            assert!(!holder.listens && holder.to_string().starts_with("a connection of "), "{holder}");
            let error = bind(address, Duration::from_millis(300)).await.unwrap_err().to_string();
            assert!(error.contains(&format!("is in use by {holder}")), "{error}");

            let free = async {
                sleep(2 * LISTENER_GRACE).await;
                // Reset, so that nothing of it stays.
                socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO)).unwrap();
                drop((connection, served));
            };
            let (bound, ()) = tokio::join!(bind(address, SOON), free);
            assert_eq!(bound.unwrap().local_addr().unwrap(), address);
            assert_eq!(Holder::of(address), None);
        });
    }

    #[test]
    fn connections_that_have_ended_are_named() {
        let served = StdListener::bind("127.0.0.1:0").unwrap();
        let connection = connect_from([127, 83, 0, 2], served.local_addr().unwrap());
        let address = connection.local_addr().unwrap();
        let (accepted, _) = served.accept().unwrap();
        // Whoever ends it first keeps the port.
        drop(connection);
        let mut end = [0];
        assert_eq!(std::io::Read::read(&mut &accepted, &mut end).unwrap(), 0);
        drop(accepted);
        let error = run(bind(address, Duration::ZERO)).unwrap_err().to_string();
        assert!(error.contains("a connection that has ended"), "{error}");
    }

    /// From an address on which no other test's connection takes the port.
    fn connect_from(ip: [u8; 4], to: SocketAddr) -> StdStream {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        socket.into()
    }

    #[test]
    fn lines_of_proc_net_tcp() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:87F1 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0\n\
            1: 0100007F:87F1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0\n\
            2: 0100007F:87F1 0100007F:1F91 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0\n\
            3: 0200007F:87F1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 33 1 0\n\
            4: 0100007F:87F2 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 44 1 0\n\
            garbage\n";
        let tcp6 = "0: 00000000000000000000000000000000:87F1 0:0 0A 0:0 00:0 0 0 0 55 1 0\n\
            1: 00000000000000000000000001000000:87F1 0:0 0A 0:0 00:0 0 0 0 66 1 0\n";
        for (address, want) in [
            ("127.0.0.1:34801", vec![(true, 22), (true, 55), (false, 11), (false, 0)]),
            ("127.0.0.3:34801", vec![(true, 55)]),
            ("127.0.0.1:34802", vec![(true, 44)]),
            ("0.0.0.0:34801", vec![(true, 22), (true, 33), (true, 55), (true, 66), (false, 11), (false, 0)]),
            ("[::1]:34801", vec![(true, 55), (true, 66)]),
        ] {
            assert_eq!(sockets_on(tcp, tcp6, address.parse().unwrap()), want, "{address}");
        }
    }
}
