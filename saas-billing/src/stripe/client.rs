//! The provider: tries around calls.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{Cause, IdempotencyKey, InvalidInput};
use secrecy::{ExposeSecret, SecretString};
use serde_json::value::RawValue;

use super::{
    answer::Verdict,
    breaker::Breaker,
    budget::Budget,
    call::Call,
    config::StripeConfig,
    http::{Http, Silence},
    interpret::interpret,
    key::{ApiKey, Present},
    read,
    retry::Retries,
};
use crate::{
    mode::Mode,
    object::{ObjectId, ObjectKind},
    provider::{
        Command, Fetched, Listed, MAX_STREAMED, MeterReading, ObjectSource, PageLimit, PaymentProvider, ProviderError,
        Query, Reply, SubscriptionChange,
    },
};

/// Stripe over HTTP. Cheap to clone; clones share connections, budget, breaker and key.
///
/// ```
/// # use saas_billing::stripe::{ApiKey, StripeApi, StripeConfig};
/// # fn main() -> Result<(), saas_core::InvalidInput> {
/// let key = ApiKey::new("sk_test_0123456789abcdef".to_owned().into())?;
/// let config = StripeConfig::new(key).with_address("http://127.0.0.1:12111".parse()?);
/// let stripe = StripeApi::new(config)?;
/// // Later, while calls are under way:
/// stripe.rotate(ApiKey::new("sk_test_fedcba9876543210".to_owned().into())?)?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct StripeApi(Arc<Inner>);

struct Inner {
    http: Http,
    version: String,
    key: Present,
    mode: Mode,
    budget: Budget,
    breaker: Breaker,
    retries: Retries,
    try_timeout: Duration,
    deadline: Duration,
    /// The latest second of Stripe's clock that an answer has shown; 0 before the first.
    seen: AtomicI64,
    /// The open session of the stream of readings.
    stream: tokio::sync::Mutex<Option<Session>>,
}

/// What a call came to.
struct Done {
    object: Box<RawValue>,
    replayed: bool,
    /// Stripe's clock before the call.
    as_of: Option<DateTime<Utc>>,
}

/// One try's end that is not the call's.
struct Setback {
    error: ProviderError,
    after: Option<Duration>,
}

impl StripeApi {
    /// A provider that has not called yet.
    ///
    /// # Errors
    /// When the address needs TLS and none was compiled in, or a setting does not fit into a header.
    pub fn new(config: StripeConfig) -> Result<Self, InvalidInput> {
        let http = Http::new(&config)?;
        let (failures, rest) = config.breaker;
        Ok(Self(Arc::new(Inner {
            http,
            version: config.version,
            mode: config.key.mode(),
            key: Present::new(config.key),
            budget: Budget::per_second(config.calls_per_second),
            breaker: Breaker::new(failures, rest),
            retries: config.retries,
            try_timeout: config.try_timeout,
            deadline: config.deadline,
            seen: AtomicI64::new(0),
            stream: tokio::sync::Mutex::new(None),
        })))
    }

    /// Uses another key from the next call on.
    ///
    /// # Errors
    /// When it is of the other mode; the old one stays.
    pub fn rotate(&self, key: ApiKey) -> Result<(), InvalidInput> {
        self.0.key.replace(key)
    }

    /// A call without a key, of a test account.
    #[cfg(feature = "testing")]
    pub(super) async fn ask(&self, call: &Call) -> Result<Box<RawValue>, ProviderError> {
        Ok(self.0.call(call, None, None, true).await?.object)
    }
}

impl Inner {
    /// Calls until there is an answer that counts, within the deadline.
    async fn call(
        &self,
        call: &Call,
        key: Option<&IdempotencyKey>,
        named: Option<&ObjectId>,
        writes: bool,
    ) -> Result<Done, ProviderError> {
        let begun = Instant::now();
        let as_of = DateTime::from_timestamp(self.seen.load(Ordering::Relaxed), 0).filter(|at| at.timestamp() > 0);
        let mut unsure = false;
        let mut tried = 0;
        loop {
            tried += 1;
            let setback = match self.attempt(call, key, (named, writes), begun).await {
                Ok(Ok((object, replayed))) => return Ok(Done { object, replayed, as_of }),
                Ok(Err(error)) => return Err(if unsure { doubt(error) } else { error }),
                Err(setback) => setback,
            };
            unsure |= matches!(setback.error, ProviderError::OutcomeUnknown { .. });
            let pause = self.retries.pause(tried, setback.after, fastrand::f64());
            let Some(pause) = pause.filter(|pause| begun.elapsed() + *pause < self.deadline) else {
                return Err(if unsure { doubt(setback.error) } else { setback.error });
            };
            tracing::debug!(target: "saas.billing.stripe", code = setback.error.code(), tried, "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// One try. The inner result ends the call, the outer error does not.
    async fn attempt(
        &self,
        call: &Call,
        key: Option<&IdempotencyKey>,
        (named, writes): (Option<&ObjectId>, bool),
        begun: Instant,
    ) -> Result<Result<(Box<RawValue>, bool), ProviderError>, Setback> {
        let left = self.deadline.saturating_sub(begun.elapsed());
        if let Err(rest) = self.breaker.admit(Instant::now()) {
            let cause = "too many calls failed just before".into();
            return Err(Setback { error: ProviderError::Unavailable { cause }, after: Some(rest) });
        }
        match self.budget.take(Instant::now(), left) {
            Ok(wait) if wait.is_zero() => {}
            Ok(wait) => tokio::time::sleep(wait).await,
            Err(wait) => {
                let error = ProviderError::RateLimited { retry_after: Some(wait) };
                return Err(Setback { error, after: Some(wait) });
            }
        }
        let left = self.deadline.saturating_sub(begun.elapsed());
        let heard = match self.http.send(call, key, &self.key, self.try_timeout.min(left)).await {
            Ok(heard) => heard,
            Err(silence) => {
                self.breaker.ill(Instant::now());
                return Err(Setback { error: silent(silence, writes), after: None });
            }
        };
        if let Some(date) = heard.date {
            self.seen.fetch_max(date.timestamp(), Ordering::Relaxed);
        }
        let replayed = heard.answer.replayed;
        match heard.answer.judge(named, writes) {
            Verdict::Done(object) => {
                self.breaker.well();
                Ok(Ok((object, replayed)))
            }
            Verdict::Failed(error) => {
                self.breaker.well();
                Ok(Err(error))
            }
            Verdict::Again { error, after, ill } => {
                if ill {
                    self.breaker.ill(Instant::now());
                } else {
                    self.breaker.well();
                }
                Err(Setback { error, after })
            }
        }
    }

    async fn write(&self, command: &Command, key: &IdempotencyKey) -> Result<Reply, ProviderError> {
        let done = self.call(&Call::of(command, &self.version), Some(key), read::named(command), true).await?;
        Ok(reply(done))
    }
}

/// Leave to hand readings over.
struct Session {
    token: SecretString,
    /// By our clock, with a margin.
    until: Instant,
}

/// How long a session is used: Stripe's last a quarter of an hour.
const SESSION: Duration = Duration::from_secs(12 * 60);

/// Whether it was the session that was not accepted.
fn has_expired(why: &ProviderError) -> bool {
    match why {
        ProviderError::Authentication => true,
        ProviderError::Refused { code, .. } => code == "billing_meter_event_session_expired",
        _ => false,
    }
}

impl Inner {
    async fn session(&self) -> Result<SecretString, ProviderError> {
        // Who waits here needs the session that is being opened.
        let mut open = self.stream.lock().await;
        if let Some(session) = open.as_ref().filter(|session| Instant::now() < session.until) {
            return Ok(session.token.clone());
        }
        let until = Instant::now() + SESSION;
        let done = self.call(&Call::open_stream(), None, None, true).await?;
        let token = read::session_token(&done.object)?;
        *open = Some(Session { token: token.clone(), until });
        Ok(token)
    }

    async fn forget_session(&self, token: &SecretString) {
        let mut open = self.stream.lock().await;
        if open.as_ref().is_some_and(|session| session.token.expose_secret() == token.expose_secret()) {
            *open = None;
        }
    }
}

/// After a try that may have worked, "it did not work" is no longer known.
fn doubt(error: ProviderError) -> ProviderError {
    match error {
        ProviderError::Unavailable { cause } => ProviderError::OutcomeUnknown { cause, key_spent: false },
        error @ (ProviderError::RateLimited { .. } | ProviderError::Authentication | ProviderError::Permission) => {
            ProviderError::OutcomeUnknown { cause: Box::new(error), key_spent: false }
        }
        error => error,
    }
}

fn silent(silence: Silence, writes: bool) -> ProviderError {
    let unavailable = |cause: Cause| ProviderError::Unavailable { cause };
    match silence {
        Silence::NoAnswer(cause) if writes => ProviderError::OutcomeUnknown { cause, key_spent: false },
        Silence::NotSent(cause) | Silence::NoAnswer(cause) => unavailable(cause),
    }
}

fn reply(done: Done) -> Reply {
    let as_of = done.as_of.filter(|_| !read::has_test_clock(&done.object));
    Reply { object: done.object, as_of, replayed: done.replayed }
}

#[async_trait]
impl ObjectSource for StripeApi {
    #[tracing::instrument(name = "saas.billing.stripe.fetch", level = "debug", skip(self))]
    async fn fetch(&self, kind: ObjectKind, id: &ObjectId) -> Result<Fetched, ProviderError> {
        match self.0.call(&Call::fetch(kind, id, &self.0.version), None, Some(id), false).await {
            Ok(done) => {
                let reply = reply(done);
                Ok(Fetched::Found { object: reply.object, as_of: reply.as_of })
            }
            Err(ProviderError::Missing { .. }) => Ok(Fetched::Missing),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl PaymentProvider for StripeApi {
    fn mode(&self) -> Mode {
        self.0.mode
    }

    #[tracing::instrument(name = "saas.billing.stripe.execute", level = "debug", skip_all, fields(key = %key))]
    async fn execute(&self, command: &Command, key: &IdempotencyKey) -> Result<Reply, ProviderError> {
        interpret(self, command, self.0.write(command, key).await).await
    }

    async fn preview(&self, change: &SubscriptionChange) -> Result<Reply, ProviderError> {
        Ok(reply(self.0.call(&Call::preview(change), None, Some(&change.subscription), false).await?))
    }

    async fn list(&self, query: &Query, after: Option<&ObjectId>, limit: PageLimit) -> Result<Listed, ProviderError> {
        let call = Call::list(query, after, limit, &self.0.version).map_err(|_| ProviderError::Refused {
            code: "no_such_list".to_owned(),
            param: Some("lookup_keys".to_owned()),
        })?;
        let done = self.0.call(&call, None, after, false).await?;
        read::page(&done.object)
    }

    #[tracing::instrument(name = "saas.billing.stripe.stream", level = "debug", skip_all, fields(readings = readings.len()))]
    async fn stream(&self, readings: &[MeterReading]) -> Result<(), ProviderError> {
        if readings.len() > MAX_STREAMED {
            return Err(ProviderError::Refused { code: "too_many_readings".to_owned(), param: None });
        }
        let session = self.0.session().await?;
        match self.0.call(&Call::stream(readings, session.clone()), None, None, true).await {
            // A session ends after a quarter of an hour, by Stripe's clock: another one takes the same readings.
            Err(why) if has_expired(&why) => {
                self.0.forget_session(&session).await;
                let session = self.0.session().await?;
                self.0.call(&Call::stream(readings, session), None, None, true).await.map(drop)
            }
            outcome => outcome.map(drop),
        }
    }

    async fn event(&self, id: &ObjectId) -> Result<Fetched, ProviderError> {
        match self.0.call(&Call::event(id), None, Some(id), false).await {
            Ok(done) => Ok(Fetched::Found { object: done.object, as_of: done.as_of }),
            Err(ProviderError::Missing { .. }) => Ok(Fetched::Missing),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for StripeApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StripeApi").field("mode", &self.0.mode).finish_non_exhaustive()
    }
}
