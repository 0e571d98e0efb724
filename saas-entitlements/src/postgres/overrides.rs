//! Overrides on PostgreSQL: written with their audit row and the tenant's new revision, in one transaction.

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, OverrideId, Page, PageSize, Revision, SystemPool, SystemTx, TenantId, audit, revision,
};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::history;
use crate::{Entitlements, EntitlementsError, NewOverride, Override, OverrideGrant, OverrideSubject};

/// Puts overrides in force and takes them out, under an operator's own name.
#[derive(Debug, Clone)]
pub struct Overrides {
    system: SystemPool,
    entitlements: Entitlements,
}

impl Overrides {
    /// Works on the system role's pool, by the clock of `entitlements`, which sees changes at once; other processes do at commit.
    #[must_use]
    pub fn new(system: SystemPool, entitlements: Entitlements) -> Self {
        Self { system, entitlements }
    }

    /// Puts an override in force, in the place of the one about the same subject.
    ///
    /// # Errors
    /// When it does not fit the catalogue, is already over, or there is no such tenant. Nothing is written then.
    pub async fn put_override(
        &self,
        tenant: TenantId,
        new: NewOverride,
        author: &Actor,
    ) -> Result<Override, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, author.clone(), "put an override in force").await?;
        // The clock is read under the lock: what is recorded has the order of the commits.
        saas_core::tenant::lock_in(&mut tx, tenant).await?;
        let now = self.entitlements.core.clock.now_in(&mut tx).await?;
        let (put, revision) = self.put_override_in(&mut tx, tenant, new, author, now).await?;
        tx.commit().await?;
        self.entitlements.hear(tenant, revision);
        Ok(put)
    }

    /// As [`put_override`](Self::put_override), in the caller's transaction. Pass the revision to
    /// [`Entitlements::hear`] after the commit to see the change at once in this process.
    ///
    /// # Errors
    /// As [`put_override`](Self::put_override); the caller must then roll back.
    pub async fn put_override_in(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        new: NewOverride,
        author: &Actor,
        now: DateTime<Utc>,
    ) -> Result<(Override, Revision), EntitlementsError> {
        let put = new.issue(self.entitlements.catalog(), author, now)?;
        // First: takes the tenant's row, so that revisions and overrides change in one order.
        let revision = revision::bump_in(connection, tenant).await?;
        let subject = put.grant.subject();
        sqlx::query(
            "insert into saas.override
                 (tenant_id, subject_kind, subject, id, granted, author, reason, created_at, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             on conflict (tenant_id, subject_kind, subject) do update
             set id = excluded.id, granted = excluded.granted, author = excluded.author, reason = excluded.reason,
                 created_at = excluded.created_at, expires_at = excluded.expires_at",
        )
        .bind(tenant.as_uuid())
        .bind(subject.kind())
        .bind(subject.key())
        .bind(put.id.as_uuid())
        .bind(Json(&put.grant))
        .bind(&*put.author)
        .bind(&*put.reason)
        .bind(put.created_at)
        .bind(put.expires_at)
        .execute(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
        history::record_in(connection, tenant, revision, now).await?;
        let detail = serde_json::json!({
            "id": put.id, "grant": put.grant, "reason": put.reason, "expires_at": put.expires_at,
        });
        let entry = audit::Entry::new("override.put", subject.key()).with_detail(detail);
        audit::record_in(connection, tenant, author, entry, now).await?;
        Ok((put, revision))
    }

    /// Takes the override about a subject out. `false` when there was none.
    ///
    /// # Errors
    /// When there is no such tenant or the database does not answer.
    pub async fn remove_override(
        &self,
        tenant: TenantId,
        subject: &OverrideSubject,
        author: &Actor,
    ) -> Result<bool, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, author.clone(), "take an override out of force").await?;
        saas_core::tenant::lock_in(&mut tx, tenant).await?;
        let now = self.entitlements.core.clock.now_in(&mut tx).await?;
        let removed = self.remove_override_in(&mut tx, tenant, subject, author, now).await?;
        let Some(revision) = removed else { return Ok(false) };
        tx.commit().await?;
        self.entitlements.hear(tenant, revision);
        Ok(true)
    }

    /// As [`remove_override`](Self::remove_override), in the caller's transaction; `None` when there was none.
    ///
    /// # Errors
    /// As [`remove_override`](Self::remove_override); the caller must then roll back.
    pub async fn remove_override_in(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        subject: &OverrideSubject,
        author: &Actor,
        now: DateTime<Utc>,
    ) -> Result<Option<Revision>, EntitlementsError> {
        // First, as in `put_override_in`; rolled back with the transaction when there is nothing to remove.
        saas_core::tenant::lock_in(connection, tenant).await?;
        let removed = sqlx::query(
            "delete from saas.override
             where tenant_id = $1 and subject_kind = $2 and subject = $3",
        )
        .bind(tenant.as_uuid())
        .bind(subject.kind())
        .bind(subject.key())
        .execute(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
        if removed.rows_affected() == 0 {
            return Ok(None);
        }
        let revision = revision::bump_in(connection, tenant).await?;
        history::record_in(connection, tenant, revision, now).await?;
        audit::record_in(connection, tenant, author, audit::Entry::new("override.removed", subject.key()), now).await?;
        Ok(Some(revision))
    }

    /// Puts the same override in force for many tenants, each in a transaction of its own: one that fails does not keep the
    /// others from theirs. Repeat it for those that failed.
    ///
    /// # Errors
    /// When it does not fit the catalogue or would already be over: nothing is written then. What happens to a tenant is in
    /// the report, which has the tenants in their order.
    pub async fn put_override_many(
        &self,
        tenants: &[TenantId],
        new: &NewOverride,
        author: &Actor,
    ) -> Result<Vec<(TenantId, Result<Override, EntitlementsError>)>, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, author.clone(), "compare the clocks").await?;
        let now = self.entitlements.core.clock.now_in(&mut tx).await?;
        tx.rollback().await?;
        new.clone().issue(self.entitlements.catalog(), author, now)?;
        let mut report = Vec::with_capacity(tenants.len());
        for tenant in tenants {
            report.push((*tenant, self.put_override(*tenant, new.clone(), author).await));
        }
        Ok(report)
    }

    /// Overrides in the order of tenant, kind and key, from after `after` on.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_overrides(
        &self,
        filter: &OverrideFilter,
        after: Option<OverridePlace>,
        size: PageSize,
    ) -> Result<Page<(TenantId, Override), OverridePlace>, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, Actor::system("entitlements"), "list overrides").await?;
        let (after, subject) = (after.map(|(tenant, subject)| (tenant.as_uuid(), subject)), filter.subject.as_ref());
        let rows: Vec<Row> = sqlx::query_as(
            "select tenant_id, id, granted, author, reason, created_at, expires_at
             from saas.override -- of every tenant
             where ($1::uuid is null or tenant_id = $1)
               and ($2::text is null or (subject_kind = $2 and subject = $3))
               and ($4::text is null or author = $4)
               and ($5::timestamptz is null or expires_at > $5)
               and ($6::timestamptz is null or expires_at <= $6)
               and ($7::uuid is null or (tenant_id, subject_kind, subject) > ($7, $8, $9))
             order by tenant_id, subject_kind, subject
             limit $10",
        )
        .bind(filter.tenant.map(TenantId::as_uuid))
        .bind(subject.map(OverrideSubject::kind))
        .bind(subject.map(OverrideSubject::key))
        .bind(&filter.author)
        .bind(filter.live_at)
        .bind(filter.ending_by)
        .bind(after.as_ref().map(|(tenant, _)| *tenant))
        .bind(after.as_ref().map(|(_, subject)| subject.kind()))
        .bind(after.as_ref().map(|(_, subject)| subject.key()))
        .bind(i64::from(size.get()) + 1)
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.rollback().await?;
        let rows = rows.into_iter().map(stored).collect();
        Ok(Page::from_rows(rows, size, |(tenant, found)| (*tenant, found.grant.subject())))
    }
}

/// Where a page of overrides ends.
pub type OverridePlace = (TenantId, OverrideSubject);

/// Which overrides are wanted: those that fit everything that is set. The default wants all of them.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct OverrideFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// About this.
    pub subject: Option<OverrideSubject>,
    /// By this author, as it stands in the audit log.
    pub author: Option<String>,
    /// Not over at this instant.
    pub live_at: Option<DateTime<Utc>>,
    /// Over by this instant, itself included: with `live_at`, those that are about to end.
    pub ending_by: Option<DateTime<Utc>>,
}

type Row = (Uuid, Uuid, Json<OverrideGrant>, String, String, DateTime<Utc>, DateTime<Utc>);

fn stored((tenant, id, Json(grant), author, reason, created_at, expires_at): Row) -> (TenantId, Override) {
    let id = OverrideId::from_uuid(id);
    let (author, reason) = (author.into(), reason.into());
    (TenantId::from_uuid(tenant), Override { id, grant, author, reason, created_at, expires_at })
}
