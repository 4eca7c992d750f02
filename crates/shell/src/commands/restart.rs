//! `rolling_restart`: servers are restarted one after the other, never two at a time.
//!
//! ```text
//!  all tables healthy? ─▶ server.stop: it hands over and ends ─▶ its supervisor starts it ─▶ it answers, tables healthy
//!        ▲                                                                                           │
//!        └──────────────────────────────────────── pause, next ──────────────────────────────────────┘
//! ```
//!
//! Whatever does not come about in time ends it: a cluster that is not whole must not lose one more.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use pegasus_types::{AppStatus, Node};
use tokio::time::{Instant, sleep};

use super::{Answer, Result};
use crate::args::{Args, Usage, text};
use crate::output::Output;
use crate::session::Session;

/// For one server: to hand over, to end, to be started and loaded, and for its replicas to catch up.
const WITHIN: Duration = Duration::from_secs(600);
/// Before the next one. A replica-server lingers for 5 s after it has handed over; pypegasus3 needs 7 s until it knows, and
/// until whoever tries once more has done so: 2 s until it looks, 2 s until what it drops then has timed out, 3 s of pause.
const PAUSE: Duration = Duration::from_secs(3);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Ages are told in whole seconds: a process must have this age, so that the next one can be told from it.
const OLD_ENOUGH: Duration = Duration::from_secs(3);
/// A server that has ended needs no longer to be found gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Replica,
    Meta,
    Collector,
}

impl Role {
    const ALL: [Self; 3] = [Self::Replica, Self::Meta, Self::Collector];

    /// As `-app_list` of the server and `server-info` have it.
    fn word(self) -> &'static str {
        match self {
            Self::Replica => "replica",
            Self::Meta => "meta",
            Self::Collector => "collector",
        }
    }
}

impl FromStr for Role {
    type Err = Usage;
    fn from_str(name: &str) -> std::result::Result<Self, Usage> {
        let unknown = || Usage(format!("{name:?} is no role: expected replica, meta or collector"));
        Self::ALL.into_iter().find(|role| role.word() == name).ok_or_else(unknown)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replica => "replica-server",
            Self::Meta => "meta-server",
            Self::Collector => "collector",
        })
    }
}

pub async fn rolling_restart(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let within = args.flag_as::<u64>('w')?.map_or(WITHIN, Duration::from_secs);
    let pause = args.flag_as::<u64>('p')?.map_or(PAUSE, Duration::from_secs);
    let mut role = args.flag('r').map(<[u8]>::to_vec);
    let mut servers = Vec::new();
    let mut words = args.rest().into_iter();
    while let Some(word) = words.next() {
        if word == b"--role" {
            role = Some(words.next().ok_or_else(|| Usage("--role needs a value".to_owned()))?);
        } else {
            servers.push(text(word, "server")?.parse::<Node>().map_err(|error| Usage(error.to_string()))?);
        }
    }
    let role = role.map_or(Ok(Role::Replica), |word| text(word, "role")?.parse())?;
    let servers = whom(session, role, servers).await?;
    let mut done = 0;
    for (n, server) in servers.iter().enumerate() {
        if n > 0 {
            sleep(pause).await;
        }
        let begun = Instant::now();
        let restarted = restart(session, role, server, within).await;
        let place = format!("{} of {}", n + 1, servers.len());
        match restarted {
            Ok(()) => {
                out.remark(format_args!("{place}: {server} is back, {} s", begun.elapsed().as_secs()))?;
            }
            Err(why) => {
                let stopped = format!("{place}: {server}: {why}. Nothing more is restarted");
                out.fact("stopped", stopped.as_str(), &stopped)?;
                break;
            }
        }
        done += 1;
    }
    out.fact("restarted", done, format_args!("{done} of {} {role}s restarted", servers.len()))?;
    Ok(if done == servers.len() { Answer::Yes } else { Answer::No })
}

/// The servers to restart, in this order; `named` ones are looked up as far as the cluster knows them.
async fn whom(
    session: &Session,
    role: Role,
    mut named: Vec<Node>,
) -> std::result::Result<Vec<Node>, super::Failure> {
    let known = match role {
        Role::Replica => {
            let states = session.cluster.nodes().await?;
            if let Some(stranger) = named.iter().find(|node| !states.iter().any(|state| state.node == **node))
            {
                let why = format!("{stranger} is no replica-server of this cluster: `nodes` lists them");
                return Err(Usage(why).into());
            }
            let mut alive: Vec<_> =
                states.iter().filter(|state| state.alive).map(|state| state.node.clone()).collect();
            alive.sort();
            alive
        }
        Role::Meta => {
            let (metas, leader) = metas(session).await?;
            // The leader last: each restart of one costs an election.
            let (last, first): (Vec<_>, Vec<_>) = metas.into_iter().partition(|meta| *meta == leader);
            [first, last].concat()
        }
        // Nobody knows where collectors are.
        Role::Collector if named.is_empty() => {
            let why = "which collector? name its address: rolling_restart --role collector HOST:34101";
            return Err(Usage(why.to_owned()).into());
        }
        Role::Collector => Vec::new(),
    };
    if named.is_empty() {
        named = known;
    }
    Ok(named)
}

/// All meta-servers, and the leader.
async fn metas(session: &Session) -> std::result::Result<(Vec<Node>, Node), super::Failure> {
    let info = session.cluster.info().await?;
    let value = |wanted: &str| info.iter().find(|(key, _)| key == wanted).map_or("", |(_, value)| value);
    let node = |text: &str| {
        text.parse::<Node>().map_err(|error| Usage(format!("a meta-server calls itself {text:?}: {error}")))
    };
    let all = value("meta_servers").split(',').map(node).collect::<std::result::Result<_, _>>()?;
    Ok((all, node(value("primary_meta_server"))?))
}

/// The reason when it does not come back whole.
async fn restart(
    session: &Session,
    role: Role,
    server: &Node,
    within: Duration,
) -> std::result::Result<(), String> {
    let by = Instant::now() + within;
    healthy(session, by).await.map_err(|why| format!("before: {why}"))?;
    let before = loop {
        let info = info(session, server).await.ok_or("it does not answer")?;
        if info.role != role.word() {
            return Err(format!("it is no {role}, its role is {:?}", info.role));
        }
        if info.up >= OLD_ENOUGH {
            break info.up;
        }
        sleep(LOOK_INTERVAL).await;
    };
    let asked = Instant::now();
    let told = session
        .cluster
        .remote_command(server, "server.stop", &[])
        .await
        .map_err(|error| error.to_string())?;
    if !told.starts_with("OK") {
        return Err(format!("it does not end: {told}"));
    }
    while !info(session, server).await.is_some_and(|info| is_another(before, asked.elapsed(), info.up)) {
        if Instant::now() >= by {
            return Err(format!(
                "it has not come back within {} s; a supervisor has to start it again (systemd: Restart=always)",
                within.as_secs()
            ));
        }
        sleep(LOOK_INTERVAL).await;
    }
    healthy(session, by).await
}

/// Whether a process of age `up` is another one than that of age `before`, so much later. Whole seconds are cut off.
fn is_another(before: Duration, later: Duration, up: Duration) -> bool {
    up + Duration::from_secs(2) <= before + later
}

/// A meta-server leads, and every table has all its replicas.
async fn healthy(session: &Session, by: Instant) -> std::result::Result<(), String> {
    let tables = loop {
        match session.cluster.tables(Some(AppStatus::Available)).await {
            Ok(tables) => break tables,
            Err(error) if Instant::now() >= by => return Err(error.to_string()),
            Err(_) => sleep(LOOK_INTERVAL).await,
        }
    };
    for table in tables {
        let left = by.saturating_duration_since(Instant::now()).max(LOOK_INTERVAL);
        session
            .cluster
            .wait_healthy(&table.name, left)
            .await
            .map_err(|error| format!("table {}: {error}", table.name))?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Info {
    role: String,
    /// Age of the process, in whole seconds.
    up: Duration,
}

async fn info(session: &Session, server: &Node) -> Option<Info> {
    let asking = session.cluster.remote_command(server, "server-info", &[]);
    let told = tokio::time::timeout(ANSWER_WITHIN, asking).await.ok()?.ok()?;
    read_info(&told)
}

fn read_info(told: &str) -> Option<Info> {
    let told: serde_json::Value = serde_json::from_str(told).ok()?;
    let up = Duration::from_secs(told.get("uptime_seconds")?.as_u64()?);
    Some(Info { role: told.get("role")?.as_str()?.to_owned(), up })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The old process answers for a while after it was told to end; it must not be taken for the new one.
    #[test]
    fn an_old_process_is_never_taken_for_a_new_one() {
        let ms = Duration::from_millis;
        let told = |age: Duration| Duration::from_secs(age.as_secs());
        for before in (3_000..9_000).step_by(130) {
            for later in (0..30_000).step_by(170) {
                let (asked, old) = (told(ms(before)), told(ms(before + later)));
                assert!(!is_another(asked, ms(later), old), "{before} {later}");
                let fresh = told(ms(later.saturating_sub(100)));
                assert!(is_another(asked, ms(later), fresh) || later < 100, "{before} {later}: never found");
            }
        }
    }

    #[test]
    fn what_servers_tell() {
        let told = r#"{"version":"0.1.0","role":"meta","address":"h:1","uptime_seconds":17}"#;
        assert_eq!(read_info(told), Some(Info { role: "meta".to_owned(), up: Duration::from_secs(17) }));
        for nonsense in ["", "{}", r#"{"role":"meta"}"#, "unknown command 'server-info'"] {
            assert_eq!(read_info(nonsense), None, "{nonsense}");
        }
    }
}
