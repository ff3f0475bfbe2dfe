//! Which connections are opened, kept, checked, repeated on and refused.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::receiver::{Names, OK, Receiver, acceptor, trusting_client};
use super::{BODY, FixedClock, Setup, attempt, delivered, failed, setup, setup_with};
use crate::delivery::sender::client::BACKGROUND_MAX;
use crate::delivery::sender::connector::{Proxy, platform_tls};
use crate::delivery::sender::{Line, Sender, Settings, Step};
use crate::delivery::target_guard::{Settings as GuardSettings, TargetGuard, TargetHost};

#[tokio::test]
async fn a_connection_is_kept_for_the_next_attempt() {
    let Setup { sender, .. } = setup();
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc").await;
    let line = sender.line(&receiver.url("/")).unwrap();

    for _ in 0..20 {
        assert_eq!(attempt(&sender, &line).await, delivered());
    }

    assert_eq!((receiver.connections(), receiver.requests().len()), (1, 20));
}

#[tokio::test]
async fn beyond_the_limit_of_open_connections_none_is_kept() {
    for (kept_max, connections) in [(1, 1), (0, 3)] {
        let Setup { sender, .. } = setup_with(trusting_client(), |settings| {
            settings.kept_max = kept_max;
        });
        let receiver = Receiver::answering(OK).await;
        let line = sender.line(&receiver.url("/")).unwrap();

        for _ in 0..3 {
            assert_eq!(attempt(&sender, &line).await, delivered());
        }

        assert_eq!(receiver.connections(), connections);
    }
}

/// The first connection answers once and gives `last` to the second request before it closes; later
/// connections do as `fresh` says.
async fn receiver_that_closes(last: &'static [u8], fresh: &'static [u8]) -> Receiver {
    Receiver::start(move |receiver, number, mut stream| async move {
        receiver.read(&mut stream).await?;
        if number > 0 {
            return stream.write_all(fresh).await.ok();
        }
        stream.write_all(OK).await.ok()?;
        receiver.read(&mut stream).await?;
        stream.write_all(last).await.ok()
    })
    .await
}

#[tokio::test]
async fn a_request_that_a_kept_connection_swallowed_is_repeated_once_on_a_fresh_one() {
    for (last, fresh, second, connections) in [
        (&b""[..], OK, delivered(), 2),
        // Repeated once, not until it works.
        (b"", b"", failed(Step::Connect), 2),
        // One byte of an answer: the receiver may have worked on it.
        (b"H", OK, failed(Step::Connect), 1),
    ] {
        let Setup { sender, .. } = setup();
        let receiver = receiver_that_closes(last, fresh).await;
        let line = sender.line(&receiver.url("/")).unwrap();

        assert_eq!(attempt(&sender, &line).await, delivered());
        assert_eq!(attempt(&sender, &line).await, second);

        assert_eq!(receiver.connections(), connections);
        assert_eq!(receiver.requests().len(), 1 + connections);
    }
}

#[tokio::test]
async fn a_fresh_connection_that_closes_is_a_failure() {
    let receiver =
        Receiver::start(|receiver, _, mut stream| async move { receiver.read(&mut stream).await })
            .await;
    let Setup { sender, .. } = setup();

    let got = attempt(&sender, &sender.line(&receiver.url("/")).unwrap()).await;

    assert_eq!(got, failed(Step::Connect));
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_literal_address_is_judged_at_connect_even_if_the_check_was_bypassed() {
    let receiver = Receiver::answering(OK).await;
    let guard = Arc::new(TargetGuard::new(GuardSettings::default(), Names::default()));
    let clock = Arc::new(FixedClock);
    let sender = Sender::new(&Settings::default(), guard, clock).unwrap();
    let allowed = setup().guard.check_url(&receiver.url("/")).unwrap();
    assert!(matches!(allowed.host, TargetHost::Address(_)));

    let got =
        attempt(&sender, &Line::new(allowed, crate::domain::lease::Lease::forever()).unwrap())
            .await;

    assert_eq!(got, failed(Step::Address));
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn a_name_that_changes_between_check_and_connect_is_refused() {
    let Setup { sender, names, .. } = setup();
    let receiver = Receiver::answering(OK).await;
    let url = format!("http://hooks.example.com:{}/", receiver.address.port());
    let line = sender.line(&url).unwrap();

    for (addresses, step) in [
        (&["10.0.0.1"][..], Step::Address),
        (&["127.0.0.1", "10.0.0.1"], Step::Address),
        (&[], Step::Name),
    ] {
        names.set(addresses);
        let line = sender.line(&url.replace("hooks", step.name())).unwrap();
        setup_is_clean(&line);
        assert_eq!(attempt(&sender, &line).await, failed(step));
    }
    assert_eq!(receiver.connections(), 0);
    names.set(&["127.0.0.1"]);
    assert_eq!(attempt(&sender, &line).await, delivered());
}

/// A new line has no connection that could hide the check.
fn setup_is_clean(line: &Line) {
    assert_eq!(line.slot.connections(), None);
}

#[tokio::test]
async fn a_kept_connection_is_not_used_once_its_address_left_the_answer() {
    let Setup { sender, guard, names } = setup();
    let first = Receiver::answering(OK).await;
    let address = format!("127.0.0.2:{}", first.address.port()).parse().unwrap();
    let second = Receiver::start_at(address, |receiver, _, stream| async move {
        receiver.serve(stream, OK).await
    })
    .await;
    let url = format!("http://hooks.example.com:{}/", first.address.port());
    let line = sender.line(&url).unwrap();

    let mut counts = Vec::new();
    for addresses in [&["127.0.0.1"][..], &["127.0.0.2", "127.0.0.1"], &["127.0.0.2"]] {
        names.set(addresses);
        guard.forget_answers();
        assert_eq!(attempt(&sender, &line).await, delivered());
        counts.push((first.requests().len(), second.requests().len()));
    }
    names.set(&["10.0.0.1"]);
    guard.forget_answers();
    assert_eq!(attempt(&sender, &line).await, failed(Step::Address));

    assert_eq!(counts, [(1, 0), (2, 0), (2, 1)]);
    assert_eq!((first.connections(), second.requests().len()), (1, 1));
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_refuses() {
    let Setup { sender, names, .. } = setup();
    let receiver = Receiver::answering(OK).await;
    names.set(&["127.0.0.3", "127.0.0.1"]);
    let url = format!("http://hooks.example.com:{}/", receiver.address.port());

    let got = attempt(&sender, &sender.line(&url).unwrap()).await;

    assert_eq!(got, delivered());
    names.set(&["127.0.0.3"]);
    let url = format!("http://other.example.com:{}/", receiver.address.port());
    assert_eq!(attempt(&sender, &sender.line(&url).unwrap()).await, failed(Step::Connect));
}

/// A receiver that speaks TLS, and HTTP/1.1 inside.
async fn tls_receiver() -> Receiver {
    Receiver::start(|receiver, _, stream| async move {
        let stream = acceptor(&["http/1.1"]).accept(stream).await.ok()?;
        receiver.serve(stream, OK).await
    })
    .await
}

#[tokio::test]
async fn certificates_are_checked_against_roots_and_host() {
    let receiver = tls_receiver().await;
    let port = receiver.address.port();
    let plain = Receiver::start(|_, _, mut stream| async move {
        stream.write_all(b"HTTP/1.1 400 No\r\n\r\n").await.ok()
    })
    .await;
    let plain = plain.address.port();
    for (tls, url, expected) in [
        (trusting_client(), format!("https://hooks.example.com:{port}/"), delivered()),
        (trusting_client(), format!("https://127.0.0.1:{port}/"), delivered()),
        (trusting_client(), format!("https://other.example.com:{port}/"), failed(Step::Tls)),
        (trusting_client(), format!("https://127.0.0.2:{port}/"), failed(Step::Connect)),
        (trusting_client(), format!("https://127.0.0.1:{plain}/"), failed(Step::Tls)),
        (platform_tls().unwrap(), format!("https://127.0.0.1:{port}/"), failed(Step::Tls)),
    ] {
        let Setup { sender, .. } = setup_with(tls, |_| ());
        let line = sender.line(&url).unwrap();
        assert_eq!(attempt(&sender, &line).await, expected, "{url}");
    }
    assert_eq!(receiver.requests().len(), 2);
    assert!(receiver.requests()[0].contains(&format!("\r\nhost: hooks.example.com:{port}\r\n")));
}

#[tokio::test]
async fn a_tls_handshake_that_hangs_ends_with_the_connect_timeout() {
    let receiver = Receiver::start(|_, _, mut stream| async move {
        while stream.read(&mut [0; 512]).await.ok()? > 0 {}
        Some(())
    })
    .await;
    let Setup { sender, .. } = setup_with(trusting_client(), |settings| {
        settings.connect_timeout = Duration::from_millis(100);
    });
    let url = format!("https://127.0.0.1:{}/", receiver.address.port());

    assert_eq!(attempt(&sender, &sender.line(&url).unwrap()).await, failed(Step::Tls));
}

/// A receiver that speaks HTTP/2; it notes host, path and body, and closes each connection after `most` answers.
async fn http2_receiver(most: usize) -> Receiver {
    Receiver::start(move |receiver, _, stream| async move {
        let stream = acceptor(&["h2"]).accept(stream).await.ok()?;
        let (close, closed) = tokio::sync::watch::channel(0);
        let service = hyper::service::service_fn(move |request: http::Request<_>| {
            let (receiver, close) = (receiver.clone(), close.clone());
            async move {
                let uri = request.uri().to_string();
                let body: hyper::body::Incoming = request.into_body();
                let body = body.collect().await.unwrap().to_bytes();
                receiver.note(format!("{uri} {}", String::from_utf8_lossy(&body)));
                close.send_modify(|count| *count += 1);
                Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from_static(b"ok"))))
            }
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        let enough = async move {
            let mut closed = closed;
            closed.wait_for(|count| *count >= most).await.is_ok()
        };
        tokio::select! {
            _ = &mut serving => (),
            _ = enough => {
                serving.as_mut().graceful_shutdown();
                let _ended = serving.await;
            }
        }
        Some(())
    })
    .await
}

#[tokio::test]
async fn http2_is_used_where_offered_on_one_connection() {
    let receiver = http2_receiver(usize::MAX).await;
    let Setup { sender, .. } = setup();
    let url = format!("https://hooks.example.com:{}//a?b", receiver.address.port());
    let line = sender.line(&url).unwrap();

    assert_eq!(attempt(&sender, &line).await, delivered());
    let many = (0..50).map(|_| attempt(&sender, &line));
    for answer in join_all(many).await {
        assert_eq!(answer, delivered());
    }

    assert_eq!((receiver.connections(), receiver.requests().len()), (1, 51));
    assert_eq!(receiver.requests()[0], format!("{url} {BODY}"));
}

#[tokio::test]
async fn an_http2_connection_that_ends_is_replaced() {
    let receiver = http2_receiver(3).await;
    let Setup { sender, .. } = setup();
    let url = format!("https://127.0.0.1:{}/", receiver.address.port());
    let line = sender.line(&url).unwrap();

    for _ in 0..9 {
        assert_eq!(attempt(&sender, &line).await, delivered());
    }

    assert!((3..=4).contains(&receiver.connections()), "{}", receiver.connections());
}

/// Runs futures side by side.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(move |cx| {
        for (future, output) in &mut running {
            if output.is_none()
                && let std::task::Poll::Ready(done) = future.as_mut().poll(cx)
            {
                *output = Some(done);
            }
        }
        if running.iter().any(|(_, output)| output.is_none()) {
            return std::task::Poll::Pending;
        }
        let outputs = running.iter_mut().filter_map(|(_, output)| output.take());
        std::task::Poll::Ready(outputs.collect())
    })
    .await
}

/// Waits until the condition holds, for 5 s.
async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap();
}

/// A sender that looks for idle connections this often.
pub(super) fn setup_checking(check: Duration, change: impl FnOnce(&mut Settings)) -> Setup {
    let mut setup = setup_with(trusting_client(), change);
    Arc::get_mut(&mut setup.sender.connector).unwrap().patience.check = check;
    setup
}

#[tokio::test]
async fn what_the_old_address_keeps_is_closed_when_the_answer_changes() {
    let Setup { sender, guard, names } = setup();
    let first = Receiver::start(|receiver, _, stream| async move {
        let served = receiver.serve(stream, OK).await;
        receiver.note("closed");
        served
    })
    .await;
    let address = format!("127.0.0.2:{}", first.address.port()).parse().unwrap();
    let second = Receiver::start_at(address, |receiver, _, stream| async move {
        receiver.serve(stream, OK).await
    })
    .await;
    let url = format!("http://hooks.example.com:{}/", first.address.port());
    let line = sender.line(&url).unwrap();
    assert_eq!(attempt(&sender, &line).await, delivered());

    names.set(&["127.0.0.2"]);
    guard.forget_answers();
    assert_eq!(attempt(&sender, &line).await, delivered());

    until(|| first.requests().last().is_some_and(|last| last == "closed")).await;
    assert_eq!((second.requests().len(), line.slot.connections()), (1, Some(1)));
}

#[tokio::test]
async fn a_connection_whose_address_left_the_answer_while_it_was_opened_serves_one_attempt_only() {
    let Setup { sender, guard, names } = setup();
    let (go, _) = tokio::sync::watch::channel(false);
    let gate = go.clone();
    let slow = Receiver::start(move |receiver, _, stream| {
        let mut gate = gate.subscribe();
        async move {
            gate.wait_for(|open| *open).await.ok()?;
            let stream = acceptor(&["http/1.1"]).accept(stream).await.ok()?;
            receiver.serve(stream, OK).await
        }
    })
    .await;
    let address = format!("127.0.0.2:{}", slow.address.port()).parse().unwrap();
    let other = Receiver::start_at(address, |receiver, _, stream| async move {
        let stream = acceptor(&["http/1.1"]).accept(stream).await.ok()?;
        receiver.serve(stream, OK).await
    })
    .await;
    let url = format!("https://hooks.example.com:{}/", slow.address.port());
    let line = sender.line(&url).unwrap();

    let meanwhile = async {
        until(|| slow.connections() == 1).await;
        names.set(&["127.0.0.2"]);
        guard.forget_answers();
        assert_eq!(attempt(&sender, &line).await, delivered());
        go.send_replace(true);
    };
    let (answer, ()) = tokio::join!(attempt(&sender, &line), meanwhile);
    assert_eq!(answer, delivered());
    let many = (0..5).map(|_| attempt(&sender, &line));
    for answer in join_all(many).await {
        assert_eq!(answer, delivered());
    }

    assert!(slow.requests().len() <= 1 && slow.connections() == 1, "{:?}", slow.requests());
    assert!(other.requests().len() >= 6);
}

#[tokio::test]
async fn idle_connections_close_themselves_and_the_last_takes_the_client_along() {
    let Setup { sender, .. } = setup_checking(Duration::from_millis(200), |_| ());
    let receiver = Receiver::start(|receiver, _, mut stream| async move {
        while receiver.read(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.write_all(OK).await.ok()?;
        }
        receiver.note("closed");
        Some(())
    })
    .await;
    let line = sender.line(&receiver.url("/")).unwrap();
    let closed = || receiver.requests().iter().filter(|request| *request == "closed").count();
    let many = (0..3).map(|_| attempt(&sender, &line));
    for answer in join_all(many).await {
        assert_eq!(answer, delivered());
    }
    assert_eq!((line.slot.connections(), closed()), (Some(3), 0));

    // One stays busy; the others end beside it.
    while closed() < 2 {
        assert_eq!(attempt(&sender, &line).await, delivered());
    }
    assert_eq!((line.slot.connections(), receiver.connections()), (Some(1), 3));

    until(|| line.slot.connections().is_none()).await;
    until(|| closed() == 3).await;
    assert_eq!(attempt(&sender, &line).await, delivered());
    assert_eq!(receiver.connections(), 4);
}

#[tokio::test]
async fn a_quiet_connection_that_waits_for_an_answer_is_not_idle() {
    let Setup { sender, .. } = setup_checking(Duration::from_millis(10), |_| ());
    let receiver = Receiver::start(|receiver, _, mut stream| async move {
        receiver.read(&mut stream).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        stream.write_all(OK).await.ok()
    })
    .await;

    let got = attempt(&sender, &sender.line(&receiver.url("/")).unwrap()).await;

    assert_eq!((got, receiver.connections()), (delivered(), 1));
}

#[tokio::test]
async fn an_idle_http2_connection_closes_itself() {
    let receiver = http2_receiver(usize::MAX).await;
    let Setup { sender, .. } = setup_checking(Duration::from_millis(10), |settings| {
        settings.request_timeout = Duration::from_secs(2);
        settings.connect_timeout = Duration::from_secs(2);
    });
    let url = format!("https://127.0.0.1:{}/", receiver.address.port());
    let line = sender.line(&url).unwrap();

    assert_eq!(attempt(&sender, &line).await, delivered());
    // It may be waiting for an answer as long as an attempt takes.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(line.slot.connections(), Some(1));

    until(|| line.slot.connections().is_none()).await;
}

#[tokio::test]
async fn a_line_whose_receiver_cannot_be_reached_keeps_nothing() {
    let Setup { sender, .. } = setup();
    let line = sender.line("http://127.0.0.3:1/").unwrap();

    assert_eq!(attempt(&sender, &line).await, failed(Step::Connect));

    assert_eq!(line.slot.connections(), None);
    assert!(size_of::<Line>() < 512, "{}", size_of::<Line>());
}

#[tokio::test]
async fn a_repeat_does_not_take_another_kept_connection() {
    let (arrived, _) = tokio::sync::watch::channel(0);
    // The first two connections answer once, both at the same time, and swallow their second request.
    let receiver = Receiver::start(move |receiver, number, mut stream| {
        let arrived = arrived.clone();
        async move {
            receiver.read(&mut stream).await?;
            if number < 2 {
                arrived.send_modify(|count| *count += 1);
                arrived.subscribe().wait_for(|count| *count == 2).await.ok()?;
                stream.write_all(OK).await.ok()?;
                return receiver.read(&mut stream).await;
            }
            stream.write_all(OK).await.ok()
        }
    })
    .await;
    let Setup { sender, .. } = setup();
    let line = sender.line(&receiver.url("/")).unwrap();
    let both = (0..2).map(|_| attempt(&sender, &line));
    assert_eq!(join_all(both).await, [delivered(), delivered()]);
    assert_eq!(line.slot.connections(), Some(2));

    assert_eq!(attempt(&sender, &line).await, delivered());

    assert_eq!((receiver.connections(), receiver.requests().len()), (3, 4));
}

#[tokio::test]
async fn an_http2_connection_that_swallows_requests_is_forgotten() {
    let receiver = Receiver::start(|receiver, number, stream| async move {
        let stream = acceptor(&["h2"]).accept(stream).await.ok()?;
        let service = hyper::service::service_fn(move |request: http::Request<_>| {
            let receiver = receiver.clone();
            async move {
                let _body: hyper::body::Incoming = request.into_body();
                receiver.note(number.to_string());
                if number == 0 && receiver.requests().len() > 1 {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::new())))
            }
        });
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await
            .ok()
    })
    .await;
    let Setup { sender, .. } = setup_with(trusting_client(), |settings| {
        settings.request_timeout = Duration::from_millis(500);
    });
    let url = format!("https://127.0.0.1:{}/", receiver.address.port());
    let line = sender.line(&url).unwrap();

    assert_eq!(attempt(&sender, &line).await, delivered());
    assert_eq!(attempt(&sender, &line).await, failed(Step::Timeout));
    assert_eq!(attempt(&sender, &line).await, delivered());

    assert_eq!(receiver.requests(), ["0", "0", "1"]);
}

#[tokio::test]
async fn few_connections_go_on_being_opened_without_their_attempts() {
    // The first connection answers, the others never end their handshake.
    let receiver = Receiver::start(|receiver, number, stream| async move {
        if number > 0 {
            std::future::pending::<()>().await;
        }
        let mut stream = acceptor(&["http/1.1"]).accept(stream).await.ok()?;
        while receiver.read(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_millis(2)).await;
            stream.write_all(OK).await.ok()?;
        }
        Some(())
    })
    .await;
    let Setup { sender, .. } = setup();
    let url = format!("https://127.0.0.1:{}/", receiver.address.port());
    let line = sender.line(&url).unwrap();
    assert_eq!(attempt(&sender, &line).await, delivered());

    for _ in 0..10 {
        let three = (0..3).map(|_| attempt(&sender, &line));
        for answer in join_all(three).await {
            assert_eq!(answer, delivered());
        }
    }

    assert!(receiver.connections() > 10, "{}", receiver.connections());
    assert_eq!(line.slot.connections(), Some(1));
    until(|| line.slot.opening() == BACKGROUND_MAX).await;
}

#[tokio::test]
async fn a_proxy_is_asked_for_the_judged_address_and_sees_no_request() {
    let target = tls_receiver().await;
    let to = target.address;
    let proxy = Receiver::start(move |proxy, _, mut stream| async move {
        proxy.read(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nvia: x\r\n\r\n").await.ok()?;
        let mut onward = tokio::net::TcpStream::connect(to).await.ok()?;
        tokio::io::copy_bidirectional(&mut stream, &mut onward).await.ok().map(|_| ())
    })
    .await;
    let Setup { sender, .. } = setup_with(trusting_client(), |settings| {
        settings.proxy = Some(format!("http://us%65r:p%3Aw@{}", proxy.address));
    });
    let url = format!("https://hooks.example.com:{}/", to.port());

    assert_eq!(attempt(&sender, &sender.line(&url).unwrap()).await, delivered());

    let expected = format!(
        "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: Basic dXNlcjpwOnc=\r\n\r\n"
    );
    assert_eq!(proxy.requests(), [expected]);
    assert_eq!(sender.line("http://127.0.0.1:1/").unwrap_err().step, Step::Url);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_a_failure_to_connect() {
    let refusal = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n";
    let proxy = Receiver::answering(refusal).await;
    let Setup { sender, .. } = setup_with(trusting_client(), |settings| {
        settings.proxy = Some(format!("http://{}/", proxy.address));
    });

    let got = attempt(&sender, &sender.line("https://hooks.example.com/").unwrap()).await;

    assert_eq!(got, failed(Step::Connect));
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn a_proxy_is_an_http_url_without_path() {
    for text in ["http://proxy:3128", "http://proxy", "http://u:p@[::1]:3128/", "http://10.0.0.1:1"]
    {
        assert!(Proxy::parse(text).is_ok(), "{text}");
    }
    for text in [
        "",
        "proxy:3128",
        "https://proxy:3128",
        "socks5://proxy:1",
        "http://proxy/a",
        "http://p/?q",
        "http://u%zz:p@proxy",
    ] {
        assert!(Proxy::parse(text).is_err(), "{text}");
    }
}
