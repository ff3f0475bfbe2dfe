//! The sender at the end of the node's lease.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::receiver::{OK, Receiver, trusting_client};
use super::{Setup, attempt, delivered, setup_with};
use crate::delivery::outcome::Outcome;
use crate::domain::clock::Moment;
use crate::domain::lease::Lease;

/// The test's clock stands at zero.
fn lease() -> Lease {
    let lease = Lease::not_yet();
    lease.extend_to(Moment(100), Moment(0));
    lease
}

#[tokio::test]
async fn after_the_end_of_the_lease_nothing_is_sent_and_no_connection_opened_except_for_challenges()
{
    let lease = lease();
    let Setup { sender, .. } =
        setup_with(trusting_client(), |settings| settings.lease = lease.clone());
    let receiver = Receiver::answering(OK).await;
    let line = sender.line_under_lease(&receiver.url("/")).unwrap();
    assert_eq!(attempt(&sender, &line).await, delivered());

    lease.end();

    assert_ne!(attempt(&sender, &line).await.outcome, Outcome::Delivered);
    let fresh = sender.line_under_lease(&receiver.url("/")).unwrap();
    assert_ne!(attempt(&sender, &fresh).await.outcome, Outcome::Delivered);
    assert_eq!((receiver.connections(), receiver.requests().len()), (1, 1));
    let unbound = sender.line(&receiver.url("/")).unwrap();
    assert_eq!(attempt(&sender, &unbound).await, delivered());

    // A connection of the earlier term is not used again.
    lease.extend_to(Moment(200), Moment(0));
    assert_eq!(attempt(&sender, &line).await, delivered());
    assert_eq!(receiver.connections(), 3);
}

#[tokio::test]
async fn connections_are_aborted_at_the_end_of_the_lease_whether_they_wait_or_are_idle() {
    let lease = lease();
    let Setup { sender, .. } =
        setup_with(trusting_client(), |settings| settings.lease = lease.clone());
    let (ends, mut ended) = mpsc::channel(4);
    let receiver = Receiver::start(move |_, _, mut stream| {
        let ends = ends.clone();
        async move {
            let mut bytes = [0; 4096];
            loop {
                match stream.read(&mut bytes).await {
                    Ok(0) => ends.send(None).await.ok()?,
                    Ok(_) => continue,
                    Err(error) => ends.send(Some(error.kind())).await.ok()?,
                }
                return Some(());
            }
        }
    })
    .await;
    let line = sender.line_under_lease(&receiver.url("/")).unwrap();
    let ending = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        lease.end();
    };

    let limit = Duration::from_secs(5);
    let both = async { tokio::join!(attempt(&sender, &line), ending) };
    let (answer, ()) = tokio::time::timeout(limit, both).await.unwrap();

    assert_ne!(answer.outcome, Outcome::Delivered);
    let how = tokio::time::timeout(limit, ended.recv()).await.unwrap().unwrap();
    // Not closed in order: what the system had still to send would be sent.
    assert_eq!(how, Some(std::io::ErrorKind::ConnectionReset));
}
