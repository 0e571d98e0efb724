//! The application's migrations over many places: one fails in the middle, the run is killed, and the ledger stays right.

use std::{
    io::Write,
    num::NonZeroUsize,
    panic::panic_any,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use saas_core::{ErrorKind, RequestContext, TenantContext};
use saas_tenancy::placement::{
    Canaries, ClusterName, Fleet, KnownVersions, PlacementListener, ProgressBar, Site, Target, Timeouts,
    fleet::{Ending, Event, Outcome, Shared},
};
use sqlx::{AssertSqlSafe, Executor};

use crate::stage::{ARCHIVED, PROJECT, Stage, TASK, add_project, blueprint, projects};

pub(crate) const OLD: [&str; 2] = [PROJECT, TASK];
const DONE: &str = "alter table task add column done boolean not null default false;";
pub(crate) const NEW: [&str; 4] = [PROJECT, TASK, ARCHIVED, DONE];

pub(crate) fn many(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

impl Stage {
    pub(crate) fn fleet(&self, files: &[&'static str]) -> Fleet {
        let clock = Arc::new(self.db.clock().clone());
        Fleet::new(self.db.system().clone(), self.two_clusters(), blueprint(files), clock).with_parallelism(many(4))
    }

    pub(crate) async fn schemas(&self, count: usize) -> Vec<RequestContext> {
        let provisioner = &self.provisioner(&OLD);
        let mut tenants: Vec<RequestContext> = stream::iter(0..count)
            .map(|n| async move {
                let ctx = self.db.create_tenant(&format!("tenant-{n}")).await;
                provisioner.provision(ctx.tenant(), &Target::Schema(ClusterName::control())).await.unwrap();
                ctx
            })
            .buffer_unordered(4)
            .collect()
            .await;
        tenants.sort_by_key(RequestContext::tenant);
        tenants
    }

    async fn alter(&self, ctx: &RequestContext, change: &str) {
        let schema = site(ctx).schema.unwrap();
        let sql = change.replace("$schema", schema.as_str());
        self.db.owner().await.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    }

    /// The ledger in the control database says of each place what the place says of itself.
    pub(crate) async fn ledger_is_right(&self, fleet: &Fleet, tenants: &[RequestContext]) {
        for ctx in tenants {
            let site = site(ctx);
            let noted: Vec<i64> = fleet.history(&site).await.unwrap().iter().map(|step| step.version).collect();
            let own = format!("select version from {}._sqlx_migrations order by 1", site.schema.unwrap());
            let applied: Vec<i64> =
                sqlx::query_scalar(AssertSqlSafe(own)).fetch_all(&mut self.db.owner().await).await.unwrap();
            assert_eq!(noted, applied);
            let placement = self.placement(ctx.tenant()).await.unwrap();
            assert_eq!(placement.schema_version, applied.last().copied());
        }
    }
}

pub(crate) fn site(ctx: &RequestContext) -> Site {
    Site::schema_of(ctx.tenant(), ClusterName::control())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_places_one_fails_and_the_others_are_served() {
    let stage = Stage::start().await;
    stage.fleet(&OLD).run().await.unwrap();
    let tenants = stage.schemas(100).await;
    let broken = &tenants[37];
    // What the third migration is about to add is there already, in this place only.
    stage.alter(broken, "alter table $schema.project add column archived text").await;

    let fleet = stage.fleet(&NEW).with_canaries(Canaries::First(2));
    let before = fleet.status().await.unwrap();
    assert_eq!((before.count("waiting"), before.ending), (101, Ending::Stopped));
    let stopped = fleet.run().await.unwrap();
    assert_eq!((stopped.ending, stopped.count("failed")), (Ending::Stopped, 1), "{stopped}");
    let (migrated, waiting) = (stopped.count("migrated"), stopped.count("waiting"));
    assert_eq!(migrated + waiting, 100);
    assert!(migrated >= 37 && waiting >= 50, "{migrated} {waiting}");
    let failure = stopped.failures().next().unwrap().clone();
    assert_eq!((failure.tenant, failure.from, failure.to), (Some(broken.tenant()), Some(2), Some(2)));
    let Outcome::Failed { version, error } = &failure.outcome else { panic!("{failure:?}") };
    assert_eq!(*version, Some(3));
    assert!(error.contains(&site(broken).to_string()) && error.contains("already exists"), "{error}");
    stage.ledger_is_right(&fleet, &tenants).await;

    // Resumed, and told to go on: only what waited or failed is touched.
    let resumed = fleet.clone().stop_after(many(10)).run().await.unwrap();
    assert_eq!(resumed.ending, Ending::WithFailures);
    assert_eq!((resumed.count("current"), resumed.count("migrated"), resumed.count("failed")), (migrated, waiting, 1));
    stage.ledger_is_right(&fleet, &tenants).await;
    let status = fleet.status().await.unwrap();
    assert_eq!((status.count("current"), status.count("failed")), (100, 1));
    let shown = status.to_string();
    assert!(shown.contains("100 current 1 failed") && shown.contains("migration 3 failed"), "{shown}");
    assert!(serde_json::to_string(&status).unwrap().contains(r#""outcome":"failed""#));

    let placements = stage.serving(&NEW);
    for ctx in &tenants {
        let served = add_project(&placements, ctx, "after").await;
        if ctx.tenant() == broken.tenant() {
            let refused = served.unwrap_err();
            assert_eq!((refused.code(), refused.kind()), ("unknown_schema_version", ErrorKind::Misconfigured));
            assert!(refused.to_string().contains("are at version 2"), "{refused}");
        } else {
            served.unwrap();
        }
    }
    // A binary that works with the tables as they were serves that one as well.
    let tolerant = stage.placements().serving(KnownVersions::since(&blueprint(&NEW), 2)).build();
    add_project(&tolerant, broken, "before").await.unwrap();

    stage.alter(broken, "alter table $schema.project drop column archived").await;
    let complete = fleet.run().await.unwrap();
    assert_eq!((complete.ending, complete.count("migrated"), complete.count("current")), (Ending::Complete, 1, 100));
    stage.ledger_is_right(&fleet, &tenants).await;
    assert_eq!(projects(&placements, broken).await.unwrap(), ["before"]);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_is_resumed() {
    let stage = Stage::start().await;
    let tenants = stage.schemas(8).await;
    // One place after the other, so that a run finishes no more than it tells of before it dies.
    let fleet = stage
        .fleet(&NEW)
        .with_shared(Shared::Excluded)
        .with_canaries(Canaries::First(0))
        .with_parallelism(NonZeroUsize::MIN);
    for lives in 0..3 {
        let told = AtomicUsize::new(0);
        let mortal = fleet.clone().with_observer(Arc::new(move |event| {
            if matches!(event, Event::Finished(_)) && told.fetch_add(1, Ordering::SeqCst) == lives {
                panic_any("killed");
            }
        }));
        assert!(tokio::spawn(async move { mortal.run().await }).await.is_err());
        // The server lets go of the dead one's lock when it sees that the connection is gone.
        let is_free = "select pg_advisory_lock(hashtextextended('saas.fleet', 0));
                       select pg_advisory_unlock(hashtextextended('saas.fleet', 0))";
        stage.db.owner().await.execute(is_free).await.unwrap();
    }
    let status = fleet.status().await.unwrap();
    assert!(status.count("current") >= 6, "1 + 2 + 3 were finished: {status}");
    let report = fleet.run().await.unwrap();
    assert_eq!((report.ending, report.count("migrated") + report.count("current")), (Ending::Complete, 8));
    stage.ledger_is_right(&fleet, &tenants).await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_fails_saves_the_others() {
    let stage = Stage::start().await;
    let tenants = stage.schemas(4).await;
    stage.alter(&tenants[2], "alter table $schema.project add column archived text").await;
    let fleet = stage.fleet(&NEW).with_canaries(Canaries::Of(vec![tenants[2].tenant(), tenants[3].tenant()]));
    let report = fleet.run().await.unwrap();
    assert_eq!(report.ending, Ending::CanaryFailed);
    assert_eq!((report.count("failed"), report.count("migrated"), report.count("waiting")), (1, 1, 3));
    assert!(report.to_string().starts_with("fleet to version 4: stopped: a canary failed"), "{report}");
    stage.ledger_is_right(&fleet, &tenants).await;
    stage.finish().await;
}

/// A terminal that a test can read.
#[derive(Clone, Default)]
struct Terminal(Arc<Mutex<Vec<u8>>>);

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_in_use_or_was_edited_fails_alone_and_a_second_run_is_refused() {
    let stage = Stage::start().await;
    let tenants = stage.schemas(3).await;
    let terminal = Terminal::default();
    let brief = Timeouts { lock: Duration::from_millis(50), ..Timeouts::default() };
    let fleet = stage.fleet(&NEW).with_timeouts(brief).with_canaries(Canaries::First(0)).stop_after(many(10));
    let fleet = fleet.with_observer(ProgressBar::new(terminal.clone()).observer());

    let mut user = stage.db.owner().await;
    user.execute(AssertSqlSafe(format!("begin; select from {}.project", site(&tenants[0]).schema.unwrap())))
        .await
        .unwrap();
    stage.alter(&tenants[1], "update $schema._sqlx_migrations set checksum = '\\x00' where version = 2").await;
    let report = fleet.run().await.unwrap();
    let failed: Vec<_> = report.failures().map(|report| report.tenant.unwrap()).collect();
    assert_eq!((report.ending, report.count("migrated")), (Ending::WithFailures, 2), "{report}");
    assert!(failed.contains(&tenants[0].tenant()) && failed.contains(&tenants[1].tenant()));
    assert!(report.to_string().contains("migration 2 was previously applied but has been modified"), "{report}");
    let shown = String::from_utf8(terminal.0.lock().unwrap().clone()).unwrap();
    assert!(shown.ends_with("[##############################] 4/4, 2 failed\n"), "{shown}");

    user.execute("commit").await.unwrap();
    let report = fleet.run().await.unwrap();
    assert_eq!((report.count("migrated"), report.count("failed")), (1, 1));

    user.execute("select pg_advisory_lock(hashtextextended('saas.fleet', 0))").await.unwrap();
    let refused = fleet.run().await.unwrap_err();
    assert_eq!((refused.code(), refused.is_retryable()), ("in_progress", true));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_binary_hears_that_a_place_was_migrated_and_stops_serving_it() {
    let stage = Stage::start().await;
    stage.fleet(&OLD).run().await.unwrap();
    let own = stage.schemas(1).await.remove(0);
    let pooled = stage.db.create_tenant("pooled").await;
    let old = stage.serving(&OLD);
    let _listener = PlacementListener::start(old.clone(), stage.db.options("saas_app"));
    for ctx in [&own, &pooled] {
        add_project(&old, ctx, "old").await.unwrap();
    }
    let report = stage.fleet(&NEW).run().await.unwrap();
    assert_eq!(report.ending, Ending::Complete);
    // The announcement is on its way: from some moment on the place is refused.
    let refused = loop {
        match add_project(&old, &own, "old").await {
            Ok(()) => {}
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.code(), "unknown_schema_version");
    assert!(refused.to_string().contains("deploy the release that migrated it"), "{refused}");
    // The version of the shared tables is the fleet's ledger's.
    old.forget_all();
    assert_eq!(add_project(&old, &pooled, "old").await.unwrap_err().code(), "unknown_schema_version");
    let new = stage.serving(&NEW);
    for ctx in [&own, &pooled] {
        add_project(&new, ctx, "new").await.unwrap();
    }
    stage.finish().await;
}
