//! Nothing that must stay secret reaches a log, an error answer or, in the clear, the store.
//!
//! One long story with real staff collects every token, secret, signature, challenge, e-mail and name that it used, and
//! then looks for each of them. The search proves itself: what is meant to be there must be found.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};

use crate::harness::client::{Answer, Api, SUBSCRIPTION, raw};
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::TestServer;

const HISTORY: &str = include_str!("data/congress-excerpt.jsonl");
/// Changes of the history that are applied.
const CHANGES: usize = 60;
/// What is in a URL of a receiver and in its answers, and nobody's business.
const IN_QUERY: &str = "query-token-of-the-receiver-8b1f";
const IN_ANSWER: &str = "words-of-the-receivers-answer-77aa";

/// What the story used, by what it is.
#[derive(Default)]
struct Used {
    tokens: BTreeSet<String>,
    secrets: BTreeSet<String>,
    challenges: BTreeSet<String>,
    signatures: BTreeSet<String>,
    emails: BTreeSet<String>,
    names: BTreeSet<String>,
    errors: Vec<Answer>,
}

impl Used {
    /// Keeps an answer that must be an error.
    fn error(&mut self, answer: Answer) {
        assert!(answer.status >= 400, "{answer:?}");
        self.errors.push(answer);
    }

    fn person(&mut self, contact: &Value) {
        for field in ["firstName", "lastName", "displayName"] {
            // Initials and the like are in every text.
            let name = contact[field].as_str().filter(|name| name.len() >= 5);
            self.names.extend(name.map(str::to_owned));
        }
        self.emails.extend(contact["email"].as_str().map(str::to_owned));
    }

    async fn secret(&mut self, app: &Api) {
        let answer = app.get(&format!("{SUBSCRIPTION}/secret")).await.expect(200);
        self.secrets.insert(answer["secret"].as_str().unwrap().to_owned());
    }

    /// What no log may hold.
    fn private(&self) -> Vec<String> {
        let sets = [
            &self.tokens,
            &self.secrets,
            &self.challenges,
            &self.signatures,
            &self.emails,
            &self.names,
        ];
        let mut all: Vec<String> = sets.into_iter().flatten().cloned().collect();
        // A part is a leak as well.
        all.extend(self.tokens.iter().map(|token| token[..20].to_owned()));
        all.extend(self.secrets.iter().map(|secret| secret[6..26].to_owned()));
        all.extend([IN_QUERY, IN_ANSWER].map(str::to_owned));
        all
    }

    /// What the store may not hold in the clear.
    fn never_stored(&self) -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for token in &self.tokens {
            all.push(token.clone().into_bytes());
            if let Some((_, digits)) = token.split_once('_').filter(|(_, rest)| rest.len() == 64) {
                let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
                all.push((0..64).step_by(2).map(byte).collect());
            }
        }
        for secret in &self.secrets {
            let text = secret.strip_prefix("whsec_").unwrap();
            all.push(text.as_bytes().to_vec());
            all.push(STANDARD.decode(text).unwrap());
        }
        all
    }
}

fn holds(text: &[u8], needle: &[u8]) -> bool {
    assert!(needle.len() >= 5, "{needle:?} is in everything");
    text.windows(needle.len()).any(|part| part == needle)
}

/// The changes of real staff; the ids of those who are left.
async fn roll(app: &Api, used: &mut Used) -> Vec<String> {
    let mut ids = std::collections::BTreeMap::new();
    for line in HISTORY.lines().take(CHANGES) {
        let change: Value = serde_json::from_str(line).unwrap();
        let key = change["key"].as_str().unwrap().to_owned();
        let contact = &change["contact"];
        used.person(contact);
        let path = |ids: &std::collections::BTreeMap<String, String>| {
            format!("/contacts/staff/{}", ids[&key])
        };
        match change["op"].as_str().unwrap() {
            "create" => {
                let made = app.post("/contacts/staff", contact.clone()).await.expect(201);
                ids.insert(key.clone(), made["id"].as_str().unwrap().to_owned());
            }
            "edit" => drop(app.patch(&path(&ids), contact.clone()).await.expect(200)),
            _ => {
                app.delete(&path(&ids)).await.expect(200);
                ids.remove(&key);
            }
        }
    }
    ids.into_values().collect()
}

/// Everything that a caller can do wrong with data of others or of its own.
async fn mistakes(server: &TestServer, app: &Api, used: &mut Used) {
    let email = used.emails.first().unwrap().clone();
    let taken = json!({"firstName": "Marguerite", "lastName": "Yourcenar", "email": email});
    used.person(&taken);
    used.error(app.post("/contacts/staff", taken).await);
    let long = json!({"firstName": "Marguerite".repeat(20), "lastName": "Yourcenar", "email": "m@example.org"});
    used.error(app.post("/contacts/staff", long).await);
    let unknown = json!({"firstName": "Marguerite", "lastName": "Yourcenar", "email": "not an address of Yourcenar"});
    used.error(app.post("/contacts/staff", unknown).await);
    let cut = br#"{"firstName": "Marguerite", "lastName": "Yourcenar", "email": "yourcenar@exa"#;
    used.error(app.send(Method::POST, "/contacts/staff", cut.as_slice()).await);
    let twice = br#"{"firstName": "Marguerite", "firstName": "Yourcenar"}"#;
    used.error(app.send(Method::POST, "/contacts/staff", twice.as_slice()).await);
    let item =
        json!({"op": "create", "contact": {"firstName": "Marguerite", "lastName": "Yourcenar"}});
    let batch = app.post("/contacts/staff-batch", json!({"items": [item]})).await;
    assert!(batch.body.windows(5).any(|part| part == b"email"), "{batch:?}");
    used.errors.push(batch);

    let token = server.app_token.clone();
    let wrong = format!("rct_{}", "5eed".repeat(16));
    used.tokens.insert(wrong.clone());
    used.error(app.with_token(Some(&wrong)).get("/event-hooks").await);
    used.error(app.with_token(None).get(&format!("/event-hooks?token={token}")).await);
    used.error(app.get(&format!("/staff-contact-events?after={token}")).await);
    used.error(app.get(&format!("/contacts/staff/{token}")).await);
    // Where the reference's text names method and path as they were sent.
    used.error(app.get(&format!("/{token}/nowhere")).await);
    let method = Method::from_bytes(token.as_bytes()).unwrap();
    used.error(app.send(method, "/contacts/staff", "").await);
    used.error(server.anyone(Some(&token)).get("/nowhere").await);
    used.error(server.anyone(Some(&token)).get("/v1/admin/services").await);
    used.error(app.with_header("idempotency-key", "é").get("/nowhere").await);
    let key = app.with_header("idempotency-key", "the-same-key");
    let one =
        json!({"firstName": "Konstantin", "lastName": "Kavafis", "email": "kavafis@example.org"});
    let two = json!({"firstName": "Konstantin", "lastName": "Paparrigopoulos", "email": "kavafis@example.org"});
    used.person(&one);
    used.person(&two);
    key.post("/contacts/staff", one).await.expect(201);
    used.error(key.post("/contacts/staff", two).await);
    let head = format!("GET /v1/admin/services HTTP/1.1\r\nAuthorization: Basic {token}\r\n\r\n");
    used.error(raw(server.address(), head).await);
    used.error(raw(server.address(), format!("{token}\r\n\r\n")).await);
}

/// Subscribes, fails to subscribe, and lets deliveries fail, with secrets in every place that has room for them.
async fn deliveries(app: &Api, receiver: &Receiver, used: &mut Used) {
    let url = receiver.url_of(&format!("/hook?token={IN_QUERY}"));
    receiver.answer_challenges(|_| Reply::body(500, IN_ANSWER));
    used.error(app.subscribe(true, &url).await);
    receiver.answer_challenges(|seen| {
        Reply::body(200, format!("{{\"{IN_ANSWER}\":{}}}", seen.challenge().len()))
    });
    used.error(app.subscribe(true, &url).await);
    used.error(app.subscribe(true, &format!("https://user:{IN_QUERY}@example.com/")).await);
    used.error(app.subscribe(true, &format!("https://127.0.0.1.invalid/?{IN_QUERY}")).await);
    receiver.answer_challenges(|seen| Reply::consent(&seen.challenge()));
    app.subscribe(true, &url).await.expect(200);
    let parity = |seen: &crate::harness::receiver::Seen| seen.sequence().is_multiple_of(3);
    receiver.answer(move |seen| {
        let first = seen.header("rollcall-attempt") == "1";
        if first && parity(seen) { Reply::body(500, IN_ANSWER) } else { Reply::status(200) }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_secret_name_or_address_is_in_a_log_an_error_or_in_the_clear_in_the_store() {
    for format in ["json", "text"] {
        let mut server = TestServer::builder()
            .serve()
            .flag("--allow-targets", "127.0.0.0/8")
            .flag("--allow-http", "true")
            .flag("--requests-per-minute", "0")
            .flag("--verifications-per-app", "0")
            .flag("--verifications-per-host", "0")
            .flag("--retry-schedule", "1s,1s,1s")
            .flag("--log", "trace")
            .flag("--log-format", format)
            .start()
            .await;
        let receiver = Receiver::start().await;
        let app = server.app();
        let mut used = Used::default();
        used.tokens.extend([server.app_token.clone(), server.admin_token.clone()]);

        deliveries(&app, &receiver, &mut used).await;
        used.secret(&app).await;
        let ids = roll(&app, &mut used).await;
        mistakes(&server, &app, &mut used).await;
        app.wait_until_idle().await;
        let rotated = app.post(&format!("{SUBSCRIPTION}/secret/rotate"), json!({})).await;
        used.secrets.insert(rotated.expect(200)["secret"].as_str().unwrap().to_owned());
        let (other, token) = server.create_app(&["events"]).await;
        used.tokens.insert(token);
        let path = format!("/services/{}/apps/{other}/token/rotate", server.service_id);
        let rotated = server.admin().post(&path, json!({"overlap": 0})).await.expect(200);
        used.tokens.insert(rotated["appToken"].as_str().unwrap().to_owned());
        app.delete(&format!("/contacts/staff/{}", ids[0])).await.expect(200);
        app.wait_until_idle().await;
        app.post(&format!("{SUBSCRIPTION}/replay"), json!({"after": 0})).await.expect(200);
        app.wait_until_idle().await;
        server.terminate(Duration::from_secs(20)).await.expect("it must end");
        server.restart().await;
        server.app().get("/event-hooks").await.expect(200);
        server.kill();
        for seen in receiver.challenges() {
            used.challenges.insert(seen.challenge());
        }
        for seen in receiver.notifications() {
            for signature in seen.header("webhook-signature").split(' ') {
                used.signatures.insert(signature.strip_prefix("v1,").unwrap().to_owned());
            }
        }

        assert!(used.names.len() > 50 && used.emails.len() > 30, "{:?}", used.names);
        assert!(used.signatures.len() > 50 && used.challenges.len() >= 3 && used.errors.len() > 15);
        check_log(&server, &used);
        check_errors(&used);
        check_store(&server.data_dir(), &used, &server.service_id);
    }
}

fn check_log(server: &TestServer, used: &Used) {
    let log = server.log();
    assert!(holds(log.as_bytes(), server.service_id.as_bytes()), "the search finds nothing");
    assert!(log.contains("TRACE") || log.contains("DEBUG"));
    for private in used.private() {
        let line = log.lines().find(|line| holds(line.as_bytes(), private.as_bytes()));
        assert!(line.is_none(), "{private} is in the log: {line:?}");
    }
}

/// An error tells no secret, and of names and addresses at most nothing: not even those that the caller sent.
fn check_errors(used: &Used) {
    for answer in &used.errors {
        let headers = format!("{:?}", answer.headers);
        for private in used.private() {
            let leaks = holds(&answer.body, private.as_bytes()) || headers.contains(&private);
            assert!(!leaks, "{private} is in an error: {answer:?}");
        }
    }
}

fn check_store(data_dir: &Path, used: &Used, service: &str) {
    let mut files = 0;
    let mut with_service = 0;
    let raw_service: Vec<u8> = uuid_bytes(service);
    for entry in std::fs::read_dir(data_dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() == "secret.key" {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        files += 1;
        with_service += usize::from(holds(&bytes, &raw_service));
        for secret in used.never_stored() {
            assert!(!holds(&bytes, &secret), "a token or secret is in {}", path.display());
        }
    }
    assert!(files >= 2 && with_service >= 1, "{files} files, the service in {with_service}");
}

/// The 16 bytes of an identifier's text.
fn uuid_bytes(text: &str) -> Vec<u8> {
    let digits: String = text.rsplit('_').next().unwrap().replace('-', "");
    assert_eq!(digits.len(), 32, "{text}");
    (0..32).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}
