//! All Stripe objects of one tenant, merged.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::FetchRequest;
use crate::{
    event::AnySnapshot,
    merge::{ContentHash, Fact, Merged, Origin, StripeObject},
    object::{
        Charge, CheckoutSession, CreditNote, Customer, Dispute, Invoice, InvoiceStatus, ObjectId, ObjectKind, Refund,
        Subscription,
    },
};

/// All Stripe objects of one tenant, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct TenantObjects {
    pub(super) customers: BTreeMap<ObjectId, Merged<Customer>>,
    pub(super) sessions: BTreeMap<ObjectId, Merged<CheckoutSession>>,
    pub(super) subscriptions: BTreeMap<ObjectId, Merged<Subscription>>,
    pub(super) invoices: BTreeMap<ObjectId, Merged<Invoice>>,
    pub(super) charges: BTreeMap<ObjectId, Merged<Charge>>,
    pub(super) refunds: BTreeMap<ObjectId, Merged<Refund>>,
    pub(super) disputes: BTreeMap<ObjectId, Merged<Dispute>>,
    pub(super) credit_notes: BTreeMap<ObjectId, Merged<CreditNote>>,
}

/// What is known about one object of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum AnyMerged {
    /// A payer.
    Customer(Merged<Customer>),
    /// A visit to the payment page.
    CheckoutSession(Merged<CheckoutSession>),
    /// A recurring purchase.
    Subscription(Merged<Subscription>),
    /// A bill.
    Invoice(Merged<Invoice>),
    /// A payment.
    Charge(Merged<Charge>),
    /// Money given back.
    Refund(Merged<Refund>),
    /// A payment that is wanted back.
    Dispute(Merged<Dispute>),
    /// What an invoice was too much.
    CreditNote(Merged<CreditNote>),
}

impl TenantObjects {
    /// Adds what a snapshot says.
    pub fn merge(&mut self, snapshot: AnySnapshot) {
        match snapshot {
            AnySnapshot::Customer(snapshot) => join(&mut self.customers, Merged::of(snapshot)),
            AnySnapshot::CheckoutSession(snapshot) => join(&mut self.sessions, Merged::of(snapshot)),
            AnySnapshot::Subscription(snapshot) => join(&mut self.subscriptions, Merged::of(snapshot)),
            AnySnapshot::Invoice(snapshot) => join(&mut self.invoices, Merged::of(snapshot)),
            AnySnapshot::Charge(snapshot) => join(&mut self.charges, Merged::of(snapshot)),
            AnySnapshot::Refund(snapshot) => join(&mut self.refunds, Merged::of(snapshot)),
            AnySnapshot::Dispute(snapshot) => join(&mut self.disputes, Merged::of(snapshot)),
            AnySnapshot::CreditNote(snapshot) => join(&mut self.credit_notes, Merged::of(snapshot)),
        }
    }

    /// Forgets what is known about one object.
    #[cfg(feature = "postgres")]
    pub(crate) fn forget(&mut self, kind: ObjectKind, id: &ObjectId) {
        match kind {
            ObjectKind::Customer => drop(self.customers.remove(id)),
            ObjectKind::CheckoutSession => drop(self.sessions.remove(id)),
            ObjectKind::Subscription => drop(self.subscriptions.remove(id)),
            ObjectKind::Invoice => drop(self.invoices.remove(id)),
            ObjectKind::Charge => drop(self.charges.remove(id)),
            ObjectKind::Refund => drop(self.refunds.remove(id)),
            ObjectKind::Dispute => drop(self.disputes.remove(id)),
            ObjectKind::CreditNote => drop(self.credit_notes.remove(id)),
        }
    }

    /// Adds what was stored about an object.
    pub fn insert(&mut self, merged: AnyMerged) {
        match merged {
            AnyMerged::Customer(merged) => join(&mut self.customers, merged),
            AnyMerged::CheckoutSession(merged) => join(&mut self.sessions, merged),
            AnyMerged::Subscription(merged) => join(&mut self.subscriptions, merged),
            AnyMerged::Invoice(merged) => join(&mut self.invoices, merged),
            AnyMerged::Charge(merged) => join(&mut self.charges, merged),
            AnyMerged::Refund(merged) => join(&mut self.refunds, merged),
            AnyMerged::Dispute(merged) => join(&mut self.disputes, merged),
            AnyMerged::CreditNote(merged) => join(&mut self.credit_notes, merged),
        }
    }

    /// What is known about one object.
    #[must_use]
    pub fn find(&self, kind: ObjectKind, id: &ObjectId) -> Option<AnyMerged> {
        match kind {
            ObjectKind::Customer => self.customers.get(id).cloned().map(AnyMerged::Customer),
            ObjectKind::CheckoutSession => self.sessions.get(id).cloned().map(AnyMerged::CheckoutSession),
            ObjectKind::Subscription => self.subscriptions.get(id).cloned().map(AnyMerged::Subscription),
            ObjectKind::Invoice => self.invoices.get(id).cloned().map(AnyMerged::Invoice),
            ObjectKind::Charge => self.charges.get(id).cloned().map(AnyMerged::Charge),
            ObjectKind::Refund => self.refunds.get(id).cloned().map(AnyMerged::Refund),
            ObjectKind::Dispute => self.disputes.get(id).cloned().map(AnyMerged::Dispute),
            ObjectKind::CreditNote => self.credit_notes.get(id).cloned().map(AnyMerged::CreditNote),
        }
    }

    /// The latest invoices of live subscriptions that are not among the objects.
    #[must_use]
    pub fn unseen_invoices(&self) -> Vec<ObjectId> {
        let live = self.subscriptions.values().map(Merged::value).filter(|subscription| !subscription.is_final());
        let latest = live.filter_map(|subscription| subscription.latest_invoice.as_ref());
        latest.filter(|id| !self.invoices.contains_key(*id)).cloned().collect()
    }

    /// One hash over everything that is known.
    #[must_use]
    pub fn digest(&self) -> ContentHash {
        ContentHash::of(self)
    }

    /// Whether an object must be fetched before its own value is certain.
    #[must_use]
    pub fn is_uncertain(&self, id: &ObjectId) -> bool {
        self.fetches().iter().any(|fetch| fetch.id == *id)
    }

    /// The objects that must be fetched before their value is certain.
    pub(super) fn fetches(&self) -> BTreeSet<FetchRequest> {
        let mut fetches = BTreeSet::new();
        collect(&self.customers, &mut fetches);
        collect(&self.sessions, &mut fetches);
        collect(&self.subscriptions, &mut fetches);
        collect(&self.invoices, &mut fetches);
        collect(&self.charges, &mut fetches);
        collect(&self.refunds, &mut fetches);
        collect(&self.disputes, &mut fetches);
        collect(&self.credit_notes, &mut fetches);
        fetches
    }
}

fn join<T: StripeObject>(known: &mut BTreeMap<ObjectId, Merged<T>>, merged: Merged<T>) {
    let id = merged.value().id().clone();
    let joined = match known.remove(&id) {
        Some(before) => before.join(merged),
        None => merged,
    };
    known.insert(id, joined);
}

fn collect<T: StripeObject>(known: &BTreeMap<ObjectId, Merged<T>>, fetches: &mut BTreeSet<FetchRequest>) {
    for (id, merged) in known {
        let resolution = merged.resolve();
        let reason =
            if resolution.ambiguous { Some("several snapshots of one second") } else { resolution.value.gap() };
        fetches.extend(reason.map(|reason| FetchRequest { kind: T::KIND, id: id.clone(), reason: reason.to_owned() }));
    }
}

macro_rules! for_any {
    ($self:expr, $merged:ident => $result:expr) => {
        match $self {
            AnyMerged::Customer($merged) => $result,
            AnyMerged::CheckoutSession($merged) => $result,
            AnyMerged::Subscription($merged) => $result,
            AnyMerged::Invoice($merged) => $result,
            AnyMerged::Charge($merged) => $result,
            AnyMerged::Refund($merged) => $result,
            AnyMerged::Dispute($merged) => $result,
            AnyMerged::CreditNote($merged) => $result,
        }
    };
}

impl AnyMerged {
    /// Reads the stored form; `None` when it is not one.
    #[must_use]
    pub fn from_stored(kind: ObjectKind, stored: serde_json::Value) -> Option<Self> {
        fn read<T: StripeObject>(stored: serde_json::Value) -> Option<Merged<T>> {
            serde_json::from_value(stored).ok().filter(Merged::is_sound)
        }
        match kind {
            ObjectKind::Customer => read(stored).map(Self::Customer),
            ObjectKind::CheckoutSession => read(stored).map(Self::CheckoutSession),
            ObjectKind::Subscription => read(stored).map(Self::Subscription),
            ObjectKind::Invoice => read(stored).map(Self::Invoice),
            ObjectKind::Charge => read(stored).map(Self::Charge),
            ObjectKind::Refund => read(stored).map(Self::Refund),
            ObjectKind::Dispute => read(stored).map(Self::Dispute),
            ObjectKind::CreditNote => read(stored).map(Self::CreditNote),
        }
    }

    /// The form to store.
    ///
    /// # Errors
    /// Never in practice: every value of ours has a JSON form.
    pub fn to_stored(&self) -> Result<serde_json::Value, serde_json::Error> {
        for_any!(self, merged => serde_json::to_value(merged))
    }

    /// The origin and the instant of a snapshot about to be fetched, as [`Merged::fetch_origin`].
    #[must_use]
    pub fn fetch_origin(&self, sequence: u64, as_of: Option<DateTime<Utc>>) -> (Origin, DateTime<Utc>) {
        for_any!(self, merged => merged.fetch_origin(sequence, as_of))
    }

    /// The customer that the object says it belongs to.
    #[cfg(feature = "postgres")]
    pub(crate) fn customer(&self) -> Option<&ObjectId> {
        match self {
            Self::Customer(merged) => Some(&merged.value().id),
            Self::CheckoutSession(merged) => merged.value().customer.as_ref(),
            Self::Subscription(merged) => Some(&merged.value().customer),
            Self::Invoice(merged) => merged.value().customer.as_ref(),
            Self::Charge(merged) => merged.value().customer.as_ref(),
            Self::CreditNote(merged) => merged.value().customer.as_ref(),
            Self::Refund(_) | Self::Dispute(_) => None,
        }
    }

    /// The charge of a refund or a dispute.
    #[cfg(feature = "postgres")]
    pub(crate) fn charge(&self) -> Option<&ObjectId> {
        match self {
            Self::Refund(merged) => merged.value().charge.as_ref(),
            Self::Dispute(merged) => merged.value().charge.as_ref(),
            Self::Customer(_)
            | Self::CheckoutSession(_)
            | Self::Subscription(_)
            | Self::Invoice(_)
            | Self::Charge(_)
            | Self::CreditNote(_) => None,
        }
    }

    /// What ever happened to the object.
    #[must_use]
    pub fn facts(&self) -> Vec<Fact> {
        for_any!(self, merged => merged.history().facts().map(|(fact, _)| fact.clone()).collect())
    }

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> ObjectKind {
        match self {
            Self::Customer(_) => ObjectKind::Customer,
            Self::CheckoutSession(_) => ObjectKind::CheckoutSession,
            Self::Subscription(_) => ObjectKind::Subscription,
            Self::Invoice(_) => ObjectKind::Invoice,
            Self::Charge(_) => ObjectKind::Charge,
            Self::Refund(_) => ObjectKind::Refund,
            Self::Dispute(_) => ObjectKind::Dispute,
            Self::CreditNote(_) => ObjectKind::CreditNote,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &ObjectId {
        for_any!(self, merged => merged.value().id())
    }

    /// The second that its newest snapshot was created in, by Stripe's clock.
    #[must_use]
    pub fn as_of(&self) -> DateTime<Utc> {
        for_any!(self, merged => merged.as_of())
    }

    /// Stripe's word for the state it is in.
    #[must_use]
    pub fn status(&self) -> &str {
        match self {
            Self::Customer(merged) if merged.value().deleted => "deleted",
            Self::Customer(_) => "active",
            Self::CheckoutSession(merged) => merged.value().status.as_str(),
            Self::Subscription(merged) => merged.value().status.as_str(),
            Self::Invoice(merged) if merged.value().deleted => "deleted",
            Self::Invoice(merged) => merged.value().status.as_str(),
            Self::Charge(merged) => merged.value().status.as_str(),
            Self::Refund(merged) => merged.value().status.as_str(),
            Self::Dispute(merged) => merged.value().status.as_str(),
            Self::CreditNote(merged) => merged.value().status.as_str(),
        }
    }

    /// Whether the object is an invoice on which nothing is to be paid any more.
    #[must_use]
    pub fn is_settled_invoice(&self) -> bool {
        match self {
            Self::Customer(_)
            | Self::CheckoutSession(_)
            | Self::Subscription(_)
            | Self::Charge(_)
            | Self::Refund(_)
            | Self::Dispute(_)
            | Self::CreditNote(_) => false,
            Self::Invoice(merged) => merged.value().is_settled(),
        }
    }

    /// Whether the object is over, and says which plan the tenant had before: a subscription that gave access.
    #[must_use]
    pub fn is_past(&self) -> bool {
        match self {
            Self::Subscription(merged) => {
                let started = || merged.history().facts().any(|(fact, _)| *fact == Fact::SubscriptionStarted);
                merged.value().is_final() && started()
            }
            Self::Customer(_)
            | Self::CheckoutSession(_)
            | Self::Invoice(_)
            | Self::Charge(_)
            | Self::Refund(_)
            | Self::Dispute(_)
            | Self::CreditNote(_) => false,
        }
    }

    /// Whether what the tenant has can depend on the object. The rest is history.
    #[must_use]
    pub fn is_current(&self) -> bool {
        match self {
            Self::Customer(_) => true,
            Self::CheckoutSession(merged) => merged.resolve().ambiguous,
            Self::Subscription(merged) => !merged.value().is_final() || merged.resolve().ambiguous,
            Self::Invoice(merged) => is_current_invoice(merged),
            Self::Charge(merged) => merged.resolve().ambiguous,
            Self::Refund(merged) => merged.resolve().ambiguous,
            Self::Dispute(merged) => merged.resolve().ambiguous,
            Self::CreditNote(merged) => merged.resolve().ambiguous,
        }
    }
}

/// A withdrawn invoice that was not paid first may say since when its subscription is behind.
fn is_current_invoice(merged: &Merged<Invoice>) -> bool {
    let invoice = merged.value();
    let failed = invoice.attempt_count > 0 || merged.history().first_decline().is_some();
    let withdrawn_unpaid = failed && (invoice.deleted || invoice.status == InvoiceStatus::Void);
    !invoice.is_settled() || withdrawn_unpaid || merged.resolve().ambiguous
}
