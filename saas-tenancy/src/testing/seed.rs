//! Puts rows of two tenants into every table, parents first.
//!
//! A table that belongs to no tenant by declaration gets rows only where a seeded one points at it. What cannot be
//! filled is reported, with the database's own reason.

mod draft;
mod variants;

use std::collections::{BTreeMap, HashMap, HashSet};

use saas_core::{CoreError, TenantId};

use super::{
    catalogue::{Catalogue, Relation},
    graph::{drafted, is_required, linked, needed},
    partition,
    report::Report,
    session::{Answer, Refusal, Session, Who, literal},
    statement::{image, insert_returning, row},
    value::{Maker, Side},
};

/// The values of one row, in PostgreSQL's text form, by column number.
pub(super) type Values = BTreeMap<i16, Option<String>>;

#[derive(Debug, Clone)]
pub(super) struct Row {
    /// The table or the partition that holds it.
    pub(super) holder: i64,
    pub(super) values: Values,
}

/// Statements of the adopter's own, for tables whose rules are beyond guessing.
pub(super) type Recipes = HashMap<String, String>;

/// How often one insert may be repeated with other values.
const TRIES: usize = 400;
/// How many combinations of guesses a check over several columns is offered.
const COMBINATIONS: usize = 250;
/// How many rows may be tried until each hash partition has one.
const SCATTER: usize = 24;

#[derive(Debug)]
pub(super) struct Seeds {
    pub(super) a: TenantId,
    pub(super) b: TenantId,
    pub(super) maker: Maker,
    rows: HashMap<(i64, Side), Vec<Row>>,
    /// In the order in which they were filled.
    pub(super) tables: Vec<i64>,
}

/// Stores rows as the application does, so that triggers run with its rights; as the superuser what it may not store.
#[derive(Debug)]
pub(super) struct Planter<'a> {
    pub(super) app: &'a mut Session,
    pub(super) owner: &'a mut Session,
}

impl Planter<'_> {
    async fn store(&mut self, tenant: TenantId, statement: &str) -> Result<Answer<Vec<String>>, CoreError> {
        let script = format!("{}; {statement}; commit", Who::Tenant(tenant).binding());
        let stored = self.app.read(&script).await?;
        if let Err(refusal) = &stored {
            self.app.rollback().await?;
            if refusal.is_denied() {
                return self.owner.read(statement).await;
            }
        }
        Ok(stored)
    }
}

impl Seeds {
    pub(super) const fn tenant(&self, side: Side) -> TenantId {
        match side {
            Side::A => self.a,
            Side::B => self.b,
        }
    }

    /// The rows of a tenant that are stored in exactly this table or partition, or below it.
    pub(super) fn rows(&self, catalogue: &Catalogue, relation: &Relation, side: Side) -> Vec<&Row> {
        let root = catalogue.root(relation);
        let rows = self.rows.get(&(root.oid, side)).map(Vec::as_slice).unwrap_or_default();
        let is_below = |holder: i64| {
            let mut here = catalogue.relation(holder);
            while let Some(partition) = here {
                if partition.oid == relation.oid {
                    return true;
                }
                here = partition.parent.and_then(|parent| catalogue.relation(parent));
            }
            false
        };
        rows.iter().filter(|row| is_below(row.holder)).collect()
    }

    pub(super) fn row(&self, catalogue: &Catalogue, relation: &Relation, side: Side) -> Option<&Row> {
        self.rows(catalogue, relation, side).into_iter().next()
    }

    /// Fills every table; what could not be filled stands in the report.
    pub(super) async fn plant(
        planter: &mut Planter<'_>,
        catalogue: &Catalogue,
        recipes: &Recipes,
        (a, b): (TenantId, TenantId),
        report: &mut Report,
    ) -> Result<Self, CoreError> {
        let run = u32::try_from(b.as_uuid().as_u128() & 0xffff_ffff).unwrap_or(0);
        let mut seeds = Self { a, b, maker: Maker::new(run), rows: HashMap::new(), tables: Vec::new() };
        let mut open = needed(catalogue);
        let mut failed: HashSet<i64> = HashSet::new();
        while !open.is_empty() {
            let done = |oid: i64| seeds.tables.contains(&oid) || !open.contains(&oid);
            // A table whose parents are all there; else one whose missing parents may be left out, or are a recipe's affair.
            let has_recipe = |oid: i64| catalogue.relation(oid).is_some_and(|r| recipes.contains_key(&r.name));
            let ready = |strict: bool| {
                open.iter().position(|oid| {
                    (!strict && has_recipe(*oid))
                        || catalogue.foreign_keys_of(*oid).all(|key| {
                            key.parent == *oid
                                || done(key.parent)
                                || (!strict && !is_required(catalogue, key.table, &key.pairs))
                        })
                })
            };
            let Some(next) = ready(true).or_else(|| ready(false)) else {
                for oid in &open {
                    if let Some(relation) = catalogue.relation(*oid) {
                        let reason = "its required foreign keys form a circle; give it a recipe with `with_seed`";
                        report.unproven(&relation.name, reason);
                    }
                }
                break;
            };
            let oid = open.remove(next);
            let Some(relation) = catalogue.relation(oid) else { continue };
            if let Some(parent) = catalogue
                .foreign_keys_of(oid)
                .find(|key| failed.contains(&key.parent) && is_required(catalogue, oid, &key.pairs))
                .and_then(|key| catalogue.relation(key.parent))
            {
                failed.insert(oid);
                report.unproven(&relation.name, format!("needs a row of {}, which could not be seeded", parent.name));
                continue;
            }
            match seeds.fill(planter, catalogue, recipes, relation).await? {
                Ok(()) => {
                    seeds.tables.push(oid);
                    for side in [Side::A, Side::B] {
                        seeds.vary(planter, catalogue, relation, side).await?;
                    }
                }
                Err(refusal) => {
                    failed.insert(oid);
                    let reason = format!("could not be seeded: {}; give it a recipe with `with_seed`", refusal.brief());
                    report.unproven(&relation.name, reason);
                }
            }
            seeds.report_empty_partitions(catalogue, relation, report);
        }
        Ok(seeds)
    }

    async fn fill(
        &mut self,
        planter: &mut Planter<'_>,
        catalogue: &Catalogue,
        recipes: &Recipes,
        relation: &Relation,
    ) -> Result<Result<(), Refusal>, CoreError> {
        for side in [Side::A, Side::B] {
            if let Some(recipe) = recipes.get(&relation.name) {
                let script = recipe.replace("$1", &literal(Some(&self.tenant(side).to_string())));
                if let Err(refusal) = planter.owner.step(&script).await? {
                    return Ok(Err(refusal));
                }
                match self.adopt(planter.owner, relation, side).await? {
                    Some(row) => self.keep(relation, side, row),
                    None => return Ok(Err(nothing_stored())),
                }
                continue;
            }
            let fixed = partition::places(catalogue, relation);
            let scatters = fixed.iter().any(BTreeMap::is_empty) && fixed.len() > 1;
            for place in &fixed {
                match self.insert(planter, catalogue, relation, side, place).await? {
                    Ok(row) => self.keep(relation, side, row),
                    // One partition that cannot be reached is reported as empty.
                    Err(_) if fixed.len() > 1 => {}
                    Err(refusal) => return Ok(Err(refusal)),
                }
            }
            for _ in 0..if scatters { SCATTER } else { 0 } {
                if self.empty_partitions(catalogue, relation, side).is_empty() {
                    break;
                }
                if let Ok(row) = self.insert(planter, catalogue, relation, side, &Values::new()).await? {
                    self.keep(relation, side, row);
                }
            }
            if !self.rows.contains_key(&(relation.oid, side)) {
                return Ok(Err(nothing_stored()));
            }
        }
        Ok(Ok(()))
    }

    fn keep(&mut self, relation: &Relation, side: Side, row: Row) {
        self.rows.entry((relation.oid, side)).or_default().push(row);
    }

    fn empty_partitions(&self, catalogue: &Catalogue, relation: &Relation, side: Side) -> Vec<String> {
        let held: HashSet<i64> =
            self.rows.get(&(relation.oid, side)).into_iter().flatten().map(|row| row.holder).collect();
        let leaves = catalogue.relations.iter().filter(|r| {
            r.oid != relation.oid
                && r.partition_key.is_empty()
                && r.parent.is_some()
                && catalogue.root(r).oid == relation.oid
        });
        leaves.filter(|leaf| !held.contains(&leaf.oid)).map(|leaf| leaf.name.clone()).collect()
    }

    fn report_empty_partitions(&self, catalogue: &Catalogue, relation: &Relation, report: &mut Report) {
        // Where no row could be stored at all, that is reported of the table.
        if self.rows.contains_key(&(relation.oid, Side::B)) {
            let splits_by_tenant = relation.partition_key.iter().any(|att| relation.is_tenant(*att));
            for partition in self.empty_partitions(catalogue, relation, Side::B) {
                // A partition of other tenants is like every other one: what holds for one that B is in holds for it.
                if !splits_by_tenant {
                    report.unproven(&partition, "no row could be placed in this partition");
                }
            }
        }
    }

    /// Stores a row; on a refusal tries other values.
    async fn insert(
        &mut self,
        planter: &mut Planter<'_>,
        catalogue: &Catalogue,
        relation: &Relation,
        side: Side,
        fixed: &Values,
    ) -> Result<Result<Row, Refusal>, CoreError> {
        let mut values = self.draft(catalogue, relation, side);
        values.extend(fixed.clone());
        let mut guesses: HashMap<String, std::vec::IntoIter<Values>> = HashMap::new();
        let (mut refused, mut guessing) = (nothing_stored(), None);
        for _ in 0..TRIES {
            match planter.store(self.tenant(side), &insert_returning(relation, &values)).await? {
                Ok(answer) => match row(relation, &answer) {
                    Some(row) => return Ok(Ok(row)),
                    None => return Ok(Err(nothing_stored())),
                },
                Err(refusal) => refused = refusal,
            }
            if refused.is_duplicate() {
                let linked = linked(catalogue, relation);
                for column in drafted(relation).filter(|c| !linked.contains(&c.att) && !fixed.contains_key(&c.att)) {
                    values.insert(column.att, self.maker.value(catalogue, column.type_oid, column.typmod, side));
                }
                continue;
            }
            // A guess may not even be a value of the column's type: then the next one.
            let check = match refused.code.get(..2) {
                Some("22") => guessing.clone(),
                _ if refused.code == "23514" => refused.constraint.clone(),
                _ => None,
            };
            let Some(name) = check else { break };
            if !guesses.contains_key(&name) {
                let offers = self.offers(catalogue, relation, &name, side, fixed);
                guesses.insert(name.clone(), offers.into_iter());
            }
            let Some(next) = guesses.get_mut(&name).and_then(Iterator::next) else { break };
            values.extend(next);
            guessing = Some(name);
        }
        Ok(Err(refused))
    }

    /// The row that a recipe stored.
    async fn adopt(&self, owner: &mut Session, relation: &Relation, side: Side) -> Result<Option<Row>, CoreError> {
        let Some(tenant) = relation.tenant() else { return Ok(None) };
        let question = format!(
            "select {} from {} t where t.{} = {} limit 1",
            image(relation),
            relation.name,
            tenant.name,
            literal(Some(&self.tenant(side).to_string()))
        );
        Ok(owner.read(&question).await?.ok().and_then(|answer| row(relation, &answer)))
    }
}

fn nothing_stored() -> Refusal {
    Refusal {
        code: "00000".to_owned(),
        constraint: None,
        message: "no row was stored (a trigger or a rule kept it away?)".to_owned(),
    }
}
