//! The process: command line, configuration, logs, one thread per role, signals. No logic of a role.
//!
//! ```text
//!  args + config.ini --settings--> every mistake at once, exit 78
//!        |                         or Settings
//!        v
//!  main thread: signals ── Shutdown ──┬─ thread "meta":      current_thread runtime, LocalSet, start(), wait()
//!        ^                            ├─ thread "replica":   the same
//!        └────── Started, Ended ──────┴─ thread "collector": the same
//! ```
//!
//! The first SIGTERM lets the replica-server hand its primaries over and then stops all roles, within a bound. A second
//! one, or SIGINT, stops them without that; a third one exits at once.
//! A role that ends by itself stops the others, and the exit code is 1. A configuration that cannot work ends with 78
//! (EX_CONFIG of sysexits.h): starting again changes nothing, which the service units know.

#[cfg(test)]
mod broken_configs;
mod checks;
pub mod cli;
mod memory;
mod notify;
mod pulse;
mod role;
mod settings;
mod supervise;

use std::io::Write;
use std::process::ExitCode;

use pegasus_replica_server::lost_power;
pub use role::Role;
pub use settings::{Settings, sections};

/// The configuration cannot work as it is.
const EXIT_CONFIG: u8 = 78;
/// What a Unix shell says of a program that SIGPIPE has ended.
const EXIT_BROKEN_PIPE: u8 = 128 + 13;

/// The whole program. `only`: the role of a binary that has just one; None = the name by which it was called, else
/// `-app_list` or the file decides.
pub fn main(only: Option<Role>) -> ExitCode {
    let only = only.or_else(|| cli::role_of_program(&std::env::args_os().next()?));
    match run(only) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(only: Option<Role>) -> anyhow::Result<ExitCode> {
    let args = match cli::Args::read(std::env::args_os(), only) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print(); // nowhere to report a closed terminal to
            return Ok(if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
    };
    if args.version {
        return print(&format!("{}\n", pegasus_telemetry::version::line()));
    }
    if args.print_default_config {
        return print(&pegasus_config::default_file(&sections()));
    }
    if args.print_config_reference {
        return print(&pegasus_config::markdown(&sections()));
    }
    let Some(file) = &args.config else {
        anyhow::bail!("no configuration file given; try --help");
    };
    let settings = match Settings::read(args.sources(file)) {
        Ok(settings) => settings,
        Err(mistakes) => {
            say(&format!(
                "{mistakes}\nSee {} --help for the settings and how to override them.",
                cli::program(only)
            ));
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let roles = args.roles(only, &settings)?;
    if args.check_config {
        for warning in &settings.warnings {
            say(&format!("warning: {warning}"));
        }
        return print(&format!("{}: no mistakes\n", file.display()));
    }
    if let Some(to) = args.move_metadata_to {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return print(&runtime.block_on(pegasus_meta_server::move_metadata_to(&settings.meta, to))?);
    }
    if let Some(name) = &args.remove_metadata {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let removed = runtime.block_on(pegasus_meta_server::remove_metadata(&settings.meta, name))?;
        let disks = settings.replica.data_dirs().into_iter().map(|(_, path)| path);
        return print(&removed.text(disks.chain([settings.core.data_directory()])));
    }
    if let Some(which) = &args.accept_lost_power {
        let accepted = lost_power::accept(&settings.replica, which)?;
        return print(&lost_power::text(&accepted));
    }
    supervise::run(settings, &roles)
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // As `head` does: it has what it wants.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::from(EXIT_BROKEN_PIPE)),
        other => Ok(other.map(|()| ExitCode::SUCCESS)?),
    }
}

/// For whoever started the process; the log has it as well where it matters.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}"); // nowhere else to complain
}
