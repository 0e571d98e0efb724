//! The gate beside its floor (a hash map and a bit test), a general cache, and a peer of the field.
//!
//! `cargo bench -p saas-benches --bench gate`. Fifty features and ten limits per tenant; Zipf-distributed tenants, uniform
//! features. Contenders answer the same questions and must agree on them.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]

use std::{
    hint::black_box,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_benches::{Contender, per_thread, race, ratio, zipf};
use saas_core::{
    FeatureKey, PlanCatalog, PlanKey, Revision, SharedClock, SystemClock, TenantId, subscription::PlanAssignment,
};
use saas_entitlements::{
    Entitlements, EntitlementsError, FeatureHandle, GateOptions, Snapshot, SnapshotSource, TenantState,
};
use unleash_api_client::{
    client::{Client, ClientBuilder, FeatureKey as UnleashKey},
    context::Context,
    http::{Request, Response, Transport},
};
use uuid::Uuid;

const FEATURES: usize = 50;
const METERS: usize = 10;
const PLANS: usize = 16;
/// Questions per run and thread.
const QUESTIONS: usize = 1 << 18;

fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(9);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for tenants in [10_000, 100_000] {
        let field = runtime.block_on(Field::new(tenants));
        field.check();
        for threads in [1, 2] {
            field.race(threads, rounds);
        }
        if tenants == 10_000 {
            field.race_unleash(rounds);
            field.count_allocations();
        }
    }
    memory(&runtime, 100_000);
}

/// Whether a plan grants a feature: about half of them, in a pattern without order.
fn grants(plan: usize, feature: usize) -> bool {
    (plan * 31 + feature * 17 + plan * feature) % 7 < 4
}

fn plan_of(tenant: usize) -> usize {
    (tenant * 7 + tenant / 3) % PLANS
}

fn catalog() -> PlanCatalog {
    let mut text = "default_plan = \"p0\"\n".to_owned();
    for feature in 0..FEATURES {
        text += &format!("[features.f{feature:02}]\nkind = \"boolean\"\nfail = \"closed\"\n");
    }
    for meter in 0..METERS {
        text += &format!("[meters.m{meter}]\naggregation = \"sum\"\n");
    }
    for plan in 0..PLANS {
        text += &format!("[plans.p{plan}]\nrank = {plan}\n[[plans.p{plan}.versions]]\nversion = 1\n");
        let on: Vec<_> = (0..FEATURES).map(|feature| format!("f{feature:02} = {}", grants(plan, feature))).collect();
        text += &format!("grants = {{ {} }}\n", on.join(", "));
        for meter in 0..METERS {
            let max = (plan + 1) * 1_000 + meter;
            text +=
                &format!("limits.m{meter} = {{ max = {max}, window = \"month\", overage = \"block\", warn = [80] }}\n");
        }
    }
    PlanCatalog::from_toml(&text).expect("the benchmark's catalogue is valid")
}

/// Answers with the plan that a tenant's id names.
#[derive(Debug)]
struct PlanById;

fn tenant_id(tenant: usize) -> TenantId {
    // Time-ordered like real ids: a prefix that hardly changes, then bits without order.
    let random = (tenant as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let high = (0x0190_0000_0000 + tenant as u64 / 50) << 16 | 0x7000 | (random & 0xfff);
    TenantId::from_uuid(Uuid::from_u64_pair(high, (tenant as u64) << 40 | random >> 24))
}

#[async_trait]
impl SnapshotSource for PlanById {
    async fn load(&self, tenant: TenantId, _: DateTime<Utc>) -> Result<Option<TenantState>, EntitlementsError> {
        let tenant = (tenant.as_uuid().as_u64_pair().1 >> 40) as usize;
        let plan: PlanKey = format!("p{}", plan_of(tenant)).parse()?;
        let assignment = PlanAssignment { version: Some(1), ..PlanAssignment::active(plan) };
        Ok(Some(TenantState { revision: Revision::new(1), assignment, overrides: Vec::new(), cohorts: Vec::new() }))
    }
}

async fn gate(catalog: &PlanCatalog, tenants: usize) -> Entitlements {
    let clock: SharedClock = Arc::new(SystemClock);
    let options = GateOptions::default().with_capacity(tenants).with_ttl(chrono::TimeDelta::hours(12));
    let gate = Entitlements::with_options(catalog.clone(), Arc::new(PlanById), clock, options).expect("valid options");
    gate.tick();
    for tenant in 0..tenants {
        gate.snapshot(tenant_id(tenant)).await;
    }
    gate
}

/// The floor's value: what a tenant may do, as small as it gets.
struct Bits(u64);

struct Field {
    tenants: usize,
    gate: Entitlements,
    handles: Vec<FeatureHandle>,
    keys: Vec<FeatureKey>,
    floor: hashbrown::HashMap<Uuid, Arc<Bits>, foldhash::fast::RandomState>,
    moka: moka::sync::Cache<Uuid, Arc<Bits>, foldhash::fast::RandomState>,
    snapshots: Vec<Arc<Snapshot>>,
    unleash: Client<Flag>,
    contexts: Vec<Context>,
    /// One list of questions per thread: tenant, its id, feature.
    questions: [Vec<(usize, TenantId, u16)>; 2],
}

impl Field {
    async fn new(tenants: usize) -> Self {
        let catalog = catalog();
        let gate = gate(&catalog, tenants).await;
        let keys: Vec<FeatureKey> = catalog.features().iter().map(|feature| feature.key().clone()).collect();
        let handles = keys.iter().map(|key| gate.feature(key).expect("declared")).collect();
        let bits = |tenant| (0..FEATURES).fold(0, |bits, f| bits | u64::from(grants(plan_of(tenant), f)) << f);
        let mut floor = hashbrown::HashMap::with_hasher(foldhash::fast::RandomState::default());
        let moka = moka::sync::Cache::builder()
            .max_capacity(tenants as u64 * 2)
            .time_to_live(Duration::from_secs(3_600))
            .build_with_hasher(foldhash::fast::RandomState::default());
        let mut snapshots = Vec::new();
        for tenant in 0..tenants {
            let id = tenant_id(tenant);
            floor.insert(id.as_uuid(), Arc::new(Bits(bits(tenant))));
            moka.insert(id.as_uuid(), Arc::new(Bits(bits(tenant))));
            snapshots.push(gate.snapshot(id).await);
        }
        let questions = [1, 2].map(|seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            let ask = |tenant| (tenant, tenant_id(tenant), random.u16(0..FEATURES as u16));
            zipf(tenants, QUESTIONS, seed).into_iter().map(ask).collect()
        });
        let contexts = (0..PLANS).map(unleash_context).collect();
        Self { tenants, gate, handles, keys, floor, moka, snapshots, unleash: unleash(), contexts, questions }
    }

    /// All contenders give the expected answers.
    fn check(&self) {
        for (tenant, id, feature) in self.questions[0].iter().take(400) {
            let (feature, expected) = (usize::from(*feature), grants(plan_of(*tenant), usize::from(*feature)));
            assert_eq!(self.gate.is_enabled(*id, self.handles[feature]).if_ready(), Some(expected), "gate");
            assert_eq!(self.gate.is_feature_enabled(*id, &self.keys[feature]).if_ready(), Some(expected), "by name");
            assert_eq!(self.snapshots[*tenant].is_enabled(self.handles[feature]), expected, "snapshot");
            assert_eq!(self.floor[&id.as_uuid()].0 >> feature & 1 == 1, expected, "floor");
            assert_eq!(self.moka.get(&id.as_uuid()).map(|bits| bits.0 >> feature & 1 == 1), Some(expected), "moka");
            let context = &self.contexts[plan_of(*tenant)];
            assert_eq!(self.unleash.is_enabled(Flag(feature as u8), Some(context), false), expected, "unleash");
        }
        let stats = self.gate.stats();
        assert!(stats.evictions * 10_000 <= self.tenants as u64, "every tenant fits");
    }

    /// Nanoseconds per question of `ask`, asked on `threads` threads.
    fn ask(&self, threads: usize, ask: impl Fn(usize, TenantId, usize) -> bool + Sync) -> f64 {
        per_thread(threads, |thread| {
            let mut on = 0_u64;
            for (tenant, id, feature) in &self.questions[thread] {
                on += u64::from(ask(*tenant, *id, usize::from(*feature)));
            }
            black_box(on);
            self.questions[thread].len() as u64
        })
    }

    fn race(&self, threads: usize, rounds: usize) {
        let floor = |_, id: TenantId, f| self.floor.get(&id.as_uuid()).is_some_and(|bits| bits.0 >> f & 1 == 1);
        let by_handle = |_, id, f: usize| self.gate.is_enabled(id, self.handles[f]).if_ready() == Some(true);
        let by_name = |_, id, f: usize| self.gate.is_feature_enabled(id, &self.keys[f]).if_ready() == Some(true);
        // As a request does: one snapshot, then questions. The snapshot is held, the questions vary.
        let held = &self.snapshots[self.tenants / 2];
        let snapshot = |_, _, f: usize| held.is_enabled(self.handles[f]);
        let moka = |_, id: TenantId, f| self.moka.get(&id.as_uuid()).is_some_and(|bits| bits.0 >> f & 1 == 1);
        let medians = race(
            rounds,
            &mut [
                Contender::new("floor", || self.ask(threads, floor)),
                Contender::new("gate by handle", || self.ask(threads, by_handle)),
                Contender::new("gate by name", || self.ask(threads, by_name)),
                Contender::new("snapshot", || self.ask(threads, snapshot)),
                Contender::new("moka", || self.ask(threads, moka)),
            ],
        );
        let [floor, by_handle, by_name, snapshot, moka] = medians[..] else { unreachable!("five contenders") };
        let cell = format!("{}k_{threads}t", self.tenants / 1_000);
        println!(
            "{cell}: floor {floor:.1} ns, gate {by_handle:.1} ns, by name {by_name:.1} ns, snapshot {snapshot:.1} ns, moka \
             {moka:.0} ns"
        );
        ratio(&format!("gate_hit/floor {cell}"), by_handle / floor, true, 2.5);
        ratio(&format!("gate_hit_by_name/floor {cell}"), by_name / floor, true, 4.0);
        ratio(&format!("snapshot/floor {cell}"), snapshot / floor, true, 0.5);
        ratio(&format!("moka/gate_hit {cell}"), moka / by_handle, false, 12.0);
    }

    fn race_unleash(&self, rounds: usize) {
        for threads in [1, 2] {
            let by_name = |_, id, f: usize| self.gate.is_feature_enabled(id, &self.keys[f]).if_ready() == Some(true);
            let by_handle = |_, id, f: usize| self.gate.is_enabled(id, self.handles[f]).if_ready() == Some(true);
            // Its easiest job: the tenant's plan is handed over ready-made, so it looks no tenant up.
            let unleash = |tenant, _, f: usize| {
                self.unleash.is_enabled(Flag(f as u8), Some(&self.contexts[plan_of(tenant)]), false)
            };
            let medians = race(
                rounds.min(5),
                &mut [
                    Contender::new("gate by handle", || self.ask(threads, by_handle)),
                    Contender::new("gate by name", || self.ask(threads, by_name)),
                    Contender::new("unleash", || self.ask(threads, unleash)),
                ],
            );
            let [by_handle, by_name, unleash] = medians[..] else { unreachable!("three contenders") };
            println!("10k_{threads}t: unleash-api-client {unleash:.0} ns");
            ratio(&format!("unleash/gate_hit 10k_{threads}t"), unleash / by_handle, false, 12.0);
            ratio(&format!("unleash/gate_hit_by_name 10k_{threads}t"), unleash / by_name, false, 12.0);
        }
    }

    fn count_allocations(&self) {
        let counted = allocation_counter::measure(|| {
            for (_, id, feature) in &self.questions[0] {
                let feature = usize::from(*feature);
                black_box(self.gate.is_enabled(*id, self.handles[feature]).if_ready());
                black_box(self.gate.is_feature_enabled(*id, &self.keys[feature]).if_ready());
            }
        });
        ratio("allocations per hit", counted.count_total as f64, true, 0.0);
    }
}

/// Bytes that a tenant costs once it is in the gate, everything included.
fn memory(runtime: &tokio::runtime::Runtime, tenants: usize) {
    let catalog = catalog();
    let kept = Mutex::new(None);
    let counted = allocation_counter::measure(|| {
        *kept.lock().expect("not poisoned") = Some(runtime.block_on(gate(&catalog, tenants)));
    });
    let gate = kept.into_inner().expect("not poisoned").expect("made above");
    assert_eq!(gate.stats().loads, tenants as u64, "each tenant was loaded once");
    let bytes = counted.bytes_current as f64 / tenants as f64;
    println!("memory: {bytes:.0} bytes per cached tenant of {FEATURES} features and {METERS} limits");
    ratio("bytes per cached tenant", bytes, true, 1_024.0);
}

/// A feature of the peer.
#[derive(Debug, Clone, Copy)]
struct Flag(u8);

static NAMES: [&str; FEATURES] = {
    const TEXT: &str = "f00f01f02f03f04f05f06f07f08f09f10f11f12f13f14f15f16f17f18f19f20f21f22f23f24\
        f25f26f27f28f29f30f31f32f33f34f35f36f37f38f39f40f41f42f43f44f45f46f47f48f49";
    let mut names = [""; FEATURES];
    let mut at = 0;
    while at < FEATURES {
        names[at] = TEXT.split_at(at * 3).1.split_at(3).0;
        at += 1;
    }
    names
};

impl UnleashKey for Flag {
    fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }
}

#[derive(Debug)]
struct NoNetwork;

#[async_trait]
impl Transport for NoNetwork {
    async fn execute(&self, _: Request) -> anyhow::Result<Response> {
        anyhow::bail!("the benchmark does not use the network")
    }
}

fn unleash_context(plan: usize) -> Context {
    let properties = [("plan".to_owned(), format!("p{plan}"))].into();
    Context { properties, ..Context::default() }
}

fn unleash() -> Client<Flag> {
    let client = ClientBuilder::default()
        .disable_metric_submission()
        .into_client_with_transport::<Flag>("http://unused", "bench", "bench", None, Arc::new(NoNetwork))
        .expect("a client");
    let feature = |feature: usize| {
        let plans: Vec<_> = (0..PLANS).filter(|plan| grants(*plan, feature)).map(|plan| format!("p{plan}")).collect();
        serde_json::json!({
            "name": NAMES[feature],
            "enabled": true,
            "strategies": [{
                "name": "default",
                "constraints": [{ "contextName": "plan", "operator": "IN", "values": plans }],
            }],
        })
    };
    let features: Vec<_> = (0..FEATURES).map(feature).collect();
    let document = serde_json::json!({ "version": 2, "features": features });
    client.memoize(serde_json::from_value(document).expect("features of the peer")).expect("accepted");
    client
}
