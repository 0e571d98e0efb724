//! Courses: in which order, how often, and cut where.

use fastrand::Rng;

/// Histories of so many events go through all their orders; longer ones through some, drawn by the seed.
const ALL_ORDERS: usize = 6;

/// One delivery of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Which event, counted from 0 in the order in which they happened.
    pub event: usize,
    /// The process is killed in the midst: when what delivers and applies the event has waited so often. A course delivers
    /// the event again later, as Stripe does.
    pub cut: Option<u32>,
}

impl Step {
    const fn whole(event: usize) -> Self {
        Self { event, cut: None }
    }

    pub(super) fn in_words(self, name: &str) -> String {
        self.cut.map_or_else(|| name.to_owned(), |waits| format!("{name} (killed at wait {waits})"))
    }
}

/// Deliveries one after the other. Every event is delivered in whole at least once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course(pub(super) Vec<Step>);

impl Course {
    /// What to do.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Events in this order, once each.
    pub(super) fn natural(events: impl IntoIterator<Item = usize>) -> Self {
        Self(events.into_iter().map(Step::whole).collect())
    }
}

/// Which courses a history is put through. Everything follows from the seed, which every report names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permutations {
    pub(super) seed: u64,
    samples: usize,
    pub(super) batch: usize,
    cuts: u32,
    every_repetition: bool,
}

impl Permutations {
    /// All orders of up to six events, each as it is and again disturbed; of longer histories 2,000 disturbed ones. Disturbed
    /// is with one to three repetitions.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self { seed, samples: 2_000, batch: 256, cuts: 0, every_repetition: false }
    }

    /// How many orders of a longer history are drawn.
    #[must_use]
    pub const fn with_samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// How many courses a subject is given at once, at least one.
    #[must_use]
    pub const fn with_batch(mut self, courses: usize) -> Self {
        self.batch = if courses == 0 { 1 } else { courses };
        self
    }

    /// Every disturbed course is also killed once, at one of the first so many waits of a step.
    #[must_use]
    pub const fn with_cuts(mut self, waits: u32) -> Self {
        self.cuts = waits;
        self
    }

    /// All orders of up to six events with every event repeated at every place, instead of disturbed.
    #[must_use]
    pub const fn with_every_repetition(mut self) -> Self {
        self.every_repetition = true;
        self
    }

    /// The courses of a history of so many events, behind the one in which they happened.
    pub(super) fn courses(self, events: usize) -> Box<dyn Iterator<Item = Course> + Send> {
        let mut rng = Rng::with_seed(self.seed);
        if events > ALL_ORDERS {
            let draw = move |_| {
                let mut order: Vec<usize> = (0..events).collect();
                rng.shuffle(&mut order);
                self.disturbed(&order, &mut rng)
            };
            return Box::new((0..self.samples).map(draw));
        }
        Box::new(orders(events).into_iter().flat_map(move |order| {
            let mut courses = vec![Course::natural(order.iter().copied())];
            if self.every_repetition {
                courses.extend(repeated(&order));
            } else {
                courses.push(self.disturbed(&order, &mut rng));
            }
            courses
        }))
    }

    fn disturbed(self, order: &[usize], rng: &mut Rng) -> Course {
        let mut steps: Vec<Step> = order.iter().copied().map(Step::whole).collect();
        if steps.is_empty() {
            return Course(steps);
        }
        for _ in 0..rng.usize(1..=3) {
            let event = order[rng.usize(..order.len())];
            steps.insert(rng.usize(..=steps.len()), Step::whole(event));
        }
        if self.cuts > 0 {
            let at = rng.usize(..steps.len());
            steps[at].cut = Some(rng.u32(..self.cuts));
            steps.insert(rng.usize(at + 1..=steps.len()), Step::whole(steps[at].event));
        }
        Course(steps)
    }
}

/// An order with each of its events repeated at each place.
fn repeated(order: &[usize]) -> Vec<Course> {
    let mut courses = Vec::new();
    for event in order {
        for place in 0..=order.len() {
            let mut events = order.to_vec();
            events.insert(place, *event);
            courses.push(Course::natural(events));
        }
    }
    courses
}

/// Every order of `0..n`: `n!` of them, so keep it small.
#[must_use]
pub fn orders(n: usize) -> Vec<Vec<usize>> {
    let Some(last) = n.checked_sub(1) else { return vec![Vec::new()] };
    let insert = |order: Vec<usize>| {
        (0..n).map(move |place| {
            let mut order = order.clone();
            order.insert(place, last);
            order
        })
    };
    orders(last).into_iter().flat_map(insert).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn six_events_go_through_all_orders_and_seven_through_drawn_ones_each_event_whole_at_least_once() {
        let of = |events, with: Permutations| -> Vec<Course> { with.courses(events).collect() };
        let all = of(6, Permutations::seeded(1).with_every_repetition());
        assert_eq!(all.len(), 720 + 30_240);
        let plain: BTreeSet<Vec<usize>> = all
            .iter()
            .filter(|course| course.0.len() == 6)
            .map(|course| course.0.iter().map(|step| step.event).collect())
            .collect();
        assert_eq!(plain.len(), 720);
        assert_eq!(of(6, Permutations::seeded(1)).len(), 1_440);
        let drawn = of(7, Permutations::seeded(1).with_samples(300).with_cuts(9));
        assert_eq!(drawn, of(7, Permutations::seeded(1).with_samples(300).with_cuts(9)), "by the seed");
        assert_ne!(drawn, of(7, Permutations::seeded(2).with_samples(300).with_cuts(9)));
        for course in &drawn {
            let last_cut = course.0.iter().position(|step| step.cut.is_some()).unwrap();
            let again = &course.0[last_cut + 1..];
            assert!(again.iter().any(|step| step.event == course.0[last_cut].event && step.cut.is_none()));
            let whole: BTreeSet<usize> =
                course.0.iter().filter(|step| step.cut.is_none()).map(|step| step.event).collect();
            assert_eq!(whole.len(), 7);
        }
        assert_eq!((of(0, Permutations::seeded(1)).len(), of(1, Permutations::seeded(1)).len()), (2, 2));
    }
}
