//! The door of a tenant that lives in another database.
//!
//! It is set while the tenant's row is locked in the control database, as the status is at that moment, and only if the
//! tenant still lives there: two changes at once, or a change and a move, leave it as the last of them has it.

use std::time::Duration;

use saas_core::{Actor, CoreError, SystemPool, SystemTx, TenantId, db::pool_options};

use super::{Lifecycle, store};
use crate::{
    TenancyError,
    placement::{Login, Placement, Site, State, record::get_in},
};

/// For a database that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A tenant that moves meanwhile is looked for again.
const TRIES: u32 = 5;
/// Doors that are set by one call.
const DUE_LIMIT: i64 = 1_000;
const DOOR: Actor = Actor::system("lifecycle.door");

impl Lifecycle {
    /// Sets the doors in other databases that a change of status could not reach, at most 1,000; answers the tenants whose
    /// database still does not answer. For a job that runs every minute or so.
    ///
    /// # Errors
    /// When the control database does not answer.
    pub async fn set_due_doors(&self) -> Result<Vec<TenantId>, TenancyError> {
        let mut tx = SystemTx::begin(&self.system, DOOR, "find doors that are due").await?;
        let due = store::list_due(&mut tx, DUE_LIMIT).await?;
        drop(tx);
        let mut missed = Vec::new();
        for tenant in due {
            match self.set_door(tenant).await {
                Ok(()) => {}
                Err(TenancyError::DoorNotSet { .. }) => missed.push(tenant),
                Err(other) => return Err(other),
            }
        }
        Ok(missed)
    }

    /// Sets the door of a tenant that lives in another database. In this one it was set with the status.
    pub(super) async fn set_door(&self, tenant: TenantId) -> Result<(), TenancyError> {
        for _ in 0..TRIES {
            let placement = self.placement(tenant).await?;
            let Some(site) = elsewhere(&placement) else { return self.settle(tenant).await };
            let done = match self.open(site).await {
                Ok(there) => {
                    let done = self.set_door_at(&there, &placement).await;
                    there.pool().close().await;
                    done
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(true) => return Ok(()),
                // It has moved meanwhile.
                Ok(false) => {}
                Err(cause) => return Err(not_set(&placement, cause)),
            }
        }
        let placement = self.placement(tenant).await?;
        Err(not_set(&placement, CoreError::Unavailable { cause: "the tenant keeps moving".into() }))
    }

    /// Waits where the tenant lives until every transaction that came through the door before has left.
    pub(super) async fn wait_until_left(&self, tenant: TenantId, actor: &Actor) -> Result<(), TenancyError> {
        let why = "wait until a tenant's transactions have left";
        let placement = self.placement(tenant).await?;
        let Some(site) = elsewhere(&placement) else {
            let mut tx = SystemTx::begin(&self.system, actor.clone(), why).await?;
            return Ok(store::wait_until_left(&mut tx, tenant).await?);
        };
        let there = self.open(site).await?;
        let left = async {
            let mut tx = SystemTx::begin(&there, actor.clone(), why).await?;
            store::wait_until_left(&mut tx, tenant).await
        }
        .await;
        there.pool().close().await;
        Ok(left?)
    }

    async fn placement(&self, tenant: TenantId) -> Result<Placement, CoreError> {
        let mut tx = SystemTx::begin(&self.system, DOOR, "find where a tenant lives").await?;
        get_in(&mut tx, tenant).await
    }

    /// Answers whether the tenant still lives there.
    async fn set_door_at(&self, there: &SystemPool, placement: &Placement) -> Result<bool, CoreError> {
        let tenant = placement.tenant;
        let mut other = SystemTx::begin(there, DOOR, "set a tenant's door").await?;
        let mut tx = SystemTx::begin(&self.system, DOOR, "set a tenant's door in another database").await?;
        let door = store::lock_door(&mut tx, tenant).await?;
        let present = get_in(&mut tx, tenant).await?;
        if (&present.site, present.generation) != (&placement.site, placement.generation) {
            return Ok(false);
        }
        store::set_door_there(&mut other, tenant, placement.generation, door).await?;
        other.commit().await?;
        store::forget_due(&mut tx, tenant).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// What was due while the tenant lived elsewhere was done by whoever moved it back.
    async fn settle(&self, tenant: TenantId) -> Result<(), TenancyError> {
        let mut tx = SystemTx::begin(&self.system, DOOR, "settle a tenant's door").await?;
        store::lock_door(&mut tx, tenant).await?;
        if elsewhere(&get_in(&mut tx, tenant).await?).is_none() {
            store::forget_due(&mut tx, tenant).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn open(&self, site: &Site) -> Result<SystemPool, CoreError> {
        let Some(clusters) = &self.clusters else {
            return Err(CoreError::Misconfigured {
                what: "this process sets doors in the control database only".into(),
                remedy: "give it the clusters: `Lifecycle::with_clusters`".into(),
            });
        };
        let options = clusters.options(&site.database, Login::System)?;
        let pool = pool_options().max_connections(1).acquire_timeout(PATIENCE).connect_lazy_with(options);
        SystemPool::open(pool, &[&saas_core::SCHEMA]).await
    }
}

/// Where the door is, if it is in another database and somebody may be in there. One that is being made has its door set
/// when it is opened.
fn elsewhere(placement: &Placement) -> Option<&Site> {
    let is_served = matches!(placement.state, State::Active | State::Moving);
    (is_served && !placement.site.database.is_control()).then_some(&placement.site)
}

fn not_set(placement: &Placement, cause: CoreError) -> TenancyError {
    TenancyError::DoorNotSet { place: placement.site.to_string(), cause: Box::new(cause) }
}
