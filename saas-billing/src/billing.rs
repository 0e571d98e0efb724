//! The service: what an adopter holds.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, PlanKey, SessionBinding, SharedClock, SystemPool, SystemTx, TenantContext, TenantId, TenantTx,
    subscription::{PlanAssignment, PlanSource},
};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use crate::{
    config::BillingConfig,
    derive::Derived,
    door::Door,
    dunning::{DunningException, Held},
    error::BillingError,
    event::Envelope,
    group::ReceiptGroup,
    intake::{Disposition, decide},
    object::{ObjectId, ObjectKind},
    port::{Accepted, WebhookProcessor},
    postgres::{
        Scope,
        body::Packed,
        conflict,
        directory::Link,
        receipt::{self, NewReceipt, State},
        state, storable,
    },
    prices::Prices,
    secrets::PresentSecrets,
};

/// Stripe billing of one account in one mode.
///
/// Cheap to clone. Three things are to be done with it: hand each delivery to [`process`](WebhookProcessor::process), call
/// [`apply_pending`](Self::apply_pending) and [`fetch_pending`](Self::fetch_pending) from a worker, and give it to the
/// entitlements as their [`PlanSource`].
#[derive(Clone)]
pub struct Billing {
    pub(crate) config: Arc<BillingConfig>,
    pub(crate) scope: Scope,
    pub(crate) tenants: Arc<dyn SessionBinding>,
    pub(crate) system: SystemPool,
    group: Arc<ReceiptGroup>,
    pub(crate) secrets: Arc<PresentSecrets>,
    pub(crate) door: Arc<Door>,
    pub(crate) clock: SharedClock,
    pub(crate) prices: Arc<Prices>,
}

impl Billing {
    /// A service over the adopter's pools.
    #[must_use]
    pub fn new(
        config: BillingConfig,
        tenants: Arc<dyn SessionBinding>,
        system: SystemPool,
        clock: SharedClock,
    ) -> Self {
        let scope = Scope::of(&config);
        // Half of what a caller waits: behind an insert that never ends, there is time for another.
        let group = Arc::new(ReceiptGroup::new(system.pool().clone(), config.intake_deadline / 2));
        let secrets = Arc::new(PresentSecrets::new(config.secrets.clone()));
        let prices = Arc::new(Prices::new(config.catalog.clone()));
        Self { config: Arc::new(config), scope, tenants, system, group, secrets, door: Arc::default(), clock, prices }
    }

    /// Links a customer that was made for the tenant. What was delivered about it before is applied from now on.
    ///
    /// # Errors
    /// [`AlreadyLinked`](BillingError::AlreadyLinked) when it belongs to another tenant; nothing is changed then.
    pub async fn link_customer(&self, ctx: &dyn TenantContext, customer: &ObjectId) -> Result<(), BillingError> {
        self.link(ctx, ObjectKind::Customer, customer).await
    }

    /// Remembers a checkout session that was made for the tenant. Only such sessions link the customer that they bring:
    /// what a buyer can write into an address links nothing.
    ///
    /// # Errors
    /// [`AlreadyLinked`](BillingError::AlreadyLinked) when it belongs to another tenant; nothing is changed then.
    pub async fn record_checkout(&self, ctx: &dyn TenantContext, session: &ObjectId) -> Result<(), BillingError> {
        self.link(ctx, ObjectKind::CheckoutSession, session).await
    }

    async fn link(&self, ctx: &dyn TenantContext, kind: ObjectKind, id: &ObjectId) -> Result<(), BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "link a Stripe object to its tenant").await?;
        saas_core::tenant::lock_in(&mut tx, ctx.tenant()).await?;
        self.link_in(&mut tx, (ctx.tenant(), ctx.actor()), (kind, id), now).await?;
        Ok(tx.commit().await?)
    }

    /// Links within a transaction that holds the tenant's lock.
    pub(crate) async fn link_in(
        &self,
        connection: &mut PgConnection,
        (tenant, actor): (TenantId, &Actor),
        (kind, id): (ObjectKind, &ObjectId),
        now: DateTime<Utc>,
    ) -> Result<(), BillingError> {
        match self.link_object(connection, tenant, (kind, id), now).await? {
            Link::Known => return Ok(()),
            Link::Foreign => return Err(BillingError::AlreadyLinked { what: kind.as_str() }),
            Link::New { .. } => {}
        }
        let action = match kind {
            ObjectKind::CheckoutSession => "billing.checkout_opened",
            ObjectKind::Customer
            | ObjectKind::Subscription
            | ObjectKind::Invoice
            | ObjectKind::Charge
            | ObjectKind::Refund
            | ObjectKind::Dispute
            | ObjectKind::CreditNote => "billing.customer_linked",
        };
        let entry = saas_core::audit::Entry::new(action, id);
        saas_core::audit::record_in(connection, tenant, actor, entry, now).await?;
        Ok(())
    }

    /// What follows from the tenant's Stripe objects; empty when there are none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn derived(&self, ctx: &dyn TenantContext) -> Result<Derived, BillingError> {
        Ok(self.read(ctx).await?.0)
    }

    /// The plan of who bought nothing.
    pub(crate) fn default_plan(&self) -> &PlanKey {
        &self.config.catalog.default_version().reference().plan
    }

    async fn read(&self, ctx: &dyn TenantContext) -> Result<(Derived, Option<DunningException>), CoreError> {
        let mut tx = TenantTx::begin(self.tenants.as_ref(), ctx).await?;
        let (derived, exception) = state::find_with_exception(&mut tx, ctx.tenant(), self.scope.livemode).await?;
        tx.commit().await?;
        Ok((derived.unwrap_or_default(), exception))
    }

    /// What was derived, with the terms of its plan and of the exception.
    pub(crate) fn held_with<'a>(&self, derived: &'a Derived, exception: Option<&DunningException>) -> Held<'a> {
        let plan = derived.plan.as_ref().map(|version| &version.plan);
        Held { derived, terms: self.config.terms(plan, exception) }
    }

    /// Stores a receipt within the deadline. `false` when the event is already there.
    pub(crate) async fn store(&self, new: NewReceipt) -> Result<bool, BillingError> {
        let deadline = self.config.intake_deadline;
        match tokio::time::timeout(deadline, self.group.store(new)).await {
            // It may be stored or not: delivered again, it is recognised.
            Ok(Err(CoreError::OutcomeUnknown { .. })) | Err(_) => {
                Err(BillingError::TooSlow { seconds: deadline.as_secs() })
            }
            Ok(stored) => Ok(stored?),
        }
    }

    /// A receipt that is there already: quarantined by an endpoint that it was not for, the same body again, or another
    /// one under the same id.
    async fn repeated(
        &self,
        (scope, event_id): (&Scope, &str),
        body: &[u8],
        disposition: Disposition,
        now: DateTime<Utc>,
    ) -> Result<Accepted, BillingError> {
        let pool = self.system.pool();
        let (state, reason, accepted) = outcome(disposition);
        let compare = async {
            if state != State::Quarantined
                && receipt::admit(pool, (scope, event_id), &Packed::of(body), state, reason, now).await?
            {
                return Ok(accepted);
            }
            if !conflict::contradicts(pool, scope, event_id, body).await? {
                return Ok(Accepted::Duplicate);
            }
            conflict::store(pool, scope, event_id, body, now).await?;
            tracing::error!(target: "saas.billing.webhook.receive", event_id, "one event id, two bodies");
            Ok(Accepted::Conflict)
        };
        let deadline = self.config.intake_deadline;
        match tokio::time::timeout(deadline, compare).await {
            Ok(compared) => compared,
            Err(_) => Err(BillingError::TooSlow { seconds: deadline.as_secs() }),
        }
    }

    pub(crate) async fn receive_unreadable(
        &self,
        body: &[u8],
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<Accepted, BillingError> {
        // Without a readable id the content is the name.
        let event_id = format!("sha256:{}", hex::encode(Sha256::digest(body)));
        let new = NewReceipt {
            scope: self.scope.clone(),
            event_id: event_id.clone(),
            event_type: String::new(),
            created: None,
            api_version: None,
            customer: None,
            body: Packed::of(body),
            state: State::Dead,
            reason: Some(storable(reason)),
            quarantined_by: None,
            received_at: now,
        };
        tracing::error!(target: "saas.billing.webhook.receive", event_id, reason, "an event that cannot be read");
        Ok(if self.store(new).await? { Accepted::Unreadable } else { Accepted::Duplicate })
    }
}

#[async_trait]
impl WebhookProcessor for Billing {
    fn body_limit(&self) -> usize {
        self.config.body_limit
    }

    fn body_deadline(&self) -> std::time::Duration {
        self.config.body_deadline
    }

    #[tracing::instrument(name = "saas.billing.webhook.receive", level = "debug", skip_all, fields(bytes = body.len()))]
    async fn process(&self, body: &[u8], signature: &str) -> Result<Accepted, BillingError> {
        if body.len() > self.config.body_limit {
            return Err(BillingError::TooLarge { bytes: body.len(), limit: self.config.body_limit });
        }
        let now = self.clock.now();
        self.door.saw(self.secrets.get().age(body, signature, now))?;
        let envelope = match Envelope::read(body) {
            Ok(envelope) => envelope,
            Err(why) => return self.receive_unreadable(body, &why.to_string(), now).await,
        };
        let disposition = decide(&envelope, self.config.mode, self.config.account.as_ref());
        let (_, _, accepted) = outcome(disposition);
        let scope = Scope {
            account: envelope.account.as_ref().map(ToString::to_string).unwrap_or_default(),
            livemode: envelope.livemode,
        };
        let event_id = envelope.id.as_str();
        if self.config.api_version.is_some() && self.config.api_version != envelope.api_version {
            let found = envelope.api_version.as_deref().unwrap_or("none");
            tracing::warn!(target: "saas.billing.webhook.receive", event_id, found, "an event of another API version");
        }
        let new = receipt_of(&scope, &envelope, body, disposition, &self.scope, now);
        if self.store(new).await? {
            return Ok(accepted);
        }
        self.repeated((&scope, event_id), body, disposition, now).await
    }
}

/// What is stored of an event that came to `endpoint`.
pub(crate) fn receipt_of(
    scope: &Scope,
    envelope: &Envelope<'_>,
    body: &[u8],
    disposition: Disposition,
    endpoint: &Scope,
    now: DateTime<Utc>,
) -> NewReceipt {
    let (state, reason, _) = outcome(disposition);
    NewReceipt {
        scope: scope.clone(),
        event_id: envelope.id.to_string(),
        event_type: envelope.event_type.to_string(),
        created: Some(envelope.created),
        api_version: envelope.api_version.clone(),
        customer: (state == State::Pending).then(|| envelope.content.customer()).flatten(),
        body: Packed::of(body),
        state,
        reason: reason.map(str::to_owned),
        quarantined_by: (state == State::Quarantined).then(|| endpoint.endpoint()),
        received_at: now,
    }
}

/// How a delivery is stored, why, and what is answered.
const fn outcome(disposition: Disposition) -> (State, Option<&'static str>, Accepted) {
    match disposition {
        Disposition::Apply => (State::Pending, None, Accepted::Stored),
        Disposition::Ignore(reason) => (State::Ignored, Some(reason), Accepted::Ignored),
        Disposition::Quarantine(reason) => (State::Quarantined, Some(reason), Accepted::Quarantined),
    }
}

#[async_trait]
impl PlanSource for Billing {
    async fn plan_of(&self, ctx: &dyn TenantContext, now: DateTime<Utc>) -> Result<PlanAssignment, CoreError> {
        let (derived, exception) = self.read(ctx).await?;
        let terms = self.held_with(&derived, exception.as_ref()).terms;
        Ok(derived.assignment(&terms, self.default_plan(), now))
    }

    fn recorded_as(&self) -> Option<&'static str> {
        Some(self.scope.plan_record())
    }
}

impl fmt::Debug for Billing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Billing").field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// Who acts when an event is applied.
pub(crate) const ACTOR: Actor = Actor::system("billing");
