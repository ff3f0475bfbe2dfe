//! Whether a look-up tells that an id exists in another service: the same answer, and the same time.
//!
//! Two services with some thousand contacts each. An app of one looks up, over one keep-alive connection and by turns,
//! ids that exist in the other, ids next to those that exist nowhere, and ids that are wholly random. Every answer must
//! be the same but for what belongs to the request.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::helper::Helper;
use crate::measure::quantile;
use crate::report::Figures;
use crate::server::Server;

/// Contacts of each service.
const CONTACTS: usize = 4_000;
/// Changes in a batch: as many as the API takes.
const BATCH: usize = 500;
/// Look-ups of each kind that are measured; a tenth in a quick run.
const LOOKUPS: usize = 20_000;
/// Look-ups of each kind before that: caches are filled and the processor runs at its speed.
const WARM_UP: usize = 2_000;
/// Kinds of ids.
const KINDS: usize = 3;
/// Headers that belong to one request and not to its answer.
const OF_REQUEST: [&str; 2] = ["x-request-id", "date"];

/// One keep-alive connection that blocks: nothing but it and the server takes part.
struct Connection {
    stream: TcpStream,
    address: String,
    received: Vec<u8>,
}

/// Status line and headers in their order, without those of the request, and the body.
type Seen = (Vec<String>, Vec<u8>);

impl Connection {
    fn open(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, address: address.to_owned(), received: Vec::new() })
    }

    fn request(&self, method: &str, path: &str, token: &str, body: &str) -> String {
        let (address, length) = (&self.address, body.len());
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }

    /// Sends and reads one answer; gives where its body begins in what was received.
    fn exchange(&mut self, request: &str) -> anyhow::Result<usize> {
        self.stream.write_all(request.as_bytes())?;
        self.received.clear();
        let mut part = [0; 16 * 1024];
        loop {
            let count = self.stream.read(&mut part)?;
            ensure!(count > 0, "the server closed the connection");
            self.received.extend_from_slice(&part[..count]);
            let end = self.received.windows(4).position(|window| window == b"\r\n\r\n");
            let Some(end) = end.map(|at| at + 4) else { continue };
            let head = std::str::from_utf8(&self.received[..end])?;
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .context("an answer without its length")?
                .parse()?;
            if self.received.len() >= end + length {
                return Ok(end);
            }
        }
    }

    fn ask(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        body: &Value,
    ) -> anyhow::Result<Value> {
        let request = self.request(method, path, token, &body.to_string());
        let end = self.exchange(&request)?;
        let text = String::from_utf8_lossy(&self.received);
        ensure!(text.starts_with("HTTP/1.1 2"), "{method} {path}: {text}");
        Ok(serde_json::from_slice(&self.received[end..])?)
    }

    fn seen(&self, end: usize) -> Seen {
        let head = String::from_utf8_lossy(&self.received[..end]).into_owned();
        let is_of_request =
            |line: &&str| OF_REQUEST.iter().any(|name| line.starts_with(&format!("{name}:")));
        let lines = head.lines().filter(|line| !is_of_request(line)).map(str::to_owned);
        (lines.collect(), self.received[end..].to_vec())
    }
}

/// An app with a service of its own, full of contacts.
struct Tenant {
    app: String,
    token: String,
    contacts: Vec<String>,
}

fn found(connection: &mut Connection, admin: &str, name: &str) -> anyhow::Result<Tenant> {
    let text = |made: &Value, field: &str| {
        made["result"][field].as_str().map(str::to_owned).context("an answer lacks a field")
    };
    let made = connection.ask("POST", "/v1/admin/services", admin, &json!({"name": name}))?;
    let path = format!("/v1/admin/services/{}/apps", text(&made, "serviceId")?);
    let scopes = ["directory:read", "directory:write"];
    let made = connection.ask("POST", &path, admin, &json!({"name": name, "scopes": scopes}))?;
    let (app, token) = (text(&made, "appID")?, text(&made, "appToken")?);
    let mut contacts = Vec::with_capacity(CONTACTS);
    for batch in 0..CONTACTS / BATCH {
        let item = |number: usize| {
            let email = format!("{batch}.{number}@example.com");
            json!({"op": "create", "contact": {"firstName": "Ana", "lastName": "Ng", "email": email}})
        };
        let items: Vec<Value> = (0..BATCH).map(item).collect();
        let path = format!("/v1/api/apps/{app}/contacts/staff-batch");
        let made = connection.ask("POST", &path, &token, &json!({"items": items}))?;
        let ids = made["result"]["items"].as_array().context("no items")?.iter();
        contacts.extend(ids.filter_map(|it| it["result"]["id"].as_str().map(str::to_owned)));
    }
    ensure!(contacts.len() == CONTACTS, "only {} contacts were made", contacts.len());
    Ok(Tenant { app, token, contacts })
}

/// Numbers as good as by chance, the same in every run (`SplitMix64`).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Measures; what differs is added to `faults`.
pub(crate) fn measure(
    program: &Path,
    directory: &Path,
    arguments: &[String],
    quick: bool,
    faults: &mut Vec<String>,
) -> anyhow::Result<Figures> {
    let mut helper = Helper::start()?;
    let server = Server::start(program, directory, arguments, &mut helper)?;
    let (address, admin) = server.admin()?;
    let mut connection = Connection::open(&address)?;
    let own = found(&mut connection, &admin, "Own")?;
    let foreign = found(&mut connection, &admin, "Foreign")?;
    let known: HashSet<&str> =
        own.contacts.iter().chain(&foreign.contacts).map(String::as_str).collect();
    let mut chance = Chance(1);
    let mut ids_of_round = || -> anyhow::Result<[String; KINDS]> {
        let there = &foreign.contacts[usize::try_from(chance.next() >> 32)? % CONTACTS];
        let near = format!("{}{:08x}", &there[..there.len() - 8], chance.next() >> 32);
        let random = format!("sc_{:016x}{:016x}", chance.next(), chance.next());
        Ok([there.clone(), near, random])
    };
    let lookups = if quick { LOOKUPS / 10 } else { LOOKUPS };
    let mut times: [Vec<f64>; KINDS] = std::array::from_fn(|_| Vec::with_capacity(lookups));
    let mut first: Option<Seen> = None;
    let mut differing = 0;
    for round in 0..WARM_UP + lookups {
        let ids = ids_of_round()?;
        // By turns, so that none of them always follows the same other.
        for turn in 0..KINDS {
            let kind = (round + turn) % KINDS;
            ensure!(kind == 0 || !known.contains(ids[kind].as_str()), "an unknown id exists");
            let path = format!("/v1/api/apps/{}/contacts/staff/{}", own.app, ids[kind]);
            let request = connection.request("GET", &path, &own.token, "");
            let began = Instant::now();
            let end = connection.exchange(&request)?;
            let took = began.elapsed();
            let seen = connection.seen(end);
            let first = first.get_or_insert_with(|| seen.clone());
            ensure!(first.0[0].starts_with("HTTP/1.1 404"), "{:?}", first.0);
            if *first != seen && differing == 0 {
                faults.push(format!("look-ups: {seen:?} is not {first:?}"));
            }
            differing += usize::from(*first != seen);
            if round >= WARM_UP {
                times[kind].push(took.as_secs_f64() * 1e6);
            }
        }
    }
    let [there, near, random] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        quantile(&times, 0.5)
    });
    server.stop()?;
    let difference = |other: f64| (there / other - 1.0).abs() * 100.0;
    Ok(Figures::from([
        ("lookups_foreign_us", there),
        ("lookups_near_us", near),
        ("lookups_random_us", random),
        ("lookups_near_difference", difference(near)),
        ("lookups_random_difference", difference(random)),
    ]))
}
