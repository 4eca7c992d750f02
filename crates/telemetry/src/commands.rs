//! Remote commands (`RPC_CLI_CLI_CALL`) that every role understands: text in, text out.

use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Signal, getpid, kill_process};
use serde_json::json;

use crate::logging::{self, Levels};
use crate::time::Calendar;
use crate::version;

/// The log thread writes at once; longer only a disk takes that hangs.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Of [`Commands`], a line each.
pub const HELP: &str = "\
server-info - version, role, address, start
server.stop - end, as with SIGTERM
reset-log-start-level [DEBUG|INFO|WARNING|ERROR|FATAL] - what is logged until the process ends; without a level as configured
flush-log - answers when all that was logged before is in the file";

/// What they tell of one role of this process.
#[derive(Clone, Debug)]
pub struct Commands {
    role: &'static str,
    node: String,
    started: Instant,
}

impl Commands {
    /// `node`: the address that the role publishes.
    pub fn new(role: &'static str, node: impl Into<String>, started: Instant) -> Self {
        Self { role, node: node.into(), started }
    }

    /// The answer; None when it is none of these commands.
    pub async fn answer(&self, command: &str, arguments: &[String]) -> Option<String> {
        match command {
            "reset-log-start-level" => Some(reset_level(arguments)),
            "flush-log" => Some(flush_log().await),
            "server-info" => Some(self.info()),
            "server.stop" if !arguments.is_empty() => Some("invalid arguments".to_owned()),
            "server.stop" => Some(self.stop()),
            _ => None,
        }
    }

    /// The reference's keys, and ours behind them.
    fn info(&self) -> String {
        let age = self.started.elapsed();
        let started_at = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        json!({
            "version": version::VERSION,
            "build_type": version::BUILD_TYPE,
            "git_SHA": version::GIT_COMMIT,
            "start_time": Calendar::of(started_at).date_time(),
            "role": self.role,
            "address": self.node,
            "uptime_seconds": age.as_secs(),
        })
        .to_string()
    }

    /// As an operator on this host would do it: whatever SIGTERM does, this does.
    fn stop(&self) -> String {
        tracing::warn!(role = self.role, node = self.node, "asked by a remote command to end");
        match kill_process(getpid(), Signal::TERM) {
            Ok(()) => "OK".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

/// In the reference's words. Levels of single modules end, too.
fn reset_level(arguments: &[String]) -> String {
    let new = match arguments {
        [] => logging::configured_levels(),
        [name] => match Levels::named(name) {
            Some(new) => Some(new),
            None => return format!("ERROR: invalid level '{name}'"),
        },
        _ => return "invalid arguments".to_owned(),
    };
    let Some(new) = new else { return "ERROR: no log was begun".to_owned() };
    let name = new.name();
    match logging::set_levels(new) {
        Ok(()) => format!("OK, current level is {name}"),
        Err(error) => format!("ERROR: {error:#}"),
    }
}

async fn flush_log() -> String {
    match tokio::task::spawn_blocking(|| logging::flush(FLUSH_WITHIN)).await {
        Ok(Ok(())) => "OK".to_owned(),
        Ok(Err(error)) => format!("ERROR: {error:#}"),
        Err(error) => format!("ERROR: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_it_tells() {
        let commands = Commands::new("meta", "h:1", Instant::now());
        let told: serde_json::Value =
            serde_json::from_str(&commands.answer("server-info", &[]).await.unwrap()).unwrap();
        assert_eq!((&told["role"], &told["address"]), (&json!("meta"), &json!("h:1")));
        assert_eq!(told["version"], version::VERSION);
        assert!(told["uptime_seconds"].is_u64() && told["start_time"].is_string(), "{told}");
        assert_eq!(commands.answer("server.stop", &["now".into()]).await.unwrap(), "invalid arguments");
        assert_eq!(commands.answer("other", &[]).await, None);
        let level = commands.answer("reset-log-start-level", &["LOUD".into()]).await.unwrap();
        assert_eq!(level, "ERROR: invalid level 'LOUD'");
        assert_eq!(commands.answer("flush-log", &[]).await.unwrap(), "OK");
        for command in ["server-info - ", "server.stop - ", "reset-log-start-level [", "flush-log - "] {
            assert!(HELP.lines().any(|line| line.starts_with(command)), "{command}");
        }
    }
}
