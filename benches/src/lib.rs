//! How the benchmarks measure: every contender in one process, interleaved by round, medians, answers checked.
//!
//! Only ratios are reported as results. Absolute figures belong to the machine that printed them.

pub mod field;
mod server;

use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

pub use server::Server;

/// The middle of some figures; the lower middle of an even number of them.
///
/// # Panics
/// Without figures.
#[must_use]
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}

/// Something to be measured: a name, and what runs it once and says how many nanoseconds one operation took.
pub struct Contender<'a> {
    name: &'a str,
    run: Box<dyn FnMut() -> f64 + 'a>,
}

impl<'a> Contender<'a> {
    /// A contender.
    pub fn new(name: &'a str, run: impl FnMut() -> f64 + 'a) -> Self {
        Self { name, run: Box::new(run) }
    }
}

impl std::fmt::Debug for Contender<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contender").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Runs all contenders in turn, `rounds` times after one round that warms up. Returns their medians in order.
pub fn race(rounds: usize, contenders: &mut [Contender<'_>]) -> Vec<f64> {
    let mut figures = vec![Vec::with_capacity(rounds); contenders.len()];
    for round in 0..=rounds {
        for (contender, figures) in contenders.iter_mut().zip(&mut figures) {
            let figure = (contender.run)();
            if round > 0 {
                figures.push(figure);
            }
        }
    }
    figures.iter().map(|figures| median(figures)).collect()
}

/// Nanoseconds per operation and thread of `work`, which gets the thread's number and returns how much it did.
///
/// The threads start together; the slowest one counts.
pub fn per_thread(threads: usize, work: impl Fn(usize) -> u64 + Sync) -> f64 {
    prepared_per_thread(threads, |_| {}, work)
}

/// As [`per_thread`], with work that each thread does before and that is not counted.
pub fn prepared_per_thread(threads: usize, prepare: impl Fn(usize) + Sync, work: impl Fn(usize) -> u64 + Sync) -> f64 {
    let start = Barrier::new(threads);
    let timed = |thread: usize| {
        prepare(thread);
        start.wait();
        let begin = Instant::now();
        let done = work(thread);
        nanos(begin.elapsed()) / done as f64
    };
    std::thread::scope(|scope| {
        let timed = &timed;
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || timed(thread))).collect();
        let own = timed(0);
        others.into_iter().filter_map(|thread| thread.join().ok()).fold(own, f64::max)
    })
}

/// Rounds of a race: `ROUNDS` of the environment, or so many.
#[must_use]
pub fn rounds(unless_set: usize) -> usize {
    std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(unless_set)
}

/// A duration in nanoseconds.
#[must_use]
pub fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

/// Prints a result beside its goal, which reads `<= 2.5` or `>= 12`. `at_most` says which way is good.
pub fn ratio(name: &str, value: f64, at_most: bool, goal: f64) {
    let op = if at_most { "<=" } else { ">=" };
    println!("ratio {name} {value:.2} goal {op} {goal}");
}

/// `count` places from `0..size`, drawn with the Zipf distribution of exponent 0.99, in an order of no meaning.
///
/// Which places are popular is shuffled, so that popularity has nothing to do with memory order.
#[must_use]
pub fn zipf(size: usize, count: usize, seed: u64) -> Vec<usize> {
    const EXPONENT: f64 = 0.99;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut places: Vec<usize> = (0..size).collect();
    random.shuffle(&mut places);
    let mut total = 0.0;
    let summed: Vec<f64> = (1..=size)
        .map(|rank| {
            total += (rank as f64).powf(-EXPONENT);
            total
        })
        .collect();
    (0..count)
        .map(|_| {
            let at = random.f64() * total;
            places[summed.partition_point(|sum| *sum < at).min(size - 1)]
        })
        .collect()
}
