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
    let meters: Vec<Option<&str>> = prices.iter().map(|price| price.meter.as_deref()).collect();
    let every: Vec<Option<&str>> = prices.iter().map(|price| every(price.interval.as_ref()?)).collect();
    sqlx::query(
        "insert into saas.billing_price as known
             (account, livemode, price_id, name, currency, is_current, per, every, meter, recorded_at)
         select $1, $2, new.*, $10
         from unnest($3::text[], $4::text[], $5::text[], $6::boolean[], $7::text[], $8::text[], $9::text[]) as new
         on conflict (account, livemode, price_id) do update
         set name = excluded.name, currency = excluded.currency, is_current = excluded.is_current, per = excluded.per,
             every = excluded.every, meter = excluded.meter",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(&ids)
    .bind(&names)
    .bind(&currencies)
    .bind(&current)
    .bind(&per)
    .bind(&every)
    .bind(&meters)
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

/// A price that was ever sold under one of some names.
#[derive(Debug, Clone)]
pub(crate) struct Sold {
    pub(crate) id: ObjectId,
    pub(crate) name: String,
    pub(crate) currency: String,
    /// What it is charged for; `None` where nobody knows.
    pub(crate) per: Option<String>,
    pub(crate) every: Option<String>,
    pub(crate) meter: Option<String>,
}

impl Sold {
    pub(crate) fn is_usage(&self) -> bool {
        self.per.as_deref() == Some(Per::Usage.as_str())
    }
}

/// What was ever sold under these names, what is sold now first, then the latest.
pub(crate) async fn sold(connection: &mut PgConnection, scope: &Scope, names: &[&str]) -> Result<Vec<Sold>, CoreError> {
    type Row = (String, String, String, Option<String>, Option<String>, Option<String>);
    let rows: Vec<Row> = sqlx::query_as(
        "select price_id, name, currency, per, every, meter
         from saas.billing_price
         where account = $1 and livemode = $2 and name = any ($3)
         order by is_current desc, recorded_at desc, price_id",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(names)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let read = |(id, name, currency, per, every, meter)| {
        Ok(Sold { id: ObjectId::try_from(id).map_err(corrupt)?, name, currency, per, every, meter })
    };
    rows.into_iter().map(read).collect()
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
