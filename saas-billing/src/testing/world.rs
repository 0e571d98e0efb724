//! The simulator's state: plain data, nothing decided here.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde_json::Value;

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

#[derive(Debug, Clone)]
pub(super) struct SimPrice {
    pub(super) id: String,
    pub(super) unit_amount: i64,
    pub(super) currency: String,
    pub(super) interval: String,
}

#[derive(Debug, Clone)]
pub(super) struct SimCustomer {
    pub(super) id: String,
    pub(super) email: String,
    pub(super) created: DateTime<Utc>,
    pub(super) deleted: bool,
    /// Charges fail until it is false again.
    pub(super) declines: bool,
    pub(super) has_payment_method: bool,
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
    pub(super) price: String,
    pub(super) quantity: u64,
    pub(super) trial_days: u32,
    pub(super) email: String,
}

#[derive(Debug, Clone)]
pub(super) struct SimSubscription {
    pub(super) id: String,
    pub(super) customer: String,
    pub(super) item: String,
    pub(super) price: String,
    pub(super) quantity: u64,
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
    pub(super) pause: Option<&'static str>,
}

#[derive(Debug, Clone)]
pub(super) struct SimInvoice {
    pub(super) id: String,
    pub(super) customer: String,
    pub(super) subscription: String,
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) amount: i64,
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
    pub(super) body: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) prices: BTreeMap<String, SimPrice>,
    pub(super) customers: BTreeMap<String, SimCustomer>,
    pub(super) sessions: BTreeMap<String, SimSession>,
    pub(super) subscriptions: BTreeMap<String, SimSubscription>,
    pub(super) invoices: BTreeMap<String, SimInvoice>,
    /// Everything that ever happened, for `events.list`.
    pub(super) events: Vec<SimEvent>,
    /// What is still to be delivered.
    pub(super) queue: Vec<SimEvent>,
    /// Objects as the last event showed them, for `previous_attributes`.
    pub(super) shown: BTreeMap<String, Value>,
    /// Objects that cannot be read for now.
    pub(super) unreachable: BTreeSet<String>,
    pub(super) minted: u64,
}

impl World {
    /// A new id of Stripe's form.
    pub(super) fn mint(&mut self, prefix: &str) -> String {
        self.minted += 1;
        format!("{prefix}_1SimQ{:08}", self.minted)
    }
}
