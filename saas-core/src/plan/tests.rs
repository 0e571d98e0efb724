//! Good files and bad ones.

use proptest::prelude::*;

use super::*;
use crate::{FeatureKey, MeterKey, PlanKey, TenantId, subscription::AccessLevel};

const GOOD: &str = r#"
default_plan = "free"

[features.csv]
kind = "boolean"
fail = "closed"

[features.sso]
kind = "boolean"
fail = "open"
min_access = "suspended"

[features.retention]
kind = "integer"
fail = "open"

[features.support]
kind = "text"
fail = "open"

[features.api]
kind = "metered"
meter = "calls"
fail = "open"

[meters.calls]
aggregation = "sum"

[meters.exports]
aggregation = "count"
min_access = "restricted"

[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
grants = { retention = 7, csv = false }
limits.calls = { max = 0, window = "day", overage = "block" }

[plans.pro]
rank = 10
[[plans.pro.versions]]
version = 1
prices = ["price_1"]
grants = { csv = true, retention = 30 }
limits.calls = { max = 1_000, window = "month", anchor = "billing", overage = "block", warn = [80, 100] }
[[plans.pro.versions]]
version = 3
prices = ["price_3"]
grants = { csv = true, sso = true, retention = 0xff, support = "e-mail" }
limits.calls = { max = "unlimited", window = "month" }

[plans.acme]
rank = 5
offered = false
[[plans.acme.versions]]
version = 1
grants = { csv = true }
"#;

fn faults(text: &str) -> Vec<String> {
    PlanCatalog::from_toml(text).unwrap_err().faults().iter().map(ToString::to_string).collect()
}

/// The good file with one piece of text replaced.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from:?}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn a_good_file_is_read_as_written() {
    let catalog = PlanCatalog::from_toml(GOOD).unwrap();
    let id = |key: &'static str| catalog.feature(&FeatureKey::from_static(key)).unwrap().id();
    let pro = catalog.version(&PlanKey::from_static("pro"), None).unwrap();
    assert_eq!(pro.reference().to_string(), "pro@3");
    assert_eq!(catalog.version(&PlanKey::from_static("pro"), Some(2)).map(PlanVersion::rank), None);
    assert_eq!(pro.value(id("retention")), Some(&StaticValue::Integer(255)));
    assert_eq!(pro.value(id("support")), Some(&StaticValue::Text("e-mail".into())));
    assert!(pro.grants(id("sso")) && pro.grants(id("api")), "an unlimited meter switches its feature on");

    let first = catalog.version(&PlanKey::from_static("pro"), Some(1)).unwrap();
    assert_eq!(catalog.version_by_id(first.id()).unwrap().reference(), first.reference());
    let calls = catalog.meter(&MeterKey::from_static("calls")).unwrap();
    let rule = first.limit(calls.id()).unwrap();
    assert_eq!((rule.limit, rule.window, rule.anchor), (Limit::Max(1_000), Window::Month, WindowAnchor::Billing));
    assert_eq!((rule.overage, &*rule.warn), (Overage::Block, &[80, 100][..]));

    let free = catalog.default_version();
    assert!(!free.grants(id("csv")) && free.grants(id("retention")));
    assert!(!free.grants(id("api")), "a limit of 0 is not an included meter");
    assert_eq!(catalog.meters()[1].min_access(), AccessLevel::Restricted);
    assert_eq!(catalog.feature_by_id(id("csv")).unwrap().min_access(), AccessLevel::Full);
    assert_eq!(catalog.feature_by_id(id("retention")).unwrap().min_access(), AccessLevel::Suspended);
}

#[test]
fn a_price_names_the_version_that_it_buys() {
    let catalog = PlanCatalog::from_toml(GOOD).unwrap();
    assert_eq!(catalog.plan_for_price("price_1").unwrap().to_string(), "pro@1");
    assert_eq!(catalog.plan_for_price("price_3").unwrap().to_string(), "pro@3");
    assert_eq!(catalog.plan_for_price("price_2"), None);
}

#[test]
fn a_price_that_the_file_calls_by_a_name_has_every_id_that_was_sold_under_it() {
    let text = GOOD.replace("price_1", "pro-monthly") + "\n[prices.pro-monthly]\nany = 1\n[products.pro]\nany = 2\n";
    let named = PlanCatalog::from_toml(&text).unwrap();
    assert_eq!(named.plan_for_price("price_a"), None);
    let pairs = |ids: &[&str]| ids.iter().map(|id| ((*id).to_owned(), "pro-monthly".to_owned())).collect::<Vec<_>>();
    let first = named.with_price_ids(pairs(&["price_a"]));
    let both = first.with_price_ids(pairs(&["price_b"]));
    for id in ["price_a", "price_b", "pro-monthly"] {
        assert_eq!(both.plan_for_price(id).unwrap().to_string(), "pro@1", "{id}");
    }
    assert_eq!((first.plan_for_price("price_b"), both.fingerprint()), (None, named.fingerprint()));
}

#[test]
fn the_upgrade_hint_is_the_lowest_offered_plan_that_has_the_feature() {
    let catalog = PlanCatalog::from_toml(GOOD).unwrap();
    let csv = catalog.feature(&FeatureKey::from_static("csv")).unwrap().id();
    assert_eq!(catalog.cheapest_with(csv, 1).unwrap().reference().to_string(), "pro@3", "acme is not offered");
    assert!(catalog.cheapest_with(csv, 11).is_none());
}

// G15
#[test]
fn the_fingerprint_follows_what_is_granted_and_nothing_else() {
    let print = |text: &str| PlanCatalog::from_toml(text).unwrap().fingerprint();
    assert_eq!(print(GOOD), print(&with("[features.csv]", "# a comment\n[features.csv]")));
    let swapped = with("kind = \"boolean\"\nfail = \"closed\"", "fail = \"closed\"\nkind = \"boolean\"");
    assert_eq!(print(GOOD), print(&swapped));
    for (from, to) in [
        ("retention = 7", "retention = 8"),
        ("csv = false", "csv = true"),
        ("warn = [80, 100]", "warn = [90, 100]"),
        ("fail = \"closed\"", "fail = \"open\""),
        ("price_3", "price_4"),
        ("default_plan = \"free\"", "default_plan = \"pro\""),
    ] {
        assert_ne!(print(GOOD), print(&with(from, to)), "{from}");
    }
}

#[test]
fn every_mistake_is_refused_with_its_line_and_its_remedy() {
    for (from, to, line, words) in [
        ("fail = \"closed\"", "", 4, "features.csv.fail is missing"),
        ("fail = \"closed\"", "fail = \"ajar\"", 6, "write \"open\" or \"closed\""),
        ("kind = \"boolean\"", "kind = \"bool\"", 5, "is \"bool\", which is none of its values"),
        ("kind = \"boolean\"", "kind = 1", 5, "is a whole number, not text"),
        (
            "kind = \"boolean\"",
            "kind = \"boolean\"\nmeter = \"calls\"",
            6,
            "is given for a feature that is not metered",
        ),
        ("meter = \"calls\"", "meter = \"cals\"", 23, "names \"cals\", which is no meter"),
        ("[features.csv]", "[features.Csv]", 4, "is not a key"),
        ("aggregation = \"sum\"", "aggregation = \"median\"", 27, "is \"median\", which is none of its values"),
        ("rank = 0", "rank = 10", 41, "which another plan has (line 34)"),
        ("rank = 0", "rank = -1", 34, "is -1, which is out of range"),
        ("rank = 0", "rank = 0.5", 34, "is a fraction, not a whole number"),
        ("rank = 0", "rank = 0\nrang = 1", 35, "plans.free.rang is not a known key"),
        ("csv = false", "csv = 1", 37, "is a whole number, not a boolean"),
        ("csv = false", "cvs = false", 37, "is no feature"),
        ("csv = false", "api = true", 37, "is metered, so its limit grants it"),
        ("retention = 7", "retention = 9223372036854775808", 37, "is out of range"),
        ("max = 0", "max = 9223372036854775808", 38, "is 9223372036854775808, which is out of range"),
        ("max = 0", "max = \"lots\"", 38, "is another text than \"unlimited\""),
        ("max = 0", "max = 5, warn = [100, 80]", 38, "is not ascending"),
        ("max = 0", "max = 5, warn = [80, 80]", 38, "is not ascending"),
        ("max = 0", "max = 5, warn = [120]", 38, "is 120, which is out of range"),
        ("max = 0", "max = 0, warn = [80]", 38, "is given for a limit that has no part"),
        (
            "window = \"day\"",
            "window = \"lifetime\", anchor = \"billing\"",
            38,
            "is given for a window that never starts",
        ),
        ("overage = \"block\" }", "}", 38, "limits.calls.overage is missing"),
        ("max = \"unlimited\"", "max = \"unlimited\", overage = \"block\"", 51, "is given for an unlimited meter"),
        ("version = 3", "version = 1", 48, "is 1, after 1"),
        ("price_3", "price_1", 49, "holds \"price_1\", which line 44 already has"),
        ("\"price_3\"", "\"\"", 49, "holds \"\""),
        ("\"price_3\"", "3", 49, "holds a whole number, not text"),
        ("default_plan = \"free\"", "default_plan = \"fre\"", 2, "names \"fre\", which is no plan"),
        ("default_plan = \"free\"", "", 1, "default_plan is missing"),
        ("limits.calls = { max = 0", "limits.cals = { max = 0", 38, "is no meter"),
        ("[meters.exports]", "[meters.calls]", 29, "is not TOML: duplicate key"),
        ("fail = \"closed\"", "fail = \"closed\"\nfail = \"open\"", 7, "is not TOML: duplicate key"),
    ] {
        let found = faults(&with(from, to));
        let place = format!("line {line}, column ");
        let hit = found.iter().any(|fault| fault.starts_with(&place) && fault.contains(words));
        assert!(hit, "{from:?} → {to:?}: expected line {line}: {words}; found {found:#?}");
    }
}

/// Everything that the first file has not.
const RICH: &str = r#"
default_plan = "free"

[features]
region = { kind = "one-of", options = ["eu", "us"], fail = "closed" }
theme = { kind = "json", fail = "open" }
beta = { kind = "boolean", fail = "closed", rollout = { percent = 12.5, cohorts = ["friends"] } }
images = { kind = "metered", meter = "image", fail = "closed" }

[meters]
ai-credits = { aggregation = "sum" }
image = { aggregation = "sum", credit = { of = "ai-credits", cost = 40 } }
seats = { aggregation = "latest" }
users = { aggregation = "count", late_hours = 0 }
pages = { aggregation = "sum", late_hours = 840 }

[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
state = "archived"
[[plans.free.versions]]
version = 2
grants = { region = "eu", theme = { accent = "red", sizes = [1, 2.5], dark = true }, beta = true }
[[plans.free.versions]]
version = 3
state = "draft"

[plans.pro]
rank = 1
[[plans.pro.versions]]
version = 1
[plans.pro.versions.limits.ai-credits]
max = 1000
window = "month"
time_zone = "Europe/Berlin"
overage = "bill"
spend_cap = { unit_price = "0.03", max = 1000 }
on_plan_change = "keep"
warn = [80]
[plans.pro.versions.limits.pages]
max = 100
window = "month"
overage = "block"
per_member = 20

[addons.more]
mode = "stack"
max_quantity = 5
prices = ["price_more"]
limits = { ai-credits = 100, users = "unlimited" }
grants = { beta = true }
"#;

#[test]
fn the_whole_language_is_read_as_written() {
    let catalog = PlanCatalog::from_toml(RICH).unwrap();
    let feature = |key: &'static str| catalog.feature(&FeatureKey::from_static(key)).unwrap();
    let meter = |key: &'static str| catalog.meter(&MeterKey::from_static(key)).unwrap();
    let free = catalog.default_version();
    assert_eq!(free.reference().to_string(), "free@2", "neither the archived one nor the draft");
    assert_eq!(free.value(feature("region").id()), Some(&StaticValue::Text("eu".into())));
    let theme = serde_json::json!({"accent": "red", "sizes": [1, 2.5], "dark": true});
    assert_eq!(free.value(feature("theme").id()), Some(&StaticValue::Json(theme)));
    let rollout = Rollout { permille: 125, cohorts: Box::new(["friends".into()]) };
    assert_eq!(feature("beta").rollout(), Some(&rollout));

    let credits = meter("ai-credits").id();
    assert_eq!(meter("image").credit(), Some(Credit { of: credits, cost: 40 }));
    assert_eq!((catalog.paying(meter("image").id()), catalog.paying(credits)), (credits, credits));
    let pro = catalog.version(&PlanKey::from_static("pro"), None).unwrap();
    assert!(pro.grants(feature("images").id()), "the balance that pays for it is there");
    let rule = pro.limit(credits).unwrap();
    assert_eq!((rule.time_zone, rule.overage_max), (chrono_tz::Europe::Berlin, Some(33_333)), "1000 / 0.03");
    assert_eq!((rule.rollover, rule.per_member, rule.on_plan_change), (None, None, PlanChange::Keep));

    let pages = meter("pages");
    assert_eq!((pages.late_hours(), pro.limit(pages.id()).unwrap().per_member), (840, Some(20)));

    let more = catalog.addon_for_price("price_more").unwrap();
    assert_eq!((more.mode(), more.max_quantity()), (AddOnMode::Stack, 5));
    assert_eq!((more.limit(credits), more.limit(meter("users").id())), (Some(Limit::Max(100)), Some(Limit::Unlimited)));
    assert!(more.grants(feature("beta").id()) && !more.grants(feature("theme").id()));
}

// f-M9, f-M14, f-E15
#[test]
fn what_happens_at_the_end_of_a_window_and_at_a_change_of_plan_is_read() {
    for (text, change, over, rollover) in [
        ("", PlanChange::Keep, OverLimit::Block, None),
        ("on_plan_change = \"reset\"\nover_limit = \"read_only\"", PlanChange::Reset, OverLimit::ReadOnly, None),
        (
            "on_plan_change = \"prorate\"\nover_limit = { grace_days = 14 }\nrollover = { max = 5, windows = 2 }",
            PlanChange::Prorate,
            OverLimit::Grace { days: 14 },
            Some(Rollover { max: 5, windows: 2 }),
        ),
    ] {
        let catalog = PlanCatalog::from_toml(&RICH.replacen("on_plan_change = \"keep\"", text, 1)).unwrap();
        let credits = catalog.meter(&MeterKey::from_static("ai-credits")).unwrap().id();
        let rule = catalog.version(&PlanKey::from_static("pro"), None).unwrap().limit(credits).unwrap();
        assert_eq!((rule.on_plan_change, rule.over_limit, rule.rollover), (change, over, rollover));
    }
}

#[test]
fn a_rollout_takes_its_share_and_keeps_whom_it_took() {
    let (beta, other) = (FeatureKey::from_static("beta"), FeatureKey::from_static("other"));
    let share =
        |permille, cohorts: &[&str]| Rollout { permille, cohorts: cohorts.iter().map(|c| (*c).into()).collect() };
    let tenants: Vec<_> =
        (0..20_000_u128).map(|n| TenantId::from_uuid(uuid::Uuid::from_u128((n << 64) | (n * 7)))).collect();
    let within = |rollout: &Rollout, feature| {
        tenants.iter().filter(|tenant| rollout.includes(feature, **tenant, &[])).copied().collect::<Vec<_>>()
    };
    let (tenth, quarter) = (within(&share(100, &[]), &beta), within(&share(250, &[]), &beta));
    assert!((1_800..2_200).contains(&tenth.len()) && (4_700..5_300).contains(&quarter.len()), "{}", quarter.len());
    assert!(tenth.iter().all(|tenant| quarter.contains(tenant)));
    assert_ne!(tenth, within(&share(100, &[]), &other), "not always the same tenants go first");
    assert!(within(&share(0, &["friends"]), &beta).is_empty());
    assert_eq!(within(&share(1000, &[]), &beta).len(), tenants.len());
    assert!(share(0, &["friends"]).includes(&beta, tenants[0], &["friends".into()]));
}

#[test]
fn mistakes_in_the_whole_language_are_refused_too() {
    for (from, to, words) in [
        ("options = [\"eu\", \"us\"], ", "", "features.region.options is missing"),
        ("options = [\"eu\", \"us\"]", "options = [\"eu\", \"eu\"]", "holds \"eu\" twice"),
        ("options = [\"eu\", \"us\"]", "options = []", "is empty"),
        ("kind = \"json\"", "kind = \"json\", options = [\"x\"]", "not one of several"),
        ("region = \"eu\"", "region = \"mars\"", "is \"mars\", which is none of its options"),
        ("theme = { accent = \"red\"", "theme = { accent = 2026-01-01", "holds what JSON has not"),
        ("dark = true }", "dark = inf }", "holds what JSON has not"),
        ("percent = 12.5", "percent = 12.55", "is a fraction, which is no such share"),
        ("percent = 12.5", "percent = 101", "which is no such share"),
        ("percent = 12.5, ", "", "features.beta.rollout.percent is missing"),
        ("cost = 40", "cost = 0", "is 0, which is out of range"),
        ("of = \"ai-credits\"", "of = \"image\"", "which itself draws on another"),
        ("of = \"ai-credits\"", "of = \"seats\"", "draws on `seats`, which is not a sum"),
        ("of = \"ai-credits\"", "of = \"gold\"", "names \"gold\", which is no meter"),
        ("late_hours = 0", "late_hours = 10_000", "is 10000, which is out of range"),
        (
            "cost = 40 }",
            "cost = 40 }, late_hours = 24",
            "is given for a meter that counts in the windows of the one that pays",
        ),
        ("on_plan_change = \"keep\"", "per_member = -1", "is -1, which is out of range"),
        // C14
        ("max = 1000\nwindow", "max = 10.5\nwindow", "is a fraction, not a whole number"),
        (
            "[addons.more]",
            "[plans.pro.versions.limits.seats]\nmax = 5\nwindow = \"month\"\noverage = \"block\"\n[addons.more]",
            "is given for a meter whose level stays when a window ends",
        ),
        (
            "[addons.more]",
            "[plans.pro.versions.limits.seats]\nmax = 5\nwindow = \"lifetime\"\noverage = \"block\"\nper_member = 2\n[addons.more]",
            "is given for a meter whose uses do not add up",
        ),
        (
            "[addons.more]",
            "[plans.pro.versions.limits.seats]\nmax = 5\nwindow = \"lifetime\"\noverage = \"block\"\non_plan_change = \"reset\"\n[addons.more]",
            "seats.on_plan_change is not \"keep\" for a meter whose level stays",
        ),
        (
            "window = \"month\"\ntime_zone = \"Europe/Berlin\"",
            "window = \"lifetime\"\nrollover = { max = 5, windows = 1 }",
            "rollover is given for a window that never ends",
        ),
        (
            "spend_cap = { unit_price = \"0.03\", max = 1000 }\non_plan_change = \"keep\"\nwarn = [80]",
            "over_limit = \"block\"\non_plan_change = \"prorate\"\n[plans.pro.versions.limits.users]\nmax = \"unlimited\"\n\
             window = \"month\"\non_plan_change = \"prorate\"",
            "users.on_plan_change is \"prorate\" for an unlimited meter",
        ),
        ("on_plan_change = \"keep\"", "over_limit = \"shout\"", "is \"shout\", which is none of its values"),
        ("on_plan_change = \"keep\"", "over_limit = { grace_days = 0 }", "grace_days is 0, which is out of range"),
        ("on_plan_change = \"keep\"", "over_limit = {}", "over_limit.grace_days is missing"),
        ("state = \"archived\"", "state = \"gone\"", "is \"gone\", which is none of its values"),
        ("version = 2", "version = 2\nstate = \"draft\"", "which has no active version"),
        ("versions.limits.ai-credits", "versions.limits.image", "is paid in `ai-credits`, whose limit it has"),
        ("Europe/Berlin", "Europe/Bonn", "is \"Europe/Bonn\", which is no time zone"),
        ("window = \"month\"", "window = \"hour\"", "is given for a window of 60 minutes"),
        ("overage = \"bill\"", "overage = \"block\"", "is given for a limit that lets nothing through"),
        ("unit_price = \"0.03\"", "unit_price = \"0\"", "which is no such price"),
        ("unit_price = \"0.03\"", "unit_price = 3", "is a whole number, not text"),
        ("on_plan_change = \"keep\"", "overage_max = 5", "is given beside `overage_max`"),
        ("on_plan_change = \"keep\"", "rollover = { max = 0, windows = 1 }", "is 0, which is out of range"),
        ("window = \"month\"", "window = \"lifetime\"", "is given for a window that never starts again"),
        ("mode = \"stack\"\n", "", "addons.more.mode is missing"),
        ("max_quantity = 5", "max_quantity = 0", "is 0, which is out of range"),
        ("users = \"unlimited\"", "image = 5", "is paid in another meter"),
        ("users = \"unlimited\"", "gold = 5", "is no meter"),
        ("prices = [\"price_more\"]", "prices = [\"price_more\", \"price_more\"]", "which line 50 already has"),
    ] {
        assert!(RICH.contains(from), "{from:?}");
        let found = faults(&RICH.replacen(from, to, 1));
        assert!(
            found.iter().any(|fault| fault.contains(words)),
            "{from:?} → {to:?}: expected {words}; found {found:#?}"
        );
    }
}

#[test]
fn all_mistakes_of_a_file_come_at_once_in_its_order() {
    let found =
        faults("default_plan = 1\n[features.A]\nkind = \"x\"\n[plans.p]\nrank = \"low\"\nversions = []\nextra = 1\n");
    let lines: Vec<_> = found.iter().map(|fault| &fault[..6]).collect();
    assert_eq!(lines, ["line 1", "line 2", "line 2", "line 3", "line 4", "line 5", "line 7"], "{found:#?}");
}

#[test]
fn hostile_files_are_refused_and_do_not_exhaust_anything() {
    assert!(!faults("").is_empty());
    assert!(!faults(&"\0".repeat(100)).is_empty());
    assert!(!faults(&"[".repeat(100_000)).is_empty());
    assert!(!faults(&format!("a = {}1{}", "[".repeat(100_000), "]".repeat(100_000))).is_empty());
    let wide = format!("{GOOD}{}", "# x\n".repeat(300_000));
    assert!(faults(&wide)[0].contains("more than 1048576"));
    let many: String = (0..20_000).map(|n| format!("[features.f{n}]\n")).collect();
    let error = PlanCatalog::from_toml(&many).unwrap_err();
    assert_eq!(error.faults().len(), CatalogError::MAX_FAULTS);
    assert!(error.to_string().contains("features has 20000 entries, more than 4096"), "{}", &error.to_string()[..200]);
    let error = PlanCatalog::from_bytes(b"default_plan = \"free\"\n# \xff\n").unwrap_err();
    assert_eq!((error.faults()[0].line, error.faults()[0].column), (2, 3));
    let secret = format!("default_plan = \"{}\"", "x".repeat(10_000));
    assert!(faults(&secret).iter().all(|fault| fault.len() < 400), "messages stay short");
}

proptest! {
    // G18
    #[test]
    fn a_limit_never_overflows(used: u64, more: u64, max: u64) {
        let limit = Limit::Max(max);
        prop_assert_eq!(limit.admits(used, more), u128::from(used) + u128::from(more) <= u128::from(max));
        prop_assert!(Limit::Unlimited.admits(used, more));
        if limit.admits(used, more) {
            prop_assert_eq!(limit.left(used + more), Limit::Max(max - used - more));
        }
    }

    #[test]
    fn any_text_is_answered_without_panic(text in "(\\[features\\.[a-z\"]{1,3}\\]\n|[a-z_]{1,6} = [\\[\\]{}\"0-9a-z]{0,6}\n){0,12}") {
        if let Err(error) = PlanCatalog::from_toml(&text) {
            prop_assert!(!error.faults().is_empty());
        }
    }
}

#[test]
fn a_metered_feature_cannot_work_where_its_meter_denies_every_use() {
    let text = |level: &str| {
        format!(
            "default_plan = 'p'\n[features.api]\nkind = 'metered'\nmeter = 'calls'\nfail = 'open'\n\
             min_access = '{level}'\n[meters.calls]\naggregation = 'sum'\n[plans.p]\nrank = 0\n\
             [[plans.p.versions]]\nversion = 1\n"
        )
    };
    let error = PlanCatalog::from_toml(&text("restricted")).unwrap_err();
    assert_eq!(error.faults().iter().map(|fault| fault.what.as_str()).collect::<Vec<_>>(), ["features.api.min_access"]);
    assert!(PlanCatalog::from_toml(&text("full")).is_ok());
}
