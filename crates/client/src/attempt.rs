//! How a request gets to the primary of its partition, over as many attempts as that takes.

use std::sync::Arc;
use std::time::Duration;

use pegasus_rpc::wire::{Connection, Request, RequestHead, Response};
use tokio::time::timeout;

use crate::deadline::Attempts;
use crate::error::{Error, Result};
use crate::meta::final_error;
use crate::resolver::Layout;
use crate::retry::{Failure, Verdict, judge};
use crate::table::{Route, Table};

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
        let mut last = "there was no time for one".to_owned();
        loop {
            let Some(left) = attempts.left() else { return Err(Error::Timeout { last }) };
            let within = if repeatable { left.min(self.inner.options.attempt_timeout) } else { left };
            let failure = match self.attempt(&layout, route, request, within).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let refresh = match judge(&failure, repeatable) {
                Verdict::Again { refresh } => refresh,
                Verdict::Unclear => return Err(Error::Unclear(failure.to_string())),
                Verdict::Fail => return Err(final_error(failure)),
            };
            last = failure.to_string();
            if !attempts.pause().await {
                return Err(Error::Timeout { last });
            }
            if refresh {
                layout = self.refresh(&layout, &attempts).await?;
            }
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
        self.attempt(&self.resolver.layout(), route, request, within).await
    }

    async fn attempt(
        &self,
        layout: &Layout,
        route: Route,
        request: &Request,
        within: Duration,
    ) -> std::result::Result<(Response, Connection), Failure> {
        let head = self.head(layout, route);
        let place = layout.place(head.partition_index);
        let address =
            place.and_then(|place| place.primary).ok_or(Failure::NoPrimary(head.partition_index))?;
        let connection = self.inner.pool.get(address, within).await?;
        match connection.call(head, request, within).await {
            Ok(response) => Ok((response, connection)),
            Err(error) => Err(Failure::Call { address: address.to_string(), error }),
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
