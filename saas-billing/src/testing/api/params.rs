//! Parameters as Stripe takes them: form-encoded, nested by brackets, each known by name.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{ApiError, Metadata};

/// The parameters of one call. Handlers take what they know; what is left over is refused, as Stripe does.
#[derive(Debug, Default)]
pub(super) struct Params(BTreeMap<String, String>);

impl Params {
    /// Reads `application/x-www-form-urlencoded` text; later pairs of one name win.
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let mut pairs = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.insert(unescape(name)?, unescape(value)?);
        }
        Ok(Self(pairs))
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    pub(super) fn need(&mut self, name: &str) -> Result<String, ApiError> {
        self.take(name).filter(|value| !value.is_empty()).ok_or_else(|| ApiError::missing(name))
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        self.take(name)
            .map(|text| text.parse().map_err(|_| ApiError::invalid("parameter_invalid_integer", name)))
            .transpose()
    }

    pub(super) fn instant(&mut self, name: &str) -> Result<Option<DateTime<Utc>>, ApiError> {
        let wrong = || ApiError::invalid("parameter_invalid_integer", name);
        let seconds: Option<i64> = self.number(name)?;
        seconds.map(|seconds| DateTime::from_timestamp(seconds, 0).ok_or_else(wrong)).transpose()
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.take(name)
            .map(|text| text.parse().map_err(|_| ApiError::invalid("parameter_invalid_boolean", name)))
            .transpose()
    }

    /// One of the words.
    pub(super) fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, ApiError> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let known = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        known.map(Some).ok_or_else(|| ApiError::invalid("parameter_invalid_string_enum", name))
    }

    /// The entries of a list: `items[0][…]`, `items[1][…]`.
    pub(super) fn entries(&self, name: &str) -> Vec<String> {
        let mut numbers: Vec<usize> = Vec::new();
        for key in self.0.keys() {
            let number =
                key.strip_prefix(name).and_then(|rest| rest.strip_prefix('[')).and_then(|rest| rest.split(']').next());
            if let Some(number) = number.and_then(|number| number.parse().ok())
                && !numbers.contains(&number)
            {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        numbers.into_iter().map(|number| format!("{name}[{number}]")).collect()
    }

    /// A map: `metadata[key]`.
    pub(super) fn map(&mut self, name: &str) -> Metadata {
        let prefix = format!("{name}[");
        let mut map = Metadata::new();
        self.0.retain(|key, value| {
            let inner = key.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(']'));
            inner.map(|inner| map.insert(inner.to_owned(), std::mem::take(value))).is_none()
        });
        map
    }

    /// Whether a call wants this field whole.
    pub(super) fn expands(&self, field: &str) -> bool {
        let mut wanted = self.0.iter().filter(|(name, _)| name.starts_with("expand["));
        wanted.any(|(_, value)| value.split('.').any(|part| part == field))
    }

    /// Refuses what nobody took.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        let unknown = self.0.into_keys().find(|name| !name.starts_with("expand["));
        unknown.map_or(Ok(()), |name| Err(ApiError::invalid("parameter_unknown", &name)))
    }
}

fn unescape(text: &str) -> Result<String, ApiError> {
    let wrong = || ApiError::invalid("parameter_invalid", "body");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let pair = [rest.next().ok_or_else(wrong)?, rest.next().ok_or_else(wrong)?];
                let mut decoded = [0];
                hex::decode_to_slice(pair, &mut decoded).map_err(|_| wrong())?;
                bytes.push(decoded[0]);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_names_are_taken_apart_and_what_is_left_is_refused() {
        let text = "items%5B0%5D%5Bprice%5D=p+1&items[10][price]=p%C3%A4&metadata[a]=1&metadata[b]=2&limit=x";
        let mut params = Params::parse(text).unwrap();
        assert_eq!(params.entries("items"), ["items[0]", "items[10]"]);
        assert_eq!(params.need("items[10][price]").unwrap(), "pä");
        assert_eq!(params.map("metadata").len(), 2);
        assert!(params.number::<u8>("limit").is_err());
        let left = params.finish().unwrap_err();
        assert_eq!((left.code, left.param.as_deref()), ("parameter_unknown", Some("items[0][price]")));
        assert!(Params::parse("a=%4").is_err() && Params::parse("a=%ff").is_err());
    }
}
