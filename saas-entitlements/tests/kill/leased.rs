//! Uses from memory, without keys: by leases of PostgreSQL, and by leases out of Redis.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use saas_core::{MeterKey, RequestContext, SystemClock, TenantPool};
use saas_entitlements::{
    Entitlements, LeaseOptions, LeaseStore, LeasedUse, Leases, PostgresLeases, RedisLeaseOptions, RedisLeases,
};

use crate::{
    CALLS, CALLS_LIMIT, HITS, HITS_LIMIT, KILLS, Tenants,
    books::Books,
    journal::{Journal, Noted, Pair, Units},
    taps::redis,
    worker::{PAUSE, answer, is_passing},
};

/// What a task does in each second.
const USES_A_SECOND: usize = 25;
const UNITS_A_USE: u64 = 4;
const LIFE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(100);

/// A process' leases of one meter.
pub(crate) struct Leased {
    leases: Leases,
    meter: MeterKey,
}

impl Leased {
    pub(crate) fn of_postgres(gate: &Entitlements, tenants: &TenantPool) -> Self {
        Self::new(gate, CALLS, Arc::new(PostgresLeases::new(Arc::new(tenants.clone()))), LeaseOptions::default())
    }

    /// And the store, which knows what Redis did.
    pub(crate) fn out_of_redis(gate: &Entitlements, tenants: &TenantPool, url: &str) -> (Self, RedisLeases) {
        // A machine that is busy with all of this is not a Redis that is down.
        let options = RedisLeaseOptions::default()
            .with_answer_within(Duration::from_millis(500))
            .with_life(LIFE)
            .with_tick(TICK)
            .with_pause(Duration::from_millis(10));
        let leases = PostgresLeases::new(Arc::new(tenants.clone()));
        let store = RedisLeases::start(leases, redis(url), Arc::new(SystemClock), options);
        // So little at once that each task asks Redis in each second.
        let small = LeaseOptions::default().with_size(UNITS_A_USE, UNITS_A_USE * USES_A_SECOND as u64);
        (Self::new(gate, HITS, Arc::new(store.clone()), small), store)
    }

    fn new(gate: &Entitlements, meter: MeterKey, store: Arc<dyn LeaseStore>, options: LeaseOptions) -> Self {
        let options = options.with_life(LIFE).with_tick(TICK);
        Self { leases: Leases::new(gate.clone(), store, options), meter }
    }

    /// The uses of a task; whatever is not answered may have been granted.
    pub(crate) async fn serve(&self, ctx: &RequestContext, pair: Pair, journal: &Journal) {
        for _ in 0..USES_A_SECOND {
            let (most, least) = journal.read(pair);
            journal.note(pair, (most + UNITS_A_USE, least));
            match self.leases.consume(ctx, &self.meter, UNITS_A_USE).await {
                Ok(LeasedUse::Granted) => journal.note(pair, (most + UNITS_A_USE, least + UNITS_A_USE)),
                Ok(LeasedUse::Exhausted { .. }) => {
                    journal.note(pair, (most, least));
                    break;
                }
                Ok(denied @ LeasedUse::Denied(_)) => panic!("{denied:?}"),
                Err(error) if is_passing(&error) => tokio::time::sleep(PAUSE).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    pub(crate) async fn shutdown(&self) {
        answer(is_passing, async || self.leases.shutdown().await).await;
    }

    /// Uses what is left to the last unit, once what the dead held is over.
    pub(crate) async fn use_the_rest(&self, tenants: &Tenants, until: Instant) -> Units {
        let mut rest = Units::default();
        loop {
            assert!(Instant::now() < until, "the leases of `{}` of the dead are not reclaimed", self.meter);
            match self.leases.consume(&tenants.busy, &self.meter, 1).await {
                Ok(LeasedUse::Granted) => rest += Units { least: 1, most: 1 },
                Ok(LeasedUse::Exhausted { held: 0, .. }) => break,
                Ok(LeasedUse::Exhausted { .. }) => {}
                Ok(denied @ LeasedUse::Denied(_)) => panic!("{denied:?}"),
                // On a connection from before the last end of the server.
                Err(error) if is_passing(&error) => rest += Units { least: 0, most: 1 },
                Err(error) => panic!("{error:?}"),
            }
        }
        self.shutdown().await;
        rest
    }
}

/// How a meter's limit was used up.
#[derive(Debug)]
pub(crate) struct Account {
    granted: Units,
    recorded: u64,
    stranded: u64,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { granted: Units { least, most }, recorded, stranded } = self;
        write!(f, "{recorded} recorded, {stranded} stranded, granted {least} to {most}")
    }
}

/// What was granted is counted, and nothing is counted that was not begun or lost with a lease.
async fn is_accounted_for(books: &Books<'_>, meter: &MeterKey, limit: u64, granted: Units) -> Account {
    let (stranded, recorded) = books.stranded_and_recorded(meter).await;
    assert_eq!(recorded + stranded, limit, "`{meter}`: the limit was reached, to the last unit");
    assert!(granted.least <= limit, "`{meter}`: {granted:?} were granted");
    let bound = limit / 100 * KILLS as u64;
    let lost = limit.saturating_sub(granted.most);
    assert!(stranded.max(lost) <= bound, "`{meter}`: {stranded} stranded and {lost} lost, {bound} at most");
    Account { granted, recorded, stranded }
}

/// Those of PostgreSQL: whatever was lost is on record as stranded.
pub(crate) async fn calls_are_accounted_for(books: &Books<'_>, noted: &Noted, rest: Units) -> Account {
    let account = is_accounted_for(books, &CALLS, CALLS_LIMIT, noted.calls + rest).await;
    assert!(account.recorded <= account.granted.most, "{account:?}: recorded, and not begun");
    account
}

/// Those out of Redis, which reports what it has found to be lost together with what was used.
pub(crate) async fn hits_are_accounted_for(books: &Books<'_>, noted: &Noted, rest: Units) -> Account {
    let account = is_accounted_for(books, &HITS, HITS_LIMIT, noted.hits + rest).await;
    assert!(noted.borrowed > 500, "Redis answered {} borrows only", noted.borrowed);
    account
}
