//! The policy as data: what happens how long after the first failure.

use chrono::TimeDelta;
use saas_core::{MessageKey, subscription::AccessLevel};
use serde::{Deserialize, Serialize};

/// The steps that a policy may have.
const MAX_STEPS: usize = 32;
/// The latest step: a debt that still gives access after a year is a gift.
const MAX_HOURS: u32 = 366 * 24;

/// What is done a while after the first failure to collect an invoice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DunningStep {
    after_hours: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<MessageKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    access: Option<AccessLevel>,
}

impl DunningStep {
    /// So many hours after the first failure.
    #[must_use]
    pub const fn after_hours(hours: u32) -> Self {
        Self { after_hours: hours, message: None, access: None }
    }

    /// So many days of 24 hours after the first failure.
    #[must_use]
    pub const fn after_days(days: u32) -> Self {
        Self::after_hours(days.saturating_mul(24))
    }

    /// Sends this message about the invoice.
    #[must_use]
    pub fn with_message(mut self, message: MessageKey) -> Self {
        self.message = Some(message);
        self
    }

    /// Leaves no more access than this.
    #[must_use]
    pub const fn with_access(mut self, access: AccessLevel) -> Self {
        self.access = Some(access);
        self
    }

    /// How long after the first failure.
    #[must_use]
    pub fn after(&self) -> TimeDelta {
        TimeDelta::hours(i64::from(self.after_hours))
    }

    /// What is sent.
    #[must_use]
    pub const fn message(&self) -> Option<&MessageKey> {
        self.message.as_ref()
    }

    /// What is left of access.
    #[must_use]
    pub const fn access(&self) -> Option<AccessLevel> {
        self.access
    }
}

/// What happens to a tenant that owes: its access and what it is told, by the time since the first failure.
///
/// ```
/// use saas_billing::dunning::{DunningPolicy, DunningStep};
/// use saas_core::{MessageKey, subscription::AccessLevel};
///
/// let policy = DunningPolicy::new(vec![
///     DunningStep::after_days(0).with_message(MessageKey::from_static("payment-failed")),
///     DunningStep::after_days(10).with_message(MessageKey::from_static("restricted")).with_access(AccessLevel::Restricted),
///     DunningStep::after_days(20).with_access(AccessLevel::Suspended),
/// ])?;
/// assert_eq!(policy.suspended_after().num_days(), 20);
/// // A debt that never ends access is refused, with the reason.
/// assert!(DunningPolicy::new(vec![DunningStep::after_days(0)]).is_err());
/// # Ok::<_, saas_billing::dunning::DunningPolicyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct DunningPolicy {
    steps: Vec<DunningStep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confirmation: Option<MessageKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<MessageKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    steps: Vec<DunningStep>,
    #[serde(default)]
    confirmation: Option<MessageKey>,
    #[serde(default)]
    recovery: Option<MessageKey>,
}

impl TryFrom<Unchecked> for DunningPolicy {
    type Error = DunningPolicyError;

    fn try_from(unchecked: Unchecked) -> Result<Self, DunningPolicyError> {
        let policy =
            Self { steps: unchecked.steps, confirmation: unchecked.confirmation, recovery: unchecked.recovery };
        policy.check()?;
        Ok(policy)
    }
}

/// Why a policy is none. Steps are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DunningPolicyError {
    /// More steps than anybody reads.
    #[error("the dunning policy has {steps} steps; use at most {MAX_STEPS}")]
    TooManySteps {
        /// How many.
        steps: usize,
    },
    /// A step after more than a year.
    #[error("step {step} comes after {hours} hours; use at most {MAX_HOURS} (366 days)")]
    TooLate {
        /// Which.
        step: usize,
        /// When.
        hours: u32,
    },
    /// A step that is not later than the one before it.
    #[error(
        "step {step} does not come later than the step before it; put the steps in order, and join those of one hour"
    )]
    OutOfOrder {
        /// Which.
        step: usize,
    },
    /// A step that does nothing.
    #[error("step {step} neither sends a message nor takes access away; give it one of them, or remove it")]
    NoEffect {
        /// Which.
        step: usize,
    },
    /// A step that would give access, or leave all of it.
    #[error(
        "step {step} leaves `{access:?}` access, which takes nothing away after the steps before it; access only falls"
    )]
    AccessDoesNotFall {
        /// Which.
        step: usize,
        /// To what.
        access: AccessLevel,
    },
    /// Access is taken at the first failure.
    #[error(
        "step {step} takes access away at once; leave an hour at least: most cards that are declined work on the next try"
    )]
    NoGrace {
        /// Which.
        step: usize,
    },
    /// Access never ends.
    #[error("no step suspends access; a debt must end it some day: use a late step, and exceptions for single tenants")]
    NeverSuspends,
    /// One message in two places: it is sent once for an invoice.
    #[error("the message `{message}` stands in the policy twice; each is sent once per invoice, so give it two names")]
    Repeated {
        /// Which.
        message: MessageKey,
    },
    /// A plan of its own policy that is not in the catalogue.
    #[error("the catalogue has no plan `{plan}`; correct the name, or add the plan")]
    UnknownPlan {
        /// Its name.
        plan: saas_core::PlanKey,
    },
}

const PAYMENT_FAILED: MessageKey = MessageKey::from_static("payment-failed");
const REMINDER: MessageKey = MessageKey::from_static("reminder");
const LAST_DAYS: MessageKey = MessageKey::from_static("last-days-of-full-access");
const RESTRICTED: MessageKey = MessageKey::from_static("access-restricted");
const LAST_CALL: MessageKey = MessageKey::from_static("last-days-of-access");
const SUSPENDED: MessageKey = MessageKey::from_static("access-suspended");
const CONFIRM: MessageKey = MessageKey::from_static("confirm-payment");
const RECOVERED: MessageKey = MessageKey::from_static("payment-received");

/// Two weeks of full access (the median time from a first failure to its end), then two restricted, with six messages; the
/// table is in `docs/dunning.md`.
impl Default for DunningPolicy {
    fn default() -> Self {
        let step = |days, message| DunningStep::after_days(days).with_message(message);
        Self {
            steps: vec![
                step(0, PAYMENT_FAILED),
                step(5, REMINDER),
                step(11, LAST_DAYS),
                step(14, RESTRICTED).with_access(AccessLevel::Restricted),
                step(25, LAST_CALL),
                step(28, SUSPENDED).with_access(AccessLevel::Suspended),
            ],
            confirmation: Some(CONFIRM),
            recovery: Some(RECOVERED),
        }
    }
}

impl DunningPolicy {
    /// A policy of these steps, the earliest first, that sends nothing where a payment is to be confirmed or has come.
    ///
    /// # Errors
    /// [`DunningPolicyError`] says which step breaks which rule, and what to do.
    pub fn new(steps: Vec<DunningStep>) -> Result<Self, DunningPolicyError> {
        Unchecked { steps, confirmation: None, recovery: None }.try_into()
    }

    /// A policy that says nothing: full access for so many days after the first failure, then restricted, then none.
    ///
    /// # Errors
    /// As [`new`](Self::new). Without restricted days, access ends at once after the full ones.
    pub fn without_messages(full_days: u32, restricted_days: u32) -> Result<Self, DunningPolicyError> {
        let restricted = DunningStep::after_days(full_days).with_access(AccessLevel::Restricted);
        let suspended = DunningStep::after_days(full_days.saturating_add(restricted_days));
        let suspended = suspended.with_access(AccessLevel::Suspended);
        Self::new(if restricted_days == 0 { vec![suspended] } else { vec![restricted, suspended] })
    }

    /// Sends this message, at once and once, when the buyer must confirm the payment of an invoice.
    ///
    /// # Errors
    /// [`Repeated`](DunningPolicyError::Repeated) when it stands elsewhere in the policy.
    pub fn with_confirmation(self, message: MessageKey) -> Result<Self, DunningPolicyError> {
        Unchecked { confirmation: Some(message), steps: self.steps, recovery: self.recovery }.try_into()
    }

    /// Sends this message when an invoice was paid about which another was sent.
    ///
    /// # Errors
    /// As [`with_confirmation`](Self::with_confirmation).
    pub fn with_recovery(self, message: MessageKey) -> Result<Self, DunningPolicyError> {
        Unchecked { recovery: Some(message), steps: self.steps, confirmation: self.confirmation }.try_into()
    }

    /// The steps, the earliest first.
    #[must_use]
    pub fn steps(&self) -> &[DunningStep] {
        &self.steps
    }

    /// What is sent when the buyer must confirm.
    #[must_use]
    pub const fn confirmation(&self) -> Option<&MessageKey> {
        self.confirmation.as_ref()
    }

    /// What is sent when it was paid.
    #[must_use]
    pub const fn recovery(&self) -> Option<&MessageKey> {
        self.recovery.as_ref()
    }

    /// How long after the first failure access is restricted, or ends.
    #[must_use]
    pub fn restricted_after(&self) -> TimeDelta {
        self.after(AccessLevel::Restricted)
    }

    /// How long after the first failure access ends.
    #[must_use]
    pub fn suspended_after(&self) -> TimeDelta {
        self.after(AccessLevel::Suspended)
    }

    fn after(&self, access: AccessLevel) -> TimeDelta {
        let mut reached = self.steps.iter().filter(|step| step.access.is_some_and(|left| left <= access));
        reached.next().map_or(TimeDelta::MAX, DunningStep::after)
    }

    fn check(&self) -> Result<(), DunningPolicyError> {
        if self.steps.len() > MAX_STEPS {
            return Err(DunningPolicyError::TooManySteps { steps: self.steps.len() });
        }
        let mut left = AccessLevel::Full;
        let mut before = None;
        for (index, one) in self.steps.iter().enumerate() {
            let (step, hours) = (index + 1, one.after_hours);
            if hours > MAX_HOURS {
                return Err(DunningPolicyError::TooLate { step, hours });
            }
            if before.is_some_and(|before| hours <= before) {
                return Err(DunningPolicyError::OutOfOrder { step });
            }
            before = Some(hours);
            match one.access {
                None if one.message.is_none() => return Err(DunningPolicyError::NoEffect { step }),
                None => {}
                Some(access) if access >= left => return Err(DunningPolicyError::AccessDoesNotFall { step, access }),
                Some(_) if hours == 0 => return Err(DunningPolicyError::NoGrace { step }),
                Some(access) => left = access,
            }
        }
        if left != AccessLevel::Suspended {
            return Err(DunningPolicyError::NeverSuspends);
        }
        let mut seen = std::collections::BTreeSet::new();
        let steps = self.steps.iter().filter_map(DunningStep::message);
        for message in steps.chain(&self.confirmation).chain(&self.recovery) {
            if !seen.insert(message) {
                return Err(DunningPolicyError::Repeated { message: message.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &'static str) -> MessageKey {
        MessageKey::from_static(name)
    }

    fn suspends(days: u32) -> DunningStep {
        DunningStep::after_days(days).with_access(AccessLevel::Suspended)
    }

    #[test]
    fn a_policy_that_breaks_a_rule_is_refused_and_says_which_step_and_why() {
        use DunningPolicyError as E;
        let at = DunningStep::after_days;
        let told = |days, name| at(days).with_message(message(name));
        for (steps, expected) in [
            (vec![], E::NeverSuspends),
            (vec![told(0, "a")], E::NeverSuspends),
            (vec![at(3).with_access(AccessLevel::Restricted)], E::NeverSuspends),
            (vec![told(0, "a"), at(2), suspends(3)], E::NoEffect { step: 2 }),
            (vec![suspends(0)], E::NoGrace { step: 1 }),
            (vec![told(5, "a"), suspends(5)], E::OutOfOrder { step: 2 }),
            (vec![told(5, "a"), suspends(4)], E::OutOfOrder { step: 2 }),
            (vec![suspends(367)], E::TooLate { step: 1, hours: 367 * 24 }),
            (vec![suspends(u32::MAX)], E::TooLate { step: 1, hours: u32::MAX }),
            (vec![told(1, "a"), told(2, "a"), suspends(3)], E::Repeated { message: message("a") }),
            (
                vec![at(1).with_access(AccessLevel::Full), suspends(3)],
                E::AccessDoesNotFall { step: 1, access: AccessLevel::Full },
            ),
            (
                vec![suspends(3), at(4).with_access(AccessLevel::Restricted)],
                E::AccessDoesNotFall { step: 2, access: AccessLevel::Restricted },
            ),
            ((0..33).map(|day| at(day).with_message(message("a"))).collect(), E::TooManySteps { steps: 33 }),
        ] {
            assert_eq!(DunningPolicy::new(steps), Err(expected));
        }
        let policy = DunningPolicy::new(vec![told(0, "a"), suspends(3)]).unwrap();
        assert_eq!(policy.clone().with_recovery(message("a")), Err(E::Repeated { message: message("a") }));
        assert!(policy.with_confirmation(message("b")).unwrap().with_recovery(message("b")).is_err());
    }

    #[test]
    fn the_default_policy_keeps_its_own_rules_and_comes_back_from_json() {
        let policy = DunningPolicy::default();
        policy.check().unwrap();
        assert_eq!((policy.restricted_after().num_days(), policy.suspended_after().num_days()), (14, 28));
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<DunningPolicy>(&json).unwrap(), policy);
        let refused = serde_json::from_str::<DunningPolicy>(r#"{"steps": [{"after_hours": 0, "acces": "full"}]}"#);
        assert!(refused.unwrap_err().to_string().contains("acces"), "a misspelt field is not ignored");
        let refused = serde_json::from_str::<DunningPolicy>(r#"{"steps": []}"#).unwrap_err();
        assert!(refused.to_string().contains("no step suspends access"), "{refused}");
    }

    #[test]
    fn the_guide_has_the_default_policy_as_it_is() {
        let guide = include_str!("../../../docs/dunning.md");
        let table = guide.split("## The default policy").nth(1).unwrap();
        let rows: Vec<&str> = table.lines().skip_while(|line| !line.starts_with("|--")).skip(1).collect();
        let written: Vec<&str> = rows.into_iter().take_while(|line| line.starts_with('|')).collect();
        let policy = DunningPolicy::default();
        let shown: Vec<String> = policy
            .steps()
            .iter()
            .scan(AccessLevel::Full, |left, step| {
                *left = step.access().unwrap_or(*left);
                let message = step.message().map_or("", MessageKey::as_str);
                Some(format!("| {} | `{message}` | {} |", step.after().num_days(), format!("{left:?}").to_lowercase()))
            })
            .collect();
        assert_eq!(written, shown);
    }
}
