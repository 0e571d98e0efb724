//! A recorded history that can happen to any number of customers at once.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use async_trait::async_trait;
use serde_json::value::RawValue;

use super::simulator::{Delivery, StripeSimulator};
use crate::{
    object::{ObjectId, ObjectKind},
    provider::{Fetched, ObjectSource, ProviderError},
};

/// What stands in every id that the simulator mints, behind the prefix.
const MARK: &str = "_1SimQ";

/// The events of a history, as often as there are worlds to tell them in: each world has ids of its own.
#[derive(Debug, Clone)]
pub struct Scenario {
    events: Vec<Delivery>,
    checkouts: Vec<ObjectId>,
}

impl Scenario {
    /// Lets `drive` make something happen, and records the events of that.
    pub fn record(stripe: &StripeSimulator, drive: impl FnOnce(&StripeSimulator)) -> Self {
        let known = stripe.living(ObjectKind::CheckoutSession);
        drop(stripe.deliveries());
        drive(stripe);
        let mut checkouts = stripe.living(ObjectKind::CheckoutSession);
        checkouts.retain(|id| !known.contains(id));
        Self { events: stripe.deliveries(), checkouts }
    }

    /// Keeps the events of these types only.
    #[must_use]
    pub fn only(mut self, event_types: &[&str]) -> Self {
        self.events.retain(|event| event_types.contains(&event.event_type.as_str()));
        self
    }

    /// The events in the order in which they happened.
    #[must_use]
    pub fn events(&self) -> &[Delivery] {
        &self.events
    }

    /// What they are called, for reports.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.events.iter().map(|event| format!("{} ({})", event.event_type, event.event)).collect()
    }

    /// The checkout sessions that were made, as the tenant of a world is to have recorded them.
    pub fn checkouts(&self, world: u32) -> impl Iterator<Item = ObjectId> + '_ {
        self.checkouts.iter().map(move |id| in_world(id, world))
    }

    /// The body of an event as a world is told it. Sign it anew. `None` behind the last event.
    #[must_use]
    pub fn body(&self, event: usize, world: u32) -> Option<Vec<u8>> {
        let body = std::str::from_utf8(&self.events.get(event)?.body).ok()?;
        Some(body.replace(MARK, &mark(world)).into_bytes())
    }

    /// Text about a world, with the ids that the simulator knows: so that digests of two worlds can be compared.
    #[must_use]
    pub fn neutral(text: &str, world: u32) -> String {
        text.replace(&mark(world), MARK)
    }
}

fn mark(world: u32) -> String {
    // The first world is the simulator's own.
    format!("_{}SimQ", u64::from(world) + 2)
}

/// The id of an object in a world.
fn in_world(id: &ObjectId, world: u32) -> ObjectId {
    super::checkout::object_id(id.as_str().replace(MARK, &mark(world)))
}

/// Reads objects of any world from the simulator that has recorded the history.
#[derive(Debug, Clone)]
pub struct Worlds(Arc<StripeSimulator>);

impl Worlds {
    /// All worlds of this simulator.
    #[must_use]
    pub const fn of(stripe: Arc<StripeSimulator>) -> Self {
        Self(stripe)
    }
}

#[async_trait]
impl ObjectSource for Worlds {
    async fn fetch(&self, kind: ObjectKind, id: &ObjectId) -> Result<Fetched, ProviderError> {
        let text = id.as_str();
        let world = text.find("SimQ").and_then(|end| text[..end].rfind('_').map(|start| text[start..end].to_owned()));
        let Some(world) = world else { return self.0.fetch(kind, id).await };
        let own = super::checkout::object_id(text.replace(&format!("{world}SimQ"), MARK));
        let fetched = self.0.fetch(kind, &own).await?;
        let Fetched::Found { object, as_of } = fetched else { return Ok(fetched) };
        let text = object.get().replace(MARK, &format!("{world}SimQ"));
        let unreadable = |_| ProviderError::Unreadable { what: "an object of another world" };
        Ok(Fetched::Found { object: RawValue::from_string(text).map_err(unreadable)?, as_of })
    }
}

/// The answer of a future that is dropped, as a killed process drops it, when it has waited so often; `None` then.
pub async fn cut_after<F: Future>(waits: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut waited = 0;
    poll_fn(|context| {
        waited += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if waited > waits => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
