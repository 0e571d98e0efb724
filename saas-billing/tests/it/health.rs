//! Whether somebody would notice: the inbox, and the endpoint at Stripe, asked over HTTP.

use std::sync::Arc;

use chrono::TimeDelta;
use saas_billing::{
    BillingConfig, Stuck, WebhookAlarm, WebhookProcessor as _,
    event::needed,
    stripe::StripeApi,
    testing::{Fault, SimulatorServer},
};
use saas_core::{ErrorKind, PageSize, TenantContext as _};
use serde_json::json;

use crate::{
    provider::adapter,
    shop::{OPERATOR, Shop, config, id, service},
};

const URL: &str = "https://app.example.com/webhooks/stripe";
const VERSION: &str = "2026-09-30.endive";

fn watched(config: BillingConfig) -> BillingConfig {
    config.with_endpoint(URL.parse().unwrap()).with_api_version(VERSION)
}

/// A shop and its Stripe over HTTP.
async fn open() -> (Shop, StripeApi, SimulatorServer) {
    let shop = Shop::open_with(|stripe| stripe, watched).await;
    let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
    let stripe = StripeApi::new(adapter(&server)).unwrap();
    (shop, stripe, server)
}

async fn alarms(shop: &Shop, stripe: &StripeApi) -> Vec<WebhookAlarm> {
    shop.billing.webhook_health(stripe, &OPERATOR).await.unwrap().alarms
}

// f-W17, W21
#[tokio::test]
async fn an_endpoint_that_stripe_has_disabled_is_an_alarm() {
    let (shop, stripe, _server) = open().await;
    assert_eq!(alarms(&shop, &stripe).await, [WebhookAlarm::NoEndpoint]);
    shop.stripe.add_endpoint("https://other.example.com/hooks", &["*"], None);
    assert_eq!(alarms(&shop, &stripe).await, [WebhookAlarm::NoEndpoint], "another application's");
    let all: Vec<&str> = needed().collect();
    let endpoint = shop.stripe.add_endpoint(URL, &all, Some(VERSION));
    assert_eq!(alarms(&shop, &stripe).await, []);

    shop.stripe.set_endpoint_enabled(&endpoint, false);
    let health = shop.billing.webhook_health(&stripe, &OPERATOR).await.unwrap();
    assert_eq!(health.alarms, [WebhookAlarm::EndpointDisabled { endpoint: endpoint.clone() }]);
    assert_eq!((health.endpoints.len(), health.endpoints[0].enabled), (1, false));
    shop.stripe.set_endpoint_enabled(&endpoint, true);
    assert_eq!(alarms(&shop, &stripe).await, []);
}

// f-W14, W16: what is not delivered cannot be handled
#[tokio::test]
async fn types_that_are_handled_and_not_delivered_are_named() {
    let (shop, stripe, _server) = open().await;
    let some: Vec<&str> = needed().filter(|name| !matches!(*name, "invoice.paid" | "charge.dispute.created")).collect();
    let endpoint = shop.stripe.add_endpoint(URL, &some, Some("2020-08-27"));
    let expected = [
        WebhookAlarm::TypesMissing {
            endpoint: endpoint.clone(),
            types: vec!["invoice.paid", "charge.dispute.created"],
        },
        WebhookAlarm::OtherVersion { endpoint, version: "2020-08-27".to_owned() },
    ];
    assert_eq!(alarms(&shop, &stripe).await, expected);
}

// f-W17, W18, W19, W25
#[tokio::test]
async fn what_does_not_get_through_is_an_alarm_with_its_number_and_stripes_silence_is_one() {
    let (shop, stripe, _server) = open().await;
    shop.stripe.add_endpoint(URL, &["*"], Some(VERSION));
    let event = |event: &str, customer: &str| {
        json!({"id": event, "object": "event", "type": "customer.updated", "livemode": false, "created": 1_768_478_400,
            "data": {"object": {"id": customer, "object": "customer"}}})
    };
    let mut connect = event("evt_connect", "cus_1");
    connect["account"] = "acct_9".into();
    for body in [event("evt_1", "cus_1"), event("evt_1", "cus_2"), connect] {
        let _ = shop.receive_body(body.to_string().as_bytes()).await;
    }
    let _ = shop.receive_body(b"not json").await;
    let received = shop.stripe.now();
    shop.database.clock().advance(TimeDelta::minutes(6));
    let health = shop.billing.webhook_health(&stripe, &OPERATOR).await.unwrap();
    assert_eq!(health.inbox.last_received, Some(received));
    let expected = [
        WebhookAlarm::Lag { since: received },
        WebhookAlarm::Dead { receipts: 1, fetches: 0 },
        WebhookAlarm::Quarantined { receipts: 1 },
        WebhookAlarm::Conflicts { bodies: 1 },
    ];
    assert_eq!(health.alarms, expected);
    shop.stripe.inject([Fault::Unavailable, Fault::Unavailable, Fault::Unavailable]);
    let unheard = alarms(&shop, &stripe).await;
    assert_eq!(unheard.last(), Some(&WebhookAlarm::NotAsked { code: "stripe_unavailable".to_owned() }));
}

// W36, W10
#[tokio::test]
async fn a_clock_that_is_off_is_an_alarm_before_it_refuses_everything() {
    let (shop, stripe, _server) = open().await;
    shop.stripe.add_endpoint(URL, &["*"], Some(VERSION));
    let body =
        json!({"id": "evt_1", "object": "event", "type": "quantum.flux", "livemode": false, "created": 1_768_478_400,
        "data": {"object": {}}})
        .to_string();
    let deliver = async |seconds: i64| {
        let signature = shop.stripe.sign(body.as_bytes());
        shop.database.clock().advance(TimeDelta::seconds(seconds));
        shop.billing.process(body.as_bytes(), &signature).await.map(drop).map_err(|why| why.code())
    };
    assert_eq!(deliver(30).await, Ok(()));
    assert_eq!(alarms(&shop, &stripe).await, []);
    assert_eq!(deliver(31).await, Ok(()));
    assert_eq!(alarms(&shop, &stripe).await, [WebhookAlarm::Clock { age_seconds: 31 }]);
    assert_eq!(deliver(301).await, Err("signature_stale"));
    assert_eq!(alarms(&shop, &stripe).await, [WebhookAlarm::Clock { age_seconds: 301 }]);
    assert!(shop.billing.process(body.as_bytes(), "t=1,v1=00").await.is_err());
    let door = shop.billing.webhook_health(&stripe, &OPERATOR).await.unwrap().door;
    assert_eq!((door.signed, door.stale, door.unsigned), (2, 1, 1));
    assert_eq!(deliver(0).await, Ok(()));
    assert_eq!(alarms(&shop, &stripe).await, [], "mended");
}

// W19, f-W10: what came to the wrong endpoint is shown with its reason, and let in by the right one
#[tokio::test]
async fn events_of_a_connected_account_wait_for_its_own_service_and_are_let_in_by_it() {
    let shop = Shop::open().await;
    let connected = service(&shop.database, config(&shop.stripe).with_account(id("acct_9")));
    let event = |event: &str, live: bool| {
        json!({"id": event, "object": "event", "type": "customer.updated", "account": "acct_9", "livemode": live,
            "created": 1_768_478_400, "data": {"object": {"id": "cus_1", "object": "customer"}}})
    };
    for body in [event("evt_1", false), event("evt_2", false), event("evt_live", true)] {
        let _ = shop.receive_body(body.to_string().as_bytes()).await;
    }
    let shown = shop.billing.list_stuck(&OPERATOR, Stuck::Quarantined, None, PageSize::default()).await.unwrap().items;
    let whose: Vec<_> = shown.iter().map(|one| (one.account.as_deref(), one.livemode)).collect();
    assert_eq!(whose, [(Some("acct_9"), true), (Some("acct_9"), false), (Some("acct_9"), false)]);
    assert!(shown.iter().all(|one| one.reason.contains("account") || one.reason.contains("live")), "{shown:?}");
    // The platform's own service can neither apply nor replay them.
    assert_eq!(shop.apply().await.total(), 0);
    let why = shop.billing.replay(&OPERATOR, &id("evt_1")).await.unwrap_err();
    assert_eq!(why.kind(), ErrorKind::NotFound);
    assert_eq!(shop.billing.take_over_quarantined(&OPERATOR, 10).await.unwrap(), 0);

    let ctx = shop.database.create_tenant("acme").await;
    connected.link_customer(&ctx, &id("cus_1")).await.unwrap();
    assert_eq!(connected.take_over_quarantined(&OPERATOR, 1).await.unwrap(), 1, "as many as were asked for");
    assert_eq!(connected.take_over_quarantined(&OPERATOR, 10).await.unwrap(), 1, "and never one of the other mode");
    assert_eq!(connected.apply_pending(10).await.unwrap().applied, 2);
    let left = shop.billing.list_stuck(&OPERATOR, Stuck::Quarantined, None, PageSize::default()).await.unwrap().items;
    assert_eq!(left.len(), 1);
    // What Stripe sends to the right endpoint afterwards is the same event.
    let body = event("evt_1", false).to_string();
    let again = connected.process(body.as_bytes(), &shop.stripe.sign(body.as_bytes())).await.unwrap();
    assert_eq!(again, saas_billing::Accepted::Duplicate);
    assert_eq!(shop.scalar("select count(*) from saas.billing_object").await, 1);
    let _ = ctx.tenant();
}
