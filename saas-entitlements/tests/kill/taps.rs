//! Uses that Redis admits, under keys, and PostgreSQL counts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::Client;
use saas_core::{RequestContext, SystemClock, TenantPool};
use saas_entitlements::{Consumption, Entitlements, Meter, PostgresCounters, Redis, RedisTier, TierOptions};

use crate::{
    TAPS, TAPS_LIMIT, Tenants,
    books::Books,
    journal::{Journal, Noted, Pair},
    worker::{answer, is_passing},
};

const TAPS_A_SECOND: u64 = 3;
const UNITS_A_TAP: u64 = 5;

pub(crate) fn redis(url: &str) -> Redis {
    Redis::single(Client::open(url).unwrap())
}

/// A process' share of the tier.
pub(crate) struct Tap {
    tier: RedisTier,
    meter: Meter,
}

impl Tap {
    pub(crate) fn open(gate: &Entitlements, tenants: &TenantPool, url: &str) -> Self {
        // A machine that is busy with all of this is not a Redis that is down.
        let options = TierOptions::default()
            .with_answer_within(Duration::from_millis(500))
            .with_life(Duration::from_secs(2))
            .with_pause(Duration::from_millis(10));
        let counters = PostgresCounters::new(Arc::new(tenants.clone()));
        let tier = RedisTier::start(counters, redis(url), Arc::new(SystemClock), options);
        Self { meter: Meter::new(gate.clone(), Arc::new(tier.clone())), tier }
    }

    /// Uses under keys, each of which is repeated until there is an answer, by this process or the next.
    pub(crate) async fn serve(&self, ctx: &RequestContext, worker: usize, journal: &Journal) {
        for _ in 0..TAPS_A_SECOND {
            let ((n, granted), (untried, in_doubt)) = (journal.read(Pair::Taps), journal.read(Pair::Tried));
            let mut is_repeat = untried > n;
            journal.note(Pair::Tried, (n + 1, in_doubt));
            let key = format!("{worker}-{n}").parse().unwrap();
            let used = answer(
                |error| {
                    is_repeat = true;
                    is_passing(error)
                },
                async || self.meter.consume(ctx, &TAPS, UNITS_A_TAP, &key).await,
            );
            match used.await {
                Consumption::Granted { .. } | Consumption::AlreadyCounted => {
                    journal.note(Pair::Taps, (n + 1, granted + UNITS_A_TAP));
                }
                Consumption::Exhausted { .. } => {
                    // A try that Redis has taken, and told nobody of, is counted by whoever finds it.
                    journal.note(Pair::Tried, (n + 1, in_doubt + if is_repeat { UNITS_A_TAP } else { 0 }));
                    journal.note(Pair::Taps, (n + 1, granted));
                }
                denied @ Consumption::Denied { .. } => panic!("{denied:?}"),
            }
        }
        let stats = self.tier.stats();
        let (never, ever) = ([stats.beyond, stats.reused_keys, stats.unreadable], [0; 3]);
        assert_eq!(never, ever, "units beyond what was lent, keys of other uses, values of nobody's: {stats:?}");
    }

    /// Uses that Redis has admitted.
    pub(crate) fn admitted(&self) -> u64 {
        self.tier.stats().admitted
    }

    pub(crate) async fn shutdown(&self) {
        answer(is_passing, async || self.tier.shutdown().await).await;
    }

    /// Uses what is left to the last unit, once what the dead were lent is over; returns how much that was.
    pub(crate) async fn use_the_rest(&self, tenants: &Tenants, books: &Books<'_>, until: Instant) -> u64 {
        let mut rest = 0;
        for number in 0.. {
            assert!(Instant::now() < until, "what Redis was lent is not given back");
            let key = format!("rest-{number}").parse().unwrap();
            match answer(is_passing, async || self.meter.consume(&tenants.busy, &TAPS, 1, &key).await).await {
                Consumption::Granted { .. } | Consumption::AlreadyCounted => rest += 1,
                Consumption::Exhausted { .. } if books.held(&TAPS).await == 0 => break,
                Consumption::Exhausted { .. } => {}
                denied @ Consumption::Denied { .. } => panic!("{denied:?}"),
            }
        }
        self.shutdown().await;
        rest
    }
}

/// Every unit that was granted is recorded under its key or, where Redis and its process were both lost, stranded.
pub(crate) async fn are_accounted_for(books: &Books<'_>, noted: &Noted, rest: u64) -> (u64, u64) {
    let (stranded, recorded) = books.stranded_and_recorded(&TAPS).await;
    let granted = noted.taps + rest;
    assert_eq!(recorded + stranded, TAPS_LIMIT, "the limit was reached, to the last unit");
    assert!(recorded <= granted + noted.taps_in_doubt, "{recorded} recorded, {granted} granted, {noted:?}");
    assert!(granted <= recorded + stranded, "{granted} granted, {recorded} recorded, {stranded} stranded");
    assert!(noted.admitted > 1_000, "Redis admitted {} uses only", noted.admitted);
    (stranded, recorded)
}
