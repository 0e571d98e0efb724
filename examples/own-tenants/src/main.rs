//! Entitlements without a billing provider, a tenancy crate or a database: the application keeps its tenants itself, in a
//! map here and in whatever it has elsewhere, and says which plan each of them is on.

use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{FeatureKey, PlanCatalog, PlanKey, Revision, SystemClock, TenantId, subscription::PlanAssignment};
use saas_entitlements::{Entitlements, EntitlementsError, SnapshotSource, TenantState};

const CSV: FeatureKey = FeatureKey::from_static("csv-export");
const SEATS: FeatureKey = FeatureKey::from_static("seats");
const PLANS: &str = r#"
    default_plan = "free"
    [features]
    csv-export = { kind = "boolean", fail = "closed" }
    seats = { kind = "integer", fail = "closed" }
    [plans.free]
    rank = 0
    versions = [{ version = 1, grants = { seats = 1 } }]
    [plans.pro]
    rank = 1
    versions = [{ version = 1, grants = { csv-export = true, seats = 10 } }]
"#;

/// The application's customers: the plan of each, and how often it has changed.
#[derive(Debug, Clone, Default)]
struct Customers(Arc<RwLock<HashMap<TenantId, (PlanKey, Revision)>>>);

impl Customers {
    fn put_on(&self, tenant: TenantId, plan: PlanKey) -> Revision {
        let mut customers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changes = customers.get(&tenant).map_or(0, |(_, revision)| revision.get());
        let revision = Revision::new(changes + 1);
        customers.insert(tenant, (plan, revision));
        revision
    }
}

#[async_trait]
impl SnapshotSource for Customers {
    async fn load(&self, tenant: TenantId, _: DateTime<Utc>) -> Result<Option<TenantState>, EntitlementsError> {
        let customers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Ok(customers.get(&tenant).map(|(plan, revision)| TenantState {
            revision: *revision,
            assignment: PlanAssignment::active(plan.clone()),
            overrides: Vec::new(),
            cohorts: Vec::new(),
        }))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let customers = Customers::default();
    let gate = Entitlements::new(PlanCatalog::from_toml(PLANS)?, Arc::new(customers.clone()), Arc::new(SystemClock));
    let _clock = gate.start_clock();
    let acme = TenantId::mint(&SystemClock);
    for plan in ["free", "pro"] {
        let revision = customers.put_on(acme, plan.parse()?);
        gate.hear(acme, revision);
        let snapshot = gate.snapshot(acme).await;
        println!("{} {} seats", snapshot.explain(&CSV)?, snapshot.integer(&SEATS).unwrap_or(0));
        println!("may export: {}", gate.is_feature_enabled(acme, &CSV).await);
    }
    Ok(())
}
