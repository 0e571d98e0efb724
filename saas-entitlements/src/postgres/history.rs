//! What a tenant could do at a past instant, and why.
//!
//! Owns `saas.entitlement_history`, to which every change of this crate adds a row in its own transaction, and
//! `saas.catalog_edition`, the catalogues that were published. Promises that [`History::at`] answers as the gate did, for
//! everything that was recorded: plans by their source ([`saas_core::subscription::record_in`]), overrides, cohorts, and the
//! status that an operator gave the tenant, which is read from the audit log.

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, PlanCatalog, Revision, SystemPool, SystemTx, TenantId,
    subscription::{self, PlanAssignment, PlanSource, Standing},
};
use sqlx::{PgConnection, types::Json};

use crate::{EntitlementsError, Override, Snapshot, TenantState, resolve};

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
    /// [`Unrecorded`](EntitlementsError::Unrecorded) when no catalogue had been published by then, or the source of plans kept
    /// no record.
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
        tx.rollback().await?;
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
        resolve(&catalog, tenant, TenantState { revision, assignment, overrides, cohorts }, instant)
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
