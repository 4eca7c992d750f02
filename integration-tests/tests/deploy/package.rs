//! The tarball, unpacked on three hosts (three loopback addresses), started as the deployment guide says.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pegasus_client::Cluster;
use pegasus_integration_tests::block_on;
use rustix::process::Signal;

use crate::servers::{Server, hosts, programs, repository, run, wait};

/// The tarball.
fn pack(kind: &str, out: &Path) -> PathBuf {
    let mut command = Command::new(repository().join("deploy/pack.sh"));
    command.arg(kind).arg("--programs").arg(programs()).arg("--out").arg(out);
    let told = run(command.env("SOURCE_DATE_EPOCH", "1700000000"));
    let tarball = PathBuf::from(told.lines().last().unwrap());
    let name = fs::read_to_string(out.join("PACKAGE")).unwrap();
    assert_eq!(tarball, out.join(format!("{}.tar.gz", name.trim())));
    tarball
}

/// Unpacks, checks the sums, and gives the directory.
fn unpack(tarball: &Path, into: &Path) -> PathBuf {
    fs::create_dir_all(into).unwrap();
    run(Command::new("tar").arg("xzf").arg(tarball).arg("-C").arg(into));
    let name = tarball.file_name().unwrap().to_str().unwrap().trim_end_matches(".tar.gz");
    let dir = into.join(name);
    run(Command::new("sha256sum").args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(&dir));
    dir
}

#[test]
fn the_same_programs_give_the_same_package() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (pack("tools", &dir.path().join("a")), pack("tools", &dir.path().join("b")));
    assert!(fs::read(&first).unwrap() == fs::read(second).unwrap(), "two packages differ");
    let tools = unpack(&first, dir.path());
    for program in ["pegasus_shell", "pegasus_bench", "pegasus_onebox", "pegasus_server"] {
        run(Command::new(tools.join("bin").join(program)).arg("--version"));
    }
    let name = tools.file_name().unwrap().to_str().unwrap();
    let parts: Vec<_> = name.split('-').collect();
    assert_eq!((parts[0], parts[1], parts[2]), ("pegasus", "tools", env!("CARGO_PKG_VERSION")), "{name}");
    assert!(parts.len() == 6 && parts[4].contains("_glibc2."), "{name}");
    assert!(fs::read_to_string(tools.join("VERSION")).unwrap().contains("needs: Linux "));
}

/// One host: the package, its configuration filled in.
struct Host {
    dir: PathBuf,
    address: Ipv4Addr,
}

impl Host {
    /// As the guide says: unpack, replace every variable of `config.ini`.
    fn new(tarball: &Path, home: &Path, address: Ipv4Addr, metas: &str) -> Self {
        let dir = unpack(tarball, home);
        let app = home.join("app");
        let (config, mut text) = (dir.join("config.ini"), String::new());
        text += &fs::read_to_string(&config).unwrap();
        let disks = format!("ssd1:{0}/ssd1,ssd2:{0}/ssd2", home.display());
        for (variable, value) in [
            ("cluster.name", "walk"),
            ("home.dir", home.to_str().unwrap()),
            ("app.dir", app.to_str().unwrap()),
            ("slog.dir", ""),
            ("data.dirs", &disks),
            ("meta.server.list", metas),
            ("zk.server.list", ""),
        ] {
            text = text.replace(&format!("%{{{variable}}}"), value);
        }
        fs::write(config, text).unwrap();
        Self { dir, address }
    }

    /// From the package's directory, or from its `bin`: both have the configuration.
    fn start(&self, role: &str, from: &str) -> Server {
        let mut command = Command::new("./pegasus_server");
        command.args(["config.ini", "-app_list", role]).current_dir(self.dir.join(from)).env_clear();
        // Three hosts have three addresses; here they are one machine's.
        command.env("PEGASUS__NETWORK__EXPLICIT_HOST_ADDRESS", self.address.to_string());
        Server::start(&mut command, &self.dir.join(format!("{role}.out")))
    }
}

#[test]
fn three_hosts_run_as_the_guide_says() {
    let dir = tempfile::tempdir().unwrap();
    let tarball = pack("server", &dir.path().join("out"));
    let [a, b, c] = hosts();
    let metas = format!("{a}:34601");
    let at = |n: u8, address| Host::new(&tarball, &dir.path().join(format!("host{n}")), address, &metas);
    let all = [at(1, a), at(2, b), at(3, c)];

    let version = run(Command::new(all[0].dir.join("bin/pegasus_meta_server")).arg("--version"));
    assert!(version.starts_with("Pegasus Server "), "{version}");
    let checked = run(Command::new("./pegasus_server")
        .args(["config.ini", "--check-config", "--set", "network.primary_interface=lo"])
        .current_dir(&all[0].dir));
    assert_eq!(checked, "config.ini: no mistakes\n");

    let start = || {
        let mut servers = vec![all[0].start("meta", ".")];
        servers.extend(all.iter().map(|host| host.start("replica", "bin")));
        servers.push(all[0].start("collector", "."));
        servers
    };
    let mut servers = start();
    for server in &mut servers {
        server.wait_printed("listens on ");
    }
    block_on(write_and_read(&metas, true));

    // The collector's address shows the whole cluster.
    let health = format!("http://{a}:34101/metrics");
    wait("a healthy table", || {
        let text = http_get(&health);
        let healthy =
            text.lines().any(|line| line.starts_with("table_fully_healthy{") && line.ends_with(" 1"));
        let answers = text.lines().filter(|l| l.starts_with("replica_server_answers{") && l.ends_with(" 1"));
        if healthy && answers.count() == 3 { Ok(()) } else { Err(text) }
    });
    // Both disks are used, logs are where they belong, each role has its own.
    for host in 1..=3 {
        let home = dir.path().join(format!("host{host}"));
        for disk in ["ssd1", "ssd2"] {
            let replicas = fs::read_dir(home.join(disk).join("replica/reps")).unwrap().count();
            assert!((3..=5).contains(&replicas), "host {host}, {disk}: {replicas} of 8 partitions");
        }
        assert!(home.join("app/log/replica.log").exists());
    }
    assert!(dir.path().join("host1/app/log/meta.log").exists());

    // All stop and come back with what they had.
    servers.iter().for_each(|server| server.signal(Signal::INT));
    for mut server in servers {
        assert!(server.wait_end().success(), "{}", server.printed());
    }
    let _servers = start();
    block_on(write_and_read(&metas, false));
}

async fn write_and_read(metas: &str, write: bool) {
    let begun = std::time::Instant::now();
    let table = loop {
        let error = match Cluster::connect(metas).await {
            Ok(cluster) => match cluster.table("temp").await {
                Ok(table) => break table.with_timeout(crate::servers::PATIENCE),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        assert!(begun.elapsed() < crate::servers::PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    for n in 0..100 {
        let key = format!("key {n}");
        if write {
            table.set(&key, "s", key.clone()).await.unwrap();
        }
        assert_eq!(table.get(&key, "s").await.unwrap().as_deref(), Some(key.as_bytes()));
    }
}

/// The answer with its head; empty when there is none yet.
pub fn http_get(url: &str) -> String {
    use std::io::{Read, Write};
    let rest = url.trim_start_matches("http://");
    let (host, path) = rest.split_at(rest.find('/').unwrap());
    let mut answer = String::new();
    if let Ok(mut stream) = std::net::TcpStream::connect(host) {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let asked = write!(stream, "GET {path} HTTP/1.0\r\nhost: {host}\r\n\r\n");
        let _ = asked.and_then(|()| stream.read_to_string(&mut answer)); // what came until then
    }
    answer
}
