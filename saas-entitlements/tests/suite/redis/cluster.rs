//! A cluster that loses a node, and one whose slots move, while tenants use what is there: that costs speed and nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use saas_core::{ErrorKind, TenantContext, testing::RedisCluster};
use saas_entitlements::{Balance, LeasedUse, TierOptions};
use tokio::task::JoinHandle;

use super::{
    ask,
    attacks::is_accounted_for,
    lending::{self, Desk, lost, small},
    on,
    shop::{CALLS, Shop, Till},
};

/// Far beyond what is used while something is broken.
const LIMIT: u64 = 100_000_000;
/// What may be out of it at once.
const OUT: u64 = 1_000;
/// What all tasks use up together in the end.
const REST: u64 = 5_000;
const TASKS: usize = 4;
const AMOUNT: u64 = 7;
/// Uses after which something is seen to work.
const ENOUGH: u64 = 100;
/// A machine that is busy with other tests is not a Redis that is down, and one that is down is given up soon.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// Reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked: each look at a node is a connection.
const LOOK: Duration = Duration::from_millis(5);

/// How often something has happened.
type Count<'a> = &'a (dyn Fn() -> u64 + Sync);

/// A cluster of its own, and the slot of the tenant in it.
struct Ring {
    cluster: RedisCluster,
    urls: Vec<String>,
    slot: String,
}

impl Ring {
    async fn start(shop: &Shop) -> Self {
        let cluster = RedisCluster::start().unwrap();
        let urls = cluster.urls();
        let slot: u16 = ask(&urls[0], &["CLUSTER", "KEYSLOT", &format!("{{{}}}", shop.ctx.tenant())]).await;
        Self { cluster, urls, slot: slot.to_string() }
    }

    async fn say<T: redis::FromRedisValue>(&self, node: usize, words: &[&str]) -> T {
        ask(&self.urls[node], words).await
    }

    /// Where the tenant's keys are.
    async fn holder(&self) -> usize {
        let mut holder = None;
        for node in 0..self.urls.len() {
            if self.say::<u64>(node, &["CLUSTER", "COUNTKEYSINSLOT", &self.slot]).await > 0 {
                holder = Some(node);
            }
        }
        holder.unwrap()
    }

    /// Until the others refuse everything, since a part of the slots is nobody's.
    async fn is_down_without(&self, node: usize) {
        let other = (node + 1) % self.urls.len();
        let is_down = async || self.say::<String>(other, &["CLUSTER", "INFO"]).await.contains("cluster_state:fail");
        until("the cluster does not notice", is_down).await;
    }

    /// Moves the tenant's slot as an operator does; `check` is called with all keys at their old place, and with all at their new one.
    async fn move_slot(&self, from: usize, to: usize, mut check: impl AsyncFnMut()) {
        let name = async |node| self.say::<String>(node, &["CLUSTER", "MYID"]).await;
        let (source, target) = (name(from).await, name(to).await);
        let slot = self.slot.as_str();
        let _: String = self.say(to, &["CLUSTER", "SETSLOT", slot, "IMPORTING", &source]).await;
        let _: String = self.say(from, &["CLUSTER", "SETSLOT", slot, "MIGRATING", &target]).await;
        check().await;
        let port = self.urls[to].rsplit(':').next().unwrap();
        loop {
            let keys: Vec<String> = self.say(from, &["CLUSTER", "GETKEYSINSLOT", slot, "100"]).await;
            if keys.is_empty() {
                break;
            }
            let mut words = vec!["MIGRATE", "127.0.0.1", port, "", "0", "5000", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            let _: String = self.say(from, &words).await;
        }
        check().await;
        for node in [to, from, 3 - to - from] {
            let _: String = self.say(node, &["CLUSTER", "SETSLOT", slot, "NODE", &target]).await;
        }
    }

    /// How often the nodes have answered with this error.
    async fn errors(&self, kind: &str) -> u64 {
        let mut all = 0;
        for node in 0..self.urls.len() {
            let said: String = self.say(node, &["INFO", "errorstats"]).await;
            let of_kind = format!("errorstat_{kind}:count=");
            let count = said.lines().find_map(|line| line.strip_prefix(of_kind.as_str()));
            all += count.map_or(0, |count| count.trim().parse::<u64>().unwrap());
        }
        all
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    let mut looks = tokio::time::interval(LOOK);
    while !is_so().await {
        assert!(started.elapsed() < PATIENCE, "{what}");
        looks.tick().await;
    }
}

/// A node with the tenant's keys is killed and comes back empty, twice, and in the end does not come back. `fast` says how much
/// was had by way of Redis, `direct` from PostgreSQL alone.
async fn lose_a_node(ring: &mut Ring, fast: Count<'_>, direct: Count<'_>) {
    for node in 0..ring.urls.len() {
        // How soon the others notice that one is dead.
        let _: String = ring.say(node, &["CONFIG", "SET", "cluster-node-timeout", "1000"]).await;
    }
    until("Redis is not used", async || fast() > ENOUGH).await;
    let node = ring.holder().await;
    for _ in 0..2 {
        ring.cluster.kill(node);
        ring.is_down_without(node).await;
        let (at, before) = (fast(), direct());
        until("PostgreSQL does not go on alone", async || direct() > before + ENOUGH).await;
        // Each task may have had an answer in its hands.
        assert!(fast() <= at + 2 * TASKS as u64, "from a node that is dead");
        ring.cluster.restart(node).unwrap();
        until("Redis is not used again", async || fast() > at + ENOUGH).await;
    }
    ring.cluster.kill(node);
    ring.is_down_without(node).await;
}

/// The tenant's slot is moved to each node, and back; those who ask for it are told so by all these errors.
async fn move_around(ring: &mut Ring, fast: Count<'_>, direct: Count<'_>, told_by: &[&str]) {
    until("Redis is not used", async || fast() > ENOUGH).await;
    let mut from = ring.holder().await;
    for _ in 0..ring.urls.len() {
        let to = (from + 1) % ring.urls.len();
        let goes_on = async || {
            let before = fast() + direct();
            until("nothing is granted meanwhile", async || fast() + direct() > before + ENOUGH).await;
        };
        ring.move_slot(from, to, goes_on).await;
        let before = fast();
        until("Redis is not used again", async || fast() > before + ENOUGH).await;
        assert_eq!(ring.holder().await, to);
        from = to;
    }
    for kind in told_by {
        assert!(ring.errors(kind).await > 0, "nobody was answered {kind}");
    }
}

fn tills(shop: &Shop, ring: &Ring) -> [Till; 2] {
    let options = TierOptions::default()
        .with_exposed_share(LIMIT / OUT)
        .with_size(1, 200)
        .with_pause(Duration::from_millis(1))
        .with_tick(Duration::from_millis(5))
        .with_answer_within(ANSWER_WITHIN);
    [options.clone(), options].map(|options| shop.till(on(&ring.cluster), options))
}

/// Tasks of each process, which use until they are refused or told that it is enough.
struct Users {
    tasks: Vec<JoinHandle<u64>>,
    is_enough: Arc<AtomicBool>,
}

impl Users {
    fn start<T>(each: &[T], mut start: impl FnMut(usize, &T, Arc<AtomicBool>) -> JoinHandle<u64>) -> Self {
        let is_enough = Arc::new(AtomicBool::new(false));
        let tasks = (0..TASKS * each.len()).map(|task| start(task, &each[task % each.len()], Arc::clone(&is_enough)));
        Self { tasks: tasks.collect(), is_enough }
    }

    fn stop(&self) {
        self.is_enough.store(true, Ordering::Relaxed);
    }

    /// What they were granted in all.
    async fn granted(self) -> u64 {
        let mut granted = 0;
        for task in self.tasks {
            granted += task.await.unwrap();
        }
        granted
    }
}

/// Uses under keys that begin with `name`.
fn use_by_key(shop: &Shop, tills: &[Till], name: &'static str) -> Users {
    Users::start(tills, |task, till, is_enough| {
        let (meter, ctx) = (till.meter.clone(), shop.ctx.clone());
        tokio::spawn(async move {
            let mut granted = 0;
            for number in 0.. {
                let key = format!("{name}-{task}-{number}").parse().unwrap();
                let used = loop {
                    match meter.consume(&ctx, &CALLS, AMOUNT, &key).await {
                        Ok(used) => break used,
                        // What a caller does: the same key again.
                        Err(error) => assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}"),
                    }
                };
                granted += if used.is_granted() { AMOUNT } else { 0 };
                if !used.is_granted() || is_enough.load(Ordering::Relaxed) {
                    break;
                }
            }
            granted
        })
    })
}

fn desks(shop: &Shop, ring: &Ring) -> [Desk; 2] {
    let lease = || small().with_exposed_share(LIMIT / OUT).with_tick(Duration::from_millis(20));
    let options = || lending::hasty().with_answer_within(ANSWER_WITHIN);
    [lease(), lease()].map(|lease| Desk::open(shop, on(&ring.cluster), options(), lease))
}

/// The same from memory, by leases.
fn use_by_lease(shop: &Shop, desks: &[Desk]) -> Users {
    Users::start(desks, |_, desk, is_enough| {
        let (leases, ctx) = (desk.leases.clone(), shop.ctx.clone());
        tokio::spawn(async move {
            let mut granted = 0;
            while !is_enough.load(Ordering::Relaxed) {
                match leases.consume(&ctx, &CALLS, AMOUNT).await {
                    Ok(LeasedUse::Granted) => granted += AMOUNT,
                    Ok(LeasedUse::Exhausted { .. }) => break,
                    Ok(denied @ LeasedUse::Denied(_)) => assert!(denied.is_granted(), "{denied:?}"),
                    // Others came in between too often; nothing was counted.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
                }
            }
            granted
        })
    })
}

/// All that is left but a rest.
async fn most_of_it(shop: &Shop) -> u64 {
    let Balance { used, held } = shop.balance().await;
    LIMIT - used - held - REST
}

/// Keyed uses while `happens`: each that was granted is counted, once, and no limit is passed.
async fn keyed_uses_while(happens: impl AsyncFnOnce(&mut Ring, Count<'_>, Count<'_>)) {
    let shop = Shop::with_limit(LIMIT).await;
    let mut ring = Ring::start(&shop).await;
    let tills = tills(&shop, &ring);
    let users = use_by_key(&shop, &tills, "meanwhile");
    let admitted = || tills.iter().map(|till| till.tier.stats().admitted).sum();
    let direct = || tills.iter().map(|till| till.tier.stats().direct).sum();
    happens(&mut ring, &admitted, &direct).await;
    users.stop();
    let mut granted = users.granted().await;
    let most = most_of_it(&shop).await;
    assert!(tills[0].r#use(&shop.ctx, most, "most").await.unwrap().is_granted());
    granted += most + use_by_key(&shop, &tills, "rest").granted().await;
    is_accounted_for(&shop, &tills, granted).await;
    let stranded = shop.stranded().await;
    assert!(stranded <= OUT, "{stranded} were lost with the slices");
}

/// Uses by lease while `happens`: what is lost is what was out, and no limit is passed.
async fn leased_uses_while(happens: impl AsyncFnOnce(&mut Ring, Count<'_>, Count<'_>)) {
    let shop = Shop::with_limit(LIMIT).await;
    let mut ring = Ring::start(&shop).await;
    let desks = desks(&shop, &ring);
    let users = use_by_lease(&shop, &desks);
    let from_redis = || desks.iter().map(|desk| desk.store.stats().from_redis).sum::<u64>();
    until("nothing is lent out of Redis", async || from_redis() > ENOUGH).await;
    // A pool that Redis has lost may hold all that may be out until its life is over: then each use fills the next one with what
    // it needs, which is by way of Redis, too.
    let by_redis = || desks.iter().map(|desk| desk.store.stats()).map(|stats| stats.from_redis + stats.filled).sum();
    let direct = || desks.iter().map(|desk| desk.store.stats().direct).sum();
    happens(&mut ring, &by_redis, &direct).await;
    users.stop();
    let mut granted = users.granted().await;
    let most = most_of_it(&shop).await;
    assert!(desks[0].r#use(&shop, most).await.is_granted());
    granted += most + use_by_lease(&shop, &desks).granted().await;
    // Nothing was given back in between, so no more than once.
    let lost = lost(&shop, &desks, granted).await;
    assert!(lost <= OUT, "{lost}");
}

// C1, C11, G10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_costs_keyed_uses_their_speed_only() {
    keyed_uses_while(lose_a_node).await;
}

// C1, C11, G10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_costs_leased_uses_what_was_out_and_grants_none_too_many() {
    leased_uses_while(lose_a_node).await;
}

// C1, C11, C22
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_loses_no_keyed_use_and_counts_none_twice() {
    // What a use reads and writes is at two places: the client tries again until it is given up.
    keyed_uses_while(async |ring, fast, direct| move_around(ring, fast, direct, &["TRYAGAIN"]).await).await;
}

// C1, C11, C22
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_costs_leased_uses_what_was_out_and_grants_none_too_many() {
    leased_uses_while(async |ring, fast, direct| move_around(ring, fast, direct, &["ASK", "MOVED"]).await).await;
}
