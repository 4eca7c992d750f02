//! The command line. Pegasus's single-dash spellings (`-app_list`, `-cargs`) are understood as well.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Parser;
use pegasus_config::{Setting, Sources};
use pegasus_meta_server::Coordination;
use pegasus_replica_server::lost_power::Which;

use crate::{Role, Settings};

const EXAMPLES: &str = "\
One file serves all roles. To begin, write one, fill in its %{variables} and let it be checked:

  pegasus_server --print-default-config > config.ini
  pegasus_server config.ini --check-config

Then start a role, as a rule one process each:

  pegasus_server config.ini -app_list meta
  pegasus_server config.ini -app_list replica
  pegasus_server config.ini -app_list collector

Everything on one machine with one copy of each row, without editing the file:

  pegasus_server config.ini -app_list meta,replica,collector \\
      --set cluster.name=mine --set app.dir=./mine --set home.dir=./mine --set data.dirs= \\
      --set meta.server.list=127.0.0.1:34601 --set network.primary_interface=lo \\
      --set meta_server.apps.temp.max_replica_count=1 \\
      --set replication.mutation_2pc_min_replica_count=1

A setting comes from the file, else the environment (PEGASUS__SECTION__KEY=value) wins over it, else --set wins
over both. Logs are in [core] data_dir/log. SIGTERM hands primaries over and stops; a
second one, or Ctrl-C, stops without handing over, a third one ends at once; kill -9 is safe, too.
Addresses (one port for clients, HTTP and the other daemons): curl http://HOST:PORT/ lists what there is to see.";

/// Runs roles of a Pegasus cluster.
#[derive(Debug, Parser)]
#[command(disable_version_flag = true, after_help = EXAMPLES, max_term_width = 110)]
pub struct Args {
    /// Configuration file (Pegasus's config.ini)
    pub config: Option<PathBuf>,

    /// Roles to run: meta, replica, collector, comma separated [default: all [apps.*] with run = true]
    #[arg(long = "app-list", alias = "app_list", value_name = "ROLES")]
    app_list: Option<String>,

    /// Override a setting, or give a %{variable} its value; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,

    /// Values of %variables%: NAME=VALUE;NAME=VALUE
    #[arg(long, value_name = "LIST")]
    cargs: Vec<String>,

    /// Settings to override, as Pegasus writes them: SECTION.KEY=VALUE;SECTION.KEY=VALUE
    #[arg(long, value_name = "LIST")]
    overwrite: Vec<String>,

    /// Report everything that is wrong with the configuration, and end
    #[arg(long)]
    pub check_config: bool,

    /// Print the documented default configuration, and end
    #[arg(long)]
    pub print_default_config: bool,

    /// Print what every setting means, as Markdown, and end
    #[arg(long)]
    pub print_config_reference: bool,

    /// Move the metadata to zookeeper, or back to embedded, and end; no meta-server may run
    #[arg(long, value_name = "STORE", value_parser = Coordination::parse)]
    pub move_metadata_to: Option<Coordination>,

    /// Remove the metadata of the cluster of this name for good, and end; none of its servers may run
    #[arg(long, value_name = "CLUSTER")]
    pub remove_metadata: Option<String>,

    /// Replicas of this replica-server, all or APP.INDEX,.., that stood down after a loss of power count as whole again,
    /// and end; what they lack is lost; it must not run
    #[arg(long, value_name = "PARTITIONS", value_parser = Which::parse)]
    pub accept_lost_power: Option<Which>,

    /// Unknown keys are warnings, not mistakes
    #[arg(long)]
    allow_unknown_keys: bool,

    /// Print the version, and end
    #[arg(short, long)]
    pub version: bool,
}

/// Name of the binary of a role.
pub fn program(only: Option<Role>) -> &'static str {
    match only {
        None => "pegasus_server",
        Some(Role::Meta) => "pegasus_meta_server",
        Some(Role::Replica) => "pegasus_replica_server",
        Some(Role::Collector) => "pegasus_collector",
    }
}

/// A package has one program and links to it, named as the programs of single roles.
pub fn role_of_program(called_as: &OsStr) -> Option<Role> {
    let name = Path::new(called_as).file_name()?.to_str()?;
    Role::ALL.into_iter().find(|role| program(Some(*role)) == name)
}

impl Args {
    /// Parses; the error is clap's, help included.
    pub fn read(args: impl IntoIterator<Item = OsString>, only: Option<Role>) -> Result<Self, clap::Error> {
        let mut args: Vec<OsString> = args.into_iter().map(double_dash).collect();
        match args.first_mut() {
            Some(name) => *name = program(only).into(),
            None => args.push(program(only).into()),
        }
        Self::try_parse_from(args)
    }

    pub fn sources(&self, file: &Path) -> Sources {
        let mut sources = Sources::file(file).allow_unknown_keys(self.allow_unknown_keys);
        for list in &self.cargs {
            sources = sources.cargs(list);
        }
        for set in self.overwrite.iter().flat_map(|list| list.split(';')).filter(|set| !set.trim().is_empty())
        {
            sources = sources.set(set);
        }
        for set in &self.set {
            sources = sources.set(set);
        }
        sources
    }

    /// The roles to run.
    pub fn roles(&self, only: Option<Role>, settings: &Settings) -> anyhow::Result<Vec<Role>> {
        let listed = match &self.app_list {
            Some(text) => {
                Some(Role::parse_list(text).map_err(|why| anyhow::anyhow!("-app_list {text}: {why}"))?)
            }
            None => None,
        };
        match (only, listed) {
            (None, Some(roles)) => Ok(roles),
            (Some(role), None) => Ok(vec![role]),
            (Some(role), Some(roles)) if roles == [role] => Ok(roles),
            (Some(role), Some(_)) => {
                bail!("{} runs {role} only; pegasus_server runs any role", program(only))
            }
            (None, None) => {
                let roles = settings.roles_to_run();
                if roles.is_empty() {
                    bail!(
                        "no role to run: give -app_list meta, replica or collector, or set [apps.*] run = true"
                    );
                }
                Ok(roles)
            }
        }
    }
}

/// `-app_list` → `--app-list`. Other single-dash words stay: clap says what is wrong with them.
fn double_dash(arg: OsString) -> OsString {
    let Some(text) = arg.to_str() else { return arg };
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let long = match name {
        "-app_list" | "-app-list" => "--app-list",
        "-cargs" => "--cargs",
        "-overwrite" => "--overwrite",
        "-version" => "--version",
        "-help" => "--help",
        _ => return arg,
    };
    value.map_or_else(|| long.to_owned(), |value| format!("{long}={value}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Args, clap::Error> {
        Args::read(line.split_whitespace().map(OsString::from), None)
    }

    #[test]
    fn spellings_of_pegasus() {
        for line in [
            "pegasus_server c.ini -app_list meta,replica",
            "pegasus_server c.ini --app-list meta,replica",
            "pegasus_server c.ini --app_list=meta,replica",
            "x -app_list meta,replica c.ini",
        ] {
            let args = read(line).unwrap();
            assert_eq!(args.app_list.as_deref(), Some("meta,replica"), "{line}");
            assert_eq!(args.config.as_deref(), Some(Path::new("c.ini")));
        }
        assert!(read("x -v").unwrap().version && read("x -version").unwrap().version);
        assert_eq!(read("x c -cargs a=b;c=d").unwrap().cargs, ["a=b;c=d"]);
        assert_eq!(read("x c --set a.b=c --set d.e=f").unwrap().set.len(), 2);
        assert!(read("x c --nonsense").is_err());
    }

    #[test]
    fn a_link_named_as_a_role_is_that_role() {
        let role = |name: &str| role_of_program(OsStr::new(name));
        assert_eq!(role("/opt/x/bin/pegasus_meta_server"), Some(Role::Meta));
        assert_eq!(role("pegasus_replica_server"), Some(Role::Replica));
        assert_eq!(role("./pegasus_collector"), Some(Role::Collector));
        assert_eq!(role("./pegasus_server"), None);
    }

    #[test]
    fn help_teaches() {
        let help = read("x --help").unwrap_err();
        assert!(!help.use_stderr());
        let help = help.to_string();
        for part in
            ["Usage: pegasus_server", "--print-default-config", "-app_list replica", "PEGASUS__SECTION__KEY"]
        {
            assert!(help.contains(part), "{part}: {help}");
        }
    }
}
