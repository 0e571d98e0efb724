//! What scenarios are put through: the real inbox and worker on a real database, and the same merging in memory.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use chrono::TimeDelta;
use futures_util::future::join_all;
use saas_billing::{
    BillingError, WebhookProcessor,
    derive::{AnyMerged, Derived, TenantObjects, derive},
    event::{AnySnapshot, Envelope, read_snapshot},
    ledger::legs,
    object::ObjectKind,
    testing::{Course, Scenario, Step, Subject, SubjectError, Worlds, cut_after},
};
use saas_core::{PlanCatalog, RequestContext, TenantContext};
use serde_json::{Value, json};

use crate::shop::{CATALOG, Shop};

/// Every course is a tenant of its own; all of a batch take turns.
#[derive(Debug)]
pub(crate) struct Counter {
    pub(crate) shop: Shop,
    scenario: Scenario,
    worlds: Worlds,
    next: AtomicU32,
    /// Whose a checkout is, is recorded behind the last delivery.
    links_late: bool,
}

struct World<'a> {
    number: u32,
    ctx: RequestContext,
    course: &'a Course,
}

impl Counter {
    pub(crate) fn new(scenario: Scenario, shop: Shop) -> Self {
        let worlds = Worlds::of(shop.stripe.clone());
        Self { shop, scenario, worlds, next: AtomicU32::new(0), links_late: false }
    }

    pub(crate) fn linking_late(self) -> Self {
        Self { links_late: true, ..self }
    }

    async fn open<'a>(&self, course: &'a Course) -> Result<World<'a>, SubjectError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ctx = self.shop.database.create_tenant(&format!("world-{number}")).await;
        let world = World { number, ctx, course };
        if !self.links_late {
            self.link(&world).await?;
        }
        Ok(world)
    }

    async fn link(&self, world: &World<'_>) -> Result<(), SubjectError> {
        for session in self.scenario.checkouts(world.number) {
            self.shop.billing.record_checkout(&world.ctx, &session).await?;
        }
        Ok(())
    }

    async fn deliver(&self, world: u32, event: usize) -> Result<(), BillingError> {
        let body = self.scenario.body(event, world).unwrap();
        let _ = self.shop.billing.process(&body, &self.shop.stripe.sign(&body)).await?;
        Ok(())
    }

    /// A step; one that is cut receives and applies until it is dropped.
    async fn step(&self, world: u32, step: Step) -> Result<(), BillingError> {
        let Some(waits) = step.cut else { return self.deliver(world, step.event).await };
        let work = async {
            self.deliver(world, step.event).await?;
            self.shop.billing.apply_pending(1).await.map(drop)
        };
        cut_after(waits, work).await.unwrap_or(Ok(()))
    }

    /// Applies and fetches until nothing is due; two workers at once.
    async fn quiet(&self) -> Result<(), BillingError> {
        loop {
            let billing = &self.shop.billing;
            let (one, two) = tokio::join!(billing.apply_pending(100), billing.apply_pending(100));
            if one?.total() + two?.total() == 0 {
                return Ok(());
            }
        }
    }

    async fn digest(&self, world: &World<'_>) -> Value {
        let mut owner = self.shop.owner.lock().await;
        let text: String =
            sqlx::query_scalar(DIGEST).bind(world.ctx.tenant().as_uuid()).fetch_one(&mut *owner).await.unwrap();
        let mut digest: Value = serde_json::from_str(&Scenario::neutral(&text, world.number)).unwrap();
        // No row says the same as one that says nothing.
        if digest["derived"].is_null() {
            digest["derived"] = serde_json::to_value(Derived::default()).unwrap();
        }
        // How it came to be known is not what is known.
        for object in digest["objects"].as_object_mut().into_iter().flat_map(|objects| objects.values_mut()) {
            let kind = ObjectKind::from_stored(object["kind"].as_str().unwrap()).unwrap();
            object["merged"] = value_of(kind, object["merged"].take());
        }
        digest
    }
}

/// Everything that must not depend on the order: objects, what follows, what was done about it, the operators' list, money, what is
/// owed and when the next letter about it goes.
const DIGEST: &str = "
    select jsonb_build_object(
        'objects', (select jsonb_object_agg(object_id, jsonb_build_object('kind', kind, 'status', status, 'is_current', is_current, 'merged', merged))
                    from saas.billing_object where tenant_id = $1),
        'derived', (select derived from saas.billing_state where tenant_id = $1),
        'effects', (select jsonb_agg(concat_ws(' ', object_id, fact) order by object_id, fact)
                    from saas.billing_effect where tenant_id = $1),
        'overview', (select concat_ws(' ', plan, mrr_minor, currency, grace_until, suspended_from)
                     from saas.tenant_overview where tenant_id = $1),
        'linked', (select jsonb_agg(object_id order by object_id) from saas.billing_directory where tenant = $1),
        'balances', (select jsonb_object_agg(concat_ws(' ', account, currency), sum)
                     from (select currency, account, sum(amount) from saas.ledger_entry where tenant_id = $1
                           group by currency, account having sum(amount) <> 0) as balance),
        'revenue', (select jsonb_object_agg(currency, mrr_minor) from saas.revenue_state
                    where tenant_id = $1 and mrr_minor <> 0),
        'debts', (select jsonb_agg(concat_ws(' ', invoice, since, currency, amount_minor) order by invoice)
                  from saas.dunning_invoice where tenant_id = $1 and paid_at is null),
        'next_letter', (select next_at from saas.dunning where tenant_id = $1),
        'trial', (select object_id from saas.billing_trial where tenant_id = $1)
    )::text";

/// The newest value of what is stored about an object.
fn value_of(kind: ObjectKind, merged: Value) -> Value {
    use saas_billing::merge::Merged;
    macro_rules! value {
        ($object:ident) => {{
            let merged: Merged<saas_billing::object::$object> = serde_json::from_value(merged).unwrap();
            serde_json::to_value(merged.value()).unwrap()
        }};
    }
    match kind {
        ObjectKind::Customer => value!(Customer),
        ObjectKind::CheckoutSession => value!(CheckoutSession),
        ObjectKind::Subscription => value!(Subscription),
        ObjectKind::Invoice => value!(Invoice),
        ObjectKind::Charge => value!(Charge),
        ObjectKind::Refund => value!(Refund),
        ObjectKind::Dispute => value!(Dispute),
        ObjectKind::CreditNote => value!(CreditNote),
    }
}

#[async_trait]
impl Subject for Counter {
    fn events(&self) -> Vec<String> {
        self.scenario.names()
    }

    async fn run(&self, courses: &[Course]) -> Result<Vec<Value>, SubjectError> {
        let mut worlds = Vec::with_capacity(courses.len());
        for course in courses {
            worlds.push(self.open(course).await?);
        }
        let longest = courses.iter().map(|course| course.steps().len()).max().unwrap_or(0);
        for at in 0..longest {
            let steps = worlds.iter().filter_map(|world| Some((world.number, *world.course.steps().get(at)?)));
            let steps: Vec<(u32, Step)> = steps.collect();
            // Whoever is killed has everything to itself: what it claims is its own.
            let (cut, whole): (Vec<_>, Vec<_>) = steps.into_iter().partition(|(_, step)| step.cut.is_some());
            for some in whole.chunks(8) {
                for done in join_all(some.iter().map(|(world, step)| self.step(*world, *step))).await {
                    done?;
                }
            }
            self.quiet().await?;
            for (world, step) in &cut {
                self.step(*world, *step).await?;
            }
            if !cut.is_empty() {
                // The machine comes back, and the lease of the one that died ends.
                self.shop.database.clock().advance(TimeDelta::seconds(61));
            }
            self.quiet().await?;
        }
        if self.links_late {
            for world in &worlds {
                self.link(world).await?;
            }
        }
        loop {
            self.quiet().await?;
            if self.shop.billing.fetch_pending(&self.worlds, 100).await?.done == 0 {
                break;
            }
        }
        let mut digests = Vec::with_capacity(worlds.len());
        for world in &worlds {
            digests.push(self.digest(world).await);
        }
        Ok(digests)
    }
}

/// Merging, deriving and booking alone, as the worker does them. A kill is a repetition here.
#[derive(Debug)]
pub(crate) struct Memory {
    names: Vec<String>,
    snapshots: Vec<Option<AnySnapshot>>,
    /// What each snapshot alone says: courses differ in how these are joined.
    alone: Vec<Option<AnyMerged>>,
    catalog: PlanCatalog,
}

impl Memory {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let read = |body: &[u8]| read_snapshot(&Envelope::read(body).unwrap()).unwrap();
        let snapshots: Vec<Option<AnySnapshot>> = scenario.events().iter().map(|event| read(&event.body)).collect();
        let alone = |snapshot: &AnySnapshot| {
            let mut objects = TenantObjects::default();
            objects.merge(snapshot.clone());
            objects.find(snapshot.kind(), snapshot.id()).unwrap()
        };
        let alone = snapshots.iter().map(|snapshot| snapshot.as_ref().map(alone)).collect();
        Self { names: scenario.names(), snapshots, alone, catalog: PlanCatalog::from_toml(CATALOG).unwrap() }
    }

    fn digest(&self, objects: &TenantObjects) -> Value {
        let derived = derive(objects, &self.catalog);
        let found = |snapshot: &AnySnapshot| objects.find(snapshot.kind(), snapshot.id());
        let known: Vec<AnyMerged> = self.snapshots.iter().flatten().filter_map(found).collect();
        let booked: Vec<String> = known.iter().map(|merged| format!("{:?}", legs(merged))).collect();
        json!({"objects": objects, "fetches": derived.fetches.len(), "derived": derived, "booked": booked})
    }
}

#[async_trait]
impl Subject for Memory {
    fn events(&self) -> Vec<String> {
        self.names.clone()
    }

    async fn run(&self, courses: &[Course]) -> Result<Vec<Value>, SubjectError> {
        // Equal states have equal digests: most are the one that was seen first.
        let mut seen: Vec<(TenantObjects, Value)> = Vec::new();
        let mut digests = Vec::with_capacity(courses.len());
        for course in courses {
            let mut objects = TenantObjects::default();
            for alone in course.steps().iter().filter_map(|step| self.alone[step.event].clone()) {
                objects.insert(alone);
            }
            let known = seen.iter().find(|(known, _)| *known == objects).map(|(_, digest)| digest.clone());
            digests.push(known.unwrap_or_else(|| {
                let digest = self.digest(&objects);
                seen.push((objects, digest.clone()));
                digest
            }));
        }
        Ok(digests)
    }
}

/// A merge that believes whatever came last: what the kit must notice.
#[derive(Debug)]
pub(crate) struct LastWins(pub(crate) Memory);

#[async_trait]
impl Subject for LastWins {
    fn events(&self) -> Vec<String> {
        self.0.events()
    }

    async fn run(&self, courses: &[Course]) -> Result<Vec<Value>, SubjectError> {
        let digest = |course: &Course| {
            let snapshots = course.steps().iter().filter_map(|step| self.0.snapshots[step.event].as_ref());
            let last: BTreeMap<_, _> = snapshots.map(|snapshot| (snapshot.id(), snapshot)).collect();
            let mut objects = TenantObjects::default();
            last.into_values().for_each(|snapshot| objects.merge(snapshot.clone()));
            self.0.digest(&objects)
        };
        Ok(courses.iter().map(digest).collect())
    }
}
