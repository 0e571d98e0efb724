//! An end, now or with the period, and not after all; a pause, and no pause.

use chrono::{DateTime, Utc};
use saas_core::{IdempotencyKey, InvalidInput, TenantContext};

use super::{Change, Goal, drive::About};
use crate::{
    billing::Billing,
    error::BillingError,
    object::PauseBehavior,
    provider::{Cancellation, PaymentProvider},
};

impl Billing {
    /// Ends the tenant's subscription, now or with its period; [`Never`](Cancellation::Never) takes back what is to end with
    /// the period. Ending lets go of a change that was scheduled.
    ///
    /// # Errors
    /// As [`change_plan`](Self::change_plan); [`StateForbids`](BillingError::StateForbids) for what has ended already.
    pub async fn cancel(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        when: Cancellation,
        key: &IdempotencyKey,
    ) -> Result<Change, BillingError> {
        self.request(provider, ctx, (&Goal::End { when }, About::Subscription), key).await
    }

    /// Goes on without collecting: invoices stay drafts, are voided or written off. Access stays as it is; the alert
    /// `collection_paused` says that no money comes in.
    ///
    /// # Errors
    /// As [`change_plan`](Self::change_plan); [`Invalid`](BillingError::Invalid) for an end that is not in the future.
    pub async fn pause(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        behavior: PauseBehavior,
        resumes_at: Option<DateTime<Utc>>,
        key: &IdempotencyKey,
    ) -> Result<Change, BillingError> {
        if let PauseBehavior::Other(_) = behavior {
            let remedy = "pass `KeepAsDraft`, `MarkUncollectible` or `Void`";
            return Err(InvalidInput::new("the pause", "is of a kind that Stripe does not have", remedy).into());
        }
        // Stripe counts whole seconds: what it answers must be equal to what was asked.
        let resumes_at = resumes_at.map(|at| DateTime::from_timestamp(at.timestamp(), 0).unwrap_or(at));
        if resumes_at.is_some_and(|at| at <= self.clock.now()) && self.known_request(ctx, key).await?.is_none() {
            let remedy = "pass a later instant, or none and call `resume`";
            return Err(InvalidInput::new("the end of the pause", "is not in the future", remedy).into());
        }
        self.request(provider, ctx, (&Goal::Pause { behavior, resumes_at }, About::Subscription), key).await
    }

    /// Collects again after a pause; resumes a subscription whose trial ended without a payment method, which costs the first
    /// period.
    ///
    /// # Errors
    /// As [`change_plan`](Self::change_plan); [`StateForbids`](BillingError::StateForbids) for one that Stripe has paused for another
    /// reason than the end of its trial: resume it there.
    pub async fn resume(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        key: &IdempotencyKey,
    ) -> Result<Change, BillingError> {
        self.request(provider, ctx, (&Goal::Running, About::Subscription), key).await
    }
}
