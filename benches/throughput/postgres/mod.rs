//! Measurements on a PostgreSQL: the one of `BENCH_POSTGRES_URL`, which `make bench-postgres` starts on a real disk with
//! everything on that keeps a commit. Each has a database of its own.

mod claims;
mod cluster;
mod group_commit;
mod held_open;
mod nodes;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::Part;
use crate::report::Figures;

/// How long each measurement lasts; a fifth in a quick run.
const TIME: Duration = Duration::from_secs(10);

/// The server's URL.
fn server() -> anyhow::Result<String> {
    std::env::var("BENCH_POSTGRES_URL").context(
        "BENCH_POSTGRES_URL is not set: `make bench-postgres` starts a PostgreSQL and sets it",
    )
}

/// A database of its own, as a URL; the whole server goes away after the run.
async fn database(server: &str, name: &str) -> anyhow::Result<String> {
    let name = format!("bench_{name}_{}", std::process::id());
    let client = claims::connect(server).await?;
    client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
    client.batch_execute(&format!("CREATE DATABASE {name}")).await?;
    let at = server.rfind('/').context("a URL without a database")?;
    Ok(format!("{}/{name}", &server[..at]))
}

/// Runs one of the measurements; what went wrong is added to `faults`.
pub(crate) fn measure(
    part: Part,
    program: &Path,
    directory: &Path,
    quick: bool,
    faults: &mut Vec<String>,
) -> anyhow::Result<Figures> {
    match part {
        Part::Nodes => nodes::measure(program, directory, quick, faults),
        Part::HeldOpen => held_open::measure(program, directory, quick, faults),
        _ => measure_groups(quick),
    }
}

/// The group commit, and the yardstick.
fn measure_groups(quick: bool) -> anyhow::Result<Figures> {
    let time = if quick { TIME / 5 } else { TIME };
    let server = server()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let claims = database(&server, "claims").await?;
        let claimed = claims::measure(&claims, time).await?;
        let groups = database(&server, "groups").await?;
        let committed = group_commit::measure(&groups, time).await?;
        Ok(Figures::from([
            ("claims_per_s", claimed),
            ("groups_per_s", committed.per_second),
            ("groups_p50_ms", committed.p50_ms),
            ("groups_p99_ms", committed.p99_ms),
            ("groups_ratio", committed.per_second / claimed),
        ]))
    })
}
