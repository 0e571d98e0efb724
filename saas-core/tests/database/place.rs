//! Places: a tenant in a schema of its own, the door that refuses whoever comes to an old address, and units of work.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use saas_core::{
    CoreError, ErrorKind, RequestContext, SessionBinding, TenantContext, TenantId, TenantPool, TenantTx,
    db::{Errand, Generation, Literal, Place, SchemaName, TenantWork},
    testing::TestDatabase,
};
use sqlx::{Executor, Row, postgres::PgRow};

use crate::{
    adopter::Fixture,
    transactions::{proxy_of, through_proxy, through_proxy_with},
};

/// A binding that a test moves tenants about with.
#[derive(Debug)]
struct Moving {
    tenants: TenantPool,
    schema: Option<SchemaName>,
    /// What it believes, and what it learns when it was refused.
    generation: Mutex<(Generation, Generation)>,
    refused: AtomicUsize,
}

impl Moving {
    fn new(tenants: &TenantPool, known: i64, learns: i64) -> Self {
        let generation = Mutex::new((Generation::new(known), Generation::new(learns)));
        Self { tenants: tenants.clone(), schema: None, generation, refused: AtomicUsize::new(0) }
    }
}

#[async_trait]
impl SessionBinding for Moving {
    async fn place(&self, _: &dyn TenantContext) -> Result<Place, CoreError> {
        let place = Place::pooled(&self.tenants).at_generation(self.generation.lock().unwrap().0);
        Ok(match &self.schema {
            Some(schema) => place.in_schema(schema.clone()),
            None => place,
        })
    }

    fn refused(&self, _: TenantId) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut generation = self.generation.lock().unwrap();
        generation.0 = generation.1;
    }
}

async fn set_resident(db: &TestDatabase, tenant: TenantId, generation: i64, state: &str) {
    sqlx::query(
        "insert into saas.resident (tenant_id, generation, state) values ($1, $2, $3)
         on conflict (tenant_id) do update set generation = excluded.generation, state = excluded.state",
    )
    .bind(tenant.as_uuid())
    .bind(generation)
    .bind(state)
    .execute(&mut db.owner().await)
    .await
    .unwrap();
}

#[tokio::test]
async fn who_comes_to_an_old_address_is_sent_to_the_new_one() {
    let fixture = Fixture::start().await;
    let tenant = fixture.a.tenant();
    // Never moved: no row, generation 0.
    let never = Moving::new(fixture.db.tenants(), 0, 9);
    TenantTx::begin(&never, &fixture.a).await.unwrap().commit().await.unwrap();
    assert_eq!(never.refused.load(Ordering::Relaxed), 0);

    set_resident(&fixture.db, tenant, 2, "open").await;
    let stale = Moving::new(fixture.db.tenants(), 0, 2);
    TenantTx::begin(&stale, &fixture.a).await.unwrap().commit().await.unwrap();
    assert_eq!(stale.refused.load(Ordering::Relaxed), 1, "asked once more, and let in");

    let hopeless = Moving::new(fixture.db.tenants(), 1, 1);
    let error = TenantTx::begin(&hopeless, &fixture.a).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("tenant_moved", ErrorKind::Unavailable));
    assert!(error.is_retryable());
    let error = hopeless.read_once(&fixture.a, "select 1", &[]).await.unwrap_err();
    assert_eq!(error.code(), "tenant_moved");
    // The other tenant does not notice.
    TenantTx::begin(&Moving::new(fixture.db.tenants(), 0, 0), &fixture.b).await.unwrap();
}

#[tokio::test]
async fn a_closed_door_lets_nobody_in_and_a_read_only_one_no_writer() {
    let fixture = Fixture::start().await;
    let binding = Moving::new(fixture.db.tenants(), 0, 0);
    set_resident(&fixture.db, fixture.a.tenant(), 0, "closed").await;
    assert_eq!(TenantTx::begin(&binding, &fixture.a).await.unwrap_err().code(), "tenant_moved");
    set_resident(&fixture.db, fixture.a.tenant(), 0, "read_only").await;
    let projects = binding.read_once(&fixture.a, "select count(*) from public.project", &[]).await.unwrap();
    assert_eq!(projects[0].get::<i64, _>(0), 1);
    let mut tx = TenantTx::begin(&binding, &fixture.a).await.unwrap();
    let refused = tx.execute("delete from public.task").await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "25006", "read-only transaction");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_the_door_waits_for_who_is_in_and_stops_who_comes() {
    let fixture = Fixture::start().await;
    let tenant = fixture.a.tenant();
    let binding = Arc::new(Moving::new(fixture.db.tenants(), 0, 1));
    let inside = TenantTx::begin(&*binding, &fixture.a).await.unwrap();
    set_resident(&fixture.db, tenant, 0, "closed").await;
    let mut mover = fixture.db.owner().await;
    let free = "select pg_try_advisory_lock(saas.door($1))";
    let locked: bool = sqlx::query_scalar(free).bind(tenant.as_uuid()).fetch_one(&mut mover).await.unwrap();
    assert!(!locked, "somebody is still in");
    inside.commit().await.unwrap();
    sqlx::query("select pg_advisory_lock(saas.door($1))").bind(tenant.as_uuid()).execute(&mut mover).await.unwrap();

    // Who comes now waits for the lock, then is refused, then finds the new address.
    let ctx = fixture.a.clone();
    let latecomer = tokio::spawn({
        let binding = Arc::clone(&binding);
        async move { TenantTx::begin(&*binding, &ctx).await?.commit().await }
    });
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut mover).await.unwrap() == 0 {}
    set_resident(&fixture.db, tenant, 1, "open").await;
    sqlx::query("select pg_advisory_unlock(saas.door($1))").bind(tenant.as_uuid()).execute(&mut mover).await.unwrap();
    latecomer.await.unwrap().unwrap();
    assert_eq!(binding.refused.load(Ordering::Relaxed), 1);
}

/// Tables of the same names in a schema of each tenant's own, with a type of its own as well.
async fn own_schema(fixture: &Fixture, ctx: &RequestContext) -> Moving {
    let schema = SchemaName::of(ctx.tenant());
    let ddl = format!(
        "create schema {schema};
         grant usage on schema {schema} to saas_app, saas_system;
         set search_path = {schema};
         create type colour as enum ('red', 'green');
         create table note (
            tenant_id  uuid not null references saas.tenant (id),
            id         int not null,
            colour     colour not null,
            body       text not null,
            primary key (tenant_id, id)
         );
         select saas.fence('note');
         insert into note values ('{tenant}', 1, 'green', 'of {tenant}');",
        tenant = ctx.tenant()
    );
    fixture.db.owner().await.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(ddl))).await.unwrap();
    Moving { schema: Some(schema), ..Moving::new(fixture.db.tenants(), 0, 0) }
}

// T29
#[tokio::test]
async fn no_plan_of_one_schema_ever_serves_another() {
    let fixture = Fixture::start().await;
    let proxy = proxy_of(&fixture.db);
    let (mut a, mut b) = (own_schema(&fixture, &fixture.a).await, own_schema(&fixture, &fixture.b).await);
    for mode in ["auto", "force_generic_plan", "force_custom_plan"] {
        let alter = format!("alter role saas_app in database {} set plan_cache_mode = {mode}", fixture.db.name());
        fixture.db.owner().await.execute(sqlx::AssertSqlSafe(alter)).await.unwrap();
        let one = through_proxy(&fixture.db, &proxy).await;
        (a.tenants, b.tenants) = (one.clone(), one);
        for _ in 0..12 {
            for (binding, ctx) in [(&a, &fixture.a), (&b, &fixture.b)] {
                let mut tx = TenantTx::begin(binding, ctx).await.unwrap();
                let (body, red): (String, bool) =
                    sqlx::query_as("select body, colour = 'red' from note where tenant_id = $1 and id = $2")
                        .bind(ctx.tenant().as_uuid())
                        .bind(1)
                        .fetch_one(&mut *tx)
                        .await
                        .unwrap();
                assert_eq!((body, red), (format!("of {}", ctx.tenant()), false));
                let changed = sqlx::query("update note set body = body where id = 1").execute(&mut *tx).await.unwrap();
                assert_eq!(changed.rows_affected(), 1);
                tx.commit().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_schema_of_its_own_shows_neither_the_shared_tables_nor_another_schema() {
    let fixture = Fixture::start().await;
    let (a, _b) = (own_schema(&fixture, &fixture.a).await, own_schema(&fixture, &fixture.b).await);
    let mut tx = TenantTx::begin(&a, &fixture.a).await.unwrap();
    let shared = tx.execute("select count(*) from project").await.unwrap_err();
    assert_eq!(shared.as_database_error().unwrap().code().unwrap(), "42P01", "no silent fall to the shared table");
    drop(tx);
    // Bound as A in B's schema, by whatever mistake, there is nothing to see.
    let lost = Moving { schema: Some(SchemaName::of(fixture.b.tenant())), ..Moving::new(fixture.db.tenants(), 0, 0) };
    let rows = lost.read_once(&fixture.a, "select body from note", &[]).await.unwrap();
    assert!(rows.is_empty());
    let mut tx = TenantTx::begin(&lost, &fixture.a).await.unwrap();
    let foreign = format!("insert into note values ('{}', 2, 'red', 'lost')", fixture.b.tenant());
    let refused = tx.execute(sqlx::AssertSqlSafe(foreign)).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "42501");
    drop(tx);
    // And the next transaction of the connection has the usual path again.
    let shared: i64 = fixture
        .db
        .tenants()
        .read(&fixture.a, async |tx| {
            sqlx::query_scalar("select count(*) from project")
                .fetch_one(&mut **tx)
                .await
                .map_err(CoreError::from_database)
        })
        .await
        .unwrap();
    assert_eq!(shared, 1);
}

#[test]
fn names_of_schemas_are_checked() {
    for good in ["a", "saas_t_1", "_x", "select"] {
        assert_eq!(good.parse::<SchemaName>().unwrap().as_str(), good);
    }
    let long = "a".repeat(64);
    for bad in ["", "1a", "A", "a-b", "a\"b", "a b", "ä", "pg_temp", "pg_x", "saas", "public", &long] {
        bad.parse::<SchemaName>().unwrap_err();
    }
}

async fn add(tx: &mut TenantTx, name: &str) -> Result<u64, CoreError> {
    sqlx::query("insert into public.project (tenant_id, name) values ($1, $2)")
        .bind(tx.tenant().as_uuid())
        .bind(name)
        .execute(&mut **tx)
        .await
        .map(|done| done.rows_affected())
        .map_err(CoreError::from_database)
}

const COUNT: &str = "select count(*) from public.project where tenant_id = $1";

fn count(rows: &[PgRow]) -> i64 {
    rows[0].get(0)
}

#[tokio::test]
async fn a_unit_of_work_is_stored_when_it_succeeds_and_only_then() {
    let fixture = Fixture::start().await;
    let tenants = fixture.db.tenants();
    let id = [Literal::Uuid(fixture.a.tenant().as_uuid())];
    let done = tenants.write(&fixture.a, async |tx| add(tx, "kept").await).await.unwrap();
    assert_eq!(done, 1);
    let error = tenants
        .write(&fixture.a, async |tx| {
            add(tx, "undone").await?;
            Err::<(), _>(CoreError::NotFound { what: "reason to go on" })
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = tenants.read(&fixture.a, async |tx| add(tx, "read only").await).await.unwrap_err();
    assert_eq!(error.code(), "statement");
    assert_eq!(count(&tenants.read_once(&fixture.a, COUNT, &id).await.unwrap()), 2);
    // Of the other tenant it sees nothing, whatever the statement asks for.
    assert_eq!(count(&tenants.read_once(&fixture.b, COUNT, &id).await.unwrap()), 0);
    let writing = "insert into public.project (tenant_id, name) values ($1, 'x') returning name";
    let error = tenants.read_once(&fixture.a, writing, &id).await.unwrap_err();
    assert_eq!(error.code(), "statement", "read-only transaction");
}

const ADD: &str = "insert into public.project (tenant_id, name) values ($1, gen_random_uuid()::text) returning name";

#[tokio::test]
async fn a_single_write_is_stored_whole_or_refused() {
    let fixture = Fixture::start().await;
    let tenants = fixture.db.tenants();
    let (a, b) = (fixture.a.tenant().as_uuid(), fixture.b.tenant().as_uuid());
    let stored = async || count(&tenants.read_once(&fixture.a, COUNT, &[Literal::Uuid(a)]).await.unwrap());
    let before = stored().await;
    let rows = tenants.write_once(&fixture.a, ADD, &[Literal::Uuid(a)]).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(stored().await, before + 1);
    // Another tenant's row, and one that fails only at the commit: refused, known to be.
    let error = tenants.write_once(&fixture.a, ADD, &[Literal::Uuid(b)]).await.unwrap_err();
    assert_ne!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    fixture
        .db
        .owner()
        .await
        .execute(
            "create function public.no() returns trigger language plpgsql as $$ begin
                 raise exception using errcode = '23514', message = 'no'; end $$;
             create constraint trigger late after insert on public.project deferrable initially deferred
                 for each row execute function public.no()",
        )
        .await
        .unwrap();
    let error = tenants.write_once(&fixture.a, ADD, &[Literal::Uuid(a)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(stored().await, before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_cut_a_single_write_says_that_its_outcome_is_unknown() {
    let fixture = Fixture::start().await;
    let proxy = proxy_of(&fixture.db);
    let tenants = through_proxy(&fixture.db, &proxy).await;
    let id = [Literal::Uuid(fixture.a.tenant().as_uuid())];
    // Prepared, so that the next one is a single question.
    tenants.write_once(&fixture.a, ADD, &id).await.unwrap();
    drop(tenants.pool().acquire().await.unwrap());
    let held = tenants.pool().acquire().await.unwrap();
    let before = count(&fixture.db.tenants().read_once(&fixture.a, COUNT, &id).await.unwrap());
    // The first answer is to the pool's own ping on the release of `held`.
    proxy.cut_instead_of_answer(1);
    drop(held);
    let error = tenants.write_once(&fixture.a, ADD, &id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    // The server had got the question, and acts on it as soon as it can.
    while count(&fixture.db.tenants().read_once(&fixture.a, COUNT, &id).await.unwrap()) == before {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn values_of_a_single_read_come_back_as_they_went() {
    let fixture = Fixture::start().await;
    let hostile = "'; commit; drop table public.project; --\\' \u{1f9fe} $1";
    let at = "2026-02-28T23:59:59.123456Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    let values = [
        Literal::Text(hostile),
        Literal::Integer(i64::MIN),
        Literal::Boolean(true),
        Literal::Timestamp(at),
        Literal::Uuid(fixture.a.tenant().as_uuid()),
    ];
    for setting in ["on", "off"] {
        let alter = format!(
            "alter role saas_app in database {} set standard_conforming_strings = {setting}",
            fixture.db.name()
        );
        fixture.db.owner().await.execute(sqlx::AssertSqlSafe(alter)).await.unwrap();
        let proxy = proxy_of(&fixture.db);
        let tenants = through_proxy(&fixture.db, &proxy).await;
        let rows = tenants.read_once(&fixture.a, "select $1, $2, $3, $4, $5, $1 as again", &values).await.unwrap();
        let row = &rows[0];
        assert_eq!(row.get::<String, _>(0), hostile);
        assert_eq!(row.get::<i64, _>(1), i64::MIN);
        assert!(row.get::<bool, _>(2));
        assert_eq!(row.get::<chrono::DateTime<chrono::Utc>, _>(3), at);
        assert_eq!(row.get::<uuid::Uuid, _>(4), fixture.a.tenant().as_uuid());
        assert_eq!(row.get::<String, _>("again"), hostile);
        assert!(tenants.read_once(&fixture.a, "select 1 where false", &[]).await.unwrap().is_empty());
        let many = tenants.read_once(&fixture.a, "select generate_series(1, 1000)", &[]).await.unwrap();
        assert_eq!(many.len(), 1000);
    }
}

#[tokio::test]
async fn flights_of_a_write_a_read_and_single_statements() {
    let fixture = Fixture::start().await;
    let proxy = proxy_of(&fixture.db);
    // Without the release's background work in between: each unit on a connection that is at rest.
    let id = [Literal::Uuid(fixture.a.tenant().as_uuid())];
    let tenants = through_proxy_with(saas_core::db::pool_options(), &fixture.db, &proxy).await;
    let work = async |tx: &mut TenantTx| {
        sqlx::query_scalar::<_, i64>(COUNT)
            .bind(tx.tenant().as_uuid())
            .fetch_one(&mut **tx)
            .await
            .map_err(CoreError::from_database)
    };
    for _ in 0..2 {
        tenants.write(&fixture.a, work).await.unwrap();
        tenants.read_once(&fixture.a, COUNT, &id).await.unwrap();
        tenants.write_once(&fixture.a, ADD, &id).await.unwrap();
    }
    let mut flights = Vec::new();
    for unit in 0..4 {
        // The only connection is free again once its release is through.
        drop(tenants.pool().acquire().await.unwrap());
        drop(tenants.pool().acquire().await.unwrap());
        let held = tenants.pool().acquire().await.unwrap();
        let before = proxy.flights();
        drop(held);
        match unit {
            0 => drop(tenants.write(&fixture.a, work).await.unwrap()),
            1 => drop(tenants.read(&fixture.a, work).await.unwrap()),
            2 => drop(tenants.read_once(&fixture.a, COUNT, &id).await.unwrap()),
            _ => drop(tenants.write_once(&fixture.a, ADD, &id).await.unwrap()),
        }
        // One is the pool's own ping on the release of `held`.
        flights.push(proxy.flights() - before - 1);
    }
    assert_eq!(flights, [3, 2, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_read_dropped_at_any_poll_leaves_nothing_behind() {
    let fixture = Fixture::start().await;
    let proxy = proxy_of(&fixture.db);
    proxy.delay(std::time::Duration::from_micros(250));
    let tenants = through_proxy(&fixture.db, &proxy).await;
    let id = [Literal::Uuid(fixture.b.tenant().as_uuid())];
    for cut in 0..60_u64 {
        let read = tenants.read_once(&fixture.a, "select count(*) from public.project", &[]);
        let patience = std::time::Duration::from_micros(50 * cut);
        drop(tokio::time::timeout(patience, read).await);
        // The next one asks as B, and gets B's answer.
        let rows = tenants.read_once(&fixture.b, COUNT, &id).await.unwrap();
        assert_eq!(count(&rows), 1, "after {patience:?}");
        assert_eq!(tenants.write(&fixture.b, async |tx| add(tx, &format!("p{cut}")).await).await.unwrap(), 1);
        sqlx::query("delete from public.project where name like 'p%'")
            .execute(&mut fixture.db.owner().await)
            .await
            .unwrap();
    }
    let bodies = join_all((0..8).map(|_| tenants.read_once(&fixture.b, COUNT, &id))).await;
    assert!(bodies.into_iter().all(|rows| count(&rows.unwrap()) == 1));
}

#[tokio::test]
async fn errands_of_several_tenants_are_stored_together_each_by_its_own_tenant_or_not_at_all() {
    const PATIENCE: Duration = Duration::from_millis(50);
    let fixture = Fixture::start().await;
    let tenants = fixture.db.tenants();
    let (a, b) = (fixture.a.tenant().as_uuid(), fixture.b.tenant().as_uuid());
    let errand =
        |ctx: &RequestContext, statement, id| Errand::new(ctx.clone(), statement, &[Literal::Uuid(id)]).unwrap();
    let stored = async |ctx: &RequestContext| {
        count(&tenants.read_once(ctx, COUNT, &[Literal::Uuid(ctx.tenant().as_uuid())]).await.unwrap())
    };
    let before = (stored(&fixture.a).await, stored(&fixture.b).await);
    let errands = [
        errand(&fixture.a, ADD, a),
        errand(&fixture.b, ADD, b),
        errand(&fixture.b, COUNT, b),
        errand(&fixture.b, COUNT, a),
        errand(&fixture.a, COUNT, a),
    ];
    // On sessions that know neither statement, one of them, and both.
    for round in 1..=3 {
        let rows = tenants.write_errands(&errands.each_ref(), PATIENCE).await.unwrap();
        let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1; 5]);
        let counts = [count(&rows[2]), count(&rows[3]), count(&rows[4])];
        assert_eq!(counts, [before.1 + round, 0, before.0 + round], "each sees its own rows and no others");
        tenants.write_errand(&errands[2]).await.unwrap();
    }
    assert_eq!((stored(&fixture.a).await, stored(&fixture.b).await), (before.0 + 3, before.1 + 3));

    // One that writes for another tenant undoes all of them, and so does one that would have to wait.
    let foreign = [errand(&fixture.a, ADD, a), errand(&fixture.b, ADD, a)];
    let error = tenants.write_errands(&foreign.each_ref(), PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    let mut owner = fixture.db.owner().await;
    owner.execute("begin; lock table public.project in share mode").await.unwrap();
    let error = tenants.write_errands(&[&errands[0]], PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    owner.execute("rollback").await.unwrap();
    assert_eq!((stored(&fixture.a).await, stored(&fixture.b).await), (before.0 + 3, before.1 + 3));

    // Where each tenant has a place of its own, there is no transaction that both could share.
    let moving = Moving::new(tenants, 0, 0);
    let error = moving.write_errands(&errands.each_ref(), PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(tenants.write_errands(&[], PATIENCE).await.unwrap().is_empty());
}
