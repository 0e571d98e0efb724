//! Everything a tenant has, as files: one run, one instant, one tenant.
//!
//! Owns which tables leave, how their values are written, and where the files go. Promises:
//!
//! - *Fenced*: rows are read as the tenant, through row-level security, in read-only transactions. A table without a fence
//!   stops the export.
//! - *Consistent*: all rows are those of one instant. Where the application's tables live in another database than the
//!   foundation's, it is one instant in each.
//! - *Bounded*: memory holds one chunk per file and one row, however large a table is.
//! - *All or nothing*: a failed, dropped or killed export is never visible.
//!
//! Leaves to the application: when to run it and who may fetch the files. Columns that must not leave are declared in a
//! migration, `select saas.omit_from_export('account', 'password_hash', 'a secret');`, and stand in the manifest.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use saas_core::{RequestContext, SystemClock, SystemPool, TenantPool};
//! # use saas_tenancy::export::{Exports, LocalFolder};
//! # async fn example(tenants: TenantPool, system: SystemPool, ctx: &RequestContext) -> Result<(), saas_tenancy::TenancyError> {
//! let exports = Exports::new(tenants, system, Arc::new(SystemClock));
//! let folder = LocalFolder::new("/var/lib/app/exports");
//! let done = exports.run(ctx, &folder, &mut |progress| println!("{}: {} rows", progress.table, progress.rows)).await?;
//! println!("{} tables in {}", done.manifest.tables.len(), done.place);
//! # Ok(()) }
//! ```

mod catalog;
mod encode;
mod jobs;
mod local;
mod manifest;
#[cfg(feature = "object-store")]
mod object;
mod stream;
mod target;

use std::{fmt, sync::Arc};

use saas_core::{
    Actor, CoreError, ExportId, RequestContext, SessionBinding, SharedClock, SystemPool, SystemTx, TenantContext,
    TenantPool, TenantTx,
    audit::{self, Entry},
};
use serde_json::json;

use self::catalog::Part;
#[cfg(feature = "object-store")]
pub use self::object::ObjectTarget;
pub use self::{
    encode::Encoding,
    jobs::{ExportJob, ExportJobState, ExportJobs, ExportRun},
    local::LocalFolder,
    manifest::{ColumnManifest, FORMAT_VERSION, FileFormat, FileManifest, LeftOut, Manifest, TableManifest},
    target::{ExportDraft, ExportFile, ExportPath, ExportTarget, TargetError, TargetFault},
};
use crate::{Permission, TenancyError, postgres as store};

/// How far an export is: told after every chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportProgress {
    /// The table at hand.
    pub table: String,
    /// Rows of it that are written.
    pub rows: u64,
    /// Bytes of all files so far.
    pub bytes: u64,
}

/// An export that is complete and visible.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Exported {
    /// Where it is: a folder, or a prefix of objects.
    pub place: String,
    /// What it holds.
    pub manifest: Manifest,
}

/// Hears how far an export is.
pub type OnProgress<'f> = &'f mut (dyn FnMut(&ExportProgress) + Send);

/// Writes tenants' data into files.
#[derive(Clone)]
pub struct Exports {
    tenants: TenantPool,
    system: SystemPool,
    clock: SharedClock,
    placements: Option<Arc<dyn SessionBinding>>,
    chunk: usize,
}

/// The size of what is written at once, unless set.
const CHUNK: usize = 256 * 1024;
const SMALLEST_CHUNK: usize = 4 * 1024;

impl Exports {
    /// The service over an application's two pools of the control database.
    #[must_use]
    pub fn new(tenants: TenantPool, system: SystemPool, clock: SharedClock) -> Self {
        Self { tenants, system, clock, placements: None, chunk: CHUNK }
    }

    /// Reads the application's tables where the binding places the tenant.
    #[must_use]
    pub fn with_placements(mut self, binding: Arc<dyn SessionBinding>) -> Self {
        self.placements = Some(binding);
        self
    }

    /// Writes this many bytes at once, at least 4 KiB; a longer row makes a longer chunk. Default: 256 KiB.
    #[must_use]
    pub fn with_chunk(mut self, bytes: usize) -> Self {
        self.chunk = bytes.max(SMALLEST_CHUNK);
        self
    }

    /// Exports everything of the context's tenant: each table as JSON Lines and as CSV, and a manifest.
    ///
    /// Members need the permission to export; operators and jobs of the system are let through, and API keys and
    /// impersonators are not. That it began, and that it ended, stands in the tenant's audit log. To cancel, drop the
    /// future. While it runs, the server keeps what the snapshot can see: run large ones off the busiest hours.
    ///
    /// # Errors
    /// - [`NotAllowed`](TenancyError::NotAllowed), [`NotMember`](TenancyError::NotMember),
    ///   [`NotAPerson`](TenancyError::NotAPerson).
    /// - [`Unfenced`](TenancyError::Unfenced): a table with tenants' rows and without a fence.
    /// - [`Target`](TenancyError::Target): the target failed or refused; nothing of the export is visible.
    pub async fn run(
        &self,
        ctx: &dyn TenantContext,
        target: &dyn ExportTarget,
        progress: OnProgress<'_>,
    ) -> Result<Exported, TenancyError> {
        self.authorize(ctx).await?;
        self.run_as(ctx, ExportId::mint(self.clock.as_ref()), target, progress).await
    }

    /// Exports under an id, for whoever was let through.
    async fn run_as(
        &self,
        ctx: &dyn TenantContext,
        export: ExportId,
        target: &dyn ExportTarget,
        progress: OnProgress<'_>,
    ) -> Result<Exported, TenancyError> {
        self.record(ctx, Entry::new("tenant.export_started", export)).await?;
        let mut draft = target.begin(ctx.tenant(), export).await?;
        let manifest = match self.write(ctx, export, draft.as_mut(), progress).await {
            Ok(manifest) => manifest,
            Err(error) => {
                // The first error is the one that counts.
                let _ = draft.abort().await;
                return Err(error);
            }
        };
        let text =
            serde_json::to_vec_pretty(&manifest).map_err(|error| TargetError::new("write the manifest", error))?;
        let place = draft.publish(text).await?;
        let rows: u64 = manifest.tables.iter().map(|table| table.rows).sum();
        let detail = json!({ "tables": manifest.tables.len(), "rows": rows, "place": place });
        self.record(ctx, Entry::new("tenant.exported", export).with_detail(detail)).await?;
        Ok(Exported { place, manifest })
    }

    async fn write(
        &self,
        ctx: &dyn TenantContext,
        export: ExportId,
        draft: &mut dyn ExportDraft,
        progress: OnProgress<'_>,
    ) -> Result<Manifest, TenancyError> {
        let started_at = self.clock.now();
        // Everybody's rows: what fences show only to some of the tenant's people leaves with the tenant, too. Whether the caller
        // may have it all was asked before.
        let ctx = &RequestContext::new_at(ctx.tenant(), Actor::system("export"), started_at);
        let mut writer = stream::Writer::new(ctx.tenant(), draft, progress, self.chunk);
        let mut control = TenantTx::begin_snapshot(&self.tenants, ctx).await?;
        let schema_versions = catalog::schema_versions(&mut control).await?;
        match self.elsewhere(ctx, &mut control).await? {
            // One snapshot for all of it: that of the placement, which knows its schema.
            Some((mut placed, true)) => {
                drop(control);
                writer.part(&mut placed, Part::Whole).await?;
            }
            Some((placed, false)) => {
                // Its own snapshot begins when it is read: one that waits for long is ended by the server.
                drop(placed);
                writer.part(&mut control, Part::Foundation).await?;
                drop(control);
                let mut placed = self.snapshot_of_place(ctx).await?;
                writer.part(&mut placed, Part::Application).await?;
            }
            None => writer.part(&mut control, Part::Whole).await?,
        }
        let (mut tables, mut left_out) = writer.finish();
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        left_out.sort();
        Ok(Manifest {
            format_version: FORMAT_VERSION,
            tenant: ctx.tenant(),
            export,
            started_at,
            finished_at: self.clock.now(),
            schema_versions,
            tables,
            left_out,
        })
    }

    /// A snapshot where the application's tables are, and whether that is the control database itself.
    async fn elsewhere(
        &self,
        ctx: &dyn TenantContext,
        control: &mut TenantTx,
    ) -> Result<Option<(TenantTx, bool)>, TenancyError> {
        if self.placements.is_none() {
            return Ok(None);
        }
        let mut placed = self.snapshot_of_place(ctx).await?;
        let is_control = catalog::identity(&mut placed).await? == catalog::identity(control).await?;
        Ok(Some((placed, is_control)))
    }

    async fn snapshot_of_place(&self, ctx: &dyn TenantContext) -> Result<TenantTx, CoreError> {
        let binding = self.placements.as_deref().unwrap_or(&self.tenants);
        TenantTx::begin_snapshot(binding, ctx).await
    }

    async fn authorize(&self, ctx: &dyn TenantContext) -> Result<(), TenancyError> {
        let user = match ctx.actor() {
            Actor::Operator { .. } | Actor::System { .. } => return Ok(()),
            Actor::User { id } => *id,
            other @ (Actor::ApiKey { .. } | Actor::Impersonation { .. }) => {
                return Err(TenancyError::NotAPerson { actor: other.to_string() });
            }
        };
        let mut tx = TenantTx::begin(&self.tenants, ctx).await?;
        let role = store::role_of(&mut tx, ctx.tenant(), user).await?.ok_or(TenancyError::NotMember)?;
        if role.allows(Permission::ExportData) {
            Ok(())
        } else {
            Err(TenancyError::NotAllowed { role, permission: Permission::ExportData })
        }
    }

    /// As the system: a tenant that may only read can still be exported, and the log knows.
    async fn record(&self, ctx: &dyn TenantContext, entry: Entry) -> Result<(), CoreError> {
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "record an export").await?;
        audit::record_for(&mut tx, ctx, entry, self.clock.now()).await?;
        tx.commit().await
    }
}

impl fmt::Debug for Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exports")
            .field("placements", &self.placements)
            .field("chunk", &self.chunk)
            .finish_non_exhaustive()
    }
}
