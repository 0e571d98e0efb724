//! What the simulator does by itself and to browsers: schedules, usage, pages, webhooks over HTTP.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use chrono::{DateTime, TimeDelta};
use saas_billing::{
    PaymentProvider, SigningSecrets,
    object::{Interval, ObjectKind},
    provider::{
        Aggregation, Command, MeterReading, NewCustomer, NewMeter, NewPortal, NewPrice, NewProduct, NewSubscription,
        OnFailedPayment, PageLimit, Phase, PricedBy, Proration, Query, Tier,
    },
    stripe::StripeApi,
    testing::{Chaos, CheckoutRequest, Fault, SimulatorServer, StripeSimulator, WebhookSender},
};
use saas_core::Clock as _;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::provider::{adapter, simulator};

/// One HTTP exchange, as a browser makes it: status, `location`, body.
async fn browse(address: &str, method: &str, path: &str, form: &str) -> (u16, Option<String>, String) {
    let authority = address.trim_start_matches("http://");
    let path = path.trim_start_matches(address);
    let mut stream = TcpStream::connect(authority).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let location = head.lines().find_map(|line| line.strip_prefix("location: ")).map(str::to_owned);
    (status, location, body.to_owned())
}

async fn done(stripe: &dyn PaymentProvider, command: Command, key: &str) -> Value {
    let reply = stripe.execute(&command, &key.parse().unwrap()).await.unwrap();
    serde_json::from_str(reply.object.get()).unwrap()
}

fn bought(stripe: &StripeSimulator) -> saas_billing::testing::Purchase {
    stripe.create_price("price_pro", 2000, "eur", &Interval::Month);
    let session = stripe.checkout(CheckoutRequest::new("price_pro"));
    stripe.complete_checkout(&session).unwrap()
}

fn item(stripe: &StripeSimulator, subscription: &saas_billing::ObjectId) -> (String, i64) {
    let object = stripe.object(ObjectKind::Subscription, subscription).unwrap();
    let item = &object["items"]["data"][0];
    (item["price"]["id"].as_str().unwrap().to_owned(), item["current_period_end"].as_i64().unwrap())
}

// f-B8
#[tokio::test]
async fn a_scheduled_downgrade_comes_with_the_next_period_at_its_price() {
    let (stripe, _) = simulator();
    let purchase = bought(&stripe);
    stripe.create_price("price_small", 500, "eur", &Interval::Month);
    stripe.create_price("price_year", 5000, "eur", &Interval::Year);
    for (round, price, days) in [(0, "price_small", 31), (1, "price_year", 366)] {
        let (old, end) = item(&stripe, &purchase.subscription);
        let attach = Command::AttachSchedule(purchase.subscription.clone());
        let schedule = done(stripe.as_ref(), attach, &format!("attach-{round}")).await;
        let start = DateTime::from_timestamp(schedule["phases"][0]["start_date"].as_i64().unwrap(), 0);
        let phases = vec![
            Phase {
                start,
                end: DateTime::from_timestamp(end, 0),
                items: vec![(old.parse().unwrap(), Some(1))],
                proration: Proration::None,
                discounts: Vec::new(),
            },
            Phase {
                start: None,
                end: None,
                items: vec![(price.parse().unwrap(), Some(1))],
                proration: Proration::None,
                discounts: Vec::new(),
            },
        ];
        let schedule = schedule["id"].as_str().unwrap().parse().unwrap();
        done(stripe.as_ref(), Command::PlanPhases { schedule, phases }, &format!("plan-{round}")).await;
        let end = DateTime::from_timestamp(end, 0).unwrap();
        stripe.advance(end - stripe.now() - TimeDelta::seconds(1));
        assert_eq!(item(&stripe, &purchase.subscription).0, old, "not before");
        stripe.advance(TimeDelta::hours(2));
        let (now, next) = item(&stripe, &purchase.subscription);
        assert_eq!((now.as_str(), (next - end.timestamp()) / 86_400), (price, days));
        let subscription = stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
        let invoice = subscription["latest_invoice"].as_str().unwrap().parse().unwrap();
        let total = if price == "price_year" { 5000 } else { 500 };
        assert_eq!(stripe.object(ObjectKind::Invoice, &invoice).unwrap()["total"], total);
        stripe.advance(DateTime::from_timestamp(next, 0).unwrap() - stripe.now() + TimeDelta::hours(2));
        let released = stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
        assert!(released["schedule"].is_null() && released["status"] == "active");
    }
}

#[tokio::test]
async fn usage_is_charged_with_the_period_after_it_in_tiers() {
    let (stripe, _) = simulator();
    let new = NewCustomer { email: None, name: None, metadata: Default::default(), test_clock: None };
    let customer = done(stripe.as_ref(), Command::CreateCustomer(new), "customer").await;
    let customer: saas_billing::ObjectId = customer["id"].as_str().unwrap().parse().unwrap();
    let meter = NewMeter { name: "Calls".into(), event_name: "calls".into(), aggregation: Aggregation::Sum };
    let meter = done(stripe.as_ref(), Command::CreateMeter(meter), "meter").await;
    let product = NewProduct { id: "prod_calls".parse().unwrap(), name: "Calls".into(), metadata: Default::default() };
    done(stripe.as_ref(), Command::CreateProduct(product), "product").await;
    let tiers = vec![
        Tier { up_to: Some(100), unit_amount: 0, flat_amount: 0 },
        Tier { up_to: None, unit_amount: 2, flat_amount: 0 },
    ];
    let price = NewPrice {
        product: "prod_calls".parse().unwrap(),
        currency: "eur".into(),
        interval: Interval::Month,
        by: PricedBy::Graduated(tiers),
        meter: Some(meter["id"].as_str().unwrap().parse().unwrap()),
        lookup_key: "calls".into(),
        takes_over_key: false,
        metadata: Default::default(),
    };
    let price = done(stripe.as_ref(), Command::CreatePrice(price), "price").await;
    let subscription = NewSubscription {
        customer: customer.clone(),
        items: vec![(price["id"].as_str().unwrap().parse().unwrap(), None)],
        trial_days: None,
        discount: None,
        on_failed_payment: OnFailedPayment::Owe,
        metadata: Default::default(),
    };
    let subscription = done(stripe.as_ref(), Command::CreateSubscription(subscription), "subscription").await;
    assert_eq!(subscription["status"], "active", "nothing is due yet");
    for (n, value) in [60, 70].into_iter().enumerate() {
        stripe.advance(TimeDelta::days(2));
        let identifier = format!("row-{n}");
        let reading = MeterReading {
            event_name: "calls".into(),
            customer: customer.clone(),
            value,
            at: stripe.now(),
            identifier,
        };
        done(stripe.as_ref(), Command::ReportUsage(reading), &format!("reading-{n}")).await;
    }
    let totals = Query::MeterTotals {
        meter: meter["id"].as_str().unwrap().parse().unwrap(),
        customer,
        from: stripe.now() - TimeDelta::days(10),
        to: stripe.now() + TimeDelta::minutes(1),
        daily: false,
    };
    let totals = stripe.list(&totals, None, PageLimit::MAX).await.unwrap().objects;
    assert!(totals[0].get().contains("\"aggregated_value\": 130"), "{}", totals[0].get());
    stripe.advance(TimeDelta::days(26));
    let id = subscription["id"].as_str().unwrap().parse().unwrap();
    let invoice =
        stripe.object(ObjectKind::Subscription, &id).unwrap()["latest_invoice"].as_str().unwrap().parse().unwrap();
    let invoice = stripe.object(ObjectKind::Invoice, &invoice).unwrap();
    assert_eq!((&invoice["total"], &invoice["lines"]["data"][0]["quantity"]), (&60.into(), &130.into()));
}

// f-B1
#[tokio::test]
async fn a_browser_subscribes_looks_after_things_and_pays() {
    let (stripe, _) = simulator();
    stripe.create_price("price_pro", 2000, "eur", &Interval::Month);
    let server = SimulatorServer::start(Arc::clone(&stripe)).await.unwrap();
    let (api, address) = (StripeApi::new(adapter(&server)).unwrap(), server.address().as_str());
    let new = NewCustomer { email: None, name: None, metadata: Default::default(), test_clock: None };
    let customer: saas_billing::ObjectId =
        done(&api, Command::CreateCustomer(new), "customer").await["id"].as_str().unwrap().parse().unwrap();
    let page = saas_billing::provider::NewCheckout {
        customer: customer.clone(),
        items: vec![("price_pro".parse().unwrap(), Some(2))],
        success: "https://app.example.com/done?session={CHECKOUT_SESSION_ID}".parse().unwrap(),
        cancel: "https://app.example.com/billing".parse().unwrap(),
        trial_days: None,
        trial_payment: saas_billing::provider::TrialPayment::Required,
        promotion_codes: false,
        discount: None,
        automatic_tax: false,
        tax_ids: false,
        metadata: Default::default(),
    };
    let session = done(&api, Command::OpenCheckout(page), "page").await;
    let url = session["url"].as_str().unwrap();
    let (status, _, html) = browse(address, "GET", url, "").await;
    assert!(status == 200 && html.contains("price_pro") && html.contains("4000"), "{html}");
    assert_eq!(browse(address, "POST", url, "do=cancel").await.1.unwrap(), "https://app.example.com/billing");
    assert!(browse(address, "POST", url, "do=decline").await.2.contains("declined"));
    let landed = browse(address, "POST", url, "do=pay").await;
    assert_eq!(landed.1.unwrap(), format!("https://app.example.com/done?session={}", session["id"].as_str().unwrap()));
    assert_eq!(browse(address, "POST", url, "do=pay").await.0, 404, "once");
    let subscription = stripe.living(ObjectKind::Subscription).remove(0);

    let portal = NewPortal {
        customer: customer.clone(),
        back: "https://app.example.com/billing".parse().unwrap(),
        configuration: None,
    };
    let portal = done(&api, Command::OpenPortal(portal), "portal").await;
    let portal = portal["url"].as_str().unwrap();
    assert_eq!(browse(address, "POST", portal, "do=cancel").await.0, 303);
    assert_eq!(stripe.object(ObjectKind::Subscription, &subscription).unwrap()["cancel_at_period_end"], true);
    let _ = browse(address, "POST", portal, "do=keep").await;
    let _ = browse(address, "POST", portal, "do=bad-card").await;
    stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
    assert_eq!(stripe.object(ObjectKind::Subscription, &subscription).unwrap()["status"], "past_due");
    let invoices =
        Query::Invoices { customer: Some(customer), status: Some(saas_billing::object::InvoiceStatus::Open) };
    let open = api.list(&invoices, None, PageLimit::MAX).await.unwrap().objects;
    let open: Value = serde_json::from_str(open[0].get()).unwrap();
    let (_, _, html) = browse(address, "GET", portal, "").await;
    assert!(html.contains(open["id"].as_str().unwrap()), "{html}");
    assert_eq!(browse(address, "POST", open["hosted_invoice_url"].as_str().unwrap(), "do=pay").await.0, 303);
    assert_eq!(stripe.object(ObjectKind::Subscription, &subscription).unwrap()["status"], "active");
    assert_eq!(browse(address, "GET", "/pay/cs_test_absent", "").await.0, 404);
}

/// A body and its signature.
type Received = (Vec<u8>, String);

/// An endpoint of an application: what it received, and what it answers.
struct Endpoint {
    address: String,
    received: Arc<Mutex<Vec<Received>>>,
    failing: Arc<AtomicUsize>,
    listening: tokio::task::JoinHandle<()>,
}

impl Endpoint {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/webhook", listener.local_addr().unwrap());
        let (received, failing) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (kept, fails) = (Arc::clone(&received), Arc::clone(&failing));
        let listening = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (head, body) = read(&mut stream).await;
                let fail = fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
                if !fail {
                    let signature = head.lines().find_map(|line| line.strip_prefix("stripe-signature: "));
                    kept.lock().unwrap().push((body, signature.unwrap().to_owned()));
                }
                let status = if fail { "503 Busy" } else { "200 OK" };
                let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
            }
        });
        Self { address, received, failing, listening }
    }
}

async fn read(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if bytes.len() >= end + 4 + length.parse::<usize>().unwrap() {
                return (head, bytes[end + 4..].to_vec());
            }
        }
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).await.unwrap();
        assert!(n > 0, "a request that ends too early");
        bytes.extend_from_slice(&piece[..n]);
    }
}

// W20, W22: three days of patience, every try signed anew
#[tokio::test]
async fn events_come_over_http_signed_and_come_again_until_they_are_accepted_or_three_days_are_over() {
    let (stripe, clock) = simulator();
    let endpoint = Endpoint::open().await;
    let mut sender = WebhookSender::new(Arc::clone(&stripe), &endpoint.address.parse().unwrap());
    bought(&stripe);
    let events = stripe.all_events().len();
    endpoint.failing.store(2, Ordering::SeqCst);
    let first = sender.send_due().await;
    assert_eq!((first.accepted, first.refused), (events - 2, 2));
    assert_eq!(sender.send_due().await.accepted, 0, "not at once");
    clock.advance(TimeDelta::minutes(5));
    assert_eq!(sender.send_due().await.accepted, 2);
    let secrets = SigningSecrets::new(vec![stripe.secret()]).unwrap();
    for (body, signature) in endpoint.received.lock().unwrap().iter().rev().take(2) {
        secrets.verify(body, signature, clock.now()).unwrap();
    }
    stripe.create_customer("ada@example.com");
    endpoint.failing.store(usize::MAX, Ordering::SeqCst);
    let (mut refused, mut lost) = (0, 0);
    for _ in 0..80 {
        let round = sender.send_due().await;
        (refused, lost) = (refused + round.refused, lost + round.lost);
        clock.advance(TimeDelta::hours(1));
    }
    assert_eq!((lost, sender.waiting()), (1, 0));
    assert!((8..=11).contains(&refused), "{refused} tries in three days");

    endpoint.failing.store(0, Ordering::SeqCst);
    for name in ["bob@example.com", "eve@example.com"] {
        stripe.create_customer(name);
    }
    let doubled = sender.send_due_through(Chaos::shuffled(3).duplicating(100)).await;
    assert_eq!(doubled.accepted, 4);
    endpoint.listening.abort();
}

// Lesson 10
#[tokio::test]
async fn an_event_names_the_key_of_the_write_that_caused_it_and_the_list_has_what_was_lost() {
    let (stripe, _) = simulator();
    let new = NewCustomer { email: None, name: None, metadata: Default::default(), test_clock: None };
    done(stripe.as_ref(), Command::CreateCustomer(new), "our-key").await;
    stripe.create_customer("ada@example.com");
    drop(stripe.deliveries());
    let listed = stripe.list(&Query::Events { created_from: None }, None, PageLimit::MAX).await.unwrap().objects;
    let keys: Vec<Value> = listed
        .iter()
        .map(|event| serde_json::from_str::<Value>(event.get()).unwrap()["request"]["idempotency_key"].clone())
        .collect();
    assert_eq!(keys, [Value::Null, "our-key".into()], "newest first");
}

#[tokio::test]
async fn a_test_clock_moves_the_simulator_over_http_and_unknown_parameters_are_refused() {
    let (stripe, clock) = simulator();
    bought(&stripe);
    let server = SimulatorServer::start(Arc::clone(&stripe)).await.unwrap();
    let call = async |path: &str, form: String| {
        let authority = server.address().as_str().trim_start_matches("http://").to_owned();
        let mut stream = TcpStream::connect(&authority).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {authority}\r\nauthorization: Bearer sk_test_x\r\nconnection: close\r\n"
        );
        stream.write_all(format!("{head}content-length: {}\r\n\r\n{form}", form.len()).as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serde_json::from_str::<Value>(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    };
    let made = call("/v1/test_helpers/test_clocks", format!("frozen_time={}", clock.now().timestamp())).await;
    let to = clock.now() + TimeDelta::days(32);
    let path = format!("/v1/test_helpers/test_clocks/{}/advance", made["id"].as_str().unwrap());
    assert_eq!(call(&path, format!("frozen_time={}", to.timestamp())).await["status"], "ready");
    assert_eq!(stripe.now(), to);
    assert_eq!(stripe.living(ObjectKind::Invoice).len(), 2, "it renewed meanwhile");
    let refused = call("/v1/customers", "email=ada%40example.com&colour=red".to_owned()).await;
    assert_eq!(
        (&refused["error"]["code"], &refused["error"]["param"]),
        (&"parameter_unknown".into(), &"colour".into())
    );
    stripe.inject([Fault::Unavailable]);
    assert_eq!(call("/v1/customers", String::new()).await["error"]["type"], "api_error");
}
