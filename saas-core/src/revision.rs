//! The revision of a tenant: a number that rises, in the same transaction, whenever the answer of the gate may change.
//!
//! A process that has heard of revision *n* accepts nothing older, whatever a cache or a slow read brings.

#[cfg(feature = "postgres")]
mod listener;

use std::fmt;

#[cfg(feature = "postgres")]
pub use listener::{Holder, Listener};
use serde::{Deserialize, Serialize};

use crate::{InvalidInput, TenantId};

/// How often what the gate answers for a tenant has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(u64);

impl Revision {
    /// Before anything was heard.
    pub const NONE: Self = Self(0);

    /// A revision read from storage.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The channel on which PostgreSQL tells every process of a new revision, at commit.
pub const CHANNEL: &str = "saas_revision";

/// Reads a notification: `<tenant>:<revision>`.
///
/// # Errors
/// When the text is not of that form. Any login can send one; nothing of the foundation does: a listener counts and ignores
/// it.
pub fn parse_notification(payload: &str) -> Result<(TenantId, Revision), InvalidInput> {
    let invalid = || InvalidInput::new("revision notification", "is not `<tenant>:<revision>`", "ignore it");
    let (tenant, number) = payload.split_once(':').ok_or_else(invalid)?;
    let number = number.parse().map_err(|_| invalid())?;
    Ok((tenant.parse().map_err(|_| invalid())?, Revision(number)))
}

#[cfg(feature = "postgres")]
pub use postgres::{bump_in, current_in};

#[cfg(feature = "postgres")]
mod postgres {
    use sqlx::PgConnection;

    use super::Revision;
    use crate::{CoreError, TenantId};

    const CORRUPT: CoreError = CoreError::Corrupt { table: "saas.tenant", column: "revision" };

    /// Raises the tenant's revision and tells every process when the caller's transaction commits.
    ///
    /// Takes the tenant's row: concurrent changes of one tenant queue up here, in the order tenant → subscription →
    /// invoice that all of the foundation keeps.
    ///
    /// # Errors
    /// [`NotFound`](CoreError::NotFound) when the tenant does not exist or the transaction is bound to another one.
    pub async fn bump_in(connection: &mut PgConnection, tenant: TenantId) -> Result<Revision, CoreError> {
        let bumped: Option<i64> = sqlx::query_scalar("select saas.bump_revision($1)")
            .bind(tenant.as_uuid())
            .fetch_one(connection)
            .await
            .map_err(CoreError::from_database)?;
        let bumped = bumped.ok_or(CoreError::NotFound { what: "tenant" })?;
        u64::try_from(bumped).map(Revision::new).map_err(|_| CORRUPT)
    }

    /// The tenant's present revision. Read it *before* the state it guards: the state may then only be newer.
    ///
    /// # Errors
    /// [`NotFound`](CoreError::NotFound) as for [`bump_in`].
    pub async fn current_in(connection: &mut PgConnection, tenant: TenantId) -> Result<Revision, CoreError> {
        let current: Option<i64> = sqlx::query_scalar("select revision from saas.tenant where id = $1")
            .bind(tenant.as_uuid())
            .fetch_optional(connection)
            .await
            .map_err(CoreError::from_database)?;
        let current = current.ok_or(CoreError::NotFound { what: "tenant" })?;
        u64::try_from(current).map(Revision::new).map_err(|_| CORRUPT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_is_read_back_and_anything_else_refused() {
        let tenant = "01900000-0000-7000-8000-000000000001";
        let (id, revision) = parse_notification(&format!("{tenant}:42")).unwrap();
        assert_eq!((id.to_string().as_str(), revision.get()), (tenant, 42));
        for bad in ["", ":", "42", &format!("{tenant}:"), &format!("{tenant}:-1"), "x:1"] {
            assert!(parse_notification(bad).is_err(), "{bad:?}");
        }
    }
}
