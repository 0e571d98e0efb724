//! A tenant's whole way: a place is made, the tenant moves to another, the fleet migrates it, and the last one is removed.
//! At every turn the fleet's ledger says where there are tables of which version, and nothing else.

use std::sync::{Arc, Mutex, mpsc};

use saas_core::{Actor, ErrorKind, RequestContext, TenantContext, TenantId, TenantTx};
use saas_tenancy::{
    placement::{
        Canaries, ClusterName, Fleet, Mode, PlacementError, Report, Site, State, Target, Timeouts,
        fleet::{Ending, Event, Outcome, Shared},
    },
    relocate::{Address, MoveError, Mover, Phase},
};
use sqlx::Executor;

use crate::stage::{ARCHIVED, PROJECT, Stage, TASK, add_project, blueprint, projects};

const OLD: [&str; 2] = [PROJECT, TASK];
const NEW: [&str; 3] = [PROJECT, TASK, ARCHIVED];

fn operator() -> Actor {
    Actor::system("operator")
}

fn schema() -> Target {
    Target::Schema(ClusterName::control())
}

fn database() -> Target {
    Target::Database("eu".parse().unwrap())
}

fn address(site: &Site) -> Address {
    Address::from(site)
}

impl Stage {
    fn mover(&self) -> Mover {
        Mover::new(self.db.system().clone(), Arc::new(self.two_clusters()), Arc::new(self.db.clock().clone()))
    }

    fn ships(&self, files: &[&'static str]) -> Fleet {
        let clock = Arc::new(self.db.clock().clone());
        let fleet = Fleet::new(self.db.system().clone(), self.two_clusters(), blueprint(files), clock);
        fleet.with_shared(Shared::Excluded).with_canaries(Canaries::First(0))
    }

    /// Makes what a move goes to.
    async fn make_target(&self, ctx: &RequestContext, files: &[&'static str], target: &Target) -> Site {
        self.provisioner(files).make_site(ctx.tenant(), target).await.unwrap()
    }

    /// What the ledger says about a tenant's places: which, at which version, whether the last try failed.
    async fn ledger(&self, tenant: TenantId) -> Vec<(String, Option<i64>, bool)> {
        sqlx::query_as(
            "select concat_ws('/', cluster, nullif(database_name, ''), nullif(schema_name, '')), version, failed
             from saas.fleet_site where tenant_id = $1 order by 1",
        )
        .bind(tenant.as_uuid())
        .fetch_all(&mut self.db.owner().await)
        .await
        .unwrap()
    }

    /// Rows of the foundation that name a schema.
    async fn traces(&self, site: &Site) -> i64 {
        sqlx::query_scalar(
            "select (select count(*) from saas.fenced_table where starts_with(name, $1))
                  + (select count(*) from saas.fleet_site where schema_name = $1)
                  + (select count(*) from pg_namespace where nspname = $1)",
        )
        .bind(site.schema.as_ref().unwrap().as_str())
        .fetch_one(&mut self.db.owner().await)
        .await
        .unwrap()
    }
}

fn in_the_way(error: &PlacementError) -> bool {
    matches!(error, PlacementError::InTheWay { .. }) && error.kind() == ErrorKind::Conflict
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_schema_to_a_database_through_a_migration_to_its_removal_the_ledger_is_right() {
    let stage = Stage::start().await;
    let (provisioner, mover) = (stage.provisioner(&OLD), stage.mover());
    let ctx = stage.db.create_tenant("acme").await;
    let tenant = ctx.tenant();
    let from = provisioner.provision(tenant, &schema()).await.unwrap().site;
    let old = stage.serving(&OLD);
    add_project(&old, &ctx, "in the schema").await.unwrap();
    let here = address(&from).to_string().replace("schema on ", "");
    assert_eq!(stage.ledger(tenant).await, [(here.clone(), Some(2), false)]);

    let to = stage.make_target(&ctx, &OLD, &database()).await;
    let there = address(&to).to_string().replace("database on ", "");
    assert_eq!(stage.ledger(tenant).await, [(here.clone(), Some(2), false), (there.clone(), Some(2), false)]);
    mover.move_tenant(tenant, &address(&to), &operator(), &|_| {}).await.unwrap();
    // Nobody told the mover which version is there: the ledger did.
    let placement = stage.placement(tenant).await.unwrap();
    assert_eq!((placement.mode, placement.schema_version), (Mode::Database, Some(2)));
    add_project(&old, &ctx, "in the database").await.unwrap();
    // Until the move is confirmed there are two places, and neither is removed nor a third one given.
    for site in [&from, &to] {
        assert!(in_the_way(&provisioner.remove_site_with_rows(tenant, site).await.unwrap_err()));
    }
    assert!(in_the_way(&provisioner.deprovision(tenant).await.unwrap_err()));
    assert!(in_the_way(&provisioner.provision(tenant, &schema()).await.unwrap_err()));
    mover.confirm(tenant, &|_| {}).await.unwrap();
    assert_eq!(stage.ledger(tenant).await, [(there.clone(), Some(2), false)], "the source's row goes with the source");
    assert_eq!(stage.traces(&from).await, 0);

    let report = stage.ships(&NEW).run().await.unwrap();
    assert_eq!((report.ending, report.count("migrated"), report.sites.len()), (Ending::Complete, 1, 1), "{report}");
    assert_eq!(report.sites[0].site, to);
    assert_eq!(stage.ledger(tenant).await, [(there, Some(3), false)]);
    assert_eq!(stage.placement(tenant).await.unwrap().schema_version, Some(3));
    old.forget_all();
    assert_eq!(add_project(&old, &ctx, "too old").await.unwrap_err().code(), "unknown_schema_version");
    let new = stage.serving(&NEW);
    assert_eq!(projects(&new, &ctx).await.unwrap(), ["in the database", "in the schema"]);

    let refused = provisioner.deprovision(tenant).await.unwrap_err();
    assert!(in_the_way(&refused) && refused.to_string().contains("`project`"), "{refused}");
    assert_eq!(projects(&new, &ctx).await.unwrap().len(), 2, "served as before");
    let mut tx = TenantTx::begin(&new, &ctx).await.unwrap();
    sqlx::query("delete from project where tenant_id = $1").bind(tenant.as_uuid()).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    stage.shared_tables(&NEW).await;
    provisioner.deprovision(tenant).await.unwrap();
    provisioner.deprovision(tenant).await.unwrap();
    assert_eq!(stage.ledger(tenant).await, []);
    assert!(stage.owner_of(&to.database).await.is_err(), "the database is gone");
    let placement = stage.placement(tenant).await.unwrap();
    assert_eq!((placement.mode, placement.state), (Mode::Pooled, State::Active));
    // A process that listens hears of it.
    new.forget(tenant);
    add_project(&new, &ctx, "among all others").await.unwrap();
    assert_eq!(projects(&new, &ctx).await.unwrap(), ["among all others"]);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_in_use_is_removed_by_nobody_and_one_of_another_tenant_neither() {
    let stage = Stage::start().await;
    let provisioner = stage.provisioner(&OLD);
    let (a, b) = (stage.db.create_tenant("tenant-a").await, stage.db.create_tenant("tenant-b").await);
    let placements = stage.serving(&OLD);
    for target in [schema(), database()] {
        let site = target.site(b.tenant());
        if target == schema() {
            provisioner.provision(b.tenant(), &target).await.unwrap();
            add_project(&placements, &b, "b's").await.unwrap();
        } else {
            stage.make_target(&b, &OLD, &target).await;
        }
        for refused in [
            provisioner.remove_empty_site(a.tenant(), &site).await.unwrap_err(),
            provisioner.remove_site_with_rows(a.tenant(), &site).await.unwrap_err(),
        ] {
            assert!(in_the_way(&refused), "{refused}");
        }
    }
    let own = schema().site(b.tenant());
    for refused in [
        provisioner.remove_empty_site(b.tenant(), &own).await.unwrap_err(),
        provisioner.remove_site_with_rows(b.tenant(), &own).await.unwrap_err(),
    ] {
        assert!(in_the_way(&refused), "{refused}");
    }
    assert_eq!(projects(&placements, &b).await.unwrap(), ["b's"]);
    // One that nobody uses goes, once.
    let unused = database().site(b.tenant());
    provisioner.remove_empty_site(b.tenant(), &unused).await.unwrap();
    assert!(stage.owner_of(&unused.database).await.is_err());
    provisioner.remove_empty_site(b.tenant(), &unused).await.unwrap();
    stage.finish().await;
}

/// Where one thread stops, once, until a test lets it go on.
struct Stop(Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>);

struct Warden {
    arrived: Mutex<mpsc::Receiver<()>>,
    go: mpsc::Sender<()>,
}

fn gate() -> (Stop, Warden) {
    let (arrived, has_arrived) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    (Stop(Mutex::new(Some((arrived, may_go)))), Warden { arrived: Mutex::new(has_arrived), go })
}

impl Stop {
    fn stop(&self) {
        if let Some((arrived, go)) = self.0.lock().unwrap().take() {
            arrived.send(()).unwrap();
            tokio::task::block_in_place(|| go.recv()).unwrap();
        }
    }
}

impl Warden {
    async fn wait(&self) {
        tokio::task::block_in_place(|| self.arrived.lock().unwrap().recv()).unwrap();
    }

    fn go(&self) {
        self.go.send(()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_rows_are_leaving_is_not_migrated_and_one_that_is_migrated_not_left() {
    let stage = Stage::start().await;
    let ctx = stage.db.create_tenant("acme").await;
    let other = stage.db.create_tenant("other").await;
    let tenant = ctx.tenant();
    for ctx in [&ctx, &other] {
        stage.provisioner(&OLD).provision(ctx.tenant(), &schema()).await.unwrap();
    }
    add_project(&stage.serving(&OLD), &ctx, "on its way").await.unwrap();
    let to = stage.make_target(&ctx, &OLD, &database()).await;
    // A run of the fleet has listed the places, when the move begins; the mover then stands still before the freeze.
    let (listed, go_migrate) = gate();
    let (frozen, go_on) = gate();
    let brief = Timeouts { lock: std::time::Duration::from_millis(50), ..Timeouts::default() };
    let late = stage.ships(&NEW).with_timeouts(brief).with_observer(Arc::new(move |event| {
        if matches!(event, Event::Began { .. }) {
            listed.stop();
        }
    }));
    let late = tokio::spawn(async move { late.run().await });
    go_migrate.wait().await;
    let (mover, target) = (stage.mover(), address(&to));
    let moving = tokio::spawn(async move {
        let stop = |progress: saas_tenancy::relocate::Progress<'_>| {
            if progress.phase == Phase::Freeze {
                frozen.stop();
            }
        };
        mover.move_tenant(tenant, &target, &operator(), &stop).await
    });
    go_on.wait().await;
    go_migrate.go();
    let report = late.await.unwrap().unwrap();
    let outcome = |report: &Report| {
        report.sites.iter().find(|site| site.tenant == Some(tenant)).map(|site| site.outcome.clone()).unwrap()
    };
    assert_eq!(outcome(&report), Outcome::Skipped { why: "another process is at work there" });
    assert_eq!((report.ending, report.count("migrated")), (Ending::Complete, 1));
    let report = stage.ships(&NEW).run().await.unwrap();
    assert_eq!(outcome(&report), Outcome::Skipped { why: "it is being moved" });
    assert!(stage.ledger(tenant).await.iter().all(|(_, version, failed)| (*version, *failed) == (Some(2), false)));
    let named = stage.ships(&NEW).with_canaries(Canaries::Of(vec![tenant]));
    assert!(in_the_way(&named.run().await.unwrap_err()), "it cannot be a canary now");
    go_on.go();
    moving.await.unwrap().unwrap();
    stage.mover().confirm(tenant, &|_| {}).await.unwrap();
    let report = stage.ships(&NEW).run().await.unwrap();
    assert_eq!((report.ending, report.count("migrated"), report.count("current")), (Ending::Complete, 1, 1));
    assert_eq!(projects(&stage.serving(&NEW), &ctx).await.unwrap(), ["on its way"]);

    // The other way round: the mover waits, and gives up.
    let to = stage.make_target(&other, &NEW, &database()).await;
    let mut migrating = stage.db.owner().await;
    sqlx::query("select pg_advisory_lock(hashtextextended('saas.site:' || $1, 0))")
        .bind(schema().site(other.tenant()).schema.unwrap().as_str())
        .execute(&mut migrating)
        .await
        .unwrap();
    let busy = stage.mover().move_tenant(other.tenant(), &address(&to), &operator(), &|_| {}).await.unwrap_err();
    assert!(matches!(&busy, MoveError::Busy { what } if what.contains("being migrated")), "{busy}");
    migrating.execute("select pg_advisory_unlock_all()").await.unwrap();
    stage.mover().resume(other.tenant(), &|_| {}).await.unwrap();
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_killed_or_too_late_is_finished_or_undone() {
    let stage = Stage::start().await;
    stage.shared_tables(&OLD).await;
    let (provisioner, placements) = (stage.provisioner(&OLD), stage.serving(&OLD));
    let brief = Timeouts { lock: std::time::Duration::from_millis(50), ..Timeouts::default() };
    let hasty = provisioner.clone().with_timeouts(brief);
    for target in [schema(), database()] {
        let ctx = stage.db.create_tenant(&format!("acme-{}", target.mode())).await;
        let tenant = ctx.tenant();
        provisioner.provision(tenant, &target).await.unwrap();
        // Somebody is in there.
        let inside = TenantTx::begin(&placements, &ctx).await.unwrap();
        assert!(hasty.deprovision(tenant).await.unwrap_err().is_retryable());
        inside.commit().await.unwrap();
        assert_eq!(stage.placement(tenant).await.unwrap().state, State::Active);
        add_project(&placements, &ctx, "served as before").await.unwrap();

        // As a kill between the closing of the place and its removal leaves it.
        let close = "update saas.placement set state = 'failed', generation = generation + 1 where tenant_id = $1";
        sqlx::query(close).bind(tenant.as_uuid()).execute(&mut stage.db.owner().await).await.unwrap();
        placements.forget_all();
        assert_eq!(projects(&placements, &ctx).await.unwrap_err().code(), "provisioning_failed");
        assert!(in_the_way(&provisioner.deprovision(tenant).await.unwrap_err()));
        assert!(in_the_way(&provisioner.abandon(tenant).await.unwrap_err()), "it has rows");
        provisioner.resume(tenant).await.unwrap();
        assert_eq!(projects(&placements, &ctx).await.unwrap(), ["served as before"]);
        let mut tx = TenantTx::begin(&placements, &ctx).await.unwrap();
        sqlx::query("delete from project where tenant_id = $1").bind(tenant.as_uuid()).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        sqlx::query(close).bind(tenant.as_uuid()).execute(&mut stage.db.owner().await).await.unwrap();
        provisioner.abandon(tenant).await.unwrap();
        let placement = stage.placement(tenant).await.unwrap();
        assert_eq!(
            (placement.mode, placement.state),
            (Mode::Pooled, State::Active),
            "it was served: no generation twice"
        );
        placements.forget(tenant);
        add_project(&placements, &ctx, "among all others").await.unwrap();
    }
    stage.finish().await;
}
