//! What an answer of Stripe's means. Pure.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{object::ObjectId, provider::ProviderError};

/// An answer as it came over the wire.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `Idempotent-Replayed`: saved from an earlier call with the same key.
    pub(crate) replayed: bool,
    /// `Stripe-Should-Retry`: Stripe knows better than the status.
    pub(crate) should_retry: Option<bool>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Vec<u8>,
}

/// What to do about an answer.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is done.
    Done(Box<RawValue>),
    /// It had no effect and will have none.
    Failed(ProviderError),
    /// Another try with the same key may do.
    Again {
        /// What to say if there is no other try.
        error: ProviderError,
        /// How long Stripe wants to be left alone.
        after: Option<Duration>,
        /// Whether Stripe is ill, rather than us too eager.
        ill: bool,
    },
}

#[derive(Deserialize, Default)]
struct Failure {
    #[serde(default)]
    error: Reason,
}

/// Everything optional: also an answer that says nothing is an answer.
#[derive(Deserialize, Default)]
struct Reason {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    decline_code: Option<String>,
    #[serde(default)]
    param: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

impl Answer {
    /// Reads the answer to a call that `named` an object, and that `writes` or not.
    pub(crate) fn judge(self, named: Option<&ObjectId>, writes: bool) -> Verdict {
        if (200..300).contains(&self.status) {
            let object = serde_json::from_slice::<Box<RawValue>>(&self.body);
            return match object {
                Ok(object) => Verdict::Done(object),
                // It was done; what it came to can be fetched.
                Err(_) => Verdict::Failed(ProviderError::Unreadable { what: "the body is not JSON" }),
            };
        }
        let reason = serde_json::from_slice::<Failure>(&self.body).unwrap_or_default().error;
        let again = self.should_retry.unwrap_or(matches!(self.status, 409 | 424 | 429 | 500..));
        if again && !(self.replayed && self.status >= 500) {
            let (error, ill) = self.transient(writes);
            return Verdict::Again { error, after: self.retry_after, ill };
        }
        if self.status >= 500 {
            return self.broken(writes);
        }
        Verdict::Failed(refusal(self.status, reason, named))
    }

    fn transient(&self, writes: bool) -> (ProviderError, bool) {
        match self.status {
            429 => (ProviderError::RateLimited { retry_after: self.retry_after }, false),
            // Another call with this key, or on this object, is under way: this one was not begun.
            409 => (ProviderError::Unavailable { cause: "409: another call is under way".into() }, false),
            status if status >= 500 && writes => (unknown(status, false), true),
            status => (ProviderError::Unavailable { cause: format!("status {status}").into() }, status >= 500),
        }
    }

    /// A failure that Stripe will not have repeated, or has saved under the key.
    fn broken(&self, writes: bool) -> Verdict {
        let error = if writes {
            unknown(self.status, true)
        } else {
            ProviderError::Unavailable { cause: format!("status {}", self.status).into() }
        };
        Verdict::Failed(error)
    }
}

fn unknown(status: u16, key_spent: bool) -> ProviderError {
    ProviderError::OutcomeUnknown { cause: format!("status {status}").into(), key_spent }
}

/// A word of Stripe's vocabulary, or nothing: what is kept of a refusal must not quote our input.
fn word(text: Option<String>) -> Option<String> {
    let fits = |text: &String| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_[].".contains(&byte))
    };
    text.filter(fits)
}

/// Whether a parameter says what is taken off.
pub(crate) fn names_discount(param: Option<&str>) -> bool {
    param.is_some_and(|param| param.starts_with("discounts["))
}

fn refusal(status: u16, reason: Reason, named: Option<&ObjectId>) -> ProviderError {
    let kind = reason.kind.as_deref().unwrap_or_default();
    let code = word(reason.code);
    // A meter's refusal of a repeated identifier has no code, only words.
    let repeated = reason.message.is_some_and(|message| message.starts_with("An event already exists with identifier"));
    let fallback = || if repeated { "duplicate_meter_event".to_owned() } else { format!("status_{status}") };
    match (status, code) {
        (401, _) => ProviderError::Authentication,
        (403, _) => ProviderError::Permission,
        (_, code) if kind == "card_error" || status == 402 => ProviderError::Declined {
            code: code.unwrap_or_else(|| "card_declined".to_owned()),
            decline_code: word(reason.decline_code),
        },
        (_, _) if kind == "idempotency_error" => ProviderError::KeyReused,
        (404, _) => ProviderError::Missing { id: named.cloned() },
        // A coupon or a promotion code: what the call is about is there.
        (_, Some(code)) if code == "resource_missing" && names_discount(reason.param.as_deref()) => {
            ProviderError::Refused { code, param: word(reason.param) }
        }
        // What a parameter names, which may be any of several.
        (_, Some(code)) if code == "resource_missing" => ProviderError::Missing { id: None },
        (_, Some(code)) if code.contains("unexpected_state") || code.ends_with("_not_open") => {
            ProviderError::WrongState { code }
        }
        (_, code) => ProviderError::Refused { code: code.unwrap_or_else(fallback), param: word(reason.param) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, replayed: false, should_retry: None, retry_after: None, body: body.as_bytes().to_vec() }
    }

    fn error(answer: Answer, writes: bool) -> (ProviderError, bool) {
        match answer.judge(None, writes) {
            Verdict::Done(_) => panic!("not an error"),
            Verdict::Failed(error) => (error, false),
            Verdict::Again { error, .. } => (error, true),
        }
    }

    #[test]
    fn every_kind_of_refusal_has_its_error() {
        let codes = [
            (
                400,
                r#"{"error":{"type":"invalid_request_error","code":"parameter_missing","param":"items[0][price]"}}"#,
                "stripe_refused",
            ),
            (400, r#"{"error":{"type":"idempotency_error"}}"#, "stripe_key_reused"),
            (400, r#"{"error":{"type":"invalid_request_error","code":"resource_missing"}}"#, "stripe_missing"),
            (400, r#"{"error":{"code":"payment_intent_unexpected_state"}}"#, "stripe_wrong_state"),
            (401, "{}", "stripe_authentication"),
            (
                402,
                r#"{"error":{"type":"card_error","code":"card_declined","decline_code":"insufficient_funds"}}"#,
                "payment_declined",
            ),
            (403, "", "stripe_permission"),
            (404, "<html>", "stripe_missing"),
        ];
        for (status, body, code) in codes {
            let (error, again) = error(answer(status, body), true);
            assert_eq!((error.code(), again), (code, false), "{status} {body}");
        }
    }

    #[test]
    fn what_may_pass_is_tried_again_and_a_write_that_broke_is_not_called_harmless() {
        for (status, writes, code) in [
            (409, true, "stripe_unavailable"),
            (429, true, "stripe_rate_limited"),
            (500, true, "stripe_outcome_unknown"),
            (503, false, "stripe_unavailable"),
        ] {
            let (error, again) = error(answer(status, ""), writes);
            assert_eq!((error.code(), again), (code, true), "{status}");
        }
    }

    // D14
    #[test]
    fn a_saved_failure_spends_its_key_and_is_not_repeated() {
        let saved = Answer { replayed: true, ..answer(500, "{}") };
        let (error, again) = error(saved, true);
        assert!(error.is_key_spent() && !error.is_retryable() && !again);
    }

    #[test]
    fn stripes_own_word_on_trying_again_counts() {
        let (_, again) = error(Answer { should_retry: Some(false), ..answer(500, "") }, true);
        assert!(!again);
        let (_, again) = error(Answer { should_retry: Some(true), ..answer(400, "") }, true);
        assert!(again);
    }

    // W38
    #[test]
    fn no_word_of_an_answer_gets_into_an_error() {
        let body = r#"{"error":{"type":"invalid_request_error","code":"email_invalid: ada@example.com","param":"ada@example.com","message":"Invalid email address: ada@example.com"}}"#;
        let (error, _) = error(answer(400, body), true);
        assert!(!format!("{error} {error:?}").contains("ada"));
        let repeated =
            r#"{"error":{"type":"invalid_request_error","message":"An event already exists with identifier row-1."}}"#;
        let (error, _) = super::tests::error(answer(400, repeated), true);
        assert!(matches!(error, ProviderError::Refused { code, .. } if code == "duplicate_meter_event"));
    }
}
