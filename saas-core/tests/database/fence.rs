//! The fence on tables that are made to break it: names, late changes, twice at once.

use saas_core::TenantContext;
use sqlx::{AssertSqlSafe, Executor};

use crate::adopter::{Fixture, code, examine};

#[tokio::test]
async fn hostile_names_are_only_names() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    for name in [
        r#""O'Hara; drop table saas.audit; --""#.to_owned(),
        r#""Select""#.to_owned(),
        r#""quo""te %I %s %1$s $1""#.to_owned(),
        format!("\"{}\"", "x".repeat(63)),
        format!("\"{}\"", "ü".repeat(31)),
    ] {
        let script = format!(
            "create table public.{name} (tenant_id uuid not null, id int not null, \"own'er \"\"x\" uuid not null,
                primary key (tenant_id, id)) partition by range (id);
             create table public.\"part '\"\"{}\" partition of public.{name} for values from (0) to (10);",
            name.len()
        );
        owner.execute(sqlx::raw_sql(AssertSqlSafe(script))).await.unwrap();
        for call in [
            "select saas.fence($1::regclass)",
            "select saas.fence($1::regclass)",
            "select saas.fence_rows($1::regclass, 'own''er \"x', array['owner'])",
            "select saas.fence_refresh($1::regclass)",
        ] {
            sqlx::query(call).bind(format!("public.{name}")).execute(&mut owner).await.unwrap();
        }
        let mut tx = fixture.begin(&fixture.a).await;
        let insert = format!("insert into public.{name} values ('{}', 1, gen_random_uuid())", fixture.b.tenant());
        assert_eq!(code(tx.execute(AssertSqlSafe(insert)).await), "42501", "{name}");
    }
    owner.execute("select saas.fence_refresh()").await.unwrap();
    assert_eq!(examine(fixture.db.tenants().pool()).await, []);
}

/// Whether a session waits for another one's lock.
async fn is_waiting(owner: &mut sqlx::PgConnection, pid: i32) -> bool {
    let sql = "select cardinality(pg_blocking_pids($1)) > 0";
    sqlx::query_scalar(sql).bind(pid).fetch_one(owner).await.unwrap()
}

#[tokio::test]
async fn a_fence_waits_for_writers_and_sees_the_key_they_added() {
    let fixture = Fixture::start().await;
    let (mut owner, mut writer) = (fixture.db.owner().await, fixture.db.owner().await);
    owner
        .execute("create table public.slow (tenant_id uuid not null, id int not null, primary key (tenant_id, id))")
        .await
        .unwrap();
    for (meanwhile, outcome) in [
        ("insert into public.slow select id, 1 from saas.tenant", None),
        ("alter table public.slow add constraint late unique (id)", Some("42P16")),
    ] {
        writer
            .execute(sqlx::raw_sql(AssertSqlSafe(format!("begin; {meanwhile}; rollback; begin; {meanwhile}"))))
            .await
            .unwrap();
        let mut fencing = fixture.db.owner().await;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut fencing).await.unwrap();
        let fence = tokio::spawn(async move { fencing.execute("select saas.fence('public.slow')").await.map(drop) });
        while !fence.is_finished() && !is_waiting(&mut owner, pid).await {
            tokio::task::yield_now().await;
        }
        assert!(!fence.is_finished(), "it did not wait");
        writer.execute("commit").await.unwrap();
        let fenced = fence.await.unwrap();
        match outcome {
            None => fenced.unwrap(),
            Some(refusal) => assert_eq!(code(fenced), refusal),
        }
        owner.execute("truncate public.slow").await.unwrap();
    }
}

#[tokio::test]
async fn two_fences_at_once_are_one() {
    let fixture = Fixture::start().await;
    fixture.db.owner().await.execute("create table public.twin (tenant_id uuid primary key)").await.unwrap();
    let mut fences = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let mut owner = fixture.db.owner().await;
        fences.spawn(async move { owner.execute("select saas.fence('public.twin')").await.map(drop) });
    }
    for fenced in fences.join_all().await {
        fenced.unwrap();
    }
    assert_eq!(examine(fixture.db.tenants().pool()).await, []);
}

#[tokio::test]
async fn a_refresh_names_the_table_that_changed_too_much() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    for (change, undo, names) in [
        (
            "alter table public.event rename column tenant_id to whose",
            "alter table public.event rename column whose to tenant_id",
            "public.event was fenced",
        ),
        (
            "alter table public.task rename to old_task; create table public.task (id int)",
            "drop table public.task; alter table public.old_task rename to task",
            "public.task was fenced",
        ),
        (
            "select saas.fence_rows('public.task', 'project_id', '{}'); alter table public.task rename project_id to project",
            "alter table public.task rename project to project_id",
            "public.task has no column \"project_id",
        ),
    ] {
        owner.execute(sqlx::raw_sql(change)).await.unwrap();
        let error = owner.execute("select saas.fence_refresh()").await.unwrap_err();
        let error = error.as_database_error().unwrap();
        assert_eq!(error.code().unwrap(), "42703");
        assert!(error.message().contains(names), "{error}");
        owner.execute(sqlx::raw_sql(undo)).await.unwrap();
    }
    owner
        .execute("alter table public.task add more text, drop column title; select saas.fence_refresh()")
        .await
        .unwrap();
    assert_eq!(examine(fixture.db.tenants().pool()).await, []);
}

#[tokio::test]
async fn a_table_belongs_to_its_tenants_or_to_none() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    assert_eq!(code(owner.execute("select saas.declare_global('public.project', 'oops')").await), "55000");
    owner
        .execute(sqlx::raw_sql(
            "create table public.late (tenant_id uuid primary key); select saas.declare_global('public.late', 'not yet');
             select saas.fence('public.late'); alter table public.late disable row level security",
        ))
        .await
        .unwrap();
    let findings = examine(fixture.db.tenants().pool()).await;
    assert!(findings.iter().any(|f| f.code == "rls-off" && f.object == "public.late"), "{findings:#?}");
}

#[tokio::test]
async fn what_is_gone_with_its_session_is_not_fenced() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    owner.execute("create temporary table passing (tenant_id uuid primary key)").await.unwrap();
    assert_eq!(code(owner.execute("select saas.fence('passing')").await), "42809");
}
