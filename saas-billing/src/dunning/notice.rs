//! What a message is about, and the port through which the application gives it words.

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{CoreError, EmailAddress, InvalidInput, MessageKey, TenantId, mail::Mail, subscription::AccessLevel};

use super::MessageCause;
use crate::{money::Money, object::ObjectId, provider::WebAddress};

/// Everything that a message can say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DunningNotice {
    /// To whom.
    pub tenant: TenantId,
    /// Which words.
    pub message: MessageKey,
    /// Why.
    pub cause: MessageCause,
    /// About which invoice.
    pub invoice: ObjectId,
    /// What is to be paid or, where it was paid, all of it.
    pub amount: Money,
    /// Stripe's page, read a moment ago, on which it can be paid or confirmed. Whoever has the address can see the invoice.
    pub pay_link: Option<WebAddress>,
    /// The access that the tenant has now.
    pub access: AccessLevel,
    /// What it becomes if nothing is paid, and when.
    pub next_access: Option<(AccessLevel, DateTime<Utc>)>,
    /// How many invoices are owed.
    pub open: usize,
}

/// Writes letters.
///
/// # Contract
/// - *Bounded*: gives up well within the worker's lease.
/// - *Repeatable*: is asked again after a crash; only what one call answered is sent.
#[async_trait]
pub trait DunningMessages: fmt::Debug + Send + Sync + 'static {
    /// The letters about a notice: one for each person who pays, in that person's language; none where nobody shall be told.
    async fn compose(&self, notice: &DunningNotice) -> Result<Vec<Mail>, CoreError>;
}

impl DunningNotice {
    /// A plain letter in English, for a start: what is to be paid, where, and what happens when.
    ///
    /// # Errors
    /// When the product's name holds a line break, or is too long for a subject.
    pub fn plain_mail(&self, to: EmailAddress, product: &str) -> Result<Mail, InvalidInput> {
        let amount = self.amount;
        let subject = match self.cause {
            MessageCause::Step if self.access == AccessLevel::Full => format!("{product}: your payment failed"),
            MessageCause::Step => format!("{product}: access is {}, an invoice is not paid", level(self.access)),
            MessageCause::Confirmation => format!("{product}: please confirm your payment"),
            MessageCause::Recovery => format!("{product}: thank you, your payment has arrived"),
        };
        let mut text = match self.cause {
            MessageCause::Step => format!("We could not collect {amount} for the invoice {}.\n", self.invoice),
            MessageCause::Confirmation => {
                format!("Your bank asks you to confirm the payment of {amount} for the invoice {}.\n", self.invoice)
            }
            MessageCause::Recovery => format!("The invoice {} over {amount} is paid.\n", self.invoice),
        };
        let what = match self.cause {
            MessageCause::Step => Some("pay"),
            MessageCause::Confirmation => Some("confirm"),
            MessageCause::Recovery => None,
        };
        if let Some((link, what)) = self.pay_link.as_ref().zip(what) {
            text.push_str(&format!("You can {what} it here: {}\n", link.as_str()));
        }
        if let Some((access, at)) = self.next_access {
            text.push_str(&format!("From {} on access is {}.\n", at.format("%d %B %Y, %H:%M UTC"), level(access)));
        }
        if self.cause == MessageCause::Recovery && self.open > 0 {
            text.push_str(&format!("{} more to be paid.\n", if self.open == 1 { "One is" } else { "Others are" }));
        }
        Mail::new(to, subject, text)
    }
}

const fn level(access: AccessLevel) -> &'static str {
    match access {
        AccessLevel::Full => "unlimited",
        AccessLevel::Restricted => "read-only",
        AccessLevel::Suspended => "suspended",
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use saas_core::SystemClock;

    use super::*;

    #[test]
    fn the_plain_letter_says_what_is_to_be_paid_where_and_what_happens_when() {
        let mut notice = DunningNotice {
            tenant: TenantId::mint(&SystemClock),
            message: MessageKey::from_static("payment-failed"),
            cause: MessageCause::Step,
            invoice: "in_1".parse().unwrap(),
            amount: Money::new(2_000, "eur".parse().unwrap()),
            pay_link: "https://pay.example/in_1".parse().ok(),
            access: AccessLevel::Full,
            next_access: Some((AccessLevel::Restricted, DateTime::UNIX_EPOCH + TimeDelta::days(14))),
            open: 1,
        };
        let to: EmailAddress = "owner@acme.example".parse().unwrap();
        let mail = notice.plain_mail(to.clone(), "Acme").unwrap();
        assert_eq!(mail.subject(), "Acme: your payment failed");
        let expected = "We could not collect 20.00 EUR for the invoice in_1.\nYou can pay it here: \
                        https://pay.example/in_1\nFrom 15 January 1970, 00:00 UTC on access is read-only.\n";
        assert_eq!(mail.text(), expected);
        notice.cause = MessageCause::Confirmation;
        assert!(notice.plain_mail(to.clone(), "Acme").unwrap().text().contains("confirm it here: https://pay.example"));
        notice.cause = MessageCause::Recovery;
        let thanks = notice.plain_mail(to.clone(), "Acme").unwrap();
        assert!(
            thanks.text().starts_with("The invoice in_1 over 20.00 EUR is paid.") && !thanks.text().contains("http")
        );
        assert!(notice.plain_mail(to, "Acme\r\nBcc: everybody@example.com").is_err());
    }
}
