//! A real ZooKeeper on this machine: Debian's package, one server or an ensemble.
//!
//! ```text
//!  DIR/zookeeper.json      how it was made
//!  DIR/zookeeper1/{zoo.cfg, out, pid, data/{myid, version-2/}}
//!  DIR/zookeeper2/..
//! ```
//!
//! A test writes:
//!
//! ```no_run
//! # fn example() -> anyhow::Result<()> {
//! use std::time::Duration;
//! let zookeeper = pegasus_onebox::ZooKeeper::start(3)?;
//! zookeeper.wait_serving(Duration::from_secs(60))?;
//! let hosts = zookeeper.hosts(); // for [zookeeper] hosts_list
//! let leader = zookeeper.leader().unwrap();
//! zookeeper.kill(leader)?;
//! zookeeper.start_server(leader)?;
//! # let _ = hosts;
//! # Ok(())
//! # } // dropped: every server is killed, the directory removed
//! ```

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::process::{Launch, State, Ticket};
use crate::{Cluster, ports};

const CLIENT_PORT: u16 = 22181;
const QUORUM_PORT: u16 = 22888;
const ELECTION_PORT: u16 = 23888;
/// The largest port still fits with it.
const PORT_BASE_MAX: u16 = 30_000;
/// An ensemble of more only gets slower.
const SERVERS_MAX: u16 = 7;
/// Where Debian's package has it; its manifest names the rest of the class path.
const JAR: &str = "/usr/share/java/zookeeper.jar";
/// Without it, ZooKeeper's log lines go nowhere.
const LOG_JAR: &str = "/usr/share/java/slf4j-simple.jar";
/// Of a server that is to answer `srvr`.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const STOP_WITHIN: Duration = Duration::from_secs(10);
const KILL_WITHIN: Duration = Duration::from_secs(10);
/// Between looks at servers that are to serve.
const SERVING_INTERVAL: Duration = Duration::from_millis(100);
/// Lines of a server's output that a failure shows.
const LINES_SHOWN: usize = 20;
const PLAN_FILE: &str = "zookeeper.json";

/// How an ensemble was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZooKeeperPlan {
    /// 1 = alone; else odd.
    pub servers: u16,
    pub host: Ipv4Addr,
    /// Added to 22181.. (clients), 22888.. and 23888.. (among servers).
    pub port_base: u16,
    /// Writes are on disk before they are answered. Tests that cut no power are faster without.
    pub sync: bool,
}

impl ZooKeeperPlan {
    /// What cannot work is refused before anything is started.
    pub fn check(&self) -> Result<()> {
        if self.servers.is_multiple_of(2) || self.servers > SERVERS_MAX {
            bail!(
                "SERVERS={}: 1, 3, 5 or 7 (an even number survives no more than the odd one below it)",
                self.servers
            );
        }
        if self.port_base > PORT_BASE_MAX {
            bail!("PORT_BASE={}: at most {PORT_BASE_MAX}, or the ports do not fit", self.port_base);
        }
        if !Path::new(JAR).exists() {
            bail!("{JAR} is missing: `make zookeeper` installs it, or apt-get install zookeeper");
        }
        Ok(())
    }

    /// Where clients reach a server.
    pub fn client_address(&self, number: u16) -> SocketAddrV4 {
        self.address(CLIENT_PORT, number)
    }

    fn address(&self, port: u16, number: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.host, port + self.port_base + number - 1)
    }

    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<> {
        1..=self.servers
    }

    /// `zoo.cfg` of a server whose directory is `dir`.
    fn config(&self, number: u16, dir: &Path) -> String {
        let client = self.address(CLIENT_PORT, number);
        let mut text = format!(
            "# Sessions from 1 to 60 s\ntickTime=500\nminSessionTimeout=1000\nmaxSessionTimeout=60000\n\
             dataDir={}\nclientPort={}\nclientPortAddress={}\nmaxClientCnxns=0\nadmin.enableServer=false\n\
             4lw.commands.whitelist=*\nautopurge.snapRetainCount=3\nautopurge.purgeInterval=1\n",
            dir.join("data").display(),
            client.port(),
            client.ip(),
        );
        if self.servers > 1 {
            text += "initLimit=20\nsyncLimit=10\nstandaloneEnabled=false\n";
            for number in self.numbers() {
                let (quorum, election) =
                    (self.address(QUORUM_PORT, number), self.address(ELECTION_PORT, number));
                text += &format!("server.{number}={quorum}:{}\n", election.port());
            }
        }
        text
    }
}

/// The servers of one ZooKeeper. Numbers count from 1.
#[derive(Debug)]
pub struct ZooKeeper {
    dir: PathBuf,
    plan: ZooKeeperPlan,
    /// The servers outlive this process.
    detached: bool,
    /// Of a test's: ends with this value.
    temporary: Option<TempDir>,
}

impl ZooKeeper {
    /// A new one in a temporary directory, on a loopback address of its own. It ends when the value is dropped. Not
    /// serving yet: [`Self::wait_serving`].
    pub fn start(servers: u16) -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("pegasus-zookeeper-").tempdir()?;
        let mut plan = ZooKeeperPlan { servers, host: Ipv4Addr::LOCALHOST, port_base: 0, sync: false };
        plan.check()?;
        let free = |host| {
            let plan = ZooKeeperPlan { host, ..plan.clone() };
            plan.numbers().all(|number| obstacles(&plan, number).is_empty())
        };
        plan.host = ports::own_address(free)?;
        let dir = temporary.path().to_owned();
        let zookeeper = Self { dir, plan, detached: false, temporary: Some(temporary) };
        zookeeper.start_all()?;
        Ok(zookeeper)
    }

    /// The one in `dir`; None when there is none. Its servers outlive this value.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join(PLAN_FILE);
        match fs::read(&file) {
            Ok(bytes) => {
                let plan = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is not readable; remove it", file.display()))?;
                Ok(Some(Self { dir: dir.canonicalize()?, plan, detached: true, temporary: None }))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Writes the plan of a new one to `dir` and starts nothing. Its servers outlive this value.
    pub fn create(dir: &Path, plan: ZooKeeperPlan) -> Result<Self> {
        plan.check()?;
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let file = dir.join(PLAN_FILE);
        fs::write(&file, serde_json::to_vec_pretty(&plan)?)
            .with_context(|| format!("write {}", file.display()))?;
        Ok(Self { dir: dir.canonicalize()?, plan, detached: true, temporary: None })
    }

    /// The servers of a cluster in the cluster's directory. The cluster ends them.
    pub(crate) fn of_cluster(dir: &Path, plan: ZooKeeperPlan, detached: bool) -> Self {
        Self { dir: dir.to_owned(), plan, detached, temporary: None }
    }

    pub fn plan(&self) -> &ZooKeeperPlan {
        &self.plan
    }

    /// `host:port,host:port`, as `[zookeeper] hosts_list` wants it.
    pub fn hosts(&self) -> String {
        let hosts = self.numbers().map(|number| self.address(number).to_string());
        hosts.collect::<Vec<_>>().join(",")
    }

    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<> {
        self.plan.numbers()
    }

    /// Where clients reach a server.
    pub fn address(&self, number: u16) -> SocketAddrV4 {
        self.plan.address(CLIENT_PORT, number)
    }

    pub fn name(number: u16) -> String {
        format!("zookeeper{number}")
    }

    /// What a server prints.
    pub fn out_file(&self, number: u16) -> PathBuf {
        self.server_dir(number).join("out")
    }

    pub fn state(&self, number: u16) -> Result<State> {
        Ok(self.ticket(number)?.as_ref().map_or(State::Stopped, Ticket::state))
    }

    /// Of a running server.
    pub fn pid(&self, number: u16) -> Result<Option<i32>> {
        Ok(self.ticket(number)?.filter(|ticket| ticket.state().is_alive()).map(|ticket| ticket.pid))
    }

    /// Starts what does not run; the numbers of those that were started. All or nothing.
    pub fn start_all(&self) -> Result<Vec<u16>> {
        self.start_those(self.numbers().collect())
    }

    /// True when it did not run.
    pub fn start_server(&self, number: u16) -> Result<bool> {
        Ok(!self.start_those(vec![number])?.is_empty())
    }

    /// Why a server cannot listen where it has to.
    pub(crate) fn obstacles(&self, number: u16) -> Vec<String> {
        obstacles(&self.plan, number)
    }

    fn start_those(&self, numbers: Vec<u16>) -> Result<Vec<u16>> {
        let mut idle = Vec::new();
        for number in numbers {
            if !self.state(number)?.is_alive() {
                idle.push(number);
            }
        }
        let taken: Vec<_> = idle.iter().flat_map(|number| obstacles(&self.plan, *number)).collect();
        if !taken.is_empty() {
            bail!("{}", taken.join("\n"));
        }
        for number in &idle {
            self.launch(*number).with_context(|| format!("start {}", Self::name(*number)))?;
        }
        Ok(idle)
    }

    /// Starts one that does not run and whose ports are free.
    pub(crate) fn launch(&self, number: u16) -> Result<()> {
        let dir = &self.server_dir(number);
        let data = dir.join("data");
        fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        fs::write(data.join("myid"), format!("{number}\n"))?;
        let config = dir.join("zoo.cfg");
        fs::write(&config, self.plan.config(number, dir))?;
        let class_path = format!("{JAR}:{LOG_JAR}");
        let force_sync = format!("-Dzookeeper.forceSync={}", if self.plan.sync { "yes" } else { "no" });
        let args = [
            // Small, and quick to start: it holds some megabytes at most.
            "-Xmx128m",
            "-Xms32m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Djava.net.preferIPv4Stack=true",
            &force_sync,
            "-cp",
            &class_path,
            "org.apache.zookeeper.server.quorum.QuorumPeerMain",
            &config.to_string_lossy(),
        ];
        let launch = Launch {
            program: Path::new("java"),
            args: &args,
            dir,
            out: &self.out_file(number),
            ticket: &self.ticket_file(number),
            detached: self.detached,
        };
        launch.spawn()?;
        Ok(())
    }

    /// kill -9, and waits for the end.
    pub fn kill(&self, number: u16) -> Result<()> {
        self.end(&[number], Signal::KILL).map(drop)
    }

    pub fn kill_all(&self) -> Result<Vec<u16>> {
        self.end(&self.numbers().collect::<Vec<_>>(), Signal::KILL)
    }

    /// SIGTERM to all, and waits for the end; the numbers of those that ran.
    pub fn stop_all(&self) -> Result<Vec<u16>> {
        self.end(&self.numbers().collect::<Vec<_>>(), Signal::TERM)
    }

    /// SIGSTOP: it is silent until [`Self::resume`], and its connections stay open.
    pub fn pause(&self, number: u16) -> Result<()> {
        self.signal(number, Signal::STOP)
    }

    pub fn resume(&self, number: u16) -> Result<()> {
        self.signal(number, Signal::CONT)
    }

    fn signal(&self, number: u16, signal: Signal) -> Result<()> {
        match self.ticket(number)? {
            Some(ticket) if ticket.signal(signal)? => Ok(()),
            _ => bail!("{} does not run", Self::name(number)),
        }
    }

    fn end(&self, numbers: &[u16], signal: Signal) -> Result<Vec<u16>> {
        let mut ending = Vec::new();
        let mut ran = Vec::new();
        for number in numbers {
            if let Some(ticket) = self.ticket(*number)? {
                if ticket.signal(signal)? {
                    ran.push(*number);
                    ticket.signal(Signal::CONT)?; // a paused one would not notice SIGTERM
                }
                ending.push((*number, ticket));
            }
        }
        let within = if signal == Signal::KILL { KILL_WITHIN } else { STOP_WITHIN };
        let begun = Instant::now();
        for (number, ticket) in ending {
            // A server that takes its time is killed: what it has answered is in its log.
            if !ticket.wait_end(within.saturating_sub(begun.elapsed())) {
                ticket.signal(Signal::KILL)?;
                ticket.wait_end(KILL_WITHIN);
            }
            crate::cluster::remove_if_there(&self.ticket_file(number))?;
        }
        Ok(ran)
    }

    /// `standalone`, `leader` or `follower`; None while it does not serve.
    pub fn mode(&self, number: u16) -> Option<String> {
        let answer = four_letters(self.address(number), "srvr").ok()?;
        answer.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
    }

    /// The server that leads the others, or is alone.
    pub fn leader(&self) -> Option<u16> {
        self.numbers()
            .find(|number| self.mode(*number).is_some_and(|mode| mode == "leader" || mode == "standalone"))
    }

    /// Waits until every server that runs serves. Fails at once when one has ended by itself.
    pub fn wait_serving(&self, within: Duration) -> Result<()> {
        let begun = Instant::now();
        loop {
            let mut missing = Vec::new();
            for number in self.numbers() {
                let name = Self::name(number);
                match self.state(number)? {
                    State::Dead => bail!("{name} has ended by itself:\n{}", self.last_words(number)),
                    State::Stopped | State::Paused => {}
                    State::Running if self.mode(number).is_none() => missing.push((name, number)),
                    State::Running => {}
                }
            }
            let Some((name, number)) = missing.first() else { return Ok(()) };
            if begun.elapsed() >= within {
                bail!("{name} does not serve within {} s:\n{}", within.as_secs(), self.last_words(*number));
            }
            sleep(SERVING_INTERVAL);
        }
    }

    fn last_words(&self, number: u16) -> String {
        let file = self.out_file(number);
        format!("{}:\n{}", file.display(), Cluster::last_lines(&file, LINES_SHOWN))
    }

    /// Kills it and removes everything that it has put into its directory.
    pub fn remove(self) -> Result<()> {
        self.kill_all()?;
        for number in self.numbers() {
            match fs::remove_dir_all(self.server_dir(number)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("remove {}", self.server_dir(number).display()));
                }
                _ => {}
            }
        }
        // Last: an interrupted removal can be repeated.
        crate::cluster::remove_if_there(&self.dir.join(PLAN_FILE))
    }

    fn server_dir(&self, number: u16) -> PathBuf {
        self.dir.join(Self::name(number))
    }

    fn ticket_file(&self, number: u16) -> PathBuf {
        self.server_dir(number).join("pid")
    }

    fn ticket(&self, number: u16) -> Result<Option<Ticket>> {
        Ticket::read(&self.ticket_file(number))
    }
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        let Some(temporary) = self.temporary.take() else { return };
        let killed = self.kill_all();
        if std::thread::panicking() {
            for number in self.numbers() {
                eprintln!("--- end of {}", self.last_words(number));
            }
            eprintln!("--- the files of ZooKeeper stay in {}", temporary.keep().display());
        }
        if let Err(error) = killed {
            eprintln!("{error:#}");
        }
    }
}

/// Why a server cannot listen where it has to.
fn obstacles(plan: &ZooKeeperPlan, number: u16) -> Vec<String> {
    let name = ZooKeeper::name(number);
    let ports: &[u16] =
        if plan.servers > 1 { &[CLIENT_PORT, QUORUM_PORT, ELECTION_PORT] } else { &[CLIENT_PORT] };
    ports.iter().filter_map(|port| ports::obstacle(&name, plan.address(*port, number))).collect()
}

/// One of ZooKeeper's four-letter commands.
fn four_letters(address: SocketAddrV4, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(command.as_bytes())?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(servers: u16) -> ZooKeeperPlan {
        ZooKeeperPlan { servers, host: Ipv4Addr::new(127, 9, 8, 7), port_base: 100, sync: true }
    }

    #[test]
    fn the_file_of_a_server() {
        let alone = plan(1).config(1, Path::new("/a/zookeeper1"));
        for line in ["dataDir=/a/zookeeper1/data", "clientPort=22281", "clientPortAddress=127.9.8.7"] {
            assert!(alone.lines().any(|have| have == line), "{line}\n{alone}");
        }
        assert!(!alone.contains("server."));
        let third = plan(3).config(3, Path::new("/a/zookeeper3"));
        for line in ["clientPort=22283", "server.1=127.9.8.7:22988:23988", "server.3=127.9.8.7:22990:23990"] {
            assert!(third.lines().any(|have| have == line), "{line}\n{third}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (servers, port_base, why) in
            [(2, 0, "1, 3, 5 or 7"), (0, 0, "1, 3, 5 or 7"), (9, 0, "1, 3, 5"), (1, 40_000, "at most")]
        {
            let plan = ZooKeeperPlan { port_base, ..plan(servers) };
            let told = plan.check().unwrap_err().to_string();
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn a_plan_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ZooKeeper::open(dir.path()).unwrap().is_none());
        fs::write(dir.path().join(PLAN_FILE), serde_json::to_vec(&plan(3)).unwrap()).unwrap();
        let zookeeper = ZooKeeper::open(dir.path()).unwrap().unwrap();
        assert_eq!(zookeeper.plan(), &plan(3));
        assert_eq!(zookeeper.hosts(), "127.9.8.7:22281,127.9.8.7:22282,127.9.8.7:22283");
        assert_eq!(zookeeper.state(1).unwrap(), State::Stopped);
        assert!(zookeeper.pause(1).is_err());
    }
}
