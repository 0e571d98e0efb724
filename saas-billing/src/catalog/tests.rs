use saas_core::PlanCatalog;

use super::{PriceList, PriceListError};
use crate::provider::{PricedBy, Tier};

const PLANS: &str = r#"
    default_plan = "free"
    [features.export]
    kind = "boolean"
    fail = "closed"
    [meters.calls]
    aggregation = "sum"
    [meters.peak]
    aggregation = "max"
    [meters.credits]
    aggregation = "sum"
    [meters.tokens]
    aggregation = "sum"
    credit = { of = "credits", cost = 2 }
    [plans.free]
    rank = 0
    [[plans.free.versions]]
    version = 1
    [plans.pro]
    rank = 10
    [[plans.pro.versions]]
    version = 1
    state = "archived"
    prices = ["pro-old"]
    [[plans.pro.versions]]
    version = 2
    prices = ["pro", "price_of_another_age"]
    grants = { export = true }
"#;

fn read(prices: &str) -> Result<PriceList, PriceListError> {
    let text = format!("{PLANS}\n{prices}");
    PriceList::from_toml(&text, &PlanCatalog::from_toml(&text).unwrap())
}

fn faults(price: &str) -> Vec<String> {
    let refused = read(&format!("[products.pro]\nname = \"Pro\"\n[prices.pro]\n{price}")).unwrap_err();
    refused.faults().iter().map(|fault| format!("{} {}", fault.place, fault.why)).collect()
}

#[test]
fn a_price_is_one_object_for_each_currency_and_a_product_gives_what_its_plan_does() {
    let list = read(
        r#"[products.pro]
        name = "Pro"
        [prices.pro]
        per = "seat"
        interval = "year"
        tiers = "graduated"
        steps = [{ up_to = 5, unit = { eur = "8", jpy = "900" } }, { unit = { eur = "6.50", jpy = "700" }, flat = { eur = "1" } }]"#,
    )
    .unwrap();
    let keys: Vec<_> = list.prices().iter().map(|price| price.lookup_key.as_str()).collect();
    assert_eq!(keys, ["pro-eur", "pro-jpy"]);
    let tier = |up_to, unit_amount, flat_amount| Tier { up_to, unit_amount, flat_amount };
    assert_eq!(list.prices()[0].by, PricedBy::Graduated(vec![tier(Some(5), 800, 0), tier(None, 650, 100)]));
    assert_eq!(list.prices()[1].by, PricedBy::Graduated(vec![tier(Some(5), 900, 0), tier(None, 700, 0)]));
    assert_eq!(list.products()[0].id.as_str(), "prod_pro");
    assert_eq!(list.products()[0].features.iter().collect::<Vec<_>>(), ["export"]);
}

// L6: what Stripe cannot express is refused, with the place and the reason.
#[test]
fn what_cannot_be_expressed_is_refused_before_anything_is_sent() {
    for (price, fault) in [
        ("per = \"flat\"\ninterval = \"month\"", "prices.pro has neither one amount nor tiers"),
        ("per = \"flat\"\ninterval = \"month\"\namounts = {}", "prices.pro.amounts names no currency"),
        ("per = \"flat\"\ninterval = \"month\"\namounts = { EUR = \"1\" }", "prices.pro.amounts.EUR is no currency"),
        (
            "per = \"flat\"\ninterval = \"month\"\namounts = { eur = \"0.001\" }",
            "prices.pro.amounts.eur is 0.001, finer",
        ),
        (
            "per = \"flat\"\ninterval = \"month\"\namounts = { kwd = \"1.005\" }",
            "prices.pro.amounts.kwd is 1.005, not a multiple",
        ),
        ("per = \"flat\"\ninterval = \"month\"\namounts = { eur = 1.5 }", "the file cannot be read"),
        ("per = \"flat\"\ninterval = \"quarter\"\namounts = { eur = \"1\" }", "the file cannot be read"),
        ("per = \"flat\"\ninterval = \"month\"\ncolour = 1\namounts = { eur = \"1\" }", "the file cannot be read"),
        (
            "per = \"flat\"\ninterval = \"month\"\nmeter = \"calls\"\namounts = { eur = \"1\" }",
            "prices.pro has a meter",
        ),
        (
            "per = \"usage\"\ninterval = \"month\"\namounts = { eur = \"1\" }",
            "prices.pro is charged by usage, and of no meter",
        ),
        (
            "per = \"usage\"\ninterval = \"month\"\nmeter = \"x\"\namounts = { eur = \"1\" }",
            "prices.pro is of the meter \"x\"",
        ),
        (
            "per = \"usage\"\ninterval = \"month\"\nmeter = \"peak\"\namounts = { eur = \"1\" }",
            "prices.pro is of `peak`, counted by max",
        ),
        (
            "per = \"usage\"\ninterval = \"month\"\nmeter = \"tokens\"\namounts = { eur = \"1\" }",
            "prices.pro is of `tokens`, which is paid",
        ),
        (
            "per = \"flat\"\ninterval = \"month\"\ntiers = \"volume\"\nsteps = [{ unit = { eur = \"1\" } }]",
            "prices.pro has tiers and one price",
        ),
        ("per = \"seat\"\ninterval = \"month\"\ntiers = \"volume\"", "prices.pro.steps do not cover"),
        (
            "per = \"seat\"\ninterval = \"month\"\ntiers = \"volume\"\nsteps = [{ up_to = 3, unit = { eur = \"1\" } }]",
            "prices.pro.steps do not cover",
        ),
        (
            "per = \"seat\"\ninterval = \"month\"\ntiers = \"volume\"\nsteps = [{ up_to = 3, unit = { eur = \"1\" } }, { up_to = 3, unit = { eur = \"1\" } }, { unit = { eur = \"1\" } }]",
            "prices.pro.steps do not cover",
        ),
        (
            "per = \"seat\"\ninterval = \"month\"\ntiers = \"volume\"\nsteps = [{ up_to = 3, unit = { eur = \"1\" } }, { unit = { usd = \"1\" } }]",
            "prices.pro.steps have different currencies",
        ),
        (
            "product = \"x\"\nper = \"flat\"\ninterval = \"month\"\namounts = { eur = \"1\" }",
            "prices.pro is of `x`, which is not",
        ),
    ] {
        let found = faults(price);
        assert!(found.iter().any(|found| found.starts_with(fault)), "{price}\n{found:?}");
    }
}

#[test]
fn a_price_that_nobody_sells_or_has_is_named_and_what_is_sold_no_more_is_not_in_the_list() {
    let all =
        read("[products.x]\nname = \"\"\n[prices.y]\nper = \"flat\"\ninterval = \"month\"\namounts = { eur = \"1\" }");
    let places: Vec<_> = all.unwrap_err().faults.into_iter().map(|fault| fault.place).collect();
    assert_eq!(places, ["products.x.name", "prices.y", "prices.y", "prices.pro"], "an id of Stripe's needs no entry");
    let list = read(
        "[products.pro]\nname = \"Pro\"\n[prices.pro]\nper = \"flat\"\ninterval = \"month\"\namounts = { eur = \"1\" }
         [prices.pro-old]\nper = \"flat\"\ninterval = \"month\"\namounts = { eur = \"2\" }",
    );
    assert_eq!(list.unwrap().prices().len(), 1);
}
