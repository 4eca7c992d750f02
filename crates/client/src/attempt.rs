//! How a request gets to the primary of its partition, over as many attempts as that takes.

use std::sync::Arc;
use std::time::Duration;

use pegasus_rpc::wire::{Connection, Request, RequestHead, Response};
use tokio::time::{sleep, timeout};

use crate::deadline::Attempts;
use crate::error::{Error, Result};
use crate::meta::final_error;
use crate::resolver::Layout;
use crate::retry::{Failure, Verdict, judge};
use crate::silence::before_look;
use crate::table::{Route, Table};

/// For a look at the layout beside an attempt.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

impl Table {
    /// Asks the partition's primary until it answers, the failure is final, or the time is over. Tells the
    /// connection that brought the answer as well.
    pub(crate) async fn call(
        &self,
        route: Route,
        request: &Request,
        repeatable: bool,
    ) -> Result<(Response, Connection)> {
        let mut attempts = Attempts::within(self.timeout);
        let mut layout = self.resolver.layout();
        let mut last = Error::no_time();
        loop {
            let Some(left) = attempts.left() else { return Err(last) };
            let within = if repeatable { left.min(self.inner.options.attempt_timeout) } else { left };
            let failure = match self.attempt(&layout, route, request, within, repeatable).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let refresh = match judge(&failure, repeatable) {
                Verdict::Again { refresh } => refresh,
                Verdict::Unclear => return Err(Error::Unclear(failure.to_string())),
                Verdict::Fail => return Err(final_error(failure)),
            };
            last = Error::late(&failure);
            if !attempts.pause(refresh).await {
                return Err(last);
            }
            layout = if refresh { self.refresh(&layout, &attempts).await? } else { self.resolver.layout() };
        }
    }

    /// A newer layout, or the same one when the meta-servers do not answer: the partition may be where it was.
    async fn refresh(&self, layout: &Arc<Layout>, attempts: &Attempts) -> Result<Arc<Layout>> {
        let left = attempts.left().unwrap_or_default();
        match timeout(left, self.resolver.newer_than(layout.version, left)).await {
            Ok(Ok(newer)) => Ok(newer),
            Ok(Err(error @ Error::NoTable(_))) => Err(error),
            Ok(Err(error)) => {
                tracing::debug!(table = self.name(), %error, "cannot ask where the partitions are");
                Ok(layout.clone())
            }
            Err(_) => Ok(layout.clone()),
        }
    }

    /// One attempt with what is known now.
    pub(crate) async fn attempt_now(
        &self,
        route: Route,
        request: &Request,
    ) -> std::result::Result<(Response, Connection), Failure> {
        let within = self.timeout.min(self.inner.options.attempt_timeout);
        self.attempt(&self.resolver.layout(), route, request, within, true).await
    }

    async fn attempt(
        &self,
        layout: &Layout,
        route: Route,
        request: &Request,
        within: Duration,
        repeatable: bool,
    ) -> std::result::Result<(Response, Connection), Failure> {
        let head = self.head(layout, route);
        let place = layout.place(head.partition_index);
        let address =
            place.and_then(|place| place.primary).ok_or(Failure::NoPrimary(head.partition_index))?;
        let connection = self.inner.pool.get(address, within).await?;
        let call = connection.call(head, request, within);
        let answer = if repeatable {
            tokio::select! {
                biased;
                answer = call => answer,
                () = self.moved(layout, head.partition_index, &connection) => {
                    return Err(Failure::Moved(address.to_string()));
                }
            }
        } else {
            // Whether it was executed stays open until the server says so: there is no use in knowing a new primary.
            call.await
        };
        match answer {
            Ok(response) => Ok((response, connection)),
            Err(error) => Err(Failure::Call { address: address.to_string(), error }),
        }
    }

    /// Ends when the server is silent and the partition has another primary.
    async fn moved(&self, layout: &Layout, partition: i32, connection: &Connection) {
        let mut seen = layout.version;
        let mut looked = false;
        loop {
            match before_look(connection.silent_for(), looked) {
                Some(pause) => {
                    sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
                    looked = false;
                }
                None => {
                    looked = true;
                    // A meta-server that does not answer is asked again after the next pause.
                    let Ok(newer) = self.resolver.newer_than(seen, LOOK_TIMEOUT).await else { continue };
                    seen = newer.version;
                    let primary = newer.place(partition).and_then(|place| place.primary);
                    if primary.is_some_and(|primary| primary != connection.peer()) {
                        return;
                    }
                }
            }
        }
    }

    pub(crate) fn head_now(&self, route: Route) -> RequestHead {
        self.head(&self.resolver.layout(), route)
    }

    fn head(&self, layout: &Layout, route: Route) -> RequestHead {
        let (partition_index, partition_hash) = match route {
            Route::Hash(hash) => (layout.index_of(hash), hash),
            Route::Partition(index) => (index, u64::try_from(index).unwrap_or(0)),
        };
        RequestHead { app_id: layout.app_id, partition_index, partition_hash, ..Default::default() }
    }
}
