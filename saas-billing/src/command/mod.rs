//! Writes to Stripe: asked in a transaction, sent outside of one, merged like anything else that Stripe says.
//!
//! A command is a row before it is tried, and the row fixes its idempotency key. Whoever asks sends it at once; if that ends
//! without an answer, the outbox sends it again, with the same key. What Stripe answers goes through the merge of webhooks,
//! in the transaction that marks the row, so that it does not matter which of the two comes first.
//!
//! Stripe saves failures under a key and forgets keys after a day. Before another key is used, Stripe is asked whether the
//! first one has had its effect: what commands make carries their id in its metadata.

mod checkout;
mod customer;
mod job;
mod look;
mod page;
mod recover;
mod returned;

use chrono::{DateTime, TimeDelta, Utc};
pub use customer::CustomerDetails;
pub use job::{COMMANDS, CommandHandler};
pub use page::{Checkout, CheckoutPage};
pub use returned::Returned;
use saas_core::{IdempotencyKey, JobId, SystemTx, TenantId, outbox, tenant};
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    billing::{ACTOR, Billing},
    derive::{AnyMerged, FetchRequest},
    error::BillingError,
    event::read_fetched,
    object::{ObjectId, ObjectKind},
    postgres::{
        command::{self, Asked, Outcome, Slot, Stage},
        fetch, home, object,
    },
    provider::{Command, PaymentProvider, ProviderError, Reply},
    settle::{Report, fetch_origin},
};

/// The outbox leaves a command to whoever asked for so long.
pub(crate) const HEAD_START: TimeDelta = TimeDelta::seconds(30);
/// Stripe keeps keys for at least 24 hours; after this, another one is used.
const KEY_LIFE: TimeDelta = TimeDelta::hours(23);
/// Keys tried in one go.
const ROUNDS: usize = 3;

/// Why and how a command is asked.
pub(crate) struct Wish<'a> {
    pub(crate) what: &'static str,
    pub(crate) slot: Option<Slot>,
    pub(crate) subject: Option<&'a str>,
}

impl Billing {
    /// Puts a command on record, with the job that sees it through. The caller holds the tenant's lock.
    pub(crate) async fn ask(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        wish: Wish<'_>,
        command: impl FnOnce(JobId) -> Command + Send,
        now: DateTime<Utc>,
    ) -> Result<JobId, BillingError> {
        home::claim(connection, &self.scope).await?;
        let job = outbox::NewJob::of(COMMANDS, &json!({"livemode": self.scope.livemode}))?;
        let id = outbox::enqueue_in(connection, tenant, job.with_due_at(now + HEAD_START), now).await?;
        let command = command(id);
        let claim = (wish.slot, wish.subject);
        command::insert(connection, (tenant, &self.scope, id), (wish.what, &command), claim, now).await?;
        Ok(id)
    }

    /// Sends a command unless it has been done, and says what came of it. Any number of callers may do so at once.
    pub(crate) async fn send(
        &self,
        provider: &dyn PaymentProvider,
        tenant: TenantId,
        id: JobId,
    ) -> Result<Outcome, BillingError> {
        for _ in 0..ROUNDS {
            let asked = self.look_up(tenant, id).await?;
            let asked = asked.ok_or(BillingError::CommandFailed { code: "forgotten".to_owned() })?;
            let command = match &asked.stage {
                Stage::Done(outcome) => return Ok(outcome.clone()),
                Stage::Failed(code) => return Err(BillingError::CommandFailed { code: code.clone() }),
                Stage::Closed => return Err(BillingError::CommandFailed { code: "over".to_owned() }),
                Stage::Pending(command) => command,
            };
            // What is known before the call is what the answer supersedes.
            let known = self.known_target(command).await?;
            let (key, day) = key_of(&asked, self.clock.now())?;
            if day > 0
                && let Some(reply) = recover::find(provider, &asked, command).await?
            {
                return self.conclude(tenant, &asked, command, known.as_ref(), &reply).await;
            }
            match provider.execute(command, &key).await {
                Ok(reply) => return self.conclude(tenant, &asked, command, known.as_ref(), &reply).await,
                // The second: the key was first used by a version of this library that wrote the command otherwise.
                Err(why) if why.is_key_spent() || matches!(why, ProviderError::KeyReused) => {
                    if let Some(reply) = recover::find(provider, &asked, command).await? {
                        return self.conclude(tenant, &asked, command, known.as_ref(), &reply).await;
                    }
                    self.take_next_key(tenant, &asked).await?;
                }
                Err(why) if is_final(&why) => {
                    self.give_up(tenant, &asked, why.code()).await?;
                    return Err(why.into());
                }
                Err(why) => return Err(why.into()),
            }
        }
        let cause = "Stripe failed under every key".into();
        Err(ProviderError::OutcomeUnknown { cause, key_spent: false }.into())
    }

    async fn look_up(&self, tenant: TenantId, id: JobId) -> Result<Option<Asked>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look at a command to Stripe").await?;
        let asked = command::find(&mut tx, (tenant, &self.scope, id)).await?;
        tx.commit().await?;
        Ok(asked)
    }

    /// What is known about the object that a command changes.
    async fn known_target(&self, command: &Command) -> Result<Option<AnyMerged>, BillingError> {
        let Some(id) = target(command) else { return Ok(None) };
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look at what is known before a write").await?;
        let known = object::find_anywhere(&mut tx, self.scope.livemode, id).await?;
        tx.commit().await?;
        Ok(known)
    }

    async fn take_next_key(&self, tenant: TenantId, asked: &Asked) -> Result<(), BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "use another idempotency key").await?;
        command::next_epoch(&mut tx, (tenant, &self.scope, asked.id), asked.epoch).await?;
        Ok(tx.commit().await?)
    }

    async fn give_up(&self, tenant: TenantId, asked: &Asked, code: &'static str) -> Result<(), BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "record what Stripe refused").await?;
        if command::fail(&mut tx, (tenant, &self.scope, asked.id), code, now).await? {
            let entry = saas_core::audit::Entry::new("billing.command_refused", asked.id);
            let entry = entry.with_detail(json!({"code": code}));
            saas_core::audit::record_in(&mut tx, tenant, &ACTOR, entry, now).await?;
            tracing::warn!(target: "saas.billing.command", command = %asked.id, code, "Stripe refuses a command");
        }
        Ok(tx.commit().await?)
    }

    /// Records and merges an answer, in one transaction.
    async fn conclude(
        &self,
        tenant: TenantId,
        asked: &Asked,
        command: &Command,
        known: Option<&AnyMerged>,
        reply: &Reply,
    ) -> Result<Outcome, BillingError> {
        let outcome = outcome(reply)?;
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "merge what Stripe answered").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        if !command::finish(&mut tx, (tenant, &self.scope, asked.id), &outcome, now).await? {
            // Another caller was quicker; its answer was the same, or the command is over.
            tx.rollback().await?;
            return Ok(outcome);
        }
        match command {
            Command::CreateCustomer(_) => {
                self.link_in(&mut tx, (tenant, &ACTOR), (ObjectKind::Customer, &outcome.object), now).await?;
            }
            Command::OpenCheckout(_) => {
                self.link_in(&mut tx, (tenant, &ACTOR), (ObjectKind::CheckoutSession, &outcome.object), now).await?;
            }
            _ => {}
        }
        self.merge_answer(&mut tx, known, reply, &format!("command:{}", asked.id), now).await?;
        tx.commit().await?;
        Ok(outcome)
    }

    /// Merges an object that Stripe answered with, if it is of a kind that is merged.
    pub(super) async fn merge_answer(
        &self,
        connection: &mut PgConnection,
        known: Option<&AnyMerged>,
        reply: &Reply,
        source: &str,
        now: DateTime<Utc>,
    ) -> Result<(), BillingError> {
        #[derive(Deserialize)]
        struct Tagged {
            object: String,
            id: ObjectId,
        }
        let Ok(tagged) = serde_json::from_str::<Tagged>(reply.object.get()) else { return Ok(()) };
        let Some(kind) = ObjectKind::from_object(&tagged.object) else { return Ok(()) };
        if !reply.replayed {
            let sequence = fetch::next_sequence(connection, &self.scope, (kind, &tagged.id), now).await?;
            let (origin, created) = fetch_origin(known, sequence, reply.as_of);
            if let Ok(snapshot) = read_fetched(kind, &reply.object, created, origin) {
                let report = Report { source: source.to_owned(), event_type: String::new(), afresh: None };
                let _settled = self.settle(connection, snapshot, report, now).await?;
                return Ok(());
            }
        }
        // A saved answer tells of then; one that cannot be read, of nothing.
        let reason = "an answer that may not be the latest".to_owned();
        fetch::request(connection, &self.scope, &FetchRequest { kind, id: tagged.id, reason }, now).await?;
        Ok(())
    }
}

/// The key of a command now, and how many keys have grown old before.
fn key_of(asked: &Asked, now: DateTime<Utc>) -> Result<(IdempotencyKey, i64), BillingError> {
    let day = (now - asked.created_at).num_seconds().max(0) / KEY_LIFE.num_seconds();
    let text = match (asked.epoch, day) {
        (0, 0) => asked.id.to_string(),
        (epoch, day) => format!("{}-{epoch}-{day}", asked.id),
    };
    Ok((IdempotencyKey::try_from(text)?, day))
}

/// Whether Stripe will give the same answer to every later try. A wrong API key is the operator's to change.
pub(crate) const fn is_final(why: &ProviderError) -> bool {
    match why {
        ProviderError::Declined { .. }
        | ProviderError::Refused { .. }
        | ProviderError::Missing { .. }
        | ProviderError::WrongState { .. } => true,
        ProviderError::Authentication
        | ProviderError::Permission
        | ProviderError::KeyReused
        | ProviderError::RateLimited { .. }
        | ProviderError::Unavailable { .. }
        | ProviderError::OutcomeUnknown { .. }
        | ProviderError::Unreadable { .. } => false,
    }
}

/// The object of a merged kind that a command changes.
fn target(command: &Command) -> Option<&ObjectId> {
    match command {
        Command::ExpireCheckout(id)
        | Command::CancelSubscription { subscription: id, .. }
        | Command::PauseCollection { subscription: id, .. }
        | Command::ResumeSubscription(id)
        | Command::PayInvoice(id)
        | Command::VoidInvoice(id)
        | Command::WriteOffInvoice(id) => Some(id),
        Command::UpdateCustomer(update) => Some(&update.customer),
        Command::ChangeSubscription(change) => Some(&change.subscription),
        Command::CreateCustomer(_)
        | Command::OpenCheckout(_)
        | Command::OpenPortal(_)
        | Command::CreateSubscription(_)
        | Command::AttachSchedule(_)
        | Command::PlanPhases { .. }
        | Command::ReleaseSchedule(_)
        | Command::CreateProduct(_)
        | Command::CreatePrice(_)
        | Command::ChangeProduct(_)
        | Command::AttachFeature { .. }
        | Command::DetachFeature { .. }
        | Command::ArchivePrice(_)
        | Command::OfferPrice { .. }
        | Command::CreateFeature(_)
        | Command::ChangeFeature { .. }
        | Command::CreateMeter(_)
        | Command::RenameMeter { .. }
        | Command::ReactivateMeter(_)
        | Command::ReportUsage(_)
        | Command::CancelReading { .. } => None,
    }
}

fn outcome(reply: &Reply) -> Result<Outcome, ProviderError> {
    #[derive(Deserialize)]
    struct Expiring {
        #[serde(default)]
        expires_at: Option<i64>,
    }
    let expiring = serde_json::from_str::<Expiring>(reply.object.get()).ok();
    let expires_at = expiring.and_then(|expiring| DateTime::from_timestamp(expiring.expires_at?, 0));
    Ok(Outcome { object: reply.id()?, address: reply.address().ok(), expires_at })
}
