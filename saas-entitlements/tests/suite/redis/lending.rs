//! Leases out of Redis: it is emptied, killed, cut off and lied to, and no limit is passed and no use counted twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use saas_core::{
    ErrorKind, PlanCatalog, PlanKey, SharedClock, TenantContext, TenantPool, TenantTx, revision,
    subscription::FixedPlan,
    testing::{Cut, Proxy, RedisServer},
};
use saas_entitlements::{
    Balance, Entitlements, LeaseOptions, LeasedUse, Leases, PostgresLeases, PostgresSource, Redis, RedisLeaseOptions,
    RedisLeases, SCHEMA,
};

use sqlx::Executor as _;

use super::{
    ask, connect, server,
    shop::{CALLS, LIMIT, Shop},
    single,
};

/// Reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one process has.
pub(super) struct Desk {
    gate: Entitlements,
    pub(super) leases: Leases,
    pub(super) store: RedisLeases,
}

/// A machine that is busy with other tests is not a Redis that is down; and nothing is reported but when the test says so.
fn by_hand() -> RedisLeaseOptions {
    RedisLeaseOptions::default()
        .with_answer_within(Duration::from_secs(10))
        .with_life(Duration::from_secs(600))
        .with_tick(Duration::from_secs(3_600))
        .with_pause(Duration::ZERO)
}

/// As in production, with everything happening more often.
pub(super) fn hasty() -> RedisLeaseOptions {
    by_hand().with_tick(Duration::from_millis(5)).with_pause(Duration::from_millis(1))
}

impl Desk {
    pub(super) fn open(shop: &Shop, redis: Redis, options: RedisLeaseOptions, lease: LeaseOptions) -> Self {
        Self::on(shop.database.tenants(), shop, redis, options, lease)
    }

    fn on(pool: &TenantPool, shop: &Shop, redis: Redis, options: RedisLeaseOptions, lease: LeaseOptions) -> Self {
        let catalog = PlanCatalog::from_toml(&format!(
            "default_plan = 'free'\n[meters.calls]\naggregation = 'sum'\n[plans.free]\nrank = 0\n\
             [[plans.free.versions]]\nversion = 1\n\
             limits.calls = {{ max = {}, window = 'lifetime', overage = 'block', warn = [50] }}",
            shop.limit
        ))
        .unwrap();
        let (binding, plans) = (Arc::new(pool.clone()), Arc::new(FixedPlan(PlanKey::from_static("free"))));
        let clock: SharedClock = Arc::new(shop.database.clock().clone());
        let gate = Entitlements::new(catalog, Arc::new(PostgresSource::new(binding.clone(), plans)), clock.clone());
        let store = RedisLeases::start(PostgresLeases::new(binding), redis, clock, options);
        let leases = Leases::new(gate.clone(), Arc::new(store.clone()), lease);
        Self { gate, leases, store }
    }

    pub(super) async fn r#use(&self, shop: &Shop, amount: u64) -> LeasedUse {
        self.leases.consume(&shop.ctx, &CALLS, amount).await.unwrap()
    }

    /// Uses one by one until it is refused; how often it was granted.
    async fn use_up(&self, shop: &Shop) -> u64 {
        let mut granted = 0;
        while self.r#use(shop, 1).await.is_granted() {
            granted += 1;
        }
        granted
    }
}

/// Leases of 20, of which a tenth of the limit may be out, and which are reported by hand.
pub(super) fn small() -> LeaseOptions {
    LeaseOptions::default()
        .without_borrowing_ahead()
        .with_size(20, 20)
        .with_exposed_share(10)
        .with_life(Duration::from_secs(600))
        .with_tick(Duration::from_secs(3_600))
}

/// Uses of several tasks of several processes on one tenant, until all are refused; `disturb` is called every so many uses.
/// Returns the units that were granted.
async fn under_load(shop: &Shop, desks: &[Desk], mut disturb: impl AsyncFnMut()) -> u64 {
    const TASKS: usize = 4;
    const AMOUNT: u64 = 7;
    let done = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = desks
        .iter()
        .flat_map(|desk| (0..TASKS).map(move |_| desk.leases.clone()))
        .map(|leases| {
            let (ctx, done) = (shop.ctx.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut granted = 0;
                loop {
                    match leases.consume(&ctx, &CALLS, AMOUNT).await {
                        Ok(LeasedUse::Granted) => granted += AMOUNT,
                        Ok(LeasedUse::Exhausted { .. }) => return granted,
                        Ok(denied @ LeasedUse::Denied(_)) => assert!(denied.is_granted(), "{denied:?}"),
                        Err(error) => {
                            let known = error.is_retryable() || error.kind() == ErrorKind::OutcomeUnknown;
                            assert!(known, "{error:?}");
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut seen = 0;
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        let now = done.load(Ordering::Relaxed);
        if now > seen + fastrand::u64(20..80) {
            seen = now;
            disturb().await;
        }
        tokio::task::yield_now().await;
    }
    let mut granted = 0;
    for task in tasks {
        granted += task.await.unwrap();
    }
    granted
}

/// What counts as used without having been granted, once the lives of all leases are over and the rest was used up.
pub(super) async fn lost(shop: &Shop, desks: &[Desk], granted: u64) -> u64 {
    for desk in desks {
        desk.leases.shutdown().await.unwrap();
    }
    let Balance { used, held } = shop.balance().await;
    assert!(granted <= used + held && used + held <= shop.limit, "{granted} {used} {held}");
    shop.reclaim().await;
    let direct = Leases::new(
        desks[0].gate.clone(),
        Arc::new(PostgresLeases::new(Arc::new(shop.database.tenants().clone()))),
        small(),
    );
    let mut rest = 0;
    while direct.consume(&shop.ctx, &CALLS, 1).await.unwrap().is_granted() {
        rest += 1;
    }
    direct.shutdown().await.unwrap();
    assert_eq!(shop.balance().await, Balance { used: shop.limit, held: 0 });
    shop.is_in_order().await;
    assert!(granted + rest <= shop.limit, "{granted} and {rest} were granted");
    shop.limit - granted - rest
}

#[tokio::test]
async fn leases_come_from_a_pool_that_postgres_is_asked_for_once_and_that_goes_back_when_nobody_holds_any() {
    let shop = Shop::open().await;
    let desks = [small(), small()].map(|lease| Desk::open(&shop, single(&server().url()), by_hand(), lease));
    for round in 0..100 {
        assert!(desks[round % 2].r#use(&shop, 1).await.is_granted());
    }
    let Balance { used, held } = shop.balance().await;
    assert_eq!(
        (used, held),
        (1, 500),
        "the first use and half of what may be out; the rest was not PostgreSQL's to count"
    );
    let [first, second] = desks.each_ref().map(|desk| desk.store.stats());
    assert_eq!((first.filled + second.filled, first.direct + second.direct), (1, 0));
    assert!(first.from_redis > 0 && second.from_redis > 0, "{first:?} {second:?}");
    desks[0].store.tick().await.unwrap();
    desks[0].leases.tick().await.unwrap();
    desks[1].leases.tick().await.unwrap();
    desks[0].store.tick().await.unwrap();
    assert_eq!(shop.balance().await, Balance { used: 100, held: 401 });
    // Two ticks without a use, and the one after.
    for _ in 0..3 {
        desks[0].leases.tick().await.unwrap();
    }
    desks[0].store.tick().await.unwrap();
    assert!(shop.balance().await.held > 0, "the other still has some");
    for _ in 0..3 {
        desks[1].leases.tick().await.unwrap();
    }
    assert_eq!(shop.balance().await, Balance { used: 100, held: 0 });
    assert_eq!(shop.stranded().await, 0);
    shop.is_in_order().await;
}

// C1: undisturbed, to the last unit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_use_up_a_limit_exactly() {
    let shop = Shop::open().await;
    let desks = [small(), small()].map(|lease| Desk::open(&shop, single(&server().url()), by_hand(), lease));
    let mut granted = under_load(&shop, &desks, async || {}).await;
    assert!(desks.iter().all(|desk| desk.store.stats().from_redis > 0));
    for desk in &desks {
        desk.leases.shutdown().await.unwrap();
    }
    granted += desks[0].use_up(&shop).await;
    assert_eq!(granted, LIMIT);
    assert_eq!(lost(&shop, &desks, granted).await, 0);
}

/// At most a hundredth of the limit may be out.
fn bounded() -> LeaseOptions {
    small().with_exposed_share(100).with_tick(Duration::from_millis(20))
}

// C1, C11: two processes on one tenant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_under_load_costs_what_was_out_and_grants_none_too_many() {
    let server = RedisServer::start().unwrap();
    let shop = Shop::open().await;
    let desks = [bounded(), bounded()].map(|lease| Desk::open(&shop, single(&server.url()), hasty(), lease));
    let mut flushes = 0;
    let granted = under_load(&shop, &desks, async || {
        let _: () = ask(&server.url(), &["FLUSHALL"]).await;
        flushes += 1;
    })
    .await;
    assert!(flushes > 5, "{flushes}");
    assert!(desks.iter().any(|desk| desk.store.stats().from_redis > 0));
    let lost = lost(&shop, &desks, granted).await;
    // Nothing was given back in between, so no more than once.
    assert!(lost <= LIMIT / 100, "{lost}");
}

// C1, C11, G10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_while_units_are_out_costs_what_was_out_and_grants_none_too_many() {
    let mut server = RedisServer::start().unwrap();
    let url = server.url();
    let shop = Shop::open().await;
    let desks = [bounded(), bounded()].map(|lease| Desk::open(&shop, single(&url), hasty(), lease));
    let mut kills = 0;
    let granted = under_load(&shop, &desks, async || {
        kills += 1;
        if kills % 2 == 1 {
            server.kill();
        } else {
            server.restart().unwrap();
        }
    })
    .await;
    assert!(kills >= 2, "killed, and started again: {kills}");
    assert!(desks.iter().map(|desk| desk.store.stats()).any(|stats| stats.from_redis + stats.filled > 0));
    let lost = lost(&shop, &desks, granted).await;
    assert!(lost <= LIMIT / 100, "{lost}");
}

// C11, C19: connections to both are reset at random.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_both_that_break_cost_what_was_out_and_grant_none_too_many() {
    let server = RedisServer::start().unwrap();
    let shop = Shop::open().await;
    let to_redis = Proxy::start(("127.0.0.1", server.port())).unwrap();
    let (host, port) = shop.database.address();
    let to_postgres = Proxy::start((host.as_str(), port)).unwrap();
    let login = shop.database.options("saas_app").host("127.0.0.1").port(to_postgres.address().port());
    let pool = saas_core::db::pool_options().max_connections(4).connect_with(login).await.unwrap();
    let pool = TenantPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.unwrap();
    let url = format!("redis://{}", to_redis.address());
    let desks = [bounded(), bounded()].map(|lease| Desk::on(&pool, &shop, single(&url), hasty(), lease));
    let mut cuts = 0;
    let granted = under_load(&shop, &desks, async || {
        cuts += 1;
        match cuts % 3 {
            0 => to_postgres.cut(Cut::Reset),
            1 => to_redis.cut(Cut::Reset),
            _ => to_redis.cut_instead_of_answer(fastrand::u64(0..4)),
        }
    })
    .await;
    assert!(cuts > 10, "{cuts}");
    assert!(desks.iter().all(|desk| desk.store.stats().from_redis > 0));
    // What was under way when a connection broke may have counted without having been granted.
    let lost = lost(&shop, &desks, granted).await;
    assert!(lost <= LIMIT / 100 + cuts * 8 * 7, "{lost}");
}

// C19: the script ran, and nobody heard of it.
#[tokio::test]
async fn a_borrow_whose_answer_was_lost_counts_once_and_gives_its_units_back() {
    let server = RedisServer::start().unwrap();
    let shop = Shop::open().await;
    let network = Proxy::start(("127.0.0.1", server.port())).unwrap();
    let desk = Desk::open(&shop, single(&format!("redis://{}", network.address())), by_hand(), small());
    let other = Desk::open(&shop, single(&server.url()), by_hand(), small());
    let mut granted = 0;
    let mut take = async |desk: &Desk| {
        assert!(desk.r#use(&shop, 20).await.is_granted());
        granted += 20;
    };
    // The other keeps the pool alive. Each second use is from memory.
    take(&other).await;
    for _ in 0..6 {
        take(&desk).await;
    }
    // It is asked once more, and Redis answers as it did.
    let before = desk.store.stats();
    network.cut_instead_of_answer(0);
    take(&desk).await;
    let after = desk.store.stats();
    assert_eq!(after.unanswered, before.unanswered + 1);
    assert_eq!((after.from_redis, after.undone, after.direct), (before.from_redis + 1, 0, 0));
    // Not even then: PostgreSQL decides, of another lease.
    network.refuse_connections();
    network.cut_instead_of_answer(0);
    take(&desk).await;
    take(&desk).await;
    let after = desk.store.stats();
    assert_eq!(after.from_redis, before.from_redis + 1);
    assert!(after.undone > 0 && after.direct > 0, "{after:?}");
    for _ in 0..5 {
        take(&desk).await;
    }
    assert_eq!(desk.store.stats().from_redis, after.from_redis);
    network.accept_connections();
    for desk in [&desk, &other] {
        desk.leases.shutdown().await.unwrap();
    }
    // Until Redis is asked again.
    let started = Instant::now();
    while shop.balance().await.held > 0 {
        assert!(started.elapsed() < PATIENCE, "{:?} {:?}", shop.balance().await, desk.store.stats());
        desk.store.tick().await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(shop.balance().await.used, granted, "what was granted is counted once");
    assert_eq!(shop.stranded().await, 0);
    shop.is_in_order().await;
}

async fn place(shop: &Shop) -> String {
    let pattern = format!("saas:{{{}}}:lease:*", shop.ctx.tenant());
    let [place] = ask::<Vec<String>>(&server().url(), &["KEYS", &pattern]).await.try_into().unwrap();
    place
}

// G16, C10
#[tokio::test]
async fn a_foreign_value_under_the_key_is_not_believed_and_grants_none_too_many() {
    let (shop, url) = (Shop::open().await, server().url());
    let desk = Desk::open(&shop, single(&url), by_hand(), small());
    let mut granted = 0;
    let mut take = async || {
        for _ in 0..3 {
            assert!(desk.r#use(&shop, 20).await.is_granted());
            granted += 20;
        }
    };
    take().await;
    let key = place(&shop).await;
    let left: i64 = ask(&url, &["PTTL", &key]).await;
    assert!(left > 0, "{left}");
    for garbage in ["", "1|\u{1}|00"] {
        let before = desk.store.stats();
        let _: () = ask(&url, &["SET", &key, garbage, "PX", "60000"]).await;
        take().await;
        assert!(desk.store.stats().unreadable > before.unreadable, "{garbage:?}");
    }
    for (field, garbage) in [("place", "\u{81}"), ("seal", "\u{0}"), ("ended", "1|\u{1}|00")] {
        if field == "ended" {
            // Two ticks without a use, and the one after: the lease goes back.
            for _ in 0..4 {
                desk.leases.tick().await.unwrap();
            }
        }
        let before = desk.store.stats();
        let added: i64 = ask(&url, &["HSET", &key, field, garbage]).await;
        assert_eq!(added, 0, "{field} was there");
        take().await;
        assert!(desk.store.stats().unreadable > before.unreadable, "{field}");
    }
    let before = desk.store.stats();
    let _: i64 = ask(&url, &["DEL", &key]).await;
    let _: i64 = ask(&url, &["LPUSH", &key, "a list"]).await;
    take().await;
    assert!(desk.store.stats().unreadable > before.unreadable, "a list");
    // One that has lost its expiry by somebody's hand.
    let before = desk.store.stats();
    let _: i64 = ask(&url, &["PERSIST", &key]).await;
    take().await;
    assert!(desk.store.stats().unreadable > before.unreadable, "for ever");
    let lost = lost(&shop, &[desk], granted).await;
    assert!(lost <= LIMIT / 10, "{lost}");
}

// C11: a restart from a snapshot, or a replica that was behind, tells of units that were lent since.
#[tokio::test]
async fn a_place_of_a_history_that_is_over_lends_nothing() {
    let mut own = RedisServer::start().unwrap();
    let (shop, url) = (Shop::open().await, own.url());
    let desk = Desk::open(&shop, single(&url), by_hand(), small());
    assert!(desk.r#use(&shop, 1).await.is_granted());
    let key: Vec<String> = ask(&url, &["KEYS", "*:lease:*"]).await;
    let dump: Vec<u8> = ask(&url, &["DUMP", &key[0]]).await;
    let mut granted = 1;
    for _ in 0..5 {
        assert!(desk.r#use(&shop, 20).await.is_granted());
        granted += 20;
    }
    own.restart().unwrap();
    let mut connection = connect(&url).await;
    let restore = redis::cmd("RESTORE").arg(&key[0]).arg(60_000).arg(dump).arg("REPLACE").to_owned();
    restore.query_async::<()>(&mut connection).await.unwrap();
    let started = Instant::now();
    while desk.store.stats().rewound == 0 {
        assert!(started.elapsed() < PATIENCE, "{:?}", desk.store.stats());
        if desk.r#use(&shop, 20).await.is_granted() {
            granted += 20;
        }
    }
    let lost = lost(&shop, &[desk], granted).await;
    assert!(lost <= LIMIT / 10, "{lost}");
}

// C11, C17
#[tokio::test]
async fn what_a_lost_process_had_counts_as_used_and_the_rest_of_the_pool_lives_on() {
    let shop = Shop::open().await;
    let lost = Desk::open(&shop, single(&server().url()), by_hand(), small().with_life(Duration::ZERO));
    let desk = Desk::open(&shop, single(&server().url()), by_hand(), small());
    for desk in [&desk, &lost] {
        assert!(desk.r#use(&shop, 1).await.is_granted());
    }
    // Without anybody's asking for it.
    desk.store.tick().await.unwrap();
    assert_eq!(shop.balance().await, Balance { used: 22, held: 479 }, "1, and all of the other's");
    assert!(lost.r#use(&shop, 15).await.is_granted(), "a late holder spends what counts as used");
    lost.leases.tick().await.unwrap();
    assert!(!lost.leases.try_consume(shop.ctx.tenant(), &CALLS, 1), "its lease is over");
    desk.leases.shutdown().await.unwrap();
    assert_eq!(shop.balance().await, Balance { used: 22, held: 0 });
    shop.is_in_order().await;
}

// C19, C20
#[tokio::test]
async fn who_is_refused_gets_what_nobody_holds_and_the_holders_hear_of_it() {
    let shop = Shop::open().await;
    let desks = [small(), small()].map(|lease| Desk::open(&shop, single(&server().url()), by_hand(), lease));
    assert!(desks[0].r#use(&shop, 1).await.is_granted());
    let refused = desks[1].r#use(&shop, LIMIT - 20).await;
    assert!(matches!(refused, LeasedUse::Exhausted { used: 1, held: 20, .. }), "{refused:?}");
    assert_eq!(shop.balance().await, Balance { used: 1, held: 20 }, "the pool gave the rest back");
    assert!(desks[1].r#use(&shop, LIMIT - 21).await.is_granted());
    // A wish is one for a second.
    assert!(!desks[1].r#use(&shop, 20).await.is_granted());
    assert!(desks[0].leases.try_consume(shop.ctx.tenant(), &CALLS, 1));
    desks[0].leases.tick().await.unwrap();
    assert_eq!(shop.balance().await, Balance { used: LIMIT - 19, held: 0 }, "a holder gives back what is wanted");
    assert!(desks[1].r#use(&shop, 19).await.is_granted());
    assert!(!desks[0].r#use(&shop, 1).await.is_granted());
    shop.is_in_order().await;
}

// C19
#[tokio::test]
async fn a_process_that_has_heard_of_a_change_takes_the_pool_to_the_new_revision() {
    let shop = Shop::open().await;
    let old = Desk::open(&shop, single(&server().url()), by_hand(), small());
    assert!(old.r#use(&shop, 1).await.is_granted());
    let mut tx = TenantTx::begin(shop.database.tenants(), &shop.ctx).await.unwrap();
    let changed = revision::bump_in(&mut tx, shop.ctx.tenant()).await.unwrap();
    tx.commit().await.unwrap();
    let new = Desk::open(&shop, single(&server().url()), by_hand(), small());
    assert!(new.r#use(&shop, 1).await.is_granted());
    assert!(old.gate.snapshot(shop.ctx.tenant()).await.revision() < changed);
    let before = old.store.stats().from_redis;
    assert!(old.r#use(&shop, 30).await.is_granted());
    assert_eq!(old.gate.snapshot(shop.ctx.tenant()).await.revision(), changed, "PostgreSQL said so");
    assert!(old.r#use(&shop, 30).await.is_granted());
    assert!(old.store.stats().from_redis > before, "of the new one");
    for desk in [&old, &new] {
        desk.leases.shutdown().await.unwrap();
    }
    assert_eq!(shop.balance().await, Balance { used: 62, held: 0 });
    shop.is_in_order().await;
}

// C18
#[tokio::test]
async fn a_threshold_that_is_reached_in_redis_is_announced_once() {
    let shop = Shop::open().await;
    let desks = [small(), small()].map(|lease| Desk::open(&shop, single(&server().url()), by_hand(), lease));
    let crossed = async || shop.number("select count(*) from saas.usage_crossing where tenant_id = $1").await;
    assert!(desks[0].r#use(&shop, LIMIT / 2 - 200).await.is_granted());
    for desk in &desks {
        for _ in 0..100 {
            assert!(desk.r#use(&shop, 1).await.is_granted());
        }
    }
    for desk in &desks {
        desk.leases.tick().await.unwrap();
    }
    assert_eq!(crossed().await, 1, "{:?}", shop.balance().await);
    for desk in &desks {
        desk.leases.shutdown().await.unwrap();
    }
    assert_eq!(crossed().await, 1);
    assert_eq!(shop.balance().await, Balance { used: LIMIT / 2, held: 0 });
}

// C19: PostgreSQL has ended the pool while Redis lends of it.
#[tokio::test]
async fn a_pool_that_postgres_has_ended_lends_no_more_than_counts_as_used() {
    let shop = Shop::open().await;
    let desk = Desk::open(&shop, single(&server().url()), by_hand(), small());
    assert!(desk.r#use(&shop, 1).await.is_granted());
    shop.reclaim().await;
    assert_eq!(shop.balance().await, Balance { used: 501, held: 0 });
    let mut granted = 1;
    while desk.store.stats().lost == 0 {
        assert!(desk.r#use(&shop, 1).await.is_granted());
        granted += 1;
    }
    assert!(granted <= 502, "{granted}");
    let lost = lost(&shop, &[desk], granted).await;
    assert!(lost <= 500, "{lost}");
}

// C1, C19: PostgreSQL takes longer to fill the pool than the lease lives for which it is filled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refill_that_comes_after_its_lease_is_over_counts_nothing_twice() {
    let shop = Shop::open().await;
    let url = server().url();
    let brief = small().with_life(Duration::from_secs(1));
    let [late, other] = [brief, small()].map(|lease| Desk::open(&shop, single(&url), by_hand(), lease));
    assert!(late.r#use(&shop, 1).await.is_granted());
    let mut owner = shop.database.owner().await;
    owner.execute("begin").await.unwrap();
    let lock = "select from saas.usage_counter where tenant_id = $1 for update";
    sqlx::query(lock).bind(shop.tenant()).execute(&mut owner).await.unwrap();
    let waiting = async |count| {
        let started = Instant::now();
        let waits = "select count(*) from pg_stat_activity
                     where datname = current_database() and wait_event_type = 'Lock' and $1 is not null";
        while shop.number(waits).await < count {
            assert!(started.elapsed() < PATIENCE, "nobody waits for PostgreSQL");
            tokio::task::yield_now().await;
        }
    };
    // Of the lease, until the pool is empty.
    let (leases, ctx, is_enough) = (late.leases.clone(), shop.ctx.clone(), Arc::new(AtomicBool::new(false)));
    let enough = Arc::clone(&is_enough);
    let uses = tokio::spawn(async move {
        let mut granted = 0;
        while !enough.load(Ordering::Relaxed) {
            assert!(leases.consume(&ctx, &CALLS, 20).await.unwrap().is_granted());
            granted += 20;
        }
        granted
    });
    waiting(1).await;
    let seconds = async || ask::<Vec<u64>>(&url, &["TIME"]).await[0];
    let over = seconds().await + 2;
    while seconds().await < over {
        tokio::task::yield_now().await;
    }
    // Whoever comes next finds the lease overdue, and asks for more, too.
    let (leases, ctx) = (other.leases.clone(), shop.ctx.clone());
    let next = tokio::spawn(async move { leases.consume(&ctx, &CALLS, 1).await.unwrap() });
    waiting(2).await;
    is_enough.store(true, Ordering::Relaxed);
    owner.execute("commit").await.unwrap();
    let granted = 1 + uses.await.unwrap() + 1;
    assert!(next.await.unwrap().is_granted());
    assert!(granted > 300, "the pool was not used up: {granted}");
    let lost = lost(&shop, &[late, other], granted).await;
    assert!(lost <= 20, "more than what the lease had left: {lost}");
}

// A window that is over is nobody's way to another one.
#[tokio::test]
async fn another_tenants_value_under_the_key_is_not_believed() {
    let (shop, url) = (Shop::open().await, server().url());
    let globex = shop.database.create_tenant("globex").await;
    let desk = Desk::open(&shop, single(&url), by_hand(), small());
    assert!(desk.r#use(&shop, 1).await.is_granted());
    let ours = place(&shop).await;
    let theirs = ours.replace(&shop.ctx.tenant().to_string(), &globex.tenant().to_string());
    let mut connection = connect(&url).await;
    let value: Vec<u8> = redis::cmd("DUMP").arg(&ours).query_async(&mut connection).await.unwrap();
    let restore = redis::cmd("RESTORE").arg(&theirs).arg(60_000).arg(value).to_owned();
    restore.query_async::<()>(&mut connection).await.unwrap();
    let before = desk.store.stats();
    assert!(desk.leases.consume(&globex, &CALLS, 5).await.unwrap().is_granted());
    let after = desk.store.stats();
    assert_eq!((after.unreadable, after.from_redis), (before.unreadable + 1, before.from_redis));
    desk.leases.shutdown().await.unwrap();
    assert_eq!(shop.balance().await, Balance { used: 1, held: 0 });
}
