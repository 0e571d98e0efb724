//! The steps by which a place is made. Each may be repeated.

use super::{Books, Provisioner, Step, Target, bookkeeping::in_the_way};
use crate::lifecycle::store::lock_door;
use crate::placement::{
    Placement, PlacementError, Site,
    ground::{Applied, Applying, unlock},
    ledger, record,
};
use saas_core::TenantId;

impl Provisioner {
    /// Takes the remaining steps and activates.
    pub(super) async fn make(&self, placement: &Placement, done: Step) -> Result<Placement, PlacementError> {
        let (tenant, site) = (placement.tenant, &placement.site);
        let mut applied = None;
        for step in Step::ALL.into_iter().filter(|step| *step > done) {
            self.tell(tenant, step, false);
            match step {
                Step::Requested => {}
                Step::Created => self.ground.create(site).await?,
                Step::Prepared => self.prepare(placement).await?,
                Step::Migrated => applied = self.migrate(site).await?,
                Step::Examined => self.examine(site).await?,
            }
            self.tell(tenant, step, true);
            let mut tx = self.begin("note how far a place has come").await?;
            let mut books = Books { tx: &mut tx, now: self.clock.now() };
            books.note(placement, step).await?;
            if let Some(applied) = &applied {
                ledger::record_in(books.tx, site, owner_of(placement), applied, books.now).await?;
            }
            tx.commit().await?;
        }
        self.let_in(placement).await
    }

    /// Opens the door of a place, and sends the tenant there.
    pub(super) async fn let_in(&self, placement: &Placement) -> Result<Placement, PlacementError> {
        let (tenant, site) = (placement.tenant, &placement.site);
        let mut tx = self.begin("let a tenant into its own place").await?;
        // As far as its status lets it in, which nobody changes until this ends.
        let door = lock_door(&mut tx, tenant).await?;
        // The door there first: nobody is sent there yet.
        if !site.database.is_control() {
            self.ground.set_door(&site.database, tenant, placement.generation, door).await?;
        }
        let active = Books { tx: &mut tx, now: self.clock.now() }.activate(placement, door).await?;
        tx.commit().await?;
        Ok(active)
    }

    async fn prepare(&self, placement: &Placement) -> Result<(), PlacementError> {
        if placement.site.database.is_control() {
            return Ok(());
        }
        let mut tx = self.begin("read what a tenant is called").await?;
        let stub = Books { tx: &mut tx, now: self.clock.now() }.stub(placement.tenant).await?;
        drop(tx);
        self.ground.register(&placement.site.database, &stub, placement.generation).await
    }

    /// The shared tables of the control cluster are the fleet's, or the application's own affair; those of another cluster
    /// may be used for the first time.
    async fn migrate(&self, site: &Site) -> Result<Option<Applied>, PlacementError> {
        if site.is_shared() && site.database.is_control() {
            return Ok(None);
        }
        Ok(Some(self.apply(site).await?))
    }

    /// Brings a site to the newest version, or says why that is not possible.
    pub(in crate::placement) async fn apply(&self, site: &Site) -> Result<Applied, PlacementError> {
        let applying = Applying { ground: &self.ground, blueprint: &self.blueprint };
        let mut applied = applying.apply(site, |_| ()).await?;
        match applied.failed.take() {
            Some(failed) => Err(failed),
            None => Ok(applied),
        }
    }

    pub(in crate::placement) async fn examine(&self, site: &Site) -> Result<(), PlacementError> {
        let findings = self.ground.examine(site).await?;
        if findings.is_empty() { Ok(()) } else { Err(PlacementError::Leaks { site: site.clone(), findings }) }
    }

    /// Makes a place ready for a tenant that stays where it is for now, such as one that is to be moved there: schema or
    /// database, registration behind a closed door, the application's tables, the audit. Changes no placement. Safe to
    /// repeat, also after migrations were added.
    ///
    /// # Errors
    /// [`InTheWay`](PlacementError::InTheWay) when the tenant is placed there; as [`resume`](Self::resume)
    /// otherwise.
    pub async fn make_site(&self, tenant: TenantId, target: &Target) -> Result<Site, PlacementError> {
        let lock = self.lock(tenant).await?;
        let done = self.make_site_locked(tenant, target.site(tenant)).await;
        unlock(lock).await;
        done
    }

    async fn make_site_locked(&self, tenant: TenantId, site: Site) -> Result<Site, PlacementError> {
        let mut tx = self.begin("look where a tenant lives").await?;
        let now = record::get_in(&mut tx, tenant).await?;
        drop(tx);
        if now.site == site {
            return in_the_way(tenant, format!("is placed at `{site}`"), "name another place");
        }
        // The door is closed at the generation that the tenant has: whoever moves it there opens the next one.
        let there = Placement { site, ..now };
        self.ground.create(&there.site).await?;
        self.prepare(&there).await?;
        let applied = self.migrate(&there.site).await?;
        self.examine(&there.site).await?;
        if let Some(applied) = applied {
            let mut tx = self.begin("note a place's migrations").await?;
            ledger::record_in(&mut tx, &there.site, owner_of(&there), &applied, self.clock.now()).await?;
            tx.commit().await?;
        }
        Ok(there.site)
    }
}

/// Whose place it is in the ledger: shared tables are nobody's.
fn owner_of(placement: &Placement) -> Option<TenantId> {
    (!placement.site.is_shared()).then_some(placement.tenant)
}
