//! What stands in Redis is believed only where it is the tier's own.

use saas_core::{CoreError, TenantContext};
use saas_entitlements::{Consumption, EntitlementsError};

use super::{
    ask, server,
    shop::{Shop, by_hand},
    single,
};

async fn keys(shop: &Shop, what: &str) -> Vec<String> {
    ask(&server().url(), &["KEYS", &format!("saas:{{{}}}:{what}:*", shop.ctx.tenant())]).await
}

async fn slice(shop: &Shop) -> String {
    let found = keys(shop, "slice").await;
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

// C10
#[tokio::test]
async fn every_key_has_an_expiry_that_uses_do_not_take_away() {
    let (shop, url) = (Shop::open().await, server().url());
    let till = shop.till(single(&url), by_hand());
    till.warm_up(&shop.ctx).await;
    for round in 0..20 {
        assert!(till.r#use(&shop.ctx, 1, &format!("use-{round}")).await.unwrap().is_granted());
        for key in keys(&shop, "*").await {
            let left: i64 = ask(&url, &["PTTL", &key]).await;
            assert!(left > 0, "{key} {left}");
        }
    }
    assert!(till.tier.stats().admitted > 20);
    // A value that has lost its expiry by somebody's hand is not the tier's any more.
    let slice = slice(&shop).await;
    let _: i64 = ask(&url, &["PERSIST", &slice]).await;
    assert!(till.r#use(&shop.ctx, 1, "after").await.unwrap().is_granted());
    assert!(till.tier.stats().unreadable > 0);
}

// G16
#[tokio::test]
async fn garbage_is_a_miss_that_is_counted() {
    let (shop, url) = (Shop::open().await, server().url());
    let till = shop.till(single(&url), by_hand());
    let mut used = till.warm_up(&shop.ctx).await;
    let slice = slice(&shop).await;
    let value: String = ask(&url, &["GET", &slice]).await;
    let more = value.replace("|1|", "|1000000|");
    for (round, garbage) in ["", "1|slice", "\u{0}\u{1}", &value[1..], &format!("{value}0"), &more].iter().enumerate() {
        let before = till.tier.stats();
        let _: () = ask(&url, &["SET", &slice, garbage, "PX", "60000"]).await;
        assert!(till.r#use(&shop.ctx, 1, &format!("garbage-{round}")).await.unwrap().is_granted());
        used += 1;
        assert!(till.tier.stats().unreadable > before.unreadable, "{garbage:?}");
    }
    let _: i64 = ask(&url, &["DEL", &slice]).await;
    let _: i64 = ask(&url, &["LPUSH", &slice, "a list"]).await;
    assert!(till.r#use(&shop.ctx, 1, "a-list").await.unwrap().is_granted());
    let [pending] = keys(&shop, "pending").await.try_into().unwrap_or_default();
    let _: i64 = ask(&url, &["HSET", &pending, "somebody", "1|wrote|this|00"]).await;
    assert!(
        till.r#use(&shop.ctx, 9_000, "large").await.unwrap().is_granted(),
        "what is set aside is no more than a tenth"
    );
    used += 9_001;
    till.tier.shutdown().await.unwrap();
    assert_eq!(shop.recorded().await, used);
    shop.reclaim().await;
    shop.is_in_order().await;
}

// G16
#[tokio::test]
async fn another_tenants_value_is_a_miss() {
    let (shop, url) = (Shop::open().await, server().url());
    let globex = shop.database.create_tenant("globex").await;
    let till = shop.till(single(&url), by_hand());
    till.warm_up(&shop.ctx).await;
    let ours = slice(&shop).await;
    let theirs = ours.replace(&shop.ctx.tenant().to_string(), &globex.tenant().to_string());
    let value: String = ask(&url, &["GET", &ours]).await;
    let _: () = ask(&url, &["SET", &theirs, &value, "PX", "60000"]).await;
    let before = till.tier.stats();
    assert!(till.r#use(&globex, 5, "theirs").await.unwrap().is_granted());
    let after = till.tier.stats();
    assert_eq!((after.admitted, after.direct), (before.admitted, before.direct + 1));
    assert!(after.unreadable > before.unreadable);
    assert_eq!(till.meter.usage(&globex, &super::shop::CALLS).await.unwrap().unwrap().used, 5);
}

// C11: a restart from a snapshot, or a replica that was behind, tells of units that were taken since.
#[tokio::test]
async fn a_slice_of_a_history_that_is_over_is_not_used_again() {
    let mut own = saas_core::testing::RedisServer::start().unwrap();
    let (shop, url) = (Shop::open().await, own.url());
    let till = shop.till(single(&url), by_hand());
    let mut used = till.warm_up(&shop.ctx).await;
    let slice: Vec<String> = ask(&url, &["KEYS", "*:slice:*"]).await;
    let value: String = ask(&url, &["GET", &slice[0]]).await;
    for round in 0..10 {
        assert!(till.r#use(&shop.ctx, 10, &format!("use-{round}")).await.unwrap().is_granted());
        used += 10;
    }
    own.restart().unwrap();
    let _: () = ask(&url, &["SET", &slice[0], &value, "PX", "60000"]).await;
    let admitted = till.tier.stats().admitted;
    let mut rewound = 0;
    for round in 0..10 {
        // The first ones find the connection cut, and are decided by PostgreSQL.
        assert!(till.r#use(&shop.ctx, 1, &format!("after-{round}")).await.unwrap().is_granted());
        used += 1;
        rewound = till.tier.stats().rewound;
    }
    assert!(rewound > 0 && till.tier.stats().admitted >= admitted, "{:?}", till.tier.stats());
    till.tier.shutdown().await.unwrap();
    assert_eq!((shop.recorded().await, till.tier.stats().beyond), (used, 0));
    shop.reclaim().await;
    shop.is_in_order().await;
}

// C13, C12
#[tokio::test]
async fn numbers_beyond_what_a_double_holds_are_counted_exactly() {
    const MOST: u64 = (1 << 53) - 1;
    let limit = i64::MAX.unsigned_abs();
    let (shop, url) = (Shop::with_limit(limit).await, server().url());
    let till = shop.till(single(&url), by_hand().with_exposed_share(1).with_size(1, MOST));
    let mut used = till.warm_up(&shop.ctx).await;
    // Of a slice of 2^53-1 units, one is taken.
    for (round, amount) in [MOST - 2, 1].into_iter().enumerate() {
        let granted = till.r#use(&shop.ctx, amount, &format!("use-{round}")).await.unwrap();
        used += amount;
        let Consumption::Granted { left, .. } = granted else { panic!("{granted:?}") };
        assert_eq!(left, saas_core::Limit::Max(limit - used));
    }
    assert_eq!(till.tier.stats().slices, 1, "the slice holds all of it");
    // Beyond: PostgreSQL's.
    for (round, amount) in [MOST + 1, MOST + 2].into_iter().enumerate() {
        assert!(till.r#use(&shop.ctx, amount, &format!("large-{round}")).await.unwrap().is_granted());
        used += amount;
    }
    assert_eq!(till.meter.usage(&shop.ctx, &super::shop::CALLS).await.unwrap().unwrap().used, used);
    let refused = till.r#use(&shop.ctx, 0, "none").await.unwrap_err();
    assert_eq!(refused.code(), "invalid_input");
    shop.is_in_order().await;
}

// C2
#[tokio::test]
async fn a_key_that_is_not_settled_counts_once_and_not_with_another_amount() {
    let (shop, url) = (Shop::open().await, server().url());
    let (till, other) = (shop.till(single(&url), by_hand()), shop.till(single(&url), by_hand()));
    let used = till.warm_up(&shop.ctx).await;
    let mut granted = 0;
    for till in [&till, &other, &till, &other] {
        match till.r#use(&shop.ctx, 3, "same").await.unwrap() {
            Consumption::Granted { .. } => granted += 1,
            Consumption::AlreadyCounted => {}
            refused => panic!("{refused:?}"),
        }
    }
    assert_eq!(granted, 1);
    let error = other.r#use(&shop.ctx, 4, "same").await.unwrap_err();
    assert!(matches!(error, EntitlementsError::Core(CoreError::KeyReused { .. })), "{error}");
    till.tier.tick().await.unwrap();
    assert!(matches!(other.r#use(&shop.ctx, 3, "same").await.unwrap(), Consumption::AlreadyCounted));
    assert_eq!(shop.recorded().await, used + 3);
    shop.is_in_order().await;
}

// C2, C11
#[tokio::test]
async fn a_key_that_redis_forgot_counts_once_all_the_same() {
    let mut own = saas_core::testing::RedisServer::start().unwrap();
    let (shop, url) = (Shop::open().await, own.url());
    let till = shop.till(single(&url), by_hand());
    let used = till.warm_up(&shop.ctx).await;
    assert!(till.r#use(&shop.ctx, 3, "same").await.unwrap().is_granted());
    for key in ask::<Vec<String>>(&url, &["KEYS", "*:key:*"]).await {
        let _: i64 = ask(&url, &["DEL", &key]).await;
    }
    // Both are the same use; this is another, by the same name.
    assert!(matches!(till.r#use(&shop.ctx, 3, "same").await.unwrap(), Consumption::Granted { .. }));
    for key in ask::<Vec<String>>(&url, &["KEYS", "*:key:*"]).await {
        let _: i64 = ask(&url, &["DEL", &key]).await;
    }
    assert!(matches!(till.r#use(&shop.ctx, 5, "same").await.unwrap(), Consumption::Granted { .. }));
    for _ in 0..3 {
        till.tier.shutdown().await.unwrap();
    }
    let stats = till.tier.stats();
    assert_eq!((stats.repeats, stats.reused_keys, stats.beyond), (1, 1, 0));
    assert_eq!(shop.recorded().await, used + 3 + 5);
    assert_eq!(shop.balance().await.held, 0, "what the repeat had taken came back");
    shop.is_in_order().await;
    own.kill();
}
