//! The router behind the listener, with real sockets and the real store: what a caller sees on the wire.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::delivery::engine::{self, Engine};
use crate::delivery::lane;
use crate::delivery::sender::{self, Sender};
use crate::delivery::target_guard::{self, SystemResolver, TargetGuard};
use crate::directory::Directory;
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::tenancy::Token;
use crate::feed::Feed;
use crate::http::auth::AdminSetting;
use crate::http::places::Places;
use crate::http::{self, Http, listener};
use crate::store::sqlite::Embedded;
use crate::store::sqlite::retention::Retention;
use crate::subscriptions::verification_limits::VerificationLimits;
use crate::subscriptions::{self, Subscriptions};

const ADMIN: &str = "an-admin-token-of-at-least-32-characters";

struct Server {
    address: std::net::SocketAddr,
    directory: PathBuf,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

impl Server {
    async fn start(name: &str) -> Self {
        let directory =
            std::env::temp_dir().join(format!("rollcall-api-{}-{name}", std::process::id()));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let store =
            Embedded::open(&directory, Arc::clone(&clock), Retention::default()).unwrap().store;
        let resolver = SystemResolver::new();
        let guard = Arc::new(TargetGuard::new(target_guard::Settings::default(), resolver));
        let sender = Sender::new(&sender::Settings::default(), guard, Arc::clone(&clock));
        let sender = Arc::new(sender.unwrap());
        let epoch = Arc::new(AtomicU64::new(0));
        let engine = Engine::start(
            store.clone(),
            Arc::clone(&sender),
            Arc::clone(&clock),
            engine::Settings { lane: lane::Settings::default(), slots: 64 },
        )
        .await
        .unwrap();
        let feed = Feed::new(Arc::clone(&store.read), CancellationToken::new());
        store.write.queue().add_listener(feed.listener());
        let uses = store.write.clone();
        let state = super::State {
            http: Arc::new(Http::new(
                &http_settings(),
                store.read.clone(),
                clock.clone(),
                epoch,
                Arc::new(move |token| uses.note_token_use(token)),
            )),
            read: store.read.clone(),
            directory: Directory::new(store.write.clone()),
            subscriptions: Subscriptions {
                read: store.read,
                write: store.write,
                sender,
                engine: Arc::new(engine),
                clock: Arc::clone(&clock),
                limits: VerificationLimits::new(subscriptions::Settings::default()),
            },
            feed,
            clock,
        };
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = super::Api::new(Arc::new(state));
        let places = Arc::new(Places::new(0, Vec::new()));
        tokio::spawn(listener::serve(
            socket,
            None,
            places,
            router,
            stop.clone(),
            TaskTracker::new(),
        ));
        Self { address, directory, stop }
    }

    /// Sends bytes on a connection of their own and reads until the server closes.
    async fn send(&self, request: &str) -> String {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn call(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    /// A service with an app of all scopes: the app's path and its header.
    async fn app(&self) -> (String, String) {
        let admin = format!("Authorization: Bearer {ADMIN}\r\n");
        let made = self.call("POST", "/v1/admin/services", &admin, r#"{"name":"Acme"}"#).await;
        let service = field(&made, "serviceId");
        let made = self
            .call(
                "POST",
                &format!("/v1/admin/services/{service}/apps"),
                &admin,
                r#"{"name":"crm","scopes":["events","directory:read","directory:write"]}"#,
            )
            .await;
        let (app, token) = (field(&made, "appID"), field(&made, "appToken"));
        (format!("/v1/api/apps/{app}"), format!("Authorization: Bearer {token}\r\n"))
    }
}

fn http_settings() -> http::Settings {
    http::Settings {
        admin_token: Some(AdminSetting {
            token: Token::from_text(ADMIN),
            name: AdminSetting::VALUE,
        }),
        cors_origins: vec!["https://page.example".to_owned()],
        ..http::Settings::default()
    }
}

fn field(answer: &str, name: &str) -> String {
    let (_, rest) =
        answer.split_once(&format!("\"{name}\":\"")).unwrap_or_else(|| panic!("{answer}"));
    rest.split('"').next().unwrap_or_default().to_owned()
}

#[track_caller]
fn check(answer: &str, status: &str, code: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.contains(&format!("{{\"code\":{code},")), "{answer}");
    assert_eq!(answer.matches("x-request-id: req_").count(), 1, "{answer}");
}

#[tokio::test]
async fn heads_that_hyper_refuses_are_answered_in_our_envelope() {
    let server = Server::start("heads").await;
    let long = "x".repeat(20_000);
    let huge = "x".repeat(200_000);

    check(&server.send("GARBAGE\r\n\r\n").await, "400", "6451000");
    check(&server.send("GET /livez HTTP/1.1\r\nHost : a\r\n\r\n").await, "400", "6451000");
    check(&server.send("GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n").await, "400", "6451000");
    for two in [
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        "Content-Length: 2, 2\r\n\r\n{}",
        "Content-Length: +2\r\n\r\n{}",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: identity\r\n\r\n{}",
        "Host: b\r\nConnection: close\r\n\r\n",
    ] {
        let sent = format!("POST /livez HTTP/1.1\r\nHost: a\r\n{two}");
        let answer = server.send(&sent).await;
        check(&answer, "400", "6451000");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{sent}: {answer}");
    }
    for line in [&long, &huge] {
        let uri = format!("GET /{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        check(&server.send(&uri).await, "414", "6451000");
        let header =
            format!("GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: {line}\r\n\r\n");
        check(&server.send(&header).await, "431", "6451000");
    }
    let many = "A: b\r\n".repeat(150);
    check(
        &server.send(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")).await,
        "431",
        "6451000",
    );
}

#[tokio::test]
async fn old_and_upgrading_callers_are_answered() {
    let server = Server::start("callers").await;

    let old = server.send("GET /livez HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 "), "{old}");
    let upgrade = "GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    check(&server.send(upgrade).await, "200", "200");
    let two = "GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /none HTTP/1.1\r\nHost: a\r\n\r\n";
    let answers = server.send(two).await;
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 1, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
    assert!(answers.contains("connection: close\r\n"), "{answers}");
    let chunked = "POST /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let answers = server.send(&chunked.repeat(2)).await;
    assert!(answers.starts_with("HTTP/1.1 405 "), "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
}

#[tokio::test]
async fn chunked_bodies_are_read_and_keep_the_connection() {
    let server = Server::start("chunked").await;
    let one = format!(
        "POST /v1/admin/services HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ADMIN}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{{\"nam\r\n7\r\ne\":\"x\"}}\r\n0\r\n\r\n"
    );
    let mut socket = TcpStream::connect(server.address).await.unwrap();

    for _ in 0..2 {
        socket.write_all(one.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let count = socket.read(&mut answer).await.unwrap();
        check(std::str::from_utf8(&answer[..count]).unwrap(), "201", "201");
    }
}

#[tokio::test]
async fn judgement_follows_the_order_of_the_contract() {
    let server = Server::start("order").await;
    let (app, token) = server.app().await;
    let sub = format!("{app}/staff-contact-event-sub");

    let unknown = server.call("PATCH", "/v1/api/none?x=1", "", "").await;
    check(&unknown, "404", "6450001");
    assert!(unknown.contains("method not found, method: PATCH url: /v1/api/none\""), "{unknown}");
    let wrong = server.call("PUT", &sub, "", "").await;
    check(&wrong, "405", "6450001");
    assert!(wrong.contains("allow: PATCH, GET, HEAD\r\n"), "{wrong}");
    let nobody = server.call("PATCH", &sub, "", "").await;
    check(&nobody, "401", "6452000");
    assert!(nobody.contains("www-authenticate: Bearer\r\n"), "{nobody}");
    let other = "/v1/api/apps/app_1/staff-contact-event-sub";
    check(&server.call("PATCH", other, &token, "").await, "403", "6452001");
    check(&server.call("PATCH", &sub, &token, "").await, "400", "6451000");
    check(&server.call("GET", &sub, &token, "").await, "200", "200");
    let big = format!(
        "PATCH {sub} HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\nConnection: close\r\n\r\n{{"
    );
    check(&server.send(&big).await, "413", "6451000");
}

#[tokio::test]
async fn a_contact_lives_through_its_whole_life() {
    let server = Server::start("life").await;
    let (app, token) = server.app().await;
    let contacts = format!("{app}/contacts/staff");
    let ana = r#"{"firstName":"Ana","lastName":"Ng","email":"ana@example.org"}"#;
    let keyed = format!("{token}Idempotency-Key: k1\r\n");

    let made = server.call("POST", &contacts, &keyed, ana).await;
    check(&made, "201", "201");
    assert!(made.contains("etag: \"1\"\r\n"), "{made}");
    let again = server.call("POST", &contacts, &keyed, ana).await;
    assert_eq!(made.split_once("\r\n\r\n").unwrap().1, again.split_once("\r\n\r\n").unwrap().1);
    let other = ana.replace("Ng", "Oh");
    check(&server.call("POST", &contacts, &keyed, &other).await, "422", "6451000");
    check(&server.call("POST", &contacts, &token, ana).await, "409", "6451000");
    let one = format!("{contacts}/{}", field(&made, "id"));
    let edit = r#"{"jobTitle":"Boss"}"#;
    let stale = format!("{token}If-Match: \"7\"\r\n");
    check(&server.call("PATCH", &one, &stale, edit).await, "412", "6451000");
    let edited = server.call("PATCH", &one, &format!("{token}If-Match: \"1\"\r\n"), edit).await;
    check(&edited, "200", "200");
    assert!(edited.contains("etag: \"2\"\r\n"), "{edited}");
    let list = format!("{app}/contacts/staffcontact-list?fullName=ana%20n");
    let listed = server.call("GET", &list, &token, "").await;
    assert!(listed.contains(r#"{"code":200,"result":{"total":1,"items":["#), "{listed}");
    assert!(listed.contains("rollcall-sequence: 2\r\n"), "{listed}");
    check(&server.call("DELETE", &one, &token, "").await, "200", "200");
    check(&server.call("DELETE", &one, &token, "").await, "404", "6451011");
    check(&server.call("GET", &format!("{contacts}/7"), &token, "").await, "400", "6451000");
}

#[tokio::test]
async fn unsubscribing_needs_no_challenge_and_a_refused_url_names_its_step() {
    let server = Server::start("subscribe").await;
    let (app, token) = server.app().await;
    let sub = format!("{app}/staff-contact-event-sub");

    let off = server.call("PATCH", &sub, &token, r#"{"enabled":false,"url":"x","more":1}"#).await;
    assert!(off.ends_with(r#"{"code":200,"result":{"enabled":false,"url":"x"}}"#), "{off}");
    let on = r#"{"enabled":true,"url":"https://127.0.0.1/"}"#;
    let refused = server.call("PATCH", &sub, &token, on).await;
    check(&refused, "400", "6451000");
    assert!(refused.contains("address"), "{refused}");
    let hooks = server.call("GET", &format!("{app}/event-hooks"), &token, "").await;
    assert!(hooks.contains(r#"{"items":[{"type":"staff-contact-event-sub","enabled":false,"#));
    let secret = server.call("GET", &format!("{sub}/secret"), &token, "").await;
    assert!(secret.contains(r#"{"secret":"whsec_"#), "{secret}");
}

#[tokio::test]
async fn a_page_may_ask_first() {
    let server = Server::start("cors").await;
    let headers = "Origin: https://page.example\r\nAccess-Control-Request-Method: PATCH\r\n";

    let asked = server.call("OPTIONS", "/v1/api/apps/x/event-hooks", headers, "").await;

    assert!(asked.starts_with("HTTP/1.1 204 "), "{asked}");
    assert!(asked.contains("access-control-allow-origin: https://page.example\r\n"), "{asked}");
}
