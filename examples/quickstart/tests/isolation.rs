//! The tables of all four crates under attack.

use saas_core::testing::TestDatabase;

#[tokio::test]
async fn no_attack_on_the_tables_of_the_four_crates_succeeds() {
    let schemas = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA];
    let database = TestDatabase::start(&schemas).await;
    let target = saas_tenancy::testing::Target::from(&database)
        .with_seed(
            "saas.plan_assignment",
            r#"insert into saas.plan_assignment (tenant_id, assigned, assigned_by, assigned_at)
               values ($1, '{"plan": "free", "version": 1}', 'seed', now())"#,
        )
        // A transaction comes with its entries, or not at all.
        .with_seed(
            "saas.ledger_transaction",
            "with added as (
                insert into saas.ledger_transaction
                    (tenant_id, livemode, sequence, cause, subject, actor, occurred_at, recorded_at, hash)
                values ($1, false, 1, 'payment.received', 'ch_seed', 'seed', now(), now(), sha256('seed'))
             )
             insert into saas.ledger_entry (tenant_id, livemode, sequence, account, currency, amount, occurred_at)
             values ($1, false, 1, 'cash', 'eur', 5, now()), ($1, false, 1, 'payments', 'eur', -5, now())",
        )
        .with_seed(
            "saas.ledger_entry",
            "insert into saas.ledger_entry (tenant_id, livemode, sequence, account, currency, amount, occurred_at)
             values ($1, false, 1, 'refunds', 'eur', 5, now()), ($1, false, 1, 'tax', 'eur', -5, now())",
        );
    let report = saas_tenancy::assert_isolated!(target);
    assert!(report.probes > 500, "{report}");
}
