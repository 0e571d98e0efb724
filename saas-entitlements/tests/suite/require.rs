//! Refusals that name what would help.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta};
use saas_core::{ErrorKind, FeatureKey, PlanCatalog, TenantId, subscription::Standing};
use saas_entitlements::{
    Entitlements, EntitlementsError, FeatureRequired, NewOverride, OverrideGrant, Reason, Snapshot, TenantState,
    UpgradeLink, resolve,
};

use crate::stage::{EXPORT, READ, Stage, catalog, plan};

const ADDON: &str = "
default_plan = 'free'
[features]
sso = { kind = 'boolean', fail = 'closed' }
beta = { kind = 'boolean', fail = 'closed', rollout = { percent = 0 } }
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
grants.beta = true
[plans.pro]
rank = 1
[[plans.pro.versions]]
version = 1
grants = { sso = true, beta = true }
[addons.single-sign-on]
mode = 'stack'
grants.sso = true
";

fn refusal(result: Result<(), EntitlementsError>) -> FeatureRequired {
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Forbidden, "feature_required"));
    let status = error.http_status();
    let refused = if let EntitlementsError::FeatureRequired(refused) = error { Some(*refused) } else { None };
    let refused = refused.unwrap();
    assert_eq!(status, refused.http_status());
    refused
}

fn state(on: &str) -> TenantState {
    TenantState { revision: saas_core::Revision::new(1), assignment: plan(on), overrides: vec![], cohorts: vec![] }
}

fn settled(catalog: &PlanCatalog, state: TenantState) -> Snapshot {
    let tenant = TenantId::from_uuid(uuid::Uuid::from_u128(7));
    resolve(catalog, tenant, state, DateTime::from_timestamp(1_800_000_000, 0).unwrap()).unwrap()
}

#[tokio::test]
async fn a_refusal_names_the_plan_that_has_it_and_the_way_there() {
    let stage = Stage::new();
    let link = UpgradeLink::new("https://app.example.com/billing?plan={plan}&for={feature}&add={addon}").unwrap();
    let gate = stage.gate.clone().with_upgrade_link(link);
    let tenant = stage.tenant("free");
    gate.require(tenant, &READ).await.unwrap();
    let refused = refusal(gate.require(tenant, &EXPORT).await);
    assert_eq!((refused.http_status(), &refused.reason), (402, &Reason::Plan));
    assert_eq!(
        refused.to_string(),
        "`export` needs the plan `pro`: https://app.example.com/billing?plan=pro&for=export&add="
    );
    gate.require(stage.tenant("pro"), &EXPORT).await.unwrap();
    // No such tenant: nothing is for sale, and no link.
    let refused = refusal(gate.require(TenantId::mint(&stage.clock), &EXPORT).await);
    assert_eq!((refused.http_status(), refused.to_string().as_str()), (403, "`export` is not available to you"));
    let unknown = gate.require(tenant, &FeatureKey::from_static("exprot")).await.unwrap_err();
    assert_eq!(unknown.code(), "unknown_feature");
}

#[tokio::test]
async fn an_outage_is_not_taken_for_a_plan_that_lacks_something() {
    let stage = Stage::new();
    stage.source.set_down(true);
    let tenant = stage.tenant("pro");
    let error = stage.gate.require(tenant, &EXPORT).await.unwrap_err();
    assert_eq!((error.code(), error.http_status()), ("entitlements_unavailable", 503));
    stage.gate.require(tenant, &READ).await.unwrap();
}

#[test]
fn an_add_on_an_open_invoice_a_roll_out_and_an_operator_are_told_apart() {
    let catalog = PlanCatalog::from_toml(ADDON).unwrap();
    let (sso, beta) = (FeatureKey::from_static("sso"), FeatureKey::from_static("beta"));
    let refused = refusal(settled(&catalog, state("free")).require(&sso));
    assert_eq!(refused.to_string(), "`sso` needs the plan `pro` or the add-on `single-sign-on`");

    // A plan that has it does not help while the turn of the tenant has not come.
    let refused = refusal(settled(&catalog, state("free")).require(&beta));
    assert_eq!((refused.http_status(), refused.plan.clone()), (403, None));
    assert_eq!(refused.to_string(), "`beta` is part of your plan and will be switched on soon");

    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let mut unpaid = state("pro");
    unpaid.assignment.standing = Standing::Suspended { since: now };
    let refused = refusal(settled(&catalog, unpaid).require(&sso));
    assert_eq!(refused.http_status(), 402);
    assert_eq!(refused.to_string(), "`sso` is paused until the open invoice is paid");

    let mut switched_off = state("pro");
    let grant = OverrideGrant::Switch { feature: sso.clone(), on: false };
    let secret = NewOverride::new(grant, "suspected of fraud", now + TimeDelta::days(1)).unwrap();
    switched_off.overrides = vec![secret.issue(&catalog, &saas_core::Actor::system("test"), now).unwrap()];
    let refused = refusal(settled(&catalog, switched_off).require(&sso));
    assert_eq!(refused.http_status(), 403);
    assert_eq!(refused.to_string(), "`sso` is not available to you", "what operators write is not for members");
}

#[tokio::test]
async fn a_link_that_leads_elsewhere_or_has_an_unknown_place_is_refused() {
    for bad in [
        "",
        "billing",
        "//evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/a b",
        "/{",
        "/}",
        "/{plan",
        "/{x}",
    ] {
        assert!(UpgradeLink::new(bad).is_err(), "{bad:?}");
    }
    assert!(UpgradeLink::new("/up/{plan}/{feature}/{addon}/{tenant}").is_ok());
    // The gate without a link refuses without one.
    let stage = Stage::new();
    let bare = Entitlements::new(catalog(), Arc::new(stage.source.clone()), Arc::new(stage.clock.clone()));
    assert_eq!(refusal(bare.require(stage.tenant("free"), &EXPORT).await).upgrade_url, None);
}
