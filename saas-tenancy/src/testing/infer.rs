//! Answers that change when another tenant's rows go away: views, functions, counts, whatever they are made of.
//!
//! The same questions are asked twice while B has rows and once when it has none. An answer that was the same twice and
//! differs the third time depends on B.

use saas_core::CoreError;

use super::{
    catalogue::Kind,
    effects::Watch,
    questions::Question,
    report::Attack,
    rows::is_bound,
    session::Answer,
    stage::{Stage, script},
    value::Side,
};

type Answers = Vec<Answer<String>>;

impl Stage {
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
        for object in unanswered(questions, first) {
            let reason = "runs with other rights than its caller's, and refused every call that was tried: call it in a test of your own";
            self.report.unproven(&object, reason);
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

/// Functions with rights of their own of which no call came through: whether one leaks was not seen. What a login may not
/// do at all is an answer.
fn unanswered(questions: &[Question], answers: &Answers) -> Vec<String> {
    let is_silent = |object: &str| {
        let of =
            || questions.iter().zip(answers).filter(|(q, _)| q.is_elevated && q.object == object && is_bound(q.who));
        of().all(|(_, answer)| answer.as_ref().is_err_and(|refusal| !refusal.is_denied()))
    };
    let mut objects: Vec<String> = questions
        .iter()
        .filter(|q| q.is_elevated && is_bound(q.who) && is_silent(&q.object))
        .map(|q| q.object.clone())
        .collect();
    objects.dedup();
    objects
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
