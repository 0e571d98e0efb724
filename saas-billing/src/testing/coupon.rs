//! Coupons, promotion codes, automatic tax: what an invoice comes to.

use chrono::{DateTime, Months, Utc};

use super::{
    engine::Engine,
    payload,
    world::{SimInvoice, SimLine},
};
use crate::object::ObjectKind;

/// What a coupon takes off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Off {
    /// Hundredths of a percent.
    Percent(u32),
    /// Minor units of a currency.
    Amount(i64, String),
}

/// How long a coupon lasts on a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// One invoice that asks for something.
    Once,
    /// So many months.
    Months(u32),
    /// As long as the subscription.
    Forever,
}

/// A coupon to be made.
#[derive(Debug, Clone)]
pub struct Coupon {
    pub(super) off: Off,
    pub(super) lasts: Lasts,
}

impl Coupon {
    /// A share off, in hundredths of a percent: 2,500 is a quarter.
    #[must_use]
    pub const fn percent(hundredths: u32, lasts: Lasts) -> Self {
        Self { off: Off::Percent(if hundredths > 10_000 { 10_000 } else { hundredths }), lasts }
    }

    /// Minor units off each invoice.
    #[must_use]
    pub fn amount(minor: i64, currency: &str, lasts: Lasts) -> Self {
        Self { off: Off::Amount(minor.max(0), currency.to_owned()), lasts }
    }
}

#[derive(Debug, Clone)]
pub(super) struct SimCoupon {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) terms: Coupon,
    pub(super) created: DateTime<Utc>,
    pub(super) redeemed: u64,
}

#[derive(Debug, Clone)]
pub(super) struct SimPromotionCode {
    pub(super) id: String,
    pub(super) code: String,
    pub(super) coupon: String,
    pub(super) created: DateTime<Utc>,
    pub(super) active: bool,
    pub(super) redeemed: u64,
}

/// What is to be taken off something that is being bought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) coupon: String,
    pub(super) promotion_code: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct SimDiscount {
    pub(super) id: String,
    pub(super) of: Wanted,
    pub(super) start: DateTime<Utc>,
    pub(super) end: Option<DateTime<Utc>>,
}

/// A share in hundredths of a percent, rounded half away from zero.
pub(super) fn share(amount: i64, hundredths: u32) -> i64 {
    let product = i128::from(amount) * i128::from(hundredths);
    let half = if product < 0 { -5_000 } else { 5_000 };
    i64::try_from((product + half) / 10_000).unwrap_or(0)
}

impl SimInvoice {
    /// What all lines come to.
    pub(super) fn subtotal(&self) -> i64 {
        self.lines.iter().map(|line| line.amount).fold(0, i64::saturating_add)
    }

    /// What each discount takes off. Prorations were counted with it already.
    pub(super) fn discounted(&self) -> Vec<(String, i64)> {
        let whole = self.lines.iter().filter(|line| !line.proration).map(|line| line.amount);
        let mut left = whole.fold(0, i64::saturating_add).max(0);
        let take = |(id, off): &(String, Off)| {
            let taken = match off {
                Off::Percent(hundredths) => share(left, *hundredths),
                Off::Amount(minor, currency) if *currency == self.currency => (*minor).min(left),
                Off::Amount(..) => 0,
            };
            left -= taken;
            (id.clone(), taken)
        };
        self.discounts.iter().map(take).collect()
    }

    /// What it comes to before tax.
    pub(super) fn net(&self) -> i64 {
        let off: i64 = self.discounted().iter().map(|(_, taken)| *taken).sum();
        self.subtotal().saturating_sub(off)
    }

    pub(super) fn tax(&self) -> i64 {
        self.tax_rate.map_or(0, |rate| share(self.net(), rate))
    }

    /// What it asks for.
    pub(super) fn total(&self) -> i64 {
        self.net().saturating_add(self.tax())
    }

    /// What is left to pay.
    pub(super) fn due(&self) -> i64 {
        self.total().saturating_sub(self.from_balance).saturating_sub(self.credited).max(0)
    }
}

impl Engine<'_> {
    /// Puts a discount on a subscription in place of what it has.
    pub(super) fn discount(&mut self, subscription: &str, of: Wanted) -> Option<()> {
        self.drop_discounts(subscription, |_| true);
        let coupon = self.world.coupons.get_mut(&of.coupon)?;
        coupon.redeemed += 1;
        let end = match coupon.terms.lasts {
            Lasts::Months(months) => self.now.checked_add_months(Months::new(months)),
            Lasts::Once | Lasts::Forever => None,
        };
        if let Some(code) = of.promotion_code.as_ref().and_then(|id| self.world.promotion_codes.get_mut(id)) {
            code.redeemed += 1;
        }
        let discount = SimDiscount { id: self.world.mint("di"), of, start: self.now, end };
        let sub = self.world.subscriptions.get_mut(subscription)?;
        sub.discounts.push(discount.clone());
        let object = payload::discount(self.shape, &discount, (subscription, false), self.world);
        self.announce("customer.discount.created", object, None);
        Some(())
    }

    /// Ends the discounts that are over by now, or whatever `is_over` says.
    pub(super) fn drop_discounts(&mut self, subscription: &str, is_over: impl Fn(&SimDiscount) -> bool) {
        let Some(sub) = self.world.subscriptions.get_mut(subscription) else { return };
        let (over, kept) = std::mem::take(&mut sub.discounts).into_iter().partition(|one| is_over(one));
        sub.discounts = kept;
        let over: Vec<SimDiscount> = over;
        for discount in over {
            let object = payload::discount(self.shape, &discount, (subscription, false), self.world);
            self.announce("customer.discount.deleted", object, None);
        }
    }

    /// Ends the discounts that a phase does not name, as Stripe does.
    pub(super) fn keep_discounts(&mut self, subscription: &str, named: Option<&[String]>) {
        if let Some(named) = named {
            self.drop_discounts(subscription, |discount| !named.contains(&discount.id));
        }
    }

    /// The terms that a new invoice of a subscription bears. What is for one invoice is used up by the first that asks for
    /// something.
    pub(super) fn terms(&mut self, subscription: &str, lines: &[SimLine]) -> Vec<(String, Off)> {
        let now = self.now;
        self.drop_discounts(subscription, |discount| discount.end.is_some_and(|end| end <= now));
        let terms = self.standing_terms(subscription, now);
        let asks = lines.iter().any(|line| !line.proration && line.amount > 0);
        let once: Vec<String> = self.world.subscriptions.get(subscription).map_or_else(Vec::new, |sub| {
            let is_once = |discount: &&SimDiscount| self.lasts(discount) == Some(Lasts::Once);
            sub.discounts.iter().filter(is_once).map(|discount| discount.id.clone()).collect()
        });
        if asks && !once.is_empty() {
            self.drop_discounts(subscription, |discount| once.contains(&discount.id));
            self.emit("customer.subscription.updated", ObjectKind::Subscription, subscription);
        }
        terms
    }

    /// What a subscription's discounts take off an invoice of that instant.
    pub(super) fn standing_terms(&self, subscription: &str, at: DateTime<Utc>) -> Vec<(String, Off)> {
        let sub = self.world.subscriptions.get(subscription);
        let off = |discount: &SimDiscount| {
            let coupon = self.world.coupons.get(&discount.of.coupon)?;
            Some((discount.id.clone(), coupon.terms.off.clone()))
        };
        let running = |discount: &&SimDiscount| discount.end.is_none_or(|end| end > at);
        sub.map_or_else(Vec::new, |sub| sub.discounts.iter().filter(running).filter_map(off).collect())
    }

    fn lasts(&self, discount: &SimDiscount) -> Option<Lasts> {
        self.world.coupons.get(&discount.of.coupon).map(|coupon| coupon.terms.lasts)
    }

    /// The tax that a subscription's invoices bear.
    pub(super) fn tax_rate(&self, subscription: &str) -> Option<u32> {
        let sub = self.world.subscriptions.get(subscription)?;
        sub.automatic_tax.then_some(self.world.tax_rate)
    }

    /// What is wanted, by the id of a coupon or of a promotion code, or by the code that a buyer enters.
    pub(super) fn wanted(&self, coupon: Option<&str>, code: Option<&str>) -> Option<Wanted> {
        if let Some(code) = code {
            let known = |one: &&SimPromotionCode| one.active && (one.id == code || one.code.eq_ignore_ascii_case(code));
            let found = self.world.promotion_codes.values().find(known)?;
            return Some(Wanted { coupon: found.coupon.clone(), promotion_code: Some(found.id.clone()) });
        }
        let coupon = coupon.filter(|id| self.world.coupons.contains_key(*id))?;
        Some(Wanted { coupon: coupon.to_owned(), promotion_code: None })
    }

    /// Takes a code into an open session that takes codes.
    pub(super) fn enter_code(&mut self, session: &str, code: &str) -> Option<()> {
        let wanted = self.wanted(None, Some(code))?;
        let open = |session: &&mut super::world::SimSession| session.status == "open" && session.takes_codes;
        self.world.sessions.get_mut(session).filter(open)?.discount = Some(wanted);
        Some(())
    }

    pub(super) fn create_coupon(&mut self, id: &str, name: Option<String>, terms: Coupon) {
        let coupon = SimCoupon { id: id.to_owned(), name, terms, created: self.now, redeemed: 0 };
        let object = payload::coupon(&coupon, self.livemode);
        self.world.coupons.insert(id.to_owned(), coupon);
        self.announce("coupon.created", object, None);
    }

    pub(super) fn create_promotion_code(&mut self, code: &str, coupon: &str) -> String {
        let id = self.world.mint("promo");
        let (code, coupon, created) = (code.to_owned(), coupon.to_owned(), self.now);
        let code = SimPromotionCode { id: id.clone(), code, coupon, created, active: true, redeemed: 0 };
        let object = payload::promotion_code(self.shape, &code, self.world, self.livemode);
        self.world.promotion_codes.insert(id.clone(), code);
        self.announce("promotion_code.created", object, None);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_half_away_from_zero() {
        assert_eq!([1, 3, -1, -3, 0].map(|amount| share(amount, 5_000)), [1, 2, -1, -2, 0]);
        assert_eq!((share(1_999, 2_550), share(1_999, 10_000)), (510, 1_999));
    }
}
