//! What an export says about itself: the file `manifest.json`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use saas_core::{ExportId, TenantId};
use serde::{Deserialize, Serialize};

use super::encode::Encoding;

/// The version of the layout of folders, files and manifest. A reader refuses a higher one.
pub const FORMAT_VERSION: u32 = 1;

/// The contents of an export, written last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// [`FORMAT_VERSION`] at the time of writing.
    pub format_version: u32,
    /// Whose data.
    pub tenant: TenantId,
    /// Which export.
    pub export: ExportId,
    /// When it began. The data is that of one instant shortly after.
    pub started_at: DateTime<Utc>,
    /// When the last row was written.
    pub finished_at: DateTime<Utc>,
    /// The version of each part of the foundation's schema, by its name, such as `core`.
    pub schema_versions: BTreeMap<String, i64>,
    /// The tables, by name.
    pub tables: Vec<TableManifest>,
    /// Tables that hold something of the tenant's and are not here.
    pub left_out: Vec<LeftOut>,
}

/// One table of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TableManifest {
    /// Schema and table, quoted as SQL needs it.
    pub name: String,
    /// Rows, the same in both files.
    pub rows: u64,
    /// The columns, in the order of the CSV file.
    pub columns: Vec<ColumnManifest>,
    /// Columns that were left out.
    pub omitted_columns: Vec<LeftOut>,
    /// Its files.
    pub files: Vec<FileManifest>,
}

/// One column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ColumnManifest {
    /// Its name.
    pub name: String,
    /// Its type in PostgreSQL, such as `numeric(12,2)`.
    pub sql_type: String,
    /// How its values stand in JSON Lines.
    pub encoding: Encoding,
}

/// One file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FileManifest {
    /// Relative to the manifest.
    pub path: String,
    /// Its form.
    pub format: FileFormat,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal digits.
    pub sha256: String,
}

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FileFormat {
    /// One JSON object per line, exact.
    #[serde(rename = "json_lines")]
    JsonLines,
    /// RFC 4180 with a header; safe in spreadsheets, see [`Encoding`].
    #[serde(rename = "csv")]
    Csv,
}

/// Something that an export does not hold, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// The table or column.
    pub name: String,
    /// Why.
    pub reason: String,
}
