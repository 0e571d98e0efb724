//! Constraints that are checked behind the policies: what they refuse tells, and what they accept ties tenants together.

use saas_core::CoreError;

use super::{
    catalogue::{ForeignKey, Key, Kind, Relation},
    report::Attack,
    seed::{Row, Values},
    stage::{Stage, script},
    statement::{insert, typed},
    value::Side,
};

impl Stage {
    pub(super) async fn attack_keys(&mut self) -> Result<(), CoreError> {
        for relation in self.relations(|r| r.kind.is_table() && r.parent.is_none() && r.audience.is_none()) {
            let foreign_keys: Vec<ForeignKey> = self.catalogue.foreign_keys_of(relation.oid).cloned().collect();
            for key in foreign_keys {
                self.attack_foreign_key(&relation, &key).await?;
            }
            let is_of =
                |table: i64| self.catalogue.relation(table).is_some_and(|r| self.catalogue.root(r).oid == relation.oid);
            let keys: Vec<Key> = self.catalogue.keys.iter().filter(|key| is_of(key.table)).cloned().collect();
            for key in keys {
                self.attack_unique_key(&relation, &key).await?;
            }
        }
        Ok(())
    }

    /// A's row that points at B's.
    async fn attack_foreign_key(&mut self, relation: &Relation, key: &ForeignKey) -> Result<(), CoreError> {
        let Some(parent) = self.catalogue.relation(key.parent).filter(|p| p.audience.is_none()).cloned() else {
            return Ok(());
        };
        let Some(theirs) = self.seeds.row(&self.catalogue, &parent, Side::B).cloned() else { return Ok(()) };
        let mut pointer = Values::new();
        for (mine, there) in &key.pairs {
            if !relation.is_tenant(*mine) {
                pointer.insert(*mine, theirs.values.get(there).cloned().flatten());
            }
        }
        // The same values in a row of A's own would make the pointer one to that.
        let own = self.seeds.rows(&self.catalogue, &parent, Side::A);
        let is_own = |row: &&Row| {
            key.pairs
                .iter()
                .all(|(mine, there)| relation.is_tenant(*mine) || row.values.get(there) == pointer.get(mine))
        };
        if pointer.is_empty() || pointer.values().any(Option::is_none) || own.iter().any(is_own) {
            return Ok(());
        }
        let object = format!("{}.{}", relation.name, key.name);
        let evidence = format!("A's row points at B's row of {}", parent.name);
        let mut attempts = Vec::new();
        if let Some(mut own) = self.seeds.fresh(&self.catalogue, relation, Side::A) {
            own.extend(pointer.clone());
            attempts.push(insert(&relation.name, relation, &own));
        }
        attempts.extend(self.set_on_own(relation, &pointer));
        for statement in attempts {
            let who = self.as_a();
            if let Ok(1..) = self.change(who, &statement).await? {
                self.report.leak(&object, Attack::ForeignKey, script(who, &statement), evidence.clone());
            }
        }
        Ok(())
    }

    /// A's row with the values that B has under a key; of a key that holds for some rows only, with those of each.
    async fn attack_unique_key(&mut self, relation: &Relation, key: &Key) -> Result<(), CoreError> {
        let Some(holder) = self.catalogue.relation(key.table).cloned() else { return Ok(()) };
        let mut rows: Vec<Row> = self.seeds.rows(&self.catalogue, &holder, Side::B).into_iter().cloned().collect();
        if key.is_plain {
            rows.truncate(1);
        }
        for theirs in &rows {
            self.attack_unique_value(relation, key, &holder, theirs).await?;
        }
        Ok(())
    }

    async fn attack_unique_value(
        &mut self,
        relation: &Relation,
        key: &Key,
        holder: &Relation,
        theirs: &Row,
    ) -> Result<(), CoreError> {
        // By name: a partition numbers its columns in its own way.
        let read = key.reads.iter().filter_map(|att| holder.column(*att));
        let columns: Vec<_> = read.filter_map(|c| relation.columns.iter().find(|r| r.name == c.name)).collect();
        let mut copied = Values::new();
        for column in columns.iter().filter(|c| !relation.is_tenant(c.att)) {
            copied.insert(column.att, theirs.values.get(&column.att).cloned().flatten());
        }
        // The same values in A's own row would conflict with that one.
        let mine = self.seeds.rows(&self.catalogue, relation, Side::A);
        let is_mine = |row: &&Row| copied.iter().all(|(att, value)| row.values.get(att) == Some(value));
        if copied.is_empty() || mine.iter().any(is_mine) {
            return Ok(());
        }
        let object = format!("{}.{}", relation.name, key.name);
        let mut attempts = Vec::new();
        if let Some(mut own) = self.seeds.fresh(&self.catalogue, relation, Side::A) {
            own.extend(copied.clone());
            let statement = insert(&relation.name, relation, &own);
            let numbered = columns.iter().any(|c| c.is_identity);
            attempts.push(if numbered {
                statement.replacen(") values (", ") overriding system value values (", 1)
            } else {
                statement
            });
        }
        attempts.extend(self.set_on_own(relation, &copied));
        for statement in attempts {
            let who = self.as_a();
            if let Err(refusal) = self.change(who, &statement).await? {
                let constraint = refusal.constraint.as_deref().unwrap_or_default();
                if refusal.is_duplicate() && self.is_key_or_part(key, relation, constraint) {
                    let evidence = format!("{constraint} tells A that B stores this value ({})", refusal.code);
                    self.report.leak(&object, Attack::UniqueKey, script(who, &statement), evidence);
                }
            }
        }
        Ok(())
    }

    /// Whether a key of that name is the key, or a partition's part of it.
    fn is_key_or_part(&self, key: &Key, relation: &Relation, name: &str) -> bool {
        let is_below =
            |table: i64| self.catalogue.relation(table).is_some_and(|r| self.catalogue.root(r).oid == relation.oid);
        key.name == name
            || self.catalogue.keys.iter().any(|k| k.name == name && k.table != key.table && is_below(k.table))
    }

    /// The same as an update of A's own row.
    fn set_on_own(&self, relation: &Relation, values: &Values) -> Option<String> {
        if relation.kind != Kind::Table && relation.kind != Kind::Partitioned {
            return None;
        }
        let row = self.seeds.row(&self.catalogue, relation, Side::A)?;
        let columns =
            values.keys().filter_map(|att| relation.column(*att)).filter(|c| !c.is_identity && !c.is_generated);
        let sets: Vec<String> = columns.map(|c| format!("{} = {}", c.name, typed(c, values))).collect();
        (!sets.is_empty())
            .then(|| format!("update {} set {} where {}", relation.name, sets.join(", "), self.exactly(relation, row)))
    }
}
