//! Tenants with a place of their own: what an erasure does there, and where an export reads.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use futures_util::{future::join, poll};
use saas_core::{
    Actor, SCHEMA as CORE, Schema, TenantContext, TenantTx, UserId,
    testing::{DevServer, Durability},
};
use saas_tenancy::{
    erase::{EraseState, EraseStep, Erasure, Erasures, Fate, SlugPolicy},
    export::Exports,
    placement::{
        Blueprint, Cluster, ClusterName, Clusters, Mode, Placement, Placements, PoolLimits, Pools, Provisioner, Site,
        Target, record,
    },
    relocate::{Address, Mover},
};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
    postgres::PgConnectOptions,
};

use crate::{stage::Stage, targets::Memory};

static KERNEL: [&Schema; 1] = [&CORE];

/// What the application makes in every place: other tables than those that stand in the control database.
const NOTES: &str = "
    create table note (
        tenant_id uuid not null references saas.tenant (id),
        id        uuid not null default gen_random_uuid(),
        words     text not null,
        primary key (tenant_id, id)
    );
    create table comment (
        tenant_id uuid not null references saas.tenant (id),
        id        uuid not null default gen_random_uuid(),
        note_id   uuid not null,
        primary key (tenant_id, id),
        foreign key (tenant_id, note_id) references note (tenant_id, id)
    );
    create index comment_by_note on comment (tenant_id, note_id);
    select saas.fence('note'), saas.fence('comment');";
const KEPT_RECEIPTS: &str = "
    create table receipt (tenant_id uuid not null references saas.tenant (id), n integer, primary key (tenant_id, n));
    select saas.fence('receipt'), saas.retain('receipt', 'tax law');";

fn second_server() -> PgConnectOptions {
    static SERVER: OnceLock<DevServer> = OnceLock::new();
    SERVER.get_or_init(|| DevServer::start_own(Durability::None).unwrap()).admin_url().parse().unwrap()
}

struct World {
    stage: Stage,
    clusters: Clusters,
    provisioner: Provisioner,
    placements: Placements,
}

impl World {
    /// Acme lives at the target, with three notes of two comments each; globex among the shared tables.
    async fn start(scripts: &[&'static str], target: &Target) -> Self {
        let stage = Stage::start_without_projects().await;
        let login = |role: &str| second_server().username(role).database("postgres");
        let eu = Cluster::new(login("saas_app"), login("saas_system")).with_admin(second_server());
        let control = Cluster::new(stage.db.options("saas_app"), stage.db.options("saas_system"))
            .with_admin(stage.db.owner_options());
        let clusters = Clusters::new(control).with_cluster("eu".parse().unwrap(), eu).unwrap();
        let one = |(n, sql): (i64, &&'static str)| {
            Migration::new(n, format!("step {n}").into(), MigrationType::Simple, (*sql).into_sql_str(), false)
        };
        let blueprint = Blueprint::new(&Migrator::with_migrations((1..).zip(scripts).map(one).collect())).unwrap();
        let clock = Arc::new(stage.db.clock().clone());
        let provisioner = Provisioner::new(stage.db.system().clone(), clusters.clone(), blueprint, clock);
        provisioner.provision(stage.acme.tenant, target).await.unwrap();
        let pools = Pools::new(clusters.clone(), &KERNEL, PoolLimits::default()).unwrap();
        let placements = Placements::builder(stage.db.tenants().clone(), stage.db.system().clone(), pools).build();
        let world = Self { stage, clusters, provisioner, placements };
        let mut tx = TenantTx::begin(&world.placements, &world.stage.a).await.unwrap();
        for n in 0..3 {
            let note = "with note as (insert into note (tenant_id, words) values ($1, $2) returning id)
                        insert into comment (tenant_id, note_id) select $1, id from note, generate_series(1, 2)";
            sqlx::query(note)
                .bind(world.stage.acme.tenant.as_uuid())
                .bind(format!("acme note {n}"))
                .execute(&mut *tx)
                .await
                .unwrap();
        }
        tx.commit().await.unwrap();
        world
    }

    fn erasures(&self) -> Erasures {
        let clock = Arc::new(self.stage.db.clock().clone());
        Erasures::new(self.stage.db.system().clone(), clock).with_batch(2).with_places(self.provisioner.clone())
    }

    async fn approved(&self) -> Erasures {
        let erasures = self.erasures();
        erasures.request(self.stage.acme.tenant, &operator(), "the customer asked", SlugPolicy::Keep).await.unwrap();
        erasures.approve(self.stage.acme.tenant, &operator()).await.unwrap();
        erasures
    }

    async fn placement(&self) -> Placement {
        let mut tx = self.stage.begin_system().await;
        record::find_in(&mut tx, self.stage.acme.tenant).await.unwrap().unwrap()
    }

    /// As the superuser, in the database of a site.
    async fn owner_of(&self, site: &Site) -> Result<PgConnection, sqlx::Error> {
        let on_control = site.database.cluster == ClusterName::control();
        let options = if on_control { self.stage.db.owner_options() } else { second_server().database("postgres") };
        match &site.database.name {
            Some(name) => options.database(name.as_str()).connect().await,
            None => options.connect().await,
        }
    }

    /// Nothing of the tenant's is at the site, which is gone if it was the tenant's own.
    async fn assert_gone(&self, site: &Site) {
        let tenant = self.stage.acme.tenant;
        let owner = self.owner_of(site).await;
        if site.database.name.is_some() {
            let error = owner.unwrap_err().into_database_error().unwrap();
            assert_eq!(error.code().unwrap(), "3D000", "the database is gone");
            return;
        }
        let mut owner = owner.unwrap();
        let schemas: i64 = sqlx::query_scalar(
            "select (select count(*) from pg_namespace where nspname = 'saas_t_' || replace($1, '-', ''))
                  + (select count(*) from saas.fenced_table where name like '%' || replace($1, '-', '') || '%')
                  + (select count(*) from saas.retained_table where name like '%' || replace($1, '-', '') || '%')",
        )
        .bind(tenant.to_string())
        .fetch_one(&mut owner)
        .await
        .unwrap();
        assert_eq!(schemas, 0, "the schema and what was noted about it");
        if site.database.cluster != ClusterName::control() {
            let registered: i64 = sqlx::query_scalar("select count(*) from saas.tenant where id = $1")
                .bind(tenant.as_uuid())
                .fetch_one(&mut owner)
                .await
                .unwrap();
            assert_eq!(registered, 0);
        }
        owner.close().await.unwrap();
    }
}

fn operator() -> Actor {
    Actor::Operator { id: UserId::mint(&saas_core::SystemClock) }
}

fn erased_at_place(erasure: &Erasure) -> BTreeMap<String, u64> {
    let own = |name: &str| name.rsplit('.').next().unwrap().to_owned();
    let tables = erasure.tables.iter().filter(|table| table.rows_erased > 0);
    tables
        .map(|table| (own(&table.name), table.rows_erased))
        .filter(|(name, _)| name == "note" || name == "comment")
        .collect()
}

fn targets() -> Vec<Target> {
    let (control, eu) = (ClusterName::control(), || "eu".parse().unwrap());
    vec![
        Target::Schema(control.clone()),
        Target::Database(control),
        Target::Pooled(eu()),
        Target::Schema(eu()),
        Target::Database(eu()),
    ]
}

// T51
#[tokio::test]
async fn a_tenants_own_place_is_emptied_counted_and_removed_wherever_it_is() {
    for target in targets() {
        let world = World::start(&[NOTES], &target).await;
        let (tenant, site) = (world.stage.acme.tenant, world.placement().await.site);
        let erasures = world.approved().await;
        let plan = erasures.plan(tenant).await.unwrap();
        assert!(plan.is_possible(), "{:?}", plan.obstacles);
        let planned: u64 = plan
            .tables
            .iter()
            .filter(|table| {
                table.fate == Fate::Erase && (table.name.ends_with(".note") || table.name.ends_with(".comment"))
            })
            .filter_map(|table| table.rows)
            .sum();
        assert_eq!(planned, 9, "{site}");
        let mut steps = Vec::new();
        let done = erasures.run(tenant, &mut |step| steps.push(step.clone())).await.unwrap();
        assert_eq!(done.state, EraseState::Done);
        assert_eq!(
            erased_at_place(&done),
            BTreeMap::from([("comment".to_owned(), 6), ("note".to_owned(), 3)]),
            "{site}"
        );
        let place = done.place.as_ref().unwrap();
        assert_eq!((place.name.clone(), place.is_removed, &place.kept_reason), (site.to_string(), true, &None));
        assert!(steps.contains(&EraseStep::PlaceRemoved));
        assert!(
            steps.iter().all(|step| !matches!(step, EraseStep::Erased { rows, .. } if *rows > 2)),
            "bounded batches"
        );
        world.assert_gone(&site).await;
        assert_eq!(erasures.run(tenant, &mut |_| ()).await.unwrap(), done, "nothing is left to do");

        // The binding refuses; nobody makes it a new place; the fleet does not look for the old one.
        world.placements.forget(tenant);
        assert_eq!(TenantTx::begin(&world.placements, &world.stage.a).await.unwrap_err().code(), "tenant_moved");
        let again = world.provisioner.provision(tenant, &target).await.unwrap_err();
        assert!(again.to_string().contains("is erased"), "{again}");
        let mover = Mover::new(
            world.stage.db.system().clone(),
            Arc::new(world.clusters.clone()),
            Arc::new(world.stage.db.clock().clone()),
        );
        let moved = mover.move_tenant(tenant, &Address::pooled("eu"), &operator(), &|_| ()).await.unwrap_err();
        assert_eq!(moved.code(), "tenant_erased");
        assert_eq!(world.placement().await.mode, Mode::Pooled);
    }
}

/// The process dies in the middle of every step: before, between and after what it does in two databases.
#[tokio::test]
async fn an_erasure_of_a_place_that_is_killed_anywhere_resumes_and_counts_exactly() {
    for target in [Target::Database(ClusterName::control()), Target::Schema("eu".parse().unwrap())] {
        let world = World::start(&[NOTES], &target).await;
        let (tenant, site) = (world.stage.acme.tenant, world.placement().await.site);
        world.approved().await;
        let (mut polls, mut killed) = (1, 0);
        let done = loop {
            let erasures = world.erasures();
            let mut step = Box::pin(erasures.step(tenant));
            let mut outcome = None;
            for _ in 0..polls {
                if let std::task::Poll::Ready(ready) = poll!(step.as_mut()) {
                    outcome = Some(ready.unwrap());
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(step);
            match outcome {
                Some(EraseStep::Done(done)) => break *done,
                Some(_) => polls = 1,
                None => (polls, killed) = (polls * 2 + 1, killed + 1),
            }
        };
        assert!(killed > 50, "killed {killed} times");
        assert_eq!(
            erased_at_place(&done),
            BTreeMap::from([("comment".to_owned(), 6), ("note".to_owned(), 3)]),
            "{site}"
        );
        assert!(done.place.unwrap().is_removed);
        world.assert_gone(&site).await;
    }
}

#[tokio::test]
async fn what_the_law_keeps_in_a_place_keeps_the_place_shut() {
    for target in [Target::Schema(ClusterName::control()), Target::Database("eu".parse().unwrap())] {
        let world = World::start(&[NOTES, KEPT_RECEIPTS], &target).await;
        let (tenant, site) = (world.stage.acme.tenant, world.placement().await.site);
        let mut tx = TenantTx::begin(&world.placements, &world.stage.a).await.unwrap();
        let receipt = sqlx::query("insert into receipt values ($1, 1), ($1, 2)").bind(tenant.as_uuid());
        receipt.execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let done = world.approved().await.run(tenant, &mut |_| ()).await.unwrap();
        let place = done.place.as_ref().unwrap();
        assert!(!place.is_removed && place.kept_reason.as_ref().unwrap().contains("receipt"), "{place:?}");
        let kept = done.tables.iter().find(|table| table.name.ends_with(".receipt")).unwrap();
        assert_eq!((kept.rows_kept, kept.kept_reason.as_deref()), (2, Some("tax law")));
        world.placements.forget(tenant);
        assert_eq!(TenantTx::begin(&world.placements, &world.stage.a).await.unwrap_err().code(), "tenant_moved");
        let mut owner = world.owner_of(&site).await.unwrap();
        let table = site.schema.as_ref().map_or("public", |schema| schema.as_str());
        let count = AssertSqlSafe(format!("select count(*) from {table}.receipt"));
        let rows: i64 = sqlx::query_scalar(count).fetch_one(&mut owner).await.unwrap();
        assert_eq!(rows, 2);
    }
}

#[tokio::test]
async fn what_stands_in_the_way_in_a_place_is_named_before_anyone_is_shut_out() {
    let world = World::start(&[NOTES], &Target::Database(ClusterName::control())).await;
    let (tenant, site) = (world.stage.acme.tenant, world.placement().await.site);
    let mut owner = world.owner_of(&site).await.unwrap();
    owner.execute("create table public.loose (tenant_id uuid not null)").await.unwrap();
    let erasures = world.erasures();
    let error = erasures.request(tenant, &operator(), "why", SlugPolicy::Keep).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("public.loose") && text.contains(&site.to_string()) && text.contains("saas.fence"), "{text}");
    owner.execute("drop table public.loose").await.unwrap();
    let erasures = world.approved().await;

    // Without the provisioner, and with a place that is only being made.
    let plain = Erasures::new(world.stage.db.system().clone(), Arc::new(world.stage.db.clock().clone()));
    let error = plain.step(tenant).await.unwrap_err();
    assert!(error.to_string().contains("Erasures::with_places"), "{error}");
    let mut control = world.stage.db.owner().await;
    let set = |state: &'static str| sqlx::query("update saas.placement set state = $1").bind(state);
    set("failed").execute(&mut control).await.unwrap();
    let error = erasures.step(tenant).await.unwrap_err();
    assert!(error.to_string().contains("resume or abandon"), "{error}");
    set("active").execute(&mut control).await.unwrap();

    // A database that somebody dropped is not taken for one that was erased.
    drop(owner);
    let name = site.database.name.as_ref().unwrap();
    let drop = AssertSqlSafe(format!("drop database {name} with (force)"));
    control.execute(drop).await.unwrap();
    assert_eq!(erasures.step(tenant).await.unwrap_err().code(), "placement_disappeared");
    assert_eq!(erasures.find(tenant).await.unwrap().unwrap().state, EraseState::Approved);
}

/// A writer that is inside when the door closes is waited for, and what it wrote goes too.
#[tokio::test]
async fn a_transaction_that_is_in_the_place_is_waited_for() {
    let world = World::start(&[NOTES], &Target::Database(ClusterName::control())).await;
    let tenant = world.stage.acme.tenant;
    let erasures = world.approved().await;
    let mut inside = TenantTx::begin(&world.placements, &world.stage.a).await.unwrap();
    assert_eq!(erasures.step(tenant).await.unwrap(), EraseStep::Begun);
    let mut shut = Box::pin(erasures.step(tenant));
    for _ in 0..200 {
        assert!(poll!(shut.as_mut()).is_pending(), "someone is inside");
        tokio::task::yield_now().await;
    }
    let late = sqlx::query("insert into note (tenant_id, words) values ($1, 'late')").bind(tenant.as_uuid());
    late.execute(&mut *inside).await.unwrap();
    inside.commit().await.unwrap();
    assert_eq!(shut.await.unwrap(), EraseStep::PlaceShut);
    assert_eq!(TenantTx::begin(&world.placements, &world.stage.a).await.unwrap_err().code(), "tenant_moved");
    let done = erasures.run(tenant, &mut |_| ()).await.unwrap();
    assert_eq!(erased_at_place(&done)["note"], 4);
}

#[tokio::test]
async fn an_export_reads_a_tenants_own_place() {
    for target in targets() {
        let world = World::start(&[NOTES], &target).await;
        let exports: Exports = world.stage.exports.clone().with_placements(Arc::new(world.placements.clone()));
        let memory = Memory::default();
        let done = exports.run(&world.stage.a, &memory, &mut |_| ()).await.unwrap();
        let tables = || done.manifest.tables.iter();
        let notes: Vec<_> = tables().filter(|table| table.name.ends_with(".note")).collect();
        assert_eq!((notes.len(), notes[0].rows), (1, 3), "{target:?}");
        assert!(memory.text(&notes[0].files[0].path).contains("acme note 2"), "{target:?}");
        for name in ["saas.tenant", "saas.membership", "saas.audit"] {
            assert_eq!(tables().filter(|table| table.name == name).count(), 1, "{name} {target:?}");
        }
        let other = world.stage.b.tenant().to_string();
        let files = memory.files.lock().unwrap();
        assert!(files.values().all(|text| !String::from_utf8_lossy(text).contains(&other)), "{target:?}");
    }
}

#[tokio::test]
async fn two_erasures_of_a_place_at_once_take_turns_and_count_once() {
    let world = World::start(&[NOTES], &Target::Database(ClusterName::control())).await;
    let (tenant, site) = (world.stage.acme.tenant, world.placement().await.site);
    let (one, other) = (world.approved().await, world.erasures());
    let (mut quiet, mut silent) = (|_: &_| (), |_: &_| ());
    let (one, other) = join(one.run(tenant, &mut quiet), other.run(tenant, &mut silent)).await;
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one, other);
    assert_eq!(erased_at_place(&one), BTreeMap::from([("comment".to_owned(), 6), ("note".to_owned(), 3)]));
    world.assert_gone(&site).await;
}
