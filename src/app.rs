//! Composition: opens the store, starts the parts, binds the listener, stops everything in order.
//!
//! The only place that knows all parts. Each gets what it needs and nothing else; they meet in the store and in
//! the primitives handed out here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{self, CorsOrigins, Settings, read_admin_token_file};
use crate::delivery::engine::{self, Engine};
use crate::delivery::lane;
use crate::delivery::sender::{self, Sender};
use crate::delivery::target_guard::{self, SystemResolver, TargetGuard};
use crate::directory::Directory;
use crate::domain::audit::Origin;
use crate::domain::clock::{Clock, SystemClock, Timestamp};
use crate::domain::lease::Lease;
use crate::domain::tenancy::Token;
use crate::feed::Feed;
use crate::http::Http;
use crate::http::auth::AdminSetting;
use crate::http::places::Places;
use crate::http::request_rates::EXCHANGE_EVERY;
use crate::http::tls::Tls;
use crate::store::copy::Side;
use crate::store::keyring::{Key, KeyId, Keyring};
use crate::store::postgres::copying::PostgresSide;
use crate::store::postgres::{self, Postgres, RequestLevels, Target};
use crate::store::sqlite::copying::SqliteSide;
use crate::store::sqlite::retention::Retention;
use crate::store::sqlite::{Embedded, Keys};
use crate::store::{self, Store};
use crate::subscriptions::verification_limits::VerificationLimits;
use crate::subscriptions::{self, Subscriptions};
use crate::{api, http};

/// Descriptors kept for the store, the listener's callers and everything but attempts.
const DESCRIPTORS_KEPT: u64 = 512;
/// Attempts in flight at most, however many descriptors there are: beyond it one machine's cores are long busy.
const SLOTS_MAX: usize = 8_192;
/// Attempts in flight that are always allowed.
const SLOTS_MIN: usize = 16;
/// How often a running server looks whether its writer still lives.
const WRITER_POLL: Duration = Duration::from_secs(1);

/// A server that accepts requests.
pub struct Running {
    /// Where it listens; the real port when 0 was asked for.
    pub address: SocketAddr,
    /// Where everything is kept.
    pub place: Place,
    /// The admin token, only when this start made it.
    pub new_admin_token: Option<Token>,
    tls: Option<Arc<Tls>>,
    admin_token_file: Option<PathBuf>,
    http: Arc<Http>,
    store: OpenStore,
    engine: Arc<Engine>,
    stop: CancellationToken,
    connections: TaskTracker,
}

/// Where a server keeps everything, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this data directory, absolute.
    DataDir(PathBuf),
    /// In a PostgreSQL, as the node of this name.
    Postgres {
        /// The name of the node.
        node: String,
    },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DataDir(path) => write!(f, "data directory: {}", path.display()),
            Self::Postgres { node } => write!(f, "store: PostgreSQL, node: {node}"),
        }
    }
}

/// The store of this process with its back end: all that differs between them after the start.
enum OpenStore {
    /// In files.
    Embedded(Embedded),
    /// In a PostgreSQL, together with other nodes.
    Postgres(Box<Postgres>),
}

impl OpenStore {
    /// Opens the one that the settings name; `address` is where the server listens.
    async fn open(
        settings: &Settings,
        clock: Arc<dyn Clock>,
        address: SocketAddr,
    ) -> anyhow::Result<(Self, Place)> {
        match &settings.store {
            config::Store::Embedded => {
                let data_dir = std::path::absolute(&settings.data_dir)?;
                let retention = retention_of(settings);
                let keys = settings.secret_key.clone().map_or(Keys::File, Keys::Given);
                let embedded = open_embedded(data_dir.clone(), clock, retention, keys).await?;
                Ok((Self::Embedded(embedded), Place::DataDir(data_dir)))
            }
            config::Store::Postgres(target) => {
                let node = settings.node_name.clone().unwrap_or_else(|| usual_node_name(address));
                let postgres = open_postgres(settings, target, clock, &node).await?;
                Ok((Self::Postgres(Box::new(postgres)), Place::Postgres { node }))
            }
        }
    }

    /// What the parts read and write.
    fn store(&self) -> Store {
        match self {
            Self::Embedded(embedded) => embedded.store.clone(),
            Self::Postgres(postgres) => postgres.store.clone(),
        }
    }

    /// Whether its writer still runs.
    fn is_writing(&self) -> bool {
        match self {
            Self::Embedded(embedded) => embedded.is_writing(),
            Self::Postgres(postgres) => postgres.is_writing(),
        }
    }

    /// Under which lanes send.
    fn lease(&self) -> Lease {
        match self {
            Self::Embedded(_) => Lease::forever(),
            Self::Postgres(postgres) => postgres.lease(),
        }
    }

    /// Where nodes share their request rates; nowhere for one that is alone.
    fn request_levels(&self) -> Option<RequestLevels> {
        match self {
            Self::Embedded(_) => None,
            Self::Postgres(postgres) => Some(postgres.request_levels()),
        }
    }

    /// Takes part in the sending, once there is an engine to do it.
    fn start_node(&mut self, engine: &Arc<Engine>) -> anyhow::Result<()> {
        if let Self::Postgres(postgres) = self {
            let engine = Arc::clone(engine);
            postgres.start_node(Arc::new(move |shards| {
                // Begun here and not when the future is polled: a loss that is told afterwards comes afterwards.
                Box::pin(engine.drain_shards(&shards))
            }))?;
        }
        Ok(())
    }

    /// Writes what waits, and closes it.
    async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Embedded(embedded) => {
                tokio::task::spawn_blocking(move || embedded.close()).await?;
            }
            Self::Postgres(postgres) => postgres.close().await,
        }
        Ok(())
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Opens the store, starts the engine and binds the listener.
///
/// # Errors
///
/// Certificate or key cannot be used, the data directory is in use or not writable, the store cannot be opened, or
/// the address cannot be bound.
pub async fn start(settings: Settings) -> anyhow::Result<Running> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let tls = settings.tls.clone().map(Tls::read).transpose()?.map(Arc::new);
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("cannot listen on {}", settings.listen))?;
    let address = listener.local_addr()?;
    let (mut open, place) = OpenStore::open(&settings, Arc::clone(&clock), address).await?;
    let store = open.store();
    let new_admin_token = first_admin_token(&settings, &store, clock.now()).await?;
    let epoch = count_tenancy_changes(&store);
    let stop = CancellationToken::new();
    let feed = Feed::new(Arc::clone(&store.read), stop.clone());
    store.write.queue().add_listener(feed.listener());
    let http = make_http(&settings, &store, Arc::clone(&clock), epoch);
    let (router, engine) =
        build(&settings, store, open.lease(), Arc::clone(&clock), Arc::clone(&http), feed).await?;
    open.start_node(&engine)?;
    let connections = TaskTracker::new();
    if let Some(levels) = open.request_levels().filter(|_| http.rates.is_limited()) {
        share_rates(Arc::clone(&http), levels, stop.clone(), &connections).await;
    }
    let proxies = settings.trusted_proxies.clone();
    let places = Arc::new(Places::new(settings.connections_per_address, proxies));
    let listening = http::listener::serve(
        listener,
        tls.clone(),
        places,
        router,
        stop.clone(),
        connections.clone(),
    );
    connections.spawn(listening);
    warn_of_plain_http(&settings, address);
    tracing::info!(address = %address, "server started");
    let admin_token_file = settings.admin_token_file;
    Ok(Running {
        address,
        place,
        new_admin_token,
        tls,
        admin_token_file,
        http,
        store: open,
        engine,
        stop,
        connections,
    })
}

/// Shares the request rates with other nodes: once before the first request is accepted, then until the stop. Requests
/// themselves never wait for it.
async fn share_rates(
    http: Arc<Http>,
    mut levels: RequestLevels,
    stop: CancellationToken,
    tasks: &TaskTracker,
) {
    exchange_rates(&http, &mut levels).await;
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EXCHANGE_EVERY) => {}
            }
            exchange_rates(&http, &mut levels).await;
        }
    });
}

async fn exchange_rates(http: &Http, levels: &mut RequestLevels) {
    let spent = http.rates.begin_exchange();
    match levels.exchange(&spent).await {
        Ok(heard) => http.rates.end_exchange(heard.nodes, &heard.levels),
        Err(error) => {
            tracing::debug!(error = %error, "request rates not shared, trying again");
            http.rates.fail_exchange();
        }
    }
}

/// Behind a trusted proxy the way to it is the operator's affair, on loopback nobody listens in.
fn warn_of_plain_http(settings: &Settings, address: SocketAddr) {
    let encrypted = settings.tls.is_some() || !settings.trusted_proxies.is_empty();
    if !encrypted && !address.ip().to_canonical().is_loopback() {
        tracing::warn!(
            address = %address,
            "tokens travel unencrypted, set tls_cert and tls_key, or trusted_proxies"
        );
    }
}

/// Everything between the store and the listener.
async fn build(
    settings: &Settings,
    store: Store,
    lease: Lease,
    clock: Arc<dyn Clock>,
    http: Arc<Http>,
    feed: Feed,
) -> anyhow::Result<(api::Api, Arc<Engine>)> {
    let guard = Arc::new(TargetGuard::new(guard_settings(settings), SystemResolver::new()));
    let descriptors = descriptors_for_attempts()?;
    let sender_settings = sender::Settings {
        connect_timeout: settings.connect_timeout,
        request_timeout: settings.request_timeout,
        proxy: settings.proxy.clone(),
        // As many again as may be in flight, at most.
        kept_max: sender::KEPT_MAX_DEFAULT.min(descriptors / 2),
        lease,
    };
    let sender = Arc::new(Sender::new(&sender_settings, guard, Arc::clone(&clock))?);
    let engine_settings = engine_settings(settings, descriptors)?;
    let engine =
        Engine::start(store.clone(), Arc::clone(&sender), Arc::clone(&clock), engine_settings)
            .await?;
    let engine = Arc::new(engine);
    let subscriptions = Subscriptions {
        read: Arc::clone(&store.read),
        write: store.write.clone(),
        sender,
        engine: Arc::clone(&engine),
        clock: Arc::clone(&clock),
        limits: VerificationLimits::new(verification_settings(settings)),
    };
    let directory = Directory::new(store.write.clone());
    let state = api::State { http, read: store.read, directory, subscriptions, feed, clock };
    Ok((api::Api::new(Arc::new(state)), engine))
}

/// What all requests pass. It records uses of tokens through the writer, in the system's name.
fn make_http(
    settings: &Settings,
    store: &Store,
    clock: Arc<dyn Clock>,
    epoch: Arc<AtomicU64>,
) -> Arc<Http> {
    let write = store.write.by(Origin::SYSTEM);
    let uses = Arc::new(move |token| write.note_token_use(token));
    Arc::new(Http::new(&http_settings(settings), Arc::clone(&store.read), clock, epoch, uses))
}

/// Opens the PostgreSQL of these settings.
async fn open_postgres(
    settings: &Settings,
    target: &Target,
    clock: Arc<dyn Clock>,
    node: &str,
) -> anyhow::Result<Postgres> {
    let keys = settings.secret_key.clone();
    let keys = keys.context("PostgreSQL needs secret_key, the same for all nodes")?;
    let retention = retention_of(settings);
    let options = postgres::Options { clock, retention, keys, node_name: node.to_owned() };
    Ok(Postgres::open(target, options).await?)
}

/// Tells the nodes of several machines apart, and several on one machine.
fn usual_node_name(address: SocketAddr) -> String {
    let host = rustix::system::uname();
    format!("{}:{}", host.nodename().to_string_lossy(), address.port())
}

fn retention_of(settings: &Settings) -> Retention {
    Retention {
        events: settings.event_retention,
        attempts: settings.attempt_retention,
        audit: settings.audit_retention,
    }
}

async fn open_embedded(
    data_dir: PathBuf,
    clock: Arc<dyn Clock>,
    retention: Retention,
    keys: Keys,
) -> anyhow::Result<Embedded> {
    let open = move || Embedded::open_with(&data_dir, clock, retention, keys);
    Ok(tokio::task::spawn_blocking(open).await??)
}

/// Makes the admin token at the very first start, unless the operator gave one.
async fn first_admin_token(
    settings: &Settings,
    store: &Store,
    now: Timestamp,
) -> anyhow::Result<Option<Token>> {
    if settings.admin_token.is_some() || !store.read.list_admin_tokens(now).await?.is_empty() {
        return Ok(None);
    }
    let token = random_token(Token::ADMIN_PREFIX)?;
    // Another node may have made one meanwhile.
    let is_first = store.write.set_first_admin_token(token.hash()).await?;
    Ok(is_first.then_some(token))
}

fn random_token(prefix: &str) -> anyhow::Result<Token> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| anyhow!("no random numbers: {error}"))?;
    Ok(Token::from_random(prefix, random))
}

/// A count that grows with every commit that changed a service, app or token.
fn count_tenancy_changes(store: &Store) -> Arc<AtomicU64> {
    let epoch = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&epoch);
    store.write.queue().add_listener(Arc::new(move |commit| {
        if commit.tenancy {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    }));
    epoch
}

fn guard_settings(settings: &Settings) -> target_guard::Settings {
    target_guard::Settings {
        allow_targets: settings.allow_targets.clone(),
        deny_targets: settings.deny_targets.clone(),
        allow_hosts: settings.allow_hosts.clone(),
        deny_hosts: settings.deny_hosts.clone(),
        deny_ports: settings.deny_ports.clone(),
        allow_http: settings.allow_http,
    }
}

/// Descriptors for connections to receivers, after raising the limit.
fn descriptors_for_attempts() -> anyhow::Result<usize> {
    let all = raise_descriptor_limit()?;
    Ok(usize::try_from(all.saturating_sub(DESCRIPTORS_KEPT)).unwrap_or(usize::MAX))
}

fn engine_settings(settings: &Settings, descriptors: usize) -> anyhow::Result<engine::Settings> {
    let slots = (descriptors / 2).clamp(SLOTS_MIN, SLOTS_MAX);
    Ok(engine::Settings {
        lane: lane::Settings {
            retry_schedule: settings.retry_schedule.clone(),
            max_in_flight: usize::try_from(settings.max_in_flight)?,
        },
        slots,
    })
}

/// Each attempt and each caller is a descriptor; the customary soft limit of 1,024 is for programs that select.
fn raise_descriptor_limit() -> anyhow::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, wanted).context("cannot raise the limit of open files")?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

fn http_settings(settings: &Settings) -> http::Settings {
    http::Settings {
        requests_per_minute: settings.requests_per_minute,
        failed_tokens_per_minute: settings.failed_tokens_per_minute,
        trusted_proxies: settings.trusted_proxies.clone(),
        cors_origins: match &settings.cors_origins {
            CorsOrigins::Any => vec!["*".to_owned()],
            CorsOrigins::List(origins) => origins.clone(),
        },
        admin_token: settings.admin_token.clone().map(|token| {
            let from_file = settings.admin_token_file.is_some();
            let name = if from_file { AdminSetting::FILE } else { AdminSetting::VALUE };
            AdminSetting { token, name }
        }),
    }
}

fn verification_settings(settings: &Settings) -> subscriptions::Settings {
    subscriptions::Settings {
        verifications_per_app: settings.verifications_per_app,
        verifications_per_host: settings.verifications_per_host,
        verifications_total: settings.verifications_total,
    }
}

impl Running {
    /// Stops accepting, finishes what is in flight within `grace`, records it and closes the store.
    pub async fn stop(self, grace: Duration) {
        tracing::info!("server stopping");
        self.stop.cancel();
        self.connections.close();
        let requests = tokio::time::timeout(grace, self.connections.wait());
        let (requests, ()) = tokio::join!(requests, self.engine.stop(grace));
        if requests.is_err() {
            tracing::warn!("requests cut off at the end of the grace period");
        }
        if let Err(error) = self.store.close().await {
            tracing::error!(error = %error, "store not closed");
        }
        tracing::info!("server stopped");
    }

    /// How callers reach it.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Reads the files of the settings again, in the background: certificate and key, and the admin token. What cannot
    /// be used leaves what was there before in place.
    pub fn read_files_again(&self) {
        if self.tls.is_none() && self.admin_token_file.is_none() {
            tracing::info!("no file to read again");
        }
        if let Some(tls) = self.tls.clone() {
            tokio::task::spawn_blocking(move || match tls.read_again() {
                Ok(()) => tracing::info!("certificate read again"),
                Err(error) => {
                    tracing::warn!(error = %error, "certificate not read again, the earlier one stays");
                }
            });
        }
        if let Some(path) = self.admin_token_file.clone() {
            let http = Arc::clone(&self.http);
            tokio::task::spawn_blocking(move || match read_admin_token_file(&path) {
                Ok(token) => {
                    let id = token.hash().id();
                    let name = AdminSetting::FILE;
                    http.auth.replace_admin_setting(AdminSetting { token, name });
                    tracing::info!(token = %id, "admin token read again");
                }
                Err(why) => {
                    tracing::warn!(
                        error = why,
                        "admin token not read again, the earlier one stays"
                    );
                }
            });
        }
    }

    /// Returns when the server failed by itself, with the reason.
    pub async fn failed(&self) -> anyhow::Error {
        while self.store.is_writing() && self.engine.is_running() {
            tokio::time::sleep(WRITER_POLL).await;
        }
        anyhow!("the store's writer or the delivery engine has ended")
    }
}

/// A store that no server has open, for what is done to it then.
#[derive(Debug)]
pub enum ClosedStore {
    /// In this data directory.
    DataDir(PathBuf),
    /// In this PostgreSQL.
    Postgres(Box<Target>),
}

impl std::fmt::Display for ClosedStore {
    /// Without user and password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DataDir(path) => std::fmt::Display::fmt(&path.display(), f),
            Self::Postgres(target) => f.write_str(&target.place()),
        }
    }
}

impl ClosedStore {
    /// The PostgreSQL of a connection URL.
    ///
    /// # Errors
    ///
    /// What is wrong with the URL, without any part of it: that may be a password.
    pub fn postgres(url: &str) -> anyhow::Result<Self> {
        let target = Target::parse(url).map_err(|rule| anyhow!("the connection URL {rule}"))?;
        Ok(Self::Postgres(Box::new(target)))
    }

    /// One side of a copy: a connection URL, or the path of a data directory.
    fn of_copy(text: &str, side: &str) -> anyhow::Result<Self> {
        if Target::is_url(text) {
            return Self::postgres(text).with_context(|| format!("the {side} cannot be used"));
        }
        let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        let is_odd = text.contains("://")
            || scheme.is_some_and(|it| it == "postgres" || it == "postgresql")
            || ["host=", "dbname=", "password="].iter().any(|name| text.contains(name));
        if text.is_empty() || text == "embedded" || is_odd {
            bail!("the {side} must be the path of a data directory, or begin with postgres://");
        }
        Ok(Self::DataDir(PathBuf::from(text)))
    }

    const fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Postgres(one), Self::Postgres(other)) => one.place() == other.place(),
            (Self::DataDir(one), Self::DataDir(other)) => {
                let real = |path: &Path| path.canonicalize().ok();
                real(one).is_some_and(|one| Some(one) == real(other))
            }
            _ => false,
        }
    }

    async fn open_for_copy(&self) -> anyhow::Result<Side> {
        Ok(match self {
            Self::Postgres(target) => Side::Postgres(PostgresSide::open(target).await?),
            Self::DataDir(directory) => Side::Sqlite(SqliteSide::open(directory)?),
        })
    }
}

/// Gives an existing store a new admin token while no server runs on it.
///
/// # Errors
///
/// There is no store, or a server uses it.
pub async fn reset_admin_token(store: &ClosedStore) -> anyhow::Result<Token> {
    let token = random_token(Token::ADMIN_PREFIX)?;
    let data_dir = match store {
        ClosedStore::DataDir(data_dir) => data_dir,
        ClosedStore::Postgres(target) => {
            let unused = postgres::Unused::open(target).await?;
            let stored = unused.set_admin_token(token.hash(), SystemClock::new().now()).await;
            unused.close().await;
            return Ok(stored.map(|()| token)?);
        }
    };
    if !Embedded::exists(data_dir) {
        return Err(no_data_in(data_dir));
    }
    let clock = Arc::new(SystemClock::new());
    let embedded =
        open_embedded(data_dir.to_owned(), clock, Retention::FOREVER, Keys::Without).await?;
    let stored = embedded.store.write.set_admin_token(token.hash()).await;
    tokio::task::spawn_blocking(move || embedded.close()).await?;
    stored?;
    Ok(token)
}

/// What a change of keys has done.
#[derive(Debug)]
pub struct ChangedKey {
    /// The number of the key that seals now.
    pub key: KeyId,
    /// How many secrets were sealed anew, or replaced.
    pub secrets: u64,
}

/// Gives a data directory a new key for its signing secrets while no server runs on it.
///
/// # Errors
///
/// There is no store in the directory, a server holds it, or a secret needs a key that is not in its key file.
pub async fn rotate_key(data_dir: &Path) -> anyhow::Result<ChangedKey> {
    let (key, secrets) =
        on_store(data_dir, |directory| Embedded::rotate_key(directory, SystemClock::new().now()))
            .await?;
    Ok(ChangedKey { key, secrets })
}

/// How many signing secrets of a store do not open, while no server runs on it; with these keys, in the text of the
/// setting, or with those of the key file of a data directory.
///
/// # Errors
///
/// There is no store, a server uses it, or the keys cannot be used.
pub async fn count_lost_secrets(store: &ClosedStore, keys: Option<&str>) -> anyhow::Result<usize> {
    match store {
        ClosedStore::DataDir(data_dir) => {
            let keys = keys_of_text(keys)?;
            on_store(data_dir, move |directory| Embedded::count_lost_secrets(directory, &keys))
                .await
        }
        ClosedStore::Postgres(target) => {
            let keys = keys_of_nodes(keys)?;
            let unused = postgres::Unused::open(target).await?;
            let lost = unused.count_lost_secrets(&keys).await;
            unused.close().await;
            Ok(lost?)
        }
    }
}

/// Gives new signing secrets to the apps whose secrets do not open; as [`count_lost_secrets`] finds them.
///
/// # Errors
///
/// As there, or the store cannot be written.
pub async fn replace_lost_secrets(
    store: &ClosedStore,
    keys: Option<&str>,
) -> anyhow::Result<ChangedKey> {
    let now = SystemClock::new().now();
    let (key, secrets) = match store {
        ClosedStore::DataDir(data_dir) => {
            let keys = keys_of_text(keys)?;
            let replace =
                move |directory: &Path| Embedded::replace_lost_secrets(directory, &keys, now);
            on_store(data_dir, replace).await?
        }
        ClosedStore::Postgres(target) => {
            let keys = keys_of_nodes(keys)?;
            let mut unused = postgres::Unused::open(target).await?;
            let replaced = unused.replace_lost_secrets(&keys, now).await;
            unused.close().await;
            replaced?
        }
    };
    Ok(ChangedKey { key, secrets })
}

fn keys_of_nodes(text: Option<&str>) -> anyhow::Result<Keyring> {
    match keys_of_text(text)? {
        Keys::Given(keys) => Ok(keys),
        Keys::File | Keys::Without => {
            bail!("with PostgreSQL give the nodes' key by ROLLCALL_SECRET_KEY or --secret-key-file")
        }
    }
}

fn keys_of_text(text: Option<&str>) -> anyhow::Result<Keys> {
    match text {
        None => Ok(Keys::File),
        Some(text) => Ok(Keys::Given(Keyring::parse(text).context("secret_key is refused")?)),
    }
}

/// Does something to a store that no server has open.
async fn on_store<T: Send + 'static>(
    data_dir: &Path,
    work: impl FnOnce(&Path) -> Result<T, store::Error> + Send + 'static,
) -> anyhow::Result<T> {
    if !Embedded::exists(data_dir) {
        return Err(no_data_in(data_dir));
    }
    let data_dir = data_dir.to_owned();
    Ok(tokio::task::spawn_blocking(move || work(&data_dir)).await??)
}

fn no_data_in(data_dir: &Path) -> anyhow::Error {
    let data_dir = data_dir.display();
    anyhow!(
        "there is no Rollcall data in {data_dir}; with PostgreSQL there never is, set ROLLCALL_STORE or ROLLCALL_STORE_FILE then"
    )
}

pub use crate::store::copy::{
    Copied, Outcome as CopyOutcome, Phase as CopyPhase, Progress as CopyProgress,
};

/// What a copy of a store has done.
#[derive(Debug)]
pub struct CopiedStore {
    /// What it has come to.
    pub outcome: CopyOutcome,
    /// What is to be done now.
    pub next: &'static str,
}

/// Copies everything from one store to another; each is a data directory or a connection URL.
///
/// # Errors
///
/// A store is in use or cannot be opened, the target is not empty, or both differ in the end.
pub async fn copy_store(
    from: &str,
    to: &str,
    report: &mut (dyn FnMut(CopyProgress) + Send),
) -> anyhow::Result<CopiedStore> {
    let (from, to) = (ClosedStore::of_copy(from, "source")?, ClosedStore::of_copy(to, "target")?);
    if let ClosedStore::DataDir(from) = &from
        && !Embedded::exists(from)
    {
        bail!("there is no Rollcall data in {}", from.display());
    }
    if from.is_same_as(&to) {
        bail!("source and target are the same store: name another target");
    }
    let mut source = from.open_for_copy().await.context("cannot open the source")?;
    if let ClosedStore::DataDir(to) = &to
        && !Embedded::exists(to)
    {
        // Before anything is made there.
        source.check().await.context("cannot copy from the source")?;
        check_new(to)?;
    }
    let mut target = to.open_for_copy().await.context("cannot open the target")?;
    let outcome = store::copy::copy(&mut source, &mut target, report).await;
    source.close().await;
    target.close().await;
    let outcome = outcome?;
    let next = match (from.is_postgres(), to.is_postgres()) {
        (false, true) => {
            "give every node the keys of secret.key in the source's directory, as secret_key or secret_key_file"
        }
        (true, false) => "give the server the nodes' secret_key or secret_key_file",
        (false, false) => "move secret.key into the target's directory, when the source has one",
        (true, true) => "the nodes keep their secret_key",
    };
    Ok(CopiedStore { outcome, next })
}

/// Refuses a directory that has something else in it. A key file that was put there before is expected.
fn check_new(directory: &Path) -> anyhow::Result<()> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let name = entry?.file_name();
        if name != "secret.key" && name != "lock" {
            let directory = directory.display();
            bail!(
                "the target {directory} has something else in it: name an empty or a new directory"
            );
        }
    }
    Ok(())
}

/// A new key in text, for the settings `secret_key` and `secret_key_file`.
///
/// # Errors
///
/// The system gives no random numbers.
pub fn make_key() -> anyhow::Result<String> {
    Ok(Key::random()?.reveal())
}
