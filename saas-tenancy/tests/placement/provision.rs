//! Places of a tenant's own: made in steps that a kill may interrupt anywhere, or removed without a trace.

use std::{
    panic::panic_any,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use saas_core::{Actor, CoreError, ErrorKind, RequestContext, TenantContext, UserId, doctor};
use saas_tenancy::{
    lifecycle::Lifecycle,
    placement::{ClusterName, Mode, PlacementError, Provisioner, State, Step, Target, Timeouts},
};
use sqlx::{Connection as _, Executor};

use crate::stage::{PROJECT, Stage, TASK, add_project, projects};

const FILES: [&str; 2] = [PROJECT, TASK];

fn eu() -> ClusterName {
    "eu".parse().unwrap()
}

fn targets() -> Vec<Target> {
    vec![
        Target::Schema(ClusterName::control()),
        Target::Database(ClusterName::control()),
        Target::Schema(eu()),
        Target::Database(eu()),
        Target::Pooled(eu()),
    ]
}

/// Removes what a test has made on servers that outlive it.
async fn remove(provisioner: &Provisioner, ctx: &RequestContext, target: &Target) {
    provisioner.remove_site_with_rows(ctx.tenant(), &target.site(ctx.tenant())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_code_serves_a_tenant_in_every_mode() {
    let stage = Stage::start().await;
    stage.shared_tables(&FILES).await;
    let provisioner = stage.provisioner(&FILES);
    let placements = stage.serving(&FILES);
    let pooled = stage.db.create_tenant("pooled").await;
    let mut tenants = vec![(pooled, Target::Pooled(ClusterName::control()))];
    for (n, target) in targets().into_iter().enumerate() {
        let ctx = stage.db.create_tenant(&format!("tenant-{n}")).await;
        let placement = provisioner.provision(ctx.tenant(), &target).await.unwrap();
        assert_eq!((placement.state, placement.mode), (State::Active, target.mode()));
        assert_eq!((placement.schema_version, placement.generation.get()), (Some(2), 1), "{target:?}");
        tenants.push((ctx, target));
    }
    for round in ["one", "two"] {
        for (ctx, target) in &tenants {
            add_project(&placements, ctx, &format!("{round} of {}", ctx.tenant())).await.unwrap();
            let seen = projects(&placements, ctx).await.unwrap();
            assert!(seen.iter().all(|name| name.ends_with(&ctx.tenant().to_string())), "{target:?}: {seen:?}");
        }
    }
    for (ctx, _) in &tenants {
        assert_eq!(projects(&placements, ctx).await.unwrap().len(), 2);
    }
    // Each place holds only its own, and passes the isolation audit.
    assert_eq!(doctor::examine(stage.db.tenants().pool()).await.unwrap(), []);
    for (ctx, target) in &tenants {
        let site = target.site(ctx.tenant());
        let schema = site.schema.as_ref().map_or("public", |schema| schema.as_str());
        let mut owner = stage.owner_of(&site.database).await.unwrap();
        owner.execute(sqlx::AssertSqlSafe(format!("set search_path = {schema}"))).await.unwrap();
        let owners: Vec<uuid::Uuid> =
            sqlx::query_scalar("select distinct tenant_id from project").fetch_all(&mut owner).await.unwrap();
        assert_eq!(owners, [ctx.tenant().as_uuid()], "{site}");
        let table_owner: String =
            sqlx::query_scalar("select tableowner::text from pg_tables where tablename = 'task' and schemaname = $1")
                .bind(schema)
                .fetch_one(&mut owner)
                .await
                .unwrap();
        if *target != Target::Pooled(ClusterName::control()) {
            assert_eq!(table_owner, "saas_owner", "T49");
        }
        owner.close().await.unwrap();
    }
    // Of the shared tables, nothing is removed.
    for (ctx, target) in tenants[1..].iter().filter(|(_, target)| target.mode() != Mode::Pooled) {
        placements.pools().close(&target.site(ctx.tenant()).database).await;
        remove(&provisioner, ctx, target).await;
    }
    stage.finish().await;
}

/// Kills the process, as far as a task can be one, at the `n`-th thing that the provisioner tells.
fn killed_at(provisioner: Provisioner, n: usize) -> (Provisioner, Arc<AtomicUsize>) {
    let told = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&told);
    let provisioner = provisioner.with_observer(Arc::new(move |_, _, _| {
        if counting.fetch_add(1, Ordering::SeqCst) == n {
            panic_any("killed");
        }
    }));
    (provisioner, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_it_is_resumed_or_abandoned_and_nothing_is_left() {
    let stage = Stage::start().await;
    let sound = stage.provisioner(&FILES);
    let placements = stage.serving(&FILES);
    for target in [Target::Schema(ClusterName::control()), Target::Database(eu())] {
        let mut kills = 0;
        loop {
            let resumed = stage.db.create_tenant(&format!("resumed-{:?}-{kills}", target.mode()).to_lowercase()).await;
            let abandoned =
                stage.db.create_tenant(&format!("abandoned-{:?}-{kills}", target.mode()).to_lowercase()).await;
            let mut survived = false;
            for ctx in [&resumed, &abandoned] {
                let (mortal, _) = killed_at(sound.clone(), kills);
                let (tenant, target) = (ctx.tenant(), target.clone());
                let life = tokio::spawn(async move { mortal.provision(tenant, &target).await });
                survived = life.await.is_ok();
            }
            if survived {
                // Past the last step: both are served, and a place that is served is not abandoned.
                let refused = sound.abandon(abandoned.tenant()).await.unwrap_err();
                assert_eq!((refused.code(), refused.kind()), ("placement_in_the_way", ErrorKind::Conflict));
                placements.pools().close(&target.site(resumed.tenant()).database).await;
                for ctx in [&resumed, &abandoned] {
                    remove(&sound, ctx, &target).await;
                }
                break;
            }
            kills += 1;
            let refused = add_project(&placements, &resumed, "too early").await.unwrap_err();
            assert_eq!((refused.code(), refused.is_retryable()), ("being_provisioned", true));
            let progress = sound.progress(resumed.tenant()).await.unwrap().unwrap();
            assert_eq!((progress.placement.state, progress.tries), (State::Provisioning, 1));
            assert!(progress.step.is_some());

            let placement = sound.resume(resumed.tenant()).await.unwrap();
            assert_eq!((placement.state, placement.schema_version), (State::Active, Some(2)));
            assert_eq!(sound.progress(resumed.tenant()).await.unwrap().unwrap().step, None);
            add_project(&placements, &resumed, "on time").await.unwrap();
            assert_eq!(projects(&placements, &resumed).await.unwrap(), ["on time"]);
            placements.pools().close(&target.site(resumed.tenant()).database).await;
            remove(&sound, &resumed, &target).await;

            sound.abandon(abandoned.tenant()).await.unwrap();
            sound.abandon(abandoned.tenant()).await.unwrap();
            nothing_is_left(&stage, &abandoned, &target).await;
        }
        assert_eq!(kills, 8, "before and after each of four steps");
    }
    stage.finish().await;
}

async fn nothing_is_left(stage: &Stage, ctx: &RequestContext, target: &Target) {
    assert_eq!(stage.placement(ctx.tenant()).await, None);
    let site = target.site(ctx.tenant());
    let mut control = stage.db.owner().await;
    let rows: i64 = sqlx::query_scalar(
        "select (select count(*) from saas.resident where tenant_id = $1)
              + (select count(*) from saas.provisioning where tenant_id = $1)
              + (select count(*) from saas.fleet_site where tenant_id = $1)
              + (select count(*) from saas.fenced_table where name like '%' || $2 || '%')",
    )
    .bind(ctx.tenant().as_uuid())
    .bind(ctx.tenant().as_uuid().simple().to_string())
    .fetch_one(&mut control)
    .await
    .unwrap();
    assert_eq!(rows, 0);
    let left: i64 = match &site.schema {
        Some(schema) => sqlx::query_scalar("select count(*) from pg_namespace where nspname = $1")
            .bind(schema.as_str())
            .fetch_one(&mut stage.owner_of(&site.database).await.unwrap())
            .await
            .unwrap(),
        None => i64::from(stage.owner_of(&site.database).await.is_ok()),
    };
    assert_eq!(left, 0, "{site}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_provisioners_one_does_the_work() {
    let stage = Stage::start().await;
    let ctx = stage.db.create_tenant("acme").await;
    let target = Target::Schema(ClusterName::control());
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    let provisioner = stage.provisioner(&FILES).with_observer(Arc::new(move |_, step, done| {
        telling.lock().unwrap().push((step, done));
    }));
    let all = join_all((0..4).map(|_| provisioner.provision(ctx.tenant(), &target))).await;
    let placed = all.into_iter().map(Result::unwrap).filter(|placement| placement.mode == Mode::Schema).count();
    assert_eq!(placed, 4);
    let told = told.lock().unwrap().clone();
    let expected: Vec<(Step, bool)> = Step::ALL[1..].iter().flat_map(|step| [(*step, false), (*step, true)]).collect();
    assert_eq!(told, expected, "each step once");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_shown_with_its_reason_and_mended_by_a_resume() {
    let stage = Stage::start().await;
    let placements = stage.serving(&FILES);
    let target = Target::Schema(ClusterName::control());
    let leaky = "create table note (tenant_id uuid not null, body text); grant select on note to saas_app;";
    for (n, (broken, code, says)) in [
        ("create table task (); select 1 / 0;", "migration_failed", "division by zero"),
        ("create table task (tenant_id uuid); select saas.fence('task');", "migration_failed", "tenant_id"),
        (leaky, "placement_leaks", "rls-off"),
    ]
    .into_iter()
    .enumerate()
    {
        let ctx = stage.db.create_tenant(&format!("tenant-{n}")).await;
        let error = stage.provisioner(&[PROJECT, broken]).provision(ctx.tenant(), &target).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), (code, ErrorKind::Misconfigured));
        assert!(error.in_full().contains(says), "{}", error.in_full());
        let sound = stage.provisioner(&FILES);
        let progress = sound.progress(ctx.tenant()).await.unwrap().unwrap();
        assert_eq!(progress.placement.state, State::Failed);
        assert!(progress.placement.reason.unwrap().contains(says));
        assert!(sound.list_unfinished(None, 10).await.unwrap().contains(&(ctx.tenant(), State::Failed)));
        let refused = add_project(&placements, &ctx, "too early").await.unwrap_err();
        assert_eq!((refused.code(), refused.kind()), ("provisioning_failed", ErrorKind::Misconfigured));
        if code == "migration_failed" {
            sound.resume(ctx.tenant()).await.unwrap();
            add_project(&placements, &ctx, "on time").await.unwrap();
            assert_eq!(sound.list_unfinished(None, 10).await.unwrap(), []);
        } else {
            // What was applied is published: other text under the same number is refused, and the place given up.
            assert_eq!(sound.resume(ctx.tenant()).await.unwrap_err().code(), "placement_leaks");
            sound.abandon(ctx.tenant()).await.unwrap();
            nothing_is_left(&stage, &ctx, &target).await;
            sound.provision(ctx.tenant(), &target).await.unwrap();
        }
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_never_left_behind_or_dropped() {
    let stage = Stage::start().await;
    stage.shared_tables(&FILES).await;
    let (provisioner, placements) = (stage.provisioner(&FILES), stage.serving(&FILES));
    let target = Target::Schema(ClusterName::control());
    let rooted = stage.db.create_tenant("rooted").await;
    add_project(&placements, &rooted, "in the shared table").await.unwrap();
    let refused = provisioner.provision(rooted.tenant(), &target).await.unwrap_err();
    assert!(matches!(&refused, PlacementError::InTheWay { what, .. } if what.contains("`project`")), "{refused}");
    assert_eq!(stage.placement(rooted.tenant()).await, None);
    assert_eq!(projects(&placements, &rooted).await.unwrap(), ["in the shared table"]);

    // Somebody has put a row into a place that was never finished.
    let half = stage.db.create_tenant("half-made").await;
    let broken = stage.provisioner(&[PROJECT, "select 1 / 0"]);
    broken.provision(half.tenant(), &target).await.unwrap_err();
    let site = target.site(half.tenant());
    let insert = format!(
        "insert into {}.project (tenant_id, name) values ('{}', 'kept')",
        site.schema.as_ref().unwrap(),
        half.tenant()
    );
    stage.db.owner().await.execute(sqlx::AssertSqlSafe(insert)).await.unwrap();
    let refused = broken.abandon(half.tenant()).await.unwrap_err();
    assert_eq!(refused.code(), "placement_in_the_way");
    // It can still be finished, from the beginning, and the row is there.
    provisioner.resume(half.tenant()).await.unwrap();
    assert_eq!(projects(&placements, &half).await.unwrap(), ["kept"]);

    let other = Target::Database(ClusterName::control());
    let refused = provisioner.provision(half.tenant(), &other).await.unwrap_err();
    assert!(refused.to_string().contains("move it instead"), "{refused}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_for_another_provisioner_is_told_so() {
    let stage = Stage::start().await;
    let ctx = stage.db.create_tenant("acme").await;
    let mut other = stage.db.owner().await;
    sqlx::query("select pg_advisory_lock(hashtextextended('saas.provisioning:' || $1, 0))")
        .bind(ctx.tenant().to_string())
        .execute(&mut other)
        .await
        .unwrap();
    let brief = Timeouts { lock: std::time::Duration::from_millis(50), ..Timeouts::default() };
    let provisioner = stage.provisioner(&FILES).with_timeouts(brief);
    let target = Target::Schema(ClusterName::control());
    let error = provisioner.provision(ctx.tenant(), &target).await.unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), ("in_progress", true));
    other.close().await.unwrap();
    stage.provisioner(&FILES).resume(ctx.tenant()).await.unwrap();
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_tenant_gets_a_place_whose_door_tells_it() {
    let stage = Stage::start().await;
    stage.shared_tables(&FILES).await;
    let provisioner = stage.provisioner(&FILES);
    let placements = stage.serving(&FILES);
    let lifecycle = Lifecycle::new(stage.db.system().clone(), Arc::new(stage.db.clock().clone()))
        .with_clusters(stage.two_clusters());
    let vendor = Actor::Operator { id: UserId::mint(stage.db.clock()) };
    // The shared tables of the other cluster outlive a test, and another one counts what is in them.
    for (n, target) in targets().into_iter().filter(|target| *target != Target::Pooled(eu())).enumerate() {
        let ctx = stage.db.create_tenant(&format!("tenant-{n}")).await;
        lifecycle.suspend(ctx.tenant(), &vendor, "unpaid").await.unwrap();
        provisioner.provision(ctx.tenant(), &target).await.unwrap();
        let refused = add_project(&placements, &ctx, "x").await.unwrap_err();
        let CoreError::Statement { cause } = &refused else { panic!("{target:?}: {refused:?}") };
        assert!(format!("{cause:?}").contains("25006"), "a read-only transaction: {cause:?}");
        assert_eq!(projects(&placements, &ctx).await.unwrap(), [""; 0], "{target:?}");
        lifecycle.resume(ctx.tenant(), &vendor).await.unwrap();
        add_project(&placements, &ctx, "x").await.unwrap();
        remove(&provisioner, &ctx, &target).await;
    }
}
