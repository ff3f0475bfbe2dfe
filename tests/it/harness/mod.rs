//! What the system tests share: a server, a receiver, a client, callers that write, chance, and waiting without
//! sleeping.

pub(crate) mod certificates;
pub(crate) mod chance;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod postgres;
pub(crate) mod power;
mod process;
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod senders;
pub(crate) mod server;
pub(crate) mod stored;
pub(crate) mod verdict;
pub(crate) mod watcher;
pub(crate) mod writers;

use std::future::Future;
use std::time::{Duration, Instant};

/// Longest wait for anything that should happen at once; far above the time it takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Time between two looks at a condition that cannot announce itself.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Asks until there is an answer; fails with `what` when none comes within [`PATIENCE`].
pub(crate) async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < deadline, "this did not happen within {PATIENCE:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// One line of progress or of figures; the test runner shows it with `--nocapture`, and when the test fails.
#[expect(clippy::print_stderr, reason = "the long forms of tests are watched while they run")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}
