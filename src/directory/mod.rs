//! Use cases that change the roll, and those of the administrator: one command each, submitted to the store's writer.
//!
//! Every surface comes through here, so that a change and its event are always one transaction. Nothing here knows
//! of HTTP, and nothing here sees a delivery.

pub mod batch;
pub mod create_contact;
pub mod delete_contact;
pub mod edit_contact;
pub mod tenancy;

use crate::store::queue::Write;

/// The use cases.
#[derive(Clone, Debug)]
pub struct Directory {
    write: Write,
}

impl Directory {
    /// Submits to this writer.
    #[must_use]
    pub const fn new(write: Write) -> Self {
        Self { write }
    }
}
