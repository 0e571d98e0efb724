//! `saas.billing_reconcile`: where a run stands, and what it met.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, JobId, TenantId};
use serde_json::Value;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::Scope;
use crate::{
    event::AnySnapshot,
    object::{ObjectId, ObjectKind},
    reconcile::{Drift, FieldDrift, ReconcileList, ReconcileRun},
};

/// An object of a page.
pub(crate) struct Met {
    pub(crate) kind: ObjectKind,
    pub(crate) id: ObjectId,
    /// What Stripe has; `None` for what its lists did not hold.
    pub(crate) theirs: Option<AnySnapshot>,
}

/// What a page came to.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) looked_at: u64,
    pub(crate) unlinked: u64,
    pub(crate) drifted: u64,
    pub(crate) repaired: u64,
}

/// Id, repairs, created from, list, after, looked at, unlinked, drifted, repaired, started, finished.
type Row = (
    Uuid,
    i64,
    Option<DateTime<Utc>>,
    String,
    Option<String>,
    i64,
    i64,
    i64,
    i64,
    DateTime<Utc>,
    Option<DateTime<Utc>>,
);

const fn corrupt(column: &'static str) -> CoreError {
    CoreError::Corrupt { table: "saas.billing_reconcile", column }
}

fn read_run(row: Row) -> Result<(ReconcileRun, Option<ObjectId>), CoreError> {
    let (id, repairs, created_from, list, after, looked_at, unlinked, drifted, repaired, started_at, finished_at) = row;
    let number = |number: i64| u64::try_from(number).map_err(|_| corrupt("looked_at"));
    let run = ReconcileRun {
        id,
        created_from,
        list: ReconcileList::from_stored(&list).ok_or(corrupt("list"))?,
        looked_at: number(looked_at)?,
        unlinked: number(unlinked)?,
        drifted: number(drifted)?,
        repaired: number(repaired)?,
        repairs: number(repairs)?,
        started_at,
        finished_at,
    };
    let after = after.map(ObjectId::try_from).transpose().map_err(|_| corrupt("after"))?;
    Ok((run, after))
}

/// The open run, begun if there is none.
pub(crate) async fn open(
    connection: &mut PgConnection,
    scope: &Scope,
    actor: &str,
    (repairs, created_from): (u32, Option<DateTime<Utc>>),
    now: DateTime<Utc>,
) -> Result<ReconcileRun, CoreError> {
    let row: Row = sqlx::query_as(
        "insert into saas.billing_reconcile as open (account, livemode, id, actor, repairs, list, started_at, created_from)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         on conflict (account, livemode) where finished_at is null do update set list = open.list
         returning id, repairs, created_from, list, after, looked_at, unlinked, drifted, repaired, started_at, finished_at",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(JobId::mint_at(now).as_uuid())
    .bind(super::storable(actor))
    .bind(i64::from(repairs))
    .bind(ReconcileList::Customers.as_str())
    .bind(now)
    .bind(created_from)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    read_run(row).map(|(run, _)| run)
}

/// The open run, and behind which object it stands.
pub(crate) async fn find_open(
    connection: &mut PgConnection,
    scope: &Scope,
) -> Result<Option<(ReconcileRun, Option<ObjectId>)>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select id, repairs, created_from, list, after, looked_at, unlinked, drifted, repaired, started_at, finished_at
         from saas.billing_reconcile
         where account = $1 and livemode = $2 and finished_at is null",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(read_run).transpose()
}

/// A run.
pub(crate) async fn find(connection: &mut PgConnection, scope: &Scope, run: Uuid) -> Result<ReconcileRun, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select id, repairs, created_from, list, after, looked_at, unlinked, drifted, repaired, started_at, finished_at
         from saas.billing_reconcile
         where account = $1 and livemode = $2 and id = $3",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(run)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    read_run(row.ok_or(CoreError::NotFound { what: "reconcile run" })?).map(|(run, _)| run)
}

/// Locks a run if it still stands there.
pub(crate) async fn lock(
    connection: &mut PgConnection,
    scope: &Scope,
    run: Uuid,
    (list, after): (ReconcileList, Option<&ObjectId>),
) -> Result<Option<ReconcileRun>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select id, repairs, created_from, list, after, looked_at, unlinked, drifted, repaired, started_at, finished_at
         from saas.billing_reconcile
         where account = $1 and livemode = $2 and id = $3 and list = $4 and after is not distinct from $5
           and finished_at is null
         for update",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(run)
    .bind(list.as_str())
    .bind(after.map(ObjectId::as_str))
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(row.map(read_run).transpose()?.map(|(run, _)| run))
}

/// An object that a run has met.
pub(crate) struct Noted {
    pub(crate) kind: ObjectKind,
    /// How it differs; empty when it does not.
    pub(crate) fields: BTreeMap<String, FieldDrift>,
    pub(crate) repaired: bool,
}

/// Keeps that a run has met objects, and how they differed. Stripe's lists move while they are read: met twice, the later
/// look at a field is the report's.
pub(crate) async fn note(
    connection: &mut PgConnection,
    scope: &Scope,
    run: Uuid,
    met: &BTreeMap<ObjectId, Noted>,
) -> Result<(), CoreError> {
    let fields = |noted: &Noted| (!noted.fields.is_empty()).then(|| Json(noted.fields.clone()));
    sqlx::query(
        "insert into saas.billing_reconcile_object as met (account, livemode, run, object_id, kind, fields, repaired)
         select $1, $2, $3, object_id, kind, fields, repaired
         from unnest($4::text[], $5::text[], $6::jsonb[], $7::boolean[]) as page (object_id, kind, fields, repaired)
         on conflict (account, livemode, run, object_id) do update
         set fields = coalesce(met.fields || excluded.fields, excluded.fields, met.fields),
             repaired = met.repaired or excluded.repaired",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(run)
    .bind(met.keys().map(ObjectId::as_str).collect::<Vec<_>>())
    .bind(met.values().map(|noted| noted.kind.as_str()).collect::<Vec<_>>())
    .bind(met.values().map(fields).collect::<Vec<_>>())
    .bind(met.values().map(|noted| noted.repaired).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Moves a run on; behind its last list it is finished, and keeps only what differed.
pub(crate) async fn advance(
    connection: &mut PgConnection,
    scope: &Scope,
    run: Uuid,
    step: &Step,
    (list, after): (Option<ReconcileList>, Option<&ObjectId>),
    now: DateTime<Utc>,
) -> Result<ReconcileRun, CoreError> {
    if list.is_none() {
        sqlx::query(
            "delete from saas.billing_reconcile_object
             where account = $1 and livemode = $2 and run = $3 and fields is null",
        )
        .bind(&scope.account)
        .bind(scope.livemode)
        .bind(run)
        .execute(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
    }
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let row: Row = sqlx::query_as(
        "update saas.billing_reconcile
         set list = coalesce($4::text, list), after = $5, looked_at = looked_at + $6, unlinked = unlinked + $7,
             drifted = drifted + $8, repaired = repaired + $9, finished_at = case when $4::text is null then $10::timestamptz end
         where account = $1 and livemode = $2 and id = $3
         returning id, repairs, created_from, list, after, looked_at, unlinked, drifted, repaired, started_at, finished_at",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(run)
    .bind(list.map(ReconcileList::as_str))
    .bind(after.map(ObjectId::as_str))
    .bind(number(step.looked_at))
    .bind(number(step.unlinked))
    .bind(number(step.drifted))
    .bind(number(step.repaired))
    .bind(now)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    read_run(row).map(|(run, _)| run)
}

/// Current objects of these customers' tenants that a run has not met. Of a run over what is new, subscriptions and invoices that
/// nobody has told of since it began.
pub(crate) async fn unmet(
    connection: &mut PgConnection,
    scope: &Scope,
    run: &ReconcileRun,
    customers: &[(ObjectId, TenantId)],
) -> Result<Vec<(ObjectKind, ObjectId)>, CoreError> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select o.kind, o.object_id
         from saas.billing_object o
         left join lateral ( -- one look for each object: a join might read all that the run has met
             select true as is_met
             from saas.billing_reconcile_object m
             where m.account = $1 and m.livemode = $2 and m.run = $3 and m.object_id = o.object_id
             limit 1
         ) met on true
         where o.tenant_id = any($4) and o.livemode = $2 and o.is_current and met.is_met is null
           and o.kind in ('customer', 'subscription', 'invoice')
           and ($5::timestamptz is null or o.kind <> 'customer' and o.updated_at <= $5)",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(run.id)
    .bind(customers.iter().map(|(_, tenant)| tenant.as_uuid()).collect::<Vec<_>>())
    .bind(run.created_from.map(|_| run.started_at))
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(read_met).collect()
}

/// The run that found a difference and finished last, at that instant or later.
pub(crate) async fn last_drifted(
    connection: &mut PgConnection,
    scope: &Scope,
    finished_from: DateTime<Utc>,
) -> Result<Option<ReconcileRun>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select id, repairs, created_from, list, after, looked_at, unlinked, drifted, repaired, started_at, finished_at
         from saas.billing_reconcile
         where account = $1 and livemode = $2 and finished_at >= $3 and drifted > 0
         order by finished_at desc
         limit 1",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(finished_from)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(row.map(read_run).transpose()?.map(|(run, _)| run))
}

/// What differed, by id.
pub(crate) async fn drifts(
    connection: &mut PgConnection,
    scope: &Scope,
    run: Uuid,
    after: Option<&ObjectId>,
    limit: i64,
) -> Result<Vec<Drift>, CoreError> {
    let rows: Vec<(String, String, Value, bool)> = sqlx::query_as(
        "select kind, object_id, fields, repaired
         from saas.billing_reconcile_object
         where account = $1 and livemode = $2 and run = $3 and fields is not null and ($4::text is null or object_id > $4)
         order by object_id
         limit $5",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(run)
    .bind(after.map(ObjectId::as_str))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter()
        .map(|(kind, id, fields, repaired)| {
            let (kind, object) = read_met((kind, id))?;
            let fields = serde_json::from_value(fields)
                .map_err(|_| CoreError::Corrupt { table: "saas.billing_reconcile_object", column: "fields" })?;
            Ok(Drift { object, kind, fields, repaired })
        })
        .collect()
}

fn read_met((kind, id): (String, String)) -> Result<(ObjectKind, ObjectId), CoreError> {
    let corrupt = |column| CoreError::Corrupt { table: "saas.billing_reconcile_object", column };
    let kind = ObjectKind::from_stored(&kind).ok_or(corrupt("kind"))?;
    Ok((kind, ObjectId::try_from(id).map_err(|_| corrupt("object_id"))?))
}
