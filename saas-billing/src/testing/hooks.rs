//! Webhooks over HTTP: signed deliveries with Stripe's patience.

use std::{fmt, io, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use http_body_util::Full;
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{
    chaos::Chaos,
    simulator::{Delivery, StripeSimulator},
};
use crate::provider::WebAddress;

/// Pauses after the tries of one event; after the last, every twelve hours, three days in all.
const PAUSES: [TimeDelta; 6] = [
    TimeDelta::minutes(5),
    TimeDelta::minutes(30),
    TimeDelta::hours(2),
    TimeDelta::hours(5),
    TimeDelta::hours(10),
    TimeDelta::hours(12),
];
const PATIENCE: TimeDelta = TimeDelta::days(3);

/// What came of a round of deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivered {
    /// Answered with 2xx.
    pub accepted: usize,
    /// Not answered, or otherwise; they come again.
    pub refused: usize,
    /// Given up after three days.
    pub lost: usize,
}

struct Waiting {
    event: Delivery,
    since: DateTime<Utc>,
    due: DateTime<Utc>,
    tries: usize,
}

/// Delivers the simulator's events to one endpoint.
pub struct WebhookSender {
    simulator: Arc<StripeSimulator>,
    authority: String,
    path: String,
    waiting: Vec<Waiting>,
}

impl WebhookSender {
    /// A sender to an `http` address.
    #[must_use]
    pub fn new(simulator: Arc<StripeSimulator>, endpoint: &WebAddress) -> Self {
        let rest = endpoint.as_str().trim_start_matches("http://").trim_start_matches("https://");
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        Self { simulator, authority: authority.to_owned(), path: format!("/{path}"), waiting: Vec::new() }
    }

    /// Sends what is due: what is new, and what was refused long enough ago. Every try is signed anew.
    pub async fn send_due(&mut self) -> Delivered {
        let new = self.simulator.deliveries();
        self.send(new).await
    }

    /// As [`send_due`](Self::send_due), over a bad network.
    pub async fn send_due_through(&mut self, chaos: Chaos) -> Delivered {
        let new = self.simulator.deliveries_through(chaos);
        self.send(new).await
    }

    /// How many events wait for another try.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    async fn send(&mut self, new: Vec<Delivery>) -> Delivered {
        let now = self.simulator.now();
        self.waiting.extend(new.into_iter().map(|event| Waiting { event, since: now, due: now, tries: 0 }));
        let (mut round, mut later) = (Delivered::default(), Vec::new());
        for mut one in std::mem::take(&mut self.waiting) {
            if one.due > now {
                later.push(one);
                continue;
            }
            let signature = self.simulator.sign(&one.event.body);
            if self.post(&one.event.body, &signature).await.is_ok_and(|status| (200..300).contains(&status)) {
                round.accepted += 1;
                continue;
            }
            let pause = PAUSES.get(one.tries).or(PAUSES.last()).copied().unwrap_or_default();
            one.tries += 1;
            one.due = now + pause;
            if one.due - one.since > PATIENCE {
                round.lost += 1;
            } else {
                round.refused += 1;
                later.push(one);
            }
        }
        self.waiting = later;
        round
    }

    async fn post(&self, body: &[u8], signature: &str) -> io::Result<u16> {
        let stream = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(async move { drop(connection.await) });
        let request = Request::post(&self.path)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json; charset=utf-8")
            .header("stripe-signature", signature)
            .body(Full::new(Bytes::copy_from_slice(body)))
            .map_err(io::Error::other)?;
        let answered = sender.send_request(request).await.map_err(io::Error::other);
        connection.abort();
        Ok(answered?.status().as_u16())
    }
}

impl fmt::Debug for WebhookSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSender")
            .field("authority", &self.authority)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}
