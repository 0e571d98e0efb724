//! One suite in every mode: a tenant's life, its isolation, its context, its jobs. What differs is the binding alone.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use saas_core::{
    Actor, Clock, CoreError, EmailAddress, RequestContext, SessionBinding, SystemTx, TenantContext, TenantPool,
    TenantTx, Topic,
    db::pool_options,
    outbox::{self, Job, JobError, JobHandler, NewJob, Worker},
    testing::Pooler,
};
use saas_tenancy::{
    NewTenant, Role, Tenancy, VerifiedEmail,
    placement::{ClusterName, KnownVersions, Placements, Target},
};
use sqlx::Executor;

use crate::stage::{PROJECT, Stage, TASK, blueprint, limits, pools};

const FILES: [&str; 2] = [PROJECT, TASK];
const RENAME: Topic = Topic::from_static("project.rename");

/// A binding under test, and where it puts new tenants.
struct Mode {
    name: &'static str,
    binding: Arc<dyn SessionBinding>,
    targets: Vec<Option<Target>>,
    /// Kept for its end.
    _pooler: Option<Pooler>,
}

async fn pooler(stage: &Stage) -> (Pooler, TenantPool) {
    let (host, port) = stage.db.address();
    let pooler = Pooler::start((&host, port), 2).unwrap();
    let login = stage.db.options("saas_app").host("127.0.0.1").port(pooler.port()).statement_cache_capacity(0);
    let pool = pool_options().max_connections(10).acquire_timeout(Duration::from_secs(30));
    let pool = pool.connect_with(login).await.unwrap();
    (pooler, TenantPool::open_behind_pooler(pool, &[&saas_core::SCHEMA]).await.unwrap())
}

async fn modes(stage: &Stage) -> Vec<Mode> {
    let control = ClusterName::control();
    let hybrid = |targets| (Arc::new(stage.serving(&FILES)) as Arc<dyn SessionBinding>, targets);
    let (own, behind) = pooler(stage).await;
    let (second, hybrid_behind) = pooler(stage).await;
    let schema = Some(Target::Schema(control));
    let database = Some(Target::Database("eu".parse().unwrap()));
    let behind_pooler =
        Placements::builder(hybrid_behind, stage.db.system().clone(), pools(stage.two_clusters(), limits()))
            .serving(KnownVersions::newest(&blueprint(&FILES)))
            .build();
    let mode = |name, (binding, targets), pooler| Mode { name, binding, targets, _pooler: pooler };
    let pooled: Arc<dyn SessionBinding> = Arc::new(stage.db.tenants().clone());
    vec![
        mode("pooled", (pooled, vec![None, None]), None),
        mode("schema", hybrid(vec![schema.clone(), schema.clone()]), None),
        mode("database", hybrid(vec![database.clone(), database.clone()]), None),
        mode("hybrid", hybrid(vec![None, schema.clone(), database]), None),
        mode("pooled behind PgBouncer", (Arc::new(behind), vec![None, None]), Some(own)),
        mode("hybrid behind PgBouncer", (Arc::new(behind_pooler), vec![None, schema]), Some(second)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_lives_the_same_life_in_every_mode() {
    let stage = Stage::start().await;
    stage.shared_tables(&FILES).await;
    for mode in modes(&stage).await {
        let tenants = lifecycle(&stage, &mode).await;
        isolation(&mode, &tenants).await;
        context(&mode, &tenants).await;
        jobs(&stage, &mode, &tenants).await;
        println!("{}: the whole suite", mode.name);
    }
    stage.finish().await;
}

/// Created with an owner, placed, joined by a member, used.
async fn lifecycle(stage: &Stage, mode: &Mode) -> Vec<RequestContext> {
    let clock = Arc::new(stage.db.clock().clone());
    let tenancy = Tenancy::new(stage.db.tenants().clone(), stage.db.system().clone(), clock);
    let provisioner = stage.provisioner(&FILES);
    let mut tenants = Vec::new();
    for (n, target) in mode.targets.iter().enumerate() {
        let slug = format!("{}-{n}", mode.name.to_lowercase().replace(' ', "-"));
        let owner = VerifiedEmail::vouched(format!("owner@{slug}.example").parse().unwrap());
        let made = tenancy.create_tenant(&NewTenant::new(slug.parse().unwrap(), slug).unwrap(), &owner).await.unwrap();
        if let Some(target) = target {
            provisioner.provision(made.tenant, target).await.unwrap();
        }
        let ctx = tenancy.enter(made.tenant, made.owner).await.unwrap();
        let bea: EmailAddress = format!("bea-{n}@{}.example", mode.name.len()).parse().unwrap();
        tenancy.add_member(&ctx, &bea, Role::Member).await.unwrap();
        let bea = tenancy.account(&VerifiedEmail::vouched(bea)).await.unwrap();
        assert_eq!(tenancy.enter(made.tenant, bea).await.unwrap().tenant(), made.tenant);

        let mut tx = TenantTx::begin(&*mode.binding, &ctx).await.unwrap();
        // The same name and the same id in every tenant, which a key across tenants would refuse.
        sqlx::query("insert into project (tenant_id, id, name) values ($1, $2, 'roadmap')")
            .bind(tx.tenant().as_uuid())
            .bind(uuid::Uuid::nil())
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        tenants.push(ctx);
    }
    tenants
}

async fn names(binding: &dyn SessionBinding, ctx: &RequestContext) -> Result<Vec<String>, CoreError> {
    let mut tx = TenantTx::begin_read_only(binding, ctx).await?;
    sqlx::query_scalar("select name from project order by name")
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)
}

/// Each tenant attacks each other one.
async fn isolation(mode: &Mode, tenants: &[RequestContext]) {
    for (a, b) in tenants.iter().flat_map(|a| tenants.iter().map(move |b| (a, b))) {
        if a.tenant() == b.tenant() {
            continue;
        }
        let victim = b.tenant();
        for (attack, refused_with) in [
            ("update project set name = 'stolen' where tenant_id = '{b}'", None),
            ("delete from project where tenant_id = '{b}'", None),
            ("insert into project (tenant_id, name) values ('{b}', 'planted')", Some("42501")),
            ("update project set tenant_id = '{b}'", Some("42501")),
            (
                "insert into task (tenant_id, project_id, title) values ('{b}', '00000000-0000-0000-0000-000000000000', 'x')",
                Some("42501"),
            ),
            ("truncate project cascade", Some("42501")),
        ] {
            let mut tx = TenantTx::begin(&*mode.binding, a).await.unwrap();
            let attack = attack.replace("{b}", &victim.to_string());
            let done = tx.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(attack.clone()))).await;
            match (done, refused_with) {
                (Ok(done), None) => assert_eq!(done.rows_affected(), 0, "{}: {attack}", mode.name),
                (Err(error), Some(code)) => {
                    assert_eq!(error.as_database_error().unwrap().code().unwrap(), code, "{}: {attack}", mode.name);
                }
                (done, _) => panic!("{}: {attack}: {done:?}", mode.name),
            }
        }
        assert_eq!(names(&*mode.binding, b).await.unwrap(), ["roadmap"], "{}", mode.name);
    }
    // A tenant that nobody has ever heard of finds nothing.
    let stranger = RequestContext::new(
        saas_core::TenantId::mint(&saas_core::SystemClock),
        Actor::system("test"),
        &saas_core::SystemClock,
    );
    assert_eq!(names(&*mode.binding, &stranger).await.unwrap_or_default(), Vec::<String>::new(), "{}", mode.name);
}

/// The tenant, and nothing else, follows the context; also when many run at once, fail, or are dropped.
async fn context(mode: &Mode, tenants: &[RequestContext]) {
    let turns = (0..24_usize).map(async |turn| {
        let ctx = &tenants[turn % tenants.len()];
        let mut tx = TenantTx::begin(&*mode.binding, ctx).await.unwrap();
        assert_eq!((tx.tenant(), tx.actor()), (ctx.tenant(), ctx.actor()));
        let seen: Vec<uuid::Uuid> =
            sqlx::query_scalar("select tenant_id from project").fetch_all(&mut *tx).await.unwrap();
        assert_eq!(seen, [ctx.tenant().as_uuid()], "{}", mode.name);
        match turn % 3 {
            0 => tx.commit().await.unwrap(),
            1 => drop(tx),
            _ => {
                tx.execute("select 1 / 0").await.unwrap_err();
                assert_eq!(tx.commit().await.unwrap_err().code(), "transaction_aborted");
            }
        }
    });
    futures_util::future::join_all(turns).await;
}

#[derive(Debug)]
struct Renamer(Arc<dyn SessionBinding>);

#[async_trait]
impl JobHandler for Renamer {
    async fn run(&self, job: &Job) -> Result<(), JobError> {
        let name: String = job.payload()?;
        let ctx = RequestContext::new_at(job.tenant, Actor::system("renamer"), saas_core::SystemClock.now());
        let rename = async {
            let mut tx = TenantTx::begin(&*self.0, &ctx).await?;
            sqlx::query("update project set name = $1")
                .bind(name)
                .execute(&mut *tx)
                .await
                .map_err(CoreError::from_database)?;
            tx.commit().await
        };
        rename.await.map_err(JobError::retry)
    }
}

/// A job carries its tenant, and is done where that tenant lives.
async fn jobs(stage: &Stage, mode: &Mode, tenants: &[RequestContext]) {
    for ctx in tenants {
        let mut tx = TenantTx::begin(stage.db.tenants(), ctx).await.unwrap();
        let job = NewJob::of(RENAME, &format!("renamed for {}", ctx.tenant())).unwrap();
        let tenant = tx.tenant();
        outbox::enqueue_in(&mut tx, tenant, job, stage.db.clock().now()).await.unwrap();
        tx.commit().await.unwrap();
    }
    let worker = Worker::new(stage.db.system().clone(), Arc::new(stage.db.clock().clone()))
        .with_handler(RENAME, Arc::new(Renamer(Arc::clone(&mode.binding))));
    worker.run_once().await.unwrap();
    let mut all = BTreeSet::new();
    for ctx in tenants {
        let expected = format!("renamed for {}", ctx.tenant());
        assert_eq!(names(&*mode.binding, ctx).await.unwrap(), [expected.clone()], "{}", mode.name);
        all.insert(expected);
    }
    assert_eq!(all.len(), tenants.len());
    let mut tx =
        SystemTx::begin(stage.db.system(), Actor::system("test"), "look for jobs that are left").await.unwrap();
    let left: i64 =
        sqlx::query_scalar("select count(*) from saas.outbox where topic = 'project.rename' and state <> 'done'")
            .fetch_one(&mut *tx)
            .await
            .unwrap();
    assert_eq!(left, 0, "{}", mode.name);
}
