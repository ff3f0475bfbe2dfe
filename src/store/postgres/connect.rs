//! The way to PostgreSQL: the address with its TLS rules, connections with their settings, and the pool of readers.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError,
    RecyclingMethod, Runtime, TimeoutType,
};
use futures_util::future::poll_fn;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{AsyncMessage, Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::ownership::Ownership;
use super::{era, unavailable, why};
use crate::store::Error;

/// Reading connections of a node. PostgreSQL is at its best with a few for each of its cores, and all nodes share them;
/// reads are short. More would only take turns there, and each costs the server a process.
pub(super) const READERS_MAX: usize = 8;
/// Longest wait for a free reading connection.
const READER_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for a connection to be made.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Longest silence of the network with something unacknowledged, on both sides, before a connection counts as cut.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// What every session is given. Milliseconds. A statement that takes longer than 30 s is none of ours that goes well;
/// a lock that is not had within 5 s is held by somebody who hangs; who is cut off in the middle of a transaction holds
/// its locks for at most 5 s.
const SESSION: &str = "-c statement_timeout=30000 -c lock_timeout=5000 \
     -c idle_in_transaction_session_timeout=5000 -c tcp_user_timeout=5000 \
     -c tcp_keepalives_idle=2 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=3 \
     -c default_transaction_isolation=read\\ committed -c client_min_messages=warning \
     -c timezone=UTC -c jit=off";

/// A PostgreSQL to connect to.
#[derive(Clone)]
pub struct Target {
    config: Config,
    tls: MakeRustlsConnect,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("hosts", &self.config.get_hosts()).finish_non_exhaustive()
    }
}

impl Target {
    /// What a connection URL begins with.
    pub const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

    /// Whether a text is meant as a connection URL.
    #[must_use]
    pub fn is_url(text: &str) -> bool {
        Self::SCHEMES.iter().any(|scheme| text.starts_with(scheme))
    }

    /// Reads a connection URL: `postgres://user:password@host:port/database`, several hosts with commas between them.
    /// Without `sslmode` a host that is not this machine needs TLS with a certificate that is verified. `sslmode=disable`
    /// turns it off, `sslrootcert` names a file of certificates to trust in place of the system's, and asks for TLS.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in a text that shows no part of the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !Self::is_url(text) {
            return Err("must begin with postgres://".to_owned());
        }
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        // A password that was not escaped could be taken for a host or an option, and be shown as such.
        if address.matches('@').count() > 1 || query.contains('@') {
            let rule = "has a special character in user or password that is not written as %XX";
            return Err(rule.to_owned());
        }
        let (mut ssl_mode, mut root_cert) = (None, None);
        let mut rest = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "sslmode" => ssl_mode = Some(value.into_owned()),
                "sslrootcert" => root_cert = Some(value.into_owned()),
                "options" => return Err("must not set options: Rollcall sets its own".to_owned()),
                _ => {
                    rest.append_pair(&name, &value);
                }
            }
        }
        // A space is %20 in these URLs, and never a plus sign.
        let rest = rest.finish().replace('+', "%20");
        let mut config: Config = format!("{address}?{rest}")
            .parse()
            // What is wrong in particular names a part of it.
            .map_err(|_| {
                "cannot be read: look at its port, and at the options behind ?".to_owned()
            })?;
        if config.get_hosts().is_empty() {
            return Err("must name a host".to_owned());
        }
        if config.get_dbname().is_none_or(str::is_empty) {
            return Err("must name a database, as in postgres://host/rollcall".to_owned());
        }
        let encrypted = match ssl_mode.as_deref() {
            Some("disable") => false,
            Some("require" | "verify-full") => true,
            // Who names roots wants to be sure of the server, also behind a tunnel.
            None => root_cert.is_some() || !config.get_hosts().iter().all(is_here),
            Some(_) => {
                let rule =
                    "must have disable or verify-full as its sslmode (require means the same)";
                return Err(rule.to_owned());
            }
        };
        config
            .ssl_mode(if encrypted { SslMode::Require } else { SslMode::Disable })
            .options(SESSION)
            .application_name("rollcall")
            .connect_timeout(CONNECT_WAIT)
            .tcp_user_timeout(SILENCE_MAX)
            .keepalives_idle(Duration::from_secs(2))
            .keepalives_interval(Duration::from_secs(1))
            .keepalives_retries(3)
            // Of several hosts the one that takes writes: after a failover that is another one.
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        let tls = client_tls(root_cert.as_deref().map(Path::new), encrypted)?;
        Ok(Self { config, tls: MakeRustlsConnect::new(tls) })
    }

    /// Where it is, for people: hosts with their ports and database, without user and password.
    #[must_use]
    pub fn place(&self) -> String {
        let ports = self.config.get_ports();
        let host = |(at, host): (usize, &Host)| match (host, ports.get(at).or(ports.first())) {
            (Host::Tcp(name), Some(port)) => format!("{name}:{port}"),
            (Host::Tcp(name), None) => name.clone(),
            (Host::Unix(path), _) => path.display().to_string(),
        };
        let hosts: Vec<_> = self.config.get_hosts().iter().enumerate().map(host).collect();
        format!("postgres://{}/{}", hosts.join(","), self.config.get_dbname().unwrap_or_default())
    }

    /// Makes a connection. `heard` is called with each notification and notice, on the connection's task.
    pub(super) async fn connect(
        &self,
        mut heard: impl FnMut(AsyncMessage) + Send + 'static,
    ) -> Result<ClientWrapper, Error> {
        let connecting = self.config.connect(self.tls.clone());
        let (client, mut connection) = tokio::time::timeout(CONNECT_WAIT, connecting)
            .await
            .map_err(|_| self.unreachable("PostgreSQL: no answer to a connection"))?
            .map_err(|error| self.unreachable(&why(&error)))?;
        let task = tokio::spawn(async move {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(message)) => heard(message),
                    Some(Err(error)) => {
                        tracing::debug!(error = why(&error), "connection to PostgreSQL ended");
                        return;
                    }
                    None => return,
                }
            }
        });
        Ok(ClientWrapper::new(client, task))
    }

    /// A connection for one purpose, without a cache of statements.
    pub(super) async fn connect_plain(&self) -> Result<Client, Error> {
        let (client, connection) =
            self.config.connect(self.tls.clone()).await.map_err(|e| self.unreachable(&why(&e)))?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(client)
    }

    fn unreachable(&self, why: &str) -> Error {
        Error::Unavailable(format!("{why} ({})", self.place()))
    }
}

fn is_here(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            name == "localhost"
                || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        Host::Unix(_) => true,
    }
}

fn client_tls(root_cert: Option<&Path>, encrypted: bool) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot use TLS: {error}"))?;
    let mut roots = RootCertStore::empty();
    if let Some(path) = root_cert {
        let unreadable = |error: &dyn fmt::Display| {
            format!("sslrootcert {} cannot be read: {error}", path.display())
        };
        let pem = std::fs::read(path).map_err(|error| unreadable(&error))?;
        for cert in CertificateDer::pem_slice_iter(&pem) {
            let cert = cert.map_err(|error| unreadable(&error))?;
            roots.add(cert).map_err(|error| unreadable(&error))?;
        }
        if roots.is_empty() {
            return Err(unreadable(&"there is no certificate in it"));
        }
    } else if encrypted {
        let verifier = rustls_platform_verifier::Verifier::new(provider)
            .map_err(|error| format!("the system's root certificates cannot be read: {error}"))?;
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth());
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The reading connections of a node, made when needed. All of them are of the era that the node is in: a lane of before
/// would pass over what was committed after it.
#[derive(Clone, Debug)]
pub(super) struct Readers(Pool);

impl Readers {
    pub(super) fn new(target: &Target, ownership: &Arc<Ownership>) -> Result<Self, Error> {
        let manager = Manager::from_config(
            target.config.clone(),
            target.tls.clone(),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(READERS_MAX)
            .wait_timeout(Some(READER_WAIT))
            .create_timeout(Some(CONNECT_WAIT))
            .post_create(of_this_era(Arc::clone(ownership)))
            .pre_recycle(not_from_before(Arc::clone(ownership)))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| Error::Internal(format!("cannot make the pool: {error}")))?;
        Ok(Self(pool))
    }

    /// A free connection.
    pub(super) async fn get(&self) -> Result<Object, Error> {
        self.0.get().await.map_err(|error| match error {
            PoolError::Backend(error) => unavailable(&error),
            PoolError::Timeout(TimeoutType::Wait) => {
                Error::Unavailable("no reading connection is free".to_owned())
            }
            PoolError::Timeout(_) => {
                Error::Unavailable("PostgreSQL: no answer to a connection".to_owned())
            }
            PoolError::PostCreateHook(HookError::Backend(error)) => unavailable(&error),
            PoolError::PostCreateHook(HookError::Message(text)) => {
                Error::Unavailable(text.into_owned())
            }
            _ => Error::Unavailable("the pool of connections is closed".to_owned()),
        })
    }
}

/// Refuses a new connection that leads into another era than the one that the node is in. It enters it in a moment.
fn of_this_era(ownership: Arc<Ownership>) -> Hook {
    Hook::async_fn(move |client: &mut ClientWrapper, _| {
        let ownership = Arc::clone(&ownership);
        Box::pin(async move {
            let found = tokio::time::timeout(CONNECT_WAIT, era::find(client)).await;
            let found = found.map_err(|_| HookError::message("PostgreSQL: no answer"))?;
            let found = found.map_err(HookError::Backend)?;
            let here = ownership.era();
            if here.is_none() || here == found {
                return Ok(());
            }
            Err(HookError::message("PostgreSQL crashed or another server took over"))
        })
    })
}

/// Drops a connection that may be older than the era.
fn not_from_before(ownership: Arc<Ownership>) -> Hook {
    Hook::sync_fn(move |_, metrics| {
        if ownership.is_from_before(metrics.created) {
            return Err(HookError::message("from before the era"));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn a_url_is_refused_with_its_reason_and_without_its_password() {
        let refused = |text: &str| Target::parse(text).unwrap_err();

        assert_eq!(refused("mysql://a:secret@b/c"), "must begin with postgres://");
        assert_eq!(
            refused("postgres://a:secret@b/c?sslmode=prefer"),
            "must have disable or verify-full as its sslmode (require means the same)"
        );
        assert!(refused("postgres://a:secret@b/c?options=-c%20x").contains("options"));
        assert!(refused("postgres://a:secret@b/c?sslrootcert=/nowhere").contains("/nowhere"));
        assert!(refused("postgres://a:secret@b").contains("name a database"));
        assert!(refused("postgres://a:sec@ret@b/c").contains("%XX"));
        for text in ["postgres://a:secret@b:port/c", "postgres://a:secret@b/c?what=1"] {
            assert!(!refused(text).contains("secret"), "{}", refused(text));
        }
    }

    #[test]
    fn only_this_machine_is_called_without_tls_unless_told_so() {
        let encrypted = |text: &str| {
            let target = Target::parse(text).unwrap();
            target.config.get_ssl_mode() == tokio_postgres::config::SslMode::Require
        };

        assert!(encrypted("postgres://a@db.example/c"));
        assert!(encrypted("postgres://a@127.0.0.1,db.example/c"));
        assert!(encrypted("postgres://a@127.0.0.1/c?sslmode=verify-full"));
        assert!(!encrypted("postgres://a@127.0.0.1/c"));
        assert!(!encrypted("postgres://a@localhost,[::1]/c"));
        assert!(!encrypted("postgres://a@db.example/c?sslmode=disable"));
    }
}
