//! What a supervisor is told, by systemd's protocol (sd_notify(3)): one datagram per message to `$NOTIFY_SOCKET`.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// While replicas are being opened the supervisor is asked for this much more time, again and again.
pub const EXTEND_BY: Duration = Duration::from_secs(60);

/// Somebody who wants to be told.
#[derive(Debug)]
pub struct Supervisor {
    socket: UnixDatagram,
    to: SocketAddr,
    /// A process that has not said that it is alive for so long is killed.
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// From the environment; None when nobody asked to be told, or when the address is of no use.
    pub fn from_env() -> Option<Self> {
        let address = env::var_os("NOTIFY_SOCKET")?;
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        // The variable may be meant for another process, which has passed its environment on.
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|us| for_us && *us > 0).map(Duration::from_micros);
        match Self::new(&address, watchdog) {
            Ok(supervisor) => Some(supervisor),
            Err(error) => {
                tracing::warn!(?address, %error, "NOTIFY_SOCKET is of no use");
                None
            }
        }
    }

    fn new(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let to = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            _ => return Err(io::Error::other("neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        // A supervisor that does not read must not hold us up.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, to, watchdog })
    }

    /// How often [`Self::alive`] is to be called; None = nobody waits for it.
    pub fn beat_every(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 4)
    }

    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    pub fn starting(&self, status: &str) {
        self.tell(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS={status}", EXTEND_BY.as_micros()));
    }

    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    pub fn stopping(&self, status: &str) {
        self.tell(&format!("STOPPING=1\nSTATUS={status}"));
    }

    fn tell(&self, message: &str) {
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.to) {
            tracing::debug!(%error, message, "cannot tell the supervisor");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    #[test]
    fn messages_arrive_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("pegasus-notify-test-{}", std::process::id());
        let at_path = (UnixDatagram::bind(&path).unwrap(), path.into_os_string());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let at_name = (UnixDatagram::bind_addr(&address).unwrap(), OsString::from(format!("@{name}")));
        for (socket, address) in [at_path, at_name] {
            let supervisor = Supervisor::new(&address, Some(Duration::from_secs(8))).unwrap();
            assert_eq!(supervisor.beat_every(), Some(Duration::from_secs(2)));
            supervisor.starting("3 of 9 replicas");
            assert_eq!(heard(&socket), "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=3 of 9 replicas");
            supervisor.ready("all open");
            assert_eq!(heard(&socket), "READY=1\nSTATUS=all open");
            supervisor.alive();
            assert_eq!(heard(&socket), "WATCHDOG=1");
            supervisor.stopping("SIGTERM");
            assert_eq!(heard(&socket), "STOPPING=1\nSTATUS=SIGTERM");
        }
    }

    #[test]
    fn odd_addresses_are_refused_and_a_deaf_supervisor_does_not_block() {
        for odd in ["", "relative", "vsock:2:1"] {
            assert!(Supervisor::new(OsStr::new(odd), None).is_err(), "{odd}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let supervisor = Supervisor::new(path.as_os_str(), None).unwrap();
        supervisor.alive();
        let _deaf = UnixDatagram::bind(&path).unwrap();
        (0..10_000).for_each(|_| supervisor.alive());
        assert_eq!(supervisor.beat_every(), None);
    }
}
