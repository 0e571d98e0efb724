//! The tables of all four crates under attack.

use saas_core::testing::TestDatabase;
use saas_tenancy::testing::Target;

#[tokio::test]
async fn no_attack_on_the_tables_of_the_four_crates_succeeds() {
    let schemas = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA];
    let database = TestDatabase::start(&schemas).await;
    // A name of a domain is beyond guessing.
    let domain = "insert into saas.custom_domain (tenant_id, domain, token, claimed_at)
                  values ($1, 'shop-' || left($1::text, 8) || '.example', gen_random_uuid(), now())";
    let target = Target::from(&database).with_seed("saas.custom_domain", domain);
    let report = saas_tenancy::assert_isolated!(target);
    assert!(report.probes > 500, "{report}");
}
