//! What every [`AnalyticsSink`] must do, as tests that any implementation runs with
//! [`analytics_sink_conformance!`](crate::analytics_sink_conformance).

#![expect(clippy::unwrap_used, reason = "these are tests: a panic is how they report")]

use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{MeterKey, TenantId, UsageEventId};

use super::{AnalyticsSink, ProductEvent};
use crate::usage::Delivery;

/// A sink to be tested, and what its service knows by now: how often each event counts there.
pub struct Fixture {
    sink: Arc<dyn AnalyticsSink>,
    counted: Box<dyn Fn() -> BTreeMap<UsageEventId, usize> + Send + Sync>,
    _kept: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Fixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fixture").field("sink", &self.sink).finish_non_exhaustive()
    }
}

impl Fixture {
    /// A fixture; `kept` lives as long as it, such as the server behind the sink.
    pub fn new(
        sink: Arc<dyn AnalyticsSink>,
        counted: impl Fn() -> BTreeMap<UsageEventId, usize> + Send + Sync + 'static,
        kept: impl Any + Send + Sync,
    ) -> Self {
        Self { sink, counted: Box::new(counted), _kept: Box::new(kept) }
    }

    fn expect_once(&self, events: &[ProductEvent]) {
        let once: BTreeMap<_, _> = events.iter().map(|event| (event.id, 1)).collect();
        assert_eq!((self.counted)(), once);
    }
}

fn start() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(20_500)
}

fn events(number: usize) -> Vec<ProductEvent> {
    let tenants = [TenantId::mint_at(start()), TenantId::mint_at(start())];
    let meters = [MeterKey::from_static("calls"), MeterKey::from_static("reports.exported")];
    let event = |n: usize| {
        let at = start() + TimeDelta::milliseconds(i64::try_from(n).unwrap());
        let event =
            ProductEvent::new(UsageEventId::mint_at(at), tenants[n % 2], meters[n % 2].clone(), n as u64 + 1, at);
        if n.is_multiple_of(3) { event } else { event.with_member(tenants[0].to_string()) }
    };
    (0..number).map(event).collect()
}

/// Each event is taken, and counts once.
pub async fn each_event_is_taken_and_counts_once(fixture: Fixture) {
    let events = events(7);
    assert_eq!(fixture.sink.take(&events).await.unwrap(), vec![Delivery::Taken; 7]);
    fixture.expect_once(&events);
}

/// C2: what comes again, with others, alone or twice in one call, counts once.
pub async fn what_comes_again_is_taken_and_counts_once(fixture: Fixture) {
    let events = events(9);
    assert_eq!(fixture.sink.take(&events[..6]).await.unwrap(), vec![Delivery::Taken; 6]);
    assert_eq!(fixture.sink.take(&events[2..]).await.unwrap(), vec![Delivery::Taken; 7]);
    let twice = [events[4].clone(), events[4].clone()];
    assert_eq!(fixture.sink.take(&twice).await.unwrap(), vec![Delivery::Taken; 2]);
    fixture.expect_once(&events);
}

/// More than any service takes at once: every event is answered for.
pub async fn many_events_are_all_answered_for(fixture: Fixture) {
    let events = events(6_000);
    assert_eq!(fixture.sink.take(&events).await.unwrap(), vec![Delivery::Taken; 6_000]);
    fixture.expect_once(&events);
}

/// Nothing is nothing.
pub async fn no_events_are_no_answers(fixture: Fixture) {
    assert_eq!(fixture.sink.take(&[]).await.unwrap(), []);
    fixture.expect_once(&[]);
}

/// Two calls at once.
pub async fn calls_at_once_do_not_mix_their_answers(fixture: Fixture) {
    let events = events(400);
    let (left, right) = tokio::join!(fixture.sink.take(&events[..250]), fixture.sink.take(&events[150..]));
    assert_eq!((left.unwrap().len(), right.unwrap().len()), (250, 250));
    fixture.expect_once(&events);
}

/// Makes a module with one test for each promise of [`AnalyticsSink`](crate::analytics::AnalyticsSink).
///
/// The expression gives an async function that makes a fresh [`Fixture`](crate::analytics::conformance::Fixture).
#[macro_export]
macro_rules! analytics_sink_conformance {
    ($name:ident, $fixture:expr) => {
        $crate::analytics_sink_conformance!(@tests $name, $fixture,
            each_event_is_taken_and_counts_once,
            what_comes_again_is_taken_and_counts_once,
            many_events_are_all_answered_for,
            no_events_are_no_answers,
            calls_at_once_do_not_mix_their_answers);
    };
    (@tests $name:ident, $fixture:expr, $($test:ident),+) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test]
                async fn $test() {
                    $crate::analytics::conformance::$test($fixture().await).await;
                }
            )+
        }
    };
}
