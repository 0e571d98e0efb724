//! From a course that differs to the shortest that was found to.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Course, Step, Subject, Unproven, differences, one_each};

/// Courses that are tried for it.
const MAX_TRIALS: usize = 500;

/// A course that differs from the natural one over the same events.
pub(super) struct Found {
    pub(super) kept: Vec<usize>,
    pub(super) course: Course,
    pub(super) expected: Value,
    pub(super) digest: Value,
}

struct Search<'a> {
    subject: &'a dyn Subject,
    /// Where the course that was found differed: a shorter one that differs elsewhere has another cause.
    paths: BTreeSet<String>,
    found: Found,
    trials: usize,
}

/// Takes away events, kills and repetitions, and restores the order, as long as the course still differs in the same place.
pub(super) async fn shortest(
    subject: &dyn Subject,
    (natural, expected): (&Course, &Value),
    (course, digest): (&Course, &Value),
) -> Result<Found, Unproven> {
    let kept = natural.0.iter().map(|step| step.event).collect();
    let found = Found { kept, course: course.clone(), expected: expected.clone(), digest: digest.clone() };
    let paths = differences(expected, digest).into_iter().map(|one| one.path).collect();
    let mut search = Search { subject, paths, found, trials: 0 };
    while search.without_an_event().await? | search.simpler_step().await? | search.nearer_order().await? {}
    Ok(search.found)
}

impl Search<'_> {
    /// Whether a course still differs in the same place; then it is the best one.
    async fn holds(&mut self, kept: Vec<usize>, steps: Vec<Step>) -> Result<bool, Unproven> {
        self.trials += 1;
        if self.trials > MAX_TRIALS {
            return Ok(false);
        }
        let pair = [Course::natural(kept.iter().copied()), Course(steps)];
        let mut digests = one_each(self.subject, &pair).await?;
        let (digest, expected) = (digests.remove(1), digests.remove(0));
        let [_, course] = pair;
        let differs = differences(&expected, &digest).iter().any(|one| self.paths.contains(&one.path));
        if differs {
            self.found = Found { kept, course, expected, digest };
        }
        Ok(differs)
    }

    async fn without_an_event(&mut self) -> Result<bool, Unproven> {
        let mut better = false;
        for event in self.found.kept.clone() {
            let kept: Vec<usize> = self.found.kept.iter().copied().filter(|kept| *kept != event).collect();
            let steps = self.found.course.0.iter().copied().filter(|step| step.event != event).collect();
            better |= self.holds(kept, steps).await?;
        }
        Ok(better)
    }

    /// Without a kill, or without a repetition.
    async fn simpler_step(&mut self) -> Result<bool, Unproven> {
        let mut better = false;
        let mut at = 0;
        while let Some(step) = self.found.course.0.get(at).copied() {
            let mut without = self.found.course.0.clone();
            without.remove(at);
            let still_whole = without.iter().any(|other| other.event == step.event && other.cut.is_none());
            if still_whole && self.holds(self.found.kept.clone(), without).await? {
                better = true;
                continue;
            }
            if step.cut.is_some() {
                let mut whole = self.found.course.0.clone();
                whole[at].cut = None;
                better |= self.holds(self.found.kept.clone(), whole).await?;
            }
            at += 1;
        }
        Ok(better)
    }

    async fn nearer_order(&mut self) -> Result<bool, Unproven> {
        let mut better = false;
        for at in 1..self.found.course.0.len() {
            let mut steps = self.found.course.0.clone();
            if steps[at - 1].event > steps[at].event && steps[at].cut.is_none() && steps[at - 1].cut.is_none() {
                steps.swap(at - 1, at);
                better |= self.holds(self.found.kept.clone(), steps).await?;
            }
        }
        Ok(better)
    }
}
