//! Attacks as the application role, bound to tenant A, on the rows of tenant B.

use saas_core::{TenantContext, testing::TestDatabase};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::adopter::{Fixture, code};

const DENIED: &str = "42501";

async fn count(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn select_sees_the_tenants_own_rows_only() {
    let fixture = Fixture::start().await;
    let mut tx = fixture.begin(&fixture.a).await;
    for table in [
        "select count(*) from public.project",
        "select count(*) from public.task",
        "select count(*) from public.event",
        "select count(*) from public.project_names",
        "select count(*) from saas.tenant",
    ] {
        assert_eq!(count(&mut tx, table).await, 1, "{table}");
    }
    let foreign = count(
        &mut tx,
        "select count(*) from public.project where tenant_id <> current_setting('saas.tenant_id')::uuid",
    );
    assert_eq!(foreign.await, 0);
}

// T11: the setting reads '' once the session has had a tenant.
#[tokio::test]
async fn without_a_tenant_nothing_is_seen_or_written_also_on_a_used_connection() {
    let fixture = Fixture::start().await;
    let fresh = PgConnection::connect(&fixture.db.url("saas_app")).await.unwrap();
    let mut used = PgConnection::connect(&fixture.db.url("saas_app")).await.unwrap();
    used.execute(AssertSqlSafe(format!("begin; set local saas.tenant_id = '{}'; commit", fixture.a.tenant())))
        .await
        .unwrap();
    for mut connection in [fresh, used] {
        for table in [
            "select count(*) from public.project",
            "select count(*) from saas.tenant",
            "select count(*) from saas.audit",
        ] {
            assert_eq!(count(&mut connection, table).await, 0, "{table}");
        }
        let insert = sqlx::query("insert into public.project (tenant_id, name) values ($1, 'x')")
            .bind(fixture.a.tenant().as_uuid())
            .execute(&mut connection);
        assert_eq!(code(insert.await), DENIED);
        let updated = connection.execute("update public.project set name = 'x'").await.unwrap();
        let deleted = connection.execute("delete from public.project").await.unwrap();
        assert_eq!((updated.rows_affected(), deleted.rows_affected()), (0, 0));
    }
}

// T9
#[tokio::test]
async fn a_row_cannot_be_inserted_for_or_moved_to_another_tenant() {
    let fixture = Fixture::start().await;
    let b = fixture.b.tenant().as_uuid();
    let mut tx = fixture.begin(&fixture.a).await;
    let inserted =
        sqlx::query("insert into public.project (tenant_id, name) values ($1, 'planted')").bind(b).execute(&mut *tx);
    assert_eq!(code(inserted.await), DENIED);
    let mut tx = fixture.begin(&fixture.a).await;
    let moved = sqlx::query("update public.project set tenant_id = $1").bind(b).execute(&mut *tx);
    assert_eq!(code(moved.await), DENIED);
}

#[tokio::test]
async fn update_delete_and_upsert_do_not_reach_the_other_tenant() {
    let fixture = Fixture::start().await;
    let theirs = fixture.project_of(&fixture.b).await;
    let mut tx = fixture.begin(&fixture.a).await;
    for sql in ["update public.project set name = 'x' where id = $1", "delete from public.project where id = $1"] {
        let touched = sqlx::query(sql).bind(theirs).execute(&mut *tx).await.unwrap();
        assert_eq!(touched.rows_affected(), 0, "{sql}");
    }
    let upsert = sqlx::query(
        "insert into public.project (tenant_id, id, name) values ($1, $2, 'x')
         on conflict (tenant_id, id) do update set name = 'x'",
    )
    .bind(fixture.b.tenant().as_uuid())
    .bind(theirs)
    .execute(&mut *tx);
    assert_eq!(code(upsert.await), DENIED);
}

// T21
#[tokio::test]
async fn a_unique_key_does_not_reveal_what_another_tenant_stores() {
    let fixture = Fixture::start().await;
    let theirs = fixture.project_of(&fixture.b).await;
    let mut tx = fixture.begin(&fixture.a).await;
    // The other tenant's very id and a name that it uses too: accepted as our own.
    sqlx::query("insert into public.project (tenant_id, id, name) values ($1, $2, 'another name')")
        .bind(fixture.a.tenant().as_uuid())
        .bind(theirs)
        .execute(&mut *tx)
        .await
        .unwrap();
}

// T22
#[tokio::test]
async fn a_foreign_key_cannot_point_at_another_tenants_row() {
    let fixture = Fixture::start().await;
    let theirs = fixture.project_of(&fixture.b).await;
    let mut tx = fixture.begin(&fixture.a).await;
    let child = sqlx::query("insert into public.task (tenant_id, project_id, title) values ($1, $2, 'probe')")
        .bind(fixture.a.tenant().as_uuid())
        .bind(theirs)
        .execute(&mut *tx);
    assert_eq!(code(child.await), "23503");
    drop(tx);
    // And a cascade stays inside the tenant that deletes.
    let mut tx = fixture.begin(&fixture.b).await;
    tx.execute("delete from public.project").await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = fixture.begin(&fixture.a).await;
    assert_eq!(count(&mut tx, "select count(*) from public.task").await, 1);
}

// T1
#[tokio::test]
async fn the_owner_of_a_table_is_bound_as_well() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    owner.execute("alter table public.project owner to saas_owner; set role saas_owner").await.unwrap();
    assert_eq!(count(&mut owner, "select count(*) from public.project").await, 0);
    assert_eq!(count(&mut owner, "select count(*) from saas.tenant").await, 0);
}

// T7
#[tokio::test]
async fn a_partition_cannot_be_named_directly() {
    let fixture = Fixture::start().await;
    for sql in [
        "select count(*) from public.event_2026",
        "insert into public.event_2026 values (gen_random_uuid(), now(), 'x')",
    ] {
        let mut tx = fixture.begin(&fixture.a).await;
        assert_eq!(code(tx.execute(sql).await), DENIED, "{sql}");
    }
}

// T10
#[tokio::test]
async fn a_permissive_policy_added_later_opens_nothing() {
    let fixture = Fixture::start().await;
    fixture
        .db
        .owner()
        .await
        .execute("create policy loose on public.project for all using (true) with check (true)")
        .await
        .unwrap();
    let mut tx = fixture.begin(&fixture.a).await;
    assert_eq!(count(&mut tx, "select count(*) from public.project").await, 1);
}

// T23 T24 T25 T26 T28 T31
#[tokio::test]
async fn what_row_level_security_does_not_govern_is_not_granted() {
    let fixture = Fixture::start().await;
    fixture.db.owner().await.execute("create sequence public.counter; select lo_create(77)").await.unwrap();
    for sql in [
        "truncate public.project",
        "truncate saas.audit",
        "create temporary table project (id uuid)",
        "create table public.mine (id uuid references public.project (id))",
        "select nextval('public.counter')",
        "select last_value from public.counter",
        "select lo_get(77)",
        "alter table public.project disable row level security",
        "drop policy saas_tenant_only on public.project",
        "create function public.f() returns void language sql as ''",
        "set role saas_owner",
        "set role saas_system",
        "set session authorization saas_system",
        "update saas.audit set action = 'x'",
        "delete from saas.audit",
        "select slug from saas.tenant_slug",
        "insert into saas.tenant_slug values ('x', gen_random_uuid())",
        "select saas.fence('public.project')",
    ] {
        let mut tx = fixture.begin(&fixture.a).await;
        assert_eq!(code(tx.execute(sql).await), DENIED, "{sql}");
    }
    // COPY refuses to write under row-level security, whatever the rows hold.
    let mut tx = fixture.begin(&fixture.a).await;
    let copied = tx.execute("copy public.project from stdin").await;
    assert_eq!(code(copied), "0A000");
    // And reads the tenant's own rows only.
    let mut tx = fixture.begin(&fixture.a).await;
    let rows = tx.copy_out_raw("copy public.project_names to stdout").await.map(drop);
    assert_eq!(code(rows), "42809", "COPY of a view is refused; of the table it is filtered, below");
    let mut tx = fixture.begin(&fixture.a).await;
    assert_eq!(copied_rows(&mut tx).await, 1);
}

async fn copied_rows(connection: &mut PgConnection) -> usize {
    use futures_util::TryStreamExt;
    let chunks: Vec<_> =
        connection.copy_out_raw("copy public.project to stdout").await.unwrap().try_collect().await.unwrap();
    chunks.iter().flat_map(|chunk| chunk.iter()).filter(|byte| **byte == b'\n').count()
}

// T19: the same prepared statement on one connection for two tenants, under both plan modes.
#[tokio::test]
async fn a_cached_plan_never_serves_another_tenants_rows() {
    for mode in ["auto", "force_generic_plan", "force_custom_plan"] {
        let fixture = Fixture::start().await;
        let mut connection = PgConnection::connect(&fixture.db.url("saas_app")).await.unwrap();
        connection.execute(AssertSqlSafe(format!("set plan_cache_mode = {mode}"))).await.unwrap();
        for round in 0..8 {
            for ctx in [&fixture.a, &fixture.b] {
                let tenant = ctx.tenant();
                connection
                    .execute(AssertSqlSafe(format!("begin; set local saas.tenant_id = '{tenant}'")))
                    .await
                    .unwrap();
                let seen: Vec<Uuid> = sqlx::query_scalar("select tenant_id from public.project")
                    .fetch_all(&mut connection)
                    .await
                    .unwrap();
                assert_eq!(seen, [tenant.as_uuid()], "{mode}, round {round}");
                connection.execute("commit").await.unwrap();
            }
        }
    }
}

// T6: a definer function still runs as an owner that FORCE binds.
#[tokio::test]
async fn a_definer_function_of_the_owner_sees_the_bound_tenant_only() {
    let fixture = Fixture::start().await;
    fixture
        .db
        .owner()
        .await
        .execute(
            "alter table public.project owner to saas_owner;
             create function public.all_projects() returns bigint language sql security definer set search_path = ''
                as 'select count(*) from public.project';
             alter function public.all_projects() owner to saas_owner;
             grant execute on function public.all_projects() to saas_app",
        )
        .await
        .unwrap();
    let mut tx = fixture.begin(&fixture.a).await;
    assert!(count(&mut tx, "select public.all_projects()").await <= 1);
}

// T41: what the fence is not. Injected SQL can name another tenant; SECURITY.md says so.
#[tokio::test]
async fn whoever_writes_the_statements_chooses_the_tenant() {
    let fixture = Fixture::start().await;
    let mut tx = fixture.begin(&fixture.a).await;
    let injected = format!("select set_config('saas.tenant_id', '{}', true)", fixture.b.tenant());
    tx.execute(AssertSqlSafe(injected)).await.unwrap();
    let seen: Uuid = sqlx::query_scalar("select tenant_id from public.project").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(seen, fixture.b.tenant().as_uuid());
}

#[tokio::test]
async fn the_system_role_sees_every_tenant_by_its_own_policy() {
    let fixture = Fixture::start().await;
    let mut tx =
        saas_core::SystemTx::begin(fixture.db.system(), saas_core::Actor::system("test"), "count").await.unwrap();
    assert_eq!(count(&mut tx, "select count(*) from public.project").await, 2);
}

#[tokio::test]
async fn a_table_that_cannot_be_fenced_is_refused_with_a_reason() {
    let db = TestDatabase::start(&[&saas_core::SCHEMA]).await;
    let mut owner = db.owner().await;
    for (table, reason) in [
        ("create table public.t (id uuid primary key)", "has no column"),
        ("create table public.t (tenant_id text not null)", "has no column"),
        ("create table public.t (tenant_id uuid)", "has no column"),
        ("create table public.t (tenant_id uuid not null, id uuid primary key)", "unique index"),
        (
            "create table public.t (tenant_id uuid not null, name text, exclude using hash (name with =))",
            "unique index",
        ),
        (
            "create table public.p (tenant_id uuid not null, id uuid unique);
             create table public.t (tenant_id uuid not null, p uuid references public.p (id))",
            "foreign key",
        ),
        ("create table public.t (tenant_id uuid not null, n bigserial)", "is a sequence"),
        ("create view public.t as select gen_random_uuid() as tenant_id", "is not a table"),
        (
            "create table public.whole (tenant_id uuid not null, n int) partition by list (n);
             create table public.t partition of public.whole for values in (1)",
            "is a partition",
        ),
    ] {
        owner.execute("begin").await.unwrap();
        owner.execute(sqlx::AssertSqlSafe(table)).await.unwrap();
        let error = owner.execute("select saas.fence('public.t')").await.unwrap_err();
        let message = error.as_database_error().unwrap().message().to_owned();
        assert!(message.contains(reason), "{table}: {message}");
        owner.execute("rollback").await.unwrap();
    }
    owner.execute("create table public.t (tenant_id uuid not null, primary key (tenant_id))").await.unwrap();
    let refused = owner.execute("select saas.fence('public.t', 'select, truncate')").await;
    assert_eq!(code(refused), "22023");
    // Fencing twice is the same as once.
    owner.execute("select saas.fence('public.t'), saas.fence('public.t')").await.unwrap();
}
