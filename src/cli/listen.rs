//! `rollcall listen`: a receiver for developers that subscribes itself and prints what arrives.
//!
//! One task accepts (`listen_receiver.rs`); this one prints, so that lines never mix. At the end the app is
//! unsubscribed again, which drops what is pending for it, unless it is to be kept or has got another URL
//! meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use http::Method;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::client::{Client, Refused};
use super::connection::AppConnection;
use super::listen_answer::{Received, Wish, find_challenge};
use super::listen_receiver::{PRINT_QUEUE, Receiver, accept};
use super::output;
use super::serve::{Signals, base_url};
use crate::config::duration::parse_duration;
use crate::delivery::signing;
use crate::domain::clock::SystemClock;
use crate::domain::subscription::SigningSecret;

/// The arguments of `rollcall listen`.
#[derive(Debug, Args)]
pub(super) struct ListenArgs {
    /// The port to listen on; 0 takes any free one.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    host: IpAddr,
    /// The path that is answered.
    #[arg(long, default_value = "/", value_parser = parse_path)]
    path: String,
    /// The secret that checks signatures; fetched when an app is given.
    #[arg(long, value_parser = parse_secret, value_name = "whsec_…")]
    secret: Option<Secret>,
    /// Answer this share of notifications with a failure, 0.0 to 1.0.
    #[arg(long, value_parser = parse_rate, value_name = "SHARE")]
    fail_rate: Option<f64>,
    /// Wait this long before answering a notification, for example 200ms.
    #[arg(long, value_parser = parse_duration, default_value = "0s", value_name = "DURATION")]
    delay: Duration,
    /// Answer notifications with this status; with --fail-rate only the failing ones [default there: 500].
    #[arg(long, value_parser = clap::value_parser!(u16).range(200..=599))]
    status: Option<u16>,
    /// Stay subscribed at the end: what comes meanwhile waits, and nothing that is pending is dropped.
    #[arg(long, conflicts_with = "no_subscribe")]
    keep: bool,
    /// Only listen: do not subscribe and unsubscribe the app.
    #[arg(long)]
    no_subscribe: bool,
    #[command(flatten)]
    connection: AppConnection,
}

/// A signing secret as an argument.
#[derive(Clone, Debug)]
struct Secret(SigningSecret);

/// Runs the command.
pub(super) async fn run(args: ListenArgs) -> anyhow::Result<()> {
    let json = args.connection.connection.json;
    let app = args.connection.find_client()?;
    let mut signals = Signals::new()?;
    let (listener, address) = bind(&args).await?;
    let target = format!("{}{}", base_url("http", address), args.path);
    let (seen, mut printed) = mpsc::channel(PRINT_QUEUE);
    let receiver = Arc::new(receiver(&args, seen));
    let accepting = tokio::spawn(accept(listener, Arc::clone(&receiver)));
    tell(json, &format!("listening on {target}"))?;
    let (subscribed, mut stopping) =
        begin(&args, app.as_ref(), &receiver, &target, &mut signals).await?;
    let ended = loop {
        if stopping {
            break Ok(());
        }
        tokio::select! {
            Some(received) = printed.recv() => {
                if let Err(closed) = show(json, &received) {
                    break Err(closed);
                }
            }
            _ = signals.next() => stopping = true,
        }
    };
    if let (true, Some((client, app))) = (subscribed, &app) {
        // Attempts that still arrive are answered but no longer printed.
        printed.close();
        let text = if args.keep {
            format!("{app} stays subscribed; what comes now waits for the next start")
        } else {
            tokio::select! {
                text = unsubscribe(client, app, &target) => text?,
                code = signals.next() => std::process::exit(code),
            }
        };
        output::complain(&text);
    }
    accepting.abort();
    ended
}

/// Gives what to say. A server that has gone away first is no failure of a receiver that ends. Somebody else's URL
/// stays; one that is stored between the question and the unsubscribing does not, since the API has no condition.
async fn unsubscribe(client: &Client, app: &str, target: &str) -> anyhow::Result<String> {
    let dropped = "unsubscribed; what was pending is dropped (use --keep to stay subscribed)";
    let unsubscribing = async {
        let stored = client.ask(Method::GET, &subscription(app)).await?;
        match stored["url"].as_str() {
            Some(url) if !url.is_empty() && url != target => Ok(format!(
                "not unsubscribed: the URL of {app} is {} by now, not that of this receiver",
                output::plain(url)
            )),
            _ => set(client, app, false, target).await.map(|()| dropped.to_owned()),
        }
    };
    match unsubscribing.await {
        Ok(text) => Ok(text),
        Err(error) if error.is::<Refused>() => Err(error.context("cannot unsubscribe")),
        Err(_) => Ok(format!("the server is gone, so {app} is still subscribed to {target}")),
    }
}

async fn bind(args: &ListenArgs) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose another --port, 0 takes any")
    })?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn receiver(args: &ListenArgs, seen: mpsc::Sender<Received>) -> Receiver {
    Receiver {
        path: args.path.clone(),
        wish: Wish { status: args.status, fail_rate: args.fail_rate },
        delay: args.delay,
        secret: Mutex::new(args.secret.clone().map(|secret| secret.0)),
        seen,
        clock: SystemClock::new(),
    }
}

/// Fetches the secret and subscribes; says whether it did, and whether a signal came meanwhile. A signal while
/// the server subscribes counts as subscribed, because the server may be through with it.
async fn begin(
    args: &ListenArgs,
    app: Option<&(Client, String)>,
    receiver: &Receiver,
    target: &str,
    signals: &mut Signals,
) -> anyhow::Result<(bool, bool)> {
    let Some((client, app)) = app else {
        output::complain(
            "no app given, so nothing was subscribed: subscribe this URL yourself, or give --app and --token",
        );
        return Ok((false, false));
    };
    if args.secret.is_none() {
        let secret = tokio::select! {
            secret = fetch_secret(client, app) => secret?,
            _ = signals.next() => return Ok((false, true)),
        };
        *receiver.secret.lock().unwrap_or_else(PoisonError::into_inner) = Some(secret);
    }
    if args.no_subscribe {
        return Ok((false, false));
    }
    tokio::select! {
        subscribed = set(client, app, true, target) => subscribed.context("cannot subscribe")?,
        _ = signals.next() => return Ok((true, true)),
    }
    // When nobody reads any longer, the end is in order too: what was subscribed is unsubscribed.
    let text = format!("subscribed {app}; end with Ctrl-C");
    let closed = tell(args.connection.connection.json, &text).is_err();
    Ok((true, closed))
}

async fn fetch_secret(client: &Client, app: &str) -> anyhow::Result<SigningSecret> {
    let path = ["v1", "api", "apps", app, "staff-contact-event-sub", "secret"];
    let answer = client.ask(Method::GET, &path).await.context("cannot fetch the secret")?;
    let secret = answer["secret"].as_str().and_then(signing::parse_secret);
    secret.context("the server's secret is not of the form whsec_…")
}

async fn set(client: &Client, app: &str, enabled: bool, url: &str) -> anyhow::Result<()> {
    let body = json!({"enabled": enabled, "url": url});
    client.tell(Method::PATCH, &subscription(app), &body, None).await.map(drop)
}

fn subscription(app: &str) -> [&str; 5] {
    ["v1", "api", "apps", app, "staff-contact-event-sub"]
}

/// Says something that is no notification: with `--json` not on standard output.
fn tell(json: bool, text: &str) -> anyhow::Result<()> {
    if json {
        output::complain(text);
        return Ok(());
    }
    output::print(text)
}

fn show(json: bool, received: &Received) -> anyhow::Result<()> {
    if json && find_challenge(&received.body).is_none() {
        return output::print_json(&received.json());
    }
    tell(json, &received.line())
}

fn parse_secret(text: &str) -> Result<Secret, String> {
    signing::parse_secret(text)
        .map(Secret)
        .ok_or_else(|| "a secret is whsec_ and the base64 of 24 to 64 bytes".to_owned())
}

fn parse_path(text: &str) -> Result<String, String> {
    let good = text.starts_with('/')
        && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'));
    if good { Ok(text.to_owned()) } else { Err("a path starts with / and has no query".to_owned()) }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&rate) { Ok(rate) } else { Err("not within 0.0 to 1.0".to_owned()) }
}
