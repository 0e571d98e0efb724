//! What only a test account can do: let a customer's time pass, and give a customer a card that works or does not.
//!
//! For suites that run against Stripe itself and the simulator's server alike. Stripe refuses all of it in live mode.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{StripeApi, call::Call};
use crate::{object::ObjectId, provider::ProviderError};

/// A card that Stripe has for tests: <https://docs.stripe.com/testing>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestCard {
    /// Charges of it succeed.
    Works,
    /// It can be kept, and charges of it are declined.
    Declines,
}

impl TestCard {
    pub(crate) const ALL: [Self; 2] = [Self::Works, Self::Declines];

    /// The payment method by which Stripe knows it.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Works => "pm_card_visa",
            Self::Declines => "pm_card_chargeCustomerFail",
        }
    }
}

/// How often a clock that is being moved is looked at, and how many times.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS: u32 = 600;

#[derive(Deserialize)]
struct Clock {
    status: String,
    frozen_time: i64,
}

#[derive(Deserialize)]
struct Named {
    id: ObjectId,
}

fn read<'a, T: Deserialize<'a>>(object: &'a RawValue) -> Result<T, ProviderError> {
    serde_json::from_str(object.get()).map_err(|_| ProviderError::Unreadable { what: "an object of a test account" })
}

impl StripeApi {
    /// A test clock that stands at `now`, for customers that are made with it.
    ///
    /// # Errors
    /// When Stripe refuses, or does not answer.
    pub async fn create_test_clock(&self, now: DateTime<Utc>) -> Result<ObjectId, ProviderError> {
        let call = Call::post("/v1/test_helpers/test_clocks").with(|form| {
            form.put("frozen_time", now.timestamp());
        });
        Ok(read::<Named>(&self.ask(&call).await?)?.id)
    }

    /// Moves a test clock forward, by two periods of its shortest subscription at most, and waits until all that happens
    /// meanwhile has happened.
    ///
    /// # Errors
    /// When Stripe refuses, does not answer, or is not done within ten minutes.
    pub async fn advance_test_clock(&self, clock: &ObjectId, to: DateTime<Utc>) -> Result<(), ProviderError> {
        let path = format!("/v1/test_helpers/test_clocks/{clock}");
        let advance = Call::post(format!("{path}/advance")).with(|form| {
            form.put("frozen_time", to.timestamp());
        });
        let asked = self.ask(&advance).await;
        for _ in 0..LOOKS {
            let clock: Clock = read(&self.ask(&Call::get(path.as_str())).await?)?;
            match clock.status.as_str() {
                "ready" if clock.frozen_time >= to.timestamp() => return Ok(()),
                "advancing" => tokio::time::sleep(LOOK).await,
                // It has not set out: a call whose answer was lost, and its repeat, say no more than this.
                _ => break,
            }
        }
        asked.and(Err(ProviderError::Unreadable { what: "the test clock does not arrive" }))
    }

    /// Deletes a test clock with its customers.
    ///
    /// # Errors
    /// When Stripe refuses, or does not answer.
    pub async fn delete_test_clock(&self, clock: &ObjectId) -> Result<(), ProviderError> {
        self.ask(&Call::delete(format!("/v1/test_helpers/test_clocks/{clock}"))).await.map(drop)
    }

    /// Has a customer pay by this card from now on.
    ///
    /// # Errors
    /// When Stripe refuses, or does not answer.
    pub async fn give_test_card(&self, customer: &ObjectId, card: TestCard) -> Result<(), ProviderError> {
        let attach = Call::post(format!("/v1/payment_methods/{}/attach", card.id())).with(|form| {
            form.put("customer", customer);
        });
        let method = read::<Named>(&self.ask(&attach).await?)?.id;
        let choose = Call::post(format!("/v1/customers/{customer}")).with(|form| {
            form.put("invoice_settings[default_payment_method]", &method);
        });
        self.ask(&choose).await.map(drop)
    }
}
