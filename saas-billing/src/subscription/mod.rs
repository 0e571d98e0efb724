//! What an application does with a tenant's subscription: other plans, other seats, add-ons, an end, a pause.
//!
//! A call says how things shall be. It becomes a row before anything is sent ([`Billing::change_plan`](crate::Billing::change_plan) and the others take
//! the caller's key), and is driven there step by step: look at what Stripe has, do one write, look again. Whoever finds a
//! request under way finishes it before asking for something else, so two calls at once end as one after the other, each as a
//! whole; after a crash the outbox goes on. What the tenant may do follows from what Stripe confirms, never from a request.
//!
//! Owns requests and their steps. Leaves the writes and their keys to [`command`](crate::command), and what follows from
//! their answers to the merge.

mod account;
mod change;
mod drive;
mod edit;
mod goal;
mod preview;
mod schedule;
mod stop;
#[cfg(test)]
mod tests;
mod waiting;

pub(crate) use account::read_invoice;
pub use account::{BillingDetails, InvoicePage, InvoiceSummary, Portal};
pub use change::{PlanChange, When};
use chrono::{DateTime, Utc};
pub(crate) use goal::Goal;
pub use preview::{Preview, PreviewLine};
use serde::{Deserialize, Serialize};

use crate::object::ObjectId;

/// What came of a call.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change {
    /// Stripe has confirmed it, and it holds.
    Made,
    /// It was so before; nothing was sent.
    Already,
    /// It holds from then on, and can be withdrawn until then.
    Scheduled {
        /// When.
        at: DateTime<Utc>,
    },
    /// It holds when the invoice is paid; until then nothing has changed. The portal, or the invoice's page, leads the buyer
    /// there.
    AwaitingPayment {
        /// `in_…`
        invoice: Option<ObjectId>,
        /// When Stripe drops it.
        until: Option<DateTime<Utc>>,
    },
    /// The payment did not come, or something else was done first: all is as it was before.
    RolledBack,
}
