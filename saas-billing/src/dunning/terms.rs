//! The policy that holds for one tenant, and what access it leaves when. No clock inside.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use saas_core::{
    MessageKey,
    subscription::{AccessLevel, Standing},
};

use super::DunningPolicy;

/// The policy of a tenant's plan and, until its end, the exception that was made for the tenant. The gate, the numbers, the
/// operators' list and the messages all ask it.
///
/// Until the exception ends its steps count; from then on those of the plan, and what they would have taken by then is taken
/// at that instant. Access that was taken comes back by payment only: when the exception was the stricter one, its end gives
/// nothing back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DunningTerms {
    policy: Arc<DunningPolicy>,
    exception: Option<(Arc<DunningPolicy>, DateTime<Utc>)>,
}

/// A step at its instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stage<'a> {
    pub(crate) at: DateTime<Utc>,
    pub(crate) message: Option<&'a MessageKey>,
    pub(crate) access: Option<AccessLevel>,
}

impl DunningTerms {
    /// A policy without an exception.
    #[must_use]
    pub const fn new(policy: Arc<DunningPolicy>) -> Self {
        Self { policy, exception: None }
    }

    /// Has another policy hold until an instant.
    #[must_use]
    pub fn with_exception(mut self, policy: Arc<DunningPolicy>, until: DateTime<Utc>) -> Self {
        self.exception = Some((policy, until));
        self
    }

    /// The policy in force at an instant.
    #[must_use]
    pub fn policy_at(&self, at: DateTime<Utc>) -> &DunningPolicy {
        match &self.exception {
            Some((policy, until)) if at < *until => policy,
            Some(_) | None => &self.policy,
        }
    }

    /// The steps of a debt, in their order.
    pub(crate) fn stages(&self, since: DateTime<Utc>) -> Vec<Stage<'_>> {
        let until = self.exception.as_ref().map(|(_, until)| *until);
        let special = self.exception.iter().flat_map(|(policy, _)| policy.steps());
        let special = special.filter_map(|step| {
            let at = since.checked_add_signed(step.after())?;
            (until.is_some_and(|until| at < until)).then_some(Stage {
                at,
                message: step.message(),
                access: step.access(),
            })
        });
        let usual = self.policy.steps().iter().filter_map(|step| {
            let at = since.checked_add_signed(step.after())?;
            let caught_up = until.filter(|until| at < *until);
            // A reminder whose time has passed meanwhile is none; what takes access away says so.
            let dropped = caught_up.is_some() && step.access().is_none();
            let at = caught_up.unwrap_or(at);
            (!dropped).then_some(Stage { at, message: step.message(), access: step.access() })
        });
        // Stable: of one instant the last step counts.
        let mut stages: Vec<Stage<'_>> = special.chain(usual).collect();
        stages.sort_by_key(|stage| stage.at);
        stages
    }

    /// The standing at `now` of a tenant that owes since `unpaid_since`, or has no access since `suspended_since`.
    #[must_use]
    pub fn standing(
        &self,
        unpaid_since: Option<DateTime<Utc>>,
        suspended_since: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Standing {
        let grace = unpaid_since.filter(|since| *since <= now).and_then(|since| self.ends(since));
        match (suspended_since, grace) {
            (Some(since), None) => Standing::Suspended { since },
            (Some(since), Some((_, suspended_from))) => Standing::Suspended { since: since.min(suspended_from) },
            (None, Some((_, suspended_from))) if suspended_from <= now => Standing::Suspended { since: suspended_from },
            (None, Some((until, suspended_from))) => Standing::Grace { until, suspended_from },
            (None, None) => Standing::Active,
        }
    }

    /// The ends of full and of any access, for a debt that has begun: what [`standing`](Self::standing) is read from.
    #[must_use]
    pub fn instants(
        &self,
        unpaid_since: Option<DateTime<Utc>>,
        suspended_since: Option<DateTime<Utc>>,
    ) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
        let grace = unpaid_since.and_then(|since| self.ends(since));
        let ends = [suspended_since, grace.map(|(_, suspended_from)| suspended_from)];
        (grace.map(|(until, _)| until), ends.into_iter().flatten().min())
    }

    fn ends(&self, since: DateTime<Utc>) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let stages = self.stages(since);
        let falls_to = |access| stages.iter().find(|stage| stage.access.is_some_and(|left| left <= access));
        Some((falls_to(AccessLevel::Restricted)?.at, falls_to(AccessLevel::Suspended)?.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dunning::DunningStep;

    fn day(day: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + day * 86_400, 0).unwrap()
    }

    fn policy(full: u32, restricted: u32) -> Arc<DunningPolicy> {
        Arc::new(DunningPolicy::without_messages(full, restricted).unwrap())
    }

    fn ends(terms: &DunningTerms) -> (DateTime<Utc>, DateTime<Utc>) {
        let (until, suspended_from) = terms.instants(Some(day(0)), None);
        (until.unwrap(), suspended_from.unwrap())
    }

    // D13
    #[test]
    fn an_exception_holds_until_its_end_and_then_the_plans_policy_catches_up() {
        let usual = DunningTerms::new(policy(14, 14));
        assert_eq!(ends(&usual), (day(14), day(28)));
        for (full, restricted, until, expected) in [
            (60, 30, 365, (60, 90)), // within its time
            (60, 30, 20, (20, 28)),  // the plan would have restricted by then
            (60, 30, 50, (50, 50)),  // … and suspended
            (60, 30, 10, (14, 28)),  // over before it mattered
            (60, 30, -1, (14, 28)),  // over before the debt began
            (20, 30, 25, (20, 28)),  // its own restriction first
            (3, 2, 365, (3, 5)),     // stricter
            (3, 20, 10, (3, 28)),    // stricter, and over: what was taken stays taken
        ] {
            let terms = usual.clone().with_exception(policy(full, restricted), day(until));
            let expected = (day(expected.0), day(expected.1));
            assert_eq!(ends(&terms), expected, "{full} + {restricted} until {until}");
        }
    }

    #[test]
    fn what_catches_up_at_the_end_of_an_exception_is_said_and_reminders_that_are_over_are_not() {
        let message = |name| MessageKey::from_static(name);
        let usual = DunningPolicy::new(vec![
            DunningStep::after_days(5).with_message(message("reminder")),
            DunningStep::after_days(14).with_message(message("restricted")).with_access(AccessLevel::Restricted),
            DunningStep::after_days(28).with_message(message("suspended")).with_access(AccessLevel::Suspended),
        ]);
        let terms = DunningTerms::new(Arc::new(usual.unwrap())).with_exception(policy(60, 30), day(20));
        let said: Vec<_> =
            terms.stages(day(0)).iter().map(|stage| (stage.at, stage.message.unwrap().to_string())).collect();
        assert_eq!(said, [(day(20), "restricted".to_owned()), (day(28), "suspended".to_owned())]);
    }
}
