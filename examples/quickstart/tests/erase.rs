//! A tenant of all four crates can be erased: every table says whether it goes or stays.

use std::sync::Arc;

use saas_core::{TenantContext, testing::TestDatabase};
use saas_tenancy::erase::{Erasures, Fate};
use sqlx::Executor as _;

#[tokio::test]
async fn every_table_of_the_four_crates_can_be_erased_or_says_why_it_is_kept() {
    let db = TestDatabase::start(&[
        &saas_core::SCHEMA,
        &saas_tenancy::SCHEMA,
        &saas_entitlements::SCHEMA,
        &saas_billing::SCHEMA,
    ])
    .await;
    // What a database has, too, once a tenant was moved out of it.
    let mut owner = db.owner().await;
    for script in ["set role saas_owner", include_str!("../../../saas-tenancy/migrations/capture/0001_change.sql")] {
        owner.execute(script).await.unwrap();
    }
    let acme = db.create_tenant("acme").await;
    let erasures = Erasures::new(db.system().clone(), Arc::new(db.clock().clone()))
        .with_dependents(Arc::new(saas_billing::LiveBilling));
    let plan = erasures.plan(acme.tenant()).await.unwrap();
    assert!(plan.is_possible(), "{:?} {:?}", plan.obstacles, plan.dependents);
    let fate = |name: &str| plan.tables.iter().find(|table| table.name == name).map(|table| &table.fate);
    assert_eq!(fate("saas.usage_event"), Some(&Fate::Erase));
    assert!(matches!(fate("saas.billing_object"), Some(Fate::Keep { reason }) if reason.contains("tax law")));
}
