//! Reservations: units set aside for work whose cost is known only afterwards.

use std::{fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, IdempotencyKey, InvalidInput, Limit, MeterKey, PlanVersionRef, RequestContext, TenantContext,
    UsageReservationId,
    plan::{Aggregation, MeterLimit},
};
use serde::Serialize;

use super::{
    ATTEMPTS, Consumption, Denial, Draw, DrawKind, Hold, Holding, ReservationStore, Settled, Use,
    decide::{MOST, Verdict, additive, admits, decide, declared, rule_at, thresholds, upgrade},
};
use crate::{Entitlements, EntitlementsError, Snapshot};

/// The shortest and the longest life of a reservation.
const LIVES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 60 * 60));

/// Sets units of tenants aside, and counts what became of them.
///
/// ```no_run
/// # use std::time::Duration;
/// # use saas_core::{MeterKey, RequestContext};
/// # use saas_entitlements::{EntitlementsError, Reservations, Reserved};
/// const TOKENS: MeterKey = MeterKey::from_static("tokens");
/// # async fn ask_the_model() -> u64 { 0 }
/// # async fn example(reservations: Reservations, ctx: RequestContext) -> Result<(), Box<dyn std::error::Error>> {
/// match reservations.reserve(&ctx, &TOKENS, 4_000, &"chat-7:turn-3".parse()?, Duration::from_secs(120)).await? {
///     Reserved::Granted { mut reservation, .. } => {
///         let used = ask_the_model().await; // an error or a cancelled request gives the 4,000 back
///         let counted = reservation.commit(used).await?;
///         println!("{counted}");
///     }
///     Reserved::AlreadyCounted { .. } => { /* a repeat: the answer is there, or was */ }
///     refused => println!("{refused}"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Reservations {
    entitlements: Entitlements,
    store: Arc<dyn ReservationStore>,
}

/// What became of a wish to reserve.
#[derive(Debug)]
#[must_use = "work that was not granted must not start; a reservation that is dropped is released"]
pub enum Reserved {
    /// The units are set aside: go ahead, then commit what it took.
    Granted {
        /// What holds them.
        reservation: Reservation,
        /// What is left of the plan's own in the window beside all that is held, grants apart.
        left: Limit,
        /// Units of it beyond the limit, if all of them are used; 0 unless the plan lets more through.
        over: u64,
        /// Units of it that are set aside of grants.
        of_grants: u64,
    },
    /// They do not fit, and nothing is held.
    Exhausted {
        /// The most that may be used in the window, grants apart.
        limit: u64,
        /// What would fit, grants included, in units of the meter that pays: less than was asked for.
        left: u64,
        /// Held by other reservations and by processes, which may give some of it back.
        held: u64,
        /// When the window ends; `None` for never.
        resets_at: Option<DateTime<Utc>>,
        /// The lowest plan that would have let it through.
        upgrade: Option<PlanVersionRef>,
    },
    /// The tenant may not use this meter at all.
    Denied {
        /// Why.
        why: Denial,
        /// The lowest plan that would have let it through.
        upgrade: Option<PlanVersionRef>,
    },
    /// This key was counted before: the work may be done, or has been.
    AlreadyCounted {
        /// How much was counted.
        amount: u64,
    },
}

/// A sentence for a log or a page.
impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted { reservation, left, over, of_grants } => {
                write!(f, "{} set aside", reservation.amount())?;
                match left {
                    Limit::Unlimited => f.write_str(", without limit")?,
                    Limit::Max(left) => write!(f, ", {left} left")?,
                }
                if *of_grants > 0 {
                    write!(f, ", {of_grants} of a grant")?;
                }
                if *over > 0 {
                    write!(f, ", {over} beyond the limit")?;
                }
                Ok(())
            }
            Self::Exhausted { limit, left, held, resets_at, upgrade } => {
                write!(f, "limit of {limit}: {left} left")?;
                if *held > 0 {
                    write!(f, " while {held} are set aside")?;
                }
                if let Some(resets_at) = resets_at {
                    write!(f, " until {resets_at}")?;
                }
                match upgrade {
                    Some(version) => write!(f, "; `{version}` has more"),
                    None => Ok(()),
                }
            }
            Self::Denied { why, upgrade } => Consumption::Denied { why: *why, upgrade: upgrade.clone() }.fmt(f),
            Self::AlreadyCounted { amount } => write!(f, "already counted, with {amount}"),
        }
    }
}

/// What a reservation came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Settlement {
    /// What the work took is counted.
    Counted {
        /// What is left of the plan's own in the window, grants apart.
        left: Limit,
        /// Units of it beyond the limit.
        over: u64,
        /// Units of it that were taken from grants.
        burnt: u64,
        /// Units of it that had not been reserved.
        beyond: u64,
        /// Whether the reservation had lost its units by then, because it was overdue or released: all of them are
        /// `beyond`.
        late: bool,
        /// Warning thresholds, in percent, that it was the first in the window to reach under this limit.
        crossed: Vec<u16>,
    },
    /// All of it was given back, and nothing was counted.
    Released,
    /// Its key was counted before.
    AlreadyCounted {
        /// How much was counted.
        amount: u64,
    },
}

/// A sentence for a log.
impl fmt::Display for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted { left, over, burnt, beyond, late, crossed } => {
                match left {
                    Limit::Unlimited => f.write_str("counted, without limit")?,
                    Limit::Max(left) => write!(f, "counted, {left} left")?,
                }
                for (units, of) in [(burnt, "of a grant"), (beyond, "not reserved"), (over, "beyond the limit")] {
                    if *units > 0 {
                        write!(f, ", {units} {of}")?;
                    }
                }
                if *late {
                    f.write_str(", too late for its reservation")?;
                }
                crossed.iter().try_for_each(|percent| write!(f, ", {percent} % of the limit reached"))
            }
            Self::Released => f.write_str("released"),
            Self::AlreadyCounted { amount } => write!(f, "already counted, with {amount}"),
        }
    }
}

impl Reservations {
    /// Reservations of what `entitlements` allows, held in `store`.
    #[must_use]
    pub fn new(entitlements: Entitlements, store: Arc<dyn ReservationStore>) -> Self {
        Self { entitlements, store }
    }

    /// Sets `amount` units aside for `life`, all or nothing: the most that the work is expected to take.
    ///
    /// They count against the limit for everybody until they are committed, released or overdue. A repeat with the same key
    /// answers with the same reservation and prolongs it, so a process that takes over from one that died goes on where that
    /// ended; after a release, or once it was given back, it reserves anew.
    ///
    /// # Errors
    /// - [`Invalid`](saas_core::ErrorKind::Invalid): the amount is 0, too large, or not 1 for a meter that counts uses; the
    ///   life is not 1 second to 24 hours; the meter is unknown, does not add up or is limited per member; the key has an
    ///   open reservation of another amount.
    /// - [`NotFound`](saas_core::ErrorKind::NotFound): no such tenant.
    /// - [`Unavailable`](saas_core::ErrorKind::Unavailable): nothing was decided; repeat with the same key.
    /// - [`OutcomeUnknown`](saas_core::ErrorKind::OutcomeUnknown): it may be held; repeat with the same key.
    #[tracing::instrument(name = "saas.entitlements.reservations.reserve", level = "debug", skip_all, fields(tenant = %ctx.tenant(), %meter, amount))]
    pub async fn reserve(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        amount: u64,
        key: &IdempotencyKey,
        life: Duration,
    ) -> Result<Reserved, EntitlementsError> {
        if !(LIVES.0..=LIVES.1).contains(&life) {
            let why = "is shorter than a second or longer than a day";
            return Err(InvalidInput::new("life", why, "reserve for as long as the work takes at most").into());
        }
        for _ in 0..ATTEMPTS {
            let snapshot = self.entitlements.snapshot(ctx.tenant()).await;
            // After it: the first load may have found the clock to be wrong.
            let now = self.entitlements.core.clock.now();
            check_reservable(&snapshot, meter, now)?;
            let of = Use::new(meter.clone(), amount, key);
            let ruled = match decide(&snapshot, DrawKind::Consume, &of, ctx.actor(), now)? {
                Verdict::Draw(ruled) => ruled,
                Verdict::Denied(Consumption::Denied { why, upgrade }) => return Ok(Reserved::Denied { why, upgrade }),
                // No other answer is given without asking the store.
                Verdict::Denied(_) => return Err(EntitlementsError::Unavailable { cause: None }),
            };
            let reservation = UsageReservationId::mint_at(now);
            let hold = Hold { reservation, draw: ruled.draw, life };
            match self.store.hold(ctx, &hold, now).await? {
                Holding::Held { reservation, used, held, of_grants } => {
                    return Ok(self.granted(ctx, &snapshot, hold.draw, reservation, (used, held, of_grants), now));
                }
                Holding::Refused { used, held, room } => {
                    let declared = snapshot.catalog.meter(meter);
                    let fits = |rule: &MeterLimit| admits(rule, used.saturating_add(held), hold.draw.units);
                    let upgrade = declared.and_then(|meter| upgrade(&snapshot, meter, fits));
                    let (limit, resets_at) = (hold.draw.cap, hold.draw.period.end);
                    return Ok(Reserved::Exhausted { limit, left: room, held, resets_at, upgrade });
                }
                Holding::AlreadyCounted { amount } => return Ok(Reserved::AlreadyCounted { amount }),
                // The store's transaction was its own, so what it saw is committed.
                Holding::Outdated { revision } => self.entitlements.hear(ctx.tenant(), revision),
            }
        }
        Err(EntitlementsError::Unavailable { cause: None })
    }

    fn granted(
        &self,
        ctx: &dyn TenantContext,
        snapshot: &Snapshot,
        draw: Draw,
        id: UsageReservationId,
        (used, held, of_grants): (u64, u64, u64),
        now: DateTime<Utc>,
    ) -> Reserved {
        let declared = snapshot.catalog.meter(&draw.meter);
        let counts = declared.is_some_and(|meter| meter.aggregation() == Aggregation::Count);
        let taken = used.saturating_add(held);
        let own = draw.units.saturating_sub(of_grants);
        let over = match draw.limit {
            Limit::Unlimited => 0,
            Limit::Max(max) => taken.saturating_sub(taken.saturating_sub(own).max(max)),
        };
        let left = draw.limit.left(taken);
        let work = Work {
            ctx: RequestContext::new_at(ctx.tenant(), ctx.actor().clone(), now),
            entitlements: self.entitlements.clone(),
            store: Arc::clone(&self.store),
            id,
            most: if counts { 1 } else { MOST },
            draw,
        };
        let reservation = Reservation { work: Arc::new(work), state: State::Open };
        Reserved::Granted { reservation, left, over, of_grants }
    }
}

/// Units that are set aside. Dropped before it is committed, it releases them.
#[must_use = "a reservation that is dropped is released"]
pub struct Reservation {
    work: Arc<Work>,
    state: State,
}

/// What the units are for.
struct Work {
    ctx: RequestContext,
    entitlements: Entitlements,
    store: Arc<dyn ReservationStore>,
    id: UsageReservationId,
    /// The largest amount of the meter that can be committed.
    most: u64,
    draw: Draw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// A commit was tried and nobody knows whether it arrived. What has happened must not be given back.
    Committing {
        actual: u64,
    },
    Over,
}

impl Reservation {
    /// Its name, for logs.
    #[must_use]
    pub fn id(&self) -> UsageReservationId {
        self.work.id
    }

    /// How much is reserved, in units of the meter.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.work.draw.amount
    }

    /// Counts what the work took, exactly once, whatever that is: what was reserved and not used is free again, what it took
    /// beyond is counted of plan, grants and overage without a cap. It counts in the window in which it was reserved.
    ///
    /// Safe to repeat after any error. A caller that goes away half-way does not stop it, and a reservation that is dropped
    /// after an error is committed once more rather than released; if that fails too, it is logged.
    ///
    /// # Errors
    /// - [`Invalid`](saas_core::ErrorKind::Invalid): more than can be counted, or more than 1 for a meter that counts uses.
    /// - [`Unavailable`](saas_core::ErrorKind::Unavailable) and
    ///   [`OutcomeUnknown`](saas_core::ErrorKind::OutcomeUnknown): commit again.
    #[tracing::instrument(name = "saas.entitlements.reservations.commit", level = "debug", skip_all, fields(tenant = %self.work.ctx.tenant(), reservation = %self.work.id, actual))]
    pub async fn commit(&mut self, actual: u64) -> Result<Settlement, EntitlementsError> {
        let draw = self.work.draw_of(actual)?;
        if self.state != State::Over {
            self.state = State::Committing { actual };
        }
        let work = Arc::clone(&self.work);
        let committing = async move { work.commit(draw).await };
        // In a task of its own: what has happened is counted, also when the caller goes away.
        let done = match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(committing).await.unwrap_or(Err(EntitlementsError::Unavailable { cause: None }))
            }
            Err(_) => committing.await,
        }?;
        self.state = State::Over;
        Ok(done)
    }

    /// Gives everything back. After a commit it changes nothing.
    ///
    /// # Errors
    /// When the store does not answer; the units are free once the reservation is overdue.
    pub async fn release(&mut self) -> Result<Settlement, EntitlementsError> {
        let settled = self.work.release().await?;
        self.state = State::Over;
        settlement(&self.work.draw, settled)
    }

    /// Lets go of it without giving anything back: whoever reserves with the same key goes on with it.
    pub fn keep(mut self) {
        self.state = State::Over;
    }
}

impl Work {
    /// The use that it was for, with what it took.
    fn draw_of(&self, actual: u64) -> Result<Draw, InvalidInput> {
        if actual > self.most {
            let why = "is more than the meter can count at once";
            return Err(InvalidInput::new("actual", why, "commit what one use of the meter can take"));
        }
        let cost = self.draw.units / self.draw.amount.max(1);
        let units = actual.checked_mul(cost).filter(|units| *units <= MOST).ok_or_else(|| {
            let why = "costs more than 2^63-1 units of the meter that pays for it";
            InvalidInput::new("actual", why, "count in larger units")
        })?;
        Ok(Draw { amount: actual, units, ..self.draw.clone() })
    }

    /// Commits under the limit that the tenant has by now.
    async fn commit(&self, mut draw: Draw) -> Result<Settlement, EntitlementsError> {
        let snapshot = self.entitlements.snapshot(self.ctx.tenant()).await;
        let now = self.entitlements.core.clock.now();
        let present = snapshot.terms(&draw.meter, now).filter(|present| present.period == draw.period);
        match present {
            Some(present) => {
                draw.thresholds = thresholds(&present.rule);
                draw.limit = present.rule.limit;
            }
            // Nobody acts on the warnings of a window that is over.
            None => draw.thresholds = Box::default(),
        }
        let settled = self.store.commit(&self.ctx, self.id, &draw, now).await?;
        settlement(&draw, settled)
    }

    async fn release(&self) -> Result<Settled, EntitlementsError> {
        self.store.release(&self.ctx, self.id, self.entitlements.core.clock.now()).await
    }
}

/// Whether units of the meter can be set aside: they add up, and no member has a limit of its own.
fn check_reservable(snapshot: &Snapshot, meter: &MeterKey, now: DateTime<Utc>) -> Result<(), EntitlementsError> {
    additive(declared(snapshot, meter)?)?;
    if rule_at(snapshot, meter, now)?.is_some_and(|(rule, _)| rule.per_member.is_some()) {
        let why = "is limited per member, which a reservation does not count";
        return Err(InvalidInput::new("meter", why, "use `Meter::consume`").into());
    }
    Ok(())
}

fn settlement(draw: &Draw, settled: Settled) -> Result<Settlement, EntitlementsError> {
    Ok(match settled {
        Settled::Counted { before, after, burnt, beyond, late, crossed } => {
            let over = match draw.limit {
                Limit::Unlimited => 0,
                Limit::Max(max) => after.saturating_sub(before.max(max)),
            };
            Settlement::Counted { left: draw.limit.left(after), over, burnt, beyond, late, crossed }
        }
        Settled::Released => Settlement::Released,
        Settled::AlreadyCounted { amount } => Settlement::AlreadyCounted { amount },
        Settled::Unknown => return Err(CoreError::NotFound { what: "reservation" }.into()),
    })
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("id", &self.id())
            .field("meter", &self.work.draw.meter)
            .field("amount", &self.amount())
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Drop for Reservation {
    /// Settles it in the background, as far as there is a runtime that lives on to do it. Without one, what it holds is free
    /// once it is overdue.
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let work = Arc::clone(&self.work);
        match self.state {
            State::Over => {}
            State::Open => drop(runtime.spawn(async move {
                if let Err(error) = work.release().await {
                    tracing::warn!(target: "saas.entitlements.reservations.release", reservation = %work.id, error = &error as &dyn std::error::Error, "a reservation could not be released; its units are free once it is overdue");
                }
            })),
            State::Committing { actual } => {
                let Ok(draw) = work.draw_of(actual) else { return };
                drop(runtime.spawn(async move {
                    if let Err(error) = work.commit(draw).await {
                        tracing::error!(target: "saas.entitlements.reservations.commit", reservation = %work.id, actual, error = &error as &dyn std::error::Error, "a reservation could not be committed; what its work took is not counted");
                    }
                }));
            }
        }
    }
}
