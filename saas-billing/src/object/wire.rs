//! How Stripe writes things down: borrowed text, references that may be expanded, seconds since 1970.

use std::{borrow::Cow, fmt};

use chrono::{DateTime, Utc};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};

use super::ObjectId;

/// Why a rightly signed body cannot be used. Says where, never what: the text goes to logs and lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unreadable {
    reason: Cow<'static, str>,
    /// It is another kind of object than was expected: not wrong, only not ours.
    foreign: bool,
}

impl Unreadable {
    pub(crate) fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), foreign: false }
    }

    /// Whether the object is of another kind than was expected.
    pub(crate) const fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Sorts a JSON error into a place and a kind, leaving out its text, which may quote the payload.
    pub(crate) fn json(what: &str, error: &serde_json::Error) -> Self {
        Self::new(format!("{what}: {}", location(error)))
    }
}

/// Where and in what way JSON is wrong, without quoting it.
fn location(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    let kind = match error.classify() {
        Category::Data => "JSON of an unexpected shape",
        Category::Eof => "JSON that ends too early",
        Category::Syntax | Category::Io => "not JSON",
    };
    format!("{kind} at line {} column {}", error.line(), error.column())
}

/// Text that is borrowed from the body unless it holds an escape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The text as a word of Stripe's vocabulary: short, visible ASCII.
    pub(super) fn word(&self, what: &'static str) -> Result<String, Unreadable> {
        if (1..=64).contains(&self.0.len()) && self.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(self.0.clone().into_owned());
        }
        Err(Unreadable::new(format!("{what} is not a word")))
    }

    /// The text as an id.
    pub(crate) fn id(&self, what: &'static str) -> Result<ObjectId, Unreadable> {
        ObjectId::try_from(self.0.clone().into_owned()).map_err(|_| Unreadable::new(format!("{what} is not an id")))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Visit)
    }
}

/// A reference to another object: its id, or the object itself where the endpoint expands it.
#[derive(Debug, Clone)]
pub(crate) struct Reference<'a>(pub(crate) Text<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for Reference<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Reference<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id or an object with an id")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Reference<'de>, E> {
                Ok(Reference(Text(Cow::Borrowed(text))))
            }
            fn visit_str<E>(self, text: &str) -> Result<Reference<'de>, E> {
                Ok(Reference(Text(Cow::Owned(text.to_owned()))))
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Reference<'de>, M::Error> {
                let mut id = None;
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    if key.as_str() == "id" {
                        id = Some(map.next_value::<Text<'de>>()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                id.map(Reference).ok_or_else(|| M::Error::missing_field("id"))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

/// Checks that an object says it is what its place promises.
pub(super) fn expect_object(found: Option<&Text<'_>>, expected: &'static str) -> Result<(), Unreadable> {
    if found.is_some_and(|found| found.as_str() == expected) {
        return Ok(());
    }
    Err(Unreadable { foreign: true, ..Unreadable::new(format!("the object is no {expected}")) })
}

/// One page of a list inside an object.
#[derive(Debug, Deserialize)]
pub(super) struct List<T> {
    pub(super) data: Vec<T>,
    #[serde(default)]
    pub(super) has_more: Option<bool>,
}

/// An id that may be absent.
pub(super) fn reference(what: &'static str, reference: Option<Reference<'_>>) -> Result<Option<ObjectId>, Unreadable> {
    reference.filter(|reference| !reference.0.as_str().is_empty()).map(|reference| reference.0.id(what)).transpose()
}

/// A tax of an invoice or a credit note.
#[derive(Debug, Deserialize)]
pub(super) struct TaxAmount {
    amount: Option<i64>,
}

/// The tax in a total, from whichever of its three places an API version uses; `None` out of range.
pub(super) fn tax(
    total: i64,
    excluding: Option<i64>,
    taxes: Option<Vec<TaxAmount>>,
    single: Option<i64>,
) -> Option<i64> {
    match (excluding, taxes) {
        (Some(excluding), _) => total.checked_sub(excluding),
        (None, Some(taxes)) => taxes.iter().filter_map(|tax| tax.amount).try_fold(0_i64, i64::checked_add),
        (None, None) => Some(single.unwrap_or(0)),
    }
}

/// Seconds since 1970; zero and what is before mean that there is none.
pub(super) fn instant(seconds: Option<i64>) -> Option<DateTime<Utc>> {
    seconds.filter(|seconds| *seconds > 0).and_then(|seconds| DateTime::from_timestamp(seconds, 0))
}

/// Three lower-case letters.
pub(super) fn currency(text: Option<Text<'_>>) -> Option<String> {
    let text = text?.0.to_ascii_lowercase();
    (text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_lowercase())).then_some(text)
}
