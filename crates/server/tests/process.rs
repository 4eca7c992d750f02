//! The binaries as processes: mistakes, signals, logs.
#![allow(clippy::unwrap_used, reason = "a test: also its helpers may panic")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const SERVER: &str = env!("CARGO_BIN_EXE_pegasus_server");
const COLLECTOR: &str = env!("CARGO_BIN_EXE_pegasus_collector");

/// A configuration in which nothing answers but what the test starts. Port 0 = any free one.
fn config(dir: &Path) -> std::path::PathBuf {
    let file = dir.join("config.ini");
    let text = format!(
        "[apps.collector]\nports = 0\n[core]\ndata_dir = {}\n[network]\nexplicit_host_address = 127.0.0.1\n\
         [meta_server]\nserver_list = 127.0.0.1:1\n[replication]\ncluster_name = test\n\
         [pegasus.collector]\napp_stat_interval_seconds = 0.1\n",
        dir.display()
    );
    std::fs::write(&file, text).unwrap();
    file
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Started, and where it listens.
    fn start(program: &str, args: &[&str]) -> (Self, String) {
        let mut child = Command::new(program).args(args).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let running = Self(child);
        let address = lines
            .by_ref()
            .map(|line| line.unwrap())
            .find_map(|line| line.split_once(" listens on ").map(|(_, address)| address.to_owned()))
            .expect("it says where it listens");
        std::thread::spawn(move || lines.for_each(drop)); // keeps the pipe open
        (running, address)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn exit_code(&mut self, within: Duration) -> i32 {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(begun.elapsed() < within, "still running");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn every_mistake_is_printed_and_the_exit_code_is_1() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.ini");
    std::fs::write(&file, "[core]\ndata_dir = %{app.dir}\n[replication]\nlease_ms = soon\nfoo = 1\n")
        .unwrap();
    for extra in [&["--check-config"][..], &["-app_list", "replica"]] {
        let args = [&[file.to_str().unwrap(), "--set", "network.primary_interface=lo"], extra].concat();
        let output = run(SERVER, &args);
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8(output.stderr).unwrap();
        for part in [
            "4 mistakes",
            "config.ini:2: variable %{app.dir} has no value",
            "config.ini:4: [replication] lease_ms = soon: expected a duration",
            "config.ini:5: [replication] foo: unknown key",
            "config.ini: [meta_server] server_list: is empty",
        ] {
            assert!(told.contains(part), "{part}\n{told}");
        }
    }
    assert_eq!(run(SERVER, &["/does/not/exist.ini"]).status.code(), Some(1));
    assert_eq!(run(SERVER, &[]).status.code(), Some(1));
}

#[test]
fn the_default_config_is_printed_and_checks_out_with_its_variables() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.ini");
    let printed = run(SERVER, &["--print-default-config"]);
    assert!(printed.status.success());
    std::fs::write(&file, printed.stdout).unwrap();
    let output = run(
        SERVER,
        &[
            file.to_str().unwrap(),
            "--check-config",
            "--set=cluster.name=c",
            "--set=app.dir=/tmp/x",
            "--set=data.dirs=",
            "--set=meta.server.list=127.0.0.1:34601",
            "--set=network.primary_interface=lo",
        ],
    );
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.is_empty(), "{told}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("no mistakes"));
}

#[test]
fn help_and_version() {
    for args in [&["--help"][..], &["-help"], &["-v"], &["-version"], &["--version"]] {
        let output = run(SERVER, args);
        assert!(output.status.success() && !output.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(run(SERVER, &["--nonsense"]).status.code(), Some(1));
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path());
    let wrong = run(COLLECTOR, &[file.to_str().unwrap(), "-app_list", "meta"]);
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("runs collector only"));
}

#[test]
fn a_signal_stops_cleanly_and_the_log_tells_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path());
    let file = file.to_str().unwrap();
    for (program, args) in
        [(SERVER, vec![file, "-app_list", "collector"]), (SERVER, vec![file]), (COLLECTOR, vec![file])]
    {
        let (mut process, address) = Running::start(program, &args);
        assert!(get(&address, "/livez").starts_with("HTTP/1.1 200"));
        assert!(get(&address, "/metrics").contains("meta_leader_reachable{"));
        assert!(get(&address, "/config?name=cluster_name").contains("\"value\":\"test\""));
        assert!(get(&address, "/nope").starts_with("HTTP/1.1 404"));
        process.signal(Signal::TERM);
        assert_eq!(process.exit_code(Duration::from_secs(10)), 0);
        let log = std::fs::read_to_string(dir.path().join("log/collector.log")).unwrap();
        for part in
            ["collector listens on 127.0.0.1:", "SIGTERM: stopping", "collector has stopped", "fail-over: "]
        {
            assert!(log.contains(part), "{part}\n{log}");
        }
    }
}

#[test]
fn a_port_in_use_is_named_and_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("apps.collector.ports={}", taken.local_addr().unwrap().port());
    let output = run(COLLECTOR, &[file.to_str().unwrap(), "--set", &port]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains(&format!("listen on {}", taken.local_addr().unwrap())), "{told}");
}
