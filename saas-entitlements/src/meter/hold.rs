//! The port behind [`Reservations`](crate::Reservations): units that are set aside, and what became of them.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{Revision, TenantContext, UsageReservationId};

use super::{CounterStore, Draw};
use crate::EntitlementsError;

/// Units to be set aside for a use.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Hold {
    /// Names the reservation, if the key has none that is open.
    pub reservation: UsageReservationId,
    /// The use: the most that it is expected to take.
    pub draw: Draw,
    /// How long it holds its units, by the clock of whoever decides.
    pub life: Duration,
}

/// What became of a [`Hold`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Holding {
    /// The units are set aside, by this call or by one before with the same key.
    Held {
        /// Which reservation holds them.
        reservation: UsageReservationId,
        /// Used of the plan in the window.
        used: u64,
        /// Held in the window, these units included.
        held: u64,
        /// Units that are held of grants.
        of_grants: u64,
    },
    /// They do not fit, and nothing is held.
    Refused {
        /// Used of the plan in the window.
        used: u64,
        /// Held in the window by others, who may give some of it back.
        held: u64,
        /// The most that would have fitted, of the plan, its overage and grants.
        room: u64,
    },
    /// This key was counted before, with this amount.
    AlreadyCounted {
        /// Of the meter.
        amount: u64,
    },
    /// The tenant has another revision than the draw was decided at. Nothing is held: decide again.
    Outdated {
        /// The present revision.
        revision: Revision,
    },
}

/// What became of a reservation that was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Settled {
    /// What it took is counted.
    Counted {
        /// Used of the plan in the window before it, overage included.
        before: u64,
        /// The same with it.
        after: u64,
        /// Units of it that were taken from grants.
        burnt: u64,
        /// Units that had not been set aside.
        beyond: u64,
        /// Whether its units had been given back before, because it was overdue or released.
        late: bool,
        /// Percentages that are reached and were not announced before in this window for this limit.
        crossed: Vec<u16>,
    },
    /// It holds nothing any more, and nothing was counted.
    Released,
    /// Its key was counted before, with this amount; it holds nothing any more.
    AlreadyCounted {
        /// Of the meter.
        amount: u64,
    },
    /// The tenant has no such reservation.
    Unknown,
}

/// Sets units aside.
///
/// # Contract
/// - *Never more than the cap*: `used + held + units` is within cap and grants whenever units are set aside. What is held
///   counts against everybody's uses.
/// - *Whole*: all units are set aside or none.
/// - *Idempotent*: a key has at most one open reservation. A repeat answers with it, and prolongs it; with another amount it
///   is [`KeyReused`](saas_core::CoreError::KeyReused). What was released or given back can be reserved again.
/// - *Counted once*: a key is counted at most once, however many reservations it had and however often they are committed,
///   and in the window of its reservation. What had happened is counted, also beyond what was reserved, and also when its
///   units had been given back.
/// - *Reclaimed*: overdue reservations do not stand in the way of a use, of a hold, or of a loan.
/// - *Fenced*: reads and writes only the context's tenant.
#[async_trait]
pub trait ReservationStore: CounterStore {
    /// Sets units aside at `now`.
    async fn hold(
        &self,
        ctx: &dyn TenantContext,
        hold: &Hold,
        now: DateTime<Utc>,
    ) -> Result<Holding, EntitlementsError>;

    /// Counts what the work of a reservation took: amount, units, limit and thresholds of `draw`; 0 for nothing.
    async fn commit(
        &self,
        ctx: &dyn TenantContext,
        reservation: UsageReservationId,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Settled, EntitlementsError>;

    /// Gives back what a reservation holds.
    async fn release(
        &self,
        ctx: &dyn TenantContext,
        reservation: UsageReservationId,
        now: DateTime<Utc>,
    ) -> Result<Settled, EntitlementsError>;
}
