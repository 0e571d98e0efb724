//! Exports as jobs: one at a time, done again after a kill, kept for a while, removed.

use std::sync::Arc;

use chrono::TimeDelta;
use futures_util::{future::join, poll};
use saas_core::{Actor, ErrorKind, ExportId, RequestContext, TenantContext, UserId};
use saas_tenancy::{
    Role, TenancyError,
    erase::{Erasures, SlugPolicy},
    export::{ExportJob, ExportJobState, ExportJobs, ExportRun, ExportTarget, LocalFolder, TargetFault},
};

use crate::{
    stage::Stage,
    targets::{Folder, Memory},
};

fn jobs(stage: &Stage, target: impl ExportTarget) -> ExportJobs {
    ExportJobs::new(stage.exports.clone(), Arc::new(target)).with_keep(TimeDelta::days(2))
}

async fn only(jobs: &ExportJobs, stage: &Stage) -> ExportJob {
    let mut all = jobs.list(&stage.a).await.unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[tokio::test]
async fn two_that_ask_get_one_export_and_of_two_workers_one_does_it() {
    let stage = Stage::start().await;
    let folder = Folder::new();
    let jobs = jobs(&stage, LocalFolder::new(folder.path()));
    let tenant = stage.acme.tenant;
    assert!(matches!(jobs.run(tenant).await.unwrap(), ExportRun::Nothing), "nobody asked");
    let (one, other) = join(jobs.request(&stage.a), jobs.request(&stage.a)).await;
    assert_eq!(one.unwrap(), other.unwrap());
    assert_eq!(jobs.list_to_run().await.unwrap(), [tenant]);
    let runs = join(jobs.run(tenant), jobs.run(tenant)).await;
    let done: Vec<_> = [runs.0.unwrap(), runs.1.unwrap()]
        .into_iter()
        .filter_map(|run| if let ExportRun::Done(done) = run { Some(done) } else { None })
        .collect();
    assert_eq!(done.len(), 1);
    let job = only(&jobs, &stage).await;
    assert_eq!((job.state, job.tries, &job.failure), (ExportJobState::Done, 1, &None));
    assert_eq!(job.place.as_deref(), Some(done[0].place.as_str()));
    let bytes: u64 = done[0].manifest.tables.iter().flat_map(|table| &table.files).map(|file| file.bytes).sum();
    assert_eq!(job.bytes, bytes, "the last progress is the whole");
    assert_eq!(jobs.list_to_run().await.unwrap(), []);
    assert_ne!(jobs.request(&stage.a).await.unwrap().id, job.id, "the next one is a new one");
    let log = stage.audited(tenant).await;
    assert_eq!(log.iter().filter(|action| *action == "tenant.export_requested").count(), 2);
}

#[tokio::test]
async fn an_export_job_that_is_killed_anywhere_is_done_again_and_leaves_one_export() {
    let stage = Stage::start().await;
    let folder = Folder::new();
    jobs(&stage, LocalFolder::new(folder.path())).request(&stage.a).await.unwrap();
    let (mut polls, mut killed, mut was_seen_running) = (1, 0, false);
    let done = loop {
        // A new process each time.
        let jobs = jobs(&stage, LocalFolder::new(folder.path())).with_tries(1_000);
        let mut run = Box::pin(jobs.run(stage.acme.tenant));
        let mut outcome = None;
        for _ in 0..polls {
            if let std::task::Poll::Ready(ready) = poll!(run.as_mut()) {
                outcome = Some(ready.unwrap());
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(run);
        match outcome {
            Some(ExportRun::Done(done)) => break done,
            Some(ExportRun::Elsewhere) => {}
            Some(ExportRun::Nothing) => unreachable!("it was asked for"),
            None => (polls, killed) = (polls * 5 / 4 + 1, killed + 1),
        }
        let published: Vec<String> = folder.files().into_iter().filter(|file| !file.contains(".partial/")).collect();
        let manifests = published.iter().filter(|file| file.ends_with("manifest.json")).count();
        assert!(manifests <= 1 && (manifests == 1 || published.is_empty()), "{published:?}");
        was_seen_running |= only(&jobs, &stage).await.state == ExportJobState::Running;
    };
    assert!(killed > 10 && was_seen_running, "killed {killed} times");
    let manifests: Vec<String> = folder.files().into_iter().filter(|file| file.ends_with("manifest.json")).collect();
    assert_eq!(manifests, [format!("{}/{}/manifest.json", stage.acme.tenant, done.manifest.export)]);
    assert!(!folder.files().iter().any(|file| file.contains(".partial/")), "nothing of earlier attempts is left");
    assert!(only(&jobs(&stage, LocalFolder::new(folder.path())), &stage).await.tries > 2);
}

#[tokio::test]
async fn how_far_a_job_is_can_be_read_while_it_runs() {
    let stage = Stage::start().await;
    let jobs = jobs(&stage, Memory::default());
    jobs.request(&stage.a).await.unwrap();
    let mut run = Box::pin(jobs.run(stage.acme.tenant));
    // A connection of its own: the job waits while it is not polled, and with it those that it holds.
    let (mut owner, mut seen) = (stage.db.owner().await, std::collections::BTreeSet::new());
    while poll!(run.as_mut()).is_pending() {
        let table: Option<String> =
            sqlx::query_scalar("select max(at_table) from saas.export_job where state = 'running'")
                .fetch_one(&mut owner)
                .await
                .unwrap();
        seen.extend(table);
    }
    assert!(seen.len() > 3, "{seen:?}");
}

/// A process that is killed removes nothing; what it has begun is on record.
#[tokio::test]
async fn what_a_dead_process_has_left_is_removed_by_the_next() {
    let stage = Stage::start().await;
    let folder = Folder::new();
    let target = LocalFolder::new(folder.path());
    let jobs = jobs(&stage, target.clone());
    jobs.request(&stage.a).await.unwrap();
    let (dead, tenant) = (ExportId::mint(stage.db.clock()), stage.acme.tenant);
    std::mem::forget(target.begin(tenant, dead).await.unwrap());
    let partial = folder.path().join(tenant.to_string()).join(format!(".{dead}.partial"));
    assert!(partial.is_dir());
    let mut owner = stage.db.owner().await;
    let begun = sqlx::query("update saas.export_job set state = 'running', tries = 1, attempts = array[$1]");
    begun.bind(dead.as_uuid()).execute(&mut owner).await.unwrap();
    assert!(matches!(jobs.run(tenant).await.unwrap(), ExportRun::Done(_)));
    assert!(!partial.exists());
    let attempts: i32 =
        sqlx::query_scalar("select cardinality(attempts) from saas.export_job").fetch_one(&mut owner).await.unwrap();
    assert_eq!(attempts, 1, "the one that is published");
}

#[tokio::test]
async fn a_job_that_fails_is_tried_again_and_given_up_in_the_end() {
    let stage = Stage::start().await;
    let failing = Memory { fails_at_file: Some(5), ..Memory::default() };
    let jobs_of = |target: Memory| jobs(&stage, target).with_tries(2);
    let jobs = jobs_of(failing.clone());
    jobs.request(&stage.a).await.unwrap();
    jobs.run(stage.acme.tenant).await.unwrap_err();
    let job = only(&jobs, &stage).await;
    assert_eq!((job.state, job.failure.as_deref()), (ExportJobState::Running, Some("export_target")));
    jobs.run(stage.acme.tenant).await.unwrap_err();
    let job = only(&jobs, &stage).await;
    assert_eq!((job.state, job.tries), (ExportJobState::Failed, 2));
    assert!(stage.audited(stage.acme.tenant).await.contains(&"tenant.export_failed".to_owned()));
    // What it left is due at once.
    assert_eq!(jobs.remove_expired(10).await.unwrap(), 1);
    assert_eq!(only(&jobs, &stage).await.state, ExportJobState::Removed);
    assert!(failing.files.lock().unwrap().is_empty());

    // What no repeat mends is given up at once.
    let refusing = jobs_of(Memory { fault: Some(TargetFault::Refused), ..failing });
    refusing.request(&stage.a).await.unwrap();
    let error = refusing.run(stage.acme.tenant).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("export_target_refused", ErrorKind::Misconfigured));
    let newest = refusing.list(&stage.a).await.unwrap().remove(0);
    assert_eq!((newest.state, newest.tries), (ExportJobState::Failed, 1));
}

#[tokio::test]
async fn files_go_when_their_time_is_over_and_not_before() {
    let stage = Stage::start().await;
    let folder = Folder::new();
    let jobs = jobs(&stage, LocalFolder::new(folder.path()));
    jobs.request(&stage.a).await.unwrap();
    assert_eq!(jobs.remove_expired(10).await.unwrap(), 0, "under way");
    let _ = jobs.run(stage.acme.tenant).await.unwrap();
    stage.db.clock().advance(TimeDelta::days(2) - TimeDelta::seconds(1));
    assert_eq!(jobs.remove_expired(10).await.unwrap(), 0);
    assert!(!folder.files().is_empty());
    stage.db.clock().advance(TimeDelta::seconds(1));
    assert_eq!(jobs.remove_expired(10).await.unwrap(), 1);
    assert_eq!(folder.files(), Vec::<String>::new());
    let job = only(&jobs, &stage).await;
    assert_eq!((job.state, job.place), (ExportJobState::Removed, None));
    assert_eq!(jobs.remove_expired(10).await.unwrap(), 0);
    jobs.remove(stage.acme.tenant, job.id).await.unwrap();
}

#[tokio::test]
async fn an_export_that_is_kept_forbids_the_erasure_and_an_erased_tenant_gets_none() {
    let stage = Stage::start().await;
    let folder = Folder::new();
    let jobs = jobs(&stage, LocalFolder::new(folder.path()));
    let operator = || Actor::Operator { id: UserId::mint(stage.db.clock()) };
    let erasures = Erasures::new(stage.db.system().clone(), Arc::new(stage.db.clock().clone()))
        .with_dependents(Arc::new(jobs.clone()));
    let job = jobs.request(&stage.a).await.unwrap();
    let asking = operator();
    let request = || erasures.request(stage.acme.tenant, &asking, "why", SlugPolicy::Keep);
    assert_eq!(request().await.unwrap_err().code(), "erase_blocked", "under way");
    assert!(matches!(jobs.remove(stage.acme.tenant, job.id).await, Err(TenancyError::Core(_))), "it is not over");
    let _ = jobs.run(stage.acme.tenant).await.unwrap();
    let error = request().await.unwrap_err().to_string();
    assert!(error.contains("1 of its exports") && error.contains("ExportJobs::remove"), "{error}");
    jobs.remove(stage.acme.tenant, job.id).await.unwrap();
    assert_eq!(folder.files(), Vec::<String>::new());
    request().await.unwrap();
    erasures.approve(stage.acme.tenant, &operator()).await.unwrap();
    erasures.run(stage.acme.tenant, &mut |_| ()).await.unwrap();
    let vendor = RequestContext::new(stage.acme.tenant, operator(), stage.db.clock());
    assert_eq!(jobs.request(&vendor).await.unwrap_err().code(), "not_a_member");
}

/// Erased without the port: the export that was being written would outlive its tenant.
#[tokio::test]
async fn an_export_whose_job_is_gone_is_removed_again() {
    let stage = Stage::start().await;
    let folder = Folder::new();
    let jobs = jobs(&stage, LocalFolder::new(folder.path()));
    jobs.request(&stage.a).await.unwrap();
    let mut run = Box::pin(jobs.run(stage.acme.tenant));
    while folder.files().is_empty() {
        assert!(poll!(run.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    stage.as_superuser("delete from saas.export_job").await;
    assert_eq!(run.await.unwrap_err().code(), "not_found");
    assert_eq!(folder.files(), Vec::<String>::new());
}

#[tokio::test]
async fn only_who_may_export_may_ask_or_look() {
    let stage = Stage::start().await;
    let jobs = jobs(&stage, Memory::default());
    let admin = stage.tenancy.add_member(&stage.a, &"admin@acme.example".parse().unwrap(), Role::Admin).await.unwrap();
    let clock = stage.db.clock();
    jobs.request(&stage.a).await.unwrap();
    for (actor, code) in [(Actor::user(admin), "not_allowed"), (Actor::user(UserId::mint(clock)), "not_a_member")] {
        let ctx = RequestContext::new(stage.acme.tenant, actor, clock);
        assert_eq!(jobs.request(&ctx).await.unwrap_err().code(), code);
        assert_eq!(jobs.list(&ctx).await.unwrap_err().code(), code);
    }
    assert_eq!(jobs.list(&stage.b).await.unwrap(), [], "another tenant's jobs are not seen");
    assert_ne!(stage.a.tenant(), stage.b.tenant());
}
