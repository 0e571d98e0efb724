//! Rows for tables of any shape; and an honest word about those that cannot be filled.

use saas_core::{ErrorKind, testing::TestDatabase};
use saas_tenancy::{
    assert_isolated,
    testing::{Attack, Report, Target, attack},
};
use sqlx::Executor as _;

use crate::shop;

/// Types, checks, domains, partitions and circles that adopters have.
const SHAPES: &str = "
    create type public.mood as enum ('calm', 'busy');
    create type public.span as range (subtype = int4);
    create domain public.percent as numeric(5, 2) check (value between 0 and 1);
    create domain public.code as text not null constraint code_form check (value ~ '^[A-Z]{3}$');
    create table public.shape (
        tenant_id   uuid not null references saas.tenant (id),
        id          bigint generated always as identity,
        mood        public.mood not null,
        moods       public.mood[] not null check (cardinality(moods) > 0),
        share       public.percent not null,
        currency    public.code,
        span        public.span not null,
        during      tstzrange,
        state       text not null check (state in ('open', 'done')),
        digest      bytea not null check (octet_length(digest) = 32),
        token       text not null check (char_length(token) = 64 and token ~ '^[0-9a-f]+$'),
        mail        text not null check (mail like '%@%'),
        begins      date not null,
        ends        date not null,
        price       numeric(4, 2) not null,
        short       varchar(3) not null,
        flag        boolean not null,
        extra       jsonb not null check (jsonb_typeof(extra) = 'object'),
        area        box,
        net         inet not null,
        one         text,
        other       text,
        doubled     numeric generated always as (price * 2) stored,
        primary key (tenant_id, id),
        unique (tenant_id, short),
        check (ends > begins),
        check (num_nonnulls(one, other) = 1)
    );
    create table public.place (
        tenant_id  uuid not null,
        region     text not null,
        year       int not null,
        id         uuid not null default gen_random_uuid(),
        primary key (tenant_id, region, year, id)
    ) partition by list (region);
    create table public.place_eu partition of public.place for values in ('eu', 'uk') partition by range (year);
    create table public.place_eu_old partition of public.place_eu for values from (minvalue) to (2000);
    create table public.place_eu_new partition of public.place_eu for values from (2000) to (maxvalue);
    create table public.place_us partition of public.place for values in ('us');
    create table public.bucket (tenant_id uuid not null, id uuid not null default gen_random_uuid(), primary key (tenant_id, id))
        partition by hash (id);
    create table public.bucket_0 partition of public.bucket for values with (modulus 2, remainder 0);
    create table public.bucket_1 partition of public.bucket for values with (modulus 2, remainder 1);
    create table public.employee (
        tenant_id uuid not null, id uuid not null default gen_random_uuid(), boss uuid, unit uuid, name text not null,
        primary key (tenant_id, id), foreign key (tenant_id, boss) references public.employee (tenant_id, id) deferrable initially deferred
    );
    create table public.unit (
        tenant_id uuid not null, id uuid not null default gen_random_uuid(), head uuid not null,
        primary key (tenant_id, id), foreign key (tenant_id, head) references public.employee (tenant_id, id)
    );
    alter table public.employee add foreign key (tenant_id, unit) references public.unit (tenant_id, id);
    create table public.setting (tenant_id uuid primary key, \"Odd \"\"name\" text not null);
    create schema \"Other schema\";
    grant usage on schema \"Other schema\" to saas_app;
    create table \"Other schema\".\"order\" (tenant_id uuid not null, \"select\" text, primary key (tenant_id));
    select saas.fence('public.shape'), saas.fence('public.place'), saas.fence('public.bucket'), saas.fence('public.employee'),
           saas.fence('public.unit'), saas.fence('public.setting'), saas.fence('\"Other schema\".\"order\"');";

async fn with(tables: &'static str) -> TestDatabase {
    let database = shop::start().await;
    database.owner().await.execute(tables).await.unwrap();
    database
}

fn objects(report: &Report) -> Vec<&str> {
    report.unproven.iter().map(|unproven| unproven.object.as_str()).collect()
}

#[tokio::test]
async fn tables_of_every_shape_are_filled_and_attacked() {
    let database = with(SHAPES).await;
    drop(assert_isolated!(&database));
    // A fault in any of them would have been seen: each was really filled.
    let mut owner = database.owner().await;
    for table in [
        "public.shape",
        "public.place",
        "public.bucket",
        "public.employee",
        "public.unit",
        "public.setting",
        "\"Other schema\".\"order\"",
    ] {
        let open = format!("alter table {table} disable row level security");
        owner.execute(sqlx::AssertSqlSafe(open)).await.unwrap();
    }
    owner.execute("grant select on public.place_eu_old, public.bucket_1 to saas_app").await.unwrap();
    let report = attack(&database).await.unwrap();
    let leaking = |name: &str| report.leaks.iter().any(|leak| leak.object == name && leak.attack == Attack::Select);
    for table in [
        "public.shape",
        "public.place",
        "public.place_eu_old",
        "public.bucket",
        "public.bucket_1",
        "public.employee",
        "public.unit",
        "public.setting",
        "\"Other schema\".\"order\"",
    ] {
        assert!(leaking(table), "{table}\n{report}");
    }
}

#[tokio::test]
async fn nothing_of_the_attack_stays() {
    let database = shop::start().await;
    drop(assert_isolated!(&database));
    let mut owner = database.owner().await;
    let rows: i64 = sqlx::query_scalar(
        "select (select count(*) from public.project) + (select count(*) from public.task) + (select count(*) from public.event)
              + (select count(*) from saas.tenant) + (select count(*) from saas.membership) + (select count(*) from saas.audit)
              + (select count(*) from pg_largeobject_metadata)",
    )
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn a_circle_of_required_rows_is_reported() {
    let database = with(
        "create table public.hen (tenant_id uuid not null, id uuid not null, egg uuid not null, primary key (tenant_id, id));
         create table public.egg (tenant_id uuid not null, id uuid not null, hen uuid not null, primary key (tenant_id, id),
            foreign key (tenant_id, hen) references public.hen (tenant_id, id) deferrable initially deferred);
         alter table public.hen add foreign key (tenant_id, egg) references public.egg (tenant_id, id) deferrable initially deferred;
         select saas.fence('public.hen'), saas.fence('public.egg')",
    )
    .await;
    let report = attack(&database).await.unwrap();
    assert!(!report.is_isolated(), "a hole in the proof is no proof");
    assert_eq!(objects(&report), ["public.hen", "public.egg"], "{report}");
    assert!(report.unproven[0].reason.contains("circle"), "{report}");
    let both = "insert into public.hen values ($1, $1, $1); insert into public.egg values ($1, $1, $1)";
    let target = Target::from(&database).with_seed("public.hen", both).with_seed("public.egg", "select 'laid above'");
    drop(assert_isolated!(target));
}

#[tokio::test]
async fn a_recipe_fills_what_cannot_be_guessed() {
    let tables = "create table public.prime (tenant_id uuid not null, n int not null, primary key (tenant_id, n),
            check (md5(n::text) = 'c6755a65a1ff02e9db3a44fd2459df3e'));
         create table public.multiple (tenant_id uuid not null, n int not null, primary key (tenant_id),
            foreign key (tenant_id, n) references public.prime (tenant_id, n));
         select saas.fence('public.prime'), saas.fence('public.multiple')";
    let database = with(tables).await;
    let report = attack(&database).await.unwrap();
    assert_eq!(objects(&report), ["public.prime", "public.multiple"], "{report}");
    assert!(report.unproven[0].reason.contains("with_seed"), "{report}");
    assert!(report.unproven[1].reason.contains("needs a row of public.prime"), "{report}");
    let target = Target::from(&database).with_seed("public.prime", "insert into public.prime values ($1, 104729)");
    drop(assert_isolated!(target.clone()));
    database.owner().await.execute("alter table public.prime disable row level security").await.unwrap();
    let report = attack(target).await.unwrap();
    assert!(report.leaks.iter().any(|leak| leak.object == "public.prime" && leak.attack == Attack::Select), "{report}");
}

#[tokio::test]
async fn logins_that_prove_nothing_are_refused() {
    let database = shop::start().await;
    let as_itself = Target::new(database.options("saas_app"), database.options("saas_app"));
    let refused = attack(as_itself).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Misconfigured);
    assert!(refused.to_string().contains("superuser"), "{refused}");
    let all_powerful = Target::new(database.owner_options(), database.owner_options());
    assert_eq!(attack(all_powerful).await.unwrap_err().code(), "privileged_role");
}

#[tokio::test]
#[should_panic(expected = "select public.project")]
async fn the_assertion_fails_with_the_statement_that_leaked() {
    let database = with("alter table public.project disable row level security").await;
    drop(assert_isolated!(&database));
}

#[tokio::test]
async fn a_report_is_for_people_and_for_machines() {
    let database = with("grant truncate on public.event to saas_app").await;
    let report = attack(&database).await.unwrap();
    let text = report.to_string();
    assert!(text.contains("leak      truncate public.event: every tenant's rows are gone"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["leaks"][0]["attack"], "truncate");
    assert_eq!(json["leaks"][0]["object"], "public.event");
    assert!(json["probes"].as_u64().unwrap() > 100);
    assert_eq!(json["unproven"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_function_that_refused_every_call_is_reported() {
    let database = with(
        "create function public.guarded(code text) returns text language plpgsql security definer set search_path = '' as $$
         begin
            if code <> 'open sesame' then raise exception 'wrong code'; end if;
            return (select string_agg(name, ',') from public.project);
         end $$",
    )
    .await;
    let report = attack(&database).await.unwrap();
    assert_eq!(objects(&report), ["public.guarded(text)"], "{report}");
    assert!(report.unproven[0].reason.contains("refused every call"), "{report}");
    // What it may not call at all is no hole in the proof.
    database.owner().await.execute("revoke execute on function public.guarded from public").await.unwrap();
    drop(assert_isolated!(&database));
}
