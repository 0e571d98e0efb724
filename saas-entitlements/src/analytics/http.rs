//! What sinks need of HTTP: one request, one answer.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{Cause, InvalidInput};

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// The header `Retry-After`, as it came.
    pub retry_after: Option<String>,
    /// The beginning of the body, for people: a kilobyte is plenty.
    pub body: Vec<u8>,
}

/// Posts JSON.
///
/// # Contract
/// - *Once*: one request per call; no repeats and no redirects, which would answer for another address than the one configured.
/// - *Bounded*: it ends within a time of its own, whatever the server does, and keeps a bounded part of the answer.
/// - *Any status is an answer*; an error is that there was none. The request may have arrived all the same.
/// - *Discreet*: neither the body nor the address is logged; the body holds the key.
///
/// Over the client that the application has:
/// ```
/// use saas_core::Cause;
/// use saas_entitlements::analytics::{HttpAnswer, HttpPost};
///
/// #[derive(Debug)]
/// struct Client; // a `reqwest::Client`, say
///
/// #[async_trait::async_trait]
/// impl HttpPost for Client {
///     async fn post(&self, url: &str, body: Vec<u8>) -> Result<HttpAnswer, Cause> {
///         // self.0.post(url).header("content-type", "application/json").body(body).send().await?
///         let (status, retry_after) = (200, None);
///         # drop((url, body));
///         Ok(HttpAnswer { status, retry_after, body: Vec::new() })
///     }
/// }
/// ```
#[async_trait]
pub trait HttpPost: fmt::Debug + Send + Sync + 'static {
    /// Posts `body` as `application/json` to `url`.
    async fn post(&self, url: &str, body: Vec<u8>) -> Result<HttpAnswer, Cause>;
}

/// When a server wants to be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    /// In so long.
    In(Duration),
    /// At an instant by its clock.
    At(DateTime<Utc>),
}

/// What is asked for beyond this is not waited for: a header must not stop a consumer for days.
const MOST: TimeDelta = TimeDelta::hours(1);

impl RetryAfter {
    /// Reads the header (RFC 9110, section 10.2.3): seconds, or a date. `None` for anything else.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let header = header.trim();
        if header.bytes().all(|byte| byte.is_ascii_digit()) {
            return header.parse().ok().map(|seconds| Self::In(Duration::from_secs(seconds)));
        }
        DateTime::parse_from_rfc2822(header).ok().map(|date| Self::At(date.to_utc()))
    }

    /// The first instant at which to ask again, an hour from now at most.
    #[must_use]
    pub fn from(self, now: DateTime<Utc>) -> DateTime<Utc> {
        let wished = match self {
            Self::In(wait) => TimeDelta::from_std(wait).map_or(MOST, |wait| wait.min(MOST)),
            Self::At(at) => at.signed_duration_since(now).clamp(TimeDelta::zero(), MOST),
        };
        now + wished
    }
}

/// The address of a service below a base, such as `https://host`.
pub(super) fn endpoint(base: &str, path: &str) -> Result<String, InvalidInput> {
    let rest = base.strip_prefix("https://").or_else(|| base.strip_prefix("http://"));
    let is_base = rest.is_some_and(|rest| {
        !rest.is_empty()
            && !rest.starts_with('/')
            && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"@?#\"\\".contains(&byte))
    });
    if is_base {
        return Ok(format!("{}{path}", base.trim_end_matches('/')));
    }
    let remedy = "give `https://host`, with neither a login nor a query";
    Err(InvalidInput::new("address of the analytics service", "is not one that can be posted to", remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_read_in_both_of_its_forms_and_has_an_end() {
        let now: DateTime<Utc> = "1994-11-06T08:49:00Z".parse().unwrap();
        let waits = |header: &str| RetryAfter::parse(header).map(|wish| (wish.from(now) - now).num_seconds());
        assert_eq!(waits("120"), Some(120));
        assert_eq!(waits(" 0 "), Some(0));
        assert_eq!(waits("Sun, 06 Nov 1994 08:49:37 GMT"), Some(37));
        assert_eq!(waits("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0), "over already");
        assert_eq!(waits("86400"), Some(3600));
        assert_eq!(waits("18446744073709551615"), Some(3600));
        assert_eq!(waits("Sat, 06 Nov 2094 08:49:37 GMT"), Some(3600));
        for nonsense in ["soon", "-1", "1.5", "18446744073709551616", ""] {
            assert!(RetryAfter::parse(nonsense).is_none(), "{nonsense}");
        }
    }

    #[test]
    fn an_address_is_one_that_can_be_posted_to() {
        assert_eq!(endpoint("https://eu.i.posthog.com/", "/batch/").unwrap(), "https://eu.i.posthog.com/batch/");
        assert_eq!(endpoint("http://127.0.0.1:8000/relay", "/v1").unwrap(), "http://127.0.0.1:8000/relay/v1");
        for bad in
            ["", "https://", "https:///x", "ftp://host", "host", "https://key@host", "https://host?x", "https://a b"]
        {
            assert!(endpoint(bad, "/batch/").is_err(), "{bad}");
        }
    }
}
