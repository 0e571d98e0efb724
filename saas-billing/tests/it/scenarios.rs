//! The library of histories, each put through the permutation kit: one digest, whatever the network and the machine do.
//!
//! In memory, the merge and all that follows from it see 2,000 drawn courses of each. On the database, the real inbox and
//! worker see as many as `SCENARIO_SAMPLES` says (few in the usual run, 2,000 in `./dev year`), with kills: every course is
//! a tenant of its own, all at once.

use saas_billing::{
    dunning::DunningPolicy,
    testing::{Permutations, Scenario, Story, Unproven},
};
use serde_json::Value;

use crate::{
    counter::{Counter, LastWins, Memory},
    shop::Shop,
};

const PRICES: (&str, &str) = ("price_pro", "price_team");

async fn told(story: Story) -> (Shop, Scenario) {
    let week = DunningPolicy::without_messages(7, 7).unwrap();
    let shop = Shop::open_with(|stripe| stripe, |config| config.with_dunning(week)).await;
    let scenario = story.record(&shop.stripe, PRICES).unwrap();
    (shop, scenario)
}

fn samples() -> usize {
    std::env::var("SCENARIO_SAMPLES").map_or(16, |text| text.parse().unwrap())
}

/// Both worlds, and what both must say at the end. The seed is the story's place in the library.
async fn converges(story: Story, in_the_end: impl Fn(&Value)) {
    let (shop, scenario) = told(story).await;
    let seed = Story::ALL.iter().position(|one| *one == story).unwrap() as u64;
    let memory = Memory::new(&scenario);
    let drawn = Permutations::seeded(seed).check(&memory).await.unwrap_or_else(|why| panic!("{story:?}: {why}"));
    assert!(drawn.courses > 1_400, "{}", drawn.courses);
    let mut counter = Counter::new(scenario, shop);
    if story == Story::LinkedLate {
        counter = counter.linking_late();
    }
    let through = Permutations::seeded(seed).with_samples(samples()).with_cuts(60);
    let agreed = through.check(&counter).await.unwrap_or_else(|why| panic!("{story:?}: {why}"));
    let open = "select count(*) from saas.billing_receipt where state not in ('applied', 'ignored')";
    assert_eq!(counter.shop.scalar(open).await, 0, "{story:?}");
    in_the_end(&agreed.digest);
}

fn plan(digest: &Value) -> &str {
    digest["overview"].as_str().unwrap().split(' ').next().unwrap()
}

fn balance(digest: &Value, account: &str) -> i64 {
    digest["balances"][format!("{account} eur")].as_i64().unwrap_or(0)
}

macro_rules! stories {
    ($($name:ident: $story:ident => $in_the_end:expr),+ $(,)?) => {
        $(
            // W24
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                converges(Story::$story, $in_the_end).await;
            }
        )+

        #[test]
        fn every_story_has_its_test() {
            assert_eq!(Story::ALL, [$(Story::$story),+]);
        }
    };
}

stories! {
    a_trial_becomes_paid_in_one_way: TrialToPaid => |digest| {
        assert_eq!((plan(digest), balance(digest, "cash")), ("pro", 2_000));
    },
    an_upgrade_in_mid_period_ends_in_one_state: UpgradeMidPeriod => |digest| assert_eq!(plan(digest), "team"),
    a_downgrade_that_is_taken_back_leaves_the_plan: DowngradeTakenBack => |digest| assert_eq!(plan(digest), "team"),
    a_failed_payment_that_is_made_good_leaves_no_debt: FailedAndRecovered => |digest| {
        assert_eq!((plan(digest), &digest["derived"]["unpaid_since"]), ("pro", &Value::Null));
        assert_eq!(balance(digest, "cash"), 4_000);
    },
    who_is_suspended_and_cancels_is_on_the_default_plan: SuspendedAndCancelled => |digest| {
        assert_eq!(digest["derived"]["plan"], Value::Null);
        assert_eq!(balance(digest, "receivable"), 4_000, "two periods");
    },
    of_two_unpaid_invoices_the_one_that_is_paid_leaves_the_other: OneOfTwoPaid => |digest| {
        assert_ne!(digest["derived"]["unpaid_since"], Value::Null);
        assert_eq!(balance(digest, "receivable"), 2_000);
    },
    collection_pauses_and_goes_on: PausedAndResumed => |digest| {
        assert_eq!((plan(digest), balance(digest, "cash")), ("pro", 4_000));
        assert_eq!(digest["derived"]["alerts"], serde_json::json!([]));
    },
    a_refund_and_a_lost_dispute_add_up: DisputedAndRefunded => |digest| {
        let accounts = ["cash", "refunds", "disputes", "disputes_lost", "payments", "receivable"];
        assert_eq!(accounts.map(|account| balance(digest, account)), [1_500, 500, 0, 2_000, 0, 0]);
    },
    seats_that_are_changed_all_at_once_end_as_stripe_has_them: SeatsInParallel => |digest| {
        assert_eq!(digest["derived"]["seats"], 6);
    },
    // W27, W28
    a_double_checkout_leaves_one_subscription: DoubleCheckout => |digest| {
        assert_eq!((plan(digest), &digest["derived"]["alerts"]), ("pro", &serde_json::json!([])));
        assert_eq!(balance(digest, "cash"), 4_000);
    },
    what_is_changed_in_the_portal_is_so_here: PortalChange => |digest| {
        assert_eq!((plan(digest), &digest["derived"]["ends_at"]), ("team", &Value::Null));
    },
    // W7
    a_late_update_revives_nothing: DeletedWithLateUpdate => |digest| {
        assert_eq!(digest["derived"]["plan"], Value::Null);
    },
    // W6
    pairs_of_one_second_end_in_one_state: SameSecondPairs => |digest| {
        assert_eq!((plan(digest), &digest["derived"]["seats"]), ("pro", &Value::from(2)));
        assert_ne!(digest["derived"]["ends_at"], Value::Null);
    },
    // W8
    a_customer_that_is_linked_last_has_everything: LinkedLate => |digest| {
        assert_eq!((plan(digest), balance(digest, "cash"), balance(digest, "refunds")), ("pro", 1_300, 700));
    },
    coupons_taxes_credit_notes_and_what_is_written_off_add_up: CreditedAndWrittenOff => |digest| {
        let accounts = ["receivable", "bad_debt", "payments", "credit_clearing"];
        assert_eq!(accounts.map(|account| balance(digest, account)), [0; 4], "{}", digest["balances"]);
        assert_ne!(balance(digest, "tax"), 0);
    },
}

#[tokio::test]
async fn a_merge_that_believes_the_last_event_is_found_out_in_every_story_with_its_shortest_course() {
    for story in Story::ALL {
        let (_, scenario) = told(*story).await;
        let found = Permutations::seeded(1).check(&LastWins(Memory::new(&scenario))).await.unwrap_err();
        let Unproven::Diverged(found) = found else { panic!("{story:?}: {found}") };
        assert!(found.events.len() <= 3, "{story:?}: {found}");
        assert!(found.course.len() <= 4, "{story:?}: {found}");
        assert!(!found.differences.is_empty(), "{story:?}");
    }
}
