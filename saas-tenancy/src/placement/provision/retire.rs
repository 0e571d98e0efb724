//! The end of a place whose tenant is being erased: shut, looked into as the system, left.

use saas_core::{CoreError, SystemPool, SystemTx};

use super::{Provisioner, bookkeeping::Books};
use crate::lifecycle::{State, store::Door};
use crate::placement::{
    Placement, PlacementError,
    error::is_missing_database,
    ground::{set_door_in, unlock},
};

impl Provisioner {
    /// A pool of one connection as the system in a place's database; the caller closes it.
    ///
    /// # Errors
    /// [`Disappeared`](PlacementError::Disappeared) when there is no such database.
    pub(crate) async fn reach(&self, placement: &Placement) -> Result<SystemPool, PlacementError> {
        self.ground.system(&placement.site.database).await.map_err(|error| match error {
            PlacementError::Core(error) if is_missing_database(&error) => {
                PlacementError::Disappeared { tenant: placement.tenant, site: placement.site.clone() }
            }
            other => other,
        })
    }

    /// Closes the door of a place in its own database: part of the caller's transaction there.
    pub(crate) async fn shut_in(&self, tx: &mut SystemTx, placement: &Placement) -> Result<(), CoreError> {
        set_door_in(tx, placement.tenant, placement.generation, Door::of(Some(State::Erasing))).await
    }

    /// Removes a place of the tenant's own that was shut and emptied, or finds it removed. Unlike
    /// [`remove_empty_site`](Self::remove_empty_site) it takes the one the tenant is still placed at.
    pub(crate) async fn remove_shut(&self, placement: &Placement) -> Result<(), PlacementError> {
        let lock = self.lock(placement.tenant).await?;
        let done = self.remove_if_empty(placement.tenant, &placement.site).await;
        unlock(lock).await;
        done
    }

    /// Sends a tenant whose place is gone back among the shared tables, behind a closed door: part of the caller's
    /// transaction in the control database.
    pub(crate) async fn retire_in(&self, tx: &mut SystemTx, placement: &Placement) -> Result<(), PlacementError> {
        Books { tx, now: self.clock.now() }.retire(placement).await
    }
}
