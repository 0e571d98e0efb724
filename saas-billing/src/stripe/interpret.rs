//! Where Stripe's own promises fall short of the port's: what an answer means for the command that was sent.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::names_discount;
use crate::{
    object::{ObjectKind, SubscriptionStatus},
    provider::{
        Cancellation, Command, Fetched, MeterReading, NewCheckout, NewSubscription, ObjectSource, ProviderError, Reply,
    },
};

/// What became of a command, from what it was answered with.
pub(crate) async fn interpret(
    source: &dyn ObjectSource,
    command: &Command,
    outcome: Result<Reply, ProviderError>,
) -> Result<Reply, ProviderError> {
    match (command, outcome) {
        // The only parameter is the session: what is refused is its state.
        (Command::ExpireCheckout(_), Err(ProviderError::Refused { code, .. })) => {
            Err(ProviderError::WrongState { code })
        }
        // Stripe keeps no keys for deletions; one that has happened answers that there is nothing to delete.
        (
            Command::CancelSubscription { subscription, when: Cancellation::Now | Cancellation::NowProrated },
            Err(ProviderError::Missing { id }),
        ) => match source.fetch(ObjectKind::Subscription, subscription).await? {
            Fetched::Found { object, as_of } if has_ended(&object) => Ok(Reply { object, as_of, replayed: false }),
            Fetched::Found { .. } | Fetched::Missing => Err(ProviderError::Missing { id }),
        },
        // The identifier is the reading's name: known means delivered.
        (Command::ReportUsage(reading), Err(ProviderError::Refused { code, param }))
            if code == "duplicate_meter_event" =>
        {
            let object = counted(reading).ok_or(ProviderError::Refused { code, param })?;
            Ok(Reply { object, as_of: None, replayed: true })
        }
        // As for subscriptions: what is not there any more has been detached.
        (Command::DetachFeature { .. }, Err(ProviderError::Missing { .. })) => gone(),
        // Told by its id, so that nobody takes it for the customer.
        (
            Command::OpenCheckout(NewCheckout { discount: Some(discount), .. })
            | Command::CreateSubscription(NewSubscription { discount: Some(discount), .. }),
            Err(ProviderError::Refused { code, param }),
        ) if code == "resource_missing" && names_discount(param.as_deref()) => {
            Err(ProviderError::Missing { id: Some(discount.id().clone()) })
        }
        (_, outcome) => outcome,
    }
}

/// What it came to when there was nothing left to do.
fn gone() -> Result<Reply, ProviderError> {
    let object = serde_json::value::to_raw_value(&serde_json::json!({"deleted": true}))
        .map_err(|_| ProviderError::Unreadable { what: "nothing" })?;
    Ok(Reply { object, as_of: None, replayed: true })
}

/// Whether an object is a subscription that has ended.
fn has_ended(object: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Standing {
        #[serde(default)]
        status: String,
    }
    let status = serde_json::from_str::<Standing>(object.get()).map(|standing| standing.status);
    status.is_ok_and(|status| status == SubscriptionStatus::Canceled.as_str())
}

/// What Stripe answered to a reading when it counted it.
fn counted(reading: &MeterReading) -> Option<Box<RawValue>> {
    let object = serde_json::json!({
        "object": "billing.meter_event", "event_name": reading.event_name, "identifier": reading.identifier,
        "timestamp": reading.at.timestamp(),
    });
    serde_json::value::to_raw_value(&object).ok()
}
