//! Writes on tables and views, named directly: no row of another tenant's is changed or made.

use saas_core::CoreError;

use super::{
    catalogue::{Column, Relation},
    graph::linked,
    report::Attack,
    seed::Values,
    session::Who,
    stage::{Stage, script},
    statement::{insert, typed},
    value::Side,
};

/// The id of a tenant that nobody has.
const NOBODYS: &str = "00000000-0000-4000-8000-000000000000";

impl Stage {
    pub(super) async fn attack_changing(&mut self, relation: &Relation) -> Result<(), CoreError> {
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
                    Err(refusal) if refusal.is_denied() => {}
                    // Raised by a trigger, of that row or of any statement? One that fits no row tells.
                    Err(refusal) => {
                        let of_nobody = statement.replace(&self.seeds.b.to_string(), NOBODYS);
                        if of_nobody != *statement && self.change(who, &of_nobody).await?.is_ok() {
                            let evidence = format!("the row was found; only a trigger refused: {}", refusal.brief());
                            self.report.leak(&relation.name, *attack, script(who, statement), evidence);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// One that may be updated, rather none of a key's.
    pub(super) fn harmless_column<'a>(&self, relation: &'a Relation) -> Option<&'a Column> {
        let root = self.catalogue.root(relation);
        let linked = linked(&self.catalogue, root);
        let weight = |c: &&Column| {
            let is_key = self.catalogue.keys_of(root.oid).any(|key| key.reads.contains(&c.att));
            (!c.may_update, relation.is_tenant(c.att) || linked.contains(&c.att), is_key)
        };
        relation.columns.iter().filter(|c| !c.is_generated && !c.is_identity).min_by_key(weight)
    }

    pub(super) async fn attack_inserting(&mut self, relation: &Relation) -> Result<(), CoreError> {
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
        let mut control = self.change(self.as_a(), &insert(&relation.name, &root, &shared(own.clone()))).await?;
        let mut is_renewed = false;
        if let Err(refusal) = &control
            && !refusal.is_denied()
            && let Some(renewed) = self.seeds.renewed(&self.catalogue, &source, Side::A)
        {
            is_renewed = true;
            control = self.change(self.as_a(), &insert(&relation.name, &root, &shared(renewed))).await?;
        }
        self.attack_as_nobodys(relation, &root, shared(own.clone())).await?;
        for who in self.strangers() {
            let theirs = if is_renewed {
                self.seeds.renewed(&self.catalogue, &source, Side::B)
            } else {
                self.seeds.fresh(&self.catalogue, &source, Side::B)
            };
            let Some(theirs) = theirs else { return Ok(()) };
            let statement = insert(&relation.name, &root, &shared(theirs));
            match self.change(who, &statement).await? {
                Ok(0) => {}
                Ok(_) => {
                    if self.reaches_b(who, relation, &statement).await? {
                        let evidence = "a row of B's was stored";
                        self.report.leak(&relation.name, Attack::Insert, script(who, &statement), evidence);
                    }
                }
                Err(refusal) if refusal.is_denied() => {}
                // Constraints are asked after the policy.
                Err(refusal) if refusal.is_constraint() => {
                    if self.decides_itself(relation, &root, shared(own.clone())).await? {
                        continue;
                    }
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

    /// Whether a trigger makes every row the writer's own, whatever tenant the statement names.
    async fn decides_itself(
        &mut self,
        relation: &Relation,
        root: &Relation,
        mut own: Values,
    ) -> Result<bool, CoreError> {
        let Some(tenant) = root.tenant() else { return Ok(false) };
        own.insert(tenant.att, Some(self.seeds.b.to_string()));
        let (who, statement) = (self.as_a(), insert(&relation.name, root, &own));
        Ok(matches!(self.change(who, &statement).await?, Ok(1..)) && !self.reaches_b(who, relation, &statement).await?)
    }

    /// A row of no tenant, which all tenants may see.
    async fn attack_as_nobodys(
        &mut self,
        relation: &Relation,
        root: &Relation,
        mut own: Values,
    ) -> Result<(), CoreError> {
        let Some(tenant) = root.tenant().filter(|tenant| !tenant.not_null).cloned() else { return Ok(()) };
        own.insert(tenant.att, None);
        let who = self.as_a();
        let statements =
            [insert(&relation.name, root, &own), format!("update {} set {} = null", relation.name, tenant.name)];
        for statement in statements {
            let is_stored = matches!(self.change(who, &statement).await?, Ok(1..));
            if is_stored && self.grows_for_b(who, relation, &format!("{} is null", tenant.name), &statement).await? {
                let evidence = "a row of no tenant's was stored, which B reads";
                self.report.leak(&relation.name, Attack::WriteGlobal, script(who, &statement), evidence);
            }
        }
        Ok(())
    }

    /// Whether a change that succeeded made a row B's.
    pub(super) async fn reaches_b(
        &mut self,
        who: Who,
        relation: &Relation,
        statement: &str,
    ) -> Result<bool, CoreError> {
        match self.rows_of(relation, Side::B) {
            Some(theirs) => self.grows_for_b(who, relation, &theirs, statement).await,
            None => Ok(true),
        }
    }

    /// Whether B sees more such rows after a statement than before; yes, where B may not look.
    async fn grows_for_b(
        &mut self,
        who: Who,
        relation: &Relation,
        condition: &str,
        statement: &str,
    ) -> Result<bool, CoreError> {
        let again = if who == Who::Nobody {
            "set local saas.tenant_id = ''; set local saas.member = ''".to_owned()
        } else {
            format!("set local saas.tenant_id = '{}'", self.seeds.a)
        };
        let count = format!(
            "set local saas.tenant_id = '{}'; set local saas.member = '*'; select count(*)::text from {} where {condition}",
            self.seeds.b, relation.name
        );
        let answer = self.ask(who, &format!("{count}; {again}; {statement}; {count}")).await?;
        let rows = |line: Option<&String>| line.and_then(|text| text.parse::<u64>().ok());
        Ok(answer.map_or(true, |lines| rows(lines.last()) > rows(lines.first())))
    }

    /// Where the values of a row come from: the table itself, or the one table that has all columns of a view.
    pub(super) fn source_of(&self, relation: &Relation) -> Option<Relation> {
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
}
