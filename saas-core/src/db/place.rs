//! Where a tenant's rows live, and the statement that opens a transaction there.

use std::{any::Any, fmt, num::NonZeroU32, str::FromStr, sync::Arc, time::Duration};

use super::{TenantPool, binding::Sessions, served::Served, warm::Warm};
use crate::{Actor, InvalidInput, RoleName, TenantContext, TenantId};

/// Where a tenant's rows live. Made only from a pool that was verified.
#[derive(Clone)]
pub struct Place {
    pub(super) pool: Warm,
    pub(super) sessions: Sessions,
    schema: Option<SchemaName>,
    schemas_per_connection: NonZeroU32,
    generation: Option<Generation>,
    statement_timeout: Option<Duration>,
    /// Kept until the transaction ends.
    pub(super) held: Option<Arc<dyn Any + Send + Sync>>,
}

const SCHEMAS_PER_CONNECTION: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// How often a tenant has moved. Grows with every move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(i64);

impl Generation {
    /// Of a tenant that has never moved.
    pub const FIRST: Self = Self(0);

    /// A stored generation.
    #[must_use]
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    /// After one more move.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Place {
    /// Among all tenants' rows, behind row-level security.
    #[must_use]
    pub fn pooled(tenants: &TenantPool) -> Self {
        Self {
            pool: tenants.warm.clone(),
            sessions: tenants.sessions,
            schema: None,
            schemas_per_connection: SCHEMAS_PER_CONNECTION,
            generation: None,
            statement_timeout: None,
            held: None,
        }
    }

    /// In tables of a schema of the tenant's own. Unqualified names of a transaction mean tables of that schema, and no
    /// others: a table that is missing there is an error, not the shared table of that name.
    #[must_use]
    pub fn in_schema(mut self, schema: SchemaName) -> Self {
        self.schema = Some(schema);
        self
    }

    /// Closes a connection when it has served so many schemas, 100 unless set: the server's session keeps the catalogue of
    /// every table that it has touched, about 30 KB for one with two indexes, until it ends. Behind a pooler, whose sessions
    /// are not this process's to end, the pooler's own setting (`server_lifetime`) bounds that instead.
    #[must_use]
    pub const fn with_schemas_per_connection(mut self, schemas: NonZeroU32) -> Self {
        self.schemas_per_connection = schemas;
        self
    }

    /// Only while the tenant is at home there at this generation. A transaction that comes too late is refused with
    /// [`Moved`](crate::CoreError::Moved), by the database.
    #[must_use]
    pub const fn at_generation(mut self, generation: Generation) -> Self {
        self.generation = Some(generation);
        self
    }

    /// Ends a statement of a transaction that takes longer.
    #[must_use]
    pub const fn with_statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = Some(timeout);
        self
    }

    /// Keeps `what`, a permit for example, until the transaction ends.
    #[must_use]
    pub fn holding(mut self, what: impl Any + Send + Sync) -> Self {
        self.held = Some(Arc::new(what));
        self
    }

    /// What a session has to remember of a transaction here.
    pub(super) fn served(&self) -> Option<Served> {
        match (self.sessions, &self.schema) {
            (Sessions::Own, Some(schema)) => Some(Served::new(schema, self.schemas_per_connection)),
            (Sessions::Shared, _) | (_, None) => None,
        }
    }

    /// Whether transactions of both are the same but for the tenant, so that one can serve the tenants of both in turn.
    pub(super) fn is_shared_with(&self, other: &Self) -> bool {
        let is_plain = |place: &Self| place.schema.is_none() && place.generation.is_none();
        is_plain(self)
            && is_plain(other)
            && std::ptr::eq(self.pool.pool().options(), other.pool.pool().options())
            && (self.sessions, self.statement_timeout) == (other.sessions, other.statement_timeout)
    }

    /// Binds an open transaction to the tenant: [`BINDS`] statements.
    pub(super) fn bind(&self, ctx: &dyn TenantContext) -> String {
        let tenant = ctx.tenant();
        // For tables that show members their own rows only: `saas.fence_rows`. Where nothing is said, they show none.
        let role = ctx.role().map_or("", RoleName::as_str);
        let member = match ctx.actor() {
            Actor::User { id: person } | Actor::Impersonation { user: person, .. } => format!("{person} {role}"),
            Actor::ApiKey { .. } => format!(" {role}"),
            Actor::Operator { .. } | Actor::System { .. } => "*".to_owned(),
        };
        format!("set local saas.tenant_id = '{tenant}'; set local saas.member = '{member}'")
    }

    /// Opens a transaction and binds the tenant, in one round trip.
    ///
    /// `SET LOCAL`, not `set_config()`: distributed PostgreSQL passes only the former on to its workers.
    pub(super) fn begin(&self, ctx: &dyn TenantContext, access: Access) -> String {
        let tenant = ctx.tenant();
        let mut sql = format!("{}; {}", access.begin(), self.bind(ctx));
        if self.sessions == Sessions::Shared {
            sql.push_str("; deallocate all");
        }
        if let Some(SchemaName(schema)) = &self.schema {
            sql.push_str(&format!("; set local search_path = \"{schema}\""));
        }
        if let Some(timeout) = self.statement_timeout {
            sql.push_str(&format!("; set local statement_timeout = {}", timeout.as_millis().clamp(1, 2_147_483_647)));
        }
        if let Some(Generation(generation)) = self.generation {
            sql.push_str(&format!("; select saas.enter('{tenant}', {generation})"));
        }
        sql
    }
}

/// Statements of [`Place::bind`].
pub(super) const BINDS: usize = 2;

/// What a transaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Write,
    Read,
    /// The door is then looked at with the eyes of that instant, too: what is read is what was at home there at the time.
    Snapshot,
}

impl Access {
    const fn begin(self) -> &'static str {
        match self {
            Self::Write => "begin",
            Self::Read => "begin read only",
            Self::Snapshot => "begin isolation level repeatable read, read only",
        }
    }
}

/// A schema: 1 to 63 lower-case letters, digits and underscores, not starting with a digit, and not one of PostgreSQL's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SchemaName(String);

impl SchemaName {
    /// The schema of a tenant's own: `saas_t_` and the tenant's id in 32 hexadecimal digits.
    #[must_use]
    pub fn of(tenant: TenantId) -> Self {
        Self(format!("saas_t_{}", tenant.as_uuid().simple()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SchemaName {
    type Err = InvalidInput;

    fn from_str(text: &str) -> Result<Self, InvalidInput> {
        let mut letters = text.bytes();
        let begins_well = letters.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
        let goes_on_well = letters.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let reserved = text.starts_with("pg_") || matches!(text, "saas" | "public" | "information_schema");
        if begins_well && goes_on_well && text.len() <= 63 && !reserved {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidInput::new(
            "schema name",
            "is reserved, or is not made of 1 to 63 lower-case letters, digits and underscores",
            "pass a name such as `saas_t_acme`",
        ))
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("schema", &self.schema)
            .field("generation", &self.generation)
            .field("statement_timeout", &self.statement_timeout)
            .finish_non_exhaustive()
    }
}
