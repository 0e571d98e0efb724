//! One customer per tenant.

use std::{collections::BTreeMap, fmt};

use saas_core::{EmailAddress, SystemTx, TenantContext, TenantId, tenant};
use sqlx::PgConnection;

use super::{Wish, recover::MARK};
use crate::{
    billing::Billing,
    error::BillingError,
    object::ObjectId,
    postgres::command::{self, Slot, Stage},
    provider::{Command, NewCustomer, PaymentProvider},
};

/// What stands on a customer's invoices.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CustomerDetails {
    /// Where Stripe sends receipts.
    pub email: Option<EmailAddress>,
    /// The name of whoever pays.
    pub name: Option<String>,
}

/// Which parts there are, never what they are.
impl fmt::Debug for CustomerDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomerDetails")
            .field("email", &self.email.is_some())
            .field("name", &self.name.is_some())
            .finish()
    }
}

/// What stands at Stripe about where something came from: for people, and for the search after a lost answer.
pub(super) fn metadata(tenant: TenantId, id: saas_core::JobId) -> BTreeMap<String, String> {
    [("saas_tenant", tenant.to_string()), (MARK, id.to_string())].map(|(name, text)| (name.to_owned(), text)).into()
}

impl Billing {
    /// The tenant's customer at Stripe; made if there is none.
    ///
    /// Safe to call any number of times and at once, from any number of processes: one customer is made. If Stripe does not
    /// answer in time, the outbox goes on trying (serve [`COMMANDS`](super::COMMANDS)) and a later call finds the customer.
    ///
    /// # Errors
    /// [`Provider`](BillingError::Provider) when Stripe refuses or does not answer.
    pub async fn ensure_customer(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        details: &CustomerDetails,
    ) -> Result<ObjectId, BillingError> {
        let now = self.clock.now();
        let tenant = ctx.tenant();
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "claim the tenant's Stripe customer").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        if let Some(customer) = command::customer(&mut tx, (tenant, &self.scope)).await? {
            tx.commit().await?;
            return Ok(customer);
        }
        let id = match self.pending_customer(&mut tx, tenant).await? {
            Some(id) => id,
            None => {
                let wish = Wish { what: "create_customer", slot: Some(Slot::Customer), subject: None };
                let command = |id| {
                    let (email, name) = (details.email.clone(), details.name.clone());
                    Command::CreateCustomer(NewCustomer {
                        email,
                        name,
                        metadata: metadata(tenant, id),
                        test_clock: None,
                    })
                };
                self.ask(&mut tx, tenant, wish, command, now).await?
            }
        };
        tx.commit().await?;
        Ok(self.send(provider, tenant, id).await?.object)
    }

    /// The command under way, if there is one. A customer that was deleted since makes room for another.
    async fn pending_customer(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
    ) -> Result<Option<saas_core::JobId>, BillingError> {
        let Some(holder) = command::holder(connection, (tenant, &self.scope, Slot::Customer)).await? else {
            return Ok(None);
        };
        match holder.stage {
            Stage::Done(outcome) => {
                command::close(connection, (tenant, &self.scope), &outcome.object).await?;
                Ok(None)
            }
            Stage::Pending(_) | Stage::Failed(_) | Stage::Closed => Ok(Some(holder.id)),
        }
    }
}
