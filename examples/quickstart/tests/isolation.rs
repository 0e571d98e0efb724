//! The tables of all four crates under attack.

use saas_core::testing::TestDatabase;

#[tokio::test]
async fn no_attack_on_the_tables_of_the_four_crates_succeeds() {
    let schemas = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA];
    let database = TestDatabase::start(&schemas).await;
    let target = saas_tenancy::testing::Target::from(&database).with_seed(
        "saas.plan_assignment",
        r#"insert into saas.plan_assignment (tenant_id, assigned, assigned_by, assigned_at)
           values ($1, '{"plan": "free", "version": 1}', 'seed', now())"#,
    );
    let report = saas_tenancy::assert_isolated!(target);
    assert!(report.probes > 500, "{report}");
}
