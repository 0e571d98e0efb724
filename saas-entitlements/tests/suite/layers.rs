//! What plan, add-ons, roll-out, override and standing give together, and how that is explained.

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    AddOnKey, FeatureKey, Limit, MeterKey, OverrideId, PlanCatalog, PlanKey, Revision, TenantId,
    plan::{StaticValue, Window},
    subscription::{PlanAssignment, Standing},
};
use saas_entitlements::{EntitlementsError, Layer, Override, OverrideGrant, Reason, Snapshot, TenantState, resolve};

const CATALOG: &str = r#"
default_plan = "free"

[features]
csv = { kind = "boolean", fail = "closed" }
beta = { kind = "boolean", fail = "closed", rollout = { percent = 0, cohorts = ["friends"] } }
seats = { kind = "integer", fail = "open" }
region = { kind = "one-of", options = ["eu", "us"], fail = "open" }
images = { kind = "metered", meter = "image", fail = "closed" }

[meters]
credits = { aggregation = "sum" }
image = { aggregation = "sum", credit = { of = "credits", cost = 40 } }

[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
grants = { seats = 1 }

[plans.pro]
rank = 1
[[plans.pro.versions]]
version = 1
grants = { seats = 5, region = "eu", beta = true }
limits.credits = { max = 100, window = "day", overage = "block", warn = [80] }

[addons.more]
mode = "stack"
max_quantity = 3
grants = { seats = 2 }
limits = { credits = 50 }

[addons.export]
mode = "stack"
grants = { csv = true }

[addons.america]
mode = "override"
grants = { region = "us", seats = 10 }
limits = { credits = 1_000 }
"#;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn state(plan: &'static str, addons: &[(&'static str, u32)]) -> TenantState {
    let addons = addons.iter().map(|(key, quantity)| (AddOnKey::from_static(key), *quantity)).collect();
    TenantState {
        revision: Revision::new(1),
        assignment: PlanAssignment { addons, ..PlanAssignment::active(PlanKey::from_static(plan)) },
        overrides: Vec::new(),
        cohorts: Vec::new(),
    }
}

fn settled(state: TenantState) -> Snapshot {
    let tenant = TenantId::from_uuid(uuid::Uuid::from_u128(7));
    resolve(&PlanCatalog::from_toml(CATALOG).unwrap(), tenant, state, now()).unwrap()
}

const CSV: FeatureKey = FeatureKey::from_static("csv");
const BETA: FeatureKey = FeatureKey::from_static("beta");
const SEATS: FeatureKey = FeatureKey::from_static("seats");
const REGION: FeatureKey = FeatureKey::from_static("region");
const IMAGES: FeatureKey = FeatureKey::from_static("images");
const CREDITS: MeterKey = MeterKey::from_static("credits");

// f-E6
#[test]
fn add_ons_that_stack_add_and_those_that_override_replace() {
    let plain = settled(state("pro", &[]));
    assert_eq!((plain.integer(&SEATS), plain.text(&REGION)), (Some(5), Some("eu")));
    assert_eq!(plain.limit(&CREDITS).unwrap().limit, Limit::Max(100));
    assert!(!plain.is_feature_enabled(&CSV));

    let more = settled(state("pro", &[("more", 2), ("export", 1)]));
    assert_eq!(more.integer(&SEATS), Some(9));
    let rule = more.limit(&CREDITS).unwrap();
    assert_eq!(
        (rule.limit, rule.window, &*rule.warn),
        (Limit::Max(200), Window::Day, &[80][..]),
        "all else is the plan's"
    );
    assert!(more.is_feature_enabled(&CSV));

    let both = settled(state("pro", &[("more", 9), ("america", 1)]));
    assert_eq!((both.integer(&SEATS), both.text(&REGION)), (Some(16), Some("us")), "10 in place of 5, and 3 times 2");
    assert_eq!(both.limit(&CREDITS).unwrap().limit, Limit::Max(1_150));
    assert_eq!(both.addons().map(|(_, quantity)| quantity).collect::<Vec<_>>(), [1, 3], "at most 3 of `more`");
}

#[test]
fn an_add_on_alone_brings_its_meter_and_every_feature_it_pays_for() {
    let bare = settled(state("free", &[]));
    assert!(!bare.is_feature_enabled(&IMAGES) && bare.limit(&CREDITS).is_none());
    let rich = settled(state("free", &[("more", 1)]));
    assert!(rich.is_feature_enabled(&IMAGES), "images are paid in credits");
    assert_eq!(rich.limit(&CREDITS).unwrap().limit, Limit::Max(50));
    assert_eq!(rich.integer(&SEATS), Some(3));
}

#[test]
fn add_ons_end_with_the_plan_beside_which_they_were_bought() {
    let mut state = state("pro", &[("more", 1), ("america", 1)]);
    state.assignment.ends_at = Some(now() + TimeDelta::days(1));
    let snapshot = settled(state);
    assert_eq!(snapshot.integer(&SEATS), Some(12));
    let after = snapshot.at(now() + TimeDelta::days(1));
    assert_eq!((after.integer(&SEATS), after.addons().count()), (Some(1), 0));
    assert!(after.limit(&CREDITS).is_none() && after.text(&REGION).is_none());
}

#[test]
fn an_add_on_that_the_catalogue_lacks_is_an_error_and_none_of_it_is_none() {
    let tenant = TenantId::from_uuid(uuid::Uuid::from_u128(7));
    let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
    let error = resolve(&catalog, tenant, state("pro", &[("gone", 1)]), now()).unwrap_err();
    assert!(matches!(&error, EntitlementsError::UnknownAddOn { key } if key.as_str() == "gone"), "{error}");
    assert!(!settled(state("pro", &[("export", 0)])).is_feature_enabled(&CSV));
}

// f-E13
#[test]
fn a_feature_that_is_rolled_out_waits_for_its_turn_and_an_override_does_not() {
    let mut waiting = state("pro", &[]);
    let snapshot = settled(waiting.clone());
    assert!(!snapshot.is_feature_enabled(&BETA));
    let told = snapshot.explain(&BETA).unwrap();
    assert_eq!(told.reason, Reason::Rollout { permille: 0 });
    assert_eq!(
        told.to_string(),
        "`beta` is off: plan `pro` version 1 grants it, but so far it is rolled out to 0.0 % of the tenants."
    );
    assert_eq!(told.upgrade, None, "no plan would help");

    waiting.cohorts = vec!["friends".into()];
    assert!(settled(waiting.clone()).is_feature_enabled(&BETA));
    assert!(!settled(TenantState { cohorts: waiting.cohorts.clone(), ..state("free", &[]) }).is_feature_enabled(&BETA));

    waiting.cohorts.clear();
    waiting.overrides.push(Override {
        id: OverrideId::from_uuid(uuid::Uuid::from_u128(1)),
        grant: OverrideGrant::Switch { feature: BETA, on: true },
        author: "ada".into(),
        reason: "early access".into(),
        created_at: now(),
        expires_at: now() + TimeDelta::days(3),
    });
    assert!(settled(waiting).is_feature_enabled(&BETA));
}

// f-E12
#[test]
fn the_whole_chain_is_told_in_order() {
    let mut rich = state("pro", &[("more", 2), ("america", 1)]);
    rich.assignment.standing = Standing::Suspended { since: now() - TimeDelta::days(1) };
    let told = settled(rich).explain(&SEATS).unwrap();
    assert_eq!(told.value, Some(StaticValue::Integer(14)));
    assert_eq!(told.reason, Reason::AddOn { key: AddOnKey::from_static("more") });
    assert_eq!(
        told.in_full(),
        "`seats` is on: plan `pro` version 1 gives it 5; add-on `america` (1 of it) gives it 10; \
         add-on `more` (2 of it) gives it 2; it needs suspended access and the tenant has suspended."
    );
    assert!(matches!(
        &told.chain[..],
        [Layer::Plan { .. }, Layer::AddOn { .. }, Layer::AddOn { .. }, Layer::Standing { .. }]
    ));
    let told = settled(state("free", &[("more", 1)])).explain(&IMAGES).unwrap();
    assert_eq!(
        told.in_full(),
        "`images` is on: plan `free` version 1 does not include it; add-on `more` (1 of it) gives 50 of its meter; \
         it needs full access and the tenant has full."
    );
    assert_eq!(told.to_string(), "`images` is on: add-on `more` beside plan `free` version 1 grants it.");
}
