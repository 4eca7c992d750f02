//! What a server tells systemd, on a real socket.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::servers::{PATIENCE, Server, hosts, programs, repository};

/// Messages until one begins so.
fn until(socket: &UnixDatagram, begin: &str) -> Vec<String> {
    let begun = Instant::now();
    let mut heard = Vec::new();
    loop {
        assert!(begun.elapsed() < PATIENCE, "no {begin}; heard {heard:?}");
        let mut buffer = [0; 512];
        let Ok(n) = socket.recv(&mut buffer) else { continue };
        let message = String::from_utf8_lossy(&buffer[..n]).into_owned();
        let found = message.starts_with(begin);
        heard.push(message);
        if found {
            return heard;
        }
    }
}

fn server(dir: &Path, socket: &Path, watchdog: Duration) -> Server {
    let [host] = hosts();
    let mut command = Command::new(programs().join("pegasus_server"));
    command.arg(repository().join("config/config.ini")).args(["-app_list", "meta,replica"]);
    for (name, value) in [("CLUSTER_NAME", "c"), ("DATA_DIRS", ""), ("ZK_SERVER_LIST", "")] {
        command.env(format!("PEGASUS__VAR__{name}"), value);
    }
    command.env("PEGASUS__VAR__APP_DIR", dir).env("PEGASUS__VAR__HOME_DIR", dir);
    command.env("PEGASUS__VAR__META_SERVER_LIST", format!("{host}:34601"));
    command.env("PEGASUS__NETWORK__EXPLICIT_HOST_ADDRESS", host.to_string());
    command.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", watchdog.as_micros().to_string());
    Server::start(&mut command, &dir.join("out"))
}

#[test]
fn systemd_hears_of_the_start_the_pulse_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // The feeding side doubts a role that is silent for half of it.
    let mut server = server(dir.path(), &path, Duration::from_secs(20));
    let heard = until(&socket, "READY=1");
    assert!(server.printed().contains("replica listens on"), "ready before the port is open: {heard:?}");
    for _ in 0..3 {
        until(&socket, "WATCHDOG=1");
    }

    // A process that hangs is not alive.
    server.signal(Signal::STOP);
    while socket.recv(&mut [0; 512]).is_ok() {}
    assert!(socket.recv(&mut [0; 512]).is_err());
    server.signal(Signal::CONT);
    until(&socket, "WATCHDOG=1");

    server.signal(Signal::TERM);
    until(&socket, "STOPPING=1");
    assert!(server.wait_end().success());
}
