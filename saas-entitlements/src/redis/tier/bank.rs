//! PostgreSQL's side: what lends and what is written.

use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, LeaseToken, TenantContext, UsageEventId,
    db::{Literal, TenantWork},
};
use sqlx::{Row, postgres::PgRow};

use super::{TierOptions, uses::Use};
use crate::{Draw, EntitlementsError, PostgresCounters};

const LEND: &str = "select outcome, used, lent
    from saas.usage_tier_lend(
        $1::uuid, $2::bigint, $3::uuid, $4::text, $5::text, $6::text, $7::timestamptz, $8::bigint, $9::text::integer[],
        $10::text::bigint[], $11::bigint, $12::bigint, $13::bigint, $14::bigint, $15::text, $16::timestamptz)";

const SETTLE: &str = "select outcome, counted, repeated, reused, beyond
    from saas.usage_tier_settle(
        $1::uuid, $2::uuid, $3::bigint, $4::bigint, $5::text::jsonb, $6::uuid, $7::text, $8::timestamptz)";

/// What became of a request for a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lent {
    /// So many units, after so many were used.
    Units { lent: u64, used: u64 },
    /// A use has to be counted by itself first.
    First,
    /// A limit or a warning is near, or as much is out as may be.
    Near,
}

/// What became of uses that were brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// New.
    pub(super) counted: u64,
    /// Of a key that counted before.
    pub(super) repeated: u64,
    /// Of a key that counted before with another amount: counted as uses of their own.
    pub(super) reused: u64,
    /// Units beyond what was lent.
    pub(super) beyond: u64,
    /// Whether no such lease is known: nothing was counted.
    pub(super) unknown: bool,
}

pub(super) async fn lend(
    counters: &PostgresCounters,
    ctx: &dyn TenantContext,
    options: &TierOptions,
    draw: &Draw,
    token: LeaseToken,
    now: DateTime<Utc>,
) -> Result<Lent, EntitlementsError> {
    let actor = ctx.actor().to_string();
    let array = |numbers: Vec<String>| format!("{{{}}}", numbers.join(","));
    let marks = array(draw.thresholds.iter().map(|mark| mark.percent.to_string()).collect());
    let mark_units = array(draw.thresholds.iter().map(|mark| stored(mark.units).to_string()).collect());
    let values = [
        Literal::Uuid(ctx.tenant().as_uuid()),
        Literal::Integer(stored(draw.revision.get())),
        Literal::Uuid(token.as_uuid()),
        Literal::Text("redis"),
        Literal::Text(draw.counter.as_str()),
        Literal::Text(draw.window.as_str()),
        Literal::Timestamp(draw.period.start),
        Literal::Integer(stored(draw.cap)),
        Literal::Text(&marks),
        Literal::Text(&mark_units),
        Literal::Integer(stored(draw.cap / options.exposed_share)),
        Literal::Integer(stored(options.largest)),
        Literal::Integer(stored(options.smallest.max(draw.units))),
        Literal::Integer(millis(options.life)),
        Literal::Text(&actor),
        Literal::Timestamp(now),
    ];
    let row = only(counters.binding.write_once(ctx, LEND, &values).await?)?;
    Ok(match text(&row)?.as_str() {
        "lent" => Lent::Units { lent: number(&row, "lent")?, used: number(&row, "used")? },
        "near" => Lent::Near,
        // Also `outdated`: the counter says by itself what the present revision is.
        _ => Lent::First,
    })
}

/// Writes uses of one slice, and gives back what of it nobody can use any more. Safe to repeat.
pub(super) async fn settle(
    counters: &PostgresCounters,
    ctx: &dyn TenantContext,
    options: &TierOptions,
    (token, back): (LeaseToken, Option<u64>),
    uses: &[&Use],
    now: DateTime<Utc>,
) -> Result<Settled, EntitlementsError> {
    let actor = ctx.actor().to_string();
    let uses = serde_json::to_string(uses).map_err(|_| corrupt())?;
    let values = [
        Literal::Uuid(ctx.tenant().as_uuid()),
        Literal::Uuid(token.as_uuid()),
        Literal::Integer(back.map_or(-1, stored)),
        Literal::Integer(millis(options.life)),
        Literal::Text(&uses),
        Literal::Uuid(UsageEventId::mint_at(now).as_uuid()),
        Literal::Text(&actor),
        Literal::Timestamp(now),
    ];
    let row = only(counters.binding.write_once(ctx, SETTLE, &values).await?)?;
    if text(&row)? == "unknown" {
        return Ok(Settled { unknown: true, ..Settled::default() });
    }
    Ok(Settled {
        counted: number(&row, "counted")?,
        repeated: number(&row, "repeated")?,
        reused: number(&row, "reused")?,
        beyond: number(&row, "beyond")?,
        unknown: false,
    })
}

fn only(rows: Vec<PgRow>) -> Result<PgRow, CoreError> {
    rows.into_iter().next().ok_or_else(corrupt)
}

fn text(row: &PgRow) -> Result<String, CoreError> {
    row.try_get("outcome").map_err(CoreError::from_database)
}

fn number(row: &PgRow, column: &str) -> Result<u64, CoreError> {
    let number: i64 = row.try_get(column).map_err(CoreError::from_database)?;
    u64::try_from(number).map_err(|_| corrupt())
}

/// An answer that the functions of this version do not give.
const fn corrupt() -> CoreError {
    CoreError::Corrupt { table: "saas.usage_lease", column: "lent" }
}

fn stored(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

fn millis(life: std::time::Duration) -> i64 {
    i64::try_from(life.as_millis()).unwrap_or(i64::MAX)
}
