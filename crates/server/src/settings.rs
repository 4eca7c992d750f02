//! The configuration of all roles: one file serves them all, so all of it is checked whichever role starts.

use pegasus_config::common::{self, CollectorApp, Core, LogFiles, LogFormat, LogLevel, MetaApp, ReplicaApp};
use pegasus_config::{Loaded, Mistake, Mistakes, SectionInfo, Setting, Sources};
use pegasus_telemetry::logging::LogOptions;
use tracing::level_filters::LevelFilter;

use crate::Role;

/// Every declared section, in the order of the default file.
pub fn sections() -> Vec<&'static SectionInfo> {
    let roles =
        [pegasus_meta_server::SECTIONS, pegasus_replica_server::SECTIONS, pegasus_collector::SECTIONS];
    common::SECTIONS.iter().chain(roles.into_iter().flatten()).copied().collect()
}

#[derive(Debug)]
pub struct Settings {
    pub core: Core,
    pub logs: LogFiles,
    pub meta: pegasus_meta_server::Config,
    pub replica: pegasus_replica_server::Config,
    pub collector: pegasus_collector::Config,
    pub warnings: Vec<Mistake>,
    run: Vec<Role>,
}

impl Settings {
    /// Everything, or every mistake.
    pub fn read(sources: Sources) -> Result<Self, Mistakes> {
        let mut loaded = sources.load(&sections());
        let shown = serde_json::to_value(loaded.effective()).unwrap_or_default();
        let mut settings = Self {
            core: loaded.section(),
            logs: loaded.section(),
            meta: pegasus_meta_server::Config::load(&mut loaded),
            replica: pegasus_replica_server::Config::read(&mut loaded),
            collector: pegasus_collector::Config::read(&mut loaded),
            warnings: Vec::new(),
            run: roles_to_run(&mut loaded),
        };
        settings.replica.shown = shown.clone();
        settings.collector.shown = shown;
        settings.check(&mut loaded);
        settings.warnings = loaded.finish()?;
        Ok(settings)
    }

    /// The rules of what all roles share; each role has checked its own sections.
    fn check(&self, loaded: &mut Loaded) {
        self.meta.check(loaded);
        self.core.check(loaded);
        loaded.section::<common::Network>().check(loaded);
        loaded.section::<common::MetaList>().check(loaded);
        let lease: common::Lease = loaded.section();
        loaded.section::<common::Liveness>().check(&lease, loaded);
        let cluster: common::Cluster = loaded.section();
        if !cluster.slog_dir.is_empty() {
            loaded.warning(
                "replication",
                "slog_dir",
                "has no effect: there is no shared log; take the line out",
            );
        }
    }

    /// `[apps.*]` sections of the file that say `run = true`.
    pub fn roles_to_run(&self) -> Vec<Role> {
        self.run.clone()
    }

    /// What these settings give and no single key tells, for one line at the start.
    pub fn failover_line(&self) -> String {
        let (crashed_ms, silent_ms) = self.replica.core_options().fail_over_ms();
        format!(
            "fail-over: a crashed primary is replaced within {crashed_ms} ms, a silent one within {silent_ms} ms; a \
             silent node counts as dead after {} s, its replicas are made anew elsewhere {} s later; durability = {}",
            self.meta.liveness.fd_grace_seconds.to_text(),
            self.meta.meta.replica_assign_delay_ms_for_dropouts.0.as_secs_f64(),
            self.replica.replication.durability.to_text(),
        )
    }

    /// Logs of a process with these roles.
    pub fn log_options(&self, roles: &[Role]) -> LogOptions {
        let base_name = match roles {
            [role] => role.name(),
            _ => "pegasus",
        };
        LogOptions {
            directory: Some(self.core.log_directory()),
            base_name: base_name.to_owned(),
            level: level(self.core.logging_start_level),
            stderr_level: level(self.logs.stderr_start_level),
            json: self.core.logging_format == LogFormat::Json,
            file_bytes_max: self.logs.max_log_file_bytes.0,
            files_max: self.logs.max_number_of_log_files_on_disk as usize,
        }
    }
}

fn roles_to_run(loaded: &mut Loaded) -> Vec<Role> {
    let meta: MetaApp = loaded.section();
    let replica: ReplicaApp = loaded.section();
    let collector: CollectorApp = loaded.section();
    [
        (Role::Meta, "apps.meta", meta.run),
        (Role::Replica, "apps.replica", replica.run),
        (Role::Collector, "apps.collector", collector.run),
    ]
    .into_iter()
    .filter(|(_, section, run)| *run && loaded.has_section(section))
    .map(|(role, ..)| role)
    .collect()
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Fatal => LevelFilter::ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file that operators start from, as it stands in the repository.
    const SHIPPED: &str = include_str!("../../../config/config.ini");

    fn filled() -> Sources {
        Sources::text("config.ini", SHIPPED).cargs(
            "app.dir=/app;cluster.name=c;meta.server.list=127.0.0.1:34601;data.dirs=a:/a;home.dir=/home;zk.server.list=",
        )
    }

    #[test]
    fn the_shipped_file_is_the_one_that_the_declarations_give() {
        let written = pegasus_config::default_file(&sections());
        let differs = written.lines().zip(SHIPPED.lines()).find(|(a, b)| a != b);
        assert!(
            written == SHIPPED,
            "run `cargo run --bin pegasus_server -- --print-default-config > config/config.ini`; first difference: {differs:?}"
        );
    }

    #[test]
    fn the_reference_is_current() {
        let written = pegasus_config::markdown(&sections());
        let kept = include_str!("../../../docs/configuration.md");
        let differs = written.lines().zip(kept.lines()).find(|(a, b)| a != b);
        assert!(
            written == kept,
            "run `cargo run --bin pegasus_server -- --print-config-reference > docs/configuration.md`; first difference: {differs:?}"
        );
    }

    #[test]
    fn the_shipped_file_works_once_its_variables_are_filled() {
        let settings = Settings::read(filled().set("network.primary_interface=lo")).unwrap();
        assert_eq!(settings.warnings, []);
        assert_eq!(settings.roles_to_run(), Role::ALL);
        assert_eq!(settings.log_options(&[Role::Meta]).base_name, "meta");
        assert_eq!(settings.log_options(&Role::ALL).base_name, "pegasus");
        assert_eq!(settings.log_options(&Role::ALL).directory, Some("/app/log".into()));
    }

    #[test]
    fn an_unfilled_file_names_every_variable_at_once() {
        let told = Settings::read(Sources::text("config.ini", SHIPPED)).unwrap_err().to_string();
        for variable in ["app.dir", "cluster.name", "meta.server.list"] {
            assert!(told.contains(&format!("variable %{{{variable}}} has no value")), "{told}");
        }
    }

    #[test]
    fn roles_without_a_section_or_switched_off_do_not_run() {
        let file = "[apps..default]\nrun = true\n[apps.replica]\n[apps.collector]\nrun = false\n\
                    [meta_server]\nserver_list = 127.0.0.1:1\n[network]\nprimary_interface = lo";
        assert_eq!(Settings::read(Sources::text("f", file)).unwrap().roles_to_run(), [Role::Replica]);
    }
}
