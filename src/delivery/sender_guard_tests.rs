//! The target guard with real sockets: a challenge is judged as a notification is, at every connect.

use super::receiver::{OK, Receiver};
use super::{Setup, attempt, failed, secrets, setup};
use crate::delivery::challenge::{self, Nonce, VerificationFailure};
use crate::delivery::sender::{Line, Sender, Step};

async fn challenge(sender: &Sender, line: &Line) -> Result<(), VerificationFailure> {
    let nonce = Nonce::from_bytes([1; 16], [2; 32]);
    challenge::verify(sender, line, &secrets(), &nonce).await
}

fn refused(step: Step) -> Result<(), VerificationFailure> {
    Err(VerificationFailure { step, status: None })
}

/// Answers every challenge of [`challenge`] as it must.
async fn consenting() -> Receiver {
    let body = format!(r#"{{"code":200,"result":{{"challenge":"{}"}}}}"#, "02".repeat(32));
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    Receiver::answering(head + &body).await
}

#[tokio::test]
async fn a_name_that_turns_inwards_gets_neither_challenge_nor_notification() {
    let Setup { sender, guard, names } = setup();
    let receiver = consenting().await;
    let line =
        sender.line(&format!("http://hooks.example.com:{}/", receiver.address.port())).unwrap();
    assert_eq!(challenge(&sender, &line).await, Ok(()));

    for (addresses, step) in [
        (&["10.0.0.1"][..], Step::Address),
        (&["127.0.0.1", "169.254.169.254"], Step::Address),
        (&["127.0.0.1", "::ffff:127.0.0.1"], Step::Address),
        (&[], Step::Name),
    ] {
        names.set(addresses);
        guard.forget_answers();
        // Not on the connection that is still open either.
        assert_eq!(challenge(&sender, &line).await, refused(step), "{addresses:?}");
        assert_eq!(attempt(&sender, &line).await, failed(step), "{addresses:?}");
    }

    assert_eq!((receiver.connections(), receiver.requests().len()), (1, 1));
}

#[tokio::test]
async fn a_redirect_of_a_challenge_reaches_nobody() {
    let Setup { sender, .. } = setup();
    let elsewhere = Receiver::answering(OK).await;
    for status in [301, 302, 303, 307, 308] {
        let location = elsewhere.url("/");
        let answer =
            format!("HTTP/1.1 {status} Go\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let receiver = Receiver::answering(answer).await;
        let line = sender.line(&receiver.url("/")).unwrap();

        let verdict = challenge(&sender, &line).await;

        assert_eq!(verdict, Err(VerificationFailure { step: Step::Status, status: Some(status) }));
    }
    assert_eq!(elsewhere.connections(), 0);
}
