//! Changes reach the gate over Redis, and what is missed is made up for.
//!
//! A channel is heard by all who listen at a server: each test has its own.

use std::time::Duration;

use saas_core::{TenantContext, testing::RedisServer};
use saas_entitlements::{Redis, RedisRevisions, RevisionRelay};

use super::{ask, clustered, single};
use crate::postgres::App;

/// Both stand: the gate was told to distrust by its own subscription, and by the relay.
async fn hears(app: &App, redis: &Redis) -> (RedisRevisions, RevisionRelay) {
    let before = app.gate.stats().flushes;
    let revisions = RedisRevisions::start(app.gate.clone(), redis.clone());
    app.until(async || app.gate.stats().flushes > before).await;
    let relay = RevisionRelay::listening(app.database.options("saas_app"), redis.clone());
    app.until(async || app.gate.stats().flushes > before + 1).await;
    (revisions, relay)
}

async fn a_change_arrives(redis: Redis) {
    let app = App::start().await;
    let _hears = hears(&app, &redis).await;
    let acme = app.database.create_tenant("acme").await;
    assert!(!app.export(&acme).await);
    let flushes = app.gate.stats().flushes;
    app.change_plan(&acme, "pro").await;
    app.until(async || app.export(&acme).await).await;
    assert_eq!(app.gate.stats().flushes, flushes, "by its revision, not by distrusting everything");
}

// G2
#[tokio::test]
async fn a_change_of_plan_reaches_the_gate_over_redis() {
    let own = RedisServer::start().unwrap();
    a_change_arrives(single(&own.url())).await;
}

// C22
#[tokio::test]
async fn a_change_of_plan_reaches_the_gate_over_a_cluster() {
    a_change_arrives(clustered()).await;
}

#[tokio::test]
async fn a_change_of_plan_reaches_the_gate_by_a_relay_that_polls() {
    let (app, own) = (App::start().await, RedisServer::start().unwrap());
    let redis = single(&own.url());
    let _revisions = RedisRevisions::start(app.gate.clone(), redis.clone());
    app.until(async || app.gate.stats().flushes > 0).await;
    let _relay = RevisionRelay::polling(app.database.system().clone(), Duration::from_millis(5), redis);
    app.until(async || app.gate.stats().flushes > 1).await;
    let acme = app.database.create_tenant("acme").await;
    assert!(!app.export(&acme).await);
    app.change_plan(&acme, "pro").await;
    app.until(async || app.export(&acme).await).await;
}

// G4: the message of the change goes to nobody.
#[tokio::test]
async fn a_subscriber_whose_connection_is_killed_misses_nothing() {
    let (app, own) = (App::start().await, RedisServer::start().unwrap());
    let _hears = hears(&app, &single(&own.url())).await;
    let acme = app.database.create_tenant("acme").await;
    assert!(!app.export(&acme).await);
    let flushes = app.gate.stats().flushes;
    let killed: i64 = ask(&own.url(), &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert_eq!(killed, 1);
    app.change_plan(&acme, "pro").await;
    app.until(async || app.gate.stats().flushes >= flushes + 2).await;
    assert!(app.export(&acme).await);
}

// G4, G10: neither relay nor subscriber has a Redis; both come back to an empty one.
#[tokio::test]
async fn a_change_while_redis_is_down_is_seen_when_it_is_back() {
    let (app, mut own) = (App::start().await, RedisServer::start().unwrap());
    let _hears = hears(&app, &single(&own.url())).await;
    let acme = app.database.create_tenant("acme").await;
    assert!(!app.export(&acme).await);
    let flushes = app.gate.stats().flushes;
    own.kill();
    app.until(async || app.gate.stats().flushes > flushes).await;
    assert!(!app.export(&acme).await, "read again, and held");
    app.change_plan(&acme, "pro").await;
    own.restart().unwrap();
    app.until(async || app.export(&acme).await).await;
}

// G4: the relay's own ear.
#[tokio::test]
async fn a_relay_that_was_cut_off_from_postgresql_tells_everyone_to_read_again() {
    let (app, own) = (App::start().await, RedisServer::start().unwrap());
    let redis = single(&own.url());
    let _hears = hears(&app, &redis).await;
    let acme = app.database.create_tenant("acme").await;
    assert!(!app.export(&acme).await);
    let flushes = app.gate.stats().flushes;
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and query ~* '^(listen|select pg_notify)'";
    assert_eq!(app.count(cut).await, 1);
    app.change_plan(&acme, "pro").await;
    app.until(async || app.gate.stats().flushes > flushes && app.export(&acme).await).await;
}

// G4: every message lost, as when no relay runs.
#[tokio::test]
async fn without_a_relay_the_ttl_is_the_bound() {
    let (app, own) = (App::start().await, RedisServer::start().unwrap());
    let redis = single(&own.url());
    let _revisions = RedisRevisions::start(app.gate.clone(), redis);
    app.until(async || app.gate.stats().flushes > 0).await;
    let acme = app.database.create_tenant("acme").await;
    assert!(!app.export(&acme).await);
    app.change_plan(&acme, "pro").await;
    assert!(!app.export(&acme).await, "within the bound the old answer may stand");
    app.database.clock().advance(chrono::TimeDelta::seconds(60));
    app.gate.tick();
    assert!(app.export(&acme).await);
}

// G16: as for notifications.
#[tokio::test]
async fn a_message_that_is_no_announcement_is_counted_and_ignored() {
    let (app, own) = (App::start().await, RedisServer::start().unwrap());
    let _hears = hears(&app, &single(&own.url())).await;
    let acme = app.database.create_tenant("acme").await;
    assert!(!app.export(&acme).await);
    let before = app.gate.stats();
    for garbage in ["", "hello", "a:1", &format!("{}:-1", acme.tenant()), &format!("{}:x", acme.tenant())] {
        let heard: i64 = ask(&own.url(), &["PUBLISH", "saas_revision", garbage]).await;
        assert!(heard > 0);
    }
    app.until(async || app.gate.stats().unreadable_announcements >= before.unreadable_announcements + 5).await;
    assert!(!app.export(&acme).await);
    assert_eq!(app.gate.stats().loads, before.loads, "what is held is held on");
}
