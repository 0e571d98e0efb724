//! What the customer sees: plan, grace, restriction, recovery, as the entitlements read them.

use chrono::{TimeDelta, Utc};
use saas_billing::{
    dunning::DunningPolicy,
    object::ObjectKind,
    testing::{AfterRetries, CheckoutRequest},
};
use saas_core::{
    Clock, PageSize, RequestContext, SystemTx, overview,
    subscription::{AccessLevel, PlanAssignment, PlanSource, Standing},
};

use crate::shop::{OPERATOR, Shop};

async fn plan(shop: &Shop, ctx: &RequestContext) -> PlanAssignment {
    shop.billing.plan_of(ctx, shop.database.clock().now()).await.unwrap()
}

async fn access(shop: &Shop, ctx: &RequestContext) -> AccessLevel {
    plan(shop, ctx).await.standing.access(shop.database.clock().now())
}

fn week(policy: saas_billing::BillingConfig) -> saas_billing::BillingConfig {
    policy.with_dunning(DunningPolicy::without_messages(7, 7).unwrap())
}

// D1, D2, D3, D6
#[tokio::test]
async fn from_the_free_plan_through_a_failed_payment_and_back() {
    let shop = Shop::open_with(|stripe| stripe, week).await;
    let (ctx, purchase) = shop.buyer("acme").await;
    let other = shop.database.create_tenant("other").await;
    assert_eq!(plan(&shop, &ctx).await.plan.as_str(), "free");
    shop.deliver_all().await;
    let bought = plan(&shop, &ctx).await;
    assert_eq!((bought.plan.as_str(), bought.version, bought.standing), ("pro", Some(1), Standing::Active));
    assert_eq!(bought.anchor, Some(shop.database.clock().now()));

    shop.stripe.fail_next_payment(&purchase.customer);
    shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(1));
    shop.deliver_all().await;
    let failed_at = shop.database.clock().now();
    assert!(matches!(plan(&shop, &ctx).await.standing, Standing::Grace { .. }));
    assert_eq!(access(&shop, &ctx).await, AccessLevel::Full, "the day of the failure takes nothing away");
    // Three retries fail; none of them moves the beginning.
    shop.stripe.advance(TimeDelta::days(7) - TimeDelta::seconds(1));
    shop.deliver_all().await;
    assert_eq!(access(&shop, &ctx).await, AccessLevel::Full);
    shop.stripe.advance(TimeDelta::seconds(1));
    assert_eq!(access(&shop, &ctx).await, AccessLevel::Restricted);
    shop.deliver_all().await;
    assert_eq!(access(&shop, &ctx).await, AccessLevel::Restricted, "the last retry at that instant changes nothing");
    shop.stripe.advance(TimeDelta::days(7));
    assert_eq!(access(&shop, &ctx).await, AccessLevel::Suspended);
    assert_eq!(plan(&shop, &ctx).await.standing, Standing::Suspended { since: failed_at + TimeDelta::days(14) });

    shop.stripe.pay(&purchase.customer);
    shop.deliver_all().await;
    assert_eq!(plan(&shop, &ctx).await.standing, Standing::Active);
    assert_eq!(plan(&shop, &other).await.plan.as_str(), "free", "none of it touched anybody else");
    shop.stripe.cancel(&purchase.subscription);
    shop.deliver_all().await;
    assert_eq!(plan(&shop, &ctx).await.plan.as_str(), "free");
}

#[tokio::test]
async fn every_change_of_the_answer_raises_the_revision_and_nothing_else_does() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    let revision = "select revision from saas.tenant";
    let records = "select count(*) from saas.plan_record where source = 'billing.test'";
    let first = shop.scalar(revision).await;
    let mut last = first;
    assert_eq!(shop.scalar(records).await, 0, "a tenant of which nothing was told is on the default plan");
    let mut answer = plan(&shop, &ctx).await;
    shop.stripe.update_quantity(&purchase.subscription, 2);
    shop.stripe.fail_next_payment(&purchase.customer);
    shop.stripe.advance(TimeDelta::days(40));
    for delivery in shop.stripe.deliveries() {
        let _ = shop.receive(&delivery).await;
        shop.apply().await;
        let (now, present) = (shop.scalar(revision).await, plan(&shop, &ctx).await);
        assert_eq!(now > last, present != answer, "{}", delivery.event_type);
        (last, answer) = (now, present);
        assert_eq!(
            shop.scalar("select coalesce(max(revision), 0) from saas.plan_record").await,
            last * i64::from(last > first)
        );
    }
    let recorded = shop.scalar(records).await;
    assert_eq!(recorded, last - first, "one record for each of them, under the name of the mode");
    assert!(matches!(answer.standing, Standing::Grace { .. }));
    let overview = "select count(*) from saas.tenant_overview where plan = 'pro' and grace_until < suspended_from and mrr_minor = 4000 and currency = 'eur'";
    assert_eq!(shop.scalar(overview).await, 1);
}

// D4
#[tokio::test]
async fn a_trial_without_a_payment_method_ends_in_suspension_and_with_one_in_payment() {
    for has_method in [true, false] {
        let shop = Shop::open().await;
        let (ctx, purchase) = shop.buyer_of("acme", CheckoutRequest::new("price_pro").with_trial_days(14)).await;
        shop.deliver_all().await;
        let started = shop.database.clock().now();
        assert_eq!(shop.billing.derived(&ctx).await.unwrap().trial_end, Some(started + TimeDelta::days(14)));
        assert_eq!(access(&shop, &ctx).await, AccessLevel::Full);
        if !has_method {
            shop.stripe.remove_payment_method(&purchase.customer);
        }
        shop.stripe.advance(TimeDelta::days(14) + TimeDelta::hours(2));
        shop.deliver_all().await;
        let expected = if has_method { AccessLevel::Full } else { AccessLevel::Suspended };
        assert_eq!(access(&shop, &ctx).await, expected);
        assert_eq!(plan(&shop, &ctx).await.plan.as_str(), "pro");
    }
}

// D4, D12
#[tokio::test]
async fn what_stripe_does_after_the_last_retry_has_its_meaning() {
    for (after, plan_then) in
        [(AfterRetries::PastDue, "pro"), (AfterRetries::Unpaid, "pro"), (AfterRetries::Cancel, "free")]
    {
        let shop = Shop::open_with(|stripe| stripe.with_after_retries(after), week).await;
        let (ctx, purchase) = shop.buyer("acme").await;
        shop.stripe.fail_next_payment(&purchase.customer);
        shop.stripe.advance(TimeDelta::days(39));
        shop.deliver_all().await;
        assert_eq!(plan(&shop, &ctx).await.plan.as_str(), plan_then, "{after:?}");
        let expected = if after == AfterRetries::Cancel { AccessLevel::Full } else { AccessLevel::Restricted };
        assert_eq!(access(&shop, &ctx).await, expected, "{after:?}");
        let owed = shop.billing.derived(&ctx).await.unwrap();
        let latest = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
        let invoice = latest["latest_invoice"].as_str().unwrap().parse().unwrap();
        shop.stripe.close_invoice(&invoice, true);
        shop.deliver_all().await;
        assert_eq!(owed.unpaid_since.is_some(), after != AfterRetries::Cancel, "{after:?}");
        let written_off = shop.billing.derived(&ctx).await.unwrap();
        assert_eq!(written_off.unpaid_since, owed.unpaid_since, "writing off pays nothing: {after:?}");
        shop.database.clock().advance(TimeDelta::days(60));
        let expected = if after == AfterRetries::Cancel { AccessLevel::Full } else { AccessLevel::Suspended };
        assert_eq!(access(&shop, &ctx).await, expected, "{after:?}");
    }
}

// D11
#[tokio::test]
async fn the_simulator_keeps_the_day_of_the_month() {
    let shop = Shop::open().await;
    shop.database.clock().set("2027-12-31T10:00:00Z".parse::<chrono::DateTime<Utc>>().unwrap());
    let (ctx, _) = shop.buyer("acme").await;
    let mut starts = Vec::new();
    for _ in 0..3 {
        shop.stripe.advance(TimeDelta::days(31));
        shop.deliver_all().await;
        let derived = shop.billing.derived(&ctx).await.unwrap();
        starts.push(derived.period.unwrap().start.date_naive().to_string());
        // What usage windows count from does not move with the periods.
        assert_eq!(plan(&shop, &ctx).await.anchor.unwrap().date_naive().to_string(), "2027-12-31");
    }
    assert_eq!(starts, ["2028-01-31", "2028-02-29", "2028-03-31"]);
}

// D6
#[tokio::test]
async fn the_operators_list_agrees_with_the_gate_while_time_passes_without_events() {
    let shop = Shop::open_with(|stripe| stripe, week).await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.stripe.fail_next_payment(&purchase.customer);
    shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(1));
    shop.deliver_all().await;
    let listed = async |standing: &str| {
        let filter = overview::Filter { standing: Some(standing.to_owned()), ..overview::Filter::default() };
        let mut tx = SystemTx::begin(shop.database.system(), OPERATOR, "look at the list").await.unwrap();
        let now = shop.database.clock().now();
        let page = overview::list(&mut tx, &filter, None, PageSize::default(), now).await.unwrap();
        tx.commit().await.unwrap();
        page.items.iter().map(|row| row.standing.clone()).collect::<Vec<_>>()
    };
    assert_eq!((listed("grace").await, listed("suspended").await), (vec!["grace".to_owned()], vec![]));
    shop.database.clock().advance(TimeDelta::days(14) - TimeDelta::seconds(1));
    assert_eq!((listed("grace").await.len(), listed("suspended").await.len()), (1, 0));
    shop.database.clock().advance(TimeDelta::seconds(1));
    assert!(matches!(plan(&shop, &ctx).await.standing, Standing::Suspended { .. }));
    assert_eq!((listed("grace").await, listed("suspended").await), (vec![], vec!["suspended".to_owned()]));
    shop.stripe.pay(&purchase.customer);
    shop.deliver_all().await;
    assert_eq!((listed("active").await.len(), listed("suspended").await.len()), (1, 0));
}
