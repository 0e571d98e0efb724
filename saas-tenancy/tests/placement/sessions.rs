//! What a session of the server has to remember is bounded, however many schemas there are.

use std::num::NonZeroU32;

use saas_core::{
    CoreError, RequestContext, TenantContext, TenantPool, TenantTx,
    db::{TenantWork, pool_options},
};
use saas_tenancy::placement::{ClusterName, Placements, Target};
use sqlx::Row;

use crate::stage::{IN_EVERY_DATABASE, PROJECT, Stage, limits, pools};

impl Stage {
    /// A binding with one connection to the shared tables and to the schemas beside them.
    async fn with_one_connection(&self, schemas: NonZeroU32) -> Placements {
        let one = pool_options().max_connections(1).connect_lazy_with(self.db.options("saas_app"));
        let control = TenantPool::open(one, &IN_EVERY_DATABASE).await.unwrap();
        let pools = pools(self.two_clusters(), limits().with_per_database(1));
        Placements::builder(control, self.db.system().clone(), pools).with_schemas_per_connection(schemas).build()
    }

    async fn tenants_in_schemas(&self, count: usize) -> Vec<RequestContext> {
        let provisioner = self.provisioner(&[PROJECT]);
        let mut tenants = Vec::new();
        for n in 0..count {
            let ctx = self.db.create_tenant(&format!("tenant-{n}")).await;
            provisioner.provision(ctx.tenant(), &Target::Schema(ClusterName::control())).await.unwrap();
            tenants.push(ctx);
        }
        tenants
    }
}

/// Reads the tenant's table, and says in which session.
const WHERE: &str = "select pg_backend_pid()::bigint + 0 * (select count(*) from project)";

#[derive(Debug, Clone, Copy)]
enum How {
    Write,
    Read,
    Once,
}

async fn session(binding: &Placements, ctx: &RequestContext, how: How) -> Result<i64, CoreError> {
    let ask = async |tx: &mut TenantTx| {
        sqlx::query_scalar(WHERE).fetch_one(&mut **tx).await.map_err(CoreError::from_database)
    };
    match how {
        How::Write => binding.write(ctx, ask).await,
        How::Read => binding.read(ctx, ask).await,
        How::Once => Ok(binding.read_once(ctx, WHERE, &[]).await?[0].get(0)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_closed_when_it_has_served_enough_schemas() {
    let stage = Stage::start().await;
    stage.shared_tables(&[PROJECT]).await;
    let pooled = stage.db.create_tenant("pooled").await;
    let tenants = stage.tenants_in_schemas(4).await;
    let binding = stage.with_one_connection(NonZeroU32::new(3).unwrap()).await;
    // Where each tenant lives is known before: to look for its schema takes a connection too.
    for ctx in &tenants {
        binding.placement(ctx.tenant()).await.unwrap();
    }
    for how in [How::Write, How::Read, How::Once] {
        let mut seen = Vec::new();
        // The same schema again is no further one, and the shared tables are none.
        for ctx in [&tenants[0], &pooled, &tenants[1], &tenants[0], &tenants[1], &pooled, &tenants[2]] {
            seen.push(session(&binding, ctx, how).await.unwrap());
        }
        seen.dedup();
        assert_eq!(seen.len(), 1, "{how:?}: closed too early");
        let next = session(&binding, &tenants[3], how).await.unwrap();
        assert_ne!(seen[0], next, "{how:?}: kept too long");
        // For the next round: two more, and the session has served three.
        for ctx in &tenants[..2] {
            assert_eq!(session(&binding, ctx, how).await.unwrap(), next, "{how:?}");
        }
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_another_cluster_count_as_well() {
    let stage = Stage::start().await;
    let provisioner = stage.provisioner(&[PROJECT]);
    let target = Target::Schema("eu".parse().unwrap());
    let binding = stage.with_one_connection(NonZeroU32::MIN).await;
    let ctx = stage.db.create_tenant("abroad").await;
    provisioner.provision(ctx.tenant(), &target).await.unwrap();
    let first = session(&binding, &ctx, How::Write).await.unwrap();
    let second = session(&binding, &ctx, How::Write).await.unwrap();
    assert_ne!(first, second, "one schema is as many as it may serve");
    provisioner.deprovision(ctx.tenant()).await.unwrap();
    stage.finish().await;
}
