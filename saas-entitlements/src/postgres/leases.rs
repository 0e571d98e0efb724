//! Leases on PostgreSQL: each step is one call of a function in one round trip, commit included.
//!
//! Lives are measured by the database's clock, so the processes' clocks need not agree.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, MeterKey, Revision, SessionBinding, TenantContext, TenantTx, UsageEventId,
    db::{Literal, TenantWork},
    plan::Window,
};
use sqlx::{Row, postgres::PgRow};

use crate::{Ask, Balance, Borrowed, EntitlementsError, LeaseStore, Period, Report, Reported};

/// Leases in the tables `saas.usage_lease` and `saas.usage_counter`.
#[derive(Debug, Clone)]
pub struct PostgresLeases {
    binding: Arc<dyn SessionBinding>,
}

impl PostgresLeases {
    /// A store on the tenants' sessions.
    #[must_use]
    pub fn new(binding: Arc<dyn SessionBinding>) -> Self {
        Self { binding }
    }
}

const BORROW: &str = "select outcome, revision, used, held, lent
    from saas.usage_lease_borrow(
        $1::uuid, $2::bigint, $3::uuid, $4::text, $5::text, $6::text, $7::bigint, $8::text, $9::timestamptz,
        nullif($10::text, '')::timestamptz, $11::bigint, $12::bigint, $13::bigint, $14::bigint, $15::bigint, $16::uuid,
        $17::text, $18::timestamptz, $19::boolean, $20::uuid, $21::bigint, $22::bigint, $23::uuid)";

const REPORT: &str = "select outcome, wanted
    from saas.usage_lease_report(
        $1::uuid, $2::uuid, $3::bigint, $4::bigint, $5::boolean, $6::bigint, $7::uuid, $8::text, $9::timestamptz)";

const RECLAIM: &str = "select saas.usage_lease_reclaim($1::uuid, $2::text, $3::timestamptz) as units";

#[async_trait]
impl LeaseStore for PostgresLeases {
    async fn borrow(
        &self,
        ctx: &dyn TenantContext,
        ask: &Ask,
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        let (actor, end) = (ctx.actor().to_string(), ask.period.end.map_or(String::new(), |end| end.to_rfc3339()));
        let settle = ask.settle.as_ref();
        let values = [
            Literal::Uuid(ctx.tenant().as_uuid()),
            Literal::Integer(stored(ask.revision.get())),
            Literal::Uuid(ask.lease.as_uuid()),
            Literal::Text(&ask.holder),
            Literal::Text(ask.meter.as_str()),
            Literal::Text(ask.counter.as_str()),
            Literal::Integer(stored(ask.cost)),
            Literal::Text(ask.window.as_str()),
            Literal::Timestamp(ask.period.start),
            Literal::Text(&end),
            Literal::Integer(stored(ask.cap)),
            Literal::Integer(stored(ask.exposed)),
            Literal::Integer(stored(ask.need)),
            Literal::Integer(stored(ask.want)),
            Literal::Integer(millis(ask.life)),
            Literal::Uuid(UsageEventId::mint_at(now).as_uuid()),
            Literal::Text(&actor),
            Literal::Timestamp(now),
            Literal::Boolean(settle.is_some()),
            Literal::Uuid(settle.map_or(ask.lease, |report| report.lease).as_uuid()),
            Literal::Integer(stored(settle.map_or(0, |report| report.number))),
            Literal::Integer(stored(settle.map_or(0, |report| report.spent))),
            Literal::Uuid(UsageEventId::mint_at(now).as_uuid()),
        ];
        let row = only(self.binding.write_once(ctx, BORROW, &values).await?)?;
        let number = |column| row.try_get::<i64, _>(column).map_err(CoreError::from_database);
        Ok(match outcome(&row)?.as_str() {
            "lent" => Borrowed::Lent { units: units(number("lent")?)? },
            // Below 0 after corrections, which is no more than nothing.
            "refused" => {
                Borrowed::Refused { used: u64::try_from(number("used")?).unwrap_or(0), held: units(number("held")?)? }
            }
            "outdated" => Borrowed::Outdated { revision: Revision::new(units(number("revision")?)?) },
            "no tenant" => return Err(CoreError::NotFound { what: "tenant" }.into()),
            _ => return Err(corrupt().into()),
        })
    }

    async fn report(
        &self,
        ctx: &dyn TenantContext,
        report: &Report,
        now: DateTime<Utc>,
    ) -> Result<Reported, EntitlementsError> {
        let actor = ctx.actor().to_string();
        let values = [
            Literal::Uuid(ctx.tenant().as_uuid()),
            Literal::Uuid(report.lease.as_uuid()),
            Literal::Integer(stored(report.number)),
            Literal::Integer(stored(report.spent)),
            Literal::Boolean(report.ending),
            Literal::Integer(millis(report.life)),
            Literal::Uuid(UsageEventId::mint_at(now).as_uuid()),
            Literal::Text(&actor),
            Literal::Timestamp(now),
        ];
        let row = only(self.binding.write_once(ctx, REPORT, &values).await?)?;
        Ok(match outcome(&row)?.as_str() {
            "kept" => Reported::Kept { wanted: row.try_get("wanted").map_err(CoreError::from_database)? },
            "settled" => Reported::Settled,
            "fenced" => Reported::Fenced,
            _ => return Err(corrupt().into()),
        })
    }

    async fn reclaim(&self, ctx: &dyn TenantContext, now: DateTime<Utc>) -> Result<u64, EntitlementsError> {
        let actor = ctx.actor().to_string();
        let values = [Literal::Uuid(ctx.tenant().as_uuid()), Literal::Text(&actor), Literal::Timestamp(now)];
        let row = only(self.binding.write_once(ctx, RECLAIM, &values).await?)?;
        Ok(units(row.try_get("units").map_err(CoreError::from_database)?)?)
    }

    async fn balance(
        &self,
        ctx: &dyn TenantContext,
        counter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<Balance, EntitlementsError> {
        let mut tx = TenantTx::begin_read_only(&*self.binding, ctx).await?;
        let found: Option<(i64, i64)> = sqlx::query_as(
            "select used, held
             from saas.usage_counter
             where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(counter.as_str())
        .bind(window.as_str())
        .bind(period.start)
        .fetch_optional(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        let Some((used, held)) = found else { return Ok(Balance::default()) };
        Ok(Balance { used: u64::try_from(used).unwrap_or(0), held: units(held)? })
    }
}

fn only(rows: Vec<PgRow>) -> Result<PgRow, CoreError> {
    rows.into_iter().next().ok_or_else(corrupt)
}

fn outcome(row: &PgRow) -> Result<String, CoreError> {
    row.try_get("outcome").map_err(CoreError::from_database)
}

/// An answer that the functions of this version do not give, or a report of more than was lent.
const fn corrupt() -> CoreError {
    CoreError::Corrupt { table: "saas.usage_lease", column: "spent" }
}

fn stored(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

fn millis(life: Duration) -> i64 {
    i64::try_from(life.as_millis()).unwrap_or(i64::MAX)
}

fn units(stored: i64) -> Result<u64, CoreError> {
    u64::try_from(stored).map_err(|_| CoreError::Corrupt { table: "saas.usage_counter", column: "held" })
}
