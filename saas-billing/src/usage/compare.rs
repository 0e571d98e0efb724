//! A day of usage here, beside the same day at Stripe. Changes nothing on either side.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use saas_core::{Actor, Page, PageSize, SystemTx, TenantId};
use serde::{Deserialize, Serialize};

use crate::{
    billing::Billing,
    error::BillingError,
    object::ObjectId,
    postgres::usage,
    provider::{PageLimit, PaymentProvider, ProviderError, Query},
};

/// Meters of an account, in pages.
const MAX_PAGES: usize = 100;

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
    (from, to): (DateTime<Utc>, DateTime<Utc>),
) -> Result<u64, ProviderError> {
    #[derive(Deserialize)]
    struct Summary {
        aggregated_value: serde_json::Number,
    }
    let query = Query::MeterTotals { meter: meter.clone(), customer: customer.clone(), from, to };
    let page = provider.list(&query, None, PageLimit::MAX).await?;
    let mut sum = 0_u64;
    for object in &page.objects {
        let summary: Result<Summary, _> = serde_json::from_str(object.get());
        // Whole numbers, which Stripe may write with a decimal point.
        let value = summary.ok().and_then(|summary| whole(&summary.aggregated_value.to_string()));
        let value = value.ok_or(ProviderError::Unreadable { what: "a summary of a meter" })?;
        sum = sum.saturating_add(value);
    }
    Ok(sum)
}

fn whole(number: &str) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.bytes().any(|digit| digit != b'0') { None } else { whole.parse().ok() }
}
