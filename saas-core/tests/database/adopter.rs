//! An adopter's own tables, and one tenant's row in each.

use saas_core::{
    RequestContext, SCHEMA, TenantContext, TenantTx,
    doctor::{self, Finding},
    testing::TestDatabase,
};
use sqlx::{Executor, PgPool};
use tokio::sync::RwLock;
use uuid::Uuid;

/// What an adopter writes in a migration of their own.
pub(crate) const TABLES: &str = "
    create table public.project (
        tenant_id  uuid not null references saas.tenant (id),
        id         uuid not null default gen_random_uuid(),
        name       text not null,
        primary key (tenant_id, id),
        unique (tenant_id, name)
    );
    create table public.task (
        tenant_id   uuid not null references saas.tenant (id),
        id          uuid not null default gen_random_uuid(),
        project_id  uuid not null,
        title       text not null,
        primary key (tenant_id, id),
        foreign key (tenant_id, project_id) references public.project (tenant_id, id) on delete cascade
    );
    create table public.event (
        tenant_id  uuid not null,
        at         timestamptz not null,
        what       text not null,
        primary key (tenant_id, at)
    ) partition by range (at);
    create table public.event_2026 partition of public.event for values from ('2026-01-01') to ('2027-01-01');
    create view public.project_names with (security_invoker = true) as select tenant_id, name from public.project;
    grant select on public.project_names to saas_app;
    select saas.fence('public.project'), saas.fence('public.task'), saas.fence('public.event');";

/// Roles belong to the whole server, and the audit looks at all of them: who makes one holds this alone.
pub(crate) static ROLES: RwLock<()> = RwLock::const_new(());

/// What the audit finds, while no other test has a role of its own.
pub(crate) async fn examine(pool: &PgPool) -> Vec<Finding> {
    let _no_roles = ROLES.read().await;
    doctor::examine(pool).await.unwrap()
}

pub(crate) struct Fixture {
    pub(crate) db: TestDatabase,
    pub(crate) a: RequestContext,
    pub(crate) b: RequestContext,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        let db = TestDatabase::start(&[&SCHEMA]).await;
        db.owner().await.execute(TABLES).await.unwrap();
        let (a, b) = (db.create_tenant("tenant-a").await, db.create_tenant("tenant-b").await);
        let fixture = Self { db, a, b };
        for ctx in [&fixture.a, &fixture.b] {
            let mut tx = fixture.begin(ctx).await;
            let project = fixture.add_project(&mut tx, "shared name").await;
            sqlx::query("insert into public.task (tenant_id, project_id, title) values ($1, $2, 'task')")
                .bind(ctx.tenant().as_uuid())
                .bind(project)
                .execute(&mut *tx)
                .await
                .unwrap();
            sqlx::query("insert into public.event values ($1, '2026-06-01', 'seeded')")
                .bind(ctx.tenant().as_uuid())
                .execute(&mut *tx)
                .await
                .unwrap();
            tx.commit().await.unwrap();
        }
        fixture
    }

    pub(crate) async fn begin(&self, ctx: &RequestContext) -> TenantTx {
        TenantTx::begin(self.db.tenants(), ctx).await.unwrap()
    }

    pub(crate) async fn add_project(&self, tx: &mut TenantTx, name: &str) -> Uuid {
        let tenant = tx.tenant().as_uuid();
        sqlx::query_scalar("insert into public.project (tenant_id, name) values ($1, $2) returning id")
            .bind(tenant)
            .bind(name)
            .fetch_one(&mut **tx)
            .await
            .unwrap()
    }

    pub(crate) fn a_id(&self) -> String {
        self.a.tenant().to_string()
    }

    /// The id of the one project of a tenant, read as that tenant.
    pub(crate) async fn project_of(&self, ctx: &RequestContext) -> Uuid {
        let mut tx = self.begin(ctx).await;
        sqlx::query_scalar("select id from public.project where tenant_id = $1")
            .bind(ctx.tenant().as_uuid())
            .fetch_one(&mut *tx)
            .await
            .unwrap()
    }
}

/// The SQLSTATE of a refusal.
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, sqlx::Error>) -> String {
    result.unwrap_err().into_database_error().unwrap().code().unwrap().into_owned()
}
