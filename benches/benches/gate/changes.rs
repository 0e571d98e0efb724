//! Changes: what one costs, and what many of them cost the readers.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use saas_benches::{
    Contender,
    field::{self, Popularity, Questions},
    median, nanos, race, ratio,
};
use saas_entitlements::Origin;

use crate::hits::Field;

/// One change per period: 1,000 a second.
const PERIOD: Duration = Duration::from_millis(1);
/// Changes per round of the race for one.
const CHANGES: usize = 2_000;

/// Publishes changes, one per period, until it is told to stop. Returns how many a second there were.
fn write(field: &Field, stop: &AtomicBool) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let changed = Questions::new(field.tenants, Popularity::Zipf);
    let begin = Instant::now();
    let mut made = 0_u32;
    for (tenant, id, _) in changed.of_thread(1).iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep((PERIOD * made).saturating_sub(begin.elapsed()));
        field.gate.hear(*id, field.plans.move_on(*tenant));
        assert_eq!(runtime.block_on(field.gate.snapshot(*id)).origin(), Origin::Loaded, "published");
        made += 1;
    }
    f64::from(made) / begin.elapsed().as_secs_f64()
}

/// Hits while 1,000 changes a second are heard of, read and published.
pub(crate) fn beside_a_writer(field: &Field, rounds: usize) {
    let stop = AtomicBool::new(false);
    let waits = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(field, &stop));
        for popularity in [Popularity::Zipf, Popularity::Uniform] {
            let questions = &Questions::new(field.tenants, popularity);
            let floor = |_, id, feature| field.ask_floor(id, feature);
            // Who asks while the change is being read has to wait, as the writer does.
            let gate = |_, id, feature: usize| {
                field.gate.is_enabled(id, field.handles[feature]).if_ready().unwrap_or_else(|| {
                    waits.fetch_add(1, Ordering::Relaxed);
                    false
                })
            };
            let mut contenders = Vec::new();
            for threads in [1, 2] {
                contenders.push(Contender::new("floor", move || questions.ask(threads, floor)));
                contenders.push(Contender::new("gate", move || questions.ask(threads, gate)));
            }
            let medians = race(rounds, &mut contenders);
            for (threads, medians) in [(1, &medians[..2]), (2, &medians[2..])] {
                let cell = format!("{} {} {threads}t beside 1,000 changes/s", field.size(), popularity.name());
                println!("{cell}: floor {:.1} ns, gate {:.1} ns", medians[0], medians[1]);
                ratio(&format!("gate_hit/floor {cell}"), medians[1] / medians[0], true, 1.6);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let rate = writer.join().expect("the writer ends");
        ratio(&format!("changes_per_second {}", field.size()), rate, false, 990.0);
        let asked = 2 * 3 * (rounds as u64 + 1) * field::QUESTIONS as u64;
        println!("{} of {asked} questions came while their tenant's change was being read", waits.into_inner());
    });
}

/// From hearing of a tenant's change to the new answer in the next question, read from memory.
pub(crate) async fn publish(field: &mut Field, rounds: usize) {
    let changed = Questions::new(field.tenants, Popularity::Uniform);
    let (mut hearing, mut whole) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (mut heard, mut done) = (Duration::ZERO, Duration::ZERO);
        for (tenant, id, feature) in changed.of_thread(0).iter().cycle().skip(round * CHANGES).take(CHANGES) {
            let feature = usize::from(*feature);
            let revision = field.plans.move_on(*tenant);
            let begin = Instant::now();
            field.gate.hear(*id, revision);
            heard += begin.elapsed();
            field.gate.snapshot(*id).await;
            let answer = field.gate.is_enabled(*id, field.handles[feature]).if_ready();
            done += begin.elapsed();
            assert_eq!(answer, Some(field::grants(field.plans.of(*tenant), feature)), "the next call has the change");
        }
        if round > 0 {
            hearing.push(nanos(heard) / CHANGES as f64 / 1e3);
            whole.push(nanos(done) / CHANGES as f64 / 1e3);
        }
    }
    let size = field.size();
    println!("{size}: hearing of a change takes {:.2} us", median(&hearing));
    ratio(&format!("publish_us {size}"), median(&whole), true, 5.0);
}
