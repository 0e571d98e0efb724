//! Reads typed fields out of a parsed TOML document and keeps where each one stood.

use std::{fmt::Display, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::fault::Faults;

/// A value and where it stands in the file.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// A table of the file under its path. Every field that is read is ticked off; [`Section::finish`] reports the rest.
#[derive(Debug)]
pub(super) struct Section<'a, 'i> {
    table: &'a DeTable<'i>,
    path: String,
    span: Range<usize>,
    known: Vec<&'static str>,
}

impl<'a, 'i> Section<'a, 'i> {
    pub(super) fn root(table: &'a DeTable<'i>) -> Self {
        Self { table, path: String::new(), span: 0..0, known: Vec::new() }
    }

    /// A section for the table under `name`, or a fault where something else stands there.
    pub(super) fn of(
        path: String,
        at: Range<usize>,
        value: &'a Spanned<DeValue<'i>>,
        faults: &mut Faults<'_>,
    ) -> Option<Self> {
        if let DeValue::Table(table) = value.get_ref() {
            return Some(Self { table, path, span: at, known: Vec::new() });
        }
        faults.add(
            value.span(),
            path,
            format!("is {}, not a table", type_of(value.get_ref())),
            "write a table of fields",
        );
        None
    }

    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    pub(super) fn path_of(&self, name: impl Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// Text that `parse` accepts. `None` where it is absent or was reported.
    pub(super) fn text<T, E: Display>(
        &mut self,
        faults: &mut Faults<'_>,
        name: &'static str,
        remedy: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<Located<T>> {
        let (span, value) = self.field(name)?;
        let DeValue::String(text) = value else {
            faults.add(span, self.path_of(name), format!("is {}, not text", type_of(value)), remedy);
            return None;
        };
        match parse(text) {
            Ok(value) => Some(Located { value, span }),
            Err(why) => {
                faults.add(span, self.path_of(name), why.to_string(), remedy);
                None
            }
        }
    }

    /// One of the words of a closed list.
    pub(super) fn choice<T: Copy>(
        &mut self,
        faults: &mut Faults<'_>,
        name: &'static str,
        choices: &[(&str, T)],
    ) -> Option<Located<T>> {
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        let remedy = format!("write {}", words.join(" or "));
        self.text(faults, name, &remedy, |text| {
            let known = choices.iter().find(|(word, _)| *word == text);
            known.map(|(_, value)| *value).ok_or_else(|| format!("is {:?}, which is none of its values", shorten(text)))
        })
    }

    pub(super) fn flag(&mut self, faults: &mut Faults<'_>, name: &'static str) -> Option<bool> {
        let (span, value) = self.field(name)?;
        if let DeValue::Boolean(flag) = value {
            return Some(*flag);
        }
        faults.add(span, self.path_of(name), format!("is {}, not a boolean", type_of(value)), "write true or false");
        None
    }

    pub(super) fn number(
        &mut self,
        faults: &mut Faults<'_>,
        name: &'static str,
        min: u64,
        max: u64,
    ) -> Option<Located<u64>> {
        let (span, value) = self.field(name)?;
        let path = self.path_of(name);
        number_within(faults, &path, span.clone(), value, min, max).map(|value| Located { value, span })
    }

    /// The elements of an array, unread. Empty where it is absent or was reported.
    pub(super) fn array(&mut self, faults: &mut Faults<'_>, name: &'static str) -> Vec<&'a Spanned<DeValue<'i>>> {
        let Some((span, value)) = self.field(name) else { return Vec::new() };
        if let DeValue::Array(items) = value {
            return items.iter().collect();
        }
        faults.add(span, self.path_of(name), format!("is {}, not an array", type_of(value)), "write a list in [ ]");
        Vec::new()
    }

    /// A list of texts, each of them once and of 1 to 64 characters. Empty where it is absent or was reported.
    pub(super) fn texts(&mut self, faults: &mut Faults<'_>, name: &'static str, remedy: &str) -> Box<[Box<str>]> {
        let mut texts: Vec<Box<str>> = Vec::new();
        for value in self.array(faults, name) {
            let why = match value.get_ref() {
                DeValue::String(text) if texts.iter().any(|seen| **seen == **text) => {
                    format!("holds {:?} twice", shorten(text))
                }
                DeValue::String(text) if (1..=64).contains(&text.chars().count()) && !text.contains('\0') => {
                    texts.push(text.as_ref().into());
                    continue;
                }
                DeValue::String(text) => format!("holds {:?}, not 1 to 64 characters", shorten(text)),
                other => format!("holds {}, not text", type_of(other)),
            };
            faults.add(value.span(), self.path_of(name), why, remedy);
        }
        texts.into()
    }

    /// A table with fields of its own. `None` where it is absent or was reported.
    pub(super) fn table(&mut self, faults: &mut Faults<'_>, name: &'static str) -> Option<Section<'a, 'i>> {
        self.known.push(name);
        let value = self.table.get(name)?;
        Section::of(self.path_of(name), value.span(), value, faults)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// The entries of a table whose keys people choose. Empty where it is absent or was reported.
    pub(super) fn entries(&mut self, faults: &mut Faults<'_>, name: &'static str) -> Vec<Entry<'a, 'i>> {
        let Some((span, value)) = self.field(name) else { return Vec::new() };
        let path = self.path_of(name);
        let DeValue::Table(table) = value else {
            faults.add(span, path, format!("is {}, not a table", type_of(value)), "write a table of names");
            return Vec::new();
        };
        let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'i>>)| {
            let name: &'a str = AsRef::<str>::as_ref(Spanned::<std::borrow::Cow<'i, str>>::get_ref(key));
            Entry { path: format!("{path}.{}", shorten(name)), name, at: key.span(), value }
        };
        table.iter().map(entry).collect()
    }

    /// A raw field, for values of more than one type.
    pub(super) fn field(&mut self, name: &'static str) -> Option<(Range<usize>, &'a DeValue<'i>)> {
        self.known.push(name);
        let value = self.table.get(name)?;
        Some((value.span(), value.get_ref()))
    }

    /// Lets a table stand that somebody else reads.
    pub(super) fn leave(&mut self, name: &'static str) {
        self.known.push(name);
    }

    pub(super) fn missing(&self, faults: &mut Faults<'_>, name: &'static str, remedy: &str) {
        if !self.table.contains_key(name) {
            faults.add(self.span(), self.path_of(name), "is missing", remedy);
        }
    }

    /// Reports every key that nothing asked for.
    pub(super) fn finish(self, faults: &mut Faults<'_>) {
        for (key, _) in self.table.iter() {
            if !self.known.contains(&AsRef::<str>::as_ref(key.get_ref())) {
                let remedy = format!("remove it, or write one of {}", self.known.join(", "));
                faults.add(key.span(), self.path_of(shorten(key.get_ref())), "is not a known key", remedy);
            }
        }
    }
}

/// One entry of a table whose keys people choose.
#[derive(Debug)]
pub(super) struct Entry<'a, 'i> {
    pub(super) path: String,
    pub(super) name: &'a str,
    pub(super) at: Range<usize>,
    pub(super) value: &'a Spanned<DeValue<'i>>,
}

/// A whole number from `min` to `max`.
pub(super) fn number_within(
    faults: &mut Faults<'_>,
    path: &str,
    span: Range<usize>,
    value: &DeValue<'_>,
    min: u64,
    max: u64,
) -> Option<u64> {
    let remedy = format!("write a whole number from {min} to {max}");
    let DeValue::Integer(digits) = value else {
        faults.add(span, path, format!("is {}, not a whole number", type_of(value)), remedy);
        return None;
    };
    let number = u64::from_str_radix(digits.as_str(), digits.radix()).ok().filter(|n| (min..=max).contains(n));
    if number.is_none() {
        faults.add(span, path, format!("is {}, which is out of range", shorten(digits.as_str())), remedy);
    }
    number
}

/// The value's type, with its article.
pub(super) fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The first characters of untrusted text, so that a message stays one line.
pub(super) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        short.push('…');
    }
    short
}
