//! The few things that must be read from an answer before anybody reads the object. Pure.

use secrecy::SecretString;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::{
    object::ObjectId,
    provider::{Command, Listed, ProviderError},
};

/// The object that a command names, for the error that says it is missing.
pub(crate) fn named(command: &Command) -> Option<&ObjectId> {
    match command {
        Command::ExpireCheckout(id)
        | Command::CancelSubscription { subscription: id, .. }
        | Command::PauseCollection { subscription: id, .. }
        | Command::ResumeSubscription(id)
        | Command::AttachSchedule(id)
        | Command::PlanPhases { schedule: id, .. }
        | Command::ReleaseSchedule(id)
        | Command::PayInvoice(id)
        | Command::VoidInvoice(id)
        | Command::WriteOffInvoice(id)
        | Command::ArchivePrice(id)
        | Command::OfferPrice { price: id, .. }
        | Command::AttachFeature { product: id, .. }
        | Command::DetachFeature { attachment: id, .. }
        | Command::ChangeFeature { feature: id, .. }
        | Command::RenameMeter { meter: id, .. }
        | Command::ReactivateMeter(id) => Some(id),
        Command::ChangeProduct(new) => Some(&new.id),
        Command::ChangeSubscription(change) => Some(&change.subscription),
        Command::UpdateCustomer(update) => Some(&update.customer),
        Command::OpenCheckout(new) => Some(&new.customer),
        Command::OpenPortal(new) => Some(&new.customer),
        Command::CreateSubscription(new) => Some(&new.customer),
        Command::ReportUsage(reading) => Some(&reading.customer),
        Command::CreatePrice(new) => Some(&new.product),
        Command::CreateCustomer(_)
        | Command::CreateProduct(_)
        | Command::CreateFeature(_)
        | Command::CreateMeter(_)
        | Command::CancelReading { .. } => None,
    }
}

/// Whether an object lives by a test clock, whose time is no other clock's.
pub(crate) fn has_test_clock(object: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Clocked {
        #[serde(default)]
        test_clock: Option<IgnoredAny>,
    }
    serde_json::from_str::<Clocked>(object.get()).is_ok_and(|clocked| clocked.test_clock.is_some())
}

/// The token of a session of the stream of readings.
pub(crate) fn session_token(answer: &RawValue) -> Result<SecretString, ProviderError> {
    #[derive(Deserialize)]
    struct Opened {
        authentication_token: String,
    }
    let opened: Result<Opened, _> = serde_json::from_str(answer.get());
    let opened = opened.map_err(|_| ProviderError::Unreadable { what: "a session of the stream without a token" })?;
    Ok(opened.authentication_token.into())
}

/// A page of a list.
pub(crate) fn page(answer: &RawValue) -> Result<Listed, ProviderError> {
    #[derive(Deserialize)]
    struct Page {
        data: Vec<Box<RawValue>>,
        #[serde(default)]
        has_more: bool,
    }
    #[derive(Deserialize)]
    struct Identified {
        id: ObjectId,
    }
    let unreadable = |what| move |_| ProviderError::Unreadable { what };
    let page: Page = serde_json::from_str(answer.get()).map_err(unreadable("not a list"))?;
    let last = page.data.last().filter(|_| page.has_more);
    let next = last.map(|object| serde_json::from_str::<Identified>(object.get())).transpose();
    let next = next.map_err(unreadable("an object of a list without an id"))?.map(|last| last.id);
    Ok(Listed { objects: page.data, next })
}
