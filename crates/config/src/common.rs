//! Sections that every role reads. What only one role reads is declared by that role's crate.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use pegasus_types::Node;

use crate::{ByteSize, Loaded, Ms, Seconds, Section, SectionInfo, host};

crate::choice! {
    /// Lowest level that is logged.
    pub enum LogLevel {
        Debug = "LOG_LEVEL_DEBUG",
        Info = "LOG_LEVEL_INFO",
        Warning = "LOG_LEVEL_WARNING",
        Error = "LOG_LEVEL_ERROR",
        Fatal = "LOG_LEVEL_FATAL",
    }
}

crate::choice! {
    /// When a replica acknowledges a write.
    pub enum Durability {
        /// After its log is synced to disk: survives a power cut of all machines.
        Sync = "sync",
        /// After its log is written to the page cache, as Pegasus does: survives any single crash.
        PageCache = "page_cache",
    }
}

crate::choice! {
    /// Form of the log files.
    pub enum LogFormat {
        Text = "text",
        /// One object a line.
        Json = "json",
    }
}

crate::section! {
    /// The process.
    pub struct Core = "core" {
        /// Working directory of the role: logs in log/, data too when [replication] data_dirs is empty.
        data_dir: String = "./data".to_owned(), template "%{app.dir}";
        /// Directory of the log files; empty = data_dir/log, else absolute.
        log_dir: String = String::new();
        /// Lowest level logged: LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARNING, LOG_LEVEL_ERROR.
        logging_start_level: LogLevel = LogLevel::Info;
        /// Form of the log files: text, or json with one object a line.
        logging_format: LogFormat = LogFormat::Text;
    }
}

crate::section! {
    /// Log files: ROLE.log.TIME, and ROLE.log, a link to the newest.
    pub struct LogFiles = "tools.simple_logger" {
        /// A log file is closed at this size, in bytes.
        max_log_file_bytes: ByteSize = ByteSize(64 << 20), in ByteSize(64 << 10)..=ByteSize(16 << 30);
        /// Log files kept per role; the oldest go first.
        max_number_of_log_files_on_disk: u32 = 20, in 1..=10_000;
        /// Lines of this level and above go to stderr as well.
        stderr_start_level: LogLevel = LogLevel::Warning;
    }
}

crate::section! {
    /// The address under which others know this process.
    pub struct Network = "network" {
        /// Interface whose IPv4 address is published; empty = the first private one. lo for one machine alone.
        primary_interface: String = String::new();
        /// Host name or address to publish instead, for example in containers.
        explicit_host_address: String = String::new();
    }
}

crate::section! {
    /// The meta-server of this host.
    pub struct MetaApp = "apps.meta" {
        /// Started when no -app_list is given.
        run: bool = true;
        /// Port for clients, HTTP and the other daemons; 0 = any free one.
        ports: u16 = 34601, template "34601";
    }
}

crate::section! {
    /// The replica-server of this host.
    pub struct ReplicaApp = "apps.replica" {
        /// Started when no -app_list is given.
        run: bool = true;
        /// Port for clients, HTTP and the other daemons; 0 = any free one.
        ports: u16 = 34801, template "34801";
    }
}

crate::section! {
    /// The collector of this host.
    pub struct CollectorApp = "apps.collector" {
        /// Started when no -app_list is given.
        run: bool = true;
        /// Port for HTTP; 0 = any free one.
        ports: u16 = 34101, template "34101";
    }
}

crate::section! {
    pub struct MetaList = "meta_server" {
        /// All meta-servers of this cluster, host:port,host:port. Read by every role.
        server_list: Vec<Node> = Vec::new(), template "%{meta.server.list}";
    }
}

crate::section! {
    pub struct Cluster = "replication" {
        /// Name of this cluster: label of its metrics.
        cluster_name: String = String::new(), template "%{cluster.name}";
        /// Accepted for old files, without effect: there is no shared log.
        slog_dir: String = String::new(), template "# %{slog.dir}";
    }
}

crate::section! {
    pub struct Lease = "replication" {
        /// Nodes that share a partition send one another a heartbeat this often, in ms.
        lease_heartbeat_ms: Ms = Ms::new(150), in Ms::new(10)..=Ms::new(60_000);
        /// A member's acknowledgement lets the primary serve for this long, in ms.
        lease_ms: Ms = Ms::new(600), in Ms::new(50)..=Ms::new(600_000);
        /// Silence of the primary's node after which a secondary takes over, in ms. It also waits until the lease
        /// that it last granted has surely ended.
        grace_ms: Ms = Ms::new(900), in Ms::new(50)..=Ms::new(600_000);
        /// Added to the end of a granted lease before another acts, for clocks and scheduling, in ms.
        lease_margin_ms: Ms = Ms::new(50), in Ms::new(1)..=Ms::new(60_000);
    }
}

crate::section! {
    pub struct Liveness = "replication" {
        /// Replica-servers report to the meta leader this often; seconds, fractions and 500ms are accepted.
        fd_beacon_interval_seconds: Seconds = Seconds::new(1), in Seconds(Duration::from_millis(20))..=Seconds::new(600);
        /// Silence after which the meta leader counts a node as dead and places its replicas elsewhere. Does not
        /// delay fail-over: groups see to that themselves, with leases.
        fd_grace_seconds: Seconds = Seconds::new(10), in Seconds(Duration::from_millis(100))..=Seconds::new(3600);
        /// How often the meta leader looks for silent nodes.
        fd_check_interval_seconds: Seconds = Seconds::new(1), in Seconds(Duration::from_millis(10))..=Seconds::new(600);
    }
}

crate::section! {
    pub struct Writing = "replication" {
        /// Members without which writes are refused; 0 or less = majority (one when two replicas are wanted).
        mutation_2pc_min_replica_count: i32 = 2, in -1..=15;
    }
}

/// Names of clusters and their meta-servers.
pub const CLUSTERS: SectionInfo = SectionInfo {
    name: "pegasus.clusters",
    doc: &["Clusters by name, with their meta-servers: this one, and those that tools copy to or from."],
    keys: &[],
    open: true,
    shown_as: &[("pegasus.clusters", &[("%{cluster.name}", "%{meta.server.list}")])],
};

/// Declared here, in the order of the default file.
pub const SECTIONS: &[&SectionInfo] = &[
    MetaApp::INFO,
    ReplicaApp::INFO,
    CollectorApp::INFO,
    Core::INFO,
    LogFiles::INFO,
    Network::INFO,
    MetaList::INFO,
    Cluster::INFO,
    Lease::INFO,
    Liveness::INFO,
    Writing::INFO,
    &CLUSTERS,
];

impl Core {
    /// Where log files go.
    pub fn log_directory(&self) -> PathBuf {
        if self.log_dir.is_empty() { self.data_directory().join("log") } else { self.log_dir.clone().into() }
    }

    pub fn data_directory(&self) -> PathBuf {
        self.data_dir.clone().into()
    }

    pub fn check(&self, loaded: &mut Loaded) {
        if !self.log_dir.is_empty() && !self.log_directory().is_absolute() {
            loaded.mistake("core", "log_dir", format!("{} is not an absolute path", self.log_dir));
        }
        if self.data_dir.is_empty() {
            loaded.mistake("core", "data_dir", "is empty: expected a directory");
        }
    }
}

impl Network {
    /// The host to publish. Looks at the interfaces of this machine.
    pub fn host(&self) -> Result<String, String> {
        host::published(&self.explicit_host_address, &self.primary_interface)
    }

    /// Where to listen, given the published host: 127.x stays on it, anything else listens on all interfaces.
    pub fn listen_address(&self, port: u16) -> Result<SocketAddr, String> {
        let ip: Ipv4Addr = host::listen_ip(&self.host()?);
        Ok(SocketAddr::from((ip, port)))
    }

    /// The name of a role that listens on `port` (the real one: after binding).
    pub fn node(&self, port: u16) -> Result<Node, String> {
        let text = format!("{}:{port}", self.host()?);
        text.parse().map_err(|error: pegasus_types::ids::ParseIdError| error.to_string())
    }

    pub fn check(&self, loaded: &mut Loaded) {
        let key =
            if self.explicit_host_address.is_empty() { "primary_interface" } else { "explicit_host_address" };
        if let Err(why) = self.node(1) {
            loaded.mistake("network", key, why);
        }
    }
}

impl MetaList {
    pub fn check(&self, loaded: &mut Loaded) {
        if self.server_list.is_empty() && !loaded.has_variable("meta_server", "server_list") {
            loaded.mistake("meta_server", "server_list", "is empty: expected host:port of every meta-server");
        }
    }
}

impl Liveness {
    pub fn check(&self, lease: &Lease, loaded: &mut Loaded) {
        let (beacon, grace) = (self.fd_beacon_interval_seconds.0, self.fd_grace_seconds.0);
        if grace < 2 * beacon {
            loaded.mistake(
                "replication",
                "fd_grace_seconds",
                format!("{grace:?} is less than two beacons (fd_beacon_interval_seconds = {beacon:?}): every node \
                         would count as dead"),
            );
        }
        if grace <= lease.grace_ms.0 {
            loaded.mistake(
                "replication",
                "fd_grace_seconds",
                format!(
                    "{grace:?} is not above grace_ms = {:?}: the meta would move replicas before their group \
                         has failed over",
                    lease.grace_ms.0
                ),
            );
        }
    }
}
