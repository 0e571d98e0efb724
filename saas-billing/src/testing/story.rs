//! The library of histories that every billing system meets.

use chrono::TimeDelta;
use saas_core::InvalidInput;

use super::{
    checkout::{CheckoutRequest, Purchase},
    coupon::{Coupon, Lasts},
    money::NoteOutcome,
    scenario::Scenario,
    simulator::StripeSimulator,
};
use crate::object::{ObjectId, ObjectKind};

macro_rules! stories {
    ($($(#[$doc:meta])* $name:ident => $tell:path),+ $(,)?) => {
        /// A history of one customer, from the first visit on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Story {
            $($(#[$doc])* $name,)+
        }

        impl Story {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Lets it happen, and records it. `prices` are two monthly prices of the simulator, the lower one first.
            ///
            /// # Errors
            /// When the simulator does not have the prices.
            pub fn record(self, stripe: &StripeSimulator, prices: (&str, &str)) -> Result<Scenario, InvalidInput> {
                let mut told = None;
                let scenario = Scenario::record(stripe, |stripe| {
                    told = match self {
                        $(Self::$name => $tell(stripe, prices),)+
                    };
                });
                told.map(|()| scenario).ok_or_else(|| {
                    InvalidInput::new("the story", "cannot be told", "make both prices monthly, in one currency, first")
                })
            }
        }
    };
}

stories! {
    /// A trial that ends in payment.
    TrialToPaid => trial_to_paid,
    /// The dearer plan in mid-period.
    UpgradeMidPeriod => upgrade_mid_period,
    /// The cheaper plan is planned for the period's end, and then not after all.
    DowngradeTakenBack => downgrade_taken_back,
    /// A payment fails; a retry succeeds with another card.
    FailedAndRecovered => failed_and_recovered,
    /// Payments fail until access ends; then the customer cancels.
    SuspendedAndCancelled => suspended_and_cancelled,
    /// Two invoices are unpaid, and one is paid.
    OneOfTwoPaid => one_of_two_paid,
    /// Collection pauses, and goes on.
    PausedAndResumed => paused_and_resumed,
    /// A part of a payment is given back, and the bank takes the next one.
    DisputedAndRefunded => disputed_and_refunded,
    /// Seats are changed again and again, some of it in one second.
    SeatsInParallel => seats_in_parallel,
    /// A double click: two checkouts of one customer are paid.
    DoubleCheckout => double_checkout,
    /// In the portal, the customer ends the plan, keeps it after all, and takes another.
    PortalChange => portal_change,
    /// The subscription ends with a change in its last second.
    DeletedWithLateUpdate => deleted_with_late_update,
    /// Several changes in each of two seconds.
    SameSecondPairs => same_second_pairs,
    /// A checkout is paid before anybody has recorded whose it is.
    LinkedLate => linked_late,
    /// A coupon, tax, an invoice that is credited in part, written off and paid after all.
    CreditedAndWrittenOff => credited_and_written_off,
}

/// `None` when the simulator lacks something, such as the prices.
type Told = Option<()>;
type Prices<'a> = (&'a str, &'a str);

fn bought(stripe: &StripeSimulator, request: CheckoutRequest) -> Option<Purchase> {
    stripe.complete_checkout(&stripe.checkout(request)).ok()
}

fn next_period(stripe: &StripeSimulator) {
    stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
}

fn latest_invoice(stripe: &StripeSimulator, subscription: &ObjectId) -> Option<ObjectId> {
    let subscription = stripe.object(ObjectKind::Subscription, subscription)?;
    subscription.get("latest_invoice")?.as_str()?.parse().ok()
}

fn trial_to_paid(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    bought(stripe, CheckoutRequest::new(small).with_trial_days(14))?;
    stripe.advance(TimeDelta::days(14) + TimeDelta::hours(2));
    Some(())
}

fn upgrade_mid_period(stripe: &StripeSimulator, (small, large): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small))?;
    stripe.advance(TimeDelta::days(10));
    stripe.change_price(&purchase.subscription, large, true).ok()?;
    next_period(stripe);
    Some(())
}

fn downgrade_taken_back(stripe: &StripeSimulator, (small, large): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(large))?;
    stripe.advance(TimeDelta::days(3));
    stripe.schedule_price(&purchase.subscription, small).ok()?;
    stripe.advance(TimeDelta::days(3));
    stripe.release_schedule(&purchase.subscription).ok()?;
    next_period(stripe);
    Some(())
}

fn failed_and_recovered(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small))?;
    stripe.fail_next_payment(&purchase.customer);
    next_period(stripe);
    stripe.advance(TimeDelta::days(4));
    stripe.pay(&purchase.customer);
    Some(())
}

fn suspended_and_cancelled(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small))?;
    stripe.fail_next_payment(&purchase.customer);
    next_period(stripe);
    stripe.advance(TimeDelta::days(29));
    stripe.cancel(&purchase.subscription);
    Some(())
}

fn one_of_two_paid(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small))?;
    stripe.fail_next_payment(&purchase.customer);
    next_period(stripe);
    let first = latest_invoice(stripe, &purchase.subscription)?;
    next_period(stripe);
    stripe.pay_invoice(&first).ok()
}

fn paused_and_resumed(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small))?;
    stripe.pause_collection(&purchase.subscription, Some("void"));
    next_period(stripe);
    stripe.pause_collection(&purchase.subscription, None);
    next_period(stripe);
    Some(())
}

fn disputed_and_refunded(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small))?;
    stripe.refund(&stripe.charge_of(purchase.invoice.as_ref()?)?, Some(500)).ok()?;
    next_period(stripe);
    let second = latest_invoice(stripe, &purchase.subscription)?;
    let dispute = stripe.dispute(&stripe.charge_of(&second)?).ok()?;
    stripe.advance(TimeDelta::days(2));
    stripe.answer_dispute(&dispute).ok()?;
    stripe.advance(TimeDelta::days(20));
    stripe.close_dispute(&dispute, false).ok()
}

fn seats_in_parallel(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small).with_quantity(3))?;
    for seats in [4, 5, 3] {
        stripe.update_quantity(&purchase.subscription, seats);
    }
    stripe.advance(TimeDelta::seconds(1));
    for seats in [7, 6] {
        stripe.update_quantity(&purchase.subscription, seats);
    }
    Some(())
}

fn double_checkout(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    let customer = stripe.create_customer("twice@example.com");
    let open = || stripe.checkout(CheckoutRequest::new(small).with_customer(customer.as_str()));
    let (first, second) = (open(), open());
    stripe.complete_checkout(&first).ok()?;
    let twin = stripe.complete_checkout(&second).ok()?;
    stripe.advance(TimeDelta::minutes(1));
    stripe.cancel(&twin.subscription);
    Some(())
}

fn portal_change(stripe: &StripeSimulator, (small, large): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small))?;
    stripe.advance(TimeDelta::days(5));
    stripe.cancel_at_period_end(&purchase.subscription, true);
    stripe.advance(TimeDelta::seconds(30));
    stripe.cancel_at_period_end(&purchase.subscription, false);
    stripe.change_price(&purchase.subscription, large, false).ok()?;
    next_period(stripe);
    Some(())
}

fn deleted_with_late_update(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small))?;
    stripe.advance(TimeDelta::days(1));
    stripe.update_quantity(&purchase.subscription, 2);
    stripe.cancel(&purchase.subscription);
    Some(())
}

fn same_second_pairs(stripe: &StripeSimulator, (small, large): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small))?;
    stripe.update_price(&purchase.subscription, large);
    stripe.advance(TimeDelta::days(1));
    stripe.update_price(&purchase.subscription, small);
    stripe.update_quantity(&purchase.subscription, 2);
    stripe.cancel_at_period_end(&purchase.subscription, true);
    Some(())
}

fn linked_late(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    let purchase = bought(stripe, CheckoutRequest::new(small))?;
    stripe.refund(&stripe.charge_of(purchase.invoice.as_ref()?)?, Some(700)).ok()?;
    Some(())
}

fn credited_and_written_off(stripe: &StripeSimulator, (small, _): Prices<'_>) -> Told {
    stripe.set_tax_rate(1_900);
    stripe.create_coupon("a_quarter", Coupon::percent(2_500, Lasts::Months(3)));
    let request = CheckoutRequest::new(small).with_coupon("a_quarter").with_automatic_tax();
    let purchase = bought(stripe, request)?;
    stripe.credit_note(purchase.invoice.as_ref()?, 400, NoteOutcome::Balance).ok()?;
    stripe.fail_next_payment(&purchase.customer);
    next_period(stripe);
    let second = latest_invoice(stripe, &purchase.subscription)?;
    stripe.credit_note(&second, 300, NoteOutcome::Refund).ok()?;
    stripe.close_invoice(&second, true);
    stripe.advance(TimeDelta::days(1));
    stripe.pay_invoice(&second).ok()
}
