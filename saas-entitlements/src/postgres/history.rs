//! What a tenant could do at a past instant, and why.
//!
//! Owns `saas.entitlement_history`, to which every change of this crate adds a row in its own transaction, and
//! `saas.catalog_edition`, the catalogues that were published. Promises that [`History::at`] answers as the gate did, for
//! everything that was recorded: plans by their source ([`saas_core::subscription::record_in`]), overrides, cohorts, what gates
//! were told of usage that lets a tenant only read (`saas.excess_history`), and the status that an operator gave the tenant, which
//! is read from the audit log.

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, MeterKey, PlanCatalog, Revision, SystemPool, SystemTx, TenantId,
    plan::Window,
    subscription::{self, PlanAssignment, PlanSource, Standing},
};
use sqlx::{PgConnection, types::Json};

use crate::{EntitlementsError, Override, Snapshot, TenantState, Watched, resolve};

/// Records the overrides and cohorts that decide about the tenant from `now` on. The tenant's row is locked by the change.
pub(super) async fn record_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    revision: Revision,
    now: DateTime<Utc>,
) -> Result<(), EntitlementsError> {
    sqlx::query(
        "insert into saas.entitlement_history (tenant_id, revision, at, overrides, cohorts)
         select $1, $2,
                greatest($3, (select max(h.at) from saas.entitlement_history h where h.tenant_id = $1)),
                (select coalesce(jsonb_agg(jsonb_build_object(
                            'id', o.id, 'grant', o.granted, 'author', o.author, 'reason', o.reason,
                            'created_at', o.created_at, 'expires_at', o.expires_at) order by o.id), '[]')
                 from saas.override o
                 where o.tenant_id = $1 and o.expires_at > $3),
                (select coalesce(jsonb_agg(c.cohort order by c.cohort), '[]')
                 from saas.tenant_cohort c
                 where c.tenant_id = $1)",
    )
    .bind(tenant.as_uuid())
    .bind(i64::try_from(revision.get()).unwrap_or(i64::MAX))
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(())
}

/// Lets gates and the past know that a watched window has gone beyond its most by what this transaction changed, or is no longer.
pub(crate) async fn turn_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    (counter, window, start): (&MeterKey, Window, DateTime<Utc>),
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query("select saas.usage_turn($1, $2, $3, $4, $5)")
        .bind(tenant.as_uuid())
        .bind(counter.as_str())
        .bind(window.as_str())
        .bind(start)
        .bind(now)
        .execute(connection)
        .await
        .map_err(CoreError::from_database)?;
    Ok(())
}

/// Asks about the past, and publishes catalogues so that it can be asked later.
#[derive(Debug, Clone)]
pub struct History {
    system: SystemPool,
    plans: Option<&'static str>,
    recorded_from: Option<DateTime<Utc>>,
}

/// What was recorded last: revision, overrides, cohorts.
type Recorded = (i64, Json<Vec<Override>>, Json<Vec<Box<str>>>);

impl History {
    /// The past of a gate that has its plans from `plans`.
    #[must_use]
    pub fn new(system: SystemPool, plans: &dyn PlanSource) -> Self {
        Self { system, plans: plans.recorded_as(), recorded_from: None }
    }

    /// For a source that recorded nothing before `instant`: what a tenant had then is an error, not the default plan.
    #[must_use]
    pub fn with_plans_recorded_from(self, instant: DateTime<Utc>) -> Self {
        Self { recorded_from: Some(instant), ..self }
    }

    /// Records that this catalogue is in force from `now` on; nothing where it already is.
    ///
    /// Call it once for each release, when the processes change over: which of two catalogues a process had while they did
    /// is not recorded.
    ///
    /// # Errors
    /// [`Catalog`](EntitlementsError::Catalog) when the document is none. Nothing is written then.
    pub async fn publish(
        &self,
        document: &str,
        actor: &Actor,
        now: DateTime<Utc>,
    ) -> Result<PlanCatalog, EntitlementsError> {
        let catalog = PlanCatalog::from_toml(document)?;
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "publish a plan catalogue").await?;
        // One publication at a time: the comparison with the latest edition must still hold when the new one is written.
        sqlx::query("select pg_advisory_xact_lock(hashtextextended('saas.catalog_edition', 0))")
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        sqlx::query(
            "insert into saas.catalog_edition (fingerprint, document, published_by, published_at)
             select $1, $2, $3, greatest($4, (select max(published_at) from saas.catalog_edition))
             where $1 is distinct from
                   (select fingerprint from saas.catalog_edition order by number desc limit 1)",
        )
        .bind(catalog.fingerprint().cast_signed())
        .bind(document)
        .bind(actor.to_string())
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.commit().await?;
        Ok(catalog)
    }

    /// What the tenant could do at `instant`; [`explain`](Snapshot::explain) says why. A tenant that did not exist yet could
    /// do nothing.
    ///
    /// The snapshot's revision is that of the last recorded change. Within the transaction of a change both answers are
    /// right: see [`saas_core::subscription::record_in`].
    ///
    /// # Errors
    /// [`Unrecorded`](EntitlementsError::Unrecorded) when no catalogue had been published by then, the source of plans kept no
    /// record, or what was used then decides and is gone with the events of its time.
    pub async fn at(&self, tenant: TenantId, instant: DateTime<Utc>) -> Result<Snapshot, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, Actor::system("history"), "read what a tenant could do").await?;
        let catalog = catalog_at(&mut tx, instant).await?;
        let existed: Option<bool> = sqlx::query_scalar("select created_at <= $2 from saas.tenant where id = $1")
            .bind(tenant.as_uuid())
            .bind(instant)
            .fetch_optional(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        if existed != Some(true) {
            return Ok(Snapshot::unknown(&catalog, tenant, instant));
        }
        let (plan_revision, assignment) = self.plan_at(&mut tx, tenant, instant).await?;
        let recorded = recorded_at(&mut tx, tenant, instant).await?;
        let not_served_since = not_served_since(&mut tx, tenant, instant).await?;
        let default = || PlanAssignment::active(catalog.default_version().reference().plan.clone());
        let mut assignment = assignment.unwrap_or_else(default);
        if let Some(since) = not_served_since {
            assignment.standing = Standing::Suspended { since };
        }
        let (revision, overrides, cohorts) = match recorded {
            Some((revision, Json(overrides), Json(cohorts))) => {
                let corrupt = |_| CoreError::Corrupt { table: "saas.entitlement_history", column: "revision" };
                (u64::try_from(revision).map(Revision::new).map_err(corrupt)?, overrides, cohorts)
            }
            None => (Revision::NONE, Vec::new(), Vec::new()),
        };
        let revision = revision.max(plan_revision);
        let snapshot = resolve(&catalog, tenant, TenantState { revision, assignment, overrides, cohorts }, instant)?;
        let watched = snapshot.watched();
        let used = used_at(&mut tx, tenant, &watched, instant).await?;
        tx.rollback().await?;
        Ok(snapshot.with_usage(&used))
    }

    /// What the source of plans answered; no assignment where the default plan held.
    async fn plan_at(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        instant: DateTime<Utc>,
    ) -> Result<(Revision, Option<PlanAssignment>), EntitlementsError> {
        let source = self.plans.filter(|_| self.recorded_from.is_none_or(|from| from <= instant));
        let Some(source) = source else {
            return Err(EntitlementsError::Unrecorded { what: "the tenant's plan", at: instant });
        };
        let found = subscription::recorded_in(connection, tenant, source, instant).await?;
        Ok(found.map_or((Revision::NONE, None), |found| (found.revision, found.assignment)))
    }
}

/// The catalogue that was in force.
async fn catalog_at(connection: &mut PgConnection, instant: DateTime<Utc>) -> Result<PlanCatalog, EntitlementsError> {
    let document: Option<String> = sqlx::query_scalar(
        "select document from saas.catalog_edition where published_at <= $1 order by number desc limit 1",
    )
    .bind(instant)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    let unrecorded = EntitlementsError::Unrecorded { what: "the plan catalogue", at: instant };
    Ok(PlanCatalog::from_toml(&document.ok_or(unrecorded)?)?)
}

async fn recorded_at(
    connection: &mut PgConnection,
    tenant: TenantId,
    instant: DateTime<Utc>,
) -> Result<Option<Recorded>, EntitlementsError> {
    let recorded = sqlx::query_as(
        "select revision, overrides, cohorts
         from saas.entitlement_history
         where tenant_id = $1 and at <= $2
         order by revision desc
         limit 1",
    )
    .bind(tenant.as_uuid())
    .bind(instant)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(recorded)
}

/// What gates were told of the windows that decide whether the tenant may only read.
async fn used_at(
    connection: &mut PgConnection,
    tenant: TenantId,
    windows: &[Watched],
    instant: DateTime<Utc>,
) -> Result<Vec<u64>, EntitlementsError> {
    let mut told = Vec::with_capacity(windows.len());
    for watched in windows {
        // Nobody had asked yet since the tenant came to this limit: then whoever had would have been told what the next one was,
        // or what holds still, as whoever counts asks first.
        let used: Option<i64> = sqlx::query_scalar(
            "select coalesce(
                        (select last.used
                         from (select h.used, h.most, h.since
                               from saas.excess_history h
                               where h.tenant_id = $1 and h.meter = $2 and h.window_kind = $3 and h.window_start = $4
                                 and h.at <= $5
                               order by h.number desc
                               limit 1) last
                         where last.most = $6 and last.since = $7),
                        (select h.used
                         from saas.excess_history h
                         where h.tenant_id = $1 and h.meter = $2 and h.window_kind = $3 and h.window_start = $4
                           and h.at > $5
                         order by h.number
                         limit 1),
                        (select greatest(c.used, 0)
                         from saas.usage_counter c
                         where c.tenant_id = $1 and c.meter = $2 and c.window_kind = $3 and c.window_start = $4),
                        0)
             from saas.usage_horizon
             where excess_before <= $5",
        )
        .bind(tenant.as_uuid())
        .bind(watched.meter.as_str())
        .bind(watched.window.as_str())
        .bind(watched.period.start)
        .bind(instant)
        .bind(i64::try_from(watched.most).unwrap_or(i64::MAX))
        .bind(watched.since)
        .fetch_optional(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
        let used = used.ok_or(EntitlementsError::Unrecorded { what: "what the tenant had used", at: instant })?;
        let corrupt = |_| CoreError::Corrupt { table: "saas.excess_history", column: "used" };
        told.push(u64::try_from(used).map_err(corrupt)?);
    }
    Ok(told)
}

/// Since when the tenant was shut out or gone. Its status is only the present one; what it was is in the audit log, without
/// which no status changes.
async fn not_served_since(
    connection: &mut PgConnection,
    tenant: TenantId,
    instant: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, EntitlementsError> {
    let last: Option<(String, DateTime<Utc>)> = sqlx::query_as(
        "select action, at
         from saas.audit
         where tenant_id = $1 and at <= $2
           and action in ('tenant.suspended', 'tenant.erase_started', 'tenant.erased', 'tenant.made_read_only',
                          'tenant.maintenance_started', 'tenant.resumed', 'tenant.maintenance_ended',
                          'tenant.read_only_ended')
         order by at desc, id desc
         limit 1",
    )
    .bind(tenant.as_uuid())
    .bind(instant)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    let shut = ["tenant.suspended", "tenant.erase_started", "tenant.erased"];
    Ok(last.filter(|(action, _)| shut.contains(&action.as_str())).map(|(_, at)| at))
}
