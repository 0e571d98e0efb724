//! What the control database knows about places that are given up. Each method is part of the caller's transaction.

use saas_core::{CoreError, TenantId, db::Generation, tenant};

use super::bookkeeping::{Books, in_the_way};
use crate::lifecycle::store::{Door, forget_due, lock_door};
use crate::placement::{
    ClusterName, Placement, PlacementError, Site, State,
    ground::{lock_door_in, set_door_in},
    ledger, record, stock,
};

/// What a tenant's placement says while its place is being removed.
const LEAVING: &str = "it is being removed";

impl Books<'_> {
    /// Keeps the tenant out of the place of its own where it is served, which is about to be removed. `None` when it has
    /// none.
    ///
    /// The generation is a new one: nobody who remembers the place is let in again, and whoever is killed leaves a place
    /// that can be resumed or abandoned like one that is being made.
    pub(super) async fn close_down(&mut self, tenant: TenantId) -> Result<Option<Placement>, PlacementError> {
        tenant::lock_in(self.tx, tenant).await?;
        self.refuse_moving(tenant).await?;
        let Some(mut placement) = record::find_in(self.tx, tenant).await? else { return Ok(None) };
        match placement.state {
            State::Active if placement.site == Site::shared(ClusterName::control()) => return Ok(None),
            State::Active => placement.generation = placement.generation.next(),
            State::Moving => return in_the_way(tenant, "is being moved".to_owned(), "finish the move"),
            State::Provisioning | State::Failed => {
                return in_the_way(tenant, "has a place that is not served".to_owned(), "abandon it");
            }
        }
        placement.state = State::Failed;
        placement.reason = Some(LEAVING.to_owned());
        record::put_in(self.tx, &placement, self.now).await?;
        lock_door_in(self.tx, tenant).await?;
        set_door_in(self.tx, tenant, placement.generation, Door::closed(LEAVING)).await?;
        self.announce(tenant).await?;
        Ok(Some(placement))
    }

    /// From here on, whoever resumes starts from the beginning.
    pub(super) async fn give_up(&mut self, tenant: TenantId) -> Result<Option<Placement>, PlacementError> {
        tenant::lock_in(self.tx, tenant).await?;
        let Some(mut placement) = record::find_in(self.tx, tenant).await? else { return Ok(None) };
        match placement.state {
            State::Provisioning | State::Failed => {}
            State::Active | State::Moving => {
                return in_the_way(tenant, format!("is served at `{}`", placement.site), "move it away first");
            }
        }
        placement.state = State::Failed;
        placement.reason = Some("it is being abandoned".to_owned());
        record::put_in(self.tx, &placement, self.now).await?;
        sqlx::query("update saas.provisioning set step = 'requested', changed_at = $2 where tenant_id = $1")
            .bind(tenant.as_uuid())
            .bind(self.now)
            .execute(&mut **self.tx)
            .await
            .map_err(CoreError::from_database)?;
        Ok(Some(placement))
    }

    /// Sends the tenant back to the shared tables. A generation that was ever served is never used again.
    pub(super) async fn forget(&mut self, placement: &Placement) -> Result<(), PlacementError> {
        let tenant = placement.tenant;
        let door = lock_door(self.tx, tenant).await?;
        self.delete_provisioning(tenant).await?;
        if placement.generation == Generation::FIRST.next() {
            for statement in
                ["delete from saas.placement where tenant_id = $1", "delete from saas.resident where tenant_id = $1"]
            {
                sqlx::query(statement)
                    .bind(tenant.as_uuid())
                    .execute(&mut **self.tx)
                    .await
                    .map_err(CoreError::from_database)?;
            }
            if door != Door::OPEN {
                set_door_in(self.tx, tenant, Generation::FIRST, door).await?;
            }
        } else {
            let generation = placement.generation.next();
            let pooled = Placement { generation, ..Placement::implicit(tenant, None) };
            record::put_in(self.tx, &pooled, self.now).await?;
            set_door_in(self.tx, tenant, generation, door).await?;
        }
        forget_due(self.tx, tenant).await?;
        self.announce(tenant).await
    }

    /// Demands that a place is nobody's: no tenant is placed there, none is being moved, it was made for no other, and it
    /// is not kept ready.
    pub(super) async fn require_unused(&mut self, tenant: TenantId, site: &Site) -> Result<(), PlacementError> {
        tenant::lock_in(self.tx, tenant).await?;
        self.refuse_moving(tenant).await?;
        if record::find_in(self.tx, tenant).await?.is_some_and(|placement| placement.site == *site) {
            return in_the_way(tenant, format!("is placed at `{site}`"), "deprovision, abandon or move it");
        }
        if site.is_shared() {
            return Ok(());
        }
        let others = [record::find_owner_in(self.tx, site).await?, ledger::owner_in(self.tx, site).await?];
        if let Some(other) = others.into_iter().flatten().find(|owner| *owner != tenant) {
            return in_the_way(
                tenant,
                format!("is not the owner of `{site}`, which is tenant {other}'s"),
                "name its own",
            );
        }
        if stock::is_kept_in(self.tx, site).await? {
            return in_the_way(tenant, format!("is not the owner of `{site}`, which is kept ready"), "name its own");
        }
        Ok(())
    }

    /// Refuses a tenant that has a move which is neither confirmed nor rolled back: it has two places.
    pub(super) async fn refuse_moving(&mut self, tenant: TenantId) -> Result<(), PlacementError> {
        let state: Option<String> = sqlx::query_scalar(
            "select state from saas.move where tenant_id = $1 and state not in ('confirmed', 'rolled_back')",
        )
        .bind(tenant.as_uuid())
        .fetch_optional(&mut **self.tx)
        .await
        .map_err(CoreError::from_database)?;
        match state {
            Some(state) => {
                in_the_way(tenant, format!("has a move that is {state}"), "confirm it or roll it back first")
            }
            None => Ok(()),
        }
    }
}
