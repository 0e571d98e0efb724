//! What is to be done about each type of event: one table, read at the door, by the worker and by the check of the endpoint's
//! subscriptions.
//!
//! A type that is not in it is stored and ignored. A row that ends in `.*` stands for what Stripe may add to a family.

use crate::object::ObjectKind;

/// What is to be done about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The object in it is one of those that are merged.
    Merge(ObjectKind),
    /// It hangs on an object that is merged, and does not say all of it: that one is read from Stripe. It is named in the
    /// first of these places that holds an id; where none does, nothing is to be done.
    Fetch(&'static [Place]),
    /// It announces a report of usage that Stripe took and does not count; the report is read from Stripe.
    UsageReport,
    /// Nothing of a tenant's follows from it; an operator is told.
    Notice(NoticeRule),
    /// Nothing, and why.
    Ignore(&'static str),
}

/// Where an event's object names another one. What it no longer names is looked for in `previous_attributes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The kind of what is named.
    pub kind: ObjectKind,
    /// The field, from the outside in.
    pub path: &'static [&'static str],
}

/// What an operator is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoticeRule {
    /// What it is about.
    pub kind: NoticeKind,
    /// The fields that name a customer or a charge, whose tenant it concerns.
    pub about: &'static [&'static str],
    /// Only if this field holds this text.
    pub only: Option<(&'static str, &'static str)>,
}

/// What an operator is told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// A product, price, coupon, promotion code, tax rate or meter was changed at Stripe, and not by us. The catalogue here
    /// stays as it is.
    CatalogueChanged,
    /// A card's owner has told the bank of fraud: a dispute is likely, and a refund may prevent it.
    EarlyFraudWarning,
    /// A direct debit can no longer be taken.
    MandateInactive,
    /// A threshold that was set at Stripe was passed.
    UsageAlert,
}

impl NoticeKind {
    #[cfg(feature = "postgres")]
    pub(crate) const ALL: [Self; 4] =
        [Self::CatalogueChanged, Self::EarlyFraudWarning, Self::MandateInactive, Self::UsageAlert];

    /// The form that is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CatalogueChanged => "catalogue_changed",
            Self::EarlyFraudWarning => "early_fraud_warning",
            Self::MandateInactive => "mandate_inactive",
            Self::UsageAlert => "usage_alert",
        }
    }
}

/// What a type of event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// What a tenant has.
    State,
    /// Where its money went, and what endangers it.
    Money,
    /// What is for sale.
    Catalogue,
    /// What was used.
    Metering,
    /// Stripe's test tools.
    Test,
}

/// A type of event, and what is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Such as `invoice.paid`, or `invoice.*` for all others of that family.
    pub event_type: &'static str,
    /// What it is for.
    pub tier: Tier,
    /// What is to be done.
    pub decision: Decision,
}

const UNKNOWN: Decision = Decision::Ignore("nothing hangs on this type");

/// What is to be done about events of a type.
#[must_use]
pub fn decision(event_type: &str) -> Decision {
    if let Some(row) = TABLE.iter().find(|row| row.event_type == event_type) {
        return row.decision;
    }
    let family = event_type.rsplit_once('.').map(|(family, _)| family);
    let stands_for = |row: &&Row| row.event_type.strip_suffix(".*").is_some_and(|name| Some(name) == family);
    TABLE.iter().find(stands_for).map_or(UNKNOWN, |row| row.decision)
}

/// The types that an endpoint has to be subscribed to; without the others nothing is lost.
pub fn needed() -> impl Iterator<Item = &'static str> {
    let needed = |row: &&Row| !row.event_type.ends_with('*') && !matches!(row.decision, Decision::Ignore(_));
    TABLE.iter().filter(needed).map(|row| row.event_type)
}

use ObjectKind::{Charge, CheckoutSession, CreditNote, Customer, Dispute, Invoice, Refund, Subscription};
use Tier::{Catalogue, Metering, Money, State, Test};

const OF_SCHEDULE: Decision =
    Decision::Fetch(&[at(Subscription, &["subscription"]), at(Subscription, &["released_subscription"])]);
const OF_DISCOUNT: Decision = Decision::Fetch(&[at(Subscription, &["subscription"]), at(Customer, &["customer"])]);
/// An invoice that is none yet, and what it will be for: what is known of that is made sure of before it is charged.
const OF_UPCOMING: Decision = Decision::Fetch(&[
    at(Subscription, &["subscription"]),
    at(Subscription, &["parent", "subscription_details", "subscription"]),
]);
/// Since 2025-03-31 a payment does not name its invoice; then `invoice.payment_action_required` is what tells.
const OF_PAYMENT: Decision = Decision::Fetch(&[at(Invoice, &["invoice"])]);
const OF_INVOICE_PAYMENT: Decision = Decision::Fetch(&[at(Invoice, &["invoice"])]);

const CHANGED: Decision = tell(NoticeKind::CatalogueChanged, &[], None);
const WARNED: Decision = tell(NoticeKind::EarlyFraudWarning, &["charge"], None);
const REVOKED: Decision = tell(NoticeKind::MandateInactive, &[], Some(("status", "inactive")));
const PASSED: Decision = tell(NoticeKind::UsageAlert, &["customer"], None);

const CARD: Decision =
    Decision::Ignore("no right depends on the card; the payments it makes or fails tell of themselves");
const PAID: Decision = Decision::Ignore("the charge and the invoice tell of it");
const GRANTS: Decision = Decision::Ignore("what a plan grants stands in the catalogue here");
const CREDITS: Decision = Decision::Ignore("Stripe's own credits; what they pay shows on the invoices");
const CLOCK: Decision = Decision::Ignore("a test clock has arrived; what happened on its way tells of itself");

/// Every type that is not simply ignored for being unknown.
pub const TABLE: &[Row] = &[
    merged(State, "checkout.session.completed", CheckoutSession),
    merged(State, "checkout.session.async_payment_succeeded", CheckoutSession),
    merged(State, "checkout.session.async_payment_failed", CheckoutSession),
    merged(State, "checkout.session.expired", CheckoutSession),
    merged(State, "checkout.session.*", CheckoutSession),
    merged(State, "customer.created", Customer),
    merged(State, "customer.updated", Customer),
    merged(State, "customer.deleted", Customer),
    merged(State, "customer.subscription.created", Subscription),
    merged(State, "customer.subscription.updated", Subscription),
    merged(State, "customer.subscription.deleted", Subscription),
    merged(State, "customer.subscription.paused", Subscription),
    merged(State, "customer.subscription.resumed", Subscription),
    merged(State, "customer.subscription.trial_will_end", Subscription),
    merged(State, "customer.subscription.pending_update_applied", Subscription),
    merged(State, "customer.subscription.pending_update_expired", Subscription),
    merged(State, "customer.subscription.*", Subscription),
    row(State, "subscription_schedule.created", OF_SCHEDULE),
    row(State, "subscription_schedule.updated", OF_SCHEDULE),
    row(State, "subscription_schedule.released", OF_SCHEDULE),
    row(State, "subscription_schedule.canceled", OF_SCHEDULE),
    row(State, "subscription_schedule.completed", OF_SCHEDULE),
    row(State, "subscription_schedule.aborted", OF_SCHEDULE),
    row(State, "subscription_schedule.expiring", OF_SCHEDULE),
    row(State, "subscription_schedule.*", OF_SCHEDULE),
    merged(State, "invoice.created", Invoice),
    merged(State, "invoice.finalized", Invoice),
    merged(State, "invoice.finalization_failed", Invoice),
    merged(State, "invoice.paid", Invoice),
    merged(State, "invoice.payment_succeeded", Invoice),
    merged(State, "invoice.payment_failed", Invoice),
    merged(State, "invoice.payment_action_required", Invoice),
    merged(State, "invoice.payment_attempt_required", Invoice),
    merged(State, "invoice.updated", Invoice),
    merged(State, "invoice.voided", Invoice),
    merged(State, "invoice.marked_uncollectible", Invoice),
    merged(State, "invoice.overdue", Invoice),
    merged(State, "invoice.overpaid", Invoice),
    row(State, "invoice.upcoming", OF_UPCOMING),
    merged(State, "invoice.will_be_due", Invoice),
    merged(State, "invoice.deleted", Invoice),
    merged(State, "invoice.*", Invoice),
    row(State, "invoice_payment.paid", OF_INVOICE_PAYMENT),
    row(State, "payment_method.attached", CARD),
    row(State, "payment_method.updated", CARD),
    row(State, "payment_method.automatically_updated", CARD),
    row(State, "payment_method.detached", CARD),
    row(State, "customer.discount.created", OF_DISCOUNT),
    row(State, "customer.discount.updated", OF_DISCOUNT),
    row(State, "customer.discount.deleted", OF_DISCOUNT),
    row(State, "entitlements.active_entitlement_summary.updated", GRANTS),
    merged(Money, "charge.succeeded", Charge),
    merged(Money, "charge.failed", Charge),
    merged(Money, "charge.updated", Charge),
    merged(Money, "charge.refunded", Charge),
    merged(Money, "charge.*", Charge),
    merged(Money, "refund.created", Refund),
    merged(Money, "refund.updated", Refund),
    merged(Money, "refund.failed", Refund),
    merged(Money, "refund.*", Refund),
    // What it was called when refunds had no events of their own.
    merged(Money, "charge.refund.*", Refund),
    merged(Money, "charge.dispute.created", Dispute),
    merged(Money, "charge.dispute.updated", Dispute),
    merged(Money, "charge.dispute.closed", Dispute),
    merged(Money, "charge.dispute.funds_withdrawn", Dispute),
    merged(Money, "charge.dispute.funds_reinstated", Dispute),
    merged(Money, "charge.dispute.*", Dispute),
    merged(Money, "credit_note.created", CreditNote),
    merged(Money, "credit_note.updated", CreditNote),
    merged(Money, "credit_note.voided", CreditNote),
    merged(Money, "credit_note.*", CreditNote),
    row(Money, "radar.early_fraud_warning.created", WARNED),
    row(Money, "radar.early_fraud_warning.updated", WARNED),
    row(Money, "payment_intent.requires_action", OF_PAYMENT),
    row(Money, "payment_intent.succeeded", PAID),
    row(Money, "payment_intent.payment_failed", PAID),
    row(Money, "payment_intent.processing", PAID),
    row(Money, "payment_intent.canceled", PAID),
    row(Money, "setup_intent.succeeded", CARD),
    row(Money, "setup_intent.setup_failed", CARD),
    row(Money, "setup_intent.requires_action", CARD),
    row(Money, "mandate.updated", REVOKED),
    row(Catalogue, "product.created", CHANGED),
    row(Catalogue, "product.updated", CHANGED),
    row(Catalogue, "product.deleted", CHANGED),
    row(Catalogue, "product.*", CHANGED),
    row(Catalogue, "price.created", CHANGED),
    row(Catalogue, "price.updated", CHANGED),
    row(Catalogue, "price.deleted", CHANGED),
    row(Catalogue, "price.*", CHANGED),
    row(Catalogue, "coupon.created", CHANGED),
    row(Catalogue, "coupon.updated", CHANGED),
    row(Catalogue, "coupon.deleted", CHANGED),
    row(Catalogue, "coupon.*", CHANGED),
    row(Catalogue, "promotion_code.created", CHANGED),
    row(Catalogue, "promotion_code.updated", CHANGED),
    row(Catalogue, "promotion_code.*", CHANGED),
    row(Catalogue, "tax_rate.created", CHANGED),
    row(Catalogue, "tax_rate.updated", CHANGED),
    row(Catalogue, "tax_rate.*", CHANGED),
    row(Metering, "billing.alert.triggered", PASSED),
    row(Metering, "billing.credit_grant.created", CREDITS),
    row(Metering, "billing.credit_grant.updated", CREDITS),
    row(Metering, "billing.credit_balance_transaction.created", CREDITS),
    row(Metering, "billing.meter.created", CHANGED),
    row(Metering, "billing.meter.updated", CHANGED),
    row(Metering, "billing.meter.deactivated", CHANGED),
    row(Metering, "billing.meter.reactivated", CHANGED),
    row(Metering, "billing.meter.*", CHANGED),
    row(Metering, "v1.billing.meter.error_report_triggered", Decision::UsageReport),
    row(Metering, "v1.billing.meter.no_meter_found", Decision::UsageReport),
    row(Test, "test_helpers.test_clock.ready", CLOCK),
];

const fn row(tier: Tier, event_type: &'static str, decision: Decision) -> Row {
    Row { event_type, tier, decision }
}

const fn merged(tier: Tier, event_type: &'static str, kind: ObjectKind) -> Row {
    row(tier, event_type, Decision::Merge(kind))
}

const fn at(kind: ObjectKind, path: &'static [&'static str]) -> Place {
    Place { kind, path }
}

const fn tell(
    kind: NoticeKind,
    about: &'static [&'static str],
    only: Option<(&'static str, &'static str)>,
) -> Decision {
    Decision::Notice(NoticeRule { kind, about, only })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_type_has_one_row() {
        let types: BTreeSet<&str> = TABLE.iter().map(|row| row.event_type).collect();
        assert_eq!(types.len(), TABLE.len());
    }

    #[test]
    fn a_family_stands_for_its_own_types_and_for_no_other_ones() {
        assert_eq!(decision("invoice.quantum_entangled"), Decision::Merge(Invoice));
        assert_eq!(decision("charge.refund.updated"), Decision::Merge(Refund));
        for unknown in
            ["customer.tax_id.created", "customer.*", "invoice", "invoiceitem.created", "quantum.flux", "", "."]
        {
            assert_eq!(decision(unknown), UNKNOWN, "{unknown}");
        }
    }

    #[test]
    fn what_is_ignored_says_why_and_need_not_be_subscribed_to() {
        let needed: BTreeSet<&str> = needed().collect();
        assert!(needed.contains("invoice.paid") && !needed.iter().any(|name| name.ends_with('*')));
        for row in TABLE {
            if let Decision::Ignore(why) = row.decision {
                assert!(why.len() > 10 && !needed.contains(row.event_type), "{}", row.event_type);
            }
        }
    }
}
