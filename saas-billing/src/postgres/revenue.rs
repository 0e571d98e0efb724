//! `saas.revenue_state`, `saas.revenue_change`, `saas.revenue_subscription`, `saas.revenue_arrears`: what the numbers are
//! read from.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{money::Currency, object::ObjectId, revenue::Movement};

const CORRUPT: CoreError = CoreError::Corrupt { table: "saas.revenue_state", column: "currency" };

/// What a tenant pays per month in one currency.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paying {
    pub(crate) currency: Currency,
    pub(crate) minor: i64,
    /// Whether it paid at any time.
    pub(crate) ever: bool,
    pub(crate) changes: i64,
    /// Up to when it is recorded.
    pub(crate) at: DateTime<Utc>,
}

/// One change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) currency: Currency,
    pub(crate) number: i64,
    pub(crate) at: DateTime<Utc>,
    pub(crate) movement: Movement,
    pub(crate) before: i64,
    pub(crate) after: i64,
}

/// Currency, minor units per month, whether it ever paid, how many changes, up to when.
pub(crate) type PayingRow = (String, i64, bool, i64, DateTime<Utc>);

pub(crate) fn read((currency, minor, ever, changes, at): PayingRow) -> Result<Paying, CoreError> {
    Ok(Paying { currency: currency.parse().map_err(|_| CORRUPT)?, minor, ever, changes, at })
}

/// Stores what a tenant pays now, how it came to that, and when time alone will change it.
pub(crate) async fn store(
    connection: &mut PgConnection,
    (tenant, livemode): (TenantId, bool),
    states: &[Paying],
    changes: &[Change],
    next_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "with changed as (
            insert into saas.revenue_change
                (tenant_id, livemode, currency, number, at, recorded_at, movement, before_minor, after_minor)
            select $1, $2, c.currency, c.number, c.at, $13, c.movement, c.before, c.after
            from unnest($7::text[], $8::bigint[], $9::timestamptz[], $10::text[], $11::bigint[], $12::bigint[])
                as c (currency, number, at, movement, before, after)
         )
         insert into saas.revenue_state as known
            (tenant_id, livemode, currency, mrr_minor, ever_paid, changes, at, next_at)
         select $1, $2, s.currency, s.minor, s.ever, s.changes, $14, $15
         from unnest($3::text[], $4::bigint[], $5::boolean[], $6::bigint[]) as s (currency, minor, ever, changes)
         on conflict (tenant_id, livemode, currency) do update
         set mrr_minor = excluded.mrr_minor, ever_paid = excluded.ever_paid, changes = excluded.changes,
             at = excluded.at, next_at = excluded.next_at",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(states.iter().map(|state| String::from(state.currency)).collect::<Vec<_>>())
    .bind(states.iter().map(|state| state.minor).collect::<Vec<_>>())
    .bind(states.iter().map(|state| state.ever).collect::<Vec<_>>())
    .bind(states.iter().map(|state| state.changes).collect::<Vec<_>>())
    .bind(changes.iter().map(|change| String::from(change.currency)).collect::<Vec<_>>())
    .bind(changes.iter().map(|change| change.number).collect::<Vec<_>>())
    .bind(changes.iter().map(|change| change.at).collect::<Vec<_>>())
    .bind(changes.iter().map(|change| change.movement.as_str()).collect::<Vec<_>>())
    .bind(changes.iter().map(|change| change.before).collect::<Vec<_>>())
    .bind(changes.iter().map(|change| change.after).collect::<Vec<_>>())
    .bind(now)
    .bind(states.iter().map(|state| state.at).max().unwrap_or(now))
    .bind(next_at)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Tenants whose revenue time has changed.
pub(crate) async fn due(
    connection: &mut PgConnection,
    livemode: bool,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<TenantId>, CoreError> {
    let tenants: Vec<Uuid> = sqlx::query_scalar(
        "select distinct tenant_id
         from (select tenant_id
               from saas.revenue_state -- of every tenant
               where livemode = $1 and next_at <= $2
               order by next_at
               limit $3) as due",
    )
    .bind(livemode)
    .bind(now)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(tenants.into_iter().map(TenantId::from_uuid).collect())
}

/// What a subscription's trial came to: when it ends or ended, when it was first paid for. Each is told by another object;
/// `None` leaves it as it is.
pub(crate) async fn note_subscription(
    connection: &mut PgConnection,
    (tenant, livemode): (TenantId, bool),
    subscription: &ObjectId,
    trial_end: Option<DateTime<Utc>>,
    paid_at: Option<DateTime<Utc>>,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.revenue_subscription as known (tenant_id, livemode, subscription, trial_end, first_paid_at)
         values ($1, $2, $3, $4, $5)
         on conflict (tenant_id, livemode, subscription) do update
         set trial_end = coalesce(excluded.trial_end, known.trial_end),
             first_paid_at = least(known.first_paid_at, excluded.first_paid_at)
         where coalesce(excluded.trial_end, known.trial_end) is distinct from known.trial_end
            or least(known.first_paid_at, excluded.first_paid_at) is distinct from known.first_paid_at",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(subscription.as_str())
    .bind(trial_end)
    .bind(paid_at)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// An invoice that failed, and what became of it.
pub(crate) struct Arrears<'a> {
    pub(crate) invoice: &'a ObjectId,
    pub(crate) currency: Currency,
    pub(crate) minor: i64,
    pub(crate) failed_at: DateTime<Utc>,
    pub(crate) recovered_at: Option<DateTime<Utc>>,
    pub(crate) lost_at: Option<DateTime<Utc>>,
}

pub(crate) async fn note_arrears(
    connection: &mut PgConnection,
    (tenant, livemode): (TenantId, bool),
    arrears: &Arrears<'_>,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.revenue_arrears
            (tenant_id, livemode, invoice, currency, amount_minor, failed_at, recovered_at, lost_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         on conflict (tenant_id, livemode, invoice) do update
         set amount_minor = excluded.amount_minor, failed_at = excluded.failed_at,
             recovered_at = excluded.recovered_at, lost_at = excluded.lost_at",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(arrears.invoice.as_str())
    .bind(String::from(arrears.currency))
    .bind(arrears.minor)
    .bind(arrears.failed_at)
    .bind(arrears.recovered_at)
    .bind(arrears.lost_at)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Notes that an invoice has not failed, as far as is known by now.
pub(crate) async fn take_back_arrears(
    connection: &mut PgConnection,
    (tenant, livemode): (TenantId, bool),
    invoice: &ObjectId,
) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.revenue_arrears set failed_at = null where tenant_id = $1 and livemode = $2 and invoice = $3",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(invoice.as_str())
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// What all tenants pay per month, per currency, and how many pay.
pub(crate) async fn mrr(
    connection: &mut PgConnection,
    livemode: bool,
) -> Result<Vec<(String, String, i64)>, CoreError> {
    sqlx::query_as(
        "select currency, sum(mrr_minor)::text, count(*)
         from saas.revenue_state -- of every tenant
         where livemode = $1 and mrr_minor > 0
         group by currency
         order by currency",
    )
    .bind(livemode)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}

/// As [`mrr`], before an instant of the past: everything that came, less everything that went.
pub(crate) async fn mrr_before(
    connection: &mut PgConnection,
    livemode: bool,
    at: DateTime<Utc>,
) -> Result<Vec<(String, String, i64)>, CoreError> {
    sqlx::query_as(
        "select currency, sum(delta)::text,
                count(*) filter (where movement in ('new', 'reactivation')) - count(*) filter (where movement = 'churn')
         from saas.revenue_change -- of every tenant
         where livemode = $1 and at < $2
         group by currency
         having sum(delta) <> 0
         order by currency",
    )
    .bind(livemode)
    .bind(at)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}

/// Sums and numbers of changes of a period, per currency and name.
pub(crate) async fn movements(
    connection: &mut PgConnection,
    livemode: bool,
    (from, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Vec<(String, String, String, i64)>, CoreError> {
    sqlx::query_as(
        "select currency, movement, sum(delta)::text, count(*)
         from saas.revenue_change -- of every tenant
         where livemode = $1 and at >= $2 and at < $3
         group by currency, movement
         order by currency, movement",
    )
    .bind(livemode)
    .bind(from)
    .bind(until)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}

/// Trials that ended in a period, and how many of them were paid for afterwards.
pub(crate) async fn trials(
    connection: &mut PgConnection,
    livemode: bool,
    (from, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<(i64, i64), CoreError> {
    sqlx::query_as(
        "select count(*), count(first_paid_at)
         from saas.revenue_subscription -- of every tenant
         where livemode = $1 and trial_end >= $2 and trial_end < $3",
    )
    .bind(livemode)
    .bind(from)
    .bind(until)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)
}

pub(crate) type RecoveryRow = (String, i64, String, i64, String, i64, String);

/// Invoices that first failed in a period, and what became of them: failed, recovered, lost, each as number and sum.
pub(crate) async fn recoveries(
    connection: &mut PgConnection,
    livemode: bool,
    (from, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Vec<RecoveryRow>, CoreError> {
    sqlx::query_as(
        "select currency,
                count(*), sum(amount_minor)::text,
                count(recovered_at), coalesce(sum(amount_minor) filter (where recovered_at is not null), 0)::text,
                count(lost_at), coalesce(sum(amount_minor) filter (where lost_at is not null), 0)::text
         from saas.revenue_arrears -- of every tenant
         where livemode = $1 and failed_at >= $2 and failed_at < $3
         group by currency
         order by currency",
    )
    .bind(livemode)
    .bind(from)
    .bind(until)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}
