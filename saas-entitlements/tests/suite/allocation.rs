//! A hit allocates nothing, of the gate and of a lease.

use std::sync::Arc;

use futures_util::FutureExt;
use saas_core::{Actor, MeterKey, RequestContext, SystemClock};
use saas_entitlements::{LeaseOptions, LeasedUse, Leases, memory::MemoryLeases};

use crate::stage::{EXPORT, Stage};

const CALLS: MeterKey = MeterKey::from_static("calls");

#[test]
fn a_hit_allocates_nothing() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(stage.export(tenant)));
    let handle = stage.gate.feature(&EXPORT).unwrap();
    let counted = allocation_counter::measure(|| {
        for _ in 0..1_000 {
            assert_eq!(stage.gate.is_enabled(tenant, handle).if_ready(), Some(true));
            assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(true));
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

#[test]
fn a_use_from_a_lease_allocates_nothing() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    let ctx = RequestContext::new(tenant, Actor::system("test"), &SystemClock);
    let leases =
        Leases::new(stage.gate.clone(), Arc::new(MemoryLeases::new()), LeaseOptions::default().with_exposed_share(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    while !leases.try_consume(tenant, &CALLS, 1) {
        assert!(runtime.block_on(leases.consume(&ctx, &CALLS, 1)).unwrap().is_granted());
    }
    let counted = allocation_counter::measure(|| {
        for _ in 0..10 {
            assert_eq!(leases.consume(&ctx, &CALLS, 1).now_or_never().unwrap().unwrap(), LeasedUse::Granted);
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
}
