//! Seats: bought as the quantity at Stripe, taken by members, promised to invitations.
//!
//! A seat is promised under the tenant's lock, so of two invitations for the last one, one gets it; it is counted again when
//! the invitation is accepted, in the transaction that adds the member, since seats may have become fewer meanwhile. Nobody is
//! ever removed: whoever has more members than seats is told ([`SeatReport`]), and can buy more.
//!
//! Owns promises and the comparison. Leaves the members to [`Occupancy`], and the quantity to Stripe.

use std::{fmt, num::NonZeroU64};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    CoreError, IdempotencyKey, InvalidInput, PlanKey, SystemTx, TenantContext, TenantId,
    audit::{self, Entry},
    tenant,
};
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    billing::Billing,
    derive::plan_item,
    error::BillingError,
    postgres::{seat, state},
    provider::{PaymentProvider, Proration},
    subscription::{Change, PlanChange, When},
};

/// Counts who sits on a seat.
///
/// # Contract
/// - *Of now*: sees what the transaction has written.
/// - *Fenced*: counts the tenant's own.
#[async_trait]
pub trait Occupancy: fmt::Debug + Send + Sync + 'static {
    /// How many seats of the tenant are taken.
    async fn taken(&self, connection: &mut PgConnection, tenant: TenantId) -> Result<u64, CoreError>;
}

/// The members as the operators' list counts them: `saas-tenancy` keeps that number, in the transaction that adds or removes
/// one.
#[derive(Debug, Clone, Copy, Default)]
pub struct OverviewMembers;

#[async_trait]
impl Occupancy for OverviewMembers {
    async fn taken(&self, connection: &mut PgConnection, tenant: TenantId) -> Result<u64, CoreError> {
        Ok(u64::try_from(seat::members(connection, tenant).await?).unwrap_or(0))
    }
}

/// What a plan charges when seats become more or fewer in mid-period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeatPolicy {
    /// For seats that are added.
    pub more: Proration,
    /// For seats that are given back.
    pub fewer: Proration,
}

impl SeatPolicy {
    /// What was added is charged with the next invoice; what is given back was paid for and brings no credit.
    pub const DEFAULT: Self = Self { more: Proration::NextInvoice, fewer: Proration::None };
}

/// Seats of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Seats {
    /// The quantity that Stripe has confirmed; `None` where nothing bounds them: no subscription, or a metered one.
    pub bought: Option<u64>,
    /// Taken by members.
    pub taken: u64,
    /// Promised to invitations.
    pub reserved: u64,
}

/// Whether there is a seat.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// It waits for its holder.
    Reserved {
        /// Until when.
        until: DateTime<Utc>,
    },
    /// The holder may sit down, in this transaction.
    Granted,
    /// There is none.
    Full(Seats),
}

/// Seats against members.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SeatReport {
    /// What there is, with the quantity as Stripe has it now.
    pub seats: Seats,
    /// Members and promises beyond what was bought.
    pub missing: u64,
    /// Bought and not used.
    pub unused: u64,
    /// What was done about it.
    pub change: Option<Change>,
}

/// What to do about seats and members that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeatRepair {
    /// Nothing.
    Report,
    /// Buy what is missing, and no more than so many at once: more is for a person to look at.
    Buy {
        /// The most.
        most: NonZeroU64,
    },
    /// Buy or give back, so that the quantity is what is used; no more than so many at once.
    Follow {
        /// The most.
        most: NonZeroU64,
    },
}

/// Looks in one call at a tenant that invites at the same time.
const ROUNDS: u64 = 16;

impl Seats {
    fn used(&self) -> u64 {
        self.taken.saturating_add(self.reserved)
    }

    fn has_room(&self) -> bool {
        self.bought.is_none_or(|bought| self.used() < bought)
    }
}

impl Billing {
    /// The tenant's seats, from what Stripe has told.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn seats(&self, ctx: &dyn TenantContext) -> Result<Seats, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "count the tenant's seats").await?;
        let seats = self.count_seats(&mut tx, ctx.tenant(), "").await?;
        tx.commit().await?;
        Ok(seats)
    }

    /// Promises a seat to `holder`, the application's name for an invitation. Promised again, it lasts longer.
    ///
    /// # Errors
    /// [`Invalid`](BillingError::Invalid) for a name that is empty or longer than 255 bytes, or no time at all.
    pub async fn reserve_seat(
        &self,
        ctx: &dyn TenantContext,
        holder: &str,
        lasting: TimeDelta,
    ) -> Result<Seat, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "promise a seat").await?;
        let seat = self.reserve_seat_in(&mut tx, ctx, holder, lasting).await?;
        tx.commit().await?;
        Ok(seat)
    }

    /// As [`reserve_seat`](Self::reserve_seat), in the caller's transaction, which holds the tenant's lock from here on.
    ///
    /// # Errors
    /// As [`reserve_seat`](Self::reserve_seat).
    pub async fn reserve_seat_in(
        &self,
        connection: &mut PgConnection,
        ctx: &dyn TenantContext,
        holder: &str,
        lasting: TimeDelta,
    ) -> Result<Seat, BillingError> {
        check_holder(holder)?;
        let now = self.clock.now();
        let until = now
            .checked_add_signed(lasting)
            .filter(|until| *until > now)
            .ok_or_else(|| InvalidInput::new("the time of a promise", "is none, or without end", "pass a few days"))?;
        let tenant = ctx.tenant();
        tenant::lock_in(connection, tenant).await?;
        let seats = self.count_seats(connection, tenant, holder).await?;
        if !seats.has_room() {
            return Ok(Seat::Full(seats));
        }
        seat::put(connection, (tenant, &self.scope), holder, (now, until)).await?;
        let entry = Entry::new("billing.seat_reserved", holder).with_detail(json!({"until": until, "seats": seats}));
        audit::record_for(connection, ctx, entry, now).await?;
        Ok(Seat::Reserved { until })
    }

    /// Lets a holder sit down: call it in the transaction that adds the member, before that is added. The promise ends, and
    /// the seats are counted again: also a promised one can be gone.
    ///
    /// # Errors
    /// When the database does not answer. Roll back then, and when the answer is [`Full`](Seat::Full).
    pub async fn take_seat_in(
        &self,
        connection: &mut PgConnection,
        ctx: &dyn TenantContext,
        holder: &str,
    ) -> Result<Seat, BillingError> {
        check_holder(holder)?;
        let (tenant, now) = (ctx.tenant(), self.clock.now());
        tenant::lock_in(connection, tenant).await?;
        let others = self.count_seats(connection, tenant, holder).await?;
        let promised = seat::remove(connection, (tenant, &self.scope), holder).await?;
        // Whom a seat was promised takes it before those to whom others were; nobody sits where there is none.
        let seats = if promised { Seats { reserved: 0, ..others } } else { others };
        if !seats.has_room() {
            return Ok(Seat::Full(others));
        }
        audit::record_for(connection, ctx, Entry::new("billing.seat_taken", holder), now).await?;
        Ok(Seat::Granted)
    }

    /// Takes a promise back: the invitation was withdrawn. `false` when there was none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn release_seat(&self, ctx: &dyn TenantContext, holder: &str) -> Result<bool, BillingError> {
        let (tenant, now) = (ctx.tenant(), self.clock.now());
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "take the promise of a seat back").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let released = seat::remove(&mut tx, (tenant, &self.scope), holder).await?;
        if released {
            audit::record_for(&mut tx, ctx, Entry::new("billing.seat_released", holder), now).await?;
        }
        tx.commit().await?;
        Ok(released)
    }

    /// Promises a seat, and buys one more if there is none. Several at once buy one each.
    ///
    /// [`Full`](Seat::Full) means that what was bought waits for its payment.
    ///
    /// # Errors
    /// As [`reserve_seat`](Self::reserve_seat) and [`set_seats`](Self::set_seats).
    pub async fn reserve_or_buy_seat(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        (holder, lasting): (&str, TimeDelta),
        key: &IdempotencyKey,
    ) -> Result<Seat, BillingError> {
        let mut seat = self.reserve_seat(ctx, holder, lasting).await?;
        for _ in 0..ROUNDS {
            let Seat::Full(seats) = seat else { return Ok(seat) };
            let wanted = seats.used().saturating_add(1);
            let step = IdempotencyKey::try_from(format!("{key}-{wanted}"))?;
            match self.put_seats(provider, ctx, (wanted, PlanChange::to_at_least), &step).await? {
                Change::Made | Change::Already => {}
                Change::Scheduled { .. } | Change::AwaitingPayment { .. } | Change::RolledBack => return Ok(seat),
            }
            seat = self.reserve_seat(ctx, holder, lasting).await?;
        }
        Ok(seat)
    }

    /// Buys seats, or gives some back, as the plan's [`SeatPolicy`] charges it.
    ///
    /// # Errors
    /// As [`change_plan`](Self::change_plan); [`StateForbids`](BillingError::StateForbids) for fewer than are used.
    pub async fn set_seats(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        quantity: u64,
        key: &IdempotencyKey,
    ) -> Result<Change, BillingError> {
        self.put_seats(provider, ctx, (quantity, PlanChange::to_quantity), key).await
    }

    async fn put_seats(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        (quantity, to): (u64, fn(u64) -> PlanChange),
        key: &IdempotencyKey,
    ) -> Result<Change, BillingError> {
        let (seats, derived) = (self.seats(ctx).await?, self.derived(ctx).await?);
        let known = self.known_request(ctx, key).await?;
        if known.is_none() && quantity < seats.used() {
            let (why, remedy) =
                ("more are taken or promised", "remove members or withdraw invitations, or keep the seats");
            return Err(BillingError::StateForbids { what: "giving back seats", why, remedy });
        }
        let policy = self.seat_policy(derived.plan.as_ref().map(|plan| &plan.plan));
        let is_more = seats.bought.is_none_or(|bought| quantity > bought);
        let change = |proration| to(quantity).with_when(When::Now).with_proration(proration);
        // A repeat is the request that it repeats, whatever has been bought by then.
        let asked = [policy.more, policy.fewer].map(change);
        let same = |change: &&PlanChange| known.as_ref().is_some_and(|known| change.is_of(When::Now, known));
        let new = change(if is_more { policy.more } else { policy.fewer });
        let change = asked.iter().find(same).unwrap_or(&new);
        self.change_plan(provider, ctx, change, key).await
    }

    /// Compares the quantity at Stripe with who sits, and does what `repair` says. The quantity as it is there counts from now
    /// on, whoever changed it; members are never removed. Nothing is changed while an invoice is unpaid.
    ///
    /// # Errors
    /// As [`change_plan`](Self::change_plan).
    pub async fn reconcile_seats(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        repair: SeatRepair,
        key: &IdempotencyKey,
    ) -> Result<SeatReport, BillingError> {
        let seen = self.subscription_of(provider, ctx).await?;
        let mut seats = self.seats(ctx).await?;
        seats.bought = plan_item(&seen.subscription, &self.catalog()).and_then(|item| item.quantity);
        let bought = seats.bought.unwrap_or_else(|| seats.used());
        let (missing, unused) = (seats.used().saturating_sub(bought), bought.saturating_sub(seats.used()));
        let wanted = seats.used().max(1);
        let (to, most): (fn(u64) -> PlanChange, u64) = match repair {
            SeatRepair::Report => (PlanChange::to_quantity, 0),
            SeatRepair::Buy { most } if missing > 0 => (PlanChange::to_at_least, most.get()),
            SeatRepair::Buy { .. } => (PlanChange::to_at_least, 0),
            SeatRepair::Follow { most } => (PlanChange::to_quantity, most.get()),
        };
        let within = (1..=most).contains(&wanted.abs_diff(bought));
        let change = match seats.bought.filter(|_| within) {
            Some(_) => Some(self.put_seats(provider, ctx, (wanted, to), key).await?),
            None => None,
        };
        Ok(SeatReport { seats, missing, unused, change })
    }

    fn seat_policy(&self, plan: Option<&PlanKey>) -> SeatPolicy {
        plan.and_then(|plan| self.config.seat_policies.get(plan)).copied().unwrap_or(SeatPolicy::DEFAULT)
    }

    /// The seats, with the promises of others than `holder`.
    async fn count_seats(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        holder: &str,
    ) -> Result<Seats, CoreError> {
        let derived = state::find(connection, tenant, self.scope.livemode).await?.unwrap_or_default();
        let taken = self.config.occupancy.taken(connection, tenant).await?;
        let reserved = seat::count_others(connection, (tenant, &self.scope), holder, self.clock.now()).await?;
        Ok(Seats { bought: derived.seats, taken, reserved: u64::try_from(reserved).unwrap_or(0) })
    }
}

fn check_holder(holder: &str) -> Result<(), InvalidInput> {
    if (1..=255).contains(&holder.len()) && !holder.contains('\0') {
        return Ok(());
    }
    let why = "is empty, longer than 255 bytes or holds a NUL";
    Err(InvalidInput::new("the holder of a seat", why, "pass the id of the invitation"))
}
