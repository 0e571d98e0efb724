//! The operators' list of customers: one row per tenant, one indexed query per page at any number of tenants.
//!
//! Each crate writes its own columns of `saas.tenant_overview`, in the transaction that changes what they show.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{CoreError, Page, PageSize, SystemTx, TenantId};

/// What operators see of a tenant at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overview {
    /// Which.
    pub tenant: TenantId,
    /// Its display name.
    pub name: String,
    /// Its plan as billing knows it; `None` before the first purchase.
    pub plan: Option<String>,
    /// `active`, `grace` or `suspended`.
    pub standing: String,
    /// Monthly recurring revenue in minor units of `currency`.
    pub mrr_minor: i64,
    /// ISO 4217, lower case; `None` without revenue.
    pub currency: Option<String>,
    /// Members.
    pub seats: i32,
    /// The last use of a meter or feature.
    pub last_active_at: Option<DateTime<Utc>>,
    /// Whether a limit's warning threshold was crossed in a window that is open.
    pub near_limit: bool,
}

/// Which tenants are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those on this plan.
    pub plan: Option<String>,
    /// Only those of this standing.
    pub standing: Option<String>,
    /// Only those near a limit.
    pub near_limit: bool,
}

/// A place in the list, which is ordered by age: the oldest tenant first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor(Uuid);

type Row = (Uuid, String, Option<String>, String, i64, Option<String>, i32, Option<DateTime<Utc>>, bool);

/// Lists tenants as of `now`, the oldest first.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    tx: &mut SystemTx,
    filter: &Filter,
    after: Option<Cursor>,
    size: PageSize,
    now: DateTime<Utc>,
) -> Result<Page<Overview, Cursor>, CoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "select tenant_id, name, plan, standing, mrr_minor, currency, seats, last_active_at,
                coalesce(near_limit_until > $6, false) as near_limit
         from saas.tenant_overview
         where ($1::uuid is null or tenant_id > $1)
           and ($2::text is null or plan = $2)
           and ($3::text is null or standing = $3)
           and (near_limit_until > $6 or not $4)
         order by tenant_id
         limit $5",
    )
    .bind(after.map(|cursor| cursor.0))
    .bind(&filter.plan)
    .bind(&filter.standing)
    .bind(filter.near_limit)
    .bind(i64::from(size.get()) + 1)
    .bind(now)
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let rows = rows.into_iter().map(Overview::from).collect();
    Ok(Page::from_rows(rows, size, |row| Cursor(row.tenant.as_uuid())))
}

impl From<Row> for Overview {
    fn from((tenant, name, plan, standing, mrr_minor, currency, seats, last_active_at, near_limit): Row) -> Self {
        let tenant = TenantId::from_uuid(tenant);
        Self { tenant, name, plan, standing, mrr_minor, currency, seats, last_active_at, near_limit }
    }
}
