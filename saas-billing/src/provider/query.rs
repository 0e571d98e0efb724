//! Reads of lists.

use std::fmt;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use crate::object::{InvoiceStatus, ObjectId, ObjectKind};

/// A list of Stripe's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Customers, newest first.
    Customers {
        /// Made at this second or later.
        created_from: Option<DateTime<Utc>>,
    },
    /// Checkout sessions of a customer that may still be paid.
    OpenCheckouts {
        /// Whose.
        customer: ObjectId,
    },
    /// Subscriptions in any state, ended ones too.
    Subscriptions {
        /// Whose; of all customers if `None`.
        customer: Option<ObjectId>,
    },
    /// Schedules of a customer's subscriptions, newest first, those that are over too.
    Schedules {
        /// Whose.
        customer: ObjectId,
    },
    /// Invoices.
    Invoices {
        /// Whose; of all customers if `None`.
        customer: Option<ObjectId>,
        /// In which state; in any if `None`.
        status: Option<InvoiceStatus>,
    },
    /// Objects of a kind, newest first, in any state; customers that are not deleted.
    Recent {
        /// Which.
        kind: ObjectKind,
        /// Made at this second or later.
        created_from: DateTime<Utc>,
    },
    /// Subscriptions of all customers that have not been cancelled.
    LiveSubscriptions,
    /// Charges, failed ones too.
    Charges,
    /// Refunds.
    Refunds,
    /// Disputes.
    Disputes,
    /// Credit notes, withdrawn ones too.
    CreditNotes,
    /// Prices by lookup key with their tiers, at most ten keys.
    Prices {
        /// The keys.
        lookup_keys: Vec<String>,
    },
    /// Prices of a product with their tiers, archived ones too.
    PricesOf {
        /// `prod_…`
        product: ObjectId,
    },
    /// Products, archived ones too.
    Products,
    /// What ties features to a product.
    ProductFeatures {
        /// `prod_…`
        product: ObjectId,
    },
    /// Features of Stripe's entitlements, by lookup key.
    Features {
        /// The key; all if `None`.
        lookup_key: Option<String>,
    },
    /// Usage meters.
    Meters,
    /// What a customer's usage of a meter came to.
    MeterTotals {
        /// `mtr_…`
        meter: ObjectId,
        /// Whose.
        customer: ObjectId,
        /// From this minute.
        from: DateTime<Utc>,
        /// To before this minute.
        to: DateTime<Utc>,
        /// One total for each day, by Coordinated Universal Time, that has any; the span is of whole days.
        daily: bool,
    },
    /// The account's webhook endpoints.
    WebhookEndpoints,
    /// Events of the last 30 days, newest first.
    Events {
        /// Created at this second or later.
        created_from: Option<DateTime<Utc>>,
    },
}

/// How many objects a page may hold: 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit(u8);

impl PageLimit {
    /// What Stripe gives at most.
    pub const MAX: Self = Self(100);

    /// A limit; what is outside 1 to 100 is moved to the nearer end.
    #[must_use]
    pub fn new(objects: u8) -> Self {
        Self(objects.clamp(1, 100))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// One page of a list.
#[derive(Clone)]
pub struct Listed {
    /// The objects, in Stripe's order.
    pub objects: Vec<Box<RawValue>>,
    /// Where the next page begins; `None` when this is the last.
    pub next: Option<ObjectId>,
}

/// Numbers, never the objects.
impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listed").field("objects", &self.objects.len()).field("next", &self.next).finish()
    }
}
