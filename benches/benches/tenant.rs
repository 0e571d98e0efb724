//! What isolation costs: a tenant's units of work beside plain queries, counted and timed on a network with a delay, and
//! policies beside the same condition without them.
//!
//! Contenders run in turn, round by round, on one server; the results are medians of the rounds' ratios.

use std::time::{Duration, Instant};

use saas_benches::{median, ratio};
use saas_core::{
    Actor, CoreError, RequestContext, SCHEMA, SystemClock, TenantId, TenantPool, TenantTx, UserId,
    db::{Literal, TenantWork, pool_options},
    migrate,
    testing::{DevServer, Durability, Proxy},
};
use sqlx::{
    ConnectOptions, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TENANTS: u32 = 1000;
/// One million rows: 1,000 of each tenant, scattered. The same twice, with a fence and without; and once more with a
/// tenant that owns 40 %.
const TABLES: &str = "
    create table public.item (
        tenant_id uuid not null, id int not null, status text not null, amount int not null, primary key (tenant_id, id));
    create table public.item_open (like public.item including all);
    create table public.log (tenant_id uuid not null, amount int not null);
    insert into public.log select tenant_id, amount from public.item;
    create table public.log_open (like public.log);
    insert into public.log_open select * from public.log;
    create table public.uneven (
        tenant_id uuid not null, id int not null, status text not null, amount int not null, primary key (tenant_id, id));
    insert into public.item
        select t.id, n, (array['new', 'open', 'done'])[n % 3 + 1], n % 100
        from generate_series(1, 1000) n, saas.tenant t;
    insert into public.item_open select * from public.item;
    insert into public.uneven
        select t.id, n, (array['new', 'open', 'done'])[n % 3 + 1], n % 100
        from (select id, row_number() over (order by id) as place from saas.tenant) t,
             lateral generate_series(1, case when t.place = 1 then 400000 else 600 end) n;
    select saas.fence('public.item'), saas.fence('public.uneven'), saas.fence('public.log');
    grant select on public.item_open, public.log_open to saas_app;
    analyze public.item, public.item_open, public.uneven, public.log, public.log_open;";

/// 100 tenants with 1,000 documents each: searched by words behind the fence, by words without one, and by full text.
const DOCUMENTS: &str = "
    create table public.document (
        tenant_id uuid not null, id int not null, body text not null, primary key (tenant_id, id));
    insert into public.document
        select t.id, n, concat_ws(' ', 'common' || n % 3, 'word' || n % 50, 'rare' || n, 'a' || n * 7 % 400,
                                  'b' || n * 11 % 300, 'c' || n * 13 % 200, 'd' || n * 17 % 100)
        from (select id from saas.tenant order by id limit 100) t, generate_series(1, 1000) n;
    create table public.document_open (like public.document including all, words tsvector);
    insert into public.document_open select *, to_tsvector('simple', body) from public.document;
    create extension btree_gin;
    create index on public.document_open using gin (tenant_id, words);
    create table public.document_fenced_text (like public.document_open including all);
    insert into public.document_fenced_text select * from public.document_open;
    select saas.fence('public.document'), saas.fence('public.document_fenced_text');
    select saas.make_searchable('public.document', '{body}');
    alter table public.document_words no force row level security;
    create table public.document_words_open (like public.document_words including all);
    insert into public.document_words_open select * from public.document_words;
    alter table public.document_words force row level security;
    grant select on public.document_open, public.document_words_open to saas_app;
    analyze public.document, public.document_words, public.document_words_open, public.document_open,
            public.document_fenced_text;";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let server = DevServer::start_own(Durability::Full)?;
    let admin: PgConnectOptions = server.admin_url().parse()?;
    migrate(&admin, &[&SCHEMA]).await?;
    let mut owner = admin.connect().await?;
    let provision = provision(&mut owner).await?;
    owner.execute(sqlx::raw_sql(TABLES)).await?;
    owner.execute(sqlx::raw_sql(DOCUMENTS)).await?;
    let login = admin.username("saas_app");
    flights(&mut owner, &login, &provision[1]).await?;
    pin(&mut owner, "0-1").await?;
    policies(&login, &provision[1]).await?;
    search(&login, &provision[1]).await?;
    plans(&login, &provision).await
}

async fn provision(owner: &mut PgConnection) -> Result<Vec<RequestContext>, Failure> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "insert into saas.tenant (id, slug, name, created_at)
         select gen_random_uuid(), 't' || n, 't' || n, now() from generate_series(1, $1) n returning id",
    )
    .bind(i32::try_from(TENANTS)?)
    .fetch_all(owner)
    .await?;
    let mut ids: Vec<TenantId> = ids.into_iter().map(TenantId::from_uuid).collect();
    ids.sort_unstable();
    let actor = Actor::user(UserId::mint(&SystemClock));
    Ok(ids.into_iter().map(|id| RequestContext::new(id, actor.clone(), &SystemClock)).collect())
}

const POINT: &str = "select amount from public.item where tenant_id = $1 and id = $2";

/// Milliseconds of one unit, begun when what the one before left to the background is done: none pays for another.
async fn timed<T>(pools: [&PgPool; 2], unit: impl Future<Output = Result<T, Failure>>) -> Result<f64, Failure> {
    while pools.iter().any(|pool| pool.num_idle() < pool.size() as usize) {
        tokio::task::yield_now().await;
    }
    let begin = Instant::now();
    unit.await?;
    Ok(begin.elapsed().as_secs_f64() * 1000.0)
}

async fn point(connection: &mut PgConnection, tenant: Uuid) -> Result<i32, Failure> {
    Ok(sqlx::query_scalar(POINT).bind(tenant).bind(7).fetch_one(connection).await?)
}

/// Units of work over a network that takes half a millisecond for a round trip, and then on one core without any.
async fn flights(owner: &mut PgConnection, login: &PgConnectOptions, ctx: &RequestContext) -> Result<(), Failure> {
    let tenant = saas_core::TenantContext::tenant(ctx).as_uuid();
    let proxy = Proxy::start((login.get_host(), login.get_port()))?;
    for delay in [Duration::from_micros(250), Duration::ZERO] {
        let through = if delay.is_zero() {
            pin(owner, "0").await?;
            login.clone()
        } else {
            login.clone().host("127.0.0.1").port(proxy.address().port())
        };
        // Enough connections that none is still on its way home.
        let advised = pool_options().max_connections(8).min_connections(8).connect_with(through.clone()).await?;
        let defaults = PgPoolOptions::new().max_connections(8).min_connections(8).connect_with(through).await?;
        let tenants = TenantPool::open(advised.clone(), &[&SCHEMA]).await?;
        proxy.delay(delay);
        let mut all = vec![Vec::new(); 6];
        let pools = [&advised, &defaults];
        for round in 0..250 {
            let figures = [
                timed(pools, plain(&advised, tenant)).await?,
                timed(pools, async { Ok(tenants.write(ctx, async |tx| unit(tx, tenant).await).await?) }).await?,
                timed(pools, async { Ok(tenants.read(ctx, async |tx| unit(tx, tenant).await).await?) }).await?,
                timed(pools, async {
                    let values = [Literal::Uuid(tenant), Literal::Integer(7)];
                    Ok(tenants.read_once(ctx, POINT, &values).await?)
                })
                .await?,
                timed(pools, classic(&defaults, tenant)).await?,
                timed(pools, untenanted(&advised, tenant)).await?,
            ];
            if round >= 50 {
                all.iter_mut().zip(figures).for_each(|(all, figure)| all.push(figure));
            }
        }
        let of = |a: usize, b: usize| {
            let ratios: Vec<f64> = all[a].iter().zip(&all[b]).map(|(a, b)| a / b).collect();
            median(&ratios)
        };
        if delay.is_zero() {
            println!("loopback, client and server on one core: plain query {:.3} ms", median(&all[0]));
            ratio("tenant-write-to-plain-query-one-core", of(1, 0), true, 1.7);
            ratio("tenant-read-to-plain-query-one-core", of(2, 0), true, 1.6);
            println!("tenant-read-once-to-plain-query-one-core {:.2}", of(3, 0));
            println!("tenant-transaction-to-transaction-without-tenant-one-core {:.2}", of(1, 5));
        } else {
            println!("half a millisecond for a round trip: plain query {:.3} ms", median(&all[0]));
            ratio("tenant-write-to-plain-query", of(1, 0), true, 3.0);
            ratio("tenant-read-to-plain-query", of(2, 0), true, 2.0);
            ratio("tenant-read-once-to-plain-query", of(3, 0), true, 1.15);
            ratio("begin-set-config-query-commit-to-tenant-write", of(4, 1), false, 1.5);
            ratio("tenant-transaction-to-transaction-without-tenant", of(1, 5), true, 1.05);
        }
    }
    Ok(())
}

/// Puts this process and the server's sessions to come on `cores`. On one core a loopback round trip has one length; on two
/// it has one or the other, fourfold, by which of them is woken.
async fn pin(owner: &mut PgConnection, cores: &str) -> Result<(), Failure> {
    let folder: String = sqlx::query_scalar("show data_directory").fetch_one(owner).await?;
    let lock = std::fs::read_to_string(std::path::Path::new(&folder).join("postmaster.pid"))?;
    let server = lock.lines().next().ok_or("the server's lock file is empty")?;
    for process in [server, &std::process::id().to_string()] {
        let taskset = std::process::Command::new("taskset").args(["-a", "-c", "-p", cores, process]).output()?;
        if !taskset.status.success() {
            return Err(format!("taskset: {}", String::from_utf8_lossy(&taskset.stderr)).into());
        }
    }
    Ok(())
}

async fn unit(tx: &mut TenantTx, tenant: Uuid) -> Result<i32, CoreError> {
    sqlx::query_scalar(POINT).bind(tenant).bind(7).fetch_one(&mut **tx).await.map_err(CoreError::from_database)
}

async fn plain(pool: &PgPool, tenant: Uuid) -> Result<i32, Failure> {
    let amount: Option<i32> =
        sqlx::query_scalar("select amount from public.item_open where tenant_id = $1 and id = $2")
            .bind(tenant)
            .bind(7)
            .fetch_optional(pool)
            .await?;
    amount.ok_or_else(|| "the row is not there".into())
}

/// What most applications write: four statements, with the driver's default pool.
#[expect(clippy::disallowed_methods, reason = "the way to compare with")]
async fn classic(pool: &PgPool, tenant: Uuid) -> Result<(), Failure> {
    let mut tx = pool.begin().await?;
    sqlx::query("select set_config('saas.tenant_id', $1, true)").bind(tenant.to_string()).execute(&mut *tx).await?;
    point(&mut tx, tenant).await?;
    Ok(tx.commit().await?)
}

#[expect(clippy::disallowed_methods, reason = "the way to compare with")]
async fn untenanted(pool: &PgPool, tenant: Uuid) -> Result<(), Failure> {
    let mut tx = pool.begin().await?;
    let amount: i32 = sqlx::query_scalar("select amount from public.item_open where tenant_id = $1 and id = $2")
        .bind(tenant)
        .bind(7)
        .fetch_one(&mut *tx)
        .await?;
    assert!(amount >= 0);
    Ok(tx.commit().await?)
}

/// The same statement on a fenced table and on one without a fence.
async fn policies(login: &PgConnectOptions, ctx: &RequestContext) -> Result<(), Failure> {
    let tenant = saas_core::TenantContext::tenant(ctx).as_uuid();
    let mut connection = bound(login, tenant).await?;
    let kinds = [
        ("point", 200, "select amount from public.item where tenant_id = $1 and id = 7"),
        ("list", 100, "select id, status, amount from public.item where tenant_id = $1 order by id limit 50"),
        ("aggregate", 50, "select status, sum(amount)::bigint from public.item where tenant_id = $1 group by status"),
        ("scan", 1, "select count(*), sum(amount) from public.log where tenant_id = $1"),
    ];
    for (name, calls, fenced) in kinds {
        let open = fenced.replace("public.item", "public.item_open").replace("public.log", "public.log_open");
        let mut ratios = Vec::new();
        for round in 0..31 {
            let with = repeat(&mut connection, fenced, tenant, calls).await?;
            let without = repeat(&mut connection, &open, tenant, calls).await?;
            if round > 0 {
                ratios.push(with / without);
            }
        }
        ratio(&format!("policy-{name}"), median(&ratios), true, 1.2);
    }
    Ok(())
}

/// The documents of one tenant that hold two words.
async fn search(login: &PgConnectOptions, ctx: &RequestContext) -> Result<(), Failure> {
    const CALLS: u32 = 100;
    let tenant = saas_core::TenantContext::tenant(ctx).as_uuid();
    let mut connection = bound(login, tenant).await?;
    let words = "select id from public.document_words where tenant_id = $1 and word = any ('{word7,rare207}')
                 group by id having count(*) = 2";
    let text = "select id from public.document_open where tenant_id = $1 and words @@ 'word7 & rare207'::tsquery";
    let prefix = "select id from public.document_words where tenant_id = $1 and word >= 'rare20' and word < saas.prefix_end('rare20')";
    let contenders = [
        words.to_owned(),
        words.replace("document_words", "document_words_open"),
        text.to_owned(),
        text.replace("document_open", "document_fenced_text"),
        prefix.to_owned(),
        prefix.replace("document_words", "document_words_open"),
    ];
    for sql in &contenders[..4] {
        let found: Vec<i32> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql.clone())).bind(tenant).fetch_all(&mut connection).await?;
        assert_eq!(found, [207], "{sql}");
    }
    let mut figures = vec![Vec::new(); contenders.len()];
    for _ in 0..31 {
        for (sql, figures) in contenders.iter().zip(&mut figures) {
            figures.push(repeat(&mut connection, sql, tenant, CALLS).await?);
        }
    }
    let of = |a: usize, b: usize| {
        let ratios: Vec<f64> = figures[a].iter().zip(&figures[b]).map(|(a, b)| a / b).collect();
        median(&ratios)
    };
    println!("search by words behind the fence: {:.3} ms", median(&figures[0]) * 1000.0 / f64::from(CALLS));
    ratio("search-words-fenced-to-open", of(0, 1), true, 2.0);
    ratio("search-words-fenced-to-full-text-open", of(0, 2), true, 2.0);
    ratio("search-prefix-fenced-to-open", of(4, 5), true, 2.0);
    println!("full text behind the fence, without words: {:.1} times full text without a fence", of(3, 2));
    Ok(())
}

async fn bound(login: &PgConnectOptions, tenant: Uuid) -> Result<PgConnection, Failure> {
    let mut connection = login.clone().connect().await?;
    // For the whole session, since here only the policy is measured.
    connection.execute(sqlx::AssertSqlSafe(format!("set saas.tenant_id = '{tenant}'"))).await?;
    connection.execute("set enable_seqscan = on; set max_parallel_workers_per_gather = 0").await?;
    Ok(connection)
}

async fn repeat(connection: &mut PgConnection, sql: &str, tenant: Uuid, calls: u32) -> Result<f64, Failure> {
    let begin = Instant::now();
    for _ in 0..calls {
        let query = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).bind(tenant);
        connection.fetch_all(query).await?;
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// A small tenant's statement after the connection planned it for a tenant that owns 40 % of the table.
async fn plans(login: &PgConnectOptions, tenants: &[RequestContext]) -> Result<(), Failure> {
    const STATEMENT: &str = "select status, sum(amount)::bigint from public.uneven group by status";
    let (big, small) = (&tenants[0], &tenants[500]);
    let own = pool_options().max_connections(1).connect_with(login.clone()).await?;
    let shared = pool_options().max_connections(1).connect_with(login.clone()).await?;
    let (own, shared) = (TenantPool::open(own, &[&SCHEMA]).await?, TenantPool::open(shared, &[&SCHEMA]).await?);
    let sums = async |tenants: &TenantPool, ctx: &RequestContext| -> Result<f64, Failure> {
        let mut tx = TenantTx::begin(tenants, ctx).await?;
        let begin = Instant::now();
        let sums: Vec<(String, i64)> = sqlx::query_as(STATEMENT).fetch_all(&mut *tx).await?;
        let took = begin.elapsed().as_secs_f64();
        assert_eq!(sums.len(), 3);
        tx.commit().await?;
        Ok(took)
    };
    for _ in 0..10 {
        sums(&shared, big).await?;
    }
    let mut ratios = Vec::new();
    for round in 0..60 {
        let (alone, after_big) = (sums(&own, small).await?, sums(&shared, small).await?);
        if round > 5 {
            ratios.push(after_big / alone);
        }
    }
    ratio("small-tenant-after-a-40-percent-tenant-planned", median(&ratios), true, 1.5);
    Ok(())
}
