//! Since when a tenant has its plan, and which it had before: by Stripe's clock, from all subscriptions it ever paid for.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use saas_core::{
    PlanCatalog, PlanVersionRef,
    subscription::{PLANS_REMEMBERED, PastPlan},
};

use super::{TenantObjects, plan};
use crate::{
    merge::{Fact, Merged},
    object::{ObjectId, Subscription},
};

/// A plan that a subscription gave, for as long as it did.
struct Spell<'a> {
    from: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
    plan: PlanVersionRef,
    /// As the choice between live subscriptions: what is not on record (who was behind, say) does not count for the past.
    claim: (u32, Option<DateTime<Utc>>, &'a ObjectId),
}

/// Since when the tenant has the plan that was derived from its subscriptions, and which plans it had before, the latest
/// first. Nothing for a tenant that never had a paid one.
pub(super) fn since_and_before(
    objects: &TenantObjects,
    catalog: &PlanCatalog,
    (present, deciding): (Option<&PlanVersionRef>, Option<&ObjectId>),
) -> (Option<DateTime<Utc>>, Vec<PastPlan>) {
    let spells: Vec<Spell<'_>> = objects.subscriptions.values().flat_map(|merged| spells(merged, catalog)).collect();
    let mut plans = plans(&spells);
    if plans.last().map(|(_, plan)| plan.as_ref()) != Some(present) {
        // Not the one that rank alone would choose: of the subscription that decides, then.
        let own = spells.iter().rfind(|spell| Some(spell.claim.2) == deciding && Some(&spell.plan) == present);
        let Some(own) = own else { return (None, Vec::new()) };
        plans.retain(|(since, _)| *since < own.from);
        plans.push((own.from, present.cloned()));
    }
    let Some((since, _)) = plans.pop() else { return (None, Vec::new()) };
    let default = &catalog.default_version().reference().plan;
    let past = |(since, plan): (DateTime<Utc>, Option<PlanVersionRef>)| {
        let since = Some(since);
        match plan {
            Some(plan) => PastPlan { plan: plan.plan, version: Some(plan.version), since },
            None => PastPlan { plan: default.clone(), version: None, since },
        }
    };
    let first = PastPlan { plan: default.clone(), version: None, since: None };
    let before = plans.into_iter().rev().map(past).chain([first]).take(PLANS_REMEMBERED).collect();
    (Some(since), before)
}

/// What one subscription gave since when.
fn spells<'a>(merged: &'a Merged<Subscription>, catalog: &PlanCatalog) -> Vec<Spell<'a>> {
    let subscription = merged.value();
    let mut facts = merged.history().facts();
    let Some((_, started)) = facts.find(|(fact, _)| **fact == Fact::SubscriptionStarted) else { return Vec::new() };
    // A read that cannot be dated counts from the beginning of time.
    let started = subscription.created.map_or(started, |created| started.max(created));
    let end = subscription.is_final().then(|| subscription.ended_at.unwrap_or_else(|| merged.as_of()));
    let mut spells: Vec<Spell<'a>> = Vec::new();
    for (since, prices) in merged.history().charged_by(subscription) {
        // What is no plan's price keeps the plan, as it does for the present one.
        let Some(plan) = prices.iter().find_map(|price| catalog.plan_for_price(price.as_str())) else { continue };
        if spells.last().is_some_and(|last| last.plan == plan) {
            continue;
        }
        let from = since.map_or(started, |since| since.max(started));
        if let Some(last) = spells.last_mut() {
            last.until = Some(from);
        }
        let claim = (plan::rank(catalog, &plan), subscription.created, &subscription.id);
        spells.push(Spell { from, until: None, plan, claim });
    }
    if let Some(last) = spells.last_mut() {
        last.until = end;
    }
    spells.retain(|spell| spell.until.is_none_or(|until| spell.from < until));
    spells
}

/// The plan from each instant at which it became another one; `None`: no subscription gave one.
fn plans(spells: &[Spell<'_>]) -> Vec<(DateTime<Utc>, Option<PlanVersionRef>)> {
    let boundaries: BTreeSet<DateTime<Utc>> =
        spells.iter().flat_map(|spell| [Some(spell.from), spell.until]).flatten().collect();
    let mut plans: Vec<(DateTime<Utc>, Option<PlanVersionRef>)> = Vec::new();
    for boundary in boundaries {
        let gives = |spell: &&Spell<'_>| spell.from <= boundary && spell.until.is_none_or(|until| boundary < until);
        let best = spells.iter().filter(gives).max_by(|a, b| a.claim.cmp(&b.claim)).map(|spell| spell.plan.clone());
        if plans.last().is_none_or(|(_, last)| *last != best) {
            plans.push((boundary, best));
        }
    }
    plans
}
