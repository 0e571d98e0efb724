//! Schemas with one leak each.

use saas_tenancy::testing::Attack;

use crate::case::{Case, both, check_all, structural};

#[rustfmt::skip]
const CASES: &[Case] = &[
    both("row-level security off", // T8
        "alter table public.project disable row level security",
        (Attack::Select, "public.project"), ("rls-off", "public.project")),
    both("a table that was never fenced", // T8
        "create table public.note (tenant_id uuid not null, id uuid not null default gen_random_uuid(), body text, primary key (tenant_id, id));
         grant select, insert, update, delete on public.note to saas_app",
        (Attack::Delete, "public.note"), ("rls-off", "public.note")),
    both("no FORCE, and somebody who runs as the owner", // T1
        "alter table public.project owner to saas_owner;
         alter table public.project no force row level security;
         create function public.project_count() returns bigint language sql security definer set search_path = ''
            as 'select count(*) from public.project';
         alter function public.project_count() owner to saas_owner;
         grant execute on function public.project_count() to saas_app;
         select saas.accept_finding('definer-function', 'public.project_count()', 'counts under FORCE')",
        (Attack::Inference, "public.project_count()"), ("rls-not-forced", "public.project")),
    both("policies that let everything be read", // T10
        "alter policy saas_tenant on public.project using (true);
         alter policy saas_tenant_only on public.project using (true)",
        (Attack::Select, "public.project"), ("no-isolation-policy", "public.project")),
    both("WITH CHECK (true)", // T9
        "alter policy saas_tenant on public.project with check (true);
         alter policy saas_tenant_only on public.project with check (true)",
        (Attack::Insert, "public.project"), ("no-isolation-policy", "public.project")),
    both("a row can be given away", // T9
        "alter policy saas_tenant on public.task with check (true);
         alter policy saas_tenant_only on public.task with check (true)",
        (Attack::Move, "public.task"), ("no-isolation-policy", "public.task")),
    both("a permissive policy, and no restrictive one", // T10
        "drop policy saas_tenant_only on public.project;
         create policy support on public.project for select to saas_app using (name is not null)",
        (Attack::Select, "public.project"), ("no-isolation-policy", "public.project")),
    both("a policy that is open while nobody is bound", // T11
        "drop policy saas_tenant_only on public.project;
         alter policy saas_tenant on public.project
            using (coalesce(tenant_id = (select nullif(current_setting('saas.tenant_id', true), '')::uuid), true))",
        (Attack::Select, "public.project"), ("no-isolation-policy", "public.project")),
    both("an immutable function in a policy", // T19
        "create function public.current_tenant() returns uuid immutable language sql
            as 'select nullif(current_setting(''saas.tenant_id'', true), '''')::uuid';
         drop policy saas_tenant_only on public.project;
         drop policy saas_tenant on public.project;
         create policy cached on public.project to saas_app using (tenant_id = public.current_tenant())",
        (Attack::PreparedStatement, "public.project"), ("function-in-policy", "public.project.cached")),
    both("a superuser's view without security_invoker", // T4
        "create view public.board as select tenant_id, name from public.project; grant select on public.board to saas_app",
        (Attack::Select, "public.board"), ("view-as-owner", "public.board")),
    both("a view that only counts", // T4
        "create view public.size as select count(*) as projects from public.project; grant select on public.size to saas_app",
        (Attack::Inference, "public.size"), ("view-as-owner", "public.size")),
    both("a view that deletes", // T4
        "create view public.tidy as select * from public.task; grant select, delete on public.tidy to saas_app",
        (Attack::Delete, "public.tidy"), ("view-as-owner", "public.tidy")),
    both("a view that inserts", // T4
        "create view public.entry as select * from public.event; grant insert on public.entry to saas_app",
        (Attack::Insert, "public.entry"), ("view-as-owner", "public.entry")),
    both("a materialized view", // T5
        "create materialized view public.stats as select count(*) as n, max(name) as last from public.project;
         grant select on public.stats to saas_app",
        (Attack::Inference, "public.stats"), ("materialized-view", "public.stats")),
    both("a definer's function that reads", // T6
        "create function public.search(wanted text) returns setof text language sql security definer set search_path = ''
            as 'select name from public.project where name like ''%'' || wanted || ''%'''",
        (Attack::Inference, "public.search(text)"), ("definer-function", "public.search(text)")),
    both("a definer's function that takes the tenant from its caller", // T6
        "create function public.names(whose uuid) returns text language sql security definer set search_path = ''
            as 'select string_agg(name, '','') from public.project where tenant_id = whose'",
        (Attack::Inference, "public.names(uuid)"), ("definer-function", "public.names(uuid)")),
    both("a definer's procedure that writes", // T6
        "create procedure public.purge() language sql security definer set search_path = '' as 'delete from public.task'",
        (Attack::SideEffect, "public.purge()"), ("definer-function", "public.purge()")),
    both("a definer's trigger that copies into another tenant", // T6
        "create function public.spread() returns trigger language plpgsql security definer set search_path = '' as $$
         begin
            insert into public.event (tenant_id, at, what)
            select id, '2026-03-03'::timestamptz + random() * interval '100 days', new.title from saas.tenant where id <> new.tenant_id;
            return new;
         end $$;
         create trigger spread after insert on public.task for each row execute function public.spread()",
        (Attack::SideEffect, "public.task"), ("definer-function", "public.spread()")),
    both("a definer's trigger that copies from another tenant", // T6
        "create function public.fill_in() returns trigger language plpgsql security definer set search_path = '' as $$
         begin
            new.what := (select string_agg(name, ',') from public.project);
            return new;
         end $$;
         create trigger fill_in before insert on public.event for each row execute function public.fill_in()",
        (Attack::SideEffect, "public.event"), ("definer-function", "public.fill_in()")),
    both("a rule, which runs as the table's owner",
        "create rule copy as on insert to public.event do also update public.project set name = name",
        (Attack::SideEffect, "public.event"), ("rule", "public.event.copy")),
    both("a partition that can be named", // T7
        "grant select, insert on public.event_2026 to saas_app",
        (Attack::Insert, "public.event_2026"), ("open-partition", "public.event_2026")),
    both("one column of a partition", // T7
        "grant select (what) on public.event_2026 to saas_app",
        (Attack::Select, "public.event_2026"), ("open-partition", "public.event_2026")),
    both("a partition that was attached later, with its grants", // T7
        "create table public.event_2027 (like public.event including indexes);
         grant select on public.event_2027 to saas_app;
         alter table public.event attach partition public.event_2027 for values from ('2027-01-01') to ('2028-01-01')",
        (Attack::Select, "public.event_2027"), ("open-partition", "public.event_2027")),
    both("a foreign key across tenants, with a cascade", // T22
        "alter table public.project add unique (id);
         alter table public.task add constraint loose foreign key (project_id) references public.project (id) on delete cascade;
         alter table public.task drop constraint task_tenant_id_project_id_fkey",
        (Attack::ForeignKey, "public.task.loose"), ("foreign-key-without-tenant", "public.task.loose")),
    both("a unique key across tenants", // T21
        "alter table public.project add constraint one_name unique (name)",
        (Attack::UniqueKey, "public.project.one_name"), ("unique-without-tenant", "one_name")),
    both("a unique index over an expression of some rows", // T21
        "create unique index one_spelling on public.project (lower(name)) where name <> ''",
        (Attack::UniqueKey, "public.project.one_spelling"), ("unique-without-tenant", "one_spelling")),
    both("a unique key across tenants, of a table that only takes updates", // T21
        "create unique index one_title on public.task (title); revoke insert on public.task from saas_app",
        (Attack::UniqueKey, "public.task.one_title"), ("unique-without-tenant", "one_title")),
    both("an exclusion constraint across tenants", // T21
        "create table public.booking (tenant_id uuid not null, id uuid not null default gen_random_uuid(), during tstzrange not null,
            primary key (tenant_id, id));
         select saas.fence('public.booking');
         alter table public.booking add constraint no_overlap exclude using gist (during with &&)",
        (Attack::UniqueKey, "public.booking.no_overlap"), ("unique-without-tenant", "no_overlap")),
    both("a table that nobody classified", // T8
        "create table public.message (id uuid primary key default gen_random_uuid(), body text not null);
         grant select on public.message to saas_app",
        (Attack::Select, "public.message"), ("unclassified-table", "public.message")),
    both("a tenant's child that does not say whose it is", // T8
        "create table public.remark (id uuid primary key default gen_random_uuid(), tenant uuid not null, task uuid not null, body text not null,
            foreign key (tenant, task) references public.task (tenant_id, id));
         grant select, update on public.remark to saas_app",
        (Attack::Update, "public.remark"), ("unclassified-table", "public.remark")),
    both("a child that inherits into an open table",
        "create table public.base (tenant_id uuid not null, body text, primary key (tenant_id));
         create table public.letter (primary key (tenant_id)) inherits (public.base);
         alter table public.letter enable row level security, force row level security;
         grant select on public.base to saas_app",
        (Attack::Select, "public.base"), ("rls-off", "public.base")),
    both("a global table that a tenant writes",
        "grant insert, update on public.country to saas_app",
        (Attack::WriteGlobal, "public.country"), ("global-table-writable", "public.country")),
    both("a table of the system's that a tenant reads",
        "grant select on saas.tenant_slug to saas_app",
        (Attack::Select, "saas.tenant_slug"), ("system-table-open", "saas.tenant_slug")),
    both("a sequence", // T26
        "create sequence public.invoice_number; grant usage on sequence public.invoice_number to saas_app",
        (Attack::Sequence, "public.invoice_number"), ("open-sequence", "public.invoice_number")),
    both("TRUNCATE", // T23
        "grant truncate on public.project, public.task to saas_app",
        (Attack::Truncate, "public.project"), ("dangerous-grant", "public.project")),
    both("TRIGGER", // T24
        "grant trigger on public.project to saas_app",
        (Attack::Trigger, "public.project"), ("dangerous-grant", "public.project")),
    structural("REFERENCES, which needs a table of one's own as well", // T24
        "grant references on public.project to saas_app",
        ("dangerous-grant", "public.project")),
    both("temporary tables", // T28
        "do $$ begin execute format('grant temporary on database %I to public', current_database()); end $$",
        (Attack::TemporaryTable, "public."), ("temporary-tables", "saas_test")),
    both("objects of one's own",
        "grant create on schema public to saas_app",
        (Attack::Create, "public"), ("schema-create", "public")),
    both("large objects", // T31
        "grant execute on function lo_from_bytea(oid, bytea), lo_get(oid) to saas_app",
        (Attack::LargeObject, "large objects"), ("server-access", "lo_get(oid)")),
    both("files of the server",
        "grant execute on function pg_read_file(text) to saas_app",
        (Attack::Server, "pg_read_file"), ("server-access", "pg_read_file(text)")),
    both("statistics of every tenant",
        "grant select on pg_statistic to saas_app",
        (Attack::Server, "pg_statistic"), ("catalogue-access", "pg_statistic")),
    both("a login that owns a table",
        "alter table public.project owner to saas_app",
        (Attack::AlterTable, "public.project"), ("privileged-role", "saas_app")),
    both("sessions that start as a tenant", // T13
        "do $$ begin execute format('alter role saas_app in database %I set saas.tenant_id = ''01900000-0000-7000-8000-000000000001''',
            current_database()); end $$",
        (Attack::PresetTenant, "saas.tenant_id"), ("preset-setting", "saas_app")),
    structural("grants to come",
        "alter default privileges in schema public grant select on tables to saas_app",
        ("default-privileges", "public")),
    structural("a function that looks at rows before the policy", // T19
        "create function public.peek(text) returns boolean leakproof language plpgsql as 'begin raise notice ''%'', $1; return true; end'",
        ("leakproof-function", "public.peek(text)")),
    structural("a function that binds a tenant for its body",
        "create function public.as_b() returns bigint language sql
            set saas.tenant_id = '01900000-0000-7000-8000-000000000001' as 'select count(*) from public.project'",
        ("function-sets-tenant", "public.as_b()")),
    structural("a foreign table, whose server is not there", // T38
        "create foreign data wrapper elsewhere; create server elsewhere foreign data wrapper elsewhere;
         create foreign table public.remote (tenant_id uuid, body text) server elsewhere; grant select on public.remote to saas_app",
        ("foreign-table", "public.remote")),
    structural("a fenced table without an index on its tenant", // T47
        "create table public.note (tenant_id uuid not null, body text); select saas.fence('public.note')",
        ("no-tenant-index", "public.note")),
    structural("one policy of the two is gone", // T10
        "drop policy saas_tenant_only on public.project",
        ("no-isolation-policy", "public.project")),
    structural("a policy that is asked for every row", // T47
        "create policy slow on public.project for select to saas_app using (tenant_id = current_setting('saas.tenant_id', true)::uuid)",
        ("policy-per-row", "public.project.slow")),
    structural("a policy that is always true, behind the restrictive one", // T10
        "create policy loose on public.project for select to saas_app using (true)",
        ("policy-always-true", "public.project.loose")),
    structural("an accepted definer's function with a search path that its caller chooses", // T6
        "create function public.one() returns int language sql security definer as 'select 1';
         select saas.accept_finding('definer-function', 'public.one()', 'a constant')",
        ("definer-search-path", "public.one()")),
    structural("dblink, which logs in as somebody else", // T38
        "create extension dblink",
        ("extension-access", "dblink")),
];

// T1 T4 T5 T6 T7 T8 T9 T10 T11 T13 T19 T21 T22 T23 T24 T26 T28 T31 T38 T47
#[tokio::test(flavor = "multi_thread")]
async fn each_broken_schema_is_seen_and_its_mend_mends_it() {
    check_all(CASES).await;
    let working = CASES.iter().filter(|case| case.attack.is_some()).count();
    assert!(working >= 25, "only {working} schemas leak");
}
