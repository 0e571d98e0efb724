//! Changes of plan, seats and add-ons: previewed, made, scheduled, paid late or never, twice at once, and killed half-way.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::TimeDelta;
use saas_billing::{
    BillingError, PaymentProvider as _, ProviderError,
    object::ObjectKind,
    provider::{OnFailedPayment, PageLimit, Query},
    stripe::StripeApi,
    subscription::{Change, PlanChange, When},
    testing::{CheckoutRequest, Fault},
};
use saas_core::{
    CoreError, ErrorKind, MeterKey, PlanVersionRef, RequestContext, TenantContext, Topic,
    plan::{MeterOver, OverLimitReport, OverLimits},
    subscription::PlanSource as _,
};
use serde_json::Value;

use crate::{
    command::{Callers, ends_within},
    provider::adapter,
    shop::{Shop, id},
    till::{Till, key, text},
};

fn to(price: &str) -> PlanChange {
    PlanChange::to_price(id(price))
}

/// What must be equal between a preview and the invoice that follows.
fn billed(invoice: &Value) -> (i64, i64, Vec<(i64, String)>) {
    let line = |line: &Value| (line["amount"].as_i64().unwrap(), text(&line["pricing"]["price_details"]["price"]));
    let lines = invoice["lines"]["data"].as_array().unwrap().iter().map(line).collect();
    (invoice["total"].as_i64().unwrap(), invoice["amount_due"].as_i64().unwrap(), lines)
}

#[derive(Debug)]
struct SevenProjects;

#[async_trait]
impl OverLimits for SevenProjects {
    async fn report(&self, _: &dyn TenantContext, to: &PlanVersionRef) -> Result<OverLimitReport, CoreError> {
        let projects = MeterOver::new(MeterKey::from_static("projects"), 7, None);
        Ok(OverLimitReport::new(to.clone(), vec![projects], Vec::new()))
    }
}

// f-B8, f-B9, f-B12, show 5
#[tokio::test]
async fn an_upgrade_costs_what_its_preview_said_and_holds_when_stripe_has_confirmed_it() {
    let till = Till::open("price_pro", 3).await;
    till.shop.stripe.advance(TimeDelta::days(10));
    let wish = to("price_team").with_addon(id("price_more"), 2);
    let preview = till.preview(&wish).await;
    assert_eq!((preview.when, preview.from), (When::Now, None));
    assert_eq!(preview.plan.as_ref().unwrap().to_string(), "team@1");
    assert!(preview.lines.iter().any(|line| line.proration && line.amount.minor() < 0), "what was paid comes back");
    assert_eq!(till.plan().await, "pro", "a preview changes nothing");

    let wish = wish.as_previewed(&preview);
    assert_eq!(till.change(&wish, "upgrade").await.unwrap(), Change::Made);
    // No event has been delivered: the answer was Stripe's own object.
    assert_eq!(till.plan().await, "team");
    let assignment = till.shop.billing.plan_of(&till.ctx, till.shop.stripe.now()).await.unwrap();
    assert_eq!(assignment.addons.iter().map(|(addon, n)| (addon.as_str(), *n)).collect::<Vec<_>>(), [("more", 2)]);
    assert_eq!(till.items(), [("price_team".to_owned(), 3), ("price_more".to_owned(), 2)], "seats stay");
    let lines: Vec<_> =
        preview.lines.iter().map(|line| (line.amount.minor(), line.price.as_ref().unwrap().to_string())).collect();
    assert_eq!(billed(&till.latest_invoice()), (preview.total.minor(), preview.due.minor(), lines));

    let calls = till.shop.stripe.calls();
    assert_eq!(till.change(&wish, "upgrade").await.unwrap(), Change::Made, "the same request again");
    assert_eq!(till.shop.stripe.calls(), calls, "asks nobody");
    let digest = till.shop.digest(&till.ctx).await;
    till.settle().await;
    assert_eq!(till.plan().await, "team");
    assert!(digest.contains("price_team"));
    assert_eq!((till.audited("billing.requested").await, till.audited("billing.request_done").await), (1, 1));

    // Less of an add-on, and then none.
    assert_eq!(till.change(&PlanChange::to_addon(id("price_more"), 1), "one").await.unwrap(), Change::Made);
    assert_eq!(till.items()[1].1, 1);
    assert_eq!(till.change(&PlanChange::to_addon(id("price_more"), 0), "none").await.unwrap(), Change::Made);
    assert_eq!(till.items().len(), 1);
    let assignment = till.shop.billing.plan_of(&till.ctx, till.shop.stripe.now()).await.unwrap();
    assert!(assignment.addons.is_empty());
}

// f-B8, f-E15
#[tokio::test]
async fn a_downgrade_comes_with_the_next_period_and_says_what_will_be_too_much() {
    let till = Till::open("price_team", 2).await;
    let down = to("price_pro");
    let preview = till.shop.billing.preview_change(&till.stripe, &till.ctx, &down, Some(&SevenProjects)).await.unwrap();
    assert_eq!(preview.when, When::AtPeriodEnd);
    assert_eq!(preview.over_limit.as_ref().unwrap().exceeding().count(), 1);
    assert!(preview.lines.iter().all(|line| !line.proration), "nothing of the present period is charged again");
    assert_eq!(preview.total.minor(), 4000);
    let at = preview.from.unwrap();

    let scheduled = till.change(&down.clone().as_previewed(&preview), "down").await.unwrap();
    assert_eq!(scheduled, Change::Scheduled { at });
    assert_eq!(till.plan().await, "team", "what was paid for stays");
    till.settle().await;
    assert_eq!(till.change(&down, "down-again").await.unwrap(), Change::Scheduled { at }, "it is so");
    till.shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
    till.settle().await;
    assert_eq!(till.plan().await, "pro");
    assert_eq!(till.items(), [("price_pro".to_owned(), 2)]);
    assert_eq!(till.latest_invoice()["total"], preview.total.minor());

    // The schedule plans nothing more: it is let go on the way, and the preview holds all the same.
    let up = to("price_team");
    let preview = till.preview(&up).await;
    assert_eq!(till.change(&up.as_previewed(&preview), "up-again").await.unwrap(), Change::Made);
    assert_eq!((till.plan().await.as_str(), till.subscription()["schedule"].is_null()), ("team", true));
}

// f-B8
#[tokio::test]
async fn a_scheduled_change_can_be_withdrawn_or_replaced_until_it_comes() {
    let till = Till::open("price_team", 2).await;
    let at = match till.change(&to("price_pro"), "down").await.unwrap() {
        Change::Scheduled { at } => at,
        other => panic!("{other:?}"),
    };
    let why = till.change(&to("price_team_year"), "year").await.unwrap_err();
    assert!(matches!(why, BillingError::StateForbids { why: "another one is scheduled", .. }), "{why:?}");
    // Another change for the same time takes its place.
    let fewer = PlanChange::to_quantity(1).with_when(When::AtPeriodEnd);
    assert_eq!(till.change(&fewer, "fewer").await.unwrap(), Change::Scheduled { at });
    assert_eq!(till.shop.billing.withdraw_change(&till.stripe, &till.ctx, &key("stay")).await.unwrap(), Change::Made);
    let again = till.shop.billing.withdraw_change(&till.stripe, &till.ctx, &key("stay-again")).await.unwrap();
    assert_eq!(again, Change::Already);
    till.shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
    till.settle().await;
    assert_eq!((till.plan().await.as_str(), till.items()), ("team", vec![("price_team".to_owned(), 2)]));
    assert_eq!(till.change(&to("price_team_year"), "year").await.unwrap(), Change::Made, "nothing is in the way now");
}

// f-B10, f-B18, lesson 28
#[tokio::test]
async fn an_upgrade_whose_payment_fails_changes_nothing_and_is_made_or_rolled_back_later() {
    for pays in [true, false] {
        let notices = Topic::from_static("billing.notice");
        let till = Till::open_with(CheckoutRequest::new("price_pro"), |config| config.with_notices(notices)).await;
        till.shop.stripe.advance(TimeDelta::days(3));
        till.shop.stripe.fail_next_payment(&till.purchase.customer);
        let waits = till.change(&to("price_team"), "upgrade").await.unwrap();
        let Change::AwaitingPayment { invoice: Some(invoice), until: Some(until) } = waits.clone() else {
            panic!("{waits:?}")
        };
        assert_eq!(until, till.shop.stripe.now() + TimeDelta::hours(23));
        assert_eq!(till.plan().await, "pro");
        till.settle().await;
        assert_eq!(till.plan().await, "pro");
        let why = till.change(&to("price_team_year"), "other").await.unwrap_err();
        assert!(matches!(why, BillingError::StateForbids { .. }), "{why:?}");
        assert_eq!(till.change(&to("price_team"), "upgrade").await.unwrap(), waits, "still the same");
        let shown = till.shop.billing.invoice(&till.stripe, &till.ctx, &invoice).await.unwrap();
        assert!(shown.page.is_some() && shown.remaining.minor() > 0, "where the buyer pays");
        if pays {
            till.shop.stripe.pay(&till.purchase.customer);
        } else {
            till.shop.stripe.advance(TimeDelta::hours(23));
        }
        // The event tells in one case; in the other it is lost, and asking again tells.
        let ended = if pays { Change::Made } else { Change::RolledBack };
        if pays {
            till.settle().await;
            assert_eq!(till.audited("billing.request_done").await, 1);
        }
        assert_eq!(till.change(&to("price_team"), "upgrade").await.unwrap(), ended);
        till.settle().await;
        assert_eq!(till.plan().await, if pays { "team" } else { "pro" });
        assert_eq!(till.audited("billing.change_rolled_back").await, i64::from(!pays));
        let told = "select count(*) from saas.outbox where encode(payload, 'escape') like '%change_rolled_back%'";
        assert_eq!(till.shop.scalar(told).await, i64::from(!pays));
    }
}

#[tokio::test]
async fn a_change_that_waits_for_its_payment_can_be_withdrawn() {
    let till = Till::open("price_pro", 1).await;
    till.shop.stripe.advance(TimeDelta::days(3));
    till.shop.stripe.fail_next_payment(&till.purchase.customer);
    let Change::AwaitingPayment { invoice, .. } = till.change(&to("price_team"), "upgrade").await.unwrap() else {
        panic!("it was paid")
    };
    assert_eq!(till.shop.billing.withdraw_change(&till.stripe, &till.ctx, &key("no")).await.unwrap(), Change::Made);
    let voided = till.shop.stripe.object(ObjectKind::Invoice, &invoice.unwrap()).unwrap();
    assert_eq!(voided["status"], "void");
    assert_eq!(till.change(&to("price_team"), "upgrade").await.unwrap(), Change::RolledBack);
    till.shop.stripe.pay(&till.purchase.customer);
    till.settle().await;
    assert_eq!(till.plan().await, "pro");
}

// f-B10
#[tokio::test]
async fn a_change_that_may_not_wait_is_refused_whole_and_its_key_says_so_for_ever() {
    let till = Till::open("price_pro", 1).await;
    till.shop.stripe.advance(TimeDelta::days(3));
    till.shop.stripe.fail_next_payment(&till.purchase.customer);
    let wish = to("price_team").with_on_failed_payment(OnFailedPayment::Refuse);
    let why = till.change(&wish, "now-or-never").await.unwrap_err();
    assert!(matches!(why, BillingError::Provider(ProviderError::Declined { .. })), "{why:?}");
    till.settle().await;
    assert_eq!((till.plan().await.as_str(), till.items()), ("pro", vec![("price_pro".to_owned(), 1)]));
    till.shop.stripe.pay(&till.purchase.customer);
    let why = till.change(&wish, "now-or-never").await.unwrap_err();
    assert_eq!((why.code(), why.kind()), ("command_failed", ErrorKind::Conflict));
    assert_eq!(till.audited("billing.request_failed").await, 1);
    assert_eq!(till.change(&wish, "another-try").await.unwrap(), Change::Made);
}

// D14, FAULTS D14: every fault at every call of an upgrade and of a downgrade; the outbox or a repeat sees it through, once.
#[tokio::test]
async fn whatever_stripe_does_at_whichever_call_the_end_is_one_of_the_two_and_charged_once() {
    let faults = [
        Fault::RateLimited(0),
        Fault::Unavailable,
        Fault::Broken,
        Fault::BrokenAfterwards,
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::Garbled,
    ];
    for (from, price) in [("price_pro", "price_team"), ("price_team", "price_pro")] {
        for fault in faults {
            let shop = Shop::open().await;
            let (mut calls, mut met) = (0, true);
            while met {
                let (ctx, purchase) = shop.buyer_of(&format!("tenant-{calls}"), CheckoutRequest::new(from)).await;
                shop.deliver_all().await;
                shop.stripe.advance(TimeDelta::days(3));
                shop.stripe.inject_after(calls, [fault]);
                let provider = shop.stripe.as_ref();
                let change = to(price);
                let first = shop.billing.change_plan(provider, &ctx, &change, &key("k")).await;
                met = shop.stripe.heal() == 0;
                while !shop.worker().await.is_idle() {}
                let last = shop.billing.change_plan(provider, &ctx, &change, &key("k")).await;
                let place = format!("{fault:?} at call {calls} to {price}: {first:?}, {last:?}");
                match last {
                    Ok(Change::Made) if price == "price_team" => {}
                    Ok(Change::Scheduled { .. }) if price == "price_pro" => {}
                    _ => panic!("{place}"),
                }
                let query = Query::Invoices { customer: Some(purchase.customer.clone()), status: None };
                let invoices = provider.list(&query, None, PageLimit::MAX).await.unwrap().objects.len();
                assert_eq!(invoices, if price == "price_team" { 2 } else { 1 }, "{place}");
                shop.stripe.advance(TimeDelta::days(31));
                let now = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
                assert_eq!(now["items"]["data"][0]["price"]["id"], price, "{place}");
                calls += usize::from(met);
            }
            assert!(calls >= 3, "{fault:?} met only {calls} calls");
        }
    }
}

// W22: late, never, cut off, too many, busy
#[tokio::test]
async fn an_answer_that_comes_late_or_never_is_asked_for_under_the_same_key() {
    for fault in [Fault::Silent, Fault::Stuck, Fault::CutAfter, Fault::KeyInUse, Fault::RateLimited(0)] {
        let till = Till::open("price_pro", 1).await;
        let patience = adapter(&till.server).with_timeouts(Duration::from_millis(1_500), Duration::from_secs(60));
        let stripe = StripeApi::new(patience).unwrap();
        till.shop.stripe.advance(TimeDelta::days(3));
        // After the looks that come before the write.
        till.shop.stripe.inject_after(2, [fault]);
        let change = to("price_team");
        let made = till.shop.billing.change_plan(&stripe, &till.ctx, &change, &key("k")).await.unwrap();
        assert_eq!((made, till.shop.stripe.heal()), (Change::Made, 0), "{fault:?}");
        assert_eq!(till.shop.stripe.living(ObjectKind::Invoice).len(), 2, "{fault:?}: charged once");
        assert_eq!(till.plan().await, "team", "{fault:?}");
        till.settle().await;
        assert_eq!(till.plan().await, "team", "{fault:?}");
    }
}

// Q9: the caller goes away after every number of polls that there is, and somebody else comes with another wish
#[tokio::test]
async fn a_caller_that_goes_away_at_any_step_leaves_one_of_two_wishes_never_a_mixture() {
    for first in ["price_team", "price_pro"] {
        let shop = Shop::open().await;
        let from = if first == "price_pro" { "price_team" } else { "price_pro" };
        let mut callers = Callers::default();
        while let Some(polls) = callers.next() {
            let (ctx, purchase) = shop.buyer_of(&format!("tenant-{}", callers.all), CheckoutRequest::new(from)).await;
            shop.deliver_all().await;
            let provider = shop.stripe.as_ref();
            let change = to(first).with_quantity(2);
            let other = PlanChange::to_quantity(5).with_when(When::Now);
            let asked = key("first");
            let answer = ends_within(polls, Box::pin(shop.billing.change_plan(provider, &ctx, &change, &asked))).await;
            callers.note(answer.map(Result::unwrap).is_some());
            let second = shop.billing.change_plan(provider, &ctx, &other, &key("second")).await;
            let now = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
            let item = &now["items"]["data"][0];
            let (price, quantity) = (text(&item["price"]["id"]), item["quantity"].as_u64().unwrap());
            match second {
                Ok(Change::Made) => assert_eq!(quantity, 5, "after {polls} polls"),
                // The first was scheduled: it is in the way, and has changed nothing of now.
                Err(BillingError::StateForbids { .. }) if first == "price_pro" => {
                    assert_eq!((price.as_str(), quantity), (from, 1), "after {polls} polls");
                }
                other => panic!("after {polls} polls: {other:?}"),
            }
            let left = "select count(*) from saas.billing_request where state = 'pending'";
            assert_eq!(shop.scalar(left).await, 0, "after {polls} polls");
        }
        while !shop.worker().await.is_idle() {}
        let left = "select count(*) from saas.billing_request where state = 'pending'";
        assert_eq!(shop.scalar(left).await, 0);
    }
}

// f-B8, lesson 17: two processes, two wishes
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_different_changes_at_once_end_as_one_of_them_and_one_preview_wins() {
    let till = Arc::new(Till::open("price_pro", 1).await);
    till.shop.stripe.advance(TimeDelta::days(3));
    let wishes = [to("price_team").with_quantity(3), to("price_team_year").with_quantity(7)];
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..8_usize {
        let (till, wish) = (Arc::clone(&till), wishes[n % 2].clone());
        asking.spawn(async move { till.change(&wish, &format!("key-{n}")).await.unwrap() });
    }
    let answers = asking.join_all().await;
    assert!(answers.iter().all(|answer| matches!(answer, Change::Made | Change::Already)), "{answers:?}");
    let items = till.items();
    assert!(
        items == [("price_team".to_owned(), 3)] || items == [("price_team_year".to_owned(), 7)],
        "a mixture: {items:?}"
    );

    // Both have seen a preview of the same state: the second is told that it holds no more.
    let till = Arc::new(Till::open("price_pro", 1).await);
    till.shop.stripe.advance(TimeDelta::days(3));
    let [first, second] = wishes;
    let previews = [till.preview(&first).await, till.preview(&second).await];
    let seen = [first.as_previewed(&previews[0]), second.as_previewed(&previews[1])];
    let mut asking = tokio::task::JoinSet::new();
    for (n, wish) in seen.into_iter().enumerate() {
        let till = Arc::clone(&till);
        asking.spawn(async move { till.change(&wish, &format!("key-{n}")).await });
    }
    let answers = asking.join_all().await;
    let made = answers.iter().filter(|answer| matches!(answer, Ok(Change::Made))).count();
    let stale = answers.iter().filter(|answer| matches!(answer, Err(BillingError::StateForbids { .. }))).count();
    assert_eq!((made, stale), (1, 1), "{answers:?}");
    assert_eq!(till.shop.stripe.living(ObjectKind::Invoice).len(), 2, "charged once");
}

#[tokio::test]
async fn what_the_catalogue_does_not_sell_is_refused_before_anything_is_asked() {
    let till = Till::open("price_pro", 1).await;
    let calls = till.shop.stripe.calls();
    let wrong = [
        to("price_unknown"),
        to("price_more"),
        PlanChange::to_quantity(0),
        PlanChange::to_addon(id("price_pro"), 1),
        PlanChange::to_addon(id("price_more"), 4),
        PlanChange::to_addon(id("price_more"), 1).with_addon(id("price_more"), 2),
    ];
    for (n, change) in wrong.into_iter().enumerate() {
        let why = till.change(&change, &format!("wrong-{n}")).await.unwrap_err();
        assert_eq!(why.kind(), ErrorKind::Invalid, "{change:?}: {why}");
    }
    assert_eq!(till.shop.stripe.calls(), calls);
    let archived = till.change(&to("price_old"), "old").await.unwrap_err();
    assert!(archived.to_string().contains("old@1 is not for sale"), "{archived}");
    assert_eq!(till.change(&to("price_team"), "key").await.unwrap(), Change::Made);
    let reused = till.change(&to("price_pro").with_when(When::Now), "key").await.unwrap_err();
    assert!(matches!(reused, BillingError::Core(CoreError::KeyReused { .. })), "{reused:?}");
    assert_eq!(till.shop.scalar("select count(*) from saas.billing_request").await, 1, "nothing is left of the rest");
}

// Lesson 34, wrong order
#[tokio::test]
async fn who_has_no_subscription_or_does_not_pay_is_told_what_to_do_first() {
    let till = Till::open("price_pro", 1).await;
    let other = till.shop.database.create_tenant("other").await;
    let stranger = |ctx: RequestContext| {
        let (billing, stripe) = (till.shop.billing.clone(), till.stripe.clone());
        async move { billing.change_plan(&stripe, &ctx, &to("price_team"), &key("k")).await.unwrap_err() }
    };
    assert!(matches!(stranger(other.clone()).await, BillingError::NoSubscription));
    assert_eq!(till.plan().await, "pro");
    // The same key is another tenant's own affair.
    assert_eq!(till.change(&to("price_team"), "k").await.unwrap(), Change::Made);
    assert!(matches!(stranger(other).await, BillingError::NoSubscription));

    till.shop.stripe.fail_next_payment(&till.purchase.customer);
    till.shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
    till.settle().await;
    let why = till.change(&to("price_pro"), "owing").await.unwrap_err();
    assert!(matches!(why, BillingError::StateForbids { why: "an invoice is not paid", .. }), "{why:?}");
    till.shop.stripe.cancel(&till.purchase.subscription);
    // No event has told of the end.
    let why = till.change(&to("price_pro").with_when(When::Now), "ended").await.unwrap_err();
    assert!(matches!(why, BillingError::StateForbids { why: "it has ended for good", .. }), "{why:?}");
    assert!(matches!(till.change(&to("price_pro"), "gone").await.unwrap_err(), BillingError::NoSubscription));
}

#[tokio::test]
async fn in_a_trial_every_change_is_made_at_once_and_costs_nothing() {
    let request = CheckoutRequest::new("price_team").with_trial_days(14);
    let till = Till::open_with(request, |config| config).await;
    let preview = till.preview(&to("price_pro")).await;
    assert!(preview.lines.iter().all(|line| !line.proration), "{preview:?}");
    assert_eq!(till.change(&to("price_pro"), "down").await.unwrap(), Change::Made);
    assert_eq!(till.subscription()["status"], "trialing");
    assert_eq!(till.plan().await, "pro");
    assert_eq!(till.shop.stripe.living(ObjectKind::Invoice).len(), 1);
}
