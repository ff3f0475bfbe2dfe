//! Which receivers may be called: nothing private unless the operator allows it.

use serde_json::json;

use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn server_calls_no_private_address_under_any_spelling() {
    let server = TestServer::builder()
        .serve()
        .flag("--allow-http", "true")
        .flag("--verifications-per-app", "0")
        .start()
        .await;
    let receiver = Receiver::start().await;
    let port = receiver.url().rsplit(':').next().unwrap().to_owned();

    for host in [
        "127.0.0.1",
        "127.9.9.9",
        "localhost",
        "LOCALHOST",
        "a.localhost",
        "[::1]",
        "0.0.0.0",
        "[::]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "255.255.255.255",
        "[fd00::1]",
        "[fe80::1]",
        "[ff02::1]",
        "[2001:db8::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[::127.0.0.1]",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "１２７.0.0.1",
        "%31%32%37.0.0.1",
        "intranet",
        "db.internal",
        "printer.local",
        "user@127.0.0.1",
    ] {
        let answer = server.app().subscribe(true, &format!("http://{host}:{port}")).await;
        assert_eq!(answer.status, 400, "{host}: {answer:?}");
        let message = answer.refused(400, 6_451_000);
        let step =
            ["url", "name", "address"].iter().any(|step| message.contains(&format!("step {step}")));
        assert!(step, "{host}: {message}");
    }
    assert!(receiver.challenges().is_empty());
    assert_eq!(receiver.open_connections(), 0);
    assert_eq!(server.app().subscription().await["state"], "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_wants_https_unless_http_is_allowed() {
    let receiver = Receiver::start().await;
    let loopback = "127.0.0.0/8";

    let strict = TestServer::builder().serve().flag("--allow-targets", loopback).start().await;
    let refused = strict.app().subscribe(true, &receiver.url()).await;
    assert!(refused.refused(400, 6_451_000).contains("step url"), "{refused:?}");

    let lenient = TestServer::builder()
        .serve()
        .flag("--allow-targets", loopback)
        .flag("--allow-http", "true")
        .start()
        .await;
    lenient.app().subscribe(true, &receiver.url()).await.expect(200);
    lenient.app().create_contact("Ana", "Reyes").await;
    receiver.wait_for_delivered(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn development_server_calls_loopback_and_nothing_else_that_is_private() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let port = receiver.url().rsplit(':').next().unwrap().to_owned();

    server.app().subscribe(true, &receiver.url()).await.expect(200);
    let name = format!("http://localhost:{port}");
    server.app().subscribe(true, &name).await.expect(200);

    for host in ["10.0.0.1", "192.168.1.1", "169.254.169.254", "[fd00::1]", "0.0.0.0"] {
        let refused = server.app().subscribe(true, &format!("http://{host}/hook")).await;
        assert!(refused.refused(400, 6_451_000).contains("step"), "{host}");
    }
    assert_eq!(server.app().subscription().await["url"], json!(name));
}

#[tokio::test(flavor = "multi_thread")]
async fn deny_wins_over_allow_for_addresses_hosts_and_ports() {
    let receiver = Receiver::start().await;
    let port = receiver.url().rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();

    for (flag, value) in [
        ("--deny-targets", "127.0.0.1"),
        ("--deny-hosts", "127.0.0.1"),
        ("--deny-ports", port.as_str()),
    ] {
        let server = TestServer::builder().flag(flag, value).start().await;
        let refused = server.app().subscribe(true, &receiver.url()).await;
        assert_eq!(refused.status, 400, "{flag}");
        refused.refused(400, 6_451_000);
    }
    assert!(receiver.challenges().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_urls_are_refused_without_a_call() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let base = receiver.url_of("");
    let longest = format!("{base}/{}", "x".repeat(2048 - base.len() - 1));

    for bad in [
        "",
        "/hook",
        "hook",
        "http:",
        "http://",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "//127.0.0.1/",
        &format!("{base}/hook#part"),
        &format!("{base}/a b"),
        &format!(" {base}/hook"),
        &format!("{base}/hook\n"),
        &format!("{base}\\hook"),
        &format!("{longest}x"),
    ] {
        let refused = server.app().subscribe(true, bad).await;
        assert_eq!(refused.status, 400, "{bad}: {refused:?}");
        refused.refused(400, 6_451_000);
    }
    assert!(receiver.challenges().is_empty());
    assert_eq!(server.app().subscribe(true, &longest).await.expect(200)["url"], json!(longest));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_of_a_notification_is_not_followed() {
    let server = TestServer::start().await;
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    let target = elsewhere.url();
    receiver.answer(move |seen| match seen.header("rollcall-attempt") {
        "1" => Reply::header(307, "location", &target),
        _ => Reply::status(200),
    });
    server.app().subscribe(true, &receiver.url()).await.expect(200);

    server.app().create_contact("Ana", "Reyes").await;

    receiver.wait_for_delivered(1).await;
    assert_eq!(receiver.notifications().len(), 2);
    assert!(elsewhere.notifications().is_empty());
}
