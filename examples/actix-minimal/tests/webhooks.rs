//! The webhook endpoints of both frameworks, over real HTTP: what Stripe signed gets through byte for byte, and nothing else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{HttpServer, dev::ServerHandle};
use async_trait::async_trait;
use axum::{Router, extract::DefaultBodyLimit};
use saas_billing::{
    Accepted, Billing, BillingConfig, BillingError, Mode, SIGNATURE_HEADER, SigningSecrets, StripeSecret,
    WebhookProcessor,
    testing::StripeSimulator,
    web::{actix::endpoint, tower::WebhookEndpoint},
};
use saas_core::{Actor, Clock as _, PlanCatalog, SharedClock, testing::TestDatabase};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const PATH: &str = "/webhooks/stripe";
const LIMIT: usize = 64 * 1024;

/// One processor behind both.
struct Endpoints {
    axum: SocketAddr,
    actix: SocketAddr,
    handle: ServerHandle,
}

impl Endpoints {
    async fn of(processor: Arc<dyn WebhookProcessor>) -> Self {
        // Limits of the application's own do not come in between.
        let router = Router::new().route_service(PATH, WebhookEndpoint::new(Arc::clone(&processor)));
        let router = router.layer(DefaultBodyLimit::max(16));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let axum = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, router).into_future());
        let server = HttpServer::new(move || {
            let limit = actix_web::web::PayloadConfig::new(16);
            let app = actix_web::App::new().app_data(limit);
            app.service(endpoint(PATH, Arc::clone(&processor)))
        });
        let server = server.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
        let actix = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { axum, actix, handle }
    }

    /// The status that both answer.
    async fn send(&self, head: &str, body: &[u8]) -> u16 {
        let (axum, actix) = (send(self.axum, head, body).await, send(self.actix, head, body).await);
        assert_eq!(axum, actix, "axum answers the one, actix the other, to:\n{head}");
        axum
    }

    async fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> u16 {
        let mut head = format!("POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.send(&head, body).await
    }
}

async fn send(to: SocketAddr, head: &str, body: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.unwrap();
    // Who stops reading answers before all is sent.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    assert!(body.is_empty() || body.trim() == "0", "an answer says nothing to whoever asks: {answer}");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    assert!(status != Some(405) || head.to_ascii_lowercase().contains("allow: post"), "{head}");
    status.unwrap_or(0)
}

/// What is answered to a body whose rest never comes, to the end of the connection.
async fn stall(to: SocketAddr, head: &str, part: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(part).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// The same, with a byte now and then.
async fn drip(to: SocketAddr, head: &str) -> String {
    let (mut read, mut write) = TcpStream::connect(to).await.unwrap().into_split();
    write.write_all(head.as_bytes()).await.unwrap();
    let drops = tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(20));
        while write.write_all(b" ").await.is_ok() {
            every.tick().await;
        }
    });
    let mut answer = Vec::new();
    // What is sent to a closed connection resets it.
    let _ = read.read_to_end(&mut answer).await;
    drops.abort();
    String::from_utf8(answer).unwrap()
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut chunks = Vec::new();
    for chunk in body.chunks(1_000) {
        chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunks.extend_from_slice(chunk);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    chunks
}

// W1, W2, W39
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stripe_signed_gets_through_byte_for_byte_and_nothing_else() {
    let db = TestDatabase::start(&[&saas_core::SCHEMA, &saas_billing::SCHEMA]).await;
    let stripe = StripeSimulator::new("whsec_test_0123456789abcdef", db.clock().clone()).unwrap();
    let catalog = PlanCatalog::from_toml(include_str!("../../axum-minimal/plans.toml")).unwrap();
    let secrets = SigningSecrets::new(vec![stripe.secret()]).unwrap();
    let config = BillingConfig::new(catalog, secrets, Mode::Test).with_body_limit(LIMIT);
    let clock: SharedClock = Arc::new(db.clock().clone());
    let billing = Billing::new(config, Arc::new(db.tenants().clone()), db.system().clone(), clock);
    let endpoints = Endpoints::of(Arc::new(billing)).await;
    let mut owner = db.owner().await;
    let mut receipts = async || -> i64 {
        sqlx::query_scalar("select count(*) from saas.billing_receipt").fetch_one(&mut owner).await.unwrap()
    };

    // Pretty-printed, with characters that a parser would write in another way.
    let body = "{\n  \"id\": \"evt_1\", \"object\": \"event\", \"type\": \"customer.updated\", \"created\": 1800000000,\n  \
                \"livemode\": false, \"data\": {\"object\": {\"id\": \"cus_1\", \"object\": \"customer\", \"name\": \"\\u00e4 ä /\"}}}\n";
    let body = body.as_bytes();
    let signature = stripe.sign(body);
    let signed = (SIGNATURE_HEADER, signature.as_str());
    for content_type in ["application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded"] {
        assert_eq!(endpoints.post(&[signed, ("content-type", content_type)], body).await, 200, "{content_type}");
    }
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n{SIGNATURE_HEADER}: {signature}\r\n"
    );
    assert_eq!(endpoints.send(&head, &chunked(body)).await, 200);
    assert_eq!(receipts().await, 1, "six deliveries of one event");

    assert_eq!(endpoints.post(&[], body).await, 400, "nobody signed it");
    let mut tampered = body.to_vec();
    let last = tampered.len() - 1;
    tampered[last] = b' ';
    assert_eq!(endpoints.post(&[signed], &tampered).await, 400, "one byte");
    assert_eq!(endpoints.send(&format!("GET {PATH} HTTP/1.1\r\nhost: localhost\r\n"), b"").await, 405);
    assert_eq!(endpoints.send(&format!("PUT {PATH} HTTP/1.1\r\nhost: localhost\r\n"), b"").await, 405);
    let large = vec![b' '; LIMIT + 1];
    let signature = stripe.sign(&large);
    assert_eq!(endpoints.post(&[(SIGNATURE_HEADER, &signature)], &large).await, 413);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n{SIGNATURE_HEADER}: {signature}\r\n"
    );
    assert_eq!(endpoints.send(&head, &chunked(&large)).await, 413, "of unknown length");
    assert_eq!(receipts().await, 1, "nothing of that was kept");
    endpoints.handle.stop(false).await;
}

/// A processor that cannot store anything at present.
#[derive(Debug)]
struct Slow;

#[async_trait]
impl WebhookProcessor for Slow {
    async fn process(&self, _: &[u8], _: &str) -> Result<Accepted, BillingError> {
        Err(BillingError::TooSlow { seconds: 5 })
    }
}

// W4: Stripe comes again
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_stored_is_asked_for_again() {
    let endpoints = Endpoints::of(Arc::new(Slow)).await;
    assert_eq!(endpoints.post(&[(SIGNATURE_HEADER, "t=1,v1=00")], b"{}").await, 503);
    endpoints.handle.stop(false).await;
}

/// A processor that waits no longer for a body than a test does.
#[derive(Debug)]
struct Hurried;

#[async_trait]
impl WebhookProcessor for Hurried {
    async fn process(&self, _: &[u8], _: &str) -> Result<Accepted, BillingError> {
        Ok(Accepted::Stored)
    }

    fn body_limit(&self) -> usize {
        LIMIT
    }

    fn body_deadline(&self) -> Duration {
        Duration::from_secs(1)
    }
}

// W13: before the signature is checked, whoever sends is anybody
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_in_time_is_given_up_and_its_connection_closed() {
    let endpoints = Endpoints::of(Arc::new(Hurried)).await;
    assert_eq!(endpoints.post(&[], b"{}").await, 200);
    let head = |length: &str| format!("POST {PATH} HTTP/1.1\r\nhost: localhost\r\n{length}\r\n\r\n");
    let (sized, chunks) = (head("content-length: 1000"), head("transfer-encoding: chunked"));
    for to in [endpoints.axum, endpoints.actix] {
        let large = format!("{:x}\r\n{}", LIMIT + 9, " ".repeat(LIMIT + 9));
        let answer = stall(to, &chunks, large.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "nor is what is too large waited for: {answer}");
        for (head, part) in [(&sized, b"{\"id\": ".as_slice()), (&sized, b""), (&chunks, b"7\r\n{\"id\": \r\n")] {
            let answer = stall(to, head, part).await.to_ascii_lowercase();
            assert!(answer.starts_with("http/1.1 408 "), "{answer}");
            assert!(answer.contains("connection: close"), "{answer}");
        }
        let answer = drip(to, &sized).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "the whole body has the time, not each byte: {answer}");
    }
    endpoints.handle.stop(false).await;
}

// W11: old and new for a while, then only the new one; nothing is lost on the way, and no process is started anew
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signing_secret_is_rolled_while_both_endpoints_serve() {
    const OPERATOR: Actor = Actor::system("test");
    let db = TestDatabase::start(&[&saas_core::SCHEMA, &saas_billing::SCHEMA]).await;
    let secret = |text: &str| StripeSecret::new(text.to_owned().into()).unwrap();
    let (old, new) = (secret("whsec_old_0123456789abcdef"), secret("whsec_new_0123456789abcdef"));
    let catalog = PlanCatalog::from_toml(include_str!("../../axum-minimal/plans.toml")).unwrap();
    let config = BillingConfig::new(catalog, SigningSecrets::new(vec![old.clone()]).unwrap(), Mode::Test);
    let clock: SharedClock = Arc::new(db.clock().clone());
    let billing = Billing::new(config, Arc::new(db.tenants().clone()), db.system().clone(), clock);
    let endpoints = Arc::new(Endpoints::of(Arc::new(billing.clone())).await);
    let event = |n: usize| {
        format!(
            "{{\"id\": \"evt_{n}\", \"object\": \"event\", \"type\": \"customer.updated\", \"created\": 1800000000,
               \"livemode\": false, \"data\": {{\"object\": {{\"id\": \"cus_1\", \"object\": \"customer\"}}}}}}"
        )
    };
    let post = |n: usize, by: &StripeSecret| {
        let body = event(n);
        let (endpoints, signature) = (Arc::clone(&endpoints), by.sign(body.as_bytes(), db.clock().now()));
        async move { endpoints.post(&[(SIGNATURE_HEADER, &signature)], body.as_bytes()).await }
    };
    assert_eq!((post(0, &old).await, post(1, &new).await), (200, 400));

    // While deliveries are under way.
    let underway: Vec<_> = (10..40).map(|n| tokio::spawn(post(n, &old))).collect();
    billing.roll_secret(&OPERATOR, new.clone(), chrono::TimeDelta::hours(1)).unwrap();
    billing.roll_secret(&OPERATOR, new.clone(), chrono::TimeDelta::hours(1)).unwrap();
    for one in underway {
        assert_eq!(one.await.unwrap(), 200);
    }
    assert_eq!((post(40, &old).await, post(41, &new).await), (200, 200));
    let body = event(42);
    let now = db.clock().now();
    let part = |by: &StripeSecret| by.sign(body.as_bytes(), now).split_once(',').unwrap().1.to_owned();
    let both = format!("t={},{},{}", now.timestamp(), part(&old), part(&new));
    assert_eq!(endpoints.post(&[(SIGNATURE_HEADER, &both)], body.as_bytes()).await, 200);

    db.clock().advance(chrono::TimeDelta::hours(1));
    assert_eq!((post(43, &old).await, post(44, &new).await), (200, 200), "the last second of the old one");
    db.clock().advance(chrono::TimeDelta::seconds(1));
    assert_eq!((post(45, &old).await, post(46, &new).await), (400, 200));

    // What does not fit changes nothing.
    for overlap in [chrono::TimeDelta::days(8), chrono::TimeDelta::seconds(-1)] {
        assert!(billing.roll_secret(&OPERATOR, old.clone(), overlap).is_err());
    }
    assert_eq!((post(47, &old).await, post(48, &new).await), (400, 200));
    billing.replace_secrets(&OPERATOR, SigningSecrets::new(vec![old.clone()]).unwrap());
    assert_eq!((post(49, &old).await, post(50, &new).await), (200, 400));
    let mut owner = db.owner().await;
    let receipts: i64 =
        sqlx::query_scalar("select count(*) from saas.billing_receipt").fetch_one(&mut owner).await.unwrap();
    assert_eq!(receipts, 39);
    endpoints.handle.stop(false).await;
}
