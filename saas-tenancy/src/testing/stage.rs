//! What every attack works with: two connections, the catalogue, the seeds, and the report that it writes into.

use saas_core::CoreError;

use super::{
    catalogue::{Catalogue, Relation},
    report::{Attack, Report},
    seed::{Row, Seeds},
    session::{Answer, Session, Who, literal},
    value::Side,
};

#[derive(Debug)]
pub(super) struct Stage {
    /// The attacker: the application's own login.
    pub(super) app: Session,
    /// Looks behind the policies.
    pub(super) owner: Session,
    pub(super) catalogue: Catalogue,
    pub(super) seeds: Seeds,
    pub(super) report: Report,
}

impl Stage {
    pub(super) const fn as_a(&self) -> Who {
        Who::Tenant(self.seeds.a)
    }

    /// Both ways in which somebody who is not B comes along.
    pub(super) const fn strangers(&self) -> [Who; 2] {
        [Who::Tenant(self.seeds.a), Who::Nobody]
    }

    /// Everything with rows, by copy, since the attacks write into the same stage.
    pub(super) fn relations(&self, wanted: impl Fn(&Relation) -> bool) -> Vec<Relation> {
        self.catalogue.relations.iter().filter(|r| wanted(r)).cloned().collect()
    }

    pub(super) async fn change(&mut self, who: Who, statement: &str) -> Result<Answer<u64>, CoreError> {
        self.report.probes += 1;
        self.app.change(who, statement).await
    }

    pub(super) async fn ask(&mut self, who: Who, question: &str) -> Result<Answer<Vec<String>>, CoreError> {
        self.report.probes += 1;
        self.app.ask(who, question).await
    }

    /// Asks a question that counts rows of B; any is a leak.
    pub(super) async fn count(
        &mut self,
        who: Who,
        attack: Attack,
        object: &str,
        question: &str,
    ) -> Result<(), CoreError> {
        if let Ok(answer) = self.ask(who, question).await? {
            let rows: i64 = answer.first().and_then(|text| text.parse().ok()).unwrap_or(0);
            if rows > 0 {
                self.report.leak(object, attack, script(who, question), format!("{rows} of B's rows are visible"));
            }
        }
        Ok(())
    }

    /// Tries a statement that must be refused; success is a leak.
    pub(super) async fn forbidden(
        &mut self,
        who: Who,
        attack: Attack,
        object: &str,
        statement: &str,
        means: &str,
    ) -> Result<bool, CoreError> {
        let succeeded = self.change(who, statement).await?.is_ok();
        if succeeded {
            self.report.leak(object, attack, script(who, statement), means);
        }
        Ok(succeeded)
    }

    /// A condition that fits the rows of `side`, if the relation tells them apart.
    pub(super) fn rows_of(&self, relation: &Relation, side: Side) -> Option<String> {
        if let Some(tenant) = relation.tenant() {
            return Some(format!("{} = {}", tenant.name, literal(Some(&self.seeds.tenant(side).to_string()))));
        }
        self.seeds.row(&self.catalogue, relation, side).map(|row| self.exactly(relation, row))
    }

    /// A condition that fits one row: its primary key's values, or all of them.
    pub(super) fn exactly(&self, relation: &Relation, row: &Row) -> String {
        let root = self.catalogue.root(relation);
        let key = self.catalogue.keys_of(root.oid).find(|key| key.is_primary);
        let columns = root.columns.iter().filter(|c| key.is_none_or(|key| key.columns.contains(&c.att)));
        let parts: Vec<String> = columns
            .map(|c| {
                let value = row.values.get(&c.att).and_then(Option::as_deref);
                format!("{}::text is not distinct from {}", c.name, literal(value))
            })
            .collect();
        parts.join(" and ")
    }

    /// A pattern that fits whatever names B: its id, and the texts of its seeds.
    pub(super) fn marks_of_b(&self) -> [String; 2] {
        [self.seeds.b.to_string(), self.seeds.maker.marker(Side::B)]
    }
}

/// A statement with the binding it runs under, as a report shows it.
pub(super) fn script(who: Who, statement: &str) -> String {
    format!("{}; {statement}", who.binding())
}
