//! The processes of one cluster.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::members::{Member, members, meta_list};
use crate::process::{LOOK_INTERVAL, Launch, State, Ticket};
use crate::{Lock, Options, Plan, Role, ZooKeeper, config_file, health, ports};

/// A replica-server hands its partitions over first, in at most 60 s, and bounds its own clean end by 15 s; later it
/// hangs.
const STOP_WITHIN: Duration = Duration::from_secs(80);
/// The kernel's work after kill -9: closing files, freeing memory.
const KILL_WITHIN: Duration = Duration::from_secs(10);
/// Lines of each process's output that a failure shows.
const LINES_SHOWN: usize = 30;

/// A line of `make onebox-list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub member: Member,
    /// None when it does not run.
    pub pid: Option<i32>,
    pub state: State,
    /// It runs a program that has been replaced since, by a newer build.
    pub outdated: bool,
}

/// A cluster on this machine.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    plan: Plan,
    members: Vec<Member>,
    server: PathBuf,
    /// Of a test's cluster: ends with this value.
    temporary: Option<TempDir>,
}

impl Cluster {
    /// A new cluster in a temporary directory, on a loopback address of its own, all processes started. It ends when
    /// the value is dropped. Not healthy yet: [`Self::wait_healthy`].
    pub fn start(options: Options) -> Result<Self> {
        options.check()?;
        let server = find_server()?;
        let temporary = tempfile::Builder::new().prefix("pegasus-onebox-").tempdir()?;
        let plan = plan_on_own_address(options)?;
        let members = members(&plan)?;
        let dir = temporary.path().to_owned();
        plan.write(&dir)?;
        let cluster = Self { dir, plan, members, server, temporary: Some(temporary) };
        cluster.start_all()?;
        Ok(cluster)
    }

    /// The cluster in `dir`; None when there is none. Its processes outlive this value.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let Some(plan) = Plan::read(dir)? else { return Ok(None) };
        let members = members(&plan)?;
        Ok(Some(Self { dir: dir.canonicalize()?, plan, members, server: find_server()?, temporary: None }))
    }

    /// Writes the plan of a new cluster to `dir`, which is locked and else empty, and starts nothing.
    pub fn create(dir: &Path, plan: Plan) -> Result<Self> {
        plan.options.check()?;
        let members = members(&plan)?;
        let server = find_server()?;
        let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
        if entries.flatten().any(|entry| entry.file_name() != Lock::FILE) {
            bail!("{} holds other things than a onebox: choose an empty or a new directory", dir.display());
        }
        plan.write(dir)?;
        Ok(Self { dir: dir.canonicalize()?, plan, members, server, temporary: None })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// One more replica-server, started and part of the plan from now on; its name. The meta-server gives it its share
    /// of the replicas.
    pub fn add_replica(&mut self) -> Result<String> {
        let mut plan = self.plan.clone();
        plan.options.replicas += 1;
        plan.options.check()?;
        let members = members(&plan)?;
        let name = format!("replica{}", plan.options.replicas);
        plan.write(&self.dir)?;
        (self.plan, self.members) = (plan, members);
        self.start_member(&name)?;
        Ok(name)
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// `host:port,..` of the meta-servers, as clients want it.
    pub fn metas(&self) -> String {
        meta_list(&self.members)
    }

    pub fn member(&self, name: &str) -> Result<&Member> {
        self.members.iter().find(|member| member.name == name).with_context(|| {
            let names: Vec<_> = self.members.iter().map(|member| member.name.as_str()).collect();
            format!("no process is named {name:?}; there are {}", names.join(" "))
        })
    }

    /// Which member listens there: from the primary's address of a partition to its name.
    pub fn member_at(&self, address: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.address.to_string() == address)
    }

    /// Directory of a member: `config.ini`, `out` (what it prints), `log/`, its data.
    pub fn member_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn log_file(&self, member: &Member) -> PathBuf {
        self.member_dir(&member.name).join("log").join(format!("{}.log", member.role.name()))
    }

    /// What a member prints: its first lines, warnings and errors.
    pub fn out_file(&self, member: &Member) -> PathBuf {
        self.member_dir(&member.name).join("out")
    }

    pub fn status(&self, name: &str) -> Result<Status> {
        let member = self.member(name)?.clone();
        let ticket = self.ticket(name)?;
        let state = ticket.as_ref().map_or(State::Stopped, Ticket::state);
        let pid = ticket.map(|ticket| ticket.pid).filter(|_| state.is_alive());
        let outdated = pid.is_some_and(|pid| {
            fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|program| program.to_string_lossy().ends_with(" (deleted)"))
        });
        Ok(Status { member, pid, state, outdated })
    }

    /// Of a running member.
    pub fn pid(&self, name: &str) -> Result<i32> {
        self.status(name)?.pid.with_context(|| format!("{name} does not run"))
    }

    /// Starts a member that does not run; true when it was started.
    pub fn start_member(&self, name: &str) -> Result<bool> {
        Ok(!self.start_those(&[self.member(name)?])?.is_empty())
    }

    /// Starts what does not run; the names of those that were started.
    pub fn start_all(&self) -> Result<Vec<String>> {
        self.start_those(&self.members.iter().collect::<Vec<_>>())
    }

    /// All ports are looked at first: it starts everything or nothing.
    fn start_those(&self, members: &[&Member]) -> Result<Vec<String>> {
        let mut idle = Vec::new();
        for member in members {
            if !self.status(&member.name)?.state.is_alive() {
                idle.push(*member);
            }
        }
        let taken = ports::after_grace(|| idle.iter().flat_map(|member| self.obstacles(member)).collect());
        if !taken.is_empty() {
            bail!("{}", taken.join("\n"));
        }
        for member in &idle {
            self.launch(member)?;
        }
        Ok(idle.iter().map(|member| member.name.clone()).collect())
    }

    fn obstacles(&self, member: &Member) -> Vec<String> {
        match self.zookeeper_of(member) {
            Some((zookeeper, number)) => zookeeper.obstacles(number),
            None => ports::obstacle(&member.name, member.address).into_iter().collect(),
        }
    }

    /// The ZooKeeper to which it belongs, and its number there.
    fn zookeeper_of(&self, member: &Member) -> Option<(ZooKeeper, u16)> {
        let plan = self.plan.zookeeper()?;
        let number = plan.numbers().find(|number| ZooKeeper::name(*number) == member.name)?;
        Some((ZooKeeper::of_cluster(&self.dir, plan, self.temporary.is_none()), number))
    }

    /// The cluster's own ZooKeeper.
    pub fn zookeeper(&self) -> Option<ZooKeeper> {
        let plan = self.plan.zookeeper()?;
        Some(ZooKeeper::of_cluster(&self.dir, plan, self.temporary.is_none()))
    }

    fn launch(&self, member: &Member) -> Result<()> {
        if let Some((zookeeper, number)) = self.zookeeper_of(member) {
            return zookeeper.launch(number).with_context(|| format!("start {}", member.name));
        }
        let dir = &self.member_dir(&member.name);
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let config = dir.join("config.ini");
        if !config.exists() {
            // Once: what somebody changes in it stays.
            fs::write(&config, config_file::text(&self.plan, &self.members, member, dir)?)
                .with_context(|| format!("write {}", config.display()))?;
        }
        let args = [&*config.to_string_lossy(), "-app_list", member.role.name()];
        let launch = Launch {
            program: &self.server,
            args: &args,
            dir,
            out: &self.out_file(member),
            ticket: &self.ticket_file(&member.name),
            detached: self.temporary.is_none(),
        };
        launch.spawn().with_context(|| format!("start {}", member.name))?;
        Ok(())
    }

    /// SIGTERM, and waits for the end: a replica-server hands over what it serves first. One that hangs is killed, which
    /// is an error.
    pub fn stop(&self, name: &str) -> Result<()> {
        self.end(&[self.member(name)?], Signal::TERM).map(drop)
    }

    /// SIGINT to all, which hands nothing over, and waits for the end; the names of those that ran.
    pub fn stop_all(&self) -> Result<Vec<String>> {
        // Meta-servers give their place back to ZooKeeper, which ends after them.
        let is_zookeeper = |member: &&Member| member.role == Role::ZooKeeper;
        let (last, first): (Vec<&Member>, Vec<&Member>) = self.members.iter().partition(is_zookeeper);
        let mut ran = self.end(&first, Signal::INT)?;
        ran.extend(self.end(&last, Signal::TERM)?);
        Ok(ran)
    }

    /// kill -9, and waits for the end.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.end(&[self.member(name)?], Signal::KILL).map(drop)
    }

    /// kill -9 to all at once; the names of those that ran.
    pub fn kill_all(&self) -> Result<Vec<String>> {
        self.end(&self.members.iter().collect::<Vec<_>>(), Signal::KILL)
    }

    /// SIGSTOP, and waits until it hangs; its connections stay open.
    pub fn pause(&self, name: &str) -> Result<()> {
        self.signal(name, Signal::STOP)?;
        let begun = Instant::now();
        while self.status(name)?.state == State::Running {
            if begun.elapsed() >= KILL_WITHIN {
                bail!("{name} does not stop");
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    pub fn resume(&self, name: &str) -> Result<()> {
        self.signal(name, Signal::CONT)
    }

    /// kill -9 to all, then removes what a cluster writes into its directory.
    pub fn remove(self) -> Result<()> {
        self.kill_all()?;
        for member in &self.members {
            let dir = self.member_dir(&member.name);
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", dir.display()));
                }
                _ => {}
            }
        }
        // The plan goes last: an interrupted removal can be repeated.
        Plan::remove(&self.dir)
    }

    /// Waits until every replica-server that runs has reported, every partition of table `temp` has all its replicas
    /// and answers a read. Fails when the time is over, or at once when a process has ended by itself.
    ///
    /// A member that died a moment ago may still be counted: the meta-server learns of it within about a second.
    /// May be called from anywhere, also from within a tokio runtime (whose thread it blocks).
    pub fn wait_healthy(&self, within: Duration) -> Result<()> {
        self.wait_healthy_telling(within, &mut |_| {})
    }

    /// The same; `tell` gets what is still missing, again and again.
    pub fn wait_healthy_telling(&self, within: Duration, tell: &mut (dyn FnMut(&str) + Send)) -> Result<()> {
        let begun = Instant::now();
        let mut replicas = Vec::new();
        for member in self.members.iter().filter(|member| member.role == Role::Replica) {
            if self.status(&member.name)?.state == State::Running {
                replicas.push(member.address.to_string());
            }
        }
        let mut go_on = |missing: &str| {
            self.check_none_dead()?;
            if begun.elapsed() >= within {
                bail!("not healthy within {} s: {missing}", within.as_secs());
            }
            tell(missing);
            Ok(())
        };
        // A thread of its own: a runtime cannot be entered from within another.
        std::thread::scope(|scope| {
            let wait = scope.spawn(|| health::wait(&self.metas(), &replicas, &mut go_on));
            wait.join().unwrap_or_else(|_| bail!("the thread that waits panicked"))
        })
    }

    /// The last lines of a file, for people.
    pub fn last_lines(file: &Path, lines: usize) -> String {
        let bytes = fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn check_none_dead(&self) -> Result<()> {
        for member in &self.members {
            if self.status(&member.name)?.state == State::Dead {
                let out = self.out_file(member);
                let end = Self::last_lines(&out, LINES_SHOWN);
                bail!("{} has ended by itself; the end of {}:\n{end}", member.name, out.display());
            }
        }
        Ok(())
    }

    fn ticket_file(&self, name: &str) -> PathBuf {
        self.member_dir(name).join("pid")
    }

    fn ticket(&self, name: &str) -> Result<Option<Ticket>> {
        Ticket::read(&self.ticket_file(name))
    }

    fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        self.member(name)?;
        match self.ticket(name)? {
            Some(ticket) if ticket.signal(signal)? => Ok(()),
            _ => bail!("{name} does not run"),
        }
    }

    /// All get the signal before any is waited for. The names of those that ran.
    fn end(&self, members: &[&Member], signal: Signal) -> Result<Vec<String>> {
        let mut ending = Vec::new();
        let mut ran = Vec::new();
        for member in members {
            if let Some(ticket) = self.ticket(&member.name)? {
                if ticket.signal(signal)? {
                    ran.push(member.name.clone());
                    ticket.signal(Signal::CONT)?; // a paused one would not notice the others
                }
                ending.push((&member.name, ticket));
            }
        }
        let within = if signal == Signal::KILL { KILL_WITHIN } else { STOP_WITHIN };
        let begun = Instant::now();
        let mut hung = Vec::new();
        for (name, ticket) in ending {
            if !ticket.wait_end(within.saturating_sub(begun.elapsed())) {
                hung.push(name.as_str());
                ticket.signal(Signal::KILL)?;
                ticket.wait_end(KILL_WITHIN);
            }
            remove_if_there(&self.ticket_file(name))?;
        }
        if !hung.is_empty() {
            bail!("{} did not end within {} s and had to be killed", hung.join(", "), within.as_secs());
        }
        Ok(ran)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(temporary) = self.temporary.take() else { return };
        let killed = self.kill_all();
        if std::thread::panicking() {
            // A failed test: what the servers said is the first that one wants to see, and the rest stays to be read.
            let dir = temporary.keep();
            eprintln!("--- the cluster's files stay in {}", dir.display());
            for member in &self.members {
                let file = self.log_file(member);
                eprintln!("--- end of {}\n{}", file.display(), Self::last_lines(&file, LINES_SHOWN));
            }
        }
        if let Err(error) = killed {
            eprintln!("{error:#}");
        }
    }
}

/// `pegasus_server`: `$PEGASUS_SERVER`, else beside our own program (a test's is one directory further down).
pub fn find_server() -> Result<PathBuf> {
    const NAME: &str = "pegasus_server";
    if let Some(path) = std::env::var_os("PEGASUS_SERVER") {
        let path = PathBuf::from(path);
        return path.canonicalize().with_context(|| format!("PEGASUS_SERVER={}", path.display()));
    }
    let own = std::env::current_exe().context("own program")?;
    let mut dirs = own.ancestors().skip(1).take(2);
    match dirs.find(|dir| dir.join(NAME).is_file()) {
        Some(dir) => Ok(dir.join(NAME)),
        None => bail!(
            "{NAME} is not where {} is: build it first (`make build`; for tests `cargo build -p pegasus-server`)",
            own.display()
        ),
    }
}

pub(crate) fn remove_if_there(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

fn plan_on_own_address(options: Options) -> Result<Plan> {
    let plan = |host| Plan { options: options.clone(), host, port_base: 0 };
    members(&plan(Ipv4Addr::LOCALHOST))?; // whatever is wrong with it is wrong with every address
    let free = |member: &Member| ports::obstacle(&member.name, member.address).is_none();
    let host = ports::own_address(|host| members(&plan(host)).is_ok_and(|all| all.iter().all(free)))?;
    Ok(plan(host))
}
