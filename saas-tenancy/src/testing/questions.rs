//! What is asked with B's rows and without them: of tables, views and functions, by reading, by changing, by storing.

use super::{
    catalogue::{Column, Function, Kind, Relation},
    seed::Values,
    session::{Who, literal},
    stage::Stage,
    statement::insert,
    value::Side,
};

/// How many sets of arguments a function is called with.
const CALLS: usize = 6;

/// One question, as somebody, and the object it is about.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) who: Who,
    pub(super) object: String,
    pub(super) text: String,
    /// A change, whose answer is how many rows it touched.
    pub(super) is_change: bool,
    /// Its object runs with other rights than the caller's: an answer that varies by itself is worth a remark.
    pub(super) is_elevated: bool,
}

impl Stage {
    pub(super) async fn questions(&mut self) -> Vec<Question> {
        let mut questions = Vec::new();
        for relation in self.relations(|r| r.kind != Kind::Sequence && r.audience.is_none() && r.is_reachable) {
            let is_elevated =
                relation.kind == Kind::MaterializedView || (relation.kind == Kind::View && !relation.is_invoker);
            if relation.kind.is_table() && relation.parent.is_none() {
                for (text, is_change) in self.storing(&relation) {
                    let (who, object) = (self.as_a(), relation.name.clone());
                    questions.push(Question { who, object, text, is_change, is_elevated: false });
                }
            }
            for who in self.strangers() {
                for (text, is_change) in self.about(&relation) {
                    questions.push(Question { who, object: relation.name.clone(), text, is_change, is_elevated });
                }
            }
        }
        for function in self.catalogue.functions.clone() {
            for text in self.calls(&function) {
                for who in self.strangers() {
                    let object = function.signature.clone();
                    questions.push(Question {
                        who,
                        object,
                        text: text.clone(),
                        is_change: false,
                        is_elevated: function.is_elevated,
                    });
                }
            }
        }
        questions
    }

    /// Ways to call a function. An invoker's can do no more than its caller: those with arguments are left out.
    pub(super) fn calls(&mut self, function: &Function) -> Vec<String> {
        if !function.is_elevated && function.arguments.len() > function.defaults {
            return Vec::new();
        }
        let mut calls: Vec<String> = Vec::new();
        for variant in 0..if function.arguments.is_empty() { 1 } else { CALLS } {
            let mut arguments = Vec::new();
            for (oid, type_name) in &function.arguments {
                let Some(value) = self.argument(*oid, variant) else {
                    if function.is_elevated {
                        let reason = format!(
                            "runs with other rights than its caller's, and no value of type {type_name} can be made"
                        );
                        self.report.unproven(&function.signature, reason);
                    }
                    return Vec::new();
                };
                arguments.push(format!("{}::{type_name}", literal(Some(&value))));
            }
            let call = format!("{}({})", function.name, arguments.join(", "));
            let text =
                if function.is_procedure { format!("call {call}") } else { format!("select f::text from {call} f") };
            if !calls.contains(&text) {
                calls.push(text);
            }
        }
        calls
    }

    /// B's own values first: its id, ids and texts of its rows.
    fn argument(&mut self, oid: i64, variant: usize) -> Option<String> {
        let base = self.catalogue.base(oid, -1)?.0.name.clone();
        let mut known = Vec::new();
        if base == "uuid" {
            known.push(self.seeds.b.to_string());
        }
        for relation in
            self.catalogue.relations.iter().filter(|r| r.kind.is_table() && r.parent.is_none() && r.schema != "saas")
        {
            let Some(row) = self.seeds.row(&self.catalogue, relation, Side::B) else { continue };
            let of_type =
                |c: &&super::catalogue::Column| self.catalogue.base(c.type_oid, -1).is_some_and(|t| t.0.name == base);
            known.extend(
                relation.columns.iter().filter(of_type).filter_map(|c| row.values.get(&c.att).cloned().flatten()),
            );
        }
        let mut distinct: Vec<String> = Vec::new();
        for value in known {
            if !distinct.contains(&value) {
                distinct.push(value);
            }
        }
        match distinct.get(variant).or_else(|| distinct.first()) {
            Some(value) => Some(value.clone()),
            None => self.seeds.maker.value(&self.catalogue, oid, -1, Side::B),
        }
    }

    /// What is asked about a table or a view: all that can be read of it, and how many rows a change would touch.
    fn about(&self, relation: &Relation) -> Vec<(String, bool)> {
        let mut questions = vec![(format!("delete from {}", relation.name), true)];
        if let Some(contents) = contents(relation) {
            questions.push((contents, false));
        }
        if let Some(column) =
            relation.columns.iter().find(|c| c.may_update && c.may_select && !c.is_generated && !c.is_identity)
        {
            questions.push((format!("update {} set {name} = {name}", relation.name, name = column.name), true));
        }
        if relation.kind == Kind::View && !relation.is_invoker {
            questions.extend(self.error_of(relation).map(|text| (text, false)));
        }
        questions
    }

    /// A condition that fails on B's rows, with their text in the error, where it is asked before the view's own.
    fn error_of(&self, view: &Relation) -> Option<String> {
        let [_, mark] = self.marks_of_b();
        let text = view
            .columns
            .iter()
            .filter(|c| c.may_select && matches!(c.type_name.as_str(), "text" | "character varying"));
        let fails: Vec<String> = text
            .map(|c| format!("pg_catalog.substring(r.{}, '{mark}.*')::pg_catalog.regclass is not null", c.name))
            .collect();
        (!fails.is_empty()).then(|| {
            // No index may keep the rows away: whether one does is the planner's affair, and changes.
            format!(
                "set local enable_indexscan = off; set local enable_indexonlyscan = off; set local enable_bitmapscan = off; \
                 select count(*)::text from {} r where {}",
                view.name,
                fails.join(" or ")
            )
        })
    }

    /// What storing tells: the values that a row has afterwards, and whether B's values are accepted in a row of A's own.
    fn storing(&mut self, relation: &Relation) -> Vec<(String, bool)> {
        let mut questions = Vec::new();
        if let Some(own) = self.seeds.renewed(&self.catalogue, relation, Side::A) {
            let is_given = |c: &&Column| own.contains_key(&c.att) && c.may_select && !c.type_name.starts_with("time");
            let given: Vec<&str> = relation.columns.iter().filter(is_given).map(|c| c.name.as_str()).collect();
            if !given.is_empty() {
                let statement = insert(&format!("{} as r", relation.name), relation, &own);
                questions.push((format!("{statement} returning row(r.{})::text", given.join(", r.")), false));
            }
            if let Some(row) = self.seeds.row(&self.catalogue, relation, Side::B) {
                let links = self.seeds.links(&self.catalogue, relation, Side::A);
                let keys: Vec<i16> =
                    self.catalogue.keys_of(relation.oid).flat_map(|key| key.columns.iter().copied()).collect();
                let is_copied = |att: &i16| {
                    own.contains_key(att)
                        && !links.contains_key(att)
                        && !keys.contains(att)
                        && !relation.partition_key.contains(att)
                };
                let copied = row.values.iter().filter(|(att, _)| is_copied(att)).map(|(att, v)| (*att, v.clone()));
                let twin: Values = own.clone().into_iter().chain(copied).collect();
                questions.push((insert(&relation.name, relation, &twin), true));
            }
        }
        questions
    }
}

/// The number of rows and a digest of them.
pub(super) fn contents(relation: &Relation) -> Option<String> {
    let columns = relation.readable();
    (!columns.is_empty()).then(|| {
        format!(
            "select count(*) || ' rows ' || coalesce(md5(string_agg(s.image, '|' order by s.image)), '') \
             from (select row(r.{})::text as image from {} r) s",
            columns.join(", r."),
            relation.name
        )
    })
}
