//! What a dashboard shows: a tenant's usage by hour or by day, of one meter, of all members or one.

use chrono::{DateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use saas_core::{CoreError, InvalidInput, MeterKey, TenantTx};
use serde::Serialize;

use crate::EntitlementsError;

/// The most points of one series.
const MOST: i64 = 2_000;

/// How usage is cut into points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bucket {
    /// By the hour.
    Hour,
    /// By days as clocks in the zone show them: 23 or 25 hours long when they are put forward or back.
    Day(Tz),
}

/// Which series is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesQuery {
    /// What was used.
    pub meter: MeterKey,
    /// By what.
    pub bucket: Bucket,
    /// Points that begin at or after this.
    pub from: DateTime<Utc>,
    /// Usage before this.
    pub until: DateTime<Utc>,
    /// Of one member only.
    pub member: Option<String>,
}

/// What was used in one hour or day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SeriesPoint {
    /// Its first instant.
    pub start: DateTime<Utc>,
    /// What it added to counters.
    pub units: i64,
    /// How much of the meter was used.
    pub amount: i64,
    /// The largest amount of one use: the highest level, of a meter that keeps a peak or the latest.
    pub peak: i64,
    /// In how many uses.
    pub events: i64,
}

/// The tenant's usage from the roll-ups, oldest first; hours and days without usage are left out. As recent as the last
/// [`roll_up`](super::UsagePipeline::roll_up).
///
/// # Errors
/// [`Invalid`](saas_core::ErrorKind::Invalid) when the series could have more than 2,000 points, or when days are asked for
/// in a zone that is not whole hours from UTC then: sums are kept by the hour of UTC.
pub async fn series_in(tx: &mut TenantTx, query: &SeriesQuery) -> Result<Vec<SeriesPoint>, EntitlementsError> {
    let span = query.until - query.from;
    let points = match query.bucket {
        Bucket::Hour => span.num_hours(),
        Bucket::Day(_) => span.num_days(),
    };
    if !(0..=MOST).contains(&points) {
        return Err(InvalidInput::new(
            "range",
            "is too long or ends before it begins",
            "ask for 2,000 points or fewer",
        )
        .into());
    }
    let tenant = tx.tenant().as_uuid();
    let statement = match query.bucket {
        Bucket::Hour => {
            "select bucket, saas.bounded(sum(units)), saas.bounded(sum(amount)), max(peak), sum(events)::bigint
             from saas.usage_hour
             where tenant_id = $1 and meter = $2 and bucket >= $3 and bucket < $4 and ($5::text is null or member = $5)
               and $6::text is not null
             group by bucket
             order by bucket"
        }
        Bucket::Day(Tz::UTC) => {
            "select bucket, saas.bounded(sum(units)), saas.bounded(sum(amount)), max(peak), sum(events)::bigint
             from saas.usage_day
             where tenant_id = $1 and meter = $2 and bucket >= $3 and bucket < $4 and ($5::text is null or member = $5)
               and $6::text is not null
             group by bucket
             order by bucket"
        }
        Bucket::Day(_) => {
            "select date_trunc('day', bucket, $6::text), saas.bounded(sum(units)), saas.bounded(sum(amount)),
                    max(peak), sum(events)::bigint
             from saas.usage_hour
             where tenant_id = $1 and meter = $2 and bucket >= $3 and bucket < $4 and ($5::text is null or member = $5)
             group by 1
             order by 1"
        }
    };
    let zone = match query.bucket {
        Bucket::Hour => Tz::UTC,
        Bucket::Day(zone) => zone,
    };
    if !keeps_whole_hours(zone, query.from, query.until) {
        let remedy = "ask by the hour, or for a zone that is whole hours from UTC";
        return Err(InvalidInput::new("zone", format!("{zone} is not whole hours from UTC"), remedy).into());
    }
    let rows: Vec<(DateTime<Utc>, i64, i64, i64, i64)> = sqlx::query_as(statement)
        .bind(tenant)
        .bind(query.meter.as_str())
        .bind(query.from)
        .bind(query.until)
        .bind(query.member.as_deref())
        .bind(zone.name())
        .fetch_all(&mut **tx)
        .await
        .map_err(CoreError::from_database)?;
    let point = |(start, units, amount, peak, events)| SeriesPoint { start, units, amount, peak, events };
    Ok(rows.into_iter().map(point).collect())
}

/// Offsets change at most every few weeks, so one look a day finds them all.
fn keeps_whole_hours(zone: Tz, from: DateTime<Utc>, until: DateTime<Utc>) -> bool {
    let mut at = from;
    loop {
        if zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc() % 3_600 != 0 {
            return false;
        }
        if at >= until {
            return true;
        }
        at += TimeDelta::days(1);
    }
}
