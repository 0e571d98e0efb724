//! From a request to a tenant, and domains of tenants' own, on a real PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod domains;
mod entrance;
mod zone;

use std::sync::Arc;

use saas_core::{RequestContext, SCHEMA as CORE, UserId, testing::TestDatabase};
use saas_tenancy::{Created, NewTenant, Role, SCHEMA, Tenancy, VerifiedEmail, domain::Domains};
use zone::Zone;

/// Two tenants with an owner each.
struct Setup {
    db: TestDatabase,
    tenancy: Tenancy,
    zone: Zone,
    domains: Domains,
    acme: Created,
    globex: Created,
}

impl Setup {
    async fn start() -> Self {
        let db = TestDatabase::start(&[&CORE, &SCHEMA]).await;
        let tenancy = Tenancy::new(db.tenants().clone(), db.system().clone(), Arc::new(db.clock().clone()));
        let create = async |slug: &str| {
            let owner = VerifiedEmail::vouched(format!("{slug}@example.com").parse().unwrap());
            let new = NewTenant::new(slug.parse().unwrap(), slug).unwrap();
            tenancy.create_tenant(&new, &owner).await.unwrap()
        };
        let (acme, globex) = (create("acme").await, create("globex").await);
        let zone = Zone::default();
        let domains = Domains::new(tenancy.clone(), Arc::new(zone.clone()), &["example.com"]).unwrap();
        Self { db, tenancy, zone, domains, acme, globex }
    }

    async fn owner(&self, of: Created) -> RequestContext {
        self.tenancy.enter(of.tenant, of.owner).await.unwrap()
    }

    async fn add(&self, to: Created, name: &str, role: Role) -> UserId {
        let address = format!("{name}@example.com").parse().unwrap();
        self.tenancy.add_member(&self.owner(to).await, &address, role).await.unwrap()
    }

    /// Claims, publishes and verifies.
    async fn activate(&self, of: Created, domain: &str) {
        let (ctx, domain) = (self.owner(of).await, domain.parse().unwrap());
        let claim = self.domains.claim(&ctx, &domain).await.unwrap();
        self.zone.publish(&domain, &[&claim.value()]);
        let verified = self.domains.verify(&ctx, &domain).await.unwrap();
        assert_eq!(verified, saas_tenancy::domain::Verification::Active);
    }
}
