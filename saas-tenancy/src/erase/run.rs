//! The doing of an approved erasure: one small transaction after the other, from wherever it is.

use saas_core::{CoreError, SystemPool, SystemTx, TenantId, revision, tenant};
use serde_json::json;

use super::{
    EraseState, EraseStep, Erasure, Erasures, RUN, catalog,
    place::Place,
    record,
    store::{self, Next},
};
use crate::{
    TenancyError,
    lifecycle::{self, State},
};

const ACCOUNTS: &str = "saas.user_account";
const MEMBERSHIPS: &str = "saas.membership";

/// A connection to the tenant's own place that the next step can use.
type Reached = Option<SystemPool>;

impl Erasures {
    /// Does an approved erasure from where it is to its end, and answers its report.
    ///
    /// Call it again after a crash, after an error, and, if processes may have outlived it with the tenant in their memory,
    /// once more when it is done: it erases what they wrote. Two at once take turns.
    ///
    /// # Errors
    /// - [`Erasure`](TenancyError::Erasure): none was approved.
    /// - [`EraseBlocked`](TenancyError::EraseBlocked): something came in the way; nothing was erased since.
    /// - A retryable error: call again. Any other is on record, as [`Failed`](EraseState::Failed): mend it, then call again.
    pub async fn run(
        &self,
        tenant: TenantId,
        on_step: &mut (dyn FnMut(&EraseStep) + Send),
    ) -> Result<Erasure, TenancyError> {
        let mut reached = None;
        loop {
            let step = self.step_with(tenant, &mut reached).await?;
            on_step(&step);
            if let EraseStep::Done(erasure) = step {
                return Ok(*erasure);
            }
        }
    }

    /// Does the next step: one transaction, and in the tenant's own place another one.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn step(&self, tenant: TenantId) -> Result<EraseStep, TenancyError> {
        self.step_with(tenant, &mut None).await
    }

    async fn step_with(&self, tenant: TenantId, reached: &mut Reached) -> Result<EraseStep, TenancyError> {
        match self.try_step(tenant, reached).await {
            Err(TenancyError::Core(error)) if !error.is_retryable() => {
                self.fail(tenant, error.code()).await?;
                Err(error.into())
            }
            outcome => outcome,
        }
    }

    async fn try_step(&self, tenant: TenantId, reached: &mut Reached) -> Result<EraseStep, TenancyError> {
        if let Some(step) = self.go_a_step(tenant, reached).await? {
            return Ok(step);
        }
        // Whoever came in before the door closed has left, also where an earlier process was lost before it could wait.
        self.wait_until_left(tenant).await?;
        self.end(tenant).await
    }

    /// One step; `None` when there is nothing to do but to end it.
    async fn go_a_step(&self, tenant: TenantId, reached: &mut Reached) -> Result<Option<EraseStep>, TenancyError> {
        let mut tx = SystemTx::begin(&self.system, RUN, "erase a tenant").await?;
        lifecycle::lock_tenant(&mut tx, tenant).await?;
        let Some(erasure) = store::find_locked(&mut tx, tenant).await? else {
            return Err(TenancyError::Erasure { present: None });
        };
        let step = match erasure.state {
            EraseState::Requested => return Err(TenancyError::Erasure { present: Some(erasure.state) }),
            EraseState::Approved | EraseState::Failed => self.start(&mut tx, &erasure).await?,
            EraseState::Running => return self.go_on(tx, erasure, reached).await,
            EraseState::Done => return Ok(None),
        };
        tx.commit().await?;
        self.wait_until_left(tenant).await?;
        Ok(Some(step))
    }

    /// Ends an erasure of which no step is left, or goes back to the tables that have rows again.
    ///
    /// Rows that do not refer to the tenant by a foreign key, such as usage events, are added under a shared lock of its row:
    /// with the row taken whole, none is on its way, and whoever waits for the row finds the tenant erased.
    async fn end(&self, tenant: TenantId) -> Result<EraseStep, TenancyError> {
        let mut tx = SystemTx::begin(&self.system, RUN, "end the erasure of a tenant").await?;
        tenant::lock_to_remove_in(&mut tx, tenant).await?;
        let Some(erasure) = store::find_locked(&mut tx, tenant).await? else {
            return Err(TenancyError::Erasure { present: None });
        };
        let step = match erasure.state {
            EraseState::Requested | EraseState::Approved | EraseState::Failed => {
                return Err(TenancyError::Erasure { present: Some(erasure.state) });
            }
            // Another run has found rows meanwhile: the next step erases them.
            EraseState::Running if store::next(&mut tx, tenant).await?.is_some() => return Ok(EraseStep::Begun),
            EraseState::Running | EraseState::Done => self.finish(&mut tx, erasure).await?,
        };
        tx.commit().await?;
        Ok(step)
    }

    /// Whoever came through the door before it closed may still write.
    async fn wait_until_left(&self, tenant: TenantId) -> Result<(), CoreError> {
        let mut tx = SystemTx::begin(&self.system, RUN, "wait until a tenant's transactions have left").await?;
        lifecycle::store::wait_until_left(&mut tx, tenant).await
    }

    /// Shuts the tenant out and writes the list of tables.
    async fn start(&self, tx: &mut SystemTx, erasure: &Erasure) -> Result<EraseStep, TenancyError> {
        let (tenant, now) = (erasure.tenant, self.clock.now());
        let mut survey = self.survey(tx, tenant).await?;
        // What an earlier try has found in the place, it has listed.
        if erasure.place.is_none() {
            survey.look_into_place().await?;
        }
        survey.must_be_possible()?;
        lifecycle::change_in(tx, tenant, State::Erasing, &RUN, &erasure.reason, now).await?;
        store::note_accounts(tx, tenant).await?;
        // What is in the tenant's own place goes first.
        let mut place = i32::from(u16::MAX);
        for table in &survey.order {
            store::open_step(tx, tenant, table, place).await?;
            if table == MEMBERSHIPS {
                store::open_step(tx, tenant, ACCOUNTS, place).await?;
            }
            place += 1;
        }
        if let Some(own) = &survey.place {
            let first = if own.is_at_hand() { place } else { -1 };
            store::open_place(tx, tenant, &own.name(), first, own.is_at_hand()).await?;
        }
        store::set_state(tx, tenant, EraseState::Running, None, None).await?;
        Ok(EraseStep::Begun)
    }

    async fn go_on(
        &self,
        mut tx: SystemTx,
        erasure: Erasure,
        reached: &mut Reached,
    ) -> Result<Option<EraseStep>, TenancyError> {
        let tenant = erasure.tenant;
        let step = match store::next(&mut tx, tenant).await? {
            Some(Next::Table { name, at_place: false }) => self.batch(&mut tx, tenant, name).await?,
            Some(Next::Table { name, at_place: true }) => {
                let mut place = self.place(&mut tx, tenant).await?.reusing(reached.take());
                let rows = place.erase_batch(&name, self.batch).await?;
                *reached = place.into_pool();
                self.count(&mut tx, tenant, (name, true), (rows, rows)).await?
            }
            Some(Next::Shut) => {
                let mut place = self.place(&mut tx, tenant).await?.reusing(reached.take());
                self.shut(&mut tx, tenant, &mut place).await?;
                *reached = place.into_pool();
                EraseStep::PlaceShut
            }
            Some(Next::Remove) => return self.remove(tx, &erasure, reached).await.map(Some),
            None => return Ok(None),
        };
        tx.commit().await?;
        Ok(Some(step))
    }

    /// The place that a step was listed for.
    async fn place(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<Place<'_>, TenancyError> {
        match Place::find(tx, self.provisioner.as_ref(), tenant).await? {
            Ok(place) => place.ok_or_else(|| CoreError::NotFound { what: "place of the erasure" }.into()),
            Err(obstacle) => Err(TenancyError::EraseBlocked { obstacles: vec![obstacle], dependents: Vec::new() }),
        }
    }

    /// Closes the place's door for good and lists its tables, with their rows.
    async fn shut(&self, tx: &mut SystemTx, tenant: TenantId, own: &mut Place<'_>) -> Result<(), TenancyError> {
        own.shut().await?;
        let contents = own.survey().await?;
        if !contents.obstacles.is_empty() {
            return Err(TenancyError::EraseBlocked { obstacles: contents.obstacles, dependents: Vec::new() });
        }
        let mut place = 0;
        for (table, rows) in &contents.order {
            store::open_step_at_place(tx, tenant, table, place, *rows).await?;
            place += 1;
        }
        for (table, rows, reason) in &contents.kept {
            store::keep_step(tx, tenant, (table, true), *rows, reason, self.clock.now()).await?;
        }
        store::set_shut(tx, tenant, place).await?;
        Ok(())
    }

    /// Removes the emptied place, unless something in it is kept.
    ///
    /// The removal is done without the tenant's row locked: to drop a schema takes a lock on the table itself. Two at once
    /// do no harm, since nobody makes a new place for a tenant that is being erased.
    async fn remove(
        &self,
        mut tx: SystemTx,
        erasure: &Erasure,
        reached: &mut Reached,
    ) -> Result<EraseStep, TenancyError> {
        let (tenant, now) = (erasure.tenant, self.clock.now());
        let mut own = self.place(&mut tx, tenant).await?.reusing(reached.take());
        let listed = erasure.tables.iter().filter(|table| table.at_place && table.kept_reason.is_some());
        let mut kept: Vec<String> = listed.map(|table| table.name.clone()).collect();
        if own.is_at_hand() {
            for (table, _) in self.survey(&mut tx, tenant).await?.kept {
                if own.holds(&table) && catalog::count(&mut tx, &table, tenant).await? != Some(0) {
                    kept.push(table);
                }
            }
        }
        if !kept.is_empty() {
            let reason = format!("rows in it are kept: {}", kept.join(", "));
            store::keep_step(&mut tx, tenant, ("", true), 0, &reason, now).await?;
            tx.commit().await?;
            return Ok(EraseStep::PlaceKept);
        }
        tx.rollback().await?;
        own.clear().await?;
        let mut tx = SystemTx::begin(&self.system, RUN, "note that a tenant's place is gone").await?;
        lifecycle::lock_tenant(&mut tx, tenant).await?;
        store::find_locked(&mut tx, tenant).await?;
        if store::next(&mut tx, tenant).await? == Some(Next::Remove) {
            own.retire(&mut tx).await?;
            store::count_step(&mut tx, tenant, ("", true), 0, Some(now)).await?;
            tx.commit().await?;
        }
        Ok(EraseStep::PlaceRemoved)
    }

    async fn batch(&self, tx: &mut SystemTx, tenant: TenantId, table: String) -> Result<EraseStep, TenancyError> {
        let done = if table == ACCOUNTS {
            store::erase_accounts(tx, tenant, self.batch).await?
        } else {
            let rows = catalog::erase_batch(tx, &table, tenant, self.batch).await?;
            (rows, rows)
        };
        self.count(tx, tenant, (table, false), done).await
    }

    async fn count(
        &self,
        tx: &mut SystemTx,
        tenant: TenantId,
        (table, at_place): (String, bool),
        (looked, rows): (i64, i64),
    ) -> Result<EraseStep, TenancyError> {
        let finished_at = (looked == 0).then(|| self.clock.now());
        store::count_step(tx, tenant, (&table, at_place), rows, finished_at).await?;
        Ok(match finished_at {
            Some(_) => EraseStep::Emptied { table },
            None => EraseStep::Erased { table, rows: u64::try_from(rows).unwrap_or(0) },
        })
    }

    /// Looks whether anything is left, in whatever tables there are by now, and buries the tenant.
    async fn finish(&self, tx: &mut SystemTx, erasure: Erasure) -> Result<EraseStep, TenancyError> {
        let (tenant, now) = (erasure.tenant, self.clock.now());
        let survey = self.survey(tx, tenant).await?;
        survey.must_be_possible()?;
        let mut is_left = false;
        for (place, table) in (0..).zip(&survey.order) {
            if catalog::count(tx, table, tenant).await? != Some(0) {
                is_left = true;
                store::open_step(tx, tenant, table, place).await?;
            }
        }
        if is_left {
            store::set_state(tx, tenant, EraseState::Running, None, None).await?;
            return Ok(EraseStep::Begun);
        }
        if erasure.state == EraseState::Done {
            return Ok(EraseStep::Done(Box::new(erasure)));
        }
        store::bury(tx, tenant, erasure.frees_slug).await?;
        lifecycle::change_in(tx, tenant, State::Erased, &RUN, &erasure.reason, now).await?;
        store::set_state(tx, tenant, EraseState::Done, None, Some(now)).await?;
        for (table, reason) in &survey.kept {
            let rows = catalog::count(tx, table, tenant).await?.unwrap_or(0);
            store::keep_step(tx, tenant, (table, false), rows, reason, now).await?;
        }
        let done = store::find(tx, tenant).await?.ok_or(CoreError::NotFound { what: "erasure" })?;
        Ok(EraseStep::Done(Box::new(done)))
    }

    /// Puts a failure on record, if the erasure had begun.
    async fn fail(&self, tenant: TenantId, code: &'static str) -> Result<(), TenancyError> {
        let mut tx = SystemTx::begin(&self.system, RUN, "record that an erasure failed").await?;
        lifecycle::lock_tenant(&mut tx, tenant).await?;
        let running = store::find_locked(&mut tx, tenant).await?.filter(|found| found.state == EraseState::Running);
        if running.is_none() {
            return Ok(());
        }
        store::set_state(&mut tx, tenant, EraseState::Failed, Some(code), None).await?;
        record(&mut tx, tenant, &RUN, "tenant.erase_failed", json!({ "code": code }), self.clock.now()).await?;
        revision::bump_in(&mut tx, tenant).await?;
        Ok(tx.commit().await?)
    }
}
