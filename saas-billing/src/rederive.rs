//! What a tenant has, stored when it changes; and derived anew when the rules did.
//!
//! Owns the one place that writes the state, the revenue, the operators' list and the revision, in the caller's transaction. The objects
//! are the caller's to load and store.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, PageSize, SystemTx, TenantContext, TenantId, audit, revision, subscription, tenant};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{
    billing::Billing,
    derive::Derived,
    error::BillingError,
    postgres::{fetch, object, state},
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
    /// To be called after a price was added to a plan, which an event of the tenant does too, and after the grace policy was
    /// changed, which only this records.
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
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "derive anew what a tenant has").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let mut objects = object::load(&mut tx, tenant, self.scope.livemode, &[]).await?;
        self.load_unseen(&mut tx, tenant, &mut objects).await?;
        let derived = self.derive_in(&mut tx, &objects).await?;
        let mut change = self.write_derived(&mut tx, tenant, &derived, (false, now), now).await?;
        if !change.is_recorded {
            // The same objects can mean something else: under another grace policy, say.
            let source = self.scope.plan_record();
            let recorded = subscription::recorded_in(&mut tx, tenant, source, DateTime::<Utc>::MAX_UTC).await?;
            if recorded.and_then(|recorded| recorded.assignment)
                != derived.on_record(&self.config.grace, self.default_plan())
            {
                let paying = self.record_revenue(&mut tx, tenant, (&derived, &derived), (now, now)).await?;
                state::show(&mut tx, tenant, &derived, &self.config.grace, &paying).await?;
                self.record(&mut tx, &mut change).await?;
            }
        }
        if change.is_change() {
            let subject = tenant.to_string();
            change.record(&mut tx, actor, ("billing.rederived", &subject), json!({}), now).await?;
        }
        tx.commit().await?;
        Ok(change.is_change())
    }

    /// Stores what was derived if it is new, and puts on the list what must be fetched, if it is or an object is. `at` is when
    /// the change happened, by Stripe's clock.
    pub(crate) async fn write_derived(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        derived: &Derived,
        (object_changed, at): (bool, DateTime<Utc>),
        now: DateTime<Utc>,
    ) -> Result<Change, CoreError> {
        let livemode = self.scope.livemode;
        let previous = state::find(connection, tenant, livemode).await?.unwrap_or_default();
        let stored = Derived { fetches: Default::default(), ..derived.clone() };
        let mut change = Change { tenant, previous, stored, is_recorded: false };
        if object_changed || change.is_change() {
            for request in &derived.fetches {
                fetch::request(connection, &self.scope, request, now).await?;
            }
        }
        if change.is_change() {
            state::store(connection, tenant, livemode, &change.stored, now).await?;
            let derived = (&change.previous, &change.stored);
            let paying = self.record_revenue(connection, tenant, derived, (at, now)).await?;
            state::show(connection, tenant, &change.stored, &self.config.grace, &paying).await?;
        }
        if !change.stored.answers_like(&change.previous) {
            self.record(connection, &mut change).await?;
        }
        Ok(change)
    }

    /// Raises the revision, and records what the gate answers from it on. The tenant's row is locked.
    async fn record(&self, connection: &mut PgConnection, change: &mut Change) -> Result<(), CoreError> {
        let (tenant, source) = (change.tenant, self.scope.plan_record());
        let revision = revision::bump_in(connection, tenant).await?;
        let assignment = change.stored.on_record(&self.config.grace, self.default_plan());
        subscription::record_in(connection, tenant, source, revision, assignment.as_ref(), self.clock.now()).await?;
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

    /// Records it, with what the caller has to say about its cause.
    pub(crate) async fn record(
        &self,
        connection: &mut PgConnection,
        actor: &Actor,
        (action, subject): (&'static str, &str),
        mut detail: Value,
        now: DateTime<Utc>,
    ) -> Result<(), CoreError> {
        detail["plan"] = json!(self.stored.plan.as_ref().map(ToString::to_string));
        detail["previous_plan"] = json!(self.previous.plan.as_ref().map(ToString::to_string));
        detail["unpaid_since"] = json!(self.stored.unpaid_since);
        detail["alerts"] = json!(self.stored.alerts);
        let entry = audit::Entry::new(action, subject).with_detail(detail);
        audit::record_in(connection, self.tenant, actor, entry, now).await?;
        Ok(())
    }
}
