//! Direct uses that meet share a flight, and each of them gets its own answer.

use futures_util::{FutureExt, future::join_all};
use saas_core::{ErrorKind, IdempotencyKey, Limit, MeterKey, RequestContext, TenantContext};
use saas_entitlements::{Consumption, EntitlementsError};
use sqlx::Executor;

use crate::postgres::App;

static CALLS: MeterKey = MeterKey::from_static("calls");

impl App {
    /// Uses that come at the same moment, in this order.
    async fn at_once(&self, uses: &[(&RequestContext, u64, &str)]) -> Vec<Result<Consumption, EntitlementsError>> {
        let keys: Vec<IdempotencyKey> = uses.iter().map(|(_, _, key)| key.parse().unwrap()).collect();
        join_all(uses.iter().zip(&keys).map(|((ctx, amount, _), key)| self.meter.consume(*ctx, &CALLS, *amount, key)))
            .await
    }

    /// Transactions that have recorded uses.
    async fn transactions(&self) -> i64 {
        self.count("select count(distinct position) from saas.usage_event").await
    }
}

// C1, C21
#[tokio::test]
async fn uses_that_meet_are_counted_by_one_transaction() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    assert!(app.r#use(&acme, 1, "opens-the-window").await.is_granted());
    let keys: Vec<String> = (0..60).map(|n| format!("use-{n}")).collect();
    let uses: Vec<_> = keys.iter().map(|key| (&acme, 1, key.as_str())).collect();
    let lefts: Vec<u64> = app
        .at_once(&uses)
        .await
        .into_iter()
        .map(|outcome| match outcome.unwrap() {
            Consumption::Granted { left: Limit::Max(left), .. } => left,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(lefts.is_sorted_by(|a, b| *a == b + 1), "in the order in which they came: {lefts:?}");
    assert_eq!(app.count("select sum(used)::bigint from saas.usage_counter").await, 61);
    assert_eq!(app.transactions().await, 2, "the first alone, then all that met");
}

// C1, C2, C20: one that does not fit, a repeat and a conflict fail nobody else.
#[tokio::test]
async fn each_use_of_a_flight_gets_its_own_answer() {
    let app = App::start().await;
    let (acme, globex) = (app.database.create_tenant("acme").await, app.database.create_tenant("globex").await);
    for ctx in [&acme, &globex] {
        assert!(app.r#use(ctx, 1, "opens-the-window").await.is_granted());
    }
    let hostile = r#"{"a\",null}'\\$1;--"#;
    let uses = [
        (&acme, 700, hostile),
        (&acme, 400, "too-much"),
        (&acme, 700, hostile),
        (&acme, 701, hostile),
        (&globex, 999, "another-tenants"),
        (&acme, 9, "fits"),
    ];
    let [first, too_much, repeat, conflict, other, fits] = app.at_once(&uses).await.try_into().unwrap();
    assert!(matches!(first.unwrap(), Consumption::Granted { left: Limit::Max(299), .. }));
    assert!(matches!(too_much.unwrap(), Consumption::Exhausted { left: 299, .. }));
    assert_eq!(repeat.unwrap(), Consumption::AlreadyCounted);
    assert_eq!(conflict.unwrap_err().code(), "idempotency_key_reused");
    assert!(matches!(other.unwrap(), Consumption::Granted { left: Limit::Max(0), .. }));
    assert!(matches!(fits.unwrap(), Consumption::Granted { left: Limit::Max(290), .. }));
    assert_eq!(app.count("select count(*) from saas.usage_key").await, 5, "a refused key is free again");
    let kept: String = sqlx::query_scalar("select key from saas.usage_event where amount = 700")
        .fetch_one(&mut app.database.owner().await)
        .await
        .unwrap();
    assert_eq!(kept, hostile);
}

// C18, C8: what the common way leaves to the thorough one is done by each use for itself.
#[tokio::test]
async fn uses_that_open_a_window_or_reach_a_warning_together_warn_once() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    let keys: Vec<String> = (0..10).map(|n| format!("use-{n}")).collect();
    let uses: Vec<_> = keys.iter().map(|key| (&acme, 100, key.as_str())).collect();
    let mut crossed: Vec<u16> = app
        .at_once(&uses)
        .await
        .into_iter()
        .flat_map(|outcome| match outcome.unwrap() {
            Consumption::Granted { crossed, .. } => crossed,
            other => panic!("{other:?}"),
        })
        .collect();
    crossed.sort_unstable();
    assert_eq!(crossed, [80, 100]);
    assert_eq!(app.count("select sum(used)::bigint from saas.usage_counter").await, 1_000);
    assert_eq!(app.count("select count(*) from saas.usage_crossing").await, 2);
}

// C19
#[tokio::test]
async fn a_flight_under_an_outdated_plan_is_decided_again() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    assert!(app.r#use(&acme, 1, "opens-the-window").await.is_granted());
    // Nobody tells this process.
    app.change_plan(&acme, "pro").await;
    let uses: [_; 8] = std::array::from_fn(|n| (&acme, 600, ["a", "b", "c", "d", "e", "f", "g", "h"][n]));
    for outcome in app.at_once(&uses).await {
        assert!(outcome.unwrap().is_granted(), "8 of 600 fit into pro");
    }
}

// Q9, C2: a caller who goes away takes nobody along, and may find its use counted.
#[tokio::test]
async fn a_caller_who_goes_away_leaves_the_flight_to_the_others() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    assert!(app.r#use(&acme, 1, "opens-the-window").await.is_granted());
    let keys: [IdempotencyKey; 3] = ["gone", "asleep", "there"].map(|key| key.parse().unwrap());
    let mut uses = keys.each_ref().map(|key| Box::pin(app.meter.consume(&acme, &CALLS, 1, key)));
    assert!(uses.iter_mut().all(|one| one.now_or_never().is_none()));
    let [gone, asleep, there] = uses;
    drop(gone);
    assert!(there.await.unwrap().is_granted());
    assert!(asleep.await.unwrap().is_granted());
    let again = app.meter.consume(&acme, &CALLS, 1, &keys[0]).await.unwrap();
    assert_eq!(again, Consumption::AlreadyCounted, "it was in the same flight");
    assert_eq!(app.count("select sum(used)::bigint from saas.usage_counter").await, 4);
    assert_eq!(app.open_transactions().await, 0);
}

// A statement that one use of a flight breaks is run for each by itself.
#[tokio::test]
async fn a_use_that_the_database_refuses_fails_alone() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    assert!(app.r#use(&acme, 1, "opens-the-window").await.is_granted());
    let mut owner = app.database.owner().await;
    sqlx::query("alter table saas.usage_key add constraint no_bad_key check (key <> 'bad')")
        .execute(&mut owner)
        .await
        .unwrap();
    let uses = [(&acme, 1, "good"), (&acme, 1, "bad"), (&acme, 1, "better")];
    let [good, bad, better] = app.at_once(&uses).await.try_into().unwrap();
    assert!(matches!(good.unwrap(), Consumption::Granted { left: Limit::Max(998), .. }));
    assert_eq!(bad.unwrap_err().kind(), ErrorKind::Conflict);
    assert!(matches!(better.unwrap(), Consumption::Granted { left: Limit::Max(997), .. }));
}

// C1, C2, C18: whatever a flight is made of, its tenant ends up as one whose uses went one after the other.
#[tokio::test]
async fn flights_count_as_the_same_uses_one_by_one_would() {
    let app = App::start().await;
    let (crowd, queue) = (app.database.create_tenant("crowd").await, app.database.create_tenant("queue").await);
    let mut random = fastrand::Rng::with_seed(11);
    for ctx in [&crowd, &queue] {
        assert!(app.r#use(ctx, 1, "opens-the-window").await.is_granted());
    }
    for round in 0..40 {
        // Some repeat others, also those of earlier rounds; the last rounds do not fit, and none reaches 1,000.
        let keys: Vec<String> = (0..12).map(|_| format!("key-{}", random.u32(0..(round + 1) * 20))).collect();
        let amounts: Vec<u64> = keys.iter().map(|key| 7 + key.bytes().map(u64::from).sum::<u64>() % 3 * 7).collect();
        let uses: Vec<_> = keys.iter().zip(&amounts).map(|(key, amount)| (&crowd, *amount, key.as_str())).collect();
        let crowded = app.at_once(&uses).await;
        let mut queued = Vec::new();
        for (key, amount) in keys.iter().zip(&amounts) {
            queued.push(app.meter.consume(&queue, &CALLS, *amount, &key.parse().unwrap()).await);
        }
        // Who reaches a warning lets the others of its flight go first, so what is left for whom may differ.
        let kinds = |answers: &[Result<Consumption, EntitlementsError>]| -> Vec<String> {
            let kind = |answer: &Result<Consumption, EntitlementsError>| match answer {
                Ok(Consumption::Granted { .. }) => "granted".to_owned(),
                Ok(Consumption::Exhausted { .. }) => "exhausted".to_owned(),
                answer => format!("{answer:?}"),
            };
            answers.iter().map(kind).collect()
        };
        assert_eq!(kinds(&crowded), kinds(&queued), "round {round}");
    }
    let exhausted = app.r#use(&queue, 1_000, "too-much").await;
    assert!(matches!(exhausted, Consumption::Exhausted { left: 5, .. }), "both sides of the limit: {exhausted:?}");
    let differences = app
        .count(
            "with of as (
                 select t.slug, e.meter, e.counter, e.kind, e.amount, e.units, e.window_kind, e.window_start, e.at, e.key,
                        e.actor = 'user:' || e.member as by_whom, e.item, k.amount as known, k.item as known_item, c.used, c.burnt, c.limit_units
                 from saas.usage_event e
                 join saas.tenant t on t.id = e.tenant_id
                 join saas.usage_key k on k.tenant_id = e.tenant_id and k.meter = e.meter and k.key = e.key
                      and k.event_id = e.id
                 join saas.usage_counter c on c.tenant_id = e.tenant_id
             )
             select count(*) from (
                 (select to_jsonb(of) - 'slug' from of where slug = 'crowd'
                  except all select to_jsonb(of) - 'slug' from of where slug = 'queue')
                 union all
                 (select to_jsonb(of) - 'slug' from of where slug = 'queue'
                  except all select to_jsonb(of) - 'slug' from of where slug = 'crowd')
             ) differing",
        )
        .await;
    assert_eq!(differences, 0);
    let flights = app.transactions().await;
    let uses = app.count("select count(*) from saas.usage_event").await;
    assert!(flights * 5 < uses * 4, "{flights} transactions for {uses} uses: the crowd shared some");
}

// C21: tenants of a crowd share commits, and nothing else.
#[tokio::test]
async fn uses_of_different_tenants_that_meet_share_transactions_and_nothing_else() {
    let app = App::start().await;
    let mut crowd = Vec::new();
    for n in 0..20 {
        let ctx = app.database.create_tenant(&format!("tenant-{n}")).await;
        assert!(app.r#use(&ctx, 1, "opens-the-window").await.is_granted());
        crowd.push(ctx);
    }
    let before = app.transactions().await;
    for (round, key) in ["same-key", "same-key", "another"].into_iter().enumerate() {
        let uses: Vec<_> = crowd.iter().enumerate().map(|(n, ctx)| (ctx, n as u64 + 1, key)).collect();
        for (n, outcome) in app.at_once(&uses).await.into_iter().enumerate() {
            let (outcome, left) = (outcome.unwrap(), 999 - (n as u64 + 1) * (round as u64).max(1));
            match (round, outcome) {
                (1, Consumption::AlreadyCounted) => {}
                (0 | 2, Consumption::Granted { left: Limit::Max(is), .. }) => assert_eq!(is, left, "{round} {n}"),
                (_, other) => panic!("{round} {n}: {other:?}"),
            }
        }
    }
    let transactions = app.transactions().await - before;
    assert!(transactions <= 10, "{transactions} for 40 uses");
    let mixed = "select count(*) from saas.usage_event e
         where not exists (select from saas.usage_key k
                           where (k.tenant_id, k.key, k.event_id, k.amount) = (e.tenant_id, e.key, e.id, e.amount))";
    assert_eq!(app.count(mixed).await, 0);
    assert_eq!(app.count("select count(*) from saas.usage_key").await, 60, "each tenant's keys are its own");
}

// A tenant whose counter a transaction of the application keeps locked is not waited for by others.
#[tokio::test]
async fn a_tenant_whose_counter_is_locked_holds_up_no_other() {
    let app = App::start().await;
    let mut crowd = Vec::new();
    for n in 0..12 {
        let ctx = app.database.create_tenant(&format!("tenant-{n}")).await;
        assert!(app.r#use(&ctx, 1, "opens-the-window").await.is_granted());
        crowd.push(ctx);
    }
    let (locked, others) = crowd.split_last().unwrap();
    let mut barrier = app.database.owner().await;
    barrier.execute("begin").await.unwrap();
    sqlx::query("select from saas.usage_counter where tenant_id = $1 for no key update")
        .bind(locked.tenant().as_uuid())
        .execute(&mut barrier)
        .await
        .unwrap();
    let uses: Vec<_> = others.iter().map(|ctx| (ctx, 1, "a")).collect();
    let others = async {
        for round in ["a", "b"] {
            let uses: Vec<_> = uses.iter().map(|(ctx, amount, _)| (*ctx, *amount, round)).collect();
            for outcome in app.at_once(&uses).await {
                assert!(outcome.unwrap().is_granted());
            }
        }
        // All of them have their answers, and only now does the row come free.
        barrier.execute("rollback").await.unwrap();
    };
    let (waited, ()) = tokio::join!(app.r#use(locked, 1, "a"), others);
    assert!(waited.is_granted(), "{waited:?}");
    assert_eq!(app.count("select sum(used)::bigint from saas.usage_counter").await, 12 + 11 * 2 + 1);
    assert_eq!(app.open_transactions().await, 0);
}

// A tenant's use that the database refuses is undone with those of its transaction, which are then done without it.
#[tokio::test]
async fn a_tenant_whose_use_fails_takes_no_other_along() {
    let app = App::start().await;
    let mut crowd = Vec::new();
    for n in 0..8 {
        let ctx = app.database.create_tenant(&format!("tenant-{n}")).await;
        assert!(app.r#use(&ctx, 1, "opens-the-window").await.is_granted());
        crowd.push(ctx);
    }
    let mut owner = app.database.owner().await;
    owner.execute("alter table saas.usage_key add constraint no_bad_key check (key <> 'bad')").await.unwrap();
    let uses: Vec<_> = crowd.iter().enumerate().map(|(n, ctx)| (ctx, 1, if n == 5 { "bad" } else { "good" })).collect();
    for (n, outcome) in app.at_once(&uses).await.into_iter().enumerate() {
        match (n, outcome) {
            (5, Err(error)) => assert_eq!(error.kind(), ErrorKind::Conflict),
            (_, outcome) => assert!(outcome.unwrap().is_granted(), "{n}"),
        }
    }
    assert_eq!(app.count("select sum(used)::bigint from saas.usage_counter").await, 15);
}
