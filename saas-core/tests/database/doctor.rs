//! The isolation audit: clean where nothing is wrong, and each planted leak named with a mend that mends it.

use saas_core::doctor::{self, Finding};
use sqlx::{AssertSqlSafe, Executor};

use crate::adopter::Fixture;

async fn examine(fixture: &Fixture) -> Vec<Finding> {
    doctor::examine(fixture.db.tenants().pool()).await.unwrap()
}

#[tokio::test]
async fn a_fenced_database_is_clean() {
    let fixture = Fixture::start().await;
    assert_eq!(examine(&fixture).await, []);
}

/// What is planted, the code it is found under, and the object named.
const LEAKS: &[(&str, &str, &str)] = &[
    ("alter table public.project disable row level security", "rls-off", "project"),
    ("alter table public.project no force row level security", "rls-not-forced", "project"),
    ("drop policy saas_tenant_only on public.project", "no-isolation-policy", "project"),
    ("alter policy saas_tenant_only on public.project using (true)", "no-isolation-policy", "project"),
    ("alter policy saas_tenant_only on public.project with check (true)", "no-isolation-policy", "project"),
    (
        "alter policy saas_tenant_only on public.project
            using (tenant_id = current_setting('saas.tenant_id')::uuid or current_setting('saas.tenant_id', true) is null)",
        "no-isolation-policy",
        "project",
    ),
    ("create table public.country (code text primary key); grant select on public.country to saas_app", "unclassified-table", "country"),
    (
        "create table public.note (tenant_id uuid not null, body text); create index on public.note (tenant_id);
         grant select, insert on public.note to saas_app",
        "rls-off",
        "note",
    ),
    (
        "create table public.note (tenant_id uuid not null, body text); select saas.fence('public.note')",
        "no-tenant-index",
        "note",
    ),
    ("create unique index project_id on public.project (id)", "unique-without-tenant", "project_id"),
    (
        "alter table public.project add unique (id);
         alter table public.task add constraint loose foreign key (project_id) references public.project (id)",
        "foreign-key-without-tenant",
        "task.loose",
    ),
    ("create view public.all_projects as select * from public.project; grant select on public.all_projects to saas_app", "view-as-owner", "all_projects"),
    (
        "create materialized view public.stats as select count(*) from public.project; grant select on public.stats to saas_app",
        "materialized-view",
        "stats",
    ),
    ("grant select on public.event_2026 to saas_app", "open-partition", "event_2026"),
    (
        "create function public.peek() returns bigint language sql security definer as 'select count(*) from public.project'",
        "definer-function",
        "peek()",
    ),
    (
        "create function public.current_tenant() returns uuid immutable language sql
            as 'select nullif(current_setting(''saas.tenant_id'', true), '''')::uuid';
         create policy cached on public.project for select using (tenant_id = public.current_tenant())",
        "function-in-policy",
        "project.cached",
    ),
    ("grant truncate on public.project to saas_app", "dangerous-grant", "project"),
    ("grant references on public.project to saas_app", "dangerous-grant", "project"),
    ("grant trigger on public.project to saas_app", "dangerous-grant", "project"),
    ("create sequence public.invoice_number; grant usage on sequence public.invoice_number to saas_app", "open-sequence", "invoice_number"),
    ("do $$ begin execute format('grant temporary on database %I to public', current_database()); end $$", "temporary-tables", "saas_test"),
    ("grant create on schema public to public", "schema-create", "public"),
    ("grant execute on function lo_get(oid) to public", "large-objects", "lo_get(oid)"),
    ("alter table saas.audit owner to saas_admin", "wrong-owner", "saas.audit"),
    ("alter table public.project owner to saas_app", "privileged-role", "saas_app"),
];

// T1 T4 T5 T6 T7 T8 T9 T10 T19 T21 T22 T23 T24 T26 T28 T31 T47 T49
#[tokio::test]
async fn each_planted_leak_is_named_and_its_mend_mends_it() {
    for (leak, code, object) in LEAKS {
        let fixture = Fixture::start().await;
        let mut owner = fixture.db.owner().await;
        owner.execute(*leak).await.unwrap_or_else(|error| panic!("{leak}: {error}"));
        let findings = examine(&fixture).await;
        let found = findings.iter().find(|f| f.code == *code && f.object.contains(object));
        let found = found.unwrap_or_else(|| panic!("{leak}\nfound only {findings:#?}"));
        assert!(!found.reason.is_empty());
        for finding in &findings {
            owner
                .execute(AssertSqlSafe(finding.mend.clone()))
                .await
                .unwrap_or_else(|error| panic!("{finding}: {error}"));
        }
        let mended = examine(&fixture).await;
        assert!(!mended.iter().any(|f| f.code == *code && f.object.contains(object)), "{leak}\nstill {mended:#?}");
    }
}

#[tokio::test]
async fn a_role_that_is_a_member_of_the_owner_is_named() {
    // Roles are the server's, so the grant is made in a transaction that is rolled back, and examined inside it.
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    owner.execute("begin; grant saas_owner to saas_app").await.unwrap();
    let rows: Vec<(String, String, String, String)> =
        sqlx::query_as(include_str!("../../src/doctor/roles.sql")).fetch_all(&mut owner).await.unwrap();
    owner.execute("rollback").await.unwrap();
    assert!(rows.iter().any(|(code, object, ..)| code == "role-membership" && object == "saas_app"), "{rows:?}");
}
