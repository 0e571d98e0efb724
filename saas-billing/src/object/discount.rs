//! What a coupon takes off, and for how long.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};
use serde_json::Number;

use super::{
    ObjectId, Unreadable,
    open_enum::open_enum,
    wire::{Text, currency, instant},
};

open_enum! {
    /// How long a coupon lasts.
    CouponDuration {
        /// One invoice.
        Once = "once",
        /// Some months; the discount says until when.
        Repeating = "repeating",
        /// As long as the subscription.
        Forever = "forever",
    }
}

/// A discount of a customer, a subscription or an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discount {
    /// `di_…`; of a discount without an id, as before 2020, its coupon's.
    pub id: ObjectId,
    /// What it takes off; `None` where the payload holds nothing but ids, as Stripe's events do since 2025.
    pub terms: Option<DiscountTerms>,
}

/// What a discount takes off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscountTerms {
    /// Millionths off.
    pub millionths_off: Option<u32>,
    /// Minor units off each invoice.
    pub amount_off: Option<i64>,
    /// Of the amount: lower-case ISO 4217.
    pub currency: Option<String>,
    /// How long the coupon lasts.
    pub duration: CouponDuration,
    /// From when.
    pub start: Option<DateTime<Utc>>,
    /// Until when.
    pub end: Option<DateTime<Utc>>,
}

/// A discount: its id, or the object where it is expanded.
pub(super) struct WireDiscount<'a>(Result<Text<'a>, Box<Object<'a>>>);

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    start: Option<i64>,
    end: Option<i64>,
    #[serde(borrow)]
    coupon: Option<WireCoupon<'a>>,
    /// Since API version 2025-09-30.
    #[serde(borrow)]
    source: Option<WireSource<'a>>,
}

#[derive(Deserialize)]
struct WireSource<'a> {
    #[serde(borrow)]
    coupon: Option<WireCoupon<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireCoupon<'a> {
    #[serde(borrow)]
    Terms(Coupon<'a>),
    Id(IgnoredAny),
}

#[derive(Deserialize)]
struct Coupon<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    percent_off: Option<Number>,
    amount_off: Option<i64>,
    #[serde(borrow)]
    currency: Option<Text<'a>>,
    #[serde(borrow)]
    duration: Text<'a>,
}

impl<'de: 'a, 'a> Deserialize<'de> for WireDiscount<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<'a> {
            #[serde(borrow)]
            Id(Text<'a>),
            #[serde(borrow)]
            Object(Box<Object<'a>>),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::Id(id) => Ok(id),
            Either::Object(object) => Err(object),
        }))
    }
}

impl WireDiscount<'_> {
    pub(super) fn read(self) -> Result<Discount, Unreadable> {
        let object = match self.0 {
            Ok(id) => return Ok(Discount { id: id.id("discount.id")?, terms: None }),
            Err(object) => object,
        };
        let coupon = object.coupon.or(object.source.and_then(|source| source.coupon));
        let named = match &coupon {
            Some(WireCoupon::Terms(coupon)) => coupon.id.clone(),
            Some(WireCoupon::Id(_)) | None => None,
        };
        // Without any name it is what it takes off all the same.
        let id = object.id.or(named).unwrap_or(Text("unnamed".into())).id("discount.id")?;
        let terms = match coupon {
            Some(WireCoupon::Terms(coupon)) => Some(DiscountTerms {
                millionths_off: coupon.percent_off.as_ref().and_then(millionths),
                amount_off: coupon.amount_off,
                currency: currency(coupon.currency),
                duration: coupon.duration.word("coupon.duration")?.into(),
                start: instant(object.start),
                end: instant(object.end),
            }),
            Some(WireCoupon::Id(_)) | None => None,
        };
        Ok(Discount { id, terms })
    }
}

/// A percentage as it is written, in millionths of the whole: `25.5` is 255,000. Text, since a float would measure.
fn millionths(percent: &Number) -> Option<u32> {
    let text = percent.to_string();
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !(part.is_empty() || digits(part)) {
        return None;
    }
    // What is finer than a millionth of the whole is cut off: Stripe takes two decimals.
    let part: String = part.chars().chain("0000".chars()).take(4).collect();
    let millionths = whole.parse::<u32>().ok()?.checked_mul(10_000)?.checked_add(part.parse().ok()?)?;
    (millionths <= 1_000_000).then_some(millionths)
}

#[cfg(test)]
mod tests {
    use super::*;

    // L11
    #[test]
    fn percentages_are_read_without_a_float() {
        let read = |text: &str| millionths(&serde_json::from_str(text).unwrap());
        for (text, expected) in [
            ("25.5", Some(255_000)),
            ("100", Some(1_000_000)),
            ("33.33", Some(333_300)),
            ("0.1", Some(1_000)),
            ("12.50000", Some(125_000)),
            ("100.01", None),
            ("-1", None),
            ("1e-7", None),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }
}
