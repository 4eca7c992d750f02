//! The binaries as processes: mistakes, signals, logs.
#![allow(clippy::unwrap_used, reason = "a test: also its helpers may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
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
    /// Started, and where its only role listens.
    fn start(program: &str, args: &[&str]) -> (Self, String) {
        let (running, mut addresses) = Self::start_roles(program, args, 1);
        (running, addresses.pop_first().unwrap().1)
    }

    fn start_roles(program: &str, args: &[&str], roles: usize) -> (Self, BTreeMap<String, String>) {
        Self::start_command(Command::new(program).args(args), roles)
    }

    fn start_command(command: &mut Command, roles: usize) -> (Self, BTreeMap<String, String>) {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let running = Self(child);
        let mut addresses = BTreeMap::new();
        while addresses.len() < roles {
            let line = lines.next().expect("it says where it listens").unwrap();
            if let Some((role, address)) = line.split_once(" listens on ") {
                addresses.insert(role.to_owned(), address.to_owned());
            }
        }
        std::thread::spawn(move || lines.for_each(drop)); // keeps the pipe open
        (running, addresses)
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
    write!(stream, "GET {path} HTTP/1.1\r\nhost: h\r\naccept: text/plain\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn every_mistake_is_printed_and_the_exit_code_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.ini");
    std::fs::write(&file, "[core]\ndata_dir = %{app.dir}\n[replication]\nlease_ms = soon\nfoo = 1\n")
        .unwrap();
    for extra in [&["--check-config"][..], &["-app_list", "replica"]] {
        let args = [&[file.to_str().unwrap(), "--set", "network.primary_interface=lo"], extra].concat();
        let output = run(SERVER, &args);
        assert_eq!(output.status.code(), Some(78));
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
    assert_eq!(run(SERVER, &["/does/not/exist.ini"]).status.code(), Some(78));
    assert_eq!(run(SERVER, &[]).status.code(), Some(1));
}

/// All roles in one process, as the last example of `--help` has it, in `dir`: with the file that it tells to begin with.
fn example(dir: &Path) -> Command {
    let help = String::from_utf8(run(SERVER, &["--help"]).stdout).unwrap();
    let (_, words) = help.split_once("pegasus_server config.ini -app_list meta,replica,collector").unwrap();
    let words = words.split("\n\n").next().unwrap().split_whitespace().filter(|word| *word != "\\");
    std::fs::write(dir.join("config.ini"), run(SERVER, &["--print-default-config"]).stdout).unwrap();
    let mut command = Command::new(SERVER);
    command.current_dir(dir).args(["config.ini", "-app_list", "meta,replica,collector"]).args(words);
    command
}

#[test]
fn the_example_of_the_help_checks_out_with_the_default_config() {
    let dir = tempfile::tempdir().unwrap();
    let output = example(dir.path()).arg("--check-config").output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.is_empty(), "{told}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("no mistakes"));
}

#[test]
fn whoever_stops_reading_hears_nothing() {
    for flag in ["--version", "--print-default-config", "--print-config-reference"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(SERVER).arg(flag).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), &*complaint), (Some(141), ""), "{flag}");
    }
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
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("apps.collector.ports={}", taken.local_addr().unwrap().port());
    let output = run(COLLECTOR, &[file.to_str().unwrap(), "--set", &port]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains(&format!("listen on {}", taken.local_addr().unwrap())), "{told}");
}

/// Repeats until `enough` says so of the answer.
fn wait_for(address: &str, path: &str, enough: impl Fn(&str) -> bool) {
    let begun = Instant::now();
    loop {
        let answer = get(address, path);
        if enough(&answer) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The series that begins with `name` has `value`.
fn has(metrics: &str, name: &str, value: &str) -> bool {
    metrics.lines().any(|line| line.starts_with(name) && line.rsplit(' ').next() == Some(value))
}

/// [`example`] with ports and intervals of the test, and `more` settings.
fn one_machine(dir: &Path, meta: SocketAddr, more: &[String]) -> Command {
    let mut command = example(dir);
    let sets = [
        format!("meta.server.list={meta}"),
        format!("apps.meta.ports={}", meta.port()),
        "apps.replica.ports=0".to_owned(),
        "apps.collector.ports=0".to_owned(),
        "meta_server.apps.temp.partition_count=2".to_owned(),
        // The disk of a test may be rather full.
        "replication.disk_min_available_space_ratio=0".to_owned(),
        "pegasus.collector.available_detect_interval_seconds=0.2".to_owned(),
        "pegasus.collector.app_stat_interval_seconds=0.2".to_owned(),
    ];
    command.args(sets.iter().chain(more).flat_map(|set| ["--set", set.as_str()]));
    command
}

/// For a port that must be known before; free now, and hardly taken by another test meanwhile.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A node is its address: its second life must have the first one's port.
fn same_port(addresses: &BTreeMap<String, String>) -> String {
    format!("apps.replica.ports={}", addresses["replica"].rsplit(':').next().unwrap())
}

#[test]
fn all_roles_in_one_process_make_a_cluster_that_survives_its_restart() {
    let dir = tempfile::tempdir().unwrap();
    let meta = free_address();
    let mut settings = Vec::new();
    for _ in 0..2 {
        let (mut process, addresses) =
            Running::start_command(&mut one_machine(dir.path(), meta, &settings), 3);
        settings = vec![same_port(&addresses)];
        let collector = &addresses["collector"];
        wait_for(collector, "/metrics", |metrics| {
            has(metrics, "probe_partition_up{partition=\"0\"", "1")
                && has(metrics, "probe_partition_up{partition=\"1\"", "1")
                && has(metrics, "table_fully_healthy{table=\"temp\"", "1")
                && has(metrics, "alive_replica_servers{", "1")
                && !has(metrics, "cluster_available{window=\"overall\"", "0")
        });
        wait_for(collector, "/readyz", |answer| answer.starts_with("HTTP/1.1 200"));
        for role in ["meta", "replica"] {
            assert!(get(&addresses[role], "/livez").starts_with("HTTP/1.1 200"));
        }
        process.signal(Signal::TERM);
        assert_eq!(process.exit_code(Duration::from_secs(15)), 0);
    }
}

#[test]
fn a_disk_that_is_not_mounted_at_the_start_is_told_to_be_broken() {
    let dir = tempfile::tempdir().unwrap();
    let meta = free_address();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let mut settings = vec![format!("data.dirs=a:{},b:{}", a.display(), b.display())];
    let healthy = |metrics: &str, disk: &str, value: &str| {
        let line = |line: &&str| line.starts_with("disk_healthy{") && line.contains(disk);
        metrics.lines().find(line).is_some_and(|line| line.ends_with(&format!(" {value}")))
    };
    let (mut process, addresses) = Running::start_command(&mut one_machine(dir.path(), meta, &settings), 3);
    settings.push(same_port(&addresses));
    wait_for(&addresses["collector"], "/metrics", |metrics| {
        healthy(metrics, "disk=\"a\"", "1") && healthy(metrics, "disk=\"b\"", "1")
    });
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(Duration::from_secs(15)), 0);

    // As when nothing is mounted there.
    std::fs::remove_dir_all(dir.path().join("b")).unwrap();
    std::fs::create_dir(dir.path().join("b")).unwrap();
    let (mut process, addresses) = Running::start_command(&mut one_machine(dir.path(), meta, &settings), 3);
    wait_for(&addresses["collector"], "/metrics", |metrics| {
        healthy(metrics, "disk=\"a\"", "1")
            && healthy(metrics, "disk=\"b\"", "0")
            && !metrics.lines().any(|line| {
                line.starts_with("disk_capacity_total_mb{")
                    && line.contains("disk=\"b\"")
                    && !line.ends_with(" 0")
            })
    });
    let own = get(&addresses["replica"], "/metrics");
    let broken = |disk: &str, value: &str| {
        own.lines()
            .any(|l| l.starts_with("pegasus_replica_disk_broken{") && l.contains(disk) && l.ends_with(value))
    };
    assert!(broken("disk=\"a\"", " 0") && broken("disk=\"b\"", " 1"), "{own}");
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(Duration::from_secs(15)), 0);
}
