//! One measured window, and the sum of several.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use hdrhistogram::Histogram;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::args::Args;
use crate::cpu::{self, Process};

/// Latencies are kept in microseconds up to a minute, to three digits.
const HISTOGRAM_MAX_US: u64 = 60_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Window,
    Over,
}

/// Where the workers of one window report.
#[derive(Debug)]
pub struct Recorder {
    phase: Cell<Phase>,
    latencies: RefCell<Histogram<u64>>,
    errors: Cell<u64>,
    first_error: RefCell<Option<String>>,
}

impl Recorder {
    fn new() -> Rc<Self> {
        Rc::new(Self {
            phase: Cell::new(Phase::WarmUp),
            latencies: RefCell::new(histogram()),
            errors: Cell::new(0),
            first_error: RefCell::new(None),
        })
    }

    /// Workers go on while it holds.
    pub fn goes_on(&self) -> bool {
        self.phase.get() != Phase::Over
    }

    /// `operations` ended together, begun at `start`.
    pub fn done(&self, start: Instant, operations: u64, result: Result<(), String>) {
        if self.phase.get() != Phase::Window {
            return;
        }
        match result {
            Ok(()) => {
                let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                let us = us.clamp(1, HISTOGRAM_MAX_US);
                self.latencies.borrow_mut().record_n(us, operations).expect("clamped to its range");
            }
            Err(why) => {
                self.errors.set(self.errors.get() + operations);
                self.first_error.borrow_mut().get_or_insert(why);
            }
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HISTOGRAM_MAX_US, 3).expect("constant bounds are legal")
}

/// What one or more windows of one system brought.
#[derive(Debug)]
pub struct Sample {
    pub latencies: Histogram<u64>,
    pub errors: u64,
    pub first_error: Option<String>,
    pub elapsed: Duration,
    /// Per server process, microseconds.
    pub server_cpu: Vec<(Process, u64)>,
    pub driver_cpu_us: u64,
    /// Operations per second of each window.
    pub windows: Vec<f64>,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            latencies: histogram(),
            errors: 0,
            first_error: None,
            elapsed: Duration::ZERO,
            server_cpu: Vec::new(),
            driver_cpu_us: 0,
            windows: Vec::new(),
        }
    }
}

impl Sample {
    pub fn operations(&self) -> u64 {
        self.latencies.len()
    }

    pub fn add(&mut self, other: Self) {
        self.latencies.add(&other.latencies).expect("same bounds");
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.elapsed += other.elapsed;
        self.driver_cpu_us += other.driver_cpu_us;
        self.windows.extend(other.windows);
        for (process, us) in other.server_cpu {
            match self.server_cpu.iter_mut().find(|(known, _)| *known == process) {
                Some((_, sum)) => *sum += us,
                None => self.server_cpu.push((process, us)),
            }
        }
    }
}

/// Runs the workers that `start` makes through warm-up and window.
pub async fn window(
    args: &Args,
    servers: &[Process],
    start: impl FnOnce(&Rc<Recorder>) -> Vec<JoinHandle<()>>,
) -> Result<Sample> {
    let recorder = Recorder::new();
    let workers = start(&recorder);
    sleep(args.warm_up()).await;
    let driver = cpu::driver();
    let (before, driver_before) = (cpu::read_all(servers)?, driver.cpu_us()?);
    recorder.phase.set(Phase::Window);
    let begun = Instant::now();
    sleep(args.window()).await;
    recorder.phase.set(Phase::Over);
    let elapsed = begun.elapsed();
    let (after, driver_after) = (cpu::read_all(servers)?, driver.cpu_us()?);
    let ended = timeout(args.timeout() * 2, join_all(workers)).await.context("workers do not end")?;
    if let Some(failed) = ended.into_iter().find_map(Result::err) {
        bail!("a worker failed: {failed}");
    }
    let latencies = recorder.latencies.borrow().clone();
    let spent = before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before));
    Ok(Sample {
        windows: vec![latencies.len() as f64 / elapsed.as_secs_f64()],
        latencies,
        errors: recorder.errors.get(),
        first_error: recorder.first_error.borrow_mut().take(),
        elapsed,
        server_cpu: servers.iter().cloned().zip(spent).collect(),
        driver_cpu_us: driver_after.saturating_sub(driver_before),
    })
}
