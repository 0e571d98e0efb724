//! What a tenant wants to buy, and where that leads.

use chrono::{DateTime, Utc};
use saas_core::{JobId, TenantId};

use super::customer::{CustomerDetails, metadata};
use crate::{
    merge::ContentHash,
    object::ObjectId,
    provider::{Command, NewCheckout, TrialPayment, WebAddress},
};

/// What a tenant wants to buy.
#[derive(Debug, Clone)]
pub struct CheckoutPage {
    pub(super) items: Vec<(ObjectId, Option<u64>)>,
    success: WebAddress,
    cancel: WebAddress,
    pub(super) details: CustomerDetails,
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
    pub(super) fn subject(&self) -> String {
        let hash = ContentHash::of(&(
            &self.items,
            &self.success,
            &self.cancel,
            self.trial_days,
            self.trial_payment,
            (self.promotion_codes, self.automatic_tax, self.tax_ids),
        ));
        hash.as_str().to_owned()
    }

    pub(super) fn command(&self, customer: ObjectId, tenant: TenantId, id: JobId) -> Command {
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
