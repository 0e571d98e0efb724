//! Laws of the layers, for states made by chance.

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use saas_core::{
    Actor, AddOnKey, FeatureKey, Limit, MeterKey, PlanCatalog, PlanKey, Revision, TenantId,
    subscription::{PlanAssignment, Standing},
};
use saas_entitlements::{NewOverride, OverrideGrant, Snapshot, TenantState, resolve};

const CATALOG: &str = r#"
default_plan = "free"
[features]
csv = { kind = "boolean", fail = "closed" }
beta = { kind = "boolean", fail = "closed", rollout = { percent = 50, cohorts = ["friends"] } }
seats = { kind = "integer", fail = "open" }
api = { kind = "metered", meter = "calls", fail = "closed" }
[meters]
calls = { aggregation = "sum" }
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
grants = { seats = 1, beta = true }
[plans.pro]
rank = 1
[[plans.pro.versions]]
version = 1
grants = { seats = 5, csv = true }
limits.calls = { max = 100, window = "day", overage = "block" }
[addons.more]
mode = "stack"
max_quantity = 3
grants = { seats = 2, csv = true }
limits = { calls = 50 }
[addons.all]
mode = "stack"
grants = { beta = true }
limits = { calls = "unlimited" }
[addons.little]
mode = "override"
grants = { seats = 3 }
limits = { calls = 0 }
"#;

const FEATURES: [&str; 4] = ["csv", "beta", "seats", "api"];

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn settled(tenant: u128, state: TenantState) -> Snapshot {
    let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
    resolve(&catalog, TenantId::from_uuid(uuid::Uuid::from_u128(tenant)), state, now()).unwrap()
}

fn limit(snapshot: &Snapshot) -> Option<Limit> {
    snapshot.limit(&MeterKey::from_static("calls")).map(|rule| rule.limit)
}

/// Whether `more` is at least as much.
fn at_least(more: Option<Limit>, less: Option<Limit>) -> bool {
    match (more, less) {
        (_, None) | (Some(Limit::Unlimited), _) => true,
        (Some(Limit::Max(more)), Some(Limit::Max(less))) => more >= less,
        (None, Some(_)) | (Some(Limit::Max(_)), Some(Limit::Unlimited)) => false,
    }
}

prop_compose! {
    fn states()(
        pro in any::<bool>(), more in 0u32..4, all in any::<bool>(), little in any::<bool>(),
        friend in any::<bool>(), switched in proptest::option::of(any::<bool>()),
    ) -> TenantState {
        let key = AddOnKey::from_static;
        let addons = vec![(key("more"), more), (key("all"), u32::from(all)), (key("little"), u32::from(little))];
        let plan = PlanKey::from_static(if pro { "pro" } else { "free" });
        let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
        let switch = |on| {
            let grant = OverrideGrant::Switch { feature: FeatureKey::from_static("csv"), on };
            let new = NewOverride::new(grant, "by chance", now() + TimeDelta::days(1)).unwrap();
            new.issue(&catalog, &Actor::system("test"), now()).unwrap()
        };
        TenantState {
            revision: Revision::new(1),
            assignment: PlanAssignment { addons, ..PlanAssignment::active(plan) },
            overrides: switched.map(switch).into_iter().collect(),
            cohorts: friend.then(|| "friends".into()).into_iter().collect(),
        }
    }
}

proptest! {
    #[test]
    fn an_add_on_that_stacks_never_takes_anything_away(state in states(), tenant in 0u128..1_000, extra in 0usize..2) {
        let before = settled(tenant, state.clone());
        let mut bought = state;
        let (_, quantity) = &mut bought.assignment.addons[extra];
        *quantity = (*quantity + 1).min(if extra == 0 { 3 } else { 1 });
        let after = settled(tenant, bought);
        for feature in FEATURES.map(FeatureKey::from_static) {
            prop_assert!(after.is_feature_enabled(&feature) || !before.is_feature_enabled(&feature), "{feature}");
            prop_assert!(after.integer(&feature) >= before.integer(&feature), "{feature}");
        }
        prop_assert!(at_least(limit(&after), limit(&before)), "{:?} < {:?}", limit(&after), limit(&before));
    }

    #[test]
    fn an_override_decides_whatever_the_layers_below_it_say(state in states(), tenant in 0u128..1_000, max in 0u64..5) {
        let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
        let mut state = state;
        let switched = state.overrides.first().map(|found| found.grant == OverrideGrant::Switch {
            feature: FeatureKey::from_static("csv"), on: true,
        });
        let grant = OverrideGrant::Limit { meter: MeterKey::from_static("calls"), limit: Limit::Max(max) };
        let new = NewOverride::new(grant, "by chance", now() + TimeDelta::days(1)).unwrap();
        state.overrides.push(new.issue(&catalog, &Actor::system("test"), now()).unwrap());
        let snapshot = settled(tenant, state);
        prop_assert_eq!(limit(&snapshot), Some(Limit::Max(max)));
        prop_assert_eq!(snapshot.is_feature_enabled(&FeatureKey::from_static("api")), max > 0);
        if let Some(on) = switched {
            prop_assert_eq!(snapshot.is_feature_enabled(&FeatureKey::from_static("csv")), on);
        }
    }

    #[test]
    fn the_standing_only_takes_away(state in states(), tenant in 0u128..1_000, late in 0i64..4) {
        let paid = settled(tenant, state.clone());
        let mut unpaid = state;
        let (until, suspended_from) = (now() - TimeDelta::days(late - 1), now() - TimeDelta::days(late - 2));
        unpaid.assignment.standing = Standing::Grace { until, suspended_from };
        let unpaid = settled(tenant, unpaid);
        for feature in FEATURES.map(FeatureKey::from_static) {
            prop_assert!(paid.is_feature_enabled(&feature) || !unpaid.is_feature_enabled(&feature), "{feature}");
            // What is stored must not fall to nothing.
            prop_assert_eq!(paid.integer(&feature), unpaid.integer(&feature));
        }
        prop_assert_eq!(limit(&paid), limit(&unpaid));
    }
}
