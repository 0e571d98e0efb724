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

use super::{
    counters::{limit_units, stored, units},
    edges,
};
use crate::{Ask, Balance, Borrowed, Draw, EntitlementsError, LeaseStore, Period, Report, Reported};

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

    /// Counts a report; what is left after it beyond `keep` is taken back (`None`: nothing is).
    pub(crate) async fn report_keeping(
        &self,
        ctx: &dyn TenantContext,
        report: &Report,
        keep: Option<u64>,
        now: DateTime<Utc>,
    ) -> Result<Reported, EntitlementsError> {
        let actor = ctx.actor().to_string();
        let values = [
            Literal::Uuid(ctx.tenant().as_uuid()),
            Literal::Uuid(report.lease.as_uuid()),
            Literal::Integer(stored(report.number)),
            Literal::Integer(stored(report.spent)),
            Literal::Boolean(report.ending),
            Literal::Integer(keep.map_or(-1, stored)),
            Literal::Integer(millis(report.life)),
            Literal::Uuid(UsageEventId::mint_at(now).as_uuid()),
            Literal::Text(&actor),
            Literal::Timestamp(now),
        ];
        let row = only(self.binding.write_once(ctx, REPORT, &values).await?)?;
        Ok(match outcome(&row)?.as_str() {
            "kept" => {
                Reported::Kept { wanted: row.try_get("wanted").map_err(CoreError::from_database)?, used: used(&row)? }
            }
            "settled" => Reported::Settled { used: used(&row)? },
            "fenced" => Reported::Fenced,
            _ => return Err(corrupt().into()),
        })
    }
}

const BORROW: &str = "select outcome, revision, used, held, lent, relimited
    from saas.usage_lease_borrow(
        $1::uuid, $2::bigint, $3::uuid, $4::bigint, $5::bigint, $6::text, $7::text, $8::text, $9::text, $10::bigint,
        $11::text, $12::timestamptz, nullif($13::text, '')::timestamptz, $14::bigint, nullif($15::bigint, -1), $16::bigint,
        $17::bigint, $18::bigint, $19::bigint, $20::uuid, $21::text, $22::timestamptz)";

const REPORT: &str = "select outcome, wanted, used
    from saas.usage_lease_report(
        $1::uuid, $2::uuid, $3::bigint, $4::bigint, $5::boolean, nullif($6::bigint, -1), $7::bigint, $8::uuid, $9::text,
        $10::timestamptz)";

const RECLAIM: &str = "select saas.usage_lease_reclaim($1::uuid, $2::text, $3::timestamptz) as units";

#[async_trait]
impl LeaseStore for PostgresLeases {
    async fn borrow(
        &self,
        ctx: &dyn TenantContext,
        ask: &Ask,
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        let Ask { draw, lease, .. } = ask;
        let (actor, end) = (ctx.actor().to_string(), draw.period.end.map_or(String::new(), |end| end.to_rfc3339()));
        let values = [
            Literal::Uuid(ctx.tenant().as_uuid()),
            Literal::Integer(stored(draw.revision.get())),
            Literal::Uuid(lease.as_uuid()),
            Literal::Integer(stored(ask.number)),
            Literal::Integer(stored(ask.spent)),
            Literal::Text(&ask.holder),
            Literal::Text(draw.meter.as_str()),
            Literal::Text(draw.counter.as_str()),
            Literal::Text(draw.key.as_str()),
            Literal::Integer(stored(ask.cost)),
            Literal::Text(draw.window.as_str()),
            Literal::Timestamp(draw.period.start),
            Literal::Text(&end),
            Literal::Integer(stored(draw.cap)),
            Literal::Integer(limit_units(draw).unwrap_or(-1)),
            Literal::Integer(stored(ask.exposed)),
            Literal::Integer(stored(draw.units)),
            Literal::Integer(stored(ask.want)),
            Literal::Integer(millis(ask.life)),
            Literal::Uuid(UsageEventId::mint_at(now).as_uuid()),
            Literal::Text(&actor),
            Literal::Timestamp(now),
        ];
        let row = only(self.binding.write_once(ctx, BORROW, &values).await?)?;
        let number = |column| row.try_get::<i64, _>(column).map_err(CoreError::from_database);
        Ok(match outcome(&row)?.as_str() {
            "lent" => Borrowed::Lent {
                units: units(number("lent")?)?,
                used: used(&row)?,
                relimited: row.try_get("relimited").map_err(CoreError::from_database)?,
            },
            "refused" => Borrowed::Refused { used: used(&row)?, held: units(number("held")?)? },
            "fenced" => Borrowed::Fenced,
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
        self.report_keeping(ctx, report, None, now).await
    }

    async fn announce(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Vec<u16>, EntitlementsError> {
        self.binding.write(ctx, async |tx| edges::catch_up(tx, draw, now).await).await
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

fn millis(life: Duration) -> i64 {
    i64::try_from(life.as_millis()).unwrap_or(i64::MAX)
}

/// Below 0 after corrections, which is no more than nothing.
fn used(row: &PgRow) -> Result<u64, CoreError> {
    row.try_get::<i64, _>("used").map(|used| u64::try_from(used).unwrap_or(0)).map_err(CoreError::from_database)
}
