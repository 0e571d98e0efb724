//! The tenant's own place: where its tables are when they are not the shared ones of the control database.
//!
//! The place is emptied by the same rules as the control database, batch by batch, and removed when nothing is left in it.
//! What another database commits cannot be counted in the same transaction as it is recorded, so its rows are counted
//! once, behind its closed door.

use saas_core::{CoreError, SystemPool, SystemTx, TenantId};

use super::{
    RUN, catalog,
    plan::{self, Obstacle},
};
use crate::{
    TenancyError, lifecycle,
    placement::{Placement, Provisioner, State, record},
};

/// Tables that say that the tenant is at home in a database; they go with the place.
const REGISTRATION: [&str; 2] = ["saas.tenant", "saas.resident"];

/// A place, and, once it was needed, a connection to its database.
pub(super) struct Place<'a> {
    provisioner: &'a Provisioner,
    pub(super) placement: Placement,
    pool: Option<SystemPool>,
}

/// What is in a place.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The tables to be emptied, in their order, with the tenant's rows.
    pub(super) order: Vec<(String, u64)>,
    /// Those that keep rows: how many, and why.
    pub(super) kept: Vec<(String, u64, String)>,
    pub(super) obstacles: Vec<Obstacle>,
}

impl<'a> Place<'a> {
    /// The tenant's own place, if it has one; or why an erasure cannot reach it.
    pub(super) async fn find(
        tx: &mut SystemTx,
        provisioner: Option<&'a Provisioner>,
        tenant: TenantId,
    ) -> Result<Result<Option<Self>, Obstacle>, TenancyError> {
        if let Some(state) = catalog::unfinished_move(tx, tenant).await? {
            return Ok(Err(Obstacle {
                table: "saas.move".to_owned(),
                reason: format!("says that a move of the tenant is {state}, so its rows are in two places"),
                remedy: "confirm the move or roll it back first".to_owned(),
            }));
        }
        let Some(placement) = record::find_in(tx, tenant).await? else { return Ok(Ok(None)) };
        let obstacle = |reason: String, remedy: &str| {
            Ok(Err(Obstacle { table: "saas.placement".to_owned(), reason, remedy: remedy.to_owned() }))
        };
        match (placement.state, provisioner) {
            (State::Active, _) if placement.site.is_shared() && placement.site.database.is_control() => Ok(Ok(None)),
            (State::Active, Some(provisioner)) => Ok(Ok(Some(Self { provisioner, placement, pool: None }))),
            (State::Active, None) => obstacle(
                format!("says that the tenant's tables are in `{}`, out of this erasure's reach", placement.site),
                "give the service a Provisioner with Erasures::with_places, or move the tenant back first",
            ),
            (state @ (State::Provisioning | State::Failed | State::Moving), _) => obstacle(
                format!("says that the tenant's place `{}` is {state}", placement.site),
                "resume or abandon the making of the place, or finish the move, first",
            ),
        }
    }

    pub(super) fn name(&self) -> String {
        self.placement.site.to_string()
    }

    /// Whether one of the control database's tables is in it.
    pub(super) fn holds(&self, table: &str) -> bool {
        let schema = self.placement.site.schema.as_ref().map(|schema| schema.as_str());
        self.is_at_hand() && table.split_once('.').map(|(schema, _)| schema) == schema
    }

    /// Whether it is in the control database, where its tables and its door are at hand anyway.
    pub(super) fn is_at_hand(&self) -> bool {
        self.placement.site.database.is_control()
    }

    /// Takes a connection from an earlier step.
    pub(super) fn reusing(mut self, pool: Option<SystemPool>) -> Self {
        self.pool = pool;
        self
    }

    /// Leaves the connection for the next step.
    pub(super) fn into_pool(self) -> Option<SystemPool> {
        self.pool
    }

    async fn begin(&mut self, reason: &'static str) -> Result<SystemTx, CoreError> {
        let pool = match self.pool.take() {
            Some(pool) => pool,
            None => self.provisioner.reach(&self.placement).await?,
        };
        let tx = SystemTx::begin(&pool, RUN, reason).await;
        self.pool = Some(pool);
        tx
    }

    /// Closes the door, and waits until everyone who was in has left.
    pub(super) async fn shut(&mut self) -> Result<(), CoreError> {
        let (provisioner, placement) = (self.provisioner, self.placement.clone());
        let mut tx = self.begin("close the door of a tenant that is erased").await?;
        provisioner.shut_in(&mut tx, &placement).await?;
        tx.commit().await?;
        let mut tx = self.begin("wait until a tenant's transactions have left").await?;
        lifecycle::store::wait_until_left(&mut tx, placement.tenant).await
    }

    /// What is in it now; nothing of what is at hand, which the survey of the control database sees.
    pub(super) async fn survey(&mut self) -> Result<Contents, TenancyError> {
        let mut contents = Contents::default();
        if self.is_at_hand() {
            return Ok(contents);
        }
        let (tenant, name) = (self.placement.tenant, self.name());
        let mut tx = self.begin("survey the place of a tenant").await?;
        let mut tables = catalog::tables(&mut tx, tenant).await?;
        tables.retain(|table| !REGISTRATION.contains(&table.name.as_str()));
        let (order, obstacles) = plan::order(&tables, &catalog::references(&mut tx).await?);
        let there = |obstacle: Obstacle| Obstacle { reason: format!("in `{name}`: {}", obstacle.reason), ..obstacle };
        contents.obstacles = obstacles.into_iter().map(there).collect();
        for table in order {
            let rows = catalog::count(&mut tx, &table, tenant).await?.unwrap_or(0);
            contents.order.push((table, rows));
        }
        for table in tables {
            let Some(reason) = table.retained else { continue };
            // What the system may not count is not known to be empty.
            match catalog::count(&mut tx, &table.name, tenant).await? {
                Some(0) => {}
                rows => contents.kept.push((table.name, rows.unwrap_or(0), reason)),
            }
        }
        Ok(contents)
    }

    /// Erases one batch of a table's rows; 0 when none is left.
    pub(super) async fn erase_batch(&mut self, table: &str, batch: i32) -> Result<i64, CoreError> {
        let tenant = self.placement.tenant;
        let mut tx = self.begin("erase rows in the place of a tenant").await?;
        let rows = catalog::erase_batch(&mut tx, table, tenant, batch).await?;
        tx.commit().await?;
        Ok(rows)
    }

    /// Removes it, or finds it removed.
    pub(super) async fn clear(&mut self) -> Result<(), CoreError> {
        // A connection would be in the way of dropping the database it is in.
        if let Some(pool) = self.pool.take() {
            pool.pool().close().await;
        }
        self.provisioner.remove_shut(&self.placement).await.map_err(CoreError::from)
    }

    /// Sends the tenant back among the shared tables of the control database, behind a closed door.
    pub(super) async fn retire(&self, tx: &mut SystemTx) -> Result<(), CoreError> {
        self.provisioner.retire_in(tx, &self.placement).await.map_err(CoreError::from)
    }
}
