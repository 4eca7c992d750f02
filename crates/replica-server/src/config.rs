//! What the replica-server reads of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use pegasus_config::black_list;
use pegasus_config::common::{
    Cluster, Core, Durability, Lease, Liveness, MetaList, Network, ReplicaApp, Writing,
};
use pegasus_config::{ByteSize, Loaded, Ms, Seconds, Section, SectionInfo, TaggedPath};
use pegasus_mutation_log::LogOptions;
use pegasus_storage::ops::ReadLimits;
use pegasus_storage::{EngineKind, EngineOptions};

use crate::slow::Threshold;

pegasus_config::choice! {
    /// What holds the rows of a partition.
    pub enum EngineChoice {
        Lsm = "lsm",
        /// Needs `durability = sync`; slower, see the documentation.
        Sled = "sled",
        /// Forgets everything at the end of the process; for tests.
        Memory = "memory",
    }
}

pegasus_config::section! {
    pub struct Storage = "storage" {
        /// Engine of new partitions: lsm, sled or memory.
        engine: EngineChoice = EngineChoice::Lsm;
    }
}

pegasus_config::section! {
    /// How partitions are replicated.
    pub struct Replication = "replication" {
        /// Disks of the replica-server, tag:path,tag:path; empty = data_dir of [core] alone.
        data_dirs: Vec<TaggedPath> = Vec::new(), template "%{data.dirs}";
        /// File with data directories that are left out at the start, one per line; it need not exist. For a broken disk
        /// that still answers: list it, and start the replica-server again.
        data_dirs_black_list_file: String = String::new(), template "%{home.dir}/.pegasus_data_dirs_black_list";
        /// When a replica acknowledges a write: sync (after fdatasync) or page_cache.
        durability: Durability = Durability::Sync;
        /// Largest client write in bytes; 0 = no limit but the frame's.
        max_allowed_write_size: ByteSize = ByteSize(1 << 20);
        /// Mutations of a partition that may be prepared and not committed.
        staleness_for_commit: u32 = 128, in 1..=10_000;
        /// Mutations of a partition kept in memory for members that lag; at least staleness_for_commit.
        max_mutation_count_in_prepare_list: u32 = 256, in 1..=100_000;
        /// The meta leader is told of all replicas this often, in ms; changes are told at once.
        config_sync_interval_ms: Ms = Ms::new(30_000), in Ms::new(100)..=Ms::new(3_600_000);
        /// Size of a segment of the mutation log, in MiB.
        log_private_file_size_mb: u32 = 64, in 1..=1024;
        /// From half of this size (MiB) on idle partitions are flushed to free the mutation log of a disk; above it
        /// copies to learners that still need it begin anew.
        log_size_mb_max: u32 = 4096, in 64..=1_048_576;
        /// So much of the mutation log of a disk (MiB) is kept for members that come back, although it is not needed
        /// any more; at most a quarter of log_size_mb_max. Each record costs some 50 bytes of memory.
        log_private_reserve_max_size_mb: u32 = 256, in 0..=1_048_576;
        /// Partitions that this node copies from others at a time.
        learn_app_max_concurrent_count: u32 = 5, in 1..=100;
        /// Writes are refused while a disk is fuller than disk_min_available_space_ratio allows.
        reject_write_when_disk_insufficient: bool = true;
        /// A disk with less free space than this, in percent, counts as full.
        disk_min_available_space_ratio: i32 = 10, in 0..=99;
        /// How often free space is looked at.
        disk_stat_interval_seconds: Seconds = Seconds::new(10), in Seconds::new(1)..=Seconds::new(3600);
        /// Asked to end, a node first hands its primaries over, and then answers clients with an old route for so long.
        drain_linger_ms: Ms = Ms::new(5_000), in Ms::new(0)..=Ms::new(60_000);
        /// Start without disks that cannot be used, instead of not at all.
        ignore_broken_disk: bool = true;
    }
}

pegasus_config::section! {
    /// Copies of partitions between nodes.
    pub struct Nfs = "nfs" {
        /// What this node copies from others, all its disks together, in MiB/s; 0 = no limit.
        max_copy_rate_megabytes_per_disk: u32 = 32, in 0..=100_000;
        /// What this node gives to others to copy, all its disks together, in MiB/s; 0 = no limit.
        max_send_rate_megabytes_per_disk: u32 = 32, in 0..=100_000;
    }
}

pegasus_config::section! {
    /// The storage of a replica-server.
    pub struct PegasusServer = "pegasus.server" {
        /// Block cache of the whole process, in bytes.
        rocksdb_block_cache_capacity: ByteSize = ByteSize(256 << 20), in ByteSize(1 << 20)..=ByteSize(1 << 44);
        /// A partition's memtable is flushed at this size, in bytes, or when the writes in it have twice this size.
        rocksdb_write_buffer_size: ByteSize = ByteSize(32 << 20), in ByteSize(64 << 10)..=ByteSize(4 << 30);
        /// All memtables together, in bytes; 0 = 512 MiB.
        rocksdb_total_size_across_write_buffer: ByteSize = ByteSize(0);
        /// Records that one page of a scan looks at.
        rocksdb_max_iteration_count: u32 = 1000, in 1..=1_000_000;
        /// Records that one multi_get looks at.
        rocksdb_multi_get_max_iteration_count: u32 = 3000, in 1..=1_000_000;
        /// Bytes after which a ranged multi_get stops; 0 = no limit.
        rocksdb_multi_get_max_iteration_size: ByteSize = ByteSize(30 << 20);
        /// Time after which a ranged read stops, in ms.
        rocksdb_iteration_threshold_time_ms: Ms = Ms::new(30_000), in Ms::new(1)..=Ms::new(3_600_000);
        /// A read or write that takes longer than this, in ns, is logged with the time of each stage; a table's
        /// replica.slow_query_threshold, in ms, wins.
        rocksdb_slow_query_threshold_ns: u64 = 100_000_000, in 1..=3_600_000_000_000_u64;
        /// Between two manual compactions of a replica; 0 or less = no pause.
        manual_compact_min_interval_seconds: i32 = 0, in i32::MIN..=i32::MAX;
    }
}

/// Everything that [`crate::start`] needs.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub app: ReplicaApp,
    pub core: Core,
    pub network: Network,
    pub metas: MetaList,
    pub cluster: Cluster,
    pub lease: Lease,
    pub liveness: Liveness,
    pub writing: Writing,
    pub replication: Replication,
    pub storage: Storage,
    pub server: PegasusServer,
    pub nfs: Nfs,
    /// Of the data directories, those that the black list rules out.
    pub black_listed: Vec<PathBuf>,
    /// What `/config` and `/configs` show: settings by name, a JSON object.
    pub shown: serde_json::Value,
}

/// The sections declared here, for the list of all roles' sections.
pub const SECTIONS: &[&SectionInfo] = &[Replication::INFO, Storage::INFO, PegasusServer::INFO, Nfs::INFO];

impl Config {
    /// Reads and checks; mistakes wait in `loaded` for its `finish`.
    pub fn read(loaded: &mut Loaded) -> Self {
        let mut config = Self {
            app: loaded.section(),
            core: loaded.section(),
            network: loaded.section(),
            metas: loaded.section(),
            cluster: loaded.section(),
            lease: loaded.section(),
            liveness: loaded.section(),
            writing: loaded.section(),
            replication: loaded.section(),
            storage: loaded.section(),
            server: loaded.section(),
            nfs: loaded.section(),
            black_listed: Vec::new(),
            shown: serde_json::Value::Null,
        };
        config.read_black_list(loaded);
        config.check(loaded);
        config
    }

    fn read_black_list(&mut self, loaded: &mut Loaded) {
        const KEY: &str = "data_dirs_black_list_file";
        let file = &self.replication.data_dirs_black_list_file;
        if file.is_empty() || loaded.has_variable("replication", KEY) {
            return; // what is missing is told already
        }
        let listed = match black_list::read(file.as_ref()) {
            Ok(listed) => listed,
            Err(error) => {
                return loaded.mistake("replication", KEY, format!("{file} cannot be read: {error}"));
            }
        };
        let all = self.data_dirs();
        for (tag, path) in &all {
            if let Some(entry) = black_list::entry_for(&listed, path) {
                let why = format!("{tag}:{} is left out, {file} lists {}", path.display(), entry.display());
                loaded.warning("replication", "data_dirs", why);
                self.black_listed.push(path.clone());
            }
        }
        if self.black_listed.len() == all.len() {
            loaded.mistake("replication", KEY, format!("{file} lists every data directory: nothing is left"));
        }
    }

    fn check(&self, loaded: &mut Loaded) {
        let replication = &self.replication;
        if replication.max_mutation_count_in_prepare_list < replication.staleness_for_commit {
            loaded.mistake(
                "replication",
                "max_mutation_count_in_prepare_list",
                format!(
                    "{} is below staleness_for_commit = {}",
                    replication.max_mutation_count_in_prepare_list, replication.staleness_for_commit
                ),
            );
        }
        if self.storage.engine == EngineChoice::Sled && replication.durability == Durability::PageCache {
            loaded.mistake("storage", "engine", "sled needs [replication] durability = sync".to_owned());
        }
        for why in self.core_options().mistakes() {
            loaded.mistake("replication", "lease_ms", why);
        }
    }

    pub fn core_options(&self) -> pegasus_pacifica::Options {
        let replication = &self.replication;
        pegasus_pacifica::Options {
            heartbeat_ms: self.lease.lease_heartbeat_ms.as_u64(),
            lease_ms: self.lease.lease_ms.as_u64(),
            grace_ms: self.lease.grace_ms.as_u64(),
            margin_ms: self.lease.lease_margin_ms.as_u64(),
            window: replication.staleness_for_commit as usize,
            recent: replication.max_mutation_count_in_prepare_list as usize,
            // 0 tells the core to take the majority.
            min_members: usize::try_from(self.writing.mutation_2pc_min_replica_count).unwrap_or(0),
            ..Default::default()
        }
    }

    pub fn log_options(&self) -> LogOptions {
        let mib = |n: u32| u64::from(n) << 20;
        LogOptions {
            durability: match self.replication.durability {
                Durability::Sync => pegasus_mutation_log::Durability::Sync,
                Durability::PageCache => pegasus_mutation_log::Durability::PageCache,
            },
            segment_bytes: mib(self.replication.log_private_file_size_mb),
            max_log_bytes: mib(self.replication.log_size_mb_max),
            ..Default::default()
        }
    }

    /// Of a disk; with less free space it counts as full.
    pub fn least_free_percent(&self) -> u64 {
        u64::try_from(self.replication.disk_min_available_space_ratio).unwrap_or(0)
    }

    pub fn log_reserve_bytes(&self) -> u64 {
        let wanted = u64::from(self.replication.log_private_reserve_max_size_mb) << 20;
        wanted.min(self.log_options().max_log_bytes / 4)
    }

    pub fn engine_kind(&self) -> EngineKind {
        match self.storage.engine {
            EngineChoice::Lsm => EngineKind::Lsm,
            EngineChoice::Sled => EngineKind::Sled,
            EngineChoice::Memory => EngineKind::Memory,
        }
    }

    pub fn engine_options(&self) -> EngineOptions {
        let server = &self.server;
        let mut options = EngineOptions {
            cache_bytes: server.rocksdb_block_cache_capacity.0,
            memtable_bytes: server.rocksdb_write_buffer_size.0,
            ..Default::default()
        };
        if server.rocksdb_total_size_across_write_buffer.0 > 0 {
            options.memtable_budget_bytes = server.rocksdb_total_size_across_write_buffer.0;
        }
        options
    }

    pub fn read_limits(&self) -> ReadLimits {
        let server = &self.server;
        ReadLimits {
            multi_get_iterations: server.rocksdb_multi_get_max_iteration_count,
            multi_get_bytes: server.rocksdb_multi_get_max_iteration_size.0,
            scan_iterations: server.rocksdb_max_iteration_count,
            time: server.rocksdb_iteration_threshold_time_ms.0,
        }
    }

    pub fn slow_threshold(&self) -> Threshold {
        Threshold::new(Duration::from_nanos(self.server.rocksdb_slow_query_threshold_ns))
    }

    /// Tag and root of each data directory that is not ruled out.
    pub fn data_dirs(&self) -> Vec<(String, PathBuf)> {
        let mut all: Vec<_> =
            self.replication.data_dirs.iter().map(|dir| (dir.tag.clone(), dir.path.clone())).collect();
        if all.is_empty() {
            all.push(("default".to_owned(), self.core.data_directory()));
        }
        all.retain(|(_, path)| !self.black_listed.contains(path));
        all
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
        let config = Config::read(&mut loaded);
        loaded.finish().map(|_| config).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn defaults_are_sound_and_operators_values_arrive() {
        let config = read("[core]\ndata_dir = /data\n").unwrap();
        assert_eq!(config.data_dirs(), [("default".to_owned(), PathBuf::from("/data"))]);
        assert_eq!(config.core_options(), pegasus_pacifica::Options::default());
        let text = "[replication]\ndata_dirs = a:/x,b:/y\nstaleness_for_commit = 20\n\
                    max_mutation_count_in_prepare_list = 110\nlease_ms = 900\ngrace_ms = 1200\n\
                    durability = page_cache\n[pegasus.server]\nrocksdb_write_buffer_size = 64M\n";
        let config = read(text).unwrap();
        assert_eq!((config.core_options().window, config.core_options().lease_ms), (20, 900));
        assert_eq!(config.log_options().durability, pegasus_mutation_log::Durability::PageCache);
        assert_eq!(config.engine_options().memtable_bytes, 64 << 20);
        assert_eq!(config.data_dirs().len(), 2);
    }

    #[test]
    fn listed_disks_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list");
        let text = format!(
            "[replication]\ndata_dirs = a:/x/p,b:/y/p\ndata_dirs_black_list_file = {}\n",
            file.display()
        );
        assert_eq!(read(&text).unwrap().data_dirs().len(), 2, "no file rules nothing out");
        std::fs::write(&file, "/x\n").unwrap();
        assert_eq!(read(&text).unwrap().data_dirs(), [("b".to_owned(), PathBuf::from("/y/p"))]);
        std::fs::write(&file, "/x\n/y/p/\n").unwrap();
        assert!(read(&text).unwrap_err().contains("lists every data directory"));
        let unfilled = "[replication]\ndata_dirs_black_list_file = %{home.dir}/list\n";
        let told = read(unfilled).unwrap_err();
        assert!(told.starts_with("1 mistake ") && told.contains("%{home.dir}"), "{told}");
    }

    #[test]
    fn impossible_settings_are_told() {
        for (text, why) in [
            ("[replication]\nstaleness_for_commit = 300\n", "max_mutation_count_in_prepare_list"),
            ("[replication]\nlease_ms = 1000\n", "grace_ms"),
            ("[replication]\ndurability = page_cache\n[storage]\nengine = sled\n", "sled needs"),
            ("[storage]\nengine = rocks\n", "lsm, sled, memory"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
    }
}
