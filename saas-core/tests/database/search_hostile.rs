//! Search on tables that are made to break it: names, keys, triggers, partitions, and rows of one person.

use saas_core::{Actor, RequestContext, TenantContext, TenantTx, UserId};
use sqlx::{AssertSqlSafe, Executor};

use crate::adopter::{Fixture, code, examine};

async fn run(fixture: &Fixture, script: &str) {
    let result = fixture.db.owner().await.execute(sqlx::raw_sql(AssertSqlSafe(script.to_owned()))).await;
    assert!(result.is_ok(), "{script}: {result:?}");
}

/// As the first tenant; what it changed is kept.
async fn change(fixture: &Fixture, script: &str) {
    let script = script.replace("{a}", &format!("'{}'", fixture.a.tenant()));
    let mut tx = fixture.begin(&fixture.a).await;
    let result = (&mut *tx).execute(sqlx::raw_sql(AssertSqlSafe(script.clone()))).await;
    assert!(result.is_ok(), "{script}: {result:?}");
    tx.commit().await.unwrap();
}

/// The words that the first tenant sees, each with its key.
async fn words(fixture: &Fixture, table: &str, key: &str) -> Vec<String> {
    let mut tx = fixture.begin(&fixture.a).await;
    let sql = format!("select word || ' ' || {key}::text from {table} order by 1");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *tx).await.unwrap()
}

#[tokio::test]
async fn hostile_names_are_only_names() {
    let fixture = Fixture::start().await;
    // Columns called like what the function itself uses; quotes; a name of 62 bytes in two-byte letters.
    let long = "ü".repeat(31);
    run(
        &fixture,
        &format!(
            r#"create schema "odd ""schema";
               grant usage on schema "odd ""schema" to saas_app;
               create table "odd ""schema"."{long}" (
                   tenant_id uuid not null references saas.tenant (id), "id'; drop table saas.audit; --" int not null,
                   t text, w text, f text, new text, "Wörter %I %s $1" text,
                   primary key (tenant_id, "id'; drop table saas.audit; --"));
               select saas.fence('"odd ""schema"."{long}"');
               insert into "odd ""schema"."{long}" select id, 1, 'before' from saas.tenant;
               select saas.make_searchable('"odd ""schema"."{long}"', array['t', 'w', 'f', 'new', 'Wörter %I %s $1']);"#
        ),
    )
    .await;
    change(
        &fixture,
        &format!(
            r#"insert into "odd ""schema"."{long}" values ({{a}}, 2, 'tea', 'water', 'fire', 'news', 'drop ''em');
               update "odd ""schema"."{long}" set "Wörter %I %s $1" = 'gone' where t = 'before'"#
        ),
    )
    .await;
    let table = format!(r#""odd ""schema"."{}_words""#, "ü".repeat(28));
    let key = r#""id'; drop table saas.audit; --""#;
    let expected = ["before 1", "drop 2", "em 2", "fire 2", "gone 1", "news 2", "tea 2", "water 2"];
    assert_eq!(words(&fixture, &table, key).await, expected);
    assert_eq!(examine(fixture.db.tenants().pool()).await, []);
}

#[tokio::test]
async fn words_follow_whatever_changes_a_row() {
    let fixture = Fixture::start().await;
    run(
        &fixture,
        "create table public.page (tenant_id uuid not null, id int not null, title text, slug text, seen int not null default 0,
            loud text generated always as (upper(title)) stored, extra json, primary key (tenant_id, id));
         create function public.tidy() returns trigger language plpgsql as $$
         begin new.slug := 'slug' || new.seen; return new; end $$;
         create trigger tidy before insert or update on public.page for each row execute function public.tidy();
         select saas.fence('public.page');
         select saas.make_searchable('public.page', '{loud, slug, extra}')",
    )
    .await;
    change(&fixture, r#"insert into public.page (tenant_id, id, title, extra) values ({a}, 1, 'Tea', '{"a": "cup"}')"#)
        .await;
    let seen = || words(&fixture, "public.page_words", "id");
    assert_eq!(seen().await, ["a 1", "cup 1", "slug0 1", "tea 1"]);
    // The statement names neither a searched column nor one that it is made of.
    change(&fixture, "update public.page set seen = 7").await;
    assert_eq!(seen().await, ["a 1", "cup 1", "slug7 1", "tea 1"]);
    change(&fixture, "update public.page set id = 2, title = 'Milk', extra = null").await;
    assert_eq!(seen().await, ["milk 2", "slug7 2"]);
    change(
        &fixture,
        "insert into public.page (tenant_id, id, title) values ({a}, 2, 'x')
         on conflict (tenant_id, id) do update set title = 'Rice', seen = 8",
    )
    .await;
    assert_eq!(seen().await, ["rice 2", "slug8 2"]);
    change(&fixture, "delete from public.page").await;
    assert!(seen().await.is_empty());
    // Whoever empties the table empties its words with it, or is told so.
    change(&fixture, "insert into public.page (tenant_id, id, title) values ({a}, 3, 'Left')").await;
    let mut owner = fixture.db.owner().await;
    assert_eq!(code(owner.execute("truncate public.page").await), "0A000");
    owner.execute("truncate public.page cascade").await.unwrap();
    assert!(seen().await.is_empty());
}

#[tokio::test]
async fn words_follow_a_row_from_partition_to_partition() {
    let fixture = Fixture::start().await;
    run(
        &fixture,
        "create table public.log (tenant_id uuid not null, day date not null, line text, primary key (tenant_id, day)) partition by range (day);
         create table public.log_2026 partition of public.log for values from ('2026-01-01') to ('2027-01-01');
         insert into public.log select id, '2026-01-01', 'first' from saas.tenant;
         select saas.fence('public.log');
         select saas.make_searchable('public.log', '{line}');
         create table public.log_2027 partition of public.log for values from ('2027-01-01') to ('2028-01-01');
         select saas.fence_refresh('public.log')",
    )
    .await;
    change(&fixture, "insert into public.log values ({a}, '2027-05-05', 'later')").await;
    let seen = || words(&fixture, "public.log_words", "day");
    assert_eq!(seen().await, ["first 2026-01-01", "later 2027-05-05"]);
    change(&fixture, "update public.log set day = '2027-02-02', line = 'moved' where line = 'first'").await;
    assert_eq!(seen().await, ["later 2027-05-05", "moved 2027-02-02"]);
    change(&fixture, "delete from public.log where line = 'later'").await;
    assert_eq!(seen().await, ["moved 2027-02-02"]);
    assert_eq!(examine(fixture.db.tenants().pool()).await, []);
}

const NOTES: &str = "
    create table public.note (tenant_id uuid not null, id int not null, author uuid not null, body text, primary key (tenant_id, id));
    select saas.fence('public.note'), saas.fence_rows('public.note', 'author', array['owner']);";

async fn seen_by(fixture: &Fixture, ctx: &RequestContext) -> Vec<String> {
    let mut tx = TenantTx::begin(fixture.db.tenants(), ctx).await.unwrap();
    sqlx::query_scalar("select word from public.note_words order by 1").fetch_all(&mut *tx).await.unwrap()
}

#[tokio::test]
async fn words_of_one_persons_rows_are_that_persons() {
    let fixture = Fixture::start().await;
    let [ada, ben] = [(); 2].map(|()| UserId::mint(fixture.db.clock()));
    let of = |user: UserId| RequestContext::new(fixture.a.tenant(), Actor::user(user), fixture.db.clock());
    run(&fixture, NOTES).await;
    let tenant = fixture.a.tenant();
    run(&fixture, &format!("insert into public.note values ('{tenant}', 1, '{ada}', 'early')")).await;
    run(&fixture, "select saas.make_searchable('public.note', '{body}')").await;
    for (id, user) in [(2, ada), (3, ben)] {
        let mut tx = TenantTx::begin(fixture.db.tenants(), &of(user)).await.unwrap();
        let body = format!("diary{id}");
        sqlx::query("insert into public.note values ($1, $2, $3, $4)")
            .bind(tenant.as_uuid())
            .bind(id)
            .bind(user.as_uuid())
            .bind(body)
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    assert_eq!(seen_by(&fixture, &of(ada)).await, ["diary2", "early"]);
    assert_eq!(seen_by(&fixture, &of(ben)).await, ["diary3"]);
    let boss = of(ben).with_role("owner".parse().unwrap());
    assert_eq!(seen_by(&fixture, &boss).await, ["diary2", "diary3", "early"]);
    // A row that is handed over takes its words along.
    let mut tx = TenantTx::begin(fixture.db.tenants(), &boss).await.unwrap();
    sqlx::query("update public.note set author = $2 where tenant_id = $1 and id = 2")
        .bind(tenant.as_uuid())
        .bind(ben.as_uuid())
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(seen_by(&fixture, &of(ada)).await, ["early"]);
    assert_eq!(seen_by(&fixture, &of(ben)).await, ["diary2", "diary3"]);
    // Another rule for the rows is one for the words as well; one about another column is refused.
    run(&fixture, "select saas.fence_rows('public.note', 'author', '{}')").await;
    assert_eq!(seen_by(&fixture, &boss).await, ["diary2", "diary3"]);
    assert_eq!(examine(fixture.db.tenants().pool()).await, []);
    run(&fixture, "alter table public.note add reader uuid not null default gen_random_uuid()").await;
    let mut owner = fixture.db.owner().await;
    assert_eq!(code(owner.execute("select saas.fence_rows('public.note', 'reader', '{}')").await), "55000");
}

#[tokio::test]
async fn rows_are_not_closed_while_their_words_stay_open() {
    let fixture = Fixture::start().await;
    run(
        &fixture,
        "create table public.note (tenant_id uuid not null, id int not null, author uuid not null, word text, primary key (tenant_id, id));
         create table public.term (tenant_id uuid not null, word text not null, primary key (tenant_id, word));
         select saas.fence('public.note'), saas.fence('public.term'), saas.make_searchable('public.note', '{word}')",
    )
    .await;
    let mut owner = fixture.db.owner().await;
    for (call, refusal) in [
        ("select saas.fence_rows('public.note', 'author', '{}')", "55000"),
        ("select saas.make_searchable('public.note', '{author}')", "42P07"),
        ("select saas.make_searchable('public.note', '{author, null}')", "42703"),
        ("select saas.make_searchable('public.term', '{word}')", "42701"),
    ] {
        let error = owner.execute(call).await.unwrap_err();
        let error = error.as_database_error().unwrap();
        assert_eq!(error.code().unwrap(), refusal, "{call}: {error}");
        assert!(error.message().contains("public."), "{call}: {error}");
    }
    owner
        .execute(sqlx::raw_sql(
            "drop table public.note_words; drop trigger \"0_saas_words\" on public.note;
             drop trigger \"0_saas_words_again\" on public.note;
             select saas.fence_rows('public.note', 'author', '{}'), saas.make_searchable('public.note', '{word}')",
        ))
        .await
        .unwrap();
}
