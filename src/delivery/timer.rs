//! The timer of attempts that are made one after the other.
//!
//! [`super`] awaits answers with it. A timer of its own for each attempt would be entered into and taken out of the
//! runtime's table each time; this one stays there, and is moved only when it goes off before the attempt at hand is
//! due, or must go off sooner than it would.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that attempts made one after the other share.
#[derive(Default)]
pub struct AttemptTimer(Option<Pin<Box<Sleep>>>);

impl fmt::Debug for AttemptTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttemptTimer")
    }
}

impl AttemptTimer {
    /// Awaits the work until the deadline; `None` when the time is over first.
    pub(super) async fn within<T>(
        &mut self,
        deadline: Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            while sleep.as_mut().poll(cx).is_ready() {
                if sleep.deadline() >= deadline {
                    return Poll::Ready(None);
                }
                sleep.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::AttemptTimer;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn every_attempt_has_its_own_time_whatever_the_one_before_had() {
        let mut timer = AttemptTimer::default();
        let began = Instant::now();

        // Set far ahead, brought forward, gone off, set far ahead again, gone off before its time.
        assert!(timer.within(began + LONG, tokio::task::yield_now()).await.is_some());
        assert!(timer.within(began + SHORT, pending::<()>()).await.is_none());
        assert!(began.elapsed() >= SHORT);
        let soon = Instant::now() + SHORT;
        assert!(timer.within(soon, tokio::task::yield_now()).await.is_some());
        assert!(timer.within(soon + SHORT * 2, sleep(SHORT * 2)).await.is_some());
        assert!(timer.within(soon + SHORT * 3, pending::<()>()).await.is_none());
        assert!(Instant::now() >= soon + SHORT * 3);
    }

    #[tokio::test]
    async fn work_that_is_done_counts_though_its_time_is_over() {
        let mut timer = AttemptTimer::default();

        assert_eq!(timer.within(Instant::now(), async { 7 }).await, Some(7));
    }
}
