//! What happens behind a statement: triggers, rules and functions that run with other rights.
//!
//! While A's transaction is open, a second connection looks whether B's rows are locked or changed by it, A looks for
//! B's marks in what it can read, and the server's own counters say whether more rows were written than A can see.

use std::collections::{BTreeSet, HashMap};

use saas_core::CoreError;

use super::{
    catalogue::{Kind, Relation},
    report::Attack,
    session::{Session, literal},
    stage::{Stage, script},
    statement::insert,
    value::Side,
};

/// What is asked before and after.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// As the owner: the versions of B's rows.
    versions: Option<String>,
    /// As A: rows written and rows seen, per table.
    counters: Option<String>,
    /// As A: rows in which B's marks stand, per table.
    marks: Option<String>,
}

impl Stage {
    pub(super) async fn watch(&mut self) -> Result<Watch, CoreError> {
        let tables = self.relations(|r| r.kind.is_table() && r.parent.is_none() && r.audience.is_none());
        let mut versions = Vec::new();
        let (mut counters, mut marks) = (Vec::new(), Vec::new());
        for table in &tables {
            if let Some(theirs) = self.rows_of(table, Side::B).filter(|_| self.seeds.tables.contains(&table.oid)) {
                let name = literal(Some(&table.name));
                versions.push(format!(
                    "select {name} || ' ' || ctid::text || ' ' || xmax::text from {} where {theirs}",
                    table.name
                ));
            }
            let count = format!("select count(*)::text from {}", table.name);
            if self.app.ask(self.as_a(), &count).await?.is_ok() {
                counters.push(format!(
                    "select {} || '|' || (select coalesce(sum(pg_stat_get_xact_tuples_inserted(p) - pg_stat_get_xact_tuples_deleted(p)), 0)
                        from unnest(array[{}]::oid[]) p) || '|' || (select count(*) from {})",
                    literal(Some(&table.name)),
                    self.holders(table).join(", "),
                    table.name
                ));
                if let Some(question) = super::rows::marks(table, &self.marks_of_b()) {
                    marks.push(format!("select {} || '|' || ({question})", literal(Some(&table.name))));
                }
            }
        }
        Ok(Watch {
            versions: prepare(&mut self.owner, "versions", &versions).await?,
            counters: prepare(&mut self.app, "counters", &counters).await?,
            marks: prepare(&mut self.app, "marks", &marks).await?,
        })
    }

    /// The tables that store a table's rows: itself, or its leaf partitions.
    fn holders(&self, table: &Relation) -> Vec<String> {
        let is_below = |r: &&Relation| r.kind == Kind::Table && self.catalogue.root(r).oid == table.oid;
        self.catalogue.relations.iter().filter(is_below).map(|r| r.oid.to_string()).collect()
    }

    /// A's own writes, which must have no effect on B.
    pub(super) async fn attack_side_effects(&mut self, watch: &Watch) -> Result<(), CoreError> {
        let is_passed_on = |r: &Relation| r.kind == Kind::View && !r.is_invoker;
        let has_effects = |r: &Relation| r.audience.is_none() && r.is_reachable && (r.has_effects || is_passed_on(r));
        for relation in self.relations(|r| r.kind.is_table() && r.parent.is_none() && has_effects(r)) {
            let mut statements = Vec::new();
            if let Some(own) = self.seeds.renewed(&self.catalogue, &relation, Side::A) {
                statements.push(insert(&relation.name, &relation, &own));
            }
            if let Some(row) = self.seeds.row(&self.catalogue, &relation, Side::A) {
                let mine = self.exactly(&relation, row);
                if let Some(column) =
                    relation.columns.iter().find(|c| c.may_update && !c.is_generated && !c.is_identity)
                {
                    statements.push(format!(
                        "update {} set {name} = {name} where {mine}",
                        relation.name,
                        name = column.name
                    ));
                }
                statements.push(format!("delete from {} where {mine}", relation.name));
            }
            for statement in statements {
                self.observe_effects(watch, &relation.name, &statement).await?;
            }
        }
        for view in self.relations(|r| r.kind == Kind::View && has_effects(r)) {
            self.observe_view(watch, &view).await?;
        }
        Ok(())
    }

    /// What the rules and the triggers of a view do, of a new row and of whatever A sees in it.
    async fn observe_view(&mut self, watch: &Watch, view: &Relation) -> Result<(), CoreError> {
        let mut statements = vec![format!("delete from {}", view.name)];
        if let Some(source) = self.source_of(view)
            && let Some(mut own) = self.seeds.renewed(&self.catalogue, &source, Side::A)
        {
            let known = |name: &String| view.columns.iter().any(|c| c.name == *name);
            own.retain(|att, _| source.column(*att).is_some_and(|c| known(&c.name)));
            statements.push(insert(&view.name, &source, &own));
        }
        statements.extend(
            view.columns
                .iter()
                .find(|c| c.may_update && c.may_select)
                .map(|c| format!("update {} set {name} = {name}", view.name, name = c.name)),
        );
        for statement in statements {
            self.observe_effects(watch, &view.name, &statement).await?;
        }
        Ok(())
    }

    /// Runs one statement as A and looks at what it did to B.
    pub(super) async fn observe_effects(
        &mut self,
        watch: &Watch,
        object: &str,
        statement: &str,
    ) -> Result<(), CoreError> {
        self.report.probes += 1;
        let who = self.as_a();
        let versions = self.look_behind(watch).await?;
        self.app.must(&who.binding()).await?;
        let before = self.read_inside(watch.counters.as_deref()).await?;
        let marked = self.read_inside(watch.marks.as_deref()).await?;
        let mut evidence = Vec::new();
        if self.app.step(statement).await?.is_ok() {
            let after = self.read_inside(watch.counters.as_deref()).await?;
            for (table, unseen) in unseen(&before, &after) {
                evidence.push(format!("{unseen} rows were written to {table} that A cannot see"));
            }
            let now = self.read_inside(watch.marks.as_deref()).await?;
            for table in grown(&marked, &now) {
                evidence.push(format!("B's data now stands in {table}, where A reads it"));
            }
            let touched: BTreeSet<String> = self.look_behind(watch).await?.into_iter().collect();
            for version in versions.iter().filter(|version| !touched.contains(*version)) {
                let table = version.split(" (").next().unwrap_or(version);
                evidence.push(format!("a row of B's in {table} was locked or changed"));
            }
        }
        self.app.rollback().await?;
        for evidence in evidence {
            self.report.leak(object, Attack::SideEffect, script(who, statement), evidence);
        }
        Ok(())
    }

    async fn look_behind(&mut self, watch: &Watch) -> Result<Vec<String>, CoreError> {
        match &watch.versions {
            Some(question) => self.owner.must_read(question).await,
            None => Ok(Vec::new()),
        }
    }

    async fn read_inside(&mut self, question: Option<&str>) -> Result<Vec<String>, CoreError> {
        match question {
            Some(question) => Ok(self.app.read(question).await?.unwrap_or_default()),
            None => Ok(Vec::new()),
        }
    }
}

/// Plans a long question once. Everything that runs it is A, or the owner.
async fn prepare(session: &mut Session, name: &str, parts: &[String]) -> Result<Option<String>, CoreError> {
    if parts.is_empty() {
        return Ok(None);
    }
    session.must(&format!("prepare {name} as {}", parts.join(" union all "))).await?;
    Ok(Some(format!("execute {name}")))
}

/// Tables with more rows than before in which B is named.
fn grown(before: &[String], after: &[String]) -> Vec<String> {
    let read =
        |line: &String| line.rsplit_once('|').map(|(table, rows)| (table.to_owned(), rows.parse().unwrap_or(0_i64)));
    let before: HashMap<String, i64> = before.iter().filter_map(read).collect();
    let more = |(table, rows): &(String, i64)| before.get(table).is_some_and(|known| rows > known);
    after.iter().filter_map(read).filter(more).map(|(table, _)| table).collect()
}

/// Tables with more rows written than became visible.
fn unseen(before: &[String], after: &[String]) -> Vec<(String, i64)> {
    let read = |lines: &[String]| -> HashMap<String, (i64, i64)> {
        let parse = |line: &String| {
            let mut parts = line.rsplitn(3, '|');
            let (seen, written, table) = (parts.next()?, parts.next()?, parts.next()?);
            Some((table.to_owned(), (written.parse().ok()?, seen.parse().ok()?)))
        };
        lines.iter().filter_map(parse).collect()
    };
    let (before, after) = (read(before), read(after));
    let mut unseen: Vec<(String, i64)> = after
        .into_iter()
        .filter_map(|(table, (written, seen))| {
            let (written_before, seen_before) = before.get(&table)?;
            let more = (written - written_before) - (seen - seen_before);
            (more > 0).then_some((table, more))
        })
        .collect();
    unseen.sort();
    unseen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_written_but_is_not_seen_is_counted() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let before = lines(&["public.a|b|0|1", "public.c|0|5"]);
        let after = lines(&["public.a|b|3|2", "public.c|1|6"]);
        assert_eq!(unseen(&before, &after), [("public.a|b".to_owned(), 2)]);
    }
}
