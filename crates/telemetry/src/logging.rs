//! Log lines to files that are bounded in size and number, and the loud ones to stderr.
//!
//! Files are `BASE.log.TIME` with a link `BASE.log` to the newest (operations.md D23). Lines go through a bounded
//! queue to a thread of their own: a slow disk loses log lines, never holds a daemon up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::time::Calendar;

/// Lines waiting for the log thread; about 4 MiB of usual lines. Beyond it lines are dropped.
const QUEUED_LINES_MAX: usize = 16 * 1024;

/// Libraries that say too much: tarpc's spans cost more than its calls (crates.md 1.4).
const QUIET: &[(&str, LevelFilter)] = &[
    ("tarpc", LevelFilter::OFF),
    ("opentelemetry", LevelFilter::OFF),
    ("hyper", LevelFilter::WARN),
    ("hyper_util", LevelFilter::WARN),
    ("mio", LevelFilter::WARN),
    ("sled", LevelFilter::WARN),
    ("lsm_tree", LevelFilter::WARN),
    ("rustyline", LevelFilter::WARN),
];

/// Where and what to log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// None = stderr only.
    pub directory: Option<PathBuf>,
    /// Role, or `pegasus` for several roles in one process.
    pub base_name: String,
    pub level: LevelFilter,
    pub stderr_level: LevelFilter,
    pub file_bytes_max: u64,
    /// At least 1.
    pub files_max: usize,
}

/// Keeps the log thread alive; dropping it writes out what is queued.
#[derive(Debug)]
pub struct Logging {
    level: reload::Handle<Targets, Registry>,
    _guard: Option<WorkerGuard>,
}

impl Logging {
    /// Changes the lowest level that is logged, while running.
    pub fn set_level(&self, level: LevelFilter) -> anyhow::Result<()> {
        self.level.reload(targets(level)).context("change the log level")
    }
}

/// Once per process. Panics of any thread are logged as errors from then on.
pub fn init(options: &LogOptions) -> anyhow::Result<Logging> {
    let (writer, guard) = match &options.directory {
        Some(directory) => {
            let file =
                RollingFile::open(directory, &options.base_name, options.file_bytes_max, options.files_max)
                    .with_context(|| format!("open a log file in {}", directory.display()))?;
            let (writer, guard) = NonBlockingBuilder::default()
                .buffered_lines_limit(QUEUED_LINES_MAX)
                .lossy(true)
                .thread_name("log-writer")
                .finish(file);
            (Some(writer), Some(guard))
        }
        None => (None, None),
    };
    let (filter, level) = reload::Layer::new(targets(options.level));
    let to_file =
        writer.map(|writer| fmt::layer().with_ansi(false).with_thread_names(true).with_writer(writer));
    let to_stderr =
        fmt::layer().with_ansi(false).with_writer(io::stderr).with_filter(targets(options.stderr_level));
    tracing_subscriber::registry()
        .with(to_file.with_filter(filter))
        .with(to_stderr)
        .try_init()
        .context("start logging")?;
    log_panics();
    Ok(Logging { level, _guard: guard })
}

fn targets(level: LevelFilter) -> Targets {
    Targets::new()
        .with_default(level)
        .with_targets(QUIET.iter().map(|(name, quiet)| (*name, (*quiet).min(level))))
}

fn log_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("?"), "{panic}");
        before(panic);
    }));
}

/// Appends to the newest file, opens the next one at a size, removes the oldest ones.
#[derive(Debug)]
struct RollingFile {
    directory: PathBuf,
    base: String,
    bytes_max: u64,
    files_max: usize,
    file: Option<File>,
    written: u64,
}

impl RollingFile {
    fn open(directory: &Path, base: &str, bytes_max: u64, files_max: usize) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut rolling = Self {
            directory: directory.to_owned(),
            base: base.to_owned(),
            bytes_max,
            files_max: files_max.max(1),
            file: None,
            written: 0,
        };
        rolling.roll(SystemTime::now())?;
        Ok(rolling)
    }

    fn roll(&mut self, now: SystemTime) -> io::Result<()> {
        self.file = None;
        let prefix = format!("{}.log.", self.base);
        let name = format!("{prefix}{}", Calendar::of(now).compact());
        let file = OpenOptions::new().create(true).append(true).open(self.directory.join(&name))?;
        self.written = file.metadata()?.len();
        self.file = Some(file);
        self.link(&name)?;
        self.remove_old(&prefix)
    }

    /// `BASE.log` -> newest, replaced in one step.
    fn link(&self, name: &str) -> io::Result<()> {
        let fresh = self.directory.join(format!(".{}.log.link", self.base));
        let _ = fs::remove_file(&fresh); // left over from a crash, or not there
        std::os::unix::fs::symlink(name, &fresh)?;
        fs::rename(fresh, self.directory.join(format!("{}.log", self.base)))
    }

    fn remove_old(&self, prefix: &str) -> io::Result<()> {
        let mut files: Vec<_> = fs::read_dir(&self.directory)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        files.sort();
        let surplus = files.len().saturating_sub(self.files_max);
        for name in files.iter().take(surplus) {
            let _ = fs::remove_file(self.directory.join(name)); // tried again at the next roll
        }
        Ok(())
    }
}

impl Write for RollingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let full = self.written > 0 && self.written.saturating_add(line.len() as u64) > self.bytes_max;
        if full || self.file.is_none() {
            self.roll(SystemTime::now())?;
        }
        let Some(file) = &mut self.file else { return Err(io::Error::other("no log file")) };
        let written = file.write(line)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), File::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_bounded_in_size_and_number() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("other.log.1"), "not ours").unwrap();
        let mut log = RollingFile::open(dir.path(), "replica", 100, 3).unwrap();
        for n in 0..50 {
            log.write_all(format!("line {n:02} {}\n", "x".repeat(40)).as_bytes()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(2)); // names have milliseconds
        }
        let names = logs(dir.path());
        assert_eq!(names.iter().filter(|n| n.starts_with("replica.log.")).count(), 3, "{names:?}");
        assert!(names.contains(&"other.log.1".to_owned()));
        let newest = fs::read_to_string(dir.path().join("replica.log")).unwrap();
        assert!(newest.contains("line 49") && newest.len() <= 100, "{newest}");
    }

    #[test]
    fn a_line_longer_than_the_file_still_goes_through() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RollingFile::open(dir.path(), "meta", 10, 2).unwrap();
        log.write_all(&[b'x'; 64]).unwrap();
        assert_eq!(fs::read(dir.path().join("meta.log")).unwrap().len(), 64);
    }

    #[test]
    fn init_writes_files_and_the_level_can_change() {
        let dir = tempfile::tempdir().unwrap();
        let logging = init(&LogOptions {
            directory: Some(dir.path().join("log")),
            base_name: "meta".to_owned(),
            level: LevelFilter::INFO,
            stderr_level: LevelFilter::OFF,
            file_bytes_max: 1 << 20,
            files_max: 2,
        })
        .unwrap();
        tracing::debug!("hidden");
        tracing::info!("shown");
        logging.set_level(LevelFilter::DEBUG).unwrap();
        tracing::debug!("shown later");
        tracing::error!(target: "tarpc::client", "quiet");
        drop(logging);
        let text = fs::read_to_string(dir.path().join("log/meta.log")).unwrap();
        assert!(text.contains("shown") && text.contains("shown later"), "{text}");
        assert!(!text.contains("hidden") && !text.contains("quiet"), "{text}");
    }
}
