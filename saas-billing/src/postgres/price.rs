//! `saas.billing_price`: what prices of Stripe's are called in the catalogue.

use chrono::{DateTime, Utc};
use saas_core::CoreError;
use sqlx::PgConnection;

use super::Scope;
use crate::{
    catalog::{KnownPrice, Per},
    money::Currency,
    object::{Interval, ObjectId},
};

/// Remembers prices. What is current is set as a whole, so that two callers leave the state of one of them.
pub(crate) async fn put(
    connection: &mut PgConnection,
    scope: &Scope,
    prices: &[KnownPrice],
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    // Whoever comes second waits here, and reads what the first has written.
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('saas.billing_price', 0))")
        .execute(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
    sqlx::query("update saas.billing_price set is_current = false where account = $1 and livemode = $2 and is_current")
        .bind(&scope.account)
        .bind(scope.livemode)
        .execute(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
    let ids: Vec<&str> = prices.iter().map(|price| price.id.as_str()).collect();
    let names: Vec<&str> = prices.iter().map(|price| price.name.as_str()).collect();
    let currencies: Vec<&str> = prices.iter().map(|price| price.currency.as_str()).collect();
    let current: Vec<bool> = prices.iter().map(|price| price.is_current).collect();
    let per: Vec<Option<&str>> = prices.iter().map(|price| price.per.map(Per::as_str)).collect();
    let every: Vec<Option<&str>> = prices.iter().map(|price| every(price.interval.as_ref()?)).collect();
    sqlx::query(
        "insert into saas.billing_price as known
             (account, livemode, price_id, name, currency, is_current, per, every, recorded_at)
         select $1, $2, new.*, $9
         from unnest($3::text[], $4::text[], $5::text[], $6::boolean[], $7::text[], $8::text[]) as new
         on conflict (account, livemode, price_id) do update
         set name = excluded.name, currency = excluded.currency, is_current = excluded.is_current, per = excluded.per,
             every = excluded.every",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(&ids)
    .bind(&names)
    .bind(&currencies)
    .bind(&current)
    .bind(&per)
    .bind(&every)
    .bind(now)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Every id with its name.
pub(crate) async fn names(connection: &mut PgConnection, scope: &Scope) -> Result<Vec<(String, String)>, CoreError> {
    sqlx::query_as("select price_id, name from saas.billing_price where account = $1 and livemode = $2")
        .bind(&scope.account)
        .bind(scope.livemode)
        .fetch_all(connection)
        .await
        .map_err(CoreError::from_database)
}

/// What is sold under a name in a currency.
pub(crate) async fn current(
    connection: &mut PgConnection,
    scope: &Scope,
    (name, currency): (&str, Currency),
) -> Result<Option<ObjectId>, CoreError> {
    let id: Option<String> = sqlx::query_scalar(
        "select price_id
         from saas.billing_price
         where account = $1 and livemode = $2 and name = $3 and currency = $4 and is_current",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(name)
    .bind(currency.as_str())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    id.map(|id| ObjectId::try_from(id).map_err(corrupt)).transpose()
}

/// What is sold for usage beside a price.
#[derive(Debug)]
pub(crate) struct UsageBeside {
    pub(crate) id: ObjectId,
    /// The entry of the file.
    pub(crate) name: String,
    /// Whether it is charged as often.
    pub(crate) fits: bool,
}

/// The usage prices among these entries that are sold in the currency of a price; `None` of a price that nobody has applied.
pub(crate) async fn usage_beside(
    connection: &mut PgConnection,
    scope: &Scope,
    (price, names): (&ObjectId, &[&str]),
) -> Result<Option<Vec<UsageBeside>>, CoreError> {
    let known: Option<bool> = sqlx::query_scalar(
        "select true
         from saas.billing_price
         where account = $1 and livemode = $2 and price_id = $3 and per is not null",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(price.as_str())
    .fetch_optional(&mut *connection)
    .await
    .map_err(CoreError::from_database)?;
    if known.is_none() {
        return Ok(None);
    }
    // The price itself, if it is one: also one that is sold no more.
    let found: Vec<(String, String, bool)> = sqlx::query_as(
        "select usage.price_id, usage.name, usage.every is not distinct from price.every as fits
         from saas.billing_price price
         join saas.billing_price usage on usage.account = price.account and usage.livemode = price.livemode
             and usage.currency = price.currency and usage.per = 'usage' and usage.name = any ($4)
             and (usage.price_id = price.price_id or usage.is_current and usage.name <> price.name)
         where price.account = $1 and price.livemode = $2 and price.price_id = $3
         order by usage.name",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(price.as_str())
    .bind(names)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let read = |(id, name, fits)| Ok(UsageBeside { id: ObjectId::try_from(id).map_err(corrupt)?, name, fits });
    found.into_iter().map(read).collect::<Result<_, _>>().map(Some)
}

/// An interval that the column can hold.
fn every(interval: &Interval) -> Option<&str> {
    match interval {
        Interval::Day | Interval::Week | Interval::Month | Interval::Year => Some(interval.as_str()),
        Interval::Other(_) => None,
    }
}

fn corrupt<E>(_: E) -> CoreError {
    CoreError::Corrupt { table: "saas.billing_price", column: "price_id" }
}
