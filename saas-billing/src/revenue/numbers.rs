//! The questions over all tenants.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, SystemTx};
use serde::Serialize;

use super::Movement;
use crate::{
    Billing, BillingError,
    money::{Currency, Money, MoneyError},
    postgres::revenue,
};

/// Monthly recurring revenue in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Mrr {
    /// Per month.
    pub monthly: Money,
    /// Tenants that pay.
    pub payers: i64,
}

impl Mrr {
    /// Annual recurring revenue: twelve times the month.
    ///
    /// # Errors
    /// When that does not fit.
    pub fn annual(&self) -> Result<Money, MoneyError> {
        self.monthly.checked_mul(12)
    }
}

/// Changes of one name in a period, in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Which name.
    pub movement: Movement,
    /// What they add up to; below zero for what was lost.
    pub amount: Money,
    /// How many.
    pub changes: i64,
}

/// What trials that ended in a period came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TrialConversion {
    /// Trials that ended.
    pub ended: i64,
    /// Of them, those that were paid for since.
    pub converted: i64,
}

/// What became of invoices that first failed in a period, in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// Invoices, and what they asked for.
    pub failed: (i64, Money),
    /// Of them, those that were paid since.
    pub recovered: (i64, Money),
    /// Of them, those that were written off or withdrawn since. The rest is still open.
    pub lost: (i64, Money),
}

impl Recovery {
    /// The recovered share of the failed amount, in hundredths of a percent, rounded down; `None` where nothing failed.
    #[must_use]
    pub fn rate(&self) -> Option<u32> {
        let (failed, recovered) = (i128::from(self.failed.1.minor()), i128::from(self.recovered.1.minor()));
        let rate = recovered.checked_mul(10_000)?.checked_div(failed)?;
        u32::try_from(rate).ok()
    }
}

impl Billing {
    /// Monthly recurring revenue per currency: one pass over an index.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mrr(&self, actor: &Actor) -> Result<Vec<Mrr>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "add up monthly recurring revenue").await?;
        let rows = revenue::mrr(&mut tx, self.scope.livemode).await?;
        tx.commit().await?;
        rows.into_iter().map(read_mrr).collect()
    }

    /// As [`mrr`](Self::mrr), just before an instant of the past, such as the first of a month.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mrr_before(&self, actor: &Actor, at: DateTime<Utc>) -> Result<Vec<Mrr>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "add up past recurring revenue").await?;
        let rows = revenue::mrr_before(&mut tx, self.scope.livemode, at).await?;
        tx.commit().await?;
        rows.into_iter().map(read_mrr).collect()
    }

    /// How monthly recurring revenue changed in a period. What it was before and these add up to what it was after.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn revenue_movements(
        &self,
        actor: &Actor,
        from: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Result<Vec<Moved>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "add up movements of revenue").await?;
        let rows = revenue::movements(&mut tx, self.scope.livemode, (from, until)).await?;
        tx.commit().await?;
        let corrupt = CoreError::Corrupt { table: "saas.revenue_change", column: "movement" };
        let read = |(currency, movement, sum, changes): (String, String, String, i64)| {
            let movement = Movement::from_stored(&movement);
            Some(Moved { movement: movement?, amount: money(&currency, &sum)?, changes })
        };
        rows.into_iter().map(read).collect::<Option<Vec<_>>>().ok_or(corrupt.into())
    }

    /// Of the trials that ended in a period, how many were paid for since.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn trial_conversion(
        &self,
        actor: &Actor,
        from: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Result<TrialConversion, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "count trials").await?;
        let (ended, converted) = revenue::trials(&mut tx, self.scope.livemode, (from, until)).await?;
        tx.commit().await?;
        Ok(TrialConversion { ended, converted })
    }

    /// Of the invoices whose first charge failed in a period, what was paid since, and what was lost.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn dunning_recovery(
        &self,
        actor: &Actor,
        from: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Result<Vec<Recovery>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "add up recovered payments").await?;
        let rows = revenue::recoveries(&mut tx, self.scope.livemode, (from, until)).await?;
        tx.commit().await?;
        let read = |(currency, failed, failed_sum, recovered, recovered_sum, lost, lost_sum): revenue::RecoveryRow| {
            Some(Recovery {
                failed: (failed, money(&currency, &failed_sum)?),
                recovered: (recovered, money(&currency, &recovered_sum)?),
                lost: (lost, money(&currency, &lost_sum)?),
            })
        };
        let corrupt = CoreError::Corrupt { table: "saas.revenue_arrears", column: "amount_minor" };
        rows.into_iter().map(read).collect::<Option<Vec<_>>>().ok_or(corrupt.into())
    }
}

fn read_mrr((currency, sum, payers): (String, String, i64)) -> Result<Mrr, BillingError> {
    let corrupt = CoreError::Corrupt { table: "saas.revenue_state", column: "mrr_minor" };
    Ok(Mrr { monthly: money(&currency, &sum).ok_or(corrupt)?, payers })
}

fn money(currency: &str, sum: &str) -> Option<Money> {
    Some(Money::new(sum.parse().ok()?, currency.parse::<Currency>().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_recovery_is_what_the_table_says() {
        let document = include_str!("../../../docs/numbers.md");
        let table = document.split("| failed | recovered | lost | rate |").nth(1).unwrap();
        let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
        assert!(rows.len() > 5, "{rows:?}");
        for line in rows {
            let row: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let eur = |text: &str| (1, Money::new(text.parse().unwrap(), "eur".parse().unwrap()));
            let recovery = Recovery { failed: eur(row[0]), recovered: eur(row[1]), lost: eur(row[2]) };
            assert_eq!(recovery.rate().map_or("–".to_owned(), |rate| rate.to_string()), row[3], "{line}");
        }
    }
}
