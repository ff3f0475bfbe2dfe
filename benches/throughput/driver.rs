//! The driver: keep-alive connections that each send the next request when the last one was answered.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::contact::Template;
use crate::ledger::Ledger;
use crate::protocol::{Drive, Driven, MAX_CONTACTS, Pace, Paced, Target, Work};

/// How long the last answers may take after the time to send is over.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// How long the last notifications may take.
const LAST_NOTIFICATIONS: Duration = Duration::from_secs(10);

/// hyper-util's client, as most programs in Rust use it.
type Pool = Client<HttpConnector, Full<Bytes>>;

type Wire = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// One keep-alive connection, driven by the task that uses it: no second task to wake.
pub(crate) struct Line {
    sender: http1::SendRequest<Full<Bytes>>,
    wire: Wire,
    address: String,
    headers: HeaderMap,
    path: Uri,
    /// With scheme and authority, for [`Line::pooled`].
    whole: Uri,
    template: Template,
}

impl Line {
    pub(crate) async fn open(target: &Target) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(&target.address).await?;
        stream.set_nodelay(true)?;
        let (sender, wire) = http1::handshake(TokioIo::new(stream)).await?;
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(&target.address)?);
        let json = HeaderValue::from_static("application/json");
        headers.insert(CONTENT_TYPE, json);
        let path = target.path.parse()?;
        let whole = format!("http://{}{}", target.address, target.path).parse()?;
        let (address, template) = (target.address.clone(), Template::new());
        let mut line = Self { sender, wire, address, headers, path, whole, template };
        line.identify(&target.token)?;
        Ok(line)
    }

    /// Sends with this token from now on.
    pub(crate) fn identify(&mut self, token: &str) -> anyhow::Result<()> {
        let bearer = HeaderValue::from_str(&format!("Bearer {token}"))?;
        self.headers.insert(AUTHORIZATION, bearer);
        Ok(())
    }

    /// Posts to this target of the same server from now on.
    fn aim(&mut self, target: &Target) -> anyhow::Result<()> {
        self.path = target.path.parse()?;
        self.identify(&target.token)
    }

    async fn create(&mut self, number: u32) -> anyhow::Result<Bytes> {
        let body = self.template.body(number);
        let path = self.path.clone();
        let (status, answer) = self.ask(Method::POST, path, body).await?;
        expect(status, StatusCode::CREATED, &answer)?;
        Ok(answer)
    }

    async fn bare(&mut self, number: u32) -> anyhow::Result<()> {
        let body = self.template.body(number);
        let path = self.path.clone();
        let (status, answer) = self.ask(Method::POST, path, body).await?;
        expect(status, StatusCode::OK, &answer)
    }

    /// [`Line::bare`], by hyper-util's client.
    async fn pooled(&mut self, pool: &Pool, number: u32) -> anyhow::Result<()> {
        let mut request = Request::new(Full::new(self.template.body(number)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.whole.clone();
        *request.headers_mut() = self.headers.clone();
        let answer = pool.request(request).await?;
        let status = answer.status();
        let answer = answer.into_body().collect().await?.to_bytes();
        expect(status, StatusCode::OK, &answer)
    }

    /// Create, edit, edit, delete: versions 1 to 4 of one contact.
    async fn life(&mut self, number: u32) -> anyhow::Result<()> {
        let answer = self.create(number).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer)?;
        let id = answer["result"]["id"].as_str().context("no id")?;
        let path: Uri = format!("{}/{id}", self.path).parse()?;
        for title in ["Team lead", "Head of support"] {
            let body = format!(r#"{{"jobTitle":"{title}"}}"#).into();
            let (status, answer) = self.ask(Method::PATCH, path.clone(), body).await?;
            expect(status, StatusCode::OK, &answer)?;
        }
        let (status, answer) = self.ask(Method::DELETE, path, Bytes::new()).await?;
        expect(status, StatusCode::OK, &answer)
    }

    async fn work(&mut self, work: Work, number: u32) -> anyhow::Result<()> {
        match work {
            Work::Bare | Work::Pooled => self.bare(number).await,
            Work::Create => self.create(number).await.map(drop),
            Work::Life => self.life(number).await,
        }
    }

    pub(crate) async fn ask(
        &mut self,
        method: Method,
        path: Uri,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path;
        *request.headers_mut() = self.headers.clone();
        let sender = &mut self.sender;
        let mut exchange = pin!(async {
            sender.ready().await?;
            let mut answer = sender.send_request(request).await?;
            let mut whole = Bytes::new();
            while let Some(frame) = answer.frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                if whole.is_empty() {
                    whole = data;
                } else {
                    whole = [whole, data].concat().into();
                }
            }
            anyhow::Ok((answer.status(), whole))
        });
        let wire = &mut self.wire;
        let mut closed = false;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = exchange.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            if closed || pin!(&mut *wire).poll(cx).is_ready() {
                closed = true;
            }
            // What the wire has just read is there for the exchange without another turn of the scheduler.
            exchange.as_mut().poll(cx)
        })
        .await
    }
}

fn pool() -> Pool {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

fn expect(status: StatusCode, wanted: StatusCode, answer: &[u8]) -> anyhow::Result<()> {
    ensure!(status == wanted, "answered {status}: {}", String::from_utf8_lossy(answer));
    Ok(())
}

/// What the connections of a run share.
struct Run {
    drive: Drive,
    next: AtomicU32,
    stop: AtomicBool,
}

/// Runs all connections to the end.
pub(crate) fn drive(drive: Drive) -> anyhow::Result<Driven> {
    let run =
        Arc::new(Run { next: AtomicU32::new(drive.first), stop: AtomicBool::new(false), drive });
    let began = Instant::now();
    let threads = run.drive.threads;
    let spawn = |index| {
        let run = run.clone();
        std::thread::spawn(move || drive_thread(&run, index))
    };
    let threads: Vec<_> = (0..threads).map(spawn).collect();
    let mut driven = Driven::default();
    for thread in threads {
        let Ok(part) = thread.join() else {
            bail!("a thread of the driver panicked");
        };
        let part = part?;
        driven.finished += part.finished;
        driven.failed += part.failed;
        driven.failure = driven.failure.or(part.failure);
    }
    driven.elapsed_s = began.elapsed().as_secs_f64();
    Ok(driven)
}

/// The connections whose number belongs to this thread.
fn drive_thread(run: &Arc<Run>, index: usize) -> anyhow::Result<Driven> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let limit = Duration::from_millis(run.drive.run_ms) + LAST_ANSWERS;
    runtime.block_on(async {
        let mut lines = JoinSet::new();
        let pool = pool();
        for number in (index..run.drive.connections).step_by(run.drive.threads) {
            lines.spawn(drive_line(run.clone(), pool.clone(), number));
        }
        let mut driven = Driven::default();
        let all = async {
            while let Some(line) = lines.join_next().await {
                let (finished, failure) = line?;
                driven.finished += finished;
                driven.failed += u64::from(failure.is_some());
                driven.failure = driven.failure.take().or(failure);
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(limit, all).await {
            Ok(ended) => ended?,
            Err(_) => bail!("the last answers took longer than {LAST_ANSWERS:?}"),
        }
        Ok(driven)
    })
}

/// One connection until the time is over or something fails; with what failed.
async fn drive_line(run: Arc<Run>, pool: Pool, number: usize) -> (u32, Option<String>) {
    let mut finished = 0;
    let work = run.drive.work;
    let attempt = async {
        let targets = &run.drive.targets;
        let target = targets.get(number % targets.len().max(1)).context("no target")?;
        let mut line = Line::open(target).await?;
        let until = Instant::now() + Duration::from_millis(run.drive.run_ms);
        while Instant::now() < until && !run.stop.load(Relaxed) {
            let number = run.next.fetch_add(1, Relaxed);
            if number >= MAX_CONTACTS && !work.is_bare() {
                break;
            }
            let number = number % MAX_CONTACTS;
            if work == Work::Pooled {
                line.pooled(&pool, number).await?;
            } else {
                line.work(work, number).await?;
            }
            finished += 1;
        }
        anyhow::Ok(())
    };
    let failure = attempt.await.err().map(|error| format!("{error:#}"));
    if failure.is_some() {
        run.stop.store(true, Relaxed);
    }
    (finished, failure)
}

/// Sends at fixed times, whatever the earlier ones do, and waits for the notifications in the same process: one
/// clock for both ends.
pub(crate) fn pace(pace: &Pace, ledger: &Arc<Ledger>) -> anyhow::Result<Paced> {
    // Before the first request, because it takes milliseconds.
    ledger.prepare_clock();
    ledger.take_latencies();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(paced(pace, ledger))
}

async fn paced(pace: &Pace, ledger: &Arc<Ledger>) -> anyhow::Result<Paced> {
    let mut idle = Vec::new();
    ensure!(!pace.targets.is_empty(), "no target");
    for target in pace.targets.iter().cycle().take(pace.connections) {
        idle.push(Line::open(target).await?);
    }
    let mut targets = pace.targets.iter().cycle();
    let mut busy = JoinSet::new();
    let mut result = Paced::default();
    let began = tokio::time::Instant::now();
    let began_ns = ledger.now();
    let step_ns = 1_000_000_000 / u64::from(pace.per_second);
    for index in 0..pace.count {
        let planned = u64::from(index) * step_ns;
        tokio::time::sleep_until(began + Duration::from_nanos(planned)).await;
        while let Some(done) = busy.try_join_next() {
            idle.extend(result.note(done?));
        }
        let target = targets.next().context("no target")?;
        let Some(free) = idle.iter().rposition(|line| line.address == target.address) else {
            bail!("all connections to {} still wait for an answer", target.address);
        };
        let mut line = idle.swap_remove(free);
        line.aim(target)?;
        let number = pace.first + index;
        let at = ledger.start_clock(number);
        let late = at.saturating_sub(began_ns + planned);
        result.late_ms = result.late_ms.max(milliseconds(late));
        let ledger = ledger.clone();
        busy.spawn(async move {
            let answer = line.create(number).await;
            (line, answer.map(|_| ledger.now() - at))
        });
        // The request goes out now, not when the next one is due.
        tokio::task::yield_now().await;
    }
    let rest = async {
        while let Some(done) = busy.join_next().await {
            result.note(done?);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LAST_ANSWERS, rest).await??;
    let until = Instant::now() + LAST_NOTIFICATIONS;
    let missing = || (0..).zip(pace.awaited).any(|(group, count)| ledger.timed(group) < count);
    while missing() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    result.notified_ms = ledger.take_latencies().map(|group| {
        let mut group: Vec<f64> = group.into_iter().map(milliseconds).collect();
        group.sort_by(f64::total_cmp);
        group
    });
    result.answered_ms.sort_by(f64::total_cmp);
    Ok(result)
}

impl Paced {
    /// Keeps one answer's latency and gives its connection back.
    fn note(&mut self, (line, answer): (Line, anyhow::Result<u64>)) -> Option<Line> {
        match answer {
            Ok(taken) => {
                self.answered_ms.push(milliseconds(taken));
                Some(line)
            }
            Err(error) => {
                self.failed += 1;
                self.failure.get_or_insert(format!("{error:#}"));
                None
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of one run are far below 2^53")]
fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}
