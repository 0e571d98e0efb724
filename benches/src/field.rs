//! The field that gates are measured on: fifty features and ten limits on sixteen plans, and tenants on them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    FeatureKey, PlanCatalog, PlanKey, Revision, SharedClock, SystemClock, TenantId, subscription::PlanAssignment,
};
use saas_entitlements::{Entitlements, EntitlementsError, FeatureHandle, GateOptions, SnapshotSource, TenantState};
use uuid::Uuid;

use crate::{prepared_per_thread, zipf};

/// Features of the catalogue, all boolean.
pub const FEATURES: usize = 50;
/// Limits that each plan has.
pub const METERS: usize = 10;
/// Plans of the catalogue.
pub const PLANS: usize = 16;
/// Questions per run and thread.
pub const QUESTIONS: usize = 1 << 18;

/// Whether a plan grants a feature: about half of them, in a pattern without order.
#[must_use]
pub const fn grants(plan: usize, feature: usize) -> bool {
    (plan * 31 + feature * 17 + plan * feature) % 7 < 4
}

/// The plan that a tenant begins on.
#[must_use]
pub const fn plan_of(tenant: usize) -> usize {
    (tenant * 7 + tenant / 3) % PLANS
}

/// What a plan grants, one bit for each feature.
#[must_use]
pub fn bits(plan: usize) -> u64 {
    (0..FEATURES).fold(0, |bits, feature| bits | u64::from(grants(plan, feature)) << feature)
}

/// The id of a tenant: time-ordered like real ones, a prefix that hardly changes and then bits without order.
#[must_use]
pub const fn tenant_id(tenant: usize) -> TenantId {
    let random = (tenant as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let high = (0x0190_0000_0000 + tenant as u64 / 50) << 16 | 0x7000 | (random & 0xfff);
    TenantId::from_uuid(Uuid::from_u64_pair(high, (tenant as u64) << 40 | random >> 24))
}

/// The tenant that has an id.
#[must_use]
pub const fn tenant_of(id: TenantId) -> usize {
    (id.as_uuid().as_u64_pair().1 >> 40) as usize
}

/// The catalogue.
///
/// # Panics
/// Never: it is valid.
#[must_use]
#[expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]
pub fn catalog() -> PlanCatalog {
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

/// Knows every tenant: the plan that it begins on, and how many plans further it has been moved since.
#[derive(Debug, Clone, Default)]
pub struct Plans {
    moved: Arc<Vec<AtomicU64>>,
    loads: Arc<AtomicU64>,
}

impl Plans {
    /// Tenants that can be moved: the first `movable` ones.
    #[must_use]
    pub fn new(movable: usize) -> Self {
        Self { moved: Arc::new((0..movable).map(|_| AtomicU64::new(0)).collect()), loads: Arc::default() }
    }

    /// Moves a tenant to the next plan and returns the revision to announce.
    #[must_use]
    pub fn move_on(&self, tenant: usize) -> Revision {
        let before = self.moved.get(tenant).map_or(0, |moved| moved.fetch_add(1, Ordering::SeqCst));
        Revision::new(before + 2)
    }

    /// The plan that a tenant is on.
    #[must_use]
    pub fn of(&self, tenant: usize) -> usize {
        (plan_of(tenant) + self.moves(tenant) as usize) % PLANS
    }

    /// How often a tenant was read.
    #[must_use]
    pub fn loads(&self) -> u64 {
        self.loads.load(Ordering::SeqCst)
    }

    fn moves(&self, tenant: usize) -> u64 {
        self.moved.get(tenant).map_or(0, |moved| moved.load(Ordering::SeqCst))
    }
}

#[async_trait]
impl SnapshotSource for Plans {
    async fn load(&self, id: TenantId, _: DateTime<Utc>) -> Result<Option<TenantState>, EntitlementsError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let tenant = tenant_of(id);
        let revision = Revision::new(self.moves(tenant) + 1);
        let plan: PlanKey = format!("p{}", self.of(tenant)).parse()?;
        let assignment = PlanAssignment { version: Some(1), ..PlanAssignment::active(plan) };
        Ok(Some(TenantState { revision, assignment, overrides: Vec::new(), cohorts: Vec::new() }))
    }
}

/// A gate with room for `capacity` tenants that has none in memory. Its clock shows the time of this call for ever, and
/// what it loads lives longer than the benchmark.
///
/// # Panics
/// When the capacity is out of range.
#[must_use]
#[expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]
pub fn empty_gate(catalog: &PlanCatalog, plans: Plans, capacity: usize) -> Entitlements {
    let clock: SharedClock = Arc::new(SystemClock);
    let options = GateOptions::default()
        .with_capacity(capacity)
        .with_ttl(chrono::TimeDelta::hours(12))
        .with_load_timeout(Duration::from_secs(60));
    let gate = Entitlements::with_options(catalog.clone(), Arc::new(plans), clock, options).expect("valid options");
    gate.tick();
    gate
}

/// A gate that has the first `tenants` in memory.
///
/// # Panics
/// As [`empty_gate`].
pub async fn gate(catalog: &PlanCatalog, plans: Plans, tenants: usize) -> Entitlements {
    let gate = empty_gate(catalog, plans, tenants);
    for tenant in 0..tenants {
        gate.snapshot(tenant_id(tenant)).await;
    }
    gate
}

/// The gate's features, by place.
#[must_use]
pub fn handles(gate: &Entitlements) -> Vec<FeatureHandle> {
    gate.catalog().features().iter().filter_map(|feature| gate.feature(feature.key()).ok()).collect()
}

/// The names of the gate's features, by place.
#[must_use]
pub fn keys(gate: &Entitlements) -> Vec<FeatureKey> {
    gate.catalog().features().iter().map(|feature| feature.key().clone()).collect()
}

/// The value of the floor: what a tenant may do, as small as it gets.
#[derive(Debug)]
pub struct Bits(pub u64);

/// The floor: a hash map without any protocol, and a bit test.
pub type Floor = hashbrown::HashMap<Uuid, Arc<Bits>, foldhash::fast::RandomState>;

/// The floor of the first `tenants`.
#[must_use]
pub fn floor(tenants: usize) -> Floor {
    (0..tenants).map(|tenant| (tenant_id(tenant).as_uuid(), Arc::new(Bits(bits(plan_of(tenant)))))).collect()
}

/// Who asks about what: a tenant, its id, and the place of a feature.
pub type Question = (usize, TenantId, u16);

/// How popular tenants are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Popularity {
    /// A few are asked about most of the time: Zipf's law with exponent 0.99.
    Zipf,
    /// All alike.
    Uniform,
    /// One is asked about all the time.
    OneHot,
}

impl Popularity {
    /// As it is written in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zipf => "zipf",
            Self::Uniform => "uniform",
            Self::OneHot => "one-hot",
        }
    }
}

/// One list of questions for each of two threads.
#[derive(Debug)]
pub struct Questions([Vec<Question>; 2]);

impl Questions {
    /// Questions about the first `tenants`.
    #[must_use]
    pub fn new(tenants: usize, popularity: Popularity) -> Self {
        Self([1, 2].map(|seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            let asked = match popularity {
                // One seed: the threads ask about the same popular ones, in another order.
                Popularity::Zipf => {
                    let mut asked = zipf(tenants, QUESTIONS, 1);
                    random.shuffle(&mut asked);
                    asked
                }
                Popularity::Uniform => (0..QUESTIONS).map(|_| random.usize(0..tenants)).collect(),
                Popularity::OneHot => vec![tenants / 2; QUESTIONS],
            };
            asked.into_iter().map(|tenant| (tenant, tenant_id(tenant), random.u16(0..FEATURES as u16))).collect()
        }))
    }

    /// The questions of one thread.
    #[must_use]
    pub fn of_thread(&self, thread: usize) -> &[Question] {
        self.0.get(thread).map_or(&[], Vec::as_slice)
    }

    /// Nanoseconds per question of `ask`, asked on `threads` threads.
    pub fn ask(&self, threads: usize, ask: impl Fn(usize, TenantId, usize) -> bool + Sync) -> f64 {
        self.ask_some(threads, QUESTIONS, ask)
    }

    /// As [`ask`](Self::ask), with the first `count` questions only: for those who take long to answer.
    ///
    /// They are asked twice and the second time counts: else whoever comes after one that fills the caches pays for it.
    pub fn ask_some(&self, threads: usize, count: usize, ask: impl Fn(usize, TenantId, usize) -> bool + Sync) -> f64 {
        let ask_all = |thread| {
            let questions = self.of_thread(thread);
            let asked = &questions[..count.min(questions.len())];
            for (tenant, id, feature) in asked {
                // As a value: a sum lets the compiler branch on answers that nothing can foretell, which costs a fast
                // contender more than the answer.
                std::hint::black_box(ask(*tenant, *id, usize::from(*feature)));
            }
            asked.len() as u64
        };
        let warm_up = |thread| {
            ask_all(thread);
        };
        prepared_per_thread(threads, warm_up, ask_all)
    }
}
