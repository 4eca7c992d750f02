//! Threads for long work behind clients: one kind reads and takes the rows of copies, one compacts whole replicas.
//!
//! Few, and with less right to the processors than those that serve clients, flush and compact: on a machine whose
//! processors are full a copy takes longer, and clients do not wait for it. With threads of equal right the 99th of a
//! hundred small reads took 43 ms while a node of 5 GB was filled on two processors, instead of 3 ms.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

/// A tenth of the share of others (`setpriority`), when there are others.
const NICE: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// The work panicked; the panic is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the work panicked")]
pub struct Panicked;

/// The threads end when this is dropped and their work is done.
#[derive(Clone, Debug)]
pub struct Workers {
    // Whoever uses them has a bounded number of jobs.
    jobs: Sender<Job>,
}

impl Workers {
    pub fn start(name: &str, threads: usize) -> io::Result<Self> {
        let (jobs, waiting) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for i in 0..threads {
            let waiting = waiting.clone();
            thread::Builder::new().name(format!("{name}-{i}")).spawn(move || work(&waiting))?;
        }
        Ok(Self { jobs })
    }

    /// In the order of the calls.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Panicked> {
        let (done, result) = oneshot::channel();
        let job = Box::new(move || {
            // Nobody waits for it when the copy has been given up.
            let _ = done.send(work());
        });
        self.jobs.send(job).map_err(|_| Panicked)?;
        result.await.map_err(|_| Panicked)
    }
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    // Of this thread alone, as Linux understands it.
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::warn!(%error, "a thread for long work has the same right to the processors as those of clients");
    }
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        // The one who waits learns of it; the thread goes on with the others.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREADS: usize = 2;

    #[tokio::test]
    async fn work_is_done_with_less_right_and_panics_end_nothing() {
        let workers = Workers::start("test", THREADS).unwrap();
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let own = nice();
        for _ in 0..2 * THREADS {
            assert_eq!(workers.run(|| -> u8 { panic!("as is tested") }).await, Err(Panicked));
        }
        assert_eq!(workers.run(nice).await, Ok((own + NICE).min(19)));
        assert_eq!(nice(), own, "this thread has kept its right");
        let many: Vec<_> = (0..50).map(|i| workers.run(move || i)).collect();
        let all: Vec<_> = futures::future::join_all(many).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
}
