//! Search behind row-level security: with an index, and without a way to another tenant's words.

use saas_core::{RequestContext, TenantContext, TenantTx};
use sqlx::{Executor, Row};

use crate::adopter::{Fixture, examine};

const TABLE: &str = "
    create table public.document (
        tenant_id uuid not null references saas.tenant (id), id int not null, title text not null, body text,
        primary key (tenant_id, id));
    insert into public.document
        select t.id, n, 'Report ' || n, case when n % 100 = 0 then 'the quick Fox of ' || t.slug else 'lorem ipsum' end
        from saas.tenant t, generate_series(1, 2000) n;
    select saas.fence('public.document');
    analyze public.document;";
const MAKE: &str = "select saas.make_searchable('public.document', '{title, body}', 'english');
                    analyze public.document_words";

/// Documents that hold all words, or a word that begins with a prefix.
const ALL_WORDS: &str = "
    select d.id
    from public.document d
    where d.tenant_id = $1 and d.id in (
        select w.id from public.document_words w
        where w.tenant_id = $1 and w.word = any (saas.words('english', $2))
        group by w.id
        having count(*) = cardinality(saas.words('english', $2)))
    order by d.id";
const PREFIX: &str = "
    select distinct w.id from public.document_words w
    where w.tenant_id = $1 and w.word >= $2 and w.word < saas.prefix_end($2)
    order by w.id";

async fn searchable() -> Fixture {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    owner.execute(sqlx::raw_sql(TABLE)).await.unwrap();
    owner.execute(sqlx::raw_sql(MAKE)).await.unwrap();
    fixture
}

async fn find(tx: &mut TenantTx, ctx: &RequestContext, statement: &'static str, what: &str) -> Vec<i32> {
    sqlx::query_scalar(statement).bind(ctx.tenant().as_uuid()).bind(what).fetch_all(&mut **tx).await.unwrap()
}

#[tokio::test]
async fn words_follow_their_rows() {
    let fixture = searchable().await;
    let (a, mut tx) = (&fixture.a, fixture.begin(&fixture.a).await);
    let hundreds: Vec<i32> = (1..=20).map(|n| n * 100).collect();
    assert_eq!(find(&mut tx, a, ALL_WORDS, "foxes quickly").await, hundreds, "as the configuration stems them");
    assert_eq!(find(&mut tx, a, ALL_WORDS, "fox 300").await, [300]);
    assert_eq!(
        find(&mut tx, a, PREFIX, "199").await,
        [199, 1990, 1991, 1992, 1993, 1994, 1995, 1996, 1997, 1998, 1999]
    );
    assert!(find(&mut tx, a, ALL_WORDS, "fox lorem").await.is_empty());

    let id = a.tenant().as_uuid();
    let change = "update public.document set body = 'a Zebra', title = 'x' where tenant_id = $1 and id = 300";
    sqlx::query(change).bind(id).execute(&mut *tx).await.unwrap();
    sqlx::query("insert into public.document values ($1, 9999, 'New', null)").bind(id).execute(&mut *tx).await.unwrap();
    sqlx::query("delete from public.document where tenant_id = $1 and id = 100")
        .bind(id)
        .execute(&mut *tx)
        .await
        .unwrap();
    assert_eq!(find(&mut tx, a, ALL_WORDS, "zebras").await, [300]);
    assert_eq!(find(&mut tx, a, ALL_WORDS, "new").await, [9999]);
    let left = find(&mut tx, a, ALL_WORDS, "fox").await;
    assert!(left.len() == 18 && !left.contains(&100) && !left.contains(&300));
    tx.commit().await.unwrap();
}

// T21
#[tokio::test]
async fn a_search_meets_only_the_tenants_own_words() {
    let fixture = searchable().await;
    let mut tx = fixture.begin(&fixture.a).await;
    for (statement, what) in [(ALL_WORDS, "tenant"), (PREFIX, "tenant")] {
        // B's id in the statement, A's transaction.
        assert!(find(&mut tx, &fixture.b, statement, what).await.is_empty());
    }
    let without_condition = "select count(*) from public.document_words where word = 'b'";
    let seen: i64 = sqlx::query_scalar(without_condition).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(seen, 0, "the slug of B is among B's words");
    for attack in [
        "insert into public.document_words select '{b}', 'stolen', 1",
        "update public.document_words set tenant_id = '{b}'",
        "truncate public.document_words",
    ] {
        let mut tx = fixture.begin(&fixture.a).await;
        let attack = attack.replace("{b}", &fixture.b.tenant().to_string());
        let refused = tx.execute(sqlx::AssertSqlSafe(attack)).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "42501");
    }
    let findings = examine(fixture.db.system().pool()).await;
    assert!(findings.is_empty(), "{findings:?}");
}

// T47
#[tokio::test]
async fn a_search_keeps_its_index_behind_the_policy() {
    let fixture = searchable().await;
    let mut tx = fixture.begin(&fixture.a).await;
    for (statement, what) in [(ALL_WORDS, "fox"), (PREFIX, "199")] {
        let explain = format!("explain {statement}");
        let plan: Vec<String> = sqlx::query(sqlx::AssertSqlSafe(explain))
            .bind(fixture.a.tenant().as_uuid())
            .bind(what)
            .fetch_all(&mut *tx)
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        let plan = plan.join("\n");
        let by_word = plan.lines().any(|line| line.contains("Index Cond") && line.contains("word"));
        assert!(by_word, "{plan}");
    }
}

#[tokio::test]
async fn what_cannot_be_searched_is_refused_with_the_remedy() {
    let fixture = Fixture::start().await;
    let mut owner = fixture.db.owner().await;
    owner.execute("create table public.loose (tenant_id uuid, id int)").await.unwrap();
    for (call, code) in [
        ("select saas.make_searchable('public.loose', '{id}')", "55000"),
        ("select saas.make_searchable('public.event', '{wat}')", "42703"),
        ("select saas.make_searchable('public.project', '{nothing}')", "42703"),
        ("select saas.make_searchable('public.project', '{}')", "42703"),
    ] {
        let refused = owner.execute(call).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().unwrap(), code, "{call}");
    }
}
