//! One token that tells every task of a role to stop, one tracker that waits until they have.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Clone it into every task; all clones of one `new()` are the same.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    hurry: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops with its parent, or alone; has a tracker of its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), hurry: self.hurry.child_token(), tasks: TaskTracker::new() }
    }

    /// Tells everyone to stop. Returns at once.
    pub fn trigger(&self) {
        self.token.cancel();
    }

    /// As [`Self::trigger`], and whoever would hand its work over first does not.
    pub fn hurry(&self) {
        self.hurry.cancel();
        self.token.cancel();
    }

    #[cfg(test)]
    fn is_hurried(&self) -> bool {
        self.hurry.is_cancelled()
    }

    /// Returns when told to hurry. Safe inside `select!`.
    pub async fn hurried(&self) {
        self.hurry.cancelled().await;
    }

    pub fn is_triggered(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns when told to stop. Safe inside `select!`.
    pub async fn triggered(&self) {
        self.token.cancelled().await;
    }

    /// The token itself, for code that takes one.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// `future`, or None when told to stop first.
    pub async fn or<F: Future>(&self, future: F) -> Option<F::Output> {
        self.token.run_until_cancelled(future).await
    }

    /// Spawns on the `LocalSet` of this thread; `wait_for_tasks` waits for its end. The task watches the token itself.
    pub fn spawn_local<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.tasks.spawn_local(future)
    }

    /// As [`Self::spawn_local`], but the task is dropped at its next wait when told to stop.
    pub fn spawn_local_until<F>(&self, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let token = self.token.clone();
        self.tasks.spawn_local(async move { token.run_until_cancelled_owned(future).await })
    }

    /// Waits until every tracked task has ended; false when `bound` passed first. Call after `trigger`.
    pub async fn wait_for_tasks(&self, bound: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(bound, self.tasks.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    async fn local<F: Future>(future: F) -> F::Output {
        LocalSet::new().run_until(future).await
    }

    #[tokio::test]
    async fn tasks_are_told_and_waited_for() {
        local(async {
            let shutdown = Shutdown::new();
            let role = shutdown.child();
            let task = role.spawn_local({
                let role = role.clone();
                async move {
                    role.triggered().await;
                    7
                }
            });
            let endless = role.spawn_local_until(std::future::pending::<()>());
            assert!(!role.wait_for_tasks(Duration::from_millis(10)).await);
            shutdown.trigger();
            assert!(role.wait_for_tasks(Duration::from_secs(5)).await);
            assert_eq!(task.await.unwrap(), 7);
            assert_eq!(endless.await.unwrap(), None);
            assert!(role.is_triggered() && role.or(std::future::pending::<()>()).await.is_none());
        })
        .await;
    }

    #[tokio::test]
    async fn a_hurry_stops_children_too() {
        let shutdown = Shutdown::new();
        let child = shutdown.child();
        shutdown.trigger();
        assert!(child.is_triggered() && !child.is_hurried());
        shutdown.hurry();
        child.hurried().await;
        assert!(child.is_hurried());
    }

    #[tokio::test]
    async fn a_child_stops_alone() {
        let shutdown = Shutdown::new();
        shutdown.child().trigger();
        assert!(!shutdown.is_triggered());
    }
}
