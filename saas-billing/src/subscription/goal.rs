//! What a tenant wants of its subscription, and the next step towards it. Pure: whoever drives brings what is there now.
//!
//! Every goal says how things shall be, never what to do: asked anew after a crash, in whatever state, it leads to the same
//! end, and a goal that is reached asks for nothing.

use chrono::{DateTime, Utc};
use saas_core::{PlanCatalog, plan::VersionState};
use serde::{Deserialize, Serialize};

use super::{Change, edit::Edit, schedule::Schedule};
use crate::{
    error::BillingError,
    merge::ContentHash,
    object::{BillingMode, ObjectId, Pause, PauseBehavior, PauseReason, Subscription, SubscriptionStatus},
    provider::{
        Cancellation, Command, CustomerUpdate, ItemChange, OnFailedPayment, Phase, Proration, SubscriptionChange,
    },
};

/// How things shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "goal", rename_all = "snake_case")]
pub(crate) enum Goal {
    /// These items, from now on.
    ItemsNow {
        edit: Edit,
        proration: Proration,
        proration_date: Option<DateTime<Utc>>,
        on_failed_payment: OnFailedPayment,
        /// What the change was previewed on; it is refused on anything else.
        basis: Option<String>,
    },
    /// These items, from the next period on.
    ItemsNext { edit: Edit, basis: Option<String> },
    /// The items of now, also in the next period: nothing is scheduled, nothing waits.
    AsIs,
    /// An end, or none.
    End { when: Cancellation },
    /// No collection, or collection again.
    Pause { behavior: PauseBehavior, resumes_at: Option<DateTime<Utc>> },
    /// Neither paused by us nor by the end of a trial.
    Running,
    /// Other words on the customer's invoices.
    Details { update: CustomerUpdate },
}

impl Goal {
    /// What of it may stand in the audit log: nothing of a person.
    pub(crate) fn audited(&self) -> serde_json::Value {
        match self {
            Self::Details { update } => serde_json::json!({
                "email": update.email.is_some(), "name": update.name.is_some(), "address": update.address.is_some(),
            }),
            Self::ItemsNow { .. }
            | Self::ItemsNext { .. }
            | Self::AsIs
            | Self::End { .. }
            | Self::Pause { .. }
            | Self::Running => serde_json::to_value(self).unwrap_or_default(),
        }
    }

    /// What tells whether a repeat under the same key asks for the same: nothing that was looked up meanwhile.
    pub(crate) fn fingerprint(&self) -> ContentHash {
        let mut asked = self.clone();
        if let Self::ItemsNow { edit, .. } | Self::ItemsNext { edit, .. } = &mut asked {
            edit.usage = None;
        }
        ContentHash::of(&asked)
    }

    /// A word for people.
    pub(crate) const fn what(&self) -> &'static str {
        match self {
            Self::ItemsNow { .. } => "change_items",
            Self::ItemsNext { .. } => "schedule_items",
            Self::AsIs => "withdraw_change",
            Self::End { when: Cancellation::Never } => "keep_subscription",
            Self::End { when: Cancellation::Now | Cancellation::NowProrated | Cancellation::AtPeriodEnd } => {
                "cancel_subscription"
            }
            Self::Pause { .. } => "pause_subscription",
            Self::Running => "resume_subscription",
            Self::Details { .. } => "update_customer",
        }
    }
}

/// What is there now, as Stripe has just said.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) subscription: Subscription,
    /// The schedule that the subscription is under.
    pub(crate) schedule: Option<Schedule>,
}

const CHANGE_ITEMS: &str = "change_items";
const ATTACH_SCHEDULE: &str = "attach_schedule";

/// What is to be done about a goal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// One write; then look again.
    Do(&'static str, Command),
    /// Nothing more.
    Stop(Change),
}

/// The next step towards a goal, after those that were done.
pub(crate) fn next(goal: &Goal, seen: &Seen, catalog: &PlanCatalog, done: &[String]) -> Result<Next, BillingError> {
    let begun = !done.is_empty();
    let reached = || Next::Stop(if begun { Change::Made } else { Change::Already });
    match goal {
        Goal::ItemsNow { edit, proration, proration_date, on_failed_payment, basis } => {
            let subscription = &seen.subscription;
            let changes = edit.changes(subscription, catalog);
            if changes.is_empty() && subscription.pending.is_none() {
                return Ok(reached());
            }
            if let Some(pending) = &subscription.pending {
                let mut wanted = edit.target(subscription, catalog);
                wanted.sort();
                if same_items(&pending.items, &wanted) {
                    let (invoice, until) = (subscription.latest_invoice.clone(), pending.expires_at);
                    return Ok(Next::Stop(Change::AwaitingPayment { invoice, until }));
                }
                return Err(forbids(
                    "the change",
                    "another change waits for its payment",
                    "pay the invoice, or withdraw that change",
                ));
            }
            if done.iter().any(|step| step == CHANGE_ITEMS) {
                // Stripe took it on, and it is not so any more: the payment did not come.
                return Ok(Next::Stop(Change::RolledBack));
            }
            may_change(seen)?;
            edit.may_be_sold(subscription, catalog)?;
            is_on(basis.as_deref(), seen)?;
            if drops_usage(subscription, &changes) {
                charges_usage(subscription, *proration)?;
            }
            if let Some(schedule) = &seen.schedule {
                if schedule.following().is_none() {
                    return Ok(Next::Do("release_schedule", Command::ReleaseSchedule(schedule.id.clone())));
                }
                return Err(forbids("the change", "another one is scheduled", "withdraw that one first"));
            }
            // A trial is charged nothing that could be credited, and no payment can fail.
            let trial = subscription.status == SubscriptionStatus::Trialing;
            // A change that waits takes no item away
            // (<https://docs.stripe.com/billing/subscriptions/pending-updates-reference>): it is made at once, or not at all.
            let removes = changes.iter().any(|change| matches!(change, ItemChange::Remove { .. }));
            let waits = match on_failed_payment {
                OnFailedPayment::Wait if removes && !trial => OnFailedPayment::Refuse,
                asked => *asked,
            };
            Ok(Next::Do(
                CHANGE_ITEMS,
                Command::ChangeSubscription(SubscriptionChange {
                    subscription: subscription.id.clone(),
                    items: changes,
                    proration: if trial { Proration::None } else { *proration },
                    proration_date: proration_date.filter(|_| !trial),
                    on_failed_payment: waits,
                }),
            ))
        }
        Goal::ItemsNext { edit, basis } => next_period(edit, basis.as_deref(), seen, catalog, done),
        Goal::AsIs => {
            let subscription = &seen.subscription;
            if let (Some(_), Some(invoice)) = (&subscription.pending, &subscription.latest_invoice) {
                return Ok(Next::Do("void_invoice", Command::VoidInvoice(invoice.clone())));
            }
            match &seen.schedule {
                Some(schedule) => Ok(Next::Do("release_schedule", Command::ReleaseSchedule(schedule.id.clone()))),
                None => Ok(reached()),
            }
        }
        Goal::End { when } => end(*when, seen, begun),
        Goal::Pause { behavior, resumes_at } => {
            let subscription = &seen.subscription;
            let wanted = Pause { behavior: behavior.clone(), resumes_at: *resumes_at };
            if subscription.pause.as_ref() == Some(&wanted) {
                return Ok(reached());
            }
            is_live("pausing", subscription)?;
            let command = Command::PauseCollection {
                subscription: subscription.id.clone(),
                behavior: Some(behavior.clone()),
                resumes_at: *resumes_at,
            };
            Ok(Next::Do("pause_collection", command))
        }
        Goal::Running => {
            let subscription = &seen.subscription;
            is_live("resuming", subscription)?;
            let id = subscription.id.clone();
            if subscription.pause.is_some() {
                let command = Command::PauseCollection { subscription: id, behavior: None, resumes_at: None };
                return Ok(Next::Do("resume_collection", command));
            }
            if subscription.status != SubscriptionStatus::Paused {
                return Ok(reached());
            }
            if begun {
                // Stripe resumes it when the invoice that it has made is paid.
                let invoice = subscription.latest_invoice.clone();
                return Ok(Next::Stop(Change::AwaitingPayment { invoice, until: None }));
            }
            let reason = subscription.paused.as_ref().and_then(|paused| paused.reason.as_ref());
            if reason.is_some_and(|reason| *reason != PauseReason::TrialEnd) {
                // A new period would begin, and what was paid of the present one would be lost.
                let why = "it is paused for another reason than the end of its trial";
                return Err(forbids("resuming", why, "resume it at Stripe, where the rest of its period is seen"));
            }
            Ok(Next::Do("resume_subscription", Command::ResumeSubscription(id)))
        }
        Goal::Details { update } => Ok(details(update, done)),
    }
}

/// The next step towards other words on invoices. They are the customer's, whatever its subscription is.
pub(super) fn details(update: &CustomerUpdate, done: &[String]) -> Next {
    if done.is_empty() {
        return Next::Do("update_customer", Command::UpdateCustomer(update.clone()));
    }
    Next::Stop(Change::Made)
}

fn next_period(
    edit: &Edit,
    basis: Option<&str>,
    seen: &Seen,
    catalog: &PlanCatalog,
    done: &[String],
) -> Result<Next, BillingError> {
    let (subscription, begun) = (&seen.subscription, !done.is_empty());
    let reached = |change| Next::Stop(if begun { change } else { Change::Already });
    let mut target = edit.target(subscription, catalog);
    target.sort();
    let following = seen.schedule.as_ref().and_then(Schedule::following);
    if let (Some(schedule), Some(phase)) = (&seen.schedule, following)
        && same_items(&phase.items, &target)
    {
        return Ok(Next::Stop(Change::Scheduled { at: schedule.present_end() }));
    }
    let changes = edit.changes(subscription, catalog);
    if changes.is_empty() {
        return Ok(match &seen.schedule {
            // As it is now is what is wanted then: what was scheduled otherwise is let go.
            Some(schedule) => Next::Do("release_schedule", Command::ReleaseSchedule(schedule.id.clone())),
            None => reached(Change::Made),
        });
    }
    if subscription.pending.is_some() {
        let remedy = "pay the invoice, or withdraw that change";
        return Err(forbids("scheduling a change", "another change waits for its payment", remedy));
    }
    may_change(seen)?;
    edit.may_be_sold(subscription, catalog)?;
    if !begun {
        is_on(basis, seen)?;
    }
    if subscription.cancel_at_period_end || subscription.cancel_at.is_some() {
        let remedy = "undo the cancellation first";
        return Err(forbids("scheduling a change", "the subscription ends by itself before", remedy));
    }
    // A trial is charged nothing: what shall follow it can be put in place at once.
    if subscription.status == SubscriptionStatus::Trialing {
        return Ok(Next::Do(
            CHANGE_ITEMS,
            Command::ChangeSubscription(SubscriptionChange {
                subscription: subscription.id.clone(),
                items: changes,
                proration: Proration::None,
                proration_date: None,
                on_failed_payment: OnFailedPayment::Wait,
            }),
        ));
    }
    if drops_usage(subscription, &changes) {
        charges_usage(subscription, Proration::NextInvoice)?;
    }
    let Some(schedule) = &seen.schedule else {
        return Ok(Next::Do(ATTACH_SCHEDULE, Command::AttachSchedule(subscription.id.clone())));
    };
    // What was planned before counts its last phase from its own first day: after a short month that ends before the period.
    let period_end = subscription.items.iter().filter_map(|item| item.period).map(|period| period.end).max();
    let is_fresh = done.iter().any(|step| step == ATTACH_SCHEDULE);
    if schedule.following().is_none() && Some(schedule.present_end()) != period_end && !is_fresh {
        return Ok(Next::Do("release_schedule", Command::ReleaseSchedule(schedule.id.clone())));
    }
    let present = subscription.items.iter().map(|item| (item.price.id.clone(), item.quantity)).collect();
    let (start, end) = schedule.present;
    // Where both periods meet there is nothing else to prorate.
    let proration = if drops_usage(subscription, &changes) { Proration::NextInvoice } else { Proration::None };
    let discounts: Vec<ObjectId> = subscription.discounts.iter().map(|discount| discount.id.clone()).collect();
    let phases = vec![
        Phase {
            start: Some(start),
            end: Some(end),
            items: present,
            proration: Proration::None,
            discounts: discounts.clone(),
        },
        Phase { start: None, end: None, items: target, proration, discounts },
    ];
    Ok(Next::Do("plan_phases", Command::PlanPhases { schedule: schedule.id.clone(), phases }))
}

fn end(when: Cancellation, seen: &Seen, begun: bool) -> Result<Next, BillingError> {
    let subscription = &seen.subscription;
    let id = subscription.id.clone();
    let reached = |change| Next::Stop(if begun { change } else { Change::Already });
    let cancel = Next::Do("cancel", Command::CancelSubscription { subscription: id, when });
    match when {
        Cancellation::Now | Cancellation::NowProrated if subscription.is_final() => Ok(reached(Change::Made)),
        Cancellation::Now | Cancellation::NowProrated => Ok(cancel),
        Cancellation::AtPeriodEnd if subscription.is_final() => Ok(reached(Change::Made)),
        Cancellation::AtPeriodEnd if subscription.cancel_at_period_end => {
            let period = subscription.items.iter().filter_map(|item| item.period).map(|period| period.end).max();
            match subscription.cancel_at.or(period) {
                Some(at) => Ok(Next::Stop(Change::Scheduled { at })),
                None => Ok(reached(Change::Made)),
            }
        }
        Cancellation::Never if subscription.is_final() => Err(forbids(
            "keeping the subscription",
            "it has ended for good",
            "let the tenant subscribe anew, by a checkout",
        )),
        Cancellation::Never if !subscription.cancel_at_period_end && subscription.cancel_at.is_none() => {
            Ok(reached(Change::Made))
        }
        // A schedule would go on deciding about the end.
        Cancellation::AtPeriodEnd | Cancellation::Never => Ok(match &seen.schedule {
            Some(schedule) => Next::Do("release_schedule", Command::ReleaseSchedule(schedule.id.clone())),
            None => cancel,
        }),
    }
}

/// Whether its items may be changed. Total over Stripe's statuses.
fn may_change(seen: &Seen) -> Result<(), BillingError> {
    let what = "changing the subscription";
    if seen.subscription.pause.is_some() {
        return Err(forbids(what, "collection is paused: nobody would pay for it", "resume it first"));
    }
    match seen.subscription.status {
        SubscriptionStatus::Active | SubscriptionStatus::Trialing | SubscriptionStatus::Other(_) => Ok(()),
        SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid => {
            Err(forbids(what, "an invoice is not paid", "have it paid first; the portal leads there"))
        }
        SubscriptionStatus::Incomplete => {
            Err(forbids(what, "it was never paid for", "have the first payment completed"))
        }
        SubscriptionStatus::Paused => {
            let why = "it is paused, as after a trial that ended without a payment method";
            Err(forbids(what, why, "have one added if there is none, then resume it"))
        }
        SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired => {
            Err(forbids(what, "it has ended for good", "let the tenant subscribe anew, by a checkout"))
        }
    }
}

/// Whether a usage price goes.
fn drops_usage(subscription: &Subscription, changes: &[ItemChange]) -> bool {
    let metered = |id: &ObjectId| subscription.items.iter().any(|item| item.id == *id && item.price.metered);
    changes.iter().any(|change| match change {
        ItemChange::Remove { item } | ItemChange::Set { item, price: Some(_), .. } => metered(item),
        ItemChange::Set { price: None, .. } | ItemChange::Add { .. } => false,
    })
}

/// Refuses to let a usage price go where Stripe would never charge what was used at it
/// (<https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup>).
fn charges_usage(subscription: &Subscription, proration: Proration) -> Result<(), BillingError> {
    if subscription.status == SubscriptionStatus::Trialing {
        return Ok(());
    }
    if subscription.billing_mode.is_none() {
        return Err(forbids(
            "the change",
            "it takes a usage price away, and this version of Stripe's API does not say whether what was used is charged",
            "ask for API version 2025-06-30 or later",
        ));
    }
    if subscription.billing_mode != Some(BillingMode::Flexible) {
        return Err(forbids(
            "the change",
            "it takes a usage price away, and in the classic billing mode Stripe never charges what was used at it",
            "migrate the subscription to Stripe's flexible billing mode first",
        ));
    }
    if proration == Proration::None {
        return Err(forbids(
            "the change",
            "it takes a usage price away, and without proration Stripe never charges what was used at it",
            "let it be prorated, or hold from the next period on",
        ));
    }
    Ok(())
}

fn is_live(what: &'static str, subscription: &Subscription) -> Result<(), BillingError> {
    if subscription.is_final() {
        return Err(forbids(what, "the subscription has ended for good", "let the tenant subscribe anew"));
    }
    if subscription.status == SubscriptionStatus::Incomplete {
        return Err(forbids(what, "the subscription was never paid for", "have the first payment completed"));
    }
    Ok(())
}

/// Refuses a change of what was not what its preview was about.
fn is_on(basis: Option<&str>, seen: &Seen) -> Result<(), BillingError> {
    if basis.is_none_or(|basis| basis == basis_of(seen)) {
        return Ok(());
    }
    let why = "the subscription is not what the preview was about any more";
    Err(forbids("the change", why, "show the tenant a new preview"))
}

/// What a preview is about.
pub(crate) fn basis_of(seen: &Seen) -> String {
    let subscription = &seen.subscription;
    // One that plans nothing more is stepped over: it is let go on the way.
    let planned = seen.schedule.as_ref().filter(|schedule| schedule.following().is_some()).map(|schedule| &schedule.id);
    let items: Vec<_> =
        subscription.items.iter().map(|item| (&item.id, &item.price.id, item.quantity, item.period)).collect();
    let state = (&subscription.id, &subscription.status, planned, &subscription.pending);
    ContentHash::of(&(state, items, subscription.cancel_at_period_end)).as_str().to_owned()
}

/// Whether a change is on sale: a version that is not active is for those who have it.
pub(super) fn on_sale(state: VersionState) -> bool {
    match state {
        VersionState::Active => true,
        VersionState::Draft | VersionState::Archived => false,
    }
}

/// Stripe leaves out the quantity of a metered price, and counts one where none is said.
pub(super) fn same_items(some: &[(ObjectId, Option<u64>)], others: &[(ObjectId, Option<u64>)]) -> bool {
    some.len() == others.len()
        && some.iter().zip(others).all(|((price, quantity), (other, count))| {
            price == other && (quantity == count || quantity.is_none() || count.is_none())
        })
}

pub(super) fn forbids(what: &'static str, why: &'static str, remedy: &'static str) -> BillingError {
    BillingError::StateForbids { what, why, remedy }
}

/// The change that an edit asks for, to be previewed.
pub(super) fn change_of(
    edit: &Edit,
    subscription: &Subscription,
    catalog: &PlanCatalog,
    proration: Proration,
    at: Option<DateTime<Utc>>,
) -> SubscriptionChange {
    let items: Vec<ItemChange> = edit.changes(subscription, catalog);
    SubscriptionChange {
        subscription: subscription.id.clone(),
        items,
        proration,
        proration_date: at,
        on_failed_payment: OnFailedPayment::Wait,
    }
}
