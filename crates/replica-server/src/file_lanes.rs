//! Slow file work of replicas: off the loop, and one after another for each replica.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use futures::future::LocalBoxFuture;
use pegasus_types::Gpid;
use tokio::sync::Mutex;

/// Work of one replica runs in the order in which it was begun; replicas do not wait for one another.
#[derive(Debug, Default)]
pub struct FileLanes(RefCell<HashMap<Gpid, Rc<Mutex<()>>>>);

impl FileLanes {
    /// Runs `work` on a thread that may block, after all work that was begun for `gpid` before. To be called
    /// (not only awaited) in the order in which the work must happen. None when it panicked.
    pub fn run<T: Send + 'static>(
        self: &Rc<Self>,
        gpid: Gpid,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> LocalBoxFuture<'static, Option<T>> {
        let lane = self.0.borrow_mut().entry(gpid).or_default().clone();
        // The queue of a tokio mutex is first come, first served from the first poll on; a task of its own is
        // polled in the order of spawning.
        let task = tokio::task::spawn_local(async move {
            let _turn = lane.lock().await;
            tokio::task::spawn_blocking(work).await.ok()
        });
        Box::pin(async move { task.await.ok().flatten() })
    }

    /// Forgets lanes without work.
    pub fn sweep(&self) {
        self.0.borrow_mut().retain(|_, lane| Rc::strong_count(lane) > 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex as StdMutex};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn work_of_one_replica_keeps_its_order() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let lanes = Rc::new(FileLanes::default());
                let seen = Arc::new(StdMutex::new(Vec::new()));
                let mut running = Vec::new();
                for i in 0..20_u64 {
                    let seen = seen.clone();
                    running.push(lanes.run(Gpid::new(1, 0), move || {
                        std::thread::sleep(Duration::from_micros((20 - i) * 100));
                        seen.lock().unwrap().push(i);
                        i
                    }));
                }
                for (i, work) in running.into_iter().enumerate() {
                    assert_eq!(work.await, Some(i as u64));
                }
                assert_eq!(*seen.lock().unwrap(), (0..20).collect::<Vec<_>>());
                assert_eq!(lanes.run(Gpid::new(1, 1), || -> u8 { panic!("work") }).await, None);
                lanes.sweep();
                assert!(lanes.0.borrow().is_empty());
            })
            .await;
    }
}
