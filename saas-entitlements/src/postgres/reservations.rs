//! Reservations on PostgreSQL: each step is one call of a function, in one flight where nothing rare goes with it.
//!
//! When a reservation is overdue is told by the database's clock: those who hold units and those who take them back run on
//! different machines.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, InvalidInput, Revision, TenantContext, TenantId, TenantTx, UsageEventId, UsageReservationId,
    db::{Literal, TenantWork},
};
use sqlx::{Row, postgres::PgRow};

use super::{
    PostgresCounters,
    counters::{announce, flag_near_limit, limit_units, open_window, stored, units},
    edges,
};
use crate::{Draw, EntitlementsError, Hold, Holding, ReservationStore, Settled};

/// A step is decided again after its window was opened; a third time would be somebody working against it.
const ATTEMPTS: usize = 2;

const RESERVE: &str = "select outcome, revision, reservation, used, held, burnt, room, prior, relimited
    from saas.usage_reserve(
        $1::uuid, $2::bigint, $3::uuid, $4::text, $5::text, $6::text, $7::bigint, $8::bigint, $9::text, $10::timestamptz,
        $11::bigint, nullif($12::bigint, -1), $13::bigint, $14::text, $15::timestamptz, $16::boolean,
        nullif($17::text, ''))";

const SETTLE: &str = "select outcome, before, after, burnt, beyond, late, prior, relimited, due
    from saas.usage_settle(
        $1::uuid, $2::uuid, $3::boolean, $4::bigint, $5::bigint, nullif($6::bigint, -1), $7::text::integer[],
        $8::text::bigint[], $9::uuid, $10::text, $11::timestamptz, $12::boolean)";

#[async_trait]
impl ReservationStore for PostgresCounters {
    async fn hold(
        &self,
        ctx: &dyn TenantContext,
        hold: &Hold,
        now: DateTime<Utc>,
    ) -> Result<Holding, EntitlementsError> {
        let actor = ctx.actor().to_string();
        let rows = self.binding.write_once(ctx, RESERVE, &reserve(ctx.tenant(), &actor, hold, now, false)).await?;
        if let Some(row) = rows.first()
            && let Some(holding) = held(row, &hold.draw)?
        {
            return Ok(holding);
        }
        let mut tx = TenantTx::begin(self.binding(), ctx).await?;
        let holding = hold_in(&mut tx, hold, now).await?;
        tx.commit().await?;
        Ok(holding)
    }

    async fn commit(
        &self,
        ctx: &dyn TenantContext,
        reservation: UsageReservationId,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Settled, EntitlementsError> {
        let settling = Settling::new(ctx, reservation, draw, true);
        let rows = self.binding.write_once(ctx, SETTLE, &settling.values(now, false)).await?;
        if let Some(row) = rows.first()
            && let Some(settled) = settled(row, Vec::new())?
        {
            return Ok(settled);
        }
        let mut tx = TenantTx::begin(self.binding(), ctx).await?;
        let values = settling.values(now, true);
        let query = values.into_iter().fold(sqlx::query(SETTLE), |query, value| value.bind_to(query));
        let row = query.fetch_one(&mut *tx).await.map_err(CoreError::from_database)?;
        let mut crossed = Vec::new();
        if let Some(after) = number(&row, "after")? {
            let due: Option<Vec<i32>> = row.try_get("due").map_err(CoreError::from_database)?;
            let relimited: Option<bool> = row.try_get("relimited").map_err(CoreError::from_database)?;
            crossed = announce(&mut tx, draw, &due.unwrap_or_default(), units(after)?, now).await?;
            if relimited == Some(true) {
                edges::resolve_within(&mut tx, draw, units(after)?, edges::Because::HigherLimit, now).await?;
            }
            flag_near_limit(&mut tx, now).await?;
        }
        tx.commit().await?;
        settled(&row, crossed)?.ok_or_else(|| corrupt().into())
    }

    async fn release(
        &self,
        ctx: &dyn TenantContext,
        reservation: UsageReservationId,
        now: DateTime<Utc>,
    ) -> Result<Settled, EntitlementsError> {
        let actor = ctx.actor().to_string();
        let values = [
            Literal::Uuid(ctx.tenant().as_uuid()),
            Literal::Uuid(reservation.as_uuid()),
            Literal::Boolean(false),
            Literal::Integer(0),
            Literal::Integer(0),
            Literal::Integer(-1),
            Literal::Text("{}"),
            Literal::Text("{}"),
            Literal::Uuid(UsageEventId::mint_at(now).as_uuid()),
            Literal::Text(&actor),
            Literal::Timestamp(now),
            Literal::Boolean(false),
        ];
        let rows = self.binding.write_once(ctx, SETTLE, &values).await?;
        let settled = rows.first().map(|row| settled(row, Vec::new())).transpose()?;
        settled.flatten().ok_or_else(|| corrupt().into())
    }
}

/// The way of several statements: the first of a window, or under another limit.
async fn hold_in(tx: &mut TenantTx, hold: &Hold, now: DateTime<Utc>) -> Result<Holding, EntitlementsError> {
    let (draw, actor) = (&hold.draw, tx.actor().to_string());
    edges::carry_over(tx, draw, now).await?;
    for _ in 0..ATTEMPTS {
        let values = reserve(tx.tenant(), &actor, hold, now, true);
        let query = values.into_iter().fold(sqlx::query(RESERVE), |query, value| value.bind_to(query));
        let row = query.fetch_one(&mut **tx).await.map_err(CoreError::from_database)?;
        let Some(holding) = held(&row, draw)? else {
            open_window(tx, &draw.counter, draw.window, draw.period).await?;
            edges::resolve_earlier(tx, draw, now).await?;
            flag_near_limit(tx, now).await?;
            continue;
        };
        let relimited: Option<bool> = row.try_get("relimited").map_err(CoreError::from_database)?;
        if let (Holding::Held { used, .. }, Some(true)) = (holding, relimited) {
            edges::resolve_within(tx, draw, used, edges::Because::HigherLimit, now).await?;
            flag_near_limit(tx, now).await?;
        }
        return Ok(holding);
    }
    Err(corrupt().into())
}

/// The parameters of [`RESERVE`].
fn reserve<'a>(tenant: TenantId, actor: &'a str, hold: &'a Hold, now: DateTime<Utc>, whole: bool) -> [Literal<'a>; 17] {
    let draw = &hold.draw;
    [
        Literal::Uuid(tenant.as_uuid()),
        Literal::Integer(stored(draw.revision.get())),
        Literal::Uuid(hold.reservation.as_uuid()),
        Literal::Text(draw.meter.as_str()),
        Literal::Text(draw.counter.as_str()),
        Literal::Text(draw.key.as_str()),
        Literal::Integer(stored(draw.amount)),
        Literal::Integer(stored(draw.units)),
        Literal::Text(draw.window.as_str()),
        Literal::Timestamp(draw.period.start),
        Literal::Integer(stored(draw.cap)),
        Literal::Integer(limit_units(draw).unwrap_or(-1)),
        Literal::Integer(i64::try_from(hold.life.as_millis()).unwrap_or(i64::MAX)),
        Literal::Text(actor),
        Literal::Timestamp(now),
        Literal::Boolean(whole),
        Literal::Text(draw.member.as_deref().unwrap_or_default()),
    ]
}

/// A commit, with what of it has to be written as text first.
struct Settling<'a> {
    tenant: TenantId,
    actor: String,
    reservation: UsageReservationId,
    draw: &'a Draw,
    committing: bool,
    marks: String,
    mark_units: String,
}

impl<'a> Settling<'a> {
    fn new(ctx: &dyn TenantContext, reservation: UsageReservationId, draw: &'a Draw, committing: bool) -> Self {
        let array = |numbers: Vec<String>| format!("{{{}}}", numbers.join(","));
        Self {
            tenant: ctx.tenant(),
            actor: ctx.actor().to_string(),
            reservation,
            draw,
            committing,
            marks: array(draw.thresholds.iter().map(|mark| mark.percent.to_string()).collect()),
            mark_units: array(draw.thresholds.iter().map(|mark| stored(mark.units).to_string()).collect()),
        }
    }

    /// The parameters of [`SETTLE`].
    fn values(&self, now: DateTime<Utc>, whole: bool) -> [Literal<'_>; 12] {
        [
            Literal::Uuid(self.tenant.as_uuid()),
            Literal::Uuid(self.reservation.as_uuid()),
            Literal::Boolean(self.committing),
            Literal::Integer(stored(self.draw.amount)),
            Literal::Integer(stored(self.draw.units)),
            Literal::Integer(limit_units(self.draw).unwrap_or(-1)),
            Literal::Text(&self.marks),
            Literal::Text(&self.mark_units),
            Literal::Uuid(UsageEventId::mint_at(now).as_uuid()),
            Literal::Text(&self.actor),
            Literal::Timestamp(now),
            Literal::Boolean(whole),
        ]
    }
}

/// What became of a hold; `None` for what the common way leaves to the thorough one.
fn held(row: &PgRow, draw: &Draw) -> Result<Option<Holding>, EntitlementsError> {
    let count = |column| found(row, column);
    let outcome: String = row.try_get("outcome").map_err(CoreError::from_database)?;
    Ok(Some(match outcome.as_str() {
        "held" => Holding::Held {
            reservation: UsageReservationId::from_uuid(row.try_get("reservation").map_err(CoreError::from_database)?),
            used: count("used")?,
            held: count("held")?,
            of_grants: count("burnt")?,
        },
        "refused" => Holding::Refused { used: count("used")?, held: count("held")?, room: count("room")? },
        "known" => Holding::AlreadyCounted { amount: count("prior")? },
        "outdated" => Holding::Outdated { revision: Revision::new(count("revision")?) },
        "reused" => return Err(CoreError::KeyReused { key: draw.key.to_string() }.into()),
        "no tenant" => return Err(CoreError::NotFound { what: "tenant" }.into()),
        _ => return Ok(None),
    }))
}

/// What became of a reservation; `None` for what the common way leaves to the thorough one.
fn settled(row: &PgRow, crossed: Vec<u16>) -> Result<Option<Settled>, EntitlementsError> {
    let outcome: String = row.try_get("outcome").map_err(CoreError::from_database)?;
    Ok(Some(match outcome.as_str() {
        "committed" => Settled::Counted {
            before: found(row, "before")?,
            after: found(row, "after")?,
            burnt: found(row, "burnt")?,
            beyond: found(row, "beyond")?,
            late: row.try_get("late").map_err(CoreError::from_database)?,
            crossed,
        },
        "released" => Settled::Released,
        // A correction with the same key may have been negative.
        "known" => Settled::AlreadyCounted { amount: u64::try_from(number(row, "prior")?.unwrap_or(0)).unwrap_or(0) },
        "unknown" => Settled::Unknown,
        "full" => {
            let why = "would count more than 2^63-1 units";
            return Err(InvalidInput::new("actual", why, "correct the counter first").into());
        }
        _ => return Ok(None),
    }))
}

fn number(row: &PgRow, column: &str) -> Result<Option<i64>, CoreError> {
    row.try_get(column).map_err(CoreError::from_database)
}

fn found(row: &PgRow, column: &str) -> Result<u64, CoreError> {
    number(row, column)?.ok_or_else(corrupt).and_then(units)
}

/// An answer that the functions of this version do not give.
const fn corrupt() -> CoreError {
    CoreError::Corrupt { table: "saas.usage_reservation", column: "units" }
}
