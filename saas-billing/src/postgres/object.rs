//! `saas.billing_object`: a tenant's Stripe objects, merged.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use serde_json::Value;
use sqlx::{PgConnection, types::Uuid};

use crate::{
    derive::{AnyMerged, Derived, TenantObjects},
    merge::Fact,
    object::{ObjectId, ObjectKind},
    postgres::state,
};

const CORRUPT: CoreError = CoreError::Corrupt { table: "saas.billing_object", column: "merged" };

/// The objects that what the tenant has and had can depend on, and those named besides; with what was derived last.
pub(crate) async fn load(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
    besides: &[&str],
) -> Result<(TenantObjects, Option<Derived>), CoreError> {
    let rows: Vec<(Option<String>, Value)> = sqlx::query_as(
        "select kind::text, merged
         from saas.billing_object
         where tenant_id = $1 and livemode = $2 and (is_current or is_past or object_id = any($3))
         union all
         select null, derived
         from saas.billing_state
         where tenant_id = $1 and livemode = $2",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(besides)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let (mut objects, mut state) = (TenantObjects::default(), None);
    for (kind, value) in rows {
        match kind {
            Some(kind) => objects.insert(read((kind, value))?),
            None => state = Some(state::read(value)?),
        }
    }
    Ok((objects, state))
}

/// The objects named, and no others.
pub(crate) async fn load_only(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
    ids: &[&str],
) -> Result<Vec<AnyMerged>, CoreError> {
    let rows: Vec<(String, Value)> = sqlx::query_as(
        "select kind, merged
         from saas.billing_object
         where tenant_id = $1 and livemode = $2 and object_id = any($3)",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(ids)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(read).collect()
}

/// The tenant's objects, by id.
pub(crate) async fn page(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
    after: Option<&ObjectId>,
    limit: i64,
) -> Result<Vec<AnyMerged>, CoreError> {
    let rows: Vec<(String, Value)> = sqlx::query_as(
        "select kind, merged
         from saas.billing_object
         where tenant_id = $1 and livemode = $2 and ($3::text is null or object_id > $3)
         order by object_id
         limit $4",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(after.map(ObjectId::as_str))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(read).collect()
}

/// What is known about one object, whichever tenant it belongs to: a fetch does not know yet. Stripe's ids are unique, and
/// the index that serves this leads with the id.
pub(crate) async fn find_anywhere(
    connection: &mut PgConnection,
    livemode: bool,
    id: &ObjectId,
) -> Result<Option<AnyMerged>, CoreError> {
    let row: Option<(String, Value)> =
        sqlx::query_as("select kind, merged from saas.billing_object where object_id = $1 and livemode = $2")
            .bind(id.as_str())
            .bind(livemode)
            .fetch_optional(connection)
            .await
            .map_err(CoreError::from_database)?;
    row.map(read).transpose()
}

/// The kind and the tenant of an object of which something is known.
pub(crate) async fn owner_of(
    connection: &mut PgConnection,
    livemode: bool,
    id: &ObjectId,
) -> Result<Option<(ObjectKind, TenantId)>, CoreError> {
    let row: Option<(String, Uuid)> =
        sqlx::query_as("select kind, tenant_id from saas.billing_object where object_id = $1 and livemode = $2")
            .bind(id.as_str())
            .bind(livemode)
            .fetch_optional(connection)
            .await
            .map_err(CoreError::from_database)?;
    row.map(|(kind, tenant)| Ok((ObjectKind::from_stored(&kind).ok_or(CORRUPT)?, TenantId::from_uuid(tenant))))
        .transpose()
}

/// As [`find_anywhere`], of several, by id.
pub(crate) async fn find_all_anywhere(
    connection: &mut PgConnection,
    livemode: bool,
    ids: &[&str],
) -> Result<BTreeMap<String, AnyMerged>, CoreError> {
    let rows: Vec<(String, String, Value)> = sqlx::query_as(
        "select object_id, kind, merged from saas.billing_object where object_id = any($1) and livemode = $2",
    )
    .bind(ids)
    .bind(livemode)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(|(id, kind, merged)| Ok((id, read((kind, merged))?))).collect()
}

fn read((kind, merged): (String, Value)) -> Result<AnyMerged, CoreError> {
    let kind = ObjectKind::from_stored(&kind).ok_or(CORRUPT)?;
    AnyMerged::from_stored(kind, merged).ok_or(CORRUPT)
}

/// Forgets what was done about facts of these objects that are none any more, so that it is done when they come true.
pub(crate) async fn forget_effects(
    connection: &mut PgConnection,
    (tenant, livemode): (TenantId, bool),
    objects: &[&str],
    facts: &[(ObjectId, Fact)],
) -> Result<(), CoreError> {
    if objects.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "delete from saas.billing_effect as effect
         where tenant_id = $1 and livemode = $2 and object_id = any($3)
           and not exists (select from unnest($4::text[], $5::text[]) as told (object_id, fact)
                           where told.object_id = effect.object_id and told.fact = effect.fact)",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(objects)
    .bind(facts.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>())
    .bind(facts.iter().map(|(_, fact)| fact.to_string()).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Stores what is known about these objects, and records facts, each of one of them. Returns the facts that are new.
pub(crate) async fn store(
    connection: &mut PgConnection,
    (tenant, livemode): (TenantId, bool),
    objects: &[AnyMerged],
    facts: &[(ObjectId, Fact)],
    now: DateTime<Utc>,
) -> Result<Vec<(ObjectId, Fact)>, CoreError> {
    let merged: Result<Vec<Value>, _> = objects.iter().map(AnyMerged::to_stored).collect();
    let names: Vec<String> = facts.iter().map(|(_, fact)| fact.to_string()).collect();
    let new: Vec<(String, String)> = sqlx::query_as(
        "with stored as (
            insert into saas.billing_object
                (tenant_id, livemode, object_id, kind, status, is_current, is_past, merged, updated_at)
            select $1, $2, object_id, kind, status, is_current, is_past, merged, $9
            from unnest($3::text[], $4::text[], $5::text[], $6::boolean[], $7::boolean[], $8::jsonb[])
                 as known (object_id, kind, status, is_current, is_past, merged)
            on conflict (tenant_id, livemode, object_id) do update
            set status = excluded.status, is_current = excluded.is_current, is_past = excluded.is_past,
                merged = excluded.merged, updated_at = excluded.updated_at
         )
         insert into saas.billing_effect (tenant_id, livemode, object_id, fact, at)
         select $1, $2, object_id, fact, $9
         from unnest($10::text[], $11::text[]) as told (object_id, fact)
         on conflict do nothing
         returning object_id, fact",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(objects.iter().map(|merged| merged.id().as_str()).collect::<Vec<_>>())
    .bind(objects.iter().map(|merged| merged.kind().as_str()).collect::<Vec<_>>())
    .bind(objects.iter().map(AnyMerged::status).collect::<Vec<_>>())
    .bind(objects.iter().map(AnyMerged::is_current).collect::<Vec<_>>())
    .bind(objects.iter().map(AnyMerged::is_past).collect::<Vec<_>>())
    .bind(merged.map_err(|_| CORRUPT)?)
    .bind(now)
    .bind(facts.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>())
    .bind(&names)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let is_new = |id: &ObjectId, name: &String| new.iter().any(|(of, fact)| of == id.as_str() && fact == name);
    Ok(facts.iter().zip(&names).filter(|((id, _), name)| is_new(id, name)).map(|(told, _)| told.clone()).collect())
}
