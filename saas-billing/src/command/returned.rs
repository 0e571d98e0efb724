//! The way back from Stripe's page, on which the buyer may be quicker than the event.

use saas_core::{CoreError, SystemTx, TenantContext};

use crate::{
    billing::{ACTOR, Billing},
    derive::AnyMerged,
    error::BillingError,
    object::{CheckoutStatus, ObjectId},
    postgres::{directory, object},
    provider::PaymentProvider,
};

/// What became of a visit to Stripe's page.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Returned {
    /// The buyer went through with it, and what was bought counts: the gate hears of it as of any change.
    Bought {
        /// `sub_…`; `None` for a page that sells no subscription.
        subscription: Option<ObjectId>,
    },
    /// The page is still open: nothing was bought, or a payment that takes its time is under way.
    Open,
    /// The page is closed, and nothing was bought on it.
    Expired,
}

impl Billing {
    /// For the page that Stripe leads a buyer to: reads the checkout session and what was bought, and merges both, so that
    /// the tenant has what it paid for although no event has come yet. An event that comes later changes nothing.
    ///
    /// Put `{CHECKOUT_SESSION_ID}` into the success address, where Stripe fills in the id. What is known already costs no call to
    /// Stripe, however often the page is loaded.
    ///
    /// # Errors
    /// [`NotFound`](CoreError::NotFound) when the session is not one of this tenant: the id in the address is the visitor's own
    /// word. [`Provider`](BillingError::Provider) when Stripe does not answer; then the event will tell.
    #[tracing::instrument(name = "saas.billing.checkout_returned", level = "debug", skip_all, fields(tenant = %ctx.tenant()))]
    pub async fn checkout_returned(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        session: &ObjectId,
    ) -> Result<Returned, BillingError> {
        let not_found = CoreError::NotFound { what: "checkout session" };
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look whose a checkout session is").await?;
        let owners = directory::tenants_of(&mut tx, &self.scope, &[session.as_str()]).await?;
        if !owners.iter().any(|(_, tenant)| *tenant == ctx.tenant()) {
            return Err(not_found.into());
        }
        let known = object::find_anywhere(&mut tx, self.scope.livemode, session).await?;
        let (status, subscription) = seen(known.as_ref());
        let has_come = match &subscription {
            Some(subscription) => object::find_anywhere(&mut tx, self.scope.livemode, subscription).await?.is_some(),
            None => true,
        };
        tx.commit().await?;
        match status {
            Some(CheckoutStatus::Complete) if has_come => return Ok(Returned::Bought { subscription }),
            Some(CheckoutStatus::Expired) => return Ok(Returned::Expired),
            Some(CheckoutStatus::Complete | CheckoutStatus::Open | CheckoutStatus::Other(_)) | None => {}
        }
        let status = self.read_session(provider, ctx.tenant(), session).await?.ok_or(not_found)?;
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look at what was bought").await?;
        let known = object::find_anywhere(&mut tx, self.scope.livemode, session).await?;
        tx.commit().await?;
        Ok(match status {
            CheckoutStatus::Complete => Returned::Bought { subscription: seen(known.as_ref()).1 },
            CheckoutStatus::Open | CheckoutStatus::Other(_) => Returned::Open,
            CheckoutStatus::Expired => Returned::Expired,
        })
    }
}

fn seen(known: Option<&AnyMerged>) -> (Option<CheckoutStatus>, Option<ObjectId>) {
    match known {
        Some(AnyMerged::CheckoutSession(merged)) => {
            let session = merged.value();
            (Some(session.status.clone()), session.subscription.clone())
        }
        Some(_) | None => (None, None),
    }
}
