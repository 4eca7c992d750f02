//! The commands: what they are called, what they take, who executes them.

mod bulk;
mod cluster;
mod data;
mod placement;
mod restart;
mod rows;
mod stats;
mod tables;

use std::future::ready;
use std::io;

use futures::future::LocalBoxFuture;
use pegasus_client::{Error, StorageError, Table};
use pegasus_types::ErrorCode;

use crate::args::{Args, Usage};
use crate::output::Output;
use crate::session::Session;

/// A command as help and parsing see it.
#[derive(Debug)]
pub struct Command {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    /// One-letter flags, see [`Args::parse`].
    pub flags: &'static str,
    /// Without the name.
    pub usage: &'static str,
    pub help: &'static str,
    pub run: Run,
}

impl Command {
    fn is_on_table(&self) -> bool {
        matches!(self.run, Run::OnTable(_))
    }
}

type Running<'a> = LocalBoxFuture<'a, Result>;

/// Who executes a command.
#[derive(Clone, Copy, Debug)]
pub enum Run {
    /// On the table in use; without one the first word names the table.
    OnTable(for<'a> fn(&'a Session, &'a Table, Args, &'a mut Output<'_>) -> Running<'a>),
    Plain(for<'a> fn(&'a mut Session, Args, &'a mut Output<'_>) -> Running<'a>),
}

macro_rules! commands {
    ($($name:literal $(/ $alias:literal)* [$flags:literal] $usage:literal: $help:literal
        => ($($what:tt),*) $run:expr;)*) => {
        pub const COMMANDS: &[Command] = &[$(Command {
            name: $name,
            aliases: &[$($alias),*],
            flags: $flags,
            usage: $usage,
            help: $help,
            run: commands!(@run ($($what),*) $run),
        },)*];
    };
    (@run ($session:tt, $table:tt, $args:tt, $out:tt) $run:expr) => {
        Run::OnTable(|$session, $table, $args, $out| Box::pin($run))
    };
    (@run ($session:tt, $args:tt, $out:tt) $run:expr) => { Run::Plain(|$session, $args, $out| Box::pin($run)) };
}

commands! {
    "set" [""] "<hash_key> <sort_key> <value> [ttl_seconds]": "write a value"
        => (_, table, args, out) data::set(table, args, out);
    "get" [""] "<hash_key> <sort_key>": "read a value"
        => (session, table, args, out) data::get(session, table, args, out);
    "del" [""] "<hash_key> <sort_key>": "remove a value; it need not exist"
        => (_, table, args, out) data::del(table, args, out);
    "exist" [""] "<hash_key> <sort_key>": "is there a value?"
        => (_, table, args, out) data::exist(table, args, out);
    "ttl" [""] "<hash_key> <sort_key>": "how many seconds a value still lives"
        => (_, table, args, out) data::ttl(table, args, out);
    "incr" ["t:"] "<hash_key> <sort_key> [increment] [-t ttl_seconds]": "add to a decimal number, 1 by default"
        => (_, table, args, out) data::incr(table, args, out);
    "mset" / "multi_set" ["t:"] "<hash_key> <sort_key> <value> [<sort_key> <value> ...] [-t ttl_seconds]": "write values of one hash key, all or none"
        => (_, table, args, out) data::mset(table, args, out);
    "mget" / "multi_get" [""] "<hash_key> [sort_key ...]": "read values of one hash key; without sort keys all of them, up to what the server gives at once"
        => (session, table, args, out) rows::mget(session, table, args, out);
    "multi_get_range" ["a:b:s:y:n:ir"] "<hash_key> <start> <stop> [-a start_inclusive] [-b stop_inclusive] [-s anywhere|prefix|postfix] [-y pattern] [-n max_count] [-i] [-r]": "read a range of sort keys; an empty stop is the end, -i without values, -r from the end"
        => (session, table, args, out) rows::multi_get_range(session, table, args, out);
    "multi_get_sortkeys" [""] "<hash_key>": "the sort keys of one hash key, up to what the server gives at once"
        => (session, table, args, out) rows::multi_get_sortkeys(session, table, args, out);
    "multi_del" / "mdel" [""] "<hash_key> <sort_key> [sort_key ...]": "remove values of one hash key, all or none"
        => (_, table, args, out) data::multi_del(table, args, out);
    "sortkey_count" / "count" [""] "<hash_key>": "how many values a hash key has"
        => (_, table, args, out) data::sortkey_count(table, args, out);
    "cas" / "check_and_set" ["c:t:o:s:v:l:r"] "<hash_key> -c check_sort_key -t check_type [-o operand] [-s set_sort_key] -v value [-l ttl_seconds] [-r]": "write a value if a check passes; without -s the checked one; -r tells the checked value. Check types: not_exist not_exist_or_empty exist not_empty match_anywhere match_prefix match_postfix bytes_less bytes_less_or_equal bytes_equal bytes_greater_or_equal bytes_greater, and int_ as bytes_"
        => (session, table, args, out) data::cas(session, table, args, out);
    "check_and_mutate" ["c:t:o:r"] "<hash_key> -c check_sort_key -t check_type [-o operand] [-r] {set <sort_key> <value> | del <sort_key>} ...": "make several changes under one hash key if a check passes"
        => (session, table, args, out) data::check_and_mutate(session, table, args, out);
    "hash_scan" ["a:b:s:y:n:it"] "<hash_key> [start] [stop] [-a start_inclusive] [-b stop_inclusive] [-s anywhere|prefix|postfix] [-y pattern] [-n max_count] [-i] [-t]": "all values of one hash key in order; -i without values, -t with what is left of their life"
        => (session, table, args, out) rows::hash_scan(session, table, args, out);
    "full_scan" ["h:x:s:y:n:it"] "[-h anywhere|prefix|postfix] [-x hash_key_pattern] [-s anywhere|prefix|postfix] [-y sort_key_pattern] [-n max_count] [-i] [-t]": "all values of the table, partition by partition"
        => (session, table, args, out) rows::full_scan(session, table, args, out);
    "count_data" ["ch:x:s:y:"] "[-h anywhere|prefix|postfix] [-x hash_key_pattern] [-s anywhere|prefix|postfix] [-y sort_key_pattern]": "counts the values of the table, partition by partition"
        => (_, table, args, out) rows::count_data(table, args, out);
    "copy_data" ["c:a:h:x:s:y:ke"] "-c meta,meta,... [-a table] | -a table, and [-h anywhere|prefix|postfix] [-x hash_key_pattern] [-s anywhere|prefix|postfix] [-y sort_key_pattern] [-k] [-e]": "copies the values into the table of that name in another cluster, or into another table of this one; it must exist. -k keeps what is there, -e makes all values live for ever"
        => (session, table, args, out) bulk::copy_data(session, table, args, out);
    "clear_data" ["h:x:s:y:f"] "[-h anywhere|prefix|postfix] [-x hash_key_pattern] [-s anywhere|prefix|postfix] [-y sort_key_pattern] -f": "removes all values of the table that match; -f must be given"
        => (_, table, args, out) bulk::clear_data(table, args, out);
    "hash" [""] "<hash_key> <sort_key>": "where a key lives"
        => (session, table, args, out) data::hash(session, table, args, out);
    "use" [""] "[table]": "the table that the data commands work on; without a name tells which"
        => (session, args, out) session.use_table(args, out);
    "ls" ["ads:"] "[-a] [-d] [-s status]": "tables; -a dropped ones too, -d with their health"
        => (session, args, out) tables::ls(session, args, out);
    "app" ["d"] "<table> [-d]": "one table; -d with its partitions, and what the meta-server does or waits for"
        => (session, args, out) tables::app(session, args, out);
    "create" ["p:r:e:fn"] "<table> [-p partitions=8] [-r replicas=3] [-e key=value,...] [-f] [-n]": "make a table and wait until it is healthy; -f fails if it exists, -n does not wait"
        => (session, args, out) tables::create(session, args, out);
    "drop" ["r:f"] "<table> [-r reserve_seconds] [-f]": "drop a table; its data is kept for a while. -f fails if it does not exist"
        => (session, args, out) tables::drop_table(session, args, out);
    "recall" [""] "<app_id> [new_name]": "bring a dropped table back"
        => (session, args, out) tables::recall(session, args, out);
    "get_app_envs" [""] "[table]": "environment variables of a table, or of that in use"
        => (session, args, out) tables::get_app_envs(session, args, out);
    "set_app_envs" [""] "[table] <key> <value> [<key> <value> ...]": "set environment variables of a table, or with an even number of words of that in use"
        => (session, args, out) tables::set_app_envs(session, args, out);
    "del_app_envs" [""] "[table] <key> [<key> ...]": "delete environment variables of a table. With a table in use every word is a key of it, also the first"
        => (session, args, out) tables::del_app_envs(session, args, out);
    "clear_app_envs" ["ap:"] "[table] -a | -p prefix": "delete all environment variables of a table, or of that in use, or those that begin with prefix and a dot"
        => (session, args, out) tables::clear_app_envs(session, args, out);
    "wait_healthy" [""] "<table> [seconds=60]": "wait until every partition has all its replicas"
        => (session, args, out) tables::wait_healthy(session, args, out);
    "app_stat" ["a:i:"] "[-a table] [-i milliseconds=1000]": "requests per second of each table, or of each partition of one, with capacity units and sizes"
        => (session, args, out) stats::app_stat(session, args, out);
    "app_disk" [""] "<table>": "disk space of each partition of a table"
        => (session, args, out) stats::app_disk(session, args, out);
    "nodes" ["du"] "[-d] [-u]": "replica-servers; -d with how many replicas they hold, -u with memory and free disk space in percent"
        => (session, args, out) cluster::nodes(session, args, out);
    "server_info" ["t:l:"] "[-t all|meta-server|replica-server] [-l host:port,...]": "version and start of the servers"
        => (session, args, out) cluster::server_info(session, args, out);
    "server_stat" ["t:l:"] "[-t all|meta-server|replica-server] [-l host:port,...]": "memory and replicas of the servers, by state"
        => (session, args, out) stats::server_stat(session, args, out);
    "cluster_info" [""] "": "facts about the cluster"
        => (session, args, out) cluster::cluster_info(session, args, out);
    "get_meta_level" [""] "": "what the meta-server may do now"
        => (session, args, out) placement::get_level(session, args, out);
    "set_meta_level" [""] "<stopped|blind|freezed|steady|lively>": "what the meta-server may do from now on, until another one leads; steady moves nothing that is healthy"
        => (session, args, out) placement::set_level(session, args, out);
    "balance" ["g:p:f:t:n"] "-g <app_id.index> -p move_pri|copy_pri|copy_sec -f <from> -t <to> | -n": "have one partition moved; -n shows the moves that the meta-server would make now and makes none"
        => (session, args, out) placement::balance(session, args, out);
    "balance_plan" / "get_balance_plan" [""] "": "the moves that would spread primaries and copies evenly, and what nodes would hold then; nothing is moved"
        => (session, args, out) placement::plan(session, args, out);
    "drain" ["uw:"] "<node> [-u] [-w seconds]": "have a node emptied that goes on working, before it is taken away; -w waits until it holds nothing, -u takes the order back"
        => (session, args, out) placement::drain(session, args, out);
    "rolling_restart" ["w:r:p:"] "[-r|--role replica|meta|collector] [server ...] [-w seconds=600] [-p seconds=3]": "restart servers of a role (replica) one after the other, all of them or those named: each hands over, ends, is started by its supervisor and catches up, and -p is waited, before the next; a collector has to be named"
        => (session, args, out) restart::rolling_restart(session, args, out);
    "ddd_diagnose" ["g:f:"] "[-g app_id.index -f node]": "partitions of which no member is alive; -g and -f have one begin again with that node's copy: what only others hold is lost"
        => (session, args, out) placement::diagnose(session, args, out);
    "remote_command" ["t:l:"] "[-t all|meta-server|replica-server] [-l host:port,...] <command> [argument ...]": "have servers execute a command, all of them if not told which; `remote_command help` lists what they know, -- comes before arguments with a dash"
        => (session, args, out) cluster::remote_command(session, args, out);
    "timeout" [""] "[milliseconds]": "how long one operation may take; without a number tells it"
        => (session, args, out) ready(session.set_timeout(args, out));
    "escape_all" [""] "[true|false]": "print every byte as \\xHH; without a word tells it"
        => (session, args, out) ready(session.set_escape_all(args, out));
    "help" [""] "[command]": "this list, or one command"
        => (_, args, out) ready(help(args, out));
    "version" [""] "": "of this shell"
        => (_, args, out) ready(version(args, out));
    "exit" / "quit" [""] "": "ends the shell"
        => (_, _, _) ready(Ok(Answer::Exit));
}

pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name || command.aliases.contains(&name))
}

/// The command whose name looks most like `name`.
fn similar(name: &str) -> Option<&'static str> {
    let names =
        COMMANDS.iter().flat_map(|command| [command.name].into_iter().chain(command.aliases.iter().copied()));
    let common = |other: &str| name.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    // Of several that begin alike, the one of the nearest length.
    let likeness = |other: &&str| (common(other), std::cmp::Reverse(other.len().abs_diff(name.len())));
    names.max_by_key(likeness).filter(|other| common(other) >= 2)
}

/// What a command says beside its output; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    /// Done, and the answer is no: not found, check not passed.
    No,
    /// Ends the shell.
    Exit,
}

/// What a Unix shell says of a program that SIGPIPE has ended.
const EXIT_BROKEN_PIPE: u8 = 128 + 13;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("unknown command {name:?}{}", similar(.name).map(|s| format!(", did you mean {s:?}?")).unwrap_or_default())]
    UnknownCommand { name: String },
    #[error("{0}")]
    Usage(#[from] Usage),
    #[error(transparent)]
    Client(#[from] Error),
    #[error("cannot print: {0}")]
    Io(#[from] io::Error),
}

impl Failure {
    /// What to do next, when there is something to say.
    pub fn next_step(&self) -> Option<&'static str> {
        match self {
            Self::UnknownCommand { .. } => Some("`help` lists the commands"),
            Self::Usage(_) | Self::Io(_) => None,
            Self::Client(error) => match error {
                Error::NoTable(_) => Some("`ls` lists the tables, `create <table>` makes one"),
                Error::Unclear(_) => Some("read the value before you decide whether to do it again"),
                Error::Timeout { unreachable: true, .. } => Some(
                    "is the server running? --meta tells where the meta-servers are; `make onebox` starts a cluster",
                ),
                Error::Timeout { .. } => Some(
                    "`app <table> -d` shows the partitions, `nodes` the servers; `timeout` allows more time",
                ),
                Error::Storage(code) if *code == StorageError::InvalidArgument.code() => Some(
                    "the key or the value is not fit for this operation: `incr` and int_ checks need decimal numbers",
                ),
                Error::Refused(_) | Error::Meta { .. } => match error.code() {
                    Some(ErrorCode::AppExist) => {
                        Some("`app <table>` shows it; without -f an equal table is accepted")
                    }
                    Some(ErrorCode::AppNotExist) => Some("`ls -a` lists the tables, dropped ones too"),
                    Some(ErrorCode::InvalidParameters) => {
                        Some("partitions must be a power of two and at least 2")
                    }
                    Some(ErrorCode::InvalidData) => {
                        Some("the request may be larger than the server accepts (1 MiB)")
                    }
                    _ => None,
                },
                _ => None,
            },
        }
    }

    /// Whoever read the answer has gone, as `head` does: no more is wanted, and nothing is to be said about it.
    pub fn nobody_reads(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// 2 = typed wrong, 3 = could not be done.
    pub fn exit_code(&self) -> u8 {
        match self {
            _ if self.nobody_reads() => EXIT_BROKEN_PIPE,
            Self::UnknownCommand { .. } | Self::Usage(_) | Self::Client(Error::Invalid(_)) => 2,
            Self::Client(_) | Self::Io(_) => 3,
        }
    }
}

pub type Result<T = Answer> = std::result::Result<T, Failure>;

/// Executes one command.
pub async fn run(session: &mut Session, words: Vec<Vec<u8>>, out: &mut Output<'_>) -> Result {
    let mut words = words.into_iter();
    let Some(name) = words.next() else { return Ok(Answer::Yes) };
    let name = String::from_utf8_lossy(&name).into_owned();
    let Some(command) = find(&name) else { return Err(Failure::UnknownCommand { name }) };
    let mut args = Args::parse(command.flags, words)?;
    let done = match command.run {
        Run::OnTable(run) => {
            let table = session.table(&mut args).await?;
            run(session, &table, args, out).await
        }
        Run::Plain(run) => run(session, args, out).await,
    };
    done.map_err(|failure| match failure {
        Failure::Usage(Usage(why)) => Failure::Usage(Usage(format!("{why}\nusage: {}", usage(command)))),
        other => other,
    })
}

fn usage(command: &Command) -> String {
    let table = if command.is_on_table() { "[table] " } else { "" };
    format!("{} {table}{}", command.name, command.usage).trim_end().to_owned()
}

fn help(mut args: Args, out: &mut Output<'_>) -> Result {
    if let Some(name) = args.optional() {
        let name = String::from_utf8_lossy(&name).into_owned();
        let command = find(&name).ok_or(Failure::UnknownCommand { name })?;
        args.end()?;
        out.fact("usage", usage(command), usage(command))?;
        out.fact("help", command.help, format_args!("    {}", command.help))?;
        for alias in command.aliases {
            out.remark(format_args!("    also called {alias}"))?;
        }
        if command.is_on_table() {
            out.remark("    [table] is not given when a table is in use (`use`)")?;
        }
        return Ok(Answer::Yes);
    }
    for command in COMMANDS {
        let text = format!("{:20}{}", command.name, command.help.split(['.', ';']).next().unwrap_or(""));
        out.fact(command.name, command.help, text)?;
    }
    out.remark("\n`help <command>` tells what a command takes. Keys and values: quotes as in a Unix shell, \\xHH is a byte.")?;
    Ok(Answer::Yes)
}

fn version(args: Args, out: &mut Output<'_>) -> Result {
    args.end()?;
    let version = env!("CARGO_PKG_VERSION");
    out.fact("version", version, format_args!("pegasus_shell {version}"))?;
    Ok(Answer::Yes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_flags_well_formed() {
        let mut names = BTreeSet::new();
        for command in COMMANDS {
            for name in [command.name].iter().chain(command.aliases) {
                assert!(names.insert(*name), "{name} twice");
            }
            for letter in command.flags.chars().filter(|c| *c != ':') {
                let known = command.usage.contains(&format!("-{letter}")) || letter == 'c';
                assert!(known, "{}: -{letter} is not in the usage", command.name);
            }
        }
        assert_eq!(find("multi_set").map(|command| command.name), Some("mset"));
    }

    #[test]
    fn mistakes_come_with_a_hint() {
        let unknown = Failure::UnknownCommand { name: "hash_scam".to_owned() };
        assert_eq!(unknown.to_string(), "unknown command \"hash_scam\", did you mean \"hash_scan\"?");
        assert!(unknown.next_step().is_some());
        for (unreachable, hint) in [(true, "is the server running?"), (false, "`timeout` allows more time")] {
            let late = Failure::from(Error::Timeout { last: String::new(), unreachable });
            assert!(late.next_step().unwrap().contains(hint));
        }
        let unknown = Failure::UnknownCommand { name: "zzz".to_owned() };
        assert_eq!(unknown.to_string(), "unknown command \"zzz\"");
    }
}
