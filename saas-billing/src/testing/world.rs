//! The simulator's state: plain data, nothing decided here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    api::Saved,
    coupon::{Off, SimCoupon, SimDiscount, SimPromotionCode, Wanted},
    fault::Fault,
    money::{SimCharge, SimCreditNote, SimDispute, SimRefund},
};
use crate::stripe::TestCard;

/// What Stripe does when the last retry has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterRetries {
    /// The subscription stays past due.
    #[default]
    PastDue,
    /// It becomes unpaid.
    Unpaid,
    /// It is cancelled.
    Cancel,
}

pub(super) type Metadata = BTreeMap<String, String>;

/// Where Stripe delivers, as the account's owner has registered it.
#[derive(Debug, Clone)]
pub(super) struct SimEndpoint {
    pub(super) id: String,
    pub(super) url: String,
    pub(super) enabled: bool,
    pub(super) enabled_events: Vec<String>,
    pub(super) api_version: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct SimProduct {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) active: bool,
    pub(super) created: DateTime<Utc>,
    pub(super) metadata: Metadata,
    /// What ties features to it, and the features.
    pub(super) features: Vec<(String, String)>,
}

/// From its first instant to the first that is not of it.
pub(super) type Span = (DateTime<Utc>, DateTime<Utc>);

/// A tier: last unit, amount per unit, amount for entering it.
pub(super) type SimTier = (Option<u64>, i64, i64);

#[derive(Debug, Clone)]
pub(super) enum Pricing {
    Unit(i64),
    Graduated(Vec<SimTier>),
    Volume(Vec<SimTier>),
}

#[derive(Debug, Clone)]
pub(super) struct SimPrice {
    pub(super) id: String,
    pub(super) product: String,
    pub(super) pricing: Pricing,
    pub(super) currency: String,
    pub(super) interval: String,
    /// The meter whose total is charged.
    pub(super) meter: Option<String>,
    pub(super) lookup_key: Option<String>,
    pub(super) active: bool,
    pub(super) metadata: Metadata,
}

#[derive(Debug, Clone)]
pub(super) struct SimFeature {
    pub(super) id: String,
    pub(super) lookup_key: String,
    pub(super) name: String,
    pub(super) active: bool,
    pub(super) metadata: Metadata,
}

#[derive(Debug, Clone)]
pub(super) struct SimMeter {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) event_name: String,
    pub(super) formula: String,
    pub(super) active: bool,
    pub(super) created: DateTime<Utc>,
}

#[derive(Debug, Clone)]
pub(super) struct SimReading {
    pub(super) event_name: String,
    pub(super) customer: String,
    pub(super) value: u64,
    pub(super) at: DateTime<Utc>,
    pub(super) received: DateTime<Utc>,
    pub(super) identifier: String,
    /// Taken back, or of no meter or customer: it counts nowhere.
    pub(super) void: bool,
}

/// A reading that was taken and could not be counted.
#[derive(Debug, Clone)]
pub(super) struct SimMisread {
    /// `None` when there is no such meter.
    pub(super) meter: Option<String>,
    pub(super) code: &'static str,
    pub(super) identifier: String,
}

#[derive(Debug, Clone)]
pub(super) struct SimCustomer {
    pub(super) id: String,
    pub(super) email: Option<String>,
    pub(super) name: Option<String>,
    /// Its parts by name.
    pub(super) address: Option<BTreeMap<String, String>>,
    pub(super) metadata: Metadata,
    pub(super) created: DateTime<Utc>,
    pub(super) deleted: bool,
    /// Charges fail until it is false again.
    pub(super) declines: bool,
    /// The bank wants to hear from the buyer about each charge that the buyer is not there for.
    pub(super) wants_confirmation: bool,
    pub(super) has_payment_method: bool,
    /// Minor units that the customer owes beside invoices; negative for credit.
    pub(super) balance: i64,
    /// The one that it has been billed in.
    pub(super) currency: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct SimSession {
    pub(super) id: String,
    pub(super) created: DateTime<Utc>,
    pub(super) status: &'static str,
    pub(super) payment_status: &'static str,
    pub(super) customer: Option<String>,
    pub(super) subscription: Option<String>,
    pub(super) client_reference_id: Option<String>,
    /// Price and number of units.
    pub(super) lines: Vec<(String, Option<u64>)>,
    pub(super) trial_days: u32,
    /// The billing mode of the subscription.
    pub(super) flexible: bool,
    /// What is taken off, once it is paid; a buyer may enter a promotion code.
    pub(super) discount: Option<Wanted>,
    pub(super) takes_codes: bool,
    pub(super) automatic_tax: bool,
    pub(super) email: String,
    pub(super) success_url: String,
    pub(super) cancel_url: String,
    pub(super) metadata: Metadata,
}

#[derive(Debug, Clone)]
pub(super) struct SimPortal {
    pub(super) created: DateTime<Utc>,
    pub(super) customer: String,
    pub(super) return_url: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SimItem {
    pub(super) id: String,
    pub(super) price: String,
    pub(super) quantity: Option<u64>,
    /// Since when it is charged by this price: usage of before is not.
    pub(super) since: DateTime<Utc>,
    /// What was last charged for it, less what coupons took off, and for which time.
    pub(super) charged: Option<(i64, Span)>,
}

/// A change that waits for its payment.
#[derive(Debug, Clone)]
pub(super) struct SimPending {
    pub(super) items: Vec<SimItem>,
    pub(super) invoice: String,
    pub(super) expires_at: DateTime<Utc>,
}

#[derive(Debug, Clone)]
pub(super) struct SimSubscription {
    pub(super) id: String,
    pub(super) customer: String,
    pub(super) items: Vec<SimItem>,
    /// Its billing mode: flexible, or classic.
    pub(super) flexible: bool,
    pub(super) status: &'static str,
    pub(super) created: DateTime<Utc>,
    /// The instant whose day of the month every renewal keeps.
    pub(super) anchor: DateTime<Utc>,
    /// Periods since the anchor.
    pub(super) cycle: u32,
    pub(super) period: (DateTime<Utc>, DateTime<Utc>),
    pub(super) trial_end: Option<DateTime<Utc>>,
    pub(super) trial_warned: bool,
    pub(super) cancel_at_period_end: bool,
    pub(super) canceled_at: Option<DateTime<Utc>>,
    pub(super) ended_at: Option<DateTime<Utc>>,
    pub(super) latest_invoice: Option<String>,
    pub(super) pause: Option<(String, Option<DateTime<Utc>>)>,
    pub(super) schedule: Option<String>,
    pub(super) pending: Option<SimPending>,
    /// Lines for the next invoice.
    pub(super) carried: Vec<SimLine>,
    pub(super) discounts: Vec<SimDiscount>,
    pub(super) automatic_tax: bool,
    pub(super) metadata: Metadata,
}

#[derive(Debug, Clone)]
pub(super) struct SimPhase {
    pub(super) start: DateTime<Utc>,
    pub(super) end: DateTime<Utc>,
    pub(super) items: Vec<(String, Option<u64>)>,
    /// Whether beginning it charges for what is left uncharged then.
    pub(super) prorate: bool,
    /// The discounts that hold in it; `None` leaves them as they are.
    pub(super) discounts: Option<Vec<String>>,
}

#[derive(Debug, Clone)]
pub(super) struct SimSchedule {
    pub(super) id: String,
    pub(super) created: DateTime<Utc>,
    pub(super) customer: String,
    pub(super) subscription: String,
    pub(super) status: &'static str,
    pub(super) phases: Vec<SimPhase>,
    /// The phase that was begun last.
    pub(super) at: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SimLine {
    pub(super) price: String,
    pub(super) quantity: Option<u64>,
    pub(super) amount: i64,
    pub(super) proration: bool,
    pub(super) period: (DateTime<Utc>, DateTime<Utc>),
}

#[derive(Debug, Clone)]
pub(super) struct SimInvoice {
    pub(super) id: String,
    pub(super) customer: String,
    pub(super) subscription: String,
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) lines: Vec<SimLine>,
    /// Discounts and their terms, in the order in which they are taken off.
    pub(super) discounts: Vec<(String, Off)>,
    /// Tax on what is left, in hundredths of a percent; `None` without automatic tax.
    pub(super) tax_rate: Option<u32>,
    /// What the customer's balance took from it (positive) or added to it (negative).
    pub(super) from_balance: i64,
    /// The customer's balance before and after it was final.
    pub(super) balances: Option<(i64, i64)>,
    /// What credit notes took off while it was open.
    pub(super) credited: i64,
    /// What credit notes gave back after it was paid.
    pub(super) credited_after: i64,
    /// The charge that paid it.
    pub(super) charge: Option<String>,
    /// Paid by other means.
    pub(super) paid_elsewhere: bool,
    pub(super) currency: String,
    pub(super) attempts: u32,
    pub(super) created: DateTime<Utc>,
    pub(super) finalized_at: Option<DateTime<Utc>>,
    pub(super) paid_at: Option<DateTime<Utc>>,
    pub(super) voided_at: Option<DateTime<Utc>>,
    pub(super) uncollectible_at: Option<DateTime<Utc>>,
    /// When it is finalised or charged next.
    pub(super) next_step: Option<DateTime<Utc>>,
}

/// An event as it was rendered, once; every delivery has these bytes.
#[derive(Debug, Clone)]
pub(super) struct SimEvent {
    pub(super) id: String,
    pub(super) event_type: String,
    pub(super) created: DateTime<Utc>,
    pub(super) body: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) products: BTreeMap<String, SimProduct>,
    pub(super) prices: BTreeMap<String, SimPrice>,
    pub(super) features: BTreeMap<String, SimFeature>,
    pub(super) meters: BTreeMap<String, SimMeter>,
    pub(super) readings: Vec<SimReading>,
    /// What is to be told about readings.
    pub(super) misread: Vec<SimMisread>,
    /// Events of the second generation, whole.
    pub(super) thin: BTreeMap<String, Value>,
    /// Sessions of the stream, and until when.
    pub(super) streams: BTreeMap<String, DateTime<Utc>>,
    pub(super) customers: BTreeMap<String, SimCustomer>,
    pub(super) sessions: BTreeMap<String, SimSession>,
    pub(super) portals: BTreeMap<String, SimPortal>,
    pub(super) subscriptions: BTreeMap<String, SimSubscription>,
    pub(super) schedules: BTreeMap<String, SimSchedule>,
    pub(super) invoices: BTreeMap<String, SimInvoice>,
    /// Invoices that may still do something by themselves.
    pub(super) moving: BTreeSet<String>,
    pub(super) charges: BTreeMap<String, SimCharge>,
    pub(super) refunds: BTreeMap<String, SimRefund>,
    pub(super) disputes: BTreeMap<String, SimDispute>,
    pub(super) credit_notes: BTreeMap<String, SimCreditNote>,
    pub(super) coupons: BTreeMap<String, SimCoupon>,
    pub(super) promotion_codes: BTreeMap<String, SimPromotionCode>,
    /// What automatic tax takes, in hundredths of a percent.
    pub(super) tax_rate: u32,
    /// Cards that were given to customers: whose, and which.
    pub(super) cards: BTreeMap<String, (String, TestCard)>,
    pub(super) test_clocks: BTreeMap<String, DateTime<Utc>>,
    pub(super) endpoints: BTreeMap<String, SimEndpoint>,
    /// Everything that ever happened, for `events.list`.
    pub(super) events: Vec<SimEvent>,
    /// What is still to be delivered.
    pub(super) queue: Vec<SimEvent>,
    /// Objects as the last event showed them, for `previous_attributes`.
    pub(super) shown: BTreeMap<String, Value>,
    /// Objects that cannot be read for now.
    pub(super) unreachable: BTreeSet<String>,
    /// Answers under their idempotency keys.
    pub(super) saved: BTreeMap<String, Saved>,
    /// What goes wrong with the next calls.
    pub(super) faults: VecDeque<Option<Fault>>,
    /// The only API key that is accepted; any of test mode if `None`.
    pub(super) accepted: Option<String>,
    /// Calls of the API that were answered or meant to be.
    pub(super) calls: u64,
    /// Where its own pages are, once a server is in front.
    pub(super) address: Option<String>,
    pub(super) minted: u64,
}

impl World {
    /// A new id of Stripe's form.
    pub(super) fn mint(&mut self, prefix: &str) -> String {
        self.minted += 1;
        format!("{prefix}_1SimQ{:08}", self.minted)
    }
}
