//! What a process asks of the store: to lend, to hear what was used, to take back, to announce.

use std::{sync::Arc, time::Instant};

use chrono::{DateTime, Utc};
use saas_core::{ErrorKind, IdempotencyKey, LeaseToken, MeterKey, RequestContext, TenantContext};

use super::{
    Ask, Borrowed, LeaseStore, LeasedUse, Report, Reported,
    cell::{Cell, Ending, Held, State},
    leases::Inner,
    rule::{Rule, Way, way_of},
};
use crate::{Consumption, EntitlementsError, Meter};

/// How often a use is decided again because the tenant's revision moved in between.
const ATTEMPTS: usize = 4;
/// Ticks without a use after which a lease is given back.
const IDLE_TICKS: u32 = 2;
/// Ticks without a lease after which a cell is forgotten.
const FORGET_TICKS: u32 = 240;

impl Inner {
    pub(super) async fn consume(
        &self,
        ctx: &RequestContext,
        meter: &MeterKey,
        amount: u64,
    ) -> Result<LeasedUse, EntitlementsError> {
        let tenant = ctx.tenant();
        // Units of this use that a lease which was ended has paid for: they count as used whatever comes of the rest. Whole
        // uses of the meter, as all that is lent.
        let (mut paid, mut cost) = (0_u64, 1);
        for _ in 0..ATTEMPTS {
            let snapshot = self.entitlements.snapshot(tenant).await;
            // After it: the first load may have found the clock to be wrong.
            let now = self.entitlements.core.clock.now();
            let rule = match way_of(&snapshot, meter, amount, now)? {
                Way::Lent(rule) => Arc::new(rule),
                Way::Denied(why) => return Ok(LeasedUse::Denied(why)),
                Way::Direct(why) => {
                    let direct = self.direct.get().ok_or(why)?;
                    return consume_directly(direct, ctx, meter, amount.saturating_sub(paid / cost), now).await;
                }
            };
            cost = rule.cost;
            let cell = self.cell(tenant, meter, cost, now);
            let mut state = cell.state().lock().await;
            if state.retired {
                continue;
            }
            // Whoever held the lock before may have borrowed for this one, too.
            // Cannot overflow: it is at most `i64::MAX`.
            let units = amount.saturating_mul(cost).saturating_sub(paid);
            if cell.take_units(units) {
                return Ok(LeasedUse::Granted);
            }
            match self.borrow(&cell, &mut state, &rule, (units, &mut paid), now).await? {
                Borrowed::Lent { .. } => return Ok(LeasedUse::Granted),
                Borrowed::Refused { used, held } => {
                    drop(state);
                    let (limit, resets_at) = (rule.cap, rule.period.end);
                    let exhausted = LeasedUse::Exhausted { limit, used, held, resets_at };
                    // Grants are not lent, and may have what the plan has not.
                    let Some(direct) = self.direct.get() else { return Ok(exhausted) };
                    let rest = amount.saturating_sub(paid / cost);
                    return Ok(match consume_directly(direct, ctx, meter, rest, now).await? {
                        LeasedUse::Exhausted { .. } => exhausted,
                        decided @ (LeasedUse::Granted | LeasedUse::Denied(_)) => decided,
                    });
                }
                // What was left of it counts as used, and is: the next try borrows the rest anew.
                Borrowed::Fenced => {}
                Borrowed::Outdated { revision } => self.entitlements.hear(tenant, revision),
            }
        }
        Err(EntitlementsError::Unavailable { cause: None })
    }

    /// Tops up what is held before it is used up, while somebody uses it that quickly.
    pub(super) async fn top_up(&self, cell: &Cell) {
        let mut state = cell.state().lock().await;
        let now = self.entitlements.core.clock.now();
        if self.is_closed() || self.must_end(cell, &state, now).await {
            return;
        }
        let Some(rule) = state.held.as_ref().map(|held| Arc::clone(&held.rule)) else { return };
        match self.borrow(cell, &mut state, &rule, (0, &mut 0), now).await {
            Ok(Borrowed::Outdated { revision }) => self.entitlements.hear(cell.ctx().tenant(), revision),
            // Nobody waits for it: whoever uses the last of it asks again.
            Ok(Borrowed::Lent { .. } | Borrowed::Refused { .. } | Borrowed::Fenced) | Err(_) => {}
        }
    }

    /// Tops up what is held, or borrows anew. The use is paid with what was left, and the rest of it is counted at once; for no
    /// units, what was left stays.
    async fn borrow(
        &self,
        cell: &Cell,
        state: &mut State,
        rule: &Arc<Rule>,
        (units, paid): (u64, &mut u64),
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        let asked = Instant::now();
        let mut is_quick = false;
        if let Some(held) = &state.held {
            is_quick = asked.duration_since(held.lent_at) < self.options.tick / 2;
            let size = if is_quick { state.size.saturating_mul(4) } else { state.size / 2 };
            state.size = size.clamp(self.options.smallest, self.options.largest);
        }
        state.idle = 0;
        if state.held.as_ref().is_some_and(|held| held.rule != *rule) {
            cell.end(state, self.options.life);
            self.send_endings(cell, state, now).await?;
        }
        cell.watch(0);
        let is_ahead = units == 0;
        let rest = if is_ahead { 0 } else { cell.take_rest() };
        let (lease, number, spent) = match &mut state.held {
            Some(held) => {
                held.reports += 1;
                (held.lease, held.reports, if is_ahead { cell.spent(held) } else { held.lent })
            }
            None => (LeaseToken::mint_at(now), 0, 0),
        };
        let need = units.saturating_sub(rest);
        let lends = !self.is_closed();
        let ask = Ask {
            draw: rule.draw(need, IdempotencyKey::try_from(format!("{lease}:{number}"))?, now),
            cost: rule.cost,
            lease,
            number,
            spent,
            holder: self.options.holder.clone(),
            exposed: rule.cap / self.options.exposed_share,
            want: if lends { state.size.saturating_mul(rule.cost) } else { 0 },
            life: self.options.life,
        };
        match self.store.borrow(cell.ctx(), &ask, now).await {
            Ok(lent @ Borrowed::Lent { units, used, relimited }) => {
                match &mut state.held {
                    Some(held) => {
                        held.lent += units;
                        (held.reported, held.since, held.lent_at) = (spent, asked, asked);
                    }
                    None if units > 0 => {
                        let (rule, reports, reported) = (Arc::clone(rule), 0, 0);
                        let (since, lent_at) = (asked, asked);
                        state.held = Some(Held { lease, lent: units, rule, reports, reported, since, lent_at });
                    }
                    None => {}
                }
                cell.add(units);
                if is_quick && self.options.borrows_ahead {
                    // A quarter of it is gone soon: by then the next is on its way.
                    cell.watch(units / 4 * 3);
                }
                if relimited || used >= state.due_from(rule) {
                    self.announce(cell, state, rule, used, now).await;
                }
                Ok(lent)
            }
            Ok(refused @ Borrowed::Refused { used, .. }) => {
                cell.add(rest);
                // What lost holders had may have reached a threshold. What this one has not reported is not counted yet.
                let counted = used.saturating_sub(state.held.as_ref().map_or(0, |held| spent - held.reported));
                if counted >= state.due_from(rule) {
                    self.announce(cell, state, rule, counted, now).await;
                }
                Ok(refused)
            }
            Ok(outdated @ Borrowed::Outdated { .. }) => {
                cell.add(rest);
                Ok(outdated)
            }
            Ok(Borrowed::Fenced) => {
                cell.take_rest();
                state.held = None;
                *paid += rest;
                Ok(Borrowed::Fenced)
            }
            // It did not happen: what is held stays, and so does what was left of it.
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Invalid) => {
                cell.add(rest);
                Err(error)
            }
            Err(error) => {
                // It may have happened. What is not known to be lent is not used, and goes back with the last report; what was
                // said to be spent may be known, so it stays spent.
                cell.end(state, self.options.life);
                if number == 0 {
                    let report = Report { lease, number: 1, spent: 0, ending: true, life: self.options.life };
                    state.endings.push(Ending { report, rule: Arc::clone(rule), due_from: u64::MAX });
                }
                Err(error)
            }
        }
    }

    /// Lets the store say what is reached. What fails is tried again by whoever counts next: the use is counted already.
    async fn announce(&self, cell: &Cell, state: &mut State, rule: &Arc<Rule>, used: u64, now: DateTime<Utc>) {
        if let Err(error) = announce(&*self.store, cell, rule, now).await {
            tracing::warn!(target: "saas.entitlements.lease.announce", error = &error as &dyn std::error::Error, "a threshold could not be announced; trying again with the next report");
            state.told = Some((Arc::clone(rule), 0));
            return;
        }
        state.told = Some((Arc::clone(rule), rule.next_threshold(used)));
    }

    pub(super) async fn report(&self, cell: &Arc<Cell>) -> Result<(), EntitlementsError> {
        let mut guard = cell.state().lock().await;
        let state = &mut *guard;
        let now = self.entitlements.core.clock.now();
        if state.held.is_some() && self.must_end(cell, state, now).await {
            cell.end(state, self.options.life);
        }
        self.send_endings(cell, state, now).await?;
        let Some(held) = &mut state.held else {
            state.idle = state.idle.saturating_add(1);
            if state.idle >= FORGET_TICKS {
                state.retired = true;
                self.forget(cell);
            }
            return Ok(());
        };
        let spent = cell.spent(held);
        state.idle = if spent == held.reported { state.idle + 1 } else { 0 };
        if spent == held.reported && held.since.elapsed() < self.options.life / 4 {
            return Ok(());
        }
        let asked = Instant::now();
        held.reports += 1;
        let report = Report { lease: held.lease, number: held.reports, spent, ending: false, life: self.options.life };
        match self.store.report(cell.ctx(), &report, now).await? {
            Reported::Kept { wanted, used } => {
                (held.since, held.reported) = (asked, spent);
                let rule = Arc::clone(&held.rule);
                if used >= state.due_from(&rule) {
                    self.announce(cell, state, &rule, used, now).await;
                }
                if wanted {
                    cell.end(state, self.options.life);
                    self.send_endings(cell, state, now).await?;
                }
            }
            // What it still had counts as used, and is not used.
            Reported::Fenced | Reported::Settled { .. } => {
                cell.take_rest();
                state.held = None;
            }
        }
        Ok(())
    }

    /// Whether what is held is to be given back: idle, too old to be safe, or under another rule.
    async fn must_end(&self, cell: &Cell, state: &State, now: DateTime<Utc>) -> bool {
        let Some(held) = &state.held else { return false };
        if self.is_closed()
            || held.since.elapsed() >= self.options.life / 4 * 3
            || (state.idle >= IDLE_TICKS && cell.spent(held) == held.reported)
        {
            return true;
        }
        let snapshot = self.entitlements.snapshot(cell.ctx().tenant()).await;
        match way_of(&snapshot, cell.meter(), 1, now) {
            Ok(Way::Lent(rule)) => rule != *held.rule,
            Ok(Way::Direct(_) | Way::Denied(_)) => true,
            // Nothing is known at present: what was lent may be used for its life.
            Err(error) => !error.is_retryable(),
        }
    }

    async fn send_endings(&self, cell: &Cell, state: &mut State, now: DateTime<Utc>) -> Result<(), EntitlementsError> {
        while let Some(ending) = state.endings.last() {
            send(&*self.store, cell, ending, now).await?;
            state.endings.pop();
        }
        Ok(())
    }
}

/// Sends the last report of a lease, and has announced what is reached by it. Safe to repeat.
pub(super) async fn send(
    store: &dyn LeaseStore,
    cell: &Cell,
    ending: &Ending,
    now: DateTime<Utc>,
) -> Result<(), EntitlementsError> {
    match store.report(cell.ctx(), &ending.report, now).await? {
        Reported::Settled { used } | Reported::Kept { used, .. } if used >= ending.due_from => {
            announce(store, cell, &ending.rule, now).await
        }
        // Whatever it answers, the lease is over.
        Reported::Settled { .. } | Reported::Kept { .. } | Reported::Fenced => Ok(()),
    }
}

async fn announce(
    store: &dyn LeaseStore,
    cell: &Cell,
    rule: &Rule,
    now: DateTime<Utc>,
) -> Result<(), EntitlementsError> {
    if rule.is_over(now) {
        return Ok(());
    }
    let key = IdempotencyKey::try_from(LeaseToken::mint_at(now).to_string())?;
    store.announce(cell.ctx(), &rule.draw(0, key, now), now).await.map(drop)
}

/// Counts one by one what cannot be lent.
async fn consume_directly(
    direct: &Meter,
    ctx: &RequestContext,
    meter: &MeterKey,
    amount: u64,
    now: DateTime<Utc>,
) -> Result<LeasedUse, EntitlementsError> {
    // Of this call alone: it has no name, so nothing repeats it.
    let key = IdempotencyKey::try_from(LeaseToken::mint_at(now).to_string())?;
    Ok(match direct.consume(ctx, meter, amount, &key).await? {
        Consumption::Granted { .. } | Consumption::AlreadyCounted => LeasedUse::Granted,
        Consumption::Exhausted { limit, left, resets_at, .. } => {
            LeasedUse::Exhausted { limit, used: limit.saturating_sub(left), held: 0, resets_at }
        }
        Consumption::Denied { why, .. } => LeasedUse::Denied(why),
    })
}
