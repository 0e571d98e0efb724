//! The ledger as it is read: balances, statements, and page by page for the verification.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::ledger::{Chain, account, cause, currency, sum};
use crate::{
    ledger::{Account, Hash, Posting, Record, StatementCursor, StatementFilter, StatementLine},
    money::{Currency, Money},
};

/// Sums per currency and account of what is dated before `until`.
pub(crate) async fn balances(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    until: Option<DateTime<Utc>>,
) -> Result<Vec<(Currency, Account, i128)>, CoreError> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "select currency, account, sum(amount)::text
         from saas.ledger_entry
         where tenant_id = $1 and livemode = $2 and ($3::timestamptz is null or occurred_at < $3)
         group by currency, account
         order by currency, account",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(until)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(read_balance).collect()
}

/// Sums per currency and account over all tenants.
pub(crate) async fn totals(
    connection: &mut PgConnection,
    livemode: bool,
) -> Result<Vec<(Currency, Account, i128)>, CoreError> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "select currency, account, sum(amount)::text
         from saas.ledger_entry -- of every tenant
         where livemode = $1
         group by currency, account
         order by currency, account",
    )
    .bind(livemode)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(read_balance).collect()
}

fn read_balance((in_currency, on, minor): (String, String, String)) -> Result<(Currency, Account, i128), CoreError> {
    Ok((currency(&in_currency)?, account(&on)?, sum(&minor)?))
}

type LineRow = (i64, DateTime<Utc>, DateTime<Utc>, String, String, String, String, i64);

/// Entries in the order of their dates.
pub(crate) async fn statement(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    filter: &StatementFilter,
    after: Option<&StatementCursor>,
    limit: i64,
) -> Result<Vec<StatementLine>, CoreError> {
    let rows: Vec<LineRow> = sqlx::query_as(
        "select t.sequence, t.occurred_at, t.recorded_at, t.cause, t.subject, e.account, e.currency, e.amount
         from saas.ledger_transaction t
         join saas.ledger_entry e
           on e.tenant_id = t.tenant_id and e.livemode = t.livemode and e.sequence = t.sequence
         where t.tenant_id = $1 and t.livemode = $2
           and ($3::timestamptz is null or t.occurred_at >= $3)
           and ($4::timestamptz is null or t.occurred_at < $4)
           and ($5::text is null or e.account = $5)
           and ($6::text is null or e.currency = $6)
           and ($7::timestamptz is null
                or (t.occurred_at, t.sequence, e.currency, e.account) > ($7, $8::bigint, $9::text, $10::text))
         order by t.occurred_at, t.sequence, e.currency, e.account
         limit $11",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(filter.from)
    .bind(filter.until)
    .bind(filter.account.map(Account::as_str))
    .bind(filter.currency.map(String::from))
    .bind(after.map(|after| after.at))
    .bind(after.map(|after| after.sequence))
    .bind(after.map(|after| String::from(after.currency)))
    .bind(after.map(|after| after.account.as_str()))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let read = |(sequence, occurred_at, recorded_at, of, subject, on, in_currency, minor): LineRow| {
        let (cause, account) = (cause(&of)?, account(&on)?);
        let amount = Money::new(minor, currency(&in_currency)?);
        Ok(StatementLine { sequence, occurred_at, recorded_at, cause, subject, account, amount })
    };
    rows.into_iter().map(read).collect()
}

/// Where the chain is said to end; `None` when nothing was ever written.
pub(crate) async fn end(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
) -> Result<Option<(i64, Hash)>, CoreError> {
    let row: Option<(i64, Vec<u8>)> =
        sqlx::query_as("select sequence, hash from saas.ledger_head where tenant_id = $1 and livemode = $2")
            .bind(tenant.as_uuid())
            .bind(livemode)
            .fetch_optional(connection)
            .await
            .map_err(CoreError::from_database)?;
    let corrupt = CoreError::Corrupt { table: "saas.ledger_head", column: "hash" };
    row.map(|(sequence, hash)| Ok((sequence, hash.try_into().map_err(|_| corrupt)?))).transpose()
}

/// A transaction as it stands; `None` in place of what is no cause or account of ours.
pub(crate) struct Stored {
    pub(crate) sequence: i64,
    pub(crate) record: Option<Record>,
    pub(crate) hash: Vec<u8>,
}

type TransactionRow =
    (i64, String, String, Option<String>, Option<String>, Option<i64>, String, DateTime<Utc>, DateTime<Utc>, Vec<u8>);
type EntryRow = (i64, String, String, i64, DateTime<Utc>);

/// The next transactions of a chain with their entries, up to `last`.
pub(crate) async fn transactions(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    (after, last): (i64, i64),
    limit: i64,
) -> Result<Vec<Stored>, CoreError> {
    let rows: Vec<TransactionRow> = sqlx::query_as(
        "select sequence, cause, subject, payment, key, reverses, actor, occurred_at, recorded_at, hash
         from saas.ledger_transaction
         where tenant_id = $1 and livemode = $2 and sequence > $3 and sequence <= $4
         order by sequence
         limit $5",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(after)
    .bind(last)
    .bind(limit)
    .fetch_all(&mut *connection)
    .await
    .map_err(CoreError::from_database)?;
    let up_to = rows.last().map_or(after, |row| row.0);
    let entries: Vec<EntryRow> = sqlx::query_as(
        "select sequence, account, currency, amount, occurred_at
         from saas.ledger_entry
         where tenant_id = $1 and livemode = $2 and sequence > $3 and sequence <= $4
         order by sequence",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(after)
    .bind(up_to)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let mut entries = entries.into_iter().peekable();
    let mut stored = Vec::with_capacity(rows.len());
    for row in rows {
        let (sequence, occurred_at, hash) = (row.0, row.7, row.9.clone());
        let mut postings = Some(Vec::new());
        while let Some(entry) = entries.next_if(|entry| entry.0 <= sequence) {
            // One of a transaction that is not there is looked for elsewhere.
            if entry.0 == sequence {
                let posting = posting(&entry).filter(|_| entry.4 == occurred_at);
                postings = postings.zip(posting).map(|(mut postings, posting)| {
                    postings.push(posting);
                    postings
                });
            }
        }
        stored.push(Stored { sequence, record: postings.and_then(|postings| record(row, postings)), hash });
    }
    Ok(stored)
}

fn posting((_, on, in_currency, minor, _): &EntryRow) -> Option<Posting> {
    Some(Posting { account: account(on).ok()?, amount: Money::new(*minor, currency(in_currency).ok()?) })
}

fn record(row: TransactionRow, mut postings: Vec<Posting>) -> Option<Record> {
    let (sequence, of, subject, payment, key, reverses, actor, occurred_at, recorded_at, _) = row;
    postings.sort_by_key(|posting| (posting.amount.currency(), posting.account));
    let cause = cause(&of).ok()?;
    Some(Record { sequence, cause, subject, payment, key, reverses, actor, occurred_at, recorded_at, postings })
}

/// The last transaction behind where the chain is said to end.
pub(crate) async fn beyond(connection: &mut PgConnection, (tenant, livemode): Chain) -> Result<Option<i64>, CoreError> {
    sqlx::query_scalar(
        "select max(sequence)
         from saas.ledger_transaction
         where tenant_id = $1 and livemode = $2
           and sequence > coalesce((select h.sequence from saas.ledger_head h where h.tenant_id = $1 and h.livemode = $2), 0)",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)
}

/// Entries whose transaction is not there: by force only, since a foreign key forbids it.
pub(crate) async fn orphans(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    limit: i64,
) -> Result<Vec<i64>, CoreError> {
    sqlx::query_scalar(
        "select distinct e.sequence
         from saas.ledger_entry e
         where e.tenant_id = $1 and e.livemode = $2
           and not exists (
             select from saas.ledger_transaction t
             where t.tenant_id = e.tenant_id and t.livemode = e.livemode and t.sequence = e.sequence)
         order by e.sequence
         limit $3",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}

/// Objects that something is written about and that are not stored.
pub(crate) async fn unexplained(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    limit: i64,
) -> Result<Vec<String>, CoreError> {
    sqlx::query_scalar(
        "select distinct t.subject
         from saas.ledger_transaction t
         where t.tenant_id = $1 and t.livemode = $2 and t.key is null and t.subject not like 'grant:%'
           and not exists (
             select from saas.billing_object o
             where o.tenant_id = t.tenant_id and o.livemode = t.livemode and o.object_id = t.subject)
         order by t.subject
         limit $3",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}

/// Tenants that Stripe has told of or that have a ledger, in one order.
pub(crate) async fn tenants(
    connection: &mut PgConnection,
    livemode: bool,
    after: Option<TenantId>,
    limit: i64,
) -> Result<Vec<TenantId>, CoreError> {
    let tenants: Vec<Uuid> = sqlx::query_scalar(
        "(select tenant_id from saas.billing_state -- of every tenant
          where livemode = $1 and ($2::uuid is null or tenant_id > $2) order by tenant_id limit $3)
         union
         (select tenant_id from saas.ledger_head
          where livemode = $1 and ($2::uuid is null or tenant_id > $2) order by tenant_id limit $3)
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
