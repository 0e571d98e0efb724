//! What sinks over HTTP share: packing events into requests, and telling a bad event from a bad day.
//!
//! A request that is refused for its content is halved until the event that is to blame stands alone. What is refused for
//! anything else (key, address) is nobody's fault among the events: they wait.

use std::{fmt, ops::Range, sync::Arc};

use saas_core::InvalidInput;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::{HttpAnswer, HttpPost, RetryAfter, SinkError, http::endpoint};
use crate::usage::Delivery;

/// What a service takes at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// Bytes of a request's body.
    pub(super) body: usize,
    /// Bytes of an event.
    pub(super) event: usize,
    /// Events of a request.
    pub(super) events: usize,
}

/// Requests of one call. What is left over goes again later, so that a service which refuses everything is not asked a
/// thousand times in a row.
const REQUESTS: usize = 64;

/// Carries events that are rendered already.
pub(super) struct Courier {
    http: Arc<dyn HttpPost>,
    url: String,
    most: Most,
    /// What stands around the events: the key is in it.
    around: (String, String),
    key: SecretString,
}

impl fmt::Debug for Courier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier")
            .field("http", &self.http)
            .field("url", &self.url)
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

impl Courier {
    pub(super) fn new(
        http: Arc<dyn HttpPost>,
        (base, path): (&str, &str),
        (key_name, key): (&str, SecretString),
        most: Most,
    ) -> Result<Self, InvalidInput> {
        if key.expose_secret().trim().is_empty() {
            let remedy = "give the key of the project or source";
            return Err(InvalidInput::new("key of the analytics service", "is empty", remedy));
        }
        let around = (format!("{{\"{key_name}\":{},\"batch\":[", json!(key.expose_secret())), "]}".to_owned());
        Ok(Self { http, url: endpoint(base, path)?, most, around, key })
    }

    /// What became of each of the events.
    pub(super) async fn carry(&self, events: &[String]) -> Result<Vec<Delivery>, SinkError> {
        let left_over = Delivery::Retry { why: "left over: the service refuses much of what it is sent".to_owned() };
        let mut answers = vec![left_over; events.len()];
        let mut requests = self.pack(events, &mut answers);
        // The first events first.
        requests.reverse();
        let mut sent = 0;
        while let Some(range) = requests.pop() {
            if sent == REQUESTS {
                break;
            }
            sent += 1;
            let Some(refused) = self.send(&events[range.clone()]).await? else {
                answers[range].fill(Delivery::Taken);
                continue;
            };
            if range.len() == 1 {
                answers[range.start] = Delivery::Refused { why: refused };
                continue;
            }
            let middle = range.start + range.len() / 2;
            requests.extend([middle..range.end, range.start..middle]);
        }
        Ok(answers)
    }

    /// The events in requests that the service takes by their size; what it never takes is answered for.
    fn pack(&self, events: &[String], answers: &mut [Delivery]) -> Vec<Range<usize>> {
        let (mut requests, frame) = (Vec::new(), self.around.0.len() + self.around.1.len());
        let (mut start, mut bytes) = (0, frame);
        for (at, event) in events.iter().enumerate() {
            // With its comma.
            let size = event.len() + 1;
            if event.len() > self.most.event || frame + size > self.most.body {
                let why = format!("is {} bytes; the service takes {} at most", event.len(), self.most.event);
                answers[at] = Delivery::Refused { why };
                requests.push(start..at);
                (start, bytes) = (at + 1, frame);
                continue;
            }
            if bytes + size > self.most.body || at - start == self.most.events {
                requests.push(start..at);
                (start, bytes) = (at, frame);
            }
            bytes += size;
        }
        requests.push(start..events.len());
        requests.retain(|range| !range.is_empty());
        requests
    }

    /// Sends some events: `None` when they are taken, or why these events are refused.
    async fn send(&self, events: &[String]) -> Result<Option<String>, SinkError> {
        let (before, after) = &self.around;
        let body = [before, events.join(",").as_str(), after].concat();
        let answer = self.http.post(&self.url, body.into_bytes()).await.map_err(|cause| SinkError::Busy {
            why: "there was no answer".to_owned(),
            retry_after: None,
            cause: Some(cause),
        })?;
        let said = self.said(&answer);
        match answer.status {
            200..=299 => Ok(None),
            // What these say is about the content of the request.
            400 | 413 | 422 => Ok(Some(said)),
            408 | 425 | 429 | 500..=599 => {
                let retry_after = answer.retry_after.as_deref().and_then(RetryAfter::parse);
                Err(SinkError::Busy { why: said, retry_after, cause: None })
            }
            _ => Err(SinkError::Misconfigured { why: said }),
        }
    }

    /// The status and the beginning of what was said with it, in one line and without the key, which some repeat.
    fn said(&self, answer: &HttpAnswer) -> String {
        let text = String::from_utf8_lossy(&answer.body).replace(self.key.expose_secret(), "…");
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
        format!("{} {}", answer.status, text.trim()).trim_end().to_owned()
    }
}
