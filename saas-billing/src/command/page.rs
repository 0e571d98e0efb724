//! What a tenant wants to buy, and where that leads.

use chrono::{DateTime, Utc};
use saas_core::{JobId, TenantId};
use sha2::{Digest, Sha256};

use super::customer::{CustomerDetails, metadata};
use crate::{
    merge::ContentHash,
    object::ObjectId,
    provider::{Command, NewCheckout, NewDiscount, TrialPayment, WebAddress},
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
    pub(super) promotion_codes: bool,
    pub(super) discount: Option<NewDiscount>,
    automatic_tax: bool,
    tax_ids: bool,
    marks: Vec<Vec<u8>>,
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
            discount: None,
            automatic_tax: false,
            tax_ids: false,
            marks: Vec::new(),
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

    /// Says by what else this tenant would be recognised if it came again as another one: a card's fingerprint, a domain. Of a
    /// trial there is one for each, for ever; only a hash is kept.
    #[must_use]
    pub fn with_trial_fingerprint(mut self, text: &str) -> Self {
        let mark = Sha256::new().chain_update(b"saas-billing trial\0").chain_update(text).finalize().to_vec();
        if !self.marks.contains(&mark) {
            self.marks.push(mark);
        }
        self
    }

    /// What a trial is claimed by; `None` without a trial.
    pub(super) fn trial_marks(&self) -> Option<&[Vec<u8>]> {
        self.trial_days.filter(|days| *days > 0).map(|_| self.marks.as_slice())
    }

    /// Takes a coupon or a promotion code off. Not together with a field for promotion codes.
    #[must_use]
    pub fn with_discount(mut self, discount: NewDiscount) -> Self {
        self.discount = Some(discount);
        self
    }

    /// Has a field for promotion codes. Not together with a discount.
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
            &self.discount,
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
            discount: self.discount.clone(),
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
