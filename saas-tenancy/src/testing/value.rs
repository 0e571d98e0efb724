//! Values for seeds: by type, recognisable where the type is wide enough, and guesses where a check wants something else.

use uuid::Uuid;

use super::catalogue::{Catalogue, Column};

/// Which of the two tenants a row is seeded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Side {
    A,
    B,
}

/// Makes values; no two calls give the same one, as far as the type has room.
#[derive(Debug)]
pub(super) struct Maker {
    /// Tells the seeds of one attack from everything else.
    run: u32,
    made: u32,
}

impl Maker {
    pub(super) const fn new(run: u32) -> Self {
        Self { run, made: 0 }
    }

    /// What the texts of a tenant's rows begin with.
    pub(super) fn marker(&self, side: Side) -> String {
        let side = if side == Side::A { 'a' } else { 'b' };
        format!("seed{side}{:08x}", self.run)
    }

    /// A value of a column's type in PostgreSQL's text form; `None` where the type is not known.
    pub(super) fn value(&mut self, catalogue: &Catalogue, type_oid: i64, typmod: i32, side: Side) -> Option<String> {
        let (base, typmod) = catalogue.base(type_oid, typmod)?;
        self.made += 1;
        let n = self.made;
        if !base.labels.is_empty() {
            return base.labels.get(n as usize % base.labels.len()).cloned();
        }
        if base.element != 0 {
            let element = self.value(catalogue, base.element, typmod, side)?;
            return Some(format!("{{\"{}\"}}", element.replace('\\', "\\\\").replace('"', "\\\"")));
        }
        if base.subtype != 0 {
            let (low, high) =
                (self.value(catalogue, base.subtype, -1, side)?, self.value(catalogue, base.subtype, -1, side)?);
            let range = format!("[\"{low}\",\"{high}\")");
            return Some(if base.kind == "m" { format!("{{{range}}}") } else { range });
        }
        Some(match base.name.as_str() {
            "text" | "varchar" | "bpchar" | "name" | "citext" => self.text(side, length(typmod)),
            "char" => "x".to_owned(),
            "uuid" => {
                Uuid::from_u128((u128::from(self.run) << 96) | (0x4_u128 << 76) | (0x8_u128 << 60) | u128::from(n))
                    .to_string()
            }
            "int2" | "int4" | "int8" | "oid" | "float4" | "float8" | "money" => n.to_string(),
            "numeric" => {
                let whole = if typmod >= 0 { ((typmod - 4) >> 16) - ((typmod - 4) & 0x7ff) } else { 9 };
                (n % 10_u32.saturating_pow(u32::try_from(whole.clamp(0, 9)).unwrap_or(0))).to_string()
            }
            "bool" => n.is_multiple_of(2).to_string(),
            "date" => format!("{}-01-{:02}", 2000 + n / 28, n % 28 + 1),
            "timestamp" => format!("2026-01-15 {:02}:{:02}:00", n / 60 % 24, n % 60),
            "timestamptz" => format!("2026-01-15 {:02}:{:02}:00+00", n / 60 % 24, n % 60),
            "time" => format!("{:02}:{:02}:00", n / 60 % 24, n % 60),
            "timetz" => format!("{:02}:{:02}:00+00", n / 60 % 24, n % 60),
            "interval" => format!("{n} minutes"),
            "json" | "jsonb" => format!("{{\"seed\": \"{}\"}}", self.text(side, 100)),
            "bytea" => format!("\\x{}", hex(&self.text(side, 100))),
            "xml" => format!("<seed>{}</seed>", self.text(side, 100)),
            "inet" | "cidr" => format!("10.{}.{}.0/24", n / 250 % 250, n % 250),
            "macaddr" => format!("02:00:00:00:{:02x}:{:02x}", n / 256 % 256, n % 256),
            "macaddr8" => format!("02:00:00:00:00:00:{:02x}:{:02x}", n / 256 % 256, n % 256),
            "bit" | "varbit" => "1".repeat(usize::try_from(typmod).unwrap_or(1).max(1)),
            "tsvector" | "tsquery" | "ltree" => self.text(side, 100),
            "hstore" => format!("seed=>{}", self.text(side, 100)),
            "point" => format!("({n},{n})"),
            "lseg" | "box" | "path" | "polygon" => format!("(({n},{n}),({},{}))", n + 1, n + 1),
            "line" => format!("{{1,1,{n}}}"),
            "circle" => format!("<({n},{n}),1>"),
            "pg_lsn" => format!("0/{n:X}"),
            "jsonpath" => "$".to_owned(),
            "xid" | "xid8" | "cid" => n.to_string(),
            "tid" => format!("(0,{})", n % 60_000),
            "int2vector" | "oidvector" => (n % 30_000).to_string(),
            "refcursor" => self.text(side, 60),
            "pg_snapshot" | "txid_snapshot" => format!("{n}:{n}:"),
            "regclass" => "pg_catalog.pg_class".to_owned(),
            "regtype" => "pg_catalog.int4".to_owned(),
            "regproc" => "pg_catalog.now".to_owned(),
            "regprocedure" => "pg_catalog.now()".to_owned(),
            "regrole" => "saas_app".to_owned(),
            "regnamespace" => "pg_catalog".to_owned(),
            "regconfig" | "regdictionary" => "pg_catalog.simple".to_owned(),
            _ => return None,
        })
    }

    /// Another instant of the same day, so that it stays in the same partition; any other value as it is.
    pub(super) fn nudge(&mut self, text: &str) -> String {
        self.made += 1;
        text.replacen(" 00:00:00", &format!(" {:02}:{:02}:01", self.made / 60 % 24, self.made % 60), 1)
    }

    /// The end of the text is what differs, so a narrow column keeps that.
    fn text(&self, side: Side, length: usize) -> String {
        let text = format!("{}{:05x}", self.marker(side), self.made);
        text.get(text.len().saturating_sub(length)..).unwrap_or(&text).to_owned()
    }

    /// Values to try in turn for a column that a check refuses: what the check names, lengths it may mean, and what
    /// checks often ask for.
    pub(super) fn guesses(
        &mut self,
        catalogue: &Catalogue,
        column: &Column,
        check: &str,
        side: Side,
    ) -> Vec<Option<String>> {
        let Some((base, typmod)) = catalogue.base(column.type_oid, column.typmod) else { return vec![None] };
        let base = base.name.clone();
        let (quoted, numbers) = constants(check);
        let mut guesses: Vec<String> = Vec::new();
        match base.as_str() {
            "text" | "varchar" | "bpchar" | "citext" | "name" => {
                guesses.extend(quoted);
                for n in numbers.iter().filter_map(|n| usize::try_from(*n).ok()).filter(|n| *n <= 10_000) {
                    let text = self.text(side, 100);
                    // Hexadecimal too: lengths are often those of hashes.
                    guesses.push(hex(&text).chars().cycle().take(n).collect());
                    guesses.push(text.chars().cycle().take(n).collect());
                }
                let word = self.text(side, length(typmod));
                guesses.push(format!("{word}@example.invalid"));
                guesses.push(format!("{word}.example.com"));
                guesses.push(format!("https://example.com/{word}"));
                guesses.extend(
                    ["EUR", "eur", "en", "DE", "a", "A", "abc", "ABC", "1", "0", "+4930123456", "12345", "2026-01-01"]
                        .map(str::to_owned),
                );
            }
            "int2" | "int4" | "int8" | "numeric" | "float4" | "float8" | "money" => {
                guesses.extend(numbers.iter().flat_map(|n| [*n, n + 1, n - 1]).map(|n| n.to_string()));
                guesses.extend(["1", "0", "2", "10", "100", "-1", "1000", "2026"].map(str::to_owned));
            }
            "bool" => guesses.extend(["true", "false"].map(str::to_owned)),
            "date" | "timestamp" | "timestamptz" => {
                guesses.extend(quoted);
                guesses.extend(["2026-01-01", "2100-01-01", "1990-01-01"].map(str::to_owned));
            }
            "json" | "jsonb" => guesses.extend(["{}", "[]", "\"a\"", "1"].map(str::to_owned)),
            "bytea" => {
                let lengths = numbers.iter().filter_map(|n| usize::try_from(*n).ok()).filter(|n| *n <= 10_000);
                guesses.extend(lengths.map(|n| format!("\\x{}", "61".repeat(n))));
            }
            _ => guesses.extend(self.value(catalogue, column.type_oid, column.typmod, side)),
        }
        if let Some(ty) = catalogue.base(column.type_oid, column.typmod) {
            guesses.extend(ty.0.labels.iter().cloned());
            if ty.0.element != 0 {
                guesses.push("{}".to_owned());
            }
        }
        let mut guesses: Vec<Option<String>> = guesses.into_iter().map(Some).collect();
        if !column.not_null {
            guesses.push(None);
        }
        guesses
    }
}

fn length(typmod: i32) -> usize {
    usize::try_from(typmod - 4).ok().filter(|length| *length > 0).unwrap_or(1_000)
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The quoted texts and the whole numbers of an expression.
pub(super) fn constants(expression: &str) -> (Vec<String>, Vec<i64>) {
    let (mut texts, mut numbers) = (Vec::new(), Vec::new());
    for (place, piece) in expression.split('\'').enumerate() {
        if place % 2 == 1 {
            texts.push(piece.to_owned());
        } else {
            let words = piece.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-');
            numbers.extend(words.filter_map(|word| word.parse::<i64>().ok()));
        }
    }
    numbers.extend(texts.iter().filter_map(|text| text.parse::<i64>().ok()).collect::<Vec<_>>());
    (texts, numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_check_names_is_read_from_its_text() {
        let text =
            "CHECK ((state = ANY (ARRAY['open'::text, 'done'::text])) AND (size >= 10) AND char_length(code) = '64')";
        assert_eq!(constants(text), (vec!["open".to_owned(), "done".to_owned(), "64".to_owned()], vec![10, 64]));
        assert_eq!(constants(""), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_narrow_text_keeps_what_differs() {
        let mut maker = Maker::new(1);
        maker.made = 7;
        assert_eq!(maker.text(Side::B, 3), "007");
        assert_eq!(maker.text(Side::B, 100), "seedb0000000100007");
    }
}
