//! A data directory as one side of a copy.

use std::fs::File;
use std::path::Path;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, ToSql, params_from_iter};

use super::{lock_directory, make_directory, open_database, unavailable};
use crate::store::Error;
use crate::store::copy::Mark;
use crate::store::copy::tables::{Table, Value};

/// Where the mark stands in `meta`.
const MARK: &str = "copy";

impl ToSql for Value {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>, rusqlite::Error> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Number(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// What the store says of copies.
fn find_mark(connection: &Connection) -> Result<Option<String>, rusqlite::Error> {
    connection
        .query_row("SELECT value FROM meta WHERE name = ?1", [MARK], |row| row.get(0))
        .optional()
}

/// Refuses a store that was copied away or is not filled yet.
pub(super) fn check_mark(connection: &Connection) -> Result<(), Error> {
    let mark = find_mark(connection).map_err(|error| unavailable(&error))?;
    Mark::check(mark.as_deref())
}

/// A data directory that this process alone has open.
#[derive(Debug)]
pub struct SqliteSide {
    connection: Connection,
    place: String,
    _lock: File,
}

impl SqliteSide {
    /// Opens the store in this directory; makes an empty one when it is not there.
    ///
    /// # Errors
    ///
    /// Another process uses it, or it cannot be opened.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        make_directory(directory)?;
        let lock = lock_directory(directory)?;
        let (_, connection) = open_database(directory)?;
        // Those from before secrets were sealed; a start seals them.
        let unsealed = connection
            .query_row("SELECT EXISTS (SELECT 1 FROM app_secrets WHERE key IS NULL)", [], |row| {
                row.get::<_, bool>(0)
            })
            .map_err(|error| unavailable(&error))?;
        if unsealed {
            return Err(Error::Internal(format!(
                "{} holds signing secrets that are not sealed yet: start this version's server on it once, and stop it",
                directory.display()
            )));
        }
        let place = directory.display().to_string();
        Ok(Self { connection, place, _lock: lock })
    }

    pub(in crate::store) fn place(&self) -> &str {
        &self.place
    }

    pub(in crate::store) fn mark(&self) -> Result<Option<String>, Error> {
        find_mark(&self.connection).map_err(|error| unavailable(&error))
    }

    pub(in crate::store) fn set_mark(&self, mark: &str) -> Result<(), Error> {
        self.connection
            .execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)", (MARK, mark))
            .map(drop)
            .map_err(|error| unavailable(&error))
    }

    pub(in crate::store) fn count(&self, table: &Table) -> Result<u64, Error> {
        self.connection
            .query_row(&format!("SELECT count(*) FROM {}", table.name), [], |row| {
                super::events::uint(row, 0)
            })
            .map_err(|error| unavailable(&error))
    }

    pub(in crate::store) fn last_key(&self, table: &Table) -> Result<Option<Vec<Value>>, Error> {
        let descending = table.key_names().replace(',', " DESC,");
        let sql = format!(
            "SELECT {} FROM {} ORDER BY {descending} DESC LIMIT 1",
            table.key_names(),
            table.name
        );
        self.connection
            .query_row(&sql, [], |row| (0..table.key).map(|at| value_at(row, at, table)).collect())
            .optional()
            .map_err(|error| unavailable(&error))
    }

    pub(in crate::store) fn read(
        &self,
        table: &Table,
        after: Option<&[Value]>,
        limit: usize,
    ) -> Result<Vec<Vec<Value>>, Error> {
        let (names, key) = (table.names(), table.key_names());
        let filter = match after {
            None => String::new(),
            Some(_) => format!("WHERE ({key}) > ({})", places(table.key)),
        };
        let sql =
            format!("SELECT {names} FROM {} {filter} ORDER BY {key} LIMIT {limit}", table.name);
        let read = || -> Result<_, rusqlite::Error> {
            self.connection
                .prepare_cached(&sql)?
                .query_map(params_from_iter(after.unwrap_or_default()), |row| {
                    (0..table.columns.len()).map(|at| value_at(row, at, table)).collect()
                })?
                .collect()
        };
        read().map_err(|error| unavailable(&error))
    }

    pub(in crate::store) fn write(
        &mut self,
        table: &Table,
        rows: &[Vec<Value>],
    ) -> Result<(), Error> {
        let sql = format!(
            "INSERT INTO {} ({}) VALUES ({})",
            table.name,
            table.names(),
            places(table.columns.len())
        );
        let mut write = || -> Result<(), rusqlite::Error> {
            let tx = self.connection.transaction()?;
            {
                let mut insert = tx.prepare_cached(&sql)?;
                for row in rows {
                    insert.execute(params_from_iter(row))?;
                }
            }
            tx.commit()
        };
        write().map_err(|error| unavailable(&error))
    }

    pub(in crate::store) fn server_audit(&self) -> Result<u64, Error> {
        self.connection
            .query_row("SELECT value FROM meta WHERE name = 'audit_head'", [], |row| {
                super::events::uint(row, 0)
            })
            .optional()
            .map(Option::unwrap_or_default)
            .map_err(|error| unavailable(&error))
    }

    /// Which e-mails are taken, and the end of the server's audit log.
    pub(in crate::store) fn finish(&mut self, server_audit: u64) -> Result<(), Error> {
        let mut finish = || -> Result<(), rusqlite::Error> {
            let tx = self.connection.transaction()?;
            tx.execute_batch(
                "DELETE FROM emails; \
                 INSERT INTO emails SELECT service, email, contact FROM contacts ORDER BY service, email",
            )?;
            tx.execute(
                "INSERT OR REPLACE INTO meta (name, value) VALUES ('audit_head', ?1)",
                [super::events::int(server_audit)],
            )?;
            tx.commit()?;
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        finish().map_err(|error| unavailable(&error))
    }
}

#[cfg(test)]
impl SqliteSide {
    pub(in crate::store) fn sql(&self, sql: &str) {
        self.connection.execute_batch(sql).unwrap();
    }

    pub(in crate::store) fn texts(&self, sql: &str) -> Vec<String> {
        let mut statement = self.connection.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

fn places(count: usize) -> String {
    vec!["?"; count].join(", ")
}

fn value_at(row: &rusqlite::Row<'_>, at: usize, table: &Table) -> Result<Value, rusqlite::Error> {
    let value = row.get_ref(at)?;
    let damaged = |why: String| {
        let column = table.columns.get(at).map_or("", |(name, _)| *name);
        let why = format!("{}.{column} {why}", table.name).into();
        rusqlite::Error::FromSqlConversionFailure(at, value.data_type(), why)
    };
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Number(number),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(error) => return Err(damaged(format!("is damaged, {error}"))),
        },
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
        ValueRef::Real(_) => return Err(damaged("holds a number with a fraction".to_owned())),
    })
}
