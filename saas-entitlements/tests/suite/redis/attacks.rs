//! Redis is emptied, killed and stalled, processes are killed, and no unit is lost, made or counted twice.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use saas_core::{
    Actor, ErrorKind, RequestContext, SystemClock, TenantContext, TenantPool,
    testing::{Cut, Proxy, RedisServer},
};
use saas_entitlements::{Balance, Consumption, SCHEMA, TierOptions};

use super::{
    ask,
    shop::{LIMIT, Shop, Till, by_hand},
    single,
};

/// As in production, with everything happening more often.
fn hasty() -> TierOptions {
    TierOptions::default()
        .with_exposed_share(10)
        .with_size(1, 200)
        .with_pause(Duration::from_millis(1))
        .with_tick(Duration::from_millis(5))
}

/// The same, where a machine that is busy with other tests is not a Redis that is down.
fn patient() -> TierOptions {
    hasty().with_answer_within(Duration::from_secs(10))
}

/// Uses of several tasks of several processes on one tenant; `disturb` is called every so many uses. Returns the units that
/// were granted.
async fn under_load(shop: &Shop, tills: &[Till], mut disturb: impl AsyncFnMut(u64)) -> u64 {
    const TASKS: usize = 4;
    const USES: u64 = 150;
    let done = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = tills
        .iter()
        .enumerate()
        .flat_map(|(process, till)| (0..TASKS).map(move |task| (process, task, till)))
        .map(|(process, task, till)| {
            let (meter, ctx, done) = (till.meter.clone(), shop.ctx.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut granted = 0;
                for number in 0..USES {
                    let key = format!("{process}-{task}-{number}").parse().unwrap();
                    loop {
                        match meter.consume(&ctx, &super::shop::CALLS, 9, &key).await {
                            Ok(used) => break granted += if used.is_granted() { 9 } else { 0 },
                            // What a caller does: the same key again.
                            Err(error) => assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}"),
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                granted
            })
        })
        .collect();
    let all = (tasks.len() as u64) * USES;
    let mut seen = 0;
    while seen < all && !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        let now = done.load(Ordering::Relaxed);
        if now > seen + fastrand::u64(10..60) {
            seen = now;
            disturb(now).await;
        }
        tokio::task::yield_now().await;
    }
    let mut granted = 0;
    for task in tasks {
        granted += task.await.unwrap();
    }
    granted
}

/// Everything that was granted is written with its key; what is not known is counted as used, up to the share of the limit.
pub(super) async fn is_accounted_for(shop: &Shop, tills: &[Till], granted: u64) {
    for till in tills {
        till.tier.shutdown().await.unwrap();
    }
    assert_eq!(shop.recorded().await, granted, "recorded is what was granted");
    let Balance { used, held } = shop.balance().await;
    assert!(used + held <= shop.limit);
    shop.reclaim().await;
    shop.is_in_order().await;
    assert_eq!(shop.balance().await.used, granted + shop.stranded().await);
    assert_eq!(shop.balance().await.held, 0);
    let stats: Vec<_> = tills.iter().map(|till| till.tier.stats()).collect();
    assert!(stats.iter().all(|stats| stats.beyond == 0 && stats.reused_keys == 0), "{stats:?}");
}

// C1, C11: two processes on one tenant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_under_load_loses_no_use_and_grants_none_too_many() {
    let server = RedisServer::start().unwrap();
    let shop = Shop::open().await;
    let tills = [shop.till(single(&server.url()), patient()), shop.till(single(&server.url()), patient())];
    let mut flushes = 0;
    let granted = under_load(&shop, &tills, async |_| {
        let _: () = ask(&server.url(), &["FLUSHALL"]).await;
        flushes += 1;
    })
    .await;
    assert!(flushes > 5, "{flushes}");
    assert!(tills.iter().all(|till| till.tier.stats().admitted > 0));
    is_accounted_for(&shop, &tills, granted).await;
}

// C1, C11, G10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_and_started_empty_under_load_loses_no_use_and_grants_none_too_many() {
    let mut server = RedisServer::start().unwrap();
    let shop = Shop::open().await;
    let tills = [shop.till(single(&server.url()), patient()), shop.till(single(&server.url()), patient())];
    let mut kills = 0;
    let granted = under_load(&shop, &tills, async |done| {
        // Often enough there is time to be used between two of them.
        if kills < done / 200 {
            server.restart().unwrap();
            kills += 1;
        }
    })
    .await;
    assert!(kills > 1, "{kills}");
    is_accounted_for(&shop, &tills, granted).await;
}

// C1: to the last unit, undisturbed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_use_a_limit_up_to_its_last_unit() {
    let server = RedisServer::start().unwrap();
    let shop = Shop::open().await;
    let tills = [shop.till(single(&server.url()), patient()), shop.till(single(&server.url()), patient())];
    let granted = under_load(&shop, &tills, async |_| {}).await;
    // The last unit that nine fit into: 10,000 = 9 · 1,111 + 1.
    let mut more = 0;
    for number in 0..100 {
        let answered = tills[0].r#use(&shop.ctx, 9, &format!("more-{number}")).await.unwrap();
        if answered.is_granted() {
            more += 9;
        }
    }
    assert_eq!(granted + more, 9_999);
    assert!(tills.iter().any(|till| till.tier.stats().admitted > 0));
    is_accounted_for(&shop, &tills, granted + more).await;
    assert_eq!(shop.stranded().await, 0, "nothing was lost, so nothing is counted for it");
}

// G10: nothing listens.
#[tokio::test]
async fn without_redis_every_use_is_decided_by_postgresql() {
    let mut server = RedisServer::start().unwrap();
    server.kill();
    let shop = Shop::open().await;
    let till = shop.till(single(&server.url()), hasty());
    for number in 0..20 {
        assert!(till.r#use(&shop.ctx, 1, &format!("use-{number}")).await.unwrap().is_granted());
    }
    let stats = till.tier.stats();
    assert_eq!((stats.admitted, stats.direct), (0, 20));
    assert!(stats.unasked > 20, "{stats:?}");
    assert_eq!(shop.balance().await, Balance { used: 20, held: 0 });
}

// G10, C2: it took the question, and does not answer.
#[tokio::test]
async fn a_use_that_redis_took_without_an_answer_counts_once() {
    let server = RedisServer::start().unwrap();
    let network = Proxy::start(("127.0.0.1", server.port())).unwrap();
    let shop = Shop::open().await;
    let url = format!("redis://{}", network.address());
    let options = by_hand().with_answer_within(Duration::from_millis(300));
    let till = shop.till(single(&url), options);
    let used = till.warm_up(&shop.ctx).await;
    network.stop_answering();
    // Decided by PostgreSQL; what Redis took for it comes back when it is settled.
    assert!(till.r#use(&shop.ctx, 7, "unanswered").await.unwrap().is_granted());
    network.resume_answering();
    assert!(till.tier.stats().unanswered > 0);
    let other = shop.till(single(&server.url()), by_hand());
    assert!(matches!(other.r#use(&shop.ctx, 7, "unanswered").await.unwrap(), Consumption::AlreadyCounted));
    other.tier.shutdown().await.unwrap();
    assert_eq!(shop.recorded().await, used + 7);
    shop.reclaim().await;
    till.tier.shutdown().await.unwrap();
    shop.is_in_order().await;
    assert_eq!(other.tier.stats().beyond + till.tier.stats().beyond, 0);
}

// G10, C2: the bound of what docs/consistency.md does not promise.
#[tokio::test]
async fn a_repeat_that_is_refused_while_redis_is_away_counts_once_at_most_and_within_the_limit() {
    let server = RedisServer::start().unwrap();
    let network = Proxy::start(("127.0.0.1", server.port())).unwrap();
    let shop = Shop::open().await;
    let url = format!("redis://{}", network.address());
    let till = shop.till(single(&url), by_hand().with_answer_within(Duration::from_millis(300)));
    let used = till.warm_up(&shop.ctx).await;
    // Everything but the slice is used: PostgreSQL refuses what Redis would still admit.
    let Balance { used: counted, held } = shop.balance().await;
    let elsewhere = till.on_postgresql(&shop);
    let rest = LIMIT - counted - held;
    let drawn = elsewhere.consume(&shop.ctx, &super::shop::CALLS, rest, &"the-rest".parse().unwrap()).await.unwrap();
    assert!(drawn.is_granted(), "{drawn}");

    network.stop_answering();
    let unknown = till.r#use(&shop.ctx, 7, "tap").await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::OutcomeUnknown, "{unknown}");
    network.refuse_connections();
    network.cut(Cut::Reset);
    // What a caller does: the same key again, until there is an answer.
    let refused = loop {
        match till.r#use(&shop.ctx, 7, "tap").await {
            Ok(refused) => break refused,
            Err(error) => assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}"),
        }
    };
    assert!(matches!(refused, Consumption::Exhausted { .. }), "{refused}");

    // Redis has it, and whoever comes by next finds it there: once, of units that were set aside.
    let other = shop.till(single(&server.url()), by_hand());
    for _ in 0..3 {
        let repeated = other.r#use(&shop.ctx, 7, "tap").await.unwrap();
        assert!(matches!(repeated, Consumption::AlreadyCounted), "{repeated}");
    }
    other.tier.shutdown().await.unwrap();
    assert_eq!(shop.recorded().await, used + rest + 7);
    assert!(shop.balance().await.used <= LIMIT);
    shop.reclaim().await;
    network.accept_connections();
    network.resume_answering();
    till.tier.shutdown().await.unwrap();
    shop.is_in_order().await;
    assert_eq!(other.tier.stats().beyond + till.tier.stats().beyond, 0);
}

// C19, C11: the limit was lowered while units were lent.
#[tokio::test]
async fn units_that_were_lent_at_an_older_revision_come_back_first() {
    let server = RedisServer::start().unwrap();
    let shop = Shop::open().await;
    let till = shop.till(single(&server.url()), by_hand());
    let used = till.warm_up(&shop.ctx).await;
    assert!(shop.balance().await.held > 0);
    let mut tx = saas_core::TenantTx::begin(shop.database.tenants(), &shop.ctx).await.unwrap();
    let revision = saas_core::revision::bump_in(&mut tx, shop.ctx.tenant()).await.unwrap();
    tx.commit().await.unwrap();
    // A process that has heard of it.
    let fresh = shop.till(single(&server.url()), by_hand());
    let before = till.tier.stats().admitted;
    assert!(fresh.r#use(&shop.ctx, 5, "fresh").await.unwrap().is_granted());
    // One that has not is told by PostgreSQL.
    assert!(till.r#use(&shop.ctx, 5, "late").await.unwrap().is_granted());
    assert!(revision.get() > 1 && till.tier.stats().admitted <= before + 1);
    till.tier.shutdown().await.unwrap();
    fresh.tier.shutdown().await.unwrap();
    assert_eq!(shop.recorded().await, used + 10);
    assert_eq!(shop.balance().await.held, 0);
    shop.is_in_order().await;
}

// --- processes ------------------------------------------------------------------------------------------------------

const CHILD: &str = "SAAS_TIER_CHILD";
const DATABASE: &str = "SAAS_TIER_DATABASE";
const TENANT: &str = "SAAS_TIER_TENANT";

/// A process of the application: uses until it is killed, settles nothing, and says each use that was granted.
async fn sell() {
    let login = env::var(DATABASE).unwrap();
    let pool = saas_core::db::pool_options().max_connections(2).connect(&login).await.unwrap();
    let pool = TenantPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.unwrap();
    let till = Till::open(&pool, Arc::new(SystemClock), single(&env::var(CHILD).unwrap()), by_hand(), LIMIT);
    let ctx = RequestContext::new(env::var(TENANT).unwrap().parse().unwrap(), Actor::system("child"), &SystemClock);
    for number in 0.. {
        if till.r#use(&ctx, 1, &format!("child-{number}")).await.unwrap().is_granted() && till.tier.stats().admitted > 0
        {
            println!("\n> {}", number + 1);
            std::io::stdout().flush().unwrap();
        }
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts a process, has it use at least so many units, and kills it with SIGKILL. Returns how many it says it was granted.
async fn a_process_is_killed(shop: &Shop, server: &RedisServer, test: &str, least: u64) -> u64 {
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, server.url())
        .env(DATABASE, shop.database.url("saas_app"))
        .env(TENANT, shop.ctx.tenant().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut said = 0;
    while said < least {
        let line = lines.next().unwrap().unwrap();
        said = line.strip_prefix("> ").map_or(said, |number| number.parse().unwrap());
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    for line in lines {
        said = line.unwrap().strip_prefix("> ").map_or(said, |number| number.parse().unwrap());
    }
    said
}

// C11, C16: between admitting and settling.
#[tokio::test]
async fn what_a_killed_process_had_not_settled_is_settled_by_another() {
    if env::var(CHILD).is_ok() {
        return sell().await;
    }
    let test = "redis::attacks::what_a_killed_process_had_not_settled_is_settled_by_another";
    let server = RedisServer::start().unwrap();
    let shop = Shop::open().await;
    let said = a_process_is_killed(&shop, &server, test, 100).await;
    assert!(shop.recorded().await < said, "it has settled nothing");
    let till = shop.till(single(&server.url()), by_hand());
    let usage = till.meter.usage(&shop.ctx, &super::shop::CALLS).await.unwrap().unwrap();
    // One may have been granted without having been said.
    assert!((said..=said + 1).contains(&usage.used), "{said} {}", usage.used);
    assert_eq!(shop.recorded().await, usage.used);
    till.tier.shutdown().await.unwrap();
    assert_eq!(shop.balance().await.held, 0, "the rest of its slice came back");
    shop.is_in_order().await;
}

// C11: the process and Redis, both.
#[tokio::test]
async fn with_the_process_and_redis_both_lost_the_slice_counts_as_used_and_no_more() {
    if env::var(CHILD).is_ok() {
        return sell().await;
    }
    let test = "redis::attacks::with_the_process_and_redis_both_lost_the_slice_counts_as_used_and_no_more";
    let mut server = RedisServer::start().unwrap();
    let shop = Shop::open().await;
    let said = a_process_is_killed(&shop, &server, test, 100).await;
    server.restart().unwrap();
    let Balance { used, held } = shop.balance().await;
    assert!(used + held >= said, "all of it is set aside");
    shop.reclaim().await;
    let counted = shop.balance().await;
    assert_eq!(counted, Balance { used: used + held, held: 0 });
    assert!(counted.used <= said + LIMIT / 10 + 1, "{counted:?} {said}");
    // The rest of the limit can be used to the last unit.
    let till = shop.till(single(&server.url()), patient());
    let mut rest = 0;
    while till.r#use(&shop.ctx, 1, &format!("rest-{rest}")).await.unwrap().is_granted() {
        rest += 1;
    }
    assert_eq!(counted.used + rest, LIMIT);
    till.tier.shutdown().await.unwrap();
    shop.is_in_order().await;
}
