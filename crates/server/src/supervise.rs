//! One thread per role, and the end of all of them.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use pegasus_telemetry::{Shutdown, logging, version};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};

use crate::{Role, Settings, say};

/// Every role bounds its own end; this is for one that does not.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Blocking work (a flush, a DNS look-up) that a role leaves behind may take this long.
const RUNTIME_STOP_WITHIN: Duration = Duration::from_secs(2);
/// Sockets and table files are many; the usual soft limit is 1,024.
const OPEN_FILES_WANTED: u64 = 1 << 20;

/// What a role's thread tells the main thread.
enum Report {
    Started(Role, SocketAddr),
    Ended(Role, anyhow::Result<()>),
}

/// Runs the roles until a signal, or until one of them ends.
pub fn run(settings: Settings, roles: &[Role]) -> anyhow::Result<ExitCode> {
    raise_open_files_limit();
    let log_options = settings.log_options(roles);
    let _logging = logging::init(&log_options)?;
    let names = roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ");
    tracing::info!(roles = names, pid = std::process::id(), "{}", version::line());
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    say(&format!("{}: {names}; log: {}", version::line(), settings.core.log_directory().display()));
    announce(&settings.failover_line());

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(supervise(settings, roles))
}

fn announce(line: &str) {
    tracing::info!("{line}");
    say(line);
}

async fn supervise(settings: Settings, roles: &[Role]) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let shutdown = Shutdown::new();
    let (tell, mut reports) = mpsc::unbounded_channel(); // two messages per role
    for role in roles {
        spawn(*role, &settings, shutdown.child(), tell.clone())?;
    }
    drop(tell);

    let mut running = roles.len();
    let mut failed = false;
    let mut stop_by: Option<Instant> = None;
    while running > 0 {
        let stopping = shutdown.is_triggered();
        if stopping && stop_by.is_none() {
            stop_by = Some(Instant::now() + STOP_WITHIN);
        }
        tokio::select! {
            report = reports.recv() => match report {
                Some(Report::Started(role, address)) => announce(&format!("{role} listens on {address}")),
                Some(Report::Ended(role, result)) => {
                    running -= 1;
                    failed |= ended(role, result, stopping);
                    shutdown.trigger();
                }
                None => break,
            },
            name = signals.next() => {
                if stopping {
                    tracing::warn!("{name} again: exit at once");
                    return Ok(ExitCode::FAILURE);
                }
                announce(&format!("{name}: stopping"));
                shutdown.trigger();
            }
            () = sleep_until(stop_by.unwrap_or_else(Instant::now)), if stopping => {
                tracing::error!(running, "roles have not stopped in time: exit");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    announce(if failed { "stopped after a failure" } else { "stopped" });
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// True when this end is a failure.
fn ended(role: Role, result: anyhow::Result<()>, stopping: bool) -> bool {
    match result {
        Ok(()) if stopping => tracing::info!("{role} has stopped"),
        Ok(()) => tracing::error!("{role} has ended by itself"),
        Err(error) => {
            tracing::error!("{role}: {error:#}");
            return true;
        }
    }
    !stopping
}

/// Sends `Ended` however the thread ends, also by a panic.
struct Ending {
    role: Role,
    tell: mpsc::UnboundedSender<Report>,
    result: anyhow::Result<()>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        let _ = self.tell.send(Report::Ended(self.role, result)); // nobody listens any more: we are exiting
    }
}

fn spawn(
    role: Role,
    settings: &Settings,
    shutdown: Shutdown,
    tell: mpsc::UnboundedSender<Report>,
) -> anyhow::Result<()> {
    let start = settings.starter(role);
    let body = move || {
        let mut ending = Ending {
            role,
            tell: tell.clone(),
            result: Err(anyhow::anyhow!("its thread panicked, see the log")),
        };
        ending.result = role_thread(start, shutdown, |address| {
            let _ = tell.send(Report::Started(role, address)); // as above
        });
    };
    thread::Builder::new().name(role.name().to_owned()).spawn(body).context("start a thread")?;
    Ok(())
}

fn role_thread(start: Starter, shutdown: Shutdown, started: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let result = LocalSet::new().block_on(&runtime, start.run(shutdown, started));
    runtime.shutdown_timeout(RUNTIME_STOP_WITHIN);
    result
}

/// A role with its configuration, ready to be moved to its thread.
pub(crate) enum Starter {
    Meta(Box<pegasus_meta_server::Config>),
    Replica(Box<pegasus_replica_server::Config>),
    Collector(Box<pegasus_collector::Config>),
}

impl Starter {
    async fn run(self, shutdown: Shutdown, started: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
        match self {
            Self::Meta(config) => {
                let handle = pegasus_meta_server::start(*config, shutdown).await?;
                started(handle.address());
                handle.wait().await
            }
            Self::Replica(config) => {
                let handle = pegasus_replica_server::start(*config, shutdown).await?;
                started(handle.address());
                handle.wait().await
            }
            Self::Collector(config) => {
                let handle = pegasus_collector::start(*config, shutdown).await?;
                started(handle.address());
                handle.wait().await
            }
        }
    }
}

impl Settings {
    fn starter(&self, role: Role) -> Starter {
        match role {
            Role::Meta => Starter::Meta(Box::new(self.meta.clone())),
            Role::Replica => Starter::Replica(Box::new(self.replica.clone())),
            Role::Collector => Starter::Collector(Box::new(self.collector.clone())),
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Best effort: what the system does not allow shows up where files or sockets run out.
fn raise_open_files_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(OPEN_FILES_WANTED).min(OPEN_FILES_WANTED);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        let _ = setrlimit(Resource::Nofile, limit);
    }
}
