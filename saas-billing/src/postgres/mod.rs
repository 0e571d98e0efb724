//! The statements behind the service, one file per table, and one for the operator's desk.
//!
//! Tables of tenants are always addressed by `tenant_id`; the tables of the system (receipts, conflicts, directory,
//! fetches, home, notices, runs of reconcile) by Stripe's account, mode and id. Everything here joins the caller's transaction, except storing a receipt.

pub(crate) mod body;
pub(crate) mod command;
pub(crate) mod conflict;
pub(crate) mod desk;
pub(crate) mod directory;
pub(crate) mod dunning;
pub(crate) mod fetch;
pub(crate) mod home;
pub(crate) mod ledger;
pub(crate) mod ledger_read;
pub(crate) mod notice;
pub(crate) mod object;
pub(crate) mod price;
pub(crate) mod purge;
pub(crate) mod receipt;
pub(crate) mod reconcile;
pub(crate) mod recorded;
pub(crate) mod request;
pub(crate) mod revenue;
pub(crate) mod seat;
pub(crate) mod state;
pub(crate) mod trial;
pub(crate) mod usage;
pub(crate) mod usage_report;

use crate::{config::BillingConfig, mode::Mode};

/// The account and the mode that an endpoint serves: the first half of every Stripe key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    /// `''` for the platform's own account.
    pub(crate) account: String,
    pub(crate) livemode: bool,
}

impl Scope {
    pub(crate) fn of(config: &BillingConfig) -> Self {
        let account = config.account.as_ref().map(ToString::to_string).unwrap_or_default();
        Self { account, livemode: config.mode == Mode::Live }
    }

    /// The name under which it records which plan a tenant is on.
    pub(crate) const fn plan_record(&self) -> &'static str {
        if self.livemode { "billing.live" } else { "billing.test" }
    }

    /// The endpoint in one word, as in `quarantined_by`.
    pub(crate) fn endpoint(&self) -> String {
        format!("{}/{}", self.account, if self.livemode { "live" } else { "test" })
    }
}

/// Text that fits a column: no NUL, and not without end.
pub(crate) fn storable(text: &str) -> String {
    const LIMIT: usize = 500;
    text.chars().filter(|c| *c != '\0').take(LIMIT).collect()
}
