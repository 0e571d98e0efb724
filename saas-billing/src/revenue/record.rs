//! Recording what a tenant's revenue becomes, in the transaction that changes it or when time does.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, SystemTx, TenantId, tenant};
use sqlx::PgConnection;

use super::Movement;
use crate::{
    Billing, BillingError,
    billing::ACTOR,
    derive::AnyMerged,
    dunning::Held,
    money::Currency,
    object::{InvoiceStatus, Subscription},
    postgres::{
        recorded,
        revenue::{self, Arrears, Change, Paying},
        state,
    },
};

/// What a tenant pays, while its changes are collected.
struct Tally {
    states: BTreeMap<Currency, Paying>,
    changes: Vec<Change>,
    /// Up to when it is recorded: nothing is dated before that any more.
    at: Option<DateTime<Utc>>,
}

impl Billing {
    /// Records the change from `previous` to `stored`, which happened at `at`, and what time alone has changed since the
    /// last record, `states`. Answers what the tenant pays at `now`.
    pub(crate) async fn record_revenue(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        (previous, stored): (&Held<'_>, &Held<'_>),
        states: Vec<Paying>,
        (at, now): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<BTreeMap<Currency, i64>, CoreError> {
        let livemode = self.scope.livemode;
        let paying = stored.derived.revenue_at(&stored.terms, now);
        if states.is_empty() && paying.is_empty() {
            return Ok(paying);
        }
        let mut tally = Tally::of(states);
        // What Stripe's clock says cannot be later than ours, unless it is a test clock.
        let at = tally.at.map_or(at, |recorded| at.max(recorded)).min(now);
        if let Some(recorded) = tally.at {
            self.roll(&mut tally, previous, (recorded, at));
        }
        tally.become_at(&stored.derived.revenue_at(&stored.terms, at), at);
        self.roll(&mut tally, stored, (at, now));
        tally.become_at(&paying, now);
        let next_at = stored.derived.next_revenue_boundary(&stored.terms, now);
        let states: Vec<Paying> =
            tally.states.into_values().map(|state| Paying { at: now.max(state.at), ..state }).collect();
        revenue::store(connection, (tenant, livemode), &states, &tally.changes, next_at, now).await?;
        Ok(paying)
    }

    /// Every change that time makes after `from` and up to `to`, each dated by its own instant.
    fn roll(&self, tally: &mut Tally, held: &Held<'_>, (from, to): (DateTime<Utc>, DateTime<Utc>)) {
        let mut reached = from;
        let Held { derived, terms } = held;
        while let Some(next) = derived.next_revenue_boundary(terms, reached).filter(|next| *next <= to) {
            tally.become_at(&derived.revenue_at(terms, next), next);
            reached = next;
        }
    }

    /// Records what time alone has changed: discounts that ended, debts whose grace ran out, ends that came without an event.
    /// Each change is dated by the instant that made it, however late this is called. Takes up to `limit` tenants, each in a
    /// transaction of its own, and says how many it recorded; one that cannot be recorded stops no other.
    ///
    /// # Errors
    /// When the database does not answer, or none could be recorded.
    pub async fn roll_revenue(&self, limit: u16) -> Result<usize, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "list tenants whose revenue time has changed").await?;
        let due = revenue::due(&mut tx, self.scope.livemode, self.clock.now(), i64::from(limit)).await?;
        tx.commit().await?;
        let (mut recorded, mut failed) = (0, None);
        for tenant in due {
            match self.roll_tenant(tenant).await {
                Ok(()) => recorded += 1,
                Err(why) => {
                    tracing::error!(target: "saas.billing.revenue", %tenant, code = why.code(), "revenue was not recorded");
                    failed = Some(why);
                }
            }
        }
        match failed {
            Some(why) if recorded == 0 => Err(why.into()),
            Some(_) | None => Ok(recorded),
        }
    }

    async fn roll_tenant(&self, tenant: TenantId) -> Result<(), CoreError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "record what time has changed").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let now = self.clock.now();
        let derived = state::find(&mut tx, tenant, self.scope.livemode).await?.unwrap_or_default();
        let recorded = recorded::load(&mut tx, tenant, self.scope.livemode).await?;
        let held = self.held_with(&derived, recorded.exception.as_ref());
        let paying = self.record_revenue(&mut tx, tenant, (&held, &held), recorded.paying, (now, now)).await?;
        state::show(&mut tx, (tenant, &self.scope), &held, &paying, false, now).await?;
        tx.commit().await
    }

    /// Notes what trials and failed invoices came to.
    pub(crate) async fn note_outcome(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        merged: &AnyMerged,
    ) -> Result<(), CoreError> {
        let of = (tenant, self.scope.livemode);
        match merged {
            AnyMerged::Subscription(merged) => {
                let Some(trial_end) = trial_end(merged.value()) else { return Ok(()) };
                let id = &merged.value().id;
                revenue::note_subscription(connection, of, id, Some(trial_end), None).await
            }
            AnyMerged::Invoice(merged) => {
                let invoice = merged.value();
                let ended_at = |at: Option<DateTime<Utc>>| Some(at.unwrap_or_else(|| merged.as_of()));
                let paid_at = match invoice.status {
                    InvoiceStatus::Paid => ended_at(invoice.paid_at),
                    InvoiceStatus::Draft
                    | InvoiceStatus::Open
                    | InvoiceStatus::Uncollectible
                    | InvoiceStatus::Void
                    | InvoiceStatus::Other(_) => None,
                };
                if let (Some(subscription), Some(paid_at)) = (&invoice.subscription, paid_at)
                    && invoice.amount_paid > 0
                {
                    revenue::note_subscription(connection, of, subscription, None, Some(paid_at)).await?;
                }
                let currency = invoice.currency.as_deref().and_then(|code| code.parse().ok());
                let (Some(failed_at), Some(currency)) = (merged.history().first_decline(), currency) else {
                    // What was reported as a failure before it was known that the bank only wants to hear from the buyer.
                    return match merged.history().confirmation_asked() {
                        Some(_) => revenue::take_back_arrears(connection, of, &invoice.id).await,
                        None => Ok(()),
                    };
                };
                let lost_at = match invoice.status {
                    InvoiceStatus::Void => ended_at(invoice.voided_at),
                    InvoiceStatus::Uncollectible => ended_at(invoice.written_off_at),
                    InvoiceStatus::Draft | InvoiceStatus::Open | InvoiceStatus::Paid | InvoiceStatus::Other(_) => None,
                };
                let minor = invoice.amount_remaining.saturating_add(invoice.amount_paid);
                let arrears =
                    Arrears { invoice: &invoice.id, currency, minor, failed_at, recovered_at: paid_at, lost_at };
                revenue::note_arrears(connection, of, &arrears).await
            }
            AnyMerged::Customer(_)
            | AnyMerged::CheckoutSession(_)
            | AnyMerged::Charge(_)
            | AnyMerged::Refund(_)
            | AnyMerged::Dispute(_)
            | AnyMerged::CreditNote(_) => Ok(()),
        }
    }
}

/// When a trial ends, or ended because everything did.
fn trial_end(subscription: &Subscription) -> Option<DateTime<Utc>> {
    let trial_end = subscription.trial_end?;
    Some(subscription.ended_at.map_or(trial_end, |ended| ended.min(trial_end)))
}

impl Tally {
    fn of(states: Vec<Paying>) -> Self {
        let at = states.iter().map(|state| state.at).max();
        Self { states: states.into_iter().map(|state| (state.currency, state)).collect(), changes: Vec::new(), at }
    }

    /// What is paid in each currency from `at` on; nothing in those that are not named.
    fn become_at(&mut self, paying: &BTreeMap<Currency, i64>, at: DateTime<Utc>) {
        for currency in paying.keys() {
            let first = Paying { currency: *currency, minor: 0, ever: false, changes: 0, at };
            self.states.entry(*currency).or_insert(first);
        }
        for state in self.states.values_mut() {
            let after = paying.get(&state.currency).copied().unwrap_or(0);
            if let Some(movement) = Movement::between(state.minor, after, state.ever) {
                state.changes = state.changes.saturating_add(1);
                let (currency, number, before) = (state.currency, state.changes, state.minor);
                self.changes.push(Change { currency, number, at, movement, before, after });
                (state.minor, state.ever) = (after, true);
            }
        }
    }
}
