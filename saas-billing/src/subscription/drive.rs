//! From a request to its end: claimed under the tenant's lock, then step by step, by whoever comes first.

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, IdempotencyKey, InvalidInput, JobId, SystemTx, TenantContext, TenantId, TenantTx, audit, outbox,
    tenant,
};
use serde_json::json;

use super::{
    Change, Goal,
    goal::{self, Next, Seen},
    schedule::Schedule,
};
use crate::{
    billing::{ACTOR, Billing},
    command::{COMMANDS, HEAD_START, Wish, is_final},
    derive::AnyMerged,
    error::BillingError,
    event::{AnySnapshot, read_fetched},
    merge::Origin,
    object::{ObjectId, ObjectKind, Subscription},
    postgres::{
        command, object,
        request::{self, NewRequest, Progress, Requested},
        state,
    },
    provider::{Command, PageLimit, PaymentProvider, ProviderError, Query, Reply},
};

/// Steps of one request, and requests found under way, in one call.
const ROUNDS: usize = 16;

/// What a request is about.
pub(super) enum About {
    Subscription,
    Customer,
}

/// What stands in the way of a request.
enum Claim {
    /// Nothing: it is under way.
    Ours(JobId),
    /// It was asked before, under this key.
    Known(Box<Requested>),
    /// Another one is under way.
    Busy(JobId),
}

impl Billing {
    /// Asks for a goal and sees it through.
    pub(super) async fn request(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        (goal, about): (&Goal, About),
        key: &IdempotencyKey,
    ) -> Result<Change, BillingError> {
        for _ in 0..ROUNDS {
            match self.claim_request(ctx, (goal, &about), key).await? {
                Claim::Ours(id) => return self.drive(provider, ctx.tenant(), id).await,
                Claim::Known(known) => {
                    if let Progress::Waiting(..) = known.progress {
                        // The event that decides may be lost; a look is not.
                        let _ = self.look(provider, ctx.tenant(), &known.object).await?;
                    }
                    return self.drive(provider, ctx.tenant(), known.id).await;
                }
                Claim::Busy(other) => match self.drive(provider, ctx.tenant(), other).await {
                    Ok(_) => {}
                    // What is over in whatever way is out of the way.
                    Err(why) if !why.is_retryable() && self.is_over(ctx.tenant(), other).await? => {}
                    Err(why) => return Err(why),
                },
            }
        }
        Err(ProviderError::RateLimited { retry_after: None }.into())
    }

    async fn claim_request(
        &self,
        ctx: &dyn TenantContext,
        (goal, about): (&Goal, &About),
        key: &IdempotencyKey,
    ) -> Result<Claim, BillingError> {
        let (now, tenant) = (self.clock.now(), ctx.tenant());
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "claim the tenant's subscription").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        if let Some(known) = request::find_by_key(&mut tx, (tenant, &self.scope, key)).await? {
            tx.commit().await?;
            if known.fingerprint != goal.fingerprint().as_str() {
                return Err(CoreError::KeyReused { key: key.as_str().to_owned() }.into());
            }
            return Ok(Claim::Known(Box::new(known)));
        }
        if let Some(other) = request::pending(&mut tx, (tenant, &self.scope)).await? {
            tx.commit().await?;
            return Ok(Claim::Busy(other.id));
        }
        let object = match about {
            About::Subscription => {
                let derived = state::find(&mut tx, tenant, self.scope.livemode).await?.unwrap_or_default();
                derived.subscription.ok_or(BillingError::NoSubscription)?
            }
            About::Customer => {
                command::customer(&mut tx, (tenant, &self.scope)).await?.ok_or(BillingError::NoCustomer)?
            }
        };
        let payload = json!({"livemode": self.scope.livemode, "request": true});
        let job = outbox::NewJob::of(COMMANDS, &payload)?.with_due_at(now + HEAD_START);
        let id = outbox::enqueue_in(&mut tx, tenant, job, now).await?;
        request::insert(&mut tx, (tenant, &self.scope), NewRequest { id, key, goal, object: &object }, now).await?;
        let entry = audit::Entry::new("billing.requested", &object);
        let entry = entry.with_detail(json!({"request": id, "what": goal.what(), "goal": goal.audited()}));
        audit::record_for(&mut tx, ctx, entry, now).await?;
        tx.commit().await?;
        Ok(Claim::Ours(id))
    }

    async fn is_over(&self, tenant: TenantId, id: JobId) -> Result<bool, BillingError> {
        let found = self.find_request(tenant, id).await?;
        Ok(!found.is_some_and(|request| matches!(request.progress, Progress::Pending(_))))
    }

    async fn find_request(&self, tenant: TenantId, id: JobId) -> Result<Option<Requested>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look at a request").await?;
        let found = request::find(&mut tx, (tenant, &self.scope, id)).await?;
        tx.commit().await?;
        Ok(found)
    }

    /// The request that came with a key before.
    pub(crate) async fn known_request(
        &self,
        ctx: &dyn TenantContext,
        key: &IdempotencyKey,
    ) -> Result<Option<Requested>, BillingError> {
        let mut tx = TenantTx::begin_read_only(self.tenants.as_ref(), ctx).await?;
        Ok(request::find_by_key(&mut tx, (ctx.tenant(), &self.scope, key)).await?)
    }

    /// The tenant's subscription, as Stripe has it now.
    pub(crate) async fn subscription_of(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
    ) -> Result<Seen, BillingError> {
        let subscription = self.derived(ctx).await?.subscription.ok_or(BillingError::NoSubscription)?;
        self.look(provider, ctx.tenant(), &subscription).await
    }

    /// Goes on with a request until it is over. Any number of callers may do so at once.
    pub(crate) async fn drive(
        &self,
        provider: &dyn PaymentProvider,
        tenant: TenantId,
        id: JobId,
    ) -> Result<Change, BillingError> {
        for _ in 0..ROUNDS {
            let gone = || BillingError::CommandFailed { code: "withdrawn".to_owned() };
            let request = self.find_request(tenant, id).await?.ok_or_else(gone)?;
            let goal = match &request.progress {
                Progress::Done(change) | Progress::Waiting(_, change) => return Ok(change.clone()),
                Progress::Failed(code) => return Err(BillingError::CommandFailed { code: code.clone() }),
                Progress::Pending(goal) => goal,
            };
            let refused = match request.command {
                Some(command) => self.refusal(provider, tenant, command).await?,
                None => None,
            };
            // A step that was refused was not done; or it was, and its first answer was lost. A look tells.
            let done = &request.steps[..request.steps.len() - usize::from(refused.is_some())];
            let next = self.next_step(provider, tenant, (&request, goal), done).await;
            // Whoever went on meanwhile has made what was seen here: it is looked at anew.
            let present = self.find_request(tenant, id).await?.ok_or_else(gone)?;
            if present.command != request.command {
                continue;
            }
            match (next, refused) {
                // What was refused since it was so already may have been made so by its own first try.
                (Ok(Next::Stop(Change::Already)), Some(_)) => {
                    self.conclude_request(tenant, &request, &Change::Made).await?;
                }
                (Ok(Next::Stop(change)), _) => self.conclude_request(tenant, &request, &change).await?,
                (Ok(Next::Do(what, command)), _) if !request.steps.iter().any(|step| step == what) => {
                    self.ask_step(tenant, &request, what, command).await?;
                }
                // Stripe will not do it, or the subscription forbids it by now.
                (Ok(Next::Do(..)), Some((code, why))) => {
                    self.give_up_request(tenant, id, &code).await?;
                    return Err(why);
                }
                // It was done, and somebody has undone it.
                (Ok(Next::Do(..)), None) => self.give_up_request(tenant, id, "changed_meanwhile").await?,
                (Err(why), _) if request.command.is_none() => {
                    // Nothing was sent: nothing is left behind, and the key is free.
                    self.withdraw_request(tenant, id, why.code()).await?;
                    return Err(why);
                }
                (Err(why), refused) if is_over(&why) => {
                    let (code, why) = refused.unwrap_or_else(|| (why.code().to_owned(), why));
                    self.give_up_request(tenant, id, &code).await?;
                    return Err(why);
                }
                (Err(why), _) => return Err(why),
            }
        }
        Err(ProviderError::RateLimited { retry_after: None }.into())
    }

    /// Sends a step; says whether, and how, Stripe has refused it for good.
    async fn refusal(
        &self,
        provider: &dyn PaymentProvider,
        tenant: TenantId,
        command: JobId,
    ) -> Result<Option<(String, BillingError)>, BillingError> {
        match self.send(provider, tenant, command).await {
            Ok(_) => Ok(None),
            Err(BillingError::CommandFailed { code }) => Ok(Some((code.clone(), BillingError::CommandFailed { code }))),
            Err(BillingError::Provider(why)) if is_final(&why) => Ok(Some((why.code().to_owned(), why.into()))),
            Err(why) => Err(why),
        }
    }

    async fn next_step(
        &self,
        provider: &dyn PaymentProvider,
        tenant: TenantId,
        (request, goal): (&Requested, &Goal),
        done: &[String],
    ) -> Result<Next, BillingError> {
        if let Goal::Details { update } = goal {
            return Ok(goal::details(update, done));
        }
        let seen = self.look(provider, tenant, &request.object).await?;
        goal::next(goal, &seen, &self.catalog(), done)
    }

    /// What Stripe has now, merged.
    pub(super) async fn look(
        &self,
        provider: &dyn PaymentProvider,
        tenant: TenantId,
        subscription: &ObjectId,
    ) -> Result<Seen, BillingError> {
        let found = self.read_in(provider, tenant, ObjectKind::Subscription, subscription).await?;
        let found = found.ok_or_else(|| ProviderError::Missing { id: Some(subscription.clone()) })?;
        let subscription = read_subscription(&found)?;
        let schedule = match &subscription.schedule {
            Some(schedule) => find_schedule(provider, &subscription.customer, schedule).await?,
            None => None,
        };
        Ok(Seen { subscription, schedule })
    }

    async fn ask_step(
        &self,
        tenant: TenantId,
        request: &Requested,
        what: &'static str,
        command: Command,
    ) -> Result<(), BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "take the next step of a request").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let wish = Wish { what, slot: None, subject: None };
        let asked = self.ask(&mut tx, tenant, wish, |_| command, now).await?;
        if request::step(&mut tx, (tenant, &self.scope, request.id), request.command, (what, asked)).await? {
            tx.commit().await?;
        } else {
            // Somebody else was quicker.
            tx.rollback().await?;
        }
        Ok(())
    }

    async fn conclude_request(
        &self,
        tenant: TenantId,
        request: &Requested,
        change: &Change,
    ) -> Result<(), BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "record what came of a request").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let present = request::find(&mut tx, (tenant, &self.scope, request.id)).await?;
        if present.is_none_or(|present| present.command != request.command) {
            return Ok(tx.rollback().await?);
        }
        self.conclude_in(&mut tx, tenant, request, change, now).await?;
        if let Change::AwaitingPayment { .. } = change {
            // The event about the payment may have been quicker than this.
            let known = object::find_anywhere(&mut tx, self.scope.livemode, &request.object).await?;
            if let Some(AnyMerged::Subscription(known)) = known {
                self.note_subscription(&mut tx, tenant, known.value(), now).await?;
            }
        }
        Ok(tx.commit().await?)
    }

    /// Records what came of a request, and tells.
    pub(super) async fn conclude_in(
        &self,
        connection: &mut sqlx::PgConnection,
        tenant: TenantId,
        request: &Requested,
        change: &Change,
        now: DateTime<Utc>,
    ) -> Result<(), CoreError> {
        if !request::conclude(connection, (tenant, &self.scope, request.id), change, now).await? {
            return Ok(());
        }
        let action = match change {
            Change::Made | Change::Already => "billing.request_done",
            Change::Scheduled { .. } => "billing.change_scheduled",
            Change::AwaitingPayment { .. } => "billing.change_awaits_payment",
            Change::RolledBack => "billing.change_rolled_back",
        };
        let detail = json!({"request": request.id, "outcome": change});
        let entry = audit::Entry::new(action, &request.object).with_detail(detail);
        audit::record_in(connection, tenant, &ACTOR, entry, now).await?;
        if let (Change::AwaitingPayment { .. } | Change::RolledBack, Some(topic)) = (change, &self.config.notices) {
            let notice = json!({"fact": action, "object": request.object, "request": request.id});
            outbox::enqueue_in(connection, tenant, outbox::NewJob::of(topic.clone(), &notice)?, now).await?;
        }
        Ok(())
    }

    async fn give_up_request(&self, tenant: TenantId, id: JobId, code: &str) -> Result<(), BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "record that a request came to nothing").await?;
        if request::fail(&mut tx, (tenant, &self.scope, id), code, now).await? {
            record_end(&mut tx, tenant, ("billing.request_failed", id, code), &ACTOR, now).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn withdraw_request(&self, tenant: TenantId, id: JobId, code: &str) -> Result<(), BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "withdraw a request of which nothing was sent").await?;
        if request::withdraw(&mut tx, (tenant, &self.scope, id)).await? {
            record_end(&mut tx, tenant, ("billing.request_withdrawn", id, code), &ACTOR, now).await?;
        }
        Ok(tx.commit().await?)
    }
}

/// Whether it will be the same however often it is tried.
const fn is_over(why: &BillingError) -> bool {
    match why {
        BillingError::StateForbids { .. } | BillingError::Invalid(_) => true,
        BillingError::Provider(refused) => is_final(refused),
        _ => false,
    }
}

async fn record_end(
    tx: &mut SystemTx,
    tenant: TenantId,
    (action, id, code): (&'static str, JobId, &str),
    actor: &Actor,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let entry = audit::Entry::new(action, id).with_detail(json!({"code": code}));
    audit::record_in(tx, tenant, actor, entry, now).await.map(drop)
}

/// A subscription as a read brought it.
pub(super) fn read_subscription(reply: &Reply) -> Result<Subscription, BillingError> {
    let unreadable = ProviderError::Unreadable { what: "a subscription" };
    let origin = Origin::Fetch { sequence: 0, covers: Default::default(), covers_overflow: false };
    match read_fetched(ObjectKind::Subscription, &reply.object, DateTime::UNIX_EPOCH, origin) {
        Ok(AnySnapshot::Subscription(snapshot)) if snapshot.value.items_truncated => {
            let remedy = "change it at Stripe, or take items off it";
            Err(InvalidInput::new("the subscription", "has more items than an answer of Stripe holds", remedy).into())
        }
        Ok(AnySnapshot::Subscription(snapshot)) => Ok(snapshot.value),
        Ok(_) | Err(_) => Err(unreadable.into()),
    }
}

/// The schedule of a subscription, among those of its customer: the newest come first, so a hundred are enough but for
/// whoever changed their mind more often than that.
async fn find_schedule(
    provider: &dyn PaymentProvider,
    customer: &ObjectId,
    wanted: &ObjectId,
) -> Result<Option<Schedule>, BillingError> {
    let query = Query::Schedules { customer: customer.clone() };
    let mut after = None;
    for _ in 0..ROUNDS {
        let page = provider.list(&query, after.as_ref(), PageLimit::MAX).await?;
        for object in page.objects {
            let found = Reply { object, as_of: None, replayed: false };
            if found.id()? == *wanted {
                return Ok(Schedule::read(&found.object)?);
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Err(ProviderError::Missing { id: Some(wanted.clone()) }.into())
}
