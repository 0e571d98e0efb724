//! Counting through the service: what the plan says, what the caller gets.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, Clock, IdempotencyKey, Limit, MeterKey, RequestContext, TenantId,
    subscription::{AccessLevel, PlanAssignment, Standing},
};
use saas_entitlements::{Consumption, Denial, EntitlementsError, LimitOf, Meter, memory::MemoryCounters};

use crate::stage::{Stage, plan};

const CALLS: MeterKey = MeterKey::from_static("calls");
const EXPORTS: MeterKey = MeterKey::from_static("exports");

struct Bench {
    stage: Stage,
    meter: Meter,
    next: AtomicU32,
}

impl Bench {
    fn new() -> Self {
        let stage = Stage::new();
        let meter = Meter::new(stage.gate.clone(), Arc::new(MemoryCounters::new()));
        Self { stage, meter, next: AtomicU32::new(0) }
    }

    fn ctx(&self, tenant: TenantId) -> RequestContext {
        RequestContext::new_at(tenant, Actor::system("test"), self.stage.clock.now())
    }

    /// Uses with a key of its own.
    async fn r#use(&self, tenant: TenantId, meter: &MeterKey, amount: u64) -> Result<Consumption, EntitlementsError> {
        let key: IdempotencyKey = format!("key-{}", self.next.fetch_add(1, Ordering::Relaxed)).parse().unwrap();
        self.meter.consume(&self.ctx(tenant), meter, amount, &key).await
    }
}

fn at(rfc3339: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(rfc3339).unwrap().to_utc()
}

#[tokio::test]
async fn usage_runs_to_the_warning_and_the_block_with_the_way_up() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("free");
    let granted = |left, crossed| Consumption::Granted { left: Limit::Max(left), over: 0, burnt: 0, crossed };
    assert_eq!(bench.r#use(tenant, &CALLS, 799).await.unwrap(), granted(201, vec![]));
    assert_eq!(bench.r#use(tenant, &CALLS, 1).await.unwrap(), granted(200, vec![80]));
    assert_eq!(bench.r#use(tenant, &CALLS, 197).await.unwrap(), granted(3, vec![]));
    let exhausted = bench.r#use(tenant, &CALLS, 5).await.unwrap();
    let Consumption::Exhausted { of: LimitOf::Tenant, limit, left, resets_at, upgrade } = &exhausted else {
        panic!("{exhausted:?}")
    };
    assert_eq!((*limit, *left, *resets_at), (1_000, 3, Some(at("2026-01-16T00:00:00Z"))));
    assert_eq!(upgrade.as_ref().unwrap().to_string(), "pro@1");
    assert!(!exhausted.is_granted());
    assert_eq!(exhausted.to_string(), "limit of 1000 reached, 3 left until 2026-01-16 00:00:00 UTC; `pro@1` has more");
    bench.stage.advance(86_400);
    assert_eq!(bench.r#use(tenant, &CALLS, 5).await.unwrap(), granted(995, vec![]), "a new day");
    let usage = bench.meter.usage(&bench.ctx(tenant), &CALLS).await.unwrap().unwrap();
    assert_eq!((usage.used, usage.limit, usage.period.start), (5, Limit::Max(1_000), at("2026-01-16T00:00:00Z")));
}

// C12
#[tokio::test]
async fn amounts_that_make_no_sense_are_refused_with_a_reason() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("pro");
    for (meter, amount) in [(&CALLS, 0), (&CALLS, i64::MAX.unsigned_abs() + 1), (&EXPORTS, 2)] {
        let error = bench.r#use(tenant, meter, amount).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (saas_core::ErrorKind::Invalid, "invalid_input"), "{amount}");
    }
    let largest = bench.r#use(tenant, &CALLS, i64::MAX.unsigned_abs()).await.unwrap();
    assert!(matches!(largest, Consumption::Exhausted { left: 5_000, .. }), "{largest:?}");
    let unknown = bench.r#use(tenant, &MeterKey::from_static("nope"), 1).await.unwrap_err();
    assert_eq!(unknown.code(), "unknown_meter");
}

#[tokio::test]
async fn a_plan_that_bills_overage_lets_it_through_and_says_how_much() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("pro");
    let mut outcomes = Vec::new();
    for _ in 0..3 {
        outcomes.push(bench.r#use(tenant, &EXPORTS, 1).await.unwrap());
    }
    let granted = |left, over| Consumption::Granted { left: Limit::Max(left), over, burnt: 0, crossed: vec![] };
    assert_eq!(outcomes, [granted(1, 0), granted(0, 0), granted(0, 1)]);
}

#[tokio::test]
async fn a_meter_that_the_plan_lacks_is_not_a_limit_of_zero() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("free");
    let denied = bench.r#use(tenant, &EXPORTS, 1).await.unwrap();
    let Consumption::Denied { why, upgrade } = denied else { panic!("{denied:?}") };
    assert_eq!((why, upgrade.unwrap().to_string().as_str()), (Denial::NotIncluded, "pro@1"));
    assert_eq!(bench.meter.usage(&bench.ctx(tenant), &EXPORTS).await.unwrap(), None);
}

#[tokio::test]
async fn a_restricted_tenant_uses_nothing() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("pro");
    let standing = Standing::Grace { until: bench.stage.now(), suspended_from: bench.stage.now() + TimeDelta::days(7) };
    bench.stage.source.tenants.put_plan(tenant, PlanAssignment { standing, ..plan("pro") });
    let denied = bench.r#use(tenant, &CALLS, 1).await.unwrap();
    let why = Denial::Standing { access: AccessLevel::Restricted };
    assert_eq!(denied, Consumption::Denied { why, upgrade: None });
}

#[tokio::test]
async fn nothing_is_granted_while_nothing_is_known() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("pro");
    bench.stage.source.set_down(true);
    let error = bench.r#use(tenant, &CALLS, 1).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let stranger = TenantId::mint(&bench.stage.clock);
    bench.stage.source.set_down(false);
    let error = bench.r#use(stranger, &CALLS, 1).await.unwrap_err();
    assert_eq!(error.kind(), saas_core::ErrorKind::NotFound);
}

#[tokio::test]
async fn billing_windows_start_at_the_anchor() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("pro");
    let anchor = Some(at("2025-12-31T08:00:00Z"));
    bench.stage.source.tenants.put_plan(tenant, PlanAssignment { anchor, ..plan("pro") });
    let period = bench.meter.usage(&bench.ctx(tenant), &CALLS).await.unwrap().unwrap().period;
    assert_eq!((period.start, period.end), (at("2025-12-31T08:00:00Z"), Some(at("2026-01-31T08:00:00Z"))));
}
