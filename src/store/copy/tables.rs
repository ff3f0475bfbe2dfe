//! What is copied: the tables with the columns that every back end has, and their values in one form.

use sha2::{Digest, Sha256};

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A number, a time, or a flag as 0 or 1.
    Number(i64),
    /// A text.
    Text(String),
    /// Bytes, and identifiers.
    Bytes(Vec<u8>),
}

impl Value {
    /// Bytes it occupies, about.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Null | Self::Number(_) => 8,
            Self::Text(text) => 8 + text.len(),
            Self::Bytes(bytes) => 8 + bytes.len(),
        }
    }

    /// Adds it to a checksum: its kind, its length, its bytes.
    pub(super) fn feed(&self, hash: &mut Sha256) {
        match self {
            Self::Null => hash.update([0]),
            Self::Number(number) => {
                hash.update([1]);
                hash.update(number.to_be_bytes());
            }
            Self::Text(text) => {
                hash.update([2]);
                hash.update((text.len() as u64).to_be_bytes());
                hash.update(text);
            }
            Self::Bytes(bytes) => {
                hash.update([3]);
                hash.update((bytes.len() as u64).to_be_bytes());
                hash.update(bytes);
            }
        }
    }
}

/// How a column is kept in PostgreSQL; the embedded store has four kinds of values only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An identifier: UUID, 16 bytes.
    Id,
    /// BYTEA.
    Bytes,
    /// BIGINT.
    Long,
    /// INTEGER.
    Int,
    /// SMALLINT.
    Small,
    /// BOOLEAN.
    Flag,
    /// TEXT.
    Text,
}

/// A table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its columns, those of the key first.
    pub columns: &'static [(&'static str, Kind)],
    /// How many of them are the key.
    pub key: usize,
}

impl Table {
    /// The names of its columns with commas.
    #[must_use]
    pub fn names(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// The names of its key's columns with commas.
    #[must_use]
    pub fn key_names(&self) -> String {
        self.columns[..self.key].iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

use Kind::{Bytes, Flag, Id, Int, Long, Small, Text};

/// Everything that makes up a store. What follows from it (taken e-mails, free numbers, shards) is made anew.
pub const TABLES: [Table; 14] = [
    Table {
        name: "services",
        columns: &[
            ("service", Id),
            ("name", Text),
            ("created_at", Long),
            ("head", Long),
            ("last_event_at", Long),
            ("contacts", Long),
            ("hidden", Flag),
            ("floor", Long),
            ("audit_head", Long),
        ],
        key: 1,
    },
    Table {
        name: "apps",
        columns: &[
            ("service", Id),
            ("app", Id),
            ("name", Text),
            ("scopes", Long),
            ("created_at", Long),
        ],
        key: 2,
    },
    Table {
        name: "app_tokens",
        columns: &[
            ("hash", Bytes),
            ("service", Id),
            ("app", Id),
            ("expires_at", Long),
            ("created_at", Long),
            ("used_at", Long),
        ],
        key: 1,
    },
    Table {
        name: "admin_tokens",
        columns: &[("hash", Bytes), ("created_at", Long), ("used_at", Long), ("expires_at", Long)],
        key: 1,
    },
    Table {
        name: "app_secrets",
        columns: &[
            ("service", Id),
            ("app", Id),
            ("number", Long),
            ("secret", Bytes),
            ("expires_at", Long),
            ("key", Bytes),
        ],
        key: 3,
    },
    Table {
        name: "contacts",
        columns: &[
            ("service", Id),
            ("contact", Id),
            ("version", Long),
            ("created_at", Long),
            ("updated_at", Long),
            ("email", Text),
            ("extension", Int),
            ("search_name", Text),
            ("fields", Text),
        ],
        key: 2,
    },
    Table {
        name: "events",
        columns: &[
            ("service", Id),
            ("sequence", Long),
            ("event", Id),
            ("contact", Id),
            ("kind", Small),
            ("contact_version", Long),
            ("full_name", Text),
            ("at", Long),
        ],
        key: 2,
    },
    Table {
        name: "subscriptions",
        columns: &[
            ("service", Id),
            ("app", Id),
            ("url", Text),
            ("enabled", Small),
            ("reason", Text),
            ("ticket", Long),
            ("verified_at", Long),
            ("updated_at", Long),
        ],
        key: 2,
    },
    Table {
        name: "progress",
        columns: &[
            ("service", Id),
            ("app", Id),
            ("generation", Long),
            ("cursor", Long),
            ("bitmap", Bytes),
            ("failing_since", Long),
            ("failing_attempts", Long),
            ("since", Long),
            ("failed_attempts", Long),
            ("gap_from", Long),
            ("gap_to", Long),
        ],
        key: 2,
    },
    Table {
        name: "held",
        columns: &[
            ("service", Id),
            ("app", Id),
            ("sequence", Long),
            ("contact", Id),
            ("retries_used", Long),
            ("attempts", Long),
            ("due_at", Long),
        ],
        key: 3,
    },
    Table {
        name: "exhausted",
        columns: &[
            ("service", Id),
            ("app", Id),
            ("sequence", Long),
            ("contact", Id),
            ("attempts", Long),
            ("at", Long),
        ],
        key: 3,
    },
    Table {
        name: "idempotency_keys",
        columns: &[
            ("service", Id),
            ("app", Id),
            ("key", Text),
            ("request_hash", Bytes),
            ("answer", Text),
            ("at", Long),
        ],
        key: 3,
    },
    Table {
        name: "failed_attempts",
        columns: &[
            ("service", Id),
            ("app", Id),
            ("number", Long),
            ("sequence", Long),
            ("attempt", Long),
            ("at", Long),
            ("status", Int),
            ("step", Text),
            ("answer", Bytes),
        ],
        key: 3,
    },
    Table {
        name: "audit",
        columns: &[
            ("service", Id),
            ("first", Long),
            ("entries", Long),
            ("at", Long),
            ("who", Text),
            ("address", Text),
            ("action", Text),
            ("sequence", Long),
            ("app", Id),
            ("subject", Bytes),
            ("target", Text),
            ("reason", Text),
        ],
        key: 2,
    },
];
