//! The feed: the event log of a service read by number, and the wait for what comes next.
//!
//! `api` calls [`Feed::list`]. A request that finds nothing may wait; it holds a place and a number, but no
//! connection of the store and no transaction. The commit listener, on the writer's thread, raises the head that
//! waiting requests look at; they read the log again themselves, so that only what is committed is given.

mod waiting;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::event::{Event, Gap};
use crate::domain::id::ServiceId;
use crate::store::rows::LogPage;
use crate::store::{CommitListener, Error, Read};

use self::waiting::{Waiting, Watch};

/// Longest wait of one request. Proxies commonly give up on an answer after 60 s; shorter makes idle readers ask
/// more often.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// What is wanted of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedQuery {
    /// Events with higher numbers.
    pub after: u64,
    /// At most so many, 1 to [`PAGE_LIMIT_MAX`](crate::domain::page::PAGE_LIMIT_MAX).
    pub limit: u32,
    /// How long to wait for the first of them, at most [`WAIT_MAX`]; zero answers at once.
    pub wait: Duration,
}

/// A part of the log as it is given to a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedPage {
    /// Events in order, without gaps among them.
    pub items: Vec<Event>,
    /// What to pass as `after` the next time.
    pub next: u64,
    /// The head of the log.
    pub newest: u64,
    /// Numbers that the reader asked for and that are not kept any more.
    pub gap: Option<Gap>,
}

/// Why there is no page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// There is nothing yet, and too many requests wait already.
    #[error("too many requests wait for events")]
    TooManyWaiting,
    /// The service is gone, or the store is away.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The feed of every service.
#[derive(Debug)]
pub struct Feed {
    read: Arc<dyn Read>,
    waiting: Arc<Waiting>,
    stop: CancellationToken,
}

impl Feed {
    /// A feed whose waiting requests end when `stop` is cancelled. Its [`Self::listener`] must be added to the store.
    #[must_use]
    pub fn new(read: Arc<dyn Read>, stop: CancellationToken) -> Self {
        Self { read, waiting: Arc::default(), stop }
    }

    /// What is to hear of every commit: wakes waiting requests.
    #[must_use]
    pub fn listener(&self) -> CommitListener {
        let waiting = Arc::clone(&self.waiting);
        Arc::new(move |commit| waiting.hear(commit))
    }

    /// The events that follow a number. When there are none yet, waits until there are, the time is over, or the
    /// server stops; then the page is empty. Dropping the future ends the wait.
    ///
    /// # Errors
    ///
    /// Too many requests that wait, not found when the service is gone, unavailable.
    pub async fn list(&self, service: ServiceId, query: FeedQuery) -> Result<FeedPage, FeedError> {
        if query.wait.is_zero() {
            return Ok(page_of(query.after, self.read(service, query).await?));
        }
        let until = Instant::now() + query.wait;
        let mut watch = self.waiting.watch(service);
        loop {
            // Looked at before the read: what is committed while it reads is a change to wait for no longer.
            let seen = watch.look();
            let page = self.read(service, query).await?;
            if !page.events.is_empty() {
                return Ok(page_of(query.after, page));
            }
            if !watch.take_place() {
                return Err(FeedError::TooManyWaiting);
            }
            if !self.wait(&mut watch, seen, query.after, until).await {
                return Ok(page_of(query.after, page));
            }
        }
    }

    async fn read(&self, service: ServiceId, query: FeedQuery) -> Result<LogPage, Error> {
        let page = self.read.list_log(service, query.after, query.limit).await?;
        page.ok_or(Error::NotFound)
    }

    /// Waits for a reason to read again; `false` when the time is over or the server stops.
    async fn wait(
        &self,
        watch: &mut Watch,
        seen: waiting::Level,
        after: u64,
        until: Instant,
    ) -> bool {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = watch.changed(seen, after) => true,
            () = tokio::time::sleep_until(until) => false,
        }
    }
}

/// A page ends before a number that is missing, so that the next page begins with the gap and reports it.
fn page_of(after: u64, page: LogPage) -> FeedPage {
    let first = page.events.first().map(|event| event.sequence);
    let expected = after.saturating_add(1);
    let gap =
        first.filter(|first| *first > expected).map(|first| Gap { from: expected, to: first - 1 });
    let mut items = page.events;
    let whole = (first.unwrap_or_default()..).zip(&items).take_while(|(at, e)| *at == e.sequence);
    let whole = whole.count();
    items.truncate(whole);
    let next = items.last().map_or(after, |event| event.sequence);
    FeedPage { items, next, newest: page.newest, gap }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
