//! The commands that are not changes of the roll: what each does, and its entry in the audit log.

use super::change::{Change, Stop};
use super::{deliveries, secrets, subscriptions, tenancy};
use crate::domain::audit::{Action, SERVER, Subject};
use crate::domain::id::{AppId, ServiceId};
use crate::domain::tenancy::TokenHash;
use crate::store::Error;
use crate::store::command::{Command, Reply};

/// Runs one command in the transaction of `change`. It may be run again in another one when the first did not happen:
/// all that it leaves behind is in that transaction and in `change`.
pub(super) async fn run(change: &mut Change<'_>, command: &Command) -> Result<Reply, Stop> {
    match command {
        Command::CreateService(name) => {
            let service = tenancy::create_service(change, name).await?;
            change.note(SERVER, Action::ServiceCreate, about_service(service.id));
            Ok(Reply::Service(service))
        }
        Command::DeleteService(service) => {
            tenancy::delete_service(change, *service).await?;
            change.note(SERVER, Action::ServiceDelete, about_service(*service));
            Ok(Reply::Done)
        }
        Command::CreateApp(new) => {
            let app = tenancy::create_app(change, new).await?;
            let subject = Subject { token: Some(new.token.id()), ..about(app.id) };
            change.note(app.service, Action::AppCreate, subject);
            Ok(Reply::App(app))
        }
        Command::DeleteApp(service, app) => {
            tenancy::delete_app(change, *service, *app).await?;
            change.note(*service, Action::AppDelete, about(*app));
            Ok(Reply::Done)
        }
        Command::RotateToken { service, app, token, earlier_until } => {
            tenancy::rotate_token(change, *service, *app, *token, *earlier_until).await?;
            let subject = Subject { token: Some(token.id()), ..about(*app) };
            change.note(*service, Action::TokenRotate, subject);
            Ok(Reply::Done)
        }
        Command::RotateSecret { service, app, secret, earlier_until } => {
            secrets::rotate_secret(change, *service, *app, secret, *earlier_until).await?;
            change.note(*service, Action::SecretRotate, about(*app));
            Ok(Reply::Done)
        }
        Command::SetSubscription { service, app, ticket, wish } => {
            subscriptions::set_subscription(change, *service, *app, *ticket, wish)
                .await
                .map(|subscription| Reply::Subscription(Box::new(subscription)))
        }
        Command::Redeliver { service, app, sequence, later } => {
            deliveries::redeliver(change, *service, *app, *sequence, later).await?;
            let subject = Subject { sequence: Some(*sequence), ..about(*app) };
            change.note(*service, Action::Redeliver, subject);
            Ok(Reply::Done)
        }
        Command::Replay { service, app, from } => {
            let replayed = deliveries::replay(change, *service, *app, *from).await?;
            let subject = Subject { sequence: Some(replayed.after), ..about(*app) };
            change.note(*service, Action::Replay, subject);
            Ok(Reply::Replayed(replayed))
        }
        Command::SetAdminToken(token) => {
            tenancy::set_admin_token(change, *token).await?;
            change.note(SERVER, Action::AdminTokenSet, about_token(*token));
            Ok(Reply::Done)
        }
        Command::SetFirstAdminToken(token) => set_first_admin_token(change, *token).await,
        Command::RotateAdminToken { token, earlier_until } => {
            tenancy::rotate_admin_token(change, *token, *earlier_until).await?;
            change.note(SERVER, Action::AdminTokenRotate, about_token(*token));
            Ok(Reply::Done)
        }
        Command::ChangeContact { .. }
        | Command::ChangeContacts { .. }
        | Command::NoteTokenUse(_) => {
            Err(Error::Internal("a command of a group was run alone".to_owned()).into())
        }
    }
}

async fn set_first_admin_token(change: &mut Change<'_>, token: TokenHash) -> Result<Reply, Stop> {
    let is_first = tenancy::set_first_admin_token(change, token).await?;
    if is_first {
        change.note(SERVER, Action::AdminTokenSet, about_token(token));
    }
    Ok(Reply::IsFirst(is_first))
}

/// A change of an app or of what belongs to it.
fn about(app: AppId) -> Subject {
    Subject { app: Some(app), ..Subject::default() }
}

fn about_service(service: ServiceId) -> Subject {
    Subject { service: Some(service), ..Subject::default() }
}

fn about_token(token: TokenHash) -> Subject {
    Subject { token: Some(token.id()), ..Subject::default() }
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
