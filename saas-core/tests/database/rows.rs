//! Rows of one person inside a tenant, and the fence again for what changed under it.

use saas_core::{Actor, ApiKeyId, ErrorKind, RequestContext, TenantContext, TenantTx, UserId, db::TenantWork as _};
use sqlx::{AssertSqlSafe, Executor};

use crate::adopter::{Fixture, code, examine};

const VISITS: &str = "
    create table public.visit (
        tenant_id  uuid not null references saas.tenant (id),
        id         uuid not null default gen_random_uuid(),
        owner      uuid not null,
        note       text,
        primary key (tenant_id, id)
    );
    select saas.fence('public.visit'), saas.fence_rows('public.visit', 'owner', array['owner', 'team-lead'])";

struct Clinic {
    fixture: Fixture,
    ada: UserId,
    ben: UserId,
}

impl Clinic {
    /// One row of Ada's and one of Ben's, in the first tenant.
    async fn open() -> Self {
        let fixture = Fixture::start().await;
        fixture.db.owner().await.execute(VISITS).await.unwrap();
        let [ada, ben] = [(); 2].map(|()| UserId::mint(fixture.db.clock()));
        let clinic = Self { fixture, ada, ben };
        for user in [ada, ben] {
            let mut tx = clinic.begin(&clinic.as_member(user)).await;
            sqlx::query("insert into public.visit (tenant_id, owner) values ($1, $2)")
                .bind(tx.tenant().as_uuid())
                .bind(user.as_uuid())
                .execute(&mut *tx)
                .await
                .unwrap();
            tx.commit().await.unwrap();
        }
        clinic
    }

    fn acting(&self, actor: Actor) -> RequestContext {
        RequestContext::new(self.fixture.a.tenant(), actor, self.fixture.db.clock())
    }

    fn as_member(&self, user: UserId) -> RequestContext {
        self.acting(Actor::user(user)).with_role("member".parse().unwrap())
    }

    async fn begin(&self, ctx: &RequestContext) -> TenantTx {
        TenantTx::begin(self.fixture.db.tenants(), ctx).await.unwrap()
    }

    async fn seen(&self, ctx: &RequestContext) -> i64 {
        let mut tx = self.begin(ctx).await;
        sqlx::query_scalar("select count(*) from public.visit").fetch_one(&mut *tx).await.unwrap()
    }
}

#[tokio::test]
async fn a_member_sees_and_writes_their_own_rows_only() {
    let clinic = Clinic::open().await;
    let ada = clinic.as_member(clinic.ada);
    assert_eq!(clinic.seen(&ada).await, 1);
    let once = clinic.fixture.db.tenants().read_once(&ada, "select owner from public.visit", &[]).await.unwrap();
    assert_eq!(once.len(), 1, "in one round trip too");
    for sql in ["update public.visit set note = 'seen'", "delete from public.visit"] {
        let mut tx = clinic.begin(&ada).await;
        assert_eq!(tx.execute(sql).await.unwrap().rows_affected(), 1, "{sql}");
    }
    let ben = clinic.ben.as_uuid();
    let mut tx = clinic.begin(&ada).await;
    let planted = sqlx::query("insert into public.visit (tenant_id, owner) values ($1, $2)")
        .bind(tx.tenant().as_uuid())
        .bind(ben)
        .execute(&mut *tx)
        .await;
    assert_eq!(code(planted), "42501");
    let mut tx = clinic.begin(&ada).await;
    let given = sqlx::query("update public.visit set owner = $1").bind(ben).execute(&mut *tx).await;
    assert_eq!(code(given), "42501");
}

#[tokio::test]
async fn listed_roles_jobs_and_operators_see_every_row_of_the_tenant_and_of_no_other() {
    let clinic = Clinic::open().await;
    let other = clinic.fixture.b.clone();
    for (ctx, rows) in [
        (clinic.as_member(clinic.ada).with_role("team-lead".parse().unwrap()), 2),
        (clinic.as_member(clinic.ada).with_role("owner".parse().unwrap()), 2),
        // What is not listed is restricted: a role that is new, and a person without one.
        (clinic.as_member(clinic.ada).with_role("team".parse().unwrap()), 1),
        (clinic.acting(Actor::user(clinic.ada)), 1),
        (clinic.acting(Actor::Impersonation { operator: clinic.ben, user: clinic.ada }), 1),
        (clinic.acting(Actor::user(UserId::mint(clinic.fixture.db.clock()))), 0),
        // Jobs and the vendor's operators say that they are, and have no role.
        (clinic.acting(Actor::system("reminders")), 2),
        (clinic.acting(Actor::Operator { id: clinic.ben }), 2),
        // A key is nobody in particular: it sees what its role sees.
        (clinic.acting(Actor::ApiKey { id: ApiKeyId::mint(clinic.fixture.db.clock()) }), 0),
        (
            clinic
                .acting(Actor::ApiKey { id: ApiKeyId::mint(clinic.fixture.db.clock()) })
                .with_role("member".parse().unwrap()),
            0,
        ),
        (
            clinic
                .acting(Actor::ApiKey { id: ApiKeyId::mint(clinic.fixture.db.clock()) })
                .with_role("owner".parse().unwrap()),
            2,
        ),
        (RequestContext::new(other.tenant(), Actor::system("reminders"), clinic.fixture.db.clock()), 0),
        (RequestContext::new(other.tenant(), Actor::user(clinic.ada), clinic.fixture.db.clock()), 0),
    ] {
        assert_eq!(clinic.seen(&ctx).await, rows, "{ctx:?}");
    }
}

#[tokio::test]
async fn where_nobody_says_who_acts_no_row_is_seen_or_written() {
    let clinic = Clinic::open().await;
    let tenant = clinic.fixture.a.tenant();
    // A session that was bound by hand, and what a person, a role or a job might be mistaken for.
    for member in ["", " ", "  ", "* ", " *", " {owner}", "00000000-0000-0000-0000-000000000000"] {
        let said = format!("set local saas.member = '{member}'");
        for say in ["select 1", said.as_str()] {
            let mut tx = clinic.begin(&clinic.acting(Actor::user(clinic.ada))).await;
            let bind = format!("rollback; begin; set local saas.tenant_id = '{tenant}'; {say}");
            tx.execute(sqlx::raw_sql(AssertSqlSafe(bind))).await.unwrap();
            let seen: i64 = sqlx::query_scalar("select count(*) from public.visit").fetch_one(&mut *tx).await.unwrap();
            assert_eq!(seen, 0, "{say}");
            assert_eq!(tx.execute("delete from public.visit").await.unwrap().rows_affected(), 0, "{say}");
            let written = sqlx::query("insert into public.visit (tenant_id, owner) values ($1, $2)")
                .bind(tenant.as_uuid())
                .bind(clinic.ada.as_uuid())
                .execute(&mut *tx)
                .await;
            assert_eq!(code(written), "42501", "{say}");
        }
    }
}

#[tokio::test]
async fn the_next_transaction_of_a_connection_is_not_the_members() {
    let clinic = Clinic::open().await;
    // More often than the pool has connections.
    for _ in 0..8 {
        assert_eq!(clinic.seen(&clinic.as_member(clinic.ada)).await, 1);
        assert_eq!(clinic.seen(&clinic.acting(Actor::system("reminders"))).await, 2);
    }
}

#[tokio::test]
async fn what_cannot_be_fenced_by_rows_is_refused_with_a_reason() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    owner.execute("create table public.loose (tenant_id uuid primary key, owner uuid not null)").await.unwrap();
    for (sql, reason) in [
        ("select saas.fence_rows('public.loose', 'owner', array['owner'])", "is not fenced"),
        ("select saas.fence_rows('public.task', 'owner', array['owner'])", "has no column"),
        ("select saas.fence_rows('public.task', 'title', array['owner'])", "has no column"),
        ("select saas.fence_rows('public.task', 'project_id', array['owner', 'x''y'])", "is not the name of a role"),
        ("select saas.fence_rows('public.task', 'project_id', null)", "is not the name of a role"),
        ("select saas.fence_refresh('public.loose')", "is not fenced"),
    ] {
        let error = owner.execute(sql).await.unwrap_err();
        let message = error.as_database_error().unwrap().message().to_owned();
        assert!(message.contains(reason), "{sql}: {message}");
    }
    // None sees all: that is a rule too.
    owner.execute("select saas.fence_rows('public.task', 'project_id', '{}')").await.unwrap();
    assert_eq!(examine(fixture.db.tenants().pool()).await, []);
}

#[tokio::test]
async fn a_row_fence_that_went_missing_is_named_and_mended() {
    let clinic = Clinic::open().await;
    let pool = clinic.fixture.db.tenants().pool();
    assert_eq!(examine(pool).await, []);
    let mut owner = clinic.fixture.db.owner().await;
    for fault in [
        "drop policy saas_rows on public.visit",
        "alter policy saas_rows on public.visit using (true)",
        "alter policy saas_rows on public.visit with check (true)",
        // As it was before jobs had to say that they are jobs.
        "do $$ declare loose text := (select format(
            'coalesce((select nullif(current_setting(''saas.member'', true), '''')), '''') = '''' or %s', pg_get_expr(polqual, polrelid))
            from pg_policy where polname = 'saas_rows');
         begin execute format('alter policy saas_rows on public.visit using (%s) with check (%1$s)', loose); end $$",
        "select saas.fence_rows('public.visit', 'id', array['owner', 'team-lead']);
         update saas.row_fence set owner_column = 'owner'",
        "select saas.fence_rows('public.visit', 'owner', array['owner', 'team-lead', 'member']);
         update saas.row_fence set sees_all = array['owner', 'team-lead']",
    ] {
        owner.execute(fault).await.unwrap();
        let findings = examine(pool).await;
        let finding = findings.iter().find(|f| f.code == "row-fence-open" && f.object == "public.visit");
        let finding = finding.unwrap_or_else(|| panic!("{fault}: {findings:#?}"));
        owner.execute(AssertSqlSafe(finding.mend.clone())).await.unwrap();
        assert_eq!(examine(pool).await, [], "{fault}");
        assert_eq!(clinic.seen(&clinic.as_member(clinic.ada)).await, 1, "{fault}");
    }
}

// T7
#[tokio::test]
async fn a_partition_that_was_attached_later_is_named_and_closed() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    let attach = "create table public.event_2027 (like public.event including indexes);
         grant select, insert on public.event_2027 to saas_app;
         grant select (what) on public.event_2027 to saas_system;
         alter table public.event attach partition public.event_2027 for values from ('2027-01-01') to ('2028-01-01')";
    owner.execute(attach).await.unwrap();
    let findings = examine(fixture.db.tenants().pool()).await;
    assert!(findings.iter().any(|f| f.code == "open-partition" && f.object == "public.event_2027"), "{findings:#?}");
    // Twice is the same as once; one table or all.
    owner.execute("select saas.fence_refresh('public.event'), saas.fence_refresh()").await.unwrap();
    assert_eq!(examine(fixture.db.tenants().pool()).await, []);
    let mut tx = fixture.begin(&fixture.a).await;
    assert_eq!(code(tx.execute("select what from public.event_2027").await), "42501");
    drop(tx);
    let mut tx = fixture.begin(&fixture.a).await;
    sqlx::query("insert into public.event values ($1, '2027-02-02', 'through the parent')")
        .bind(fixture.a.tenant().as_uuid())
        .execute(&mut *tx)
        .await
        .unwrap();
}

#[tokio::test]
async fn refreshing_mends_policies_and_passes_over_tables_that_are_gone() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    owner
        .execute(
            "drop policy saas_tenant_only on public.project; alter table public.task no force row level security;
             drop table public.event cascade; select saas.fence_refresh()",
        )
        .await
        .unwrap();
    assert_eq!(examine(fixture.db.tenants().pool()).await, []);
    // The application cannot.
    let mut tx = fixture.begin(&fixture.a).await;
    let refused = tx.execute("select saas.fence_refresh()").await.map_err(saas_core::CoreError::from_database);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Forbidden);
}
