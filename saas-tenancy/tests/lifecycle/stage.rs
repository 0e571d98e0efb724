//! Two tenants with an adopter's tables, and what every test does with them.

use std::sync::Arc;

use saas_core::{
    Actor, CoreError, RequestContext, SCHEMA as CORE, SystemTx, TenantContext, TenantId, TenantTx,
    testing::TestDatabase,
};
use saas_tenancy::{Created, NewTenant, SCHEMA, Tenancy, VerifiedEmail, export::Exports};
use sqlx::Executor as _;

/// What an adopter writes in a migration of their own: a tree of projects and tasks, a partitioned table, one with a
/// hostile name, and one with every kind of value.
pub(crate) const TABLES: &str = r#"
    create table public.project (
        tenant_id  uuid not null references saas.tenant (id),
        id         uuid not null default gen_random_uuid(),
        name       text not null,
        secret     text,
        primary key (tenant_id, id)
    );
    create table public.task (
        tenant_id   uuid not null references saas.tenant (id),
        id          uuid not null default gen_random_uuid(),
        project_id  uuid not null,
        parent_id   uuid,
        title       text,
        primary key (tenant_id, id),
        foreign key (tenant_id, project_id) references public.project (tenant_id, id),
        foreign key (tenant_id, parent_id) references public.task (tenant_id, id)
    );
    create index task_by_parent on public.task (tenant_id, parent_id);
    create index task_by_project on public.task (tenant_id, project_id);
    create table public.event (
        tenant_id  uuid not null,
        at         timestamptz not null,
        what       text not null,
        primary key (tenant_id, at)
    ) partition by range (at);
    create table public.event_2026 partition of public.event for values from ('2026-01-01') to ('2027-01-01');
    create table public.event_2027 partition of public.event for values from ('2027-01-01') to ('2028-01-01');
    create table public."../Weird ""name""" (tenant_id uuid not null, "=1+1" text, primary key (tenant_id));
    select saas.fence('public.project'), saas.fence('public.task'), saas.fence('public.event'),
           saas.fence('public."../Weird ""name"""');
    select saas.omit_from_export('public.project', 'secret', 'a credential of the customer');
"#;

pub(crate) struct Stage {
    pub(crate) db: TestDatabase,
    pub(crate) tenancy: Tenancy,
    pub(crate) exports: Exports,
    pub(crate) acme: Created,
    pub(crate) a: RequestContext,
    pub(crate) b: RequestContext,
}

impl Stage {
    /// Two tenants with rows in every table, each value marked with its tenant's slug.
    pub(crate) async fn start() -> Self {
        let stage = Self::start_without_projects().await;
        stage.db.owner().await.execute(TABLES).await.unwrap();
        stage.seed(&stage.a, "acme").await;
        stage.seed(&stage.b, "globex").await;
        stage
    }

    /// Two tenants, and no table of the application.
    pub(crate) async fn start_without_projects() -> Self {
        let db = TestDatabase::start(&[&CORE, &SCHEMA]).await;
        let clock = Arc::new(db.clock().clone());
        let tenancy = Tenancy::new(db.tenants().clone(), db.system().clone(), clock.clone());
        let exports = Exports::new(db.tenants().clone(), db.system().clone(), clock);
        let (acme, a) = enter(&tenancy, "acme").await;
        let (_, b) = enter(&tenancy, "globex").await;
        Self { db, tenancy, exports, acme, a, b }
    }

    async fn seed(&self, ctx: &RequestContext, mark: &str) {
        let mut tx = self.begin(ctx).await;
        for n in 0..3 {
            let project: uuid::Uuid = sqlx::query_scalar(
                "insert into public.project (tenant_id, name, secret) values ($1, $2, $2 || ' secret') returning id",
            )
            .bind(ctx.tenant().as_uuid())
            .bind(format!("{mark} project {n}"))
            .fetch_one(&mut *tx)
            .await
            .unwrap();
            let parent: uuid::Uuid = sqlx::query_scalar(
                "insert into public.task (tenant_id, project_id, title) values ($1, $2, $3) returning id",
            )
            .bind(ctx.tenant().as_uuid())
            .bind(project)
            .bind(format!("{mark} task"))
            .fetch_one(&mut *tx)
            .await
            .unwrap();
            sqlx::query(
                "insert into public.task (tenant_id, project_id, parent_id, title)
                 select $1, $2, $3, $4 from generate_series(1, 4)",
            )
            .bind(ctx.tenant().as_uuid())
            .bind(project)
            .bind(parent)
            .bind(format!("{mark} sub-task"))
            .execute(&mut *tx)
            .await
            .unwrap();
        }
        sqlx::query(
            "insert into public.event
             select $1, timestamptz '2026-12-30 00:00Z' + n * interval '1 day', $2 from generate_series(1, 5) n",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(format!("{mark} event"))
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query(r#"insert into public."../Weird ""name""" values ($1, $2)"#)
            .bind(ctx.tenant().as_uuid())
            .bind(format!("=HYPERLINK(\"{mark}\")"))
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    pub(crate) async fn begin(&self, ctx: &RequestContext) -> TenantTx {
        TenantTx::begin(self.db.tenants(), ctx).await.unwrap()
    }

    pub(crate) async fn begin_system(&self) -> SystemTx {
        SystemTx::begin(self.db.system(), Actor::system("test"), "look at a test").await.unwrap()
    }

    /// The actions in a tenant's audit log, oldest first.
    pub(crate) async fn audited(&self, tenant: TenantId) -> Vec<String> {
        let mut tx = self.begin_system().await;
        sqlx::query_scalar("select action from saas.audit where tenant_id = $1 order by at, id")
            .bind(tenant.as_uuid())
            .fetch_all(&mut *tx)
            .await
            .unwrap()
    }

    /// Runs a script as the superuser.
    pub(crate) async fn as_superuser(&self, script: &'static str) {
        self.db.owner().await.execute(script).await.map_err(CoreError::from_database).unwrap();
    }
}

async fn enter(tenancy: &Tenancy, slug: &str) -> (Created, RequestContext) {
    let owner = VerifiedEmail::vouched(format!("owner@{slug}.example").parse().unwrap());
    let created = tenancy.create_tenant(&NewTenant::new(slug.parse().unwrap(), slug).unwrap(), &owner).await.unwrap();
    let ctx = tenancy.enter(created.tenant, created.owner).await.unwrap();
    (created, ctx)
}
