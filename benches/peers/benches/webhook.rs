//! Verifying and reading an event beside async-stripe-webhook's `construct_event`, on the same bytes.

use std::{hint::black_box, time::Instant};

use saas_benches::{Contender, nanos, race, ratio, rounds};
use saas_billing::{
    SigningSecrets,
    event::{Envelope, read_snapshot},
    object::Interval,
    testing::{CheckoutRequest, StripeSimulator},
};
use saas_core::{Clock, TestClock};

const CALLS: u32 = 1000;

fn main() -> anyhow::Result<()> {
    let clock = TestClock::starting("2026-01-15T12:00:00Z");
    let secret = "whsec_bench_0123456789abcdef";
    let stripe = StripeSimulator::new(secret, clock.clone())?;
    stripe.create_price("price_pro", 2000, "eur", &Interval::Month);
    let session = stripe.checkout(CheckoutRequest::new("price_pro"));
    let purchase = stripe.complete_checkout(&session)?;
    drop(stripe.deliveries());
    stripe.update_quantity(&purchase.subscription, 3);
    let event = stripe.deliveries().remove(0);
    let (secrets, now) = (SigningSecrets::new(vec![stripe.secret()])?, clock.now());
    let text = std::str::from_utf8(&event.body)?;
    let ours = || {
        secrets.verify(black_box(&event.body), &event.signature, now).map_err(anyhow::Error::from)?;
        Ok::<_, anyhow::Error>(Envelope::read(black_box(&event.body)).map(drop)?)
    };
    let applied = || {
        secrets.verify(black_box(&event.body), &event.signature, now).map_err(anyhow::Error::from)?;
        Ok::<_, anyhow::Error>(read_snapshot(&Envelope::read(black_box(&event.body))?)?.is_some())
    };
    let theirs = || {
        stripe_webhook::Webhook::construct_event_with_timestamp(
            black_box(text),
            &event.signature,
            secret,
            now.timestamp(),
        )
    };
    ours()?;
    anyhow::ensure!(applied()?, "the event is not understood");
    theirs().map_err(|why| anyhow::anyhow!("the peer does not read the event: {why}"))?;
    let figures = race(
        rounds(61),
        &mut [
            Contender::new("verify and parse", || time(|| drop(black_box(ours())))),
            Contender::new("and read both states", || time(|| drop(black_box(applied())))),
            Contender::new("construct_event", || time(|| drop(black_box(theirs())))),
        ],
    );
    let [ours, applied, theirs] = figures.as_slice() else { anyhow::bail!("three figures") };
    println!("{} bytes: {ours:.0} ns, both states {applied:.0} ns, construct_event {theirs:.0} ns", event.body.len());
    ratio("webhook-construct-event-to-verify-and-parse", theirs / ours, false, 3.0);
    Ok(())
}

fn time(mut call: impl FnMut()) -> f64 {
    let begin = Instant::now();
    (0..CALLS).for_each(|_| call());
    nanos(begin.elapsed()) / f64::from(CALLS)
}
