//! Compares what is stored with what Stripe has, and has read again what differs: an event that was lost for good is not.
//!
//! A run goes through Stripe's customers, subscriptions, invoices and what happened to money, then through what is stored
//! as current and was in none of those lists, and at last through what customers used. It stands in the database after every
//! page: whoever calls next goes on, whatever was killed. A repair is a read of the object
//! ([`Billing::fetch_pending`](crate::Billing::fetch_pending)), merged like every other, so it can do no harm: what it says is
//! true at that moment. Usage is reported and never repaired: who is right is for a person to say.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{Actor, Page, PageSize, SystemTx, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    billing::{ACTOR, Billing},
    derive::{AnyMerged, FetchRequest},
    error::BillingError,
    event::{AnySnapshot, read_fetched},
    merge::Origin,
    object::{Invoice, InvoiceStatus, ObjectId, ObjectKind},
    postgres::{
        directory, fetch, object,
        reconcile::{self, Met, Noted, Step},
        usage,
    },
    provider::{PageLimit, PaymentProvider, Query},
    settle::BOUNDS,
    usage::{DifferingDay, comparable, differing_days},
};

/// Customers that are looked at in one step where Stripe has no list. The usage of one costs a call for each meter that it used.
const CUSTOMERS: i64 = 50;

/// A run, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReconcileRun {
    /// Its id.
    pub id: Uuid,
    /// A run over what was made since then, and what is live or open; `None` for one over everything.
    pub created_from: Option<DateTime<Utc>>,
    /// What it goes through at present.
    pub list: ReconcileList,
    /// Compared so far: objects, and a customer's usage of a meter.
    pub looked_at: u64,
    /// Of those at Stripe, the ones of customers that no tenant is linked to: not compared.
    pub unlinked: u64,
    /// Those that differ.
    pub drifted: u64,
    /// Of those, the ones that are being read again.
    pub repaired: u64,
    /// How many may be.
    pub repairs: u64,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it was through.
    pub finished_at: Option<DateTime<Utc>>,
}

/// What a run goes through, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReconcileList {
    /// Stripe's customers.
    Customers,
    /// Stripe's subscriptions; ended ones too, but in a run over what is new.
    Subscriptions,
    /// Stripe's invoices.
    Invoices,
    /// Stripe's open invoices, however old; in a run over what is new.
    OpenInvoices,
    /// Stripe's charges. Before what names them: a refund does not say whose it is.
    Charges,
    /// Stripe's refunds.
    Refunds,
    /// Stripe's disputes.
    Disputes,
    /// Stripe's credit notes.
    CreditNotes,
    /// What is stored as current and was in none of Stripe's lists.
    Ours,
    /// What customers used of meters on each of the last 35 days that are over. Not in a run over what is new.
    Usage,
}

/// All lists, in their order.
const LISTS: [ReconcileList; 10] = [
    ReconcileList::Customers,
    ReconcileList::Subscriptions,
    ReconcileList::Invoices,
    ReconcileList::OpenInvoices,
    ReconcileList::Charges,
    ReconcileList::Refunds,
    ReconcileList::Disputes,
    ReconcileList::CreditNotes,
    ReconcileList::Ours,
    ReconcileList::Usage,
];

impl ReconcileList {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Customers => "customer",
            Self::Subscriptions => "subscription",
            Self::Invoices => "invoice",
            Self::OpenInvoices => "open_invoice",
            Self::Charges => "charge",
            Self::Refunds => "refund",
            Self::Disputes => "dispute",
            Self::CreditNotes => "credit_note",
            Self::Ours => "ours",
            Self::Usage => "usage",
        }
    }

    pub(crate) fn from_stored(name: &str) -> Option<Self> {
        LISTS.into_iter().find(|list| list.as_str() == name)
    }

    /// Whether a run over what is new, or over everything, goes through it.
    const fn is_of(self, is_delta: bool) -> bool {
        match self {
            Self::OpenInvoices => is_delta,
            Self::Usage => !is_delta,
            Self::Customers
            | Self::Subscriptions
            | Self::Invoices
            | Self::Charges
            | Self::Refunds
            | Self::Disputes
            | Self::CreditNotes
            | Self::Ours => true,
        }
    }

    fn next(self, is_delta: bool) -> Option<Self> {
        LISTS.into_iter().skip_while(|list| *list != self).skip(1).find(|list| list.is_of(is_delta))
    }
}

/// An object that is not what Stripe has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// Which.
    pub object: ObjectId,
    /// What it is.
    pub kind: ObjectKind,
    /// The fields that differ, by their names in [`object`](crate::object). `whole` stands for an object that one side
    /// does not have, and `usage.<meter>.<day>` of a customer for what it used.
    pub fields: BTreeMap<String, FieldDrift>,
    /// Whether it is being read again.
    pub repaired: bool,
}

/// Both sides of a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldDrift {
    /// What is stored.
    pub ours: Value,
    /// What Stripe has.
    pub theirs: Value,
}

impl Billing {
    /// Begins a run, or answers with the one that is open: there is one at a time. `repairs` bounds how many objects it may
    /// have read again; with 0 it reports and changes nothing.
    ///
    /// What Stripe has told and nobody has applied yet differs, too: run it beside an inbox that is not behind.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn start_reconcile(&self, actor: &Actor, repairs: u32) -> Result<ReconcileRun, BillingError> {
        self.open_reconcile(actor, (repairs, None)).await
    }

    /// Begins a run over what is new, or answers with the one that is open, whichever kind it is
    /// ([`created_from`](ReconcileRun::created_from) says that): objects that were made at `created_from` or later, subscriptions that
    /// have not ended and open invoices however old, and what is stored as one of these and is none at Stripe. It costs as many calls as
    /// there are pages of those, so it can run every hour, with an instant somewhat longer ago than that.
    ///
    /// It cannot see what changed later of older objects: a charge that is refunded or disputed (the refund and the dispute it
    /// sees), a dispute that is decided, a refund that fails, an invoice that was settled and is voided, a customer's address or
    /// deletion, what was used; an older draft that has become final and was paid, and a subscription that began and ended
    /// unheard within the span. Nor whatever an outage longer than its span has lost. A run over everything each night does.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn start_reconcile_since(
        &self,
        actor: &Actor,
        repairs: u32,
        created_from: DateTime<Utc>,
    ) -> Result<ReconcileRun, BillingError> {
        self.open_reconcile(actor, (repairs, Some(created_from))).await
    }

    async fn open_reconcile(
        &self,
        actor: &Actor,
        asked: (u32, Option<DateTime<Utc>>),
    ) -> Result<ReconcileRun, BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "begin to reconcile with Stripe").await?;
        let run = reconcile::open(&mut tx, &self.scope, &actor.to_string(), asked, now).await?;
        tx.commit().await?;
        Ok(run)
    }

    /// Compares the next page of the open run; `None` when no run is open. Call it from a worker until the run has
    /// [finished](ReconcileRun::finished_at). Two at once compare one page twice and count it once.
    ///
    /// # Errors
    /// - [`Provider`](BillingError::Provider): Stripe did not give the page; the run stands where it stood.
    /// - When the database does not answer.
    #[tracing::instrument(name = "saas.billing.reconcile", level = "debug", skip(self, provider))]
    pub async fn reconcile_step(&self, provider: &dyn PaymentProvider) -> Result<Option<ReconcileRun>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look where the open run stands").await?;
        let open = reconcile::find_open(&mut tx, &self.scope).await?;
        tx.commit().await?;
        let Some((run, after)) = open else { return Ok(None) };
        let run = match source_of(run.list, run.created_from) {
            Source::Stripe(kind, query) => {
                let page = provider.list(&query, after.as_ref(), PageLimit::MAX).await?;
                // An object that cannot be read is for the fetch to explain.
                let met: Vec<Met> = page.objects.iter().filter_map(|json| read(kind, json)).collect();
                self.compare_page(&run, after.as_ref(), met, page.next).await?
            }
            Source::Ours => {
                let (met, next) = self.unmet(&run, after.as_ref()).await?;
                self.compare_page(&run, after.as_ref(), met, next).await?
            }
            Source::Usage => self.compare_days(provider, &run, after.as_ref()).await?,
        };
        Ok(Some(run))
    }

    /// What a run found to differ, by id.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn reconcile_report(
        &self,
        actor: &Actor,
        run: Uuid,
        after: Option<&ObjectId>,
        size: PageSize,
    ) -> Result<Page<Drift, ObjectId>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "list what differs from Stripe").await?;
        let drifts = reconcile::drifts(&mut tx, &self.scope, run, after, i64::from(size.get()) + 1).await?;
        tx.commit().await?;
        Ok(Page::from_rows(drifts, size, |last: &Drift| last.object.clone()))
    }

    /// What is stored as current of a page of customers' tenants, and was in none of Stripe's lists.
    async fn unmet(
        &self,
        run: &ReconcileRun,
        after: Option<&ObjectId>,
    ) -> Result<(Vec<Met>, Option<ObjectId>), BillingError> {
        let mut tx = SystemTx::begin_with(&self.system, ACTOR, "list what Stripe did not", BOUNDS).await?;
        let customers = directory::customers(&mut tx, &self.scope, after, CUSTOMERS).await?;
        let unmet = reconcile::unmet(&mut tx, &self.scope, run, &customers).await?;
        tx.commit().await?;
        let met = unmet.into_iter().map(|(kind, id)| Met { kind, id, theirs: None }).collect();
        Ok((met, behind(&customers)))
    }

    /// Compares a page and moves the run on, unless somebody else has done so meanwhile.
    async fn compare_page(
        &self,
        run: &ReconcileRun,
        after: Option<&ObjectId>,
        met: Vec<Met>,
        next: Option<ObjectId>,
    ) -> Result<ReconcileRun, BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "compare a page of Stripe's with what is stored").await?;
        let Some(present) = reconcile::lock(&mut tx, &self.scope, run.id, (run.list, after)).await? else {
            let present = reconcile::find(&mut tx, &self.scope, run.id).await?;
            tx.rollback().await?;
            return Ok(present);
        };
        // A refund or a dispute is its charge's, which is its customer's.
        let owner = |met: &Met| met.theirs.as_ref().and_then(|theirs| theirs.customer().or(theirs.charge())).cloned();
        let ids: Vec<&str> = met.iter().map(|met| met.id.as_str()).collect();
        let stored = object::find_all_anywhere(&mut tx, self.scope.livemode, &ids).await?;
        let owners: BTreeSet<ObjectId> = met.iter().filter_map(owner).collect();
        let owners: Vec<&str> = owners.iter().map(ObjectId::as_str).collect();
        let linked: BTreeMap<String, TenantId> =
            directory::tenants_of(&mut tx, &self.scope, &owners).await?.into_iter().collect();
        let (mut step, mut noted) = (Step::default(), BTreeMap::new());
        for met in met {
            let ours = stored.get(met.id.as_str());
            let is_ours = owner(&met).map_or(ours.is_some(), |owner| linked.contains_key(owner.as_str()));
            if !is_ours {
                step.unlinked += 1;
                continue;
            }
            let fields = match (run.created_from, &met.theirs) {
                // An older one that is neither live nor open is no part of the run.
                (Some(_), None) => match ended_elsewhere(ours) {
                    Some(field) => BTreeMap::from([("status".to_owned(), field)]),
                    None => continue,
                },
                (_, theirs) => differences(ours, theirs.as_ref()),
            };
            step.looked_at += 1;
            let mut repaired = false;
            if !fields.is_empty() {
                step.drifted += 1;
                repaired = present.repaired + step.repaired < present.repairs;
                if repaired {
                    step.repaired += 1;
                    let reason =
                        format!("differs from Stripe: {}", fields.keys().cloned().collect::<Vec<_>>().join(", "));
                    let request = FetchRequest { kind: met.kind, id: met.id.clone(), reason };
                    fetch::request(&mut tx, &self.scope, &request, now).await?;
                }
            }
            noted.insert(met.id, Noted { kind: met.kind, fields, repaired });
        }
        self.move_on(tx, run, (step, &noted), next).await
    }

    /// Compares what a page of customers used. Those who used nothing cost no call.
    async fn compare_days(
        &self,
        provider: &dyn PaymentProvider,
        run: &ReconcileRun,
        after: Option<&ObjectId>,
    ) -> Result<ReconcileRun, BillingError> {
        // As of now: a run that was left for days would ask for days that are forgotten here.
        let span = comparable(self.clock.now());
        let mut tx = SystemTx::begin(&self.system, ACTOR, "add up what customers used day by day").await?;
        let customers = directory::customers(&mut tx, &self.scope, after, CUSTOMERS).await?;
        let days = usage::days(&mut tx, &self.scope, &customers, span).await?;
        tx.commit().await?;
        let next = behind(&customers);
        let (looked_at, differing) = differing_days(provider, span, &days).await?;
        let mut noted: BTreeMap<ObjectId, Noted> = BTreeMap::new();
        let mut drifted = BTreeSet::new();
        for DifferingDay { customer, meter, day, ours, theirs } in differing {
            let none = || Noted { kind: ObjectKind::Customer, fields: BTreeMap::new(), repaired: false };
            let field = FieldDrift { ours: ours.into(), theirs: theirs.into() };
            drifted.insert((customer.clone(), meter.clone()));
            noted.entry(customer).or_insert_with(none).fields.insert(format!("usage.{meter}.{day}"), field);
        }
        let step = Step { looked_at, drifted: drifted.len() as u64, ..Step::default() };
        let mut tx = SystemTx::begin(&self.system, ACTOR, "compare what customers used with Stripe's totals").await?;
        if reconcile::lock(&mut tx, &self.scope, run.id, (run.list, after)).await?.is_none() {
            let present = reconcile::find(&mut tx, &self.scope, run.id).await?;
            tx.rollback().await?;
            return Ok(present);
        }
        self.move_on(tx, run, (step, &noted), next).await
    }

    /// Notes what a page came to, and moves the run on: to the next page of its list, or to the next list.
    async fn move_on(
        &self,
        mut tx: SystemTx,
        run: &ReconcileRun,
        (step, noted): (Step, &BTreeMap<ObjectId, Noted>),
        next: Option<ObjectId>,
    ) -> Result<ReconcileRun, BillingError> {
        reconcile::note(&mut tx, &self.scope, run.id, noted).await?;
        let list = if next.is_some() { Some(run.list) } else { run.list.next(run.created_from.is_some()) };
        let run =
            reconcile::advance(&mut tx, &self.scope, run.id, &step, (list, next.as_ref()), self.clock.now()).await?;
        tx.commit().await?;
        if run.finished_at.is_some() && run.drifted > 0 {
            let (drifted, repaired) = (run.drifted, run.repaired);
            tracing::warn!(target: "saas.billing.reconcile", run = %run.id, drifted, repaired, "what is stored differed from Stripe");
        }
        Ok(run)
    }

    /// The run that found a difference and finished last, within a day.
    pub(crate) async fn recent_drift(&self, actor: &Actor) -> Result<Option<ReconcileRun>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "look whether a run found a difference").await?;
        let run = reconcile::last_drifted(&mut tx, &self.scope, self.clock.now() - TimeDelta::days(1)).await?;
        tx.commit().await?;
        Ok(run)
    }
}

/// Where the page behind these customers begins, if there can be one.
fn behind(customers: &[(ObjectId, TenantId)]) -> Option<ObjectId> {
    let is_full = i64::try_from(customers.len()) == Ok(CUSTOMERS);
    customers.last().map(|(id, _)| id.clone()).filter(|_| is_full)
}

/// Where what a list holds comes from.
enum Source {
    Stripe(ObjectKind, Query),
    Ours,
    Usage,
}

fn source_of(list: ReconcileList, created_from: Option<DateTime<Utc>>) -> Source {
    let (kind, all) = match list {
        ReconcileList::Customers => (ObjectKind::Customer, Query::Customers { created_from: None }),
        ReconcileList::Subscriptions => match created_from {
            None => (ObjectKind::Subscription, Query::Subscriptions { customer: None }),
            // All that live: whether one changed is not said by when it was made.
            Some(_) => return Source::Stripe(ObjectKind::Subscription, Query::LiveSubscriptions),
        },
        ReconcileList::OpenInvoices => {
            let query = Query::Invoices { customer: None, status: Some(InvoiceStatus::Open) };
            return Source::Stripe(ObjectKind::Invoice, query);
        }
        ReconcileList::Invoices => (ObjectKind::Invoice, Query::Invoices { customer: None, status: None }),
        ReconcileList::Charges => (ObjectKind::Charge, Query::Charges),
        ReconcileList::Refunds => (ObjectKind::Refund, Query::Refunds),
        ReconcileList::Disputes => (ObjectKind::Dispute, Query::Disputes),
        ReconcileList::CreditNotes => (ObjectKind::CreditNote, Query::CreditNotes),
        ReconcileList::Ours => return Source::Ours,
        ReconcileList::Usage => return Source::Usage,
    };
    match created_from {
        Some(created_from) => Source::Stripe(kind, Query::Recent { kind, created_from }),
        None => Source::Stripe(kind, all),
    }
}

/// What a run over what is new says of an object that Stripe's lists of what lives did not hold; `None` where it belongs to none.
fn ended_elsewhere(ours: Option<&AnyMerged>) -> Option<FieldDrift> {
    let (ours, theirs) = match ours? {
        AnyMerged::Subscription(merged) if !merged.value().is_final() => (merged.value().status.as_str(), "ended"),
        AnyMerged::Invoice(merged) if merged.value().status == InvoiceStatus::Open => ("open", "not open"),
        AnyMerged::Subscription(_)
        | AnyMerged::Invoice(_)
        | AnyMerged::Customer(_)
        | AnyMerged::CheckoutSession(_)
        | AnyMerged::Charge(_)
        | AnyMerged::Refund(_)
        | AnyMerged::Dispute(_)
        | AnyMerged::CreditNote(_) => return None,
    };
    Some(FieldDrift { ours: ours.into(), theirs: theirs.into() })
}

fn read(kind: ObjectKind, json: &serde_json::value::RawValue) -> Option<Met> {
    let snapshot = read_fetched(kind, json, DateTime::UNIX_EPOCH, Origin::Change).ok()?;
    Some(Met { kind, id: snapshot.id().clone(), theirs: Some(snapshot) })
}

/// The fields in which two sides of an object differ.
fn differences(ours: Option<&AnyMerged>, theirs: Option<&AnySnapshot>) -> BTreeMap<String, FieldDrift> {
    // Stripe lists nothing that was deleted: what is known to be is what it has.
    if theirs.is_none() && ours.is_some_and(is_deleted) {
        return BTreeMap::new();
    }
    let sides = (ours.and_then(stored_value), theirs.and_then(listed_value));
    let (Some(Value::Object(ours)), Some(Value::Object(theirs))) = sides else {
        let there = |is_there: bool| Value::from(if is_there { "there" } else { "missing" });
        let whole = FieldDrift { ours: there(ours.is_some()), theirs: there(theirs.is_some()) };
        return BTreeMap::from([("whole".to_owned(), whole)]);
    };
    // API versions before 2026-05-27 do not say what was paid by other means.
    let is_said = |(name, theirs): &(String, Value)| name != "paid_elsewhere" || *theirs != 0;
    theirs
        .into_iter()
        .filter(is_said)
        .filter_map(|(name, theirs)| {
            let ours = ours.get(&name).cloned().unwrap_or_default();
            (ours != theirs).then_some((name, FieldDrift { ours, theirs }))
        })
        .collect()
}

fn is_deleted(merged: &AnyMerged) -> bool {
    match merged {
        AnyMerged::Customer(merged) => merged.value().deleted,
        AnyMerged::Invoice(merged) => merged.value().deleted,
        AnyMerged::CheckoutSession(_)
        | AnyMerged::Subscription(_)
        | AnyMerged::Charge(_)
        | AnyMerged::Refund(_)
        | AnyMerged::Dispute(_)
        | AnyMerged::CreditNote(_) => false,
    }
}

fn stored_value(merged: &AnyMerged) -> Option<Value> {
    let value = match merged {
        AnyMerged::Customer(merged) => serde_json::to_value(merged.value()),
        AnyMerged::CheckoutSession(merged) => serde_json::to_value(merged.value()),
        AnyMerged::Subscription(merged) => serde_json::to_value(merged.value()),
        // Events do not say what a read did.
        AnyMerged::Invoice(merged) => {
            serde_json::to_value(Invoice { paid_elsewhere: merged.paid_elsewhere(), ..merged.value().clone() })
        }
        AnyMerged::Charge(merged) => serde_json::to_value(merged.value()),
        AnyMerged::Refund(merged) => serde_json::to_value(merged.value()),
        AnyMerged::Dispute(merged) => serde_json::to_value(merged.value()),
        AnyMerged::CreditNote(merged) => serde_json::to_value(merged.value()),
    };
    value.ok().map(without_terms)
}

fn listed_value(snapshot: &AnySnapshot) -> Option<Value> {
    let value = match snapshot {
        AnySnapshot::Customer(snapshot) => serde_json::to_value(&snapshot.value),
        AnySnapshot::CheckoutSession(snapshot) => serde_json::to_value(&snapshot.value),
        AnySnapshot::Subscription(snapshot) => serde_json::to_value(&snapshot.value),
        AnySnapshot::Invoice(snapshot) => serde_json::to_value(&snapshot.value),
        AnySnapshot::Charge(snapshot) => serde_json::to_value(&snapshot.value),
        AnySnapshot::Refund(snapshot) => serde_json::to_value(&snapshot.value),
        AnySnapshot::Dispute(snapshot) => serde_json::to_value(&snapshot.value),
        AnySnapshot::CreditNote(snapshot) => serde_json::to_value(&snapshot.value),
    };
    value.ok().map(without_terms)
}

/// Lists hold nothing but the ids of discounts: their terms cannot be compared.
fn without_terms(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.remove("terms");
            fields.values_mut().for_each(|field| *field = without_terms(field.take()));
        }
        Value::Array(elements) => elements.iter_mut().for_each(|element| *element = without_terms(element.take())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    value
}
