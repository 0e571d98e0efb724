//! Usage here, beside the same days at Stripe. Changes nothing on either side.

use std::collections::BTreeMap;

use chrono::{DateTime, DurationRound as _, NaiveDate, NaiveTime, TimeDelta, Utc};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use saas_core::{Actor, Page, PageSize, SystemTx, TenantId};
use serde::{Deserialize, Serialize};

use super::{OLDEST, send::AT_ONCE};
use crate::{
    billing::Billing,
    error::BillingError,
    object::ObjectId,
    postgres::usage,
    provider::{PageLimit, PaymentProvider, ProviderError, Query},
};

/// Meters of an account, in pages.
const MAX_PAGES: usize = 100;
/// How far behind Stripe's totals may be.
const BEHIND: TimeDelta = TimeDelta::hours(1);

/// What a customer used of a meter on a day, on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageTotal {
    /// Whose.
    pub tenant: TenantId,
    /// To whom it was sent.
    pub customer: ObjectId,
    /// Of what.
    pub meter: String,
    /// What Stripe has taken from here and not rejected; of a meter of levels, the last of the day.
    pub ours: u64,
    /// What Stripe has counted; `None` when it has no such meter.
    pub theirs: Option<u64>,
    /// What is on its way, or was refused or rejected: part of neither. Of a meter of levels, the last of those.
    pub unsent: i64,
}

impl UsageTotal {
    /// Whether both sides say the same.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.theirs == Some(self.ours)
    }
}

/// Behind which total a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageCursor {
    pub(crate) tenant: TenantId,
    pub(crate) meter: String,
    pub(crate) customer: ObjectId,
}

impl Billing {
    /// Compares the totals of a day, by Coordinated Universal Time: for each tenant, meter and customer what was sent from here
    /// and what Stripe has counted. A report: nothing is changed. Stripe counts some minutes behind, so ask for a day that is over. Of
    /// a meter that Stripe keeps the last value of, both sides say the last of the day.
    ///
    /// # Errors
    /// [`Provider`](BillingError::Provider): ask for the page again. When the database does not answer.
    pub async fn compare_usage(
        &self,
        provider: &dyn PaymentProvider,
        actor: &Actor,
        day: NaiveDate,
        after: Option<UsageCursor>,
        size: PageSize,
    ) -> Result<Page<UsageTotal, UsageCursor>, BillingError> {
        let from = day.and_time(NaiveTime::MIN).and_utc();
        let span = (from, from + TimeDelta::days(1));
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "add up a day of usage").await?;
        let limit = i64::from(size.get()) + 1;
        let totals = usage::totals(&mut tx, &self.scope, span, after.as_ref(), limit).await?;
        tx.commit().await?;
        let cursor = |last: &usage::Span| UsageCursor {
            tenant: last.total.tenant,
            meter: last.total.meter.clone(),
            customer: last.total.customer.clone(),
        };
        let page = Page::from_rows(totals, size, cursor);
        let meters = if page.items.is_empty() { BTreeMap::new() } else { meters(provider).await? };
        let mut items = Vec::new();
        for usage::Span { total: mut one, last_level, last_unsent } in page.items {
            if let Some(meter) = meters.get(&one.meter) {
                one.theirs = Some(total(provider, &meter.id, &one.customer, span).await?);
                if meter.keeps_last {
                    (one.ours, one.unsent) = (last_level, last_unsent);
                }
            }
            items.push(one);
        }
        Ok(Page { items, next: page.next })
    }
}

/// What a customer used of a meter on a day, as is on record here.
#[derive(Debug, Clone)]
pub(crate) struct DayOfUse {
    pub(crate) customer: ObjectId,
    pub(crate) meter: String,
    pub(crate) day: NaiveDate,
    /// What Stripe has taken.
    pub(crate) sum: u64,
    /// The last of it: what counts of a meter of levels.
    pub(crate) last: u64,
}

/// The whole days that can be compared at `now`: Stripe counts some minutes behind, and takes readings of the last 35.
pub(crate) fn comparable(now: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
    let end = now - BEHIND;
    let end = end.duration_trunc(TimeDelta::days(1)).unwrap_or(end);
    (end - OLDEST, end)
}

/// The days on which the two sides differ, by customer, with one call to Stripe for each customer and meter: how many of those
/// there are, and the differences as `(meter, day, ours, theirs)`. A meter that Stripe does not have has counted nothing.
pub(crate) async fn differing_days(
    provider: &dyn PaymentProvider,
    span: (DateTime<Utc>, DateTime<Utc>),
    days: &[DayOfUse],
) -> Result<(u64, Vec<DifferingDay>), ProviderError> {
    let mut ours: BTreeMap<(&ObjectId, &str), BTreeMap<NaiveDate, &DayOfUse>> = BTreeMap::new();
    for day in days {
        ours.entry((&day.customer, &day.meter)).or_default().insert(day.day, day);
    }
    if ours.is_empty() {
        return Ok((0, Vec::new()));
    }
    let (compared, meters) = (ours.len() as u64, meters(provider).await?);
    let meters = &meters;
    let one = async |((customer, name), ours): ((&ObjectId, &str), BTreeMap<NaiveDate, &DayOfUse>)| {
        let meter = meters.get(name);
        let theirs = match meter {
            Some(meter) => summaries(provider, &meter.id, customer, span, true).await?,
            None => BTreeMap::new(),
        };
        let keeps_last = meter.is_some_and(|meter| meter.keeps_last);
        let of_ours = |day| ours.get(&day).map_or(0, |day| if keeps_last { day.last } else { day.sum });
        let mut both: Vec<NaiveDate> = ours.keys().chain(theirs.keys()).copied().collect();
        both.sort_unstable();
        both.dedup();
        let differing = both.into_iter().filter_map(|day| {
            let (ours, theirs) = (of_ours(day), theirs.get(&day).copied().unwrap_or(0));
            (ours != theirs).then(|| DifferingDay {
                customer: customer.clone(),
                meter: name.to_owned(),
                day,
                ours,
                theirs,
            })
        });
        Ok::<Vec<DifferingDay>, ProviderError>(differing.collect())
    };
    let found: Vec<Vec<DifferingDay>> = stream::iter(ours).map(one).buffer_unordered(AT_ONCE).try_collect().await?;
    Ok((compared, found.into_iter().flatten().collect()))
}

/// A day of usage that is not the same on both sides.
#[derive(Debug)]
pub(crate) struct DifferingDay {
    pub(crate) customer: ObjectId,
    pub(crate) meter: String,
    pub(crate) day: NaiveDate,
    pub(crate) ours: u64,
    pub(crate) theirs: u64,
}

/// A meter of the account.
pub(super) struct KnownMeter {
    pub(super) id: ObjectId,
    /// It counts levels: the last value is the total.
    pub(super) keeps_last: bool,
}

/// The account's meters by event name.
pub(super) async fn meters(provider: &dyn PaymentProvider) -> Result<BTreeMap<String, KnownMeter>, ProviderError> {
    #[derive(Deserialize)]
    struct Meter {
        id: ObjectId,
        event_name: String,
        status: String,
        default_aggregation: Option<Counting>,
    }
    #[derive(Deserialize)]
    struct Counting {
        formula: String,
    }
    let (mut meters, mut after) = (BTreeMap::new(), None);
    for _ in 0..MAX_PAGES {
        let page = provider.list(&Query::Meters, after.as_ref(), PageLimit::MAX).await?;
        for object in &page.objects {
            let unreadable = |_| ProviderError::Unreadable { what: "a meter" };
            let meter: Meter = serde_json::from_str(object.get()).map_err(unreadable)?;
            if meter.status == "active" || !meters.contains_key(&meter.event_name) {
                let keeps_last = meter.default_aggregation.is_some_and(|counting| counting.formula == "last");
                meters.insert(meter.event_name, KnownMeter { id: meter.id, keeps_last });
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(meters)
}

/// What Stripe has counted.
pub(super) async fn total(
    provider: &dyn PaymentProvider,
    meter: &ObjectId,
    customer: &ObjectId,
    span: (DateTime<Utc>, DateTime<Utc>),
) -> Result<u64, ProviderError> {
    Ok(summaries(provider, meter, customer, span, false).await?.into_values().fold(0, u64::saturating_add))
}

/// The same by the day that each total begins on. There is one of the whole span, or one for each day: fewer than a page has.
async fn summaries(
    provider: &dyn PaymentProvider,
    meter: &ObjectId,
    customer: &ObjectId,
    (from, to): (DateTime<Utc>, DateTime<Utc>),
    daily: bool,
) -> Result<BTreeMap<NaiveDate, u64>, ProviderError> {
    #[derive(Deserialize)]
    struct Summary {
        aggregated_value: serde_json::Number,
        start_time: i64,
    }
    let query = Query::MeterTotals { meter: meter.clone(), customer: customer.clone(), from, to, daily };
    let page = provider.list(&query, None, PageLimit::MAX).await?;
    let mut totals = BTreeMap::new();
    for object in &page.objects {
        let read = |summary: Summary| {
            let day = DateTime::<Utc>::from_timestamp(summary.start_time, 0)?.date_naive();
            // Whole numbers, which Stripe may write with a decimal point.
            Some((day, whole(&summary.aggregated_value.to_string())?))
        };
        let (day, value) = serde_json::from_str(object.get())
            .ok()
            .and_then(read)
            .ok_or(ProviderError::Unreadable { what: "a summary of a meter" })?;
        let total: &mut u64 = totals.entry(day).or_default();
        *total = total.saturating_add(value);
    }
    Ok(totals)
}

fn whole(number: &str) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.bytes().any(|digit| digit != b'0') { None } else { whole.parse().ok() }
}
