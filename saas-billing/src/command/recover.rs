//! Looks whether a command has had its effect, where its key cannot tell any more.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use saas_core::JobId;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    postgres::command::Asked,
    provider::{Command, PageLimit, PaymentProvider, ProviderError, Query, Reply},
};

/// Where the id of the command stands in the metadata of what it made.
pub(super) const MARK: &str = "saas_command";
/// Pages that are looked through.
const MOST_PAGES: usize = 100;
/// How far Stripe's clock may be from ours.
const SKEW: TimeDelta = TimeDelta::hours(1);

/// What the command made, if it did. Commands that make nothing say how things shall be: doing them twice is doing them once.
pub(super) async fn find(
    provider: &dyn PaymentProvider,
    asked: &Asked,
    command: &Command,
) -> Result<Option<Reply>, ProviderError> {
    let query = match command {
        Command::CreateCustomer(_) => Query::Customers { created_from: Some(asked.created_at - SKEW) },
        Command::OpenCheckout(new) => Query::OpenCheckouts { customer: new.customer.clone() },
        Command::CreateSubscription(new) => Query::Subscriptions { customer: Some(new.customer.clone()) },
        _ => return Ok(None),
    };
    let mut after = None;
    for _ in 0..MOST_PAGES {
        let page = provider.list(&query, after.as_ref(), PageLimit::MAX).await?;
        if let Some(object) = page.objects.into_iter().find(|object| mark(object) == Some(asked.id)) {
            // Read just now, so not the saved answer of then.
            return Ok(Some(Reply { object, as_of: None, replayed: true }));
        }
        after = page.next;
        if after.is_none() {
            return Ok(None);
        }
    }
    // Rather late than twice.
    Err(ProviderError::Unreadable { what: "the list is too long to look through" })
}

/// The command that made an object.
pub(super) fn mark(object: &RawValue) -> Option<JobId> {
    #[derive(Deserialize)]
    struct Marked {
        #[serde(default)]
        metadata: BTreeMap<String, String>,
    }
    let marked: Marked = serde_json::from_str(object.get()).ok()?;
    marked.metadata.get(MARK)?.parse().ok()
}
