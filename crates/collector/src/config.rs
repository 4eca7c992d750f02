//! What the collector reads of the configuration.

use pegasus_config::common::{Cluster, CollectorApp, MetaList, Network};
use pegasus_config::{Loaded, Ms, Seconds, Section, SectionInfo};

pegasus_config::section! {
    /// The collector: what it probes and how often it looks.
    pub struct Collector = "pegasus.collector" {
        /// Table whose partitions are probed with real writes and reads.
        available_detect_app: String = "temp".to_owned();
        /// Each partition is probed this often.
        available_detect_interval_seconds: Seconds = Seconds::new(3), in Seconds(std::time::Duration::from_millis(50))..=Seconds::new(3600);
        /// A write or read of a probe fails after this time, in ms.
        available_detect_timeout: Ms = Ms::new(1000), in Ms::new(10)..=Ms::new(60_000);
        /// Failures in a row of one partition that are logged as an alert.
        available_detect_alert_fail_count: u32 = 30, in 1..=100_000;
        /// The meta leader is asked for tables, partitions and nodes this often.
        app_stat_interval_seconds: Seconds = Seconds::new(5), in Seconds(std::time::Duration::from_millis(50))..=Seconds::new(3600);
        /// A partition is hot when its requests per second lie so many standard deviations above the mean of its table.
        hot_partition_threshold: u32 = 3, in 1..=1000;
        /// Rounds of app_stat_interval_seconds over which that mean is taken.
        max_hotspot_store_size: u32 = 100, in 1..=10_000;
    }
}

/// The sections declared here, for the list of all roles' sections.
pub const SECTIONS: &[&SectionInfo] = &[Collector::INFO];

/// Everything that [`crate::start`] needs.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub app: CollectorApp,
    pub network: Network,
    pub metas: MetaList,
    pub cluster: Cluster,
    pub collector: Collector,
    /// What `/config` and `/configs` show: settings by name, a JSON object.
    pub shown: serde_json::Value,
}

impl Config {
    /// Reads and checks; mistakes wait in `loaded` for its `finish`.
    pub fn read(loaded: &mut Loaded) -> Self {
        let config = Self {
            app: loaded.section(),
            network: loaded.section(),
            metas: loaded.section(),
            cluster: loaded.section(),
            collector: loaded.section(),
            shown: serde_json::Value::Null,
        };
        if config.collector.available_detect_app.is_empty() {
            loaded.mistake(
                "pegasus.collector",
                "available_detect_app",
                "is empty: expected the name of a table",
            );
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_name_is_a_mistake() {
        let mut sections = pegasus_config::common::SECTIONS.to_vec();
        sections.extend(SECTIONS);
        let read = |text: &str| {
            let mut loaded = pegasus_config::Sources::text("f", text).load(&sections);
            let config = Config::read(&mut loaded);
            loaded.finish().map(|_| config.collector.available_detect_app)
        };
        assert_eq!(read("[core]").unwrap(), "temp");
        assert!(read("[pegasus.collector]\navailable_detect_app =").unwrap_err().to_string().contains("f:2"));
    }
}
