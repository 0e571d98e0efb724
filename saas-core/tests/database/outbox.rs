//! The outbox: exactly what committed is delivered, at least once, by one worker at a time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use chrono::TimeDelta;
use saas_core::{
    Actor, JobId, PageSize, RequestContext, SCHEMA, SystemTx, TenantContext, TenantTx, Topic,
    outbox::{self, Job, JobError, JobHandler, NewJob, Pass, RetryPolicy, Worker},
    testing::TestDatabase,
};
use tokio::sync::Notify;

const GREET: Topic = Topic::from_static("greet");

#[derive(Debug, Default)]
struct Greeter {
    delivered: std::sync::Mutex<Vec<(JobId, String)>>,
    /// How many tries fail before one succeeds; `usize::MAX` for always.
    failures: AtomicUsize,
    permanent: bool,
    panics: bool,
    /// When set, the handler says that it started and waits to be let go.
    gate: Option<(Notify, Notify)>,
}

#[async_trait]
impl JobHandler for Greeter {
    async fn run(&self, job: &Job) -> Result<(), JobError> {
        if let Some((started, go)) = &self.gate {
            started.notify_one();
            go.notified().await;
        }
        assert!(!self.panics, "the handler panics");
        if self.failures.load(Ordering::SeqCst) > 0 {
            self.failures.fetch_sub(1, Ordering::SeqCst);
            let error = "the other side said \0 no";
            return Err(if self.permanent { JobError::permanent(error) } else { JobError::retry(error) });
        }
        self.delivered.lock().unwrap().push((job.id, job.payload()?));
        Ok(())
    }
}

struct Setup {
    db: TestDatabase,
    ctx: RequestContext,
}

impl Setup {
    async fn start() -> Self {
        let db = TestDatabase::start(&[&SCHEMA]).await;
        let ctx = db.create_tenant("acme").await;
        Self { db, ctx }
    }

    async fn enqueue(&self, what: &str) -> JobId {
        let mut tx = TenantTx::begin(self.db.tenants(), &self.ctx).await.unwrap();
        let job = NewJob::of(GREET, &what).unwrap();
        let id = outbox::enqueue_in(&mut tx, self.ctx.tenant(), job, self.db.clock().now_utc()).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    fn worker(&self, greeter: &Arc<Greeter>) -> Worker {
        Worker::new(self.db.system().clone(), Arc::new(self.db.clock().clone())).with_handler(GREET, greeter.clone())
    }

    async fn dead(&self) -> Vec<outbox::DeadLetter> {
        let mut tx = SystemTx::begin(self.db.system(), Actor::system("test"), "look").await.unwrap();
        outbox::list_dead(&mut tx, None, PageSize::default()).await.unwrap().items
    }

    async fn execute(&self, sql: &'static str) -> u64 {
        let mut tx = SystemTx::begin(self.db.system(), Actor::system("test"), "set up").await.unwrap();
        let done = sqlx::query(sql).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        done.rows_affected()
    }
}

trait Now {
    fn now_utc(&self) -> chrono::DateTime<chrono::Utc>;
}

impl Now for saas_core::TestClock {
    fn now_utc(&self) -> chrono::DateTime<chrono::Utc> {
        saas_core::Clock::now(self)
    }
}

#[tokio::test]
async fn a_committed_job_is_delivered_once_and_a_rolled_back_one_never() {
    let setup = Setup::start().await;
    let id = setup.enqueue("hello").await;
    let mut tx = TenantTx::begin(setup.db.tenants(), &setup.ctx).await.unwrap();
    let never = NewJob::of(GREET, &"never").unwrap();
    outbox::enqueue_in(&mut tx, setup.ctx.tenant(), never, setup.db.clock().now_utc()).await.unwrap();
    drop(tx);
    let greeter = Arc::new(Greeter::default());
    let worker = setup.worker(&greeter);
    assert_eq!(worker.run_once().await.unwrap(), Pass { done: 1, ..Pass::default() });
    assert!(worker.run_once().await.unwrap().is_idle());
    assert_eq!(*greeter.delivered.lock().unwrap(), [(id, "hello".to_owned())]);
}

// T39
#[tokio::test]
async fn a_job_cannot_be_enqueued_for_another_tenant() {
    let setup = Setup::start().await;
    let other = setup.db.create_tenant("other").await;
    let mut tx = TenantTx::begin(setup.db.tenants(), &setup.ctx).await.unwrap();
    let job = NewJob::of(GREET, &"planted").unwrap();
    let error = outbox::enqueue_in(&mut tx, other.tenant(), job, setup.db.clock().now_utc()).await.unwrap_err();
    assert_eq!(error.code(), "forbidden");
}

// Q1
#[tokio::test]
async fn a_job_that_commits_late_is_not_passed_over() {
    let setup = Setup::start().await;
    let mut slow = TenantTx::begin(setup.db.tenants(), &setup.ctx).await.unwrap();
    let job = NewJob::of(GREET, &"slow").unwrap();
    outbox::enqueue_in(&mut slow, setup.ctx.tenant(), job, setup.db.clock().now_utc()).await.unwrap();
    setup.enqueue("fast").await;
    let greeter = Arc::new(Greeter::default());
    assert_eq!(setup.worker(&greeter).run_once().await.unwrap().done, 1);
    slow.commit().await.unwrap();
    assert_eq!(setup.worker(&greeter).run_once().await.unwrap().done, 1);
}

#[tokio::test]
async fn a_failing_job_comes_back_later_and_ends_as_a_dead_letter_that_can_be_replayed() {
    let setup = Setup::start().await;
    let id = setup.enqueue("hello").await;
    let greeter = Arc::new(Greeter { failures: 3.into(), ..Greeter::default() });
    let retry = RetryPolicy { attempts: 3, ..RetryPolicy::default() };
    let worker = setup.worker(&greeter).with_retry(retry);
    assert_eq!(worker.run_once().await.unwrap().retried, 1);
    setup.db.clock().advance(TimeDelta::hours(1));
    assert_eq!(worker.run_once().await.unwrap().retried, 1);
    setup.db.clock().advance(TimeDelta::hours(1));
    assert_eq!(worker.run_once().await.unwrap().dead, 1);
    let dead = setup.dead().await;
    // Q5: a reason with a NUL is kept all the same.
    assert_eq!((dead.len(), dead[0].id, dead[0].attempts), (1, id, 3));
    assert_eq!(dead[0].reason, "the other side said \u{fffd} no");

    let mut tx = SystemTx::begin(setup.db.system(), Actor::system("test"), "replay").await.unwrap();
    outbox::replay_dead_in(&mut tx, &Actor::system("test"), dead[0].tenant, id, setup.db.clock().now_utc())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(worker.run_once().await.unwrap().done, 1);
    assert!(setup.dead().await.is_empty());
    let mut tx = SystemTx::begin(setup.db.system(), Actor::system("test"), "replay").await.unwrap();
    let again =
        outbox::replay_dead_in(&mut tx, &Actor::system("test"), dead[0].tenant, id, setup.db.clock().now_utc()).await;
    assert_eq!(again.unwrap_err().code(), "not_found");
}

// Q11
#[tokio::test]
async fn a_permanent_failure_is_not_tried_again_and_a_panic_is_a_failure() {
    let setup = Setup::start().await;
    setup.enqueue("hello").await;
    let stubborn = Arc::new(Greeter { failures: 1.into(), permanent: true, ..Greeter::default() });
    assert_eq!(setup.worker(&stubborn).run_once().await.unwrap().dead, 1);
    setup.enqueue("again").await;
    let panicking = Arc::new(Greeter { panics: true, ..Greeter::default() });
    assert_eq!(setup.worker(&panicking).run_once().await.unwrap().retried, 1);
}

// Q3
#[tokio::test]
async fn a_worker_that_slept_through_its_lease_changes_nothing() {
    let setup = Setup::start().await;
    let id = setup.enqueue("hello").await;
    let sleepy = Arc::new(Greeter { gate: Some((Notify::new(), Notify::new())), ..Greeter::default() });
    let asleep = tokio::spawn({
        let worker = setup.worker(&sleepy);
        async move { worker.run_once().await.unwrap() }
    });
    let (started, go) = sleepy.gate.as_ref().unwrap();
    started.notified().await;
    // Nobody else can take it while the lease holds; afterwards another worker does.
    let awake = Arc::new(Greeter::default());
    assert!(setup.worker(&awake).run_once().await.unwrap().is_idle());
    setup.db.clock().advance(TimeDelta::minutes(2));
    assert_eq!(setup.worker(&awake).run_once().await.unwrap().done, 1);
    go.notify_one();
    assert_eq!(asleep.await.unwrap(), Pass { lost: 1, ..Pass::default() });
    // Q2: both deliveries carry the same id, which is what the receiver recognises.
    assert_eq!(sleepy.delivered.lock().unwrap()[0].0, id);
    assert_eq!(awake.delivered.lock().unwrap()[0].0, id);
    assert!(setup.dead().await.is_empty());
}

#[tokio::test]
async fn two_workers_share_the_work_without_doing_any_of_it_twice() {
    let setup = Setup::start().await;
    for n in 0..60 {
        setup.enqueue(&n.to_string()).await;
    }
    let greeter = Arc::new(Greeter::default());
    let (one, two) = (setup.worker(&greeter).with_batch(30), setup.worker(&greeter).with_batch(30));
    let (one, two) = tokio::join!(one.run_once(), two.run_once());
    assert_eq!(one.unwrap().done + two.unwrap().done, 60);
    let mut ids: Vec<JobId> = greeter.delivered.lock().unwrap().iter().map(|(id, _)| *id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 60);
}

// Q12
#[tokio::test]
async fn shutting_down_finishes_what_is_in_hand() {
    let setup = Setup::start().await;
    setup.enqueue("hello").await;
    let greeter = Arc::new(Greeter { gate: Some((Notify::new(), Notify::new())), ..Greeter::default() });
    let (shutdown, running) = setup.worker(&greeter).run();
    let running = tokio::spawn(running);
    let (started, go) = greeter.gate.as_ref().unwrap();
    started.notified().await;
    shutdown.now();
    setup.enqueue("too late").await;
    go.notify_one();
    running.await.unwrap();
    let delivered: Vec<String> = greeter.delivered.lock().unwrap().iter().map(|(_, what)| what.clone()).collect();
    assert_eq!(delivered, ["hello"]);
}

#[tokio::test]
async fn a_payload_that_is_too_large_is_refused() {
    let error = NewJob::of(GREET, &"x".repeat(outbox::MAX_PAYLOAD)).unwrap_err();
    assert!(error.to_string().contains("256 KiB"), "{error}");
}

#[tokio::test]
async fn a_tenants_transaction_cannot_forge_tries_outcomes_or_odd_topics() {
    let setup = Setup::start().await;
    for (columns, values) in
        [("attempts", "2147483647"), ("state", "'done'"), ("lease", "gen_random_uuid()"), ("finished_at", "'infinity'")]
    {
        let mut tx = TenantTx::begin(setup.db.tenants(), &setup.ctx).await.unwrap();
        let sql = format!(
            "insert into saas.outbox (tenant_id, id, topic, payload, due_at, created_at, {columns})
             values ('{}', gen_random_uuid(), 'greet', '', now(), now(), {values})",
            setup.ctx.tenant()
        );
        assert_eq!(
            crate::adopter::code(sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *tx).await),
            "42501",
            "{columns}"
        );
    }
    let mut tx = TenantTx::begin(setup.db.tenants(), &setup.ctx).await.unwrap();
    let odd = sqlx::query(
        "insert into saas.outbox (tenant_id, id, topic, payload, due_at, created_at)
         values (current_setting('saas.tenant_id')::uuid, gen_random_uuid(), 'No Topic', '', now(), now())",
    );
    assert_eq!(crate::adopter::code(odd.execute(&mut *tx).await), "23514");
}

#[tokio::test]
async fn a_job_that_kills_every_worker_ends_as_a_dead_letter() {
    let setup = Setup::start().await;
    setup.enqueue("deadly").await;
    // Three workers took it and were never heard of again.
    assert_eq!(setup.execute("update saas.outbox set attempts = 3 where attempts = 0").await, 1);
    let greeter = Arc::new(Greeter::default());
    let worker = setup.worker(&greeter).with_retry(RetryPolicy { attempts: 3, ..RetryPolicy::default() });
    assert_eq!(worker.run_once().await.unwrap().dead, 1);
    assert!(greeter.delivered.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_tenant_with_many_jobs_does_not_delay_the_one_job_of_another() {
    let setup = Setup::start().await;
    for n in 0..50 {
        setup.enqueue(&n.to_string()).await;
    }
    setup.db.clock().advance(TimeDelta::seconds(1));
    let other = setup.db.create_tenant("other").await;
    let mut tx = TenantTx::begin(setup.db.tenants(), &other).await.unwrap();
    let job = NewJob::of(GREET, &"the other's").unwrap();
    outbox::enqueue_in(&mut tx, other.tenant(), job, setup.db.clock().now_utc()).await.unwrap();
    tx.commit().await.unwrap();
    let greeter = Arc::new(Greeter::default());
    assert_eq!(setup.worker(&greeter).with_batch(2).run_once().await.unwrap().done, 2);
    assert!(greeter.delivered.lock().unwrap().iter().any(|(_, what)| what == "the other's"));
}

#[tokio::test]
async fn a_slow_job_does_not_hold_up_the_others() {
    let setup = Setup::start().await;
    setup.enqueue("slow").await;
    let slow = Arc::new(Greeter { gate: Some((Notify::new(), Notify::new())), ..Greeter::default() });
    let quick = Arc::new(Greeter::default());
    let (shutdown, running) = setup.worker(&slow).with_handler(Topic::from_static("quick"), quick.clone()).run();
    let running = tokio::spawn(running);
    let (started, go) = slow.gate.as_ref().unwrap();
    started.notified().await;
    let mut tx = TenantTx::begin(setup.db.tenants(), &setup.ctx).await.unwrap();
    let job = NewJob::of(Topic::from_static("quick"), &"quick").unwrap();
    outbox::enqueue_in(&mut tx, setup.ctx.tenant(), job, setup.db.clock().now_utc()).await.unwrap();
    tx.commit().await.unwrap();
    while quick.delivered.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(slow.delivered.lock().unwrap().is_empty(), "the slow one is still at work");
    go.notify_one();
    shutdown.now();
    running.await.unwrap();
}

#[tokio::test]
async fn what_was_done_long_ago_is_removed_and_nothing_else() {
    let setup = Setup::start().await;
    setup.enqueue("done").await;
    let greeter = Arc::new(Greeter::default());
    assert_eq!(setup.worker(&greeter).run_once().await.unwrap().done, 1);
    setup.enqueue("pending").await;
    setup.db.clock().advance(TimeDelta::days(31));
    let before = setup.db.clock().now_utc() - TimeDelta::days(30);
    let mut tx = SystemTx::begin(setup.db.system(), Actor::system("test"), "purge").await.unwrap();
    assert_eq!(outbox::purge_done_in(&mut tx, before).await.unwrap(), 1);
    assert_eq!(outbox::purge_done_in(&mut tx, before).await.unwrap(), 0);
    tx.commit().await.unwrap();
    assert_eq!(setup.worker(&greeter).run_once().await.unwrap().done, 1);
}
