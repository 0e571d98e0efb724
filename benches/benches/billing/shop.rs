//! A durable server with tenants, a simulated Stripe, the service between them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use futures_util::{StreamExt, TryStreamExt, stream};
use saas_benches::Server;
use saas_billing::{
    Billing, BillingConfig, Mode, SigningSecrets, WebhookProcessor,
    object::{Interval, ObjectId},
    testing::{CheckoutRequest, Scenario, StripeSimulator},
};
use saas_core::{PlanCatalog, TestClock};

const CATALOG: &str = "
default_plan = \"free\"
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
[plans.pro]
rank = 10
[[plans.pro.versions]]
version = 1
prices = [\"price_pro\"]
[plans.team]
rank = 20
[[plans.team.versions]]
version = 1
prices = [\"price_team\"]
";

pub(crate) struct Shop {
    pub(crate) server: Server,
    pub(crate) clock: TestClock,
    pub(crate) stripe: Arc<StripeSimulator>,
    pub(crate) billing: Billing,
}

/// A service over its own pools of so many connections.
pub(crate) async fn service(
    server: &Server,
    stripe: &StripeSimulator,
    clock: &TestClock,
    connections: u32,
) -> anyhow::Result<Billing> {
    let secrets = SigningSecrets::new(vec![stripe.secret()])?;
    let config = BillingConfig::new(PlanCatalog::from_toml(CATALOG)?, secrets, Mode::Test);
    let (tenants, system) = (server.tenant_pool(2).await?, server.system_pool(connections).await?);
    Ok(Billing::new(config, tenants, system, Arc::new(clock.clone())))
}

impl Shop {
    pub(crate) async fn open(tenants: usize, connections: u32) -> anyhow::Result<Self> {
        let server = Server::start(&[&saas_core::SCHEMA, &saas_billing::SCHEMA], tenants).await?;
        let clock = TestClock::starting("2026-01-15T12:00:00Z");
        let stripe = Arc::new(StripeSimulator::new("whsec_bench_0123456789abcdef", clock.clone())?);
        stripe.create_price("price_pro", 2000, "eur", &Interval::Month);
        stripe.create_price("price_team", 5000, "eur", &Interval::Month);
        let billing = service(&server, &stripe, &clock, connections).await?;
        Ok(Self { server, clock, stripe, billing })
    }

    /// A purchase, a month, a renewal, seats: at least `events` events.
    pub(crate) fn history(&self, events: usize) -> anyhow::Result<Scenario> {
        let mut bought = Err(saas_core::InvalidInput::new("the checkout", "was not completed", "complete it"));
        let scenario = Scenario::record(&self.stripe, |stripe| {
            let session = stripe.checkout(CheckoutRequest::new("price_pro"));
            bought = stripe.complete_checkout(&session);
            let Ok(purchase) = &bought else { return };
            stripe.advance(TimeDelta::days(32));
            for seats in 2..2 + u64::try_from(events).unwrap_or_default() {
                stripe.advance(TimeDelta::seconds(60));
                stripe.update_quantity(&purchase.subscription, seats);
            }
        });
        bought?;
        anyhow::ensure!(scenario.events().len() >= events, "the history is too short: {:?}", scenario.names());
        Ok(scenario)
    }

    /// Records for the tenants with these numbers what our own checkout does before a buyer sees its page: whose the
    /// customer and the session are.
    pub(crate) async fn open_checkouts(
        &self,
        history: &Scenario,
        worlds: std::ops::Range<usize>,
    ) -> anyhow::Result<()> {
        let made = history.names().iter().position(|name| name.starts_with("customer.created")).unwrap_or_default();
        stream::iter(worlds)
            .map(|world| async move {
                let ctx = self.server.tenants().get(world).ok_or_else(|| anyhow::anyhow!("no tenant {world}"))?;
                let world = u32::try_from(world)?;
                let body = history.body(made, world).ok_or_else(|| anyhow::anyhow!("no event {made}"))?;
                let event: serde_json::Value = serde_json::from_slice(&body)?;
                let customer = event["data"]["object"]["id"].as_str().unwrap_or_default().to_owned();
                self.billing.link_customer(ctx, &ObjectId::try_from(customer)?).await?;
                for session in history.checkouts(world) {
                    self.billing.record_checkout(ctx, &session).await?;
                }
                anyhow::Ok(())
            })
            .buffer_unordered(16)
            .try_collect()
            .await
    }

    /// Delivers the event with that number to each world named with it.
    pub(crate) async fn deliver(&self, history: &Scenario, told: Vec<(usize, usize)>) -> anyhow::Result<()> {
        stream::iter(told)
            .map(|(event, world)| async move {
                let body =
                    history.body(event, u32::try_from(world)?).ok_or_else(|| anyhow::anyhow!("no event {event}"))?;
                let _ = self.billing.process(&body, &self.stripe.sign(&body)).await?;
                anyhow::Ok(())
            })
            .buffer_unordered(64)
            .try_collect()
            .await
    }

    /// Applies with so many workers, `limit` receipts a step, until nothing is due. Returns how many and how long it took.
    pub(crate) async fn drain(&self, workers: usize, limit: u16) -> anyhow::Result<(usize, Duration)> {
        let begin = Instant::now();
        let workers = (0..workers).map(|_| {
            let billing = self.billing.clone();
            tokio::spawn(async move {
                let mut done = 0;
                loop {
                    let step = billing.apply_pending(limit).await?;
                    if step.total() == 0 {
                        return anyhow::Ok(done);
                    }
                    anyhow::ensure!(step.dead + step.retried + step.quarantined == 0, "not applied: {step:?}");
                    done += step.applied;
                }
            })
        });
        let mut done = 0;
        for worker in workers.collect::<Vec<_>>() {
            done += worker.await??;
        }
        Ok((done, begin.elapsed()))
    }

    pub(crate) fn tick(&self) {
        self.clock.advance(TimeDelta::seconds(1));
    }
}

/// Each world's events in their order, of which bursts reach us side by side: shuffled within so many places.
pub(crate) fn bursts(worlds: std::ops::Range<usize>, events: usize, places: usize) -> Vec<(usize, usize)> {
    let mut told: Vec<(usize, usize)> = worlds.flat_map(|world| (0..events).map(move |event| (event, world))).collect();
    let mut random = fastrand::Rng::with_seed(7);
    for window in told.chunks_mut(places) {
        random.shuffle(window);
    }
    told
}
