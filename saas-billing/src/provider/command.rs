//! Writes to Stripe, as values that can be stored before they are tried.

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};
use saas_core::{EmailAddress, InvalidInput};
use serde::{Deserialize, Serialize};

use crate::object::{Interval, ObjectId, PauseBehavior};

/// One write. One HTTP request of Stripe's, so that one idempotency key covers it whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", content = "with", rename_all = "snake_case")]
pub enum Command {
    /// Makes a customer.
    CreateCustomer(NewCustomer),
    /// Changes what stands on a customer's invoices.
    UpdateCustomer(CustomerUpdate),
    /// Opens a page on which the customer subscribes.
    OpenCheckout(NewCheckout),
    /// Closes such a page. [`WrongState`](super::ProviderError::WrongState) when it was completed meanwhile.
    ExpireCheckout(ObjectId),
    /// Opens a page on which the customer looks after subscription, card and invoices.
    OpenPortal(NewPortal),
    /// Subscribes a customer who has a payment method.
    CreateSubscription(NewSubscription),
    /// Changes what a subscription is charged for.
    ChangeSubscription(SubscriptionChange),
    /// Ends a subscription, or not after all.
    CancelSubscription {
        /// Which.
        subscription: ObjectId,
        /// When.
        when: Cancellation,
    },
    /// Goes on without collecting, or collects again.
    PauseCollection {
        /// Which subscription.
        subscription: ObjectId,
        /// What happens to invoices meanwhile; `None` collects again.
        behavior: Option<PauseBehavior>,
        /// When it ends by itself.
        resumes_at: Option<DateTime<Utc>>,
    },
    /// Resumes a subscription whose status is `paused`; a new period begins.
    ResumeSubscription(ObjectId),
    /// Puts a subscription under a schedule, which begins with what it is.
    AttachSchedule(ObjectId),
    /// Says what a schedule does, phase after phase; the first must be the present one.
    PlanPhases {
        /// `sub_sched_…`
        schedule: ObjectId,
        /// What happens, in order.
        phases: Vec<Phase>,
    },
    /// Forgets a schedule; the subscription stays as it is.
    ReleaseSchedule(ObjectId),
    /// Tries to collect an open invoice now.
    PayInvoice(ObjectId),
    /// Withdraws an open invoice.
    VoidInvoice(ObjectId),
    /// Writes an open invoice off.
    WriteOffInvoice(ObjectId),
    /// Makes a product.
    CreateProduct(NewProduct),
    /// Says anew what a product is called, and offers it.
    ChangeProduct(NewProduct),
    /// Gives a feature to whoever buys a product.
    AttachFeature {
        /// `prod_…`
        product: ObjectId,
        /// `feat_…`
        feature: ObjectId,
    },
    /// Not any more.
    DetachFeature {
        /// `prod_…`
        product: ObjectId,
        /// What ties the two: `prodft_…`
        attachment: ObjectId,
    },
    /// Makes a price. Prices never change; a new one can take over the lookup key.
    CreatePrice(NewPrice),
    /// Sells a price no more. Who pays by it goes on doing so.
    ArchivePrice(ObjectId),
    /// Sells a price again that was archived, or that has lost its key.
    OfferPrice {
        /// `price_…`
        price: ObjectId,
        /// Taken from a price that has it.
        lookup_key: String,
        /// Kept by Stripe beside it.
        metadata: BTreeMap<String, String>,
    },
    /// Makes a feature of Stripe's entitlements.
    CreateFeature(NewFeature),
    /// Says anew what a feature is called, and has it in force.
    ChangeFeature {
        /// `feat_…`
        feature: ObjectId,
        /// For people.
        name: String,
        /// Kept by Stripe beside it.
        metadata: BTreeMap<String, String>,
    },
    /// Makes a usage meter.
    CreateMeter(NewMeter),
    /// Says anew what a meter is called.
    RenameMeter {
        /// `mtr_…`
        meter: ObjectId,
        /// For people.
        name: String,
    },
    /// Counts again by a meter that was deactivated.
    ReactivateMeter(ObjectId),
    /// Reports usage.
    ReportUsage(MeterReading),
    /// Takes a reading back, within 24 hours of its being reported.
    CancelReading {
        /// The meter's event name.
        event_name: String,
        /// The reading's.
        identifier: String,
    },
}

/// An `http` or `https` address of at most 2,000 characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebAddress(String);

impl WebAddress {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for WebAddress {
    type Error = InvalidInput;

    fn try_from(text: String) -> Result<Self, InvalidInput> {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_host = host.is_some_and(|host| !host.is_empty() && !host.starts_with('/'));
        if is_host && text.len() <= 2_000 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(text));
        }
        Err(InvalidInput::new(
            "the address",
            "is not an http(s) address of at most 2,000 visible ASCII characters",
            "pass a whole address such as https://app.example.com/billing",
        ))
    }
}

impl std::str::FromStr for WebAddress {
    type Err = InvalidInput;

    fn from_str(text: &str) -> Result<Self, InvalidInput> {
        Self::try_from(text.to_owned())
    }
}

impl From<WebAddress> for String {
    fn from(address: WebAddress) -> Self {
        address.0
    }
}

impl fmt::Display for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A customer to be made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCustomer {
    /// Where Stripe sends receipts.
    pub email: Option<EmailAddress>,
    /// What stands on invoices.
    pub name: Option<String>,
    /// Kept by Stripe beside the customer. Never trusted: it says which tenant we meant, not which one it is.
    pub metadata: BTreeMap<String, String>,
    /// The test clock that it lives by, in test mode.
    pub test_clock: Option<ObjectId>,
}

/// No name: it may be a person's.
impl fmt::Debug for NewCustomer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewCustomer")
            .field("email", &self.email)
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

/// What shall stand on a customer's invoices from now on; `None` leaves it as it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomerUpdate {
    /// `cus_…`
    pub customer: ObjectId,
    /// Where Stripe sends receipts.
    pub email: Option<EmailAddress>,
    /// The name of whoever pays.
    pub name: Option<String>,
    /// Where they are; decides on taxes.
    pub address: Option<PostalAddress>,
}

/// Nothing but the id: the rest may be a person's.
impl fmt::Debug for CustomerUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomerUpdate").field("customer", &self.customer).finish_non_exhaustive()
    }
}

/// A place that letters go to, as Stripe writes it down.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PostalAddress {
    /// Street and number.
    pub line1: Option<String>,
    /// Floor, department.
    pub line2: Option<String>,
    /// Town.
    pub city: Option<String>,
    /// State, county, province.
    pub state: Option<String>,
    /// Postal code.
    pub postal_code: Option<String>,
    /// Two letters of ISO 3166-1.
    pub country: Option<String>,
}

/// Only the country: the rest may be a person's.
impl fmt::Debug for PostalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostalAddress").field("country", &self.country).finish_non_exhaustive()
    }
}

/// A page on which a customer subscribes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCheckout {
    /// Who.
    pub customer: ObjectId,
    /// What, and how many; `None` for metered prices.
    pub items: Vec<(ObjectId, Option<u64>)>,
    /// Where the buyer lands; Stripe replaces `{CHECKOUT_SESSION_ID}`.
    pub success: WebAddress,
    /// Where a buyer lands who turns back.
    pub cancel: WebAddress,
    /// A free beginning.
    pub trial_days: Option<u32>,
    /// Whether a trial needs a payment method.
    pub trial_payment: TrialPayment,
    /// Whether the page has a field for promotion codes. Stripe refuses a page that has one and a discount.
    pub promotion_codes: bool,
    /// What is taken off from the beginning.
    #[serde(default)]
    pub discount: Option<NewDiscount>,
    /// Whether Stripe computes taxes.
    pub automatic_tax: bool,
    /// Whether the page asks for tax ids.
    pub tax_ids: bool,
    /// Kept by Stripe beside the session and the subscription.
    pub metadata: BTreeMap<String, String>,
}

/// What is taken off a subscription from its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewDiscount {
    /// By the id of a coupon.
    Coupon(ObjectId),
    /// By the id of a promotion code: `promo_…`, not what a buyer types.
    PromotionCode(ObjectId),
}

impl NewDiscount {
    /// The id.
    #[must_use]
    pub const fn id(&self) -> &ObjectId {
        match self {
            Self::Coupon(id) | Self::PromotionCode(id) => id,
        }
    }
}

/// Whether a trial needs a payment method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialPayment {
    /// Always.
    Required,
    /// Only if something is to be paid; a trial that ends without one pauses the subscription.
    IfDue,
}

/// A page on which a customer looks after things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPortal {
    /// Who.
    pub customer: ObjectId,
    /// Where the way back leads.
    pub back: WebAddress,
    /// `bpc_…`; the account's default if `None`.
    pub configuration: Option<ObjectId>,
}

/// A subscription without a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSubscription {
    /// Who.
    pub customer: ObjectId,
    /// What, and how many; `None` for metered prices.
    pub items: Vec<(ObjectId, Option<u64>)>,
    /// A free beginning.
    pub trial_days: Option<u32>,
    /// What is taken off from the beginning.
    #[serde(default)]
    pub discount: Option<NewDiscount>,
    /// What happens when the first payment fails.
    pub on_failed_payment: OnFailedPayment,
    /// Kept by Stripe beside it.
    pub metadata: BTreeMap<String, String>,
}

/// Another set of items or quantities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionChange {
    /// Which.
    pub subscription: ObjectId,
    /// What changes; other items stay.
    pub items: Vec<ItemChange>,
    /// What becomes of the rest of the period.
    pub proration: Proration,
    /// The instant that proration counts from: of the preview that the customer saw.
    pub proration_date: Option<DateTime<Utc>>,
    /// What happens when the payment that it causes fails.
    pub on_failed_payment: OnFailedPayment,
}

/// One change of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemChange {
    /// One more item.
    Add {
        /// By what it is charged.
        price: ObjectId,
        /// How many; `None` for metered prices.
        quantity: Option<u64>,
    },
    /// Another price, another quantity, or both.
    Set {
        /// `si_…`
        item: ObjectId,
        /// By what it is charged; as before if `None`.
        price: Option<ObjectId>,
        /// How many; as before if `None`.
        quantity: Option<u64>,
    },
    /// The item ends.
    Remove {
        /// `si_…`
        item: ObjectId,
    },
}

/// What becomes of the rest of the period (<https://docs.stripe.com/billing/subscriptions/prorations>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proration {
    /// Credit and charge stand on an invoice that is due now.
    InvoiceNow,
    /// Credit and charge stand on the next invoice.
    NextInvoice,
    /// Neither.
    None,
}

/// What happens when a payment that a change causes fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailedPayment {
    /// The change waits 23 hours for the payment, and is dropped without it.
    Wait,
    /// Nothing is changed.
    Refuse,
    /// The change stays; the subscription is behind.
    Owe,
}

/// When a subscription ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cancellation {
    /// Now; the rest of the period is lost.
    Now,
    /// Now; the rest of the period is credited.
    NowProrated,
    /// With its period.
    AtPeriodEnd,
    /// Not after all.
    Never,
}

/// What a schedule does for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// When it begins; `None` for where the one before ends.
    pub start: Option<DateTime<Utc>>,
    /// When it ends; `None` for after one period of its prices.
    pub end: Option<DateTime<Utc>>,
    /// What is charged for, and how many; `None` for metered prices.
    pub items: Vec<(ObjectId, Option<u64>)>,
    /// What is charged for when it begins: [`NextInvoice`](Proration::NextInvoice) for what was used at a usage price that goes.
    #[serde(default = "Phase::usual")]
    pub proration: Proration,
    /// The discounts of the subscription that hold in it, `di_…`: a phase that names none ends them.
    #[serde(default)]
    pub discounts: Vec<ObjectId>,
}

impl Phase {
    /// Requests that were recorded before phases said it.
    const fn usual() -> Proration {
        Proration::None
    }
}

/// A product, as it is made or said anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewProduct {
    /// An id of ours, such as `prod_pro`: making it twice is refused.
    pub id: ObjectId,
    /// What stands on invoices.
    pub name: String,
    /// Kept by Stripe beside it.
    pub metadata: BTreeMap<String, String>,
}

/// A price to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPrice {
    /// Of what.
    pub product: ObjectId,
    /// Three lower-case letters.
    pub currency: String,
    /// How often.
    pub interval: Interval,
    /// How much.
    pub by: PricedBy,
    /// The meter whose total is charged; a licensed price if `None`.
    pub meter: Option<ObjectId>,
    /// Found again by this key.
    pub lookup_key: String,
    /// Whether the key is taken from a price that has it.
    pub takes_over_key: bool,
    /// Kept by Stripe beside it.
    pub metadata: BTreeMap<String, String>,
}

/// How much a price is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PricedBy {
    /// Minor units per unit.
    Unit(u64),
    /// Each unit costs what its tier says.
    Graduated(Vec<Tier>),
    /// All units cost what the tier of their number says.
    Volume(Vec<Tier>),
}

/// A tier of a price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// The last unit; `None` for the last tier.
    pub up_to: Option<u64>,
    /// Minor units per unit.
    pub unit_amount: u64,
    /// Minor units for entering it.
    pub flat_amount: u64,
}

/// A feature of Stripe's entitlements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFeature {
    /// Found again by this key; making it twice is refused.
    pub lookup_key: String,
    /// For people.
    pub name: String,
    /// Kept by Stripe beside it.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// A usage meter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMeter {
    /// For people.
    pub name: String,
    /// What readings call it; making it twice is refused.
    pub event_name: String,
    /// How readings come together.
    pub aggregation: Aggregation,
}

/// How readings of a meter come together in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Their sum.
    Sum,
    /// Their number.
    Count,
    /// The last.
    Last,
}

/// Usage to be charged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MeterReading {
    /// The meter's event name.
    pub event_name: String,
    /// Whose.
    pub customer: ObjectId,
    /// How much.
    pub value: u64,
    /// When; within the last 35 days and at most five minutes ahead.
    pub at: DateTime<Utc>,
    /// Counted once per identifier, for at least 24 hours.
    pub identifier: String,
}
