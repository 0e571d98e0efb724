//! Rows that change hands: given to another tenant, taken from one, overwritten under a shared key.

use saas_core::CoreError;

use super::{
    catalogue::Relation,
    report::Attack,
    stage::{Stage, script},
    statement::{insert, typed},
    value::Side,
};

impl Stage {
    pub(super) async fn attack_moving(&mut self, relation: &Relation) -> Result<(), CoreError> {
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
        let ways = [(true, true), (true, false), (false, true), (false, false)];
        let mut stays = false;
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
                Ok(_) => {
                    if self.reaches_b(who, relation, &statement).await? {
                        self.report.leak(&relation.name, Attack::Move, script(who, &statement), "A's row became B's");
                    } else {
                        // A trigger keeps the row A's: a constraint then says nothing about the policy.
                        stays = true;
                    }
                }
                Err(refusal) if refusal.is_constraint() && !stays => {
                    let evidence =
                        format!("the policy let the row pass; only a constraint refused: {}", refusal.brief());
                    self.report.leak(&relation.name, Attack::Move, script(who, &statement), evidence);
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// A change of whatever there is, without a condition and so without the policy for reading: of more rows than A has,
    /// some are others'.
    pub(super) async fn attack_at_large(&mut self, relation: &Relation) -> Result<(), CoreError> {
        let root = self.catalogue.root(relation).clone();
        let (Some(mine), Some(tenant)) = (self.rows_of(relation, Side::A), relation.tenant().cloned()) else {
            return Ok(());
        };
        let Some(row) = self.seeds.row(&self.catalogue, relation, Side::A).cloned() else { return Ok(()) };
        let count = format!("select count(*)::text from {} where {mine}", relation.name);
        let own: u64 = self.owner.must_read(&count).await?.first().and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut attempts =
            vec![(Attack::Move, format!("update {} set {} = '{}'", relation.name, tenant.name, self.seeds.a))];
        if let Some(column) =
            self.harmless_column(relation).and_then(|c| root.columns.iter().find(|r| r.name == c.name))
        {
            let value = typed(column, &row.values);
            attempts.push((Attack::Update, format!("update {} set {} = {value}", relation.name, column.name)));
        }
        let who = self.as_a();
        for (attack, statement) in attempts {
            let evidence = match self.change(who, &statement).await? {
                Ok(rows) if rows > own => format!("{rows} rows were changed, of which {own} are A's"),
                // A's rows have that tenant already: a constraint refused another one's.
                Err(refusal) if attack == Attack::Move && refusal.is_constraint() => {
                    format!("the policy let the row pass; only a constraint refused: {}", refusal.brief())
                }
                _ => continue,
            };
            self.report.leak(&relation.name, attack, script(who, &statement), evidence);
        }
        Ok(())
    }

    pub(super) async fn attack_upserting(&mut self, relation: &Relation) -> Result<(), CoreError> {
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
}
