//! The isolation audit: clean where nothing is wrong, and each planted leak named with a mend that mends it.

use saas_core::doctor::{self, Finding};
use sqlx::{AssertSqlSafe, Executor};

use crate::adopter::{self, Fixture, ROLES};

async fn examine(fixture: &Fixture) -> Vec<Finding> {
    adopter::examine(fixture.db.tenants().pool()).await
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
    ("grant execute on function lo_get(oid) to public", "server-access", "lo_get(oid)"),
    ("grant execute on function pg_read_file(text) to saas_app", "server-access", "pg_read_file(text)"),
    ("grant select on pg_statistic to saas_app", "catalogue-access", "pg_statistic"),
    ("alter default privileges in schema public grant select on tables to saas_app", "default-privileges", "public"),
    ("grant references (id) on public.project to saas_app", "dangerous-grant", "project"),
    ("grant select on saas.tenant_slug to saas_app", "system-table-open", "saas.tenant_slug"),
    ("grant insert on saas.global_table to saas_app", "global-table-writable", "saas.global_table"),
    ("grant update, delete on saas.audit to saas_app", "excess-grant", "saas.audit"),
    (
        "create view public.mine as select * from public.project; grant delete on public.mine to saas_app",
        "view-as-owner",
        "mine",
    ),
    ("create rule copy as on insert to public.task do also delete from public.project", "rule", "task.copy"),
    (
        "create function public.as_b() returns bigint language sql
            set saas.tenant_id = '01900000-0000-7000-8000-000000000001' as 'select count(*) from public.project'",
        "function-sets-tenant",
        "as_b()",
    ),
    (
        "create function public.peek(text) returns boolean leakproof language plpgsql
            as 'begin raise notice ''%'', $1; return true; end'",
        "leakproof-function",
        "peek(text)",
    ),
    ("create unique index event_what on public.event_2026 (what) where what = 'never'", "unique-without-tenant", "event_what"),
    (
        "create extension btree_gist;
         alter table public.project add constraint shared_name
            exclude using gist (name with =, tenant_id with <>) where (name = 'never')",
        "unique-without-tenant",
        "shared_name",
    ),
    (
        "create table public.base (tenant_id uuid not null);
         create table public.child (primary key (tenant_id)) inherits (public.base);
         alter table public.child enable row level security",
        "inherited",
        "child",
    ),
    (
        "alter policy saas_tenant_only on public.project
            using (id = (select nullif(current_setting('saas.tenant_id', true), '')::uuid))",
        "no-isolation-policy",
        "project",
    ),
    ("create table public.old (tenant_id text not null); create index on public.old (tenant_id)", "tenant-type", "old"),
    ("drop policy saas_tenant_only on saas.tenant", "no-isolation-policy", "saas.tenant"),
    ("drop policy saas_tenant_only on saas.audit", "no-isolation-policy", "saas.audit"),
    (
        "do $$ begin execute format('alter role saas_app in database %I set saas.tenant_id = ''x''', current_database()); end $$",
        "preset-setting",
        "saas_app",
    ),
    ("alter function saas.bump_revision(uuid) owner to saas_app", "privileged-role", "saas_app"),
    ("alter table saas.audit owner to saas_admin", "wrong-owner", "saas.audit"),
    ("alter table public.project owner to saas_app", "privileged-role", "saas_app"),
    (
        "create procedure public.purge() language sql security definer as 'delete from public.project'",
        "definer-search-path",
        "public.purge()",
    ),
    ("create policy loose on public.project for select to saas_app using (true)", "policy-always-true", "public.project.loose"),
    (
        "create policy slow on public.project for select using (tenant_id = current_setting('saas.tenant_id', true)::uuid)",
        "policy-per-row",
        "public.project.slow",
    ),
    ("create extension dblink", "extension-access", "dblink"),
    ("drop policy saas_tenant on public.project", "no-policy", "public.project"),
    (
        "select saas.fence('public.task', 'select'); grant update (title) on public.task to saas_app",
        "excess-grant",
        "public.task",
    ),
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

// A mend must not open what it does not mend.
#[tokio::test]
async fn mending_the_policies_of_a_table_leaves_its_grants_alone() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    owner
        .execute("drop policy saas_tenant_only on saas.audit; drop policy saas_tenant_only on saas.outbox")
        .await
        .unwrap();
    for finding in examine(&fixture).await {
        owner.execute(AssertSqlSafe(finding.mend)).await.unwrap();
    }
    // Fencing again, in full, keeps what the table's own migration granted.
    owner.execute("select saas.fence('saas.audit')").await.unwrap();
    for sql in ["delete from saas.audit", "update saas.audit set action = 'x'", "update saas.outbox set state = 'done'"]
    {
        let mut tx = fixture.begin(&fixture.a).await;
        assert_eq!(adopter::code(tx.execute(sql).await), "42501", "{sql}");
    }
    assert_eq!(examine(&fixture).await, []);
}

#[tokio::test]
async fn a_login_of_the_adopters_own_is_examined_as_well() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    owner.execute("create table public.secret (tenant_id uuid primary key, what text)").await.unwrap();
    let alone = ROLES.write().await;
    let login = format!("login_{}", fixture.db.name());
    let create =
        format!("create role {login} login; grant saas_app to {login}; grant select on public.secret to {login}");
    owner.execute(AssertSqlSafe(create)).await.unwrap();
    let findings = doctor::examine(fixture.db.tenants().pool()).await.unwrap();
    owner.execute(AssertSqlSafe(format!("drop owned by {login}; drop role {login}"))).await.unwrap();
    drop(alone);
    assert!(findings.iter().any(|f| f.code == "rls-off" && f.object == "public.secret"), "{findings:#?}");
}

#[tokio::test]
async fn an_accepted_finding_is_silent_for_that_object_only() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    for name in ["one", "two"] {
        let create = format!(
            "create function public.{name}() returns int security definer set search_path = '' language sql as 'select 1'"
        );
        owner.execute(AssertSqlSafe(create)).await.unwrap();
    }
    owner
        .execute("select saas.accept_finding('definer-function', 'public.one()', 'returns a constant')")
        .await
        .unwrap();
    let findings = examine(&fixture).await;
    assert_eq!(findings.iter().map(|f| f.object.as_str()).collect::<Vec<_>>(), ["public.two()"]);
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

/// One of everything that is a matter of a schema, in the schema that the search path names.
const LEAKS_OF_A_SCHEMA: &str = "
    create table project (tenant_id uuid not null references saas.tenant (id), id uuid not null, primary key (tenant_id, id));
    create table task (tenant_id uuid not null, id uuid not null, project_id uuid not null, primary key (tenant_id, id));
    create table note (tenant_id uuid not null references saas.tenant (id), id uuid not null, primary key (tenant_id, id));
    create table open (tenant_id uuid not null, id uuid not null, primary key (tenant_id, id));
    create table diary (tenant_id uuid not null, id uuid not null, primary key (tenant_id, id));
    select saas.fence('project'), saas.fence('task'), saas.fence('note'), saas.fence('open'), saas.fence('diary');
    alter table project add unique (id), disable row level security;
    alter table task add constraint loose foreign key (project_id) references project (id);
    alter table note no force row level security;
    alter policy saas_tenant_only on note using (true);
    create policy always on open to saas_app using (true);
    create policy each_row on diary to saas_app using (id::text = current_setting('some.setting'));
    grant truncate on diary to saas_app;
    create table country (code text primary key);
    create view everything as select * from diary;
    create materialized view stored as select * from diary;
    create sequence counter;
    grant select on country, everything, stored to saas_app;
    grant usage on sequence counter to saas_app;";

#[tokio::test]
async fn one_schema_is_examined_alone_and_as_strictly_as_the_whole_database() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    for schema in ["saas_t_one", "saas_t_other"] {
        let leaks = format!(
            "create schema {schema}; grant usage on schema {schema} to saas_app, saas_system;
             set search_path = {schema}; {LEAKS_OF_A_SCHEMA} reset search_path"
        );
        owner.execute(AssertSqlSafe(leaks)).await.unwrap();
    }
    let mut all = examine(&fixture).await;
    let pool = fixture.db.tenants().pool();
    let no_roles = ROLES.read().await;
    let alone = doctor::examine_schema(pool, &"saas_t_one".parse().unwrap()).await.unwrap();
    all.retain(|finding| !finding.object.contains("saas_t_other."));
    assert_eq!(alone, all);
    let mut codes: Vec<&str> = alone.iter().map(|finding| finding.code.as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    let expected = [
        "dangerous-grant",
        "foreign-key-without-tenant",
        "materialized-view",
        "no-isolation-policy",
        "open-sequence",
        "policy-always-true",
        "policy-per-row",
        "rls-not-forced",
        "rls-off",
        "unclassified-table",
        "unique-without-tenant",
        "view-as-owner",
    ];
    assert_eq!(codes, expected);
    let empty = doctor::examine_schema(pool, &"saas_t_nowhere".parse().unwrap()).await.unwrap();
    drop(no_roles);
    assert_eq!(empty, [], "whose leaks are no other schema's");
    // The next one on the same connection looks at everything again.
    assert_eq!(examine(&fixture).await.len(), 2 * alone.len());
}
