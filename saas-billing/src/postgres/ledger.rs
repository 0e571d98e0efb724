//! `saas.ledger_head`, `saas.ledger_transaction`, `saas.ledger_entry`: what is added to a chain, and what is read for that.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use sqlx::PgConnection;

use crate::{
    ledger::{Account, Cause, GENESIS, Hash, Record, Written},
    money::Currency,
};

/// A tenant's chain in one mode.
pub(crate) type Chain = (TenantId, bool);

pub(crate) const fn corrupt(column: &'static str) -> CoreError {
    CoreError::Corrupt { table: "saas.ledger_transaction", column }
}

pub(crate) fn cause(text: &str) -> Result<Cause, CoreError> {
    Cause::from_stored(text).ok_or(corrupt("cause"))
}

pub(crate) fn account(text: &str) -> Result<Account, CoreError> {
    Account::from_stored(text).ok_or(CoreError::Corrupt { table: "saas.ledger_entry", column: "account" })
}

pub(crate) fn currency(text: &str) -> Result<Currency, CoreError> {
    text.parse().map_err(|_| CoreError::Corrupt { table: "saas.ledger_entry", column: "currency" })
}

/// PostgreSQL adds up 64-bit numbers to one without end.
pub(crate) fn sum(text: &str) -> Result<i128, CoreError> {
    text.parse().map_err(|_| CoreError::Corrupt { table: "saas.ledger_entry", column: "amount" })
}

/// What is written about each of these objects so far, apart from what requests wrote.
pub(crate) async fn written(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    subjects: &[&str],
) -> Result<BTreeMap<String, Vec<Written>>, CoreError> {
    let rows: Vec<(String, String, DateTime<Utc>, String, String, String)> = sqlx::query_as(
        "select t.subject, t.cause, t.occurred_at, e.account, e.currency, sum(e.amount)::text
         from saas.ledger_transaction t
         join saas.ledger_entry e
           on e.tenant_id = t.tenant_id and e.livemode = t.livemode and e.sequence = t.sequence
         where t.tenant_id = $1 and t.livemode = $2 and t.subject = any($3) and t.key is null
         group by t.subject, t.cause, t.occurred_at, e.account, e.currency",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(subjects)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let mut written: BTreeMap<String, Vec<Written>> = BTreeMap::new();
    for (subject, of, at, on, of_currency, minor) in rows {
        let (cause, account, currency) = (cause(&of)?, account(&on)?, currency(&of_currency)?);
        written.entry(subject).or_default().push(Written { cause, at, account, currency, minor: sum(&minor)? });
    }
    Ok(written)
}

/// Where a chain ends.
pub(crate) struct End {
    pub(crate) sequence: i64,
    pub(crate) hash: Hash,
    /// Whether credits were granted for any of the payments that were asked about.
    pub(crate) has_grants: bool,
}

/// Where the chain ends, held until the end of the transaction: nobody else adds to it meanwhile.
pub(crate) async fn lock_end(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    payments: &[&str],
) -> Result<End, CoreError> {
    let (sequence, hash, has_grants): (i64, Vec<u8>, bool) = sqlx::query_as(
        "insert into saas.ledger_head as head (tenant_id, livemode, sequence, hash)
         values ($1, $2, 0, $3)
         on conflict (tenant_id, livemode) do update set sequence = head.sequence
         returning sequence, hash, exists (
             select from saas.ledger_transaction t
             where t.tenant_id = $1 and t.livemode = $2 and t.payment = any($4) and t.cause = 'credits.granted')",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(GENESIS.as_slice())
    .bind(payments)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    let hash = hash.try_into().map_err(|_| CoreError::Corrupt { table: "saas.ledger_head", column: "hash" })?;
    Ok(End { sequence, hash, has_grants })
}

/// Adds records, which follow each other, to the end of a chain whose end is held.
pub(crate) async fn append(
    connection: &mut PgConnection,
    chain: Chain,
    end: Hash,
    records: &[Record],
) -> Result<(), CoreError> {
    let (tenant, livemode) = chain;
    let Some(last) = records.last() else { return Ok(()) };
    let mut hash = end;
    let mut hashes = Vec::with_capacity(records.len());
    for record in records {
        hash = record.hash(chain, &hash);
        hashes.push(hash.to_vec());
    }
    let entries = || records.iter().flat_map(|record| record.postings.iter().map(move |posting| (record, posting)));
    sqlx::query(
        "with ended as (
            update saas.ledger_head set sequence = $3, hash = $4 where tenant_id = $1 and livemode = $2
         ), added as (
            insert into saas.ledger_transaction
                (tenant_id, livemode, sequence, cause, subject, payment, key, reverses, actor, occurred_at, recorded_at, hash)
            select $1, $2, t.*
            from unnest($5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[], $10::bigint[], $11::text[],
                        $12::timestamptz[], $13::timestamptz[], $14::bytea[]) as t
         )
         insert into saas.ledger_entry (tenant_id, livemode, sequence, account, currency, amount, occurred_at)
         select $1, $2, e.*
         from unnest($15::bigint[], $16::text[], $17::text[], $18::bigint[], $19::timestamptz[]) as e",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(last.sequence)
    .bind(hash.as_slice())
    .bind(records.iter().map(|record| record.sequence).collect::<Vec<_>>())
    .bind(records.iter().map(|record| record.cause.as_str()).collect::<Vec<_>>())
    .bind(records.iter().map(|record| record.subject.as_str()).collect::<Vec<_>>())
    .bind(records.iter().map(|record| record.payment.as_deref()).collect::<Vec<_>>())
    .bind(records.iter().map(|record| record.key.as_deref()).collect::<Vec<_>>())
    .bind(records.iter().map(|record| record.reverses).collect::<Vec<_>>())
    .bind(records.iter().map(|record| record.actor.as_str()).collect::<Vec<_>>())
    .bind(records.iter().map(|record| record.occurred_at).collect::<Vec<_>>())
    .bind(records.iter().map(|record| record.recorded_at).collect::<Vec<_>>())
    .bind(hashes)
    .bind(entries().map(|(record, _)| record.sequence).collect::<Vec<_>>())
    .bind(entries().map(|(_, posting)| posting.account.as_str()).collect::<Vec<_>>())
    .bind(entries().map(|(_, posting)| String::from(posting.amount.currency())).collect::<Vec<_>>())
    .bind(entries().map(|(_, posting)| posting.amount.minor()).collect::<Vec<_>>())
    .bind(entries().map(|(record, _)| record.occurred_at).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// The sum of an account, as debits and credits make it.
pub(crate) async fn balance(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    (account, currency): (Account, Currency),
) -> Result<i128, CoreError> {
    let balance: String = sqlx::query_scalar(
        "select coalesce(sum(amount), 0)::text
         from saas.ledger_entry
         where tenant_id = $1 and livemode = $2 and currency = $3 and account = $4",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(String::from(currency))
    .bind(account.as_str())
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    sum(&balance)
}

/// What came in of a payment, and how much of that went back: all of it where a bank took back in another currency, since no
/// part of it can be named.
pub(crate) async fn of_payment(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    payment: &str,
) -> Result<(i128, i128), CoreError> {
    let (received, lost): (String, String) = sqlx::query_as(
        "with moved as (
            select coalesce(sum(e.amount) filter (where t.cause = 'payment.received'), 0) as received,
                   coalesce(-sum(e.amount) filter (where t.cause <> 'payment.received'), 0) as lost
            from saas.ledger_transaction t
            join saas.ledger_entry e
              on e.tenant_id = t.tenant_id and e.livemode = t.livemode and e.sequence = t.sequence
            where t.tenant_id = $1 and t.livemode = $2 and t.payment = $3 and e.account = 'cash'
            group by e.currency
         )
         select coalesce(max(received), 0)::text,
                coalesce(case when bool_or(received = 0 and lost > 0) then max(received)
                              else max(lost) filter (where received > 0) end, 0)::text
         from moved",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(payment)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok((sum(&received)?, sum(&lost)?))
}

/// A request that was written.
pub(crate) struct Requested {
    pub(crate) sequence: i64,
    pub(crate) cause: Cause,
    pub(crate) subject: String,
    pub(crate) payment: Option<String>,
    /// The amount that the tenant has more of; below zero, less.
    pub(crate) minor: i64,
    pub(crate) currency: Currency,
    /// What took it back.
    pub(crate) reversed_by: Option<i64>,
}

type RequestedRow = (i64, String, String, Option<String>, i64, String, Option<i64>);

fn requested(
    (sequence, of, subject, payment, minor, of_currency, reversed_by): RequestedRow,
) -> Result<Requested, CoreError> {
    let (cause, currency) = (cause(&of)?, currency(&of_currency)?);
    Ok(Requested { sequence, cause, subject, payment, minor, currency, reversed_by })
}

/// Finds a request by its key, or by its place in the chain.
pub(crate) async fn find_request(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    (key, sequence): (Option<&str>, Option<i64>),
) -> Result<Option<Requested>, CoreError> {
    let row: Option<RequestedRow> = sqlx::query_as(
        "select t.sequence, t.cause, t.subject, t.payment, -e.amount, e.currency,
                (select r.sequence
                 from saas.ledger_transaction r
                 where r.tenant_id = t.tenant_id and r.livemode = t.livemode and r.reverses = t.sequence)
         from saas.ledger_transaction t
         join saas.ledger_entry e
           on e.tenant_id = t.tenant_id and e.livemode = t.livemode and e.sequence = t.sequence and e.account = 'credits'
         where t.tenant_id = $1 and t.livemode = $2 and t.key is not null and (t.key = $3 or t.sequence = $4)",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(key)
    .bind(sequence)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(requested).transpose()
}

/// The grants that were bought with any of these payments, with which one.
pub(crate) async fn grants_of(
    connection: &mut PgConnection,
    (tenant, livemode): Chain,
    payments: &[&str],
) -> Result<Vec<Requested>, CoreError> {
    let rows: Vec<RequestedRow> = sqlx::query_as(
        "select t.sequence, t.cause, t.subject, t.payment, -e.amount, e.currency,
                (select r.sequence
                 from saas.ledger_transaction r
                 where r.tenant_id = t.tenant_id and r.livemode = t.livemode and r.reverses = t.sequence)
         from saas.ledger_transaction t
         join saas.ledger_entry e
           on e.tenant_id = t.tenant_id and e.livemode = t.livemode and e.sequence = t.sequence and e.account = 'credits'
         where t.tenant_id = $1 and t.livemode = $2 and t.payment = any($3) and t.cause = 'credits.granted'
         order by t.sequence",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .bind(payments)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(requested).collect()
}
