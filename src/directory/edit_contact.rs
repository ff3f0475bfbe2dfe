//! Changes fields of a staff contact.

use crate::domain::audit::Origin;
use crate::domain::contact::ContactPatch;
use crate::domain::id::{ContactId, ServiceId};
use crate::store::Error;
use crate::store::command::{ContactAnswer, ContactChange, IfMatch};

use super::Directory;

impl Directory {
    /// Edits a contact; an edit that changes nothing makes no event.
    ///
    /// # Errors
    ///
    /// Not found, version mismatch, refused, conflict on the extension number, unavailable.
    pub async fn edit_contact(
        &self,
        origin: Origin,
        service: ServiceId,
        id: ContactId,
        patch: ContactPatch,
        if_match: IfMatch,
    ) -> Result<ContactAnswer, Error> {
        self.write
            .by(origin)
            .change_contact(service, ContactChange::Edit { id, patch, if_match }, None)
            .await
    }
}
