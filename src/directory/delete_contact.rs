//! Takes a staff contact off the roll, for good.

use crate::domain::audit::Origin;
use crate::domain::id::{ContactId, ServiceId};
use crate::store::Error;
use crate::store::command::{ContactAnswer, ContactChange, IfMatch};

use super::Directory;

impl Directory {
    /// Deletes a contact; its e-mail address and extension number are free again.
    ///
    /// # Errors
    ///
    /// Not found, version mismatch, unavailable.
    pub async fn delete_contact(
        &self,
        origin: Origin,
        service: ServiceId,
        id: ContactId,
        if_match: IfMatch,
    ) -> Result<ContactAnswer, Error> {
        self.write
            .by(origin)
            .change_contact(service, ContactChange::Delete { id, if_match }, None)
            .await
    }
}
