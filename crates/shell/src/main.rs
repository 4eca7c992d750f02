//! `pegasus_shell`, see the library.

use std::io::{IsTerminal, stderr, stdin};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pegasus_client::{Cluster, Options};
use pegasus_shell::commands::{Answer, Failure};
use pegasus_shell::session::Session;
use pegasus_shell::{repl, words};
use tokio::runtime::Runtime;

/// The shell of Pegasus: reads and writes data, looks after tables.
///
/// With a command it executes that one and ends: `pegasus_shell get temp user:1 name`. A data command names the
/// table first, unless --table does. Without a command it reads lines, at a terminal with editing and history.
/// Exit codes: 0 done, 1 the answer is no (not found, check not passed), 2 typed wrong, 3 could not be done,
/// 141 nobody reads the answer (`... | head`): what was left to do is not done.
#[derive(Debug, Parser)]
#[command(name = "pegasus_shell", version)]
struct Cli {
    /// Meta-servers, host:port separated by commas [default: $PEGASUS_META, else those of a onebox].
    #[arg(long, short)]
    meta: Option<String>,
    /// The table that data commands work on.
    #[arg(long, short)]
    table: Option<String>,
    /// How long one operation may take, in milliseconds.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// Print JSON, one object per command (for scans and multi_get also one per row).
    #[arg(long, short)]
    json: bool,
    /// The command and its words; `help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Where `make onebox` puts up to three meta-servers.
const ONEBOX_METAS: &str = "127.0.0.1:34601,127.0.0.1:34602,127.0.0.1:34603";

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            match error.downcast_ref::<Failure>() {
                Some(failure) => repl::complain(failure),
                None => repl::report(&error),
            }
            ExitCode::from(error.downcast_ref::<Failure>().map_or(3, Failure::exit_code))
        }
    }
}

fn start(cli: &Cli) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = work(cli, &runtime);
    // A lookup of a name that was given up is not waited for.
    runtime.shutdown_background();
    code
}

fn work(cli: &Cli, runtime: &Runtime) -> anyhow::Result<u8> {
    let options = Options { timeout: Duration::from_millis(u64::from(cli.timeout)), ..Options::default() };
    let metas = cli.meta.clone().or_else(|| std::env::var("PEGASUS_META").ok());
    let metas = metas.as_deref().unwrap_or(ONEBOX_METAS);
    let cluster = Cluster::new(metas, options).map_err(Failure::from)?;
    let mut session = Session::new(cluster);
    let _entered = runtime.enter();
    if let Some(table) = &cli.table {
        runtime.block_on(session.open(table))?;
    }
    if !cli.command.is_empty() {
        let words = cli.command.iter().map(|word| words::unescape(word)).collect();
        return Ok(match repl::execute(runtime, &mut session, words, cli.json)? {
            Answer::Yes | Answer::Exit => 0,
            Answer::No => 1,
        });
    }
    if stdin().is_terminal() && stderr().is_terminal() {
        repl::welcome(runtime, &session, metas);
        repl::interactive(runtime, &mut session, cli.json)?;
        return Ok(0);
    }
    repl::piped(runtime, &mut session, cli.json)
}
