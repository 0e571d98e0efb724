//! Counting on PostgreSQL: the idempotency key, the limit, the counter and the revision in one statement.
//!
//! `saas.usage_consume` decides and counts; the common case is one flight, begin and commit included. What is rare (a window
//! that opens, a warning, another limit) it leaves to a transaction of several statements. When it refuses it leaves nothing
//! behind, so it can run in the caller's own transaction, too. Uses of one tenant that meet share a flight ([`flights`]).

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, Limit, MeterKey, Revision, SessionBinding, TenantContext, TenantId, TenantTx, Topic, UsageEventId,
    audit,
    db::Literal,
    group::Group,
    outbox,
    plan::{Aggregation, Window},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{
    edges,
    flights::{self, Flights, Use},
};
use crate::{CounterStore, Draw, Drawn, EntitlementsError, Period};

/// The outbox topic of crossed thresholds; the payload is a [`ThresholdCrossed`].
pub const THRESHOLD_TOPIC: Topic = Topic::from_static("usage.threshold-crossed");

/// A threshold was crossed for the first time in its window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThresholdCrossed {
    /// Of what.
    pub meter: MeterKey,
    /// In percent of the limit.
    pub percent: u16,
    /// Used in the window by then.
    pub used: u64,
    /// The first instant of the window.
    pub window_start: DateTime<Utc>,
    /// When usage starts again from 0; `None` for never.
    pub window_end: Option<DateTime<Utc>>,
}

/// Counts in the tables `saas.usage_*`.
#[derive(Debug, Clone)]
pub struct PostgresCounters {
    pub(crate) binding: Arc<dyn SessionBinding>,
    group: Arc<Group<Flights>>,
}

impl PostgresCounters {
    /// A store on the tenants' sessions. Clone it rather than make two: uses of one tenant share flights within one store.
    #[must_use]
    pub fn new(binding: Arc<dyn SessionBinding>) -> Self {
        Self { group: flights::group(Arc::clone(&binding)), binding }
    }

    pub(super) fn binding(&self) -> &dyn SessionBinding {
        &*self.binding
    }
}

#[async_trait]
impl CounterStore for PostgresCounters {
    async fn consume(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Drawn, EntitlementsError> {
        let one = Use { draw: draw.clone(), actor: ctx.actor().to_string(), now };
        let decided = self.group.join(&(ctx.tenant(), draw.meter.clone()), one).await?;
        // Before the first use under a limit, what was left over has yet to be added.
        let is_first = decided.relimited && draw.carry.is_some();
        match decided.drawn(draw)? {
            Some(Drawn::Refused { .. }) if is_first => {}
            Some(drawn) => return Ok(drawn),
            None => {}
        }
        let mut tx = TenantTx::begin(&*self.binding, ctx).await?;
        let drawn = consume_in(&mut tx, draw, now).await?;
        match drawn {
            Drawn::Counted { .. } => tx.commit().await?,
            // Nothing was counted, but what each member used may have been added up, and stays known.
            Drawn::Refused { .. } | Drawn::MemberRefused { .. } if draw.member_cap.is_some() => tx.commit().await?,
            // Nothing was counted; at most an empty counter row goes with the transaction.
            Drawn::Refused { .. } | Drawn::MemberRefused { .. } | Drawn::AlreadyCounted | Drawn::Outdated { .. } => {}
        }
        Ok(drawn)
    }

    async fn used(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<u64, EntitlementsError> {
        let mut tx = TenantTx::begin(&*self.binding, ctx).await?;
        let used: Option<i64> = sqlx::query_scalar(
            "select used
             from saas.usage_counter
             where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(meter.as_str())
        .bind(window.as_str())
        .bind(period.start)
        .fetch_optional(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        Ok(units(used.unwrap_or(0))?)
    }

    async fn used_by(
        &self,
        ctx: &dyn TenantContext,
        member: &str,
        meter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<u64, EntitlementsError> {
        let mut tx = TenantTx::begin_read_only(&*self.binding, ctx).await?;
        let used: Option<i64> = sqlx::query_scalar(
            "select case when c.by_member then
                        (select m.used from saas.usage_member m
                         where m.tenant_id = $1 and m.meter = $2 and m.window_kind = $3 and m.window_start = $4
                           and m.member = $5)
                    else
                        (select saas.bounded(greatest(sum(e.units), 0)) from saas.usage_event e
                         where e.tenant_id = $1 and e.counter = $2 and e.window_kind = $3 and e.window_start = $4
                           and e.member = $5)
                    end
             from saas.usage_counter c
             where c.tenant_id = $1 and c.meter = $2 and c.window_kind = $3 and c.window_start = $4",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(meter.as_str())
        .bind(window.as_str())
        .bind(period.start)
        .bind(member)
        .fetch_optional(&mut *tx)
        .await
        .map_err(CoreError::from_database)?
        .flatten();
        Ok(units(used.unwrap_or(0))?)
    }
}

/// Counts one draw in the caller's transaction.
pub(crate) async fn consume_in(tx: &mut TenantTx, draw: &Draw, now: DateTime<Utc>) -> Result<Drawn, EntitlementsError> {
    /// A missing counter row is made once; a second miss would be somebody deleting them as we go.
    const ATTEMPTS: usize = 2;
    let call = Call::new(tx.tenant(), tx.actor().to_string(), draw);
    edges::carry_over(tx, draw, now).await?;
    for _ in 0..ATTEMPTS {
        let values = call.values(draw, now, true);
        let query = values.into_iter().fold(sqlx::query(CONSUME), |query, value| value.bind_to(query));
        let row = query.fetch_one(&mut **tx).await.map_err(CoreError::from_database)?;
        let decided = Decided::read(&row)?;
        let Some(drawn) = decided.drawn(draw)? else {
            // Once per window, so also the moment to clear a warning flag that has passed.
            open_window(tx, &draw.counter, draw.window, draw.period).await?;
            edges::resolve_earlier(tx, draw, now).await?;
            flag_near_limit(tx, now).await?;
            continue;
        };
        let Drawn::Counted { before, after, burnt, .. } = drawn else { return Ok(drawn) };
        let crossed = announce(tx, draw, &decided.due, after, now).await?;
        // Only a level falls by a use.
        let because = match decided.relimited {
            true => Some(edges::Because::HigherLimit),
            false => (after < before).then_some(edges::Because::LowerLevel),
        };
        if let Some(because) = because {
            edges::resolve_within(tx, draw, after, because, now).await?;
        }
        if because.is_some() || !crossed.is_empty() {
            flag_near_limit(tx, now).await?;
        }
        return Ok(Drawn::Counted { before, after, burnt, crossed });
    }
    Err(CoreError::Corrupt { table: "saas.usage_counter", column: "used" }.into())
}

pub(super) const CONSUME: &str = "
    select outcome, revision, before, after, prior, prior_item, relimited, due, burnt, room, member_before
    from saas.usage_consume(
        $18::text, $1::uuid, $2::bigint, $3::text, $4::text, $5::text, $6::uuid, $7::bigint, $8::bigint, $9::text, $10::timestamptz,
        $11::bigint, nullif($12::bigint, -1), $13::text::integer[], $14::text::bigint[], $15::text, $16::timestamptz,
        $17::boolean, $19::text, nullif($20::text, ''), nullif($21::text, ''), nullif($22::bigint, -1),
        $23::timestamptz)";

/// What of a call has to be written as text first.
pub(super) struct Call {
    tenant: TenantId,
    actor: String,
    marks: String,
    mark_units: String,
}

impl Call {
    pub(super) fn new(tenant: TenantId, actor: String, draw: &Draw) -> Self {
        let array = |numbers: Vec<String>| format!("{{{}}}", numbers.join(","));
        Self {
            tenant,
            actor,
            marks: array(draw.thresholds.iter().map(|mark| mark.percent.to_string()).collect()),
            mark_units: array(draw.thresholds.iter().map(|mark| stored(mark.units).to_string()).collect()),
        }
    }

    /// The parameters of [`CONSUME`]. `whole`: the caller does what follows from a use that is not of the common kind.
    pub(super) fn values<'a>(&'a self, draw: &'a Draw, now: DateTime<Utc>, whole: bool) -> [Literal<'a>; 23] {
        [
            Literal::Uuid(self.tenant.as_uuid()),
            Literal::Integer(stored(draw.revision.get())),
            Literal::Text(draw.meter.as_str()),
            Literal::Text(draw.counter.as_str()),
            Literal::Text(draw.key.as_str()),
            Literal::Uuid(UsageEventId::mint_at(now).as_uuid()),
            Literal::Integer(stored(draw.amount)),
            Literal::Integer(stored(draw.units)),
            Literal::Text(draw.window.as_str()),
            Literal::Timestamp(draw.period.start),
            Literal::Integer(stored(draw.cap)),
            Literal::Integer(limit_units(draw).unwrap_or(-1)),
            Literal::Text(&self.marks),
            Literal::Text(&self.mark_units),
            Literal::Text(&self.actor),
            Literal::Timestamp(now),
            Literal::Boolean(whole),
            Literal::Text(draw.kind.as_str()),
            Literal::Text(aggregation(draw)),
            Literal::Text(draw.item.as_deref().unwrap_or_default()),
            Literal::Text(draw.member.as_deref().unwrap_or_default()),
            Literal::Integer(draw.member_cap.map_or(-1, stored)),
            Literal::Timestamp(draw.at),
        ]
    }

    /// What uses have in common that are decided in the same way.
    pub(super) fn common<'a>(&'a self, draw: &'a Draw) -> [Literal<'a>; 13] {
        [
            Literal::Text(draw.kind.as_str()),
            Literal::Uuid(self.tenant.as_uuid()),
            Literal::Integer(stored(draw.revision.get())),
            Literal::Text(draw.meter.as_str()),
            Literal::Text(draw.counter.as_str()),
            Literal::Text(draw.window.as_str()),
            Literal::Timestamp(draw.period.start),
            Literal::Integer(stored(draw.cap)),
            Literal::Integer(limit_units(draw).unwrap_or(-1)),
            Literal::Text(&self.marks),
            Literal::Text(&self.mark_units),
            Literal::Text(aggregation(draw)),
            Literal::Integer(draw.member_cap.map_or(-1, stored)),
        ]
    }
}

/// How a use becomes units, in the words of `saas.usage_consume`.
const fn aggregation(draw: &Draw) -> &'static str {
    match draw.aggregation {
        Aggregation::Sum | Aggregation::Count => "sum",
        peculiar @ (Aggregation::Max | Aggregation::Unique | Aggregation::Latest) => peculiar.as_str(),
    }
}

/// What one call answered.
#[derive(Debug)]
pub(super) struct Decided {
    outcome: String,
    /// The tenant's revision.
    revision: Option<i64>,
    /// Used before.
    before: Option<i64>,
    /// Used with it.
    after: Option<i64>,
    /// The amount that the key was counted with before.
    prior: Option<i64>,
    /// The item that it was counted with.
    prior_item: Option<String>,
    /// Whether the last use of the window was under another limit.
    relimited: bool,
    /// Thresholds that are reached and were not announced for this limit, in percent.
    due: Vec<i32>,
    /// Units that were taken from grants.
    burnt: Option<i64>,
    /// The most that would have fitted.
    room: Option<i64>,
    /// Used by the member, where its limit is what refused.
    member_before: Option<i64>,
}

impl Decided {
    pub(super) fn read(row: &PgRow) -> Result<Self, CoreError> {
        let read = || {
            Ok(Self {
                outcome: row.try_get("outcome")?,
                revision: row.try_get("revision")?,
                before: row.try_get("before")?,
                after: row.try_get("after")?,
                prior: row.try_get("prior")?,
                prior_item: row.try_get("prior_item")?,
                relimited: row.try_get::<Option<bool>, _>("relimited")?.unwrap_or_default(),
                due: row.try_get::<Option<Vec<i32>>, _>("due")?.unwrap_or_default(),
                burnt: row.try_get("burnt")?,
                room: row.try_get("room")?,
                member_before: row.try_get("member_before")?,
            })
        };
        read().map_err(CoreError::from_database)
    }

    /// What became of the draw; `None` for what the common way leaves to the thorough one.
    fn drawn(&self, draw: &Draw) -> Result<Option<Drawn>, EntitlementsError> {
        let found =
            |number: Option<i64>| number.ok_or(CoreError::Corrupt { table: "saas.usage_counter", column: "used" });
        let used = |number| found(number).and_then(units);
        Ok(Some(match self.outcome.as_str() {
            "no tenant" => return Err(CoreError::NotFound { what: "tenant" }.into()),
            "known"
                if (u64::try_from(found(self.prior)?), self.prior_item.as_deref())
                    == (Ok(draw.amount), draw.item.as_deref()) =>
            {
                Drawn::AlreadyCounted
            }
            "known" => return Err(CoreError::KeyReused { key: draw.key.to_string() }.into()),
            "outdated" => Drawn::Outdated { revision: Revision::new(units(found(self.revision)?)?) },
            "refused" if self.member_before.is_some() => {
                Drawn::MemberRefused { used: used(self.member_before)?, room: used(self.room)? }
            }
            "refused" => Drawn::Refused { used: used(self.before)?, room: used(self.room)? },
            "counted" => Drawn::Counted {
                before: used(self.before)?,
                after: used(self.after)?,
                burnt: used(self.burnt)?,
                crossed: Vec::new(),
            },
            _ => return Ok(None),
        }))
    }
}

/// Gives the window its counter, unless it has one.
pub(super) async fn open_window(
    tx: &mut TenantTx,
    counter: &MeterKey,
    window: Window,
    period: Period,
) -> Result<(), CoreError> {
    let tenant = tx.tenant();
    sqlx::query(
        "insert into saas.usage_counter (tenant_id, meter, window_kind, window_start, window_end)
         values ($1, $2, $3, $4, $5)
         on conflict (tenant_id, meter, window_kind, window_start) do nothing",
    )
    .bind(tenant.as_uuid())
    .bind(counter.as_str())
    .bind(window.as_str())
    .bind(period.start)
    .bind(period.end)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(())
}

/// Records crossings that are the first of their window and returns those, with a job and an audit row for each.
pub(super) async fn announce(
    tx: &mut TenantTx,
    draw: &Draw,
    due: &[i32],
    after: u64,
    now: DateTime<Utc>,
) -> Result<Vec<u16>, EntitlementsError> {
    let Some(limit) = limit_units(draw).filter(|_| !due.is_empty()) else { return Ok(Vec::new()) };
    let tenant = tx.tenant();
    let first: Vec<i32> = sqlx::query_scalar(
        "insert into saas.usage_crossing
             (tenant_id, meter, window_kind, window_start, limit_units, threshold, window_end, units, at)
         select $1, $2, $3, $4, $9, threshold, $6, $7, $8
         from unnest($5::integer[]) as threshold
         on conflict (tenant_id, meter, window_kind, window_start, limit_units, threshold) do update
         set units = excluded.units, at = excluded.at, resolved_at = null
         where $10 and usage_crossing.resolved_at is not null -- a level that fell can rise again
         returning threshold",
    )
    .bind(tenant.as_uuid())
    .bind(draw.counter.as_str())
    .bind(draw.window.as_str())
    .bind(draw.period.start)
    .bind(due)
    .bind(draw.period.end)
    .bind(stored(after))
    .bind(now)
    .bind(limit)
    .bind(draw.aggregation == Aggregation::Latest)
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let corrupt = |_| CoreError::Corrupt { table: "saas.usage_crossing", column: "threshold" };
    let mut announced = first.into_iter().map(u16::try_from).collect::<Result<Vec<_>, _>>().map_err(corrupt)?;
    announced.sort_unstable();
    for percent in &announced {
        let event = ThresholdCrossed {
            meter: draw.counter.clone(),
            percent: *percent,
            used: after,
            window_start: draw.period.start,
            window_end: draw.period.end,
        };
        let detail = serde_json::json!({
            "percent": event.percent, "used": event.used,
            "window_start": event.window_start, "window_end": event.window_end,
        });
        let job = outbox::NewJob::of(THRESHOLD_TOPIC, &event)?;
        outbox::enqueue_in(tx, tenant, job, now).await?;
        audit::record(tx, audit::Entry::new("usage.threshold_crossed", &draw.counter).with_detail(detail), now).await?;
    }
    Ok(announced)
}

/// Keeps the operators' flag: until when a warning of an open window holds for the limit that was last counted against.
pub(super) async fn flag_near_limit(connection: &mut TenantTx, now: DateTime<Utc>) -> Result<(), CoreError> {
    let tenant = connection.tenant();
    let connection: &mut PgConnection = connection;
    sqlx::query(
        "update saas.tenant_overview o
         set near_limit_until = near.until
         from (
             select max(coalesce(x.window_end, 'infinity')) as until
             from saas.usage_crossing x
             join saas.usage_counter c using (tenant_id, meter, window_kind, window_start, limit_units)
             where x.tenant_id = $1 and x.resolved_at is null and (x.window_end is null or x.window_end > $2)
         ) near
         where o.tenant_id = $1 and o.near_limit_until is distinct from near.until",
    )
    .bind(tenant.as_uuid())
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(())
}

/// A count as the database stores it. Draws are at most `i64::MAX`; a store that is handed more counts nothing beyond.
pub(super) fn stored(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

/// The limit that warnings belong to; `None` where there is none.
pub(super) fn limit_units(draw: &Draw) -> Option<i64> {
    match draw.limit {
        Limit::Unlimited => None,
        Limit::Max(max) => Some(stored(max)),
    }
}

pub(super) fn units(stored: i64) -> Result<u64, CoreError> {
    u64::try_from(stored).map_err(|_| CoreError::Corrupt { table: "saas.usage_counter", column: "used" })
}
