//! What a tenant has, stored when it changes; and derived anew when the rules did.
//!
//! Owns the one place that writes the state, the revenue, the operators' list and the revision, in the caller's transaction. The objects
//! are the caller's to load and store.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, PageSize, SystemTx, TenantContext, TenantId, audit, subscription, tenant};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{
    alerts,
    billing::Billing,
    derive::Derived,
    dunning::{DunningException, DunningTerms, Held},
    error::BillingError,
    postgres::{
        dunning::{self, Head},
        fetch, object, recorded,
        revenue::Paying,
        state,
    },
};

/// What was stored about a tenant before and after.
#[derive(Debug)]
pub(crate) struct Change {
    tenant: TenantId,
    previous: Derived,
    stored: Derived,
    /// Whether the answer about the plan changed.
    is_recorded: bool,
}

/// What a page of [`Billing::rederive_all`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rederived {
    /// Tenants looked at.
    pub tenants: usize,
    /// Of them, those that have something else now.
    pub changed: usize,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<RederiveCursor>,
}

/// A place among the tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RederiveCursor(TenantId);

impl Billing {
    /// Derives what the tenant has from its stored objects, with the catalogue of today. Returns whether that is a change;
    /// one raises the revision and is audited under the actor of `ctx`.
    ///
    /// To be called after a price was added to a plan, which an event of the tenant does too, and after the dunning policy
    /// was changed, which only this records and puts messages off by.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn rederive(&self, ctx: &dyn TenantContext) -> Result<bool, BillingError> {
        self.rederive_as(ctx.actor(), ctx.tenant()).await
    }

    /// As [`rederive`](Self::rederive) for a page of the tenants that Stripe has told of, each in a transaction of its own:
    /// what is done stays done when a later one fails, and repeating a page is harmless.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn rederive_all(
        &self,
        actor: &Actor,
        after: Option<RederiveCursor>,
        size: PageSize,
    ) -> Result<Rederived, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "list tenants to derive anew").await?;
        let after = after.map(|cursor| cursor.0);
        let tenants = state::tenants(&mut tx, self.scope.livemode, after, i64::from(size.get())).await?;
        tx.commit().await?;
        let full = tenants.len() == usize::from(size.get());
        let next = tenants.last().copied().filter(|_| full).map(RederiveCursor);
        let mut page = Rederived { next, ..Rederived::default() };
        for tenant in tenants {
            page.tenants += 1;
            page.changed += usize::from(self.rederive_as(actor, tenant).await?);
        }
        Ok(page)
    }

    async fn rederive_as(&self, actor: &Actor, tenant: TenantId) -> Result<bool, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "derive anew what a tenant has").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let exception = dunning::exception(&mut tx, tenant, self.scope.livemode).await?;
        let changed = self.rederive_in(&mut tx, actor, tenant, exception.as_ref()).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Derives anew within a transaction that holds the tenant's lock. `former` is the exception from the dunning policy that
    /// held until now.
    pub(crate) async fn rederive_in(
        &self,
        connection: &mut PgConnection,
        actor: &Actor,
        tenant: TenantId,
        former: Option<&DunningException>,
    ) -> Result<bool, BillingError> {
        let now = self.clock.now();
        let (mut objects, previous) = object::load(connection, tenant, self.scope.livemode, &[]).await?;
        self.load_unseen(connection, tenant, &mut objects).await?;
        let derived = self.derive_in(connection, &objects).await?;
        let previous = previous.unwrap_or_default();
        let mut change = self.write_derived(connection, (tenant, previous), &derived, (false, now), now).await?;
        if !change.is_recorded {
            // The same objects can mean something else: under another dunning policy, say.
            let stored = change.stored.clone();
            let known = recorded::load(connection, tenant, self.scope.livemode).await?;
            let (was, held) = (self.held_with(&stored, former), self.held_with(&stored, known.exception.as_ref()));
            let source = self.scope.plan_record();
            let recorded = subscription::recorded_in(connection, tenant, source, DateTime::<Utc>::MAX_UTC).await?;
            if recorded.and_then(|recorded| recorded.assignment) != stored.on_record(&held.terms, self.default_plan()) {
                self.follow(connection, tenant, (&was, &held), false, (known.paying, known.dunning), (now, now))
                    .await?;
                self.record(connection, &mut change, &held.terms).await?;
            } else {
                self.write_dunning(connection, tenant, &held, known.dunning, now).await?;
            }
        }
        if change.is_change() {
            let mut detail = json!({});
            change.describe(&mut detail);
            let entry = audit::Entry::new("billing.rederived", tenant).with_detail(detail);
            audit::record_in(connection, tenant, actor, entry, now).await?;
        }
        Ok(change.is_change())
    }

    /// Stores what was derived if it differs from what is stored, `previous`, and puts on the list what must be fetched, if it is or an object is. `at` is when
    /// the change happened, by Stripe's clock.
    pub(crate) async fn write_derived(
        &self,
        connection: &mut PgConnection,
        (tenant, previous): (TenantId, Derived),
        derived: &Derived,
        (object_changed, at): (bool, DateTime<Utc>),
        now: DateTime<Utc>,
    ) -> Result<Change, CoreError> {
        let livemode = self.scope.livemode;
        let stored = Derived { fetches: Default::default(), ..derived.clone() };
        let mut change = Change { tenant, previous, stored, is_recorded: false };
        if object_changed || change.is_change() {
            for request in &derived.fetches {
                fetch::request(connection, &self.scope, request, now).await?;
            }
        }
        if change.is_change() {
            let known = recorded::load(connection, tenant, livemode).await?;
            let was = self.held_with(&change.previous, known.exception.as_ref());
            let held = self.held_with(&change.stored, known.exception.as_ref());
            self.follow(connection, tenant, (&was, &held), true, (known.paying, known.dunning), (at, now)).await?;
            alerts::tell(tenant, &change.previous, &change.stored);
            if !change.stored.answers_like(&change.previous) {
                let terms = held.terms;
                self.record(connection, &mut change, &terms).await?;
            }
        }
        Ok(change)
    }

    /// Writes what follows from a change of what a tenant has, or of its terms: revenue, the operators' list, dunning; and what
    /// it has, where that `is_new`.
    async fn follow(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        (was, held): (&Held<'_>, &Held<'_>),
        is_new: bool,
        (paying, dunning): (Vec<Paying>, Option<Head>),
        (at, now): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<(), CoreError> {
        let paying = self.record_revenue(connection, tenant, (was, held), paying, (at, now)).await?;
        state::show(connection, (tenant, &self.scope), held, &paying, is_new, now).await?;
        self.write_dunning(connection, tenant, held, dunning, now).await
    }

    /// Raises the revision, and records what the gate answers from it on. The tenant's row is locked.
    async fn record(
        &self,
        connection: &mut PgConnection,
        change: &mut Change,
        terms: &DunningTerms,
    ) -> Result<(), CoreError> {
        let (tenant, source) = (change.tenant, self.scope.plan_record());
        let assignment = change.stored.on_record(terms, self.default_plan());
        subscription::record_next_in(connection, tenant, source, assignment.as_ref(), self.clock.now()).await?;
        change.is_recorded = true;
        Ok(())
    }
}

impl Change {
    pub(crate) fn is_change(&self) -> bool {
        self.is_recorded || self.stored != self.previous
    }

    /// What to call it in the audit log when no fact has a better name.
    pub(crate) fn action(&self) -> &'static str {
        if self.is_change() { "billing.changed" } else { "billing.object_updated" }
    }

    /// Adds to the particulars what it came to.
    pub(crate) fn describe(&self, detail: &mut Value) {
        detail["plan"] = json!(self.stored.plan.as_ref().map(ToString::to_string));
        detail["previous_plan"] = json!(self.previous.plan.as_ref().map(ToString::to_string));
        detail["unpaid_since"] = json!(self.stored.unpaid_since);
        detail["alerts"] = json!(self.stored.alerts);
    }
}
