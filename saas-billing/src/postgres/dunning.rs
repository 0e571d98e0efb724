//! `saas.dunning`, `saas.dunning_invoice`, `saas.dunning_message`, `saas.dunning_exception`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, JobId, MessageKey, TenantId, subscription::AccessLevel};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use crate::{
    derive::Debt,
    dunning::{DunningException, DunningPolicy, Sent},
    object::ObjectId,
};

const CORRUPT_INVOICE: CoreError = CoreError::Corrupt { table: "saas.dunning_invoice", column: "invoice" };
const CORRUPT_MESSAGE: CoreError = CoreError::Corrupt { table: "saas.dunning_message", column: "message" };
const CORRUPT_ACCESS: CoreError = CoreError::Corrupt { table: "saas.dunning", column: "access" };

/// What is recorded while a tenant owes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) access: AccessLevel,
    /// When there is something to do, and the job that does it.
    pub(crate) wake: Option<(DateTime<Utc>, JobId)>,
}

/// The word for a level.
pub(crate) const fn word(access: AccessLevel) -> &'static str {
    match access {
        AccessLevel::Full => "full",
        AccessLevel::Restricted => "restricted",
        AccessLevel::Suspended => "suspended",
    }
}

fn level(word: &str) -> Result<AccessLevel, CoreError> {
    [AccessLevel::Full, AccessLevel::Restricted, AccessLevel::Suspended]
        .into_iter()
        .find(|access| self::word(*access) == word)
        .ok_or(CORRUPT_ACCESS)
}

pub(crate) async fn head(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
) -> Result<Option<Head>, CoreError> {
    let row: Option<HeadRow> = sqlx::query_as(
        "select access, next_at, job
         from saas.dunning
         where tenant_id = $1 and livemode = $2",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(read_head).transpose()
}

pub(crate) type HeadRow = (String, Option<DateTime<Utc>>, Option<Uuid>);

pub(crate) fn read_head((access, next_at, job): HeadRow) -> Result<Head, CoreError> {
    Ok(Head { access: level(&access)?, wake: next_at.zip(job.map(JobId::from_uuid)) })
}

pub(crate) async fn store_head(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
    head: &Head,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.dunning (tenant_id, livemode, access, next_at, job)
         values ($1, $2, $3, $4, $5)
         on conflict (tenant_id, livemode) do update
         set access = excluded.access, next_at = excluded.next_at, job = excluded.job",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(word(head.access))
    .bind(head.wake.map(|(at, _)| at))
    .bind(head.wake.map(|(_, job)| job.as_uuid()))
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

pub(crate) async fn delete_head(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
) -> Result<(), CoreError> {
    sqlx::query("delete from saas.dunning where tenant_id = $1 and livemode = $2")
        .bind(tenant.as_uuid())
        .bind(livemode)
        .execute(connection)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// The invoices on record, each with when it was paid.
pub(crate) async fn invoices(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
) -> Result<BTreeMap<ObjectId, Option<DateTime<Utc>>>, CoreError> {
    let rows: Vec<(String, Option<DateTime<Utc>>)> = sqlx::query_as(
        "select invoice, paid_at
         from saas.dunning_invoice
         where tenant_id = $1 and livemode = $2",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let read = |(invoice, paid_at): (String, _)| Ok((invoice.parse().map_err(|_| CORRUPT_INVOICE)?, paid_at));
    rows.into_iter().map(read).collect()
}

/// Stores the invoices that are owed.
pub(crate) async fn store_debts(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
    debts: &BTreeMap<ObjectId, Debt>,
) -> Result<(), CoreError> {
    if debts.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into saas.dunning_invoice (tenant_id, livemode, invoice, since, currency, amount_minor)
         select $1, $2, d.invoice, d.since, d.currency, d.minor
         from unnest($3::text[], $4::timestamptz[], $5::text[], $6::bigint[]) as d (invoice, since, currency, minor)
         on conflict (tenant_id, livemode, invoice) do update
         set since = excluded.since, currency = excluded.currency, amount_minor = excluded.amount_minor, paid_at = null",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(debts.keys().map(ObjectId::as_str).collect::<Vec<_>>())
    .bind(debts.values().map(|debt| debt.since).collect::<Vec<_>>())
    .bind(debts.values().map(|debt| debt.currency.map(String::from)).collect::<Vec<_>>())
    .bind(debts.values().map(|debt| debt.minor).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Notes that an invoice is owed no more: paid, and that is still to be said; or over.
pub(crate) async fn close_invoice(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
    invoice: &ObjectId,
    paid_at: Option<DateTime<Utc>>,
) -> Result<(), CoreError> {
    let sql = if paid_at.is_some() {
        "update saas.dunning_invoice set paid_at = $4 where tenant_id = $1 and livemode = $2 and invoice = $3"
    } else {
        "delete from saas.dunning_invoice where tenant_id = $1 and livemode = $2 and invoice = $3 and $4::timestamptz is null"
    };
    sqlx::query(sql)
        .bind(tenant.as_uuid())
        .bind(livemode)
        .bind(invoice.as_str())
        .bind(paid_at)
        .execute(connection)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// What was sent about these invoices, and when.
pub(crate) async fn sent(
    connection: &mut PgConnection,
    tenants: &[TenantId],
    livemode: bool,
    invoices: impl IntoIterator<Item = &ObjectId>,
) -> Result<BTreeMap<(ObjectId, MessageKey), DateTime<Utc>>, CoreError> {
    let invoices: Vec<&str> = invoices.into_iter().map(ObjectId::as_str).collect();
    if invoices.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows: Vec<(String, String, DateTime<Utc>)> = sqlx::query_as(
        "select invoice, message, sent_at
         from saas.dunning_message
         where tenant_id = any($1) and livemode = $2 and invoice = any($3)",
    )
    .bind(tenants.iter().map(|tenant| tenant.as_uuid()).collect::<Vec<_>>())
    .bind(livemode)
    .bind(invoices)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let read = |(invoice, message, at): (String, String, _)| {
        let invoice = invoice.parse().map_err(|_| CORRUPT_MESSAGE)?;
        Ok(((invoice, MessageKey::try_from(message).map_err(|_| CORRUPT_MESSAGE)?), at))
    };
    rows.into_iter().map(read).collect()
}

/// Claims the one time that a message is sent; `false` when it was.
pub(crate) async fn claim_message(
    connection: &mut PgConnection,
    (tenant, livemode): (TenantId, bool),
    (invoice, message): (&ObjectId, &MessageKey),
    mails: usize,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let claimed = sqlx::query(
        "insert into saas.dunning_message (tenant_id, livemode, invoice, message, sent_at, mails)
         values ($1, $2, $3, $4, $5, $6)
         on conflict do nothing",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(invoice.as_str())
    .bind(message.as_str())
    .bind(now)
    .bind(i32::try_from(mails).unwrap_or(i32::MAX))
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(claimed.rows_affected() > 0)
}

pub(crate) type ExceptionRow = (Json<DunningPolicy>, String, String, DateTime<Utc>, DateTime<Utc>);

pub(crate) fn read_exception((policy, author, reason, created_at, expires_at): ExceptionRow) -> DunningException {
    DunningException { policy: policy.0, author, reason, created_at, expires_at }
}

/// The exception that was made for a tenant, over or not.
pub(crate) async fn exception(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
) -> Result<Option<DunningException>, CoreError> {
    let row: Option<ExceptionRow> = sqlx::query_as(
        "select policy, author, reason, created_at, expires_at
         from saas.dunning_exception
         where tenant_id = $1 and livemode = $2",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(row.map(read_exception))
}

pub(crate) async fn store_exception(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
    exception: &DunningException,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.dunning_exception (tenant_id, livemode, policy, author, reason, created_at, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (tenant_id, livemode) do update
         set policy = excluded.policy, author = excluded.author, reason = excluded.reason,
             created_at = excluded.created_at, expires_at = excluded.expires_at",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(Json(&exception.policy))
    .bind(&exception.author)
    .bind(&exception.reason)
    .bind(exception.created_at)
    .bind(exception.expires_at)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

pub(crate) async fn delete_exception(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
) -> Result<bool, CoreError> {
    let deleted = sqlx::query("delete from saas.dunning_exception where tenant_id = $1 and livemode = $2")
        .bind(tenant.as_uuid())
        .bind(livemode)
        .execute(connection)
        .await
        .map_err(CoreError::from_database)?;
    Ok(deleted.rows_affected() > 0)
}

/// The pairs of an invoice and a message, without when.
pub(crate) fn pairs(sent: &BTreeMap<(ObjectId, MessageKey), DateTime<Utc>>) -> Sent {
    sent.keys().cloned().collect()
}

/// Tenants in dunning, in one order.
pub(crate) async fn tenants(
    connection: &mut PgConnection,
    livemode: bool,
    after: Option<TenantId>,
    limit: i64,
) -> Result<Vec<TenantId>, CoreError> {
    let tenants: Vec<Uuid> = sqlx::query_scalar(
        "select tenant_id
         from saas.dunning
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

/// What is outstanding, per currency: tenants, invoices, sum.
pub(crate) async fn outstanding(
    connection: &mut PgConnection,
    livemode: bool,
) -> Result<Vec<(String, i64, i64, String)>, CoreError> {
    sqlx::query_as(
        "select currency, count(distinct tenant_id), count(*), sum(amount_minor)::text
         from saas.dunning_invoice -- of every tenant
         where livemode = $1 and paid_at is null and currency is not null
         group by currency
         order by currency",
    )
    .bind(livemode)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}
