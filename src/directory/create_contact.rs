//! Adds a staff contact to the roll.

use crate::domain::audit::Origin;
use crate::domain::contact::{ContactPatch, check_create};
use crate::domain::id::ServiceId;
use crate::store::Error;
use crate::store::command::{ContactAnswer, ContactChange, IdempotencyKey};

use super::Directory;

impl Directory {
    /// Creates a contact; with a key, the same request gets the same answer for 24 h.
    ///
    /// # Errors
    ///
    /// Refused, conflict on e-mail or extension number, key reused, unavailable.
    pub async fn create_contact(
        &self,
        origin: Origin,
        service: ServiceId,
        wish: ContactPatch,
        key: Option<IdempotencyKey>,
    ) -> Result<ContactAnswer, Error> {
        // The writer checks again; here a wish that can never succeed does not take its time.
        check_create(&wish).map_err(Error::Refused)?;
        self.write.by(origin).change_contact(service, ContactChange::Create(wish), key).await
    }
}
