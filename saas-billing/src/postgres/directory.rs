//! `saas.billing_directory`: which tenant a customer or a checkout session of ours belongs to.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::Scope;
use crate::object::{ObjectId, ObjectKind};

/// The tenant that an object is linked to.
pub(crate) async fn tenant_of(
    connection: &mut PgConnection,
    scope: &Scope,
    object: &ObjectId,
) -> Result<Option<TenantId>, CoreError> {
    let tenant: Option<Option<Uuid>> = sqlx::query_scalar(
        "select tenant from saas.billing_directory where account = $1 and livemode = $2 and object_id = $3",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(object.as_str())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(tenant.flatten().map(TenantId::from_uuid))
}

/// Locks the row of a customer or a checkout session, made if need be, and tells whether it has been linked meanwhile. Whoever parks a receipt holds
/// this lock until the receipt is parked; whoever links takes it before looking for parked receipts.
pub(crate) async fn lock_unlinked(
    connection: &mut PgConnection,
    scope: &Scope,
    (kind, object): (ObjectKind, &ObjectId),
) -> Result<Option<TenantId>, CoreError> {
    let tenant: Option<Uuid> = sqlx::query_scalar(
        "insert into saas.billing_directory as known (account, livemode, object_id, kind)
         values ($1, $2, $3, $4)
         on conflict (account, livemode, object_id) do update set kind = known.kind
         returning tenant",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(object.as_str())
    .bind(kind.as_str())
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(tenant.map(TenantId::from_uuid))
}

/// What linking found.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// It is linked now, and was not before.
    New,
    /// It was already linked to this tenant.
    Known,
    /// It belongs to another tenant. Nothing was changed.
    Foreign,
}

/// Links an object to a tenant, for good.
pub(crate) async fn link(
    connection: &mut PgConnection,
    scope: &Scope,
    (kind, object): (ObjectKind, &ObjectId),
    tenant: TenantId,
    now: DateTime<Utc>,
) -> Result<Link, CoreError> {
    let owner: Option<Uuid> = sqlx::query_scalar(
        "insert into saas.billing_directory as known (account, livemode, object_id, kind)
         values ($1, $2, $3, $4)
         on conflict (account, livemode, object_id) do update set kind = known.kind
         returning tenant",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(object.as_str())
    .bind(kind.as_str())
    .fetch_one(&mut *connection)
    .await
    .map_err(CoreError::from_database)?;
    match owner {
        Some(owner) if owner == tenant.as_uuid() => return Ok(Link::Known),
        Some(_) => return Ok(Link::Foreign),
        None => {}
    }
    sqlx::query(
        "update saas.billing_directory
         set tenant = $4, linked_at = $5
         where account = $1 and livemode = $2 and object_id = $3",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(object.as_str())
    .bind(tenant.as_uuid())
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(Link::New)
}
