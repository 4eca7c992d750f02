//! The shell: what [`Election`] decides, done with a store and a clock.

use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::election::{Action, Answer, Call, Candidate, Election, Event, Leadership};
use crate::store::{MetaStore, SessionState, StoreError, Watch};

/// Sleeps for ever if there is nothing to wait for.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

type Answering<'a> = Pin<Box<dyn Future<Output = (Answer, Option<Watch>)> + Send + 'a>>;

/// Stands for election until the session is over, and tells what changes. When `stop` completes while there is
/// a store to talk to, the role is given back at once instead of after a session timeout; then this ends, too.
/// The last word is always [`Leadership::Over`], also when this future is dropped.
pub async fn run(
    store: &dyn MetaStore,
    mut election: Election,
    tell: &watch::Sender<Leadership>,
    stop: impl Future<Output = ()>,
) {
    let tell = Telling(tell);
    let begun = Instant::now();
    let mut session = store.session();
    let mut stop = pin!(stop);
    let mut stopping = false;
    let mut answering: Option<Answering<'_>> = None;
    let mut watched: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
    let mut event = match *session.borrow_and_update() {
        SessionState::Over => Event::Session(SessionState::Over),
        SessionState::Connected | SessionState::Disconnected => Event::Start,
    };
    loop {
        let now = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        for action in election.step(now, event) {
            match action {
                Action::Call(call) => answering = Some(Box::pin(carry_out(store, call))),
                Action::Tell(leadership) => tell.tell(leadership),
            }
        }
        if election.is_over() {
            return;
        }
        let tick = election.next_tick().map_or(NEVER, Duration::from_millis);
        event = tokio::select! {
            (answer, watch) = maybe(&mut answering) => {
                answering = None;
                if let Some(watch) = watch {
                    watched = Some(Box::pin(watch.changed()));
                }
                Event::Answer(answer)
            }
            () = maybe(&mut watched) => {
                watched = None;
                Event::Changed
            }
            changed = session.changed() => match changed {
                Ok(()) => Event::Session(*session.borrow_and_update()),
                Err(_) => Event::Session(SessionState::Over),
            },
            () = &mut stop, if !stopping => {
                stopping = true;
                Event::Resign
            }
            () = sleep_until(begun + tick) => Event::Tick,
        };
    }
}

/// Nobody goes on believing a leadership that nobody looks after.
struct Telling<'a>(&'a watch::Sender<Leadership>);

impl Telling<'_> {
    fn tell(&self, leadership: Leadership) {
        tracing::info!(?leadership, "election");
        self.0.send_replace(leadership);
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.0.send_if_modified(|last| std::mem::replace(last, Leadership::Over) != Leadership::Over);
    }
}

async fn maybe<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn carry_out(store: &dyn MetaStore, call: Call) -> (Answer, Option<Watch>) {
    match call {
        Call::Prepare(paths) => (Answer::Prepared(prepare(store, &paths).await), None),
        Call::Read(path) => (Answer::Read(store.get(&path).await), None),
        Call::Write(ops) => (Answer::Written(store.multi(ops).await), None),
        Call::Look(dir) => match look(store, &dir).await {
            Ok((candidates, watch)) => (Answer::Seen(Ok(candidates)), Some(watch)),
            Err(error) => (Answer::Seen(Err(error)), None),
        },
    }
}

async fn prepare(store: &dyn MetaStore, paths: &[String]) -> Result<(), StoreError> {
    for path in paths {
        store.ensure_path(path).await?;
    }
    Ok(())
}

async fn look(store: &dyn MetaStore, dir: &str) -> Result<(Vec<Candidate>, Watch), StoreError> {
    // The watch is set before the content is read: what changes in between is told.
    let (names, watch) = store.children_watched(dir).await?;
    let paths = names.iter().map(|name| format!("{dir}/{name}")).collect();
    let data = store.get_all(paths).await?;
    let candidates = names.into_iter().zip(data).filter_map(|(name, datum)| {
        let address = String::from_utf8_lossy(&datum?.bytes).into_owned();
        Some(Candidate { name, address })
    });
    Ok((candidates.collect(), watch))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::election::{FencedStore, Options};
    use crate::memory_store::MemoryStore;
    use crate::store::Op;
    use crate::tree::Tree;

    fn election(me: &str) -> Election {
        Election::new(Options {
            tree: Tree::new("/pegasus/c"),
            lock_root: "/locks".into(),
            me: me.parse().unwrap(),
            session_ms: 10_000,
        })
    }

    #[tokio::test]
    async fn two_stand_one_leads_and_its_successor_fences_it_off() {
        let first = Arc::new(MemoryStore::default());
        let second = first.join();
        let (tell, mut news) = watch::channel(Leadership::Over);
        let (stop, stopped) = oneshot::channel::<()>();
        let store = first.clone();
        let one = tokio::spawn(async move {
            let stop = async { drop(stopped.await) };
            run(&*store, election("m1:1"), &tell, stop).await;
        });
        let fence = news.wait_for(|l| l.leading().is_some()).await.unwrap().leading().unwrap().clone();
        let fenced = FencedStore::new(first.clone(), fence);
        assert_eq!(fenced.multi(vec![Op::create("/a", "")]).await.unwrap().len(), 1);

        let (tell, mut others) = watch::channel(Leadership::Over);
        let two =
            tokio::spawn(async move { run(&second, election("m2:1"), &tell, std::future::pending()).await });
        let follows = Leadership::Standby { leader: Some("m1:1".parse().unwrap()) };
        others.wait_for(|l| *l == follows).await.unwrap();
        // Given back at once, not after a session timeout.
        stop.send(()).unwrap();
        others.wait_for(|l| l.leading().is_some_and(|fence| fence.epoch == 2)).await.unwrap();
        one.await.unwrap();
        assert_eq!(*news.borrow_and_update(), Leadership::Over);
        assert_eq!(fenced.multi(vec![Op::create("/b", "")]).await, Err(StoreError::NotLeader));
        assert_eq!(fenced.get("/b").await, Ok(None));
        // Who only drops it must not be believed to lead either.
        two.abort();
        others.wait_for(|l| *l == Leadership::Over).await.unwrap();
    }
}
