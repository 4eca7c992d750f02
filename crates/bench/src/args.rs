//! What to run.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};

/// Measures a running cluster, and Redis with two replicas beside it.
#[derive(Clone, Debug, Parser)]
#[command(name = "pegasus_bench", version)]
pub struct Args {
    /// Meta-servers, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:34601")]
    pub meta: Vec<String>,
    #[arg(long, default_value = "temp")]
    pub table: String,
    /// Further server processes whose CPU counts, as NAME=ADDRESS of a port that they listen on. The
    /// meta-servers and the servers of the table are found by themselves.
    #[arg(long, value_name = "NAME=ADDRESS")]
    pub server: Vec<String>,
    /// Clients; each has a connection to every server that it needs.
    #[arg(long, default_value_t = 50)]
    pub connections: usize,
    /// Operations in flight per client; one case each.
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    pub depth: Vec<usize>,
    /// Percentage of reads; one case each.
    #[arg(long, value_delimiter = ',', default_value = "0,100")]
    pub reads: Vec<u8>,
    #[arg(long, default_value_t = 1024)]
    pub value_bytes: usize,
    #[arg(long, default_value_t = 200_000)]
    pub keys: u64,
    #[arg(long, value_enum, default_value_t = Distribution::Uniform)]
    pub distribution: Distribution,
    /// Of one measured window.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Before each window, not measured.
    #[arg(long, default_value_t = 3)]
    pub warm_up_seconds: u64,
    /// Windows per system and case; the systems alternate.
    #[arg(long, default_value_t = 2)]
    pub rounds: usize,
    /// An operation that takes longer is an error.
    #[arg(long, default_value_t = 5_000)]
    pub timeout_ms: u64,
    /// What to call the cluster's durability mode; else its servers are asked.
    #[arg(long)]
    pub durability: Option<String>,
    /// Run Redis beside it.
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    pub redis: bool,
    #[arg(long, default_value = "redis-server")]
    pub redis_server: PathBuf,
    /// Replicas that a write to Redis waits for (`WAIT n`), 0 to 2.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub redis_wait: u8,
    /// Also write the figures to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    Uniform,
    /// Exponent 0.99, the popular keys scattered over the key space.
    Zipfian,
}

impl Distribution {
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipfian => "zipfian",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub reads_percent: u8,
    pub depth: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reads_percent {
            0 => write!(f, "put")?,
            100 => write!(f, "get")?,
            reads => write!(f, "get {reads} % put {} %", 100 - reads)?,
        }
        write!(f, ", depth {}", self.depth)
    }
}

impl Args {
    pub fn cases(&self) -> Vec<Case> {
        let reads = self.reads.iter().map(|reads| (*reads).min(100));
        reads
            .flat_map(|reads_percent| {
                self.depth.iter().map(move |depth| Case { reads_percent, depth: *depth })
            })
            .collect()
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    pub fn warm_up(&self) -> Duration {
        Duration::from_secs(self.warm_up_seconds)
    }

    pub fn window(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_every_mix_at_every_depth() {
        let args = Args::parse_from(["pegasus_bench", "--reads", "0,95", "--depth", "1,16", "--redis=false"]);
        let cases: Vec<_> = args.cases().iter().map(Case::to_string).collect();
        assert_eq!(
            cases,
            ["put, depth 1", "put, depth 16", "get 95 % put 5 %, depth 1", "get 95 % put 5 %, depth 16"]
        );
        assert!(!args.redis);
        assert!(Args::try_parse_from(["pegasus_bench", "--redis-wait", "3"]).is_err());
    }
}
