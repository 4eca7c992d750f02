//! How much memory the processes take, looked at all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pegasus_integration_tests::Usage;

use crate::stranger::Target;

const INTERVAL: Duration = Duration::from_millis(20);
/// Freed memory goes back to the system when its owner gets round to it.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

pub struct Watch {
    pids: Vec<i32>,
    before: Vec<u64>,
    /// Since [`Self::begin`].
    most: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    pub fn start(targets: &[Target]) -> Self {
        let pids: Vec<_> = targets.iter().map(|target| target.pid).collect();
        let before: Vec<_> = pids.iter().map(|pid| Usage::of(*pid).resident_kib).collect();
        let most: Arc<Vec<_>> = Arc::new(pids.iter().map(|_| AtomicU64::new(0)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (pids, most, stop) = (pids.clone(), most.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    for (pid, most) in pids.iter().zip(&*most) {
                        most.fetch_max(Usage::of(*pid).resident_kib, Ordering::Relaxed);
                    }
                    std::thread::sleep(INTERVAL);
                }
            }
        });
        Self { pids, before, most, stop, thread: Some(thread) }
    }

    pub fn begin(&self) {
        self.most.iter().for_each(|most| most.store(0, Ordering::Relaxed));
    }

    /// The most of each process since then, above what it took at the start.
    pub fn grown_kib(&self) -> Vec<u64> {
        std::thread::sleep(2 * INTERVAL);
        let now = self.most.iter().map(|most| most.load(Ordering::Relaxed));
        now.zip(&self.before).map(|(now, before)| now.saturating_sub(*before)).collect()
    }

    /// What each still takes above what it took at the start, as soon as that is little.
    pub async fn settled_kib(&self, little: u64) -> Vec<u64> {
        let begun = Instant::now();
        loop {
            let now = self.pids.iter().map(|pid| Usage::of(*pid).resident_kib);
            let grown: Vec<_> =
                now.zip(&self.before).map(|(now, before)| now.saturating_sub(*before)).collect();
            if begun.elapsed() > SETTLED_WITHIN || grown.iter().all(|kib| *kib < little) {
                return grown;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a process was gone");
        }
    }
}
