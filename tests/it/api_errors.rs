//! Malformed and oversized requests, and what a proxy or an attacker might send: each is answered, none hangs.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;

use crate::harness::client::{Answer, RawConnection, raw};
use crate::harness::server::TestServer;

/// The head of a request of the server's app, without its end.
fn head(server: &TestServer, line: &str) -> String {
    format!(
        "{line}\r\nHost: {}\r\nAuthorization: Bearer {}\r\n",
        server.address(),
        server.app_token
    )
}

fn hooks(server: &TestServer) -> String {
    format!("/v1/api/apps/{}/event-hooks", server.app_id)
}

fn contacts(server: &TestServer) -> String {
    format!("/v1/api/apps/{}/contacts/staff", server.app_id)
}

#[track_caller]
fn check(answer: &Answer, status: u16) {
    assert!(answer.header("x-request-id").is_some(), "{answer:?}");
    if status == 200 {
        answer.expect(200);
    } else {
        answer.refused(status, 6_451_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_strict_json_object_is_a_body() {
    let server = TestServer::start().await;
    let app = server.app();
    let good = r#"{"firstName":"Ana","lastName":"Reyes","email":"ana@example.com"}"#;

    for bad in [
        String::new(),
        "  ".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        good[..good.len() - 1].to_owned(),
        format!("{good}x"),
        format!("{good}{good}"),
        good.replace(r#""email""#, r#""firstName":"Eva","email""#),
        good.replace("Ana", "\\ud800"),
        good.replace("Ana", "A\\u0000"),
        good.replace("\"Ana\"", &format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))),
    ] {
        let answer = app.send(Method::POST, "/contacts/staff", bad.clone()).await;
        assert_eq!(answer.status, 400, "{bad}");
        check(&answer, 400);
    }
    let not_utf8 = [b"{\"firstName\":\"\xff\"".as_slice(), &good.as_bytes()[1..]].concat();
    check(&app.send(Method::POST, "/contacts/staff", not_utf8).await, 400);
    let form = app.with_header("content-type", "application/octet-stream");
    form.send(Method::POST, "/contacts/staff", good).await.expect(201);
    assert_eq!(app.get("/contacts/staffcontact-list").await.expect(200)["total"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn body_of_one_mebibyte_is_read_and_one_byte_more_is_413() {
    let server = TestServer::start().await;
    let padded = |bytes: usize| {
        let body = r#"{"firstName":"Ana","lastName":"Reyes","email":"ana@example.com"}"#;
        format!("{body}{}", " ".repeat(bytes - body.len()))
    };

    let over = server.app().send(Method::POST, "/contacts/staff", padded((1 << 20) + 1)).await;
    check(&over, 413);
    let at = server.app().send(Method::POST, "/contacts/staff", padded(1 << 20)).await;
    at.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_body_is_read_and_limited_too() {
    let server = TestServer::start().await;
    let line = format!("POST {} HTTP/1.1", contacts(&server));
    let chunked = |bytes: usize| {
        let body = r#"{"firstName":"Ana","lastName":"Reyes","email":"ana@example.com"}"#;
        let body = format!("{body}{}", " ".repeat(bytes - body.len()));
        let size = body.len();
        let head = head(&server, &line);
        format!("{head}Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n")
    };

    check(&raw(server.address(), chunked((1 << 20) + 1)).await, 413);
    raw(server.address(), chunked(300)).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn target_over_8_kibibytes_is_414_and_headers_over_16_are_431() {
    let server = TestServer::start().await;
    let hooks = hooks(&server);
    let target = |bytes: usize| format!("{hooks}?x={}", "y".repeat(bytes - hooks.len() - 3));
    let with_target =
        |bytes: usize| format!("{}\r\n", head(&server, &format!("GET {} HTTP/1.1", target(bytes))));
    let get = head(&server, &format!("GET {hooks} HTTP/1.1"));
    let with_header = |bytes: usize| format!("{get}X: {}\r\n\r\n", "v".repeat(bytes));

    check(&raw(server.address(), with_target(8 * 1024)).await, 200);
    check(&raw(server.address(), with_target(8 * 1024 + 1)).await, 414);
    check(&raw(server.address(), with_target(100 * 1024)).await, 414);
    check(&raw(server.address(), with_header(15 * 1024)).await, 200);
    check(&raw(server.address(), with_header(16 * 1024)).await, 431);
    check(&raw(server.address(), with_header(200 * 1024)).await, 431);
    let lines = |count: usize| format!("{get}{}\r\n", "X: y\r\n".repeat(count));
    check(&raw(server.address(), lines(98)).await, 200);
    check(&raw(server.address(), lines(99)).await, 431);
}

#[tokio::test(flavor = "multi_thread")]
async fn head_and_body_that_do_not_come_are_408() {
    let server = TestServer::start().await;
    let mut slow_head = RawConnection::open(server.address()).await;
    let mut slow_body = RawConnection::open(server.address()).await;
    let started = Instant::now();
    let head = head(&server, &format!("POST {} HTTP/1.1", contacts(&server)));

    slow_head.write(&head).await;
    slow_body.write(format!("{head}Content-Length: 100\r\n\r\n{{")).await;

    check(&slow_head.read_answer().await, 408);
    assert!(started.elapsed() > Duration::from_secs(9), "{:?}", started.elapsed());
    assert!(slow_head.is_closed().await);
    check(&slow_body.read_answer().await, 408);
    assert!(slow_body.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn head_that_trickles_is_408_although_bytes_keep_coming() {
    let server = TestServer::start().await;
    let mut connection = RawConnection::open(server.address()).await;
    let started = Instant::now();
    connection.write(format!("GET {} HTTP/1.1\r\nX: ", hooks(&server))).await;

    while started.elapsed() < Duration::from_secs(12) && connection.write("y").await {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    assert!(started.elapsed() > Duration::from_secs(9), "{:?}", started.elapsed());
    check(&connection.read_answer().await, 408);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_two_lengths_are_refused_and_end_the_connection() {
    let server = TestServer::start().await;
    let head = head(&server, &format!("POST {} HTTP/1.1", contacts(&server)));
    let smuggled = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", hooks(&server));

    for lengths in [
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 2, 3\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 2x\r\n",
    ] {
        let mut connection = RawConnection::open(server.address()).await;
        connection.write(format!("{head}{lengths}\r\n0\r\n\r\n{smuggled}")).await;

        let answer = connection.read_answer().await;
        assert_eq!(answer.status, 400, "{lengths}");
        check(&answer, 400);
        assert!(connection.is_closed().await, "{lengths}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_heads_are_400_with_a_request_id() {
    let server = TestServer::start().await;
    let hooks = hooks(&server);

    for bad in [
        format!("GET {hooks} HTTP/1.1\r\n\r\n"),
        format!("GET {hooks} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        format!("GET {hooks}\r\nHost: a\r\n\r\n"),
        format!("GET {hooks} HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n"),
        format!("GET {hooks} HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n"),
        format!("GET {hooks} HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n"),
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03\r\n\r\n".to_owned(),
    ] {
        let answer = raw(server.address(), &bad).await;
        assert_eq!(answer.status, 400, "{bad:?}");
        check(&answer, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_clients_and_offers_to_upgrade_are_answered_as_http() {
    let server = TestServer::start().await;
    let hooks = hooks(&server);
    let token = &server.app_token;

    let old = format!("GET {hooks} HTTP/1.0\r\nAuthorization: Bearer {token}\r\n\r\n");
    let mut connection = RawConnection::open(server.address()).await;
    connection.write(old).await;
    check(&connection.read_answer().await, 200);
    assert!(connection.is_closed().await);

    let upgrade =
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    let line = format!("POST {} HTTP/1.1", contacts(&server));
    let body = r#"{"firstName":"Ana","lastName":"Reyes","email":"ana@example.com"}"#;
    let head = head(&server, &line);
    let request = format!("{head}{upgrade}Content-Length: {}\r\n\r\n{body}", body.len());
    raw(server.address(), request).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_is_kept_for_further_requests_also_behind_a_refused_one() {
    let server = TestServer::start().await;
    let good = format!("{}\r\n", head(&server, &format!("GET {} HTTP/1.1", hooks(&server))));
    let unknown = format!("{}\r\n", head(&server, "GET /nothing HTTP/1.1"));
    let mut connection = RawConnection::open(server.address()).await;

    connection.write(&good).await;
    check(&connection.read_answer().await, 200);
    connection.write(&unknown).await;
    connection.read_answer().await.refused(404, 6_450_001);
    connection.write(&good).await;
    check(&connection.read_answer().await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn service_over_its_rate_is_told_when_to_come_back() {
    let server = TestServer::builder().flag("--requests-per-minute", "5").start().await;
    let service = server.admin().post("/services", json!({"name": "Other"})).await.expect(201);
    let apps = format!("/services/{}/apps", service["serviceId"].as_str().unwrap());
    let app = json!({"name": "App", "scopes": ["events"]});
    let app = server.admin().post(&apps, app).await.expect(201);
    let text = |field: &str| app[field].as_str().unwrap();
    let other = server.app_with(text("appID"), text("appToken"));

    for _ in 0..5 {
        server.app().get("/event-hooks").await.expect(200);
    }
    let over = server.app().get("/event-hooks").await;

    assert_eq!(over.refused(429, 6_451_010), "Too many requests");
    let seconds: u64 = over.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=13).contains(&seconds), "{seconds}");
    other.get("/event-hooks").await.expect(200);
    server.admin().get("/services").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_are_new_each_time_and_never_the_callers() {
    let server = TestServer::start().await;
    let app = server.app().with_header("x-request-id", "mine");

    let one = app.get("/event-hooks").await;
    let two = app.get("/event-hooks").await;

    assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
    assert_ne!(one.header("x-request-id"), Some("mine"));
}

#[tokio::test(flavor = "multi_thread")]
async fn origins_are_echoed_only_when_they_are_listed() {
    let listed = "https://app.example.com";
    let server = TestServer::builder().flag("--cors-origins", listed).start().await;
    let ask = async |origin: &str| {
        let answer = server.app().with_header("origin", origin).get("/event-hooks").await;
        answer.header("access-control-allow-origin").map(str::to_owned)
    };

    assert_eq!(ask(listed).await.as_deref(), Some(listed));
    assert_eq!(ask("https://app.example.com.evil.test").await, None);
    let admin = server.admin().with_header("origin", listed).get("/services").await;
    assert_eq!(admin.header("access-control-allow-origin"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_that_waits_for_100_continue_gets_it() {
    let server = TestServer::start().await;
    let mut connection = RawConnection::open(server.address()).await;
    let body = r#"{"firstName":"Ana","lastName":"Reyes","email":"ana@example.com"}"#;
    let head = head(&server, &format!("POST {} HTTP/1.1", contacts(&server)));

    connection
        .write(format!("{head}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len()))
        .await;
    assert!(connection.read_text(25).await.starts_with("HTTP/1.1 100 Continue"));
    connection.write(body).await;

    connection.read_answer().await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_idle_and_unfinished_connections_keep_nobody_out() {
    let server = TestServer::start().await;
    let mut open = Vec::new();
    for number in 0..500 {
        let mut connection = RawConnection::open(server.address()).await;
        if number % 2 == 0 {
            connection.write("GET /livez HTTP/1.1\r\nHost: ").await;
        }
        open.push(connection);
    }

    server.app().create_contact("Ana", "Reyes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_in_absolute_form_and_head_requests_are_understood() {
    let server = TestServer::start().await;
    let line = format!("GET http://{}{} HTTP/1.1", server.address(), hooks(&server));

    check(&raw(server.address(), format!("{}\r\n", head(&server, &line))).await, 200);

    let answer = server.app().send(Method::HEAD, "/event-hooks", "").await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let answer = server.app().send(Method::HEAD, "/contacts/staff", "").await;
    assert_eq!((answer.status, answer.body.len()), (405, 0));
}
