//! Bodies and queries as Stripe wants them: form-encoded, with brackets for what lies inside.

use std::fmt::Write as _;

/// Pairs in the order in which they were added. Names may hold brackets: `items[0][price]`.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Form(Vec<(String, String)>);

impl Form {
    pub(crate) fn put(&mut self, name: impl Into<String>, value: impl ToString) -> &mut Self {
        self.0.push((name.into(), value.to_string()));
        self
    }

    pub(crate) fn put_some<T: ToString>(&mut self, name: impl Into<String>, value: Option<T>) -> &mut Self {
        if let Some(value) = value {
            self.put(name, value);
        }
        self
    }

    pub(crate) fn put_map<'a>(
        &mut self,
        name: &str,
        map: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> &mut Self {
        for (key, value) in map {
            self.put(format!("{name}[{key}]"), value);
        }
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `application/x-www-form-urlencoded`: what is not a letter, a digit or `-._~` is escaped, brackets too.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.0 {
            if !text.is_empty() {
                text.push('&');
            }
            escape(&mut text, name);
            text.push('=');
            escape(&mut text, value);
        }
        text
    }

    #[cfg(test)]
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

/// Names, never values: they hold addresses and names of people.
impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Escapes one piece of an address or a form.
pub(crate) fn escape(text: &mut String, piece: &str) {
    for byte in piece.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_and_everything_unusual_are_escaped() {
        let mut form = Form::default();
        form.put("metadata[a b]", "ä&=+").put_some("none", None::<u8>).put("items[0][quantity]", 3);
        assert_eq!(form.encode(), "metadata%5Ba%20b%5D=%C3%A4%26%3D%2B&items%5B0%5D%5Bquantity%5D=3");
        assert_eq!(format!("{form:?}"), r#"["metadata[a b]", "items[0][quantity]"]"#);
    }
}
