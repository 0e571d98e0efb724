//! The parts of the event table: made ahead, emptied out of the default part, and dropped when they are old.

use chrono::{DateTime, Datelike, Months, NaiveDate, TimeDelta, Utc};
use saas_core::{CoreError, InvalidInput, SystemTx};
use serde::Serialize;

use super::{ACTOR, UsagePipeline, position};
use crate::EntitlementsError;

/// Keys that one transaction deletes.
const BATCH: i64 = 5_000;
/// Months that have their part before they begin.
const AHEAD: u32 = 2;

/// For how long what is kept about usage stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    events: TimeDelta,
    pub(super) keys: TimeDelta,
}

impl Default for Retention {
    /// Events for 400 days, keys for 45.
    fn default() -> Self {
        Self { events: TimeDelta::days(400), keys: TimeDelta::days(45) }
    }
}

impl Retention {
    /// Keeps events for at least `events`, and recognises a repeat for `keys` after the first.
    ///
    /// # Errors
    /// When events would go within 31 days, a repeat would be counted again within a day, or events would go before the
    /// keys that refer to them.
    pub fn new(events: TimeDelta, keys: TimeDelta) -> Result<Self, InvalidInput> {
        if keys < TimeDelta::days(1) {
            return Err(InvalidInput::new(
                "keys",
                "is shorter than a day",
                "keep them for as long as somebody may repeat",
            ));
        }
        if events < TimeDelta::days(31) || events < keys {
            let remedy = "keep events for 31 days or longer, and at least as long as keys";
            return Err(InvalidInput::new("events", "is too short", remedy));
        }
        Ok(Self { events, keys })
    }
}

/// A part that is old enough to go and has to stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldPart {
    /// The first day of its month.
    pub month: NaiveDate,
    /// Why, such as a reader that has not read it.
    pub why: String,
}

/// What one run of [`UsagePipeline::maintain`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Maintained {
    /// Months whose part was made.
    pub made: Vec<NaiveDate>,
    /// Events that moved out of the default part. More than 0 says that `maintain` was not run for a month or more.
    pub moved: u64,
    /// Months whose part was dropped.
    pub dropped: Vec<NaiveDate>,
    /// Months that had to stay.
    pub held: Vec<HeldPart>,
    /// Keys that were forgotten.
    pub keys: u64,
    /// Rows of `saas.excess_history` that were forgotten.
    pub excess: u64,
}

impl UsagePipeline {
    /// Makes the parts of this month and the next two, empties the default part, drops the parts of months that are over for
    /// longer than the retention, and forgets old keys and what gates were told then. Run it once a day.
    ///
    /// Every step commits by itself: a run that was stopped is resumed by the next one, and several at once do each step
    /// once. A part stays while a reader has not read it, or while a window other than a lifetime that began in it or before
    /// is open: [`held`](Maintained::held) says why. `progress` is called after each step with what was done so far.
    ///
    /// A month's events leave the default part in one transaction, which keeps writers waiting meanwhile.
    ///
    /// # Errors
    /// [`Unavailable`](saas_core::ErrorKind::Unavailable) when the table is busy for more than two seconds, or the database
    /// does not answer: what is done is done, run it again. [`ForeignPositions`](EntitlementsError::ForeignPositions) after a
    /// restore into another server: nothing was done.
    #[tracing::instrument(name = "saas.entitlements.usage.maintain", skip_all)]
    pub async fn maintain(
        &self,
        progress: &mut (dyn FnMut(&Maintained) + Send),
    ) -> Result<Maintained, EntitlementsError> {
        self.check_positions().await?;
        let now = self.now().await?;
        let mut done = Maintained::default();
        let this_month = month_of(now);
        let (parts, of_rest) = self.parts().await?;
        let mut wanted: Vec<NaiveDate> =
            (0..=AHEAD).filter_map(|ahead| this_month.checked_add_months(Months::new(ahead))).collect();
        wanted.extend(of_rest);
        wanted.sort_unstable();
        wanted.dedup();
        for month in wanted {
            if let Some(moved) = self.make_part(month).await? {
                done.made.push(month);
                done.moved += moved;
                progress(&done);
            }
        }
        let edge = month_of(now - self.retention.events);
        for month in parts.into_iter().filter(|month| *month < edge) {
            match self.drop_part(month, now).await? {
                Dropped::Gone => done.dropped.push(month),
                Dropped::Held(why) => done.held.push(HeldPart { month, why }),
                Dropped::Absent => continue,
            }
            progress(&done);
        }
        loop {
            let forgotten = self.forget_keys(now - self.retention.keys).await?;
            done.keys += forgotten;
            if forgotten == 0 {
                break;
            }
            progress(&done);
        }
        loop {
            let forgotten = self.forget_excess(now - self.retention.events).await?;
            done.excess += forgotten;
            if forgotten == 0 {
                break;
            }
            progress(&done);
        }
        tracing::info!(
            target: "saas.entitlements.usage.maintain",
            made = done.made.len(), moved = done.moved, dropped = done.dropped.len(), held = done.held.len(),
            keys = done.keys, excess = done.excess, "maintained",
        );
        Ok(done)
    }

    async fn check_positions(&self) -> Result<(), EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look whose the positions of usage events are").await?;
        position::check(&mut tx).await?;
        tx.rollback().await?;
        Ok(())
    }

    /// The months that have a part, and those of which the default part has rows.
    async fn parts(&self) -> Result<(Vec<NaiveDate>, Vec<NaiveDate>), EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "list the parts of usage events").await?;
        let rows: Vec<(NaiveDate, bool)> = sqlx::query_as("select month, of_rest from saas.usage_parts()")
            .fetch_all(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        tx.commit().await?;
        let (of_rest, parts): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, of_rest)| *of_rest);
        let months = |rows: Vec<(NaiveDate, bool)>| rows.into_iter().map(|(month, _)| month).collect();
        Ok((months(parts), months(of_rest)))
    }

    async fn make_part(&self, month: NaiveDate) -> Result<Option<u64>, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "make a part of usage events").await?;
        let moved: Option<i64> = sqlx::query_scalar("select saas.usage_part_make($1)")
            .bind(month)
            .fetch_one(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        tx.commit().await?;
        Ok(moved.map(|moved| u64::try_from(moved).unwrap_or(0)))
    }

    async fn drop_part(&self, month: NaiveDate, now: DateTime<Utc>) -> Result<Dropped, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "drop an old part of usage events").await?;
        let is_there: bool = sqlx::query_scalar("select saas.usage_part_lock($1)")
            .bind(month)
            .fetch_one(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        if !is_there {
            return Ok(Dropped::Absent);
        }
        position::check(&mut tx).await?;
        let held: Option<String> = sqlx::query_scalar("select saas.usage_part_held($1, $2)")
            .bind(month)
            .bind(now)
            .fetch_one(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        if let Some(why) = held {
            return Ok(Dropped::Held(why));
        }
        sqlx::query(
            "update saas.usage_horizon
             set pruned_before = greatest(pruned_before, ($1::date + interval '1 month') at time zone 'UTC')",
        )
        .bind(month)
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        sqlx::query("select saas.usage_part_drop($1)")
            .bind(month)
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        tx.commit().await?;
        Ok(Dropped::Gone)
    }

    /// Forgets a batch of keys; 0 when none is left, or another run is at it.
    async fn forget_keys(&self, before: DateTime<Utc>) -> Result<u64, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "forget old keys of usage").await?;
        // Two that delete the same keys in different orders would wait for each other.
        let is_alone: bool =
            sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended('saas.usage keys', 0))")
                .fetch_one(&mut *tx)
                .await
                .map_err(CoreError::from_database)?;
        if !is_alone {
            return Ok(0);
        }
        let forgotten = sqlx::query(
            "delete from saas.usage_key
             where (tenant_id, meter, key) in (
                 select tenant_id, meter, key
                 from saas.usage_key
                 where at < $1
                 order by at
                 limit $2
             )",
        )
        .bind(before)
        .bind(BATCH)
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?
        .rows_affected();
        tx.commit().await?;
        Ok(forgotten)
    }

    /// Forgets a batch of what gates were told of usage, but for what is still in force: the last row of a window that is open.
    /// 0 when none is left, or another run is at it.
    async fn forget_excess(&self, before: DateTime<Utc>) -> Result<u64, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "forget what gates were told of usage").await?;
        let is_alone: bool =
            sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended('saas.excess history', 0))")
                .fetch_one(&mut *tx)
                .await
                .map_err(CoreError::from_database)?;
        if !is_alone {
            return Ok(0);
        }
        let forgotten = sqlx::query(
            "delete from saas.excess_history
             where (tenant_id, meter, window_kind, window_start, number) in (
                 select h.tenant_id, h.meter, h.window_kind, h.window_start, h.number
                 from saas.excess_history h
                 where h.at < $1
                   and (h.window_end < $1 or exists (
                       select from saas.excess_history later
                       where later.tenant_id = h.tenant_id and later.meter = h.meter
                         and later.window_kind = h.window_kind and later.window_start = h.window_start
                         and later.number > h.number and later.at < $1))
                 order by h.at
                 limit $2
             )",
        )
        .bind(before)
        .bind(BATCH)
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?
        .rows_affected();
        if forgotten > 0 {
            // Before it, the past is not what the rest says.
            sqlx::query("update saas.usage_horizon set excess_before = greatest(excess_before, $1)")
                .bind(before)
                .execute(&mut *tx)
                .await
                .map_err(CoreError::from_database)?;
        }
        tx.commit().await?;
        Ok(forgotten)
    }
}

enum Dropped {
    Gone,
    Held(String),
    Absent,
}

/// The first day of the month of UTC that an instant lies in.
fn month_of(instant: DateTime<Utc>) -> NaiveDate {
    let day = instant.date_naive();
    day.with_day(1).unwrap_or(day)
}
