//! Which values lead a row into each partition.

use super::{
    catalogue::{Catalogue, Relation},
    seed::Values,
};

/// For each leaf partition the values of the key that place a row there; for a plain table, and wherever any value may
/// do, an empty set.
pub(super) fn places(catalogue: &Catalogue, relation: &Relation) -> Vec<Values> {
    let children: Vec<&Relation> = catalogue.relations.iter().filter(|r| r.parent == Some(relation.oid)).collect();
    if children.is_empty() {
        return vec![Values::new()];
    }
    let mut places = Vec::new();
    for child in children {
        let here = place(catalogue, relation, child.bound.as_deref().unwrap_or_default());
        for below in self::places(catalogue, child) {
            let mut all = here.clone();
            all.extend(below);
            places.push(all);
        }
    }
    places
}

/// The numbers are those of the root's columns; a partition's own may differ.
fn place(catalogue: &Catalogue, parent: &Relation, bound: &str) -> Values {
    let root = catalogue.root(parent);
    let columns = parent.partition_key.iter().map(|att| {
        let name = &parent.column(*att)?.name;
        root.columns.iter().find(|c| c.name == *name)
    });
    let lists = bound_lists(bound);
    let (from, to) = (lists.first(), lists.get(1));
    let mut values = Values::new();
    for (at, column) in columns.enumerate() {
        // The tenant is whose row it is; it cannot be chosen.
        let Some(column) = column.filter(|c| !root.is_tenant(c.att)) else { continue };
        let low = from.and_then(|list| list.get(at));
        let value = match low.map(String::as_str) {
            Some("MINVALUE") => to.and_then(|list| list.get(at)).and_then(|high| below(high)),
            Some("NULL") => None,
            Some(text) => Some(text.to_owned()),
            None => None,
        };
        if value.is_some() {
            values.insert(column.att, value);
        }
    }
    values
}

/// A value below an upper bound that excludes itself.
fn below(high: &str) -> Option<String> {
    match high {
        "MAXVALUE" => None,
        number if number.parse::<i64>().is_ok() => number.parse::<i64>().ok().map(|n| (n - 1).to_string()),
        // Texts and dates alike sort below their later fellows; an ancient date is below any date that is in use.
        date if date.starts_with(|c: char| c.is_ascii_digit()) => Some("1000-01-01".to_owned()),
        _ => Some(String::new()),
    }
}

/// The parenthesised lists of `FOR VALUES FROM (…) TO (…)` or `FOR VALUES IN (…)`; none for `WITH (…)` and `DEFAULT`.
fn bound_lists(bound: &str) -> Vec<Vec<String>> {
    if !bound.starts_with("FOR VALUES FROM") && !bound.starts_with("FOR VALUES IN") {
        return Vec::new();
    }
    let mut lists: Vec<Vec<String>> = Vec::new();
    let (mut text, mut quoted) = (String::new(), false);
    let mut letters = bound.chars().peekable();
    let mut inside = false;
    while let Some(letter) = letters.next() {
        match letter {
            '\'' if quoted && letters.peek() == Some(&'\'') => {
                letters.next();
                text.push('\'');
            }
            '\'' => quoted = !quoted,
            _ if quoted => text.push(letter),
            '(' => {
                inside = true;
                lists.push(Vec::new());
                text.clear();
            }
            ',' | ')' if inside => {
                if let Some(list) = lists.last_mut() {
                    list.push(std::mem::take(&mut text));
                }
                inside = letter == ',';
            }
            ' ' => {}
            _ if inside => text.push(letter),
            _ => {}
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_a_bound_are_read_from_its_text() {
        assert_eq!(
            bound_lists("FOR VALUES FROM ('2026-01-01 00:00:00+00', MINVALUE) TO ('2027-01-01 00:00:00+00', 10)"),
            [["2026-01-01 00:00:00+00", "MINVALUE"], ["2027-01-01 00:00:00+00", "10"]]
        );
        assert_eq!(bound_lists("FOR VALUES IN ('it''s', NULL)"), [["it's", "NULL"]]);
        assert!(bound_lists("FOR VALUES WITH (modulus 4, remainder 0)").is_empty());
        assert!(bound_lists("DEFAULT").is_empty());
    }

    #[test]
    fn something_lies_below_an_upper_bound() {
        assert_eq!(below("10").as_deref(), Some("9"));
        assert_eq!(below("2026-01-01").as_deref(), Some("1000-01-01"));
        assert_eq!(below("MAXVALUE"), None);
    }
}
