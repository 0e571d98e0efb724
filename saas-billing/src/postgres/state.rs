//! `saas.billing_state`: what was derived; and billing's columns of the operators' list.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use serde_json::Value;
use sqlx::{PgConnection, types::Json};

use crate::{
    derive::Derived,
    dunning::{DunningException, Held},
    money::Currency,
    postgres::Scope,
};

const CORRUPT: CoreError = CoreError::Corrupt { table: "saas.billing_state", column: "derived" };

/// What was derived for a tenant; `None` when Stripe has never told of it.
pub(crate) async fn find(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
) -> Result<Option<Derived>, CoreError> {
    let derived: Option<Value> =
        sqlx::query_scalar("select derived from saas.billing_state where tenant_id = $1 and livemode = $2")
            .bind(tenant.as_uuid())
            .bind(livemode)
            .fetch_optional(connection)
            .await
            .map_err(CoreError::from_database)?;
    derived.map(read).transpose()
}

/// Reads the column `derived`.
pub(crate) fn read(derived: Value) -> Result<Derived, CoreError> {
    serde_json::from_value(derived).map_err(|_| CORRUPT)
}

/// As [`find`], with the exception that was made from the dunning policy.
pub(crate) async fn find_with_exception(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
) -> Result<(Option<Derived>, Option<DunningException>), CoreError> {
    let (derived, exception): (Option<Value>, Option<Json<DunningException>>) = sqlx::query_as(
        "select s.derived,
                case when e.tenant_id is not null then jsonb_build_object(
                    'policy', e.policy, 'author', e.author, 'reason', e.reason, 'created_at', e.created_at,
                    'expires_at', e.expires_at)
                end
         from (values ($1::uuid, $2::boolean)) as asked (tenant_id, livemode)
         left join saas.billing_state s on s.tenant_id = asked.tenant_id and s.livemode = asked.livemode
         left join saas.dunning_exception e on e.tenant_id = asked.tenant_id and e.livemode = asked.livemode",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    let derived = derived.map(read).transpose()?;
    Ok((derived, exception.map(|Json(exception)| exception)))
}

/// The tenants about which something is stored, in one order.
pub(crate) async fn tenants(
    connection: &mut PgConnection,
    livemode: bool,
    after: Option<TenantId>,
    limit: i64,
) -> Result<Vec<TenantId>, CoreError> {
    let tenants: Vec<uuid::Uuid> = sqlx::query_scalar(
        "select tenant_id
         from saas.billing_state
         where livemode = $1 and ($2::uuid is null or tenant_id > $2)
         order by tenant_id
         limit $3",
    )
    .bind(livemode)
    .bind(after.map(TenantId::as_uuid))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(tenants.into_iter().map(TenantId::from_uuid).collect())
}

/// Tenants with alerts, with what was derived and when it was stored, in one order.
pub(crate) async fn with_alerts(
    connection: &mut PgConnection,
    livemode: bool,
    after: Option<TenantId>,
    limit: i64,
) -> Result<Vec<(TenantId, Derived, DateTime<Utc>)>, CoreError> {
    let rows: Vec<(uuid::Uuid, Value, DateTime<Utc>)> = sqlx::query_as(
        "select tenant_id, derived, updated_at
         from saas.billing_state
         where livemode = $1 and has_alerts and ($2::uuid is null or tenant_id > $2)
         order by tenant_id
         limit $3",
    )
    .bind(livemode)
    .bind(after.map(TenantId::as_uuid))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let row = |(tenant, derived, at)| Ok((TenantId::from_uuid(tenant), read(derived)?, at));
    rows.into_iter().map(row).collect()
}

/// How many tenants have an alert of one of these names.
pub(crate) async fn count_with_alerts(
    connection: &mut PgConnection,
    livemode: bool,
    names: &[&str],
) -> Result<u64, CoreError> {
    let tenants: i64 = sqlx::query_scalar(
        "select count(*)
         from saas.billing_state
         where livemode = $1 and has_alerts
           and exists (select from jsonb_array_elements(derived -> 'alerts') as one (alert)
                       where alert ->> 'alert' = any($2))",
    )
    .bind(livemode)
    .bind(names)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(u64::try_from(tenants).unwrap_or(0))
}

/// Writes billing's columns of the operators' list, and with `is_new` stores what was derived. The list has room for one
/// currency: that of the subscription which decides, or the first in which anything is paid.
pub(crate) async fn show(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
    held: &Held<'_>,
    paying: &BTreeMap<Currency, i64>,
    is_new: bool,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let Held { derived, terms } = held;
    let mut spans = derived.revenue.spans().iter();
    let deciding =
        spans.find(|span| Some(&span.subscription) == derived.subscription.as_ref()).map(|span| span.currency);
    let paid = |currency: &Currency| paying.get(currency).is_some_and(|minor| *minor > 0);
    let currency = deciding.filter(paid).or_else(|| paying.keys().copied().find(paid));
    let (grace_until, suspended_from) = terms.instants(derived.unpaid_since, derived.suspended_since);
    let stored = is_new.then(|| serde_json::to_value(derived)).transpose().map_err(|_| CORRUPT)?;
    sqlx::query(
        "with stored as (
            insert into saas.billing_state (tenant_id, livemode, derived, plan, unpaid_since, has_alerts, updated_at)
            select $1, $7, $8, $2, $9, $10, $11
            where $8::jsonb is not null
            on conflict (tenant_id, livemode) do update
            set derived = excluded.derived, plan = excluded.plan, unpaid_since = excluded.unpaid_since,
                has_alerts = excluded.has_alerts, updated_at = excluded.updated_at
         )
         update saas.tenant_overview
         set plan = $2, grace_until = $3, suspended_from = $4, mrr_minor = $5, currency = $6
         where tenant_id = $1
           -- Test purchases do not show in the list of a database that sells, nor those of another account.
           and not exists (select from saas.billing_home h where (h.account, h.livemode) <> ($12, $7))",
    )
    .bind(tenant.as_uuid())
    .bind(derived.plan.as_ref().map(|plan| plan.plan.as_str()))
    .bind(grace_until)
    .bind(suspended_from)
    .bind(currency.and_then(|currency| paying.get(&currency).copied()).unwrap_or(0))
    .bind(currency.map(String::from))
    .bind(scope.livemode)
    .bind(stored)
    .bind(derived.unpaid_since)
    .bind(!derived.alerts.is_empty())
    .bind(now)
    .bind(&scope.account)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}
