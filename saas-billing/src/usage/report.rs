//! What Stripe says afterwards: usage that it took and does not count.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use saas_core::{Actor, Page, PageSize, SystemTx};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    apply::pause,
    billing::{ACTOR, Billing},
    error::BillingError,
    object::ObjectId,
    postgres::usage_report::{self, Told},
    provider::{Fetched, PaymentProvider},
};

/// How often a report is asked for.
const ATTEMPTS: i32 = 8;

/// What a step of reading did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageReports {
    /// Reports that were read.
    pub read: usize,
    /// Rows of ours that they name, and that do not count now.
    pub rejected: u64,
    /// Reports that come again later, or were given up.
    pub failed: usize,
}

/// One report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageTrouble {
    /// The event that announced it.
    pub event: ObjectId,
    /// Its type.
    pub event_type: String,
    /// Readings that do not count.
    pub errors: u64,
    /// Of those that it names (Stripe names some of each kind), the ones that are rows of ours.
    pub matched: u64,
    /// How many of each kind, by Stripe's code.
    pub codes: BTreeMap<String, u64>,
    /// When it was announced here.
    pub received_at: DateTime<Utc>,
    /// Whether it has been read.
    pub is_read: bool,
}

#[derive(Deserialize)]
struct Wire {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    reason: Reason,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    error_count: u64,
    #[serde(default)]
    error_types: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    code: String,
    #[serde(default)]
    error_count: u64,
    #[serde(default)]
    sample_errors: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    #[serde(default)]
    request: Named,
}

#[derive(Deserialize, Default)]
struct Named {
    #[serde(default)]
    identifier: Option<String>,
}

impl Billing {
    /// Reads up to `limit` reports that Stripe has announced, and marks the rows that they name. Call it from a worker.
    ///
    /// # Errors
    /// When the database does not answer. A report that Stripe does not give comes again.
    #[tracing::instrument(name = "saas.billing.usage.reports", level = "debug", skip_all)]
    pub async fn read_usage_reports(
        &self,
        provider: &dyn PaymentProvider,
        limit: u16,
    ) -> Result<UsageReports, BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "take reports of usage that was not counted").await?;
        let due = usage_report::claim(&mut tx, &self.scope, i64::from(limit), (now, now + self.config.lease)).await?;
        tx.commit().await?;
        let mut reports = UsageReports::default();
        for (event, attempts) in due {
            let told = match provider.event(&event).await {
                Ok(Fetched::Found { object, .. }) => read(&object).map_err(|()| "it cannot be read".to_owned()),
                Ok(Fetched::Missing) => Err("Stripe does not know it".to_owned()),
                Err(why) => Err(why.to_string()),
            };
            let now = self.clock.now();
            let mut tx = SystemTx::begin(&self.system, ACTOR, "note a report of usage that was not counted").await?;
            match told {
                Ok(told) => {
                    let matched = usage_report::finish(&mut tx, &self.scope, &event, &told, now).await?;
                    tracing::error!(
                        target: "saas.billing.usage", event = %event, errors = told.errors, matched,
                        "Stripe does not count usage that it took"
                    );
                    reports.read += 1;
                    reports.rejected += matched;
                }
                Err(why) => {
                    let due_at = Some(now + pause(attempts.unsigned_abs())).filter(|_| attempts < ATTEMPTS);
                    usage_report::put_off(&mut tx, &self.scope, &event, &why, due_at).await?;
                    reports.failed += 1;
                }
            }
            tx.commit().await?;
        }
        Ok(reports)
    }

    /// Stripe's reports of usage that it does not count, by event.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn usage_troubles(
        &self,
        actor: &Actor,
        after: Option<&ObjectId>,
        size: PageSize,
    ) -> Result<Page<UsageTrouble, ObjectId>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "list Stripe's reports on usage").await?;
        let troubles = usage_report::list(&mut tx, &self.scope, after, i64::from(size.get()) + 1).await?;
        tx.commit().await?;
        Ok(Page::from_rows(troubles, size, |last: &UsageTrouble| last.event.clone()))
    }
}

fn read(object: &RawValue) -> Result<Told, ()> {
    let wire: Wire = serde_json::from_str(object.get()).map_err(drop)?;
    let mut told = Told { errors: wire.data.reason.error_count, ..Told::default() };
    for kind in wire.data.reason.error_types {
        // A word of Stripe's vocabulary: what quotes input stays out.
        let is_word = kind.code.len() <= 64 && kind.code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let code = if is_word { kind.code } else { "other".to_owned() };
        for sample in kind.sample_errors {
            if let Some(id) = sample.request.identifier.and_then(|text| Uuid::try_parse(&text).ok()) {
                told.samples.push((id, code.clone()));
            }
        }
        *told.codes.entry(code).or_default() += kind.error_count;
    }
    Ok(told)
}
