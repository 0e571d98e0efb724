//! What there is at Stripe before a page is opened: pages that others made, and what was bought on them.

use saas_core::{IdempotencyKey, JobId, SystemTx, TenantId, tenant};
use serde::Deserialize;

use super::recover;
use crate::{
    billing::{ACTOR, Billing},
    error::BillingError,
    object::{CheckoutStatus, ObjectId, ObjectKind, SubscriptionStatus},
    postgres::{command, object},
    provider::{Command, Fetched, PageLimit, PaymentProvider, ProviderError, Query, Reply},
};

impl Billing {
    /// Closes a page, or finds that it was paid on.
    pub(super) async fn close_session(
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
    pub(super) async fn read_session(
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
    pub(crate) async fn read_in(
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
        self.merge_answer(&mut tx, known.as_ref(), &reply, "read", now).await?;
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
    pub(super) async fn look_around(
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
