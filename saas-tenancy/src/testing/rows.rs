//! Reads and writes on tables and views, named directly: another tenant's rows must be out of reach.

use saas_core::CoreError;

use super::{
    catalogue::{Audience, Column, Kind, Relation},
    graph::linked,
    report::Attack,
    seed::Values,
    session::{Who, literal},
    stage::{Stage, script},
    statement::{insert, typed},
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

    async fn attack_changing(&mut self, relation: &Relation) -> Result<(), CoreError> {
        let Some(theirs) = self.rows_of(relation, Side::B) else { return Ok(()) };
        let row = self.seeds.row(&self.catalogue, relation, Side::B).cloned();
        let mut attempts = vec![(Attack::Delete, format!("delete from {} where {theirs}", relation.name))];
        if let Some(column) = self.harmless_column(relation) {
            // Its own value where that is known: then the column need not be readable.
            let value = row.as_ref().filter(|_| relation.kind.is_table()).map_or_else(
                || column.name.clone(),
                |row| {
                    let root = self.catalogue.root(relation);
                    root.columns
                        .iter()
                        .find(|c| c.name == column.name)
                        .map_or_else(|| "null".to_owned(), |c| typed(c, &row.values))
                },
            );
            attempts.push((
                Attack::Update,
                format!("update {} set {} = {value} where {theirs}", relation.name, column.name),
            ));
        }
        for who in self.strangers() {
            for (attack, statement) in &attempts {
                match self.change(who, statement).await? {
                    Ok(0) => {}
                    Ok(rows) => {
                        let evidence = format!("{rows} of B's rows were touched");
                        self.report.leak(&relation.name, *attack, script(who, statement), evidence);
                    }
                    // Asked of a row that was found.
                    Err(refusal) if refusal.is_constraint() => {
                        let evidence = format!("the row was found; only a constraint refused: {}", refusal.brief());
                        self.report.leak(&relation.name, *attack, script(who, statement), evidence);
                    }
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// One that may be updated, rather none of a key's.
    fn harmless_column<'a>(&self, relation: &'a Relation) -> Option<&'a Column> {
        let root = self.catalogue.root(relation);
        let linked = linked(&self.catalogue, root);
        let weight = |c: &&Column| {
            let is_key = self.catalogue.keys_of(root.oid).any(|key| key.reads.contains(&c.att));
            (!c.may_update, relation.is_tenant(c.att) || linked.contains(&c.att), is_key)
        };
        relation.columns.iter().filter(|c| !c.is_generated && !c.is_identity).min_by_key(weight)
    }

    async fn attack_inserting(&mut self, relation: &Relation) -> Result<(), CoreError> {
        if relation.tenant().is_none() {
            return Ok(());
        }
        let Some(source) = self.source_of(relation) else { return Ok(()) };
        let shared = |values: Values| -> Values {
            let known = |att: &i16| {
                source.column(*att).is_some_and(|c| relation.columns.iter().any(|mine| mine.name == c.name))
            };
            values.into_iter().filter(|(att, _)| known(att)).collect()
        };
        let root = self.catalogue.root(&source).clone();
        let Some(own) = self.seeds.fresh(&self.catalogue, &source, Side::A) else { return Ok(()) };
        let control = self.change(self.as_a(), &insert(&relation.name, &root, &shared(own))).await?;
        for who in self.strangers() {
            let Some(theirs) = self.seeds.fresh(&self.catalogue, &source, Side::B) else { return Ok(()) };
            let statement = insert(&relation.name, &root, &shared(theirs));
            match self.change(who, &statement).await? {
                Ok(0) => {}
                Ok(_) => {
                    self.report.leak(&relation.name, Attack::Insert, script(who, &statement), "a row of B's was stored")
                }
                Err(refusal) if refusal.is_denied() => {}
                // Constraints are asked after the policy.
                Err(refusal) if refusal.is_constraint() => {
                    let evidence =
                        format!("the policy let the row pass; only a constraint refused: {}", refusal.brief());
                    self.report.leak(&relation.name, Attack::Insert, script(who, &statement), evidence);
                }
                Err(_) if !relation.kind.is_table() => {}
                Err(refusal) => {
                    let reason = match &control {
                        Err(own) => format!("an insert cannot be tried, since A's own fails: {}", own.brief()),
                        Ok(_) => {
                            format!("an insert for B failed for another reason than the policy: {}", refusal.brief())
                        }
                    };
                    self.report.unproven(&relation.name, reason);
                }
            }
        }
        Ok(())
    }

    /// Where the values of a row come from: the table itself, or the one table that has all columns of a view.
    fn source_of(&self, relation: &Relation) -> Option<Relation> {
        if relation.kind.is_table() {
            return Some(relation.clone());
        }
        let fits = |r: &&Relation| {
            r.kind.is_table()
                && r.parent.is_none()
                && r.audience.is_none()
                && relation.columns.iter().all(|c| r.columns.iter().any(|theirs| theirs.name == c.name))
        };
        self.catalogue.relations.iter().find(fits).cloned()
    }

    async fn attack_moving(&mut self, relation: &Relation) -> Result<(), CoreError> {
        let root = self.catalogue.root(relation).clone();
        let (Some(mine), Some(row)) =
            (self.rows_of(relation, Side::A), self.seeds.row(&self.catalogue, relation, Side::A).cloned())
        else {
            return Ok(());
        };
        if relation.tenant().is_none() {
            return Ok(());
        }
        // With its parents' keys, so that no foreign key hides what the policy says; a null stays.
        let mut moved = self.seeds.links(&self.catalogue, &root, Side::B);
        moved.retain(|att, value| value.is_some() && row.values.get(att).is_some_and(Option::is_some));
        // A condition reads the row, and what is read must also pass the policy for reading; without one it need not.
        let ways = [(false, true), (false, false), (true, true), (true, false)];
        for (alone, conditional) in ways {
            let sets: Vec<String> = moved
                .keys()
                .filter(|att| !alone || root.is_tenant(**att))
                .filter_map(|att| root.column(*att))
                .map(|c| format!("{} = {}", c.name, typed(c, &moved)))
                .collect();
            let condition = if conditional { format!(" where {mine}") } else { String::new() };
            let statement = format!("update {} set {}{condition}", relation.name, sets.join(", "));
            let who = self.as_a();
            match self.change(who, &statement).await? {
                Ok(0) => {}
                Ok(_) => self.report.leak(&relation.name, Attack::Move, script(who, &statement), "A's row became B's"),
                Err(refusal) if refusal.is_constraint() => {
                    let evidence =
                        format!("the policy let the row pass; only a constraint refused: {}", refusal.brief());
                    self.report.leak(&relation.name, Attack::Move, script(who, &statement), evidence);
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    async fn attack_upserting(&mut self, relation: &Relation) -> Result<(), CoreError> {
        let root = self.catalogue.root(relation).clone();
        let Some(row) = self.seeds.row(&self.catalogue, relation, Side::B).cloned() else { return Ok(()) };
        let Some(column) = self.harmless_column(relation).cloned() else { return Ok(()) };
        let keys: Vec<_> = self.catalogue.keys_of(relation.oid).filter(|key| key.is_plain).cloned().collect();
        for key in keys {
            let names: Vec<&str> =
                key.columns.iter().filter_map(|att| relation.column(*att)).map(|c| c.name.as_str()).collect();
            let has_tenant = key.columns.iter().any(|att| relation.is_tenant(*att));
            let mut values = row.values.clone();
            values.retain(|att, value| {
                value.is_some() && root.column(*att).is_some_and(|c| !c.is_generated && !c.is_identity)
            });
            if let (false, Some(tenant)) = (has_tenant, root.tenant()) {
                // As one's own row, with the other tenant's key.
                let own = self.seeds.links(&self.catalogue, &root, Side::A);
                values.extend(own.into_iter().filter(|(att, value)| value.is_some() && !key.columns.contains(att)));
                values.insert(tenant.att, Some(self.seeds.a.to_string()));
            } else if root.tenant().is_none() {
                continue;
            }
            let statement = format!(
                "{} on conflict ({}) do update set {name} = excluded.{name}",
                insert(&relation.name, &root, &values),
                names.join(", "),
                name = column.name
            );
            let who = self.as_a();
            if let Ok(1..) = self.change(who, &statement).await? {
                self.report.leak(&relation.name, Attack::Upsert, script(who, &statement), "B's row was overwritten");
            }
        }
        Ok(())
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
