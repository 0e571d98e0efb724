//! What two catalogues differ in, in words.

use super::*;

const RELEASED: &str = r#"
default_plan = "free"

[features]
csv = { kind = "boolean", fail = "closed" }
region = { kind = "one-of", options = ["eu", "us"], fail = "open" }
seats = { kind = "integer", fail = "open" }

[meters]
api-calls = { aggregation = "sum" }

[plans.free]
rank = 0
[[plans.free.versions]]
version = 1

[plans.pro]
rank = 1
[[plans.pro.versions]]
version = 1
prices = ["price_a"]
grants = { seats = 5 }
limits.api-calls = { max = 1_000, window = "month", overage = "block" }
[[plans.pro.versions]]
version = 2
state = "draft"
prices = ["price_b"]
grants = { seats = 9 }

[addons.more]
mode = "stack"
max_quantity = 3
grants = { seats = 2 }
"#;

fn edited(edits: &[(&str, &str)]) -> PlanCatalog {
    let mut text = RELEASED.to_owned();
    for (from, to) in edits {
        assert!(text.contains(from), "{from:?} is not in the file");
        text = text.replace(from, to);
    }
    PlanCatalog::from_toml(&text).unwrap()
}

fn told(edits: &[(&str, &str)]) -> Vec<(Severity, String)> {
    let changes = edited(&[]).diff(&edited(edits));
    changes.into_iter().map(|change| (change.severity, change.to_string())).collect()
}

use Severity::{Breaks, Changes, Harmless};

#[test]
fn an_edit_is_told_in_words_and_by_how_grave_it_is() {
    let one = |severity, text: &str| vec![(severity, text.to_owned())];
    assert_eq!(told(&[]), []);
    assert_eq!(
        told(&[("[meters]", "# a comment\nsso = { kind = \"boolean\", fail = \"closed\" }\n[meters]")]),
        one(Harmless, "feature `sso` added, fails closed")
    );
    assert_eq!(
        told(&[("max = 1_000, window = \"month\"", "max = 5_000, window = \"day\", warn = [80]")]),
        one(
            Changes,
            "`pro@1`: api-calls 1000 per month, block → 5000 per day, block, warns at 80 %; edited in place: tenants on it \
             would change, make version 3 instead"
        )
    );
    assert_eq!(told(&[("seats = 9", "seats = 8")]), one(Harmless, "`pro@2`: seats 9 → 8"), "nobody has a draft");
    assert_eq!(
        told(&[("csv = { kind = \"boolean\", fail = \"closed\"", "csv = { kind = \"boolean\", fail = \"open\"")]),
        one(Changes, "feature `csv`: fail closed → open")
    );
    assert_eq!(
        told(&[("[\"eu\", \"us\"]", "[\"eu\", \"us\", \"jp\"]")]),
        one(Harmless, "feature `region`: options eu, us → eu, us, jp")
    );
    assert_eq!(told(&[("[\"eu\", \"us\"]", "[\"eu\", \"jp\"]")])[0].0, Changes, "an option is gone");
    assert_eq!(
        told(&[("aggregation = \"sum\"", "aggregation = \"max\"")]),
        one(
            Breaks,
            "meter `api-calls`: aggregation sum → max; what was counted so far would mean something else: make a new meter"
        )
    );
    assert_eq!(
        told(&[("[\"price_a\"]", "[\"price_c\"]"), ("[\"price_b\"]", "[\"price_a\"]")]),
        [
            (Changes, "price \"price_a\" moved from `pro@1` to `pro@2`; whoever pays it would change".to_owned()),
            (Breaks, "price \"price_b\" removed; a subscription that pays it would buy nothing known".to_owned()),
            (Harmless, "price \"price_c\" added, buys `pro@1`".to_owned()),
        ]
    );
    assert_eq!(
        told(&[("state = \"draft\"", "state = \"active\"")]),
        [
            (Harmless, "`pro@2`: state draft → active".to_owned()),
            (
                Changes,
                "plan `pro`: newest active pro@1 → pro@2; tenants whose assignment names no version follow it"
                    .to_owned()
            ),
        ]
    );
    assert_eq!(told(&[("max_quantity = 3", "max_quantity = 2")]), one(Changes, "add-on `more`: max_quantity 3 → 2"));
}

#[test]
fn what_somebody_has_cannot_go_and_what_nobody_has_can() {
    let without = RELEASED.split_once("[addons.more]").unwrap().0;
    let (old, new) = (edited(&[]), PlanCatalog::from_toml(without).unwrap());
    let by = |holders: Option<u64>| {
        let changes = old.diff_with(&new, |_| holders);
        changes.into_iter().map(|change| (change.severity, change.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(by(Some(0)), [(Harmless, "add-on `more` removed".to_owned())]);
    assert_eq!(by(Some(7)), [(Breaks, "add-on `more` removed; 7 tenants have it: keep it, archived".to_owned())]);
    assert_eq!(by(None), [(Breaks, "add-on `more` removed; keep it while a tenant may have it".to_owned())]);
    let refused = refuse_above(Changes, old.diff(&new)).unwrap_err();
    assert_eq!(refused.changes().len(), 1);
    assert!(refuse_above(Breaks, old.diff(&new)).is_ok());
}

#[test]
fn catalogues_that_grant_differently_never_compare_equal() {
    let old = edited(&[]);
    let edits: &[&[(&str, &str)]] = &[
        &[("rank = 1", "rank = 2")],
        &[("rank = 1", "rank = 1\noffered = false")],
        &[("version = 1\nprices", "version = 1\ntrial_days = 3\nprices")],
        &[("overage = \"block\" }", "overage = \"bill\", overage_max = 5 }")],
        &[("overage = \"block\" }", "overage = \"block\", time_zone = \"Europe/Berlin\" }")],
        &[("overage = \"block\" }", "overage = \"block\", anchor = \"billing\" }")],
        &[("mode = \"stack\"", "mode = \"override\"")],
        &[("default_plan = \"free\"", "default_plan = \"pro\"")],
        &[("seats = { kind = \"integer\", fail = \"open\" }", "seats = { kind = \"integer\", fail = \"closed\" }")],
        &[("csv = { kind = \"boolean\", fail", "csv = { kind = \"boolean\", rollout = { percent = 5 }, fail")],
        &[("csv = { kind = \"boolean\", fail", "csv = { kind = \"boolean\", min_access = \"restricted\", fail")],
        &[("aggregation = \"sum\"", "aggregation = \"sum\", min_access = \"restricted\"")],
    ];
    for edit in edits {
        let new = edited(edit);
        assert_ne!(old.fingerprint(), new.fingerprint(), "{edit:?}");
        assert!(!old.diff(&new).is_empty(), "{edit:?}");
        assert!(!new.diff(&old).is_empty(), "{edit:?} undone");
    }
}
