//! Takes everything from one store to another, of any back end: `rollcall store copy`.
//!
//! The source is locked, so that nobody changes it meanwhile. Source and target carry the copy's id: a copy that was
//! broken off is taken up again, and nothing else may be put into its target. Tables are copied in the order of their
//! keys, so that the last key of the target says where to go on. Then both sides are read again and compared by counts
//! and SHA-256. Only then the source is sealed, and after it the target may serve: never both.

pub mod tables;

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use self::tables::{TABLES, Table, Value};
use super::Error;
use super::postgres::copying::PostgresSide;
use super::sqlite::copying::SqliteSide;

/// Most rows read and written at a time. More gains nothing, fewer takes more commits.
const PAGE_ROWS_MAX: usize = 10_000;
/// Rows of the first page of a table, before it is known how wide they are.
const PAGE_ROWS_FIRST: usize = 500;
/// Bytes of a page, about: rows of failed attempts and of the audit log may have kilobytes each.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Time between two reports of progress.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// What a store says of copies, in a row of its own.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// The copy.
    pub id: String,
    /// What the store is in it.
    pub role: Role,
    /// Where the other side is, without user or password.
    pub other: String,
}

/// What a store is in a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// A copy from here began, and has not ended. It may serve.
    Source,
    /// Everything has gone to the other side. It may not serve any more.
    Sealed,
    /// It is being filled. It may not serve yet.
    Target,
    /// It was filled and compared. It may serve.
    Verified,
}

impl Mark {
    /// Whether a store with this mark may be served from.
    ///
    /// # Errors
    ///
    /// What it is, and what to do.
    pub fn check(text: Option<&str>) -> Result<(), Error> {
        let Some(mark) = Self::parse(text)? else { return Ok(()) };
        match mark.role {
            Role::Source | Role::Verified => Ok(()),
            Role::Sealed => Err(Error::Internal(format!(
                "this store was copied to {} and is sealed: start the server on that one. To come back, \
                 `rollcall store copy` from there into an empty place",
                mark.other
            ))),
            Role::Target => Err(Error::Internal(format!(
                "the copy from {} into this store has not ended: run the same `rollcall store copy` again",
                mark.other
            ))),
        }
    }

    fn parse(text: Option<&str>) -> Result<Option<Self>, Error> {
        text.map(serde_json::from_str)
            .transpose()
            .map_err(|_| Error::Internal("the mark of a copy cannot be read".to_owned()))
    }

    fn write(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|error| Error::Internal(error.to_string()))
    }
}

/// One side of a copy: a store that nobody else has open.
#[derive(Debug)]
pub enum Side {
    /// A data directory.
    Sqlite(SqliteSide),
    /// A PostgreSQL.
    Postgres(PostgresSide),
}

macro_rules! on_side {
    ($side:expr, $inner:ident => $blocking:expr, $awaiting:expr) => {
        match $side {
            Side::Sqlite($inner) => $blocking,
            Side::Postgres($inner) => $awaiting.await,
        }
    };
}

impl Side {
    /// Where it is, for people and for the mark of the other side.
    #[must_use]
    pub fn place(&self) -> &str {
        match self {
            Self::Sqlite(side) => side.place(),
            Self::Postgres(side) => side.place(),
        }
    }

    /// Gives it free at once: without this a server may come a moment too early.
    pub async fn close(self) {
        match self {
            Self::Sqlite(side) => drop(side),
            Self::Postgres(side) => side.close().await,
        }
    }

    /// Whether it may be served from and copied.
    ///
    /// # Errors
    ///
    /// It was copied away or is not filled yet, or cannot be read.
    pub async fn check(&mut self) -> Result<(), Error> {
        Mark::check(self.mark_text().await?.as_deref())
    }

    async fn mark(&mut self) -> Result<Option<Mark>, Error> {
        Mark::parse(self.mark_text().await?.as_deref())
    }

    async fn mark_text(&mut self) -> Result<Option<String>, Error> {
        on_side!(self, side => side.mark(), side.mark())
    }

    async fn set_mark(&mut self, mark: &Mark) -> Result<(), Error> {
        let text = mark.write()?;
        on_side!(self, side => side.set_mark(&text), side.set_mark(&text))
    }

    async fn count(&mut self, table: &Table) -> Result<u64, Error> {
        on_side!(self, side => side.count(table), side.count(table))
    }

    async fn last_key(&mut self, table: &Table) -> Result<Option<Vec<Value>>, Error> {
        on_side!(self, side => side.last_key(table), side.last_key(table))
    }

    async fn read(
        &mut self,
        table: &Table,
        after: Option<&[Value]>,
        limit: usize,
    ) -> Result<Vec<Vec<Value>>, Error> {
        on_side!(self, side => side.read(table, after, limit), side.read(table, after, limit))
    }

    async fn write(&mut self, table: &Table, rows: &[Vec<Value>]) -> Result<(), Error> {
        on_side!(self, side => side.write(table, rows), side.write(table, rows))
    }

    /// The last number of the server's audit log.
    async fn server_audit(&mut self) -> Result<u64, Error> {
        on_side!(self, side => side.server_audit(), side.server_audit())
    }

    /// Lets the rows be read fast.
    async fn settle(&mut self) -> Result<(), Error> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(side) => side.settle().await,
        }
    }

    /// Writes what is not in the tables, or follows from them.
    async fn finish(&mut self, server_audit: u64) -> Result<(), Error> {
        on_side!(self, side => side.finish(server_audit), side.finish(server_audit))
    }
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is done with the rows.
    pub phase: Phase,
    /// The table.
    pub table: &'static str,
    /// Rows of all tables that are done in this phase.
    pub done: u64,
    /// Rows of all tables.
    pub rows: u64,
}

/// What is done with the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// They are written into the target.
    Copying,
    /// Both sides are read and compared.
    Comparing,
}

/// A table that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Its name.
    pub table: &'static str,
    /// Its rows.
    pub rows: u64,
    /// SHA-256 over all of them, in hexadecimal.
    pub checksum: String,
}

/// Rows of the next page, so that pages come to about [`PAGE_BYTES`].
#[derive(Clone, Copy, Debug)]
struct PageSize(usize);

impl PageSize {
    const FIRST: Self = Self(PAGE_ROWS_FIRST);

    /// After a page with so many rows and bytes. It grows slowly, since the next rows may be wider.
    fn after(self, rows: usize, bytes: usize) -> Self {
        let fitting = rows.saturating_mul(PAGE_BYTES) / bytes.max(1);
        Self(fitting.clamp(1, PAGE_ROWS_MAX.min(self.0 * 2)))
    }
}

/// What a copy has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both sides are equal now.
    Copied(Vec<Copied>),
    /// The same copy had ended before; nothing was done.
    EndedBefore,
}

/// Copies everything and seals the source. Calls `report` from time to time.
///
/// # Errors
///
/// The target is not empty and not of this copy, the source is sealed by another one, a side cannot be read or written,
/// or they differ in the end. Then the source may serve as before, the target may not.
pub async fn copy(
    source: &mut Side,
    target: &mut Side,
    report: &mut (dyn FnMut(Progress) + Send),
) -> Result<Outcome, Error> {
    let id = match agree(source, target).await? {
        Agreed::Copy(id) => id,
        Agreed::EndedBefore => return Ok(Outcome::EndedBefore),
    };
    let mut rows = 0;
    for table in &TABLES {
        rows += source.count(table).await?;
    }
    let mut reporter = Reporter { report, at: None, done: 0, rows };
    for table in &TABLES {
        fill(source, target, table, &mut reporter).await?;
    }
    target.settle().await?;
    reporter.done = 0;
    let mut copied = Vec::new();
    for table in &TABLES {
        let here = checksum(source, table, &mut reporter).await?;
        let there = checksum(target, table, &mut reporter).await?;
        if here != there {
            return Err(Error::Internal(format!(
                "table {}: the source has {} rows with checksum {}, the target {} with {}. {ANEW}",
                table.name, here.rows, here.checksum, there.rows, there.checksum
            )));
        }
        copied.push(here);
    }
    reporter.end();
    let server_audit = source.server_audit().await?;
    target.finish(server_audit).await?;
    let other = target.place().to_owned();
    source.set_mark(&Mark { id: id.clone(), role: Role::Sealed, other }).await?;
    let other = source.place().to_owned();
    target.set_mark(&Mark { id, role: Role::Verified, other }).await?;
    Ok(Outcome::Copied(copied))
}

/// What is to be done when source and target cannot become equal.
const ANEW: &str =
    "If the source was served from after this copy began, begin anew with an empty target";

/// Writes what the target lacks of a table.
async fn fill(
    source: &mut Side,
    target: &mut Side,
    table: &'static Table,
    reporter: &mut Reporter<'_>,
) -> Result<(), Error> {
    let mut after = target.last_key(table).await?;
    let resumed = after.is_some();
    if resumed {
        reporter.done += target.count(table).await?;
    }
    let mut size = PageSize::FIRST;
    loop {
        reporter.tell(Phase::Copying, table.name);
        let page = source.read(table, after.as_deref(), size.0).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last[..table.key].to_vec());
        target.write(table, &page).await.map_err(|error| match error {
            // A row of before and one of after may both claim an e-mail or an extension number.
            Error::Internal(why) | Error::Unavailable(why) if resumed => {
                Error::Internal(format!("table {}: {why}. {ANEW}", table.name))
            }
            error => error,
        })?;
        reporter.done += page.len() as u64;
        size = size.after(page.len(), bytes_of(&page));
    }
}

fn bytes_of(page: &[Vec<Value>]) -> usize {
    page.iter().flatten().map(Value::size).sum()
}

/// What both sides are to each other.
enum Agreed {
    /// This copy is under way.
    Copy(String),
    /// It had ended.
    EndedBefore,
}

/// Lets both sides carry the id of this copy, or finds that they do.
async fn agree(source: &mut Side, target: &mut Side) -> Result<Agreed, Error> {
    let (from, to) = (source.mark().await?, target.mark().await?);
    if let (Some(from), Some(to)) = (&from, &to)
        && from.id == to.id
    {
        match (from.role, to.role) {
            (Role::Source | Role::Sealed, Role::Target) => return Ok(Agreed::Copy(to.id.clone())),
            (Role::Sealed, Role::Verified) => return Ok(Agreed::EndedBefore),
            _ => {}
        }
    }
    if let Some(mark) = from.filter(|mark| matches!(mark.role, Role::Sealed | Role::Target)) {
        Mark::check(Some(&mark.write()?))?;
    }
    let mut rows = 0;
    for table in &TABLES {
        rows += target.count(table).await?;
    }
    if rows > 0 || to.is_some() {
        return Err(Error::Internal(format!(
            "the target {} is not empty, and not of a copy from {} that was broken off: name an empty one",
            target.place(),
            source.place()
        )));
    }
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| Error::Internal(format!("no random numbers: {error}")))?;
    let id = format!("copy_{:032x}", u128::from_be_bytes(random));
    // In this order: a target that nobody fills may be taken for any copy, as long as it has no mark.
    let other = target.place().to_owned();
    source.set_mark(&Mark { id: id.clone(), role: Role::Source, other }).await?;
    let other = source.place().to_owned();
    target.set_mark(&Mark { id: id.clone(), role: Role::Target, other }).await?;
    Ok(Agreed::Copy(id))
}

async fn checksum(
    side: &mut Side,
    table: &'static Table,
    reporter: &mut Reporter<'_>,
) -> Result<Copied, Error> {
    let mut hash = Sha256::new();
    let mut after: Option<Vec<Value>> = None;
    let mut rows = 0;
    let mut size = PageSize::FIRST;
    loop {
        reporter.tell(Phase::Comparing, table.name);
        let page = side.read(table, after.as_deref(), size.0).await?;
        let Some(last) = page.last() else { break };
        after = Some(last[..table.key].to_vec());
        for value in page.iter().flatten() {
            value.feed(&mut hash);
        }
        rows += page.len() as u64;
        reporter.done += page.len() as u64;
        size = size.after(page.len(), bytes_of(&page));
    }
    let checksum = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Copied { table: table.name, rows, checksum })
}

struct Reporter<'a> {
    report: &'a mut (dyn FnMut(Progress) + Send),
    at: Option<Instant>,
    done: u64,
    rows: u64,
}

impl Reporter<'_> {
    fn tell(&mut self, phase: Phase, table: &'static str) {
        if self.at.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            self.at = Some(Instant::now());
            self.tell_now(phase, table);
        }
    }

    fn tell_now(&mut self, phase: Phase, table: &'static str) {
        // Both sides are read when they are compared.
        let rows = if phase == Phase::Comparing { self.rows * 2 } else { self.rows };
        (self.report)(Progress { phase, table, done: self.done, rows });
    }

    fn end(&mut self) {
        self.tell_now(Phase::Comparing, "audit");
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
