//! `saas.billing_usage`: what is charged at Stripe, row by row.

use chrono::{DateTime, NaiveDate, Utc};
use saas_core::{CoreError, LeaseToken, TenantId, UsageEventId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Scope, storable};
use crate::{
    object::ObjectId,
    usage::{DayOfUse, UsageCursor, UsageForgotten, UsageHealth, UsageItem, UsageProblem, UsageTotal},
};

/// A row in the hands of a worker.
#[derive(Debug, Clone)]
pub(crate) struct Sending {
    pub(crate) tenant: TenantId,
    pub(crate) id: Uuid,
    pub(crate) meter: String,
    pub(crate) amount: i64,
    pub(crate) at: DateTime<Utc>,
    pub(crate) window_start: DateTime<Utc>,
    pub(crate) customer: Option<ObjectId>,
    pub(crate) value: Option<u64>,
    pub(crate) cancels: Option<Uuid>,
    pub(crate) first_sent_at: Option<DateTime<Utc>>,
}

/// What becomes of a row.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Sent,
    Waiting,
    Refused(String),
    Later(DateTime<Utc>),
}

/// Puts rows on record that are not there yet. A tenant that is gone has nobody to charge.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    scope: &Scope,
    rows: &[(&UsageItem, i64)],
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let tenants: Vec<Uuid> = rows.iter().map(|(item, _)| item.tenant.as_uuid()).collect();
    let ids: Vec<Uuid> = rows.iter().map(|(item, _)| item.id.as_uuid()).collect();
    let meters: Vec<&str> = rows.iter().map(|(item, _)| item.meter.as_str()).collect();
    let amounts: Vec<i64> = rows.iter().map(|(_, amount)| *amount).collect();
    let instants: Vec<DateTime<Utc>> = rows.iter().map(|(item, _)| item.at).collect();
    let windows: Vec<DateTime<Utc>> = rows.iter().map(|(item, _)| item.window_start).collect();
    sqlx::query(
        "insert into saas.billing_usage (tenant_id, livemode, id, meter, amount, at, window_start, state, due_at)
         select new.tenant_id, $1, new.id, new.meter, new.amount, new.at, new.window_start, 'pending', $8
         from unnest($2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::timestamptz[], $7::timestamptz[])
              as new (tenant_id, id, meter, amount, at, window_start)
         join saas.tenant known on known.id = new.tenant_id
         on conflict (tenant_id, livemode, id) do nothing",
    )
    .bind(scope.livemode)
    .bind(&tenants)
    .bind(&ids)
    .bind(&meters)
    .bind(&amounts)
    .bind(&instants)
    .bind(&windows)
    .bind(now)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

type SendingRow = (
    Uuid,
    Uuid,
    String,
    i64,
    DateTime<Utc>,
    DateTime<Utc>,
    Option<String>,
    Option<i64>,
    Option<Uuid>,
    Option<DateTime<Utc>>,
);

/// Takes up to `limit` rows that are due until `until`.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    scope: &Scope,
    limit: i64,
    lease: LeaseToken,
    (now, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Vec<Sending>, CoreError> {
    let mut rows: Vec<SendingRow> = sqlx::query_as(
        "update saas.billing_usage u
         set lease = $2, due_at = $4
         from (
             select tenant_id, id
             from saas.billing_usage -- of every tenant, the longest due first
             where livemode = $1 and state = 'pending' and due_at <= $3
             order by due_at, tenant_id, id
             limit $5
             for update skip locked
         ) due
         where u.tenant_id = due.tenant_id and u.livemode = $1 and u.id = due.id
         returning u.tenant_id, u.id, u.meter, u.amount, u.at, u.window_start, u.customer, u.value, u.cancels, u.first_sent_at",
    )
    .bind(scope.livemode)
    .bind(lease.as_uuid())
    .bind(now)
    .bind(until)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    // What a correction takes back may be in the same step: uses before corrections, and locks of tenants in one order.
    rows.sort_by_key(|(tenant, id, _, amount, ..)| (*tenant, *amount < 0, *id));
    rows.into_iter().map(sending).collect()
}

fn sending(
    (tenant, id, meter, amount, at, window_start, customer, value, cancels, first_sent_at): SendingRow,
) -> Result<Sending, CoreError> {
    let corrupt = |column| move || CoreError::Corrupt { table: "saas.billing_usage", column };
    let customer = customer.map(ObjectId::try_from).transpose().map_err(|_| corrupt("customer")())?;
    let value = value.map(u64::try_from).transpose().map_err(|_| corrupt("value")())?;
    let tenant = TenantId::from_uuid(tenant);
    Ok(Sending { tenant, id, meter, amount, at, window_start, customer, value, cancels, first_sent_at })
}

/// Fixes what is about to be sent, before it is: a worker that dies in the middle leaves to the next what this one meant.
pub(crate) async fn fix(
    connection: &mut PgConnection,
    scope: &Scope,
    lease: LeaseToken,
    rows: impl IntoIterator<Item = &Sending>,
) -> Result<(), CoreError> {
    let (mut tenants, mut ids, mut customers, mut values) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut targets, mut instants, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        tenants.push(row.tenant.as_uuid());
        ids.push(row.id);
        customers.push(row.customer.as_ref().map(|id| id.as_str().to_owned()));
        values.push(row.value.and_then(|value| i64::try_from(value).ok()));
        targets.push(row.cancels);
        instants.push(row.at);
        sent.push(row.first_sent_at);
    }
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update saas.billing_usage u
         set customer = f.customer, value = f.value, cancels = f.cancels, at = f.at, first_sent_at = f.first_sent_at
         from unnest($3::uuid[], $4::uuid[], $5::text[], $6::bigint[], $7::uuid[], $8::timestamptz[], $9::timestamptz[])
              as f (tenant_id, id, customer, value, cancels, at, first_sent_at)
         where u.tenant_id = f.tenant_id and u.livemode = $1 and u.id = f.id and u.state = 'pending' and u.lease = $2",
    )
    .bind(scope.livemode)
    .bind(lease.as_uuid())
    .bind(&tenants)
    .bind(&ids)
    .bind(&customers)
    .bind(&values)
    .bind(&targets)
    .bind(&instants)
    .bind(&sent)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Writes down what became of rows that are still this worker's.
pub(crate) async fn settle(
    connection: &mut PgConnection,
    scope: &Scope,
    lease: LeaseToken,
    fates: &[((TenantId, Uuid), Fate)],
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    if fates.is_empty() {
        return Ok(());
    }
    let (mut tenants, mut ids, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let (mut reasons, mut due) = (Vec::new(), Vec::new());
    for ((tenant, id), fate) in fates {
        let (state, reason, due_at) = match fate {
            Fate::Sent => ("sent", None, None),
            Fate::Waiting => ("waiting", None, None),
            Fate::Refused(why) => ("refused", Some(storable(why)), None),
            Fate::Later(at) => ("pending", None, Some(*at)),
        };
        tenants.push(tenant.as_uuid());
        ids.push(*id);
        states.push(state);
        reasons.push(reason);
        due.push(due_at);
    }
    sqlx::query(
        "update saas.billing_usage u
         set state = f.state, reason = f.reason, due_at = coalesce(f.due_at, u.due_at), lease = null,
             settled_at = case when f.state = 'pending' then null else $3::timestamptz end
         from unnest($4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::timestamptz[])
              as f (tenant_id, id, state, reason, due_at)
         where u.tenant_id = f.tenant_id and u.livemode = $1 and u.id = f.id and u.state = 'pending' and u.lease = $2",
    )
    .bind(scope.livemode)
    .bind(lease.as_uuid())
    .bind(now)
    .bind(&tenants)
    .bind(&ids)
    .bind(&states)
    .bind(&reasons)
    .bind(&due)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Takes a reading for a correction to take back: of the same window, large enough, the one that fits best, the latest of those.
/// The tenant's lock is held.
pub(crate) async fn claim_target(
    connection: &mut PgConnection,
    scope: &Scope,
    row: &Sending,
    since: DateTime<Utc>,
) -> Result<Option<(Uuid, u64, DateTime<Utc>)>, CoreError> {
    let needed = i64::try_from(row.amount.unsigned_abs()).unwrap_or(i64::MAX);
    let found: Option<(Uuid, i64, DateTime<Utc>)> = sqlx::query_as(
        "update saas.billing_usage
         set state = 'cancelled'
         where tenant_id = $1 and livemode = $2 and id = (
             select id
             from saas.billing_usage
             where tenant_id = $1 and livemode = $2 and meter = $3 and state = 'sent' and window_start = $4
               and first_sent_at > $5 and value >= $6 and customer = $7
             order by value = $6 desc, at desc, id desc
             limit 1
         )
         returning id, value, at",
    )
    .bind(row.tenant.as_uuid())
    .bind(scope.livemode)
    .bind(&row.meter)
    .bind(row.window_start)
    .bind(since)
    .bind(needed)
    .bind(row.customer.as_ref().map(ObjectId::as_str))
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    let corrupt = |_| CoreError::Corrupt { table: "saas.billing_usage", column: "value" };
    found.map(|(id, value, at)| Ok((id, u64::try_from(value).map_err(corrupt)?, at))).transpose()
}

/// Whether uses of the same window are still to be sent.
pub(crate) async fn is_under_way(
    connection: &mut PgConnection,
    scope: &Scope,
    row: &Sending,
) -> Result<bool, CoreError> {
    sqlx::query_scalar(
        "select exists (
             select from saas.billing_usage
             where tenant_id = $1 and livemode = $2 and meter = $3 and window_start = $4 and state = 'pending' and amount > 0
         )",
    )
    .bind(row.tenant.as_uuid())
    .bind(scope.livemode)
    .bind(&row.meter)
    .bind(row.window_start)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)
}

/// Stripe would not take it back: it counts as before.
pub(crate) async fn release_target(
    connection: &mut PgConnection,
    scope: &Scope,
    tenant: TenantId,
    id: Uuid,
) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.billing_usage set state = 'sent'
         where tenant_id = $1 and livemode = $2 and id = $3 and state = 'cancelled'",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(id)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Sets free what waited for a customer. The tenant's lock is held.
pub(crate) async fn free(
    connection: &mut PgConnection,
    scope: &Scope,
    tenant: TenantId,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.billing_usage set state = 'pending', due_at = $3, settled_at = null
         where tenant_id = $1 and livemode = $2 and state = 'waiting'",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(now)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// What Stripe has taken of a meter in a span of time.
pub(crate) async fn sent_between(
    connection: &mut PgConnection,
    scope: &Scope,
    (tenant, meter): (TenantId, &str),
    (from, to): (DateTime<Utc>, DateTime<Utc>),
) -> Result<u64, CoreError> {
    let sum: i64 = sqlx::query_scalar(
        "select coalesce(sum(value), 0)::bigint
         from saas.billing_usage
         where tenant_id = $1 and livemode = $2 and meter = $3 and at >= $4 and at < $5 and state = 'sent'",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(meter)
    .bind(from)
    .bind(to)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    u64::try_from(sum).map_err(|_| CoreError::Corrupt { table: "saas.billing_usage", column: "value" })
}

/// What a customer used of a meter in a span of time, as uses and as levels: whoever reads it knows which the meter counts.
pub(crate) struct Span {
    pub(crate) total: UsageTotal,
    pub(crate) last_level: u64,
    pub(crate) last_unsent: i64,
}

/// What each customer used of each meter in a span of time.
pub(crate) async fn totals(
    connection: &mut PgConnection,
    scope: &Scope,
    (from, to): (DateTime<Utc>, DateTime<Utc>),
    after: Option<&UsageCursor>,
    limit: i64,
) -> Result<Vec<Span>, CoreError> {
    type Row = (Uuid, String, String, i64, i64, i64, i64);
    let rows: Vec<Row> = sqlx::query_as(
        "select tenant_id, meter, customer,
                coalesce(sum(value) filter (where state = 'sent'), 0)::bigint,
                coalesce(sum(amount) filter (where state not in ('sent', 'cancelled')), 0)::bigint,
                coalesce((array_agg(value order by at desc, id desc) filter (where state = 'sent'))[1], 0),
                coalesce((array_agg(amount order by at desc, id desc) filter (where state not in ('sent', 'cancelled')))[1], 0)
         from saas.billing_usage -- of every tenant
         where livemode = $1 and at >= $2 and at < $3 and customer is not null
           and ($4::uuid is null or (tenant_id, meter, customer) > ($4, $5, $6))
         group by tenant_id, meter, customer
         order by tenant_id, meter, customer
         limit $7",
    )
    .bind(scope.livemode)
    .bind(from)
    .bind(to)
    .bind(after.map(|cursor| cursor.tenant.as_uuid()))
    .bind(after.map(|cursor| cursor.meter.as_str()))
    .bind(after.map(|cursor| cursor.customer.as_str()))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let corrupt = |column| CoreError::Corrupt { table: "saas.billing_usage", column };
    let span = |(tenant, meter, customer, ours, unsent, last_level, last_unsent): Row| {
        let total = UsageTotal {
            tenant: TenantId::from_uuid(tenant),
            customer: ObjectId::try_from(customer).map_err(|_| corrupt("customer"))?,
            meter,
            ours: u64::try_from(ours).map_err(|_| corrupt("value"))?,
            theirs: None,
            unsent,
        };
        Ok(Span { total, last_level: u64::try_from(last_level).map_err(|_| corrupt("value"))?, last_unsent })
    };
    rows.into_iter().map(span).collect()
}

/// What these customers used, day by day, in a span of whole days.
pub(crate) async fn days(
    connection: &mut PgConnection,
    scope: &Scope,
    customers: &[(ObjectId, TenantId)],
    (from, to): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Vec<DayOfUse>, CoreError> {
    let rows: Vec<(String, String, NaiveDate, i64, i64)> = sqlx::query_as(
        "select customer, meter, (at at time zone 'utc')::date, coalesce(sum(value), 0)::bigint,
                (array_agg(value order by at desc, id desc))[1]
         from saas.billing_usage
         where tenant_id = any($2) and livemode = $1 and at >= $4 and at < $5 and customer = any($3) and state = 'sent'
         group by 1, 2, 3",
    )
    .bind(scope.livemode)
    .bind(customers.iter().map(|(_, tenant)| tenant.as_uuid()).collect::<Vec<_>>())
    .bind(customers.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>())
    .bind(from)
    .bind(to)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let corrupt = |column| CoreError::Corrupt { table: "saas.billing_usage", column };
    let day = |(customer, meter, day, sum, last): (String, String, NaiveDate, i64, i64)| {
        Ok(DayOfUse {
            customer: ObjectId::try_from(customer).map_err(|_| corrupt("customer"))?,
            meter,
            day,
            sum: u64::try_from(sum).map_err(|_| corrupt("value"))?,
            last: u64::try_from(last).map_err(|_| corrupt("value"))?,
        })
    };
    rows.into_iter().map(day).collect()
}

/// Rows that do not count, behind `after`.
pub(crate) async fn problems(
    connection: &mut PgConnection,
    scope: &Scope,
    after: Option<(TenantId, UsageEventId)>,
    limit: i64,
) -> Result<Vec<UsageProblem>, CoreError> {
    type Row = (Uuid, Uuid, String, i64, DateTime<Utc>, String, Option<String>);
    let rows: Vec<Row> = sqlx::query_as(
        "select tenant_id, id, meter, amount, at, state, reason
         from saas.billing_usage -- of every tenant
         where livemode = $1 and state in ('rejected', 'refused') and ($2::uuid is null or (tenant_id, id) > ($2, $3))
         order by tenant_id, id
         limit $4",
    )
    .bind(scope.livemode)
    .bind(after.map(|(tenant, _)| tenant.as_uuid()))
    .bind(after.map(|(_, id)| id.as_uuid()))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let problem = |(tenant, id, meter, amount, at, state, reason): Row| UsageProblem {
        id: UsageEventId::from_uuid(id),
        tenant: TenantId::from_uuid(tenant),
        meter,
        amount,
        at,
        was_taken: state == "rejected",
        reason: reason.unwrap_or_default(),
    };
    Ok(rows.into_iter().map(problem).collect())
}

/// How far usage is on its way.
pub(crate) async fn health(connection: &mut PgConnection, scope: &Scope) -> Result<UsageHealth, CoreError> {
    let (pending, oldest_pending, waiting, rejected, refused): (i64, Option<DateTime<Utc>>, i64, i64, i64) =
        sqlx::query_as(
            "select count(*) filter (where state = 'pending'), min(at) filter (where state = 'pending'),
                    count(*) filter (where state = 'waiting'), count(*) filter (where state = 'rejected'),
                    count(*) filter (where state = 'refused')
             from saas.billing_usage -- of every tenant
             where livemode = $1 and state in ('pending', 'waiting', 'rejected', 'refused')",
        )
        .bind(scope.livemode)
        .fetch_one(connection)
        .await
        .map_err(CoreError::from_database)?;
    let [pending, waiting, rejected, refused] = [pending, waiting, rejected, refused].map(i64::unsigned_abs);
    Ok(UsageHealth { pending, oldest_pending, waiting, rejected, refused })
}

/// Deletes what is over and old.
pub(crate) async fn forget(
    connection: &mut PgConnection,
    scope: &Scope,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<UsageForgotten, CoreError> {
    let states: Vec<String> = sqlx::query_scalar(
        "delete from saas.billing_usage u
         using (
             select tenant_id, id
             from saas.billing_usage -- of every tenant, the oldest first
             where livemode = $1 and state in ('sent', 'cancelled', 'waiting') and at < $2
             order by at
             limit $3
             for update skip locked
         ) old
         where u.tenant_id = old.tenant_id and u.livemode = $1 and u.id = old.id
         returning u.state",
    )
    .bind(scope.livemode)
    .bind(before)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let uncharged = states.iter().filter(|state| *state == "waiting").count() as u64;
    Ok(UsageForgotten { sent: states.len() as u64 - uncharged, uncharged })
}
