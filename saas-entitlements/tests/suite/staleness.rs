//! What the gate says about how old its answers are and how well it hears.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
    time::Duration,
};

use saas_entitlements::Origin;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

use crate::stage::{EXPORT, Stage};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test]
async fn the_oldest_state_that_was_answered_from_is_shown_and_then_forgotten() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    assert_eq!(stage.gate.staleness().oldest_answer, seconds(0));
    assert!(stage.export(tenant).await);
    stage.source.set_down(true);
    stage.advance(50);
    assert!(stage.export(tenant).await);
    assert_eq!(stage.gate.staleness().oldest_answer, seconds(50), "within its life, and near its end");
    stage.advance(550);
    assert!(stage.export(tenant).await);
    assert_eq!(stage.gate.staleness().oldest_answer, seconds(600), "the last known state");
    stage.source.set_down(false);
    stage.advance(1);
    while stage.gate.snapshot(tenant).await.origin() != Origin::Loaded {
        tokio::task::yield_now().await;
    }
    stage.advance(120);
    assert!(stage.export(tenant).await);
    assert!(stage.gate.staleness().oldest_answer < seconds(60), "{:?}", stage.gate.staleness());
}

#[tokio::test]
async fn an_answer_by_fail_policy_rests_on_nothing_and_has_no_age() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    stage.source.set_down(true);
    stage.advance(3_600);
    assert!(!stage.export(tenant).await);
    assert_eq!(stage.gate.staleness().oldest_answer, seconds(0));
    assert_eq!(stage.gate.stats().fail_policy_answers, 1);
}

#[tokio::test]
async fn a_clock_that_stands_still_is_seen() {
    let stage = Stage::new();
    assert_eq!(stage.gate.staleness().clock_behind, Some(seconds(0)));
    stage.clock.advance(chrono::TimeDelta::seconds(7));
    assert_eq!(stage.gate.staleness().clock_behind, Some(seconds(7)));
    stage.gate.tick();
    assert_eq!(stage.gate.staleness().clock_behind, Some(seconds(0)));
    drop(stage.gate.start_clock());
    assert_eq!(stage.gate.staleness().clock_behind, None, "stopped: no question is judged by it");
}

#[tokio::test]
async fn a_channel_shows_for_how_long_it_is_silent_and_how_late_it_was() {
    let stage = Stage::new();
    assert!(stage.gate.staleness().channels.is_empty());
    let (mine, other) = (stage.gate.watch_channel("mine"), stage.gate.watch_channel("other"));
    stage.advance(30);
    mine.heard_after(Duration::from_millis(5));
    stage.advance(20);
    mine.heard_after(Duration::from_millis(2));
    stage.advance(4);
    let channels = stage.gate.staleness().channels;
    let shown = |at: usize| (channels[at].channel, channels[at].silent_for, channels[at].worst_lag);
    assert_eq!(shown(0), ("mine", seconds(4), Some(Duration::from_millis(5))));
    assert_eq!(shown(1), ("other", seconds(54), None), "since it began");
    stage.advance(120);
    mine.heard();
    let channels = stage.gate.staleness().channels;
    assert_eq!((channels[0].silent_for, channels[0].worst_lag), (seconds(0), None), "what was two minutes ago is over");
    drop(other);
    assert_eq!(stage.gate.staleness().channels.len(), 1, "one that was ended on purpose is no alarm");
}

#[tokio::test]
async fn figures_are_plain_data() {
    let stage = Stage::new();
    let _mine = stage.gate.watch_channel("mine");
    let text = serde_json::to_value(stage.gate.staleness()).unwrap();
    assert_eq!(text["channels"][0]["channel"], "mine");
    assert_eq!(text["oldest_answer"], serde_json::json!({ "secs": 0, "nanos": 0 }));
}

/// Keeps what was said about one subject.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    target: &'static str,
    told: Arc<Mutex<Vec<(Level, String)>>>,
}

impl Said {
    pub(crate) fn of(target: &'static str) -> Self {
        Self { target, told: Arc::default() }
    }

    pub(crate) fn told(&self) -> Vec<(Level, String)> {
        self.told.lock().unwrap().clone()
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!("{}={value:?} ", field.name());
    }
}

impl Subscriber for Said {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == self.target
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.told.lock().unwrap().push((*event.metadata().level(), text.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

// G11: the alarm.
#[tokio::test]
async fn every_degraded_answer_is_traced_and_counted_and_the_log_is_not_flooded() {
    let said = Said::of("saas.entitlements.gate.degraded");
    let _guard = tracing::subscriber::set_default(said.clone());
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    assert!(stage.export(tenant).await);
    stage.source.set_down(true);
    stage.advance(61);
    for _ in 0..10 {
        assert!(stage.export(tenant).await);
    }
    let stranger = stage.tenant("pro");
    assert!(!stage.gate.is_feature_enabled(stranger, &EXPORT).await, "never read");
    stage.advance(60);
    assert!(stage.export(tenant).await);
    let stats = stage.gate.stats();
    assert_eq!((stats.last_known_answers, stats.fail_policy_answers), (11, 1));
    let said = said.told();
    let of = |level: Level| said.iter().filter(|(of, _)| *of == level).map(|(_, text)| text).collect::<Vec<_>>();
    let each = of(Level::DEBUG);
    assert_eq!(each.len(), 12);
    assert!(each[0].contains(&tenant.to_string()) && each[0].contains("last known state"), "{}", each[0]);
    assert!(each[10].contains(&stranger.to_string()) && each[10].contains("fail policy"), "{}", each[10]);
    let warned = of(Level::WARN);
    assert_eq!(warned.len(), 2, "once a minute: {warned:?}");
    assert!(warned[0].contains("answers=1 ") && warned[1].contains("answers=11 "), "{warned:?}");
}
