//! What is to be done about a tenant's debts at an instant, and when next: a pure function of the set of open invoices, the
//! terms, and what was sent.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use saas_core::{MessageKey, subscription::AccessLevel};
use serde::{Deserialize, Serialize};

use super::DunningTerms;
use crate::{derive::Debt, object::ObjectId};

/// Invoices and the messages that were sent about each.
pub(crate) type Sent = BTreeSet<(ObjectId, MessageKey)>;

/// Why a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MessageCause {
    /// A step of the policy has come.
    Step,
    /// The buyer has to confirm the payment.
    Confirmation,
    /// It was paid.
    Recovery,
}

/// A message whose time has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) invoice: ObjectId,
    pub(crate) message: MessageKey,
    pub(crate) cause: MessageCause,
    /// Since when.
    pub(crate) at: DateTime<Utc>,
}

/// What will happen next about an invoice, or to access, if nothing is paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NextStep {
    /// When.
    pub at: DateTime<Utc>,
    /// What is sent then.
    pub message: Option<MessageKey>,
    /// What access is left from then on, where that changes.
    pub access: Option<AccessLevel>,
}

/// What there is to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Agenda {
    pub(crate) due: Vec<Due>,
    /// The next instant at which time alone changes anything.
    pub(crate) next_at: Option<DateTime<Utc>>,
}

/// What the agenda is made from.
#[derive(Debug)]
pub(crate) struct Situation<'a> {
    pub(crate) debts: &'a BTreeMap<ObjectId, Debt>,
    /// Invoices about which something was sent, and which were paid then.
    pub(crate) paid: &'a BTreeMap<ObjectId, DateTime<Utc>>,
    pub(crate) unpaid_since: Option<DateTime<Utc>>,
    pub(crate) suspended_since: Option<DateTime<Utc>>,
    pub(crate) terms: &'a DunningTerms,
    pub(crate) sent: &'a Sent,
}

impl Situation<'_> {
    /// What is due at `now`. Of several steps whose time has passed unseen only the last is said: three reminders at once
    /// remind of nothing.
    pub(crate) fn agenda(&self, now: DateTime<Utc>) -> Agenda {
        let mut agenda = Agenda::default();
        let policy = self.terms.policy_at(now);
        let unsent =
            |invoice: &ObjectId, message: &MessageKey| !self.sent.contains(&(invoice.clone(), message.clone()));
        for (invoice, debt) in self.debts {
            let due = |(at, message, cause): (DateTime<Utc>, &MessageKey, MessageCause)| {
                let due = Due { invoice: invoice.clone(), message: message.clone(), cause, at };
                unsent(invoice, message).then_some(due)
            };
            let confirm = debt.confirm_since.zip(policy.confirmation());
            agenda.due.extend(confirm.and_then(|(at, message)| due((at, message, MessageCause::Confirmation))));
            let stages = self.terms.stages(debt.since);
            let mut said =
                stages.iter().filter(|stage| stage.at <= now).filter_map(|stage| Some((stage.at, stage.message?)));
            agenda.due.extend(said.next_back().and_then(|(at, message)| due((at, message, MessageCause::Step))));
        }
        for (invoice, at) in self.paid {
            let thanks = policy.recovery().filter(|message| unsent(invoice, message));
            agenda.due.extend(thanks.map(|message| Due {
                invoice: invoice.clone(),
                message: message.clone(),
                cause: MessageCause::Recovery,
                at: *at,
            }));
        }
        let steps =
            self.debts.iter().filter_map(|(invoice, debt)| self.next_of(invoice, debt, now)).map(|next| next.at);
        agenda.next_at = steps.chain(self.next_access(now).map(|(_, at)| at)).min();
        agenda
    }

    /// The next step of an invoice after `now`.
    pub(crate) fn next_of(&self, invoice: &ObjectId, debt: &Debt, now: DateTime<Utc>) -> Option<NextStep> {
        let sent = |message: &MessageKey| self.sent.contains(&(invoice.clone(), message.clone()));
        let stages = self.terms.stages(debt.since);
        let mut coming = stages.iter().filter(|stage| stage.at > now).filter_map(|stage| {
            let message = stage.message.filter(|message| !sent(message)).cloned();
            let oldest = self.unpaid_since == Some(debt.since);
            let access = stage.access.filter(|_| oldest);
            (message.is_some() || access.is_some()).then_some(NextStep { at: stage.at, message, access })
        });
        coming.next()
    }

    /// What is left of access at `now`.
    pub(crate) fn access(&self, now: DateTime<Utc>) -> AccessLevel {
        self.terms.standing(self.unpaid_since, self.suspended_since, now).access(now)
    }

    /// What access becomes next by time alone, and when.
    pub(crate) fn next_access(&self, now: DateTime<Utc>) -> Option<(AccessLevel, DateTime<Utc>)> {
        let (until, suspended_from) = self.terms.instants(self.unpaid_since, self.suspended_since);
        let at = [until, suspended_from].into_iter().flatten().filter(|at| *at > now).min()?;
        let level = self.access(at);
        (level < self.access(now)).then_some((level, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + hours * 3_600, 0).unwrap()
    }

    fn id(text: &str) -> ObjectId {
        text.parse().unwrap()
    }

    fn debt(hours: i64) -> Debt {
        Debt { since: at(hours), confirm_since: None, subscription: None, currency: None, minor: 2_000 }
    }

    fn names(agenda: &Agenda) -> Vec<(String, String)> {
        agenda.due.iter().map(|due| (due.invoice.to_string(), due.message.to_string())).collect()
    }

    fn named(invoice: &str, message: &str) -> (String, String) {
        (invoice.to_owned(), message.to_owned())
    }

    // D7
    #[test]
    fn every_invoice_has_its_own_messages_and_access_goes_by_the_oldest() {
        let terms = DunningTerms::default();
        let debts = BTreeMap::from([(id("in_1"), debt(0)), (id("in_2"), debt(24 * 13))]);
        let (paid, nothing) = (BTreeMap::new(), Sent::new());
        let day_14 = at(24 * 14);
        let before = Situation {
            debts: &debts,
            paid: &paid,
            unpaid_since: Some(at(0)),
            suspended_since: None,
            terms: &terms,
            sent: &nothing,
        };
        let agenda = before.agenda(day_14);
        assert_eq!(names(&agenda), [named("in_1", "access-restricted"), named("in_2", "payment-failed")]);
        assert_eq!(before.access(day_14), AccessLevel::Restricted);
        let sent: Sent = agenda.due.into_iter().map(|due| (due.invoice, due.message)).collect();
        let after = Situation { sent: &sent, ..before };
        let agenda = after.agenda(day_14);
        assert_eq!((agenda.due.len(), agenda.next_at), (0, Some(at(24 * 18))), "the second one's reminder");
        let next = after.next_of(&id("in_2"), &debts[&id("in_2")], at(24 * 25)).unwrap();
        assert_eq!((next.at, next.access), (at(24 * 27), None), "it does not take what the first one has taken");
    }

    #[test]
    fn of_steps_that_passed_unseen_only_the_last_is_said() {
        let terms = DunningTerms::default();
        let debts = BTreeMap::from([(id("in_1"), debt(0))]);
        let (paid, sent) = (BTreeMap::new(), Sent::new());
        let situation = Situation {
            debts: &debts,
            paid: &paid,
            unpaid_since: Some(at(0)),
            suspended_since: None,
            terms: &terms,
            sent: &sent,
        };
        assert_eq!(names(&situation.agenda(at(24 * 12))), [named("in_1", "last-days-of-full-access")]);
        assert_eq!(names(&situation.agenda(at(-1))), []);
    }

    #[test]
    fn a_payment_to_be_confirmed_is_asked_for_at_once_and_starts_no_clock() {
        let terms = DunningTerms::default();
        let waiting = Debt { since: at(72), confirm_since: Some(at(0)), ..debt(0) };
        let debts = BTreeMap::from([(id("in_1"), waiting)]);
        let (paid, sent) = (BTreeMap::new(), Sent::new());
        let situation = Situation {
            debts: &debts,
            paid: &paid,
            unpaid_since: Some(at(72)),
            suspended_since: None,
            terms: &terms,
            sent: &sent,
        };
        let agenda = situation.agenda(at(1));
        assert_eq!((names(&agenda), agenda.next_at), (vec![named("in_1", "confirm-payment")], Some(at(72))));
        assert_eq!(situation.access(at(71)), AccessLevel::Full);
    }
}
