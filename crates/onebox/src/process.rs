//! Processes that outlive us, and never a signal to one that is not ours.
//!
//! A pid is reused. So a ticket holds the start time too, and a signal goes through a pidfd that was opened before the
//! start time is compared: between the look and the signal the process cannot become another one.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};
use serde::{Deserialize, Serialize};

/// Between looks at a process that is to end or to stop.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What a member's process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    /// By SIGSTOP.
    Paused,
    /// Nobody wants it to run.
    Stopped,
    /// It ended by itself.
    Dead,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Dead => "dead",
        }
    }

    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// Which process, for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    pub pid: i32,
    /// Clock ticks since boot.
    start: u64,
    /// Ticks begin anew with each boot.
    boot: String,
}

/// The fields of /proc/PID/stat that we need.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    start: u64,
}

impl Ticket {
    /// The ticket of a process that is known to be the right one: a child that nobody has waited for.
    fn of_child(pid: i32) -> Result<Self> {
        let stat = stat(pid).with_context(|| format!("/proc/{pid}/stat"))?;
        Ok(Self { pid, start: stat.start, boot: boot_id()? })
    }

    /// None: never started, or stopped on purpose.
    pub fn read(file: &Path) -> Result<Option<Self>> {
        match fs::read(file) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()), // a torn one is of a start that did not happen
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Replaces the file at once: who looks meanwhile sees the old one or the new one.
    fn write(&self, file: &Path) -> Result<()> {
        let new = file.with_extension("tmp");
        fs::write(&new, serde_json::to_vec(self)?)
            .and_then(|()| fs::rename(&new, file))
            .with_context(|| format!("write {}", file.display()))
    }

    pub fn state(&self) -> State {
        let same = |stat: &Stat| stat.start == self.start && boot_id().is_ok_and(|boot| boot == self.boot);
        match stat(self.pid).filter(same) {
            None => State::Dead,
            // A zombie has ended, and whoever started it has not noticed yet. But while other threads still end, so do
            // their files: the port is not free.
            Some(Stat { state: 'Z' | 'X', .. }) if threads(self.pid) <= 1 => State::Dead,
            Some(Stat { state: 'T' | 't', .. }) => State::Paused,
            Some(_) => State::Running,
        }
    }

    /// False when there is no such process any more.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(false) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH | Errno::INVAL) => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("pidfd of {}", self.pid)),
        };
        if !self.state().is_alive() {
            return Ok(false);
        }
        match pidfd_send_signal(fd, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("signal to {}", self.pid)),
        }
    }

    /// True when it has ended within the time.
    pub fn wait_end(&self, within: Duration) -> bool {
        let begun = Instant::now();
        loop {
            if !self.state().is_alive() {
                self.reap();
                return true;
            }
            if begun.elapsed() >= within {
                return false;
            }
            sleep(LOOK_INTERVAL);
        }
    }

    /// Takes a zombie away, if it is our child; of others' children the error says so, and they take care.
    fn reap(&self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// How a process is to be started.
#[derive(Debug)]
pub struct Launch<'a> {
    pub program: &'a Path,
    pub args: &'a [&'a str],
    pub dir: &'a Path,
    /// What it prints is appended to this file.
    pub out: &'a Path,
    /// Where its ticket is written.
    pub ticket: &'a Path,
    /// In a session of its own, so that neither Ctrl-C nor the end of the terminal reaches it. For tests not: there
    /// Ctrl-C is to end all.
    pub detached: bool,
}

impl Launch<'_> {
    pub fn spawn(&self) -> Result<Ticket> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(self.out)
            .with_context(|| format!("open {}", self.out.display()))?;
        let mut command = if self.detached {
            // setsid() between fork and exec would be unsafe code; Debian's setsid (util-linux, essential) execs, so
            // the pid stays the same.
            let mut command = Command::new("setsid");
            command.arg(self.program);
            command
        } else {
            Command::new(self.program)
        };
        command
            .args(self.args)
            .current_dir(self.dir)
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out);
        let child = command.spawn().with_context(|| format!("start {}", self.program.display()))?;
        let ticket = Ticket::of_child(i32::try_from(child.id())?)?;
        ticket.write(self.ticket)?;
        Ok(ticket)
    }
}

/// Those that have not ended, and the first one.
fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (name) state ... starttime(22) ...`; the name may hold anything, so count from its end.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    Some(Stat { state: fields.next()?.chars().next()?, start: fields.nth(18)?.parse().ok()? })
}

fn boot_id() -> Result<String> {
    let file = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(file).context(file)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let text = "17 (a ) b) S 1 1 1 0 -1 4 0 0 0 0 5 6 7 8 20 0 1 0 4711 8 9";
        assert_eq!(parse_stat(text), Some(Stat { state: 'S', start: 4711 }));
        assert_eq!(parse_stat("17 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    fn sleeper(dir: &Path, detached: bool) -> Ticket {
        let (out, ticket) = (&dir.join("out"), &dir.join("pid"));
        let program = Path::new("/bin/sleep");
        Launch { program, args: &["60"], dir, out, ticket, detached }.spawn().unwrap()
    }

    #[test]
    fn a_process_runs_pauses_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        for detached in [false, true] {
            let ticket = sleeper(dir.path(), detached);
            assert_eq!(Ticket::read(&dir.path().join("pid")).unwrap(), Some(ticket.clone()));
            assert_eq!(ticket.state(), State::Running);
            assert!(ticket.signal(Signal::STOP).unwrap());
            let begun = Instant::now();
            while ticket.state() != State::Paused {
                assert!(begun.elapsed() < Duration::from_secs(5));
            }
            assert!(!ticket.wait_end(Duration::from_millis(20)));
            assert!(ticket.signal(Signal::KILL).unwrap());
            assert!(ticket.wait_end(Duration::from_secs(5)));
            assert_eq!(ticket.state(), State::Dead);
            assert!(!ticket.signal(Signal::TERM).unwrap());
        }
    }

    #[test]
    fn a_reused_pid_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let real = sleeper(dir.path(), false);
        let mut others = [real.clone(), real.clone()];
        others[0].start -= 1;
        others[1].boot = "another".into();
        for other in others {
            assert_eq!(other.state(), State::Dead);
            assert!(!other.signal(Signal::KILL).unwrap());
        }
        assert_eq!(real.state(), State::Running);
        real.signal(Signal::KILL).unwrap();
        assert!(real.wait_end(Duration::from_secs(5)));
    }

    #[test]
    fn a_torn_or_missing_ticket_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        assert_eq!(Ticket::read(&file).unwrap(), None);
        fs::write(&file, "{\"pid\":1").unwrap();
        assert_eq!(Ticket::read(&file).unwrap(), None);
    }
}
