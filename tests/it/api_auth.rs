//! Who may call: every route of the API with no token, a bad token, another app's token and too small a token.

use std::collections::BTreeSet;

use http::Method;
use serde_json::json;

use crate::harness::server::TestServer;

/// Every route of an app, with the scope that it needs.
const APP_ROUTES: [(&str, &str, &str); 17] = [
    ("PATCH", "/staff-contact-event-sub", "events"),
    ("GET", "/staff-contact-event-sub", "events"),
    ("POST", "/staff-contact-event-sub/verify", "events"),
    ("GET", "/staff-contact-event-sub/deliveries", "events"),
    ("GET", "/staff-contact-event-sub/deliveries/{sequence}", "events"),
    ("POST", "/staff-contact-event-sub/deliveries/{sequence}/redeliver", "events"),
    ("POST", "/staff-contact-event-sub/replay", "events"),
    ("GET", "/staff-contact-event-sub/secret", "events"),
    ("POST", "/staff-contact-event-sub/secret/rotate", "events"),
    ("GET", "/staff-contact-events", "events"),
    ("GET", "/event-hooks", "events"),
    ("GET", "/contacts/staffcontact-list", "directory:read"),
    ("POST", "/contacts/staff", "directory:write"),
    ("GET", "/contacts/staff/{id}", "directory:read"),
    ("PATCH", "/contacts/staff/{id}", "directory:write"),
    ("DELETE", "/contacts/staff/{id}", "directory:write"),
    ("POST", "/contacts/staff-batch", "directory:write"),
];

/// Every route of the administration.
const ADMIN_ROUTES: [(&str, &str); 7] = [
    ("POST", "/services"),
    ("GET", "/services"),
    ("DELETE", "/services/{serviceId}"),
    ("POST", "/services/{serviceId}/apps"),
    ("GET", "/services/{serviceId}/apps"),
    ("DELETE", "/services/{serviceId}/apps/{appID}"),
    ("POST", "/services/{serviceId}/apps/{appID}/token/rotate"),
];

const OPEN_ROUTES: [&str; 2] = ["/livez", "/readyz"];

const NO_CONTACT: &str = "sc_00000000000000000000000000000000";
const NO_APP: &str = "app_00000000000000000000000000000000";

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

fn filled(server: &TestServer, path: &str) -> String {
    path.replace("{id}", NO_CONTACT)
        .replace("{sequence}", "1")
        .replace("{serviceId}", &server.service_id)
        .replace("{appID}", &server.app_id)
}

/// All routes as whole paths.
fn all_routes(server: &TestServer) -> Vec<(Method, String)> {
    let of_app = APP_ROUTES.iter().map(|(name, path, _)| {
        (method(name), format!("/v1/api/apps/{}{}", server.app_id, filled(server, path)))
    });
    let of_admin = ADMIN_ROUTES
        .iter()
        .map(|(name, path)| (method(name), format!("/v1/admin{}", filled(server, path))));
    of_app.chain(of_admin).collect()
}

#[test]
fn every_path_of_the_route_table_is_tested_here() {
    let router = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/router.rs"));
    let is_path = |text: &&str| text.starts_with('/') && !text.contains([' ', '\n']);
    let written: BTreeSet<&str> = router.split('"').filter(is_path).collect();

    let tested: BTreeSet<String> = APP_ROUTES
        .iter()
        .map(|(_, path, _)| format!("/v1/api/apps/{{appID}}{path}"))
        .chain(ADMIN_ROUTES.iter().map(|(_, path)| format!("/v1/admin{path}")))
        .chain(OPEN_ROUTES.iter().map(|path| (*path).to_owned()))
        .collect();

    assert_eq!(written, tested.iter().map(String::as_str).collect());
    let rows = router.split_whitespace().collect::<String>().matches("(M::").count();
    assert_eq!(rows, APP_ROUTES.len() + ADMIN_ROUTES.len() + OPEN_ROUTES.len(), "rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_needs_a_good_token() {
    let server = TestServer::start().await;
    let longer = format!("{}0", server.app_token);
    let unknown = format!("rct_{}", "0".repeat(64));

    for (method, path) in all_routes(&server) {
        for token in [None, Some("nonsense"), Some(&longer), Some(&unknown)] {
            let anyone = server.anyone(token.map(std::convert::AsRef::as_ref));
            let answer = anyone.send(method.clone(), &path, "{}").await;

            assert_eq!(answer.refused(401, 6_452_000), "Invalid token", "{method} {path}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_authorization_is_no_token_and_the_scheme_has_no_case() {
    let server = TestServer::start().await;
    let path = format!("/v1/api/apps/{}/event-hooks", server.app_id);
    let token = &server.app_token;
    let ask = async |values: &[String]| {
        let mut anyone = server.anyone(None);
        for value in values {
            anyone = anyone.with_header("authorization", value);
        }
        anyone.get(&path).await.status
    };

    assert_eq!(ask(&[format!("Bearer {token}")]).await, 200);
    assert_eq!(ask(&[format!("bearer {token}")]).await, 200);
    assert_eq!(ask(std::slice::from_ref(token)).await, 401);
    assert_eq!(ask(&[format!("Basic {token}")]).await, 401);
    assert_eq!(ask(&[format!("Bearer {token} x")]).await, 401);
    assert_eq!(ask(&["Bearer".to_owned()]).await, 401);
    assert_eq!(ask(&[format!("Bearer {token}"), format!("Bearer {token}")]).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_and_app_tokens_do_not_open_each_others_routes() {
    let server = TestServer::start().await;

    let app_as_admin = server.admin().with_token(Some(&server.app_token)).get("/services").await;
    let admin_as_app = server.app().with_token(Some(&server.admin_token)).get("/event-hooks").await;

    app_as_admin.refused(401, 6_452_000);
    admin_as_app.refused(401, 6_452_000);
    server.admin().get("/services").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_app_and_an_app_that_does_not_exist_get_one_answer() {
    let server = TestServer::start().await;
    let (other, _) = server.create_app(&["events", "directory:read", "directory:write"]).await;

    for (name, path, _) in APP_ROUTES {
        for app in [other.as_str(), NO_APP, "x"] {
            let api = server.app_with(app, &server.app_token);
            let answer = api.send(method(name), &filled(&server, path), "{}").await;

            assert_eq!(answer.refused(403, 6_452_001), "Invalid appID", "{name} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_needs_its_scope() {
    let server = TestServer::start().await;

    for scope in ["events", "directory:read", "directory:write"] {
        let (app, token) = server.create_app(&[scope]).await;
        let api = server.app_with(&app, &token);
        for (name, path, needed) in APP_ROUTES {
            let answer = api.send(method(name), &filled(&server, path), "").await;

            if needed == scope {
                assert_ne!(answer.status, 403, "{name} {path} {answer:?}");
            } else {
                let message = answer.refused(403, 6_452_002);
                assert!(message.contains(needed), "{name} {path}: {message}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_judged_before_app_scope_and_body_in_this_order() {
    let server = TestServer::start().await;
    let (app, token) = server.create_app(&["events"]).await;
    let of_app = server.app_with(&app, &token);

    of_app
        .with_token(None)
        .send(Method::POST, "/contacts/staff", "{")
        .await
        .refused(401, 6_452_000);
    let elsewhere = server.app_with(NO_APP, &token);
    elsewhere.send(Method::POST, "/contacts/staff", "{").await.refused(403, 6_452_001);
    of_app.send(Method::POST, "/contacts/staff", "{").await.refused(403, 6_452_002);
    let allowed = server.app();
    allowed.send(Method::POST, "/contacts/staff", "{").await.refused(400, 6_451_000);
    allowed
        .patch(&format!("/contacts/staff/{NO_CONTACT}"), json!({"x": 1}))
        .await
        .refused(400, 6_451_000);
    allowed
        .patch(&format!("/contacts/staff/{NO_CONTACT}"), json!({}))
        .await
        .refused(404, 6_451_011);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_path_is_named_with_its_method() {
    let server = TestServer::start().await;
    let app_path = format!("/v1/api/apps/{}/nothing", server.app_id);
    let deeper = format!("/v1/api/apps/{}/event-hooks/", server.app_id);

    for (method, path) in [
        (Method::GET, "/"),
        (Method::POST, "/v1"),
        (Method::PATCH, app_path.as_str()),
        (Method::GET, deeper.as_str()),
        (Method::DELETE, "/v1/admin/nothing"),
    ] {
        for token in [None, Some(server.app_token.as_str())] {
            let answer = server.anyone(token).send(method.clone(), path, "").await;

            let message = answer.refused(404, 6_450_001);
            assert_eq!(message, format!("method not found, method: {method} url: {path}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_method_is_answered_405_with_the_right_ones() {
    let server = TestServer::start().await;
    let app = format!("/v1/api/apps/{}", server.app_id);

    for (wrong, path, right) in [
        (Method::POST, format!("{app}/staff-contact-event-sub"), "PATCH, GET"),
        (Method::DELETE, format!("{app}/staff-contact-event-sub"), "PATCH, GET"),
        (Method::PUT, format!("{app}/contacts/staff/{NO_CONTACT}"), "GET, PATCH, DELETE"),
        (Method::GET, format!("{app}/contacts/staff"), "POST"),
        (Method::PATCH, "/v1/admin/services".to_owned(), "POST, GET"),
        (Method::POST, "/livez".to_owned(), "GET"),
    ] {
        let answer = server.anyone(None).send(wrong.clone(), &path, "").await;

        let message = answer.refused(405, 6_450_001);
        assert_eq!(message, format!("method not found, method: {wrong} url: {path}"));
        let allow: BTreeSet<&str> = answer.header("allow").unwrap().split(", ").collect();
        let right: BTreeSet<&str> = right.split(", ").collect();
        assert!(right.is_subset(&allow), "{wrong} {path}: {allow:?}");
        assert!(!allow.contains(wrong.as_str()), "{wrong} {path}: {allow:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_open_to_everyone() {
    let server = TestServer::start().await;

    for path in OPEN_ROUTES {
        server.anyone(None).get(path).await.expect(200);
    }
}
