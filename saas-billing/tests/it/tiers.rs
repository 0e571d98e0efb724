//! Every type of event, in every shape that Stripe has for it: what becomes of it, through the real store.

use std::collections::{BTreeMap, BTreeSet};

use saas_billing::{
    Accepted,
    event::{Decision, NoticeKind, TABLE, Tier, needed},
    object::ObjectKind,
};
use saas_core::{PageSize, TenantContext};
use serde_json::{Value, json};

use crate::shop::{OPERATOR, Shop, id};

/// How an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    Current,
    /// As before 2025-03-31: fields in their old places.
    Old,
    /// A notification without content.
    Thin,
    /// Of a version that does not exist yet: nothing is where it was.
    Unheard,
}

/// What is to become of an event with content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Merged(ObjectKind),
    Read(ObjectKind),
    Told(NoticeKind),
    /// A report of usage is to be read.
    Reported,
    Nothing,
}

use Due::{Merged, Nothing, Read, Reported, Told};
use ObjectKind::{Charge, CheckoutSession, CreditNote, Customer, Dispute, Invoice, Refund, Subscription};

/// The types of each tier, written down a second time: what the table says must be meant.
const DUE: &[(Tier, &str, &[&str], Due)] = &[
    (
        Tier::State,
        "checkout.session",
        &["completed", "async_payment_succeeded", "async_payment_failed", "expired"],
        Merged(CheckoutSession),
    ),
    (Tier::State, "customer", &["created", "updated", "deleted"], Merged(Customer)),
    (
        Tier::State,
        "customer.subscription",
        &[
            "created",
            "updated",
            "deleted",
            "paused",
            "resumed",
            "trial_will_end",
            "pending_update_applied",
            "pending_update_expired",
        ],
        Merged(Subscription),
    ),
    (
        Tier::State,
        "subscription_schedule",
        &["created", "updated", "released", "canceled", "completed", "aborted", "expiring"],
        Read(Subscription),
    ),
    (
        Tier::State,
        "invoice",
        &[
            "created",
            "finalized",
            "finalization_failed",
            "paid",
            "payment_succeeded",
            "payment_failed",
            "payment_action_required",
            "payment_attempt_required",
            "updated",
            "voided",
            "marked_uncollectible",
            "overdue",
            "overpaid",
            "will_be_due",
            "deleted",
        ],
        Merged(Invoice),
    ),
    (Tier::State, "invoice", &["upcoming"], Read(Subscription)),
    (Tier::State, "invoice_payment", &["paid"], Read(Invoice)),
    (Tier::State, "payment_method", &["attached", "updated", "automatically_updated", "detached"], Nothing),
    (Tier::State, "customer.discount", &["created", "updated", "deleted"], Read(Subscription)),
    (Tier::State, "entitlements.active_entitlement_summary", &["updated"], Nothing),
    (Tier::Money, "charge", &["succeeded", "failed", "updated", "refunded"], Merged(Charge)),
    (Tier::Money, "refund", &["created", "updated", "failed"], Merged(Refund)),
    (
        Tier::Money,
        "charge.dispute",
        &["created", "updated", "closed", "funds_withdrawn", "funds_reinstated"],
        Merged(Dispute),
    ),
    (Tier::Money, "credit_note", &["created", "updated", "voided"], Merged(CreditNote)),
    (Tier::Money, "radar.early_fraud_warning", &["created", "updated"], Told(NoticeKind::EarlyFraudWarning)),
    (Tier::Money, "payment_intent", &["requires_action"], Read(Invoice)),
    (Tier::Money, "payment_intent", &["succeeded", "payment_failed", "processing", "canceled"], Nothing),
    (Tier::Money, "setup_intent", &["succeeded", "setup_failed", "requires_action"], Nothing),
    (Tier::Money, "mandate", &["updated"], Told(NoticeKind::MandateInactive)),
    (Tier::Catalogue, "product", &["created", "updated", "deleted"], Told(NoticeKind::CatalogueChanged)),
    (Tier::Catalogue, "price", &["created", "updated", "deleted"], Told(NoticeKind::CatalogueChanged)),
    (Tier::Catalogue, "coupon", &["created", "updated", "deleted"], Told(NoticeKind::CatalogueChanged)),
    (Tier::Catalogue, "promotion_code", &["created", "updated"], Told(NoticeKind::CatalogueChanged)),
    (Tier::Catalogue, "tax_rate", &["created", "updated"], Told(NoticeKind::CatalogueChanged)),
    (Tier::Metering, "billing.alert", &["triggered"], Told(NoticeKind::UsageAlert)),
    (Tier::Metering, "billing.credit_grant", &["created", "updated"], Nothing),
    (Tier::Metering, "billing.credit_balance_transaction", &["created"], Nothing),
    (
        Tier::Metering,
        "billing.meter",
        &["created", "updated", "deactivated", "reactivated"],
        Told(NoticeKind::CatalogueChanged),
    ),
    (Tier::Metering, "v1.billing.meter", &["error_report_triggered", "no_meter_found"], Reported),
    (Tier::Test, "test_helpers.test_clock", &["ready"], Nothing),
];

/// One event: its type, what is due, and a name for the ids in it.
#[derive(Debug, Clone)]
struct Case {
    event_type: String,
    shape: Shape,
    due: Due,
    n: usize,
}

impl Case {
    fn all() -> Vec<Self> {
        let types = DUE
            .iter()
            .flat_map(|(_, family, verbs, due)| verbs.iter().map(move |verb| (format!("{family}.{verb}"), *due)));
        let shapes = [Shape::Current, Shape::Old, Shape::Thin, Shape::Unheard];
        let cases = types.flat_map(|(event_type, due)| shapes.map(|shape| (event_type.clone(), shape, due)));
        cases.enumerate().map(|(n, (event_type, shape, due))| Self { event_type, shape, due, n }).collect()
    }

    fn id(&self, prefix: &str) -> String {
        format!("{prefix}_{}", self.n)
    }

    fn event(&self) -> String {
        self.id("evt")
    }

    /// What Stripe calls the object in it, and its id.
    fn object(&self) -> (String, String) {
        let family = self.event_type.rsplit_once('.').unwrap().0;
        let (object, prefix) = match family {
            "checkout.session" => ("checkout.session", "cs"),
            "customer" => ("customer", "cus"),
            "customer.subscription" => ("subscription", "sub"),
            "customer.discount" => ("discount", "di"),
            "charge.dispute" => ("dispute", "dp"),
            "billing.alert" => ("billing.alert_triggered", "none"),
            "v1.billing.meter" => ("billing.meter", "mtr"),
            "invoice" => ("invoice", "in"),
            "charge" => ("charge", "ch"),
            other => (other, "obj"),
        };
        (object.to_owned(), self.id(prefix))
    }

    /// The object, with its fields where this shape has them.
    fn content(&self) -> Value {
        let ((object, id), customer) = (self.object(), self.id("cus"));
        if self.shape == Shape::Unheard {
            return json!({"id": id, "object": object, "value": {"whose": customer, "state": {"word": "on"}}});
        }
        let old = self.shape == Shape::Old;
        let mut content = match object.as_str() {
            "checkout.session" => json!({
                "status": if self.event_type.ends_with("expired") { "expired" } else { "complete" },
                "payment_status": "paid", "customer": customer, "subscription": self.id("sub"), "mode": "subscription"
            }),
            "customer" => {
                json!({"email": "ada@example.com", if old { "account_balance" } else { "balance" }: -500, "currency": "eur"})
            }
            "subscription" => self.subscription(&customer, old),
            "subscription_schedule" if self.event_type.ends_with("released") => {
                json!({"customer": customer, "subscription": null, "released_subscription": self.id("sub"), "status": "released"})
            }
            "subscription_schedule" => {
                json!({"customer": customer, "subscription": self.id("sub"), "status": "active"})
            }
            "invoice" => self.invoice(&customer, old),
            "invoice_payment" => json!({"invoice": self.id("in"), "status": "paid", "amount_paid": 2000}),
            "payment_method" => {
                json!({"customer": customer, "type": "card", "billing_details": {"email": "ada@example.com"}})
            }
            "discount" if old => {
                json!({"customer": customer, "subscription": self.id("sub"), "coupon": {"id": "SPRING", "object": "coupon"}})
            }
            "discount" => {
                json!({"customer": customer, "subscription": self.id("sub"), "source": {"type": "coupon", "coupon": "SPRING"}})
            }
            "charge" if old => {
                json!({"customer": customer, "amount": 2000, "captured": true, "status": "succeeded", "currency": "eur", "created": 1_768_478_400, "invoice": self.id("in")})
            }
            "charge" => {
                json!({"customer": customer, "amount": 2000, "amount_captured": 2000, "captured": true, "status": "succeeded", "currency": "eur", "created": 1_768_478_400})
            }
            "refund" if old => {
                json!({"charge": self.id("ch"), "amount": 500, "currency": "eur", "created": 1_768_478_400})
            }
            "refund" => {
                json!({"charge": self.id("ch"), "amount": 500, "currency": "eur", "created": 1_768_478_400, "status": "succeeded"})
            }
            "dispute" => {
                json!({"charge": self.id("ch"), "amount": 2000, "currency": "eur", "created": 1_768_478_400, "status": "needs_response"})
            }
            "credit_note" => self.credit_note(&customer, old),
            "radar.early_fraud_warning" => json!({"charge": self.id("ch"), "fraud_type": "misc", "actionable": true}),
            "payment_intent" => {
                json!({"customer": customer, "invoice": old.then(|| self.id("in")), "status": "requires_action"})
            }
            "mandate" => json!({"payment_method": "pm_1", "status": "inactive"}),
            "billing.alert_triggered" => json!({"customer": customer, "alert": {"id": "alrt_1"}, "value": 100}),
            _ => json!({"customer": customer}),
        };
        content["object"] = object.as_str().into();
        // An invoice to come and an alert have no id.
        if !matches!(self.event_type.as_str(), "invoice.upcoming" | "billing.alert.triggered") {
            content["id"] = id.into();
        }
        content
    }

    fn subscription(&self, customer: &str, old: bool) -> Value {
        let ended = self.event_type.ends_with("deleted");
        let mut item = json!({"id": self.id("si"), "object": "subscription_item", "quantity": 2});
        let price = json!({"id": "price_pro", "object": "price", "currency": "eur", "unit_amount": 2000, "product": "prod_1",
            "recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed"}});
        item["price"] = price;
        let mut subscription = json!({
            "customer": customer, "status": if ended { "canceled" } else { "active" }, "created": 1_768_478_400,
            "billing_cycle_anchor": 1_768_478_400, "cancel_at_period_end": false,
            "ended_at": ended.then_some(1_768_478_500), "latest_invoice": null
        });
        let place = if old { &mut subscription } else { &mut item };
        place["current_period_start"] = 1_768_478_400.into();
        place["current_period_end"] = 1_771_156_800.into();
        subscription["items"] = json!({"object": "list", "has_more": false, "data": [item]});
        subscription
    }

    fn invoice(&self, customer: &str, old: bool) -> Value {
        let status = match self.event_type.rsplit_once('.').unwrap().1 {
            "created" | "deleted" | "upcoming" => "draft",
            "paid" | "payment_succeeded" | "overpaid" => "paid",
            "voided" => "void",
            "marked_uncollectible" => "uncollectible",
            _ => "open",
        };
        let paid = if status == "paid" { 2000 } else { 0 };
        let mut invoice = json!({
            "customer": customer, "status": status, "attempt_count": 0, "collection_method": "charge_automatically",
            "amount_remaining": 2000 - paid, "amount_paid": paid, "currency": "eur", "created": 1_768_478_400, "total": 2000,
            "status_transitions": {"finalized_at": (status != "draft").then_some(1_768_478_400), "paid_at": null}
        });
        if old {
            invoice["subscription"] = self.id("sub").into();
            invoice["tax"] = 319.into();
        } else {
            invoice["parent"] =
                json!({"type": "subscription_details", "subscription_details": {"subscription": self.id("sub")}});
            invoice["total_taxes"] = json!([{"amount": 319}]);
        }
        invoice
    }

    fn credit_note(&self, customer: &str, old: bool) -> Value {
        let voided = self.event_type.ends_with("voided");
        let mut note = json!({
            "customer": customer, "invoice": self.id("in"), "status": if voided { "void" } else { "issued" },
            "type": "pre_payment", "total": 500, "currency": "eur", "created": 1_768_478_400
        });
        let taxes = if old { "tax_amounts" } else { "total_taxes" };
        note[taxes] = json!([{"amount": 80}]);
        note
    }

    fn body(&self) -> Value {
        if self.shape == Shape::Thin {
            let (object, id) = self.object();
            return json!({
                "id": self.event(), "object": "v2.core.event", "type": self.event_type, "livemode": false,
                "created": "2026-01-15T12:00:00.000Z", "related_object": {"id": id, "type": object}
            });
        }
        let version = match self.shape {
            Shape::Old => "2020-08-27",
            Shape::Unheard => "2039-01-01.unheard",
            Shape::Current | Shape::Thin => "2026-09-30.endive",
        };
        json!({
            "id": self.event(), "object": "event", "type": self.event_type, "livemode": false, "created": 1_768_478_400,
            "api_version": version, "data": {"object": self.content()}
        })
    }

    /// What becomes of it in this shape.
    fn due(&self) -> Due {
        let (object, _) = self.object();
        match (self.shape, self.due) {
            (Shape::Current | Shape::Old, Read(_)) if self.event_type == "payment_intent.requires_action" => {
                if self.shape == Shape::Old { self.due } else { Nothing }
            }
            (Shape::Thin, Reported) => Reported,
            // It comes without content only.
            (Shape::Current | Shape::Old | Shape::Unheard, Reported) => Nothing,
            (Shape::Current | Shape::Old, due) => due,
            (Shape::Thin | Shape::Unheard, Told(NoticeKind::MandateInactive)) if self.shape == Shape::Unheard => {
                Nothing
            }
            (Shape::Thin, _) if ObjectKind::from_object(&object).is_some() => {
                Read(ObjectKind::from_object(&object).unwrap())
            }
            (Shape::Thin, Told(kind)) => Told(kind),
            (Shape::Thin, Merged(_) | Read(_) | Nothing) => Nothing,
            // Nothing that is needed of a customer can be missing.
            (Shape::Unheard, Merged(Customer)) => Merged(Customer),
            // Of a draft that is gone nothing is needed but its id, and by that alone nobody knows whose it was.
            (Shape::Unheard, Merged(Invoice)) if self.event_type == "invoice.deleted" => Nothing,
            (Shape::Unheard, Merged(kind)) => Read(kind),
            (Shape::Unheard, Told(kind)) => Told(kind),
            (Shape::Unheard, Read(_) | Nothing) => Nothing,
        }
    }

    /// The object that it is due for.
    fn target(&self) -> String {
        let (object, id) = self.object();
        match self.due() {
            Read(kind) if ObjectKind::from_object(&object) != Some(kind) => {
                self.id(if kind == Subscription { "sub" } else { "in" })
            }
            // Of what has no id, the event's stands for it.
            Told(NoticeKind::UsageAlert) if self.shape == Shape::Current || self.shape == Shape::Old => self.event(),
            Reported => self.event(),
            Read(_) | Merged(_) | Told(_) | Nothing => id,
        }
    }
}

#[test]
fn every_type_of_the_tiers_has_its_row_and_no_row_is_without_a_case() {
    let named = |row: &&saas_billing::event::Row| !row.event_type.ends_with(".*");
    let table: BTreeMap<&str, Tier> = TABLE.iter().filter(named).map(|row| (row.event_type, row.tier)).collect();
    let due = DUE
        .iter()
        .flat_map(|(tier, family, verbs, _)| verbs.iter().map(move |verb| (format!("{family}.{verb}"), *tier)));
    let due: BTreeMap<String, Tier> = due.collect();
    let missing: Vec<&String> =
        due.iter().filter(|(name, tier)| table.get(name.as_str()) != Some(tier)).map(|(name, _)| name).collect();
    assert_eq!(missing, Vec::<&String>::new());
    let untested: Vec<&&str> = table.keys().filter(|name| !due.contains_key(**name)).collect();
    assert_eq!(untested, Vec::<&&str>::new());
    let ignored = |name: &String| matches!(saas_billing::event::decision(name), Decision::Ignore(_));
    let wanted: BTreeSet<&str> = due.keys().filter(|name| !ignored(name)).map(String::as_str).collect();
    assert_eq!(needed().collect::<BTreeSet<_>>(), wanted);
}

// W15, W16, W17, W21
#[tokio::test]
async fn every_type_in_every_shape_is_answered_well_and_comes_to_what_the_table_says() {
    let shop = Shop::open().await;
    let ctx = shop.database.create_tenant("acme").await;
    let cases = Case::all();
    for case in &cases {
        shop.billing.link_customer(&ctx, &id(&case.id("cus"))).await.unwrap();
        if case.object().0 == "checkout.session" {
            shop.billing.record_checkout(&ctx, &id(&case.id("cs"))).await.unwrap();
        }
        if matches!(case.object().0.as_str(), "refund" | "dispute" | "radar.early_fraud_warning") {
            let charge = Case { event_type: "charge.succeeded".to_owned(), shape: Shape::Current, ..case.clone() };
            let mut charge = charge.body();
            charge["id"] = case.id("evt_before").into();
            assert_eq!(shop.receive_body(charge.to_string().as_bytes()).await, Accepted::Stored);
        }
    }
    shop.apply().await;

    let mut answers = BTreeMap::new();
    for case in &cases {
        let accepted = shop.receive_body(case.body().to_string().as_bytes()).await;
        assert!(matches!(accepted, Accepted::Stored | Accepted::Ignored), "{accepted:?}: {case:?}");
        answers.insert(case.event(), accepted);
    }
    let applied = shop.apply().await;
    assert_eq!((applied.dead, applied.quarantined, applied.retried, applied.parked), (0, 0, 0, 0), "{applied:?}");

    let mut owner = shop.owner.lock().await;
    let rows: Vec<(String, String, Option<String>)> =
        sqlx::query_as("select event_id, state, reason from saas.billing_receipt")
            .fetch_all(&mut *owner)
            .await
            .unwrap();
    let receipts: BTreeMap<String, (String, Option<String>)> =
        rows.into_iter().map(|(event, state, reason)| (event, (state, reason))).collect();
    let pairs = async |sql: &'static str, owner: &mut sqlx::PgConnection| -> BTreeSet<(String, String)> {
        sqlx::query_as(sql).fetch_all(owner).await.unwrap().into_iter().collect()
    };
    let objects = pairs("select kind, object_id from saas.billing_object", &mut owner).await;
    let fetches = pairs("select kind, object_id from saas.billing_fetch where state = 'pending'", &mut owner).await;
    let notices = pairs("select kind, object_id from saas.billing_notice", &mut owner).await;
    let reports = pairs("select '', event_id from saas.billing_usage_report", &mut owner).await;
    drop(owner);
    for case in &cases {
        let (state, reason) = &receipts[&case.event()];
        let target = case.target();
        let found = |all: &BTreeSet<(String, String)>, kind: &str| all.contains(&(kind.to_owned(), target.clone()));
        match case.due() {
            Merged(kind) => {
                assert!(state == "applied" && found(&objects, kind.as_str()), "{case:?}: {state} {reason:?}")
            }
            Read(kind) => assert!(state == "applied" && found(&fetches, kind.as_str()), "{case:?}: {state} {reason:?}"),
            Told(kind) => assert!(state == "applied" && found(&notices, kind.as_str()), "{case:?}: {state} {reason:?}"),
            Reported => assert!(state == "applied" && found(&reports, ""), "{case:?}: {state} {reason:?}"),
            Nothing => {
                assert!(state == "ignored" && reason.as_ref().is_some_and(|why| !why.is_empty()), "{case:?}: {state}");
            }
        }
    }
    // What the type alone decides costs the worker nothing.
    let at_the_door = cases.iter().filter(|case| answers[&case.event()] == Accepted::Ignored).count();
    assert!(at_the_door > 50, "{at_the_door}");
    // Whose it is, is known through what it names.
    let told = shop.billing.list_notices(&OPERATOR, None, PageSize::new(500).unwrap()).await.unwrap().items;
    let warnings: Vec<_> = told.iter().filter(|one| one.kind == NoticeKind::EarlyFraudWarning).collect();
    assert_eq!(
        warnings.iter().filter(|one| one.tenant == Some(ctx.tenant())).count(),
        4,
        "both types, both shapes with content"
    );
    assert_eq!(shop.billing.inbox_health(&OPERATOR).await.unwrap().notices, u64::try_from(told.len()).unwrap());
}

// W15: what nobody knows, of a version that nobody knows
#[tokio::test]
async fn what_nobody_has_heard_of_is_stored_and_ignored_in_every_shape() {
    let shop = Shop::open().await;
    let bodies = [
        json!({"id": "evt_1", "object": "event", "type": "quantum.flux.updated", "livemode": false, "created": 1_768_478_400,
            "api_version": "2039-01-01.unheard", "data": {"object": {"id": 7, "object": ["?"]}}}),
        json!({"id": "evt_2", "object": "event", "type": "quantum", "livemode": false, "created": 1_768_478_400,
            "data": {"object": {}}}),
        json!({"id": "evt_3", "object": "v2.core.event", "type": "v3.quantum.flux", "livemode": false,
            "created": "2026-01-15T12:00:00Z", "related_object": {"id": "q_1", "type": "quantum.flux"}}),
        json!({"id": "evt_4", "object": "v2.core.event", "type": "v1.invoice.paid", "livemode": false,
            "created": "2026-01-15T12:00:00Z"}),
    ];
    for body in &bodies {
        assert_eq!(shop.receive_body(body.to_string().as_bytes()).await, Accepted::Ignored, "{body}");
    }
    assert_eq!(
        shop.scalar("select count(*) from saas.billing_receipt where state = 'ignored' and reason <> ''").await,
        4
    );
    assert_eq!(shop.apply().await.total(), 0);
}

// W16: an event that this version cannot read is no dead letter while the object can be asked for
#[tokio::test]
async fn what_cannot_be_read_in_an_event_is_read_from_stripe() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.database.clock().advance(chrono::TimeDelta::seconds(10));
    shop.stripe.update_quantity(&purchase.subscription, 8);
    let delivery = shop.stripe.deliveries().remove(0);
    let mut body: Value = serde_json::from_slice(&delivery.body).unwrap();
    body["api_version"] = "2039-01-01.unheard".into();
    body["data"]["object"] =
        json!({"id": purchase.subscription, "object": "subscription", "contract": {"state": "on"}});
    assert_eq!(shop.receive_body(body.to_string().as_bytes()).await, Accepted::Stored);
    assert_eq!(shop.apply().await.applied, 1);
    assert_eq!(shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap().done, 1);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(8));
}

// W37: an event of a test clock, a year ahead of ours
#[tokio::test]
async fn what_happens_in_the_future_of_a_test_clock_is_merged_like_the_rest() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.stripe.update_quantity(&purchase.subscription, 8);
    let delivery = shop.stripe.deliveries().remove(0);
    let mut body: Value = serde_json::from_slice(&delivery.body).unwrap();
    body["created"] = (shop.stripe.now() + chrono::TimeDelta::days(365)).timestamp().into();
    assert_eq!(shop.receive_body(body.to_string().as_bytes()).await, Accepted::Stored);
    assert_eq!(shop.apply().await.applied, 1);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(8));
}

// W9, W24: a notice says the latest, whatever came last
#[tokio::test]
async fn a_notice_says_the_latest_and_comes_back_with_news_only() {
    let shop = Shop::open().await;
    let price = |event: &str, created: i64, key: Option<&str>| {
        json!({"id": event, "object": "event", "type": "price.updated", "livemode": false, "created": created,
            "request": {"id": "req_1", "idempotency_key": key},
            "data": {"object": {"id": "price_pro", "object": "price", "active": false}}})
    };
    let tell = async |body: Value| {
        let _ = shop.receive_body(body.to_string().as_bytes()).await;
        shop.apply().await
    };
    let list = async || shop.billing.list_notices(&OPERATOR, None, PageSize::default()).await.unwrap().items;
    let (before, after) = (price("evt_1", 1_768_478_400, None), price("evt_2", 1_768_478_500, Some("dashboard")));
    tell(after).await;
    tell(before).await;
    let shown = list().await;
    assert_eq!(shown.len(), 1);
    assert_eq!(
        (shown[0].event_id.as_str(), shown[0].object_id.as_str(), shown[0].tenant),
        ("evt_2", "price_pro", None)
    );
    // Our own doing is no news.
    assert_eq!(tell(price("evt_3", 1_768_478_600, Some("saas-catalog-1"))).await.ignored, 1);

    shop.billing.see_notice(&OPERATOR, &shown[0]).await.unwrap();
    assert_eq!(list().await, []);
    let why = shop.billing.see_notice(&OPERATOR, &shown[0]).await.unwrap_err();
    assert_eq!(why.kind(), saas_core::ErrorKind::NotFound);
    shop.billing.replay(&OPERATOR, &id("evt_1")).await.unwrap();
    shop.billing.replay(&OPERATOR, &id("evt_2")).await.unwrap();
    shop.apply().await;
    assert_eq!(list().await, [], "what has been seen is not told again");
    tell(price("evt_4", 1_768_478_700, None)).await;
    let news = list().await;
    assert_eq!(news[0].event_id, "evt_4");
    tell(price("evt_5", 1_768_478_800, None)).await;
    let why = shop.billing.see_notice(&OPERATOR, &news[0]).await.unwrap_err();
    assert_eq!(why.kind(), saas_core::ErrorKind::NotFound, "what was not shown was not seen");
    assert_eq!(list().await[0].event_id, "evt_5");
    assert_eq!(shop.scalar("select count(*) from saas.billing_object").await, 0, "no plan is edited by it");
}

// Two events about one payment: where the invoice is known to be paid, Stripe is not asked
#[tokio::test]
async fn a_payment_of_an_invoice_that_is_known_to_be_paid_asks_nothing_of_stripe() {
    let shop = Shop::open().await;
    let (_, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    let _ = shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap();
    let payment = |event: &str, invoice: &str| {
        json!({"id": event, "object": "event", "type": "invoice_payment.paid", "livemode": false, "created": 1_768_478_400,
            "data": {"object": {"id": "inpay_1", "object": "invoice_payment", "invoice": invoice, "status": "paid"}}})
    };
    let paid = payment("evt_known", purchase.invoice.as_ref().unwrap().as_str());
    let _ = shop.receive_body(paid.to_string().as_bytes()).await;
    assert_eq!(shop.apply().await.ignored, 1);
    let unknown = payment("evt_unknown", "in_never_heard_of");
    let _ = shop.receive_body(unknown.to_string().as_bytes()).await;
    assert_eq!(shop.apply().await.applied, 1);
    assert_eq!(shop.scalar("select count(*) from saas.billing_fetch where state = 'pending'").await, 1);
}
