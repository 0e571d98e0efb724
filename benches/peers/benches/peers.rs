//! The gate beside what people use for the same question, all in one run.
//!
//! `./dev bench peers`. Fifty features, sixteen plans, 10,000 tenants, one and two threads. The flag services' clients get
//! their easiest job: the plan is handed over ready-made, so they look no tenant up, no event is sent, no network is used.
//! The policy engines find out the tenant's plan, as the gate does, with as few policies as make sense. Stores are asked over
//! loopback with client and server on one core, where nobody has to be woken: the view that is kindest to them.
//!
//! Two Rust crates that answer the same question are not here: `tideway` and `tollgate` bring a database stack of their own
//! (an older sqlx, SeaORM) and have to be filled from tables of theirs, which would double what this workspace builds.
//!
//! `ROUNDS` says how many rounds count (7).

#[path = "peers/engines.rs"]
mod engines;
#[path = "peers/flags.rs"]
mod flags;
#[path = "peers/stores.rs"]
mod stores;

use std::{sync::Arc, time::Duration};

use saas_benches::{
    Contender,
    field::{self, Plans, Popularity, Questions},
    race, ratio,
};
use saas_core::TenantId;
use uuid::Uuid;

const TENANTS: usize = 10_000;
/// Set in the process that is bound to one core.
const BOUND: &str = "SAAS_PEERS_BOUND";

fn main() -> anyhow::Result<()> {
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(7);
    if std::env::var(BOUND).is_ok() {
        return stores::race_against(rounds);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    in_process(&runtime, rounds)?;
    stores::on_one_core(BOUND)
}

fn in_process(runtime: &tokio::runtime::Runtime, rounds: usize) -> anyhow::Result<()> {
    let gate = runtime.block_on(field::gate(&field::catalog(), Plans::new(0), TENANTS));
    let (handles, keys) = (field::handles(&gate), field::keys(&gate));
    let floor = field::floor(TENANTS);
    let moka = moka();
    let (unleash, uncounted) = (flags::Unleash::new(true)?, flags::Unleash::new(false)?);
    let openfeature = runtime.block_on(flags::OpenFeature::new(TENANTS));
    let launchdarkly = runtime.block_on(flags::LaunchDarkly::new())?;
    let cedar = engines::Cedar::new(TENANTS)?;
    let casbin = runtime.block_on(engines::Casbin::new(TENANTS))?;

    let by_floor = |_: usize, id: TenantId, f: usize| floor.get(&id.as_uuid()).is_some_and(|bits| bits.0 >> f & 1 == 1);
    let by_gate = |_: usize, id: TenantId, f: usize| gate.is_enabled(id, handles[f]).if_ready() == Some(true);
    let by_name = |_: usize, id: TenantId, f: usize| gate.is_feature_enabled(id, &keys[f]).if_ready() == Some(true);
    let by_moka = |_: usize, id: TenantId, f: usize| moka.get(&id.as_uuid()).is_some_and(|bits| bits.0 >> f & 1 == 1);
    let by_unleash = |tenant: usize, _: TenantId, f: usize| unleash.ask(field::plan_of(tenant), f);
    let by_uncounted = |tenant: usize, _: TenantId, f: usize| uncounted.ask(field::plan_of(tenant), f);
    let by_openfeature = |tenant: usize, _: TenantId, f: usize| openfeature.ask(tenant, f);
    let by_launchdarkly = |tenant: usize, _: TenantId, f: usize| launchdarkly.ask(field::plan_of(tenant), f);
    // One policy and four: they know the answers to few of the questions.
    let by_cedar = |tenant: usize, _: TenantId, f: usize| cedar.ask(tenant, f);
    let by_casbin = |tenant: usize, _: TenantId, f: usize| casbin.ask(tenant, f);

    let questions = Questions::new(TENANTS, Popularity::Zipf);
    for (tenant, id, feature) in questions.of_thread(0).iter().take(400) {
        let (tenant, id, f, plan) = (*tenant, *id, usize::from(*feature), field::plan_of(*tenant));
        let expected = field::grants(plan, f);
        let answers = [
            by_floor(tenant, id, f),
            by_gate(tenant, id, f),
            by_name(tenant, id, f),
            by_moka(tenant, id, f),
            by_unleash(tenant, id, f),
            by_uncounted(tenant, id, f),
            by_openfeature(tenant, id, f),
            by_launchdarkly(tenant, id, f),
        ];
        anyhow::ensure!(answers == [expected; 8], "{answers:?} where {expected} is right");
        anyhow::ensure!(by_cedar(tenant, id, f) == (plan == 1 && f == 0), "cedar");
        anyhow::ensure!(by_casbin(tenant, id, f) == (plan < 4 && f == 0), "casbin");
    }

    for threads in [1, 2] {
        let medians = race(
            rounds,
            &mut [
                Contender::new("floor", || questions.ask(threads, by_floor)),
                Contender::new("gate", || questions.ask(threads, by_gate)),
                Contender::new("gate by name", || questions.ask(threads, by_name)),
                Contender::new("moka", || questions.ask(threads, by_moka)),
                Contender::new("unleash-api-client", || questions.ask_some(threads, 1 << 16, by_unleash)),
                Contender::new("unleash without counts", || questions.ask_some(threads, 1 << 16, by_uncounted)),
                Contender::new("open-feature", || questions.ask_some(threads, 1 << 16, by_openfeature)),
                Contender::new("launchdarkly-server-sdk", || questions.ask_some(threads, 1 << 16, by_launchdarkly)),
                Contender::new("cedar-policy", || questions.ask_some(threads, 1 << 14, by_cedar)),
                Contender::new("casbin", || questions.ask_some(threads, 1 << 13, by_casbin)),
            ],
        );
        let [floor, gate, by_name, peers @ ..] = &medians[..] else { unreachable!("three and the peers") };
        println!("10k zipf {threads}t: floor {floor:.1} ns, gate {gate:.1} ns, by name {by_name:.1} ns");
        let goals = [
            ("moka", Some(12.0)),
            ("unleash-api-client", Some(20.0)),
            ("unleash-api-client without counts", None),
            ("open-feature", Some(40.0)),
            ("launchdarkly-server-sdk", Some(60.0)),
            ("cedar-policy", Some(200.0)),
            ("casbin", Some(200.0)),
        ];
        for ((name, goal), peer) in goals.into_iter().zip(peers) {
            let (by_handle, by_name) = (peer / gate, peer / by_name);
            println!("10k zipf {threads}t: {name} {peer:.0} ns, {by_handle:.0} times the gate, {by_name:.0} by name");
            if let Some(goal) = goal {
                ratio(&format!("{name}/gate_hit 10k zipf {threads}t"), by_handle, false, goal);
            }
        }
    }
    Ok(())
}

fn moka() -> moka::sync::Cache<Uuid, Arc<field::Bits>, foldhash::fast::RandomState> {
    let moka = moka::sync::Cache::builder()
        .max_capacity(TENANTS as u64 * 2)
        .time_to_live(Duration::from_secs(3_600))
        .build_with_hasher(foldhash::fast::RandomState::default());
    for tenant in 0..TENANTS {
        moka.insert(field::tenant_id(tenant).as_uuid(), Arc::new(field::Bits(field::bits(field::plan_of(tenant)))));
    }
    moka
}
