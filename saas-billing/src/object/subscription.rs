//! A recurring purchase.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    Discount, ObjectId, Unreadable,
    discount::WireDiscount,
    open_enum::open_enum,
    wire::{List, Reference, Text, currency, expect_object, instant, reference},
};

open_enum! {
    /// Stripe's eight statuses (<https://docs.stripe.com/api/subscriptions/object#subscription_object-status>).
    SubscriptionStatus {
        /// The first payment is outstanding. Never paid yet.
        Incomplete = "incomplete",
        /// The first payment did not come within 23 hours. Final.
        IncompleteExpired = "incomplete_expired",
        /// In its trial.
        Trialing = "trialing",
        /// Paid.
        Active = "active",
        /// A payment failed; Stripe still tries.
        PastDue = "past_due",
        /// Stripe has given up trying, and keeps drafting invoices.
        Unpaid = "unpaid",
        /// Ended. Final.
        Canceled = "canceled",
        /// Nothing is served and nothing charged: its trial ended without a payment method or, since API version 2026-09-30, for
        /// another reason.
        Paused = "paused",
    }
}

open_enum! {
    /// Why a subscription is paused: since API version 2026-09-30; before, there was the one reason.
    PauseReason {
        /// The trial ended without a payment method.
        TrialEnd = "trial_end_without_payment_method",
        /// Somebody asked for it.
        Requested = "pause_requested",
        /// The first payment failed.
        FirstPayment = "first_payment_failure",
        /// The last try of a payment failed.
        LastPayment = "final_payment_failure",
    }
}

open_enum! {
    /// How changes are charged (<https://docs.stripe.com/billing/subscriptions/billing-mode/compare>).
    BillingMode {
        /// As ever: a usage price that goes is not charged for what was used of it.
        Classic = "classic",
        /// The usual one since API version 2025-09-30.
        Flexible = "flexible",
    }
}

open_enum! {
    /// What happens to invoices while collection is paused.
    PauseBehavior {
        /// They stay drafts.
        KeepAsDraft = "keep_as_draft",
        /// They are written off.
        MarkUncollectible = "mark_uncollectible",
        /// They are voided.
        Void = "void",
    }
}

open_enum! {
    /// The unit of a billing interval.
    Interval {
        /// Daily.
        Day = "day",
        /// Weekly.
        Week = "week",
        /// Monthly.
        Month = "month",
        /// Yearly.
        Year = "year",
    }
}

/// What Stripe says of the status `paused`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedStatus {
    /// Since when.
    pub since: Option<DateTime<Utc>>,
    /// Why.
    pub reason: Option<PauseReason>,
}

/// Collection is paused: a fact beside the status, which stays what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// What happens to invoices meanwhile.
    pub behavior: PauseBehavior,
    /// When it ends by itself.
    pub resumes_at: Option<DateTime<Utc>>,
}

/// A billing period, from its first instant to the first instant of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Period {
    /// First instant.
    pub start: DateTime<Utc>,
    /// First instant after it.
    pub end: DateTime<Utc>,
}

/// What an item is charged by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// `price_…` (or a `plan` id of old).
    pub id: ObjectId,
    /// Minor units per unit and interval; `None` for tiers and metered decimals.
    pub unit_amount: Option<i64>,
    /// Lower-case ISO 4217.
    pub currency: Option<String>,
    /// Unit of the interval.
    pub interval: Option<Interval>,
    /// Units per interval.
    pub interval_count: u32,
    /// Charged by use, afterwards: nothing of it recurs for certain.
    #[serde(default)]
    pub metered: bool,
}

/// One line of a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionItem {
    /// `si_…`
    pub id: ObjectId,
    /// What it is charged by.
    pub price: Price,
    /// How many; `None` for metered prices.
    pub quantity: Option<u64>,
    /// Its present period; `None` when the payload says none in either of the places where Stripe puts it. Never zero.
    pub period: Option<Period>,
    /// What is taken off this item, in the order in which it is taken off.
    #[serde(default)]
    pub discounts: Vec<Discount>,
}

/// What we keep of a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// `sub_…`
    pub id: ObjectId,
    /// Who pays.
    pub customer: ObjectId,
    /// Stripe's status.
    pub status: SubscriptionStatus,
    /// The lines, by id.
    pub items: Vec<SubscriptionItem>,
    /// The payload did not hold all lines.
    pub items_truncated: bool,
    /// When it is to end.
    pub cancel_at: Option<DateTime<Utc>>,
    /// Ends with the present period.
    pub cancel_at_period_end: bool,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// When the trial ends or ended.
    pub trial_end: Option<DateTime<Utc>>,
    /// Collection is paused.
    pub pause: Option<Pause>,
    /// Since when its status is `paused`, and why, where Stripe says.
    #[serde(default)]
    pub paused: Option<PausedStatus>,
    /// `in_…`
    pub latest_invoice: Option<ObjectId>,
    /// When it was made at Stripe.
    pub created: Option<DateTime<Utc>>,
    /// What its periods count from.
    #[serde(default)]
    pub anchor: Option<DateTime<Utc>>,
    /// What is taken off the whole, in the order in which it is taken off.
    #[serde(default)]
    pub discounts: Vec<Discount>,
    /// A change of its items that waits for its payment.
    #[serde(default)]
    pub pending: Option<PendingUpdate>,
    /// The schedule that it is under, `sub_sched_…`.
    #[serde(default)]
    pub schedule: Option<ObjectId>,
    /// How changes are charged; before API version 2025-06-30 nobody says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub billing_mode: Option<BillingMode>,
}

/// A change that is made when it is paid and dropped when it is not
/// (<https://docs.stripe.com/billing/subscriptions/pending-updates>).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingUpdate {
    /// When it is dropped.
    pub expires_at: Option<DateTime<Utc>>,
    /// The items after it, by price; `None` where the quantity stays or is metered.
    pub items: Vec<(ObjectId, Option<u64>)>,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    object: Option<Text<'a>>,
    #[serde(borrow)]
    customer: Reference<'a>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    #[serde(borrow)]
    items: Option<List<WireItem<'a>>>,
    current_period_start: Option<i64>,
    current_period_end: Option<i64>,
    cancel_at: Option<i64>,
    cancel_at_period_end: Option<bool>,
    ended_at: Option<i64>,
    trial_end: Option<i64>,
    #[serde(borrow)]
    pause_collection: Option<WirePause<'a>>,
    #[serde(borrow)]
    status_details: Option<WireStatusDetails<'a>>,
    #[serde(borrow)]
    latest_invoice: Option<Reference<'a>>,
    created: Option<i64>,
    billing_cycle_anchor: Option<i64>,
    #[serde(borrow)]
    discounts: Option<Vec<WireDiscount<'a>>>,
    /// Before API version 2025-03-31 (basil): the first of them, whole.
    #[serde(borrow)]
    discount: Option<WireDiscount<'a>>,
    #[serde(borrow)]
    pending_update: Option<WirePending<'a>>,
    #[serde(borrow)]
    schedule: Option<Reference<'a>>,
    #[serde(borrow)]
    billing_mode: Option<WireBillingMode<'a>>,
}

#[derive(Deserialize)]
struct WireStatusDetails<'a> {
    #[serde(borrow)]
    paused: Option<WirePaused<'a>>,
}

#[derive(Deserialize)]
struct WirePaused<'a> {
    transitioned_at: Option<i64>,
    #[serde(borrow)]
    subscription: Option<WirePausedFor<'a>>,
}

#[derive(Deserialize)]
struct WirePausedFor<'a> {
    #[serde(borrow, rename = "type")]
    reason: Option<Text<'a>>,
}

impl WirePaused<'_> {
    fn read(self) -> Result<PausedStatus, Unreadable> {
        let reason = self.subscription.and_then(|paused| paused.reason);
        let reason = reason.map(|word| word.word("subscription.status_details")).transpose()?;
        Ok(PausedStatus { since: instant(self.transitioned_at), reason: reason.map(PauseReason::from) })
    }
}

#[derive(Deserialize)]
struct WireBillingMode<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct WirePending<'a> {
    expires_at: Option<i64>,
    #[serde(borrow)]
    subscription_items: Option<Vec<WirePendingItem<'a>>>,
}

#[derive(Deserialize)]
struct WirePendingItem<'a> {
    #[serde(borrow)]
    price: Option<Reference<'a>>,
    quantity: Option<u64>,
}

#[derive(Deserialize)]
struct WireItem<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    price: Option<WirePrice<'a>>,
    /// What a price was called before 2020.
    #[serde(borrow)]
    plan: Option<WirePrice<'a>>,
    quantity: Option<u64>,
    current_period_start: Option<i64>,
    current_period_end: Option<i64>,
    #[serde(borrow)]
    discounts: Option<Vec<WireDiscount<'a>>>,
}

#[derive(Deserialize)]
struct WirePrice<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    unit_amount: Option<i64>,
    amount: Option<i64>,
    #[serde(borrow)]
    currency: Option<Text<'a>>,
    #[serde(borrow)]
    recurring: Option<WireRecurring<'a>>,
    #[serde(borrow)]
    interval: Option<Text<'a>>,
    interval_count: Option<u32>,
    #[serde(borrow)]
    usage_type: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct WireRecurring<'a> {
    #[serde(borrow)]
    interval: Option<Text<'a>>,
    interval_count: Option<u32>,
    #[serde(borrow)]
    usage_type: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct WirePause<'a> {
    #[serde(borrow)]
    behavior: Option<Text<'a>>,
    resumes_at: Option<i64>,
}

impl Subscription {
    /// Whether it has ended for good.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.status, SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired)
    }

    /// What is missing to trust this value alone, if anything: then the object must be fetched.
    #[must_use]
    pub fn gap(&self) -> Option<&'static str> {
        if self.is_final() {
            return None;
        }
        if self.items_truncated || self.items.is_empty() {
            return Some("not all items in the payload");
        }
        self.items.iter().any(|item| item.period.is_none()).then_some("no billing period in the payload")
    }

    pub(crate) fn read<'de, D: serde::Deserializer<'de>>(
        json: D,
        deleted: bool,
    ) -> Result<Result<Self, Unreadable>, D::Error> {
        Ok(Self::from_wire(Wire::deserialize(json)?, deleted))
    }

    fn from_wire(wire: Wire<'_>, deleted: bool) -> Result<Self, Unreadable> {
        expect_object(wire.object.as_ref(), "subscription")?;
        let status = wire.status.ok_or_else(|| Unreadable::new("subscription without status"))?;
        let status = if deleted { SubscriptionStatus::Canceled } else { status.word("subscription.status")?.into() };
        let (wire_items, items_truncated) =
            wire.items.map_or_else(Default::default, |list| (list.data, list.has_more == Some(true)));
        // Before API version 2025-03-31 (basil) the period stood here; since then each item has its own.
        let common = period(wire.current_period_start, wire.current_period_end);
        let mut items = wire_items.into_iter().map(|item| item.read(common)).collect::<Result<Vec<_>, _>>()?;
        items.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Self {
            id: wire.id.id("subscription.id")?,
            customer: wire.customer.0.id("subscription.customer")?,
            status,
            items,
            items_truncated,
            cancel_at: instant(wire.cancel_at),
            cancel_at_period_end: wire.cancel_at_period_end.unwrap_or(false),
            ended_at: instant(wire.ended_at),
            trial_end: instant(wire.trial_end),
            pause: wire.pause_collection.map(WirePause::read).transpose()?,
            paused: wire.status_details.and_then(|of| of.paused).map(WirePaused::read).transpose()?,
            latest_invoice: reference("subscription.latest_invoice", wire.latest_invoice)?,
            created: instant(wire.created),
            anchor: instant(wire.billing_cycle_anchor),
            discounts: discounts(wire.discounts, wire.discount)?,
            pending: wire.pending_update.map(WirePending::read).transpose()?,
            schedule: reference("subscription.schedule", wire.schedule)?,
            billing_mode: wire
                .billing_mode
                .and_then(|mode| mode.kind)
                .map(|word| word.word("subscription.billing_mode"))
                .transpose()?
                .map(BillingMode::from),
        })
    }
}

/// A discount that stands in both places is whole in the older one.
fn discounts(
    listed: Option<Vec<WireDiscount<'_>>>,
    single: Option<WireDiscount<'_>>,
) -> Result<Vec<Discount>, Unreadable> {
    let mut discounts =
        listed.unwrap_or_default().into_iter().map(WireDiscount::read).collect::<Result<Vec<_>, _>>()?;
    let Some(single) = single.map(WireDiscount::read).transpose()? else { return Ok(discounts) };
    match discounts.iter_mut().find(|discount| discount.id == single.id) {
        Some(same) => same.terms = same.terms.take().or(single.terms),
        None => discounts.push(single),
    }
    Ok(discounts)
}

fn period(start: Option<i64>, end: Option<i64>) -> Option<Period> {
    Some(Period { start: instant(start)?, end: instant(end)? }).filter(|period| period.start <= period.end)
}

impl WireItem<'_> {
    fn read(self, common: Option<Period>) -> Result<SubscriptionItem, Unreadable> {
        let price = self.price.or(self.plan).ok_or_else(|| Unreadable::new("subscription item without price"))?;
        let (interval, interval_count, usage_type) = match price.recurring {
            Some(recurring) => (recurring.interval, recurring.interval_count, recurring.usage_type),
            None => (price.interval, price.interval_count, price.usage_type),
        };
        Ok(SubscriptionItem {
            id: self.id.id("subscription_item.id")?,
            price: Price {
                id: price.id.id("price.id")?,
                unit_amount: price.unit_amount.or(price.amount),
                currency: currency(price.currency),
                interval: interval.map(|word| word.word("price.interval")).transpose()?.map(Interval::from),
                interval_count: interval_count.unwrap_or(1).max(1),
                metered: usage_type.is_some_and(|word| word.as_str() == "metered"),
            },
            quantity: self.quantity,
            period: period(self.current_period_start, self.current_period_end).or(common),
            discounts: discounts(self.discounts, None)?,
        })
    }
}

impl WirePending<'_> {
    fn read(self) -> Result<PendingUpdate, Unreadable> {
        let mut items = Vec::new();
        for item in self.subscription_items.unwrap_or_default() {
            if let Some(price) = reference("pending_update.price", item.price)? {
                items.push((price, item.quantity));
            }
        }
        items.sort();
        Ok(PendingUpdate { expires_at: instant(self.expires_at), items })
    }
}

impl WirePause<'_> {
    fn read(self) -> Result<Pause, Unreadable> {
        let behavior = self.behavior.ok_or_else(|| Unreadable::new("pause_collection without behavior"))?;
        Ok(Pause { behavior: behavior.word("pause_collection.behavior")?.into(), resumes_at: instant(self.resumes_at) })
    }
}
