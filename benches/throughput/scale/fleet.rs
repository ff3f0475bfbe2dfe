//! The helper's side: many services and apps, their receivers, and what is done with them through the API.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use super::order::{Order, Place};
use crate::contact::Template;
use crate::driver::{self, Line};
use crate::ledger::Ledger;
use crate::protocol::{Drive, Pace, Target, Work};
use crate::receiver::Receiver;

/// Requests at a time while things are set up: enough to fill the server's groups.
const CALLERS: usize = 32;

/// Changes in a batch: as many as the API takes.
const BATCH: u32 = 500;

/// Connections of a run at full speed, as in the other measurements.
const CONNECTIONS: usize = 64;

/// Connections of a paced run: enough for two seconds in which the disk does not answer.
const PACE_CONNECTIONS: usize = 256;

/// Done requests after which progress is shown.
const PROGRESS_EVERY: usize = 10_000;

struct App {
    id: String,
    token: String,
}

struct Service {
    apps: Vec<App>,
}

/// Everything that was founded on the server, and the receivers.
#[derive(Default)]
pub(crate) struct Fleet {
    services: Vec<Service>,
    receivers: Vec<(u16, Option<Receiver>)>,
}

impl Fleet {
    pub(crate) fn obey(&mut self, order: Order, ledger: &Arc<Ledger>) -> anyhow::Result<Value> {
        let began = Instant::now();
        match order {
            Order::Listen { receivers } => {
                for _ in 0..receivers {
                    let receiver = Receiver::start(0, 1, ledger)?;
                    self.receivers.push((receiver.port, Some(receiver)));
                }
                let ports: Vec<u16> = self.receivers.iter().map(|(port, _)| *port).collect();
                return Ok(json!(ports));
            }
            Order::Close { receiver } => {
                let (_, receiver) = self.receivers.get_mut(receiver).context("no receiver")?;
                receiver.take().context("closed already")?.close()?;
            }
            Order::Open { receiver } => {
                let (port, receiver) = self.receivers.get_mut(receiver).context("no receiver")?;
                *receiver = Some(Receiver::start(*port, 1, ledger)?);
            }
            Order::Misbehave { now } => ledger.misbehave(now),
            Order::Found { at, services, apps } => {
                self.services = found(&at, services, apps)?;
                return Ok(json!(began.elapsed().as_secs_f64()));
            }
            Order::Subscribe { at, services, apps, urls } => {
                self.subscribe(&at, services, &apps, &urls)?;
                return Ok(json!(began.elapsed().as_secs_f64()));
            }
            Order::Pace { at, services, per_second, count, first, awaited } => {
                let targets = (0..services)
                    .map(|service| self.target(&at, service))
                    .collect::<Result<_, _>>();
                let connections = PACE_CONNECTIONS;
                let targets = targets?;
                let pace = Pace { targets, connections, per_second, count, first, awaited };
                return Ok(serde_json::to_value(driver::pace(&pace, ledger)?)?);
            }
            Order::Drive { at, service, run_ms, first } => {
                let (target, connections) = (self.target(&at, service)?, CONNECTIONS);
                let work = Work::Create;
                let targets = vec![target];
                let drive = Drive { targets, work, threads: 1, connections, run_ms, first };
                return Ok(serde_json::to_value(driver::drive(drive)?)?);
            }
            Order::Fill { at, service, first, contacts, edits } => {
                self.fill(&at, service, first, contacts, edits)?;
                return Ok(json!(began.elapsed().as_secs_f64()));
            }
        }
        Ok(Value::Null)
    }

    fn app(&self, service: usize, app: usize) -> anyhow::Result<&App> {
        let service = self.services.get(service).context("no such service")?;
        service.apps.get(app).context("no such app")
    }

    /// Where the contacts of a service are created: by its first app.
    fn target(&self, at: &Place, service: usize) -> anyhow::Result<Target> {
        let App { id, token } = self.app(service, 0)?;
        let path = format!("/v1/api/apps/{id}/contacts/staff");
        Ok(Target { address: at.address.clone(), path, token: token.clone() })
    }

    fn subscribe(
        &self,
        at: &Place,
        services: Range<usize>,
        apps: &Range<usize>,
        urls: &[String],
    ) -> anyhow::Result<()> {
        each(at, "subscriptions", services.len() * apps.len(), |caller, index| {
            let service = services.start + index / apps.len();
            let app = apps.start + index % apps.len();
            let App { id, token } = self.app(service, app)?;
            let path = format!("/v1/api/apps/{id}/staff-contact-event-sub");
            let url = urls.get(service % urls.len().max(1));
            let url = url.map(|url| url.replace("{app}", &app.to_string()));
            // An app that unsubscribes says which URL, but the stored one stays.
            let wish = json!({"enabled": url.is_some(), "url": url.unwrap_or_default()});
            caller.ask(Method::PATCH, &path, token, &wish).map(drop)
        })
        .map(drop)
    }

    fn fill(
        &self,
        at: &Place,
        service: usize,
        first: u32,
        contacts: u32,
        edits: u8,
    ) -> anyhow::Result<()> {
        let App { id, token } = self.app(service, 0)?;
        let path = format!("/v1/api/apps/{id}/contacts/staff-batch");
        let template = Template::new();
        each(at, "batches", contacts.div_ceil(BATCH).try_into()?, |caller, index| {
            let start = first + BATCH * u32::try_from(index)?;
            let end = (start + BATCH).min(first + contacts);
            let mut items = Vec::new();
            for number in start..end {
                let contact: Value = serde_json::from_slice(&template.body(number))?;
                items.push(json!({"op": "create", "contact": contact}));
            }
            let mut answer = caller.ask(Method::POST, &path, token, &json!({"items": items}))?;
            let made = answer["result"]["items"].take();
            let ids: Vec<&Value> =
                made.as_array().into_iter().flatten().map(|item| &item["result"]["id"]).collect();
            ensure!(ids.iter().all(|id| id.is_string()), "not all were created: {made}");
            for edit in 0..edits {
                let title = format!("Team lead {edit}");
                let item =
                    |id: &&Value| json!({"op": "edit", "id": id, "contact": {"jobTitle": title}});
                let items: Vec<Value> = ids.iter().map(item).collect();
                caller.ask(Method::POST, &path, token, &json!({"items": items}))?;
            }
            Ok(())
        })
        .map(drop)
    }
}

fn found(at: &Place, services: usize, apps: usize) -> anyhow::Result<Vec<Service>> {
    each(at, "services", services, |caller, index| {
        let text = |made: &Value, name: &str| {
            made["result"][name].as_str().map(str::to_owned).context("an answer lacks a name")
        };
        let admin = &at.admin_token;
        let body = json!({"name": format!("Bench {index}")});
        let made = caller.ask(Method::POST, "/v1/admin/services", admin, &body)?;
        let path = format!("/v1/admin/services/{}/apps", text(&made, "serviceId")?);
        let mut service = Service { apps: Vec::with_capacity(apps) };
        for app in 0..apps {
            let all = ["events", "directory:read", "directory:write"];
            let scopes = if app == 0 { &all[..] } else { &all[..1] };
            let body = json!({"name": format!("Bench {app}"), "scopes": scopes});
            let made = caller.ask(Method::POST, &path, admin, &body)?;
            let (id, token) = (text(&made, "appID")?, text(&made, "appToken")?);
            service.apps.push(App { id, token });
        }
        Ok(service)
    })
}

/// A thread's connection to the server.
struct Caller {
    runtime: Runtime,
    line: Line,
}

impl Caller {
    fn open(at: &Place) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (address, token) = (at.address.clone(), at.admin_token.clone());
        let target = Target { address, path: "/".to_owned(), token };
        let line = runtime.block_on(Line::open(&target))?;
        Ok(Self { runtime, line })
    }

    fn ask(
        &mut self,
        method: Method,
        path: &str,
        token: &str,
        body: &Value,
    ) -> anyhow::Result<Value> {
        self.line.identify(token)?;
        let asked = self.line.ask(method, path.parse()?, body.to_string().into());
        let (status, answer) = self.runtime.block_on(asked)?;
        let text = String::from_utf8_lossy(&answer);
        ensure!(status.is_success(), "{path} was answered {status}: {text}");
        Ok(serde_json::from_slice(&answer)?)
    }
}

/// Does a piece of work for each number below `count` on some connections at a time. Gives the results in order.
fn each<T: Send>(
    at: &Place,
    what: &str,
    count: usize,
    work: impl Fn(&mut Caller, usize) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let done = Mutex::new(Vec::with_capacity(count));
    let call = || -> anyhow::Result<()> {
        let mut caller = Caller::open(at)?;
        while !stop.load(Relaxed) {
            let index = next.fetch_add(1, Relaxed);
            if index >= count {
                break;
            }
            let result = work(&mut caller, index).inspect_err(|_| stop.store(true, Relaxed))?;
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.push((index, result));
            if done.len().is_multiple_of(PROGRESS_EVERY) {
                eprintln!("          {} of {count} {what}", done.len());
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS.min(count)).map(|_| scope.spawn(call)).collect();
        for caller in callers {
            caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
        }
        anyhow::Ok(())
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
