//! Nothing gives way where nothing is wrong, and nothing is left untried.

use saas_core::{doctor, testing::TestDatabase};
use saas_tenancy::{
    assert_isolated,
    testing::{Attack, attack},
};
use sqlx::Executor as _;

use crate::shop;

#[tokio::test]
async fn nothing_gives_way_where_tables_are_fenced() {
    let database = shop::start().await;
    let report = assert_isolated!(&database);
    assert!(report.probes > 500, "{report}");
}

async fn proven(tables: &'static str) -> TestDatabase {
    let database = shop::start().await;
    database.owner().await.execute(sqlx::raw_sql(tables)).await.unwrap();
    assert_eq!(doctor::examine(database.tenants().pool()).await.unwrap(), []);
    drop(assert_isolated!(&database));
    database
}

#[tokio::test]
async fn a_table_that_sets_its_tenant_itself_is_sound() {
    proven(
        "create table public.lead (tenant_id uuid not null default nullif(current_setting('saas.tenant_id', true), '')::uuid,
            id uuid not null default gen_random_uuid(), name text, project uuid, primary key (tenant_id, id),
            foreign key (tenant_id, project) references public.project (tenant_id, id) on delete set null (project));
         create function public.own() returns trigger language plpgsql as $$
         begin new.tenant_id := nullif(current_setting('saas.tenant_id', true), '')::uuid; return new; end $$;
         create trigger own before insert or update on public.lead for each row execute function public.own();
         select saas.fence('public.lead')",
    )
    .await;
}

#[tokio::test]
async fn keys_that_hold_the_tenant_in_odd_ways_are_sound() {
    proven(
        "create extension btree_gist;
         create table public.slot (tenant_id uuid not null, id bigint generated always as identity, room text not null, during tstzrange not null,
            code text, gone_at timestamptz, primary key (tenant_id, id), exclude using gist (tenant_id with =, room with =, during with &&));
         create unique index slot_code on public.slot (lower(code), tenant_id) where gone_at is null;
         create unique index slot_null on public.slot (tenant_id, code, room) nulls not distinct;
         create unique index slot_carry on public.slot (tenant_id, room, id) include (code);
         create table public.singleton (tenant_id uuid primary key, theme text, dark boolean not null default false);
         create table public.chain (tenant_id uuid not null, id int not null, next int, primary key (tenant_id, id) deferrable initially deferred);
         create unique index chain_next on public.chain (tenant_id, next) where next is not null;
         select saas.fence('public.slot'), saas.fence('public.singleton'), saas.fence('public.chain')",
    )
    .await;
}

#[tokio::test]
async fn triggers_that_refuse_guard_or_fill_as_their_caller_are_sound() {
    proven(
        "create table public.entry (tenant_id uuid not null, id uuid not null default gen_random_uuid(), label text not null, number bigint,
            total numeric generated always as (1) stored, primary key (tenant_id, id));
         create function public.never() returns trigger language plpgsql as $$ begin raise exception 'append only'; end $$;
         create function public.only_one() returns trigger language plpgsql as $$
         begin
            if exists (select from public.entry e where e.label = new.label) then raise exception 'taken'; end if;
            new.number := (select count(*) from public.entry);
            return new;
         end $$;
         create trigger never before update or delete on public.entry for each row execute function public.never();
         create trigger never_at_all before update or delete on public.entry for each statement execute function public.never();
         create trigger only_one before insert on public.entry for each row execute function public.only_one();
         create view public.entries with (security_invoker = true, security_barrier = true) as select * from public.entry where label <> '';
         create function public.file_entry() returns trigger language plpgsql as $$
         begin insert into public.entry (tenant_id, label) values (current_setting('saas.tenant_id')::uuid, new.label); return new; end $$;
         create trigger file_entry instead of insert on public.entries for each row execute function public.file_entry();
         create function public.labels(part text default '') returns setof text language sql stable as 'select label from public.entry where label like part';
         grant select, insert on public.entries to saas_app;
         select saas.fence('public.entry')",
    )
    .await;
}

#[tokio::test]
async fn rows_of_one_person_and_their_words_are_sound() {
    let database = proven(
        "create table public.diary (tenant_id uuid not null, id uuid not null default gen_random_uuid(), author uuid not null, line text, mood text check (mood in ('up', 'down')),
            primary key (tenant_id, id));
         select saas.fence('public.diary'), saas.fence_rows('public.diary', 'author', array['owner']);
         select saas.make_searchable('public.diary', '{line, mood}')",
    )
    .await;
    database.owner().await.execute("drop policy saas_rows on public.diary_words").await.unwrap();
    let report = attack(&database).await.unwrap();
    let member = |name: &str| report.leaks.iter().any(|l| l.attack == Attack::Member && l.object == name);
    assert!(member("public.diary_words") && !member("public.diary"), "{report}");
}

#[tokio::test]
async fn odd_names_places_and_types_are_sound() {
    proven(
        r#"create schema "Größe ""x""";
           create schema closed;
           grant usage on schema "Größe ""x""" to saas_app;
           create table "Größe ""x"""."Übergrößenträgerüberprüfungsänderungs" (tenant_id uuid not null, "İd; --" int not null, "a'b" text, primary key (tenant_id, "İd; --"));
           create table closed.vault (tenant_id uuid not null, id int not null, primary key (tenant_id, id));
           create type public.amount as (units bigint, currency text);
           create table public.odd (tenant_id uuid not null, id int not null, kind regclass not null, path jsonpath not null, at tid not null,
               price public.amount, prices public.amount[], snap pg_snapshot not null, cfg regconfig not null, grid int[][] not null, ip cidr not null,
               "char" "char" not null, doc xml, bits bit varying(7) not null, ranges int4multirange not null, primary key (tenant_id, id));
           create table public.base_note (tenant_id uuid not null, id uuid not null default gen_random_uuid(), body text, primary key (tenant_id, id));
           create unlogged table public.scratch (tenant_id uuid primary key, at timestamptz default now());
           create table public.by_tenant (tenant_id uuid not null, id int not null, primary key (tenant_id, id)) partition by hash (tenant_id);
           create table public.by_tenant_0 partition of public.by_tenant for values with (modulus 2, remainder 0);
           create table public.by_tenant_1 partition of public.by_tenant for values with (modulus 2, remainder 1);
           create table public.spare (tenant_id uuid not null, at date not null, primary key (tenant_id, at)) partition by range (at);
           create table public.spare_rest partition of public.spare default;
           select saas.fence('"Größe ""x"""."Übergrößenträgerüberprüfungsänderungs"'), saas.fence('closed.vault'), saas.fence('public.odd'),
                  saas.fence('public.base_note', 'select'), saas.fence('public.scratch'), saas.fence('public.by_tenant'), saas.fence('public.spare')"#,
    )
    .await;
}

// As many tables as a large application has.
#[tokio::test]
async fn three_hundred_tables_are_attacked() {
    let database = shop::start().await;
    let tables = "do $$ begin for n in 1..300 loop execute format(
            'create table public.t%1$s (tenant_id uuid not null, id uuid not null default gen_random_uuid(), parent uuid, name text not null,
                state text not null check (state in (''a'', ''b'')), done boolean, primary key (tenant_id, id), unique (tenant_id, name),
                foreign key (tenant_id, parent) references public.%2$s (tenant_id, id))',
            n, case when n = 1 then 'project' else 't' || (n - 1) end);
         perform saas.fence(format('public.t%s', n)::regclass); end loop; end $$";
    database.owner().await.execute(tables).await.unwrap();
    let report = assert_isolated!(&database);
    assert!(report.probes > 300 * 40, "{report}");
}
