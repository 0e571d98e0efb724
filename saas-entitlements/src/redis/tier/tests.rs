use std::time::Duration;

use chrono::DateTime;
use redis::Client;
use saas_core::{LeaseToken, MeterKey, SystemClock, TenantId, plan::Window, testing::RedisServer};

use super::{
    super::link::{Link, Redis},
    TierOptions,
    scripts::{Ending, Names, Shelf},
};

#[test]
fn a_prefix_that_would_move_a_tenants_keys_apart_is_refused() {
    for bad in ["", "a{b", "a}b", "a b", "a|b", "ü", &"x".repeat(65)] {
        let error = TierOptions::default().with_prefix(bad).unwrap_err();
        assert!(error.to_string().starts_with("key prefix"), "{error}");
    }
    assert_eq!(&*TierOptions::default().with_prefix("shop:eu-1.b_2").unwrap().prefix, "shop:eu-1.b_2");
}

// C13
#[test]
fn sizes_stay_in_order_and_below_what_redis_counts_exactly() {
    let options = TierOptions::default().with_size(0, 0).with_exposed_share(0).with_tick(Duration::ZERO);
    assert_eq!((options.smallest, options.largest, options.exposed_share), (1, 1, 1));
    assert_eq!(TierOptions::default().with_size(u64::MAX, 1).largest, (1 << 53) - 1);
}

// C11: a client that repeats a command, and a command that comes late, put nothing back that was taken away.
#[tokio::test]
async fn a_slice_comes_into_its_place_once_however_often_and_late_it_is_put() {
    let server = RedisServer::start().unwrap();
    let options = TierOptions::default();
    let link = Link::new(Redis::single(Client::open(server.url()).unwrap()), Duration::from_secs(10));
    let shelf = Shelf::new(link, options.clone());
    let (tenant, calls) = (TenantId::mint(&SystemClock), MeterKey::from_static("calls"));
    let names = Names::new(&options, tenant, &calls, Window::Day, DateTime::UNIX_EPOCH);
    let mint = || LeaseToken::mint(&SystemClock);
    let (nonce, token) = (mint(), mint());
    let put = || shelf.put(&names, nonce, token, "rule", (100, 7));
    assert!(!put().await.unwrap(), "nothing is reserved");
    assert!(shelf.open(&names, nonce).await.unwrap());
    assert!(shelf.open(&names, nonce).await.unwrap(), "a repeat");
    assert!(!shelf.open(&names, mint()).await.unwrap(), "somebody else");
    assert!(put().await.unwrap());
    assert!(!shelf.open(&names, mint()).await.unwrap(), "it is there");
    let collected = shelf.collect(&names, Ending::Of(mint())).await.unwrap();
    assert_eq!(collected.ended, None, "another one is meant");
    assert!(put().await.unwrap(), "a repeat");
    let collected = shelf.collect(&names, Ending::Any).await.unwrap();
    assert_eq!(collected.ended, Some((token, 100)));
    assert!(!put().await.unwrap(), "late");
    assert_eq!(shelf.collect(&names, Ending::Any).await.unwrap().ended, None);

    let (nonce, token) = (mint(), mint());
    assert!(shelf.open(&names, nonce).await.unwrap());
    assert!(!shelf.collect(&names, Ending::Any).await.unwrap().unopened, "only who reserved it gives it up");
    assert!(shelf.collect(&names, Ending::Doubtful { token, nonce }).await.unwrap().unopened);
    assert!(!shelf.put(&names, nonce, token, "rule", (100, 7)).await.unwrap(), "later than doubted");
    let other = mint();
    assert!(shelf.open(&names, other).await.unwrap());
    assert!(!shelf.put(&names, nonce, token, "rule", (100, 7)).await.unwrap(), "into the place of another");
    assert!(shelf.collect(&names, Ending::Doubtful { token, nonce: other }).await.unwrap().unopened);
    assert!(shelf.open(&names, nonce).await.unwrap());
    assert!(shelf.put(&names, nonce, token, "rule", (100, 7)).await.unwrap());
    let collected = shelf.collect(&names, Ending::Doubtful { token, nonce }).await.unwrap();
    assert_eq!((collected.ended, collected.unopened), (Some((token, 100)), false), "it had come");
}
