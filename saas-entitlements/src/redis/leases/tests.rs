use std::time::Duration;

use chrono::{DateTime, Utc};
use redis::Client;
use saas_core::{
    Actor, IdempotencyKey, LeaseToken, Limit, MeterKey, RequestContext, Revision, SystemClock, TenantId,
    plan::{Aggregation, Window},
    testing::RedisServer,
};

use super::{
    super::link::{Link, Redis},
    RedisLeaseOptions,
    place::{Place, key},
    scripts::{Answer, Refill, Shelf},
};
use crate::{Ask, Draw, DrawKind, Period};

fn ask(want: u64) -> Ask {
    let calls = MeterKey::from_static("calls");
    let lease = LeaseToken::mint(&SystemClock);
    Ask {
        draw: Draw {
            kind: DrawKind::Consume,
            meter: calls.clone(),
            counter: calls,
            aggregation: Aggregation::Sum,
            amount: 1,
            units: 1,
            key: IdempotencyKey::try_from(lease.to_string()).unwrap(),
            item: None,
            member: None,
            at: DateTime::<Utc>::UNIX_EPOCH,
            window: Window::Lifetime,
            period: Period { start: DateTime::UNIX_EPOCH, end: None },
            cap: 10_000,
            member_cap: None,
            limit: Limit::Max(10_000),
            thresholds: Box::default(),
            carry: None,
            revision: Revision::new(1),
        },
        cost: 1,
        lease,
        number: 0,
        spent: 0,
        holder: "test".into(),
        exposed: 10_000,
        want,
        life: Duration::from_secs(600),
    }
}

struct Bench {
    shelf: Shelf,
    place: Place,
    _server: RedisServer,
}

impl Bench {
    fn start() -> Self {
        let server = RedisServer::start().unwrap();
        let options = RedisLeaseOptions::default();
        let link = Link::new(Redis::single(Client::open(server.url()).unwrap()), Duration::from_secs(10));
        let ctx = RequestContext::new(TenantId::mint(&SystemClock), Actor::system("test"), &SystemClock);
        let ask = ask(1);
        let place = Place::new(key(&options, &ctx, &ask), &ctx, &ask);
        Self { shelf: Shelf::new(link, options), place, _server: server }
    }

    async fn refill(&self, ask: &Ask, question: LeaseToken) -> Refill {
        let answer = self.shelf.borrow(&self.place, ask, question, true).await.unwrap();
        assert_eq!(answer.outcome, "refill");
        Refill { pool: answer.token(0).unwrap(), number: answer.number(1), spent: answer.number(2) }
    }

    async fn put(&self, ask: &Ask, question: LeaseToken, refill: Refill, units: u64) -> Answer {
        self.shelf.put(&self.place, ask, question, refill, (units, 1)).await.unwrap()
    }

    /// What of the pools nobody holds.
    async fn free(&self) -> u64 {
        self.shelf.peek(&self.place).await.unwrap().number(1)
    }
}

// C11: a client that repeats a command, and a command that comes late, put nothing back that was taken away.
#[tokio::test]
async fn units_come_into_a_pool_once_and_not_after_something_took_units_back() {
    let bench = Bench::start();
    let (first, question) = (ask(10), LeaseToken::mint(&SystemClock));
    let answer = bench.shelf.borrow(&bench.place, &first, question, false).await.unwrap();
    assert_eq!(answer.outcome, "short");
    let refill = bench.refill(&first, question).await;
    assert_eq!((refill.number, refill.spent), (0, 0));
    let second = ask(10);
    let opening = bench.shelf.borrow(&bench.place, &second, LeaseToken::mint(&SystemClock), true).await.unwrap();
    assert_eq!(opening.outcome, "full", "PostgreSQL does not know the pool yet");
    for _ in 0..2 {
        let answer = bench.put(&first, question, refill, 100).await;
        assert_eq!((&*answer.outcome, answer.number(0)), ("lent", 10));
        assert_eq!(bench.free().await, 90);
    }
    let other = bench.put(&second, LeaseToken::mint(&SystemClock), refill, 100).await;
    assert_eq!((&*other.outcome, bench.free().await), ("late", 90));

    // Under way while the pool gives back what nobody holds.
    let (third, question) = (ask(1_000), LeaseToken::mint(&SystemClock));
    bench.place.answered(&first);
    let lent = bench.shelf.borrow(&bench.place, &third, question, false).await.unwrap();
    assert_eq!((&*lent.outcome, lent.number(0), bench.free().await), ("lent", 89, 1), "and one is needed");
    let (fourth, question) = (ask(1_000), LeaseToken::mint(&SystemClock));
    let refill = bench.refill(&fourth, question).await;
    let trimmed = bench.shelf.trim(&bench.place, None).await.unwrap();
    let [order] = &trimmed.orders[..] else { panic!("{trimmed:?}") };
    assert!(order.number > refill.number, "{order:?} {refill:?}");
    assert_eq!((order.spent, order.keep, order.ending), (0, Some(10 + 90), false));
    assert_eq!(bench.put(&fourth, question, refill, 1_000).await.outcome, "late");
    assert_eq!(bench.free().await, 1);
}

// C19
#[tokio::test]
async fn a_borrow_is_undone_once_and_does_not_happen_after_that() {
    let bench = Bench::start();
    let (first, question) = (ask(10), LeaseToken::mint(&SystemClock));
    let refill = bench.refill(&first, question).await;
    assert_eq!(bench.put(&first, question, refill, 100).await.number(0), 10);
    let (second, question) = (ask(10), LeaseToken::mint(&SystemClock));
    for _ in 0..2 {
        let answer = bench.shelf.borrow(&bench.place, &second, question, false).await.unwrap();
        assert_eq!((&*answer.outcome, answer.number(0)), ("lent", 10), "asked twice");
    }
    assert_eq!(bench.free().await, 80);
    let undo = async |lease, question| bench.shelf.undo(&bench.place, lease, (0, 0), question).await.unwrap();
    for _ in 0..2 {
        undo(second.lease, question).await;
        assert_eq!(bench.free().await, 90, "what was lent and what was needed");
    }
    // It came after all.
    let late = bench.shelf.borrow(&bench.place, &second, question, false).await.unwrap();
    assert_eq!((&*late.outcome, bench.free().await), ("fenced", 90));
    let (third, question) = (ask(10), LeaseToken::mint(&SystemClock));
    undo(third.lease, question).await;
    let late = bench.shelf.borrow(&bench.place, &third, question, false).await.unwrap();
    assert_eq!((&*late.outcome, bench.free().await), ("fenced", 90), "undone before it came");
}
