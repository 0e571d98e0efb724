//! What a tenant has, as a pure function of its Stripe objects: plan, seats, period, who is owed money since when.
//!
//! Promises: total over every status Stripe has or may invent; independent of the order in which objects arrived; no clock
//! inside, since time enters only when the answer is read ([`DunningTerms::standing`]). An unknown price keeps the last
//! known plan and raises an alert. Leaves storing and telling to the service.

mod dunning;
mod objects;
mod plan;
mod tenure;

pub use dunning::Debt;
pub use objects::{AnyMerged, TenantObjects};
#[cfg(feature = "postgres")]
pub(crate) use plan::plan_item;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use saas_core::{
    AddOnKey, PlanCatalog, PlanKey, PlanVersionRef,
    subscription::{AccessLevel, PastPlan, PlanAssignment},
};
use serde::{Deserialize, Serialize};

use crate::{
    dunning::DunningTerms,
    merge::{Fact, Merged},
    money::Currency,
    object::{ObjectId, ObjectKind, Period, Subscription, SubscriptionStatus},
    revenue::Recurring,
};

/// What a tenant has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derived {
    /// The plan that was bought; `None` when nothing live was, and the adopter's default plan holds.
    pub plan: Option<PlanVersionRef>,
    /// The subscription that decides.
    pub subscription: Option<ObjectId>,
    /// Its status.
    pub status: Option<SubscriptionStatus>,
    /// Units of the plan's item.
    pub seats: Option<u64>,
    /// What was bought beside the plan, and how many of each.
    #[serde(default)]
    pub addons: BTreeMap<AddOnKey, u32>,
    /// The present period of the plan's item.
    pub period: Option<Period>,
    /// What periods count from; the start of the present one where Stripe does not say.
    #[serde(default)]
    pub anchor: Option<DateTime<Utc>>,
    /// When the trial ends or ended.
    pub trial_end: Option<DateTime<Utc>>,
    /// When the plan ends by itself.
    pub ends_at: Option<DateTime<Utc>>,
    /// When the first failure of the oldest unpaid invoice was. Of several live subscriptions all count, unless the one
    /// that decides is paid.
    pub unpaid_since: Option<DateTime<Utc>>,
    /// The invoices that are owed and can be paid, with the instant at which the clock of each began.
    #[serde(default)]
    pub debts: BTreeMap<ObjectId, Debt>,
    /// Since when it is that version of that plan, or the default plan again; `None` for who never had another.
    #[serde(default)]
    pub since: Option<DateTime<Utc>>,
    /// The plans before it, the latest first. The default plan has no version: it was the newest.
    #[serde(default)]
    pub before: Vec<PastPlan>,
    /// Since when there is no access whatever is paid: the trial ended without a payment method.
    pub suspended_since: Option<DateTime<Utc>>,
    /// What recurs of all its subscriptions.
    #[serde(default)]
    pub revenue: Recurring,
    /// What a person should look at.
    pub alerts: BTreeSet<Alert>,
    /// What must be fetched before the answer is certain. Work to do, not part of what is stored.
    #[serde(skip)]
    pub fetches: BTreeSet<FetchRequest>,
}

impl Derived {
    /// What the tenant is on at `now`; `default_plan` when nothing live was bought.
    #[must_use]
    pub fn assignment(&self, terms: &DunningTerms, default_plan: &PlanKey, now: DateTime<Utc>) -> PlanAssignment {
        let (since, before) = (self.since, self.before.clone());
        let Some(bought) = &self.plan else {
            return PlanAssignment { since, before, ..PlanAssignment::active(default_plan.clone()) };
        };
        PlanAssignment {
            plan: bought.plan.clone(),
            version: Some(bought.version),
            standing: terms.standing(self.unpaid_since, self.suspended_since, now),
            anchor: self.anchor,
            ends_at: self.ends_at,
            addons: self.addons.iter().map(|(addon, quantity)| (addon.clone(), *quantity)).collect(),
            since,
            before,
        }
    }

    /// What the tenant pays per month at `at`, in minor units per currency: nothing where the policy gives no access any more.
    /// The gate, the dunning and the numbers ask one policy.
    #[must_use]
    pub fn revenue_at(&self, terms: &DunningTerms, at: DateTime<Utc>) -> BTreeMap<Currency, i64> {
        let mut paying = self.revenue.at(at);
        let access = terms.standing(self.unpaid_since, self.suspended_since, at).access(at);
        if access == AccessLevel::Suspended {
            paying.values_mut().for_each(|minor| *minor = 0);
        }
        paying
    }

    /// The next instant after `at` at which time alone may change that.
    #[must_use]
    pub fn next_revenue_boundary(&self, terms: &DunningTerms, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let spans = self.revenue.next_boundary(at);
        let (_, suspended_from) = terms.instants(self.unpaid_since, self.suspended_since);
        let has_revenue = !self.revenue.spans().is_empty();
        [spans, suspended_from.filter(|from| has_revenue && *from > at)].into_iter().flatten().min()
    }

    /// What the tenant is on, for the record: at any instant of the future the same as [`assignment`](Self::assignment) will
    /// say then, if nothing new is heard. `None` when nothing was ever bought.
    #[must_use]
    pub fn on_record(&self, terms: &DunningTerms, default_plan: &PlanKey) -> Option<PlanAssignment> {
        if self.plan.is_none() && self.since.is_none() {
            return None;
        }
        // A debt counts from its own instant on, which Stripe's clock may put ahead of ours.
        let as_of = self.unpaid_since.unwrap_or(DateTime::UNIX_EPOCH);
        Some(self.assignment(terms, default_plan, as_of))
    }

    /// Whether the answer to "which plan, and is it paid" is the same.
    #[must_use]
    pub fn answers_like(&self, other: &Self) -> bool {
        (&self.plan, &self.addons, self.anchor, self.ends_at, self.unpaid_since, self.suspended_since)
            == (&other.plan, &other.addons, other.anchor, other.ends_at, other.unpaid_since, other.suspended_since)
            && (self.since, &self.before) == (other.since, &other.before)
    }
}

/// Something that is not an error and should not stay unseen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "alert", rename_all = "snake_case")]
pub enum Alert {
    /// No plan of the catalogue has this price; the last known plan is kept.
    UnknownPrice {
        /// The subscription.
        subscription: ObjectId,
        /// Its price.
        price: ObjectId,
    },
    /// The items belong to different plans; the first by item id counts.
    SeveralPlans {
        /// The subscription.
        subscription: ObjectId,
    },
    /// More than one subscription is live; the best counts, the customer pays for all.
    SeveralSubscriptions {
        /// All that are live.
        subscriptions: BTreeSet<ObjectId>,
    },
    /// A status that this version does not know; access is kept if there was any.
    UnknownStatus {
        /// The subscription.
        subscription: ObjectId,
        /// Stripe's word.
        status: String,
    },
    /// Collection is paused: access stays, no money comes in.
    CollectionPaused {
        /// The subscription.
        subscription: ObjectId,
    },
    /// The subscription is behind, and no invoice that is known says since when; the first report of it counts.
    UnexplainedDebt {
        /// The subscription.
        subscription: ObjectId,
    },
    /// Nothing but the id of a discount is known; until a read of Stripe brings its terms, revenue counts at list price.
    UnknownDiscount {
        /// The subscription.
        subscription: ObjectId,
        /// The discount.
        discount: ObjectId,
    },
    /// The customer was deleted at Stripe; the tenant keeps its link.
    CustomerDeleted {
        /// The customer.
        customer: ObjectId,
    },
}

/// An object to be read from Stripe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FetchRequest {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its id.
    pub id: ObjectId,
    /// Why.
    pub reason: String,
}

/// Derives what a tenant has from its objects.
#[must_use]
pub fn derive(objects: &TenantObjects, catalog: &PlanCatalog) -> Derived {
    let mut derived = Derived { alerts: alerts(objects), fetches: objects.fetches(), ..Derived::default() };
    for merged in objects.subscriptions.values() {
        let of_customer = objects.customers.get(&merged.value().customer);
        derived.revenue.add(merged.value(), of_customer.and_then(|customer| customer.value().discount.as_ref()));
        look_for_terms(merged, &mut derived);
    }
    let live: Vec<(u8, &Merged<Subscription>)> =
        objects.subscriptions.values().filter_map(|merged| Some((preference(merged)?, merged))).collect();
    if live.len() > 1 {
        let subscriptions = live.iter().map(|(_, merged)| merged.value().id.clone()).collect();
        derived.alerts.insert(Alert::SeveralSubscriptions { subscriptions });
    }
    let choices = live.iter().map(|(preference, merged)| {
        let choice = plan::choose(merged, catalog, &mut derived.alerts);
        ((*preference, choice.rank, merged.value().created, &merged.value().id), merged, choice)
    });
    let Some((_, best, choice)) = choices.max_by(|a, b| a.0.cmp(&b.0)) else {
        (derived.since, derived.before) = tenure::since_and_before(objects, catalog, (None, None));
        return derived;
    };
    let subscription = best.value();
    derived.plan = choice.plan;
    derived.addons = plan::addons(subscription, catalog);
    let present = (derived.plan.as_ref(), Some(&subscription.id));
    (derived.since, derived.before) = tenure::since_and_before(objects, catalog, present);
    derived.seats = choice.item.and_then(|item| item.quantity);
    derived.period = choice.item.and_then(|item| item.period);
    derived.anchor = subscription.anchor.or(derived.period.map(|period| period.start));
    derived.trial_end = subscription.trial_end;
    derived.ends_at = subscription
        .cancel_at
        .or_else(|| derived.period.filter(|_| subscription.cancel_at_period_end).map(|period| period.end));
    derived.suspended_since = (subscription.status == SubscriptionStatus::Paused).then(|| {
        subscription
            .paused
            .as_ref()
            .and_then(|paused| paused.since)
            .or(subscription.trial_end)
            .unwrap_or_else(|| best.as_of())
    });
    // Who pays for what they have is not locked out by the debt of something else; a trial pays for nothing.
    let paid = subscription.status == SubscriptionStatus::Active;
    let payers: Vec<_> =
        live.iter().map(|(_, merged)| *merged).filter(|merged| !paid || merged.value().id == subscription.id).collect();
    let owed = dunning::owed(objects, &payers);
    derived.unpaid_since = owed.since;
    derived.debts = owed.debts;
    derived.alerts.extend(owed.alerts);
    derived.fetches.extend(owed.fetches);
    derived.subscription = Some(subscription.id.clone());
    derived.status = Some(subscription.status.clone());
    derived
}

/// Events hold nothing but the ids of discounts since 2025: what they take off is to be read. What a read does not say either
/// stays unknown.
fn look_for_terms(merged: &Merged<Subscription>, derived: &mut Derived) {
    let subscription = merged.value();
    if subscription.is_final() {
        return;
    }
    let all = subscription.items.iter().flat_map(|item| &item.discounts).chain(&subscription.discounts);
    for unknown in all.filter(|discount| discount.terms.is_none()) {
        let (subscription, discount) = (subscription.id.clone(), unknown.id.clone());
        let reason = "a discount of which only the id is known".to_owned();
        if !merged.was_read() {
            derived.fetches.insert(FetchRequest { kind: ObjectKind::Subscription, id: subscription.clone(), reason });
        }
        derived.alerts.insert(Alert::UnknownDiscount { subscription, discount });
    }
}

/// How good a claim to access a subscription is; `None` for none. Total over Stripe's statuses.
fn preference(merged: &Merged<Subscription>) -> Option<u8> {
    let started = merged.history().facts().any(|(fact, _)| *fact == Fact::SubscriptionStarted);
    match merged.value().status {
        SubscriptionStatus::Active | SubscriptionStatus::Trialing => Some(4),
        SubscriptionStatus::PastDue => Some(3),
        SubscriptionStatus::Unpaid => Some(2),
        SubscriptionStatus::Paused => Some(1),
        // Never paid.
        SubscriptionStatus::Incomplete => None,
        SubscriptionStatus::IncompleteExpired | SubscriptionStatus::Canceled => None,
        // A word of tomorrow takes nothing away from whoever had access.
        SubscriptionStatus::Other(_) => started.then_some(3),
    }
}

fn alerts(objects: &TenantObjects) -> BTreeSet<Alert> {
    let mut alerts = BTreeSet::new();
    for merged in objects.customers.values() {
        if merged.value().deleted {
            alerts.insert(Alert::CustomerDeleted { customer: merged.value().id.clone() });
        }
    }
    for merged in objects.subscriptions.values() {
        let value = merged.value();
        if let SubscriptionStatus::Other(status) = &value.status {
            alerts.insert(Alert::UnknownStatus { subscription: value.id.clone(), status: status.clone() });
        }
        if value.pause.is_some() && !value.is_final() {
            alerts.insert(Alert::CollectionPaused { subscription: value.id.clone() });
        }
    }
    alerts
}

#[cfg(test)]
mod tests;
