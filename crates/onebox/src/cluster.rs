//! The cluster as a directory and its processes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;

use crate::member::{Member, Role};
use crate::ports::holder_of;
use crate::process::{self, Identity};
use crate::shape::Shape;

/// A server bounds its own end at 20 s; what takes longer is killed.
const STOP_WITHIN: Duration = Duration::from_secs(25);
const KILL_WITHIN: Duration = Duration::from_secs(10);
/// Of a log that is shown.
const TAIL_BYTES: u64 = 64 << 10;

/// A cluster in a directory. Dropping it leaves the processes alone; see [`Cluster::kill_on_drop`].
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    shape: Shape,
    bin_dir: PathBuf,
    /// Of processes that this very object has started: they have to be waited for, or they stay zombies.
    children: RefCell<BTreeMap<String, Child>>,
    kill_on_drop: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    Stopped,
}

/// One line of the list.
#[derive(Clone, Debug)]
pub struct Listed {
    pub member: Member,
    pub pid: Option<i32>,
    pub state: State,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let state = match self.state {
            State::Running => "running",
            State::Stopped => "stopped",
        };
        let Member { name, role, .. } = &self.member;
        write!(f, "{name:<10} {role:<10} {:<16} {pid:<8} {state}", self.member.address())
    }
}

impl Cluster {
    /// Makes the directory of a new cluster; nothing is started. Programs are looked for in `bin_dir`.
    pub fn create(dir: &Path, shape: Shape, bin_dir: &Path) -> anyhow::Result<Self> {
        shape.check()?;
        if dir.exists() && fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{} exists and is not empty, but no onebox: choose another ONEBOX_DIR", dir.display());
        }
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let text = serde_json::to_string_pretty(&shape)?;
        fs::write(shape_file(dir), text + "\n").with_context(|| format!("write into {}", dir.display()))?;
        Self::open(dir, bin_dir)?.context("just made")
    }

    /// None when there is no onebox in this directory.
    pub fn open(dir: &Path, bin_dir: &Path) -> anyhow::Result<Option<Self>> {
        let file = shape_file(dir);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(format!("read {}", file.display())),
        };
        let shape = serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))?;
        let dir = fs::canonicalize(dir).with_context(|| format!("find {}", dir.display()))?;
        Ok(Some(Self {
            dir,
            shape,
            bin_dir: bin_dir.to_owned(),
            children: RefCell::default(),
            kill_on_drop: false,
        }))
    }

    /// For tests: kill -9 of whatever still runs when this goes.
    #[must_use]
    pub fn kill_on_drop(mut self) -> Self {
        self.kill_on_drop = true;
        self
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn member_dir(&self, member: &Member) -> PathBuf {
        self.dir.join(&member.name)
    }

    /// The member of that name, or all.
    pub fn members(&self, name: Option<&str>) -> anyhow::Result<Vec<Member>> {
        let all = self.shape.members();
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(all) };
        let names = all.iter().map(|m| m.name.clone()).collect::<Vec<_>>().join(", ");
        let found: Vec<_> = all.into_iter().filter(|m| m.name == name).collect();
        ensure!(!found.is_empty(), "NAME={name}: no such process, there are {names}");
        Ok(found)
    }

    /// Starts what does not run (`name`: only that one) and returns the names of what it started. All ports are
    /// looked at first: either everything is started, or nothing.
    pub fn start(&self, name: Option<&str>) -> anyhow::Result<Vec<String>> {
        let idle: Vec<_> =
            self.members(name)?.into_iter().filter(|member| self.identity(member).is_none()).collect();
        let taken: Vec<_> = idle
            .iter()
            .filter_map(|m| {
                Some(format!("port {} of {} is in use by {}", m.port, m.name, holder_of(m.port)?))
            })
            .collect();
        if !taken.is_empty() {
            bail!("{}\nStop these, or use other ports: PORT_BASE=1000 adds 1000 to each.", taken.join("\n"));
        }
        for member in &idle {
            self.start_member(member).with_context(|| format!("start {}", member.name))?;
        }
        Ok(idle.into_iter().map(|m| m.name).collect())
    }

    fn start_member(&self, member: &Member) -> anyhow::Result<()> {
        let dir = self.member_dir(member);
        fs::create_dir_all(&dir)?;
        let config = dir.join("config.ini");
        fs::write(&config, member.config(&self.shape, &dir))?;
        let program = self.bin_dir.join("pegasus_server");
        ensure!(program.is_file(), "{} is missing: `make build` builds it", program.display());
        let config = config.to_str().context("the path of the onebox is not UTF-8")?;
        let role = member.role.to_string();
        let args = [config, "-app_list", &role];
        let (child, _) = process::start(&program, &args, &dir.join("out.log"), &dir.join("pid"))?;
        if let Some(mut old) = self.children.borrow_mut().insert(member.name.clone(), child) {
            // It has ended, or it would not have been started again.
            let _ = old.wait();
        }
        Ok(())
    }

    /// SIGTERM, and SIGKILL for what has not ended after 25 s. Collector first, metas last.
    pub fn stop(&self, name: Option<&str>) -> anyhow::Result<Vec<String>> {
        let mut running = self.running(name)?;
        running.reverse();
        for (_, identity) in &running {
            identity.signal(Signal::TERM)?;
        }
        for (member, identity) in &running {
            if !identity.wait_for_end(STOP_WITHIN) {
                identity.signal(Signal::KILL)?;
                ensure!(identity.wait_for_end(KILL_WITHIN), "{} does not end", member.name);
            }
            self.gone(member);
        }
        Ok(running.into_iter().map(|(m, _)| m.name).collect())
    }

    /// SIGKILL, to all at once.
    pub fn kill(&self, name: Option<&str>) -> anyhow::Result<Vec<String>> {
        let running = self.running(name)?;
        self.signal(name, Signal::KILL)?;
        for (member, identity) in &running {
            ensure!(identity.wait_for_end(KILL_WITHIN), "{} does not end", member.name);
            self.gone(member);
        }
        Ok(running.into_iter().map(|(m, _)| m.name).collect())
    }

    /// Sends a signal to what runs and does not wait, for example STOP and CONT.
    pub fn signal(&self, name: Option<&str>, signal: Signal) -> anyhow::Result<()> {
        self.running(name)?.iter().try_for_each(|(_, identity)| identity.signal(signal))
    }

    /// Kills everything and removes the directory.
    pub fn clear(self) -> anyhow::Result<()> {
        self.kill(None)?;
        // A directory that was opened is a onebox: it holds our shape file. That goes last, so that an
        // interrupted clear can be repeated.
        for member in self.shape.members() {
            let dir = self.member_dir(&member);
            if dir.exists() {
                fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
            }
        }
        fs::remove_file(shape_file(&self.dir))?;
        // Whatever somebody else has put there stays, and so does the directory.
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }

    pub fn list(&self) -> Vec<Listed> {
        let listed = |member: Member| {
            let pid = self.identity(&member).map(|identity| identity.pid());
            let state = if pid.is_some() { State::Running } else { State::Stopped };
            Listed { member, pid, state }
        };
        self.shape.members().into_iter().map(listed).collect()
    }

    /// The last lines of what a member prints and logs.
    pub fn output(&self, member: &Member, lines: usize) -> String {
        let dir = self.member_dir(member);
        let log = dir.join("log").join(format!("{}.log", member.role));
        let file = if log.exists() && tail(&log, 1).is_some_and(|t| !t.is_empty()) {
            log
        } else {
            dir.join("out.log")
        };
        tail(&file, lines).unwrap_or_default()
    }

    /// Files that a member prints and logs into.
    pub fn log_files(&self, member: &Member) -> [PathBuf; 2] {
        let dir = self.member_dir(member);
        [dir.join("out.log"), dir.join("log").join(format!("{}.log", member.role))]
    }

    /// A process that this object has started and that has ended without being asked to.
    pub(crate) fn ended_by_itself(&self) -> Option<Member> {
        let started: Vec<_> = self.children.borrow().keys().cloned().collect();
        self.shape.members().into_iter().find(|m| started.contains(&m.name) && self.identity(m).is_none())
    }

    fn running(&self, name: Option<&str>) -> anyhow::Result<Vec<(Member, Identity)>> {
        let members = self.members(name)?.into_iter();
        Ok(members.filter_map(|m| self.identity(&m).map(|identity| (m, identity))).collect())
    }

    /// None when it does not run.
    fn identity(&self, member: &Member) -> Option<Identity> {
        Identity::read(&self.member_dir(member).join("pid")).filter(Identity::is_alive)
    }

    fn gone(&self, member: &Member) {
        if let Some(mut child) = self.children.borrow_mut().remove(&member.name) {
            let _ = child.wait();
        }
        let _ = fs::remove_file(self.member_dir(member).join("pid"));
    }

    /// Addresses of a role.
    pub fn addresses(&self, role: Role) -> Vec<String> {
        self.shape.members().iter().filter(|m| m.role == role).map(Member::address).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.kill_on_drop {
            // Nobody is left to be told.
            let _ = self.kill(None);
        }
    }
}

fn shape_file(dir: &Path) -> PathBuf {
    dir.join("onebox.json")
}

fn tail(file: &Path, lines: usize) -> Option<String> {
    let mut file = fs::File::open(file).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text.lines().collect();
    Some(all[all.len().saturating_sub(lines)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Durability, Engine, Ports};

    fn shape() -> Shape {
        Shape {
            ports: Ports { metas: vec![11], replicas: vec![12, 13], collector: 14 },
            partitions: 4,
            durability: Durability::PageCache,
            engine: Engine::Lsm,
            settings: vec![("replication".into(), "lease_ms".into(), "300".into())],
        }
    }

    #[test]
    fn a_cluster_is_remembered_and_cleared() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("onebox");
        assert!(Cluster::open(&dir, parent.path()).unwrap().is_none());
        Cluster::create(&dir, shape(), parent.path()).unwrap();
        let cluster = Cluster::open(&dir, parent.path()).unwrap().unwrap();
        assert_eq!(*cluster.shape(), shape());
        assert_eq!(cluster.list().len(), 4);
        assert_eq!(cluster.list()[1].to_string(), "replica1   replica    127.0.0.1:12     -        stopped");
        assert!(cluster.members(Some("replica9")).unwrap_err().to_string().contains("collector"));
        assert_eq!(cluster.members(Some("")).unwrap().len(), 4);
        let missing = cluster.start(Some("replica1")).unwrap_err();
        assert!(format!("{missing:#}").contains("make build"), "{missing:#}");
        cluster.clear().unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn other_peoples_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "").unwrap();
        assert!(Cluster::create(dir.path(), shape(), dir.path()).is_err());
        let inside = dir.path().join("onebox");
        let cluster = Cluster::create(&inside, shape(), dir.path()).unwrap();
        fs::write(inside.join("precious"), "").unwrap();
        cluster.clear().unwrap();
        assert!(inside.join("precious").exists() && !inside.join("onebox.json").exists());
    }

    #[test]
    fn configurations() {
        let dir = Path::new("d");
        let members = shape().members();
        let replica = members[1].config(&shape(), dir);
        for part in [
            "[apps.replica]\nports = 12\n",
            "durability = page_cache\n",
            "engine = lsm\n",
            "lease_ms = 300\n",
        ] {
            assert!(replica.contains(part), "{replica}");
        }
        let meta = members[0].config(&shape(), dir);
        assert!(
            meta.contains("[meta_server.apps.temp]\npartition_count = 4\nmax_replica_count = 2\n"),
            "{meta}"
        );
    }
}
