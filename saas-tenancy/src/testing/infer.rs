//! Answers that change when another tenant's rows go away: views, functions, counts, whatever they are made of.
//!
//! The same questions are asked twice while B has rows and once when it has none. An answer that was the same twice and
//! differs the third time depends on B.

use saas_core::CoreError;

use super::{
    catalogue::{Function, Kind, Relation},
    effects::Watch,
    report::Attack,
    rows::is_bound,
    session::{Answer, Who, literal},
    stage::{Stage, script},
    value::Side,
};

/// How many sets of arguments a function is called with.
const CALLS: usize = 6;

/// One question, as somebody, and the object it is about.
#[derive(Debug, Clone)]
pub(super) struct Question {
    who: Who,
    object: String,
    text: String,
    /// A change, whose answer is how many rows it touched.
    is_change: bool,
    /// Its object runs with other rights than the caller's: an answer that varies by itself is worth a remark.
    is_elevated: bool,
}

type Answers = Vec<Answer<String>>;

impl Stage {
    pub(super) async fn questions(&mut self) -> Vec<Question> {
        let mut questions = Vec::new();
        for relation in self.relations(|r| r.kind != Kind::Sequence && r.audience.is_none() && r.is_reachable) {
            let is_elevated =
                relation.kind == Kind::MaterializedView || (relation.kind == Kind::View && !relation.is_invoker);
            for who in self.strangers() {
                for (text, is_change) in about(&relation) {
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
    fn calls(&mut self, function: &Function) -> Vec<String> {
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

    /// What elevated functions do, while B still has rows.
    pub(super) async fn attack_functions(&mut self, watch: &Watch) -> Result<(), CoreError> {
        for function in self.catalogue.functions.clone().into_iter().filter(|f| f.is_elevated) {
            for call in self.calls(&function) {
                self.observe_effects(watch, &function.signature, &call).await?;
            }
        }
        Ok(())
    }

    /// Materialized views are as old as their last refresh.
    pub(super) async fn refresh(&mut self) -> Result<(), CoreError> {
        for view in self.relations(|r| r.kind == Kind::MaterializedView) {
            if let Err(refusal) = self.owner.step(&format!("refresh materialized view {}", view.name)).await? {
                self.report.unproven(&view.name, format!("could not be refreshed: {}", refusal.brief()));
            }
        }
        Ok(())
    }

    pub(super) async fn answers(&mut self, questions: &[Question]) -> Result<Answers, CoreError> {
        let mut answers = Vec::new();
        for question in questions {
            answers.push(if question.is_change {
                self.change(question.who, &question.text).await?.map(|rows| format!("{rows} rows"))
            } else {
                self.ask(question.who, &question.text).await?.map(|rows| rows.join(", "))
            });
        }
        Ok(answers)
    }

    /// Compares the answers with B's rows, once more with them, and without them.
    pub(super) fn infer(&mut self, questions: &[Question], first: &Answers, again: &Answers, without: &Answers) {
        let marks = self.marks_of_b();
        let named = |text: &str| marks.iter().any(|mark| text.contains(mark));
        let mut findings = Vec::new();
        for (((question, first), again), without) in questions.iter().zip(first).zip(again).zip(without) {
            if let Some(text) = first.as_ref().ok().filter(|text| named(text) && !named(&question.text)) {
                findings.push((question, Attack::Select, format!("the answer holds B's data: {}", shortened(text))));
            } else if first != again {
                if question.is_elevated && is_bound(question.who) {
                    let reason = "answers differently each time, so it cannot be told whether the answer depends on other tenants";
                    self.report.unproven(&question.object, reason);
                }
            } else if first != without {
                let (with, without) = (described(first), described(without));
                let evidence = format!("the answer changed when B's rows were removed: from {with} to {without}");
                findings.push((question, Attack::Inference, evidence));
            }
        }
        for (question, attack, evidence) in findings {
            self.report.leak(&question.object, attack, script(question.who, &question.text), evidence);
        }
    }

    /// Removes the rows of one side, past every trigger and key.
    pub(super) async fn remove(&mut self, side: Side) -> Result<(), CoreError> {
        let tables = self.relations(|r| {
            r.kind.is_table() && r.parent.is_none() && (r.tenant().is_some() || self.seeds.tables.contains(&r.oid))
        });
        let mut script = "begin; set local session_replication_role = replica".to_owned();
        for table in &tables {
            if let Some(condition) = self.rows_of(table, side) {
                let text = if table.tenant().is_some() { condition.replacen(" = ", "::text = ", 1) } else { condition };
                script += &format!("; delete from {} where {text}", table.name);
            }
        }
        self.owner.must(&format!("{script}; commit")).await
    }
}

/// What is asked about a table or a view: all that can be read of it, and how many rows a change would touch.
pub(super) fn about(relation: &Relation) -> Vec<(String, bool)> {
    let mut questions = vec![(format!("delete from {}", relation.name), true)];
    if let Some(contents) = contents(relation) {
        questions.push((contents, false));
    }
    if let Some(column) =
        relation.columns.iter().find(|c| c.may_update && c.may_select && !c.is_generated && !c.is_identity)
    {
        questions.push((format!("update {} set {name} = {name}", relation.name, name = column.name), true));
    }
    questions
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

fn described(answer: &Answer<String>) -> String {
    match answer {
        Ok(text) => format!("`{}`", shortened(text)),
        Err(refusal) => format!("error {}", refusal.brief()),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}
