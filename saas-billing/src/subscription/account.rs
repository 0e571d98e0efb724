//! What a tenant does at Stripe itself, and what it is shown from there: portal, invoices, billing details.
//!
//! Every look-up goes through the tenant's own customer: an id of another tenant is answered like one that nobody has.

use std::fmt;

use chrono::{DateTime, Utc};
use saas_core::{EmailAddress, IdempotencyKey, JobId, SystemTx, TenantContext, audit};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use super::{Change, Goal, drive::About};
use crate::{
    billing::Billing,
    error::BillingError,
    money::{Currency, Money},
    object::{InvoiceStatus, ObjectId, ObjectKind},
    postgres::command,
    provider::{
        Command, CustomerUpdate, Fetched, NewPortal, PageLimit, PaymentProvider, PostalAddress, ProviderError, Query,
        WebAddress,
    },
};

/// A page of Stripe's on which the tenant looks after card, invoices and subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portal {
    /// `bps_…`
    pub session: ObjectId,
    /// Where, for a few minutes.
    pub address: WebAddress,
}

/// What stands on a tenant's invoices. A part that is `None` is left as it is when it is written.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
pub struct BillingDetails {
    /// Where Stripe sends receipts.
    pub email: Option<EmailAddress>,
    /// The name of whoever pays.
    pub name: Option<String>,
    /// Where they are; decides on taxes.
    pub address: Option<PostalAddress>,
}

/// Which parts there are, never what they are.
impl fmt::Debug for BillingDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BillingDetails")
            .field("email", &self.email.is_some())
            .field("name", &self.name.is_some())
            .field("address", &self.address)
            .finish()
    }
}

/// An invoice in a tenant's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InvoiceSummary {
    /// `in_…`
    pub id: ObjectId,
    /// As it stands on the paper; none before it is final.
    pub number: Option<String>,
    /// How far it has come.
    pub status: InvoiceStatus,
    /// All of it.
    pub total: Money,
    /// What is still to be paid.
    pub remaining: Money,
    /// When it was made.
    pub created: Option<DateTime<Utc>>,
    /// Until when it is to be paid, if it is sent.
    pub due_at: Option<DateTime<Utc>>,
    /// Stripe's page, on which it can be paid; whoever has the address can see it.
    pub page: Option<WebAddress>,
    /// The document; whoever has the address can see it.
    pub document: Option<WebAddress>,
}

/// A page of a tenant's invoices, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InvoicePage {
    /// The invoices.
    pub invoices: Vec<InvoiceSummary>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<ObjectId>,
}

#[derive(Deserialize)]
struct WireInvoice {
    id: ObjectId,
    customer: Option<ObjectId>,
    number: Option<String>,
    status: Option<InvoiceStatus>,
    currency: String,
    #[serde(default)]
    total: i64,
    #[serde(default)]
    amount_remaining: i64,
    created: Option<i64>,
    due_date: Option<i64>,
    hosted_invoice_url: Option<String>,
    invoice_pdf: Option<String>,
}

#[derive(Deserialize)]
struct WireCustomer {
    email: Option<String>,
    name: Option<String>,
    address: Option<PostalAddress>,
}

impl Billing {
    /// Opens Stripe's portal for the tenant. What is done there comes back as events.
    ///
    /// # Errors
    /// [`NoCustomer`](BillingError::NoCustomer) for a tenant that never bought; [`Provider`](BillingError::Provider) when
    /// Stripe refuses or does not answer.
    pub async fn portal(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        back: WebAddress,
        configuration: Option<ObjectId>,
    ) -> Result<Portal, BillingError> {
        let customer = self.customer_of(ctx).await?;
        let key = IdempotencyKey::try_from(JobId::mint_at(self.clock.now()).to_string())?;
        let command = Command::OpenPortal(NewPortal { customer: customer.clone(), back, configuration });
        let opened = provider.execute(&command, &key).await?;
        let portal = Portal { session: opened.id()?, address: opened.address()? };
        // Nobody gets the address of a session that is not on record.
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "record that the portal was opened").await?;
        let entry = audit::Entry::new("billing.portal_opened", &customer);
        let entry = entry.with_detail(json!({"session": portal.session}));
        audit::record_for(&mut tx, ctx, entry, self.clock.now()).await?;
        tx.commit().await?;
        Ok(portal)
    }

    /// The tenant's invoices, newest first, from behind `after`, with the addresses of page and document.
    ///
    /// # Errors
    /// [`NoCustomer`](BillingError::NoCustomer) for a tenant that never bought; [`Provider`](BillingError::Provider) when
    /// Stripe does not answer, or does not know `after`.
    pub async fn list_invoices(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        after: Option<&ObjectId>,
        limit: PageLimit,
    ) -> Result<InvoicePage, BillingError> {
        let customer = self.customer_of(ctx).await?;
        let query = Query::Invoices { customer: Some(customer.clone()), status: None };
        let page = provider.list(&query, after, limit).await?;
        let mut invoices = Vec::new();
        for object in page.objects {
            let (owner, invoice) = read_invoice(&object)?;
            // The list was asked for one customer; what else is in it is not shown.
            if owner.as_ref() == Some(&customer) {
                invoices.push(invoice);
            }
        }
        Ok(InvoicePage { invoices, next: page.next })
    }

    /// One invoice of the tenant, with fresh addresses of page and document: they end after a while.
    ///
    /// # Errors
    /// [`NotFound`](saas_core::ErrorKind::NotFound) for one that nobody has, and for another tenant's;
    /// [`Provider`](BillingError::Provider) when Stripe does not answer.
    pub async fn invoice(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        id: &ObjectId,
    ) -> Result<InvoiceSummary, BillingError> {
        let missing = || BillingError::from(ProviderError::Missing { id: Some(id.clone()) });
        let customer = self.customer_of(ctx).await?;
        let Fetched::Found { object, .. } = provider.fetch(ObjectKind::Invoice, id).await? else {
            return Err(missing());
        };
        let (owner, invoice) = read_invoice(&object)?;
        if owner.as_ref() == Some(&customer) { Ok(invoice) } else { Err(missing()) }
    }

    /// What stands on the tenant's invoices.
    ///
    /// # Errors
    /// As [`invoice`](Self::invoice).
    pub async fn billing_details(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
    ) -> Result<BillingDetails, BillingError> {
        let customer = self.customer_of(ctx).await?;
        let Fetched::Found { object, .. } = provider.fetch(ObjectKind::Customer, &customer).await? else {
            return Err(BillingError::NoCustomer);
        };
        let unreadable = |_| ProviderError::Unreadable { what: "a customer" };
        let wire: WireCustomer = serde_json::from_str(object.get()).map_err(unreadable)?;
        // Stripe takes addresses that we would not; such a one is shown as none.
        let email = wire.email.and_then(|email| email.parse().ok());
        Ok(BillingDetails { email, name: wire.name, address: wire.address })
    }

    /// Changes what stands on the tenant's invoices from now on. Invoices that are final stay as they are.
    ///
    /// # Errors
    /// As [`change_plan`](Self::change_plan), with [`NoCustomer`](BillingError::NoCustomer).
    pub async fn update_billing_details(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        details: BillingDetails,
        key: &IdempotencyKey,
    ) -> Result<Change, BillingError> {
        let customer = self.customer_of(ctx).await?;
        let BillingDetails { email, name, address } = details;
        let update = CustomerUpdate { customer, email, name, address };
        self.request(provider, ctx, (&Goal::Details { update }, About::Customer), key).await
    }

    async fn customer_of(&self, ctx: &dyn TenantContext) -> Result<ObjectId, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "find the tenant's Stripe customer").await?;
        let customer = command::customer(&mut tx, (ctx.tenant(), &self.scope)).await?;
        tx.commit().await?;
        customer.ok_or(BillingError::NoCustomer)
    }
}

/// An invoice as Stripe's API has it, and whose it is.
pub(crate) fn read_invoice(object: &RawValue) -> Result<(Option<ObjectId>, InvoiceSummary), ProviderError> {
    let unreadable = || ProviderError::Unreadable { what: "an invoice" };
    let wire: WireInvoice = serde_json::from_str(object.get()).map_err(|_| unreadable())?;
    let currency: Currency = wire.currency.parse().map_err(|_| unreadable())?;
    let at = |seconds: Option<i64>| DateTime::from_timestamp(seconds?, 0);
    let address = |text: Option<String>| text.and_then(|text| WebAddress::try_from(text).ok());
    let summary = InvoiceSummary {
        id: wire.id,
        number: wire.number,
        status: wire.status.unwrap_or(InvoiceStatus::Draft),
        total: Money::new(wire.total, currency),
        remaining: Money::new(wire.amount_remaining, currency),
        created: at(wire.created),
        due_at: at(wire.due_date),
        page: address(wire.hosted_invoice_url),
        document: address(wire.invoice_pdf),
    };
    Ok((wire.customer, summary))
}
