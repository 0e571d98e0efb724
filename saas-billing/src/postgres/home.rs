//! `saas.billing_home`: the account and mode that this database writes to at Stripe.

use saas_core::CoreError;
use sqlx::PgConnection;

use super::Scope;
use crate::error::BillingError;

const REMEDY: &str = "give each account and mode that is written to a database of its own; if this one has changed sides for \
                      good, delete the row of `saas.billing_home`";

/// Whether this service may write: the one that does, or any while there is none.
///
/// # Errors
/// [`Misconfigured`](BillingError::Misconfigured) for the service of another account or mode.
pub(crate) async fn check(connection: &mut PgConnection, scope: &Scope) -> Result<(), BillingError> {
    find(connection).await?.map_or(Ok(()), |home| compare(&home, scope))
}

/// Lets the first service that writes be the one that does. Tenants that are locked are locked before.
///
/// # Errors
/// [`Misconfigured`](BillingError::Misconfigured) for the service of another account or mode.
pub(crate) async fn claim(connection: &mut PgConnection, scope: &Scope) -> Result<(), BillingError> {
    if let Some(home) = find(connection).await? {
        return compare(&home, scope);
    }
    sqlx::query("insert into saas.billing_home (account, livemode) values ($1, $2) on conflict (only_one) do nothing")
        .bind(&scope.account)
        .bind(scope.livemode)
        .execute(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
    match find(connection).await? {
        Some(home) => compare(&home, scope),
        None => Ok(()),
    }
}

async fn find(connection: &mut PgConnection) -> Result<Option<(String, bool)>, CoreError> {
    sqlx::query_as("select account, livemode from saas.billing_home")
        .fetch_optional(connection)
        .await
        .map_err(CoreError::from_database)
}

fn compare((account, livemode): &(String, bool), scope: &Scope) -> Result<(), BillingError> {
    if (account, livemode) == (&scope.account, &scope.livemode) {
        return Ok(());
    }
    let mode = if *livemode { "live" } else { "test" };
    let whose = if account.is_empty() { "the platform's own account" } else { account };
    Err(BillingError::Misconfigured { what: format!("this database writes to {whose} in {mode} mode"), remedy: REMEDY })
}
