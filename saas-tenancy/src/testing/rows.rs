//! Reads of tables and views, named directly, and writes of what belongs to no tenant.

use saas_core::CoreError;

use super::{
    catalogue::{Audience, Kind, Relation},
    report::Attack,
    session::{Who, literal},
    stage::{Stage, script},
    value::Side,
};

impl Stage {
    pub(super) async fn attack_rows(&mut self) -> Result<(), CoreError> {
        for relation in self.relations(|r| r.kind != Kind::Sequence) {
            match relation.audience {
                Some(audience) => self.attack_global(&relation, audience).await?,
                None => {
                    self.attack_reading(&relation).await?;
                    self.attack_changing(&relation).await?;
                    self.attack_inserting(&relation).await?;
                    if relation.kind.is_table() {
                        self.attack_moving(&relation).await?;
                        self.attack_at_large(&relation).await?;
                        self.attack_upserting(&relation).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn attack_reading(&mut self, relation: &Relation) -> Result<(), CoreError> {
        let Some(theirs) = self.rows_of(relation, Side::B) else { return Ok(()) };
        let question = format!("select count(*)::text from {} where {theirs}", relation.name);
        for who in self.strangers() {
            self.count(who, Attack::Select, &relation.name, &question).await?;
            let cursor = format!("declare probe cursor for {question}; fetch all from probe");
            self.count(who, Attack::Cursor, &relation.name, &cursor).await?;
        }
        let off = format!("set local row_security = off; {question}");
        self.count(self.as_a(), Attack::RowSecurityOff, &relation.name, &off).await
    }

    /// What belongs to no tenant is not written by one, and what is the system's is not read either.
    async fn attack_global(&mut self, relation: &Relation, audience: Audience) -> Result<(), CoreError> {
        let who = self.as_a();
        if audience == Audience::System {
            let question = format!("select count(*)::text from {}", relation.name);
            if self.ask(who, &question).await?.is_ok() {
                self.report.leak(
                    &relation.name,
                    Attack::Select,
                    script(who, &question),
                    "a table for the system only can be read",
                );
            }
        }
        let mut attempts =
            vec![format!("insert into {} default values", relation.name), format!("delete from {}", relation.name)];
        attempts.extend(
            self.harmless_column(relation)
                .map(|c| format!("update {} set {name} = {name}", relation.name, name = c.name)),
        );
        for statement in attempts {
            let written = match self.change(who, &statement).await? {
                Ok(rows) => rows > 0,
                // A missing value or a constraint is asked of someone who may write.
                Err(refusal) => refusal.is_constraint() || refusal.code == "23502",
            };
            if written {
                let evidence = "one tenant writes what belongs to no tenant";
                self.report.leak(&relation.name, Attack::WriteGlobal, script(who, &statement), evidence);
            }
        }
        Ok(())
    }

    /// Marks of B in anything that A or nobody can read, whatever its columns are called.
    pub(super) async fn attack_by_marks(&mut self) -> Result<(), CoreError> {
        for relation in self.relations(|r| r.kind != Kind::Sequence && r.audience.is_none()) {
            let Some(question) = marks(&relation, &self.marks_of_b()) else { continue };
            for who in self.strangers() {
                self.count(who, Attack::Select, &relation.name, &question).await?;
            }
        }
        Ok(())
    }
}

/// Counts the rows in which one of the marks stands.
pub(super) fn marks(relation: &Relation, marks: &[String]) -> Option<String> {
    let columns = relation.readable();
    if columns.is_empty() {
        return None;
    }
    let pattern = literal(Some(&marks.join("|")));
    Some(format!(
        "select count(*)::text from {} r where row(r.{})::text ~ {pattern}",
        relation.name,
        columns.join(", r.")
    ))
}

/// Whether somebody is bound at all.
pub(super) const fn is_bound(who: Who) -> bool {
    matches!(who, Who::Tenant(_))
}
