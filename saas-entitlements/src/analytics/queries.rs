//! Questions about one tenant, asked in its transaction. Days are of UTC, and as recent as the last
//! [`roll_up`](crate::usage::UsagePipeline::roll_up).

use chrono::{DateTime, NaiveDate, Utc};
use saas_core::{CoreError, InvalidInput, MeterKey, TenantTx};
use serde::Serialize;

use crate::EntitlementsError;

/// The longest range that is looked at, in days.
const MOST_DAYS: i64 = 800;

/// When a tenant first did one of the things that show its worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyEvent {
    /// The meter that stands for it.
    pub meter: MeterKey,
    /// The day on which it was first used; `None` while it was not.
    pub reached: Option<NaiveDate>,
}

/// How far a tenant is on the way that the application declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Activation {
    /// Each step, in the order asked for.
    pub steps: Vec<KeyEvent>,
    /// The day on which the last of them was reached; `None` while one is missing.
    pub activated: Option<NaiveDate>,
}

/// How much of a meter was used in a range, and by how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Adoption {
    /// What was used.
    pub meter: String,
    /// On how many days.
    pub days: i64,
    /// By how many members; uses without a member, as those by lease, count for none.
    pub members: i64,
    /// In how many uses. What one report of a lease sums up is one.
    pub events: i64,
}

/// A span of the calendar in which members are counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// A day.
    Day,
    /// A week, from Monday.
    Week,
    /// A month.
    Month,
}

/// How many members were active in a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ActiveMembers {
    /// Its first day.
    pub start: NaiveDate,
    /// Different members with at least one use that names them; uses by lease name nobody.
    pub members: i64,
}

/// When the tenant first used each of the key meters. Roll-ups outlive events, so a start of years ago is still known.
///
/// # Errors
/// When no meter is given, or the database does not answer.
pub async fn activation_in(tx: &mut TenantTx, key_events: &[MeterKey]) -> Result<Activation, EntitlementsError> {
    if key_events.is_empty() {
        return Err(
            InvalidInput::new("key events", "are none", "name the meters that show a customer got started").into()
        );
    }
    let first: Vec<(String, NaiveDate)> = sqlx::query_as(
        "select k.meter, (f.bucket at time zone 'UTC')::date
         from (select distinct unnest($2::text[]) as meter) k
         cross join lateral (
             select d.bucket
             from saas.usage_day d
             where d.tenant_id = $1 and d.meter = k.meter and d.events > 0
             order by d.bucket
             limit 1
         ) f",
    )
    .bind(tx.tenant().as_uuid())
    .bind(key_events.iter().map(MeterKey::as_str).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let reached = |meter: &MeterKey| first.iter().find(|(name, _)| name == meter.as_str()).map(|(_, day)| *day);
    let steps: Vec<KeyEvent> =
        key_events.iter().map(|meter| KeyEvent { meter: meter.clone(), reached: reached(meter) }).collect();
    let days: Option<Vec<NaiveDate>> = steps.iter().map(|step| step.reached).collect();
    Ok(Activation { activated: days.and_then(|days| days.into_iter().max()), steps })
}

/// What the tenant used from `from` on and before `until`, most used first.
///
/// # Errors
/// When the range is longer than 800 days or ends before it begins.
pub async fn adoption_in(
    tx: &mut TenantTx,
    from: NaiveDate,
    until: NaiveDate,
) -> Result<Vec<Adoption>, EntitlementsError> {
    check(from, until)?;
    let rows: Vec<(String, i64, i64, i64)> = sqlx::query_as(
        "select meter, count(distinct bucket), count(distinct nullif(member, '')), sum(events)::bigint
         from saas.usage_day
         where tenant_id = $1 and bucket >= $2::date::timestamp at time zone 'UTC'
           and bucket < $3::date::timestamp at time zone 'UTC' and events > 0
         group by meter
         order by 4 desc, meter",
    )
    .bind(tx.tenant().as_uuid())
    .bind(from)
    .bind(until)
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(rows.into_iter().map(|(meter, days, members, events)| Adoption { meter, days, members, events }).collect())
}

/// The instant of the tenant's last use, of any member or of one; `None` when no event of it is kept. Read from events, so
/// the use that was just committed is in it. For lists of tenants there is `last_active_at` of the operators' list, which the
/// roll-up keeps.
///
/// # Errors
/// When the database does not answer.
pub async fn last_active_in(
    tx: &mut TenantTx,
    member: Option<&str>,
) -> Result<Option<DateTime<Utc>>, EntitlementsError> {
    let last = sqlx::query_scalar(
        "select at
         from saas.usage_event
         where tenant_id = $1 and ($2::text is null or member = $2) and kind not in ('correction', 'stranded')
         order by at desc
         limit 1",
    )
    .bind(tx.tenant().as_uuid())
    .bind(member)
    .fetch_optional(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(last)
}

/// How many members of the tenant were active in each span that begins from `from` on and before `until`, oldest first;
/// spans without any are left out. A member counts once in a span, whatever it used. The first span is counted from `from`.
///
/// # Errors
/// When the range is longer than 800 days or ends before it begins.
pub async fn active_members_in(
    tx: &mut TenantTx,
    span: Span,
    from: NaiveDate,
    until: NaiveDate,
) -> Result<Vec<ActiveMembers>, EntitlementsError> {
    check(from, until)?;
    let span = match span {
        Span::Day => "day",
        Span::Week => "week",
        Span::Month => "month",
    };
    let rows: Vec<(NaiveDate, i64)> = sqlx::query_as(
        "select date_trunc($4, bucket at time zone 'UTC')::date, count(distinct member)
         from saas.usage_day
         where tenant_id = $1 and bucket >= $2::date::timestamp at time zone 'UTC'
           and bucket < $3::date::timestamp at time zone 'UTC' and member <> '' and events > 0
         group by 1
         order by 1",
    )
    .bind(tx.tenant().as_uuid())
    .bind(from)
    .bind(until)
    .bind(span)
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(rows.into_iter().map(|(start, members)| ActiveMembers { start, members }).collect())
}

fn check(from: NaiveDate, until: NaiveDate) -> Result<(), InvalidInput> {
    if (0..=MOST_DAYS).contains(&(until - from).num_days()) {
        return Ok(());
    }
    Err(InvalidInput::new("range", "is too long or ends before it begins", "ask for 800 days or fewer"))
}
