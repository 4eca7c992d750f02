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

use crate::checks::{self, Host, Wants};
use crate::notify::Supervisor;
use crate::pulse::Pulse;
use crate::{Role, Settings, say};

/// Every role bounds its own end, a replica-server with a drain of at most 60 s; this is for one that does not. The
/// service units wait a little longer.
const STOP_WITHIN: Duration = Duration::from_secs(75);
/// The same when nothing is to be handed over.
const STOP_HURRIED_WITHIN: Duration = Duration::from_secs(20);
/// While roles start, the supervisor hears this often how far they are.
const STARTING_EVERY: Duration = Duration::from_secs(5);
/// Blocking work (a flush, a DNS look-up) that a role leaves behind may take this long.
const RUNTIME_STOP_WITHIN: Duration = Duration::from_secs(2);
/// Sockets and table files are many; the usual soft limit is 1,024.
const OPEN_FILES_WANTED: u64 = 1 << 20;

/// What a role's thread tells the main thread.
enum Report {
    /// It listens.
    Started(Role, SocketAddr),
    /// What it has on its disks is open, too.
    Loaded(Role),
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
    for doubt in checks::doubts(&Host::look(), &Wants::of(&settings, roles), checks::space) {
        tracing::warn!("{doubt}");
    }

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
    let (tell, mut reports) = mpsc::unbounded_channel(); // three messages per role
    let mut pulses = Vec::new();
    let mut draining = None;
    for role in roles {
        let (pulse, child) = (Pulse::new(*role), shutdown.child());
        if *role == Role::Replica {
            draining = Some(child.clone());
        }
        spawn(*role, &settings, child, pulse.clone(), tell.clone())?;
        pulses.push(pulse);
    }
    drop(tell);

    let supervisor = Supervisor::from_env();
    let beat_every = supervisor.as_ref().and_then(Supervisor::beat_every).unwrap_or(STARTING_EVERY);
    let mut beats = tokio::time::interval(beat_every.min(STARTING_EVERY));
    let mut loading = roles.len();
    let mut running = roles.len();
    let mut failed = false;
    let mut stop_by: Option<Instant> = None;
    let mut asked = 0;
    while running > 0 {
        let stopping = asked > 0 || shutdown.is_triggered();
        if stopping && stop_by.is_none() {
            stop_by = Some(Instant::now() + STOP_WITHIN);
        }
        tokio::select! {
            report = reports.recv() => match report {
                Some(Report::Started(role, address)) => announce(&format!("{role} listens on {address}")),
                Some(Report::Loaded(role)) => {
                    loading -= 1;
                    tracing::info!("{role} has opened what it holds");
                    if let Some(supervisor) = supervisor.as_ref().filter(|_| loading == 0 && !stopping) {
                        supervisor.ready("serving");
                    }
                }
                Some(Report::Ended(role, result)) => {
                    running -= 1;
                    pulses.retain(|pulse| pulse.role() != role);
                    failed |= ended(role, result, stopping);
                    shutdown.trigger();
                }
                None => break,
            },
            (name, urgent) = signals.next() => {
                asked += 1;
                if asked == 1 && let Some(supervisor) = &supervisor {
                    supervisor.stopping(&format!("{name}: stopping"));
                }
                match asked {
                    1 if !urgent => {
                        announce(&format!("{name}: stopping; once more: without handing over; a third time: at once"));
                        // It hands over first, for which a meta-server of the same process has to be alive.
                        draining.as_ref().unwrap_or(&shutdown).trigger();
                    }
                    1 | 2 => {
                        announce(&format!("{name}: stopping without handing over"));
                        shutdown.hurry();
                        stop_by = Some(Instant::now() + STOP_HURRIED_WITHIN);
                    }
                    _ => {
                        tracing::warn!("{name} again: exit at once");
                        return Ok(ExitCode::FAILURE);
                    }
                }
            }
            _ = beats.tick() => if let Some(supervisor) = &supervisor {
                beat(supervisor, &mut pulses, loading > 0 && !stopping, stopping);
            },
            () = sleep_until(stop_by.unwrap_or_else(Instant::now)), if stopping => {
                tracing::error!(running, "roles have not stopped in time: exit");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    announce(if failed { "stopped after a failure" } else { "stopped" });
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Tells the supervisor that the roles are alive, if they are. An end that takes its time is bounded by itself.
fn beat(supervisor: &Supervisor, pulses: &mut [Pulse], starting: bool, stopping: bool) {
    let limit = supervisor.watchdog().unwrap_or(STARTING_EVERY) / 2;
    let silent = pulses.iter_mut().find_map(|pulse| (!pulse.beats_within(limit)).then_some(&*pulse));
    if !stopping && let Some(pulse) = silent {
        tracing::error!(role = %pulse.role(), "the loop of a role does not turn; the supervisor will end this process");
        return;
    }
    if starting {
        supervisor.starting("opening replicas");
    }
    if supervisor.beat_every().is_some() {
        supervisor.alive();
    }
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
    pulse: Pulse,
    tell: mpsc::UnboundedSender<Report>,
) -> anyhow::Result<()> {
    let start = settings.starter(role);
    let body = move || {
        let mut ending = Ending {
            role,
            tell: tell.clone(),
            result: Err(anyhow::anyhow!("its thread panicked, see the log")),
        };
        let told = Told { role, tell, pulse };
        ending.result = role_thread(start, shutdown, told);
    };
    thread::Builder::new().name(role.name().to_owned()).spawn(body).context("start a thread")?;
    Ok(())
}

/// How a role's thread tells the main thread what it does.
struct Told {
    role: Role,
    tell: mpsc::UnboundedSender<Report>,
    pulse: Pulse,
}

impl Told {
    fn started(&self, address: SocketAddr) {
        let _ = self.tell.send(Report::Started(self.role, address)); // nobody listens any more: we are exiting
    }

    fn loaded(&self) {
        let _ = self.tell.send(Report::Loaded(self.role)); // as above
    }
}

fn role_thread(start: Starter, shutdown: Shutdown, told: Told) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let result = LocalSet::new().block_on(&runtime, start.run(shutdown, told));
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
    async fn run(self, shutdown: Shutdown, told: Told) -> anyhow::Result<()> {
        // Until there is something better to feel: a turn of this thread.
        let starting = tokio::task::spawn_local(told.pulse.clone().beat_while_turning());
        match self {
            Self::Meta(config) => {
                let handle = pegasus_meta_server::start(*config, shutdown).await?;
                told.started(handle.address());
                told.loaded();
                handle.wait().await
            }
            Self::Replica(config) => {
                let handle = pegasus_replica_server::start(*config, shutdown).await?;
                told.started(handle.address());
                starting.abort();
                let vitals = handle.vitals();
                tokio::task::spawn_local(async move {
                    // The loop that hands everything to the logs, rather than just any turn of this thread.
                    let mut told_loaded = false;
                    told.pulse
                        .clone()
                        .beat_with(|| {
                            if !told_loaded && vitals.is_loaded() {
                                told_loaded = true;
                                told.loaded();
                            }
                            vitals.turns()
                        })
                        .await;
                });
                handle.wait().await
            }
            Self::Collector(config) => {
                let handle = pegasus_collector::start(*config, shutdown).await?;
                told.started(handle.address());
                told.loaded();
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

    /// The next one, and whether it is urgent: Ctrl-C of a person who waits, or of all processes of a terminal at once.
    async fn next(&mut self) -> (&'static str, bool) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", false),
            _ = self.interrupt.recv() => ("SIGINT", true),
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
