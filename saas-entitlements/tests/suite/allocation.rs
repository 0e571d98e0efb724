//! A hit allocates nothing, and a tenant costs little.

use crate::stage::{EXPORT, Stage};

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
