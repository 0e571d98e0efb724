//! What the gate loads: revision and overrides in one statement, then the plan.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, OverrideId, RequestContext, Revision, SessionBinding, TenantId, TenantTx,
    subscription::{PlanSource, Standing},
};
use sqlx::types::Json;
use uuid::Uuid;

use crate::{Dated, EntitlementsError, Override, OverrideGrant, SnapshotSource, TenantState, Watched};

/// Reads what decides about a tenant from PostgreSQL and the source of plans.
#[derive(Debug, Clone)]
pub struct PostgresSource {
    binding: Arc<dyn SessionBinding>,
    plans: Arc<dyn PlanSource>,
}

impl PostgresSource {
    /// A source on the tenants' sessions. It reads as `saas_app`, one tenant at a time.
    #[must_use]
    pub fn new(binding: Arc<dyn SessionBinding>, plans: Arc<dyn PlanSource>) -> Self {
        Self { binding, plans }
    }
}

/// The tenant's revision, and one of its overrides: null for a tenant without any; since when it is not served; its cohorts;
/// the database's time.
type Row = (
    i64,
    Option<Uuid>,
    Option<Json<OverrideGrant>>,
    Option<String>,
    Option<String>,
    Option<DateTime<Utc>>,
    Option<DateTime<Utc>>,
    Option<DateTime<Utc>>,
    Vec<String>,
    DateTime<Utc>,
);

#[async_trait]
impl SnapshotSource for PostgresSource {
    async fn load(&self, tenant: TenantId, now: DateTime<Utc>) -> Result<Option<TenantState>, EntitlementsError> {
        Ok(self.load_dated(tenant, now).await?.state)
    }

    async fn load_dated(&self, tenant: TenantId, now: DateTime<Utc>) -> Result<Dated, EntitlementsError> {
        let ctx = RequestContext::new_at(tenant, Actor::system("entitlements"), now);
        let mut tx = TenantTx::begin(&*self.binding, &ctx).await?;
        // One statement, one snapshot: the overrides are exactly those of the revision.
        let rows: Vec<Row> = sqlx::query_as(
            "select t.revision, o.id, o.granted, o.author, o.reason, o.created_at, o.expires_at,
                    (select s.since from saas.tenant_status s
                     where s.tenant_id = $1 and s.state in ('suspended', 'erasing', 'erased')),
                    array(select c.cohort from saas.tenant_cohort c where c.tenant_id = $1),
                    clock_timestamp() -- what the gate's own clock is held to
             from saas.tenant t
             left join saas.override o on o.tenant_id = $1 and o.expires_at > $2
             where t.id = $1
             order by o.id",
        )
        .bind(tenant.as_uuid())
        .bind(now)
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        // Back to the pool before the source of plans takes a connection of its own: two at once can lock a pool up.
        tx.rollback().await?;
        let Some(first) = rows.first() else { return Ok(Dated { state: None, read_at: None }) };
        let (revision, read_at) = (revision(first)?, Some(first.9));
        let not_served_since = first.7;
        let cohorts = first.8.iter().map(|cohort| cohort.as_str().into()).collect();
        let overrides = rows.into_iter().filter_map(stored_override).collect();
        // After the revision: the plan may be newer than it, never older.
        let mut assignment = self.plans.plan_of(&ctx, now).await?;
        // What was bought does not bring back a tenant that an operator has shut out, or that is gone.
        if let Some(since) = not_served_since {
            assignment.standing = Standing::Suspended { since };
        }
        Ok(Dated { state: Some(TenantState { revision, assignment, overrides, cohorts }), read_at })
    }

    async fn watch(
        &self,
        tenant: TenantId,
        windows: &[Watched],
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<u64>>, EntitlementsError> {
        let ctx = RequestContext::new_at(tenant, Actor::system("entitlements"), now);
        let Some(since) = windows.first().map(|watched| watched.since) else { return Ok(Some(Vec::new())) };
        let mut tx = TenantTx::begin(&*self.binding, &ctx).await?;
        let used: Vec<i64> = sqlx::query_scalar("select saas.usage_watch($1, $2, $3, $4, $5, $6, $7, $8)")
            .bind(tenant.as_uuid())
            .bind(windows.iter().map(|watched| watched.meter.as_str()).collect::<Vec<_>>())
            .bind(windows.iter().map(|watched| watched.window.as_str()).collect::<Vec<_>>())
            .bind(windows.iter().map(|watched| watched.period.start).collect::<Vec<_>>())
            .bind(windows.iter().map(|watched| watched.period.end).collect::<Vec<_>>())
            .bind(windows.iter().map(|watched| i64::try_from(watched.most).unwrap_or(i64::MAX)).collect::<Vec<_>>())
            .bind(since)
            .bind(now)
            .fetch_one(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        tx.commit().await?;
        let corrupt = |_| CoreError::Corrupt { table: "saas.usage_counter", column: "used" };
        Ok(Some(used.into_iter().map(|used| u64::try_from(used).map_err(corrupt)).collect::<Result<_, _>>()?))
    }
}

fn revision((revision, ..): &Row) -> Result<Revision, CoreError> {
    let corrupt = |_| CoreError::Corrupt { table: "saas.tenant", column: "revision" };
    u64::try_from(*revision).map(Revision::new).map_err(corrupt)
}

fn stored_override((_, id, granted, author, reason, created_at, expires_at, ..): Row) -> Option<Override> {
    Some(Override {
        id: OverrideId::from_uuid(id?),
        grant: granted?.0,
        author: author?.into(),
        reason: reason?.into(),
        created_at: created_at?,
        expires_at: expires_at?,
    })
}
