//! The door in the process: the simulator as a provider, without a network.

use async_trait::async_trait;
use saas_core::IdempotencyKey;
use secrecy::ExposeSecret;
use serde_json::value::RawValue;

use super::{
    api::{ApiRequest, Manner},
    simulator::StripeSimulator,
};
use crate::{
    mode::Mode,
    object::{ObjectId, ObjectKind},
    provider::{
        Command, Fetched, Listed, MAX_STREAMED, MeterReading, ObjectSource, PageLimit, PaymentProvider, ProviderError,
        Query, Reply, SubscriptionChange,
    },
    stripe::{
        API_VERSION,
        answer::{Answer, Verdict},
        call::Call,
        interpret::interpret,
        read,
    },
};

impl StripeSimulator {
    /// One try, as the adapter makes it over HTTP.
    fn call(
        &self,
        call: &Call,
        key: Option<&IdempotencyKey>,
        named: Option<&ObjectId>,
        writes: bool,
    ) -> Result<(Box<RawValue>, bool), ProviderError> {
        let target = call.target();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let token = call.session.as_ref().map_or("sk_test_in_the_process", |token| token.expose_secret());
        let request = ApiRequest {
            method: call.verb.as_str().to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            body: call.body().into_bytes(),
            authorization: Some(format!("Bearer {token}")),
            idempotency_key: key.map(ToString::to_string),
            version: None,
        };
        let (response, manner) = self.answer(&request);
        if manner != Manner::Whole {
            let cause = "the simulator does not answer".into();
            return Err(match writes {
                true => ProviderError::OutcomeUnknown { cause, key_spent: false },
                false => ProviderError::Unavailable { cause },
            });
        }
        let answer = Answer {
            status: response.status,
            replayed: response.replayed,
            should_retry: None,
            retry_after: response.retry_after.map(|seconds| std::time::Duration::from_secs(seconds.into())),
            body: response.body,
        };
        let replayed = answer.replayed;
        match answer.judge(named, writes) {
            Verdict::Done(object) => Ok((object, replayed)),
            Verdict::Failed(error) | Verdict::Again { error, .. } => Err(error),
        }
    }
}

#[async_trait]
impl ObjectSource for StripeSimulator {
    async fn fetch(&self, kind: ObjectKind, id: &ObjectId) -> Result<Fetched, ProviderError> {
        match self.call(&Call::fetch(kind, id, API_VERSION), None, Some(id), false) {
            Ok((object, _)) => Ok(Fetched::Found { object, as_of: Some(self.now()) }),
            Err(ProviderError::Missing { .. }) => Ok(Fetched::Missing),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl PaymentProvider for StripeSimulator {
    fn mode(&self) -> Mode {
        if self.is_live() { Mode::Live } else { Mode::Test }
    }

    async fn execute(&self, command: &Command, key: &IdempotencyKey) -> Result<Reply, ProviderError> {
        let outcome = self.call(&Call::of(command, API_VERSION), Some(key), read::named(command), true);
        let reply = |(object, replayed)| Reply { object, as_of: Some(self.now()), replayed };
        interpret(self, command, outcome.map(reply)).await
    }

    async fn preview(&self, change: &SubscriptionChange) -> Result<Reply, ProviderError> {
        let (object, replayed) = self.call(&Call::preview(change), None, Some(&change.subscription), false)?;
        Ok(Reply { object, as_of: Some(self.now()), replayed })
    }

    async fn list(&self, query: &Query, after: Option<&ObjectId>, limit: PageLimit) -> Result<Listed, ProviderError> {
        let call = Call::list(query, after, limit, API_VERSION).map_err(|_| ProviderError::Refused {
            code: "no_such_list".to_owned(),
            param: Some("lookup_keys".to_owned()),
        })?;
        read::page(&self.call(&call, None, after, false)?.0)
    }

    async fn stream(&self, readings: &[MeterReading]) -> Result<(), ProviderError> {
        if readings.len() > MAX_STREAMED {
            return Err(ProviderError::Refused { code: "too_many_readings".to_owned(), param: None });
        }
        // A session for each call: nobody waits for one here.
        let (session, _) = self.call(&Call::open_stream(), None, None, true)?;
        let session = read::session_token(&session)?;
        self.call(&Call::stream(readings, session), None, None, true).map(drop)
    }

    async fn event(&self, id: &ObjectId) -> Result<Fetched, ProviderError> {
        match self.call(&Call::event(id), None, Some(id), false) {
            Ok((object, _)) => Ok(Fetched::Found { object, as_of: Some(self.now()) }),
            Err(ProviderError::Missing { .. }) => Ok(Fetched::Missing),
            Err(error) => Err(error),
        }
    }
}
