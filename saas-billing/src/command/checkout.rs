//! One live subscription per tenant: one open page at a time, and none beside a subscription.

use chrono::{DateTime, Utc};
use saas_core::{IdempotencyKey, InvalidInput, JobId, SystemTx, TenantContext, TenantId, tenant};
use serde::Deserialize;

use super::{
    CustomerDetails, Wish,
    customer::metadata,
    recover::{self},
};
use crate::{
    billing::{ACTOR, Billing},
    derive::Derived,
    error::BillingError,
    object::{CheckoutStatus, ObjectId, ObjectKind, SubscriptionStatus},
    postgres::{
        command::{self, Asked, Slot, Stage},
        object, state,
    },
    provider::{
        Command, Fetched, NewCheckout, PageLimit, PaymentProvider, ProviderError, Query, Reply, TrialPayment,
        WebAddress,
    },
};

/// Looks at a tenant that changes under us, in one call.
const ROUNDS: usize = 6;

/// What a tenant wants to buy.
#[derive(Debug, Clone)]
pub struct CheckoutPage {
    items: Vec<(ObjectId, Option<u64>)>,
    success: WebAddress,
    cancel: WebAddress,
    details: CustomerDetails,
    trial_days: Option<u32>,
    trial_payment: TrialPayment,
    promotion_codes: bool,
    automatic_tax: bool,
    tax_ids: bool,
}

impl CheckoutPage {
    /// A page that sells a price so many times (`None` for a metered one), and leads to these addresses.
    #[must_use]
    pub fn new(price: ObjectId, quantity: Option<u64>, success: WebAddress, cancel: WebAddress) -> Self {
        Self {
            items: vec![(price, quantity)],
            success,
            cancel,
            details: CustomerDetails::default(),
            trial_days: None,
            trial_payment: TrialPayment::Required,
            promotion_codes: false,
            automatic_tax: false,
            tax_ids: false,
        }
    }

    /// Sells another price with it: an add-on, or metered usage.
    #[must_use]
    pub fn with_item(mut self, price: ObjectId, quantity: Option<u64>) -> Self {
        self.items.push((price, quantity));
        self
    }

    /// What stands on invoices, if the customer is not there yet.
    #[must_use]
    pub fn with_details(mut self, details: CustomerDetails) -> Self {
        self.details = details;
        self
    }

    /// Begins with a trial.
    #[must_use]
    pub const fn with_trial(mut self, days: u32, payment: TrialPayment) -> Self {
        (self.trial_days, self.trial_payment) = (Some(days), payment);
        self
    }

    /// Has a field for promotion codes.
    #[must_use]
    pub const fn with_promotion_codes(mut self) -> Self {
        self.promotion_codes = true;
        self
    }

    /// Lets Stripe compute taxes.
    #[must_use]
    pub const fn with_automatic_tax(mut self) -> Self {
        self.automatic_tax = true;
        self
    }

    /// Asks for tax ids.
    #[must_use]
    pub const fn with_tax_ids(mut self) -> Self {
        self.tax_ids = true;
        self
    }

    /// Equal wishes have equal subjects: they are served by one session.
    fn subject(&self) -> String {
        let hash = crate::merge::ContentHash::of(&(
            &self.items,
            &self.success,
            &self.cancel,
            self.trial_days,
            self.trial_payment,
            (self.promotion_codes, self.automatic_tax, self.tax_ids),
        ));
        hash.as_str().to_owned()
    }

    fn command(&self, customer: ObjectId, tenant: TenantId, id: JobId) -> Command {
        Command::OpenCheckout(NewCheckout {
            customer,
            items: self.items.clone(),
            success: self.success.clone(),
            cancel: self.cancel.clone(),
            trial_days: self.trial_days,
            trial_payment: self.trial_payment,
            promotion_codes: self.promotion_codes,
            automatic_tax: self.automatic_tax,
            tax_ids: self.tax_ids,
            metadata: metadata(tenant, id),
        })
    }
}

/// Where the buyer goes from here.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkout {
    /// To Stripe's page.
    Open {
        /// `cs_…`
        session: ObjectId,
        /// Where.
        address: Option<WebAddress>,
        /// Until when.
        expires_at: Option<DateTime<Utc>>,
    },
    /// Nowhere: the tenant has a subscription, which can be changed.
    Subscribed {
        /// `sub_…`
        subscription: ObjectId,
    },
}

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
    /// [`Invalid`](BillingError::Invalid) when no price is one of a plan; [`Provider`](BillingError::Provider) when Stripe
    /// refuses or does not answer.
    pub async fn checkout(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        page: &CheckoutPage,
    ) -> Result<Checkout, BillingError> {
        if !page.items.iter().any(|(price, _)| self.config.catalog.plan_for_price(price.as_str()).is_some()) {
            return Err(InvalidInput::new(
                "the checkout",
                "sells no price of a plan",
                "add the price to a plan's `prices` in the catalogue, or pass one that is there",
            )
            .into());
        }
        let customer = self.ensure_customer(provider, ctx, &page.details).await?;
        match self.open_page(provider, ctx, page, customer.clone()).await {
            // Perhaps the customer was deleted and no event has told of it.
            Err(BillingError::Provider(ProviderError::Missing { id })) => {
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

    async fn close_session(
        &self,
        provider: &dyn PaymentProvider,
        tenant: TenantId,
        session: &ObjectId,
        key: &str,
    ) -> Result<(), BillingError> {
        let key = IdempotencyKey::try_from(key.to_owned())?;
        match provider.execute(&Command::ExpireCheckout(session.clone()), &key).await {
            Ok(_) | Err(ProviderError::WrongState { .. } | ProviderError::Missing { .. }) => {}
            // A key that is spent says nothing about the session; a look does.
            Err(why) if why.is_key_spent() => {}
            Err(why) => return Err(why.into()),
        }
        // Whatever was answered, and whenever: what it is now.
        let Some(status) = self.read_session(provider, tenant, session).await? else {
            return self.free_slot(tenant, session).await;
        };
        match status {
            CheckoutStatus::Open | CheckoutStatus::Other(_) => {
                Err(ProviderError::Unavailable { cause: "a checkout session that does not close".into() }.into())
            }
            CheckoutStatus::Complete | CheckoutStatus::Expired => self.free_slot(tenant, session).await,
        }
    }

    /// Reads a session and merges it, with the subscription that was bought on it.
    async fn read_session(
        &self,
        provider: &dyn PaymentProvider,
        tenant: TenantId,
        session: &ObjectId,
    ) -> Result<Option<CheckoutStatus>, BillingError> {
        #[derive(Deserialize)]
        struct Bought {
            status: CheckoutStatus,
            #[serde(default)]
            subscription: Option<ObjectId>,
        }
        let Some(object) = self.read_in(provider, tenant, ObjectKind::CheckoutSession, session).await? else {
            return Ok(None);
        };
        let unreadable = |_| ProviderError::Unreadable { what: "a checkout session" };
        let bought: Bought = serde_json::from_str(object.object.get()).map_err(unreadable)?;
        if let Some(subscription) = &bought.subscription {
            let _ = self.read_in(provider, tenant, ObjectKind::Subscription, subscription).await?;
        }
        Ok(Some(bought.status))
    }

    /// Reads an object of the tenant and merges it.
    async fn read_in(
        &self,
        provider: &dyn PaymentProvider,
        tenant: TenantId,
        kind: ObjectKind,
        id: &ObjectId,
    ) -> Result<Option<Reply>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look at what is known before a read").await?;
        let known = object::find_anywhere(&mut tx, self.scope.livemode, id).await?;
        tx.commit().await?;
        let reply = match provider.fetch(kind, id).await? {
            Fetched::Found { object, as_of } => Reply { object, as_of, replayed: false },
            Fetched::Missing => return Ok(None),
        };
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "merge what was read").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        self.merge_answer(&mut tx, known.as_ref(), &reply, "checkout", now).await?;
        tx.commit().await?;
        Ok(Some(reply))
    }

    async fn free_slot(&self, tenant: TenantId, session: &ObjectId) -> Result<(), BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "free the tenant's checkout").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        command::close(&mut tx, (tenant, &self.scope), session).await?;
        Ok(tx.commit().await?)
    }

    /// Before a new page: closes open pages that others made for the customer, and finds a subscription that no event has
    /// told of.
    async fn look_around(
        &self,
        provider: &dyn PaymentProvider,
        tenant: TenantId,
        customer: &ObjectId,
        id: JobId,
    ) -> Result<Option<ObjectId>, BillingError> {
        let query = Query::OpenCheckouts { customer: customer.clone() };
        for object in provider.list(&query, None, PageLimit::MAX).await?.objects {
            let session = Reply { object, as_of: None, replayed: false };
            if recover::mark(&session.object) != Some(id) {
                let session = session.id()?;
                self.close_session(provider, tenant, &session, &format!("{id}-close-{session}")).await?;
            }
        }
        let query = Query::Subscriptions { customer: Some(customer.clone()) };
        for object in provider.list(&query, None, PageLimit::MAX).await?.objects {
            #[derive(Deserialize)]
            struct Standing {
                id: ObjectId,
                status: SubscriptionStatus,
            }
            let Ok(found) = serde_json::from_str::<Standing>(object.get()) else { continue };
            let gives_access = match found.status {
                SubscriptionStatus::Trialing
                | SubscriptionStatus::Active
                | SubscriptionStatus::PastDue
                | SubscriptionStatus::Unpaid
                | SubscriptionStatus::Paused
                | SubscriptionStatus::Other(_) => true,
                SubscriptionStatus::Incomplete
                | SubscriptionStatus::IncompleteExpired
                | SubscriptionStatus::Canceled => false,
            };
            if gives_access {
                let _ = self.read_in(provider, tenant, ObjectKind::Subscription, &found.id).await?;
                let mut tx = SystemTx::begin(&self.system, ACTOR, "withdraw a checkout that is not needed").await?;
                command::fail(&mut tx, (tenant, &self.scope, id), "subscribed", self.clock.now()).await?;
                tx.commit().await?;
                return Ok(Some(found.id));
            }
        }
        Ok(None)
    }
}

/// The subscription that a new one would be beside.
fn live(derived: &Derived) -> Option<ObjectId> {
    derived.subscription.clone()
}
