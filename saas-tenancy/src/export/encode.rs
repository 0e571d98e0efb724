//! How PostgreSQL's values become lines: JSON exactly, CSV safely. Pure: text in, bytes out.
//!
//! JSON Lines is the exact form: reading it back gives the stored rows. CSV is for people and their spreadsheets: a cell
//! that a spreadsheet would run as a formula gets a `'` in front, which nothing can tell from one that was stored.

use serde::{Deserialize, Serialize};

/// How a column's values stand in JSON Lines. SQL's NULL is `null`, except in a [`Json`](Self::Json) column, where it
/// leaves the key out, because `null` is a value of such a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Encoding {
    /// `true` or `false`.
    Boolean,
    /// A number that a double holds exactly, or, where it is none, the string `NaN`, `Infinity` or `-Infinity`.
    Number,
    /// A string with all digits of a number that a double might not hold: `bigint`, `numeric`.
    Decimal,
    /// The JSON value itself, with all its digits. Line breaks between its parts are spaces.
    Json,
    /// A string as in RFC 3339, in UTC; PostgreSQL's own text for an instant that RFC 3339 cannot say, such as `infinity`.
    Instant,
    /// A string as in RFC 3339 without its offset, since none is stored; else as [`Instant`](Self::Instant).
    LocalTime,
    /// A string: `\x` and two hexadecimal digits per byte.
    Hex,
    /// PostgreSQL's own text of the value, as a string.
    Text,
}

impl Encoding {
    /// The encoding for a base type of PostgreSQL, by its name in `pg_type`.
    #[must_use]
    pub fn of(base_type: &str) -> Self {
        match base_type {
            "bool" => Self::Boolean,
            "int2" | "int4" | "float4" | "float8" => Self::Number,
            "int8" | "numeric" => Self::Decimal,
            "json" | "jsonb" => Self::Json,
            "timestamptz" => Self::Instant,
            "timestamp" => Self::LocalTime,
            "bytea" => Self::Hex,
            _ => Self::Text,
        }
    }

    /// Whether a value can only be a number, which no spreadsheet runs.
    const fn is_number(self) -> bool {
        match self {
            Self::Number | Self::Decimal => true,
            Self::Boolean | Self::Json | Self::Instant | Self::LocalTime | Self::Hex | Self::Text => false,
        }
    }
}

/// The encoders of one table: keys and header are written once.
#[derive(Debug)]
pub(crate) struct Encoder {
    columns: Vec<(String, Encoding)>,
}

impl Encoder {
    pub(crate) fn new(columns: impl Iterator<Item = (String, Encoding)>) -> Self {
        let keyed = columns.map(|(name, encoding)| {
            let mut key = Vec::new();
            json_string(&mut key, &name);
            key.push(b':');
            // Built from a str and ASCII.
            (String::from_utf8_lossy(&key).into_owned(), encoding)
        });
        Self { columns: keyed.collect() }
    }

    /// Appends one line of JSON.
    pub(crate) fn json_line<'v>(&self, out: &mut Vec<u8>, values: impl Iterator<Item = Option<&'v str>>) {
        out.push(b'{');
        let mut first = true;
        for ((key, encoding), value) in self.columns.iter().zip(values) {
            if value.is_none() && *encoding == Encoding::Json {
                continue;
            }
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            out.extend_from_slice(key.as_bytes());
            match value {
                Some(text) => json_value(out, *encoding, text),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.extend_from_slice(b"}\n");
    }

    /// Appends one record of CSV (RFC 4180). NULL is an empty cell, the empty string is `""`.
    pub(crate) fn csv_record<'v>(&self, out: &mut Vec<u8>, values: impl Iterator<Item = Option<&'v str>>) {
        let encodings = self.columns.iter().map(|(_, encoding)| *encoding);
        csv_line(out, encodings.zip(values).map(|(encoding, value)| (encoding.is_number(), value)));
    }
}

/// Appends the header of a CSV file.
pub(crate) fn csv_header<'v>(out: &mut Vec<u8>, names: impl Iterator<Item = &'v str>) {
    csv_line(out, names.map(|name| (false, Some(name))));
}

fn json_value(out: &mut Vec<u8>, encoding: Encoding, text: &str) {
    match encoding {
        Encoding::Boolean => out.extend_from_slice(if text == "t" { b"true" } else { b"false" }),
        // NaN and the infinities; PostgreSQL writes every other number as JSON does.
        Encoding::Number if text.ends_with(|last: char| !last.is_ascii_digit()) => json_string(out, text),
        Encoding::Number => out.extend_from_slice(text.as_bytes()),
        Encoding::Json => out.extend(text.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte })),
        Encoding::Instant | Encoding::LocalTime => match rfc3339(encoding, text) {
            Some(instant) => json_string(out, &instant),
            None => json_string(out, text),
        },
        Encoding::Decimal | Encoding::Hex | Encoding::Text => json_string(out, text),
    }
}

/// `2026-01-15 12:00:00.5+00` as RFC 3339; `None` for what has another form: infinities, years before 1 or after 9999.
fn rfc3339(encoding: Encoding, text: &str) -> Option<String> {
    let (date, time) = text.split_once(' ')?;
    if date.len() != "2026-01-15".len() || time.contains(' ') {
        return None;
    }
    match encoding {
        Encoding::Instant => time.strip_suffix("+00").map(|time| format!("{date}T{time}Z")),
        _ => Some(format!("{date}T{time}")),
    }
}

fn json_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((byte, after)) = special.split_first() else { break };
        match *byte {
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn csv_line<'v>(out: &mut Vec<u8>, cells: impl Iterator<Item = (bool, Option<&'v str>)>) {
    for (place, (is_number, value)) in cells.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        let Some(text) = value else { continue };
        let is_formula = !is_number && text.starts_with(FORMULA);
        // `;` and tab: what other countries' spreadsheets take for the separator.
        let needs_quotes = text.is_empty() || text.contains(['"', ',', ';', '\t', '\r', '\n']);
        if needs_quotes {
            out.push(b'"');
        }
        if is_formula {
            out.push(b'\'');
        }
        for (place, piece) in text.split('"').enumerate() {
            if place > 0 {
                out.extend_from_slice(b"\"\"");
            }
            out.extend_from_slice(piece.as_bytes());
        }
        if needs_quotes {
            out.push(b'"');
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// What makes a spreadsheet run a cell (OWASP, "CSV Injection"), the full-width forms included.
const FORMULA: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(encoding: Encoding, value: Option<&str>) -> String {
        let mut out = Vec::new();
        Encoder::new([("a".to_owned(), encoding)].into_iter()).json_line(&mut out, [value].into_iter());
        String::from_utf8(out).unwrap()
    }

    fn csv(encoding: Encoding, value: Option<&str>) -> String {
        let mut out = Vec::new();
        let columns = [("a".to_owned(), encoding), ("b".to_owned(), Encoding::Text)];
        Encoder::new(columns.into_iter()).csv_record(&mut out, [value, Some("z")].into_iter());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_keeps_every_digit_and_tells_null_from_null() {
        for (encoding, value, line) in [
            (Encoding::of("bool"), Some("t"), "{\"a\":true}\n"),
            (Encoding::of("int4"), Some("-7"), "{\"a\":-7}\n"),
            (Encoding::of("int8"), Some("9007199254740993"), "{\"a\":\"9007199254740993\"}\n"),
            (Encoding::of("numeric"), Some("0.10"), "{\"a\":\"0.10\"}\n"),
            (Encoding::of("numeric"), Some("NaN"), "{\"a\":\"NaN\"}\n"),
            (Encoding::of("float8"), Some("1e+20"), "{\"a\":1e+20}\n"),
            (Encoding::of("float8"), Some("-Infinity"), "{\"a\":\"-Infinity\"}\n"),
            (Encoding::of("float4"), Some("NaN"), "{\"a\":\"NaN\"}\n"),
            (Encoding::of("text"), None, "{\"a\":null}\n"),
            (Encoding::of("jsonb"), None, "{}\n"),
            (Encoding::of("jsonb"), Some("null"), "{\"a\":null}\n"),
            (
                Encoding::of("json"),
                Some("{\r\n\"n\": 1.000000000000000000001}"),
                "{\"a\":{  \"n\": 1.000000000000000000001}}\n",
            ),
            (Encoding::of("timestamptz"), Some("2026-01-15 12:00:00.5+00"), "{\"a\":\"2026-01-15T12:00:00.5Z\"}\n"),
            (Encoding::of("timestamp"), Some("2026-01-15 12:00:00"), "{\"a\":\"2026-01-15T12:00:00\"}\n"),
            (Encoding::of("timestamptz"), Some("infinity"), "{\"a\":\"infinity\"}\n"),
            (Encoding::of("timestamptz"), Some("0044-03-15 12:00:00+00 BC"), "{\"a\":\"0044-03-15 12:00:00+00 BC\"}\n"),
            (Encoding::of("timestamptz"), Some("12026-01-15 12:00:00+00"), "{\"a\":\"12026-01-15 12:00:00+00\"}\n"),
            (Encoding::of("bytea"), Some("\\x00ff"), "{\"a\":\"\\\\x00ff\"}\n"),
            (Encoding::of("text"), Some("a\"\n\u{1}é"), "{\"a\":\"a\\\"\\n\\u0001é\"}\n"),
        ] {
            assert_eq!(json(encoding, value), line);
        }
    }

    #[test]
    fn a_spreadsheet_runs_no_cell() {
        for (value, record) in [
            ("=1+1", "'=1+1,z\r\n"),
            ("+1", "'+1,z\r\n"),
            ("-1", "'-1,z\r\n"),
            ("@SUM(A1)", "'@SUM(A1),z\r\n"),
            ("\t=1", "\"'\t=1\",z\r\n"),
            ("\r=1", "\"'\r=1\",z\r\n"),
            ("＝1", "'＝1,z\r\n"),
            ("=cmd|' /C calc'!A0,\"x\"", "\"'=cmd|' /C calc'!A0,\"\"x\"\"\",z\r\n"),
            ("plain", "plain,z\r\n"),
        ] {
            assert_eq!(csv(Encoding::Text, Some(value)), record);
        }
        for number in [Encoding::of("int4"), Encoding::of("numeric")] {
            assert_eq!(csv(number, Some("-1")), "-1,z\r\n", "a number stays one");
        }
        let mut header = Vec::new();
        csv_header(&mut header, ["=1+1", "b"].into_iter());
        assert_eq!(header, b"'=1+1,b\r\n");
    }

    #[test]
    fn csv_tells_null_from_the_empty_string() {
        assert_eq!(csv(Encoding::Text, None), ",z\r\n");
        assert_eq!(csv(Encoding::Text, Some("")), "\"\",z\r\n");
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_json_and_stays_one_line(text in any::<String>()) {
            let line = json(Encoding::Text, Some(&text));
            prop_assert_eq!(line.matches('\n').count(), 1);
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(read["a"].as_str(), Some(text.as_str()));
        }

        #[test]
        fn any_text_is_one_csv_cell_that_starts_harmlessly(text in any::<String>()) {
            let record = csv(Encoding::Text, Some(&text));
            let (cell, rest) = unquote(&record);
            prop_assert_eq!(rest, ",z\r\n");
            prop_assert!(!cell.starts_with(FORMULA));
            prop_assert_eq!(cell.strip_prefix('\'').filter(|_| text.starts_with(FORMULA)).unwrap_or(&cell), &text);
        }
    }

    /// The first cell of a record, read as RFC 4180 says, and what follows.
    fn unquote(record: &str) -> (String, &str) {
        let Some(quoted) = record.strip_prefix('"') else {
            let end = record.find(',').unwrap();
            return (record[..end].to_owned(), &record[end..]);
        };
        let (mut cell, mut rest) = (String::new(), quoted);
        loop {
            let (before, after) = rest.split_once('"').unwrap();
            cell += before;
            match after.strip_prefix('"') {
                Some(more) => (cell, rest) = (cell + "\"", more),
                None => return (cell, after),
            }
        }
    }
}
