//! A worker's step: takes rows that are due, hands them over, and writes down what came of each.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use futures_util::{StreamExt, stream};
use saas_core::{IdempotencyKey, LeaseToken, SystemTx, TenantId, tenant};
use uuid::Uuid;

use super::{Corrections, NEWEST, OLDEST, REMEMBERED, UsagePolicy, UsageSent, compare};
use crate::{
    billing::{ACTOR, Billing},
    error::BillingError,
    object::ObjectId,
    postgres::{
        command, home,
        usage::{self, Fate, Sending},
    },
    provider::{Command, MAX_STREAMED, MeterReading, PaymentProvider, ProviderError},
};

/// Customers whose rows are under way at once. Stripe takes one call at a time for each customer of a meter.
pub(super) const AT_ONCE: usize = 8;
/// The pause after Stripe did not take rows.
const PAUSE: TimeDelta = TimeDelta::seconds(30);

/// What came of a row.
enum Came {
    Sent,
    Refused(String),
    /// A correction whose reading is taken back, and what should have stayed of that was refused.
    HalfDone(String),
    /// It goes again, and the step ends.
    Off(ProviderError),
}

impl Billing {
    /// Hands up to `limit` rows that are due to Stripe. Any number of workers may call this at once; one that dies in the middle
    /// loses nothing: its rows come again when its lease ends, under the same identifiers.
    ///
    /// # Errors
    /// When the database does not answer. What Stripe says is in the answer.
    #[tracing::instrument(name = "saas.billing.usage.send", level = "debug", skip_all)]
    pub async fn send_usage(
        &self,
        provider: &dyn PaymentProvider,
        policy: &UsagePolicy,
        limit: u16,
    ) -> Result<UsageSent, BillingError> {
        let lease = LeaseToken::mint_at(self.clock.now());
        let mut report = UsageSent::default();
        let (due, doubtful) = self.take_usage(policy, lease, limit, &mut report).await?;
        let due = self.look_up_doubtful(provider, policy, lease, (due, doubtful), &mut report).await?;
        let (plain, corrections): (Vec<_>, Vec<_>) = due.into_iter().partition(|row| row.cancels.is_none());
        let mut came = if policy.streamed {
            self.stream_rows(provider, plain, lease).await
        } else {
            self.send_rows(provider, plain, lease).await
        };
        if !came.iter().any(|(_, came)| matches!(came, Came::Off(_))) {
            came.extend(self.send_rows(provider, corrections, lease).await);
        } else {
            let later =
                corrections.into_iter().map(|row| (row, Came::Off(ProviderError::RateLimited { retry_after: None })));
            came.extend(later);
        }
        self.settle_usage(lease, came, &mut report).await?;
        Ok(report)
    }

    /// Takes rows, and settles those that are not to be sent. Answers with those that are, and with those that may have been sent
    /// so long ago that Stripe would not know them again.
    async fn take_usage(
        &self,
        policy: &UsagePolicy,
        lease: LeaseToken,
        limit: u16,
        report: &mut UsageSent,
    ) -> Result<(Vec<Sending>, Vec<Sending>), BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "take usage that is due to be sent").await?;
        home::check(&mut tx, &self.scope).await?;
        let until = now + self.config.lease;
        let rows = usage::claim(&mut tx, &self.scope, i64::from(limit), lease, (now, until)).await?;
        let (mut due, mut doubtful, mut fates) = (Vec::new(), Vec::new(), Vec::new());
        let mut customers: BTreeMap<TenantId, Option<ObjectId>> = BTreeMap::new();
        for mut row in rows {
            // A correction whose reading may be taken back already is seen through, however old that is.
            if row.at < now - OLDEST && row.cancels.is_none() {
                let why = "older than 35 days: Stripe does not count it any more; credit or charge it by hand";
                fates.push((row.key(), Fate::Refused(why.to_owned())));
                continue;
            }
            if row.at > now + NEWEST {
                fates.push((row.key(), Fate::Later(row.at - NEWEST)));
                continue;
            }
            if row.customer.is_none() {
                let customer = match customers.get(&row.tenant) {
                    Some(known) => known.clone(),
                    None => {
                        // Whoever links a customer holds this lock, and sets free what waits: neither misses the other.
                        tenant::lock_in(&mut tx, row.tenant).await?;
                        let customer = command::customer(&mut tx, (row.tenant, &self.scope)).await?;
                        customers.insert(row.tenant, customer.clone());
                        customer
                    }
                };
                match customer {
                    Some(customer) => row.customer = Some(customer),
                    None => {
                        fates.push((row.key(), Fate::Waiting));
                        continue;
                    }
                }
            }
            if row.amount < 0 && row.cancels.is_none() {
                let found = match policy.corrections {
                    Corrections::Cancel => usage::claim_target(&mut tx, &self.scope, &row, now - REMEMBERED).await?,
                    Corrections::Report => None,
                };
                if found.is_none()
                    && policy.corrections == Corrections::Cancel
                    && usage::is_under_way(&mut tx, &self.scope, &row).await?
                {
                    // What it takes back may be on its way still.
                    fates.push((row.key(), Fate::Later(now + PAUSE)));
                    continue;
                }
                let Some((target, value, at)) = found else {
                    let why = "a correction, and no reading of the last day can be taken back; give a credit by hand";
                    fates.push((row.key(), Fate::Refused(why.to_owned())));
                    continue;
                };
                let left = value - row.amount.unsigned_abs();
                (row.cancels, row.value, row.at) = (Some(target), Some(left), at);
            }
            let value = row.value.or_else(|| u64::try_from(row.amount).ok());
            row.value = value;
            let was_sent = row.first_sent_at;
            row.first_sent_at = was_sent.or(Some(now));
            let is_doubtful = was_sent.is_some_and(|first| first < now - REMEMBERED);
            if is_doubtful { doubtful.push(row) } else { due.push(row) }
        }
        if !due.is_empty() || !doubtful.is_empty() {
            // After the tenants' locks, as whoever asks for a command.
            home::claim(&mut tx, &self.scope).await?;
        }
        usage::fix(&mut tx, &self.scope, lease, due.iter().chain(&doubtful)).await?;
        count(&fates, report);
        usage::settle(&mut tx, &self.scope, lease, &fates, now).await?;
        tx.commit().await?;
        Ok((due, doubtful))
    }

    /// C7: Stripe has forgotten the identifiers of these. What it has counted in their minute tells which of them it has: none, and
    /// they are sent; all, and they are done. Anything else is for a person.
    async fn look_up_doubtful(
        &self,
        provider: &dyn PaymentProvider,
        policy: &UsagePolicy,
        lease: LeaseToken,
        (mut due, doubtful): (Vec<Sending>, Vec<Sending>),
        report: &mut UsageSent,
    ) -> Result<Vec<Sending>, BillingError> {
        if doubtful.is_empty() {
            return Ok(due);
        }
        let now = self.clock.now();
        // A level that is said twice is the same level; a correction names what it takes back.
        let (harmless, doubtful): (Vec<_>, Vec<_>) =
            doubtful.into_iter().partition(|row| policy.is_of_levels(&row.meter) && row.cancels.is_none());
        let mut again = harmless;
        let mut fates = Vec::new();
        let meters = match compare::meters(provider).await {
            Ok(meters) => meters,
            Err(why) => {
                report.stopped = Some(why.code());
                BTreeMap::new()
            }
        };
        let mut minutes: BTreeMap<_, Vec<Sending>> = BTreeMap::new();
        for row in doubtful {
            let minute = row.at.duration_trunc(TimeDelta::minutes(1)).unwrap_or(row.at);
            minutes.entry((row.tenant, row.meter.clone(), row.customer.clone(), minute)).or_default().push(row);
        }
        for ((tenant, meter, customer, minute), rows) in minutes {
            let correction = rows.iter().any(|row| row.cancels.is_some());
            let total = match (meters.get(&meter), &customer) {
                (Some(meter), Some(customer)) => {
                    let span = (minute, minute + TimeDelta::minutes(1));
                    compare::total(provider, &meter.id, customer, span).await
                }
                (_, _) => Err(ProviderError::Missing { id: None }),
            };
            let mut tx = SystemTx::begin(&self.system, ACTOR, "add up what Stripe has of a minute").await?;
            let span = (minute, minute + TimeDelta::minutes(1));
            let had = usage::sent_between(&mut tx, &self.scope, (tenant, &meter), span).await?;
            tx.commit().await?;
            let open: u64 = rows.iter().filter_map(|row| row.value).fold(0, u64::saturating_add);
            let fate = match total {
                Ok(total) if total == had && !correction => None,
                Ok(total) if total == had.saturating_add(open) && !correction => Some(Fate::Sent),
                Ok(_) => {
                    let why = "sent more than a day ago without an answer, and Stripe's total of its minute does not tell \
                               whether it counted; compare it by hand";
                    Some(Fate::Refused(why.to_owned()))
                }
                Err(why) => {
                    report.stopped = Some(why.code());
                    Some(Fate::Later(now + PAUSE))
                }
            };
            match fate {
                None => again.extend(rows),
                Some(fate) => fates.extend(rows.iter().map(|row| (row.key(), fate.clone()))),
            }
        }
        let mut tx = SystemTx::begin(&self.system, ACTOR, "send usage again that Stripe has not counted").await?;
        // From now on Stripe knows the identifier for another day.
        for row in &mut again {
            row.first_sent_at = Some(now);
        }
        usage::fix(&mut tx, &self.scope, lease, &again).await?;
        count(&fates, report);
        usage::settle(&mut tx, &self.scope, lease, &fates, now).await?;
        tx.commit().await?;
        due.extend(again);
        Ok(due)
    }

    /// One call for each row, one at a time for each customer, until Stripe does not take any more.
    async fn send_rows(
        &self,
        provider: &dyn PaymentProvider,
        rows: Vec<Sending>,
        lease: LeaseToken,
    ) -> Vec<(Sending, Came)> {
        let mut of: BTreeMap<Option<ObjectId>, Vec<Sending>> = BTreeMap::new();
        for row in rows {
            of.entry(row.customer.clone()).or_default().push(row);
        }
        let one = async |rows: Vec<Sending>| {
            let mut came = Vec::with_capacity(rows.len());
            let mut off = false;
            for row in rows {
                let what = if off {
                    Came::Off(ProviderError::RateLimited { retry_after: None })
                } else {
                    send(provider, &row, lease).await
                };
                off |= matches!(what, Came::Off(_));
                came.push((row, what));
            }
            came
        };
        let all: Vec<Vec<(Sending, Came)>> =
            stream::iter(of.into_values()).map(one).buffer_unordered(AT_ONCE).collect().await;
        all.into_iter().flatten().collect()
    }

    /// A hundred rows for each call. Stripe takes them all or none; if it will never take a batch, its rows go one by one.
    async fn stream_rows(
        &self,
        provider: &dyn PaymentProvider,
        rows: Vec<Sending>,
        lease: LeaseToken,
    ) -> Vec<(Sending, Came)> {
        let mut came = Vec::with_capacity(rows.len());
        let mut rows = rows.into_iter().peekable();
        let mut off = false;
        while rows.peek().is_some() {
            let batch: Vec<Sending> = rows.by_ref().take(MAX_STREAMED).collect();
            let readings: Vec<MeterReading> = batch.iter().filter_map(Sending::reading).collect();
            let answer = if off {
                Err(ProviderError::RateLimited { retry_after: None })
            } else {
                provider.stream(&readings).await
            };
            match answer {
                Ok(()) => came.extend(batch.into_iter().map(|row| (row, Came::Sent))),
                Err(ProviderError::Refused { .. }) => came.extend(self.send_rows(provider, batch, lease).await),
                Err(why) => {
                    off = true;
                    let mut why = Some(why);
                    came.extend(batch.into_iter().map(|row| {
                        let why = why.take().unwrap_or(ProviderError::RateLimited { retry_after: None });
                        (row, Came::Off(why))
                    }));
                }
            }
        }
        came
    }

    async fn settle_usage(
        &self,
        lease: LeaseToken,
        came: Vec<(Sending, Came)>,
        report: &mut UsageSent,
    ) -> Result<(), BillingError> {
        let now = self.clock.now();
        let mut released = BTreeSet::new();
        let mut fates = Vec::with_capacity(came.len());
        for (row, came) in came {
            let fate = match came {
                Came::Sent => {
                    report.taken_back += usize::from(row.cancels.is_some());
                    Fate::Sent
                }
                Came::Refused(why) => {
                    // What a correction could not take back counts as before.
                    released.extend(row.cancels.map(|target| (row.tenant, target)));
                    Fate::Refused(why)
                }
                Came::HalfDone(why) => {
                    report.taken_back += 1;
                    let units = row.value.unwrap_or(0);
                    Fate::Refused(format!(
                        "the reading is taken back, and {units} that should stay of it are not counted ({why}); charge them by hand"
                    ))
                }
                Came::Off(why) => {
                    report.stopped = report.stopped.or(Some(why.code()));
                    let asked = match &why {
                        ProviderError::RateLimited { retry_after: Some(after) } => TimeDelta::from_std(*after).ok(),
                        _ => None,
                    };
                    Fate::Later(now + asked.unwrap_or(PAUSE).max(TimeDelta::seconds(1)))
                }
            };
            fates.push((row.key(), fate));
        }
        if fates.is_empty() {
            return Ok(());
        }
        count(&fates, report);
        let mut tx = SystemTx::begin(&self.system, ACTOR, "note what became of usage at Stripe").await?;
        usage::settle(&mut tx, &self.scope, lease, &fates, now).await?;
        for (tenant, target) in released {
            usage::release_target(&mut tx, &self.scope, tenant, target).await?;
        }
        Ok(tx.commit().await?)
    }
}

fn count(fates: &[((TenantId, Uuid), Fate)], report: &mut UsageSent) {
    for (_, fate) in fates {
        match fate {
            Fate::Sent => report.sent += 1,
            Fate::Waiting => report.waiting += 1,
            Fate::Refused(_) => report.refused += 1,
            Fate::Later(_) => report.put_off += 1,
        }
    }
}

/// Hands one row over: what it takes back first.
async fn send(provider: &dyn PaymentProvider, row: &Sending, lease: LeaseToken) -> Came {
    if let Some(target) = row.cancels {
        let command = Command::CancelReading { event_name: row.meter.clone(), identifier: target.to_string() };
        // The same key for every try of this correction: it is cancelled once.
        if let Some(came) = execute(provider, &command, format!("usage-cancel-{}", row.id), lease).await {
            return came;
        }
    }
    let Some(reading) = row.reading() else {
        return Came::Refused("has no value that can be sent".to_owned());
    };
    if row.cancels.is_some() && reading.value == 0 {
        return Came::Sent;
    }
    let command = Command::ReportUsage(reading);
    match execute(provider, &command, format!("usage-{}-{lease}", row.id), lease).await {
        None => Came::Sent,
        Some(Came::Refused(why)) if row.cancels.is_some() => Came::HalfDone(why),
        Some(came) => came,
    }
}

/// `None` when it is done.
async fn execute(provider: &dyn PaymentProvider, command: &Command, key: String, lease: LeaseToken) -> Option<Came> {
    let mut keys = [key.clone(), format!("{key}-{lease}-again")].into_iter();
    loop {
        let key = IdempotencyKey::try_from(keys.next()?);
        let Ok(key) = key else { return Some(Came::Refused("has no key".to_owned())) };
        return match provider.execute(command, &key).await {
            Ok(_) => None,
            // The identifier sees to it that it counts once, whatever the key.
            Err(why) if why.is_key_spent() && keys.len() > 0 => continue,
            Err(
                why
                @ (ProviderError::Refused { .. } | ProviderError::Missing { .. } | ProviderError::WrongState { .. }),
            ) => Some(Came::Refused(why.to_string())),
            Err(why) => Some(Came::Off(why)),
        };
    }
}

impl Sending {
    /// As Stripe takes it: whole seconds.
    fn reading(&self) -> Option<MeterReading> {
        Some(MeterReading {
            event_name: self.meter.clone(),
            customer: self.customer.clone()?,
            value: self.value?,
            at: DateTime::<Utc>::from_timestamp(self.at.timestamp(), 0)?,
            identifier: self.id.to_string(),
        })
    }

    fn key(&self) -> (TenantId, Uuid) {
        (self.tenant, self.id)
    }
}
