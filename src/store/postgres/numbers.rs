//! What a writer remembers between groups: which extension numbers of a service were taken at which head of its log.
//!
//! Each event says which number its change gave up and which it took, so whoever holds the lock of the service brings what
//! is remembered forward by the events since, of whichever node. What is too far behind, or was never read, is read from
//! the contacts, before the lock is taken.

use std::collections::HashMap;

use deadpool_postgres::ClientWrapper;
use tokio_postgres::Row;

use super::change::{column, uint};
use super::statements::Statements;
use super::writer::Failure;
use crate::domain::id::ServiceId;
use crate::store::Error;
use crate::store::extension_map::ExtensionMap;

/// Memory for what is remembered; beyond it all is forgotten. A map is one bit for each contact, in practice: this is
/// enough for 200 million.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// What a service takes besides its map.
const SERVICE_BYTES: usize = 100;
/// Events by which a map is brought forward at most; beyond it the contacts are read. More would hold the lock of the
/// service for longer.
pub(super) const BEHIND_MAX: i64 = 10_000;

/// The numbers that were taken in a service at this head of its log.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    pub(super) head: u64,
    pub(super) taken: ExtensionMap,
}

impl Numbers {
    /// Follows an event.
    pub(super) fn follow(&mut self, freed: Option<i32>, taken: Option<i32>) {
        for (number, is_taken) in [(freed, false), (taken, true)] {
            if let Some(number) = number.and_then(|number| u32::try_from(number).ok()) {
                self.taken.set(number, is_taken);
            }
        }
    }
}

/// What is remembered of all services.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    services: HashMap<ServiceId, Numbers>,
    bytes: usize,
}

impl Remembered {
    /// Takes the numbers of a service out, for a group to change them. They come back when it is committed; otherwise
    /// they are forgotten.
    pub(super) fn take(&mut self, service: ServiceId) -> Option<Numbers> {
        let numbers = self.services.remove(&service)?;
        self.bytes -= SERVICE_BYTES + numbers.taken.bytes();
        Some(numbers)
    }

    /// Remembers the numbers of a service.
    pub(super) fn put(&mut self, service: ServiceId, numbers: Numbers) {
        drop(self.take(service));
        if self.bytes > BYTES_MAX {
            self.forget();
        }
        self.bytes += SERVICE_BYTES + numbers.taken.bytes();
        self.services.insert(service, numbers);
    }

    /// Forgets everything: the database may be another one.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Reads the numbers of a service; `None` when there is no such service.
pub(super) async fn read(
    client: &ClientWrapper,
    statements: &Statements,
    service: ServiceId,
) -> Result<Option<Numbers>, Failure> {
    let rows = client.query(&statements.all_numbers, &[&service.uuid()]).await;
    let rows = rows.map_err(Failure::before_commit)?;
    rows.first().map(of_row).transpose().map_err(Failure::Broken)
}

fn of_row(row: &Row) -> Result<Numbers, Error> {
    let mut numbers = Numbers { head: uint(row, 0)?, ..Numbers::default() };
    let taken: Option<Vec<i32>> = column(row, 1)?;
    for number in taken.unwrap_or_default() {
        numbers.follow(None, Some(number));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::{BYTES_MAX, Numbers, Remembered};
    use crate::domain::contact_rules::EXTENSION_MAX;
    use crate::domain::id::ServiceId;

    fn service(number: u128) -> ServiceId {
        ServiceId::from_uuid(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut remembered = Remembered::default();
        let mut large = Numbers::default();
        large.follow(None, Some(i32::try_from(EXTENSION_MAX).unwrap()));
        for number in 0..1_000 {
            remembered.put(service(number), large.clone());
            // Again and again in place of itself costs nothing.
            remembered.put(service(number), large.clone());
            assert!(remembered.bytes <= BYTES_MAX + 200_000);
        }
        assert!(remembered.services.len() > 100);
        assert!(remembered.take(service(999)).is_some());
        assert!(remembered.take(service(999)).is_none());
        let left: usize = remembered.services.len();
        for number in 0..1_000 {
            drop(remembered.take(service(number)));
        }
        assert!(left > 0 && remembered.bytes == 0);
    }
}
