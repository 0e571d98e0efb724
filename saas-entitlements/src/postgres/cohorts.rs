//! Cohorts: tenants that get features earlier than others, while these are rolled out.

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, InvalidInput, Page, PageSize, Revision, SystemPool, SystemTx, TenantId, audit, revision,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::history;
use crate::{Entitlements, EntitlementsError};

/// Puts tenants into cohorts and takes them out.
#[derive(Debug, Clone)]
pub struct Cohorts {
    system: SystemPool,
    entitlements: Entitlements,
}

impl Cohorts {
    /// Works on the system role's pool, by the clock of `entitlements`, which sees changes at once; other processes do at commit.
    #[must_use]
    pub const fn new(system: SystemPool, entitlements: Entitlements) -> Self {
        Self { system, entitlements }
    }

    /// Puts a tenant into a cohort; `false` when it was there.
    ///
    /// # Errors
    /// When the name is not 1 to 64 characters without control characters, or there is no such tenant.
    pub async fn add_to_cohort(
        &self,
        tenant: TenantId,
        cohort: &str,
        actor: &Actor,
    ) -> Result<bool, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "put a tenant into a cohort").await?;
        // The clock is read under the lock: what is recorded has the order of the commits.
        saas_core::tenant::lock_in(&mut tx, tenant).await?;
        let now = self.entitlements.core.clock.now_in(&mut tx).await?;
        let added = self.add_to_cohort_in(&mut tx, tenant, cohort, actor, now).await?;
        let Some(revision) = added else { return Ok(false) };
        tx.commit().await?;
        self.entitlements.hear(tenant, revision);
        Ok(true)
    }

    /// As [`add_to_cohort`](Self::add_to_cohort), in the caller's transaction; `None` when it was there.
    ///
    /// # Errors
    /// As [`add_to_cohort`](Self::add_to_cohort); the caller must then roll back.
    pub async fn add_to_cohort_in(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        cohort: &str,
        actor: &Actor,
        now: DateTime<Utc>,
    ) -> Result<Option<Revision>, EntitlementsError> {
        if !(1..=64).contains(&cohort.chars().count()) || cohort.chars().any(char::is_control) {
            let why = "is not 1 to 64 characters without control characters";
            return Err(InvalidInput::new("cohort", why, "pass its name in the catalogue").into());
        }
        saas_core::tenant::lock_in(connection, tenant).await?;
        let added = sqlx::query(
            "insert into saas.tenant_cohort (tenant_id, cohort, added_by, added_at)
             values ($1, $2, $3, $4)
             on conflict (tenant_id, cohort) do nothing",
        )
        .bind(tenant.as_uuid())
        .bind(cohort)
        .bind(actor.to_string())
        .bind(now)
        .execute(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
        if added.rows_affected() == 0 {
            return Ok(None);
        }
        announce(connection, tenant, "cohort.added", cohort, actor, now).await.map(Some)
    }

    /// Takes a tenant out of a cohort; `false` when it was not in it.
    ///
    /// # Errors
    /// When there is no such tenant or the database does not answer.
    pub async fn remove_from_cohort(
        &self,
        tenant: TenantId,
        cohort: &str,
        actor: &Actor,
    ) -> Result<bool, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "take a tenant out of a cohort").await?;
        saas_core::tenant::lock_in(&mut tx, tenant).await?;
        let now = self.entitlements.core.clock.now_in(&mut tx).await?;
        let removed = self.remove_from_cohort_in(&mut tx, tenant, cohort, actor, now).await?;
        let Some(revision) = removed else { return Ok(false) };
        tx.commit().await?;
        self.entitlements.hear(tenant, revision);
        Ok(true)
    }

    /// As [`remove_from_cohort`](Self::remove_from_cohort), in the caller's transaction; `None` when it was not in it.
    ///
    /// # Errors
    /// As [`remove_from_cohort`](Self::remove_from_cohort); the caller must then roll back.
    pub async fn remove_from_cohort_in(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        cohort: &str,
        actor: &Actor,
        now: DateTime<Utc>,
    ) -> Result<Option<Revision>, EntitlementsError> {
        saas_core::tenant::lock_in(connection, tenant).await?;
        let removed = sqlx::query("delete from saas.tenant_cohort where tenant_id = $1 and cohort = $2")
            .bind(tenant.as_uuid())
            .bind(cohort)
            .execute(&mut *connection)
            .await
            .map_err(CoreError::from_database)?;
        if removed.rows_affected() == 0 {
            return Ok(None);
        }
        announce(connection, tenant, "cohort.removed", cohort, actor, now).await.map(Some)
    }

    /// The tenants of a cohort by id, from after `after` on.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_tenants(
        &self,
        cohort: &str,
        after: Option<TenantId>,
        size: PageSize,
    ) -> Result<Page<TenantId, TenantId>, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, Actor::system("entitlements"), "list a cohort").await?;
        let rows: Vec<Uuid> = sqlx::query_scalar(
            "select tenant_id
             from saas.tenant_cohort -- of every tenant
             where cohort = $1 and ($2::uuid is null or tenant_id > $2)
             order by tenant_id
             limit $3",
        )
        .bind(cohort)
        .bind(after.map(TenantId::as_uuid))
        .bind(i64::from(size.get()) + 1)
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.rollback().await?;
        Ok(Page::from_rows(rows.into_iter().map(TenantId::from_uuid).collect(), size, |tenant| *tenant))
    }
}

/// Tells of a change of cohorts: revision, history, audit log.
async fn announce(
    connection: &mut PgConnection,
    tenant: TenantId,
    action: &'static str,
    cohort: &str,
    actor: &Actor,
    now: DateTime<Utc>,
) -> Result<Revision, EntitlementsError> {
    let revision = revision::bump_in(connection, tenant).await?;
    history::record_in(connection, tenant, revision, now).await?;
    audit::record_in(connection, tenant, actor, audit::Entry::new(action, cohort), now).await?;
    Ok(revision)
}
