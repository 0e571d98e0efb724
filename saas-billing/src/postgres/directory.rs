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

/// The tenants that these objects are linked to; nothing about one that is not linked.
pub(crate) async fn tenants_of(
    connection: &mut PgConnection,
    scope: &Scope,
    objects: &[&str],
) -> Result<Vec<(String, TenantId)>, CoreError> {
    let rows: Vec<(String, Uuid)> = sqlx::query_as(
        "select object_id, tenant
         from saas.billing_directory
         where account = $1 and livemode = $2 and object_id = any($3) and tenant is not null",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(objects)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(rows.into_iter().map(|(object, tenant)| (object, TenantId::from_uuid(tenant))).collect())
}

/// Up to `limit` customers that are linked, behind `after`, by id.
pub(crate) async fn customers(
    connection: &mut PgConnection,
    scope: &Scope,
    after: Option<&ObjectId>,
    limit: i64,
) -> Result<Vec<(ObjectId, TenantId)>, CoreError> {
    let rows: Vec<(String, Uuid)> = sqlx::query_as(
        "select object_id, tenant
         from saas.billing_directory
         where account = $1 and livemode = $2 and kind = 'customer' and tenant is not null
           and ($3::text is null or object_id > $3)
         order by object_id
         limit $4",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(after.map(ObjectId::as_str))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let corrupt = |_| CoreError::Corrupt { table: "saas.billing_directory", column: "object_id" };
    rows.into_iter().map(|(id, tenant)| Ok((id.try_into().map_err(corrupt)?, TenantId::from_uuid(tenant)))).collect()
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
    /// It is linked now, and was not before. Unless somebody has parked something until then, nothing waits for it.
    New { awaited: bool },
    /// It was already linked to this tenant.
    Known,
    /// It belongs to another tenant. Nothing was changed.
    Foreign,
}

/// Links an object to a tenant, whose lock is held, for good.
pub(crate) async fn link(
    connection: &mut PgConnection,
    scope: &Scope,
    (kind, object): (ObjectKind, &ObjectId),
    tenant: TenantId,
    now: DateTime<Utc>,
) -> Result<Link, CoreError> {
    // Under the tenant's lock nobody else links it to this tenant: what the statement sees of before is true of now. A row
    // that the insert has met has `xmax` set, by the lock that it took.
    let (owner, before, awaited): (Uuid, Option<Uuid>, bool) = sqlx::query_as(
        "insert into saas.billing_directory as known (account, livemode, object_id, kind, tenant, linked_at)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (account, livemode, object_id) do update
         set tenant = coalesce(known.tenant, excluded.tenant), linked_at = coalesce(known.linked_at, excluded.linked_at)
         returning tenant,
                   (select before.tenant
                    from saas.billing_directory before
                    where before.account = $1 and before.livemode = $2 and before.object_id = $3),
                   xmax <> 0",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(object.as_str())
    .bind(kind.as_str())
    .bind(tenant.as_uuid())
    .bind(now)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(match before {
        _ if owner != tenant.as_uuid() => Link::Foreign,
        Some(_) => Link::Known,
        None => Link::New { awaited },
    })
}
