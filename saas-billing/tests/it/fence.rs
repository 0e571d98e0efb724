//! Whose rows they are: billing's tables as the application role sees them.

use saas_core::{CoreError, TenantTx, doctor};

use crate::shop::Shop;

// W39
#[tokio::test]
async fn a_tenant_reads_its_own_billing_and_writes_none() {
    let shop = Shop::open().await;
    let (buyer, _) = shop.buyer("buyer").await;
    let other = shop.database.create_tenant("other").await;
    shop.deliver_all().await;
    for (ctx, rows) in [(&buyer, 1), (&other, 0)] {
        let mut tx = TenantTx::begin(shop.database.tenants(), ctx).await.unwrap();
        let seen: i64 =
            sqlx::query_scalar("select count(*) from saas.billing_state").fetch_one(&mut *tx).await.unwrap();
        assert_eq!(seen, rows);
        let objects: i64 =
            sqlx::query_scalar("select count(*) from saas.billing_object").fetch_one(&mut *tx).await.unwrap();
        assert_eq!(objects > 0, rows > 0);
    }
    for forbidden in [
        "select count(*) from saas.billing_receipt",
        "select count(*) from saas.billing_receipt_conflict",
        "select count(*) from saas.billing_directory",
        "select count(*) from saas.billing_fetch",
        "update saas.billing_state set derived = '{}' returning 1::bigint",
        "delete from saas.billing_object returning 1::bigint",
        "insert into saas.billing_effect select tenant_id, livemode, object_id, 'x', at from saas.billing_effect returning 1::bigint",
    ] {
        let mut tx = TenantTx::begin(shop.database.tenants(), &buyer).await.unwrap();
        let refused =
            sqlx::query_scalar::<_, i64>(forbidden).fetch_one(&mut *tx).await.map_err(CoreError::from_database);
        assert!(matches!(refused, Err(CoreError::Forbidden { .. })), "{forbidden}: {refused:?}");
    }
    assert!(shop.billing.derived(&buyer).await.unwrap().plan.is_some());
}

#[tokio::test]
async fn the_doctor_finds_nothing_to_mend() {
    let shop = Shop::open().await;
    let findings = doctor::examine(shop.database.tenants().pool()).await.unwrap();
    assert!(findings.is_empty(), "{findings:#?}");
}
