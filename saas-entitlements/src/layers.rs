//! What a plan version and the add-ons beside it give together, before roll-outs, overrides and the standing. Pure.

use saas_core::{
    Limit,
    plan::{AddOn, AddOnMode, FeatureId, MeterId, MeterLimit, PlanCatalog, PlanVersion, StaticValue},
};

use crate::{resolve::with_limit, snapshot::Facts};

/// The add-ons of a tenant, with their numbers, by name.
pub(crate) fn addons<'a>(catalog: &'a PlanCatalog, facts: &'a Facts) -> impl Iterator<Item = (&'a AddOn, u32)> + Clone {
    facts.addons.iter().filter_map(|(place, quantity)| Some((catalog.addons().get(usize::from(*place))?, *quantity)))
}

/// The limit of a meter. Add-ons that replace come first, then those that add: an addition is never lost.
pub(crate) fn limit<'a>(
    version: &PlanVersion,
    addons: impl Iterator<Item = (&'a AddOn, u32)> + Clone,
    meter: MeterId,
) -> Option<MeterLimit> {
    let planned = version.limit(meter);
    let mut units = planned.map(|rule| rule.limit);
    for mode in [AddOnMode::Override, AddOnMode::Stack] {
        for (addon, quantity) in addons.clone().filter(|(addon, _)| addon.mode() == mode) {
            let Some(given) = addon.limit(meter) else { continue };
            units = Some(match (mode, units) {
                (AddOnMode::Override, _) => given,
                (AddOnMode::Stack, before) => plus(before.unwrap_or(Limit::Max(0)), given, quantity),
            });
        }
    }
    let units = units?;
    if planned.is_some_and(|rule| rule.limit == units) { planned.cloned() } else { Some(with_limit(planned, units)) }
}

/// Values that are others than the plan's, ascending by feature.
pub(crate) fn values<'a>(
    version: &PlanVersion,
    addons: impl Iterator<Item = (&'a AddOn, u32)> + Clone,
    features: impl Iterator<Item = FeatureId>,
) -> Box<[(FeatureId, StaticValue)]> {
    let value = |feature| {
        let mut value = None;
        for mode in [AddOnMode::Override, AddOnMode::Stack] {
            for (addon, quantity) in addons.clone().filter(|(addon, _)| addon.mode() == mode) {
                let Some(given) = addon.value(feature) else { continue };
                let before = value.as_ref().or_else(|| version.value(feature));
                value = Some(match (mode, given, before) {
                    (AddOnMode::Stack, StaticValue::Integer(one), Some(StaticValue::Integer(before))) => {
                        StaticValue::Integer(before.saturating_add(one.saturating_mul(i64::from(quantity))))
                    }
                    (AddOnMode::Stack, StaticValue::Integer(one), _) => {
                        StaticValue::Integer(one.saturating_mul(i64::from(quantity)))
                    }
                    (_, given, _) => given.clone(),
                });
            }
        }
        Some((feature, value?))
    };
    features.filter_map(value).collect()
}

/// `before + quantity × one`; unlimited stays so, and the sum stops at what can be counted.
fn plus(before: Limit, one: Limit, quantity: u32) -> Limit {
    match (before, one) {
        (Limit::Unlimited, _) | (_, Limit::Unlimited) => Limit::Unlimited,
        (Limit::Max(before), Limit::Max(one)) => {
            let sum = before.saturating_add(one.saturating_mul(u64::from(quantity)));
            Limit::Max(sum.min(i64::MAX.unsigned_abs()))
        }
    }
}
