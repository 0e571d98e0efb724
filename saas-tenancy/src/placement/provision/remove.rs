//! Takes places away: half-made ones, and those that a tenant has left.

use saas_core::TenantId;

use super::{Books, Provisioner, bookkeeping::in_the_way};
use crate::placement::{
    Placement, PlacementError, Site,
    error::is_missing_database,
    ground::{set_lock_timeout_in, unlock},
    ledger,
};

impl Provisioner {
    /// Removes a place that is being made or failed, wholly; the tenant is where it was before. Safe to repeat.
    ///
    /// # Errors
    /// [`InTheWay`](PlacementError::InTheWay) when the tenant is served there, or has rows there.
    pub async fn abandon(&self, tenant: TenantId) -> Result<(), PlacementError> {
        let lock = self.lock(tenant).await?;
        let done = self.abandon_locked(tenant).await;
        unlock(lock).await;
        done
    }

    async fn abandon_locked(&self, tenant: TenantId) -> Result<(), PlacementError> {
        let mut tx = self.begin("give a tenant's place up").await?;
        let given_up = Books { tx: &mut tx, now: self.clock.now() }.give_up(tenant).await?;
        tx.commit().await?;
        let Some(placement) = given_up else { return Ok(()) };
        self.remove_if_empty(tenant, &placement.site).await?;
        self.forget(&placement).await
    }

    /// Takes a tenant's own place away, wholly, and lets the tenant into the shared tables again: for one that has left,
    /// or whose rows were erased. Does nothing for a tenant without a place of its own.
    ///
    /// Transactions that are under way are waited for, up to the lock timeout; later ones are refused until it is over.
    /// Whoever is killed leaves a place that is [resumed](Self::resume) or [abandoned](Self::abandon).
    ///
    /// # Errors
    /// The tenant is served as before:
    /// - [`InTheWay`](PlacementError::InTheWay): it has rows there, or a move that is not over, or its place is not served.
    /// - When it is too busy, or a database does not answer.
    pub async fn deprovision(&self, tenant: TenantId) -> Result<(), PlacementError> {
        let lock = self.lock(tenant).await?;
        let done = self.deprovision_locked(tenant).await;
        unlock(lock).await;
        done
    }

    async fn deprovision_locked(&self, tenant: TenantId) -> Result<(), PlacementError> {
        let mut tx = self.begin("take a tenant's own place away").await?;
        set_lock_timeout_in(&mut tx, self.ground.timeouts.lock).await?;
        let closed = Books { tx: &mut tx, now: self.clock.now() }.close_down(tenant).await?;
        tx.commit().await?;
        let Some(placement) = closed else { return Ok(()) };
        if let Err(error) = self.require_left(&placement).await {
            self.let_in(&placement).await?;
            return Err(error);
        }
        self.remove_with_rows(tenant, &placement.site).await?;
        self.forget(&placement).await
    }

    /// Makes sure that nobody is in there any more, and nothing.
    async fn require_left(&self, placement: &Placement) -> Result<(), PlacementError> {
        let Placement { tenant, site, generation, .. } = placement;
        if !site.database.is_control() {
            self.ground.close_door(&site.database, *tenant, *generation).await?;
        }
        match self.ground.find_rows(site, *tenant).await? {
            Some(table) => has_rows(*tenant, site, &table),
            None => Ok(()),
        }
    }

    async fn forget(&self, placement: &Placement) -> Result<(), PlacementError> {
        let mut tx = self.begin("forget a tenant's place").await?;
        Books { tx: &mut tx, now: self.clock.now() }.forget(placement).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Removes a site that was made for a tenant and is not its placement, such as the target of a move that was rolled
    /// back, when the tenant has no row there: drops its schema or database; from shared tables, takes its registration
    /// back.
    ///
    /// # Errors
    /// [`InTheWay`](PlacementError::InTheWay) when the tenant has rows there, is placed there or being moved; when it is
    /// the place of another, or kept ready.
    pub async fn remove_empty_site(&self, tenant: TenantId, site: &Site) -> Result<(), PlacementError> {
        let lock = self.lock(tenant).await?;
        let done = async {
            self.require_unused(tenant, site).await?;
            self.remove_if_empty(tenant, site).await
        }
        .await;
        unlock(lock).await;
        done
    }

    /// Removes a tenant's own site with everything in it: for the place that a tenant has left for good.
    ///
    /// # Errors
    /// [`InTheWay`](PlacementError::InTheWay) as for [`remove_empty_site`](Self::remove_empty_site), save for rows.
    pub async fn remove_site_with_rows(&self, tenant: TenantId, site: &Site) -> Result<(), PlacementError> {
        let lock = self.lock(tenant).await?;
        let done = async {
            self.require_unused(tenant, site).await?;
            self.remove_with_rows(tenant, site).await
        }
        .await;
        unlock(lock).await;
        done
    }

    async fn require_unused(&self, tenant: TenantId, site: &Site) -> Result<(), PlacementError> {
        let mut tx = self.begin("make sure that a place is not in use").await?;
        Books { tx: &mut tx, now: self.clock.now() }.require_unused(tenant, site).await
    }

    pub(super) async fn remove_if_empty(&self, tenant: TenantId, site: &Site) -> Result<(), PlacementError> {
        let rows = match self.ground.find_rows(site, tenant).await {
            Err(PlacementError::Core(error)) if is_missing_database(&error) => None,
            // Killed between the making of the database and that of its tables: complete, it can be looked through.
            Err(_) if site.database.name.is_some() => {
                self.ground.create(site).await?;
                self.ground.find_rows(site, tenant).await?
            }
            found => found?,
        };
        match rows {
            Some(table) => has_rows(tenant, site, &table),
            None => self.remove_with_rows(tenant, site).await,
        }
    }

    async fn remove_with_rows(&self, tenant: TenantId, site: &Site) -> Result<(), PlacementError> {
        self.ground.remove(site).await?;
        if site.database.name.is_none() && !site.database.is_control() {
            self.ground.unregister(&site.database, tenant).await?;
        }
        let mut tx = self.begin("forget a place's migrations").await?;
        if !site.is_shared() {
            ledger::forget_in(&mut tx, site).await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

fn has_rows(tenant: TenantId, site: &Site, table: &str) -> Result<(), PlacementError> {
    in_the_way(tenant, format!("has rows in `{table}` of `{site}`"), "move the tenant, or erase its rows first")
}
