//! A plan that comes and goes while the gates are asked, and what they answered too late.

use std::time::Duration;

use saas_core::{
    Clock, PlanKey, SystemClock, TenantContext, TenantId, subscription::PlanAssignment, testing::TestDatabase,
};
use saas_entitlements::Assignments;

use crate::{
    OPERATOR, Tenants,
    journal::Answer,
    micros, services,
    worker::{TICK, TTL},
};

/// After a change was committed and could be read, a gate has answered the old plan for the last time within this: its TTL, a
/// tick and the pause after a failed read. The rest is what a machine that is busy may keep a thread waiting.
const BOUND: Duration = TTL.checked_add(TICK).unwrap().checked_add(Duration::from_millis(1_010)).unwrap();
/// Between changes: longer than the bound, so that there are answers after it.
const SPACING: Duration = Duration::from_millis(1_600);

/// When a change began, and when it was certain.
#[derive(Debug, Clone, Copy)]
struct Change {
    began: u64,
    certain: u64,
    granted: bool,
}

pub(crate) struct Changer {
    assignments: Assignments,
    busy: TenantId,
    asked: TenantId,
    changes: Vec<Change>,
    /// From when to when something could not be reached.
    outages: Vec<(u64, u64)>,
}

fn length(of: Duration) -> u64 {
    u64::try_from(of.as_micros()).unwrap()
}

impl Changer {
    pub(crate) fn new(database: &TestDatabase, tenants: &Tenants) -> Self {
        let (_, assignments) = services(database);
        let (busy, asked) = (tenants.busy.tenant(), tenants.asked.tenant());
        Self { assignments, busy, asked, changes: Vec::new(), outages: Vec::new() }
    }

    /// Gives the plan or takes it away, unless that was done just now; and moves the busy tenant to a plan with the same
    /// limits, so that its uses are decided again.
    pub(crate) async fn change(&mut self) {
        let began = micros(SystemClock.now());
        if self.changes.last().is_some_and(|last| began < last.certain + length(SPACING)) {
            return;
        }
        let granted = self.changes.len().is_multiple_of(2);
        let plan = PlanKey::from_static(if granted { "pro" } else { "free" });
        for tenant in [self.asked, self.busy] {
            // Repeated until it is certain: it is the same whoever has done it.
            while let Err(error) =
                self.assignments.put_assignment(tenant, PlanAssignment::active(plan.clone()), &OPERATOR).await
            {
                assert!(error.is_retryable(), "{error:?}");
            }
        }
        self.changes.push(Change { began, certain: micros(SystemClock.now()), granted });
    }

    pub(crate) fn outage(&mut self, from: u64, until: u64) {
        self.outages.push((from, until));
    }

    pub(crate) fn changes(&self) -> usize {
        self.changes.len()
    }

    /// Of the answers that were asked for and given after the bound of a change and before the next: how many refused the plan
    /// that was taken away, and by how much those that granted it were too late.
    pub(crate) fn after_the_bound(&self, answers: &[Answer]) -> (usize, Vec<u64>) {
        let (mut refused, mut late) = (0, Vec::new());
        for answer in answers {
            let after = self.changes.partition_point(|change| change.began <= answer.asked);
            let Some(change) = after.checked_sub(1).and_then(|at| self.changes.get(at)) else { continue };
            let is_overtaken = self.changes.get(after).is_some_and(|next| next.began <= answer.answered);
            if change.granted || is_overtaken {
                continue;
            }
            // What could not be read could not be known.
            let outages = self.outages.iter().filter(|(from, _)| *from <= answer.asked).map(|(_, until)| *until);
            let known = outages.fold(change.certain, u64::max);
            match answer.asked.checked_sub(known + length(BOUND)) {
                Some(too_late) if answer.granted => late.push(too_late),
                Some(_) => refused += 1,
                None => {}
            }
        }
        (refused, late)
    }
}
