//! What tenants cost in memory.

use std::{cell::RefCell, hint::black_box};

use saas_benches::{
    field::{self, FEATURES, METERS, Plans},
    ratio,
};
use tokio::runtime::Runtime;

/// Bytes that a tenant costs once it is in the gate, everything included.
pub(crate) fn per_tenant(runtime: &Runtime, tenants: usize) {
    let (catalog, plans) = (field::catalog(), Plans::new(0));
    let kept = RefCell::new(None);
    let counted = allocation_counter::measure(|| {
        kept.replace(Some(runtime.block_on(field::gate(&catalog, plans.clone(), tenants))));
    });
    assert_eq!(plans.loads(), tenants as u64, "each tenant was loaded once");
    let bytes = counted.bytes_current as f64 / tenants as f64;
    println!("memory: {bytes:.0} bytes per cached tenant of {FEATURES} features and {METERS} limits");
    ratio("bytes_per_cached_tenant", bytes, true, 512.0);
    black_box(kept);
}

/// Far more tenants than there is room for are all answered, and the gate grows no further.
pub(crate) fn bounded(runtime: &Runtime, capacity: usize, tenants: usize) {
    let gate = field::empty_gate(&field::catalog(), Plans::new(0), capacity);
    let handles = field::handles(&gate);
    let ask = |asked: std::ops::Range<usize>| {
        allocation_counter::measure(|| {
            for tenant in asked {
                let feature = tenant % FEATURES;
                let answer = runtime.block_on(gate.is_enabled(field::tenant_id(tenant), handles[feature]));
                assert_eq!(answer, field::grants(field::plan_of(tenant), feature));
            }
        })
    };
    let full = ask(0..3 * capacity);
    let more = ask(3 * capacity..tenants);
    println!(
        "memory: {:.0} MB after {} tenants with room for {capacity}, {:+.1} MB after {tenants}",
        full.bytes_current as f64 / 1e6,
        3 * capacity,
        more.bytes_current as f64 / 1e6
    );
    ratio("growth_of_a_full_gate", more.bytes_current as f64 / full.bytes_current as f64, true, 0.1);
}
