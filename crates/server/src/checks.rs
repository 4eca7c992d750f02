//! What is worth knowing about the host before a role starts on it. Nothing here keeps it from starting.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pegasus_telemetry::time::Calendar;

use crate::{Role, Settings};

/// Files and sockets of a replica-server: some hundred partitions with their tables, and its clients.
const OPEN_FILES_WANTED: u64 = 65_536;
/// Caches and memtables should leave room for the page cache and for requests on their way.
const MEMORY_PERCENT_MAX: u64 = 60;
/// Logs of a role need some room whatever holds the data.
const LOG_SPACE_MIN_BYTES: u64 = 1 << 30;
/// A clock before this program was written is wrong: 2026-01-01.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// The host, as far as it matters.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// None = unlimited.
    pub open_files_max: Option<u64>,
    /// Of the machine, or less when a cgroup allows less.
    pub memory_bytes: Option<u64>,
    /// Since 1970.
    pub clock: Duration,
}

/// What the configured roles want of it.
#[derive(Clone, Debug, Default)]
pub struct Wants {
    pub replica: bool,
    /// Block cache and all memtables of a replica-server.
    pub cache_bytes: u64,
    pub memtable_bytes: u64,
    /// Directories and the share that must be free, in percent.
    pub directories: Vec<(PathBuf, u64)>,
    pub logs: PathBuf,
}

impl Host {
    pub fn look() -> Self {
        use rustix::process::{Resource, getrlimit};
        Self {
            open_files_max: getrlimit(Resource::Nofile).current,
            memory_bytes: memory_bytes(),
            clock: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }
}

impl Wants {
    pub fn of(settings: &Settings, roles: &[Role]) -> Self {
        let replica = roles.contains(&Role::Replica);
        let config = &settings.replica;
        let least = u64::try_from(config.replication.disk_min_available_space_ratio).unwrap_or(0);
        let (cache_bytes, memtable_bytes) = {
            let options = config.engine_options();
            (options.cache_bytes, options.memtable_budget_bytes)
        };
        let directories =
            config.data_dirs().into_iter().filter(|_| replica).map(|(_, path)| (path, least)).collect();
        Self { replica, cache_bytes, memtable_bytes, directories, logs: settings.core.log_directory() }
    }
}

/// Free and total bytes of the file system of a directory, which need not exist yet.
pub fn space(directory: &Path) -> Option<(u64, u64)> {
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let stat = rustix::fs::statvfs(there).ok()?;
    Some((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

/// One line for each doubt. `space` as [`space`].
pub fn doubts(host: &Host, wants: &Wants, space: impl Fn(&Path) -> Option<(u64, u64)>) -> Vec<String> {
    let mut doubts = Vec::new();
    if let Some(files) = host.open_files_max.filter(|files| wants.replica && *files < OPEN_FILES_WANTED) {
        doubts.push(format!(
            "only {files} open files are allowed: a replica-server with many partitions and clients needs \
             {OPEN_FILES_WANTED} (LimitNOFILE= in its unit, or ulimit -n)"
        ));
    }
    if host.clock < EARLIEST {
        let now = Calendar::of(UNIX_EPOCH + host.clock).date_time();
        doubts.push(format!(
            "the clock says {now}: rows will expire at wrong times; set it, and run an NTP client"
        ));
    }
    if let Some(memory) = host.memory_bytes.filter(|_| wants.replica) {
        let wanted = wants.cache_bytes.saturating_add(wants.memtable_bytes);
        if wanted > memory / 100 * MEMORY_PERCENT_MAX {
            doubts.push(format!(
                "[pegasus.server] rocksdb_block_cache_capacity and rocksdb_total_size_across_write_buffer are {} MB \
                 together, of {} MB of memory: leave at least {} % of it to the rest",
                wanted >> 20,
                memory >> 20,
                100 - MEMORY_PERCENT_MAX
            ));
        }
    }
    for (directory, least) in &wants.directories {
        if let Some((free, total)) = space(directory).filter(|(_, total)| *total > 0) {
            let percent = u64::try_from(u128::from(free) * 100 / u128::from(total)).unwrap_or(100);
            if percent < *least {
                doubts.push(format!(
                    "{} has {percent} % of its disk free ({} MB), less than [replication] \
                     disk_min_available_space_ratio = {least}: no writes are taken, no replicas placed there",
                    directory.display(),
                    free >> 20
                ));
            }
        }
    }
    if let Some((free, _)) = space(&wants.logs).filter(|(free, _)| *free < LOG_SPACE_MIN_BYTES) {
        doubts.push(format!("{} has {} MB free for logs", wants.logs.display(), free >> 20));
    }
    doubts
}

fn memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    let machine = kib << 10;
    // "max" = no limit. Of the own cgroup, which a container sees as the root.
    let own = std::fs::read_to_string("/proc/self/cgroup").ok();
    let path =
        own.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::"))).unwrap_or("/");
    let limits = [format!("/sys/fs/cgroup{path}/memory.max"), "/sys/fs/cgroup/memory.max".to_owned()];
    let limit = limits.iter().find_map(|file| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
    Some(limit.map_or(machine, |limit| limit.min(machine)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn good() -> (Host, Wants) {
        let host = Host {
            open_files_max: Some(1 << 20),
            memory_bytes: Some(16 * GIB),
            clock: EARLIEST + Duration::from_secs(86_400),
        };
        let wants = Wants {
            replica: true,
            cache_bytes: GIB,
            memtable_bytes: GIB / 2,
            directories: vec![("/data/a".into(), 10), ("/data/b".into(), 10)],
            logs: "/data/log".into(),
        };
        (host, wants)
    }

    fn half_free(_: &Path) -> Option<(u64, u64)> {
        Some((50 * GIB, 100 * GIB))
    }

    #[test]
    fn a_good_host_raises_no_doubt() {
        let (host, wants) = good();
        assert_eq!(doubts(&host, &wants, half_free), [""; 0]);
        let unlimited = Host { open_files_max: None, memory_bytes: None, ..host };
        assert_eq!(doubts(&unlimited, &wants, |_| None), [""; 0]);
    }

    #[test]
    fn each_doubt_says_what_to_do() {
        let (host, wants) = good();
        type Change = fn(&mut Host, &mut Wants);
        let cases: [(Change, &str); 4] = [
            (|host, _| host.open_files_max = Some(1024), "LimitNOFILE"),
            (|host, _| host.clock = Duration::from_secs(60), "1970-01-01 00:01:00"),
            (|host, _| host.memory_bytes = Some(2 * GIB), "rocksdb_block_cache_capacity"),
            (|_, wants| wants.cache_bytes = u64::MAX, "16384 MB of memory"),
        ];
        for (change, told) in cases {
            let (mut host, mut wants) = (host.clone(), wants.clone());
            change(&mut host, &mut wants);
            let doubts = doubts(&host, &wants, half_free);
            assert!(doubts.len() == 1 && doubts[0].contains(told), "{told}: {doubts:?}");
        }
        let full = |path: &Path| Some(if path.ends_with("a") { (GIB, 100 * GIB) } else { (GIB / 2, GIB) });
        let doubts = doubts(&host, &wants, full);
        assert_eq!(doubts.len(), 2, "{doubts:?}");
        assert!(doubts[0].starts_with("/data/a has 1 %") && doubts[1].starts_with("/data/log has 512 MB"));
    }

    #[test]
    fn a_meta_server_needs_less() {
        let (host, wants) = good();
        let host = Host { open_files_max: Some(1024), memory_bytes: Some(GIB), ..host };
        let wants = Wants { replica: false, directories: Vec::new(), ..wants };
        assert_eq!(doubts(&host, &wants, half_free), [""; 0]);
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let host = Host::look();
        assert!(host.memory_bytes.is_some_and(|bytes| bytes > 64 << 20), "{host:?}");
        let (free, total) = space(Path::new("/tmp/not/there/yet")).unwrap();
        assert!(free <= total && total > 0);
        assert!(space(Path::new("relative/not/there")).is_some());
    }
}
