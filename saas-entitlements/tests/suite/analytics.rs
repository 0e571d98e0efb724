//! Product analytics: what services are told, over real HTTP, and what becomes of what they do not take.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, Clock, ErrorKind, IdempotencyKey, MeterKey, PlanCatalog, RequestContext, TenantContext, TenantId,
    UsageEventId, plan::Window, testing::TestDatabase,
};
use saas_entitlements::{
    EntitlementsError, Period, SCHEMA, Use,
    analytics::{
        AnalyticsFeed, AnalyticsSink, HttpPost, MemberIds, PostHog, ProductEvent, Segment, SinkError,
        client::HyperPost, conformance::Fixture,
    },
    analytics_sink_conformance,
    memory::InMemorySink,
    usage::{Delivery, UsagePipeline, UsageRecord, record_many},
};
use serde_json::{Value, json};

use crate::receiver::{Does, Receiver};

const KEY: &str = "phc_\"secret\\key";

fn http() -> Arc<dyn HttpPost> {
    Arc::new(HyperPost::new().with_deadline(Duration::from_secs(20)))
}

fn posthog(receiver: &Receiver) -> PostHog {
    PostHog::new(&receiver.base, KEY.to_owned().into(), http()).unwrap()
}

fn segment(receiver: &Receiver) -> Segment {
    Segment::new(&receiver.base, KEY.to_owned().into(), http()).unwrap()
}

async fn behind(make: fn(&Receiver) -> Arc<dyn AnalyticsSink>) -> Fixture {
    let receiver = Receiver::start().await;
    let counts = receiver.clone();
    Fixture::new(make(&receiver), move || counts.counted(), receiver)
}

analytics_sink_conformance!(posthog_conforms, async || behind(|receiver| Arc::new(posthog(receiver))).await);
analytics_sink_conformance!(segment_conforms, async || behind(|receiver| Arc::new(segment(receiver))).await);
analytics_sink_conformance!(memory_conforms, async || {
    let sink = Arc::new(InMemorySink::new());
    let counts = sink.clone();
    Fixture::new(sink, move || counts.events().into_iter().map(|event| (event.id, 1)).collect(), ())
});

fn at(rfc3339: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(rfc3339).unwrap().to_utc()
}

fn event(n: i64) -> ProductEvent {
    let moment = at("2026-03-10T08:00:00.123456Z") + TimeDelta::microseconds(n);
    let tenant = TenantId::from_uuid("01900000-0000-7000-8000-000000000001".parse().unwrap());
    ProductEvent::new(UsageEventId::mint_at(moment), tenant, MeterKey::from_static("reports.csv"), 3, moment)
}

#[tokio::test]
async fn posthog_is_told_in_its_own_shape() {
    let receiver = Receiver::start().await;
    let member = "01900000-0000-7000-8000-00000000000a";
    let events = [event(0).with_member(member), event(1)];
    assert_eq!(posthog(&receiver).take(&events).await.unwrap(), [Delivery::Taken, Delivery::Taken]);
    let [request] = &receiver.received()[..] else { panic!("one request") };
    assert_eq!((request.path.as_str(), request.content_type.as_str()), ("/batch/", "application/json"));
    let tenant = events[0].tenant.to_string();
    assert_eq!(
        request.body,
        json!({"api_key": KEY, "batch": [
            {
                "uuid": events[0].id.to_string(), "event": "reports.csv", "distinct_id": member,
                "timestamp": "2026-03-10T08:00:00.123456Z",
                "properties": {"$groups": {"tenant": tenant}, "amount": 3, "$geoip_disable": true},
            },
            {
                "uuid": events[1].id.to_string(), "event": "reports.csv", "distinct_id": tenant,
                "timestamp": "2026-03-10T08:00:00.123457Z",
                "properties": {
                    "$groups": {"tenant": tenant}, "amount": 3, "$geoip_disable": true, "$process_person_profile": false,
                },
            },
        ]})
    );
}

#[tokio::test]
async fn segment_is_told_in_its_own_shape() {
    let receiver = Receiver::start().await;
    let member = "01900000-0000-7000-8000-00000000000a";
    let events = [event(0).with_member(member), event(1)];
    assert_eq!(segment(&receiver).take(&events).await.unwrap(), [Delivery::Taken, Delivery::Taken]);
    let [request] = &receiver.received()[..] else { panic!("one request") };
    assert_eq!((request.path.as_str(), request.content_type.as_str()), ("/v1/batch", "application/json"));
    let tenant = events[0].tenant.to_string();
    let call = |event: &ProductEvent| {
        json!({
            "type": "track", "messageId": event.id.to_string(), "event": "reports.csv",
            "timestamp": "2026-03-10T08:00:00.123Z", "properties": {"amount": 3}, "context": {"groupId": tenant},
        })
    };
    let (mut first, mut second) = (call(&events[0]), call(&events[1]));
    first["userId"] = member.into();
    second["anonymousId"] = tenant.clone().into();
    assert_eq!(request.body, json!({"writeKey": KEY, "batch": [first, second]}));
}

#[tokio::test]
async fn no_request_is_larger_than_the_service_takes() {
    let events: Vec<_> = (0..6_000).map(event).collect();
    let (first, second) = (Receiver::start().await, Receiver::start().await);
    for (sink, receiver, bytes, most) in [
        (Arc::new(segment(&first)) as Arc<dyn AnalyticsSink>, &first, 500_000, 2_500),
        (Arc::new(posthog(&second)), &second, 20_000_000, 1_000),
    ] {
        assert_eq!(sink.take(&events).await.unwrap(), vec![Delivery::Taken; 6_000], "{sink:?}");
        let received = receiver.received();
        let sizes: Vec<_> =
            received.iter().map(|one| (one.bytes, one.body["batch"].as_array().unwrap().len())).collect();
        assert!(sizes.iter().all(|(size, number)| *size <= bytes && *number <= most), "{sizes:?}");
        assert_eq!(sizes.iter().map(|(_, number)| number).sum::<usize>(), 6_000);
        assert!(sizes.len() < 10, "{sizes:?}: not one by one");
    }
    // One that is too large by itself is refused for that, and nobody else with it.
    let mut events: Vec<_> = (0..3).map(event).collect();
    events[1].member = Some("x".repeat(40_000));
    let answers = segment(&first).take(&events).await.unwrap();
    assert_eq!([&answers[0], &answers[2]], [&Delivery::Taken; 2]);
    assert!(matches!(&answers[1], Delivery::Refused { why } if why.contains("32000")), "{answers:?}");
    assert!(first.received().iter().all(|one| one.bytes < 2_000));
}

// C5
#[tokio::test]
async fn what_is_refused_for_its_content_is_found_and_takes_nobody_with_it() {
    let receiver = Receiver::start().await;
    let is_bad = |event: &Value| event["properties"]["amount"] == 13;
    receiver.refuse(|body| body["batch"].as_array().unwrap().iter().any(|event| event["properties"]["amount"] == 13));
    let mut events: Vec<_> = (0..100).map(event).collect();
    for bad in [0, 41, 99] {
        events[bad].amount = 13;
    }
    let answers = posthog(&receiver).take(&events).await.unwrap();
    for (event, answer) in events.iter().zip(&answers) {
        let expected =
            if event.amount == 13 { Delivery::Refused { why: "400 said so".to_owned() } } else { Delivery::Taken };
        assert_eq!(*answer, expected);
    }
    assert_eq!(receiver.counted().len(), 97);
    assert!(!receiver.taken().iter().any(is_bad));
    // A service that refuses everything is not asked about each; what is left over comes again.
    receiver.received();
    receiver.refuse(|_| true);
    let answers = posthog(&receiver).take(&events).await.unwrap();
    assert_eq!(receiver.received().len(), 64);
    let refused = answers.iter().filter(|answer| matches!(answer, Delivery::Refused { .. })).count();
    let again = answers.iter().filter(|answer| matches!(answer, Delivery::Retry { .. })).count();
    assert!(refused > 0 && again > 0 && refused + again == 100, "{refused} {again}");
}

#[tokio::test]
async fn a_bad_day_of_the_service_is_nobodys_fault_among_the_events() {
    let receiver = Receiver::start().await;
    let sink = segment(&receiver);
    let events = [event(0), event(1)];
    for status in [408, 429, 500, 502, 503] {
        receiver.then([Does::say(status)]);
        let error = sink.take(&events).await.unwrap_err();
        assert!(matches!(&error, SinkError::Busy { why, .. } if why.starts_with(&status.to_string())), "{error}");
    }
    for status in [301, 401, 403, 404, 405] {
        receiver.then([Does::say(status)]);
        let error = sink.take(&events).await.unwrap_err();
        assert!(matches!(error, SinkError::Misconfigured { .. }), "{status}: {error}");
    }
    assert!(
        receiver.counted().is_empty() && receiver.received().len() == 10,
        "no redirect is followed, nothing repeated"
    );
    receiver.then([Does::TakeAndCut]);
    assert!(matches!(sink.take(&events).await.unwrap_err(), SinkError::Busy { cause: Some(_), .. }));
    // Where the status had come, that is the answer, whatever the rest of the body would have said.
    receiver.then([Does::TakeAndCutTheBody]);
    match sink.take(&events).await {
        Ok(answers) => assert_eq!(answers, [Delivery::Taken, Delivery::Taken]),
        Err(error) => assert!(matches!(error, SinkError::Busy { .. }), "{error}"),
    }
    receiver.then([Does::Nothing]);
    let hasty = Segment::new(
        &receiver.base,
        KEY.to_owned().into(),
        Arc::new(HyperPost::new().with_deadline(Duration::from_millis(50))),
    );
    assert!(matches!(hasty.unwrap().take(&events).await.unwrap_err(), SinkError::Busy { .. }));
    let nobody = Segment::new("http://127.0.0.1:1", KEY.to_owned().into(), http()).unwrap();
    assert!(matches!(nobody.take(&events).await.unwrap_err(), SinkError::Busy { .. }));
    assert_eq!(receiver.counted().len(), 2);
}

#[tokio::test]
async fn a_key_is_never_shown() {
    let receiver = Receiver::start().await;
    let repeats = |status| Does::Answer { status, retry_after: None, body: "bad key phc_\"secret\\key" };
    receiver.then([repeats(401), repeats(500)]);
    let sinks: [Arc<dyn AnalyticsSink>; 2] = [Arc::new(posthog(&receiver)), Arc::new(segment(&receiver))];
    for sink in sinks {
        let error = sink.take(&[event(0)]).await.unwrap_err();
        for shown in [format!("{sink:?}"), format!("{error}"), format!("{error:?}")] {
            assert!(!shown.contains("secret"), "{shown}");
        }
    }
    assert!(Segment::new(&receiver.base, " ".to_owned().into(), http()).is_err());
    for bad in ["posthog.com", "https://", "https://phc_secret@host"] {
        let refused = PostHog::new(bad, KEY.to_owned().into(), http()).unwrap_err().to_string();
        assert!(!refused.contains("secret"), "{refused}");
    }
}

struct Stage {
    database: TestDatabase,
    pipeline: UsagePipeline,
    acme: RequestContext,
    globex: RequestContext,
    recorded: std::sync::atomic::AtomicU64,
}

impl Stage {
    async fn start() -> Self {
        let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let pipeline = UsagePipeline::new(database.system().clone(), Arc::new(database.clock().clone()));
        let (acme, globex) = (database.create_tenant("acme").await, database.create_tenant("globex").await);
        Self { database, pipeline, acme, globex, recorded: 0.into() }
    }

    async fn used(&self, ctx: &RequestContext, member: Option<&str>) {
        let calls = MeterKey::from_static("calls");
        let now = self.database.clock().now();
        let number = self.recorded.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let catalog = "default_plan = 'free'\n[meters]\ncalls = { aggregation = 'sum' }\n[plans.free]\nrank = 0\n\
                       [[plans.free.versions]]\nversion = 1";
        let catalog = PlanCatalog::from_toml(catalog).unwrap();
        let key = format!("ada@acme.example-{number}").parse::<IdempotencyKey>().unwrap();
        let (of, actor) = (Use::new(calls, 2, &key), Actor::system("test"));
        let of = if let Some(member) = member { of.with_member(member) } else { of };
        let always = (Window::Lifetime, Period { start: DateTime::UNIX_EPOCH, end: None });
        let record = UsageRecord::in_window(&catalog, ctx.tenant(), &of, &actor, always, now).unwrap();
        assert_eq!(record_many(self.database.system(), &[record], now).await.unwrap().len(), 1);
    }

    /// As soon as nothing older runs any more, exports see all that was recorded.
    async fn settle(&self) {
        assert!(self.pipeline.roll_up(Duration::from_secs(60)).await.unwrap().complete);
    }

    fn feed(&self, sink: impl AnalyticsSink) -> AnalyticsFeed {
        AnalyticsFeed::new(Arc::new(sink), Arc::new(self.database.clock().clone()))
    }

    async fn export(&self, feed: &AnalyticsFeed) -> Result<(u64, u64, u64), EntitlementsError> {
        let report = self.pipeline.export("product-analytics", feed).await?;
        Ok((report.taken, report.retried, report.refused))
    }
}

// C4, C6
#[tokio::test]
async fn every_use_reaches_the_service_once_through_cuts_and_patience_and_under_its_own_id() {
    let stage = Stage::start().await;
    let receiver = Receiver::start().await;
    let feed = stage.feed(posthog(&receiver));
    for n in 0..7 {
        stage.used(if n % 2 == 0 { &stage.acme } else { &stage.globex }, None).await;
    }
    stage.settle().await;
    receiver.then([Does::TakeAndCut, Does::say(503)]);
    for _ in 0..2 {
        assert!(stage.export(&feed).await.unwrap_err().is_retryable());
    }
    // It asks for patience, and is not asked until that is over, however often the application runs the export.
    receiver.then([Does::Answer { status: 429, retry_after: Some("90"), body: "slow down" }]);
    assert_eq!(stage.export(&feed).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(feed.not_before(), Some(stage.database.clock().now() + TimeDelta::seconds(90)));
    receiver.received();
    stage.database.clock().advance(TimeDelta::seconds(89));
    assert!(stage.export(&feed).await.unwrap_err().is_retryable());
    assert!(receiver.received().is_empty());
    stage.database.clock().advance(TimeDelta::seconds(1));
    assert_eq!(feed.not_before(), None);
    // A key that is wrong costs no event: nothing is refused, nothing counts as tried.
    receiver.then([Does::say(401)]);
    assert_eq!(stage.export(&feed).await.unwrap_err().kind(), ErrorKind::Misconfigured);
    assert_eq!(stage.export(&feed).await.unwrap(), (7, 0, 0));
    assert_eq!(stage.export(&feed).await.unwrap(), (0, 0, 0));
    let mut recorded: Vec<UsageEventId> = sqlx::query_scalar::<_, uuid::Uuid>("select id from saas.usage_event")
        .fetch_all(&mut stage.database.owner().await)
        .await
        .unwrap()
        .into_iter()
        .map(UsageEventId::from_uuid)
        .collect();
    recorded.sort_unstable();
    assert_eq!(receiver.counted().into_keys().collect::<Vec<_>>(), recorded);

    // What is refused is kept with the reason, and does not come again.
    receiver.refuse(|_| true);
    stage.used(&stage.acme, None).await;
    stage.settle().await;
    assert_eq!(stage.export(&feed).await.unwrap(), (0, 0, 1));
    assert_eq!(stage.export(&feed).await.unwrap(), (0, 0, 0));
    let why: String = sqlx::query_scalar("select reason from saas.usage_undelivered where refused")
        .fetch_one(&mut stage.database.owner().await)
        .await
        .unwrap();
    assert_eq!(why, "400 said so");
}

#[tokio::test]
async fn nothing_that_means_something_to_others_leaves_the_house() {
    let stage = Stage::start().await;
    let user = "01900000-0000-7000-8000-00000000000a";
    for member in [Some("ada@acme.example"), Some("Ada Lovelace"), Some(user), Some("emp-42"), None] {
        stage.used(&stage.acme, member).await;
    }
    // What is not a use.
    let mut owner = stage.database.owner().await;
    for (kind, amount) in [("correction", -1), ("correction", 4), ("stranded", 9)] {
        sqlx::query(
            "insert into saas.usage_event
                 (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
             select tenant_id, gen_random_uuid(), recorded_at, meter, counter, $1, $2, $2, window_kind, window_start, at,
                    key, actor
             from saas.usage_event where member is null and kind = 'record'",
        )
        .bind(kind)
        .bind(amount)
        .execute(&mut owner)
        .await
        .unwrap();
    }
    stage.settle().await;
    let (receiver, sink) = (Receiver::start().await, Arc::new(InMemorySink::new()));
    assert_eq!(stage.export(&stage.feed(segment(&receiver))).await.unwrap(), (8, 0, 0));
    let told = Value::from(receiver.taken()).to_string();
    for secret in ["ada@", "Ada", "acme.example", "emp-42"] {
        assert!(!told.contains(secret), "{secret} in {told}");
    }
    assert_eq!(receiver.taken().len(), 5, "corrections and losses are no uses");
    assert_eq!(receiver.taken().iter().filter(|call| call["userId"] == user).count(), 1);
    assert_eq!(
        receiver.taken().iter().filter(|call| call["anonymousId"] == stage.acme.tenant().to_string()).count(),
        4
    );

    // The application says what its ids look like.
    let clock = Arc::new(stage.database.clock().clone());
    let feed =
        AnalyticsFeed::new(sink.clone(), clock).with_members(MemberIds::Where(|member| member.starts_with("emp-")));
    stage.pipeline.export("another", &feed).await.unwrap();
    let members: Vec<_> = sink.events().into_iter().filter_map(|event| event.member).collect();
    assert_eq!(members, ["emp-42"]);
}

#[tokio::test]
async fn operators_see_when_each_tenant_was_last_active() {
    let stage = Stage::start().await;
    let last_active = async |ctx: &RequestContext| -> Option<DateTime<Utc>> {
        sqlx::query_scalar("select last_active_at from saas.tenant_overview where tenant_id = $1")
            .bind(ctx.tenant().as_uuid())
            .fetch_one(&mut stage.database.owner().await)
            .await
            .unwrap()
    };
    let first = stage.database.clock().now();
    stage.used(&stage.acme, None).await;
    stage.settle().await;
    assert_eq!((last_active(&stage.acme).await, last_active(&stage.globex).await), (Some(first), None));
    stage.database.clock().advance(TimeDelta::hours(1));
    for ctx in [&stage.acme, &stage.globex, &stage.acme] {
        stage.used(ctx, None).await;
    }
    stage.settle().await;
    let second = Some(first + TimeDelta::hours(1));
    assert_eq!((last_active(&stage.acme).await, last_active(&stage.globex).await), (second, second));
    stage.settle().await;
    assert_eq!(last_active(&stage.acme).await, second);
}
