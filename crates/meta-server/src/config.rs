//! What the meta-server reads of the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use pegasus_config::common::{Cluster, Core, Liveness, MetaApp, MetaList, Network, Writing};
use pegasus_config::{Effective, Loaded, Ms, Seconds, Section, SectionInfo};
use pegasus_placement::balance::moves::Pace;
use pegasus_placement::cure;
use pegasus_placement::level::FunctionLevel;
use pegasus_placement::tables::{CreateTable, Limits};
use pegasus_zk_coordination::zk_store::{self, Access, User};

pegasus_config::choice! {
    /// Where the metadata lives.
    pub enum Coordination {
        /// In a directory of the meta-server: one meta-server, one machine.
        Embedded = "embedded",
        /// In ZooKeeper, which also elects the leader among several meta-servers.
        Zookeeper = "zookeeper",
    }
}

pegasus_config::choice! {
    /// How much the meta-server may do.
    pub enum StartLevel {
        Stopped = "stopped",
        Blind = "blind",
        Freezed = "freezed",
        Steady = "steady",
        Lively = "lively",
    }
}

impl From<StartLevel> for FunctionLevel {
    fn from(level: StartLevel) -> Self {
        match level {
            StartLevel::Stopped => Self::Stopped,
            StartLevel::Blind => Self::Blind,
            StartLevel::Freezed => Self::Freezed,
            StartLevel::Steady => Self::Steady,
            StartLevel::Lively => Self::Lively,
        }
    }
}

pegasus_config::section! {
    /// Tables and placement, decided by the meta-server.
    pub struct MetaServer = "meta_server" {
        /// Where the metadata lives: embedded (a directory below [core] data_dir) or zookeeper.
        coordination: Coordination = Coordination::Embedded;
        /// Root of this cluster's metadata; unique per cluster.
        cluster_root: String = "/".to_owned(), template "/pegasus/%{cluster.name}";
        /// Where meta-servers stand for election; empty = /lock below cluster_root.
        distributed_lock_service_parameters: String = String::new(), template "/pegasus/%{cluster.name}/lock";
        /// What the meta-server may do at first: stopped, blind, freezed, steady (cures, moves nothing that is healthy) or
        /// lively (balances, too).
        meta_function_level_on_start: StartLevel = StartLevel::Steady, template "lively";
        /// Smallest replica count of a new table.
        min_allowed_replica_count: i32 = 1, in 1..=15;
        /// Largest replica count of a new table.
        max_allowed_replica_count: i32 = 5, in 1..=15;
        /// A dropped table can be recalled for this long, in seconds.
        hold_seconds_for_dropped_app: Seconds = Seconds::new(604_800);
        /// While a smaller share of the known nodes is alive, in percent, the meta-server proposes nothing: it is
        /// more likely cut off itself.
        node_live_percentage_threshold_for_update: u32 = 50, in 0..=100;
        /// A member that left is awaited for this long before another node gets its place, in ms, while writes work.
        replica_assign_delay_ms_for_dropouts: Ms = Ms::new(600_000);
        /// Everything must have been healthy for this long, in ms, before roles or copies are moved to even them out.
        lb_interval_ms: Ms = Ms::new(10_000);
        /// Partitions that one node is asked to learn at a time.
        add_secondary_max_count_for_one_node: u32 = 20, in 1..=10_000;
    }
}

pegasus_config::section! {
    /// Tables that are created when the cluster starts for the first time.
    pub struct DefaultTable = "meta_server.apps.*", shown as [(
        "meta_server.apps.temp",
        [("app_name", "temp"), ("app_type", "pegasus"), ("partition_count", "8"), ("max_replica_count", "3")]
    )] {
        /// Name of the table; empty = the last part of the section's name.
        app_name: String = String::new();
        /// Always pegasus.
        app_type: String = "pegasus".to_owned();
        /// A power of two, at least 2.
        partition_count: i32 = 8;
        /// Copies of each partition.
        max_replica_count: i32 = 3;
        /// Always true.
        stateful: bool = true;
        /// Settings of the table, k=v,k=v.
        envs: String = String::new();
    }
}

pegasus_config::section! {
    /// Read when the metadata lives in ZooKeeper.
    pub struct ZooKeeper = "zookeeper" {
        /// Its servers, host:port,host:port.
        hosts_list: String = String::new(), template "# %{zk.server.list}";
        /// A meta leader that ZooKeeper does not hear for this long is replaced, in ms. The servers bound it.
        timeout_ms: Ms = Ms::new(6_000), in Ms::new(1_000)..=Ms::new(60_000);
        /// User of ZooKeeper's digest authentication; empty = none.
        digest_user: String = String::new();
        /// File with that user's password, and nothing else.
        digest_password_file: String = String::new();
        /// Nobody but that user may read or change the metadata. Nodes that exist keep the access that they have.
        only_for_digest_user: bool = false;
    }
}

/// Everything that [`crate::start`] needs.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub app: MetaApp,
    pub core: Core,
    pub network: Network,
    pub metas: MetaList,
    pub cluster: Cluster,
    pub liveness: Liveness,
    pub meta: MetaServer,
    pub zookeeper: ZooKeeper,
    pub writing: Writing,
    /// By the last part of their section's name.
    pub tables: BTreeMap<String, DefaultTable>,
    /// What `/config` and `/configs` show.
    pub effective: Effective,
}

/// The sections declared here, for the list of all roles' sections.
pub const SECTIONS: &[&SectionInfo] = &[MetaServer::INFO, DefaultTable::INFO, ZooKeeper::INFO];

impl Config {
    /// Reads the sections; wrong values wait in `loaded` for its `finish`.
    pub fn load(loaded: &mut Loaded) -> Self {
        Self {
            app: loaded.section(),
            core: loaded.section(),
            network: loaded.section(),
            metas: loaded.section(),
            cluster: loaded.section(),
            liveness: loaded.section(),
            meta: loaded.section(),
            zookeeper: loaded.section(),
            writing: loaded.section(),
            tables: loaded.family(),
            effective: loaded.effective(),
        }
    }

    /// Rules across keys.
    pub fn check(&self, loaded: &mut Loaded) {
        let meta = &self.meta;
        match meta.coordination {
            Coordination::Zookeeper if self.zookeeper.hosts_list.trim().is_empty() => {
                loaded.mistake("zookeeper", "hosts_list", "is empty, and coordination = zookeeper");
            }
            Coordination::Zookeeper => {}
            Coordination::Embedded if self.metas.server_list.len() > 1 => loaded.mistake(
                "meta_server",
                "server_list",
                "names several meta-servers: they need coordination = zookeeper, the embedded store serves one",
            ),
            Coordination::Embedded => {}
        }
        if meta.min_allowed_replica_count > meta.max_allowed_replica_count {
            loaded.mistake("meta_server", "min_allowed_replica_count", "is above max_allowed_replica_count");
        }
        let zookeeper = &self.zookeeper;
        if zookeeper.digest_user.is_empty() && zookeeper.only_for_digest_user {
            loaded.mistake("zookeeper", "only_for_digest_user", "is set, and digest_user is empty");
        }
        if zookeeper.digest_user.is_empty() != zookeeper.digest_password_file.is_empty() {
            loaded.mistake("zookeeper", "digest_user", "and digest_password_file belong together");
        }
        let view = pegasus_placement::ClusterView::default();
        for (section, table) in &self.tables {
            let section_name = format!("meta_server.apps.{section}");
            let result = table.request(section).and_then(|request| {
                pegasus_placement::tables::create(&view, &self.limits(), request, 0)
                    .map(drop)
                    .map_err(|error| error.hint)
            });
            if let Err(why) = result {
                loaded.mistake(&section_name, "app_name", why);
            }
        }
    }

    /// Directory of the embedded store.
    pub fn store_dir(&self) -> PathBuf {
        self.core.data_directory().join("meta-store")
    }

    /// Reads the password, if there is one.
    pub fn zookeeper_options(&self) -> anyhow::Result<zk_store::Options> {
        let config = &self.zookeeper;
        let user = match config.digest_user.as_str() {
            "" => None,
            name => {
                let file = &config.digest_password_file;
                let password = std::fs::read_to_string(file)
                    .with_context(|| format!("[zookeeper] digest_password_file = {file}"))?;
                Some(User { name: name.to_owned(), password: password.trim_end().to_owned() })
            }
        };
        Ok(zk_store::Options {
            hosts: config.hosts_list.clone(),
            session_timeout: Duration::from_millis(config.timeout_ms.as_u64()),
            user,
            access: if config.only_for_digest_user { Access::Creator } else { Access::Everyone },
        })
    }

    pub fn limits(&self) -> Limits {
        let hold = self.meta.hold_seconds_for_dropped_app.0.as_secs();
        Limits {
            min_replica_count: self.meta.min_allowed_replica_count,
            max_replica_count: self.meta.max_allowed_replica_count,
            hold_seconds: i64::try_from(hold).unwrap_or(i64::MAX),
        }
    }

    pub fn cure_options(&self) -> cure::Options {
        cure::Options {
            return_ms: self.meta.replica_assign_delay_ms_for_dropouts.as_u64(),
            min_replica_count: self.writing.mutation_2pc_min_replica_count,
            max_learners_per_node: self.meta.add_secondary_max_count_for_one_node as usize,
            min_alive_percent: self.meta.node_live_percentage_threshold_for_update as usize,
            pace: Pace { calm_ms: self.meta.lb_interval_ms.as_u64(), ..Pace::default() },
            ..cure::Options::default()
        }
    }

    /// Tables of the first start.
    pub fn default_tables(&self) -> Vec<CreateTable> {
        self.tables.iter().filter_map(|(section, table)| table.request(section).ok()).collect()
    }
}

impl DefaultTable {
    fn request(&self, section: &str) -> Result<CreateTable, String> {
        let mut envs = BTreeMap::new();
        for pair in self.envs.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| format!("envs: {pair:?} is not key=value"))?;
            envs.insert(key.trim().to_owned(), value.trim().to_owned());
        }
        Ok(CreateTable {
            name: if self.app_name.is_empty() { section.to_owned() } else { self.app_name.clone() },
            app_type: self.app_type.clone(),
            partition_count: self.partition_count,
            replica_count: self.max_replica_count,
            envs,
            is_stateful: self.stateful,
            success_if_exist: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use pegasus_config::Sources;

    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let mut sections = pegasus_config::common::SECTIONS.to_vec();
        sections.extend(SECTIONS);
        let mut loaded = Sources::text("config.ini", text).load(&sections);
        let config = Config::load(&mut loaded);
        config.check(&mut loaded);
        loaded.finish().map(|_| config).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn operators_values_arrive() {
        let text = "[meta_server]\nserver_list = a:1\ncluster_root = /pegasus/c\nmeta_function_level_on_start = lively\n\
                    replica_assign_delay_ms_for_dropouts = 1000\n\
                    [meta_server.apps.temp]\npartition_count = 16\nenvs = default_ttl=60, x=y\n\
                    [meta_server.apps.other]\napp_name = named\n";
        let config = read(text).unwrap();
        assert_eq!(FunctionLevel::from(config.meta.meta_function_level_on_start), FunctionLevel::Lively);
        assert_eq!((config.cure_options().return_ms, config.cure_options().repeat_ms), (1000, 3000));
        assert_eq!(config.limits(), Limits::default());
        let tables = config.default_tables();
        let names: Vec<_> = tables.iter().map(|t| (t.name.as_str(), t.partition_count)).collect();
        assert_eq!(names, [("named", 8), ("temp", 16)]);
        assert_eq!(tables[1].envs.get("default_ttl").unwrap(), "60");
    }

    #[test]
    fn zookeeper_with_a_password() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "secret\n").unwrap();
        let text = format!(
            "[meta_server]\nserver_list = a:1,b:1\ncoordination = zookeeper\n[zookeeper]\nhosts_list = z1:2181,z2\n\
             timeout_ms = 10000\ndigest_user = me\ndigest_password_file = {}\nonly_for_digest_user = true\n",
            file.display()
        );
        let config = read(&text).unwrap();
        let want = zk_store::Options {
            hosts: "z1:2181,z2".into(),
            session_timeout: Duration::from_secs(10),
            user: Some(User { name: "me".into(), password: "secret".into() }),
            access: Access::Creator,
        };
        assert_eq!(config.zookeeper_options().unwrap(), want);
        std::fs::remove_file(&file).unwrap();
        assert!(config.zookeeper_options().unwrap_err().to_string().contains("digest_password_file"));
    }

    #[test]
    fn impossible_settings_are_told() {
        for (text, why) in [
            ("[meta_server]\nserver_list = a:1,b:1\n", "need coordination = zookeeper"),
            ("[meta_server]\ncoordination = zookeeper\n", "hosts_list"),
            ("[zookeeper]\nonly_for_digest_user = true\n", "digest_user is empty"),
            ("[zookeeper]\ndigest_user = me\n", "belong together"),
            ("[meta_server]\ncoordination = sled\n", "embedded, zookeeper"),
            ("[meta_server]\nmeta_function_level_on_start = fast\n", "steady"),
            ("[meta_server]\nmin_allowed_replica_count = 6\n", "above max_allowed_replica_count"),
            ("[meta_server.apps.temp]\npartition_count = 3\n", "power of two"),
            ("[meta_server.apps.temp]\nenvs = x\n", "key=value"),
            ("[meta_server.apps.a b]\n", "no table name"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
    }
}
