//! Requests without a good token are limited for each address that they come from, and nobody else is.

use crate::harness::client::{Answer, Api};
use crate::harness::server::TestServer;

/// A server that lets each address fail so often in a minute; one more minute is longer than any of these tests.
async fn server(per_minute: u32, flags: &[(&str, &str)]) -> TestServer {
    let limit = per_minute.to_string();
    let mut builder = TestServer::builder().flag("--failed-tokens-per-minute", &limit);
    for (name, value) in flags {
        builder = builder.flag(name, value);
    }
    builder.start().await
}

fn hooks(server: &TestServer) -> String {
    format!("/v1/api/apps/{}/event-hooks", server.app_id)
}

async fn ask(server: &TestServer, api: Api) -> Answer {
    api.get(&hooks(server)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_tokens_of_every_kind_are_limited_and_good_ones_are_not_affected() {
    let server = server(4, &[]).await;
    let unknown = format!("rct_{}", "0".repeat(64));

    ask(&server, server.anyone(None)).await.refused(401, 6_452_000);
    let malformed = server.anyone(None).with_header("authorization", "Basic x");
    ask(&server, malformed).await.refused(401, 6_452_000);
    ask(&server, server.anyone(Some(&unknown))).await.refused(401, 6_452_000);
    let admin = server.anyone(Some(&unknown)).get("/v1/admin/services").await;
    admin.refused(401, 6_452_000);

    for (token, path) in [
        (None, hooks(&server)),
        (Some(unknown.as_str()), hooks(&server)),
        (None, "/v1/admin/services".to_owned()),
        (Some(&unknown), "/v1/admin/services".to_owned()),
    ] {
        let over = server.anyone(token).get(&path).await;
        assert_eq!(over.refused(429, 6_451_010), "Too many requests");
        let seconds: u64 = over.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=16).contains(&seconds), "{seconds}");
        assert_eq!(over.header("www-authenticate"), None);
    }
    server.app().get("/event-hooks").await.expect(200);
    server.admin().get("/services").await.expect(200);
    server.anyone(None).get("/livez").await.expect(200);
    server.anyone(None).get("/nothing").await.refused(404, 6_450_001);
    // A good token for another app is a 403, which is not counted.
    let other = format!("/v1/api/apps/app_{}/event-hooks", "0".repeat(32));
    server.anyone(Some(&server.app_token)).get(&other).await.refused(403, 6_452_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_behind_a_trusted_proxy_are_told_apart() {
    let server = server(1, &[("--trusted-proxies", "127.0.0.0/8,10.0.0.0/8")]).await;
    let from = |callers: &str| server.anyone(None).with_header("x-forwarded-for", callers);

    ask(&server, from("203.0.113.1")).await.refused(401, 6_452_000);
    ask(&server, from("203.0.113.1, 10.1.2.3")).await.refused(429, 6_451_010);
    ask(&server, from("203.0.113.2, 203.0.113.1")).await.refused(429, 6_451_010);
    ask(&server, from("203.0.113.2")).await.refused(401, 6_452_000);
    ask(&server, from("2001:db8::1")).await.refused(401, 6_452_000);
    ask(&server, from("2001:db8::2")).await.refused(429, 6_451_010);
    ask(&server, from("2001:db8:0:1::1")).await.refused(401, 6_452_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_trusted_proxy_cannot_choose_an_address() {
    let server = server(1, &[("--trusted-proxies", "10.0.0.0/8")]).await;
    let from = |caller: &str| server.anyone(None).with_header("x-forwarded-for", caller);

    ask(&server, from("203.0.113.1")).await.refused(401, 6_452_000);
    ask(&server, from("203.0.113.2")).await.refused(429, 6_451_010);
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_is_off_as_in_dev_and_serve_has_a_limit_of_its_own() {
    let off = TestServer::start().await;
    for _ in 0..100 {
        ask(&off, off.anyone(None)).await.refused(401, 6_452_000);
    }

    let serve = TestServer::builder().serve().start().await;
    for _ in 0..60 {
        ask(&serve, serve.anyone(None)).await.refused(401, 6_452_000);
    }
    // One more has room each second, so on a slow machine a few more may pass.
    let mut statuses = Vec::new();
    for _ in 0..60 {
        statuses.push(ask(&serve, serve.anyone(None)).await.status);
    }
    assert!(statuses.contains(&429), "{statuses:?}");
}
