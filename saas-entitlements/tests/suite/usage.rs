//! Usage events as data: parts and retention, roll-ups, drift, export. On a real PostgreSQL, as the roles of production.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use futures_util::future::join_all;
use saas_core::{
    Clock, CoreError, MeterKey, PageSize, PlanCatalog, RequestContext, SystemPool, TenantContext, TenantId, TenantTx,
    UsageEventId, doctor,
    plan::Window,
    testing::{Proxy, TestDatabase},
};
use saas_entitlements::{
    EntitlementsError, Period, SCHEMA, Use,
    analytics::{Adoption, Span, activation_in, active_members_in, adoption_in, last_active_in},
    usage::{
        Bucket, Delivery, Rebuild, Recorded, Retention, SeriesPoint, SeriesQuery, UsageBatch, UsageExport,
        UsagePipeline, UsageRecord, UsageWriter, WriterOptions, record_many, series_in,
    },
};
use sqlx::Executor;
use uuid::Uuid;

const CALLS: MeterKey = MeterKey::from_static("calls");
/// Longer than any transaction of the other tests on the same server is open.
const PATIENCE: Duration = Duration::from_secs(60);

fn at(rfc3339: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(rfc3339).unwrap().to_utc()
}

fn month(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

struct Stage {
    database: TestDatabase,
    pipeline: UsagePipeline,
    acme: RequestContext,
    globex: RequestContext,
}

impl Stage {
    async fn start() -> Self {
        let database = TestDatabase::builder().max_system_connections(6).start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let pipeline = UsagePipeline::new(database.system().clone(), Arc::new(database.clock().clone()));
        let (acme, globex) = (database.create_tenant("acme").await, database.create_tenant("globex").await);
        Self { database, pipeline, acme, globex }
    }

    fn now(&self) -> DateTime<Utc> {
        self.database.clock().now()
    }

    fn move_to(&self, instant: DateTime<Utc>) {
        self.database.clock().advance(instant - self.now());
    }

    /// Records a use of one transaction, and adds it to the day's counter.
    async fn used(&self, ctx: &RequestContext, units: i64, moment: DateTime<Utc>) {
        let mut tx = TenantTx::begin(self.database.tenants(), ctx).await.unwrap();
        record_in(&mut tx, units, moment, None).await;
        tx.commit().await.unwrap();
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut self.database.owner().await).await.unwrap()
    }

    async fn series(&self, ctx: &RequestContext, bucket: Bucket, from: &str, until: &str) -> Vec<SeriesPoint> {
        let mut tx = TenantTx::begin_read_only(self.database.tenants(), ctx).await.unwrap();
        let query = SeriesQuery { meter: CALLS, bucket, from: at(from), until: at(until), member: None };
        series_in(&mut tx, &query).await.unwrap()
    }
}

async fn record_in(tx: &mut TenantTx, units: i64, moment: DateTime<Utc>, member: Option<&str>) {
    let tenant = tx.tenant().as_uuid();
    let day = moment.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
    sqlx::query(
        "insert into saas.usage_event
             (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, member, actor)
         values ($1, $2, $3, 'calls', 'calls', 'record', $4, $4, 'day', $5, $3, $2::text, $6, 'test')",
    )
    .bind(tenant)
    .bind(UsageEventId::mint_at(moment).as_uuid())
    .bind(moment)
    .bind(units)
    .bind(day)
    .bind(member)
    .execute(&mut **tx)
    .await
    .unwrap();
    sqlx::query(
        "insert into saas.usage_counter as c (tenant_id, meter, window_kind, window_start, window_end, used)
         values ($1, 'calls', 'day', $2, $2 + interval '1 day', $3)
         on conflict (tenant_id, meter, window_kind, window_start) do update set used = c.used + excluded.used",
    )
    .bind(tenant)
    .bind(day)
    .bind(units)
    .execute(&mut **tx)
    .await
    .unwrap();
}

#[tokio::test]
async fn parts_are_made_ahead_and_the_default_part_is_emptied_by_several_at_once() {
    let stage = Stage::start().await;
    stage.move_to(at("2026-03-10T09:00:00Z"));
    for (units, moment) in
        [(1, "2026-01-31T23:59:59.999999Z"), (2, "2026-02-01T00:00:00Z"), (3, "2026-03-10T08:00:00Z")]
    {
        stage.used(&stage.acme, units, at(moment)).await;
    }
    assert_eq!(stage.count("select count(*) from saas.usage_event_rest").await, 3);
    let runs = join_all((0..3).map(|_| async { stage.pipeline.maintain(&mut |_| {}).await.unwrap() })).await;
    let mut made: Vec<NaiveDate> = runs.iter().flat_map(|run| run.made.clone()).collect();
    made.sort_unstable();
    let expected = ["2026-01-01", "2026-02-01", "2026-03-01", "2026-04-01", "2026-05-01"].map(month);
    assert_eq!(made, expected, "each part is made once");
    assert_eq!(runs.iter().map(|run| run.moved).sum::<u64>(), 3);
    assert_eq!(stage.count("select count(*) from saas.usage_event_rest").await, 0);
    assert_eq!(stage.count("select count(*) from saas.usage_event_2026_01").await, 1);
    assert_eq!(stage.count("select sum(units)::bigint from saas.usage_event_2026_02").await, 2);
    assert_eq!(doctor::examine(stage.database.tenants().pool()).await.unwrap(), []);
    // What is recorded now lands in its part, and only the tenant sees it.
    stage.used(&stage.acme, 4, at("2026-04-30T23:59:59Z")).await;
    assert_eq!(stage.count("select count(*) from saas.usage_event_2026_04").await, 1);
    let mut other = TenantTx::begin(stage.database.tenants(), &stage.globex).await.unwrap();
    let seen: i64 = sqlx::query_scalar("select count(*) from saas.usage_event").fetch_one(&mut *other).await.unwrap();
    assert_eq!(seen, 0);
    let named = sqlx::query("select from saas.usage_event_2026_04").execute(&mut *other).await.unwrap_err();
    assert_eq!(CoreError::from_database(named).kind(), saas_core::ErrorKind::Forbidden);
    let mut app = TenantTx::begin(stage.database.tenants(), &stage.acme).await.unwrap();
    let dropped = sqlx::query("select saas.usage_part_drop('2026-04-01')").execute(&mut *app).await.unwrap_err();
    assert_eq!(CoreError::from_database(dropped).kind(), saas_core::ErrorKind::Forbidden, "only the system may");
}

#[tokio::test]
async fn a_month_goes_after_the_retention_when_everybody_has_read_it_and_no_window_of_it_is_open() {
    let stage = Stage::start().await;
    let pipeline =
        stage.pipeline.clone().with_retention(Retention::new(TimeDelta::days(90), TimeDelta::days(45)).unwrap());
    stage.move_to(at("2026-01-15T12:00:00Z"));
    pipeline.maintain(&mut |_| {}).await.unwrap();
    stage.used(&stage.acme, 5, stage.now()).await;
    stage.used(&stage.globex, 7, stage.now()).await;
    let mut owner = stage.database.owner().await;
    owner
        .execute(
            "insert into saas.usage_key (tenant_id, meter, key, amount, event_id, at)
             select id, 'calls', n::text, 1, id, timestamptz '2026-03-01 00:00Z' + n * interval '1 day'
             from saas.tenant, generate_series(0, 60) n;
             insert into saas.usage_counter (tenant_id, meter, window_kind, window_start, window_end)
             select id, 'seats', 'year', '2026-01-01 00:00Z', '2026-06-01 00:00Z' from saas.tenant where slug = 'acme'",
        )
        .await
        .unwrap();
    // The month is over for 90 days from 1 May on.
    stage.move_to(at("2026-04-30T23:00:00Z"));
    let early = pipeline.maintain(&mut |_| {}).await.unwrap();
    assert_eq!((early.dropped.len(), early.held.len()), (0, 0));
    stage.move_to(at("2026-05-02T00:00:00Z"));
    let held = pipeline.maintain(&mut |_| {}).await.unwrap();
    assert!(held.dropped.is_empty());
    assert!(held.held[0].why.contains("\"roll-up\" has not read"), "{held:?}");
    assert!(pipeline.roll_up(PATIENCE).await.unwrap().complete);
    let why = pipeline.maintain(&mut |_| {}).await.unwrap().held[0].why.clone();
    assert!(why.contains("still open"), "{why}");
    stage.move_to(at("2026-06-01T00:00:00Z"));
    let mut steps = Vec::new();
    let done = pipeline.maintain(&mut |so_far| steps.push(so_far.clone())).await.unwrap();
    assert_eq!((done.dropped.as_slice(), done.held.len()), (["2026-01-01", "2026-02-01"].map(month).as_slice(), 0));
    assert_eq!(steps.last(), Some(&done), "progress reaches the end");
    assert_eq!(stage.count("select count(*) from saas.usage_event").await, 0);
    assert_eq!(stage.count("select count(*) from saas.usage_key where at < '2026-04-17 00:00Z'").await, 0);
    assert_eq!(stage.count("select count(*) from saas.usage_key").await, 2 * 14, "17 to 30 April");
    let kept = stage.series(&stage.globex, Bucket::Hour, "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z").await;
    assert_eq!(kept.iter().map(|point| point.units).sum::<i64>(), 7, "roll-ups stay");
    let day = at("2026-01-15T00:00:00Z");
    let gone = pipeline.rebuild(&stage.acme, &CALLS, Window::Day, day, Rebuild::Repair).await.unwrap();
    assert_eq!(gone, None, "a counter is not set to 0 because its events went");
    let report = pipeline.find_drift(None, PageSize::default()).await.unwrap();
    assert_eq!((report.drifted.len(), report.beyond_retention), (0, 3));
    assert!(Retention::new(TimeDelta::days(30), TimeDelta::days(10)).is_err());
}

// C4, C8
#[tokio::test]
async fn roll_ups_count_each_event_once_whatever_commits_late_or_is_cut_off() {
    let stage = Stage::start().await;
    stage.move_to(at("2026-03-10T09:30:00Z"));
    // Recorded first, committed last.
    let mut late = TenantTx::begin(stage.database.tenants(), &stage.acme).await.unwrap();
    record_in(&mut late, 1_000, at("2026-03-10T23:59:59.999Z"), Some("ann")).await;
    stage.used(&stage.globex, 1, at("2026-03-11T00:00:00Z")).await;
    let first = stage.pipeline.roll_up(Duration::ZERO).await.unwrap();
    assert!(!first.complete, "somebody may still commit below");
    late.commit().await.unwrap();
    assert!(stage.pipeline.roll_up(PATIENCE).await.unwrap().complete);
    assert_eq!(stage.count("select sum(units)::bigint from saas.usage_hour").await, 1_001);

    // Rollers that are cut off at any await, beside writers and rollers that are not.
    let writers = join_all((0..4).map(|writer| {
        let stage = &stage;
        async move {
            for n in 0..25 {
                let ctx = if n % 2 == 0 { &stage.acme } else { &stage.globex };
                stage.used(ctx, 1, at("2026-03-12T00:00:00Z") + TimeDelta::minutes(writer * 600 + n * 30)).await;
            }
        }
    }));
    let cut_off = async {
        for micros in 0..60 {
            let run = stage.pipeline.roll_up(PATIENCE);
            drop(tokio::time::timeout(Duration::from_micros(micros * 150), run).await);
        }
    };
    let whole = async {
        for _ in 0..5 {
            stage.pipeline.roll_up(Duration::ZERO).await.unwrap();
        }
    };
    tokio::join!(writers, cut_off, whole);
    assert!(stage.pipeline.roll_up(PATIENCE).await.unwrap().complete);
    for table in [
        "select sum(units)::bigint from saas.usage_hour",
        "select sum(units)::bigint from saas.usage_day",
        "select sum(units)::bigint from saas.usage_event",
    ] {
        assert_eq!(stage.count(table).await, 1_101, "{table}");
    }
    assert_eq!(stage.count("select sum(events)::bigint from saas.usage_day").await, 102);
    let again = stage.pipeline.roll_up(PATIENCE).await.unwrap();
    assert_eq!(again.events, 0);
    let uneven = stage.count(
        "select count(*) from (
             select date_trunc('hour', at, 'UTC') as bucket, sum(units) as units
             from saas.usage_event group by tenant_id, meter, 1
             except
             select bucket, sum(units) from saas.usage_hour group by tenant_id, meter, bucket) d",
    );
    assert_eq!(uneven.await, 0, "each hour holds its own");
}

#[tokio::test]
async fn a_dashboard_sees_hours_and_days_of_its_own_clock() {
    let stage = Stage::start().await;
    // Berlin puts its clocks forward on 29 March 2026: that day ends at 22:00 UTC, and began at 23:00.
    for (units, moment) in [
        (1, "2026-03-28T22:59:59Z"),
        (2, "2026-03-28T23:00:00Z"),
        (4, "2026-03-29T21:59:59Z"),
        (8, "2026-03-29T22:00:00Z"),
    ] {
        stage.used(&stage.acme, units, at(moment)).await;
    }
    let mut tx = TenantTx::begin(stage.database.tenants(), &stage.acme).await.unwrap();
    record_in(&mut tx, 16, at("2026-03-29T22:30:00Z"), Some("ann")).await;
    tx.commit().await.unwrap();
    assert!(stage.pipeline.roll_up(PATIENCE).await.unwrap().complete);
    let (from, until) = ("2026-03-28T00:00:00Z", "2026-03-31T00:00:00Z");
    let units = |points: Vec<SeriesPoint>| points.iter().map(|point| point.units).collect::<Vec<_>>();
    let berlin = stage.series(&stage.acme, Bucket::Day(chrono_tz::Europe::Berlin), from, until).await;
    assert_eq!(
        berlin.iter().map(|p| p.start).collect::<Vec<_>>(),
        [at("2026-03-27T23:00:00Z"), at("2026-03-28T23:00:00Z"), at("2026-03-29T22:00:00Z")]
    );
    assert_eq!(units(berlin), [1, 6, 24]);
    assert_eq!(units(stage.series(&stage.acme, Bucket::Day(chrono_tz::UTC), from, until).await), [3, 28]);
    assert_eq!(units(stage.series(&stage.acme, Bucket::Hour, from, until).await), [1, 2, 4, 24]);
    assert!(stage.series(&stage.globex, Bucket::Hour, from, until).await.is_empty());
    let mut tx = TenantTx::begin_read_only(stage.database.tenants(), &stage.acme).await.unwrap();
    let mut query = SeriesQuery {
        meter: CALLS,
        bucket: Bucket::Hour,
        from: at(from),
        until: at(until),
        member: Some("ann".to_owned()),
    };
    assert_eq!(units(series_in(&mut tx, &query).await.unwrap()), [16]);
    query.bucket = Bucket::Day(chrono_tz::Asia::Kolkata);
    let uneven = series_in(&mut tx, &query).await.unwrap_err();
    assert!(uneven.to_string().contains("Asia/Kolkata is not whole hours"), "{uneven}");
    query.bucket = Bucket::Hour;
    query.until = at("2028-01-01T00:00:00Z");
    assert_eq!(series_in(&mut tx, &query).await.unwrap_err().kind(), saas_core::ErrorKind::Invalid);
}

#[tokio::test]
async fn drift_is_found_told_and_mended_from_events_while_what_is_held_stays() {
    let stage = Stage::start().await;
    let day = at("2026-03-10T00:00:00Z");
    for units in [5, 7, -2] {
        stage.used(&stage.acme, units, day + TimeDelta::hours(3)).await;
    }
    stage.used(&stage.globex, 3, day).await;
    let sound = stage.pipeline.find_drift(None, PageSize::default()).await.unwrap();
    assert_eq!((sound.sound, sound.drifted.len(), sound.next), (2, 0, None));
    let mut owner = stage.database.owner().await;
    let bend = "update saas.usage_counter set used = used + 90, held = 4, burnt = 1 where tenant_id = $1";
    sqlx::query(bend).bind(stage.acme.tenant().as_uuid()).execute(&mut owner).await.unwrap();
    let one = PageSize::new(1).unwrap();
    let (mut drifted, mut pages, mut after) = (Vec::new(), 0, None);
    loop {
        let page = stage.pipeline.find_drift(after.as_ref(), one).await.unwrap();
        drifted.extend(page.drifted);
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((pages, drifted.len()), (3, 1));
    let drift = &drifted[0];
    assert_eq!((drift.tenant, drift.used, drift.events, drift.held), (stage.acme.tenant(), 100, 9, 4));
    let calls = CALLS;
    let rebuild = |mode| stage.pipeline.rebuild(&stage.acme, &calls, Window::Day, day, mode);
    assert_eq!(rebuild(Rebuild::DryRun).await.unwrap().as_ref(), Some(drift));
    assert_eq!(rebuild(Rebuild::DryRun).await.unwrap().as_ref(), Some(drift), "a dry run changes nothing");
    assert_eq!(rebuild(Rebuild::Repair).await.unwrap().as_ref(), Some(drift));
    let mended = rebuild(Rebuild::Repair).await.unwrap().unwrap();
    assert_eq!((mended.used, mended.events, mended.held), (9, 9, 4));
    let noted: Vec<serde_json::Value> =
        sqlx::query_scalar("select detail from saas.audit where action = 'usage.counter_rebuilt'")
            .fetch_all(&mut owner)
            .await
            .unwrap();
    assert_eq!(noted.len(), 1, "once, by the repair that changed something");
    assert_eq!((&noted[0]["used"], &noted[0]["events"]), (&100.into(), &9.into()));
    // A use that has its event but not yet its commit is neither lost nor counted twice.
    let mut tx = TenantTx::begin(stage.database.tenants(), &stage.acme).await.unwrap();
    record_in(&mut tx, 11, day + TimeDelta::hours(4), None).await;
    let (repaired, ()) = tokio::join!(rebuild(Rebuild::Repair), async { tx.commit().await.unwrap() });
    assert_eq!(repaired.unwrap().map(|drift| (drift.used, drift.events)), Some((20, 20)));
    let unknown = stage.pipeline.rebuild(&stage.globex, &CALLS, Window::Month, day, Rebuild::Repair).await.unwrap();
    assert_eq!(unknown, None);
}

/// Remembers what it took by id, and ends as the test says.
#[derive(Debug, Default)]
struct Receiver {
    taken: Mutex<BTreeMap<UsageEventId, (i64, u32)>>,
    batches: Mutex<HashMap<Uuid, Vec<UsageEventId>>>,
    end: Mutex<End>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum End {
    #[default]
    Well,
    BeforeTaking,
    AfterTaking,
    NeverAnswering,
    OddUnitsRetried,
    OddUnitsRefused,
}

#[async_trait]
impl UsageExport for Receiver {
    async fn deliver(&self, batch: &UsageBatch) -> Result<Vec<Delivery>, EntitlementsError> {
        let end = *self.end.lock().unwrap();
        let ids: Vec<_> = batch.rows.iter().map(|row| row.id).collect();
        let known = self.batches.lock().unwrap().entry(batch.id).or_insert_with(|| ids.clone()).clone();
        assert_eq!(known, ids, "a batch of one id has the same rows each time");
        if end == End::BeforeTaking {
            return Err(EntitlementsError::Unavailable { cause: None });
        }
        let answers = batch.rows.iter().map(|row| match end {
            End::OddUnitsRetried if row.units % 2 == 1 => Delivery::Retry { why: "busy".to_owned() },
            End::OddUnitsRefused if row.units % 2 == 1 => Delivery::Refused { why: "no customer\0".to_owned() },
            _ => {
                let mut taken = self.taken.lock().unwrap();
                taken.entry(row.id).or_insert((row.units, 0)).1 += 1;
                Delivery::Taken
            }
        });
        let answers = answers.collect();
        match end {
            End::AfterTaking => Err(EntitlementsError::Unavailable { cause: None }),
            End::NeverAnswering => std::future::pending().await,
            End::Well | End::BeforeTaking | End::OddUnitsRetried | End::OddUnitsRefused => Ok(answers),
        }
    }
}

impl Receiver {
    fn ends(&self, end: End) {
        *self.end.lock().unwrap() = end;
    }

    fn units(&self) -> i64 {
        self.taken.lock().unwrap().values().map(|(units, _)| units).sum()
    }
}

// C4, C5, C6
#[tokio::test]
async fn an_export_that_ends_at_any_step_repeats_its_batch_and_leaves_nothing_out() {
    let stage = Stage::start().await;
    let receiver = Receiver::default();
    let export = || stage.pipeline.export("billing", &receiver);
    for units in 1..=6 {
        stage.used(if units < 4 { &stage.acme } else { &stage.globex }, units, at("2026-03-10T10:00:00Z")).await;
    }
    // Nothing older runs any more: what follows sees all six.
    assert!(stage.pipeline.roll_up(PATIENCE).await.unwrap().complete);
    receiver.ends(End::BeforeTaking);
    assert!(export().await.unwrap_err().is_retryable());
    assert_eq!(receiver.units(), 0);
    receiver.ends(End::AfterTaking);
    assert!(export().await.unwrap_err().is_retryable());
    receiver.ends(End::NeverAnswering);
    assert!(tokio::time::timeout(Duration::from_millis(300), export()).await.is_err());
    // What came since is not put into the batch that is already known by its id.
    stage.used(&stage.acme, 100, at("2026-03-10T11:00:00Z")).await;
    assert!(stage.pipeline.roll_up(PATIENCE).await.unwrap().complete);
    receiver.ends(End::OddUnitsRetried);
    let report = export().await.unwrap();
    assert_eq!((report.taken, report.retried, report.refused), (4, 3, 0));
    assert_eq!(receiver.batches.lock().unwrap().len(), 2);
    let held = stage.count("select count(*) from saas.usage_undelivered where not refused").await;
    assert_eq!(held, 3, "only those that were not taken");
    receiver.ends(End::AfterTaking);
    assert!(export().await.is_err());
    receiver.ends(End::OddUnitsRefused);
    let report = export().await.unwrap();
    assert_eq!((report.taken, report.retried, report.refused), (0, 0, 3), "the same three, and nothing else");
    receiver.ends(End::Well);
    assert_eq!(export().await.unwrap(), Default::default(), "what was refused is left to a person");
    let why = sqlx::query_scalar::<_, String>("select distinct reason from saas.usage_undelivered where refused");
    assert_eq!(why.fetch_one(&mut stage.database.owner().await).await.unwrap(), "no customer");
    assert_eq!(receiver.units(), 121, "each event under the id that it was recorded with");

    // Another reader begins at the oldest event, and two runs at once leave nothing out.
    let second = Receiver::default();
    let (left, right) =
        tokio::join!(stage.pipeline.export("warehouse", &second), stage.pipeline.export("warehouse", &second));
    assert_eq!(left.unwrap().taken + right.unwrap().taken, 7, "each is settled once");
    assert_eq!(second.units(), 121);
}

/// What the database looks like after it was copied from a server that has seen `ahead` transactions more.
async fn come_from_another_server(stage: &Stage, ahead: i64) {
    let mut owner = stage.database.owner().await;
    for sql in [
        "update saas.usage_event_2026_03 set position = position + $1",
        "update saas.usage_consumer
         set after_position = after_position + $1, upto_position = upto_position + $1
         where after_position > 0 or batch_id is not null",
        "update saas.usage_horizon set server = server + 1 where $1 >= 0",
    ] {
        sqlx::query(sql).bind(ahead).execute(&mut owner).await.unwrap();
    }
}

// C4, C5, C6
#[tokio::test]
async fn after_a_restore_into_another_server_nothing_is_read_or_dropped_until_positions_are_adopted() {
    // Ahead of this server; behind it is told by the server's name alone.
    for ahead in [1_i64 << 40, 0] {
        let stage = Stage::start().await;
        let pipeline = stage.pipeline.clone();
        let pipeline = pipeline.with_retention(Retention::new(TimeDelta::days(90), TimeDelta::days(45)).unwrap());
        let (quick, slow) = (Receiver::default(), Receiver::default());
        stage.move_to(at("2026-03-10T09:00:00Z"));
        pipeline.maintain(&mut |_| {}).await.unwrap();
        let used = async |units| {
            stage.used(&stage.acme, units, stage.now()).await;
            stage.database.clock().advance(TimeDelta::minutes(1));
        };
        used(1).await;
        assert!(pipeline.roll_up(PATIENCE).await.unwrap().complete);
        pipeline.export("slow", &slow).await.unwrap();
        used(2).await;
        assert!(pipeline.roll_up(PATIENCE).await.unwrap().complete);
        pipeline.export("quick", &quick).await.unwrap();
        // A batch of it is under way, and one more event is not in it.
        slow.ends(End::BeforeTaking);
        pipeline.export("slow", &slow).await.unwrap_err();
        used(4).await;
        come_from_another_server(&stage, ahead).await;
        stage.database.clock().advance(TimeDelta::minutes(1));
        let restored_at = stage.now();
        used(8).await;

        let refused = [
            pipeline.roll_up(Duration::ZERO).await.map(drop),
            pipeline.export("quick", &quick).await.map(drop),
            pipeline.export("new", &quick).await.map(drop),
            {
                stage.database.clock().advance(TimeDelta::days(365));
                pipeline.maintain(&mut |_| {}).await.map(drop)
            },
        ];
        for refused in refused {
            let error = refused.unwrap_err();
            assert_eq!((error.code(), error.kind()), ("foreign_usage_positions", saas_core::ErrorKind::Misconfigured));
            assert!(error.to_string().contains("adopt_positions"), "{error}");
        }
        assert_eq!((quick.units(), slow.units()), (3, 1));
        assert_eq!(stage.count("select count(*) from saas.usage_event_2026_03").await, 4, "nothing is dropped");

        // Two at once, and again.
        let (one, other) = tokio::join!(pipeline.adopt_positions(restored_at), pipeline.adopt_positions(restored_at));
        assert_eq!(one.unwrap() + other.unwrap(), 3, "what was recorded here keeps its position");
        assert_eq!(pipeline.adopt_positions(restored_at).await.unwrap(), 0);
        used(16).await;
        assert!(pipeline.roll_up(PATIENCE).await.unwrap().complete);
        slow.ends(End::Well);
        for (name, receiver) in [("quick", &quick), ("slow", &slow)] {
            pipeline.export(name, receiver).await.unwrap();
            let taken = receiver.taken.lock().unwrap();
            assert!(taken.values().all(|(_, times)| *times == 1), "{name} {taken:?}");
            drop(taken);
            assert_eq!(receiver.units(), 31, "{name}");
        }
        let new = Receiver::default();
        pipeline.export("new", &new).await.unwrap();
        assert_eq!(new.units(), 31, "a new reader begins with the oldest");
        assert_eq!(stage.count("select sum(units)::bigint from saas.usage_day").await, 31, "each once");
        assert_eq!(doctor::examine(stage.database.tenants().pool()).await.unwrap(), []);
    }
}

/// A catalogue whose only meter no plan limits.
fn catalog() -> PlanCatalog {
    let catalog = "default_plan = 'free'\n[meters]\ncalls = { aggregation = 'sum' }\n[plans.free]\nrank = 0\n\
                   [[plans.free.versions]]\nversion = 1";
    PlanCatalog::from_toml(catalog).unwrap()
}

fn record(ctx: &RequestContext, key: &str, amount: u64, moment: DateTime<Utc>) -> UsageRecord {
    let start = moment.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
    let day = (Window::Day, Period { start, end: Some(start + TimeDelta::days(1)) });
    let key = key.parse().unwrap();
    UsageRecord::in_window(&catalog(), ctx.tenant(), &Use::new(CALLS, amount, &key), ctx.actor(), day, moment).unwrap()
}

#[tokio::test]
async fn whatever_adds_uses_takes_the_tenants_row_first() {
    let stage = Stage::start().await;
    let careless: Vec<String> = sqlx::query_scalar(
        "select p.oid::regprocedure::text
         from pg_proc p
         where p.pronamespace = 'saas'::regnamespace and p.prosrc ~ 'insert into saas\\.usage_(event|key)\\M'
           and (p.prosrc !~ 'for key share'
                or position('for key share' in p.prosrc) > position('insert into saas.usage_' in p.prosrc))",
    )
    .fetch_all(&mut stage.database.owner().await)
    .await
    .unwrap();
    assert_eq!(careless, Vec::<String>::new(), "nothing else keeps these from outliving their tenant");
}

#[tokio::test]
async fn uses_in_bulk_wait_for_no_change_of_their_tenants_and_are_of_tenants_that_are_there() {
    let stage = Stage::start().await;
    let now = stage.now();
    let mut changing = TenantTx::begin(stage.database.tenants(), &stage.acme).await.unwrap();
    saas_core::revision::bump_in(&mut changing, stage.acme.tenant()).await.unwrap();
    let uses = [record(&stage.acme, "one", 1, now), record(&stage.globex, "two", 2, now)];
    // Held up by the change, it would end with the lock timeout of the role.
    let recorded = record_many(stage.database.system(), &uses, now).await.unwrap();
    assert_eq!(recorded, [Recorded::Counted; 2]);
    drop(changing);

    let stranger = RequestContext::new_at(TenantId::mint_at(now), stage.acme.actor().clone(), now);
    let uses = [record(&stage.acme, "three", 1, now), record(&stranger, "four", 1, now)];
    let refused = record_many(stage.database.system(), &uses, now).await.unwrap_err();
    assert_eq!(refused.kind(), saas_core::ErrorKind::Conflict);
    let EntitlementsError::Core(refused) = refused else { panic!("{refused}") };
    assert_eq!(refused.constraint(), Some("usage_event_tenant"));
    assert_eq!(stage.count("select count(*) from saas.usage_key").await, 2, "all or none");
}

#[tokio::test]
async fn a_batch_tells_of_each_use_whether_it_was_counted() {
    let stage = Stage::start().await;
    let now = stage.now();
    let system = stage.database.system();
    let uses = [("b", 1), ("a", 2), ("b", 1), ("b", 3)].map(|(key, amount)| record(&stage.acme, key, amount, now));
    let recorded = record_many(system, &uses, now).await.unwrap();
    assert_eq!(recorded, [Recorded::Counted, Recorded::Counted, Recorded::AlreadyCounted, Recorded::KeyReused]);
    let other_window = record(&stage.acme, "c", 4, now - TimeDelta::days(1));
    let uses = [record(&stage.acme, "b", 9, now), other_window, record(&stage.acme, "a", 2, now)];
    let recorded = record_many(system, &uses, now).await.unwrap();
    assert_eq!(recorded, [Recorded::KeyReused, Recorded::Counted, Recorded::AlreadyCounted]);
    assert_eq!(record_many(system, &[], now).await.unwrap(), []);
    assert_eq!(stage.count("select sum(units)::bigint from saas.usage_event").await, 7);
    assert_eq!(stage.count("select sum(used)::bigint from saas.usage_counter").await, 7);
    assert_eq!(stage.count("select count(*) from saas.usage_counter").await, 2);
}

// C2, C4, C5, C6, C12: what a process that is killed had not acknowledged is in tests/kill.
#[tokio::test]
async fn recorded_uses_are_counted_once_through_lost_answers_and_beside_bad_ones() {
    let stage = Stage::start().await;
    let day = at("2026-03-10T09:00:00Z");
    stage.move_to(day);
    let (host, port) = stage.database.address();
    let network = Proxy::start((host.as_str(), port)).unwrap();
    let login = stage.database.options("saas_system").host("127.0.0.1").port(network.address().port());
    let pool = saas_core::db::pool_options().max_connections(2).connect_with(login).await.unwrap();
    let system = SystemPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.unwrap();
    let clock = Arc::new(stage.database.clock().clone());
    let options = WriterOptions::default()
        .with_batch(7.try_into().unwrap())
        .with_buffer(10.try_into().unwrap())
        .with_pause(Duration::from_millis(5));
    let writer = UsageWriter::start(system, clock, options);
    // The answer to each step of a flush is lost in turn: opening, writing, committing, and those of the next try.
    for step in 0..8 {
        network.cut_instead_of_answer(step);
        let ticket = writer.record(record(&stage.acme, &format!("step-{step}"), 3, day)).await.unwrap();
        assert_ne!(ticket.settled().await.unwrap(), Recorded::KeyReused, "{step}");
    }
    // Of the last, the network may still have to cut one.
    network.cut_instead_of_answer(u64::MAX);
    let sums = "select sum(used)::bigint from saas.usage_counter";
    assert_eq!(stage.count(sums).await, 24);
    // 200 uses of two tenants, each sent twice by others at once.
    let senders = join_all((0..4).map(|sender| {
        let (stage, writer) = (&stage, &writer);
        async move {
            let mut tickets = Vec::new();
            for n in 0..100 {
                let ctx = if n % 2 == 0 { &stage.acme } else { &stage.globex };
                let key = format!("{}-{n}", sender % 2);
                tickets.push(writer.record(record(ctx, &key, 3, day)).await.unwrap());
            }
            let mut counted = 0;
            for ticket in tickets {
                match ticket.settled().await.unwrap() {
                    Recorded::Counted => counted += 1,
                    Recorded::AlreadyCounted => {}
                    Recorded::KeyReused => panic!("the amounts are the same"),
                }
            }
            counted
        }
    }));
    let counted = senders.await;
    assert_eq!(counted.iter().sum::<i32>(), 200, "{counted:?}");
    assert_eq!(stage.count(sums).await, 624);
    assert_eq!(stage.count("select sum(units)::bigint from saas.usage_event").await, 624);

    // One that cannot be stored takes nobody with it; the same key with another amount is told.
    let stranger = RequestContext::new_at(TenantId::mint_at(day), stage.acme.actor().clone(), day);
    let uses = [
        record(&stage.acme, "a", 5, day),
        record(&stranger, "bad", 1, day),
        record(&stage.acme, "0-0", 4, day),
        record(&stage.acme, "b", 6, day),
    ];
    let mut tickets = Vec::new();
    for one in uses {
        tickets.push(writer.record(one).await.unwrap());
    }
    writer.shut_down().await;
    let mut ends = Vec::new();
    for ticket in tickets {
        ends.push(ticket.settled().await.map_err(|error| error.kind()));
    }
    let refused = Err(saas_core::ErrorKind::Conflict);
    assert_eq!(ends, [Ok(Recorded::Counted), refused, Ok(Recorded::KeyReused), Ok(Recorded::Counted)]);
    assert_eq!(stage.count(sums).await, 635, "shutting down wrote what was left");
    let report = stage.pipeline.find_drift(None, PageSize::default()).await.unwrap();
    assert_eq!((report.sound, report.drifted.len()), (2, 0));
}

#[tokio::test]
async fn usage_tells_who_got_started_what_is_adopted_and_who_is_still_there() {
    let stage = Stage::start().await;
    let uses = [
        ("2026-02-27T10:00:00Z", Some("ann")),
        ("2026-02-27T11:00:00Z", Some("ann")),
        ("2026-02-27T12:00:00Z", Some("ben")),
        ("2026-03-01T23:59:59Z", Some("ann")),
        ("2026-03-02T00:00:00Z", Some("ann")),
        ("2026-03-04T08:00:00Z", Some("eve")),
        ("2026-03-05T08:00:00Z", None),
    ];
    for (moment, member) in uses {
        let mut tx = TenantTx::begin(stage.database.tenants(), &stage.acme).await.unwrap();
        record_in(&mut tx, 1, at(moment), member).await;
        tx.commit().await.unwrap();
    }
    stage.used(&stage.globex, 1, at("2026-03-05T09:00:00Z")).await;
    assert!(stage.pipeline.roll_up(PATIENCE).await.unwrap().complete);
    let mut tx = TenantTx::begin_read_only(stage.database.tenants(), &stage.acme).await.unwrap();
    let (from, until) = (month("2026-02-01"), month("2026-04-01"));

    let exports = MeterKey::from_static("exports");
    let started = activation_in(&mut tx, &[CALLS]).await.unwrap();
    assert_eq!(started.activated, Some(month("2026-02-27")));
    let halfway = activation_in(&mut tx, &[CALLS, exports]).await.unwrap();
    assert_eq!(
        (halfway.activated, halfway.steps[0].reached, halfway.steps[1].reached),
        (None, started.activated, None)
    );
    assert_eq!(activation_in(&mut tx, &[]).await.unwrap_err().kind(), saas_core::ErrorKind::Invalid);

    let adopted = adoption_in(&mut tx, from, until).await.unwrap();
    assert_eq!(adopted, [Adoption { meter: "calls".to_owned(), days: 5, members: 3, events: 7 }]);
    assert_eq!(last_active_in(&mut tx, None).await.unwrap(), Some(at("2026-03-05T08:00:00Z")));
    assert_eq!(last_active_in(&mut tx, Some("ben")).await.unwrap(), Some(at("2026-02-27T12:00:00Z")));
    assert_eq!(last_active_in(&mut tx, Some("nobody")).await.unwrap(), None);

    let mut active = Vec::new();
    for span in [Span::Day, Span::Week, Span::Month] {
        let found = active_members_in(&mut tx, span, from, until).await.unwrap();
        active.push(found.iter().map(|found| (found.start.to_string(), found.members)).collect::<Vec<_>>());
    }
    let expected = |found: &[(&str, i64)]| found.iter().map(|(day, n)| ((*day).to_owned(), *n)).collect::<Vec<_>>();
    assert_eq!(active[0], expected(&[("2026-02-27", 2), ("2026-03-01", 1), ("2026-03-02", 1), ("2026-03-04", 1)]));
    assert_eq!(active[1], expected(&[("2026-02-23", 2), ("2026-03-02", 2)]), "Sunday is of the week before");
    assert_eq!(active[2], expected(&[("2026-02-01", 2), ("2026-03-01", 2)]));
    assert!(active_members_in(&mut tx, Span::Day, until, from).await.is_err());
}
