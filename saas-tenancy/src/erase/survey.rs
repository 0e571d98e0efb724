//! What the catalogues and the ports say, in the control database and in the tenant's own place.

use saas_core::{SystemTx, TenantId, dependents::Dependent};

use super::{
    Erasures, catalog,
    place::{Contents, Place},
    plan::{self, ErasePlan, Fate, Obstacle, PlannedTable},
};
use crate::TenancyError;

/// The answer.
pub(super) struct Survey<'a> {
    /// The control database's tables to be emptied, in their order.
    pub(super) order: Vec<String>,
    /// Its tables that are kept, and why.
    pub(super) kept: Vec<(String, String)>,
    pub(super) obstacles: Vec<Obstacle>,
    pub(super) dependents: Vec<Dependent>,
    pub(super) place: Option<Place<'a>>,
}

impl Survey<'_> {
    pub(super) fn must_be_possible(&self) -> Result<(), TenancyError> {
        if self.obstacles.is_empty() && self.dependents.is_empty() {
            return Ok(());
        }
        Err(TenancyError::EraseBlocked { obstacles: self.obstacles.clone(), dependents: self.dependents.clone() })
    }

    /// Looks into the tenant's own place as well.
    pub(super) async fn look_into_place(&mut self) -> Result<Contents, TenancyError> {
        let Some(place) = &mut self.place else { return Ok(Contents::default()) };
        let mut contents = place.survey().await?;
        self.obstacles.append(&mut contents.obstacles);
        Ok(contents)
    }

    /// What an erasure would do, with every row of the tenant counted.
    pub(super) async fn into_plan(mut self, tx: &mut SystemTx, tenant: TenantId) -> Result<ErasePlan, TenancyError> {
        let contents = self.look_into_place().await?;
        let place = self.place.as_ref().map(Place::name);
        let mut tables = Vec::new();
        for (name, rows) in contents.order {
            tables.push(PlannedTable { name, place: place.clone(), rows: Some(rows), fate: Fate::Erase });
        }
        for name in self.order {
            let rows = catalog::count(tx, &name, tenant).await?;
            tables.push(PlannedTable { name, place: None, rows, fate: Fate::Erase });
        }
        for (name, rows, reason) in contents.kept {
            tables.push(PlannedTable { name, place: place.clone(), rows: Some(rows), fate: Fate::Keep { reason } });
        }
        for (name, reason) in self.kept {
            let rows = catalog::count(tx, &name, tenant).await?;
            tables.push(PlannedTable { name, place: None, rows, fate: Fate::Keep { reason } });
        }
        Ok(ErasePlan { tables, obstacles: self.obstacles, dependents: self.dependents })
    }
}

impl Erasures {
    /// Looks at the control database, and at where the tenant's own tables are, but not into them.
    pub(super) async fn survey(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<Survey<'_>, TenancyError> {
        let tables = catalog::tables(tx, tenant).await?;
        let (order, mut obstacles) = plan::order(&tables, &catalog::references(tx).await?);
        let place = match Place::find(tx, self.provisioner.as_ref(), tenant).await? {
            Ok(place) => place,
            Err(obstacle) => {
                obstacles.push(obstacle);
                None
            }
        };
        let mut dependents = Vec::new();
        for port in &self.dependents {
            dependents.extend(port.find(tx, tenant).await?);
        }
        let kept = tables.into_iter().filter_map(|table| Some((table.name, table.retained?))).collect();
        Ok(Survey { order, kept, obstacles, dependents, place })
    }
}
