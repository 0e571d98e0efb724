//! What row-level security does not govern: privileges on whole tables, counters, roles, and the server itself.

use saas_core::CoreError;

use super::{
    catalogue::{Audience, Kind, Relation},
    report::Attack,
    session::Who,
    stage::{Stage, script},
    value::Side,
};

/// Statements that no tenant's login may run: what is named, the statement, what success means.
const SERVER: &[(&str, &str, &str)] = &[
    ("pg_statistic", "select count(*) from pg_catalog.pg_statistic", "statistics hold values of every tenant's rows"),
    ("pg_authid", "select count(*) from pg_catalog.pg_authid", "password hashes of every login"),
    ("pg_largeobject", "select count(*) from pg_catalog.pg_largeobject", "large objects of every tenant"),
    ("pg_read_file", "select pg_catalog.pg_read_file('PG_VERSION')", "files of the server hold every tenant's rows"),
    (
        "pg_read_binary_file",
        "select pg_catalog.pg_read_binary_file('PG_VERSION')",
        "files of the server hold every tenant's rows",
    ),
    ("pg_ls_dir", "select pg_catalog.pg_ls_dir('.')", "the server's folders"),
    ("lo_import", "select pg_catalog.lo_import('PG_VERSION')", "files of the server"),
    (
        "session_replication_role",
        "set local session_replication_role = replica",
        "triggers and foreign keys are switched off",
    ),
];

impl Stage {
    pub(super) async fn attack_privileges(&mut self) -> Result<(), CoreError> {
        let who = self.as_a();
        for relation in self.relations(|r| r.kind.is_table() && r.audience.is_none()) {
            let name = &relation.name;
            for statement in [format!("truncate {name} cascade"), format!("truncate {name}")] {
                if self.forbidden(who, Attack::Truncate, name, &statement, "every tenant's rows are gone").await? {
                    break;
                }
            }
            let trigger = format!(
                "create trigger probe before update on {name} for each row \
                 execute function pg_catalog.suppress_redundant_updates_trigger()"
            );
            self.forbidden(who, Attack::Trigger, name, &trigger, "A's code runs on every tenant's rows").await?;
            let alter = format!("alter table {name} disable row level security");
            self.forbidden(who, Attack::AlterTable, name, &alter, "the fence is down for every tenant").await?;
        }
        for (object, statement, means) in SERVER {
            self.forbidden(who, Attack::Server, object, statement, means).await?;
        }
        for schema in self.catalogue.schemas.clone() {
            let statement = format!("create table {schema}.saas_probe (id int)");
            self.forbidden(who, Attack::Create, &schema, &statement, "A's objects stand among everybody's").await?;
        }
        let shadowed =
            self.relations(|r| r.kind.is_table() && r.audience.is_none() && r.parent.is_none() && r.schema != "saas");
        if let Some(relation) = shadowed.first() {
            let statement = format!("create temporary table {} (id int)", relation.bare);
            let means = "an unqualified name now means A's table, also for whoever gets this connection next";
            self.forbidden(who, Attack::TemporaryTable, &relation.name, &statement, means).await?;
        }
        Ok(())
    }

    pub(super) async fn attack_sequences(&mut self) -> Result<(), CoreError> {
        for sequence in self.relations(|r| r.kind == Kind::Sequence) {
            let name = &sequence.name;
            let quoted = super::session::literal(Some(name));
            for question in [
                format!("select last_value::text from {name}"),
                format!("select nextval({quoted})::text"),
                format!("select setval({quoted}, 1)::text"),
                format!("select pg_sequence_last_value({quoted}::regclass)::text"),
            ] {
                let who = self.as_a();
                if let Ok(answer) = self.ask(who, &question).await? {
                    let evidence = format!(
                        "answers {}: it counts what every tenant does",
                        answer.first().map_or("", String::as_str)
                    );
                    self.report.leak(name, Attack::Sequence, script(who, &question), evidence);
                }
            }
        }
        Ok(())
    }

    /// Becomes every role that it can, and looks again.
    pub(super) async fn attack_roles(&mut self) -> Result<(), CoreError> {
        let tables = self.relations(|r| r.kind.is_table() && r.audience.is_none());
        for role in self.catalogue.roles.clone() {
            for become_it in [format!("set local role {role}"), format!("set local session authorization {role}")] {
                if self.change(self.as_a(), &become_it).await?.is_err() {
                    continue;
                }
                for relation in &tables {
                    self.look_as(&role, &become_it, relation).await?;
                }
                for relation in self.relations(|r| r.audience == Some(Audience::System)) {
                    let question = format!("{become_it}; select count(*)::text from {}", relation.name);
                    let means = format!("as {role}, a table for the system only can be read: {}", relation.name);
                    self.forbidden(self.as_a(), Attack::SetRole, &role, &question, &means).await?;
                }
            }
        }
        Ok(())
    }

    async fn look_as(&mut self, role: &str, become_it: &str, relation: &Relation) -> Result<(), CoreError> {
        let Some(theirs) = self.rows_of(relation, Side::B) else { return Ok(()) };
        let who = self.as_a();
        let question = format!(
            "{become_it}; set local saas.system = 'on'; select count(*)::text from {} where {theirs}",
            relation.name
        );
        if let Ok(answer) = self.ask(who, &question).await?
            && answer.first().is_some_and(|rows| rows != "0")
        {
            let evidence = format!("as {role}, B's rows of {} are visible", relation.name);
            self.report.leak(role, Attack::SetRole, script(who, &question), evidence);
        }
        Ok(())
    }

    /// Leaves a large object as A, and reads it as B.
    pub(super) async fn attack_large_objects(&mut self) -> Result<(), CoreError> {
        let (a, b) = (self.as_a(), Who::Tenant(self.seeds.b));
        let ways = [
            ("select lo_from_bytea(0, 'left by A')::text", "select encode(lo_get($oid), 'escape')"),
            ("select lo_create(0)::text", "select lowrite(lo_open($oid, 131072), 'left by A')::text"),
        ];
        for (write, read) in ways {
            self.report.probes += 1;
            let written = self.app.read(&script(a, write)).await?;
            if let Ok([oid]) = written.as_deref() {
                let rebind = b.binding().replacen("begin; ", "", 1);
                let read = read.replace("$oid", oid);
                if self.app.read(&format!("{rebind}; {read}")).await?.is_ok() {
                    let evidence = "what A left in a large object, B reads or changes";
                    self.report.leak(
                        "large objects",
                        Attack::LargeObject,
                        format!("{}; {rebind}; {read}", script(a, write)),
                        evidence,
                    );
                }
            }
            self.app.rollback().await?;
        }
        Ok(())
    }

    /// A session that starts as somebody.
    pub(super) async fn attack_presets(&mut self) -> Result<(), CoreError> {
        for setting in ["saas.tenant_id", "saas.system"] {
            self.report.probes += 1;
            let question = format!("select coalesce(current_setting('{setting}', true), '')");
            let answer = self.app.must_read(&question).await?;
            if let Some(preset) = answer.first().filter(|value| !value.is_empty()) {
                let evidence = format!("a new session starts with {setting} = {preset}");
                self.report.leak(setting, Attack::PresetTenant, question, evidence);
            }
        }
        Ok(())
    }
}
