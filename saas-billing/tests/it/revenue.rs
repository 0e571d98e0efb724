//! The numbers: against a table written by hand, through a customer's life, and over very many.

use chrono::{DateTime, TimeDelta, Utc};
use saas_billing::{
    derive::{Derived, TenantObjects, derive},
    dunning::DunningTerms,
    event::{Envelope, read_snapshot},
    revenue::{Moved, Movement},
    testing::CheckoutRequest,
};
use saas_core::{Clock, PlanCatalog};
use serde_json::{Value, json};

use crate::shop::{CATALOG, OPERATOR, Shop};

const DAY: i64 = 86_400;
const START: i64 = 1_700_000_000;

fn day(day: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(START + day * DAY, 0).unwrap()
}

/// `25.5% forever`, `500 eur repeating until 90`, `unknown`.
fn discount(text: &str, name: &str) -> Value {
    if text == "unknown" {
        return json!("di_unknown");
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut coupon = json!({"id": name, "percent_off": null, "amount_off": null, "currency": null});
    let rest = match words[0].strip_suffix('%') {
        Some(percent) => {
            coupon["percent_off"] = serde_json::from_str(percent).unwrap();
            &words[1..]
        }
        None => {
            coupon["amount_off"] = words[0].parse::<i64>().unwrap().into();
            coupon["currency"] = words[1].into();
            &words[2..]
        }
    };
    coupon["duration"] = rest[0].into();
    let end = rest.get(2).map(|until| day(until.parse().unwrap()).timestamp());
    json!({"id": format!("di_{name}"), "object": "discount", "start": START, "end": end, "source": {"coupon": coupon, "type": "coupon"}})
}

/// `5 x 2000 eur / 1 month`, with `metered` or `tiered`.
fn item(text: &str, n: usize) -> Value {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [quantity, "x", amount, currency, "/", count, interval, ref rest @ ..] = words[..] else {
        unreachable!("{text}")
    };
    let usage = if rest == ["metered"] { "metered" } else { "licensed" };
    json!({"id": format!("si_{n}"), "quantity": quantity.parse::<u64>().unwrap(),
        "current_period_start": START, "current_period_end": START + 30 * DAY,
        "price": {"id": "price_pro", "unit_amount": amount.parse::<i64>().ok(), "currency": currency,
            "recurring": {"interval": interval, "interval_count": count.parse::<u32>().unwrap(), "usage_type": usage}}})
}

fn listed(text: &str) -> Vec<&str> {
    text.split(" + ").map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn derived(row: &[&str]) -> Derived {
    let [status, items, discounts, besides, ..] = row else { unreachable!("{row:?}") };
    let items: Vec<Value> = listed(items).into_iter().enumerate().map(|(n, text)| item(text, n)).collect();
    let discounts: Vec<Value> =
        listed(discounts).into_iter().enumerate().map(|(n, text)| discount(text, &n.to_string())).collect();
    let mut subscription = json!({"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": status,
        "items": {"data": items, "has_more": false}, "created": START, "discounts": discounts});
    let mut customer = json!({"id": "cus_1", "object": "customer"});
    let mut events = Vec::new();
    if let Some(behavior) = besides.strip_prefix("paused ") {
        subscription["pause_collection"] = json!({"behavior": behavior, "resumes_at": null});
    } else if let Some(of_customer) = besides.strip_prefix("customer has ") {
        customer["discount"] = discount(of_customer, "customer");
    } else if let Some(since) = besides.strip_prefix("unpaid since ") {
        let invoice = json!({"id": "in_1", "object": "invoice", "customer": "cus_1", "subscription": "sub_1",
            "status": "open", "attempt_count": 1});
        events.push(("invoice.payment_failed", since.parse::<i64>().unwrap(), invoice));
    } else if *besides == "ends with its period" {
        subscription["cancel_at_period_end"] = true.into();
    } else {
        assert_eq!(*besides, "");
    }
    events.extend([("customer.subscription.updated", 0, subscription), ("customer.updated", 0, customer)]);
    let mut objects = TenantObjects::default();
    for (event_type, on, object) in events {
        let body = json!({"id": "evt_1", "object": "event", "type": event_type, "created": day(on).timestamp(),
            "livemode": false, "data": {"object": object}});
        objects.merge(read_snapshot(&Envelope::read(body.to_string().as_bytes()).unwrap()).unwrap().unwrap());
    }
    derive(&objects, &PlanCatalog::from_toml(CATALOG).unwrap())
}

#[test]
fn the_golden_table_gives_the_numbers_that_were_written_by_hand() {
    let table = include_str!("../../../docs/numbers.md").split("## The table").nth(1).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut checked = 0;
    for line in rows {
        let row: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let derived = derived(&row);
        let at = day(row[4].parse().unwrap());
        let paying = derived.revenue_at(&DunningTerms::default(), at);
        let shown: Vec<String> =
            paying.iter().map(|(currency, minor)| format!("{minor} {}", currency.as_str())).collect();
        let shown = if shown.is_empty() { "–".to_owned() } else { shown.join(" + ") };
        assert_eq!(shown, row[5], "{line}");
        // Time changes the number where it says it does, and nowhere else.
        let mut reached = at;
        for _ in 0..100 {
            let Some(next) = derived.next_revenue_boundary(&DunningTerms::default(), reached) else { break };
            let before = derived.revenue_at(&DunningTerms::default(), next - TimeDelta::seconds(1));
            assert_eq!(before, derived.revenue_at(&DunningTerms::default(), reached), "{line}");
            reached = next;
        }
        assert_eq!(derived.next_revenue_boundary(&DunningTerms::default(), reached), None);
        checked += 1;
    }
    assert!(checked > 40, "only {checked} rows were read");
}

#[test]
fn discounts_are_read_in_the_shape_of_every_api_version() {
    let price = json!({"id": "price_pro", "unit_amount": 2_000, "currency": "eur", "recurring": {"interval": "month"}});
    let read = |changes: Value| {
        let mut subscription = json!({"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": "active",
            "items": {"data": [{"id": "si_1", "quantity": 1, "price": price, "current_period_start": START,
                "current_period_end": START + 30 * DAY}]}});
        for (key, value) in changes.as_object().unwrap() {
            subscription[key] = value.clone();
        }
        let body = json!({"id": "evt_1", "object": "event", "type": "customer.subscription.updated", "created": START,
            "livemode": false, "data": {"object": subscription}});
        let mut objects = TenantObjects::default();
        objects.merge(read_snapshot(&Envelope::read(body.to_string().as_bytes()).unwrap()).unwrap().unwrap());
        let derived = derive(&objects, &PlanCatalog::from_toml(CATALOG).unwrap());
        let paying = derived.revenue_at(&DunningTerms::default(), day(1)).into_values().sum::<i64>();
        (paying, derived.fetches.len(), derived.alerts.len())
    };
    let coupon =
        json!({"id": "half", "percent_off": 50.0, "amount_off": null, "currency": null, "duration": "forever"});
    let whole = |id: Value| json!({"id": id, "object": "discount", "start": START, "end": null, "coupon": coupon});
    // Before 2020 a discount had no id; until 2025 the first stood whole beside the list of ids; since then there are ids.
    assert_eq!(read(json!({"discount": whole(Value::Null)})), (1_000, 0, 0));
    assert_eq!(read(json!({"discount": whole("di_1".into()), "discounts": ["di_1"]})), (1_000, 0, 0));
    assert_eq!(read(json!({"discounts": [whole("di_1".into())]})), (1_000, 0, 0));
    let by_source = json!({"id": "di_1", "start": START, "source": {"type": "coupon", "coupon": coupon}});
    assert_eq!(read(json!({"discounts": [by_source]})), (1_000, 0, 0));
    for ids in [json!(["di_1"]), json!([{"id": "di_1", "source": {"type": "coupon", "coupon": "half"}}])] {
        assert_eq!(read(json!({"discounts": ids})), (2_000, 1, 1), "the terms are to be fetched");
    }
    assert_eq!(read(json!({"discounts": [], "discount": null})), (2_000, 0, 0));
}

async fn monthly(shop: &Shop) -> Vec<(i64, i64)> {
    let mrr = shop.billing.mrr(&OPERATOR).await.unwrap();
    mrr.iter().map(|mrr| (mrr.monthly.minor(), mrr.payers)).collect()
}

fn named(moved: &[Moved]) -> Vec<(Movement, i64, i64)> {
    let mut named: Vec<_> = moved.iter().map(|moved| (moved.movement, moved.amount.minor(), moved.changes)).collect();
    named.sort_unstable();
    named
}

#[tokio::test]
async fn a_customers_life_moves_revenue_and_every_month_adds_up() {
    let shop = Shop::open().await;
    let clock = shop.database.clock().clone();
    let (before_all, (ctx, purchase)) = (clock.now(), shop.buyer("acme").await);
    shop.deliver_all().await;
    assert_eq!(monthly(&shop).await, [(2_000, 1)]);
    let annual = shop.billing.mrr(&OPERATOR).await.unwrap()[0].annual().unwrap();
    assert_eq!(annual.minor(), 24_000);
    shop.stripe.advance(TimeDelta::days(1));
    shop.stripe.update_quantity(&purchase.subscription, 5);
    shop.deliver_all().await;
    shop.stripe.advance(TimeDelta::days(1));
    shop.stripe.update_quantity(&purchase.subscription, 3);
    shop.deliver_all().await;
    assert_eq!(monthly(&shop).await, [(6_000, 1)]);
    // A payment fails. The month counts until the policy takes access away, and not an instant longer.
    shop.stripe.fail_next_payment(&purchase.customer);
    shop.stripe.advance(TimeDelta::days(32));
    shop.deliver_all().await;
    let (_, suspended_from) = {
        let derived = shop.billing.derived(&ctx).await.unwrap();
        DunningTerms::default().instants(derived.unpaid_since, None)
    };
    let suspended_from = suspended_from.unwrap();
    clock.set(suspended_from - TimeDelta::seconds(1));
    assert_eq!(shop.billing.roll_revenue(10).await.unwrap(), 0);
    assert_eq!(monthly(&shop).await, [(6_000, 1)]);
    clock.set(suspended_from + TimeDelta::days(1));
    assert_eq!(shop.billing.roll_revenue(10).await.unwrap(), 1);
    assert_eq!(shop.billing.roll_revenue(10).await.unwrap(), 0);
    assert_eq!(monthly(&shop).await, []);
    assert_eq!(shop.scalar("select mrr_minor from saas.tenant_overview").await, 0);
    let lost = shop.billing.revenue_movements(&OPERATOR, suspended_from, suspended_from + TimeDelta::seconds(1)).await;
    assert_eq!(
        named(&lost.unwrap()),
        [(Movement::Churn, -6_000, 1)],
        "dated by the policy, however late it is recorded"
    );
    shop.stripe.pay(&purchase.customer);
    shop.deliver_all().await;
    assert_eq!(monthly(&shop).await, [(6_000, 1)]);
    let back_at = clock.now();
    shop.stripe.advance(TimeDelta::days(1));
    shop.stripe.cancel(&purchase.subscription);
    shop.deliver_all().await;
    assert_eq!(monthly(&shop).await, []);

    let end = clock.now() + TimeDelta::seconds(1);
    let all = shop.billing.revenue_movements(&OPERATOR, before_all, end).await.unwrap();
    use Movement::{Churn, Contraction, Expansion, New, Reactivation};
    let life = [
        (New, 2_000, 1),
        (Expansion, 8_000, 1),
        (Contraction, -4_000, 1),
        (Churn, -12_000, 2),
        (Reactivation, 6_000, 1),
    ];
    assert_eq!(named(&all), life);
    for at in [before_all + TimeDelta::days(1), before_all + TimeDelta::days(3), suspended_from, back_at, end] {
        let opening: i64 =
            shop.billing.mrr_before(&OPERATOR, at).await.unwrap().iter().map(|mrr| mrr.monthly.minor()).sum();
        let moved = shop.billing.revenue_movements(&OPERATOR, at, end).await.unwrap();
        assert_eq!(opening + moved.iter().map(|moved| moved.amount.minor()).sum::<i64>(), 0, "at {at}");
    }
    let third_day = shop.billing.mrr_before(&OPERATOR, before_all + TimeDelta::days(3)).await.unwrap();
    assert_eq!((third_day[0].monthly.minor(), third_day[0].payers), (6_000, 1));
    let recovery = shop.billing.dunning_recovery(&OPERATOR, before_all, end).await.unwrap();
    assert_eq!(recovery.len(), 1);
    assert!(
        recovery[0].failed.0 >= 1 && recovery[0].recovered == recovery[0].failed && recovery[0].lost.0 == 0,
        "{recovery:?}"
    );
}

#[tokio::test]
async fn trials_that_are_paid_for_convert_and_others_do_not() {
    let shop = Shop::open().await;
    let start = shop.database.clock().now();
    let (_, converts) = shop.buyer_of("converts", CheckoutRequest::new("price_pro").with_trial_days(14)).await;
    let (_, leaves) = shop.buyer_of("leaves", CheckoutRequest::new("price_pro").with_trial_days(14)).await;
    let (_, _) = shop.buyer("no-trial").await;
    shop.deliver_all().await;
    assert_eq!(monthly(&shop).await, [(2_000, 1)], "a trial pays for nothing");
    shop.stripe.advance(TimeDelta::days(3));
    shop.stripe.cancel(&leaves.subscription);
    shop.stripe.advance(TimeDelta::days(12));
    // In reverse, as a network may have it.
    let mut deliveries = shop.stripe.deliveries();
    deliveries.reverse();
    shop.deliver(&deliveries).await;
    assert_eq!(monthly(&shop).await, [(4_000, 2)]);
    let in_days = |from, until| (start + TimeDelta::days(from), start + TimeDelta::days(until));
    for ((from, until), expected) in
        [(in_days(0, 30), (2, 1)), (in_days(0, 10), (1, 0)), (in_days(10, 30), (1, 1)), (in_days(20, 30), (0, 0))]
    {
        let conversion = shop.billing.trial_conversion(&OPERATOR, from, until).await.unwrap();
        assert_eq!((conversion.ended, conversion.converted), expected);
    }
    assert_ne!(converts.subscription, leaves.subscription);
}

#[tokio::test]
async fn a_hundred_thousand_tenants_are_one_pass_over_an_index() {
    let shop = Shop::open().await;
    // Beside them, as many that once paid.
    let fill = "begin; set local session_replication_role = replica;
        insert into saas.revenue_state (tenant_id, livemode, currency, mrr_minor, ever_paid, changes, at)
        select gen_random_uuid(), false, case when n % 4 = 0 then 'usd' else 'eur' end,
               case when n <= 100000 then n else 0 end, true, 1, timestamptz '2027-01-01'
        from generate_series(1, 200000) n;
        insert into saas.revenue_change
            (tenant_id, livemode, currency, number, at, recorded_at, movement, before_minor, after_minor)
        select tenant_id, false, currency, 1, at, at, 'new', 0, mrr_minor from saas.revenue_state where mrr_minor > 0;
        commit;";
    sqlx::raw_sql(fill).execute(&mut *shop.owner.lock().await).await.unwrap();
    sqlx::raw_sql("vacuum (analyze) saas.revenue_state, saas.revenue_change")
        .execute(&mut *shop.owner.lock().await)
        .await
        .unwrap();
    let mrr = shop.billing.mrr(&OPERATOR).await.unwrap();
    let sums: Vec<(i64, i64)> = mrr.iter().map(|mrr| (mrr.monthly.minor(), mrr.payers)).collect();
    let usd = (1..=25_000_i64).map(|n| n * 4).sum::<i64>();
    assert_eq!(sums, [(5_000_050_000 - usd, 75_000), (usd, 25_000)]);
    let past = shop.billing.mrr_before(&OPERATOR, "2027-01-02T00:00:00Z".parse().unwrap()).await.unwrap();
    assert_eq!(past, mrr);
    let explain = "explain select currency, sum(mrr_minor)::text, count(*) from saas.revenue_state
        where livemode = false and mrr_minor > 0 group by currency order by currency";
    // What a page costs where no disk has to turn.
    sqlx::raw_sql("set random_page_cost = 1.1").execute(&mut *shop.owner.lock().await).await.unwrap();
    let plan: Vec<String> = sqlx::query_scalar(explain).fetch_all(&mut *shop.owner.lock().await).await.unwrap();
    assert!(plan.iter().any(|line| line.contains("Index Only Scan using revenue_state_sum")), "{plan:#?}");
}
