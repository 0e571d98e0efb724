//! Counters compared with the events they stand for, and counted again from them.
//!
//! What reservations and leases hold is theirs and stays as it is; only what was used is compared and mended, with what each
//! member used of it and the items in it.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, MeterKey, PageSize, SystemTx, TenantContext, TenantId, audit, plan::Window};
use serde::Serialize;

use super::{ACTOR, UsagePipeline};
use crate::EntitlementsError;

/// Whether a rebuild changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// It says what it would change.
    DryRun,
    /// It sets the counter, its members and its items to what the events say, and writes both figures to the audit log.
    Repair,
}

/// A counter, and what its events say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CounterDrift {
    /// Whose.
    pub tenant: TenantId,
    /// Of which meter: the one that counts, which may be paid by others.
    pub meter: MeterKey,
    /// The kind of its window.
    pub window: Window,
    /// When that began.
    pub window_start: DateTime<Utc>,
    /// What the counter says is used.
    pub used: i64,
    /// What its events say.
    pub events: i64,
    /// What reservations and leases hold beside it.
    pub held: i64,
    /// How many of its members and items have figures of their own that differ from their events.
    pub details: i64,
}

/// A place in the list of counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftCursor {
    tenant: TenantId,
    meter: String,
    window: String,
    start: DateTime<Utc>,
}

/// What one page of counters showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriftReport {
    /// Counters that say something else than their events.
    pub drifted: Vec<CounterDrift>,
    /// Counters that agree.
    pub sound: u64,
    /// Counters whose window began before the oldest event that is kept: nothing can be said.
    pub beyond_retention: u64,
    /// Where to go on; `None` when all were looked at.
    pub next: Option<DriftCursor>,
}

type Compared = (uuid::Uuid, String, String, DateTime<Utc>, i64, i64, i64, i64, bool);

impl UsagePipeline {
    /// Compares a page of counters of all tenants with their events, each counter and its events at the same instant.
    ///
    /// # Errors
    /// [`Unavailable`](saas_core::ErrorKind::Unavailable) when the database does not answer.
    pub async fn find_drift(
        &self,
        after: Option<&DriftCursor>,
        size: PageSize,
    ) -> Result<DriftReport, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "compare counters with their events").await?;
        let rows: Vec<Compared> = sqlx::query_as(
            "select c.tenant_id, c.meter, c.window_kind, c.window_start, c.used,
                    saas.bounded(coalesce(e.units, 0) + coalesce(l.units, 0) - c.burnt), c.held,
                    case when c.window_start >= h.pruned_before then
                        saas.usage_detail_drift(c.tenant_id, c.meter, c.window_kind, c.window_start, c.by_member)
                    else 0 end,
                    c.window_start < h.pruned_before
             from (
                 select * from saas.usage_counter -- of every tenant, page by page
                 where $1::uuid is null or (tenant_id, meter, window_kind, window_start) > ($1, $2, $3, $4)
                 order by tenant_id, meter, window_kind, window_start
                 limit $5
             ) c
             cross join saas.usage_horizon h
             left join lateral (
                 select sum(e.units) as units
                 from saas.usage_event e
                 where e.tenant_id = c.tenant_id and e.counter = c.meter and e.window_kind = c.window_kind
                   and e.window_start = c.window_start
             ) e on c.window_start >= h.pruned_before
             left join lateral (
                 select sum(l.unrecorded) as units
                 from saas.usage_lease l
                 where l.tenant_id = c.tenant_id and l.counter = c.meter and l.window_kind = c.window_kind
                   and l.window_start = c.window_start and l.ended_at is null
             ) l on c.window_start >= h.pruned_before
             order by c.tenant_id, c.meter, c.window_kind, c.window_start",
        )
        .bind(after.map(|cursor| cursor.tenant.as_uuid()))
        .bind(after.map(|cursor| cursor.meter.as_str()))
        .bind(after.map(|cursor| cursor.window.as_str()))
        .bind(after.map(|cursor| cursor.start))
        .bind(i64::from(size.get()))
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.commit().await?;
        let is_full = rows.len() == usize::from(size.get());
        let next = rows.last().filter(|_| is_full).map(|(tenant, meter, window, start, ..)| DriftCursor {
            tenant: TenantId::from_uuid(*tenant),
            meter: meter.clone(),
            window: window.clone(),
            start: *start,
        });
        let mut report = DriftReport { next, ..DriftReport::default() };
        for row in rows {
            let (.., used, events, _, details, is_beyond) = row;
            if is_beyond {
                report.beyond_retention += 1;
            } else if used == events && details == 0 {
                report.sound += 1;
            } else {
                report.drifted.push(drift_of(row)?);
            }
        }
        Ok(report)
    }

    /// Counts one counter of the context's tenant again from its events. `None` when there is no such counter, or when
    /// events of its window may be gone: then only the counter knows.
    ///
    /// Uses of the window wait until it is done, so none is counted on the old figure and lost.
    ///
    /// # Errors
    /// [`Unavailable`](saas_core::ErrorKind::Unavailable) when the database does not answer; nothing was changed.
    pub async fn rebuild(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        window: Window,
        window_start: DateTime<Utc>,
        mode: Rebuild,
    ) -> Result<Option<CounterDrift>, EntitlementsError> {
        let mut tx =
            SystemTx::begin(&self.system, ctx.actor().clone(), "count a counter again from its events").await?;
        // The next statement sees all events of those who had the row before.
        sqlx::query(
            "select from saas.usage_counter
             where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4
             for no key update",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(meter.as_str())
        .bind(window.as_str())
        .bind(window_start)
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        let compared: Option<Compared> = sqlx::query_as(
            "select c.tenant_id, c.meter, c.window_kind, c.window_start, c.used,
                    (select saas.bounded(coalesce(sum(e.units), 0) - c.burnt + (
                        select coalesce(sum(l.unrecorded), 0)
                        from saas.usage_lease l
                        where l.tenant_id = $1 and l.counter = $2 and l.window_kind = $3 and l.window_start = $4
                          and l.ended_at is null
                     ))
                     from saas.usage_event e
                     where e.tenant_id = $1 and e.counter = $2 and e.window_kind = $3 and e.window_start = $4),
                    c.held, saas.usage_detail_drift(c.tenant_id, c.meter, c.window_kind, c.window_start, c.by_member),
                    false
             from saas.usage_counter c
             join saas.usage_horizon h on c.window_start >= h.pruned_before
             where c.tenant_id = $1 and c.meter = $2 and c.window_kind = $3 and c.window_start = $4",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(meter.as_str())
        .bind(window.as_str())
        .bind(window_start)
        .fetch_optional(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        let Some(drift) = compared.map(drift_of).transpose()? else { return Ok(None) };
        match mode {
            Rebuild::Repair if drift.used != drift.events || drift.details > 0 => {}
            Rebuild::Repair | Rebuild::DryRun => return Ok(Some(drift)),
        }
        let turned: Option<bool> = sqlx::query_scalar(
            "update saas.usage_counter
             set used = $5
             where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4
             returning ($6 > over_above) <> ($5 > over_above)",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(meter.as_str())
        .bind(window.as_str())
        .bind(window_start)
        .bind(drift.events)
        .bind(drift.used)
        .fetch_one(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        let now = self.clock.now_in(&mut tx).await?;
        if turned == Some(true) {
            crate::postgres::turn_in(&mut tx, ctx.tenant(), (meter, window, window_start), now).await?;
        }
        sqlx::query(
            "select saas.usage_detail_rebuild(tenant_id, meter, window_kind, window_start, by_member)
             from saas.usage_counter
             where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(meter.as_str())
        .bind(window.as_str())
        .bind(window_start)
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        let detail = serde_json::json!({
            "window": window, "window_start": window_start, "used": drift.used, "events": drift.events, "held": drift.held,
            "details": drift.details,
        });
        let entry = audit::Entry::new("usage.counter_rebuilt", meter).with_detail(detail);
        audit::record_for(&mut tx, ctx, entry, now).await?;
        tx.commit().await?;
        Ok(Some(drift))
    }
}

fn drift_of(compared: Compared) -> Result<CounterDrift, CoreError> {
    let (tenant, meter, window, window_start, used, events, held, details, _) = compared;
    let window = window_of(&window)?;
    let meter =
        MeterKey::from_str(&meter).map_err(|_| CoreError::Corrupt { table: "saas.usage_counter", column: "meter" })?;
    Ok(CounterDrift { tenant: TenantId::from_uuid(tenant), meter, window, window_start, used, events, held, details })
}

/// A kind of window by its name in the database.
pub(super) fn window_of(name: &str) -> Result<Window, CoreError> {
    Ok(match name {
        "hour" => Window::Hour,
        "day" => Window::Day,
        "week" => Window::Week,
        "month" => Window::Month,
        "year" => Window::Year,
        "lifetime" => Window::Lifetime,
        _ => return Err(CoreError::Corrupt { table: "saas.usage_counter", column: "window_kind" }),
    })
}
