//! One live subscription per tenant: one open page at a time, and none beside a subscription.

use chrono::TimeDelta;
use saas_core::{InvalidInput, JobId, SystemTx, TenantContext, TenantId, tenant};

use super::{
    Wish,
    page::{Checkout, CheckoutPage},
};
use crate::{
    billing::Billing,
    derive::Derived,
    error::BillingError,
    object::{ObjectId, ObjectKind},
    postgres::{
        command::{self, Asked, Slot, Stage},
        state, trial,
    },
    provider::{NewDiscount, PaymentProvider, ProviderError},
};

/// How long what a trial is claimed by is kept for one tenant: a page lives a day, and its event may come three days late.
const TRIAL_CLAIM: TimeDelta = TimeDelta::days(5);

/// Looks at a tenant that changes under us, in one call.
const ROUNDS: usize = 6;

/// What stands in the way of a new page.
enum Claim {
    /// Nothing: the page is asked for, by this command.
    Held {
        id: JobId,
        /// It may not have been sent yet.
        unsent: bool,
    },
    Subscribed(ObjectId),
    /// A page for another wish, or one that is over.
    Other(Box<Asked>),
}

impl Billing {
    /// Opens Stripe's page on which the tenant subscribes.
    ///
    /// Safe to call twice, at once, and from two tabs: equal wishes lead to one page, another wish closes the page before, and
    /// a tenant with a live subscription gets none. If Stripe does not answer, call again: the same page comes.
    ///
    /// # Errors
    /// [`Invalid`](BillingError::Invalid) when no price is one of a plan, or when there is a discount and a field for promotion
    /// codes; [`Provider`](BillingError::Provider) with [`Missing`](ProviderError::Missing) and the discount's id when Stripe does not
    /// know that; [`TrialUsed`](BillingError::TrialUsed) when a trial was
    /// asked for and there was one, of this tenant or of one with the same fingerprint; [`Provider`](BillingError::Provider) when Stripe
    /// refuses or does not answer.
    pub async fn checkout(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        page: &CheckoutPage,
    ) -> Result<Checkout, BillingError> {
        if !page.items.iter().any(|(price, _)| self.catalog().plan_for_price(price.as_str()).is_some()) {
            return Err(InvalidInput::new(
                "the checkout",
                "sells no price of a plan",
                "add the price to a plan's `prices` in the catalogue, or pass one that is there",
            )
            .into());
        }
        if page.promotion_codes && page.discount.is_some() {
            return Err(InvalidInput::new(
                "the checkout",
                "takes a discount and has a field for promotion codes, which Stripe refuses",
                "choose one of the two",
            )
            .into());
        }
        let customer = self.ensure_customer(provider, ctx, &page.details).await?;
        match self.open_page(provider, ctx, page, customer.clone()).await {
            // Perhaps the customer was deleted and no event has told of it. What is taken off is told by its id.
            Err(BillingError::Provider(ProviderError::Missing { id }))
                if id.is_none() || id.as_ref() != page.discount.as_ref().map(NewDiscount::id) =>
            {
                let _ = self.read_in(provider, ctx.tenant(), ObjectKind::Customer, &customer).await?;
                let present = self.ensure_customer(provider, ctx, &page.details).await?;
                if present == customer {
                    return Err(ProviderError::Missing { id }.into());
                }
                self.open_page(provider, ctx, page, present).await
            }
            outcome => outcome,
        }
    }

    async fn open_page(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        page: &CheckoutPage,
        customer: ObjectId,
    ) -> Result<Checkout, BillingError> {
        let (tenant, subject) = (ctx.tenant(), page.subject());
        for _ in 0..ROUNDS {
            match self.claim(ctx, page, &customer, &subject).await? {
                Claim::Subscribed(subscription) => return Ok(Checkout::Subscribed { subscription }),
                Claim::Other(other) => self.make_room(provider, tenant, &other).await?,
                Claim::Held { id, unsent } => {
                    if unsent && let Some(subscription) = self.look_around(provider, tenant, &customer, id).await? {
                        return Ok(Checkout::Subscribed { subscription });
                    }
                    match self.send(provider, tenant, id).await {
                        Ok(made) => {
                            let (session, address, expires_at) = (made.object, made.address, made.expires_at);
                            return Ok(Checkout::Open { session, address, expires_at });
                        }
                        // Another call made room for another wish meanwhile.
                        Err(BillingError::CommandFailed { code }) if code == "over" => {}
                        Err(why) => return Err(why),
                    }
                }
            }
        }
        Err(ProviderError::RateLimited { retry_after: None }.into())
    }

    async fn claim(
        &self,
        ctx: &dyn TenantContext,
        page: &CheckoutPage,
        customer: &ObjectId,
        subject: &str,
    ) -> Result<Claim, BillingError> {
        let (now, tenant) = (self.clock.now(), ctx.tenant());
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "claim the tenant's checkout").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let derived = state::find(&mut tx, tenant, self.scope.livemode).await?.unwrap_or_default();
        if let Some(subscription) = live(&derived) {
            tx.commit().await?;
            return Ok(Claim::Subscribed(subscription));
        }
        if let Some(marks) = page.trial_marks() {
            let of = (tenant, &self.scope);
            let had = trial::consumed_at(&mut tx, of).await?.is_some();
            if had || trial::claim(&mut tx, of, marks, (now, now + TRIAL_CLAIM)).await? < marks.len() as u64 {
                // What was claimed of several is let go with this transaction.
                tx.rollback().await?;
                return Err(BillingError::TrialUsed);
            }
        }
        let claim = match command::holder(&mut tx, (tenant, &self.scope, Slot::Checkout)).await? {
            None => {
                let wish = Wish { what: "open_checkout", slot: Some(Slot::Checkout), subject: Some(subject) };
                let command = |id| page.command(customer.clone(), tenant, id);
                Claim::Held { id: self.ask(&mut tx, tenant, wish, command, now).await?, unsent: true }
            }
            Some(holder) => {
                let over = match &holder.stage {
                    Stage::Done(made) => made.expires_at.is_some_and(|at| at <= now),
                    Stage::Pending(_) | Stage::Failed(_) | Stage::Closed => false,
                };
                if holder.subject.as_deref() == Some(subject) && !over {
                    Claim::Held { id: holder.id, unsent: matches!(holder.stage, Stage::Pending(_)) }
                } else {
                    Claim::Other(Box::new(holder))
                }
            }
        };
        tx.commit().await?;
        Ok(claim)
    }

    /// Closes the page of another wish, or finds that it was paid on.
    async fn make_room(
        &self,
        provider: &dyn PaymentProvider,
        tenant: TenantId,
        other: &Asked,
    ) -> Result<(), BillingError> {
        // One that has no answer yet may be open: its session must be known before it can be closed.
        let session = match self.send(provider, tenant, other.id).await {
            Ok(made) => made.object,
            Err(BillingError::CommandFailed { .. }) => return Ok(()),
            Err(BillingError::Provider(why)) if super::is_final(&why) => return Ok(()),
            Err(why) => return Err(why),
        };
        self.close_session(provider, tenant, &session, &format!("{}-close", other.id)).await
    }
}

/// The subscription that a new one would be beside.
fn live(derived: &Derived) -> Option<ObjectId> {
    derived.subscription.clone()
}
