//! Many changes of the roll in one transaction, in which the refused are left out.

use crate::domain::audit::Origin;
use crate::domain::id::ServiceId;
use crate::store::Error;
use crate::store::command::{ContactAnswer, ContactChange};

use super::Directory;

/// Most changes in a batch: about what a group of the writer takes, so that a batch does not hold others up.
pub const BATCH_ITEMS_MAX: usize = 500;

impl Directory {
    /// Applies changes in order; one result for each.
    ///
    /// # Errors
    ///
    /// Not found when the service is not there, unavailable: then nothing is known of any of them.
    pub async fn change_contacts(
        &self,
        origin: Origin,
        service: ServiceId,
        changes: Vec<ContactChange>,
    ) -> Result<Vec<Result<ContactAnswer, Error>>, Error> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        self.write.by(origin).change_contacts(service, changes).await
    }
}
