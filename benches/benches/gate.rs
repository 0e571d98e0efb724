//! The gate beside its floor (a hash map and a bit test) and a general cache: hits, hits beside changes, changes, misses
//! and memory.
//!
//! `cargo bench -p saas-benches --bench gate`. Fifty features and ten limits per tenant, questions about all features.
//! Contenders answer the same questions and must agree on them. `ROUNDS` says how many rounds count (9), `TENANTS` how many
//! tenants at most (1,000,000).
//!
//! On two cores the writer of 1,000 changes a second shares one of them with a reader: it sleeps to the next millisecond,
//! makes one change, and catches up when it was woken late. The floor runs beside it as the gate does.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]

#[path = "gate/changes.rs"]
mod changes;
#[path = "gate/hits.rs"]
mod hits;
#[path = "gate/memory.rs"]
mod memory;
#[path = "gate/misses.rs"]
mod misses;

use saas_benches::field::Popularity;

fn main() {
    let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rounds, most) = (number("ROUNDS", 9), number("TENANTS", 1_000_000));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for tenants in [10_000, 100_000, 1_000_000].into_iter().filter(|tenants| *tenants <= most) {
        let mut field = runtime.block_on(hits::Field::new(tenants));
        for popularity in [Popularity::Zipf, Popularity::Uniform] {
            field.race(popularity, rounds);
        }
        field.race(Popularity::OneHot, rounds);
        changes::beside_a_writer(&field, rounds);
        runtime.block_on(changes::publish(&mut field, rounds));
    }
    memory::per_tenant(&runtime, 100_000.min(most));
    memory::bounded(&runtime, 100_000.min(most / 10), most);
    misses::race(rounds);
}
