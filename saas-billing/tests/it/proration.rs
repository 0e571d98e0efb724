//! What a change costs: the preview, the invoice that follows, and the arithmetic between them.

use std::sync::atomic::{AtomicU32, Ordering};

use chrono::{DateTime, TimeDelta};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use saas_billing::{
    ObjectId, ObjectSource as _, PaymentProvider, ProviderError,
    object::{Interval, ObjectKind},
    provider::{Cancellation, Command, Fetched, ItemChange, OnFailedPayment, Proration, SubscriptionChange},
    testing::{CheckoutRequest, Purchase, StripeSimulator},
};
use serde_json::Value;

use crate::provider::simulator;

struct Bought {
    stripe: std::sync::Arc<StripeSimulator>,
    purchase: Purchase,
    item: ObjectId,
    key: AtomicU32,
}

impl Bought {
    async fn new(quantity: u64) -> Self {
        let (stripe, _) = simulator();
        for (price, amount) in [("price_small", 999), ("price_large", 2999), ("price_huge", 33_333)] {
            stripe.create_price(price, amount, "eur", &Interval::Month);
        }
        stripe.create_price("price_year", 9_990, "eur", &Interval::Year);
        let session = stripe.checkout(CheckoutRequest::new("price_small").with_quantity(quantity));
        let purchase = stripe.complete_checkout(&session).unwrap();
        let subscription = stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
        let item = subscription["items"]["data"][0]["id"].as_str().unwrap().parse().unwrap();
        Self { stripe, purchase, item, key: AtomicU32::new(0) }
    }

    fn change(&self, price: &str, quantity: u64, proration: Proration) -> SubscriptionChange {
        let (price, quantity) = (Some(price.parse().unwrap()), Some(quantity));
        SubscriptionChange {
            subscription: self.purchase.subscription.clone(),
            items: vec![ItemChange::Set { item: self.item.clone(), price, quantity }],
            proration,
            proration_date: None,
            on_failed_payment: OnFailedPayment::Wait,
        }
    }

    async fn execute(&self, command: Command) -> Result<Value, ProviderError> {
        let key = format!("key-{}", self.key.fetch_add(1, Ordering::Relaxed)).parse().unwrap();
        let reply = self.stripe.execute(&command, &key).await?;
        Ok(serde_json::from_str(reply.object.get()).unwrap())
    }

    async fn preview(&self, change: &SubscriptionChange) -> Value {
        serde_json::from_str(self.stripe.preview(change).await.unwrap().object.get()).unwrap()
    }

    /// Waits until the bill at the end of the period is drawn up.
    fn pass_bill_of(&self, subscription: &Value) {
        let end = subscription["items"]["data"][0]["current_period_end"].as_i64().unwrap();
        let end = DateTime::from_timestamp(end, 0).unwrap();
        self.stripe.advance(end - self.stripe.now() + TimeDelta::hours(2));
    }

    fn has_draft(&self) -> bool {
        let invoices = self.stripe.living(ObjectKind::Invoice).into_iter();
        invoices
            .filter_map(|id| self.stripe.object(ObjectKind::Invoice, &id))
            .any(|invoice| invoice["status"] == "draft")
    }

    async fn latest_invoice(&self) -> Value {
        let subscription = self.stripe.object(ObjectKind::Subscription, &self.purchase.subscription).unwrap();
        let id = subscription["latest_invoice"].as_str().unwrap().parse().unwrap();
        match self.stripe.fetch(ObjectKind::Invoice, &id).await.unwrap() {
            Fetched::Found { object, .. } => serde_json::from_str(object.get()).unwrap(),
            Fetched::Missing => panic!("{id} is missing"),
        }
    }
}

/// What must be equal between a preview and its invoice.
fn bill(invoice: &Value) -> (Value, Value, Vec<(Value, Value, Value)>) {
    let lines = invoice["lines"]["data"].as_array().unwrap();
    let line = |line: &Value| (line["amount"].clone(), line["period"].clone(), line["pricing"].clone());
    (invoice["total"].clone(), invoice["amount_due"].clone(), lines.iter().map(line).collect())
}

// f-B9, show 5
#[test]
fn a_preview_equals_the_invoice_that_follows_to_the_minor_unit() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let steps = (0..3_usize, 1..500_u64, 0..3_000_000_i64, any::<bool>());
    let history = (1..100_u64, proptest::collection::vec(steps, 1..6));
    let mut runner = TestRunner::new(Config::with_cases(300));
    let outcome = runner.run(&history, |(quantity, steps)| {
        runtime.block_on(async {
            let bought = Bought::new(quantity).await;
            for (price, quantity, wait, at_once) in steps {
                bought.stripe.advance(TimeDelta::seconds(wait));
                let price = ["price_small", "price_large", "price_huge"][price];
                let proration = if at_once { Proration::InvoiceNow } else { Proration::NextInvoice };
                let mut change = bought.change(price, quantity, proration);
                // The instant that the buyer saw, some minutes before the click.
                change.proration_date = Some(bought.stripe.now());
                let preview = bought.preview(&change).await;
                // A renewal that is not finalized yet takes its part of the customer's balance before the bill that is previewed.
                let drafted = bought.has_draft();
                let before = bought.stripe.object(ObjectKind::Subscription, &bought.purchase.subscription).unwrap();
                if at_once {
                    bought.stripe.advance(TimeDelta::minutes(3));
                }
                let renewed = bought.stripe.object(ObjectKind::Subscription, &bought.purchase.subscription).unwrap();
                if renewed != before {
                    continue; // It renewed in between: another period, another price.
                }
                let changed = bought.execute(Command::ChangeSubscription(change)).await.unwrap();
                if at_once && changed["latest_invoice"] == before["latest_invoice"] {
                    prop_assert_eq!(changed["items"].clone(), before["items"].clone(), "nothing changed");
                    continue;
                }
                if !at_once {
                    bought.pass_bill_of(&before);
                }
                let (mut billed, mut previewed) = (bill(&bought.latest_invoice().await), bill(&preview));
                if drafted {
                    (billed.1, previewed.1) = (Value::Null, Value::Null);
                }
                prop_assert_eq!(billed, previewed);
            }
            Ok(())
        })
    });
    outcome.unwrap();
}

#[tokio::test]
async fn a_draft_takes_its_part_of_the_balance_before_the_bill_that_was_previewed() {
    let bought = Bought::new(1).await;
    bought.stripe.advance(TimeDelta::days(28));
    let changed =
        bought.execute(Command::ChangeSubscription(bought.change("price_large", 132, Proration::NextInvoice)));
    bought.pass_bill_of(&changed.await.unwrap());
    bought.stripe.advance(TimeDelta::seconds(2_271_984));
    bought.execute(Command::ChangeSubscription(bought.change("price_small", 1, Proration::InvoiceNow))).await.unwrap();
    // It has renewed some seconds ago; the bill for that is drawn up an hour later.
    bought.stripe.advance(TimeDelta::seconds(312_636 + 180));
    let change = bought.change("price_small", 24, Proration::NextInvoice);
    let (preview, drafted) = (bought.preview(&change).await, bought.has_draft());
    let changed = bought.execute(Command::ChangeSubscription(change)).await.unwrap();
    bought.pass_bill_of(&changed);
    let billed = bought.latest_invoice().await;
    assert!(drafted);
    assert_eq!((preview["total"].as_i64(), billed["total"].as_i64()), (Some(46_953), Some(46_953)));
    assert_eq!((preview["amount_due"].as_i64(), billed["amount_due"].as_i64()), (Some(0), Some(298)));
}

#[tokio::test]
async fn half_a_month_costs_half_and_a_downgrade_becomes_credit() {
    let bought = Bought::new(1).await;
    bought.stripe.advance(TimeDelta::days(14));
    let upgrade = bought.change("price_large", 1, Proration::InvoiceNow);
    bought.execute(Command::ChangeSubscription(upgrade)).await.unwrap();
    let paid = bought.latest_invoice().await;
    let amounts: Vec<i64> =
        paid["lines"]["data"].as_array().unwrap().iter().map(|line| line["amount"].as_i64().unwrap()).collect();
    assert_eq!(amounts, [-500, 1500], "half of 999 and of 2999, half away from zero");
    assert_eq!((&paid["status"], &paid["amount_paid"]), (&"paid".into(), &1000.into()));

    bought.execute(Command::ChangeSubscription(bought.change("price_small", 1, Proration::InvoiceNow))).await.unwrap();
    let credit = bought.latest_invoice().await;
    assert_eq!(
        (&credit["total"], &credit["amount_due"], &credit["status"]),
        (&(-1000).into(), &0.into(), &"paid".into())
    );
    let customer = bought.stripe.object(ObjectKind::Customer, &bought.purchase.customer).unwrap();
    assert_eq!(customer["balance"], -1000);
    bought.stripe.advance(TimeDelta::days(14) + TimeDelta::hours(2));
    let renewal = bought.latest_invoice().await;
    assert_eq!((&renewal["total"], &renewal["amount_due"]), (&999.into(), &0.into()), "paid from the credit");
}

// f-B10
#[tokio::test]
async fn a_change_whose_payment_fails_waits_and_is_dropped_or_made_when_it_is_paid() {
    for pays in [false, true] {
        let bought = Bought::new(1).await;
        bought.stripe.advance(TimeDelta::days(3));
        bought.stripe.fail_next_payment(&bought.purchase.customer);
        let change = bought.change("price_large", 1, Proration::InvoiceNow);
        let waiting = bought.execute(Command::ChangeSubscription(change)).await.unwrap();
        assert_eq!(waiting["items"]["data"][0]["price"]["id"], "price_small");
        assert!(!waiting["pending_update"].is_null() && waiting["status"] == "active");
        if pays {
            bought.stripe.pay(&bought.purchase.customer);
        } else {
            bought.stripe.advance(TimeDelta::hours(23));
        }
        let then = bought.stripe.object(ObjectKind::Subscription, &bought.purchase.subscription).unwrap();
        assert!(then["pending_update"].is_null());
        let expected = if pays { "price_large" } else { "price_small" };
        assert_eq!(then["items"]["data"][0]["price"]["id"], expected);
        assert_eq!(then["status"], "active");
    }
}

#[tokio::test]
async fn a_change_that_must_be_paid_is_refused_whole_when_it_is_not() {
    let bought = Bought::new(1).await;
    bought.stripe.advance(TimeDelta::days(3));
    bought.stripe.fail_next_payment(&bought.purchase.customer);
    let before = bought.stripe.object(ObjectKind::Subscription, &bought.purchase.subscription).unwrap();
    let change = SubscriptionChange {
        on_failed_payment: OnFailedPayment::Refuse,
        ..bought.change("price_large", 1, Proration::InvoiceNow)
    };
    let why = bought.execute(Command::ChangeSubscription(change)).await.unwrap_err();
    assert!(matches!(why, ProviderError::Declined { .. }), "{why:?}");
    assert_eq!(bought.stripe.object(ObjectKind::Subscription, &bought.purchase.subscription).unwrap(), before);
}

#[tokio::test]
async fn another_interval_begins_a_period_of_its_own() {
    let bought = Bought::new(1).await;
    bought.stripe.advance(TimeDelta::days(14));
    let yearly =
        bought.execute(Command::ChangeSubscription(bought.change("price_year", 1, Proration::InvoiceNow))).await;
    let item = &yearly.unwrap()["items"]["data"][0];
    let days = (item["current_period_end"].as_i64().unwrap() - item["current_period_start"].as_i64().unwrap()) / 86_400;
    assert_eq!(days, 365);
    assert_eq!(bought.latest_invoice().await["total"], 9_990 - 500);
    let now = Command::CancelSubscription {
        subscription: bought.purchase.subscription.clone(),
        when: Cancellation::NowProrated,
    };
    bought.stripe.advance(TimeDelta::days(73));
    assert_eq!(bought.execute(now).await.unwrap()["status"], "canceled");
    assert_eq!(bought.latest_invoice().await["total"], -7_992, "four fifths of a year");
}
