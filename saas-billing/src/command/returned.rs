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
    /// The buyer went through with it, and the payment takes its time, as a bank debit does: what was bought counts when the
    /// money has come, or as Stripe says until then.
    Pending {
        /// `sub_…`; `None` for a page that sells no subscription.
        subscription: Option<ObjectId>,
    },
    /// The page is still open: nothing was bought.
    Open,
    /// The page is closed, and nothing was bought on it.
    Expired,
}

impl Billing {
    /// For the page that Stripe leads a buyer to: reads the checkout session and what was bought, and merges both, so that
    /// the tenant has what it paid for although no event has come yet. An event that comes later changes nothing.
    ///
    /// Put `{CHECKOUT_SESSION_ID}` into the success address, where Stripe fills in the id. Once it is bought and paid, or over, a
    /// page that is loaded again costs no call to Stripe; before that it costs one or two each time.
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
        let (status, is_settled, subscription) = seen(known.as_ref());
        let has_come = match &subscription {
            Some(subscription) => object::find_anywhere(&mut tx, self.scope.livemode, subscription).await?.is_some(),
            None => true,
        };
        tx.commit().await?;
        match status {
            Some(CheckoutStatus::Complete) if is_settled && has_come => return Ok(Returned::Bought { subscription }),
            Some(CheckoutStatus::Expired) => return Ok(Returned::Expired),
            Some(CheckoutStatus::Complete | CheckoutStatus::Open | CheckoutStatus::Other(_)) | None => {}
        }
        let status = self.read_session(provider, ctx.tenant(), session).await?.ok_or(not_found)?;
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look at what was bought").await?;
        let known = object::find_anywhere(&mut tx, self.scope.livemode, session).await?;
        tx.commit().await?;
        let (_, is_settled, subscription) = seen(known.as_ref());
        Ok(match status {
            CheckoutStatus::Complete if is_settled => Returned::Bought { subscription },
            CheckoutStatus::Complete => Returned::Pending { subscription },
            CheckoutStatus::Open | CheckoutStatus::Other(_) => Returned::Open,
            CheckoutStatus::Expired => Returned::Expired,
        })
    }
}

/// How far a session has come, whether the money has, and what was bought.
fn seen(known: Option<&AnyMerged>) -> (Option<CheckoutStatus>, bool, Option<ObjectId>) {
    match known {
        Some(AnyMerged::CheckoutSession(merged)) => {
            let session = merged.value();
            (Some(session.status.clone()), session.settled, session.subscription.clone())
        }
        Some(_) | None => (None, false, None),
    }
}
