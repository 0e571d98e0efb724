//! Uses spent from memory under a limit that all processes share, beside what counts in memory without one, and beside stores
//! that are asked for every use.
//!
//! `cargo bench -p saas-benches --bench lease`. In memory: 10,000 tenants by popularity (Zipf), and one that all want, with one
//! thread and with two. The floor finds a tenant's number in a map behind an `ArcSwap` and adds to it: it has no limit. The
//! peer is `governor`'s keyed check. Then one tenant with leases of 1,000 on a PostgreSQL that waits for the disk, beside
//! uses of one row there by 1, 8 and 16 callers; and with leases of 1,000 out of Redis, beside a script there that checks and
//! adds, by 1, 16 and 64 callers. Leases are held by 1, 2 and 4, as by so many processes. Of each, the best rate counts.
//! Without `redis-server` (Debian: `apt-get install redis-server`) that comparison is left out, aloud.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]

#[path = "lease/stores.rs"]
mod stores;

use std::{
    hint::black_box,
    num::NonZeroU32,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use arc_swap::ArcSwap;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use hashbrown::HashMap;
use saas_benches::{Contender, per_thread, race, ratio, rounds, zipf};
use saas_core::{
    Actor, MeterKey, PlanCatalog, PlanKey, RequestContext, SystemClock, TenantContext, TenantId,
    subscription::PlanAssignment,
};
use saas_entitlements::{
    Entitlements, EntitlementsError, GateClock, LeaseOptions, LeaseStore, LeasedUse, Leases,
    memory::{MemoryLeases, MemorySource},
};
use uuid::Uuid;

static CALLS: MeterKey = MeterKey::from_static("calls");
const TENANTS: usize = 10_000;
/// Uses per run and thread.
const USES: usize = 1 << 18;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let memory = runtime.block_on(Memory::start());
    for (name, uses) in [("10000_tenants", zipf(TENANTS, USES, 7)), ("one_hot_tenant", vec![0; USES])] {
        for threads in [1, 2] {
            memory.race(&format!("{name}_{threads}_threads"), threads, &uses);
        }
    }
    memory.count_allocations();
    drop(memory);
    stores::race(&runtime).expect("the stores can be had");
}

fn catalog() -> PlanCatalog {
    PlanCatalog::from_toml(
        "default_plan = 'free'\n[meters.calls]\naggregation = 'sum'\n[plans.free]\nrank = 0\n\
         [[plans.free.versions]]\nversion = 1\n\
         limits.calls = { max = 9_000_000_000_000_000, window = 'lifetime', overage = 'block' }",
    )
    .expect("the benchmark's catalogue is valid")
}

/// Everybody who counts in memory.
struct Memory {
    contexts: Vec<RequestContext>,
    floor: ArcSwap<HashMap<TenantId, Arc<AtomicU64>, foldhash::fast::RandomState>>,
    governor: DefaultKeyedRateLimiter<Uuid>,
    leases: Leases,
    _clock: GateClock,
}

impl Memory {
    async fn start() -> Self {
        let source = MemorySource::new();
        let mut contexts = Vec::new();
        for _ in 0..TENANTS {
            let tenant = TenantId::mint(&SystemClock);
            source.put_plan(tenant, PlanAssignment::active(PlanKey::from_static("free")));
            contexts.push(RequestContext::new(tenant, Actor::system("bench"), &SystemClock));
        }
        let gate = Entitlements::new(catalog(), Arc::new(source), Arc::new(SystemClock));
        let clock = gate.start_clock();
        // Units for the whole run, so that what is measured is the spending.
        let units = 1 << 40;
        let options = LeaseOptions::default()
            .with_size(units, units)
            .with_exposed_share(1)
            .with_life(Duration::from_secs(86_400))
            .with_tick(Duration::from_secs(3_600));
        let store: Arc<dyn LeaseStore> = Arc::new(MemoryLeases::new());
        let leases = Leases::new(gate, store, options);
        for ctx in &contexts {
            assert!(leases.consume(ctx, &CALLS, 1).await.expect("lent").is_granted());
        }
        let floor = contexts.iter().map(|ctx| (ctx.tenant(), Arc::new(AtomicU64::new(0)))).collect();
        let governor = RateLimiter::keyed(Quota::per_second(NonZeroU32::MAX).allow_burst(NonZeroU32::MAX));
        for ctx in &contexts {
            governor.check_key(&ctx.tenant().as_uuid()).expect("within the rate");
        }
        Self { contexts, floor: ArcSwap::from_pointee(floor), governor, leases, _clock: clock }
    }

    fn race(&self, name: &str, threads: usize, uses: &[usize]) {
        // Each thread begins elsewhere.
        let of = |thread: usize| uses.iter().cycle().skip(thread * 77_777).take(USES).map(|at| &self.contexts[*at]);
        let run = |one: &(dyn Fn(&RequestContext) -> bool + Sync)| {
            per_thread(threads, |thread| {
                let granted = of(thread).filter(|ctx| one(ctx)).count();
                assert_eq!(granted, USES);
                USES as u64
            })
        };
        let medians = race(
            rounds(11),
            &mut [
                Contender::new("floor", || {
                    run(&|ctx| {
                        let map = self.floor.load();
                        map.get(&ctx.tenant()).is_some_and(|number| {
                            black_box(number.fetch_add(1, Ordering::Relaxed));
                            true
                        })
                    })
                }),
                Contender::new("governor", || run(&|ctx| self.governor.check_key(&ctx.tenant().as_uuid()).is_ok())),
                Contender::new("try_consume", || run(&|ctx| self.leases.try_consume(ctx.tenant(), &CALLS, 1))),
                Contender::new("consume", || run(&|ctx| granted_at_once(self.leases.consume(ctx, &CALLS, 1)))),
            ],
        );
        let [floor, governor, sync, leased] = medians[..] else { unreachable!("four contenders") };
        println!(
            "{name}: map get and add {floor:.1} ns, governor {governor:.1} ns, try_consume {sync:.1} ns, consume {leased:.1} ns"
        );
        ratio(&format!("leased_consume_to_map_and_add_{name}"), leased / floor, true, 1.5);
        ratio(&format!("governor_to_leased_consume_{name}"), governor / leased, false, 2.0);
        println!("the floor is {:.2} times as fast as governor", governor / floor);
    }

    fn count_allocations(&self) {
        let counted = allocation_counter::measure(|| {
            for ctx in &self.contexts {
                assert!(granted_at_once(self.leases.consume(ctx, &CALLS, 1)));
            }
        });
        println!("allocations of {} leased uses: {}", self.contexts.len(), counted.count_total);
        assert_eq!(counted.count_total, 0, "{counted:?}");
    }
}

/// Polls where the future is, as an `await` does.
fn granted_at_once(used: impl Future<Output = Result<LeasedUse, EntitlementsError>>) -> bool {
    let used = pin!(used);
    matches!(used.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(LeasedUse::Granted)))
}
