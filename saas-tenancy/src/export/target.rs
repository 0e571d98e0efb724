//! Where an export goes: the port, and the paths of its files.

use std::fmt;

use async_trait::async_trait;
use saas_core::{Cause, ErrorKind, ExportId, TenantId};

/// A place that takes exports.
///
/// # Contract
/// - *All or nothing*: whoever looks for finished exports finds one after [`publish`](ExportDraft::publish) and nothing
///   before, also when the process dies or the future is dropped in between.
/// - *Kept apart*: exports of two tenants never share a folder; the place is built from the typed ids.
#[async_trait]
pub trait ExportTarget: fmt::Debug + Send + Sync + 'static {
    /// Begins one export.
    async fn begin(&self, tenant: TenantId, export: ExportId) -> Result<Box<dyn ExportDraft>, TargetError>;
    /// Removes an export, published or half-written by a process that died; none at all is as good. What makes it look
    /// complete goes first.
    async fn remove(&self, tenant: TenantId, export: ExportId) -> Result<(), TargetError>;
}

/// An export that nobody sees yet. Dropped without [`publish`](Self::publish), it is removed as far as that can be done
/// without waiting.
#[async_trait]
pub trait ExportDraft: fmt::Debug + Send + 'static {
    /// Opens a file that does not exist yet. Several are open at once.
    async fn create(&mut self, path: &ExportPath) -> Result<Box<dyn ExportFile>, TargetError>;
    /// Makes the export visible and durable, with `manifest` as its file `manifest.json`; answers where it is, for people.
    /// Every file was finished before.
    async fn publish(self: Box<Self>, manifest: Vec<u8>) -> Result<String, TargetError>;
    /// Removes what was written.
    async fn abort(self: Box<Self>) -> Result<(), TargetError>;
}

/// One file of a draft, written from its beginning to its end.
#[async_trait]
pub trait ExportFile: fmt::Debug + Send + 'static {
    /// Appends bytes. Waits while the target is busy, so that nothing piles up in memory.
    async fn write(&mut self, chunk: Vec<u8>) -> Result<(), TargetError>;
    /// Makes the file complete and durable.
    async fn finish(self: Box<Self>) -> Result<(), TargetError>;
}

/// Why a target did not take an export. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
#[error("the export's target failed to {action}; {}", fault.remedy())]
pub struct TargetError {
    action: &'static str,
    fault: TargetFault,
    #[source]
    cause: Cause,
}

/// What is wrong with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetFault {
    /// It did not answer, or failed: another try may succeed.
    Failed,
    /// It does not let this process in.
    Refused,
    /// The folder or bucket that it was named does not exist.
    Missing,
}

impl TargetFault {
    const fn remedy(self) -> &'static str {
        match self {
            Self::Failed => "see the cause, then export again",
            Self::Refused => "correct its credentials, and let them write, list and delete there",
            Self::Missing => "create the folder or bucket, or correct its name",
        }
    }
}

impl TargetError {
    /// A failure of `action`, such as `write a file`, that another try may not meet.
    pub fn new(action: &'static str, cause: impl Into<Cause>) -> Self {
        Self::of(TargetFault::Failed, action, cause)
    }

    /// A failure of `action` for a reason that is known.
    pub fn of(fault: TargetFault, action: &'static str, cause: impl Into<Cause>) -> Self {
        Self { action, fault, cause: cause.into() }
    }

    /// What is wrong.
    #[must_use]
    pub const fn fault(&self) -> TargetFault {
        self.fault
    }

    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self.fault {
            TargetFault::Failed => ErrorKind::Unavailable,
            TargetFault::Refused | TargetFault::Missing => ErrorKind::Misconfigured,
        }
    }

    /// A stable name for logs, metrics and clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self.fault {
            TargetFault::Failed => "export_target",
            TargetFault::Refused => "export_target_refused",
            TargetFault::Missing => "export_target_missing",
        }
    }
}

/// The relative path of a file: segments of lower-case ASCII letters, digits, `_`, `-` and inner dots, joined by `/`.
///
/// No table's name makes it leave the export's folder or collide with another: every other byte of a name becomes `-` and
/// two hexadecimal digits. No file system and no store writes these characters in another way, so the path in the manifest
/// is the one that is found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportPath(String);

impl ExportPath {
    /// The file of a table, such as `tables/public/project.jsonl`.
    pub(crate) fn of_table(schema: &str, table: &str, extension: &'static str) -> Self {
        let mut path = String::from("tables/");
        escape(&mut path, schema);
        path.push('/');
        escape(&mut path, table);
        path.push('.');
        path += extension;
        Self(path)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExportPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Upper case is escaped too: some file systems take `A` and `a` for one name.
fn escape(path: &mut String, name: &str) {
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' => path.push(char::from(byte)),
            other => *path += &format!("-{other:02x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tables_name_cannot_leave_the_folder() {
        for (schema, table, path) in [
            ("public", "project", "tables/public/project.jsonl"),
            ("..", "../../etc/passwd", "tables/-2e-2e/-2e-2e-2f-2e-2e-2fetc-2fpasswd.jsonl"),
            ("A", "a-b\0c\\d", "tables/-41/a-2db-00c-5cd.jsonl"),
        ] {
            assert_eq!(ExportPath::of_table(schema, table, "jsonl").as_str(), path);
        }
    }

    proptest! {
        #[test]
        fn two_tables_never_share_a_file(a in any::<(String, String)>(), b in any::<(String, String)>()) {
            let path = |(schema, table): &(String, String)| ExportPath::of_table(schema, table, "csv").to_string();
            prop_assert_eq!(path(&a).to_lowercase() == path(&b).to_lowercase(), a == b);
            prop_assert_eq!(path(&a).matches('/').count(), 2);
            prop_assert!(!path(&a).contains(".."));
        }
    }
}
